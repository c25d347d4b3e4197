//! `nestbox doctor`: what this machine can do, and what to do about what it cannot.

use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use super::{choose_hypervisor, confinement, descriptors, hardening, uids};
use crate::config::Config;
use crate::print::say;
use crate::vmm::find_program;
use crate::vmm::host_memory::host_memory;
use crate::vmm::hypervisor::Hypervisor;
use crate::vmm::hypervisor::kvm::{Check, Outcome};
use crate::vmm::image::ImageStore;
use crate::vmm::process::cgroup::Cgroups;

/// Programs that the daemon or `image build` calls, and the packages they come in.
const PROGRAMS: [(&str, &str); 7] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("nft", "nftables"),
    ("mmdebstrap", "mmdebstrap"),
    ("mke2fs", "e2fsprogs"),
    ("depmod", "kmod"),
    ("xz", "xz-utils"),
    ("dpkg-deb", "dpkg"),
];

/// With fewer, some ten busy sandboxes take them all.
const FEW_DESCRIPTORS: u64 = 4096;

#[derive(Serialize)]
struct Report {
    /// What sandboxes would run under.
    hypervisor: Option<String>,
    reason: String,
    checks: Vec<Check>,
}

/// Looks at everything and prints what it found. Whether sandboxes can run is the result.
///
/// # Errors
///
/// If the image directory cannot be read.
pub async fn doctor(config: &Config, json: bool) -> Result<bool> {
    let mut checks = vec![
        Check::of("started as root", root()),
        Check::of("data directory can be used", data_dir(&config.data_dir)),
        Check::of("/dev/net/tun is there", device("/dev/net/tun")),
        Check::of("memory for sandboxes", memory()),
        Check::of("descriptors", descriptors()),
        Check::of("users of VMs are nobody else's", vm_users(config.vm_uid_base)),
    ];
    checks.extend(PROGRAMS.iter().map(|(program, package)| program_check(program, package)));
    checks.extend(cgroups(&config.data_dir));
    checks.extend(hardening::checks(Path::new("/")));
    let images = ImageStore::open(config.image_dir());
    checks.push(Check::of("an image is there", image_names(&images)));
    let mut missing = false;
    let (hypervisor, reason) = match choose_hypervisor(config, &images).await {
        Ok(choice) => {
            let confined = confined(config, &*choice.hypervisor);
            missing = confined.is_err();
            checks.extend(choice.checks);
            checks.push(Check::of("VMs are confined as they should be", confined));
            let engine = choice.hypervisor.engine().as_str();
            (Some(format!("{engine} {}", choice.hypervisor.version())), choice.reason)
        }
        Err(error) => (None, format!("{error:#}")),
    };
    let users = uids::check(Path::new("/"), config.vm_uid_base);
    let fit = hypervisor.is_some() && !missing && nix::unistd::geteuid().is_root() && users.is_ok();
    let report = Report { hypervisor, reason, checks };
    match json {
        true => say(format_args!("{}", serde_json::to_string_pretty(&report)?)),
        false => print(&report),
    }
    Ok(fit)
}

/// Whether this host has all that VMs are confined by, or may do without.
fn confined(config: &Config, hypervisor: &dyn Hypervisor) -> Result<String, String> {
    let existing = config.data_dir.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
    let told = confinement::missing(existing, hypervisor)
        .and_then(|missing| confinement::judge(missing, &config.allow_missing))
        .map_err(|error| format!("{error:#}"))?;
    Ok(if told.is_empty() { "yes".to_owned() } else { told.join("; ") })
}

fn print(report: &Report) {
    for check in &report.checks {
        let mark = match check.outcome {
            Outcome::Good => "ok ",
            Outcome::Bad => "no ",
            Outcome::Unknown => "?  ",
        };
        say(format_args!("{mark} {:<34} {}", check.what, check.found));
    }
    match &report.hypervisor {
        Some(hypervisor) => {
            say(format_args!("\nSandboxes run under {hypervisor}: {}", report.reason))
        }
        None => say(format_args!("\nSandboxes cannot run: {}", report.reason)),
    }
}

fn root() -> Result<String, String> {
    match nix::unistd::geteuid().is_root() {
        true => Ok("yes".to_owned()),
        false => Err("the daemon has to be started as root".to_owned()),
    }
}

fn data_dir(dir: &Path) -> Result<String, String> {
    let existing = dir.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
    match nix::unistd::access(existing, nix::unistd::AccessFlags::W_OK) {
        Ok(()) => Ok(dir.display().to_string()),
        Err(errno) => Err(format!("{}: {errno}", existing.display())),
    }
}

fn device(path: &str) -> Result<String, String> {
    std::fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .map(|_| "yes".to_owned())
        .map_err(|error| format!("{error}: load the module with `modprobe tun`"))
}

fn memory() -> Result<String, String> {
    let memory = host_memory().map_err(|error| error.to_string())?;
    let found = format!("{} of {} MiB available", memory.available_mib, memory.total_mib);
    if memory.available_mib < 1024 { Err(found) } else { Ok(found) }
}

fn descriptors() -> Result<String, String> {
    let limit = descriptors::raise().map_err(|error| error.to_string())?;
    let budget = descriptors::budget(limit);
    let found = format!("{limit}, for {} connections and all sandboxes", budget.all);
    match limit < FEW_DESCRIPTORS {
        true => {
            Err(format!("{found}: raise the hard limit (`ulimit -Hn`, LimitNOFILE= in a unit)"))
        }
        false => Ok(found),
    }
}

fn vm_users(base: u32) -> Result<String, String> {
    let users = uids::check(Path::new("/"), base).map_err(|error| error.to_string())?;
    Ok(format!("{} to {}", users.start, users.end - 1))
}

fn program_check(program: &str, package: &str) -> Check {
    let found = find_program(program)
        .map(|path| path.display().to_string())
        .ok_or_else(|| format!("not found: install it with `apt-get install {package}`"));
    Check::of(&format!("{program} is installed"), found)
}

/// Limits that the host's cgroups can set on sandboxes.
fn cgroups(data_dir: &Path) -> Vec<Check> {
    let existing = data_dir.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
    let support = match Cgroups::open(existing) {
        Ok(cgroups) => cgroups.describe(),
        Err(error) => {
            let error = crate::chain(&error).to_string();
            return vec![Check::of("cgroups limit sandboxes", Err(error))];
        }
    };
    let check = |support: &crate::vmm::process::cgroup::Support| {
        let found = match &support.offered_by {
            Some((version, root)) => Ok(format!("{version:?} at {}", root.display())),
            None => Err("not offered here: sandboxes do without".to_owned()),
        };
        Check::of(&format!("cgroup controller {:?}", support.controller).to_lowercase(), found)
    };
    support.iter().map(check).collect()
}

fn image_names(images: &ImageStore) -> Result<String, String> {
    let images = images.list().map_err(|error| crate::chain(&error).to_string())?;
    let names: Vec<&str> = images.iter().map(|image| image.name.as_str()).collect();
    match names.is_empty() {
        true => Err("none: build one with `nestbox image build debian`".to_owned()),
        false => Ok(names.join(", ")),
    }
}
