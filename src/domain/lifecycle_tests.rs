//! The state machine against a reference model.

use proptest::prelude::*;

use super::lifecycle::{Admission, Capture, Command, Refusal, SandboxState, UnknownState, admit};

const PENDING: [Option<Capture>; 4] =
    [None, Some(Capture::Snapshot), Some(Capture::Fork), Some(Capture::Network)];

#[test]
fn names_read_back() {
    for state in SandboxState::ALL {
        assert_eq!(state.as_str().parse(), Ok(state));
    }
    assert_eq!("nope".parse::<SandboxState>(), Err(UnknownState("nope".into())));
}

#[test]
fn destroy_is_never_refused() {
    for (state, pending) in everything() {
        let admission = admit(state, pending, Command::Destroy);
        assert!(!matches!(admission, Admission::Refused(_)), "{state} {pending:?}");
    }
}

#[test]
fn work_is_done_in_running_only_whatever_else_is_under_way() {
    for (state, pending) in everything() {
        let accepted = admit(state, pending, Command::Work) == Admission::Accept;
        assert_eq!(accepted, state == SandboxState::Running, "{state} {pending:?}");
    }
}

#[test]
fn a_refusal_names_the_state_and_what_is_under_way() {
    use Command::*;
    for (state, pending) in everything() {
        for command in [Work, Pause, Resume, Snapshot, Fork, Network, Expire] {
            let Admission::Refused(refusal) = admit(state, pending, command) else { continue };
            let text = refusal.to_string();
            assert!(text.contains(state.as_str()), "{command:?}: {text}");
            if let Refusal::Busy { capture, .. } = refusal {
                assert!(Some(capture) == pending && text.contains(&capture.to_string()));
            }
        }
    }
}

fn everything() -> impl Iterator<Item = (SandboxState, Option<Capture>)> {
    SandboxState::ALL.into_iter().flat_map(|state| PENDING.map(|pending| (state, pending)))
}

/// The reference model: what a sandbox is, seen from outside. It knows of no state's name.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Model {
    /// It will run.
    Coming,
    /// It runs; whether it is being captured.
    Up { captured: bool },
    /// It will be frozen, or run on.
    Freezing,
    /// It is frozen; whether it is being kept under a name.
    Cold { captured: bool },
    /// It will run, or stay frozen.
    Thawing,
    /// It is being taken away.
    Going,
    /// It is gone; whether somebody wanted that.
    Over { wanted: bool },
}

#[derive(Debug, Clone, Copy)]
enum Event {
    Ask(Command),
    /// What was begun ends as it should.
    Succeeded,
    /// What was begun fails, and the sandbox is as it was.
    Failed,
    VmDied,
}

impl Model {
    /// What becomes of the sandbox if it does as it is asked; none if it does not.
    fn ask(self, command: Command) -> Option<Model> {
        use Model::*;
        Some(match (command, self) {
            (Command::Work, Up { .. }) => self,
            (Command::Pause, Up { captured: false }) => Freezing,
            (Command::Resume, Cold { captured: false }) => Thawing,
            (
                Command::Snapshot | Command::Network,
                Up { captured: false } | Cold { captured: false },
            )
            | (Command::Fork, Up { captured: false }) => self.captured(true),
            (Command::Expire, Up { captured: false }) => Going,
            (Command::Destroy, Going | Over { wanted: true }) => return None,
            // A failed sandbox can still be destroyed, a stopped one already is.
            (Command::Destroy, _) => Going,
            _ => return None,
        })
    }

    fn captured(self, captured: bool) -> Model {
        match self {
            Model::Up { .. } => Model::Up { captured },
            Model::Cold { .. } => Model::Cold { captured },
            other => other,
        }
    }

    fn after(self, event: Event) -> Model {
        use Model::*;
        match (event, self) {
            (Event::Ask(command), _) => self.ask(command).unwrap_or(self),
            (Event::Succeeded, Coming | Thawing) | (Event::Failed, Freezing) => {
                Up { captured: false }
            }
            (Event::Succeeded, Freezing) | (Event::Failed, Thawing) => Cold { captured: false },
            (Event::Succeeded, Going) => Over { wanted: true },
            (Event::Failed, Coming | Going) => Over { wanted: false },
            (Event::Succeeded | Event::Failed, _) => self.captured(false),
            (Event::VmDied, Coming | Up { .. } | Freezing) => Over { wanted: false },
            // There is no VM, or its end is what everybody waits for.
            (Event::VmDied, Cold { .. } | Thawing | Going | Over { .. }) => self,
        }
    }

    fn state(self) -> SandboxState {
        match self {
            Self::Coming => SandboxState::Starting,
            Self::Up { .. } => SandboxState::Running,
            Self::Freezing => SandboxState::Pausing,
            Self::Cold { .. } => SandboxState::Paused,
            Self::Thawing => SandboxState::Resuming,
            Self::Going => SandboxState::Stopping,
            Self::Over { wanted: true } => SandboxState::Stopped,
            Self::Over { wanted: false } => SandboxState::Error,
        }
    }
}

fn event() -> impl Strategy<Value = Event> {
    use Command::*;
    let command = prop::sample::select(vec![Work, Pause, Resume, Snapshot, Fork, Network, Expire]);
    prop_oneof![
        6 => command.prop_map(Event::Ask),
        1 => Just(Event::Ask(Destroy)),
        4 => Just(Event::Succeeded),
        2 => Just(Event::Failed),
        1 => Just(Event::VmDied),
    ]
}

/// What the actor keeps: a state, and what is under way in it.
#[derive(Debug, Clone, Copy)]
struct Life {
    state: SandboxState,
    pending: Option<Capture>,
}

impl Life {
    /// Does what was accepted.
    fn begin(&mut self, command: Command) {
        match command {
            Command::Work => {}
            Command::Pause => self.state = SandboxState::Pausing,
            Command::Resume => self.state = SandboxState::Resuming,
            Command::Snapshot => self.pending = Some(Capture::Snapshot),
            Command::Fork => self.pending = Some(Capture::Fork),
            Command::Network => self.pending = Some(Capture::Network),
            Command::Expire | Command::Destroy => self.stop(SandboxState::Stopping),
        }
    }

    fn stop(&mut self, state: SandboxState) {
        *self = Self { state, pending: None };
    }
}

proptest! {
    /// Whatever happens in whatever order: the table agrees with the model on what is accepted,
    /// no step is taken that `may_become` forbids, and nothing comes back to life.
    #[test]
    fn a_life_agrees_with_the_model(events in proptest::collection::vec(event(), 0..60)) {
        let mut life = Life { state: SandboxState::Starting, pending: None };
        let mut model = Model::Coming;
        let mut ending = false;
        for event in events {
            let before = life.state;
            let next = model.after(event);
            match event {
                Event::Ask(command) => {
                    let accepted =
                        admit(life.state, life.pending, command) == Admission::Accept;
                    prop_assert_eq!(accepted, model.ask(command).is_some(), "{:?}", command);
                    if accepted {
                        life.begin(command);
                    }
                }
                Event::Succeeded | Event::Failed | Event::VmDied => {
                    if life.state != next.state() {
                        life.stop(next.state());
                    } else if !matches!(event, Event::VmDied) {
                        life.pending = None;
                    }
                }
            }
            model = next;
            prop_assert_eq!(life.state, model.state());
            if life.state != before {
                let legal = before.may_become(life.state);
                prop_assert!(legal, "{} -> {}", before, life.state);
                let ends = matches!(life.state, SandboxState::Stopping | SandboxState::Error);
                prop_assert!(ends || life.state == SandboxState::Stopped || !ending);
                ending |= ends;
            }
        }
    }
}
