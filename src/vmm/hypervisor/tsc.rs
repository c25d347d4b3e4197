//! The rate of the host's time stamp counter.
//!
//! A guest in software reads the host's counter and has to learn its rate from an emulated timer.
//! On a busy host that goes wrong: the kernel then takes the counter for unstable, and some boots
//! hang before their first timer interrupt. Seen with QEMU 7.2 and Linux 6.1 at a load of about two
//! per CPU: 10 of 28 boots, with various flags; with the rate given, 0 of 28. So the host measures
//! once and tells every guest.

use std::time::{Duration, Instant};

/// How long one measurement takes. Reading both clocks takes some 50 ns, so the error is far below
/// what a crystal is off.
const WINDOW: Duration = Duration::from_millis(50);

/// Measures the counter's rate in kHz. Blocks for a tenth of a second.
pub fn measure_khz() -> u64 {
    // Being preempted between the two reads makes one measurement wrong, not both.
    let (first, second) = (once(), once());
    match first.abs_diff(second) * 10_000 < first {
        true => first.midpoint(second),
        false => {
            let third = once();
            let mut all = [first, second, third];
            all.sort_unstable();
            all[1]
        }
    }
}

fn once() -> u64 {
    let read = || {
        // SAFETY: every x86-64 CPU has the counter, and reading it touches no memory.
        (Instant::now(), unsafe { std::arch::x86_64::_rdtsc() })
    };
    let (start, from) = read();
    std::thread::sleep(WINDOW);
    let (end, to) = read();
    let nanoseconds = (end - start).as_nanos();
    u64::try_from(u128::from(to - from) * 1_000_000 / nanoseconds).expect("a rate fits")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_measurements_agree() {
        let (first, second) = (measure_khz(), measure_khz());
        assert!(first > 500_000, "{first} kHz is no CPU of this century");
        assert!(first.abs_diff(second) * 1000 < first, "{first} and {second} kHz");
    }
}
