//! `run`: a sandbox for one command, gone when the command is.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::client::{Client, CreateRequest, ExecAnswer, ExecRequest, Tracing};
use super::create::SandboxArgs;
use super::exec::{CommandArgs, pass_on};
use super::exit;
use super::output::Format;

/// Arguments of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    spec: SandboxArgs,
    #[command(flatten)]
    command: CommandArgs,
}

/// How the command ended.
enum End {
    Answered(ExecAnswer),
    /// A signal asked us to end.
    Signalled(i32),
}

pub(super) async fn run(client: &Client, format: Format, args: RunArgs) -> Result<ExitCode> {
    // From here on ^C does not end us before the sandbox is gone.
    let mut signals = Signals::listen()?;
    let request = args.command.into_request();
    let (sandbox, signalled) = create(client, &args.spec.into(), &mut signals).await?;
    let end = match signalled {
        Some(signal) => Ok(End::Signalled(signal)),
        None => exec(client, &sandbox, &request, &mut signals).await,
    };
    let destroyed = client
        .destroy(&sandbox)
        .await
        .with_context(|| format!("the sandbox {sandbox} was not destroyed"));
    // What the command printed is not lost when the clean-up fails.
    let code = match end? {
        End::Answered(answer) => pass_on(&answer, format)?,
        End::Signalled(signal) => exit::of_signal(signal),
    };
    destroyed?;
    Ok(ExitCode::from(code))
}

/// Creates the sandbox; gives the signal that came meanwhile. The request is not given up for it:
/// without the answer we would not know what to destroy.
async fn create(
    client: &Client,
    request: &CreateRequest,
    signals: &mut Signals,
) -> Result<(String, Option<i32>)> {
    let mut creating = std::pin::pin!(client.create(request, None, Tracing::Off));
    tokio::select! {
        created = &mut creating => Ok((created?.id, None)),
        signal = signals.next() => Ok((creating.await?.id, Some(signal))),
    }
}

async fn exec(
    client: &Client,
    sandbox: &str,
    request: &ExecRequest,
    signals: &mut Signals,
) -> Result<End> {
    tokio::select! {
        answer = client.exec(sandbox, request) => Ok(End::Answered(answer?)),
        signal = signals.next() => Ok(End::Signalled(signal)),
    }
}

/// The signals that ask a program to end.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Signals {
    pub fn listen() -> Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hang_up: listen(SignalKind::hangup())?,
        })
    }

    /// Waits for one of them; gives its number.
    pub async fn next(&mut self) -> i32 {
        let kind = tokio::select! {
            _ = self.interrupt.recv() => SignalKind::interrupt(),
            _ = self.terminate.recv() => SignalKind::terminate(),
            _ = self.hang_up.recv() => SignalKind::hangup(),
        };
        kind.as_raw_value()
    }
}
