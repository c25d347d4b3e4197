//! The shape of a virtual machine.

use serde::{Deserialize, Serialize};

/// vCPUs and memory of a microVM; fixed for its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Shape {
    /// Number of virtual CPUs, at least 1.
    pub vcpus: u32,
    /// Guest memory in MiB, at least [`Shape::MIN_MEMORY_MIB`].
    pub memory_mib: u32,
}

impl Shape {
    /// Less than this and the default image's guest agent is killed for lack of memory while booting.
    pub const MIN_MEMORY_MIB: u32 = 128;

    /// What a sandbox gets when it asks for nothing.
    pub const DEFAULT: Shape = Shape { vcpus: 1, memory_mib: 512 };
}
