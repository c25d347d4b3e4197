//! Keeps packets from a guest that is frozen.
//!
//! A Firecracker whose vCPUs are paused still takes packets from its tap and writes them into the
//! guest's memory. Memory that is read after the state of the devices would then be newer than it,
//! and a guest that is restored from both has buffers in use that it believes to be free. So the tap
//! drops everything in between: a filter on it takes effect with the next packet, costs one call, and
//! needs no look into the VM's network namespace. TCP sends again what was lost.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use nix::errno::Errno;
use nix::libc;
use nix::sys::stat::makedev;

use crate::vmm::process::VmProcess;

/// `/dev/net/tun`, Linux Documentation/admin-guide/devices.txt.
const TUN: (u64, u64) = (10, 200);

nix::ioctl_write_int_bad!(tun_set_owner, libc::TUNSETOWNER);
// linux/if_tun.h: TUNATTACHFILTER and TUNDETACHFILTER are _IOW('T', 213 and 214, struct sock_fprog).
nix::ioctl_write_ptr!(tun_attach_filter, b'T', 213, libc::sock_fprog);
nix::ioctl_write_ptr!(tun_detach_filter, b'T', 214, libc::sock_fprog);

/// What a tap does with packets for the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packets {
    /// It passes them on.
    Pass,
    /// It drops them.
    Drop,
}

/// Gives a tap to an unprivileged user, who may then open it by name.
///
/// # Errors
///
/// Those of the ioctl.
pub fn give(tap: &OwnedFd, uid: u32) -> io::Result<()> {
    let uid = libc::c_int::try_from(uid).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the descriptor is an attached tap; the argument is a plain integer.
    unsafe { tun_set_owner(tap.as_raw_fd(), uid) }?;
    Ok(())
}

/// Says what the tap of a VM is to do.
///
/// # Errors
///
/// `NotFound` if the process has no tap; those of the ioctls.
pub fn set(process: &VmProcess, packets: Packets) -> io::Result<()> {
    let tap = tap_of(process)?;
    match packets {
        Packets::Drop => drop_all(&tap),
        Packets::Pass => {
            let none = libc::sock_fprog { len: 0, filter: std::ptr::null_mut() };
            // SAFETY: the descriptor is an attached tap; the kernel does not read the argument.
            unsafe { tun_detach_filter(tap.as_raw_fd(), &none) }?;
            Ok(())
        }
    }
}

fn drop_all(tap: &OwnedFd) -> io::Result<()> {
    // A classic BPF program of one instruction: keep 0 bytes of the packet.
    let code = (libc::BPF_RET | libc::BPF_K) as u16;
    let mut program = [libc::sock_filter { code, jt: 0, jf: 0, k: 0 }];
    let filter = libc::sock_fprog { len: 1, filter: program.as_mut_ptr() };
    // SAFETY: `filter` points to one instruction, and both outlive the call.
    unsafe { tun_attach_filter(tap.as_raw_fd(), &filter) }?;
    Ok(())
}

/// The very descriptor that the process has its tap by.
fn tap_of(process: &VmProcess) -> io::Result<OwnedFd> {
    let pid = process.id().pid;
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let entry = entry?;
        let Ok(data) = fs::metadata(entry.path()) else { continue };
        let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
        if let (true, Some(number)) = (data.rdev() == makedev(TUN.0, TUN.1), number) {
            return process.descriptor(number);
        }
    }
    Err(Errno::ENOENT.into())
}

#[cfg(test)]
#[path = "tap_filter_tests.rs"]
mod tests;
