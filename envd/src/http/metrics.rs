//! What the guest uses, read from `/proc` when asked for.

use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json;
use nix::sys::statvfs::statvfs;
use serde::Serialize;

/// The body of `GET /metrics`; sizes are in bytes unless named otherwise.
#[derive(Debug, Default, Serialize)]
pub struct Metrics {
    /// Seconds since 1970.
    ts: u64,
    cpu_count: usize,
    /// Of all CPUs together, since the call before, or since the start.
    cpu_used_pct: f64,
    mem_total_mib: u64,
    mem_used_mib: u64,
    mem_total: u64,
    mem_used: u64,
    mem_cache: u64,
    disk_total: u64,
    disk_used: u64,
}

/// CPU time spent so far, in ticks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Ticks {
    busy: u64,
    total: u64,
}

static BEFORE: Mutex<Ticks> = Mutex::new(Ticks { busy: 0, total: 0 });

/// `GET /metrics`.
pub async fn metrics() -> Json<Metrics> {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let (ticks, cpu_count) = cpu(&stat);
    let before =
        std::mem::replace(&mut *BEFORE.lock().unwrap_or_else(PoisonError::into_inner), ticks);
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = memory(&meminfo, "MemTotal");
    let used = total.saturating_sub(memory(&meminfo, "MemAvailable"));
    let (disk_total, disk_used) = disk();
    Json(Metrics {
        ts: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        cpu_count,
        cpu_used_pct: percent(before, ticks),
        mem_total_mib: total >> 20,
        mem_used_mib: used >> 20,
        mem_total: total,
        mem_used: used,
        mem_cache: memory(&meminfo, "Cached"),
        disk_total,
        disk_used,
    })
}

fn cpu(stat: &str) -> (Ticks, usize) {
    let mut lines = stat.lines();
    let fields: Vec<u64> = lines
        .next()
        .into_iter()
        .flat_map(|line| line.split_whitespace().skip(1))
        .filter_map(|field| field.parse().ok())
        .collect();
    // user nice system idle iowait irq softirq steal; what follows is counted in `user` already.
    let total = fields.iter().take(8).sum();
    let idle: u64 = fields.iter().skip(3).take(2).sum();
    let count = lines.filter(|line| line.starts_with("cpu")).count();
    (Ticks { busy: total - idle, total }, count)
}

fn percent(before: Ticks, now: Ticks) -> f64 {
    let total = now.total.saturating_sub(before.total);
    if total == 0 {
        return 0.0;
    }
    let share = now.busy.saturating_sub(before.busy) as f64 / total as f64;
    (share * 10_000.0).round() / 100.0
}

fn memory(meminfo: &str, name: &str) -> u64 {
    let value = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kib = value.and_then(|value| value.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

fn disk() -> (u64, u64) {
    let Ok(fs) = statvfs("/") else { return (0, 0) };
    let total = fs.blocks() * fs.fragment_size();
    (total, total.saturating_sub(fs.blocks_free() * fs.fragment_size()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_use_is_what_was_not_idle_between_two_looks() {
        let (first, count) = cpu("cpu  10 0 10 70 10 0 0 0 5 0\ncpu0 1\ncpu1 1\nintr 5\n");
        assert_eq!((first, count), (Ticks { busy: 20, total: 100 }, 2));
        let (second, _) = cpu("cpu  60 0 10 110 20 0 0 0 5 0\n");
        assert_eq!(percent(first, second), 50.0);
        assert_eq!(percent(second, second), 0.0);
        assert_eq!(cpu(""), (Ticks::default(), 0));
    }

    #[test]
    fn memory_is_found_by_its_whole_name() {
        let text = "MemTotal:  1000 kB\nSwapCached: 1 kB\nCached:  20 kB\n";
        assert_eq!(memory(text, "MemTotal"), 1_024_000);
        assert_eq!(memory(text, "Cached"), 20 * 1024);
        assert_eq!(memory(text, "Mem"), 0);
    }
}
