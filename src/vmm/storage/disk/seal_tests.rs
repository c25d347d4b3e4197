use std::io::IoSlice;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use super::*;
use crate::vmm::storage::disk::DiskFormat;

const SIZE: u64 = 1 << 20;

/// A layer with a hole in it.
struct Bench {
    dir: tempfile::TempDir,
    layer: Layer,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let layer = Layer { file: "layer".to_owned(), format: DiskFormat::Qcow2 };
        let file = File::create(dir.path().join("layer")).unwrap();
        file.set_len(SIZE).unwrap();
        file.write_all_at(&[7; 5000], 100_000).unwrap();
        Self { dir, layer }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("layer")
    }

    fn writer(&self) -> File {
        File::options().read(true).write(true).open(self.path()).unwrap()
    }

    fn seal(&self) -> Result<OpenLayer, LayerError> {
        self.seal_unless(&|| false)
    }

    fn seal_unless(&self, cancelled: &dyn Fn() -> bool) -> Result<OpenLayer, LayerError> {
        seal(&self.layer, self.dir.path(), &Sealing { longest: SIZE, synced: true, cancelled })
    }

    fn inode(&self) -> u64 {
        fs::metadata(self.path()).unwrap().ino()
    }

    /// Seals it, and checks that it was copied and is the same.
    fn is_copied(&self, former: u64) {
        let before = fs::read(self.path()).unwrap();
        let sealed = self.seal().unwrap().file;
        let data = sealed.metadata().unwrap();
        assert_eq!((data.ino(), data.mode() & 0o777), (self.inode(), 0o400));
        assert_ne!(data.ino(), former, "the VM has that one");
        assert!(data.blocks() * 512 < SIZE / 4, "it is sparse");
        assert!(fs::read(self.path()).unwrap() == before);
        assert_eq!(fs::read_dir(self.dir.path()).unwrap().count(), 1, "nothing else is left");
    }
}

#[test]
fn what_nobody_has_open_is_sealed_where_it_is() {
    let bench = Bench::new();
    let before = bench.inode();
    assert!(!is_sealed(&File::open(bench.path()).unwrap()).unwrap());
    let reader = File::open(bench.path()).unwrap();
    let sealed = bench.seal().unwrap().file;
    assert!(is_sealed(&sealed).unwrap());
    assert_eq!(bench.inode(), before, "a reader is no reason to copy");
    assert_eq!(bench.seal().unwrap().file.metadata().unwrap().ino(), before);
    drop(reader);
}

#[test]
fn what_a_vm_has_open_for_writing_is_copied_and_its_writes_reach_nobody() {
    let bench = Bench::new();
    let (writer, former) = (bench.writer(), bench.inode());
    // As a crash has left one.
    fs::write(bench.dir.path().join("layer.new"), vec![1; 3_000_000]).unwrap();
    bench.is_copied(former);
    writer.write_all_at(b"evil", 100_000).unwrap();
    assert!(fs::read(bench.path()).unwrap()[100_000..105_000].iter().all(|byte| *byte == 7));
}

#[test]
fn a_mapping_and_a_message_on_its_way_count_as_open() {
    let bench = Bench::new();
    let former = bench.inode();
    let writer = bench.writer();
    // SAFETY: the kernel chooses the address, so nothing that exists is replaced.
    let mapped = unsafe {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        libc::mmap(std::ptr::null_mut(), 4096, protection, libc::MAP_SHARED, writer.as_raw_fd(), 0)
    };
    assert_ne!(mapped, libc::MAP_FAILED);
    drop(writer);
    bench.is_copied(former);
    // SAFETY: the mapping was made above, and nothing refers to it.
    unsafe { libc::munmap(mapped, 4096) };

    let bench = Bench::new();
    let former = bench.inode();
    let (here, there) = UnixStream::pair().unwrap();
    let writer = bench.writer();
    let rights = [ControlMessage::ScmRights(&[writer.as_raw_fd()])];
    let word = [IoSlice::new(b"x")];
    sendmsg::<()>(here.as_raw_fd(), &word, &rights, MsgFlags::empty(), None).unwrap();
    drop(writer);
    bench.is_copied(former);
    drop(there);
}

#[test]
fn a_seal_that_does_not_come_about_changes_nothing() {
    let bench = Bench::new();
    let (writer, former) = (bench.writer(), bench.inode());
    let cancelled = bench.seal_unless(&|| true);
    assert!(matches!(cancelled, Err(LayerError::Cancelled)), "{cancelled:?}");
    writer.set_len(SIZE + 1).unwrap();
    let long = bench.seal();
    let problem = Problem::TooLong { bytes: SIZE + 1 };
    assert!(
        matches!(&long, Err(LayerError::Refused { problem: found, .. }) if *found == problem),
        "{long:?}"
    );
    assert_eq!(bench.inode(), former);
    assert!(!is_sealed(&writer).unwrap());
    assert_eq!(fs::read_dir(bench.dir.path()).unwrap().count(), 1);
}

#[test]
fn a_link_to_elsewhere_is_no_layer() {
    let bench = Bench::new();
    let elsewhere = bench.dir.path().join("elsewhere");
    fs::rename(bench.path(), &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, bench.path()).unwrap();
    let refused = bench.seal();
    assert!(matches!(refused, Err(LayerError::Io { verb: "open", .. })), "{refused:?}");
}

#[test]
fn all_that_seal_a_layer_at_once_get_the_same() {
    let bench = Bench::new();
    let (_writer, former) = (bench.writer(), bench.inode());
    let found: Vec<u64> = std::thread::scope(|scope| {
        let sealing: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| bench.seal().unwrap().file.metadata().unwrap().ino()))
            .collect();
        sealing.into_iter().map(|it| it.join().unwrap()).collect()
    });
    assert!(found.iter().all(|inode| *inode == bench.inode() && *inode != former), "{found:?}");
}
