//! A command in a sandbox: what to run, and what came of it; or what is heard of it while it runs.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;

use super::process::{Tag, TerminalSize};

/// A command to run.
#[derive(Debug, Clone, Default)]
pub struct Exec {
    /// A path, or a name that is looked up in `PATH`.
    pub cmd: String,
    /// Arguments after the command's name.
    pub args: Vec<String>,
    /// Added to the sandbox's environment.
    pub envs: BTreeMap<String, String>,
    /// Working directory; the user's home if absent.
    pub cwd: Option<String>,
    /// Unix user; the sandbox's default if absent.
    pub user: Option<String>,
    /// After this long the command and all its descendants are killed.
    pub time_limit: Option<Duration>,
    /// Bytes of standard output and of standard error that are kept, each.
    pub output_limit: usize,
}

/// How a command came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExecEnd {
    /// By itself or by a signal; the code is 128 and the signal's number then.
    Exited(i32),
    /// Killed, because its time was over.
    TimedOut,
    /// Killed, because nobody waits for it any more.
    Abandoned,
}

/// What a command left behind.
#[derive(Debug, Clone)]
pub struct ExecOutput {
    /// Standard output, cut at the limit.
    pub stdout: Vec<u8>,
    /// Standard error, cut at the limit.
    pub stderr: Vec<u8>,
    /// Bytes that were dropped beyond the limit, of both together.
    pub dropped: u64,
    /// How it ended.
    pub end: ExecEnd,
    /// Time from the request to the end.
    pub duration: Duration,
}

/// Where a command's output comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// The terminal, which does not tell the two apart.
    Terminal,
}

/// What is heard of a command that is followed while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecEvent {
    /// It runs under this process id: the first event, missing if it could not be started.
    Started { pid: u32, tag: Option<Tag> },
    /// It has written something.
    Output {
        stream: OutputStream,
        data: Bytes,
        /// Number of the last byte, if output is kept and numbered.
        seq: Option<u64>,
    },
    /// So many bytes of its output are not kept any more.
    Lost(u64),
    /// Some input or a signal did not reach it, and why. It runs on.
    Unreached(String),
    /// It has ended with this exit code, 128 and the signal's number if by one: the last event.
    Ended(i32),
}

/// What goes to a command's standard input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecInput {
    /// Some bytes.
    Data(Bytes),
    /// The end: nothing more will come.
    End,
}

/// What may be done to a command that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExecControl {
    /// Sends a signal to it and its process group; SIGKILL reaches all it has started.
    Signal(Signal),
    /// Changes the size of its terminal.
    Resize(TerminalSize),
    /// Asks it to end, and kills it with all it has started if it does not.
    Stop,
}

/// A signal that can be sent into a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGHUP.
    Hangup,
    /// SIGINT.
    Interrupt,
    /// SIGQUIT.
    Quit,
    /// SIGKILL.
    Kill,
    /// SIGUSR1.
    User1,
    /// SIGUSR2.
    User2,
    /// SIGTERM.
    Terminate,
}

/// A text that names no signal, or none that can be sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} cannot be sent: a signal is SIGHUP, SIGINT, SIGQUIT, SIGKILL, SIGUSR1, SIGUSR2 or SIGTERM"
)]
pub struct UnknownSignal(String);

impl FromStr for Signal {
    type Err = UnknownSignal;

    fn from_str(name: &str) -> Result<Self, UnknownSignal> {
        match name {
            "SIGHUP" => Ok(Self::Hangup),
            "SIGINT" => Ok(Self::Interrupt),
            "SIGQUIT" => Ok(Self::Quit),
            "SIGKILL" => Ok(Self::Kill),
            "SIGUSR1" => Ok(Self::User1),
            "SIGUSR2" => Ok(Self::User2),
            "SIGTERM" => Ok(Self::Terminate),
            other => Err(UnknownSignal(other.to_owned())),
        }
    }
}
