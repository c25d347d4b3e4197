//! Images are booted once, and sandboxes are ready before they are asked for.

use std::collections::HashSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use chrono::Utc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::support::{
    Daemon, Lab, Options, Sandbox, SmallDisk, eventually, in_a_lab, lives, two_vcpus,
};

const BOOT: &str = "booting an image to freeze it";

fn boots(log: &str) -> usize {
    log.matches(BOOT).count()
}

/// Names of the warm snapshots, and of what is not finished.
fn warm(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name != ".lock").collect()
}

fn warm_beside(images: &Path) -> PathBuf {
    images.join("debian/warm")
}

fn cold(lab: &Lab) -> Options {
    Options { images: Some(lab.cold_images()), slot_pool: 0, ..Options::default() }
}

#[test]
fn sandboxes_that_are_made_at_once_share_one_boot_for_each_shape() {
    in_a_lab(4, async |lab| {
        let options = cold(lab);
        let dir = warm_beside(&lab.cold_images());
        let mut daemon = lab.daemon_with(options).await;
        let made = tokio::join!(daemon.create(), daemon.create(), daemon.create(), daemon.create());
        for sandbox in [made.0, made.1, made.2, made.3] {
            assert_eq!(sandbox.sh("echo on").await, "on");
            sandbox.destroy().await;
        }
        assert_eq!(boots(&daemon.log()), 1);
        let first = warm(&dir);
        assert_eq!(first.len(), 1, "{first:?}");
        assert!(first[0].starts_with("1x256-"), "{first:?}");

        let vcpus = two_vcpus();
        let other = daemon.create_with(json!({ "vcpus": vcpus, "memory_mb": 320 })).await;
        assert_eq!(other.sh("nproc").await, vcpus.to_string());
        other.destroy().await;
        assert_eq!(boots(&daemon.log()), 2);
        let both = warm(&dir);
        assert_eq!(both.len(), 2, "{both:?}");
        assert!(
            both.contains(&first[0])
                && both.iter().any(|name| name.starts_with(&format!("{vcpus}x320-")))
        );

        // It outlives the daemon.
        daemon.stop().await;
        daemon.start_again().await;
        daemon.create().await.destroy().await;
        assert_eq!(boots(&daemon.log()), 2);
        daemon.stop().await;
    });
}

/// A daemon with data of its own beside the lab's.
struct Other {
    process: Child,
    data_dir: PathBuf,
    log: PathBuf,
}

impl Other {
    async fn start(lab: &Lab, images: &Path) -> Self {
        let (data_dir, log) = (lab.path("other"), lab.path("other.log"));
        let mut command = lab.nestbox();
        command.args(["serve", "--listen", "127.0.0.1:0"]);
        command.args(["--slot-pool", "0", "--standbys", "0", "--vmm-pool", "0"]);
        command.arg("--data-dir").arg(&data_dir).arg("--image-dir").arg(images);
        command.stdout(Stdio::null()).stderr(File::create(&log).expect("a file"));
        let process = command.spawn().expect("it starts");
        eventually("it runs", || async { data_dir.join("url").exists() }).await;
        Self { process, data_dir, log }
    }

    fn cli(&self, lab: &Lab) -> Command {
        let mut command = lab.nestbox();
        command.env("NESTBOX_DATA_DIR", &self.data_dir);
        command
    }

    fn stop(mut self) -> String {
        let pid = Pid::from_raw(i32::try_from(self.process.id()).expect("a pid"));
        kill(pid, Signal::SIGTERM).expect("it hears");
        assert!(self.process.wait().expect("it ends").success());
        fs::read_to_string(&self.log).expect("its log")
    }
}

#[test]
fn daemons_that_share_images_do_not_both_boot_one() {
    in_a_lab(2, async |lab| {
        let images = lab.cold_images();
        let mut daemon = lab.daemon_with(cold(lab)).await;
        let other = Other::start(lab, &images).await;
        let mut command = other.cli(lab);
        command.args(["run", "--memory-mb", "256", "--", "echo", "on"]).stdout(Stdio::piped());
        let running = command.spawn().expect("it starts");
        let sandbox = daemon.create().await;
        let output = tokio::task::spawn_blocking(|| running.wait_with_output());
        let output = output.await.expect("no panic").expect("its output");
        assert_eq!(output.stdout, b"on\n", "{}", output.status);
        sandbox.destroy().await;
        let log = other.stop();
        assert_eq!(boots(&daemon.log()) + boots(&log), 1, "{log}");
        assert_eq!(warm(&warm_beside(&images)).len(), 1);
        daemon.stop().await;
    });
}

#[test]
fn a_boot_that_is_cut_short_leaves_nothing() {
    in_a_lab(1, async |lab| {
        let dir = warm_beside(&lab.cold_images());
        let mut daemon = lab.daemon_with(cold(lab)).await;
        let idle = daemon.census();
        let api = daemon.api().clone();
        let creating =
            tokio::spawn(async move { api.try_create(json!({ "memory_mb": 256 })).await });
        let vm = daemon.starting().await.vm_pid();
        daemon.kill9().await;
        assert_eq!(creating.await.expect("no panic").status, 0);
        // As if it had come as far as writing the snapshot.
        fs::create_dir(dir.join("1x256-unfinished.new")).expect("a directory");
        fs::write(dir.join("1x256-unfinished.new/memfile"), "half of it").expect("a file");

        daemon.start_again().await;
        daemon.is_back_to(&idle).await;
        assert!(!lives(vm));
        let sandbox = daemon.create().await;
        assert_eq!(sandbox.sh("echo on").await, "on");
        sandbox.destroy().await;
        let made = warm(&dir);
        assert!(made.len() == 1 && !made[0].ends_with(".new"), "{made:?}");
        assert_eq!(boots(&daemon.log()), 2);
        daemon.is_back_to(&idle).await;
        daemon.stop().await;
    });
}

#[test]
fn images_may_be_on_another_disk_than_the_data() {
    in_a_lab(2, async |lab| {
        let images = lab.cold_images();
        let disk = SmallDisk::mount(&lab.path("disk"), lab.data_dir(), 2048);
        let mut daemon = lab.daemon_with(cold(lab)).await;
        let sandbox = daemon.create().await;
        sandbox.sh("echo kept > kept").await;
        sandbox.pause().await;
        sandbox.resume().await;
        let child = sandbox.fork(1).await.remove(0);
        assert_eq!(child.sh("cat kept").await, "kept");
        for sandbox in [child, sandbox] {
            sandbox.destroy().await;
        }
        daemon.create().await.destroy().await;
        assert_eq!(boots(&daemon.log()), 1);
        assert_eq!(warm(&lab.data_dir().join("warm/debian")).len(), 1);
        assert!(warm(&warm_beside(&images)).is_empty());
        daemon.stop().await;
        disk.unmount();
    });
}

/// The machine that stands by: it has a VM, and is nobody's.
async fn standby(daemon: &Daemon) -> Sandbox {
    eventually("a machine stands by", || async { !daemon.unclaimed().await.is_empty() }).await;
    let found = daemon.unclaimed().await.remove(0);
    // It does nothing any more: it is frozen.
    let idle = || async {
        let before = ticks(found.vm_pid());
        tokio::time::sleep(Duration::from_millis(1500)).await;
        ticks(found.vm_pid()) - before <= 2
    };
    eventually("it is frozen", idle).await;
    found
}

/// Time that a process has taken, in hundredths of a second.
fn ticks(pid: i32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it lives");
    let (_, words) = stat.rsplit_once(") ").expect("a name");
    // proc(5): utime and stime are the 14th and 15th word; these begin with the 3rd.
    words.split(' ').skip(11).take(2).map(|word| word.parse::<u64>().expect("a number")).sum()
}

const RANDOM: &str =
    "cat /proc/sys/kernel/random/uuid; python3 -c 'import os; print(os.urandom(9).hex())'";

#[test]
fn a_sandbox_that_stood_by_is_as_any_other() {
    in_a_lab(3, async |lab| {
        let options = Options { standbys: 1, slot_pool: 0, ..Options::default() };
        let mut daemon = lab.daemon_with(options).await;
        let first = daemon.create().await;
        let (mut said, mut sandboxes) = (vec![first.sh(RANDOM).await], vec![first]);
        for number in 1..=2 {
            let waiting = standby(&daemon).await;
            let (id, vm) = (waiting.id.clone(), waiting.vm_pid());
            assert!(!sandboxes.iter().any(|known: &Sandbox| known.id == id), "it is another one");
            daemon.get(&format!("/v1/sandboxes/{id}")).await.is_error(404, "not_found");
            // Its guest's clock has stood still.
            tokio::time::sleep(Duration::from_secs(2)).await;

            let envs = json!({ "NUMBER": number.to_string() });
            let wish = json!({ "memory_mb": 256, "envs": envs, "metadata": { "a": "b" } });
            let sandbox = daemon.create_with(wish).await;
            assert_eq!((&sandbox.id, sandbox.vm_pid()), (&id, vm), "it was made before");
            let before = Utc::now().timestamp_micros();
            let guest = sandbox.sh("date +%s%6N").await.parse::<i64>().expect("microseconds");
            let after = Utc::now().timestamp_micros();
            let off = (before - guest).max(guest - after).max(0);
            assert!(off <= 50_000, "the guest's clock is off by {off} us");
            assert_eq!(sandbox.sh("hostname; echo $NUMBER").await, format!("{id}\n{number}"));
            assert_eq!(sandbox.look().await["metadata"], json!({ "a": "b" }));
            let token = sandbox.record()["access_token"].as_str().expect("a token").to_owned();
            assert!(token.len() > 16, "{token:?}");
            said.push(sandbox.sh(RANDOM).await);
            sandboxes.push(sandbox);
            if number == 1 {
                sandboxes.remove(0).destroy().await;
            }
        }
        let values: HashSet<&str> = said.iter().flat_map(|text| text.lines()).collect();
        assert_eq!(values.len(), 2 * said.len(), "{said:#?}");
        let tokens: HashSet<String> =
            sandboxes.iter().map(|it| it.record()["access_token"].to_string()).collect();
        assert_eq!(tokens.len(), sandboxes.len());
        for sandbox in sandboxes {
            sandbox.destroy().await;
        }
        daemon.stop().await;
    });
}

#[test]
fn no_standby_is_left_when_the_daemon_ends_however_it_does() {
    in_a_lab(2, async |lab| {
        let options = Options { standbys: 1, slot_pool: 0, ..Options::default() };
        let mut daemon = lab.daemon_with(options).await;
        daemon.create().await.destroy().await;
        let vm = standby(&daemon).await.vm_pid();
        daemon.kill9().await;
        assert!(lives(vm), "nobody ended it");
        daemon.start_again().await;
        assert!(!lives(vm), "nobody asked for it");
        assert!(daemon.ids().await.is_empty());

        daemon.create().await.destroy().await;
        let vm = standby(&daemon).await.vm_pid();
        daemon.stop().await;
        assert!(!lives(vm));
        assert_eq!(daemon.census().count("files"), 0);
    });
}
