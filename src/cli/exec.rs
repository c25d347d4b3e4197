//! `exec`.

use std::io;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;

use super::client::{BackgroundRequest, Client, ExecAnswer, ExecRequest};
use super::output::{Format, tell, write};
use super::pairs::{env_pair, map};
use super::resolve::resolve;
use super::session::{End, Input, Target, attach, follow};
use super::signals::Signals;
use super::{exit, shell};

/// Arguments of `exec`.
#[derive(Debug, Args)]
pub struct ExecArgs {
    /// The sandbox's id, or a beginning of it that no other has
    id: String,
    #[command(flatten)]
    command: CommandArgs,
    #[command(flatten)]
    terminal: TerminalArgs,
    /// Environment variable for the command; without a value, the one it has here
    #[arg(long = "env", short, value_name = "KEY[=VALUE]", value_parser = env_pair)]
    envs: Vec<(String, String)>,
    /// Seconds after which the command and its children are killed; its output comes at its end
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..),
        conflicts_with_all = ["interactive", "tty"])]
    timeout_sec: Option<u32>,
    /// Let it run in the background, and print its process id: see ps, logs and kill
    #[arg(long, short, conflicts_with_all = ["interactive", "tty", "timeout_sec"])]
    detach: bool,
    /// Name for the process beside its id
    #[arg(long, value_name = "TAG", requires = "detach")]
    tag: Option<String>,
}

/// How a command is started; also part of `run`.
#[derive(Debug, Args)]
pub struct CommandArgs {
    /// Directory to start in
    #[arg(long, value_name = "DIR")]
    cwd: Option<String>,
    /// User to run as
    #[arg(long, short, value_name = "USER")]
    user: Option<String>,
    /// The command and its arguments, run as they are; for a shell: sh -c '...'
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<String>,
}

/// What a command has of our terminal; also part of `run`.
#[derive(Debug, Args)]
pub struct TerminalArgs {
    /// Pass our standard input on
    #[arg(long, short)]
    interactive: bool,
    /// Run it on a terminal; with -i, which it takes anyway
    #[arg(long, short)]
    tty: bool,
}

/// How a command is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Piped(Input),
    Terminal,
    /// Not while it runs: its result is one JSON object.
    Whole,
}

impl TerminalArgs {
    /// Which one these flags ask for.
    ///
    /// # Errors
    ///
    /// That what a person types at has no result in JSON.
    pub fn way(&self, format: Format) -> Result<Way> {
        match (format, self.tty, self.interactive) {
            (Format::Json, false, false) => Ok(Way::Whole),
            (Format::Json, _, _) => bail!("--json is not for -i and -t"),
            (Format::Text, true, _) => Ok(Way::Terminal),
            (Format::Text, false, true) => Ok(Way::Piped(Input::Ours)),
            (Format::Text, false, false) => Ok(Way::Piped(Input::Closed)),
        }
    }
}

impl CommandArgs {
    pub(super) fn into_request(self) -> ExecRequest {
        let mut words = self.command.into_iter();
        ExecRequest {
            cmd: words.next().expect("clap requires the command"),
            args: words.collect(),
            envs: Default::default(),
            cwd: self.cwd,
            user: self.user,
            timeout_sec: None,
        }
    }
}

impl ExecArgs {
    pub(super) fn into_request(self) -> ExecRequest {
        ExecRequest {
            envs: map(self.envs),
            timeout_sec: self.timeout_sec,
            ..self.command.into_request()
        }
    }
}

pub(super) async fn run(client: &Client, format: Format, args: ExecArgs) -> Result<ExitCode> {
    let way = match args.timeout_sec {
        Some(_) => Way::Whole,
        None => args.terminal.way(format)?,
    };
    let id = resolve(client, &args.id).await?;
    if args.detach {
        let tag = args.tag.clone();
        let request = BackgroundRequest { exec: args.into_request(), background: true, tag };
        let started = client.exec_background(&id, &request).await?;
        format.print(&started, || format!("{}\n", started.pid))?;
        return Ok(ExitCode::SUCCESS);
    }
    let end = execute(client, &id, args.into_request(), way, format, &mut Signals::listen()?).await;
    Ok(ExitCode::from(shell::after(end?, &id)))
}

/// Runs a command and passes on what it writes.
///
/// # Errors
///
/// That it did not run to its end, and why.
pub(super) async fn execute(
    client: &Client,
    id: &str,
    request: ExecRequest,
    way: Way,
    format: Format,
    signals: &mut Signals,
) -> Result<End> {
    match way {
        Way::Piped(input) => follow(client, id, request, input, signals).await,
        Way::Terminal => attach(client, id, Target::New(request.into()), signals).await,
        Way::Whole => tokio::select! {
            answer = client.exec(id, &request) => {
                Ok(End::Exited(pass_on(&answer?, format)?.into()))
            }
            signal = signals.next() => Ok(End::Signalled(signal)),
        },
    }
}

/// Prints what the command printed, or all of the answer as JSON; gives its exit code.
///
/// # Errors
///
/// When the answer is malformed or our own output cannot be written to.
fn pass_on(answer: &ExecAnswer, format: Format) -> Result<u8> {
    match format {
        Format::Json => format.print(answer, String::new)?,
        Format::Text => {
            // Both are decoded first: half of a malformed answer would look like a whole one.
            let stdout = answer.encoding.decode(&answer.stdout)?;
            let stderr = answer.encoding.decode(&answer.stderr)?;
            write(&mut io::stdout(), &stdout)?;
            write(&mut io::stderr(), &stderr)?;
            if answer.truncated {
                tell("nestbox: the command printed more than this");
            }
            if answer.timed_out {
                tell("nestbox: the command was killed, its time was over");
            }
        }
    }
    Ok(exit::of_command(answer.exit_code))
}
