//! What the host gives to sandboxes, and what it keeps.

use anyhow::{Context, Result, bail};

use crate::actors::host::Limits;
use crate::domain::rates::RateLimits;
use crate::vmm::host_memory::host_memory;

/// The host keeps a twentieth of its memory to itself, and at least this.
const LEAST_RESERVE_MIB: u64 = 256;

/// What this host has to give, as fast as it can.
///
/// # Errors
///
/// If `/proc/meminfo` cannot be read, or the reserve leaves nothing to sandboxes.
pub fn limits(reserve_mib: Option<u64>) -> Result<Limits> {
    let memory = host_memory().context("cannot learn the host's memory")?;
    if let Some(reserve) = reserve_mib.filter(|reserve| *reserve >= memory.total_mib) {
        bail!(
            "memory_reserve_mib is {reserve}: of the {} MiB of this host nothing is left to sandboxes",
            memory.total_mib
        );
    }
    let cpus = std::thread::available_parallelism().context("cannot count the host's CPUs")?;
    Ok(Limits {
        cpus: u32::try_from(cpus.get()).unwrap_or(u32::MAX),
        memory_mib: memory.total_mib,
        reserve_mib: reserve_mib.unwrap_or_else(|| LEAST_RESERVE_MIB.max(memory.total_mib / 20)),
        rates: RateLimits::default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reserve_that_leaves_nothing_is_refused() {
        let total = host_memory().unwrap().total_mib;
        for all in [total, u64::MAX] {
            let error = limits(Some(all)).unwrap_err().to_string();
            assert!(error.contains(&format!("memory_reserve_mib is {all}")), "{error}");
        }
        assert_eq!(limits(Some(total - 1)).unwrap().reserve_mib, total - 1);
    }
}
