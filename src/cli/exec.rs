//! `exec`.

use std::io;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use super::client::{Client, ExecAnswer, ExecRequest};
use super::exit;
use super::output::{Format, tell, write};
use super::pairs::{env_pair, map};
use super::resolve::resolve;

/// Arguments of `exec`.
#[derive(Debug, Args)]
pub struct ExecArgs {
    /// The sandbox's id, or a beginning of it that no other has
    id: String,
    #[command(flatten)]
    command: CommandArgs,
    /// Environment variable for the command; without a value, the one it has here
    #[arg(long = "env", short, value_name = "KEY[=VALUE]", value_parser = env_pair)]
    envs: Vec<(String, String)>,
    /// Seconds after which the command and its children are killed
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    timeout_sec: Option<u32>,
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
    let id = resolve(client, &args.id).await?;
    let answer = client.exec(&id, &args.into_request()).await?;
    Ok(ExitCode::from(pass_on(&answer, format)?))
}

/// Prints what the command printed, or all of the answer as JSON; gives its exit code.
///
/// # Errors
///
/// When the answer is malformed or our own output cannot be written to.
pub(super) fn pass_on(answer: &ExecAnswer, format: Format) -> Result<u8> {
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
