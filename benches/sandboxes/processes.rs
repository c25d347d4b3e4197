//! What /proc says about processes.

use anyhow::{Context, Result};

/// User and system time of a process in seconds: fields 14 and 15 of `/proc/PID/stat`, proc(5).
pub fn cpu_seconds(pid: i32) -> Result<f64> {
    let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.context("no clock")? as f64;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(')').context("no name")?;
    let times = fields.split_ascii_whitespace().skip(11).take(2);
    let sum: f64 = times.filter_map(|field| field.parse::<f64>().ok()).sum();
    Ok(sum / ticks)
}

/// Memory of a process with its share of what it shares, in MB.
pub fn pss_mb(pid: i32) -> Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    kib_line(&text, "Pss:").context("no Pss")
}

/// Memory of a process with all that it shares, in MB.
pub fn rss_mb(pid: i32) -> Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    kib_line(&text, "VmRSS:").context("no VmRSS")
}

fn kib_line(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: f64 = line.split_ascii_whitespace().next()?.parse().ok()?;
    Some(kib * 1024.0 / 1e6)
}
