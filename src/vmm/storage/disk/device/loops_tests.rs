use std::os::unix::fs::FileExt;

use super::*;
use crate::skip::skip;

/// Whether there are loop devices; skips the test if not.
fn available() -> bool {
    let control = File::options().read(true).write(true).open("/dev/loop-control");
    match control {
        Ok(_) => true,
        Err(error) => {
            skip(&format!("no loop devices ({error}): `modprobe loop`, and run the tests as root"));
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

/// Waits: another test that looks for its own loop device has this one open for a moment.
fn until(holds: impl Fn() -> bool) {
    let begun = std::time::Instant::now();
    while !holds() {
        assert!(begun.elapsed().as_secs() < 5, "it does not come to be");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
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
    until(|| attached(id(&shared), &tag).unwrap().is_none());
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
    until(|| other.try_lock().is_ok());
}

#[test]
fn a_device_without_a_node_is_opened_all_the_same() {
    if !available() {
        return;
    }
    let (_dir, path) = file();
    let attached = attach(&File::open(&path).unwrap(), Access::Read, "nestbox-test").unwrap();
    // One path names nothing, the other one something else.
    for usual in ["/dev/no-such-node", "/dev/null"] {
        let device = node::open(attached.number, Path::new(usual), Access::Read).unwrap();
        let mut bytes = [0; 512];
        device.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(bytes, [7; 512]);
    }
    let ours = |name: String| name.starts_with(".nestbox-");
    // Another test may be at it just now.
    until(|| {
        let left = fs::read_dir("/dev").unwrap().flatten();
        !left.map(|entry| entry.file_name().into_string().unwrap()).any(ours)
    });
}
