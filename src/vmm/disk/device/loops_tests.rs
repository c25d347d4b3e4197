use std::os::unix::fs::FileExt;

use super::*;

/// Loop devices, or `None` where this process may not use them.
fn available() -> bool {
    let control = File::options().read(true).write(true).open("/dev/loop-control");
    match control {
        Ok(_) => true,
        Err(error) => {
            eprintln!("skipped: no loop devices: {error}");
            false
        }
    }
}

fn device_of(attached: &Loop) -> &File {
    attached._pin.downcast_ref().expect("a real loop device is pinned by a file")
}

fn file() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    std::fs::write(&path, vec![7; 64 * 1024]).unwrap();
    (dir, path)
}

fn id(file: &File) -> FileId {
    use std::os::unix::fs::MetadataExt;
    let data = file.metadata().unwrap();
    FileId { dev: data.dev(), ino: data.ino() }
}

#[test]
fn a_loop_device_shows_its_file_and_is_found_again() {
    if !available() {
        return;
    }
    let (_dir, path) = file();
    let shared = File::open(&path).unwrap();
    let tag = format!("nestbox-test-{}", std::process::id());
    assert!(attached(id(&shared), &tag).unwrap().is_none());
    let first = attach(&shared, Access::Read, &tag).unwrap();
    let mut bytes = [0; 512];
    device_of(&first).read_exact_at(&mut bytes, 4096).unwrap();
    assert_eq!(bytes, [7; 512]);
    let found = backing(first.number).unwrap();
    assert_eq!(found, Backing { file: id(&shared), path, access: Access::Read, tag: tag.clone() });

    assert!(attached(id(&shared), "another").unwrap().is_none());
    let again = attached(id(&shared), &tag).unwrap().unwrap();
    assert_eq!(again.number, first.number);
    drop(first);
    assert_eq!(backing(again.number).unwrap().tag, tag, "one user is left");
    drop(again);
    assert!(attached(id(&shared), &tag).unwrap().is_none(), "the kernel has detached it");
}

#[test]
fn a_lock_lasts_as_long_as_the_loop_device() {
    if !available() {
        return;
    }
    let (_dir, path) = file();
    let file = File::options().read(true).write(true).open(&path).unwrap();
    file.try_lock().unwrap();
    let attached = attach(&file, Access::Write, "nestbox-test").unwrap();
    drop(file);
    let other = File::open(&path).unwrap();
    assert!(other.try_lock().is_err(), "the daemon is gone, the loop device is not");
    drop(attached);
    other.try_lock().expect("nobody uses it any more");
}
