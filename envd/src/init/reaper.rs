//! The rest of PID 1's life: keeps an agent running, waits for every orphan, ends on request.
//!
//! Architecture invariant: this is the only place that calls `waitpid(-1)`. The agent waits for
//! its own children by their pidfds, in its own process.

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::time::{TimeSpec, TimeValLike};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::InitError;

/// Time for the agent to end its processes.
const GOODBYE: Duration = Duration::from_secs(3);
/// An agent that ends sooner than this after its start is not started again at once.
const TOO_SOON: Duration = Duration::from_secs(1);

/// Signals that end the guest: the usual two, and what `halt`, `poweroff` and `reboot` send.
const END: [Signal; 4] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGUSR1, Signal::SIGUSR2];

/// What a moment of waiting brought.
enum Heard {
    Child,
    End,
    Nothing,
}

/// Runs until the guest is to end.
pub fn run() -> Result<(), InitError> {
    let mut signals = SigSet::from(Signal::SIGCHLD);
    END.into_iter().for_each(|signal| signals.add(signal));
    // The kernel drops a signal to PID 1 that is neither handled nor blocked.
    signals.thread_block().map_err(InitError::Signals)?;
    let mut agent = Agent::start()?;
    loop {
        if reap(agent.pid) == Reaped::Agent {
            eprintln!("envd: the agent has ended, starting another");
            match agent.again(&signals)? {
                Some(next) => agent = next,
                None => return Ok(()),
            }
        }
        match wait(&signals, None)? {
            Heard::Child | Heard::Nothing => {}
            Heard::End => return say_goodbye(&agent, &signals),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reaped {
    Agent,
    Others,
}

/// Waits for all children that have ended.
fn reap(agent: Pid) -> Reaped {
    let mut reaped = Reaped::Others;
    loop {
        match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => return reaped,
            Ok(status) if status.pid() == Some(agent) => reaped = Reaped::Agent,
            Ok(_) | Err(Errno::EINTR) => {}
            // There are no children at all.
            Err(_) => return reaped,
        }
    }
}

fn wait(signals: &SigSet, limit: Option<Duration>) -> Result<Heard, InitError> {
    let limit = limit.map(|limit| TimeSpec::milliseconds(limit.as_millis() as i64));
    let limit = limit.as_ref().map_or(std::ptr::null(), |limit| limit.as_ref() as *const _);
    // SAFETY: waits with valid pointers, or a null one for no limit, and asks for no details.
    let number = unsafe { libc::sigtimedwait(signals.as_ref(), std::ptr::null_mut(), limit) };
    match Errno::result(number) {
        Ok(libc::SIGCHLD) => Ok(Heard::Child),
        Ok(_) => Ok(Heard::End),
        Err(Errno::EAGAIN | Errno::EINTR) => Ok(Heard::Nothing),
        Err(errno) => Err(InitError::Signals(errno)),
    }
}

/// Lets the agent end its processes before the machine goes.
fn say_goodbye(agent: &Agent, signals: &SigSet) -> Result<(), InitError> {
    let _ = kill(agent.pid, Signal::SIGTERM);
    let end = Instant::now() + GOODBYE;
    while reap(agent.pid) != Reaped::Agent {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        wait(signals, Some(left))?;
    }
    Ok(())
}

struct Agent {
    pid: Pid,
    started: Instant,
}

impl Agent {
    fn start() -> Result<Self, InitError> {
        // A path to this very program, although it is in no directory any more.
        let child = Command::new("/proc/self/exe")
            .arg0("envd")
            .args(["agent", "--guest"])
            .env_clear()
            .spawn()
            .map_err(InitError::Agent)?;
        // Dropping the handle neither waits nor kills; `reap` does the former.
        Ok(Self { pid: Pid::from_raw(child.id().cast_signed()), started: Instant::now() })
    }

    /// Starts its successor, not more than one a second; `None` if the guest is to end instead.
    fn again(&self, signals: &SigSet) -> Result<Option<Self>, InitError> {
        let end = self.started + TOO_SOON;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            if left.is_zero() {
                break;
            }
            match wait(signals, Some(left))? {
                Heard::Child => drop(reap(self.pid)),
                Heard::End => return Ok(None),
                Heard::Nothing => {}
            }
        }
        Self::start().map(Some)
    }
}
