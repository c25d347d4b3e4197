//! QEMU's command line, as a pure function of a plan.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use crate::domain::shape::Shape;
use crate::vmm::hypervisor::GUEST_MAC;
use crate::vmm::storage::disk::OpenLayer;

/// What every kernel is told: a console, no chatter on it, and to end the VM when it panics.
/// `reboot=t` makes a reboot a triple fault, which `-no-reboot` turns into the VM's end. The rest
/// leaves out what a microVM does not have, or need not test at each boot.
const KERNEL_COMMAND_LINE: &str = "console=ttyS0 quiet loglevel=1 panic=-1 reboot=t \
     root=/dev/vda rw cryptomgr.notests random.trust_cpu=on 8250.nr_uarts=1 i8042.noaux";

/// How QEMU executes the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// On the CPU, through `/dev/kvm`.
    Kvm,
    /// In software, where the guest reads the host's time stamp counter.
    Tcg {
        /// The counter's rate.
        tsc_khz: u64,
    },
}

/// Number of the machine that the arguments below describe. It grows with every change of devices or
/// their features, for the state of one machine cannot be loaded into another.
pub const MACHINE: u32 = 1;

/// Name of the disk's device.
pub const DISK: &str = "disk";

/// TCG's cache of translated code, in MiB: with its default of a quarter of the guest's memory a
/// host full of idle guests would be full of translations.
const TCG_CACHE_MIB: u32 = 64;

/// How QEMU gets the memory that a guest is restored from, and that others read too: without a
/// descriptor that it could be written through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SharedMemory {
    /// QEMU opens it for reading if it is told to, from 8.2 on.
    Opened,
    /// QEMU insists on opening it for writing, and is given a descriptor for reading:
    /// [`crate::vmm::process::answered_calls`].
    Answered,
}

/// Open files and sockets that QEMU inherits. Nothing of the host must be open to its unprivileged
/// user by path, but what is opened anew through `/proc/self/fd/N`: kernel, initramfs and memory.
pub struct Descriptors {
    /// How it starts.
    pub start: Start,
    /// Read-only layers of the disk, the lowest first.
    pub layers: Vec<OpenLayer>,
    /// The writable overlay, and its name.
    pub overlay: (String, OwnedFd),
    /// The overlay's file once more, read-only.
    pub reading: OwnedFd,
    /// A tap device.
    pub tap: OwnedFd,
    /// A listening socket.
    pub console: OwnedFd,
    /// A listening socket.
    pub qmp: OwnedFd,
}

/// What a VM starts from.
pub enum Start {
    /// Its kernel.
    Boot {
        /// Read-only.
        kernel: OwnedFd,
        /// Read-only.
        initramfs: OwnedFd,
        /// The guest's memory, written through.
        memory: OwnedFd,
    },
    /// A snapshot.
    Restore {
        /// The base of the guest's memory; QEMU maps it privately.
        memory: OwnedFd,
        /// State of the devices in a pipe, for [`super::qmp::Qmp::load`].
        devices: OwnedFd,
    },
}

impl Descriptors {
    /// All of them, for the process that inherits them.
    pub fn into_list(self) -> Vec<OwnedFd> {
        let mut all = match self.start {
            Start::Boot { kernel, initramfs, memory } => vec![kernel, initramfs, memory],
            Start::Restore { memory, devices } => vec![memory, devices],
        };
        all.extend(self.layers.into_iter().map(|layer| OwnedFd::from(layer.file)));
        all.extend([self.overlay.1, self.reading, self.tap, self.console, self.qmp]);
        all
    }
}

/// QEMU's arguments for a VM without network whose changes are thrown away, its console on standard
/// output.
pub fn trial_command(
    engine: Engine,
    kernel: &Path,
    initramfs: &Path,
    rootfs: &Path,
) -> Vec<String> {
    let mut args = machine(engine, Shape::DEFAULT, "");
    let text = |path: &Path| path.display().to_string();
    let drive = format!("if=none,id=root,format=raw,snapshot=on,file={}", text(rootfs));
    for (flag, value) in [
        ("-kernel", text(kernel)),
        ("-initrd", text(initramfs)),
        ("-append", kernel_command_line(engine)),
        ("-drive", drive),
        ("-device", "virtio-blk-device,drive=root".to_owned()),
        ("-serial", "stdio".to_owned()),
    ] {
        args.push(flag.to_owned());
        args.push(value);
    }
    args
}

fn kernel_command_line(engine: Engine) -> String {
    match engine {
        // The guest has a paravirtual clock.
        Engine::Kvm => KERNEL_COMMAND_LINE.to_owned(),
        // Nothing in it needs an emulated timer to be on time: see `tsc.rs`. Programs are loaded at
        // fixed addresses: QEMU translates code anew wherever it finds it, and starting `true`
        // takes 10 to 17 ms instead of 35 to 40 with the last translation at hand. The guest's
        // boundary is the VM, not the layout of its processes.
        Engine::Tcg { tsc_khz } => format!(
            "{KERNEL_COMMAND_LINE} tsc_early_khz={tsc_khz} tsc=reliable no_timer_check norandmaps"
        ),
    }
}

/// Who writes a disk is in the records of sandboxes, and QEMU's locks on it cannot tell: they belong to
/// the open file that it is given, which any process that the daemon is just forking has as well until
/// it executes. The lock of a VM that was paused would outlast it then, and refuse the next one.
const UNLOCKED: &str = "locking=off";

/// The machine itself, without devices.
fn machine(engine: Engine, shape: Shape, options: &str) -> Vec<String> {
    let (accel, cpu) = match engine {
        Engine::Kvm => ("kvm".to_owned(), "host"),
        // In software `rep movsb` takes its bytes one by one, and a CPU that calls it fast has the
        // guest's kernel and C library copy with it: bytes through a socket then take 1.6 times as long.
        // Newer QEMUs also call it fast for short copies (fsrm), which Linux takes to imply the other:
        // 6.1 does not boot with that one alone.
        Engine::Tcg { .. } => (format!("tcg,tb-size={TCG_CACHE_MIB}"), "max,-erms,-fsrm"),
    };
    let mut args: Vec<String> =
        ["-no-user-config", "-nodefaults", "-no-reboot"].map(str::to_owned).into();
    for (flag, value) in [
        ("-M", format!("microvm,acpi=on,rtc=on,isa-serial=on{options}")),
        ("-accel", accel),
        ("-cpu", cpu.to_owned()),
        ("-smp", shape.vcpus.to_string()),
        ("-m", format!("{}M", shape.memory_mib)),
        ("-display", "none".to_owned()),
        // Without it virtio-mmio devices speak the draft from before virtio 1.0.
        ("-global", "virtio-mmio.force-legacy=false".to_owned()),
    ] {
        args.push(flag.to_owned());
        args.push(value);
    }
    args
}

/// Options of the machine whose memory is an object called `mem`, and whose state is stored without
/// a description of its format.
const SNAPSHOT_OPTIONS: &str = ",memory-backend=mem,suppress-vmdesc=on";

/// QEMU's arguments for a VM with memory in a file, disk and network.
pub fn command_line(
    engine: Engine,
    shape: Shape,
    inherited: &Descriptors,
    shared: SharedMemory,
) -> Vec<String> {
    let path = |fd: &OwnedFd| format!("{}", descriptor_path(fd).display());
    let number = |fd: &OwnedFd| fd.as_raw_fd().to_string();
    let mut args = machine(engine, shape, SNAPSHOT_OPTIONS);
    let mut add = |flag: &str, value: String| {
        args.push(flag.to_owned());
        args.push(value);
    };

    add(
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny".to_owned(),
    );

    let (memory, share) = match &inherited.start {
        Start::Boot { kernel, initramfs, memory } => {
            add("-kernel", path(kernel));
            add("-initrd", path(initramfs));
            add("-append", kernel_command_line(engine));
            (memory, "share=on")
        }
        Start::Restore { memory, .. } => {
            // The kernel is in the memory already, and what loads it is never run again.
            add("-incoming", "defer".to_owned());
            let share = match shared {
                // The guest's writes are the process's own, although the file is for reading.
                SharedMemory::Opened => "share=off,readonly=on,rom=off",
                SharedMemory::Answered => "share=off",
            };
            (memory, share)
        }
    };
    let (memory, size) = (path(memory), shape.memory_mib);
    add("-object", format!("memory-backend-file,id=mem,{share},mem-path={memory},size={size}M"));
    // Else the state begins with the machine's configuration, and is refused under any other.
    add("-global", "migration.send-configuration=off".to_owned());

    for (index, layer) in inherited.layers.iter().enumerate() {
        let (file, format) = (set(index), layer.format.as_str());
        add("-add-fd", format!("fd={},set={index}", layer.file.as_raw_fd()));
        add(
            "-blockdev",
            format!("driver=file,node-name=file{index},filename={file},read-only=on,{UNLOCKED}"),
        );
        let backing = match index.checked_sub(1) {
            Some(below) => format!(",backing=layer{below}"),
            None => String::new(),
        };
        add(
            "-blockdev",
            format!(
                "driver={format},node-name=layer{index},file=file{index},read-only=on{backing}"
            ),
        );
    }
    let top = inherited.layers.len();
    let (name, overlay) = &inherited.overlay;
    // QEMU picks by mode: to write while it may, to read while it may not.
    add("-add-fd", format!("fd={},set={top}", inherited.reading.as_raw_fd()));
    add("-add-fd", format!("fd={},set={top},opaque={name}", overlay.as_raw_fd()));
    // Both nodes take discards: what a guest frees comes back to the host.
    add(
        "-blockdev",
        format!(
            "driver=file,node-name=file-{name},filename={},auto-read-only=on,discard=unmap,{UNLOCKED}",
            set(top)
        ),
    );
    let backing = top.checked_sub(1).expect("a disk has a base");
    add(
        "-blockdev",
        format!(
            "driver=qcow2,node-name={name},file=file-{name},backing=layer{backing},discard=unmap"
        ),
    );
    // By default QEMU stops the whole VM when the host's disk is full, and nobody would let it go
    // on; the guest rather sees the error.
    add("-device", format!("virtio-blk-device,id={DISK},drive={name},werror=report,rerror=report"));

    add("-netdev", format!("tap,id=net0,fd={}", number(&inherited.tap)));
    // The guest need not tell the network that it is there now: its neighbour knows already.
    add("-device", format!("virtio-net-device,netdev=net0,mac={GUEST_MAC},guest_announce=off"));
    // getrandom(2): it has no devices to open.
    add("-object", "rng-builtin,id=rng0".to_owned());
    add("-device", "virtio-rng-device,rng=rng0".to_owned());

    let (console, qmp) = (number(&inherited.console), number(&inherited.qmp));
    add("-chardev", format!("socket,id=console,fd={console},server=on,wait=off"));
    add("-serial", "chardev:console".to_owned());
    add("-chardev", format!("socket,id=qmp,fd={qmp},server=on,wait=off"));
    add("-mon", "chardev=qmp,mode=control".to_owned());

    if matches!(inherited.start, Start::Restore { .. }) {
        args.push("-S".to_owned());
    }
    args
}

/// Name by which a file that QEMU inherits is opened anew.
pub fn descriptor_path(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// Name by which QEMU opens a descriptor that it was given. It works with that very descriptor, and
/// so holds its lock; a path would be opened anew.
fn set(index: usize) -> String {
    format!("/dev/fdset/{index}")
}
