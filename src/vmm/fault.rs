//! Failures on purpose, for tests: what happens if this very step fails?
//!
//! A [`Faults`] is a value that is handed to what may fail; without one nothing ever fails here.

use std::fmt;
use std::io;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Steps of the operations on machines, each named after what was just done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// A capture is about to freeze the VM.
    CaptureBegun,
    /// The VM is frozen.
    Frozen,
    /// The state of its devices is known.
    DevicesSaved,
    /// Its memory is written, under a temporary name.
    MemoryWritten,
    /// The snapshot is complete, but nothing names it yet.
    SnapshotWritten,
    /// A VM that is to go on writes to its new overlay.
    DiskSwitched,
    /// A VM that is to go on does.
    Thawed,
    /// A pause: the sandbox's record says that the snapshot is what counts.
    PauseCommitted,
    /// A pause: the VM is gone.
    VmEnded,
    /// A restore has its network.
    SlotTaken,
    /// A restore has its disk.
    OverlayMade,
    /// A restored VM stands where its snapshot was taken.
    Restored,
    /// A restored VM runs.
    RestoreThawed,
    /// The guest of a restored VM knows who it is.
    Introduced,
}

impl Point {
    const ALL: [(Point, &'static str); 14] = [
        (Point::CaptureBegun, "capture-begun"),
        (Point::Frozen, "frozen"),
        (Point::DevicesSaved, "devices-saved"),
        (Point::MemoryWritten, "memory-written"),
        (Point::SnapshotWritten, "snapshot-written"),
        (Point::DiskSwitched, "disk-switched"),
        (Point::Thawed, "thawed"),
        (Point::PauseCommitted, "pause-committed"),
        (Point::VmEnded, "vm-ended"),
        (Point::SlotTaken, "slot-taken"),
        (Point::OverlayMade, "overlay-made"),
        (Point::Restored, "restored"),
        (Point::RestoreThawed, "restore-thawed"),
        (Point::Introduced, "introduced"),
    ];
}

/// What happens at the step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It fails because the disk is full.
    DiskFull,
    /// The daemon is killed.
    KillDaemon,
    /// The VM is killed.
    KillVm,
}

impl Action {
    const ALL: [(Action, &'static str); 3] = [
        (Action::DiskFull, "disk-full"),
        (Action::KillDaemon, "kill-daemon"),
        (Action::KillVm, "kill-vm"),
    ];
}

/// One failure at one step, the first time that it is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    point: Point,
    action: Action,
}

/// The text names no failure.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is no failure of a step: it is given as STEP=ACTION")]
pub struct UnknownFault(String);

impl FromStr for Fault {
    type Err = UnknownFault;

    fn from_str(text: &str) -> Result<Self, UnknownFault> {
        let unknown = || UnknownFault(text.to_owned());
        let (point, action) = text.split_once('=').ok_or_else(unknown)?;
        let point = Point::ALL.into_iter().find(|(_, name)| *name == point);
        let action = Action::ALL.into_iter().find(|(_, name)| *name == action);
        match (point, action) {
            (Some((point, _)), Some((action, _))) => Ok(Self { point, action }),
            _ => Err(unknown()),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let point = Point::ALL.into_iter().find(|(point, _)| *point == self.point);
        let action = Action::ALL.into_iter().find(|(action, _)| *action == self.action);
        let name = |found: Option<&'static str>| found.expect("all are listed");
        write!(f, "{}={}", name(point.map(|p| p.1)), name(action.map(|a| a.1)))
    }
}

/// The failure that is still to come, if any. Copies share it.
#[derive(Debug, Clone, Default)]
pub struct Faults(Arc<Mutex<Option<Fault>>>);

impl Faults {
    /// One failure.
    pub fn new(fault: Option<Fault>) -> Self {
        Self(Arc::new(Mutex::new(fault)))
    }

    /// Fails if this is the step; `vm` is the VM's process, where there is one.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::StorageFull`], as a real one would be.
    pub fn at(&self, point: Point, vm: Option<i32>) -> io::Result<()> {
        let mut armed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(fault) = armed.take_if(|fault| fault.point == point) else { return Ok(()) };
        tracing::warn!(%fault, "failing on purpose");
        match (fault.action, vm) {
            (Action::DiskFull, _) => Err(nix::errno::Errno::ENOSPC.into()),
            (Action::KillDaemon, _) => Ok(kill(Pid::this(), Signal::SIGKILL)?),
            (Action::KillVm, Some(vm)) => Ok(kill(Pid::from_raw(vm), Signal::SIGKILL)?),
            (Action::KillVm, None) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_reads_back() {
        for (point, _) in Point::ALL {
            for (action, _) in Action::ALL {
                let fault = Fault { point, action };
                assert_eq!(fault.to_string().parse(), Ok(fault));
            }
        }
        for text in ["", "frozen", "frozen=", "frozen=explode", "nowhere=disk-full"] {
            assert_eq!(text.parse::<Fault>(), Err(UnknownFault(text.to_owned())));
        }
    }

    #[test]
    fn a_failure_comes_once_and_at_its_step_only() {
        let faults = Faults::new(Some("frozen=disk-full".parse().unwrap()));
        assert!(faults.at(Point::Thawed, None).is_ok());
        let error = faults.clone().at(Point::Frozen, None).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(faults.at(Point::Frozen, None).is_ok());
    }
}
