//! What windows of different sizes cost.

use std::time::Duration;

use nestbox::vmm::storage::pager::Counters;

use super::lab::{Lab, content, exit_code, pages, status_kb};

/// Prints throughput. Run it alone, with `--release --ignored --nocapture`.
#[test]
#[ignore = "a measurement: there is nothing to fail but the time it takes"]
fn costs() {
    println!("first, largest window: sequential 64 MiB | random 64 MiB | 256 scattered pages");
    for (first, largest) in [
        (1, 1),
        (4, 4),
        (16, 16),
        (16, 64),
        (16, 128),
        (16, 512),
        (32, 128),
        (64, 64),
        (128, 128),
        (512, 512),
    ] {
        let lab = Lab::new().with_windows(first, largest);
        let lineage = lab.base(256, &[0..pages(256)]);
        // The page cache has all of it.
        content(&lineage);
        let measure = |count: u64, order: &str| -> (Duration, Counters, u64) {
            let mut restored = lab.restore(&lineage).served();
            let took = restored.vm.touch(0, count, order, 1);
            let counters = restored.counters();
            let resident = status_kb(restored.pager.pid, "VmRSS:");
            restored.vm.kill();
            exit_code(restored.pager, Duration::from_secs(5));
            (took, counters, resident)
        };
        let (sequential, one, resident) = measure(pages(64), "sequential");
        let (random, other, _) = measure(pages(64), "random");
        // The best of some, for a fault is short and the machine has other things to do.
        let scattered = (0..5).map(|_| measure(256, "scattered"));
        let (scattered, few, _) = scattered.min_by_key(|(took, _, _)| *took).unwrap();
        let speed = |took: Duration| 64.0 / took.as_secs_f64();
        println!(
            "{first:3},{largest:3}: {:7.0} MiB/s {:6} faults | {:7.0} MiB/s {:6} faults | \
             {:6.1} us a fault, {:5} pages read | {resident} kB",
            speed(sequential),
            one.faults,
            speed(random),
            other.faults,
            scattered.as_secs_f64() * 1e6 / 256.0,
            few.pages_faulted,
        );
    }
}
