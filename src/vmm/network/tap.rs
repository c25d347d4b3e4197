//! The tap device: the guest's network card as the host sees it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::libc;

use crate::domain::slot::TAP_NAME;

const TUN_DEVICE: &str = "/dev/net/tun";

/// Ethernet frames without a packet-information header, but with the one of virtio-net before each
/// frame. QEMU asks an inherited tap whether it has that header (`TUNGETIFF`) and, if so, lets the
/// guest leave checksums and segmentation to the host; Firecracker requires it.
const FLAGS: libc::c_short = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;

nix::ioctl_write_ptr_bad!(tun_set_iff, libc::TUNSETIFF, libc::ifreq);
nix::ioctl_write_int_bad!(tun_set_persist, libc::TUNSETPERSIST);

/// Makes the tap device in the namespace of the calling thread; it stays when nobody has it open.
pub(super) fn create() -> io::Result<()> {
    let tap = attach()?;
    // SAFETY: the descriptor is an attached tap; the argument is a plain integer, 1 for persistent.
    unsafe { tun_set_persist(tap.as_raw_fd(), 1) }?;
    Ok(())
}

/// Opens the tap device in the namespace of the calling thread. The descriptor keeps working in any
/// namespace.
///
/// # Errors
///
/// `ResourceBusy` (`EBUSY`) while another descriptor is attached: two VMs never share a tap.
pub(super) fn open() -> io::Result<OwnedFd> {
    Ok(attach()?.into())
}

fn attach() -> io::Result<File> {
    let tun = OpenOptions::new().read(true).write(true).open(TUN_DEVICE)?;
    // SAFETY: all zeroes is a valid `ifreq`: an empty name and no flags.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(TAP_NAME.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = FLAGS;
    // SAFETY: the descriptor is open and `request` is an initialized `ifreq` that outlives the call.
    unsafe { tun_set_iff(tun.as_raw_fd(), &request) }?;
    Ok(tun)
}
