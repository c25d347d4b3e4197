//! A daemon that cannot do what it is asked to: a clear word, and nothing left.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};

use nix::mount::{MsFlags, mount, umount};
use serde_json::{Value, json};

use crate::support::{
    Engine, Lab, Options, SmallDisk, eventually, hypervisor_script, in_a_lab, path_with,
};

/// A daemon's command line, ready to be given more.
fn serve(lab: &Lab) -> Command {
    let mut command = lab.nestbox();
    command.args(["serve", "--listen", "127.0.0.1:0", "--image-dir"]).arg(lab.images());
    command
}

/// Runs a daemon that does not come up; returns what it said.
#[track_caller]
fn refused(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().expect("the program starts");
    let said = String::from_utf8_lossy(&stderr).into_owned();
    assert_eq!(status.code(), Some(125), "{said}");
    assert!(stdout.is_empty(), "{}", String::from_utf8_lossy(&stdout));
    assert!(!said.contains("panicked"), "{said}");
    let last = said.lines().last().unwrap_or_default().to_owned();
    assert!(last.starts_with("error: "), "{said}");
    last
}

#[test]
fn without_qemu_the_daemon_says_what_to_install() {
    in_a_lab(0, async |lab| {
        let programs = lab.path("programs");
        fs::create_dir(&programs).expect("a directory");
        for program in ["nft", "ip"] {
            let path = nestbox::vmm::find_program(program).expect(program);
            symlink(path, programs.join(program)).expect("a link");
        }
        let serve = &mut serve(lab);
        let said = refused(serve.env("PATH", &programs).env("NESTBOX_HYPERVISOR", "auto"));
        assert!(said.contains("qemu-system-x86_64") && said.contains("apt-get install"), "{said}");

        let mut doctor = lab.nestbox();
        doctor.arg("doctor").env("PATH", &programs).env("NESTBOX_HYPERVISOR", "auto");
        let doctor = doctor.output().expect("it starts");
        assert_eq!(doctor.status.code(), Some(1));
        let text = String::from_utf8_lossy(&doctor.stdout);
        assert!(text.contains("Sandboxes cannot run"), "{text}");
    });
}

#[test]
fn a_hypervisor_that_fails_is_quoted() {
    in_a_lab(0, async |lab| {
        let engine = Engine::present();
        hypervisor_script(&format!(
            "[ \"$1\" = --version ] && echo '{}' && exit\n\
             sleep 0.3; echo no such wonder >&2; exit 3",
            engine.says(engine.other_version()),
        ));
        let (images, path) = (Some(lab.cold_images()), Some(path_with()));
        let options = Options { images, path, slot_pool: 0, ..Options::default() };
        let mut daemon = lab.daemon_with(options).await;
        let idle = daemon.census();
        let answer = daemon.try_create(json!({})).await;
        let message = answer.is_error(502, "agent_error").message();
        assert!(message.contains("exited with code 3: no such wonder"), "{message}");
        daemon.is_back_to(&idle).await;
        daemon.stop().await;
    });
}

#[test]
fn firecracker_that_cannot_be_used_is_not_used() {
    in_a_lab(0, async |lab| {
        let firecracker = |program: &str| {
            let args = ["--hypervisor", "firecracker", "--firecracker", program];
            refused(serve(lab).args(args))
        };
        let said = firecracker("/no/such/program");
        assert!(said.contains("Firecracker cannot be used here"), "{said}");
        // One that was never tried with this daemon, wherever the CPU would let it run.
        let old = lab.path("firecracker");
        fs::write(&old, "#!/bin/sh\necho Firecracker v1.9.0\n").expect("a program");
        fs::set_permissions(&old, PermissionsExt::from_mode(0o755)).expect("it can be executed");
        let old = old.display().to_string();
        let mut doctor = lab.nestbox();
        doctor.args(["doctor", "--hypervisor", "auto", "--firecracker", &old]);
        let text = String::from_utf8(doctor.output().expect("it starts").stdout).expect("text");
        assert!(text.contains("is version 1.9.0, and 1.16 is what is supported"), "{text}");
        let said = firecracker(&old);
        assert!(said.contains("Firecracker cannot be used here"), "{said}");
    });
}

#[test]
fn what_a_hypervisor_cannot_take_over_is_not_ended() {
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon().await;
        let sandbox = daemon.create().await;
        daemon.stop().await;
        let record = sandbox.dir().join("sandbox.json");
        let ours = fs::read_to_string(&record).expect("a record");
        let (engine, other) = match Engine::present() {
            Engine::Qemu => ("qemu", "firecracker"),
            Engine::Firecracker => ("firecracker", "qemu_tcg"),
        };
        let mut theirs: Value = serde_json::from_str(&ours).expect("JSON");
        theirs["engine"] = other.into();
        fs::write(&record, theirs.to_string()).expect("written");
        let said = refused(serve(lab).args(["--hypervisor", engine]));
        assert!(said.contains("cannot take over"), "{said}");

        fs::write(&record, ours).expect("written");
        daemon.start_again().await;
        let sandbox = sandbox.through(daemon.api());
        assert_eq!(sandbox.sh("echo on").await, "on");
        sandbox.destroy().await;
        daemon.stop().await;
    });
}

#[test]
fn without_an_image_the_answer_names_the_command() {
    in_a_lab(0, async |lab| {
        let images = Some(lab.path("no-images"));
        let mut daemon =
            lab.daemon_with(Options { images, slot_pool: 0, ..Options::default() }).await;
        let idle = daemon.census();
        for template in ["debian", "no-such-image"] {
            let answer = daemon.try_create(json!({ "template": template })).await;
            answer.is_error(404, "not_found");
            assert!(answer.message().contains("nestbox image"), "{}", answer.message());
        }
        daemon.is_back_to(&idle).await;
        assert!(daemon.ids().await.is_empty(), "no trace in the list");
        daemon.stop().await;
    });
}

#[test]
fn a_port_that_is_taken_is_named_and_nothing_is_left() {
    in_a_lab(0, async |lab| {
        let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = taken.local_addr().expect("its number").to_string();
        let mut command = lab.nestbox();
        command.args(["serve", "--listen", &address, "--image-dir"]).arg(lab.images());
        let said = refused(&mut command);
        assert!(said.contains(&address) && said.contains("--listen"), "{said}");
    });
}

#[test]
fn a_data_directory_that_cannot_be_used_is_named() {
    in_a_lab(0, async |lab| {
        let file = lab.path("file");
        fs::write(&file, "x").expect("a file");
        for dir in [file.clone(), file.join("below"), "/proc/nestbox".into()] {
            let said = refused(serve(lab).arg("--data-dir").arg(&dir));
            assert!(said.contains(&dir.display().to_string()), "{said}");
        }

        let frozen = lab.path("frozen");
        fs::create_dir(&frozen).expect("a directory");
        let flags = MsFlags::MS_RDONLY;
        mount(Some("tmpfs"), &frozen, Some("tmpfs"), flags, None::<&str>).expect("a frozen disk");
        let said = refused(serve(lab).arg("--data-dir").arg(&frozen));
        assert!(said.contains("Read-only file system"), "{said}");
        umount(&frozen).expect("unmounted");
    });
}

#[test]
fn a_second_daemon_on_a_data_directory_is_refused_and_harms_nothing() {
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon().await;
        let sandbox = daemon.create().await;
        let said = refused(&mut serve(lab));
        assert!(said.contains("another daemon uses"), "{said}");
        assert_eq!(sandbox.sh("echo on").await, "on");
        let url = fs::read_to_string(lab.data_dir().join("url")).expect("the URL");
        assert_eq!(url.trim(), daemon.url);
        sandbox.destroy().await;
        daemon.stop().await;
    });
}

#[test]
fn without_root_the_daemon_says_so() {
    in_a_lab(0, async |_| {
        // The build's directory may be closed to others.
        let program = std::path::Path::new("/run/nestbox-program");
        fs::copy(env!("CARGO_BIN_EXE_nestbox"), program).expect("a copy");
        let data_dir = std::path::Path::new("/run/nestbox-data");
        let mut command = Command::new(program);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.args(["serve", "--listen", "127.0.0.1:0", "--data-dir"]).arg(data_dir);
        let said = refused(command.uid(65534).gid(65534));
        assert!(said.contains("root"), "{said}");
        assert!(!data_dir.exists(), "nothing was made");

        let mut doctor = Command::new(program);
        doctor.env_clear().args(["doctor", "--data-dir"]).arg(data_dir).uid(65534).gid(65534);
        let output = doctor.output().expect("it starts");
        assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(String::from_utf8_lossy(&output.stdout).contains("root"));
    });
}

#[test]
fn a_data_directory_may_be_deep_and_its_parents_closed() {
    in_a_lab(1, async |lab| {
        let deep = lab.path(&"d".repeat(120)).join("e".repeat(100)).join("data");
        assert!(deep.as_os_str().len() > 200);
        let text = |path: &std::path::Path| path.display().to_string();
        fs::create_dir_all(&deep).expect("a directory");
        // The lab's daemon works in a place of one name, which stands for the deep one.
        symlink(&deep, lab.data_dir()).expect("a link");
        let mut daemon = lab.daemon().await;
        let sandbox = daemon.create().await;
        assert_eq!(sandbox.sh("echo here").await, "here");
        daemon.kill9().await;
        daemon.start_again().await;
        let sandbox = sandbox.through(daemon.api());
        assert_eq!(sandbox.sh("echo still").await, "still");
        sandbox.destroy().await;
        daemon.stop().await;

        // By its own name, too.
        let mut process = lab.nestbox();
        process.args(["serve", "--listen", "127.0.0.1:0", "--image-dir", &text(lab.images())]);
        process.args(["--data-dir", &text(&deep)]);
        let mut process = process.stdout(std::process::Stdio::null()).spawn().expect("it starts");
        eventually("it runs", || async { deep.join("url").exists() }).await;
        let output =
            lab.nestbox().args(["run", "--data-dir", &text(&deep), "--", "hostname"]).output();
        let output = output.expect("it starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let pid = nix::unistd::Pid::from_raw(process.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("it hears");
        assert!(process.wait().expect("it ends").success());
        fs::remove_file(lab.data_dir()).expect("the link");
        fs::remove_dir_all(lab.path(&"d".repeat(120))).expect("the deep one");
    });
}

#[test]
fn a_disk_that_is_too_small_for_an_image_is_full() {
    in_a_lab(1, async |lab| {
        let disk = SmallDisk::mount(&lab.path("disk"), lab.data_dir(), 64);
        let mut daemon = lab.daemon_with(Options { slot_pool: 0, ..Options::default() }).await;
        let idle = daemon.census();
        // Images are on another disk, so their warm snapshots are kept on this one.
        daemon.try_create(json!({ "memory_mb": 256 })).await.is_error(507, "no_space");
        daemon.is_back_to(&idle).await;
        daemon.stop().await;
        disk.unmount();
    });
}

#[test]
fn a_full_disk_of_the_host_refuses_new_sandboxes_and_nothing_else() {
    in_a_lab(1, async |lab| {
        let disk = SmallDisk::mount(&lab.path("disk"), lab.data_dir(), 1024);
        let database = Some(lab.path("nestbox.db"));
        let mut daemon =
            lab.daemon_with(Options { database, slot_pool: 0, ..Options::default() }).await;
        let sandbox = daemon.create().await;
        // A kernel whose disk fails says so on its console, which is a file from its first word on.
        let word = json!({ "cmd": "echo here > /dev/console", "user": "root" });
        assert_eq!(sandbox.exec(word).await.exit_code, 0);
        let console = sandbox.dir().join("console.log");
        eventually("its console has a file", || async { console.exists() }).await;
        let before = daemon.census();

        disk.fill();
        let answer = daemon.try_create(json!({ "memory_mb": 256 })).await;
        answer.is_error(507, "no_space");
        assert_eq!(sandbox.sh("echo on").await, "on");
        // A guest that needs more of the disk is told, not frozen for ever.
        let greedy = "dd if=/dev/urandom of=big bs=1M count=20 conv=fsync";
        let output = sandbox.exec(json!({ "cmd": greedy, "timeout_sec": 30 })).await;
        assert!(!output.timed_out && output.exit_code != 0, "{output:?}");
        assert_eq!(sandbox.sh("echo still").await, "still");
        disk.free();
        daemon.is_back_to(&before).await;

        sandbox.destroy().await;
        daemon.create().await.destroy().await;
        daemon.stop().await;
        disk.unmount();
    });
}

#[test]
fn more_than_the_host_has_is_refused() {
    in_a_lab(0, async |lab| {
        let mut daemon = lab.daemon().await;
        for wish in [
            json!({ "vcpus": 0 }),
            json!({ "vcpus": 4096 }),
            json!({ "memory_mb": 0 }),
            json!({ "memory_mb": 1 << 30 }),
        ] {
            daemon.try_create(wish).await.is_error(400, "invalid_request");
        }
        daemon.stop().await;
    });
}

#[test]
fn two_daemons_on_one_machine_leave_each_other_alone() {
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon().await;
        let sandbox = daemon.create().await;
        // Another daemon on the same machine comes and goes.
        let other = lab.path("other");
        let mut process = serve(lab);
        process.arg("--data-dir").arg(&other).stdout(std::process::Stdio::null());
        let mut process = process.spawn().expect("it starts");
        eventually("it runs", || async { other.join("url").exists() }).await;
        let pid = nix::unistd::Pid::from_raw(process.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("it hears");
        assert!(process.wait().expect("it ends").success());
        assert_eq!(sandbox.sh("echo on").await, "on");
        let filter = crate::support::run("nft list tables");
        assert!(filter.contains("nestbox"), "the filter is still needed: {filter:?}");
        sandbox.destroy().await;
        daemon.stop().await;
        assert!(!crate::support::run("nft list tables").contains("nestbox"));
    });
}
