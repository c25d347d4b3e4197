use std::os::unix::fs::MetadataExt;

use super::super::Device;
use super::super::fake_tests::{Bench, SIZE};
use super::*;

const A: &str = "nestbox-0-a";

fn fit(bench: &Bench, space: Space) -> Condition {
    let fitted = bench.devices().fit(space).unwrap();
    assert_eq!(fitted.len(), 1, "{fitted:?}");
    fitted[0].1
}

fn limit(bench: &Bench) -> Option<u64> {
    use super::super::kernel::Kernel;
    let table = bench.kernel.table(A).unwrap().unwrap();
    bench.kernel.limit(table.cow).unwrap()
}

fn blocks(device: &Device) -> u64 {
    std::fs::metadata(device.overlay()).unwrap().blocks() * 512
}

#[tokio::test]
async fn a_device_ends_where_its_file_has_blocks_while_space_is_short() {
    let bench = Bench::new();
    let device = bench.create("a", &[]).await.unwrap();
    assert_eq!(fit(&bench, Space::Plenty), Condition::Good);
    assert_eq!(limit(&bench), None);
    assert!(bench.kernel.calls("suspend").is_empty());

    // The file is smaller than a reserve, so it is reserved as a whole, but for its last table.
    assert_eq!(fit(&bench, Space::Short), Condition::Good);
    let end = limit(&bench).unwrap();
    let full = std::fs::metadata(device.overlay()).unwrap().len();
    assert_eq!(end, cow::whole(full));
    assert!(blocks(&device) >= end - 16 * 512, "{} of {end}", blocks(&device));
    assert_eq!(std::fs::metadata(device.overlay()).unwrap().len(), full, "its size stays");
    assert_eq!(bench.kernel.calls("suspend").len(), 1);
    assert_eq!(bench.kernel.calls("resume nestbox-0-a").len(), 2, "made, and limited");

    // There is enough ahead: nothing is done.
    fit(&bench, Space::Short);
    assert_eq!(bench.kernel.calls("limit").len(), 1);

    assert_eq!(fit(&bench, Space::Plenty), Condition::Good);
    assert_eq!(limit(&bench), None);
    device.remove(None).await.unwrap();
    assert!(bench.is_empty());
}

#[tokio::test]
async fn what_is_limited_grows_with_what_is_written_and_never_shrinks() {
    let bench = Bench::new();
    let _device = bench.create("a", &[]).await.unwrap();
    fit(&bench, Space::Short);
    let first = limit(&bench).unwrap();
    // More is in use than the file has, as if it were larger: there is nothing to reserve.
    let sectors = SIZE * 2 / 512;
    bench.kernel.say(A, &format!("{sectors}/{sectors} 16"));
    fit(&bench, Space::Short);
    assert_eq!(limit(&bench), Some(SIZE * 2));
    bench.kernel.say(A, "16/8192 16");
    fit(&bench, Space::Short);
    assert_eq!(limit(&bench), Some(SIZE * 2));
    assert!(first < SIZE * 2);
    assert_eq!(bench.kernel.calls("suspend").len(), 1, "growing disturbs nobody");
}

#[tokio::test]
async fn a_device_that_is_full_or_given_up_is_told_and_left_alone() {
    let bench = Bench::new();
    let device = bench.create("a", &[]).await.unwrap();
    fit(&bench, Space::Short);
    let end = limit(&bench);
    bench.kernel.say(A, "Overflow");
    for space in [Space::Short, Space::Plenty] {
        assert_eq!(fit(&bench, space), Condition::Full);
        assert_eq!(limit(&bench), end);
    }
    device.health().unwrap();
    bench.kernel.say(A, "Invalid");
    assert_eq!(fit(&bench, Space::Short), Condition::GivenUp);
}

#[tokio::test]
async fn a_device_that_cannot_be_limited_works_on() {
    use super::super::kernel::{Kernel, State};
    let bench = Bench::new();
    let _device = bench.create("a", &[]).await.unwrap();
    bench.kernel.fail("limit", nix::errno::Errno::EAGAIN);
    assert!(bench.devices().fit(Space::Short).unwrap().is_empty());
    assert_eq!(bench.kernel.find(A).unwrap().unwrap().state, State::Active);
    // The next round does it.
    assert_eq!(fit(&bench, Space::Short), Condition::Good);
    assert!(limit(&bench).is_some());
}

#[test]
fn a_size_never_ends_between_a_full_table_and_the_next() {
    // Chunk 0 is the header, 1 a table, 2 to 257 data, 258 the next table.
    for (chunks, whole) in [(2, 2), (257, 257), (258, 257), (259, 259), (514, 514), (515, 514)] {
        assert_eq!(cow::whole(chunks * cow::CHUNK), whole * cow::CHUNK, "{chunks}");
        assert_eq!(cow::whole(chunks * cow::CHUNK + 512), whole * cow::CHUNK, "{chunks}");
    }
}
