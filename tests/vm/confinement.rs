//! What a VM's process is on the host: nobody, nowhere, with nothing.

use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::support::in_a_lab;

#[test]
fn a_vm_is_confined() {
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon().await;
        let sandbox = daemon.create().await;
        let proc = format!("/proc/{}", sandbox.vm_pid());
        let status = fs::read_to_string(format!("{proc}/status")).expect("its status");
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.expect("the field").trim_start_matches(':').split_whitespace().collect::<Vec<_>>()
        };

        // A user and a group of its own in all four senses, and no other group.
        let uid = (700_000 + sandbox.slot()).to_string();
        assert_eq!(field("Uid"), [uid.as_str(); 4]);
        assert_eq!(field("Gid"), [uid.as_str(); 4]);
        assert!(field("Groups").is_empty(), "{:?}", field("Groups"));
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(field(set), ["0000000000000000"], "{set}");
        }
        assert_eq!(field("NoNewPrivs"), ["1"]);
        assert_eq!(field("Seccomp"), ["2"], "a filter");

        let inode = |path: &str| fs::metadata(path).expect(path).ino();
        let namespace = format!("/run/netns/nestbox-{}", sandbox.slot());
        assert_eq!(inode(&format!("{proc}/ns/net")), inode(&namespace));
        assert_ne!(inode(&format!("{proc}/ns/net")), inode("/proc/thread-self/ns/net"));

        let cgroups = fs::read_to_string(format!("{proc}/cgroup")).expect("its cgroups");
        let ours = cgroups.lines().filter(|line| line.ends_with(&format!("/{}", sandbox.id)));
        assert!(ours.count() >= 1, "{cgroups}");

        // Leader of a session of its own: it hears no signal that is meant for the daemon.
        let stat = fs::read_to_string(format!("{proc}/stat")).expect("its stat");
        let after_name = stat.rsplit_once(')').expect("a name").1;
        let session = after_name.split_whitespace().nth(3).expect("a session");
        assert_eq!(session, sandbox.vm_pid().to_string());

        let limits = fs::read_to_string(format!("{proc}/limits")).expect("its limits");
        let core = limits.lines().find(|line| line.starts_with("Max core")).expect("the limit");
        assert!(core.split_whitespace().filter(|word| *word == "0").count() == 2, "{core}");
        let environment = fs::read(format!("{proc}/environ")).expect("its environment");
        assert!(environment.is_empty(), "{}", String::from_utf8_lossy(&environment));

        sandbox.destroy().await;
        daemon.stop().await;
    });
}

#[test]
fn what_a_vm_may_not_change_is_not_its_own() {
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon().await;
        let sandbox = daemon.create().await;
        for entry in fs::read_dir(sandbox.dir()).expect("its directory").flatten() {
            let metadata = entry.metadata().expect("its owner");
            assert_eq!(metadata.uid(), 0, "{:?}", entry.file_name());
            // The VM's user comes into no directory, and needs none: what it works with is open.
            let others = if metadata.is_dir() { 0o077 } else { 0o022 };
            assert_eq!(metadata.mode() & others, 0, "{:?}", entry.file_name());
        }
        assert_eq!(fs::metadata(sandbox.dir()).expect("its directory").uid(), 0);
        let record = fs::metadata(sandbox.dir().join("sandbox.json")).expect("its record");
        assert_eq!(record.mode() & 0o777, 0o600, "it holds the access token");
        sandbox.destroy().await;
        daemon.stop().await;
    });
}
