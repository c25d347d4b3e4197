//! A host's disk that gets full, on a real kernel.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{FallocateFlags, fallocate};
use nix::mount::{MsFlags, mount, umount};

use super::lab_tests::{Lab, MIB, SIZE, content, open};
use super::*;

/// A file system of so many MiB.
fn small_disk(lab: &Lab, mib: usize) -> PathBuf {
    let small = lab.path("small");
    std::fs::create_dir(&small).unwrap();
    let options = format!("size={mib}m");
    mount(Some("tmpfs"), &small, Some("tmpfs"), MsFlags::empty(), Some(options.as_str())).unwrap();
    small
}

/// Takes all space that is left.
fn fill(small: &Path) -> File {
    let file = File::create(small.join("filling")).unwrap();
    let mut at = 0;
    for step in [MIB as i64, 4096] {
        while fallocate(&file, FallocateFlags::empty(), at, step).is_ok() {
            at += step;
        }
    }
    file
}

/// Writes as a VM does, which flushes then.
fn write(file: &File, at: usize, bytes: usize, fill: u8) -> io::Result<()> {
    file.write_all_at(&vec![fill; bytes], at as u64)?;
    file.sync_all()
}

fn only(fitted: Vec<(String, Condition)>) -> Condition {
    assert_eq!(fitted.len(), 1, "{fitted:?}");
    fitted[0].1
}

#[tokio::test]
async fn dm_a_full_host_is_told_to_the_guest_and_what_it_has_stays() {
    let Some(lab) = Lab::new() else { return };
    let small = small_disk(&lab, 40);
    let overlay = small.join("a.cow");
    let device = lab.devices.create("a", &lab.layers(&[]), &overlay, SIZE as u64).await.unwrap();
    let mut model = std::fs::read(lab.path("rootfs")).unwrap();
    let file = open(&device);
    write(&file, 0, MIB, 1).unwrap();
    model[..MIB].fill(1);

    assert_eq!(only(lab.devices.fit(Space::Short).unwrap()), Condition::Good);
    drop(fill(&small));
    // What was reserved can still be written.
    write(&file, 4 * MIB, 8 * MIB, 2).unwrap();
    model[4 * MIB..12 * MIB].fill(2);
    // More cannot, and that is told.
    write(&file, 20 * MIB, 30 * MIB, 3).unwrap_err();
    assert_eq!(only(lab.devices.fit(Space::Short).unwrap()), Condition::Full);
    device.health().unwrap();
    drop(file);
    let shown = content(&device);
    assert!(shown[..20 * MIB] == model[..20 * MIB], "what was written before is there");
    std::fs::copy(&overlay, lab.path("kept")).unwrap();
    device.remove(None).await.unwrap();
    umount(&small).unwrap();

    // Put together anew it takes writes again.
    let (layers, path) = (lab.layers(&["kept"]), lab.path("b.cow"));
    let again = lab.devices.create("b", &layers, &path, SIZE as u64).await.unwrap();
    let shown = content(&again);
    assert!(shown[..20 * MIB] == model[..20 * MIB]);
    write(&open(&again), 20 * MIB, 30 * MIB, 4).unwrap();
    again.health().unwrap();
    again.remove(None).await.unwrap();
    assert_eq!(lab.remains(), Vec::<String>::new());
}

#[tokio::test]
async fn dm_a_disk_grows_while_space_is_short_and_is_whole_afterwards() {
    let Some(lab) = Lab::new() else { return };
    let mut model = std::fs::read(lab.path("rootfs")).unwrap();
    let overlay = lab.path("a.cow");
    let device = lab.devices.create("a", &lab.layers(&[]), &overlay, SIZE as u64).await.unwrap();
    let file = open(&device);
    // Each piece fits into what is reserved, and all of them do not: the disk grows between them.
    for piece in 0..8 {
        assert_eq!(only(lab.devices.fit(Space::Short).unwrap()), Condition::Good);
        let at = piece * 7 * MIB;
        write(&file, at, 7 * MIB, piece as u8 + 1).unwrap();
        model[at..at + 7 * MIB].fill(piece as u8 + 1);
    }
    assert_eq!(only(lab.devices.fit(Space::Plenty).unwrap()), Condition::Good);
    write(&file, 56 * MIB, 8 * MIB, 9).unwrap();
    model[56 * MIB..].fill(9);
    drop(file);
    assert!(content(&device) == model);
    device.health().unwrap();
    device.remove(None).await.unwrap();
    assert_eq!(lab.remains(), Vec::<String>::new());
}

/// The kernel writes the next table when one is full: wherever a device ends, it is not given up.
#[tokio::test]
async fn dm_no_end_of_a_device_has_the_kernel_give_it_up() {
    let Some(lab) = Lab::new() else { return };
    for chunks in (250..262).chain(510..520) {
        let overlay = lab.path("a.cow");
        let layers = lab.layers(&[]);
        let device = lab.devices.create("a", &layers, &overlay, SIZE as u64).await.unwrap();
        let stack = &lab.devices.stack;
        let table = stack.kernel.table(&device.top()).unwrap().unwrap();
        let end = crate::vmm::storage::disk::cow::whole(chunks * 4096);
        stack.kernel.set_limit(table.cow, Some(end)).unwrap();
        let file = open(&device);
        write(&file, 0, 3 * MIB, 7).unwrap_err();
        drop(file);
        assert_eq!(only(lab.devices.fit(Space::Plenty).unwrap()), Condition::Full, "{chunks}");
        device.remove(None).await.unwrap();
    }
    assert_eq!(lab.remains(), Vec::<String>::new());
}
