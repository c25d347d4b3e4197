//! QEMU's command line, as a pure function of a plan.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use crate::domain::shape::Shape;

/// The guest's MAC address; the same in every guest, each alone in its namespace.
pub const GUEST_MAC: &str = "06:00:a9:fe:00:15";

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

/// TCG's cache of translated code, in MiB: with its default of a quarter of the guest's memory a
/// host full of idle guests would be full of translations.
const TCG_CACHE_MIB: u32 = 64;

/// Open files and sockets that QEMU inherits. Paths are passed as `/proc/self/fd/N`, so that
/// nothing above the VM's own directory must be open to its unprivileged user.
pub struct Descriptors {
    /// Read-only.
    pub kernel: OwnedFd,
    /// Read-only.
    pub initramfs: OwnedFd,
    /// Read-only.
    pub rootfs: OwnedFd,
    /// A tap device.
    pub tap: OwnedFd,
    /// A listening socket.
    pub console: OwnedFd,
    /// A listening socket.
    pub qmp: OwnedFd,
}

impl Descriptors {
    /// All of them, for the process that inherits them.
    pub fn into_list(self) -> Vec<OwnedFd> {
        vec![self.kernel, self.initramfs, self.rootfs, self.tap, self.console, self.qmp]
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
    let mut args = machine(engine, Shape::DEFAULT);
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

/// The machine itself, without devices.
fn machine(engine: Engine, shape: Shape) -> Vec<String> {
    let (accel, cpu) = match engine {
        Engine::Kvm => ("kvm".to_owned(), "host"),
        Engine::Tcg { .. } => (format!("tcg,tb-size={TCG_CACHE_MIB}"), "max"),
    };
    let mut args: Vec<String> =
        ["-no-user-config", "-nodefaults", "-no-reboot"].map(str::to_owned).into();
    for (flag, value) in [
        ("-M", "microvm,acpi=on,rtc=on,isa-serial=on".to_owned()),
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

/// QEMU's arguments for a VM that boots from its kernel.
pub fn command_line(
    engine: Engine,
    shape: Shape,
    overlay: &Path,
    inherited: &Descriptors,
) -> Vec<String> {
    let path = |fd: &OwnedFd| format!("/proc/self/fd/{}", fd.as_raw_fd());
    let number = |fd: &OwnedFd| fd.as_raw_fd().to_string();
    let mut args = machine(engine, shape);
    let mut add = |flag: &str, value: String| {
        args.push(flag.to_owned());
        args.push(value);
    };

    add(
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny".to_owned(),
    );

    add("-kernel", path(&inherited.kernel));
    add("-initrd", path(&inherited.initramfs));
    add("-append", kernel_command_line(engine));

    let rootfs = path(&inherited.rootfs);
    add("-blockdev", format!("driver=file,node-name=base-file,filename={rootfs},read-only=on"));
    add("-blockdev", "driver=raw,node-name=base,file=base-file,read-only=on".to_owned());
    let overlay = overlay.display();
    add("-blockdev", format!("driver=file,node-name=overlay-file,filename={overlay}"));
    add(
        "-blockdev",
        "driver=qcow2,node-name=root,file=overlay-file,backing=base,discard=unmap".to_owned(),
    );
    // By default QEMU stops the whole VM when the host's disk is full, and nobody would let it go
    // on; the guest rather sees the error.
    add("-device", "virtio-blk-device,drive=root,werror=report,rerror=report".to_owned());

    add("-netdev", format!("tap,id=net0,fd={}", number(&inherited.tap)));
    add("-device", format!("virtio-net-device,netdev=net0,mac={GUEST_MAC}"));
    add("-object", "rng-random,id=rng0,filename=/dev/urandom".to_owned());
    add("-device", "virtio-rng-device,rng=rng0".to_owned());

    let (console, qmp) = (number(&inherited.console), number(&inherited.qmp));
    add("-chardev", format!("socket,id=console,fd={console},server=on,wait=off"));
    add("-serial", "chardev:console".to_owned());
    add("-chardev", format!("socket,id=qmp,fd={qmp},server=on,wait=off"));
    add("-mon", "chardev=qmp,mode=control".to_owned());

    args
}
