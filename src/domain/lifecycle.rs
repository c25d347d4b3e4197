//! The life of a sandbox as a state machine: states, what may be asked in each, what may follow.
//!
//! ```text
//! pending -> starting -> running <-> paused      in between: pausing, resuming, stopping
//!                           |  ^
//!               host lost   v  |  host back, VM alive
//!                         missing                reversible, unlike stopped
//! any -> stopped (asked for, or gone)   any -> error (with a reason a person can act on)
//! ```
//!
//! [`admit`] decides, the actor obeys; neither knows how anything is done.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Seconds of a lease: longer than a day is no sign of life.
pub const LEASES: RangeInclusive<u32> = 1..=86_400;

/// Where a sandbox is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SandboxState {
    /// Recorded, not yet handed to a host.
    Pending,
    /// Its VM is being made.
    Starting,
    /// Its guest agent answers.
    Running,
    /// Its VM is being frozen to disk.
    Pausing,
    /// Only files are left of it, from which it can be resumed.
    Paused,
    /// Its VM is being made again out of those files.
    Resuming,
    /// Its VM and everything it holds on the host are being taken away.
    Stopping,
    /// Gone, because somebody asked or its time was over.
    Stopped,
    /// Its host does not answer; it may come back.
    Missing,
    /// Gone against its will; the reason is recorded with it.
    Error,
}

/// Stands for all states in which a sandbox has ended.
pub const ENDED: &str = "ended";

/// The text names no state.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("no state is called {0:?}")]
pub struct UnknownState(pub String);

impl SandboxState {
    /// Every state, in the order of a life.
    pub const ALL: [SandboxState; 10] = [
        Self::Pending,
        Self::Starting,
        Self::Running,
        Self::Pausing,
        Self::Paused,
        Self::Resuming,
        Self::Stopping,
        Self::Stopped,
        Self::Missing,
        Self::Error,
    ];

    /// The state's name on the wire and in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Pausing => "pausing",
            Self::Paused => "paused",
            Self::Resuming => "resuming",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Missing => "missing",
            Self::Error => "error",
        }
    }

    /// Whether nothing of the sandbox is left on any host, for good.
    pub fn is_final(self) -> bool {
        match self {
            Self::Stopped | Self::Error => true,
            Self::Pending
            | Self::Starting
            | Self::Running
            | Self::Pausing
            | Self::Paused
            | Self::Resuming
            | Self::Stopping
            | Self::Missing => false,
        }
    }

    /// The states that a word names: one by its name, `ended` all that are final.
    ///
    /// # Errors
    ///
    /// [`UnknownState`].
    pub fn group(word: &str) -> Result<Vec<Self>, UnknownState> {
        match word {
            ENDED => Ok(Self::ALL.into_iter().filter(|state| state.is_final()).collect()),
            one => one.parse().map(|state| vec![state]),
        }
    }

    /// Those in which a sandbox has not ended.
    pub fn living() -> Vec<Self> {
        Self::ALL.into_iter().filter(|state| !state.is_final()).collect()
    }

    /// Whether a sandbox's time runs out in this state, unless work is done in it.
    pub fn expires(self) -> bool {
        match self {
            Self::Pending | Self::Starting | Self::Running | Self::Pausing => true,
            Self::Paused | Self::Resuming => false,
            Self::Stopping | Self::Stopped | Self::Missing | Self::Error => true,
        }
    }

    /// Whether a sandbox may go from this state to `next` in one step.
    pub fn may_become(self, next: SandboxState) -> bool {
        use SandboxState::*;
        match next {
            Pending => false,
            Starting => self == Pending,
            Running => matches!(self, Starting | Resuming | Pausing | Missing),
            Pausing => self == Running,
            Paused => matches!(self, Pausing | Resuming),
            Resuming => self == Paused,
            Stopping => !matches!(self, Stopping | Stopped),
            Stopped => matches!(self, Stopping | Pending | Missing),
            Missing => matches!(self, Starting | Running | Pausing | Paused | Resuming | Stopping),
            Error => !self.is_final(),
        }
    }
}

impl fmt::Display for SandboxState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for SandboxState {
    type Err = UnknownState;

    fn from_str(text: &str) -> Result<Self, UnknownState> {
        Self::ALL
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| UnknownState(text.to_owned()))
    }
}

/// What somebody wants of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Run a command in it, read or write its files.
    Work,
    /// Freeze it to disk.
    Pause,
    /// Make it run again after a pause.
    Resume,
    /// Keep what it is now under a name.
    Snapshot,
    /// Make others that begin as it is now.
    Fork,
    /// Change what it may reach.
    Network,
    /// End it because its time is over.
    Expire,
    /// End it and give back everything it holds.
    Destroy,
}

/// An operation under way that leaves a sandbox in the state it is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capture {
    /// What it is now is kept under a name.
    Snapshot,
    /// What it is now is frozen for others that begin so.
    Fork,
    /// What it may reach is changed.
    Network,
}

impl fmt::Display for Capture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Snapshot => "snapshot",
            Self::Fork => "fork",
            Self::Network => "network change",
        })
    }
}

/// The answer to a [`Command`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Do it.
    Accept,
    /// It is done already, or being done: wait for that and report success.
    AlreadySo,
    /// It cannot be done in this state.
    Refused(Refusal),
}

/// Why a [`Command`] is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not there yet: trying again later may work.
    #[error("the sandbox is {0}, not running yet")]
    NotYet(SandboxState),
    /// Not frozen yet: trying again later may work.
    #[error("the sandbox is {0}, not paused yet")]
    NotPausedYet(SandboxState),
    /// Something else is being done to it: trying again later may work.
    #[error("the sandbox is {state}, and a {capture} of it is under way: try again after that")]
    Busy { state: SandboxState, capture: Capture },
    /// It is on its way out, or gone.
    #[error("the sandbox is {0}")]
    Gone(SandboxState),
    /// It is frozen: resume it first.
    #[error("the sandbox is {0}: resume it first")]
    Frozen(SandboxState),
    /// Its host does not answer.
    #[error("the sandbox is {0}: its host does not answer")]
    Unreachable(SandboxState),
}

/// The sandbox is in no state for what is asked of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{refusal}{}", .reason.as_deref().map(|r| format!(": {r}")).unwrap_or_default())]
pub struct Refused {
    /// Why not.
    pub refusal: Refusal,
    /// How it came to that state, where that needs saying.
    pub reason: Option<String>,
}

/// Decides whether `command` can be done to a sandbox in `state`, with `pending` under way.
///
/// Work goes on beside a capture, and the end of a sandbox overtakes everything; else one thing is
/// done at a time.
pub fn admit(state: SandboxState, pending: Option<Capture>, command: Command) -> Admission {
    use Command::*;
    use SandboxState::*;
    let refused = Admission::Refused;
    let unless_pending = match pending {
        None => Admission::Accept,
        Some(capture) => refused(Refusal::Busy { state, capture }),
    };
    match state {
        Pending | Starting => match command {
            Destroy => Admission::Accept,
            Work | Pause | Resume | Snapshot | Fork | Network | Expire => {
                refused(Refusal::NotYet(state))
            }
        },
        Running => match command {
            Work | Destroy => Admission::Accept,
            Resume => Admission::AlreadySo,
            Pause | Snapshot | Fork | Network | Expire => unless_pending,
        },
        Pausing => match command {
            Destroy => Admission::Accept,
            Pause => Admission::AlreadySo,
            Resume | Snapshot | Network => refused(Refusal::NotPausedYet(state)),
            Work | Fork | Expire => refused(Refusal::Frozen(state)),
        },
        Paused => match command {
            Destroy => Admission::Accept,
            Pause => Admission::AlreadySo,
            Resume | Snapshot | Network => unless_pending,
            Work | Fork | Expire => refused(Refusal::Frozen(state)),
        },
        Resuming => match command {
            Destroy => Admission::Accept,
            Resume => Admission::AlreadySo,
            Work | Pause | Snapshot | Fork | Network | Expire => refused(Refusal::NotYet(state)),
        },
        Stopping | Stopped => match command {
            Destroy | Expire => Admission::AlreadySo,
            Work | Pause | Resume | Snapshot | Fork | Network => refused(Refusal::Gone(state)),
        },
        Error => match command {
            Destroy => Admission::Accept,
            Expire => Admission::AlreadySo,
            Work | Pause | Resume | Snapshot | Fork | Network => refused(Refusal::Gone(state)),
        },
        Missing => match command {
            Destroy => Admission::Accept,
            Work | Pause | Resume | Snapshot | Fork | Network | Expire => {
                refused(Refusal::Unreachable(state))
            }
        },
    }
}
