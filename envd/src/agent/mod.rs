//! The agent: one process that serves rpcs and HTTP until it is told to end.

pub mod keepalive;
pub mod paths;
pub mod rights;
pub mod settings;
pub mod users;

use std::fs;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::serve::ListenerExt;
use connectrpc::Router;
use nix::sys::prctl::set_name;
use nix::sys::signal::SigSet;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::stat::{Mode, umask};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::filesystem::Files;
use crate::http::router;
use crate::process::{Background, Processes};

use settings::{Context, Place};

/// Threads for work that waits for a disk. Their stacks are most of what an idle one costs.
const DISK_THREADS: usize = 8;
/// How long an idle one stays. In a snapshot it waits for the first file that a clone is asked for;
/// otherwise each clone would see the same thread end, and then start another.
const DISK_THREAD_STAYS: Duration = Duration::from_secs(3600);

/// How much earlier than others the agent's own thread runs: some nine times the usual weight. It sleeps
/// nearly always, and whoever waits for it wants to know or to end something. It has its turn when the
/// kernel next looks who is to run, milliseconds later (`SCHED_BATCH`), not at once: it would stop a
/// program at each piece that it writes, which halves what gets through.
const NICE: libc::c_int = -10;

/// Why the agent could not run.
#[derive(Debug, Error)]
pub enum AgentError {
    /// The runtime, or what every start of a process needs, could not be made.
    #[error("cannot set up")]
    SetUp(#[source] io::Error),
    /// The address is taken, or not this machine's.
    #[error("cannot listen on {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// Serves on `address` until SIGTERM or SIGINT, then kills what it has started.
///
/// # Errors
///
/// [`AgentError`] when it cannot begin to.
pub fn run(address: SocketAddr, place: Place) -> Result<(), AgentError> {
    limit_memory();
    inherit_little();
    if place == Place::Guest {
        // Started as `/proc/self/exe`, it would be listed as `exe`.
        let _ = set_name(c"envd");
        // The guest is of no use without its agent. Processes get their usual score back.
        let _ = fs::write("/proc/self/oom_score_adj", "-1000");
        stand(NICE, libc::SCHED_BATCH);
    }
    // One thread: guests have one or two slow CPUs, and each thread has an arena of its own.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(DISK_THREADS)
        .thread_stack_size(256 * 1024)
        .thread_keep_alive(DISK_THREAD_STAYS)
        // What takes long is done there, and is not to hold up what does not.
        .on_thread_start(move || stand_back(place))
        .build()
        .map_err(AgentError::SetUp)?;
    runtime.block_on(serve(address, place))
}

async fn serve(address: SocketAddr, place: Place) -> Result<(), AgentError> {
    let listener = TcpListener::bind(address)
        .await
        .map_err(|source| AgentError::Listen { address, source })?;
    let address = listener.local_addr().map_err(AgentError::SetUp)?;
    find_out_who_vanished(&listener).map_err(|error| AgentError::SetUp(error.into()))?;
    // From here on callers wait in the listener's queue.
    announce(address, place);

    let context = Arc::new(Context::new(place));
    let processes = Arc::new(Processes::new(Arc::clone(&context)).map_err(AgentError::SetUp)?);
    let files = Arc::new(Files::new(Arc::clone(&context)));
    let background = Arc::new(Background::new(Arc::clone(&processes)));
    let rpc = Router::new()
        .add_service(Arc::clone(&processes))
        .add_service(background)
        .add_service(files);
    let mut terminate = signal(SignalKind::terminate()).map_err(AgentError::SetUp)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(AgentError::SetUp)?;
    processes.prepare();

    // Answers are small and somebody waits for them. Fails only on a connection that is gone.
    let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
    tokio::select! {
        // Routes are put together once, not for each connection.
        served = axum::serve(listener, router(context, rpc).into_make_service()) => {
            served.map_err(|source| AgentError::Listen { address, source })?;
        }
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    processes.shut_down().await;
    Ok(())
}

/// Ends connections whose other end is not there any more, within two minutes: in a fork of this
/// guest nobody is at the other end of any. Connections take this over from their listener.
fn find_out_who_vanished(listener: &TcpListener) -> nix::Result<()> {
    setsockopt(listener, sockopt::KeepAlive, &true)?;
    setsockopt(listener, sockopt::TcpKeepIdle, &60)?;
    setsockopt(listener, sockopt::TcpKeepInterval, &15)?;
    setsockopt(listener, sockopt::TcpKeepCount, &4)
}

/// Gives the calling thread, which does what takes long, the priority of any other.
pub fn stand_back(place: Place) {
    match place {
        Place::Guest => stand(0, libc::SCHED_OTHER),
        // There it has no other.
        Place::Host => {}
    }
}

/// Sets the priority of the calling thread alone, and of those that it starts.
fn stand(nice: libc::c_int, policy: libc::c_int) {
    let none = libc::sched_param { sched_priority: 0 };
    // SAFETY: plain numbers, and a pointer to what is read; to Linux 0 is the calling thread.
    unsafe {
        libc::sched_setscheduler(0, policy, &raw const none);
        libc::setpriority(libc::PRIO_PROCESS, 0, nice);
    }
}

/// Says that it listens: to the host that watches the console, or to who started it.
fn announce(address: SocketAddr, place: Place) {
    let said = match place {
        Place::Guest => fs::File::options()
            .write(true)
            .open("/dev/console")
            .and_then(|mut console| console.write_all(b"envd: ready\n")),
        Place::Host => writeln!(io::stdout(), "envd: listening on {address}"),
    };
    // Nobody to tell; the port answers all the same.
    drop(said);
}

/// Makes the allocator give back what large transfers needed, but not between their pieces: new memory
/// for each costs more than what is done with it.
fn limit_memory() {
    // SAFETY: plain settings of the allocator, made before other threads exist.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1024 * 1024);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 2048 * 1024);
    }
}

/// Keeps descriptors, blocked and ignored signals and the file mask of whoever started the agent from the
/// processes that it starts itself.
fn inherit_little() {
    umask(Mode::from_bits_truncate(0o022));
    let _ = SigSet::empty().thread_set_mask();
    // SAFETY: marks descriptors only; none is open yet that a child should keep.
    unsafe { libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as libc::c_int) };
    for number in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGCHLD] {
        // SAFETY: restores a default action before the runtime installs any handler.
        unsafe { libc::signal(number, libc::SIG_DFL) };
    }
}
