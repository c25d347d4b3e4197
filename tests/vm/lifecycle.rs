//! From create to destroy.

use std::fs;
use std::time::{Duration, Instant};

use chrono::Utc;
use nestbox::vmm::storage::disk::{DiskError, DiskFormat, Layer, Overlay};
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::{
    Lab, Options, PATIENCE, Sandbox, eventually, eventually_within, hypervisor_script, in_a_lab,
    path_with, two_vcpus,
};

#[test]
fn a_sandbox_runs_code_and_leaves_nothing() {
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon_with(Options { slot_pool: 0, ..Default::default() }).await;
        let idle = daemon.census();

        let sandbox = daemon.create().await;
        let numbers: String = (1..=100).map(|number| format!("{number}\n")).collect();
        sandbox.write("numbers.txt", numbers).await;
        let program = "import platform; print(platform.system(), \
                       sum(int(line) for line in open('numbers.txt')), file=open('sum.txt', 'w'))";
        let python = sandbox.exec(json!({ "cmd": "python3", "args": ["-c", program] })).await;
        assert_eq!(python.exit_code, 0, "{}", python.errors());
        assert_eq!(sandbox.read("/home/user/sum.txt").await, b"Linux 5050\n");
        sandbox.destroy().await;

        idle.compare(&daemon.census());
        sandbox.try_exec(json!({ "cmd": "true" })).await.is_error(409, "invalid_state");
        sandbox.try_read("sum.txt").await.is_error(409, "invalid_state");
        daemon.stop().await;
    });
}

#[test]
fn a_guest_has_the_shape_it_was_asked_for() {
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon().await;
        let vcpus = two_vcpus();
        let sandbox = daemon.create_with(json!({ "vcpus": vcpus, "memory_mb": 1024 })).await;
        assert_eq!(sandbox.sh("nproc").await, vcpus.to_string());
        let memory = sandbox.sh("awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo").await;
        let memory: u32 = memory.parse().expect("a number");
        assert!((900..=1024).contains(&memory), "{memory} MiB");
        sandbox.destroy().await;
        daemon.stop().await;
    });
}

#[test]
fn a_guest_knows_who_it_is() {
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon().await;
        let envs = json!({ "GREETING": "hello world" });
        let sandbox = daemon.create_with(json!({ "memory_mb": 256, "envs": envs })).await;

        assert_eq!(sandbox.sh("hostname").await, sandbox.id);
        assert_eq!(sandbox.sh("getent hosts $(hostname) | wc -l").await, "1");
        assert_eq!(sandbox.sh("echo $GREETING").await, "hello world");
        assert_eq!(sandbox.sh("id -un; pwd; echo $HOME").await, "user\n/home/user\n/home/user");
        assert_eq!(sandbox.sh("sudo -n id -u").await, "0");
        let resolver = sandbox.sh("grep -c ^nameserver /etc/resolv.conf").await;
        assert!(resolver.parse::<u32>().expect("a number") >= 1);
        assert_eq!(sandbox.sh("ip route get 1.1.1.1 2>/dev/null | wc -l || true").await.len(), 1);
        let overridden = json!({ "cmd": "echo $GREETING", "envs": { "GREETING": "bye" } });
        assert_eq!(sandbox.exec(overridden).await.text(), "bye");

        sandbox.destroy().await;
        daemon.stop().await;
    });
}

#[test]
fn a_guests_clock_is_the_hosts() {
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon().await;
        let sandbox = daemon.create().await;
        // Whatever the command itself takes is not the clock's fault, so it is let off.
        let before = Utc::now().timestamp_micros();
        let guest = sandbox.sh("date +%s%6N").await.parse::<i64>().expect("microseconds");
        let after = Utc::now().timestamp_micros();
        let off = (before - guest).max(guest - after).max(0);
        assert!(off <= 50_000, "the guest's clock is off by {off} us");
        sandbox.destroy().await;
        daemon.stop().await;
    });
}

#[test]
fn no_two_vms_share_a_disk() {
    in_a_lab(2, async |lab| {
        let mut daemon = lab.daemon().await;
        let (first, second) = tokio::join!(daemon.create(), daemon.create());
        let overlays = [&first, &second].map(Sandbox::overlay);
        let base = Layer { file: "base".to_owned(), format: DiskFormat::Raw };
        for overlay in &overlays {
            let opened = Overlay::open(overlay);
            assert!(matches!(opened, Err(DiskError::InUse { .. })), "{opened:?}");
            let made = Overlay::create(overlay, &base, 1 << 30);
            assert!(matches!(made, Err(DiskError::Create { .. })), "{made:?}");
        }
        first.sh("echo first > mark && sync").await;
        assert_eq!(second.sh("cat mark 2>/dev/null || echo none").await, "none");

        // The lock is the VM's, not the daemon's.
        daemon.kill9().await;
        for overlay in &overlays {
            assert!(matches!(Overlay::open(overlay), Err(DiskError::InUse { .. })));
        }
        daemon.start_again().await;
        for sandbox in [first, second] {
            sandbox.through(daemon.api()).destroy().await;
        }
        daemon.stop().await;
    });
}

#[test]
fn destroy_works_from_every_state_and_again() {
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon().await;
        let sandbox = daemon.create().await;
        sandbox.destroy().await;
        sandbox.destroy().await;

        let broken = daemon.create().await;
        broken.kill_vm();
        broken.becomes("error").await;
        broken.destroy().await;
        broken.destroy().await;

        let twice = daemon.create().await;
        let (one, other) = tokio::join!(twice.try_destroy(), twice.try_destroy());
        assert_eq!((one.status, other.status), (204, 204));

        let unknown = format!("/v1/sandboxes/{}", nestbox::domain::id::SandboxId::random());
        daemon.delete(&unknown).await.is_error(404, "not_found");
        daemon.stop().await;
    });
}

/// A daemon that has no warm snapshot yet, so that the first create waits for an image to boot.
fn cold(lab: &Lab) -> Options {
    Options { images: Some(lab.cold_images()), ..Options::default() }
}

/// Names of the warm snapshots in those images.
fn warm_snapshots(lab: &Lab) -> Vec<String> {
    let dir = lab.cold_images().join("debian/warm");
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name != ".lock").collect()
}

#[test]
fn destroy_does_not_wait_for_an_image_to_boot() {
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon_with(cold(lab)).await;
        let api = daemon.api().clone();
        let creating = tokio::spawn(async move { api.try_create(json!({})).await });
        let boot = daemon.starting().await;
        let ids = daemon.ids().await;
        assert!(ids.len() == 1 && ids[0] != boot.id, "{ids:?}");
        let sandbox = daemon.sandbox(&ids[0]);
        sandbox.becomes("starting").await;
        sandbox.try_exec(json!({ "cmd": "true" })).await.is_error(409, "invalid_state");

        sandbox.destroy().await;
        assert!(boot.dir().exists(), "the boot was waited for");
        let answer = creating.await.expect("no panic");
        answer.is_error(409, "invalid_state");

        // The boot was not for this one alone.
        eventually("the boot is over", || async { !boot.dir().exists() }).await;
        let warm = warm_snapshots(lab);
        assert!(warm.len() == 1 && warm[0].starts_with("1x512-"), "{warm:?}");
        daemon.stop().await;
    });
}

#[test]
fn destroy_ends_a_restore_at_once() {
    in_a_lab(1, async |lab| {
        hypervisor_script(
            "[ -e /run/slow ] && [ \"$1\" != --version ] && sleep 1000; exec $HYPERVISOR \"$@\"",
        );
        let path = Some(path_with());
        let mut daemon =
            lab.daemon_with(Options { path, slot_pool: 0, ..Options::default() }).await;
        daemon.create_with(json!({})).await.destroy().await;
        let idle = daemon.census();
        fs::write("/run/slow", "").expect("a mark");

        let api = daemon.api().clone();
        let creating = tokio::spawn(async move { api.try_create(json!({})).await });
        eventually("the hypervisor starts", || async { daemon.census().count("processes") > 1 })
            .await;
        let sandbox = daemon.sandbox(&daemon.ids().await[0]);
        timeout(PATIENCE, sandbox.destroy()).await.expect("the hypervisor is not waited for");
        creating.await.expect("no panic").is_error(409, "invalid_state");
        idle.compare(&daemon.census());
        daemon.stop().await;
    });
}

#[test]
fn a_client_that_hangs_up_while_it_creates_leaves_a_whole_sandbox() {
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon_with(cold(lab)).await;
        let api = daemon.api().clone();
        let creating = tokio::spawn(async move { api.try_create(json!({})).await });
        daemon.starting().await;
        let sandbox = daemon.sandbox(&daemon.ids().await[0]);
        creating.abort();

        sandbox.becomes("running").await;
        assert_eq!(sandbox.sh("echo whole").await, "whole");
        sandbox.destroy().await;
        daemon.stop().await;
    });
}

#[test]
fn a_client_that_hangs_up_while_it_destroys_has_done_so() {
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon().await;
        let sandbox = daemon.create().await;

        let address = daemon.url.strip_prefix("http://").expect("a URL");
        let mut stream = TcpStream::connect(address).await.expect("a connection");
        let request = format!(
            "DELETE /v1/sandboxes/{} HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {}\r\n\r\n",
            sandbox.id, daemon.key
        );
        stream.write_all(request.as_bytes()).await.expect("sent");
        eventually("the daemon has read it", || async { sandbox.state().await != "running" }).await;
        drop(stream);

        sandbox.becomes("stopped").await;
        assert!(!sandbox.dir().exists());
        daemon.stop().await;
    });
}

#[test]
fn a_sandbox_ends_when_its_time_is_over() {
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon().await;
        let wish = json!({ "memory_mb": 256, "timeout_sec": 4 });
        let sandbox = daemon.create_with(wish).await;
        // Work keeps it alive, beyond its time and for as long again afterwards.
        sandbox.sh("sleep 5").await;
        let worked = Instant::now();
        // A request that fails does not: it would end after six seconds.
        tokio::time::sleep(Duration::from_secs(2)).await;
        sandbox.try_read("/no/such/file").await.is_error(404, "not_found");
        assert_eq!(sandbox.state().await, "running");

        let over = || async { sandbox.state().await == "stopped" };
        eventually_within(Duration::from_secs(8), "it is over", &mut { over }).await;
        let after = worked.elapsed();
        assert!((3500..5900).contains(&after.as_millis()), "it ended after {after:?}");
        assert!(sandbox.look().await["reason"].as_str().expect("a reason").contains("4 s"));
        daemon.stop().await;
    });
}
