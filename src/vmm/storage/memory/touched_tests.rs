//! Memory that somebody has written to since it was made: it is not used, and what is built on it is
//! not either.

use super::*;

#[test]
fn a_base_that_was_written_to_is_refused() {
    let snapshots = Snapshots::new();
    let (dir, _) = snapshots.sealed(&[(1, 7)]);
    Lineage::open(&dir).unwrap();
    // The kernel's clock for files ticks every few milliseconds.
    std::thread::sleep(std::time::Duration::from_millis(20));
    let base = File::options().write(true).open(dir.join("memfile")).unwrap();
    base.write_all_at(b"x", 0).unwrap();
    let refused = Lineage::open(&dir);
    assert!(matches!(refused, Err(MemoryError::Touched { .. })), "{refused:?}");
}

/// Writes to a file through a descriptor that was open before, until the file says that it was: the
/// kernel's clock for files ticks every few milliseconds.
fn tamper(file: &File) {
    let before = file.metadata().unwrap();
    let time = |data: &fs::Metadata| (data.mtime(), data.mtime_nsec());
    while time(&file.metadata().unwrap()) == time(&before) {
        file.write_all_at(b"evil", 0).unwrap();
    }
}

fn is_touched<T: std::fmt::Debug>(what: Result<T, MemoryError>) {
    assert!(matches!(what, Err(MemoryError::Touched { .. })), "{what:?}");
}

#[test]
fn a_base_that_was_written_to_is_refused_by_all_that_build_on_it() {
    let snapshots = Snapshots::new();
    let (dir, base) = snapshots.sealed(&[(1, 7)]);
    let writer = File::options().write(true).open(dir.join("memfile")).unwrap();
    let mut vm = Mapped::new(base.base());
    vm.fill(5, 5);
    let (child_dir, child) = snapshots.capture(&vm, &base);
    let grandchild = snapshots.dir();
    child.lineage.link_into(&grandchild, Durability::Cached).unwrap();

    tamper(&writer);
    // A header that is written from now on does not make it look new.
    let new = snapshots.dir();
    is_touched(capture_into(&new, &vm, &base));
    is_touched(capture_into(&new, &vm, &child.lineage));
    is_touched(child.lineage.link_into(&new, Durability::Cached));
    is_touched(collapse(&child.lineage, &new, BuildId::random(), &never, Durability::Cached));
    assert!(names(&new).is_empty(), "{:?}", names(&new));
    for dir in [&dir, &child_dir, &grandchild] {
        is_touched(Lineage::open(dir));
    }
    is_touched(child.lineage.check_untouched());
    let files = || child.lineage.files().iter().map(|file| file.try_clone().unwrap()).collect();
    let header = child.lineage.header().unwrap();
    is_touched(Lineage::from_files(header.as_deref(), files()));
}

#[test]
fn a_diff_that_was_written_to_is_refused_too() {
    let snapshots = Snapshots::new();
    let (_, base) = snapshots.sealed(&[]);
    let mut vm = Mapped::new(base.base());
    vm.fill(5, 5);
    let (dir, child) = snapshots.capture(&vm, &base);
    let diff = dir.join(child.lineage.generations()[1].name.to_string());
    tamper(&File::options().write(true).open(diff).unwrap());
    is_touched(Lineage::open(&dir));
    is_touched(child.lineage.link_into(&snapshots.dir(), Durability::Cached));
}

/// Replaces a header by one as the version before has written it.
fn make_old(dir: &Path) {
    let header = dir.join("memfile.header");
    let mut known = Header::parse(&fs::read(&header).unwrap()).unwrap();
    known.generations.iter_mut().for_each(|generation| generation.written = None);
    fs::write(&header, known.encode().unwrap()).unwrap();
}

#[test]
fn what_the_version_before_wrote_is_known_from_when_it_is_first_read() {
    let snapshots = Snapshots::new();
    let (dir, _) = snapshots.sealed(&[(1, 7)]);
    make_old(&dir);
    let old = Lineage::open(&dir).unwrap();
    let copy = snapshots.dir();
    old.link_into(&copy, Durability::Cached).unwrap();
    let known = Header::parse(&fs::read(copy.join("memfile.header")).unwrap()).unwrap();
    assert!(known.generations[0].written.is_some());

    tamper(&File::options().write(true).open(dir.join("memfile")).unwrap());
    is_touched(Lineage::open(&dir));
    is_touched(Lineage::open(&copy));
    is_touched(old.link_into(&snapshots.dir(), Durability::Cached));
}

#[test]
fn a_base_that_was_copied_elsewhere_is_known_by_what_it_is_there() {
    let snapshots = Snapshots::new();
    let (dir, base) = snapshots.sealed(&[(1, 7)]);
    // As an archive gives it back: with whole seconds.
    let path = dir.join("memfile");
    let seconds = std::time::UNIX_EPOCH
        + std::time::Duration::from_secs(
            u64::try_from(fs::metadata(&path).unwrap().mtime()).unwrap(),
        );
    let copy = dir.join("copy");
    fs::copy(&path, &copy).unwrap();
    fs::rename(&copy, &path).unwrap();
    File::options().write(true).open(&path).unwrap().set_modified(seconds).unwrap();
    assert!(content(&Lineage::open(&dir).unwrap()) == content(&base));

    // As an image on another file system is: the file is there before its header.
    let elsewhere = snapshots.dir();
    fs::copy(&path, elsewhere.join("memfile")).unwrap();
    let Origin { shape, provenance } = origin();
    Lineage::seal(&elsewhere, shape, provenance, Durability::Cached).unwrap();
    Lineage::open(&elsewhere).unwrap();
}
