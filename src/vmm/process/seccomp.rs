//! Filters of system calls, as programs for the kernel: seccomp(2), bpf.h.
//!
//! What is here runs between fork and exec: nothing allocates.

use std::io;

use nix::errno::Errno;
use nix::libc::{self, c_long, c_ulong, sock_filter};

/// Offsets in `struct seccomp_data`: include/uapi/linux/seccomp.h.
pub const NR: u32 = 0;
pub const ARCH: u32 = 4;
pub const THIRD_ARGUMENT: u32 = 16 + 2 * 8;

/// `AUDIT_ARCH_X86_64`: include/uapi/linux/audit.h.
pub const ARCH_X86_64: u32 = 0xc000_003e;

/// Loads the 32-bit word at an offset.
pub const fn load(offset: u32) -> sock_filter {
    line(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset, 0, 0)
}

/// Keeps the bits of a mask.
pub const fn and(mask: u32) -> sock_filter {
    line(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, mask, 0, 0)
}

/// Skips lines: so many if the word is equal, and so many otherwise.
pub const fn if_equal(value: u32, then: u8, otherwise: u8) -> sock_filter {
    line(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value, then, otherwise)
}

/// Ends with what becomes of the call.
pub const fn give(action: u32) -> sock_filter {
    line(libc::BPF_RET | libc::BPF_K, action, 0, 0)
}

const fn line(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code: code as u16, jt, jf, k }
}

/// Installs a filter for the calling thread, which has given up to get new privileges. Gives what the
/// flags ask for.
///
/// # Errors
///
/// Those of seccomp(2).
pub fn install(program: &mut [sock_filter], flags: c_ulong) -> io::Result<c_long> {
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the program and its length are right, and live for as long as the call takes.
    let installed =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &program) };
    Ok(Errno::result(installed)?)
}

/// Takes io_uring from the calling process: what is asked through it passes by every other filter, and no
/// VMM needs it. It is told that the kernel has none.
///
/// # Errors
///
/// Those of seccomp(2).
pub fn deny_io_uring() -> io::Result<()> {
    let refused = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
    let mut program = [
        load(ARCH),
        // Under another one QEMU's and Firecracker's own filters let nothing through.
        if_equal(ARCH_X86_64, 0, 4),
        load(NR),
        if_equal(libc::SYS_io_uring_setup as u32, 3, 0),
        if_equal(libc::SYS_io_uring_enter as u32, 2, 0),
        if_equal(libc::SYS_io_uring_register as u32, 1, 0),
        give(libc::SECCOMP_RET_ALLOW),
        give(refused),
    ];
    install(&mut program, 0).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vmm_has_no_io_uring_and_everything_else() {
        // On a thread of its own, for a filter is for ever.
        let asked = std::thread::spawn(|| {
            nix::sys::prctl::set_no_new_privs().expect("anybody may");
            deny_io_uring().expect("installed");
            let calls =
                [libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register];
            for call in calls {
                // SAFETY: no ring has no entries, and this descriptor is none: nothing is done.
                let outcome = unsafe { libc::syscall(call, 0, 0, 0, 0, 0, 0) };
                assert_eq!(Errno::result(outcome), Err(Errno::ENOSYS), "{call}");
            }
            let status =
                std::fs::read_to_string("/proc/thread-self/status").expect("the rest is there");
            assert!(status.contains("Seccomp:\t2"), "{status}");
        });
        asked.join().expect("no panic");
    }
}
