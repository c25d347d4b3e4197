//! A command in a sandbox: what to run, and what came of it.

use std::collections::BTreeMap;
use std::time::Duration;

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
