//! Which hypervisor the tests are about.

use super::lab::run;

/// The daemon's own variable, which the tests obey too.
const HYPERVISOR: &str = "NESTBOX_HYPERVISOR";

/// What runs the VMs of these tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// QEMU, unless somebody says otherwise.
    Qemu,
    /// Firecracker, in the lab.
    Firecracker,
}

impl Engine {
    /// The one that these tests are about.
    pub fn present() -> Self {
        match std::env::var(HYPERVISOR).as_deref() {
            Ok("firecracker") => Self::Firecracker,
            _ => Self::Qemu,
        }
    }

    /// Its program.
    pub fn program(self) -> &'static str {
        match self {
            Self::Qemu => "qemu-system-x86_64",
            Self::Firecracker => "firecracker",
        }
    }

    /// Its version.
    pub fn version(self) -> String {
        let said = run(&format!("{} --version", self.program()));
        let word = match self {
            Self::Qemu => said.split_whitespace().nth(3),
            Self::Firecracker => said.split_whitespace().nth(1),
        };
        word.expect("a version").trim_start_matches('v').to_owned()
    }

    /// A version that is not the installed one, and that the daemon accepts.
    pub fn other_version(self) -> &'static str {
        match self {
            Self::Qemu => "99.1.2",
            Self::Firecracker => "1.16.99",
        }
    }

    /// What a program of that version says when it is asked.
    pub fn says(self, version: &str) -> String {
        match self {
            Self::Qemu => format!("QEMU emulator version {version} (Debian 1:{version})"),
            Self::Firecracker => format!("Firecracker v{version}"),
        }
    }
}
