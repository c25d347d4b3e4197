//! Plays whoever has taken over a VM's process: with its descriptors, and with nothing else.
//!
//! What is taken stays open when the process closes its own, as it would in the hands of an attacker.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::libc;

use super::writers::{FileId, id_at, id_of};

/// A VM's process in the hands of an attacker.
#[derive(Debug)]
pub struct BrokenVmm {
    pid: i32,
    process: OwnedFd,
}

/// Something that the process has open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    pub number: RawFd,
    /// What it was opened as.
    pub path: PathBuf,
    /// What it is.
    pub file: FileId,
    /// Whether it may be written to.
    pub writable: bool,
    /// Whether it is a file on a disk or in memory, not a socket or a device.
    pub is_file: bool,
}

impl BrokenVmm {
    /// Takes the process over.
    pub fn of(pid: i32) -> Self {
        // SAFETY: pidfd_open(2) takes two numbers and touches no memory.
        let process = own(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) });
        Self { pid, process: process.expect("the process lives") }
    }

    /// What it has open.
    pub fn descriptors(&self) -> Vec<Descriptor> {
        let entries = fs::read_dir(self.proc("fd")).expect("it lives").flatten();
        let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        numbers.filter_map(|number| self.descriptor(number)).collect()
    }

    fn descriptor(&self, number: RawFd) -> Option<Descriptor> {
        let link = self.proc(&format!("fd/{number}"));
        let data = fs::metadata(&link).ok()?;
        let info = fs::read_to_string(self.proc(&format!("fdinfo/{number}"))).ok()?;
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"))?;
        let flags = i32::from_str_radix(flags.trim(), 8).ok()?;
        Some(Descriptor {
            number,
            path: fs::read_link(&link).ok()?,
            file: id_of(&data),
            writable: flags & libc::O_ACCMODE != libc::O_RDONLY,
            is_file: data.is_file(),
        })
    }

    /// Takes one of its descriptors.
    pub fn take(&self, number: RawFd) -> File {
        // SAFETY: pidfd_getfd(2) takes three numbers and touches no memory.
        let taken = own(unsafe {
            libc::syscall(libc::SYS_pidfd_getfd, self.process.as_raw_fd(), number, 0)
        });
        File::from(taken.expect("it is open"))
    }

    /// Takes the descriptor through which it can write to the file at `path`, if it has one.
    pub fn writer_of(&self, path: &Path) -> Option<File> {
        let file = id_at(path);
        let all = self.descriptors();
        all.iter().find(|it| it.writable && it.file == file).map(|it| self.take(it.number))
    }

    /// Whom it runs as.
    pub fn uid(&self) -> u32 {
        fs::metadata(self.proc("")).expect("it lives").uid()
    }

    /// Its working directory.
    pub fn cwd(&self) -> PathBuf {
        fs::read_link(self.proc("cwd")).expect("it lives")
    }

    /// Its root directory, as a path that leads there.
    pub fn root(&self) -> PathBuf {
        self.proc("root")
    }

    /// A namespace that it is in, such as "mnt": what two processes in the same one have in common.
    pub fn namespace(&self, kind: &str) -> PathBuf {
        fs::read_link(self.proc(&format!("ns/{kind}"))).expect("it lives")
    }

    fn proc(&self, rest: &str) -> PathBuf {
        Path::new("/proc").join(self.pid.to_string()).join(rest)
    }
}

/// Takes the descriptor that a system call returned.
fn own(result: libc::c_long) -> io::Result<OwnedFd> {
    let number = Errno::result(result)?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(number as RawFd) })
}
