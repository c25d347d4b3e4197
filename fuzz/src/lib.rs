//! The parts of the daemon that read what others may have written, without the rest of it.
//!
//! The files are the daemon's own, taken in from where they are: nothing is copied, and nothing in
//! the daemon has to be public for this. So a target is built in minutes, and all
//! that it covers is what it is about. What they need and is not a parser stands in for the real thing
//! here: [`vmm::hypervisor::console`], which connects to a VM's socket, and two errors.

#![allow(dead_code, unused_imports, reason = "each target uses its own part")]

#[path = "../../src/error_chain.rs"]
mod error_chain;
#[path = "../../src/domain/mod.rs"]
pub mod domain;
pub mod measure;
pub mod said;

pub use error_chain::chain;

/// As in `src/vmm`: what has no body here is a file there.
#[path = "../../src/vmm"]
pub mod vmm {
    pub mod guest;

    pub mod hypervisor {
        pub mod json;

        #[path = "../../../fuzz/src/console.rs"]
        pub mod console;

        pub mod qemu {
            pub mod qmp;
        }
    }

    pub mod storage {
        pub mod disk {
            mod layer;
            pub mod qcow2;

            pub use layer::{DiskFormat, Layer, LayerError};
        }

        pub mod memory {
            mod build_id;
            pub mod header;
            mod map;
            mod provenance;

            pub use build_id::BuildId;
            pub use header::Header;

            pub const PAGE_SIZE: usize = 4096;
        }

        pub mod snapshot {
            mod manifest;

            #[path = "../../../../fuzz/src/snapshot.rs"]
            pub mod fuzzing;

            pub use fuzzing::SnapshotError;
            pub use manifest::{FORMAT, Manifest};

            pub const ROOTFS: &str = "rootfs";
        }
    }

    pub mod network {
        pub mod names {
            mod dns;
            mod hello;

            #[path = "../../../../fuzz/src/names.rs"]
            pub mod fuzzing;
        }
    }
}
