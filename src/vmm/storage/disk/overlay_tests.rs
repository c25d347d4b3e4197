use std::os::fd::IntoRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use super::*;
use crate::vmm::storage::disk::DiskFormat;

const SIZE: u64 = 4 << 30;

/// A raw base of 4 GiB and the path of an overlay that is not there yet.
struct Disks {
    dir: tempfile::TempDir,
}

impl Disks {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        File::create(dir.path().join("base")).unwrap().set_len(SIZE).unwrap();
        Self { dir }
    }

    fn base(&self) -> PathBuf {
        self.dir.path().join("base")
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("overlay")
    }

    fn create(&self) -> Overlay {
        Overlay::create(&self.path(), &base(), SIZE).unwrap()
    }
}

/// As it is named in an overlay that lies beside it.
fn base() -> Layer {
    Layer { file: "base".to_owned(), format: DiskFormat::Raw }
}

/// Starts a process that holds the overlay's lock as a VM does, by inheritance alone.
fn vm_with(overlay: &Overlay) -> Child {
    let fd = overlay.file().try_clone_to_owned().unwrap();
    let mut command = Command::new("sleep");
    command.arg("1000").stdin(Stdio::null());
    // SAFETY: dup(2) is async-signal-safe; the copy it makes is not close-on-exec.
    unsafe {
        command
            .pre_exec(move || Ok(nix::unistd::dup(&fd).map(IntoRawFd::into_raw_fd).map(drop)?));
    }
    command.spawn().unwrap()
}

#[test]
fn an_overlay_is_roots_alone_and_takes_hardly_any_space() {
    let disks = Disks::new();
    let overlay = disks.create();
    let meta = fs::metadata(disks.path()).unwrap();
    assert_eq!(meta.permissions().mode() & 0o7777, 0o600);
    assert!(overlay.bytes_in_use().unwrap() <= 64 * 1024);
    overlay.remove().unwrap();
    assert!(!disks.path().exists());
}

#[test]
fn a_file_that_is_there_is_never_overwritten() {
    let disks = Disks::new();
    fs::write(disks.path(), "precious").unwrap();
    let error = Overlay::create(&disks.path(), &base(), SIZE).unwrap_err();
    assert!(matches!(error, DiskError::Create { .. }), "{error}");
    assert_eq!(fs::read_to_string(disks.path()).unwrap(), "precious");
}

#[test]
fn a_size_that_no_disk_has_leaves_nothing_behind() {
    let disks = Disks::new();
    assert!(Overlay::create(&disks.path(), &base(), 513).is_err());
    assert!(!disks.path().exists());
}

#[test]
fn two_guards_of_one_overlay_cannot_be() {
    let disks = Disks::new();
    let first = disks.create();
    assert!(matches!(Overlay::open(&disks.path()), Err(DiskError::InUse { .. })));
    drop(first);
    let second = Overlay::open(&disks.path()).unwrap();
    assert!(matches!(Overlay::open(&disks.path()), Err(DiskError::InUse { .. })));
    drop(second);
}

#[test]
fn the_lock_outlives_the_daemon_and_ends_with_the_vm() {
    let disks = Disks::new();
    let overlay = disks.create();
    let mut vm = vm_with(&overlay);
    drop(overlay); // as if the daemon had died
    assert!(matches!(Overlay::open(&disks.path()), Err(DiskError::InUse { .. })));

    let adopted = Overlay::adopt(&disks.path(), vm.id()).unwrap();
    vm.kill().unwrap();
    vm.wait().unwrap();
    assert!(matches!(Overlay::open(&disks.path()), Err(DiskError::InUse { .. })));
    drop(adopted);
    Overlay::open(&disks.path()).unwrap();
}

#[test]
fn a_process_without_the_overlay_is_not_adopted() {
    let disks = Disks::new();
    let overlay = disks.create();
    let mut other = Command::new("sleep").arg("1000").spawn().unwrap();
    let error = Overlay::adopt(overlay.path(), other.id()).unwrap_err();
    assert!(matches!(error, DiskError::NotHeld { .. }), "{error}");
    other.kill().unwrap();
    other.wait().unwrap();
    let error = Overlay::adopt(overlay.path(), other.id()).unwrap_err();
    assert!(matches!(error, DiskError::NotHeld { .. }), "{error}");
}

#[test]
fn a_hypervisor_that_did_not_inherit_the_lock_is_seen() {
    let disks = Disks::new();
    drop(disks.create());
    let other = File::options().read(true).write(true).open(disks.path()).unwrap();
    let range = libc::flock {
        l_type: libc::F_RDLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 100,
        l_len: 1,
        l_pid: 0,
    };
    fcntl(&other, FcntlArg::F_OFD_SETLK(&range)).unwrap();
    assert!(matches!(Overlay::open(&disks.path()), Err(DiskError::InUse { .. })));
    drop(other);
    Overlay::open(&disks.path()).unwrap();
}

#[test]
fn qemu_img_finds_the_overlay_sound() {
    let disks = Disks::new();
    drop(disks.create());
    let run = |args: &[&str]| {
        let output = Command::new("qemu-img").args(args).arg(disks.path()).output();
        let output = output.expect("qemu-img is installed: package qemu-utils");
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    let check = run(&["check", "--output=json"]);
    assert_eq!(check["check-errors"], 0, "{check}");
    assert!(check.get("leaks").is_none() && check.get("corruptions").is_none(), "{check}");
    let info = run(&["info", "--output=json"]);
    assert_eq!(info["format"], "qcow2");
    assert_eq!(info["virtual-size"], 4_u64 << 30);
    assert_eq!(info["backing-filename-format"], "raw");
    assert_eq!(info["backing-filename"], "base");
    assert_eq!(info["full-backing-filename"], disks.base().to_str().unwrap());
    assert_eq!(info["format-specific"]["data"]["compat"], "1.1");
}

#[test]
fn sizes_that_no_disk_has_are_refused() {
    let file = tempfile::tempfile().unwrap();
    for size in [513, 1 << 60] {
        let written = qcow2::write_overlay(&file, &base(), size);
        assert!(written.is_err(), "{size}");
    }
    let long = Layer { file: "/x".repeat(600), format: DiskFormat::Qcow2 };
    assert!(qcow2::write_overlay(&file, &long, 512).is_err());
}
