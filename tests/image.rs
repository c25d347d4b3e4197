//! Making images of one's own, and what keeps a damaged or half-built one from being used.

#![allow(
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by a panic, and says what it has seen"
)]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};

use nestbox::domain::name::TemplateName;
use nestbox::vmm::image::{Image, ImageError, ImageStore, Progress, RootfsSource, Silent};

#[path = "support/skip.rs"]
mod skip;

/// An image store of its own, a small tree and a file that passes for a kernel.
struct Lab {
    dir: tempfile::TempDir,
}

impl Lab {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("tree/usr/bin")).unwrap();
        fs::write(dir.path().join("tree/usr/bin/hello"), "hello").unwrap();
        fs::write(dir.path().join("vmlinux"), b"\x7fELF..Linux version 6.9.0-test (x)\0").unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn store(&self) -> ImageStore {
        ImageStore::open(self.path("images"))
    }

    fn import(&self, image: &str, source: &RootfsSource) -> Result<Image, ImageError> {
        self.store().import(&name(image), source, Some(&self.path("vmlinux")), &Silent)
    }

    fn import_tree(&self, image: &str) -> Image {
        self.import(image, &RootfsSource::Dir(self.path("tree"))).unwrap()
    }

    /// Everything in the store, relative to it.
    fn files(&self) -> Vec<String> {
        let root = self.path("images");
        let (mut found, mut pending) = (Vec::new(), vec![root.clone()]);
        while let Some(dir) = pending.pop() {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                found.push(path.strip_prefix(&root).unwrap().display().to_string());
                if path.is_dir() {
                    pending.push(path);
                }
            }
        }
        found.sort();
        found
    }
}

fn name(text: &str) -> TemplateName {
    text.parse().unwrap()
}

/// Reads a file out of a root filesystem without mounting it.
fn read_in(rootfs: &Path, file: &str) -> String {
    let output = Command::new("debugfs").args(["-R", &format!("cat {file}")]).arg(rootfs).output();
    String::from_utf8(output.expect("debugfs is installed: package e2fsprogs").stdout).unwrap()
}

#[test]
fn a_missing_image_names_the_command_that_makes_it() {
    let lab = Lab::new();
    let error = lab.store().get(&name("debian")).unwrap_err();
    assert!(matches!(error, ImageError::NotFound { .. }));
    assert!(error.to_string().contains("nestbox image build debian"), "{error}");
    assert!(lab.store().list().unwrap().is_empty());
    assert!(!lab.path("images").exists(), "asking makes nothing");
}

#[test]
fn a_directory_becomes_an_image() {
    let lab = Lab::new();
    let made = lab.import_tree("mine");
    let image = lab.store().get(&name("mine")).unwrap();
    assert_eq!(image.rootfs, made.rootfs);
    assert_eq!(image.kernel_version, "6.9.0-test");
    assert_eq!(read_in(&image.rootfs, "/usr/bin/hello"), "hello");
    assert!(fs::metadata(&image.rootfs).unwrap().permissions().readonly());
    assert_eq!(image.rootfs_bytes, 4 << 30);
    lab.store().verify(&name("mine")).unwrap();
    assert_eq!(lab.store().list().unwrap().len(), 1);
}

#[test]
fn a_compressed_archive_becomes_an_image() {
    let lab = Lab::new();
    let archive = lab.path("tree.tar.gz");
    let mut tar = Command::new("tar");
    tar.arg("-czf").arg(&archive).arg("-C").arg(lab.path("tree")).arg(".");
    assert!(tar.status().unwrap().success());
    let source = RootfsSource::detect(&archive).unwrap();
    assert_eq!(source, RootfsSource::Tar(archive));
    let image = lab.import("mine", &source).unwrap();
    assert_eq!(read_in(&image.rootfs, "/usr/bin/hello"), "hello");
}

#[test]
fn a_disk_becomes_an_image_and_stays_as_it_was() {
    let lab = Lab::new();
    let first = lab.import_tree("first");
    let disk = lab.path("disk");
    let mut copy = Command::new("cp");
    copy.arg("--sparse=always").args([&first.rootfs, &disk]);
    assert!(copy.status().unwrap().success());
    let source = RootfsSource::detect(&disk).unwrap();
    assert_eq!(source, RootfsSource::Ext4(disk.clone()));
    let before = fs::metadata(&disk).unwrap().modified().unwrap();
    let second = lab.import("second", &source).unwrap();
    assert_eq!(read_in(&second.rootfs, "/usr/bin/hello"), "hello");
    assert_eq!(fs::metadata(&disk).unwrap().modified().unwrap(), before);
    assert_eq!(first.kernel, second.kernel, "images share a kernel");
}

#[test]
fn what_holds_no_root_filesystem_is_refused() {
    let lab = Lab::new();
    fs::create_dir(lab.path("empty")).unwrap();
    fs::write(lab.path("noise"), vec![7; 10_000]).unwrap();
    for (source, said) in [("empty", "neither bin nor usr"), ("noise", "cannot unpack")] {
        let source = RootfsSource::detect(&lab.path(source)).unwrap();
        let error = lab.import("mine", &source).unwrap_err();
        let chain = format!("{:#}", anyhow::Error::new(error));
        assert!(chain.contains(said), "{chain}");
    }
    let error = lab
        .store()
        .import(
            &name("mine"),
            &RootfsSource::Dir(lab.path("tree")),
            Some(&lab.path("noise")),
            &Silent,
        )
        .unwrap_err();
    let chain = format!("{:#}", anyhow::Error::new(error));
    assert!(chain.contains("neither an ELF kernel nor a bzImage"), "{chain}");
    assert!(matches!(lab.store().get(&name("mine")), Err(ImageError::NotFound { .. })));
    assert_eq!(lab.files(), [".lock"], "a failed build leaves nothing");
}

#[test]
fn names_that_the_store_uses_itself_are_refused() {
    let lab = Lab::new();
    for reserved in ["kernels", "initramfs"] {
        let error = lab.import(reserved, &RootfsSource::Dir(lab.path("tree"))).unwrap_err();
        assert!(matches!(error, ImageError::Reserved { .. }), "{error}");
    }
}

#[test]
fn damage_is_found_and_named() {
    use std::os::unix::fs::{FileExt, PermissionsExt};
    let lab = Lab::new();
    let image = lab.import_tree("mine");
    fs::set_permissions(&image.rootfs, fs::Permissions::from_mode(0o600)).unwrap();
    let file = fs::File::options().write(true).open(&image.rootfs).unwrap();
    file.write_all_at(b"x", 3 << 30).unwrap();
    let error = lab.store().verify(&name("mine")).unwrap_err();
    assert!(error.to_string().contains("rootfs-"), "{error}");

    file.set_len(1 << 30).unwrap();
    assert!(matches!(lab.store().get(&name("mine")), Err(ImageError::Damaged { .. })));
    lab.import_tree("mine");
    lab.store().verify(&name("mine")).unwrap();
}

#[test]
fn a_half_built_image_is_not_used_and_goes_with_the_next_build() {
    let lab = Lab::new();
    lab.import_tree("whole");
    let before = lab.files();
    for leftover in
        ["half/rootfs-123456789abc.ext4", ".work/tree/etc/passwd", "kernels/6.1-x/vmlinux"]
    {
        let path = lab.path("images").join(leftover);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "half").unwrap();
    }
    assert!(matches!(lab.store().get(&name("half")), Err(ImageError::NotFound { .. })));
    assert_eq!(lab.store().list().unwrap().len(), 1);
    lab.import_tree("next");
    lab.store().remove(&name("next")).unwrap();
    assert_eq!(lab.files(), before);
}

#[test]
fn a_new_build_of_a_name_leaves_the_old_disk_to_those_who_use_it() {
    let lab = Lab::new();
    let old = lab.import_tree("mine");
    // As every snapshot does.
    let used = lab.path("used");
    fs::hard_link(&old.rootfs, &used).unwrap();
    fs::write(lab.path("tree/usr/bin/hello"), "changed").unwrap();
    let new = lab.import_tree("mine");
    assert_ne!(old.rootfs, new.rootfs);
    assert!(!old.rootfs.exists());
    assert_eq!(read_in(&used, "/usr/bin/hello"), "hello");
    assert_eq!(read_in(&new.rootfs, "/usr/bin/hello"), "changed");
}

#[test]
fn removing_an_image_spares_a_shared_kernel_until_the_last_one_goes() {
    let lab = Lab::new();
    let kernel = lab.import_tree("one").kernel;
    lab.import_tree("two");
    lab.store().remove(&name("one")).unwrap();
    assert!(kernel.exists());
    assert!(!lab.path("images/one").exists());
    lab.store().remove(&name("two")).unwrap();
    assert!(!kernel.exists());
    assert!(matches!(lab.store().remove(&name("two")), Err(ImageError::NotFound { .. })));
}

#[test]
fn an_initramfs_that_was_lost_is_made_again() {
    let lab = Lab::new();
    let image = lab.import_tree("mine");
    let bytes = fs::read(&image.initramfs).unwrap();
    fs::remove_file(&image.initramfs).unwrap();
    let again = lab.store().get(&name("mine")).unwrap();
    assert_eq!(fs::read(again.initramfs).unwrap(), bytes);
}

/// Stops a build in its first step until it is told to go on.
struct Gate {
    entered: Mutex<Sender<String>>,
    open: Mutex<Receiver<()>>,
}

impl Progress for Gate {
    fn step(&self, text: &str) {
        self.entered.lock().unwrap().send(text.to_owned()).unwrap();
        let _ = self.open.lock().unwrap().recv();
    }

    fn detail(&self, _: &str) {}
}

#[test]
fn a_second_build_waits_for_the_first() {
    let lab = Lab::new();
    let source = RootfsSource::Dir(lab.path("tree"));
    let kernel = lab.path("vmlinux");
    let gate = || {
        let ((entered, steps), (go_on, open)) = (channel(), channel());
        (Gate { entered: Mutex::new(entered), open: Mutex::new(open) }, steps, go_on)
    };
    let (first, first_steps, first_goes_on) = gate();
    let (second, second_steps, second_goes_on) = gate();
    let store = lab.store();
    std::thread::scope(|scope| {
        let (store, source, kernel) = (&store, &source, Some(kernel.as_path()));
        let one = scope.spawn(move || store.import(&name("one"), source, kernel, &first));
        assert!(first_steps.recv().unwrap().contains("ext4"));
        let two = scope.spawn(move || store.import(&name("two"), source, kernel, &second));
        assert!(second_steps.recv().unwrap().contains("waiting"));
        drop(second_goes_on); // from here on it does not stop, but it cannot get past the lock
        assert!(lab.path("images/.work/rootfs.ext4").symlink_metadata().is_err());
        drop(first_goes_on);
        one.join().unwrap().unwrap();
        two.join().unwrap().unwrap();
    });
    assert_eq!(lab.store().list().unwrap().len(), 2);
}

#[test]
fn the_default_image_is_whole_and_has_its_user() -> io::Result<()> {
    let Some(dir) = std::env::var_os("NESTBOX_TEST_IMAGES") else {
        skip::skip("NESTBOX_TEST_IMAGES names no images: `make test` makes them");
        return Ok(());
    };
    let store = ImageStore::open(dir);
    store.verify(&name("debian")).unwrap();
    let image = store.get(&name("debian")).unwrap();
    let passwd = read_in(&image.rootfs, "/etc/passwd");
    assert!(passwd.contains("user:x:1000:1000::/home/user:/bin/bash"), "{passwd}");
    assert!(read_in(&image.rootfs, "/etc/sudoers.d/user").contains("NOPASSWD"));
    assert_eq!(read_in(&image.rootfs, "/etc/resolv.conf"), "", "the host's name servers stay out");
    assert!(
        !read_in(&image.rootfs, "/etc/hostname").contains(&fs::read_to_string("/etc/hostname")?)
    );
    Ok(())
}
