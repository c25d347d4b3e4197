//! How a daemon comes to Firecracker: by trying it, and without its jailer only if it is told to.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use serde_json::Value;

use super::{cycle, under_firecracker};
use crate::support::{Daemon, Engine, Lab, Options};

/// Who may open it has the kernel's own faults served.
const DEVICE: &str = "/dev/userfaultfd";

/// All VMs that the tests may have, so that no other test runs beside this one.
const ALONE: u32 = 5;

async fn daemon_with(lab: &Lab, flags: &[&str]) -> Daemon {
    let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
    lab.daemon_with(Options { slot_pool: 0, flags, ..Options::default() }).await
}

/// What `doctor` says.
fn doctor(lab: &Lab, flags: &[&str]) -> Value {
    let doctor = lab.cli(&[&["doctor", "--json"], flags].concat());
    serde_json::from_slice(&doctor.stdout).expect("JSON")
}

/// Has a sandbox live through everything that needs device, memory and network once, and looks what
/// it leaves.
async fn life(daemon: &Daemon) {
    let idle = daemon.census();
    cycle(daemon).await;
    daemon.is_back_to(&idle).await;
}

#[test]
fn it_is_chosen_where_a_trial_boots_and_tried_once() {
    under_firecracker(1, async |lab| {
        let images = lab.images().display().to_string();
        let auto = ["--hypervisor", "auto"];
        let report = doctor(lab, &[&auto[..], &["--image-dir", &images]].concat());
        let checks = report["checks"].as_array().expect("checks");
        let tried = checks.iter().find(|check| check["what"] == "a guest boots under KVM");
        assert_eq!(tried.expect("a trial")["outcome"], "good", "{report}");
        let verdict = || {
            let metadata = fs::metadata("/run/nestbox/kvm-firecracker.json");
            metadata.and_then(|file| file.modified()).expect("it is kept")
        };
        let first = verdict();
        let mut daemon = daemon_with(lab, &auto).await;
        let said = daemon.announced();
        let reason = format!(
            "firecracker {}, hardware virtualization works here",
            Engine::present().version()
        );
        assert!(said.contains(&reason), "{said}");
        assert_eq!(verdict(), first, "it was tried again");
        life(&daemon).await;
        daemon.stop().await;
    });
}

#[test]
fn without_the_jailer_it_does_the_same() {
    under_firecracker(ALONE, async |lab| {
        let off = ["--jailer", "off"];
        let report = doctor(lab, &off);
        let reason = report["reason"].as_str().expect("a reason");
        assert!(reason.contains(&format!("chgrp kvm {DEVICE}")), "{report}");

        let kvm = fs::metadata("/dev/kvm").expect("it is there").gid();
        let open_to = |group, mode| {
            chown(DEVICE, Some(0), Some(group)).expect("it can be given");
            fs::set_permissions(DEVICE, Permissions::from_mode(mode)).expect("it can be opened");
        };
        open_to(kvm, 0o660);
        let mut daemon = daemon_with(lab, &off).await;
        life(&daemon).await;
        daemon.stop().await;
        open_to(0, 0o600);
    });
}
