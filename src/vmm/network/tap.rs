//! The tap device: the guest's network card as the host sees it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::libc;

use crate::domain::slot::TAP_NAME;

const TUN_DEVICE: &str = "/dev/net/tun";

/// Ethernet frames without a packet-information header, but with the one of virtio-net before each
/// frame. QEMU asks an inherited tap whether it has that header (`TUNGETIFF`) and, if so, lets the
/// guest leave checksums and segmentation to the host; Firecracker requires it.
const FLAGS: libc::c_short =
    (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;

/// How long to wait for a tap that is busy, and how long between attempts.
const PATIENCE: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_millis(5);

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
/// namespace. Blocks for up to [`PATIENCE`].
///
/// # Errors
///
/// `ResourceBusy` (`EBUSY`) while another descriptor stays attached: two VMs never share a tap.
pub(super) fn open() -> io::Result<OwnedFd> {
    let start = Instant::now();
    loop {
        match attach() {
            // A descriptor that was just closed may live on for a moment: in a process that is
            // ending, or in a child that a thread of ours has forked and that has yet to exec.
            Err(e) if e.kind() == io::ErrorKind::ResourceBusy && start.elapsed() < PATIENCE => {
                std::thread::sleep(PAUSE);
            }
            other => return Ok(other?.into()),
        }
    }
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
