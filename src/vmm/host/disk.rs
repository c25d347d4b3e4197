//! A machine's disk, whoever puts its layers together: the hypervisor or the host's kernel.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::error::file_error;
use super::resources::{MachineResources, build_of, overlay_path};
use crate::domain::id::SandboxId;
use crate::vmm::hypervisor::{DiskKind, DiskPlan, HypervisorError, OverlayPlan, Vm};
use crate::vmm::machine::MachineError;
use crate::vmm::storage::disk::{Device, DeviceError, Devices, DiskFormat, Layer, Overlay};
use crate::vmm::storage::snapshot::Snapshot;

/// How this host makes disks.
pub(super) enum Disks {
    /// As files, for a hypervisor that knows layers.
    Layers,
    /// As block devices.
    Devices(Devices),
}

/// The disk of one machine. Dropped, it stays: the VM outlives the daemon.
pub(super) enum Disk {
    /// An overlay that the VM lays on its layers.
    Overlay(Overlay),
    /// A block device.
    Device(Device),
}

/// What an overlay is to lie on.
pub(super) struct Base<'a> {
    /// Whose layers they are, if they are not one file.
    snapshot: Option<&'a Snapshot>,
    /// The layers, the lowest first.
    layers: Vec<(PathBuf, DiskFormat)>,
    /// The uppermost one as an overlay beside it names it.
    top: Layer,
    /// Bytes of the disk as the guest sees it.
    size: u64,
}

impl<'a> Base<'a> {
    /// Bytes of the disk as the guest sees it.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The disk of a snapshot.
    pub fn of(snapshot: &'a Snapshot) -> Self {
        let manifest = snapshot.manifest();
        let path = |layer: &Layer| (snapshot.dir().join(&layer.file), layer.format);
        Self {
            snapshot: Some(snapshot),
            layers: manifest.layers.iter().map(path).collect(),
            top: manifest.layers.last().expect("a disk has layers").clone(),
            size: manifest.disk_size,
        }
    }

    /// One file, which will be called `layer` in the snapshot that the overlay becomes part of.
    pub fn single(file: &Path, layer: &Layer, size: u64) -> Self {
        let layers = vec![(file.to_owned(), layer.format)];
        Self { snapshot: None, layers, top: layer.clone(), size }
    }
}

impl Disks {
    /// Prepares the host.
    ///
    /// # Errors
    ///
    /// [`DeviceError`], with what it lacks.
    pub fn open(kind: DiskKind, data_dir: &Path) -> Result<Self, DeviceError> {
        match kind {
            DiskKind::Layers => Ok(Self::Layers),
            DiskKind::Device => Ok(Self::Devices(Devices::open(data_dir)?)),
        }
    }

    /// Format of the overlays.
    pub fn format(&self) -> DiskFormat {
        match self {
            Self::Layers => DiskFormat::Qcow2,
            Self::Devices(_) => DiskFormat::Cow,
        }
    }

    /// Where a machine has the overlay of that name.
    pub fn overlay_path(&self, dir: &Path, name: &str) -> PathBuf {
        overlay_path(dir, name, self.format())
    }

    /// Makes an empty overlay called `name`, in the machine's directory.
    pub async fn make(
        &self,
        dir: &Path,
        id: &SandboxId,
        name: &str,
        base: &Base<'_>,
    ) -> Result<Disk, MachineError> {
        let path = self.overlay_path(dir, name);
        Ok(match self {
            Self::Layers => Disk::Overlay(Overlay::create(&path, &base.top, base.size)?),
            Self::Devices(devices) => {
                Disk::Device(devices.create(id.as_str(), &base.layers, &path, base.size).await?)
            }
        })
    }

    /// Finds the disk of a VM that a former daemon left, and the name of the overlay it writes to.
    pub async fn adopt(
        &self,
        dir: &Path,
        id: &SandboxId,
        vm: &dyn Vm,
    ) -> Result<(Disk, String), MachineError> {
        match (self, vm.layered_disk()) {
            (Self::Layers, Some(layered)) => {
                let name = layered.active().await?;
                // It is the VM's process that says so, and this becomes a path.
                if build_of(&name).is_none() {
                    let source = format!("it writes to {name:?}, which is no overlay of ours");
                    let verb = "take over the disk of";
                    return Err(HypervisorError::Control { verb, source: source.into() }.into());
                }
                let pid = u32::try_from(vm.process().pid).unwrap_or_default();
                let overlay = Overlay::adopt(&self.overlay_path(dir, &name), pid)?;
                Ok((Disk::Overlay(overlay), name))
            }
            (Self::Devices(devices), None) => {
                let device = devices.adopt(id.as_str()).await?;
                let name = device.overlay().file_stem().unwrap_or_default();
                let name = name.to_string_lossy().into_owned();
                Ok((Disk::Device(device), name))
            }
            (Self::Layers, None) | (Self::Devices(_), Some(_)) => {
                unreachable!("a hypervisor's VMs have the disks that it asks for")
            }
        }
    }

    /// Takes away what there is of a machine's disk beside files, when no VM uses it any more.
    pub async fn discard(&self, id: &SandboxId) -> Result<(), MachineError> {
        match self {
            Self::Layers => Ok(()),
            Self::Devices(devices) => Ok(devices.discard(id.as_str()).await?),
        }
    }

    /// Takes away what a former daemon left that belongs to no machine.
    pub fn sweep(&self) {
        let swept = match self {
            Self::Layers => Ok(()),
            Self::Devices(devices) => devices.sweep(),
        };
        if let Err(error) = swept {
            tracing::warn!(error = %crate::chain(&error), "left-over block devices stay");
        }
    }

    /// The machines that have something of a disk beside files.
    pub fn list(&self) -> Vec<SandboxId> {
        let names = match self {
            Self::Layers => Vec::new(),
            Self::Devices(devices) => devices.list().unwrap_or_else(|error| {
                tracing::warn!(error = %crate::chain(&error), "block devices cannot be listed");
                Vec::new()
            }),
        };
        names.into_iter().filter_map(|name| name.parse().ok()).collect()
    }
}

impl Disk {
    /// The overlay's file.
    pub fn path(&self) -> &Path {
        match self {
            Self::Overlay(overlay) => overlay.path(),
            Self::Device(device) => device.overlay(),
        }
    }

    /// Bytes that the overlay takes: blocks in use.
    pub fn bytes_in_use(&self) -> Result<u64, MachineError> {
        Ok(match self {
            Self::Overlay(overlay) => overlay.bytes_in_use()?,
            Self::Device(device) => device.bytes_in_use()?,
        })
    }

    /// What a VM needs of it.
    ///
    /// What a VM wrote is opened for another one only as [`Snapshot::open_layers`] does it.
    pub fn plan<'a>(&self, name: &'a str, base: &Base<'_>) -> Result<DiskPlan<'a>, MachineError> {
        let overlay = match self {
            Self::Device(device) => return Ok(DiskPlan::Device(device.number())),
            Self::Overlay(overlay) => overlay.file().try_clone_to_owned().map_err(file_error)?,
        };
        let open = |(path, format): &(PathBuf, DiskFormat)| {
            let file = fs::File::open(path)?;
            io::Result::Ok(crate::vmm::storage::disk::OpenLayer { file, format: *format })
        };
        let layers = match base.snapshot {
            Some(snapshot) => snapshot.open_layers()?,
            None => {
                let layers: io::Result<Vec<_>> = base.layers.iter().map(open).collect();
                layers.map_err(file_error)?
            }
        };
        Ok(DiskPlan::Layers { layers, overlay: OverlayPlan { name, file: overlay } })
    }

    /// Brings what a frozen VM has written into the overlay's file.
    pub async fn flush(&self) -> Result<(), MachineError> {
        match self {
            // Its VM has done so when it froze.
            Self::Overlay(_) => Ok(()),
            Self::Device(device) => {
                device.health()?;
                Ok(device.flush().await?)
            }
        }
    }

    /// Takes it away, when no VM uses it any more.
    pub async fn remove(self) -> Result<(), MachineError> {
        match self {
            Self::Overlay(overlay) => Ok(overlay.remove()?),
            Self::Device(device) => Ok(device.remove(None).await?),
        }
    }
}

/// Has a frozen VM write to a new overlay called `name`, on `base`, whose top is what it wrote to so
/// far. On failure it is as it was.
pub(super) async fn switch(
    disks: &Disks,
    resources: &mut MachineResources,
    vm: &dyn Vm,
    name: &str,
    base: &Base<'_>,
) -> Result<(), MachineError> {
    let path = disks.overlay_path(&resources.dir, name);
    let disk = resources.disk.as_mut().expect("a running machine has a disk");
    match (disk, vm.layered_disk()) {
        (Disk::Device(device), _) => Ok(device.switch(&base.layers, &path).await?),
        (Disk::Overlay(former), Some(layered)) => {
            let overlay = Overlay::create(&path, &base.top, base.size)?;
            let file = overlay.file().try_clone_to_owned().map_err(file_error)?;
            if let Err(error) = layered.switch(OverlayPlan { name, file }).await {
                // Whatever the failure was, the VM itself knows best.
                if !matches!(layered.active().await, Ok(active) if active == name) {
                    overlay.remove()?;
                    return Err(error.into());
                }
            }
            *former = overlay;
            Ok(())
        }
        (Disk::Overlay(_), None) => {
            let source = "it does not know layers".into();
            Err(HypervisorError::Control { verb: "switch the disk of", source }.into())
        }
    }
}
