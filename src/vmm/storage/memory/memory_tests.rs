#![allow(clippy::single_range_in_vec_init, reason = "a run of pages is a range")]

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};

use nix::libc;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::domain::shape::Shape;

#[path = "served_tests.rs"]
mod served;

/// Pages of the memory that these tests use.
const PAGES: u64 = 256;
const MIB: usize = PAGES as usize * PAGE_SIZE;

pub(super) fn origin() -> Origin {
    let provenance = Provenance {
        engine: "qemu-tcg".to_owned(),
        vmm_version: "7.2.22".to_owned(),
        host_kernel: "6.1.0-18-cloud-amd64".to_owned(),
        guest_kernel: "6.1.0-18-cloud-amd64".to_owned(),
        cpu_model: "max".to_owned(),
    };
    Origin { shape: Shape { vcpus: 2, memory_mib: 1 }, provenance }
}

/// What a VM is for this module: a private mapping of a base, here in the test's own process.
pub(super) struct Mapped {
    memory: *mut u8,
    bytes: usize,
    pub guest: GuestMemory,
}

impl Mapped {
    pub fn new(base: &File) -> Self {
        use std::os::fd::AsRawFd;
        let bytes = base.metadata().unwrap().len() as usize;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let fd = base.as_raw_fd();
        // SAFETY: the kernel chooses the address, so nothing that exists is replaced.
        let memory = unsafe {
            libc::mmap(std::ptr::null_mut(), bytes, protection, libc::MAP_PRIVATE, fd, 0)
        };
        assert_ne!(memory, libc::MAP_FAILED);
        let guest = GuestMemory::find(std::process::id() as i32, base).unwrap();
        Self { memory: memory.cast(), bytes, guest }
    }

    /// Ends the VM and starts it again: a process that maps one base twice is no VM.
    fn restored(self, lineage: &Lineage) -> Self {
        drop(self);
        let mapped = Self::new(lineage.base());
        inject(lineage, &mapped.guest).unwrap();
        mapped
    }

    pub fn content(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is this long, lives as long as `self`, and is lent to one at a time.
        // That the kernel writes into it, as it does in `inject`, is over by then.
        unsafe { std::slice::from_raw_parts_mut(self.memory, self.bytes) }
    }

    pub fn fill(&mut self, page: u64, byte: u8) {
        let start = page as usize * PAGE_SIZE;
        self.content()[start..start + PAGE_SIZE].fill(byte);
    }

    fn give_back(&mut self, page: u64) {
        let start = self.content()[page as usize * PAGE_SIZE..].as_mut_ptr();
        // SAFETY: the page is one of the mapping, of which no reference is held.
        let result = unsafe { libc::madvise(start.cast(), PAGE_SIZE, libc::MADV_DONTNEED) };
        assert_eq!(result, 0);
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` and no reference to it outlives `self`.
        unsafe { libc::munmap(self.memory.cast(), self.bytes) };
    }
}

/// Directories of snapshots on one file system.
struct Snapshots(TempDir);

impl Snapshots {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn dir(&self) -> PathBuf {
        let dir = self.0.path().join(BuildId::random().to_string());
        fs::create_dir(&dir).unwrap();
        dir
    }

    /// A base of zeros but for some pages, and the directory it is in.
    fn sealed(&self, pages: &[(u64, u8)]) -> (PathBuf, Lineage) {
        let dir = self.dir();
        let file = File::create(dir.join("memfile")).unwrap();
        file.set_len(MIB as u64).unwrap();
        for (page, byte) in pages {
            file.write_all_at(&[*byte; PAGE_SIZE], page * PAGE_SIZE as u64).unwrap();
        }
        let Origin { shape, provenance } = origin();
        let lineage = Lineage::seal(&dir, shape, provenance, Durability::Synced).unwrap();
        (dir, lineage)
    }

    fn capture(&self, vm: &Mapped, parent: &Lineage) -> (PathBuf, Captured) {
        let dir = self.dir();
        (dir.clone(), capture_into(&dir, vm, parent).unwrap())
    }
}

fn capture_into(dir: &Path, vm: &Mapped, parent: &Lineage) -> Result<Captured, MemoryError> {
    capture(&vm.guest, parent, dir, BuildId::random(), origin(), Durability::Cached)
}

fn content(lineage: &Lineage) -> Vec<u8> {
    let mut content = vec![1; lineage.memory_bytes() as usize];
    lineage.read(&[0..lineage.memory_bytes() / PAGE_SIZE as u64], &mut content).unwrap();
    content
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn never() -> bool {
    false
}

#[test]
fn a_sealed_memory_is_the_vms_own_file() {
    let snapshots = Snapshots::new();
    let (dir, _) = snapshots.sealed(&[(3, 7)]);
    let lineage = Lineage::open(&dir).unwrap();
    assert_eq!(lineage.origin(), Some(&origin()));
    assert_eq!((lineage.diffs(), lineage.patches().count()), (0, 0));
    assert_eq!(lineage.base_path(), dir.join("memfile"));
    assert_eq!(content(&lineage)[3 * PAGE_SIZE], 7);
    assert!(lineage.usage().unwrap().bytes < 16 * PAGE_SIZE as u64, "the base stays sparse");
}

#[test]
fn a_memory_of_another_shape_is_not_sealed() {
    let snapshots = Snapshots::new();
    let dir = snapshots.dir();
    File::create(dir.join("memfile")).unwrap().set_len(2 << 20).unwrap();
    let Origin { shape, provenance } = origin();
    let sealed = Lineage::seal(&dir, shape, provenance, Durability::Cached);
    assert!(matches!(sealed, Err(MemoryError::Length { found: 0x20_0000, .. })), "{sealed:?}");
    assert_eq!(names(&dir), ["memfile"]);
}

#[test]
fn only_what_changed_is_written() {
    let snapshots = Snapshots::new();
    let (_, base) = snapshots.sealed(&[(1, 1), (2, 2), (3, 3)]);
    let mut vm = Mapped::new(base.base());
    vm.fill(1, 1);
    vm.fill(2, 9);
    vm.fill(3, 0);
    vm.fill(100, 8);
    let (dir, captured) = snapshots.capture(&vm, &base);
    assert_eq!(captured.pages_changed, 3, "rewriting the same is no change");
    assert_eq!(captured.bytes_written, 2 * PAGE_SIZE as u64, "a zero page is not stored");
    assert_eq!(captured.lineage.diffs(), 1);
    assert!(content(&Lineage::open(&dir).unwrap()) == vm.content());
}

#[test]
fn pages_that_were_injected_are_not_written_again() {
    let snapshots = Snapshots::new();
    let (_, base) = snapshots.sealed(&[]);
    let mut first = Mapped::new(base.base());
    (10..60).for_each(|page| first.fill(page, 5));
    let (_, parent) = snapshots.capture(&first, &base);
    let mut second = first.restored(&parent.lineage);
    second.fill(20, 6);
    let (dir, child) = snapshots.capture(&second, &parent.lineage);
    assert_eq!((child.pages_changed, child.bytes_written), (1, PAGE_SIZE as u64));
    assert_eq!(child.lineage.diffs(), 2);
    assert!(content(&Lineage::open(&dir).unwrap()) == second.content());
}

#[test]
fn all_that_was_changed_can_be_one_diff_again() {
    let snapshots = Snapshots::new();
    let (_, base) = snapshots.sealed(&[(3, 9)]);
    let mut vm = Mapped::new(base.base());
    vm.fill(10, 1);
    let (_, first) = snapshots.capture(&vm, &base);
    vm.fill(11, 2);
    let (_, second) = snapshots.capture(&vm, &first.lineage);
    vm.fill(12, 3);
    let (dir, known, build) = (snapshots.dir(), &second.lineage, BuildId::random());
    let merged = capture_merged(&vm.guest, known, &dir, build, origin(), Durability::Cached);
    let merged = merged.unwrap();
    assert_eq!((second.lineage.diffs(), merged.lineage.diffs()), (2, 1));
    assert!(content(&Lineage::open(&dir).unwrap()) == vm.content());
}

#[test]
fn without_a_change_there_is_no_new_generation() {
    let snapshots = Snapshots::new();
    let (_, base) = snapshots.sealed(&[(1, 1)]);
    let vm = Mapped::new(base.base());
    let (dir, captured) = snapshots.capture(&vm, &base);
    assert_eq!((captured.pages_changed, captured.lineage.diffs()), (0, 0));
    assert_eq!(names(&dir), ["memfile", "memfile.header"]);
}

#[test]
fn a_page_that_was_given_back_is_the_bases_again() {
    let snapshots = Snapshots::new();
    let (_, base) = snapshots.sealed(&[(1, 1)]);
    let mut vm = Mapped::new(base.base());
    vm.fill(1, 2);
    let (_, parent) = snapshots.capture(&vm, &base);
    let mut vm = vm.restored(&parent.lineage);
    vm.give_back(1);
    let (dir, captured) = snapshots.capture(&vm, &parent.lineage);
    assert_eq!(captured.lineage.diffs(), 0, "nothing needs the parent's diff any more");
    assert!(content(&Lineage::open(&dir).unwrap()) == vm.content());
    assert_eq!(vm.content()[PAGE_SIZE], 1);
}

#[test]
fn a_directory_does_without_those_it_builds_on() {
    let snapshots = Snapshots::new();
    let (base_dir, base) = snapshots.sealed(&[(1, 1)]);
    let mut vm = Mapped::new(base.base());
    vm.fill(2, 2);
    let (dir, captured) = snapshots.capture(&vm, &base);
    let before = captured.lineage.usage().unwrap();
    assert!(before.shared_bytes > 0 && before.shared_bytes < before.bytes, "{before:?}");
    fs::remove_dir_all(base_dir).unwrap();
    assert_eq!(captured.lineage.usage().unwrap(), Usage { shared_bytes: 0, ..before });
    assert!(content(&Lineage::open(&dir).unwrap()) == vm.content());
}

#[test]
fn a_lineage_outlives_the_move_of_its_directory() {
    let snapshots = Snapshots::new();
    let (dir, base) = snapshots.sealed(&[(1, 1)]);
    fs::rename(&dir, snapshots.0.path().join("moved")).unwrap();
    let mut vm = Mapped::new(base.base());
    vm.fill(2, 2);
    let (dir, _) = snapshots.capture(&vm, &base);
    assert!(content(&Lineage::open(&dir).unwrap()) == vm.content());
}

#[test]
fn another_base_is_refused() {
    let snapshots = Snapshots::new();
    let (_, one) = snapshots.sealed(&[(1, 1)]);
    let (_, other) = snapshots.sealed(&[(1, 1)]);
    let vm = Mapped::new(one.base());
    let dir = snapshots.dir();
    let refused = capture_into(&dir, &vm, &other);
    assert!(matches!(refused, Err(MemoryError::OtherBase { .. })), "{refused:?}");
    assert!(matches!(inject(&other, &vm.guest), Err(MemoryError::OtherBase { .. })));
    assert_eq!(names(&dir), [""; 0]);
}

#[test]
fn a_failed_capture_leaves_nothing() {
    let snapshots = Snapshots::new();
    let (_, base) = snapshots.sealed(&[]);
    let mut vm = Mapped::new(base.base());
    vm.fill(1, 1);
    let dir = snapshots.dir();
    // Another base is in the way of the link, which comes after the diff.
    fs::write(dir.join("memfile"), "in the way").unwrap();
    let failed = capture_into(&dir, &vm, &base).unwrap_err();
    let MemoryError::Io { verb: "link", source, .. } = failed else { panic!("{failed:?}") };
    assert_eq!(source.kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(names(&dir), ["memfile"]);
    assert_eq!(fs::read(dir.join("memfile")).unwrap(), b"in the way");
}

#[test]
fn a_full_disk_is_told_apart() {
    let snapshots = Snapshots::new();
    let (_, base) = snapshots.sealed(&[]);
    let mut vm = Mapped::new(base.base());
    vm.fill(1, 1);
    let dir = snapshots.dir();
    let build = BuildId::random();
    // full(4): a file that has no room.
    let full = dir.join(format!("memfile.{build}.new"));
    std::os::unix::fs::symlink("/dev/full", &full).unwrap();
    let failed = capture(&vm.guest, &base, &dir, build, origin(), Durability::Cached).unwrap_err();
    let MemoryError::Io { source, .. } = failed else { panic!("{failed:?}") };
    assert_eq!(source.kind(), io::ErrorKind::StorageFull);
    assert_eq!(names(&dir), [""; 0]);
}

#[test]
fn a_full_memfile_alone_is_read_and_built_on() {
    let snapshots = Snapshots::new();
    let (dir, _) = snapshots.sealed(&[(5, 5)]);
    fs::remove_file(dir.join("memfile.header")).unwrap();
    let bare = Lineage::open(&dir).unwrap();
    assert_eq!((bare.origin(), bare.memory_bytes()), (None, MIB as u64));
    let copy = snapshots.dir();
    bare.link_into(&copy, Durability::Cached).unwrap();
    assert_eq!(names(&copy), ["memfile"]);
    let mut vm = Mapped::new(bare.base());
    vm.fill(6, 6);
    let (_, captured) = snapshots.capture(&vm, &bare);
    assert!(content(&captured.lineage) == vm.content());
    let same = collapse(&bare, &dir, BuildId::random(), &never, Durability::Cached).unwrap();
    assert_eq!(same.base_path(), dir.join("memfile"), "one file is collapsed already");
}

#[test]
fn work_that_was_broken_off_does_not_look_complete() {
    let snapshots = Snapshots::new();
    let (dir, _) = snapshots.sealed(&[]);
    fs::remove_file(dir.join("memfile.header")).unwrap();
    for stray in ["memfile.header.new", "memfile.0123456789abcdef"] {
        fs::write(dir.join(stray), "").unwrap();
        let opened = Lineage::open(&dir);
        assert!(matches!(opened, Err(MemoryError::Incomplete { .. })), "{stray}: {opened:?}");
        assert!(Lineage::remove_strays(&dir).is_err(), "it would make the memory look whole");
        fs::remove_file(dir.join(stray)).unwrap();
    }
    fs::write(dir.join("memfile"), "short").unwrap();
    assert!(matches!(Lineage::open(&dir), Err(MemoryError::NoMemory { found: 5, .. })));
}

#[test]
fn a_generation_that_is_missing_or_cut_is_noticed() {
    let snapshots = Snapshots::new();
    let (dir, _) = snapshots.sealed(&[]);
    File::options().write(true).open(dir.join("memfile")).unwrap().set_len(4096).unwrap();
    assert!(matches!(Lineage::open(&dir), Err(MemoryError::Length { found: 4096, .. })));
    fs::remove_file(dir.join("memfile")).unwrap();
    let missing = Lineage::open(&dir).unwrap_err();
    assert!(matches!(missing, MemoryError::Io { verb: "open", .. }), "{missing:?}");
}

#[test]
fn a_collapse_leaves_one_sparse_base_and_no_strays() {
    let snapshots = Snapshots::new();
    let (_, base) = snapshots.sealed(&[(1, 1), (2, 2)]);
    let mut vm = Mapped::new(base.base());
    vm.fill(2, 0);
    vm.fill(200, 3);
    let (dir, captured) = snapshots.capture(&vm, &base);
    fs::write(dir.join("memfile.left.new"), "").unwrap();
    fs::write(dir.join("disk"), "").unwrap();
    let build = BuildId::random();
    let one = collapse(&captured.lineage, &dir, build, &never, Durability::Synced).unwrap();
    let name = format!("memfile.{build}");
    assert_eq!(names(&dir), ["disk", name.as_str(), "memfile.header"]);
    assert_eq!(one.origin(), Some(&origin()));
    assert!(content(&one) == vm.content());
    assert_eq!(one.usage().unwrap(), Usage { bytes: 2 * PAGE_SIZE as u64, shared_bytes: 0 });
    let mode = |lineage: &Lineage| lineage.base().metadata().unwrap().mode();
    assert_eq!(mode(&one), mode(&base), "VMs can open the one if they could open the other");
}

#[test]
fn a_cancelled_collapse_leaves_what_there_was() {
    let snapshots = Snapshots::new();
    let (_, base) = snapshots.sealed(&[(1, 1)]);
    let mut vm = Mapped::new(base.base());
    vm.fill(2, 2);
    let (dir, captured) = snapshots.capture(&vm, &base);
    let before = names(&dir);
    let cancelled =
        collapse(&captured.lineage, &dir, BuildId::random(), &|| true, Durability::Cached);
    assert!(matches!(cancelled, Err(MemoryError::Cancelled)), "{cancelled:?}");
    assert_eq!(names(&dir), before);
    assert!(content(&Lineage::open(&dir).unwrap()) == vm.content());
}

#[test]
fn a_vm_on_the_old_base_is_captured_after_a_collapse() {
    let snapshots = Snapshots::new();
    let (_, base) = snapshots.sealed(&[(1, 1)]);
    let mut vm = Mapped::new(base.base());
    vm.fill(2, 2);
    let (dir, parent) = snapshots.capture(&vm, &base);
    let own = snapshots.dir();
    parent.lineage.link_into(&own, Durability::Cached).unwrap();
    let mut vm = vm.restored(&parent.lineage);
    let collapsed =
        collapse(&parent.lineage, &dir, BuildId::random(), &never, Durability::Cached).unwrap();
    vm.fill(3, 3);
    assert!(capture_into(&snapshots.dir(), &vm, &collapsed).is_err());
    let (_, captured) = snapshots.capture(&vm, &Lineage::open(&own).unwrap());
    assert!(content(&captured.lineage) == vm.content());
}

#[test]
fn a_collapse_that_a_crash_ended_is_undone_or_finished() {
    let snapshots = Snapshots::new();
    let (_, base) = snapshots.sealed(&[(1, 1)]);
    let mut vm = Mapped::new(base.base());
    vm.fill(2, 2);
    let (dir, captured) = snapshots.capture(&vm, &base);
    let before = names(&dir);

    // The new base has its name, and the header does not have it yet.
    fs::write(dir.join("memfile.0123456789abcdef"), "").unwrap();
    fs::write(dir.join("memfile.header.new"), "").unwrap();
    assert!(content(&Lineage::open(&dir).unwrap()) == vm.content());
    Lineage::remove_strays(&dir).unwrap();
    assert_eq!(names(&dir), before);

    // The new header is in place, and the old generations are still there.
    let saved = snapshots.dir();
    captured.lineage.link_into(&saved, Durability::Cached).unwrap();
    collapse(&captured.lineage, &dir, BuildId::random(), &never, Durability::Cached).unwrap();
    let after = names(&dir);
    for old in before.iter().filter(|name| *name != "memfile.header") {
        fs::hard_link(saved.join(old), dir.join(old)).unwrap();
    }
    assert!(content(&Lineage::open(&dir).unwrap()) == vm.content());
    Lineage::remove_strays(&dir).unwrap();
    assert_eq!(names(&dir), after);
}

/// What happens to a chain of snapshots.
#[derive(Debug, Clone)]
enum Step {
    /// The VM writes pages of one byte, then is captured.
    Capture(Vec<(u64, u8)>),
    /// The VM is restored from the last snapshot.
    Restore,
    /// The last snapshot is collapsed, and the VM restored from it.
    Collapse,
    /// The last snapshot is linked elsewhere, removed, and opened there.
    Move,
}

fn step() -> impl Strategy<Value = Step> {
    // Few different bytes, so that zero pages and pages as they were are frequent.
    let writes = prop::collection::vec((0..PAGES, 0..4u8), 0..40);
    prop_oneof![
        6 => writes.prop_map(Step::Capture),
        2 => Just(Step::Restore),
        1 => Just(Step::Collapse),
        1 => Just(Step::Move),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever is done to a chain: what is read back is what the VM had, byte for byte.
    #[test]
    fn a_chain_agrees_with_the_model(
        base in prop::collection::vec((0..PAGES, 0..4u8), 0..100),
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let snapshots = Snapshots::new();
        let (mut dir, mut lineage) = snapshots.sealed(&base);
        let mut model = content(&lineage);
        let mut vm = Mapped::new(lineage.base());
        for step in steps {
            match step {
                Step::Capture(writes) => {
                    let before = model.clone();
                    for (page, byte) in writes {
                        vm.fill(page, byte);
                        let start = page as usize * PAGE_SIZE;
                        model[start..start + PAGE_SIZE].fill(byte);
                    }
                    let (next, captured) = snapshots.capture(&vm, &lineage);
                    fs::remove_dir_all(&dir).unwrap();
                    let changed = model
                        .chunks_exact(PAGE_SIZE)
                        .zip(before.chunks_exact(PAGE_SIZE))
                        .filter(|(now, before)| now != before);
                    let stored = changed.clone().filter(|(now, _)| now[0] != 0).count();
                    prop_assert_eq!(captured.pages_changed, changed.count() as u64);
                    prop_assert_eq!(captured.bytes_written, (stored * PAGE_SIZE) as u64);
                    (dir, lineage) = (next, captured.lineage);
                }
                Step::Restore => vm = vm.restored(&lineage),
                Step::Collapse => {
                    lineage = collapse(
                        &lineage, &dir, BuildId::random(), &never, Durability::Cached,
                    ).unwrap();
                    prop_assert_eq!(lineage.diffs(), 0);
                    vm = vm.restored(&lineage);
                }
                Step::Move => {
                    let next = snapshots.dir();
                    lineage.link_into(&next, Durability::Cached).unwrap();
                    fs::remove_dir_all(&dir).unwrap();
                    lineage = Lineage::open(&next).unwrap();
                    dir = next;
                }
            }
            prop_assert!(content(&lineage) == model);
            prop_assert!(content(&Lineage::open(&dir).unwrap()) == model);
            prop_assert!(vm.content() == model);
        }
    }
}

#[test]
fn more_generations_than_are_usual_are_read() {
    let snapshots = Snapshots::new();
    let (_, mut lineage) = snapshots.sealed(&[]);
    let mut vm = Mapped::new(lineage.base());
    for page in 0..30 {
        vm.fill(page, 1 + page as u8);
        lineage = snapshots.capture(&vm, &lineage).1.lineage;
    }
    assert_eq!(lineage.diffs(), 30);
    assert!(content(&lineage) == vm.content());
    let before = vm.content().to_vec();
    assert!(vm.restored(&lineage).content() == before);
}

/// Prints what the operations cost. Run it with `--release --ignored --nocapture`.
#[test]
#[ignore = "a measurement: there is nothing to fail but the time it takes"]
fn costs() {
    const MEMORY_MIB: u32 = 512;
    let snapshots = Snapshots::new();
    let dir = snapshots.dir();
    let file = File::create(dir.join("memfile")).unwrap();
    // As a booted guest leaves it: part of the memory was never touched.
    for mib in 0..200 {
        file.write_all_at(&[7; MIB], mib * MIB as u64).unwrap();
    }
    file.set_len(u64::from(MEMORY_MIB) << 20).unwrap();
    let provenance = origin().provenance;
    let origin = Origin { shape: Shape { vcpus: 1, memory_mib: MEMORY_MIB }, provenance };
    let sealed = Lineage::seal(&dir, origin.shape, origin.provenance.clone(), Durability::Synced);
    let base = sealed.unwrap();
    let timed = |what: &str, work: &mut dyn FnMut()| {
        let start = std::time::Instant::now();
        work();
        println!("{what:50} {:8.2} ms", start.elapsed().as_secs_f64() * 1e3);
    };
    let take = |vm: &Mapped, parent: &Lineage, durability| {
        let build = BuildId::random();
        capture(&vm.guest, parent, &snapshots.dir(), build, origin.clone(), durability).unwrap()
    };
    for (mib, every) in [(0, 1), (1, 1), (5, 1), (5, 16), (100, 1), (100, 4)] {
        println!("{mib} MiB changed, every {every}. page");
        let mut vm = Mapped::new(base.base());
        (0..mib * PAGES).for_each(|page| vm.fill(page * every, 8 + (page % 240) as u8));
        timed("  changed", &mut || drop(vm.guest.changed().unwrap()));
        timed("  capture, cached", &mut || drop(take(&vm, &base, Durability::Cached)));
        timed("  capture, synced", &mut || drop(take(&vm, &base, Durability::Synced)));
        let captured = take(&vm, &base, Durability::Cached);
        assert_eq!(captured.bytes_written, mib * MIB as u64);
        drop(vm);
        let vm = Mapped::new(base.base());
        timed("  inject", &mut || assert!(inject(&captured.lineage, &vm.guest).is_ok()));
        timed("  capture of nothing new on top", &mut || {
            let again = take(&vm, &captured.lineage, Durability::Cached);
            assert_eq!(again.pages_changed, 0);
        });
        timed("  open", &mut || {
            drop(Lineage::open(captured.lineage.base_path().parent().unwrap()).unwrap())
        });
        timed("  collapse, cached", &mut || {
            let dir = snapshots.dir();
            let build = BuildId::random();
            collapse(&captured.lineage, &dir, build, &never, Durability::Cached).unwrap();
        });
    }
}

#[path = "touched_tests.rs"]
mod touched;
