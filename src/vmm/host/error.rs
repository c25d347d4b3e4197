//! What errors of the resources mean for a machine.

use std::error::Error;
use std::io;

use crate::vmm::hypervisor::HypervisorError;
use crate::vmm::machine::MachineError;
use crate::vmm::record::RecordError;
use crate::vmm::storage::disk::{DeviceError, DiskError, LayerError};
use crate::vmm::storage::memory::MemoryError;
use crate::vmm::storage::snapshot::SnapshotError;

/// Sets a full disk of the host apart, wherever in the chain of causes it is.
fn no_space_or<E: Error + Send + Sync + 'static>(
    error: E,
    other: impl FnOnce(E) -> MachineError,
) -> MachineError {
    let mut cause: Option<&(dyn Error + 'static)> = Some(&error);
    while let Some(this) = cause {
        let full = this
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::StorageFull);
        if full {
            return MachineError::NoSpace { source: Box::new(error) };
        }
        cause = this.source();
    }
    other(error)
}

/// Whether files are not what was written, rather than out of reach.
fn is_damage(error: &SnapshotError) -> bool {
    match error {
        SnapshotError::Manifest { .. } => true,
        SnapshotError::Memory(error) => matches!(
            error,
            MemoryError::Header { .. }
                | MemoryError::Incomplete { .. }
                | MemoryError::Length { .. }
                | MemoryError::Touched { .. }
                | MemoryError::NoMemory { .. }
        ),
        SnapshotError::Disk { source, .. } => matches!(source, LayerError::Refused { .. }),
        SnapshotError::Layers { .. } => true,
        SnapshotError::Io { .. } | SnapshotError::Format { .. } => false,
    }
}

impl From<DiskError> for MachineError {
    fn from(error: DiskError) -> Self {
        no_space_or(error, |error| Self::Disk { source: Box::new(error) })
    }
}

impl From<DeviceError> for MachineError {
    fn from(error: DeviceError) -> Self {
        no_space_or(error, |error| Self::Disk { source: Box::new(error) })
    }
}

impl From<SnapshotError> for MachineError {
    fn from(error: SnapshotError) -> Self {
        if let SnapshotError::Disk { source: LayerError::Cancelled, .. } = error {
            return Self::Cancelled;
        }
        no_space_or(error, |error| match is_damage(&error) {
            true => Self::Damaged { source: Box::new(error) },
            false => Self::Snapshot { source: Box::new(error) },
        })
    }
}

impl From<MemoryError> for MachineError {
    fn from(error: MemoryError) -> Self {
        SnapshotError::from(error).into()
    }
}

impl From<RecordError> for MachineError {
    fn from(error: RecordError) -> Self {
        no_space_or(error, Self::Record)
    }
}

impl From<HypervisorError> for MachineError {
    fn from(error: HypervisorError) -> Self {
        match error {
            HypervisorError::Cancelled => Self::Cancelled,
            HypervisorError::Ended { how } => {
                Self::EndedEarly { how, console: "nothing".to_owned() }
            }
            error => no_space_or(error, Self::Hypervisor),
        }
    }
}

/// A directory or file of a machine failed.
pub(super) fn file_error(error: io::Error) -> MachineError {
    no_space_or(error, |error| MachineError::Disk { source: Box::new(error) })
}
