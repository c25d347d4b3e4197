//! Where memory was taken, and whether it can go on here.

use std::fmt;

use crate::domain::engine::Engine;
use crate::domain::shape::Shape;

/// What a memory was taken from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// vCPUs and memory of the VM.
    pub shape: Shape,
    /// What ran the VM.
    pub provenance: Provenance,
}

/// What ran a VM when its memory was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provenance {
    /// Engine, as [`Engine::as_str`] has it.
    pub engine: String,
    /// Version of the engine's program, such as "7.2.22".
    pub vmm_version: String,
    /// Release of the host's kernel.
    pub host_kernel: String,
    /// Release of the guest's kernel. Information only: that kernel is inside the memory.
    pub guest_kernel: String,
    /// Model of the CPU that the guest sees.
    pub cpu_model: String,
}

/// Something in which two hosts can differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The engine.
    Engine,
    /// The version of the engine's program.
    VmmVersion,
    /// The CPU that the guest sees.
    CpuModel,
    /// The host's kernel.
    HostKernel,
}

/// A memory cannot go on here.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "the snapshot was taken with {part} {snapshot} and this host has {here}; restore it on a host \
     with {snapshot}, or create a new sandbox from the image"
)]
pub struct Mismatch {
    /// What differs.
    pub part: Part,
    /// What it was taken with.
    pub snapshot: String,
    /// What is here.
    pub here: String,
}

impl Provenance {
    /// Says whether a VM that was taken there can go on `here`.
    ///
    /// # Errors
    ///
    /// [`Mismatch`] names the first thing that is different and matters.
    pub fn check(&self, here: &Provenance) -> Result<(), Mismatch> {
        let same = |part, snapshot: &str, here: &str| match snapshot == here {
            true => Ok(()),
            false => Err(Mismatch { part, snapshot: snapshot.to_owned(), here: here.to_owned() }),
        };
        same(Part::Engine, &self.engine, &here.engine)?;
        same(Part::VmmVersion, &self.vmm_version, &here.vmm_version)?;
        same(Part::CpuModel, &self.cpu_model, &here.cpu_model)?;
        // In software the whole state is the program's own. With hardware virtualization the kernel
        // holds a part of it, in forms that depend on its version.
        let software = [Engine::QemuTcg, Engine::Simulated].map(Engine::as_str);
        match software.contains(&self.engine.as_str()) {
            true => Ok(()),
            false => same(Part::HostKernel, &self.host_kernel, &here.host_kernel),
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Engine => "the engine",
            Self::VmmVersion => "hypervisor version",
            Self::CpuModel => "CPU model",
            Self::HostKernel => "host kernel",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn provenance(engine: Engine) -> Provenance {
        Provenance {
            engine: engine.as_str().to_owned(),
            vmm_version: "7.2.22".to_owned(),
            host_kernel: "6.1.0".to_owned(),
            guest_kernel: "6.1.1".to_owned(),
            cpu_model: "max".to_owned(),
        }
    }

    fn differing(engine: Engine, change: impl FnOnce(&mut Provenance)) -> Option<Part> {
        let mut here = provenance(engine);
        change(&mut here);
        provenance(engine).check(&here).err().map(|mismatch| mismatch.part)
    }

    #[test]
    fn what_matters_is_refused() {
        for engine in [Engine::QemuTcg, Engine::QemuKvm] {
            assert_eq!(differing(engine, |_| ()), None);
            assert_eq!(differing(engine, |p| p.engine = "x".into()), Some(Part::Engine));
            assert_eq!(differing(engine, |p| p.vmm_version = "8".into()), Some(Part::VmmVersion));
            assert_eq!(differing(engine, |p| p.cpu_model = "host".into()), Some(Part::CpuModel));
            assert_eq!(differing(engine, |p| p.guest_kernel = "5".into()), None);
        }
    }

    #[test]
    fn the_hosts_kernel_matters_only_where_it_holds_state() {
        let other = |p: &mut Provenance| p.host_kernel = "6.12".into();
        assert_eq!(differing(Engine::QemuKvm, other), Some(Part::HostKernel));
        assert_eq!(differing(Engine::QemuTcg, other), None);
    }

    #[test]
    fn a_refusal_names_both_and_says_what_to_do() {
        let mut here = provenance(Engine::QemuTcg);
        here.vmm_version = "9.0.1".to_owned();
        assert_eq!(
            provenance(Engine::QemuTcg).check(&here).unwrap_err().to_string(),
            "the snapshot was taken with hypervisor version 7.2.22 and this host has 9.0.1; \
             restore it on a host with 7.2.22, or create a new sandbox from the image"
        );
    }
}
