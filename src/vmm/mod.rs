//! Everything that touches the kernel or a hypervisor. Knows no actor, no HTTP, no database.

pub mod disk;
pub mod image;
