//! device-mapper, by its control node.
//!
//! Two of its commands make udev do something, and the `devicemapper` crate then waits for a semaphore
//! that udev posts: for ever, in a container that sees the host's `/run` but not its semaphores. Its
//! removal also sleeps and tries again by itself, which is for the caller to decide. So resume and
//! remove are sent from here. Facts: Linux, `include/uapi/linux/dm-ioctl.h`.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use devicemapper::{DM, DevId, DmError, DmFlags, DmName, DmOptions, DmUuid, errors};
use nix::errno::Errno;
use nix::libc::{self, dev_t};

use super::kernel::{Access, Found, State, Table};
use crate::vmm::storage::disk::cow::CHUNK_SECTORS;

const TARGET: &str = "snapshot";

const MAJOR_VERSION: u32 = 4;
const DM_DEV_REMOVE: u8 = 4;
const DM_DEV_SUSPEND: u8 = 6;
const DM_GET_TARGET_VERSION: u8 = 17;
const DM_BUFFER_FULL_FLAG: u32 = 1 << 8;

/// Tells udev's rules to leave a device alone, in the upper half of an event's number: no links, and
/// no program that reads what a guest wrote. (libdevmapper.h: DM_UDEV_DISABLE_DM_RULES_FLAG and so
/// on; the last is DM_UDEV_PRIMARY_SOURCE_FLAG, which makes the others count.)
const LEAVE_ALONE: u32 = (0x01 | 0x02 | 0x04 | 0x08 | 0x40) << 16;

/// `struct dm_ioctl` with room for an answer.
#[repr(C)]
struct Command {
    version: [u32; 3],
    data_size: u32,
    data_start: u32,
    target_count: u32,
    open_count: i32,
    flags: u32,
    event_nr: u32,
    padding: u32,
    dev: u64,
    name: [u8; 128],
    uuid: [u8; 129],
    data: [u8; 7],
    answer: [u8; 512],
}

/// Bytes of `struct dm_ioctl` alone.
const COMMAND_BYTES: usize = 312;
const _: () = assert!(size_of::<Command>() == COMMAND_BYTES + 512);

/// The control node.
pub(super) struct Mapper(DM);

impl Mapper {
    /// Opens it.
    ///
    /// # Errors
    ///
    /// Those of opening `/dev/mapper/control`; ENODEV if the kernel has no device-mapper.
    pub fn open() -> io::Result<Self> {
        // For its error: the crate only has a text.
        fs::File::open("/dev/mapper/control")?;
        DM::new().map(Self).map_err(into_io)
    }

    /// Makes sure that the kernel has snapshots, and has it load their module if need be.
    ///
    /// # Errors
    ///
    /// EINVAL if it has none.
    pub fn require_snapshots(&self) -> io::Result<()> {
        self.command(DM_GET_TARGET_VERSION, TARGET, 0)
    }

    pub fn list(&self) -> io::Result<Vec<(String, dev_t)>> {
        let devices = self.0.list_devices().map_err(into_io)?;
        let devices = devices.into_iter();
        Ok(devices.map(|(name, number, _)| (name.to_string(), number.into())).collect())
    }

    pub fn find(&self, name: &str) -> io::Result<Option<Found>> {
        let info = match self.0.device_info(&DevId::Name(dm_name(name)?)) {
            Ok(info) => info,
            Err(error) => return unless_gone(into_io(error)),
        };
        let has = |flag| info.flags().contains(flag);
        let state = match (has(DmFlags::DM_ACTIVE_PRESENT), has(DmFlags::DM_SUSPEND)) {
            (false, _) => State::Empty,
            (true, true) => State::Suspended,
            (true, false) => State::Active,
        };
        Ok(Some(Found { number: info.device().into(), state }))
    }

    pub fn create(&self, name: &str, access: Access) -> io::Result<dev_t> {
        let uuid = DmUuid::new(name).map_err(into_io)?;
        let created = self.0.device_create(dm_name(name)?, Some(uuid), flags_of(access));
        Ok(created.map_err(into_io)?.device().into())
    }

    pub fn load(&self, name: &str, table: &Table, access: Access) -> io::Result<()> {
        let number = |dev| format!("{}:{}", libc::major(dev), libc::minor(dev));
        // P: what is written stays when the device is gone. O: see `room`.
        let params = format!("{} {} PO {CHUNK_SECTORS}", number(table.origin), number(table.cow));
        let line = (0, table.sectors, TARGET.to_owned(), params);
        let id = DevId::Name(dm_name(name)?);
        self.0.table_load(&id, &[line], flags_of(access)).map(drop).map_err(into_io)
    }

    pub fn clear(&self, name: &str) -> io::Result<()> {
        self.0.table_clear(&DevId::Name(dm_name(name)?)).map(drop).map_err(into_io)
    }

    pub fn suspend(&self, name: &str) -> io::Result<()> {
        // Without the lock of a file system, which it has none of: it would write the page cache out.
        let flags = DmFlags::DM_SUSPEND | DmFlags::DM_SKIP_LOCKFS;
        let options = DmOptions::default().set_flags(flags);
        self.0.device_suspend(&DevId::Name(dm_name(name)?), options).map(drop).map_err(into_io)
    }

    pub fn resume(&self, name: &str) -> io::Result<()> {
        self.command(DM_DEV_SUSPEND, name, LEAVE_ALONE)
    }

    pub fn remove(&self, name: &str) -> io::Result<()> {
        self.command(DM_DEV_REMOVE, name, LEAVE_ALONE)
    }

    pub fn table(&self, name: &str) -> io::Result<Option<Table>> {
        let line = match self.line(name, DmFlags::DM_STATUS_TABLE) {
            Ok(line) => line,
            Err(error) => return unless_gone(error),
        };
        let table = |(_, sectors, target, params): (u64, u64, String, String)| {
            let mut words = params.split(' ');
            let (origin, cow) = (words.next()?, words.next()?);
            let table = Table { origin: number_of(origin)?, cow: number_of(cow)?, sectors };
            (target == TARGET).then_some(table)
        };
        Ok(line.and_then(table))
    }

    pub fn status(&self, name: &str) -> io::Result<String> {
        let line = self.line(name, DmFlags::DM_NOFLUSH)?;
        Ok(line.map(|(_, _, _, status)| status).unwrap_or_default())
    }

    fn line(&self, name: &str, flags: DmFlags) -> io::Result<Option<(u64, u64, String, String)>> {
        let options = DmOptions::default().set_flags(flags);
        let status = self.0.table_status(&DevId::Name(dm_name(name)?), options);
        Ok(status.map_err(into_io)?.1.into_iter().next())
    }

    /// Sends a command that needs nothing but a name.
    fn command(&self, command: u8, name: &str, event_nr: u32) -> io::Result<()> {
        let mut request = Command {
            version: [MAJOR_VERSION, 0, 0],
            data_size: size_of::<Command>() as u32,
            data_start: COMMAND_BYTES as u32,
            target_count: 0,
            open_count: 0,
            flags: 0,
            event_nr,
            padding: 0,
            dev: 0,
            name: [0; 128],
            uuid: [0; 129],
            data: [0; 7],
            answer: [0; 512],
        };
        let name = dm_name(name)?.as_bytes();
        // One byte stays zero.
        let room = request.name.len() - 1;
        let field = request.name.get_mut(..name.len().min(room)).expect("it is short enough");
        field.copy_from_slice(&name[..field.len()]);
        let code = nix::request_code_readwrite!(0xfd, command, COMMAND_BYTES);
        // SAFETY: the kernel reads and writes `data_size` bytes of a `struct dm_ioctl` with an answer
        // behind it, which `Command` is.
        let done = unsafe { libc::ioctl(self.0.as_raw_fd(), code, &mut request) };
        Errno::result(done)?;
        match request.flags & DM_BUFFER_FULL_FLAG {
            0 => Ok(()),
            _ => Err(Errno::ENOBUFS.into()),
        }
    }
}

/// The usual place of a device's node.
pub(super) fn node_path(number: dev_t) -> PathBuf {
    format!("/dev/dm-{}", libc::minor(number)).into()
}

/// Whether another device has this one open: sysfs lists such holders by name.
pub(super) fn carries_another(number: dev_t) -> io::Result<bool> {
    let (major, minor) = (libc::major(number), libc::minor(number));
    Ok(fs::read_dir(format!("/sys/dev/block/{major}:{minor}/holders"))?.next().is_some())
}

fn flags_of(access: Access) -> DmOptions {
    match access {
        Access::Read => DmOptions::default().set_flags(DmFlags::DM_READONLY),
        Access::Write => DmOptions::default(),
    }
}

fn dm_name(name: &str) -> io::Result<&DmName> {
    DmName::new(name).map_err(into_io)
}

fn number_of(text: &str) -> Option<dev_t> {
    let (major, minor) = text.split_once(':')?;
    Some(libc::makedev(major.parse().ok()?, minor.parse().ok()?))
}

fn unless_gone<T>(error: io::Error) -> io::Result<Option<T>> {
    match error.raw_os_error() {
        Some(libc::ENXIO) => Ok(None),
        _ => Err(error),
    }
}

fn into_io(error: DmError) -> io::Error {
    match error {
        DmError::Core(errors::Error::Ioctl(_, _, _, errno)) => (*errno).into(),
        DmError::Core(errors::Error::InvalidArgument(why)) => {
            io::Error::new(io::ErrorKind::InvalidInput, why)
        }
        other => io::Error::other(other),
    }
}
