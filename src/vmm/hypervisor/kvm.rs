//! Whether hardware virtualization really works on this host.
//!
//! Each step has been seen to pass where the next one fails: on some clouds `/dev/kvm` opens and
//! makes a VM without hardware support behind it, and a stock kernel still dies under it.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

const KVM: &str = "/dev/kvm";

/// Where outcomes of trials are kept, for as long as the host is up: `/run` is empty after a boot.
const VERDICTS: &str = "/run/nestbox";

/// One thing that was looked at, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What was looked at.
    pub what: String,
    /// Whether it is as it should be.
    pub outcome: Outcome,
    /// What was found.
    pub found: String,
}

/// What came of a [`Check`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It is as it should be.
    Good,
    /// It is not.
    Bad,
    /// It was not tried.
    Unknown,
}

impl Check {
    /// Makes a check from what was found, good or bad.
    pub fn of(what: &str, found: Result<String, String>) -> Self {
        let (outcome, found) = match found {
            Ok(found) => (Outcome::Good, found),
            Err(found) => (Outcome::Bad, found),
        };
        Self { what: what.to_owned(), outcome, found }
    }
}

/// Looks at the CPU and at `/dev/kvm`; stops at the first that is bad.
pub fn look() -> Vec<Check> {
    let cpu = Check::of("CPU has hardware virtualization", cpu_flag());
    if cpu.outcome != Outcome::Good {
        return vec![cpu];
    }
    vec![cpu, Check::of("/dev/kvm makes a VM", make_vm(Path::new(KVM)))]
}

/// Looks whether a VM's process, which is not root, may open `/dev/kvm`.
pub fn look_for_others() -> Check {
    Check::of("VMs may open /dev/kvm", open_to_vms(Path::new(KVM)))
}

/// Whether a VM's process may open a device. It is nobody, in the group of `/dev/kvm`.
///
/// # Errors
///
/// Says what to do.
pub fn open_to_vms(device: &Path) -> Result<String, String> {
    const READ_AND_WRITE: u32 = 0o6;
    let path = device.display();
    let metadata = device.metadata().map_err(|error| format!("cannot look at {path}: {error}"))?;
    let group = Path::new(KVM).metadata().ok().map(|kvm| kvm.gid());
    let open = |to: u32| metadata.mode() >> to & READ_AND_WRITE == READ_AND_WRITE;
    if open(0) || open(3) && group == Some(metadata.gid()) {
        return Ok("they do".to_owned());
    }
    Err(format!("{path} is closed to VMs: `chgrp kvm {path} && chmod 660 {path}`"))
}

fn cpu_flag() -> Result<String, String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").map_err(|error| error.to_string())?;
    let flags = text.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    let found = flags.split_ascii_whitespace().find(|flag| ["vmx", "svm"].contains(flag));
    match found {
        Some(flag) => Ok(format!("{flag} among the CPU's flags")),
        None => Err("neither vmx nor svm is among the CPU's flags".to_owned()),
    }
}

fn make_vm(device: &Path) -> Result<String, String> {
    // KVM_CREATE_VM, linux/kvm.h: _IO(0xAE, 0x01) with the machine type 0.
    const KVM_CREATE_VM: nix::libc::c_ulong = 0xAE01;
    let open = File::options().read(true).write(true).open(device);
    let kvm = open.map_err(|error| format!("cannot open {}: {error}", device.display()))?;
    // SAFETY: the ioctl takes an integer and returns a new descriptor or an error.
    let vm = unsafe { nix::libc::ioctl(kvm.as_raw_fd(), KVM_CREATE_VM, 0) };
    let vm = Errno::result(vm).map_err(|errno| format!("it does not: {errno}"))?;
    // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
    drop(unsafe { <std::os::fd::OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(vm) });
    Ok("it does".to_owned())
}

fn verdict_path(program: &str) -> PathBuf {
    Path::new(VERDICTS).join(format!("kvm-{program}.json"))
}

/// The outcome of a trial boot by `program` under KVM, if there was one since the host booted.
pub fn kept_verdict(program: &str) -> Option<Check> {
    serde_json::from_slice(&std::fs::read(verdict_path(program)).ok()?).ok()
}

/// Keeps the outcome of a trial boot until the host boots again.
///
/// # Errors
///
/// If `/run` cannot be written; the trial is then made again next time.
pub fn keep_verdict(program: &str, verdict: &Check) -> std::io::Result<()> {
    std::fs::create_dir_all(VERDICTS)?;
    std::fs::write(
        verdict_path(program),
        serde_json::to_vec(verdict).expect("a check is plain data"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_kvm_makes_no_vm() {
        let error = make_vm(Path::new("/dev/null")).expect_err("it is no KVM");
        assert!(error.contains("it does not"), "{error}");
        let error = make_vm(Path::new("/no/such/device")).expect_err("it is not there");
        assert!(error.contains("cannot open"), "{error}");
    }

    #[test]
    fn a_device_that_is_its_owners_alone_is_bad() {
        assert_eq!(open_to_vms(Path::new("/dev/null")), Ok("they do".to_owned()));
        let file = tempfile::NamedTempFile::new().expect("a file of our own");
        let error = open_to_vms(file.path()).expect_err("it is ours alone");
        assert!(error.contains("chmod 660"), "{error}");
    }

    #[test]
    fn looking_stops_at_the_first_bad_thing() {
        let checks = look();
        let bad = checks.iter().position(|check| check.outcome == Outcome::Bad);
        assert!(bad.is_none_or(|index| index == checks.len() - 1), "{checks:?}");
    }
}
