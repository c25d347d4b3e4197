//! `nestbox serve`: the daemon in the foreground, from its first line to an orderly end.

use std::future::pending;
use std::io::IsTerminal;
use std::path::Path;
use std::time::Duration;

use super::telemetry::Telemetry;
use super::{Daemon, bind, descriptors};
use crate::actors::control::ControlPlane;
use crate::config::Config;
use crate::http::{Connections, Front, OwnNames, Ports, Sockets, create_server};
use crate::print::{say, tell};
use anyhow::{Context, Result};
use nix::sys::stat::{Mode, umask};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// Threads that speak HTTP: they only pass bytes on, so a few are enough for any host.
const HTTP_THREADS: usize = 2;

/// How often it is looked whether a sandbox is left, once nobody is there who would want it.
const LAST_LOOKS: Duration = Duration::from_millis(500);

/// What ends a daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// A signal.
    Signal,
    /// Standard input too, as soon as no sandbox is left after it: whoever started the daemon is gone,
    /// and leases of its sandboxes end.
    StdinEnds,
}

/// Runs the daemon until it is told to end.
///
/// # Errors
///
/// What kept it from starting, with what to do about it.
pub fn serve(config: &Config, until: Until) -> Result<()> {
    keep_to_ourselves()?;
    let telemetry = Telemetry::begin(config)?;
    let descriptors = descriptors::raise().context("cannot learn how much may be open")?;
    let outcome = actix_web::rt::System::new().block_on(run(config, until, descriptors));
    telemetry.end();
    outcome
}

/// Has files that the daemon makes be root's alone, directories be passed through at most, and no process
/// that it starts have what whoever started it left open.
fn keep_to_ourselves() -> Result<()> {
    umask(Mode::from_bits_truncate(0o066));
    crate::vmm::process::close_on_exec().context("cannot keep descriptors from other programs")
}

async fn run(config: &Config, until: Until, descriptors: u64) -> Result<()> {
    // Before anything is started, so that a signal in the meantime is not lost.
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for signals")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for signals")?;

    let daemon = Daemon::start(config).await?;
    let (listeners, url) = match bind(config, &daemon.reserve) {
        Ok(bound) => bound,
        Err(error) => {
            daemon.shut_down().await;
            return Err(error);
        }
    };
    let key_file = daemon.ensure_key(&config.data_dir).await?;
    announce(&daemon, &url, &key_file);
    let budget = descriptors::budget(descriptors);
    say(format_args!(
        "Descriptors: {descriptors}, for {} connections, {} of them without a key",
        budget.all, budget.strangers
    ));

    let sockets = Sockets::default();
    let front = Front {
        sockets: sockets.clone(),
        ports: Ports::new(&config.domain),
        names: own_names(config)?,
        connections: Connections::new(budget),
    };
    let server = create_server(daemon.control.clone(), listeners, HTTP_THREADS, front)
        .context("cannot serve HTTP")?;
    let handle = server.handle();
    let served = tokio::spawn(server);

    let by = tokio::select! {
        _ = interrupt.recv() => "SIGINT",
        _ = terminate.recv() => "SIGTERM",
        () = abandoned(until, &daemon.control) => "the end of standard input",
    };
    tracing::info!(by, "ending: requests under way are finished, sandboxes run on");
    sockets.end_all();
    handle.stop(true).await;
    served.await.context("the HTTP server panicked")?.context("the HTTP server failed")?;
    let left = daemon.control.population().values().sum::<usize>();
    daemon.shut_down().await;
    // A URL that nobody answers at only misleads, and so does a socket.
    for name in [super::URL_FILE, super::SOCKET_FILE] {
        if let Err(error) = std::fs::remove_file(config.data_dir.join(name)) {
            tracing::debug!(%error, name, "a file that leads to this daemon stays");
        }
    }
    if left > 0 {
        tell(format_args!("{left} sandboxes run on; start the daemon again to use them"));
    }
    Ok(())
}

/// Waits until nobody is there who started the daemon for himself, nor anything of his.
async fn abandoned(until: Until, control: &ControlPlane) {
    if until == Until::Signal {
        return pending().await;
    }
    let (tell, told) = oneshot::channel();
    // A thread that nothing waits for: it may read for as long as the daemon runs.
    std::thread::spawn(move || {
        let ended = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        let _ = tell.send(ended.is_ok());
    });
    let _ = told.await;
    while control.population().values().sum::<usize>() > 0 {
        tokio::time::sleep(LAST_LOOKS).await;
    }
}

/// The names by which this machine is known, and those of the settings.
fn own_names(config: &Config) -> Result<OwnNames> {
    let known = [super::host_name()?, config.domain.clone()];
    Ok(OwnNames::new(known.into_iter().chain(config.host_names.iter().cloned())))
}

fn announce(daemon: &Daemon, url: &str, key_file: &Path) {
    say(format_args!("Nestbox {} listens on {url}", env!("CARGO_PKG_VERSION")));
    say(format_args!("API key:    {}", key_file.display()));
    say(format_args!("Browser:    {}", page_link(url, key_file)));
    say(format_args!("Hypervisor: {}, {}", daemon.engine(), daemon.reason));
    for warning in &daemon.warnings {
        say(format_args!("Warning:    {warning}"));
        tracing::warn!("{warning}");
    }
    let (adopted, lost) = (daemon.adoption.adopted.len(), &daemon.adoption.lost);
    if adopted > 0 {
        say(format_args!("Sandboxes:  {adopted} of a former daemon run on or are still paused"));
    }
    for (id, reason) in lost {
        say(format_args!("Lost:       {id}: {reason}"));
    }
}

/// The page in a browser. Where a person reads it, the key is in it; where it is kept, as in a
/// journal, it is not. What stands behind the `#` is not sent to anybody.
fn page_link(url: &str, key_file: &Path) -> String {
    let key = std::fs::read_to_string(key_file).ok();
    match key.filter(|_| std::io::stdout().is_terminal()) {
        Some(key) => format!("{url}/test#key={}", key.trim()),
        None => format!("{url}/test"),
    }
}
