//! How well the host is set up against guests that look for what leaks between them: what Firecracker's
//! guide for production hosts asks for. Reads files of the kernel and starts nothing.
//!
//! None of this keeps the daemon from starting: whether it matters is for who runs the host.

use std::fs;
use std::path::Path;

use chrono::{Datelike, NaiveDate, NaiveDateTime, Utc};

use crate::vmm::hypervisor::kvm::{Check, Outcome};

/// A kernel that is older lacks fixes of holes that are known by now.
const OLD_DAYS: i64 = 180;

/// The oldest kernel that still gets fixes, by the calendar of kernel.org.
const OLDEST_KERNEL: (u32, u32) = (5, 10);

const MITIGATIONS: &str = "sys/devices/system/cpu/vulnerabilities";

/// What was found below `root`, which is `/` but for tests.
pub fn checks(root: &Path) -> Vec<Check> {
    let read = |path: &str| fs::read_to_string(root.join(path)).map(|text| text.trim().to_owned());
    let mut checks = Vec::new();
    let mut add = |what: &str, path: &str, judge: &dyn Fn(&str) -> Result<String, String>| {
        checks.push(match read(path) {
            Ok(text) => Check::of(what, judge(&text)),
            Err(error) => unknown(what, format!("/{path} cannot be read: {error}")),
        });
    };
    add("kernel gets fixes", "proc/sys/kernel/osrelease", &kernel_release);
    add("guests' memory is not swapped", "proc/swaps", &swap);
    add("equal pages are not merged (KSM)", "sys/kernel/mm/ksm/run", &merging);
    add("cores are not shared (SMT)", "sys/devices/system/cpu/smt/active", &sharing);
    checks.push(match read("proc/sys/kernel/version") {
        Ok(text) => kernel_age(&text, Utc::now().date_naive()),
        Err(error) => unknown("kernel is recent", error.to_string()),
    });
    checks.push(microcode(&read("proc/cpuinfo").unwrap_or_default(), root));
    checks.push(mitigations(root));
    checks
}

fn unknown(what: &str, found: String) -> Check {
    Check { what: what.to_owned(), outcome: Outcome::Unknown, found }
}

fn kernel_release(release: &str) -> Result<String, String> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let version = (numbers.next(), numbers.next());
    let (Some(Ok(major)), Some(Ok(minor))) = version else {
        return Err(format!("{release:?} is no version"));
    };
    match (major, minor) >= OLDEST_KERNEL {
        true => Ok(release.to_owned()),
        false => Err(format!("{release}: holes in it are not mended any more, take a newer one")),
    }
}

fn swap(table: &str) -> Result<String, String> {
    let areas: Vec<&str> =
        table.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    match areas.is_empty() {
        true => Ok("no swap".to_owned()),
        false => Err(format!(
            "{}: what guests hold in memory is written to disk and stays there; `swapoff -a`, or \
             encrypt it",
            areas.join(", ")
        )),
    }
}

fn merging(run: &str) -> Result<String, String> {
    match run {
        "0" | "2" => Ok("off".to_owned()),
        _ => Err("on: a guest can find out by timing what others have in memory; write 0 to \
                  /sys/kernel/mm/ksm/run"
            .to_owned()),
    }
}

fn sharing(active: &str) -> Result<String, String> {
    match active {
        "0" => Ok("off".to_owned()),
        _ => Err("on: guests on one core can listen to each other through its caches; boot with \
                  `nosmt` if they are of people who do not trust each other"
            .to_owned()),
    }
}

/// Distributions build a kernel for each round of fixes, and write the day into its version.
fn kernel_age(version: &str, today: NaiveDate) -> Check {
    let what = "kernel is recent";
    let Some(built) = build_day(version) else {
        return unknown(what, format!("{version:?} does not say when it was built"));
    };
    let days = (today - built).num_days();
    Check::of(
        what,
        match days > OLD_DAYS {
            true => Err(format!(
                "built on {built}, {days} days ago: everybody knows its holes by now, update it and \
                 start the host again"
            )),
            false => Ok(format!("built on {built}")),
        },
    )
}

/// As in `#1 SMP Debian 6.1.1-1 (2023-01-02)` or `#5-Ubuntu SMP Mon Jan  2 10:11:12 UTC 2023`.
fn build_day(version: &str) -> Option<NaiveDate> {
    let words: Vec<&str> = version.split_whitespace().collect();
    let plain = words
        .iter()
        .rev()
        .find_map(|word| NaiveDate::parse_from_str(word.trim_matches(['(', ')']), "%Y-%m-%d").ok());
    let long = words.last_chunk::<6>().and_then(|words| {
        NaiveDateTime::parse_from_str(&words.join(" "), "%a %b %d %H:%M:%S %Z %Y").ok()
    });
    plain.or(long.map(|at| at.date())).filter(|day| day.year() > 1990)
}

/// The kernel compares what is loaded with a list of its own (`old_microcode`), from Linux 6.16 on.
fn microcode(cpuinfo: &str, root: &Path) -> Check {
    let what = "microcode is up to date";
    let field = |name: &str| {
        let line = cpuinfo.lines().find(|line| line.split(':').next().map(str::trim) == Some(name));
        line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned())
    };
    let loaded = field("microcode").unwrap_or_else(|| "of no known version".to_owned());
    if field("flags").is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor")) {
        return unknown(what, "this is a VM itself: its host loads it".to_owned());
    }
    match fs::read_to_string(root.join(MITIGATIONS).join("old_microcode")) {
        Ok(text) if text.starts_with("Not affected") => Check::of(what, Ok(loaded)),
        Ok(_) => Check::of(
            what,
            Err(format!(
                "{loaded} is old: holes of the CPU are open that a newer one closes; install \
                 intel-microcode or amd64-microcode"
            )),
        ),
        Err(_) => unknown(what, format!("{loaded}; this kernel cannot tell whether it is")),
    }
}

fn mitigations(root: &Path) -> Check {
    let what = "holes of the CPU are closed";
    let Ok(entries) = fs::read_dir(root.join(MITIGATIONS)) else {
        return unknown(what, format!("the kernel does not tell in /{MITIGATIONS}"));
    };
    let mut open: Vec<String> = entries
        .filter_map(Result::ok)
        .filter(|entry| fs::read_to_string(entry.path()).is_ok_and(|text| is_open(&text)))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    open.sort();
    Check::of(
        what,
        match open.is_empty() {
            true => Ok("all that this kernel knows".to_owned()),
            false => Err(format!(
                "open: {}: a guest may read what is the host's or other guests'; boot without \
                 `mitigations=off`, with newer kernel and microcode",
                open.join(", ")
            )),
        },
    )
}

/// The word may also stand after a mitigation that is not all, as in `Mitigation: ...; SMT vulnerable`,
/// which the check of SMT is about.
fn is_open(text: &str) -> bool {
    let text = text.trim();
    text.starts_with("Vulnerable") || text.starts_with("KVM: Vulnerable")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    const SAFE: &[(&str, &str)] = &[
        ("proc/sys/kernel/osrelease", "6.1.0-30-amd64\n"),
        ("proc/swaps", "Filename\tType\tSize\tUsed\tPriority\n"),
        ("sys/kernel/mm/ksm/run", "0\n"),
        ("sys/devices/system/cpu/smt/active", "0\n"),
        ("proc/cpuinfo", "processor\t: 0\nmicrocode\t: 0xf4\nflags\t\t: fpu vmx\n"),
        ("sys/devices/system/cpu/vulnerabilities/old_microcode", "Not affected\n"),
        ("sys/devices/system/cpu/vulnerabilities/mds", "Mitigation: Clear; SMT vulnerable\n"),
    ];

    fn outcomes(changed: &[(&str, &str)]) -> Vec<(String, Outcome, String)> {
        let files: Vec<_> = SAFE.iter().chain(changed).copied().collect();
        let checks = checks(host(&files).path()).into_iter();
        checks.map(|check| (check.what, check.outcome, check.found)).collect()
    }

    #[test]
    fn a_host_that_is_set_up_well_is_good() {
        let found = outcomes(&[]);
        let bad: Vec<_> = found.iter().filter(|(_, outcome, _)| *outcome == Outcome::Bad).collect();
        assert!(bad.is_empty(), "{bad:?}");
        // When the kernel was built is not said there.
        let unknown = found.iter().filter(|(_, outcome, _)| *outcome == Outcome::Unknown).count();
        assert_eq!((found.len(), unknown), (7, 1), "{found:?}");
    }

    #[test]
    fn each_thing_that_is_not_so_is_named_with_what_it_means() {
        for (path, text, what, words) in [
            ("proc/sys/kernel/osrelease", "4.19.0", "kernel gets fixes", "a newer one"),
            ("proc/swaps", "Filename\n/dev/sda2 partition 1 0 -2\n", "swapped", "/dev/sda2"),
            ("sys/kernel/mm/ksm/run", "1\n", "(KSM)", "by timing"),
            ("sys/devices/system/cpu/smt/active", "1\n", "(SMT)", "nosmt"),
            ("proc/sys/kernel/version", "#1 SMP (2020-02-03)", "recent", "2020-02-03"),
            (
                "sys/devices/system/cpu/vulnerabilities/old_microcode",
                "Vulnerable\n",
                "microcode",
                "0xf4",
            ),
            (
                "sys/devices/system/cpu/vulnerabilities/l1tf",
                "Vulnerable: no\n",
                "of the CPU",
                "l1tf",
            ),
        ] {
            let found = outcomes(&[(path, text)]);
            let named = found.iter().find(|(found, ..)| found.contains(what)).expect(what);
            assert_eq!(named.1, Outcome::Bad, "{named:?}");
            assert!(named.2.contains(words), "{named:?}");
        }
    }

    #[test]
    fn nothing_is_known_of_a_host_that_tells_nothing() {
        let checks = checks(host(&[]).path());
        assert!(checks.iter().all(|check| check.outcome == Outcome::Unknown), "{checks:?}");
    }

    #[test]
    fn the_day_of_a_build_is_read_from_either_form() {
        let day = NaiveDate::from_ymd_opt(2023, 1, 2);
        for version in [
            "#1 SMP PREEMPT_DYNAMIC Debian 6.1.1-1 (2023-01-02)",
            "#5-Ubuntu SMP PREEMPT_DYNAMIC Mon Jan  2 10:11:12 UTC 2023",
        ] {
            assert_eq!(build_day(version), day, "{version}");
        }
        for version in ["", "#1 SMP PREEMPT_DYNAMIC @0", "#1 SMP Jan 99 2023", "Jan"] {
            assert_eq!(build_day(version), None, "{version}");
        }
    }
}
