//! Loop devices: files as block devices. Facts: Linux, `include/uapi/linux/loop.h`, loop(4).
//!
//! Each is attached with LO_FLAGS_AUTOCLEAR: the kernel itself detaches the file when nobody has the
//! device open any more, and the table of a device-mapper device has it open. So it is the kernel that
//! counts references, over any crash of the daemon, and there is nothing to leak. Read through the page
//! cache: what one sandbox has read of a shared file, the next one finds there.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::libc::{self, dev_t};

use super::kernel::{Access, Backing, FileId, Loop};
use super::node;

const LOOP_MAJOR: u32 = 7;
const LOOP_SET_FD: libc::Ioctl = 0x4C00;
const LOOP_SET_STATUS64: libc::Ioctl = 0x4C04;
const LOOP_GET_STATUS64: libc::Ioctl = 0x4C05;
const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
const LOOP_CLR_FD: libc::Ioctl = 0x4C01;
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;

/// How often another process may be quicker at taking a free device.
const ATTEMPTS: usize = 64;

/// `struct loop_info64`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct Config {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<Info>() == 232 && size_of::<Config>() == 304);

impl Info {
    const EMPTY: Self = Self {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        size_limit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: 0,
        file_name: [0; 64],
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
    };

    fn read(device: &File) -> io::Result<Self> {
        let mut info = Self::EMPTY;
        // SAFETY: the kernel writes a `struct loop_info64`, which `Info` is.
        let done = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_GET_STATUS64, &mut info) };
        Errno::result(done)?;
        Ok(info)
    }

    fn write(&self, device: &File) -> Result<(), Errno> {
        // SAFETY: the kernel reads a `struct loop_info64`, which `Info` is.
        let done = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_SET_STATUS64, self) };
        Errno::result(done).map(drop)
    }

    fn file(&self) -> FileId {
        // The kernel's encoding of a device number: 12 bits of the major one between 8 and 12 of the
        // minor one; include/linux/kdev_t.h, huge_encode_dev.
        let device = self.device as u32;
        let minor = (device & 0xff) | ((device >> 12) & 0xf_ff00);
        FileId { dev: libc::makedev((device & 0xf_ff00) >> 8, minor), ino: self.inode }
    }

    fn tag(&self) -> String {
        let end = self.file_name.iter().position(|byte| *byte == 0).unwrap_or(64);
        String::from_utf8_lossy(&self.file_name[..end]).into_owned()
    }

    fn access(&self) -> Access {
        match self.flags & LO_FLAGS_READ_ONLY {
            0 => Access::Write,
            _ => Access::Read,
        }
    }
}

/// Attaches a file to a free loop device, which is given `tag` to tell by whose it is.
///
/// # Errors
///
/// Those of the kernel; EBUSY if others are always quicker.
pub(super) fn attach(file: &File, access: Access, tag: &str) -> io::Result<Loop> {
    let control = File::options().read(true).write(true).open("/dev/loop-control")?;
    for _ in 0..ATTEMPTS {
        // SAFETY: the call takes no argument.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
        let number = libc::makedev(LOOP_MAJOR, Errno::result(number)? as u32);
        let device = open(number, access)?;
        match configure(&device, file, access, tag) {
            Ok(()) => return Ok(Loop { number, _pin: Box::new(device) }),
            Err(Errno::EBUSY) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Err(Errno::EBUSY.into())
}

fn configure(device: &File, file: &File, access: Access, tag: &str) -> Result<(), Errno> {
    let mut info = Info::EMPTY;
    let tag = tag.as_bytes();
    // The last byte stays zero.
    let length = tag.len().min(info.file_name.len() - 1);
    info.file_name[..length].copy_from_slice(&tag[..length]);
    info.flags = LO_FLAGS_AUTOCLEAR;
    if access == Access::Read {
        info.flags |= LO_FLAGS_READ_ONLY;
    }
    let fd = file.as_raw_fd();
    let config = Config { fd: fd as u32, block_size: 512, info, reserved: [0; 8] };
    // SAFETY: the kernel reads a `struct loop_config`, which `Config` is.
    let done = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &config) };
    match Errno::result(done) {
        Ok(_) => Ok(()),
        // Before Linux 5.8 it takes two calls. Read-only is what is opened so.
        Err(Errno::EINVAL | Errno::ENOTTY) => configure_in_two(device, fd, &info),
        Err(errno) => Err(errno),
    }
}

fn configure_in_two(device: &File, fd: libc::c_int, info: &Info) -> Result<(), Errno> {
    // SAFETY: the call takes a number.
    Errno::result(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_SET_FD, fd) })?;
    let done = info.write(device);
    if done.is_err() {
        // SAFETY: the call takes no argument. The device is still ours alone.
        unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CLR_FD) };
    }
    done
}

/// Finds a read-only loop device of that file and tag, and keeps it from being detached.
///
/// # Errors
///
/// Those of listing `/sys/block`.
pub(super) fn attached(file: FileId, tag: &str) -> io::Result<Option<Loop>> {
    for number in bound()? {
        // One that is detached meanwhile is as if it had never been.
        let Ok(device) = open(number, Access::Read) else { continue };
        let Ok(info) = Info::read(&device) else { continue };
        if info.file() == file && info.tag() == tag && info.access() == Access::Read {
            return Ok(Some(Loop { number, _pin: Box::new(device) }));
        }
    }
    Ok(None)
}

/// Numbers of the loop devices that have a file.
pub(super) fn bound() -> io::Result<Vec<dev_t>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir("/sys/block")? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("loop")?.parse().ok());
        if let Some(number) = number
            && Path::new("/sys/block").join(&name).join("loop").exists()
        {
            numbers.push(libc::makedev(LOOP_MAJOR, number));
        }
    }
    Ok(numbers)
}

/// The file behind a loop device.
///
/// # Errors
///
/// ENXIO if there is none.
pub(super) fn backing(number: dev_t) -> io::Result<Backing> {
    let info = Info::read(&open(number, Access::Read)?)?;
    // loop(4) has 63 bytes for a name, and we use them for the tag. The kernel knows the whole path.
    let name = format!("/sys/dev/block/7:{}/loop/backing_file", libc::minor(number));
    let path = fs::read_to_string(name)?;
    let path = PathBuf::from(path.strip_suffix('\n').unwrap_or(&path));
    Ok(Backing { file: info.file(), path, access: info.access(), tag: info.tag() })
}

/// Bytes at which a loop device ends before its file does.
///
/// # Errors
///
/// ENXIO if it has no file.
pub(super) fn limit(number: dev_t) -> io::Result<Option<u64>> {
    let limit = Info::read(&open(number, Access::Read)?)?.size_limit;
    Ok((limit > 0).then_some(limit))
}

/// Has a loop device end at so many bytes, or with its file.
///
/// # Errors
///
/// ENXIO if it has no file, EAGAIN if its pages are in use.
pub(super) fn set_limit(number: dev_t, limit: Option<u64>) -> io::Result<()> {
    let device = open(number, Access::Read)?;
    let info = Info { size_limit: limit.unwrap_or(0), ..Info::read(&device)? };
    Ok(info.write(&device)?)
}

fn open(number: dev_t, access: Access) -> io::Result<File> {
    node::open(number, Path::new(&format!("/dev/loop{}", libc::minor(number))), access)
}

#[cfg(test)]
#[path = "loops_tests.rs"]
mod tests;
