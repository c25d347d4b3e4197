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
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where a sandbox is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
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
    /// End it because its time is over.
    Expire,
    /// End it and give back everything it holds.
    Destroy,
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

/// Decides whether `command` can be done to a sandbox in `state`.
pub fn admit(state: SandboxState, command: Command) -> Admission {
    use SandboxState::*;
    match command {
        Command::Work => match state {
            Running => Admission::Accept,
            Pending | Starting | Resuming => Admission::Refused(Refusal::NotYet(state)),
            Pausing | Paused => Admission::Refused(Refusal::Frozen(state)),
            Stopping | Stopped | Error => Admission::Refused(Refusal::Gone(state)),
            Missing => Admission::Refused(Refusal::Unreachable(state)),
        },
        Command::Expire => match state {
            Running => Admission::Accept,
            Stopping | Stopped | Error => Admission::AlreadySo,
            Pending | Starting | Resuming => Admission::Refused(Refusal::NotYet(state)),
            Pausing | Paused => Admission::Refused(Refusal::Frozen(state)),
            Missing => Admission::Refused(Refusal::Unreachable(state)),
        },
        Command::Destroy => match state {
            Stopping | Stopped => Admission::AlreadySo,
            Pending | Starting | Running | Pausing | Paused | Resuming | Missing | Error => {
                Admission::Accept
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_read_back() {
        for state in SandboxState::ALL {
            assert_eq!(state.as_str().parse(), Ok(state));
        }
        assert_eq!("nope".parse::<SandboxState>(), Err(UnknownState("nope".into())));
    }

    #[test]
    fn destroy_is_never_refused() {
        for state in SandboxState::ALL {
            assert!(!matches!(admit(state, Command::Destroy), Admission::Refused(_)), "{state}");
        }
    }

    #[test]
    fn work_is_done_in_running_only() {
        for state in SandboxState::ALL {
            let accepted = admit(state, Command::Work) == Admission::Accept;
            assert_eq!(accepted, state == SandboxState::Running, "{state}");
        }
    }

    /// The reference model: what a sandbox is, seen from outside, in four words.
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Model {
        Coming,
        Up,
        Going,
        Over,
    }

    #[derive(Debug, Clone, Copy)]
    enum Event {
        Ask(Command),
        Booted,
        VmDied,
        TornDown,
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            Just(Event::Ask(Command::Work)),
            Just(Event::Ask(Command::Expire)),
            Just(Event::Ask(Command::Destroy)),
            Just(Event::Booted),
            Just(Event::VmDied),
            Just(Event::TornDown),
        ]
    }

    proptest! {
        /// Whatever happens in whatever order: the machine agrees with the model on what is
        /// accepted, no step is taken that `may_become` forbids, and nothing comes back to life.
        #[test]
        fn a_life_agrees_with_the_model(events in proptest::collection::vec(event(), 0..40)) {
            let mut state = SandboxState::Starting;
            let mut model = Model::Coming;
            for event in events {
                let next = match event {
                    Event::Ask(command) => {
                        let accepted = admit(state, command) == Admission::Accept;
                        let expected = match (command, model) {
                            (Command::Work | Command::Expire, Model::Up) => true,
                            (Command::Work | Command::Expire, _) => false,
                            (Command::Destroy, Model::Coming | Model::Up) => true,
                            // A failed sandbox can still be destroyed, a stopped one already is.
                            (Command::Destroy, Model::Over) => state == SandboxState::Error,
                            (Command::Destroy, Model::Going) => false,
                        };
                        prop_assert_eq!(accepted, expected);
                        match (accepted, command) {
                            (true, Command::Destroy | Command::Expire) => SandboxState::Stopping,
                            _ => state,
                        }
                    }
                    Event::Booted if model == Model::Coming => SandboxState::Running,
                    Event::VmDied if matches!(model, Model::Coming | Model::Up) => SandboxState::Error,
                    Event::TornDown if model == Model::Going => SandboxState::Stopped,
                    Event::Booted | Event::VmDied | Event::TornDown => state,
                };
                if next != state {
                    prop_assert!(state.may_become(next), "{} -> {}", state, next);
                    prop_assert!(!(model == Model::Over && next == SandboxState::Running));
                }
                state = next;
                model = match state {
                    SandboxState::Starting => Model::Coming,
                    SandboxState::Running => Model::Up,
                    SandboxState::Stopping => Model::Going,
                    _ => Model::Over,
                };
            }
        }
    }
}
