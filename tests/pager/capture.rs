//! What is written of a memory that a pager served.

use nestbox::vmm::storage::memory::{BuildId, Durability, PAGE_SIZE, capture_merged};

use super::lab::{Lab, content, origin, pages};

#[test]
fn what_was_only_read_is_not_written() {
    let lab = Lab::new();
    let base = lab.base(256, &[0..pages(128)]);
    let mut restored = lab.restore(&base).served();
    restored.vm.touch(0, pages(64), "sequential", 1);
    restored.vm.write(pages(32), pages(1), 77);
    let captured = lab.capture(&restored, &base);
    let header = captured.lineage.header().unwrap().unwrap().len() as u64;
    println!("1 MiB changed, {} bytes and a header of {header} written", captured.bytes_written);
    assert_eq!((captured.bytes_written, captured.pages_changed), (1 << 20, pages(1)));
    assert!(header < (1 << 20) / 20, "the header is within the twentieth that may be more");
    let mut again = lab.restore(&captured.lineage);
    assert!(again.vm.read(pages(30), pages(10)) == restored.vm.read(pages(30), pages(10)));
    assert_eq!(again.vm.read(pages(32), 1)[0], 77);
}

#[test]
fn a_vm_is_captured_and_goes_on_and_is_captured_again() {
    let lab = Lab::new();
    let base = lab.base(8, &[0..1000]);
    let mut restored = lab.restore(&base).served();
    restored.vm.write(10, 5, 1);
    let first = lab.capture(&restored, &base).lineage;
    restored.vm.write(12, 5, 2);
    restored.vm.touch(100, 500, "random", 2);
    // What the pager serves is the base still, and what changed is known on top of the snapshot.
    let second = lab.capture(&restored, &first);
    assert_eq!((second.bytes_written, second.lineage.diffs()), (5 * PAGE_SIZE as u64, 2));
    let found = restored.vm.read(0, pages(8));
    assert!(content(&second.lineage) == found);
}

#[test]
fn what_was_given_back_is_zero_after_the_next_restore() {
    let lab = Lab::new();
    let base = lab.base(8, &[0..2048]);
    let mut restored = lab.restore(&base).served();
    restored.vm.touch(100, 10, "sequential", 1);
    restored.vm.give_back(105, 400);
    restored.vm.write(200, 1, 3);
    // Read after it is captured, or it would not be absent.
    let captured = lab.capture(&restored, &base);
    assert_eq!(captured.bytes_written, PAGE_SIZE as u64);
    let found = restored.vm.read(0, pages(8));
    assert!(content(&captured.lineage) == found);
    let mut again = lab.restore(&captured.lineage);
    assert!(again.vm.read(0, pages(8)) == found);
}

#[test]
fn a_chain_is_folded_without_what_was_never_touched_being_lost() {
    let lab = Lab::new();
    let mut lineage = lab.base(8, &[0..500]);
    for round in 0..6u8 {
        let mut restored = lab.restore(&lineage).served();
        restored.vm.write(100 * u64::from(round), 30, 10 + round);
        lineage = lab.capture(&restored, &lineage).lineage;
    }
    assert_eq!(lineage.diffs(), 6);
    let mut restored = lab.restore(&lineage).served();
    restored.vm.write(110, 1, 99);
    restored.vm.touch(200, 30, "random", 1);
    let (dir, build) = (lab.dir(), BuildId::random());
    let guest = restored.guest();
    let merged = capture_merged(&guest, &lineage, &dir, build, origin(8), Durability::Cached);
    let merged = merged.unwrap();
    assert_eq!((merged.lineage.diffs(), merged.pages_changed), (1, 1));
    assert_eq!(merged.bytes_written, 180 * PAGE_SIZE as u64);
    let mut again = lab.restore(&merged.lineage);
    assert!(again.vm.read(0, pages(8)) == restored.vm.read(0, pages(8)));
}
