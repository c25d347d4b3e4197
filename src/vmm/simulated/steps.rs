//! Where a test decides how a machine's life goes on: each step is taken at once, held, or failed.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::domain::id::SandboxId;
use crate::vmm::machine::MachineError;

/// A step in a machine's life that can be held or failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It is made; what runs already is taken away if that fails.
    Boot,
    /// It is frozen to stay so; it is stopped already, and goes on if that fails.
    Pause,
    /// It is made to run again; it stays frozen if that fails.
    Resume,
    /// It is captured for a snapshot or a fork; it is stopped until then.
    Capture,
    /// It is ended and taken away.
    Destroy,
    /// What is left of it is taken away.
    Sweep,
}

/// How a step is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// At once.
    Automatic,
    /// When the test gives its verdict; a step that is cancelled ends at once.
    SingleStep,
    /// When the test gives its verdict, and a step does not notice that it was cancelled.
    SingleStepDeaf,
    /// The next so many fail, the others are taken at once.
    Failing {
        /// How many fail.
        times: usize,
        /// With what.
        fault: Fault,
    },
}

/// What can go wrong with a machine, as a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The host's disk is full.
    NoSpace,
    /// The disk cannot be made, for a reason that only the log may know.
    Disk,
    /// The VM ends before its agent answers.
    EndedEarly,
    /// The guest does not come up in time.
    BootTimeout,
    /// Something is left on the host.
    Remains,
    /// What is frozen was made by something that this host does not have.
    Incompatible,
    /// The VM is gone, and with it what was not captured. In every other fault a machine that was
    /// to be captured runs on.
    VmLost,
}

impl From<Fault> for MachineError {
    fn from(fault: Fault) -> Self {
        let console = || "simulated console".to_owned();
        let source = || "simulated secret cause".into();
        match fault {
            Fault::NoSpace => Self::NoSpace { source: source() },
            Fault::Disk => Self::Disk { source: source() },
            Fault::EndedEarly => {
                Self::EndedEarly { how: "exited with code 1".to_owned(), console: console() }
            }
            Fault::BootTimeout => Self::BootTimeout { seconds: 60, console: console() },
            Fault::Remains => Self::Remains(vec!["the slot is busy".to_owned()]),
            Fault::Incompatible => Self::Incompatible(
                "it was made by simulated 2, this host has simulated 1".to_owned(),
            ),
            Fault::VmLost => Self::Snapshot { source: source() },
        }
    }
}

/// Why a step was not taken.
pub(super) enum Obstacle {
    /// Nobody wants it any more.
    Cancelled,
    /// The test wants it to fail.
    Fault(Fault),
}

impl From<Obstacle> for MachineError {
    fn from(obstacle: Obstacle) -> Self {
        match obstacle {
            Obstacle::Cancelled => Self::Cancelled,
            Obstacle::Fault(fault) => fault.into(),
        }
    }
}

/// A step that waits for the test's verdict. Dropping it lets the step succeed.
#[derive(Debug)]
pub struct Held {
    /// Whose machine it is.
    pub id: SandboxId,
    verdict: oneshot::Sender<Result<(), Fault>>,
}

impl Held {
    /// Lets the step succeed.
    pub fn succeed(self) {
        // A step that was cancelled in the meantime needs no verdict.
        let _ = self.verdict.send(Ok(()));
    }

    /// Lets the step fail.
    pub fn fail(self, fault: Fault) {
        let _ = self.verdict.send(Err(fault));
    }
}

/// One kind of step, for all machines.
struct Lane {
    mode: Mutex<Mode>,
    holder: mpsc::UnboundedSender<Held>,
    held: tokio::sync::Mutex<mpsc::UnboundedReceiver<Held>>,
}

impl Default for Lane {
    fn default() -> Self {
        let (holder, held) = mpsc::unbounded_channel();
        Self { mode: Mutex::new(Mode::Automatic), holder, held: tokio::sync::Mutex::new(held) }
    }
}

impl Lane {
    fn mode(&self) -> MutexGuard<'_, Mode> {
        self.mode.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The mode for one step; one failure fewer is left after it.
    fn next_mode(&self) -> Mode {
        let mut mode = self.mode();
        let now = *mode;
        if let Mode::Failing { times, .. } = &mut *mode {
            *times = times.saturating_sub(1);
        }
        now
    }
}

/// All steps.
#[derive(Default)]
pub(super) struct Steps([Lane; Step::Sweep as usize + 1]);

impl Steps {
    fn lane(&self, step: Step) -> &Lane {
        &self.0[step as usize]
    }

    pub(super) fn set_mode(&self, step: Step, mode: Mode) {
        *self.lane(step).mode() = mode;
    }

    /// The next step that is held, in the order in which they came.
    pub(super) async fn held(&self, step: Step) -> Held {
        let lane = self.lane(step);
        loop {
            let held = lane.held.lock().await.recv().await.expect("a lane holds its own sender");
            // One whose step was cancelled waits for nothing any more.
            if !held.verdict.is_closed() {
                return held;
            }
        }
    }

    /// Takes a step, in its own time.
    pub(super) async fn take(
        &self,
        step: Step,
        id: &SandboxId,
        cancel: &CancellationToken,
    ) -> Result<(), Obstacle> {
        let lane = self.lane(step);
        let mode = lane.next_mode();
        match mode {
            Mode::Failing { times, fault } if times > 0 => Err(Obstacle::Fault(fault)),
            Mode::Automatic | Mode::Failing { .. } => Ok(()),
            Mode::SingleStep | Mode::SingleStepDeaf => {
                let (verdict, decided) = oneshot::channel();
                let held = Held { id: id.clone(), verdict };
                lane.holder.send(held).expect("a lane holds its own receiver");
                let cancelled = async {
                    match mode {
                        Mode::SingleStepDeaf => std::future::pending().await,
                        _ => cancel.cancelled().await,
                    }
                };
                tokio::select! {
                    () = cancelled => Err(Obstacle::Cancelled),
                    verdict = decided => verdict.unwrap_or(Ok(())).map_err(Obstacle::Fault),
                }
            }
        }
    }
}
