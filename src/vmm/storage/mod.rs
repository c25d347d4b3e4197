//! What of a VM is in files: its memory, its disk, and both at one instant.
//!
//! Architecture invariant: knows no hypervisor. A file is what it is, whoever wrote it.

pub mod disk;
pub mod memory;
pub mod pager;
pub mod snapshot;
