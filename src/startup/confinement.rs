//! Whether this host has all that VMs are confined by. Nothing is done without unless a setting names it.

use std::path::Path;

use anyhow::{Result, bail};
use clap::ValueEnum;

use crate::config::Wall;
use crate::vmm::hypervisor::Hypervisor;
use crate::vmm::process::cgroup::{Cgroups, Controller};

/// A wall that is missing here, and why or where it was looked for.
pub struct Missing {
    wall: Wall,
    why: String,
}

/// What this host lacks.
///
/// # Errors
///
/// If its cgroups cannot be found out.
pub fn missing(data_dir: &Path, hypervisor: &dyn Hypervisor) -> Result<Vec<Missing>> {
    let mut missing = Vec::new();
    for support in Cgroups::open(data_dir)?.describe() {
        let wall = match support.controller {
            Controller::Memory => Wall::Memory,
            Controller::Pids => Wall::Pids,
            Controller::Cpu => Wall::Cpu,
            Controller::Devices => Wall::Devices,
            // They count and end processes, and confine none.
            Controller::CpuAccounting | Controller::Kill => continue,
        };
        if support.offered_by.is_none() {
            let why = format!("no cgroup of this host has the controller {}", name(wall));
            missing.push(Missing { wall, why });
        }
    }
    if let Some(why) = hypervisor.unfiltered() {
        missing.push(Missing { wall: Wall::Seccomp, why: why.to_owned() });
    }
    Ok(missing)
}

/// Refuses what is missing and not allowed to be; gives what has to be told of the rest.
///
/// # Errors
///
/// With the setting that allows it.
pub fn judge(missing: Vec<Missing>, allowed: &[Wall]) -> Result<Vec<String>> {
    let (told, refused): (Vec<_>, Vec<_>) =
        missing.into_iter().partition(|it| allowed.contains(&it.wall));
    if !refused.is_empty() {
        let why: Vec<&str> = refused.iter().map(|it| it.why.as_str()).collect();
        let names: Vec<String> = refused.iter().map(|it| name(it.wall)).collect();
        bail!(
            "VMs cannot be confined here as they should be: {}. To do without all the same: \
             --allow-missing {} (NESTBOX_ALLOW_MISSING)",
            why.join("; "),
            names.join(",")
        );
    }
    Ok(told.into_iter().map(|it| format!("{}, as the settings allow", it.why)).collect())
}

fn name(wall: Wall) -> String {
    wall.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lacking(walls: &[Wall]) -> Vec<Missing> {
        walls.iter().map(|wall| Missing { wall: *wall, why: format!("no {wall:?}") }).collect()
    }

    #[test]
    fn what_is_missing_is_refused_unless_it_is_allowed_by_name() {
        let both = [Wall::Memory, Wall::Seccomp];
        let error = judge(lacking(&both), &[Wall::Memory]).unwrap_err().to_string();
        assert!(error.contains("no Seccomp") && !error.contains("no Memory"), "{error}");
        assert!(error.contains("--allow-missing seccomp (NESTBOX_ALLOW_MISSING)"), "{error}");
        let told = judge(lacking(&both), &both).unwrap();
        assert_eq!(told[0], "no Memory, as the settings allow");
        assert!(judge(Vec::new(), &both).unwrap().is_empty());
    }
}
