//! Which devices the processes of a cgroup may open.
//!
//! Version 1 has files for it. In version 2 a BPF program decides, attached to the cgroup's directory:
//! Documentation/admin-guide/cgroup-v2.rst, "Device controller". It stays attached for as long as the
//! directory is there.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::libc;

/// Which devices a process may open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceAccess {
    /// All that its rights let it.
    Unrestricted,
    /// None.
    Nothing,
    /// `/dev/kvm` and no other.
    Kvm,
}

/// Numbers of `/dev/kvm`: Documentation/admin-guide/devices.txt, and include/linux/miscdevice.h.
const MISC_MAJOR: u32 = 10;
const KVM_MINOR: u32 = 232;

/// Values of include/uapi/linux/bpf.h.
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;

impl DeviceAccess {
    /// What is written to which file of version 1, in order.
    pub(super) fn v1_settings(self) -> Vec<(&'static str, String)> {
        let all = || "a".to_owned();
        match self {
            Self::Unrestricted => vec![("devices.allow", all())],
            Self::Nothing => vec![("devices.deny", all())],
            Self::Kvm => vec![
                ("devices.deny", all()),
                ("devices.allow", format!("c {MISC_MAJOR}:{KVM_MINOR} rw")),
            ],
        }
    }

    /// Restricts a cgroup of version 2.
    ///
    /// # Errors
    ///
    /// What the kernel says: `ENOSYS` or `EINVAL` where it was built without it.
    pub(super) fn restrict(self, dir: &Path) -> io::Result<()> {
        let program = match self {
            Self::Unrestricted => return Ok(()),
            Self::Nothing => loaded(&NOTHING, &DENY_ALL)?,
            Self::Kvm => loaded(
                &KVM,
                &[
                    set_answer(0),
                    load_word(4),
                    unless_equal(MISC_MAJOR, 3),
                    load_word(8),
                    unless_equal(KVM_MINOR, 1),
                    set_answer(1),
                    EXIT,
                ],
            )?,
        };
        attach(program, dir)
    }
}

/// Whether this kernel lets a program decide, and lets us load it.
pub(super) fn supported() -> bool {
    loaded(&NOTHING, &DENY_ALL).is_ok()
}

const DENY_ALL: [Instruction; 2] = [set_answer(0), EXIT];

/// The programs, loaded once.
static NOTHING: OnceLock<OwnedFd> = OnceLock::new();
static KVM: OnceLock<OwnedFd> = OnceLock::new();

fn loaded(place: &'static OnceLock<OwnedFd>, program: &[Instruction]) -> io::Result<RawFd> {
    if let Some(program) = place.get() {
        return Ok(program.as_raw_fd());
    }
    let program = load(program)?;
    Ok(place.get_or_init(|| program).as_raw_fd())
}

/// One instruction: `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Instruction {
    code: u8,
    /// Destination in the lower half, source in the upper.
    registers: u8,
    offset: i16,
    immediate: i32,
}

const EXIT: Instruction = Instruction { code: 0x95, registers: 0, offset: 0, immediate: 0 };

/// r0, which is the answer: 1 to allow.
const fn set_answer(value: i32) -> Instruction {
    Instruction { code: 0xb7, registers: 0, offset: 0, immediate: value }
}

/// r2 = the word at an offset of `struct bpf_cgroup_dev_ctx`, which r1 points to: access type, major,
/// minor.
const fn load_word(offset: i16) -> Instruction {
    Instruction { code: 0x61, registers: 0x12, offset, immediate: 0 }
}

/// Skips so many instructions unless r2 is that.
const fn unless_equal(value: u32, skip: i16) -> Instruction {
    Instruction { code: 0x55, registers: 0x02, offset: skip, immediate: value as i32 }
}

/// The beginning of `union bpf_attr` for loading; what is left out is zero.
#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    program: u64,
    license: u64,
    log: [u64; 2],
}

/// The beginning of `union bpf_attr` for attaching.
#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    let about = Load {
        kind: PROG_TYPE_CGROUP_DEVICE,
        count: program.len() as u32,
        program: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log: [0; 2],
    };
    let fd = bpf(BPF_PROG_LOAD, &about)?;
    // SAFETY: the kernel has just given us this descriptor, close-on-exec; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn attach(program: RawFd, dir: &Path) -> io::Result<()> {
    let dir = File::open(dir)?;
    let target = dir.as_raw_fd() as u32;
    let about = Attach { target, program: program as u32, kind: ATTACH_CGROUP_DEVICE, flags: 0 };
    bpf(BPF_PROG_ATTACH, &about).map(drop)
}

fn bpf<T>(command: libc::c_int, about: &T) -> io::Result<RawFd> {
    // SAFETY: the kernel reads as many bytes as it is told, and what they point to lives as long.
    let done = unsafe { libc::syscall(libc::SYS_bpf, command, about, size_of::<T>()) };
    Ok(Errno::result(done)? as RawFd)
}
