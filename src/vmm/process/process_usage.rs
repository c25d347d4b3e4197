//! What a machine takes of its host, as the host sees it: nothing here asks the guest, so looking
//! never wakes one.

use std::fs;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::{SysconfVar, sysconf};

use crate::vmm::process::{ProcessId, stat_fields};

/// What a running machine takes at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Processor time so far. It begins anew with each VM, so it is larger than before, or another's.
    pub cpu_time: Duration,
    /// Memory that its processes have for themselves: what its guest has touched beyond what it
    /// shares with others, and what the hypervisor needs.
    pub memory_bytes: u64,
    /// Its disk, blocks in use with all layers; none while something is being done to it.
    pub disk_bytes: Option<u64>,
}

/// Descriptors of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptors {
    /// Open ones.
    pub open: u64,
    /// How many may be open.
    pub most: u64,
}

impl Descriptors {
    /// As they are now; none if the kernel does not tell, say because there is none to ask with.
    pub fn now() -> Option<Self> {
        let (most, _) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
        // The directory that is read is one of them.
        let open = fs::read_dir("/proc/self/fd").ok()?.count() as u64 - 1;
        Some(Self { open, most })
    }
}

/// What one process takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::vmm) struct ProcessUsage {
    /// Processor time of all its threads, to the kernel's clock tick, 10 ms.
    pub cpu_time: Duration,
    /// The same of its children that were waited for.
    pub children_cpu_time: Duration,
    /// Memory that it does not share with any file.
    pub private_bytes: u64,
}

impl ProcessUsage {
    /// Reads it from two small files; none if the process has ended.
    pub fn of(id: ProcessId) -> Option<Self> {
        let proc = format!("/proc/{}", id.pid);
        let stat = fs::read_to_string(format!("{proc}/stat")).ok()?;
        let statm = fs::read_to_string(format!("{proc}/statm")).ok()?;
        Self::parse(&stat, &statm, id.start_ticks)
    }

    /// Both files are described in proc(5).
    fn parse(stat: &str, statm: &str, start_ticks: u64) -> Option<Self> {
        let fields: Vec<u64> =
            stat_fields(stat)?.skip(11).take(9).map(|field| field.parse().unwrap_or(0)).collect();
        let &[user, system, children_user, children_system, _, _, _, _, started] =
            fields.as_slice()
        else {
            return None;
        };
        // Another process may have the pid by now.
        if started != start_ticks {
            return None;
        }
        let mut pages = statm.split_ascii_whitespace().skip(1).map(|field| field.parse().ok());
        let (resident, shared): (u64, u64) = (pages.next()??, pages.next()??);
        Some(Self {
            cpu_time: ticks(user + system),
            children_cpu_time: ticks(children_user + children_system),
            private_bytes: resident.saturating_sub(shared) * page_size(),
        })
    }
}

fn ticks(count: u64) -> Duration {
    let per_second = match sysconf(SysconfVar::CLK_TCK) {
        Ok(Some(ticks)) => u64::try_from(ticks).unwrap_or(100).max(1),
        Ok(None) | Err(_) => 100,
    };
    Duration::from_nanos(count.saturating_mul(1_000_000_000 / per_second))
}

fn page_size() -> u64 {
    match sysconf(SysconfVar::PAGE_SIZE) {
        Ok(Some(bytes)) => u64::try_from(bytes).unwrap_or(4096),
        Ok(None) | Err(_) => 4096,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "7 (a) b) S 1 7 7 0 -1 4194304 90 151 1 0 40 3 200 5 20 0 3 0 82352 1000 9";

    #[test]
    fn a_process_is_read_as_proc_describes_it() {
        let usage = ProcessUsage::parse(STAT, "765 405 376 5 0 123 0\n", 82352).expect("it reads");
        assert_eq!(usage.cpu_time, Duration::from_millis(430));
        assert_eq!(usage.children_cpu_time, Duration::from_millis(2050));
        assert_eq!(usage.private_bytes, 29 * 4096);
    }

    #[test]
    fn another_process_of_the_same_pid_is_not_taken_for_it() {
        assert_eq!(ProcessUsage::parse(STAT, "765 405 376\n", 82353), None);
        assert_eq!(ProcessUsage::parse("", "", 0), None);
        assert_eq!(ProcessUsage::parse(STAT, "765\n", 82352), None);
    }

    #[test]
    fn what_this_process_does_is_seen() {
        let pid = i32::try_from(std::process::id()).expect("a pid");
        let start_ticks = crate::vmm::process::start_ticks(pid).expect("it runs");
        let id = ProcessId { pid, start_ticks };
        let before = ProcessUsage::of(id).expect("it runs");
        // Much, for other tests of this process come and go with their own.
        let block = std::hint::black_box(vec![1u8; 64 << 20]);
        let after = ProcessUsage::of(id).expect("it runs");
        assert!(after.private_bytes > before.private_bytes + (16 << 20), "{before:?} {after:?}");
        assert!(after.cpu_time >= before.cpu_time);
        drop(block);
    }
}
