//! The virtual machine that Firecracker is asked for, as pure functions.

use serde_json::{Value, json};

use super::jail::{DEVICES, DISK, INITRAMFS, KERNEL, NEW_DEVICES, NEW_MEMORY};
use crate::domain::rates::{Rate, RateLimits};
use crate::domain::shape::Shape;
use crate::domain::slot::TAP_NAME;
use crate::vmm::hypervisor::GUEST_MAC;

/// Number of the machine that the requests below describe. It grows with every change of devices or
/// their features, for the state of one machine cannot be loaded into another.
pub const MACHINE: u32 = 1;

/// Name of the pager's socket in the jail.
pub const PAGER_SOCKET: &str = "pager.sock";

/// A console, no chatter on it, and the VM's end when the kernel panics: `reboot=k` asks the
/// keyboard controller, which is what Firecracker listens to. The rest leaves out what a microVM does
/// not have, or need not test at each boot. Devices are found through ACPI.
const KERNEL_COMMAND_LINE: &str = "console=ttyS0 quiet loglevel=1 panic=-1 reboot=k \
     root=/dev/vda rw cryptomgr.notests random.trust_cpu=on 8250.nr_uarts=1 i8042.noaux \
     i8042.nomux i8042.dumbkbd";

/// The requests that describe a VM that boots, in their order.
pub fn boot(shape: Shape) -> Vec<(&'static str, Value)> {
    vec![
        ("/machine-config", json!({"vcpu_count": shape.vcpus, "mem_size_mib": shape.memory_mib})),
        (
            "/boot-source",
            json!({
                "kernel_image_path": KERNEL,
                "initrd_path": INITRAMFS,
                "boot_args": KERNEL_COMMAND_LINE,
            }),
        ),
        // Synchronous: with io_uring the device stays busy for a while after the VM's end. Writeback: a
        // guest's flush is the only moment at which it can be told that the host's disk was full.
        (
            "/drives/root",
            json!({
                "drive_id": "root",
                "path_on_host": DISK,
                "is_root_device": false,
                "is_read_only": false,
                "io_engine": "Sync",
                "cache_type": "Writeback",
            }),
        ),
        (
            "/network-interfaces/eth0",
            json!({"iface_id": "eth0", "host_dev_name": TAP_NAME, "guest_mac": GUEST_MAC}),
        ),
        ("/entropy", json!({})),
        ("/actions", json!({"action_type": "InstanceStart"})),
    ]
}

/// The request that loads a snapshot whose memory comes through the pager.
pub fn load() -> (&'static str, Value) {
    let body = json!({
        "snapshot_path": DEVICES,
        "mem_backend": {"backend_type": "Uffd", "backend_path": PAGER_SOCKET},
    });
    ("/snapshot/load", body)
}

/// The request that has a VM use its disk no faster from now on.
pub fn limit_disk(rates: &RateLimits) -> (&'static str, Value) {
    // A bucket that is full once a second; one without any size is no limit.
    let bucket = |rate: Option<u64>| match rate {
        Some(rate) => json!({"size": rate, "refill_time": 1000}),
        None => json!({"size": 0, "refill_time": 0}),
    };
    let body = json!({
        "drive_id": "root",
        "rate_limiter": {
            "bandwidth": bucket(rates.of(Rate::DiskBytes)),
            "ops": bucket(rates.of(Rate::DiskOps)),
        },
    });
    ("/drives/root", body)
}

/// Where the memory goes when only the state of the devices is wanted: a directory, which cannot be
/// opened for writing.
///
/// Firecracker writes the state of the devices first, complete and synced (`create_snapshot` in its
/// `persist.rs`), then the memory. Of a VM that came through a pager it would write every page that
/// is there, also those only read, twenty times and more of what has changed, while the VM stands
/// still; we read the changed ones from outside, as with QEMU.
const NO_MEMORY: &str = "/";

/// What its refusal then says: words of 1.16's `MemoryBackingFile`.
pub const NO_MEMORY_REFUSAL: &str = "memory backing file";

/// The request that saves the state of the devices, and is refused with [`NO_MEMORY_REFUSAL`].
pub fn save_devices() -> (&'static str, Value) {
    save("Diff", NO_MEMORY)
}

/// The request that saves the state of the devices and the whole memory.
pub fn save_all() -> (&'static str, Value) {
    save("Full", NEW_MEMORY)
}

fn save(kind: &str, memory: &str) -> (&'static str, Value) {
    let body = json!({
        "snapshot_type": kind,
        "snapshot_path": NEW_DEVICES,
        "mem_file_path": memory,
    });
    ("/snapshot/create", body)
}

/// A VM without network that writes to no disk, for `--config-file`: to see whether a guest boots at
/// all.
pub fn trial(kernel: &str, initramfs: &str, rootfs: &str) -> Value {
    json!({
        "machine-config": {"vcpu_count": 1, "mem_size_mib": 512},
        "boot-source": {
            "kernel_image_path": kernel,
            "initrd_path": initramfs,
            "boot_args": format!("{KERNEL_COMMAND_LINE} ro"),
        },
        "drives": [{
            "drive_id": "root",
            "path_on_host": rootfs,
            "is_root_device": false,
            "is_read_only": true,
        }],
    })
}
