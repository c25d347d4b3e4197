//! The engines by name. Knows nothing of how they work.

use serde::{Deserialize, Serialize};

/// Which program runs the VMs, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Engine {
    /// Firecracker, always with hardware virtualization.
    Firecracker,
    /// QEMU with hardware virtualization.
    QemuKvm,
    /// QEMU in software.
    QemuTcg,
    /// No VM at all; for tests of the API.
    Simulated,
}

impl Engine {
    /// Whether a daemon with this one can take over VMs of the other.
    pub fn adopts(self, other: Self) -> bool {
        let qemu = [Self::QemuKvm, Self::QemuTcg];
        self == other || (qemu.contains(&self) && qemu.contains(&other))
    }

    /// The engine's name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Firecracker => "firecracker",
            Self::QemuKvm => "qemu-kvm",
            Self::QemuTcg => "qemu-tcg",
            Self::Simulated => "simulated",
        }
    }
}
