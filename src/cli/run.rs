//! `run`: a sandbox for one command, gone when the command is.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::Args;

use super::client::{Client, CreateRequest, Tracing};
use super::create::SandboxArgs;
use super::exec::{CommandArgs, TerminalArgs, execute};
use super::lease::{LeaseArgs, Renewal};
use super::output::{Format, tell};
use super::session::End;
use super::shell;
use super::signals::Signals;

/// Arguments of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    spec: SandboxArgs,
    #[command(flatten)]
    command: CommandArgs,
    #[command(flatten)]
    terminal: TerminalArgs,
    /// Destroy the sandbox at the end, which is done unless --keep is given
    #[arg(long, conflicts_with = "keep")]
    rm: bool,
    /// Keep the sandbox, and say its id on stderr
    #[arg(long, conflicts_with = "lease_sec")]
    keep: bool,
    #[command(flatten)]
    lease: LeaseArgs,
}

pub(super) async fn run(client: Client, format: Format, args: RunArgs) -> Result<ExitCode> {
    let client = Arc::new(client);
    let way = args.terminal.way(format)?;
    // From here on ^C does not end us before the sandbox is gone.
    let mut signals = Signals::listen()?;
    let request = args.command.into_request();
    // What is kept outlives us anyway.
    let lease_sec = (!args.keep).then_some(args.lease.lease_sec);
    let wanted = CreateRequest { lease_sec, ..args.spec.into() };
    let (sandbox, signalled) = create(&client, &wanted, &mut signals).await?;
    let _renewal = lease_sec.map(|lease_sec| Renewal::start(&client, &sandbox, lease_sec));
    let end = match signalled {
        Some(signal) => Ok(End::Signalled(signal)),
        None => execute(&client, &sandbox, request, way, format, &mut signals).await,
    };
    if args.keep {
        tell(&format!("nestbox: the sandbox {sandbox} is kept"));
        return Ok(ExitCode::from(shell::after(end?, &sandbox)));
    }
    let destroyed = destroy(&client, &sandbox, &end, &mut signals)
        .await
        .with_context(|| format!("the sandbox {sandbox} was not destroyed"));
    // How the command ended is not lost when the clean-up fails.
    let code = match end? {
        // Whoever leaves a terminal here leaves the sandbox.
        End::Detached { .. } => 0,
        end @ (End::Exited(_) | End::Signalled(_) | End::Unread) => shell::after(end, &sandbox),
    };
    destroyed?;
    Ok(ExitCode::from(code))
}

/// Creates the sandbox; gives the signal that came meanwhile. The request is not given up at once for
/// it: without the answer we do not know what to destroy, and only the lease does it.
async fn create(
    client: &Client,
    request: &CreateRequest,
    signals: &mut Signals,
) -> Result<(String, Option<i32>)> {
    let mut creating = std::pin::pin!(client.create(request, None, Tracing::Off));
    let signal = tokio::select! {
        created = &mut creating => return Ok((created?.id, None)),
        signal = signals.next() => signal,
    };
    tokio::select! {
        created = &mut creating => Ok((created?.id, Some(signal))),
        () = signals.grace() => match request.lease_sec {
            Some(seconds) => bail!(
                "the daemon has not answered yet: a sandbox that it still makes is destroyed after {seconds} s"
            ),
            None => bail!("the daemon has not answered yet: `nestbox ls` shows whether a sandbox was made"),
        },
    }
}

/// Destroys the sandbox, unless signals ask us to end and it takes longer than their grace.
async fn destroy(
    client: &Client,
    id: &str,
    end: &Result<End>,
    signals: &mut Signals,
) -> Result<()> {
    let asked = matches!(end, Ok(End::Signalled(_)));
    tokio::select! {
        destroyed = client.destroy(id) => Ok(destroyed?),
        () = async {
            if !asked {
                signals.next().await;
            }
            signals.grace().await;
        } => bail!("the daemon has not answered yet"),
    }
}
