//! What memory the host really has left.

use std::io;

/// The host's memory, in MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostMemory {
    /// All of it.
    pub total_mib: u64,
    /// What new work can take without swapping, page cache that can be dropped included:
    /// `MemAvailable`, proc(5).
    pub available_mib: u64,
}

/// Reads the host's memory from `/proc/meminfo`.
///
/// # Errors
///
/// If the file is not there or not as proc(5) describes it.
pub fn host_memory() -> io::Result<HostMemory> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    parse(&text).ok_or_else(|| io::Error::other("/proc/meminfo lacks MemTotal or MemAvailable"))
}

fn parse(text: &str) -> Option<HostMemory> {
    let mib = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: u64 =
            line.trim_start_matches(':').split_ascii_whitespace().next()?.parse().ok()?;
        Some(kib / 1024)
    };
    Some(HostMemory { total_mib: mib("MemTotal")?, available_mib: mib("MemAvailable")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_read() {
        let text = "MemTotal:       2097152 kB\nMemFree: 1 kB\nMemAvailable:    1048576 kB\n";
        assert_eq!(parse(text), Some(HostMemory { total_mib: 2048, available_mib: 1024 }));
        assert_eq!(parse("MemTotal: 5 kB\n"), None);
        assert!(host_memory().is_ok());
    }
}
