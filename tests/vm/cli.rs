//! The command line against a real daemon.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::support::{Engine, eventually, in_a_lab, lives};

#[test]
fn the_command_line_does_it_all() {
    in_a_lab(2, async |lab| {
        let mut daemon = lab.daemon().await;
        let created: Value = serde_json::from_str(&lab.cli_ok(&[
            "create",
            "--json",
            "--memory-mb",
            "256",
            "-m",
            "a=b",
        ]))
        .expect("JSON");
        let id = created["id"].as_str().expect("an id");
        assert_eq!(created["state"], "running");
        let second = lab.cli_ok(&["create", "--memory-mb", "256"]).trim().to_owned();

        let list = lab.cli_ok(&["ls"]);
        assert!(list.contains(id) && list.contains(&second), "{list}");
        let list: Value = serde_json::from_str(&lab.cli_ok(&["ls", "--json"])).expect("JSON");
        assert_eq!(list["sandboxes"].as_array().expect("a list").len(), 2);
        assert!(!lab.cli_ok(&["ls", "-m", "a=b"]).contains(&second));
        assert!(lab.cli_ok(&["get", id]).contains("running"));

        let output = lab.cli(&["exec", id, "--", "sh", "-c", "echo out; echo err >&2; exit 42"]);
        assert_eq!(output.status.code(), Some(42));
        assert_eq!(output.stdout, b"out\n");
        assert_eq!(output.stderr, b"err\n");
        assert_eq!(lab.cli(&["exec", id, "--", "no-such-program"]).status.code(), Some(127));
        let late = lab.cli(&["exec", id, "--timeout-sec", "1", "--", "sleep", "60"]);
        assert_eq!(late.status.code(), Some(124));
        let told: Value =
            serde_json::from_str(&lab.cli_ok(&["exec", "--json", id, "--", "echo", "hi"]))
                .expect("JSON");
        assert_eq!((&told["stdout"], &told["exit_code"]), (&"hi\n".into(), &0.into()));
        // A beginning that no other sandbox has will do.
        let unique = (1..=id.len()).find(|n| !second.starts_with(&id[..*n])).expect("they differ");
        assert_eq!(lab.cli_ok(&["exec", &id[..unique], "--", "hostname"]).trim(), id);

        assert_eq!(lab.cli_ok(&["rm", &second]).trim(), second);
        lab.cli_ok(&["rm", "--all"]);
        assert!(!lab.cli_ok(&["ls"]).contains(id));
        assert!(lab.cli_ok(&["ls", "--all"]).contains(id));
        assert_eq!(lab.cli(&["exec", id, "--", "true"]).status.code(), Some(125));
        lab.cli_ok(&["rm", id]);
        daemon.stop().await;
    });
}

#[test]
fn files_are_copied_both_ways() {
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon().await;
        let sandbox = daemon.create().await;
        let id = &sandbox.id;
        let content: Vec<u8> =
            (0..100_000u32).map(|number| (number.wrapping_mul(number) >> 7) as u8).collect();
        let (here, back) = (lab.path("here"), lab.path("back"));
        fs::write(&here, &content).expect("a file");
        lab.cli_ok(&["cp", &here.display().to_string(), &format!("{id}:/tmp/there")]);
        lab.cli_ok(&["cp", &format!("{id}:/tmp/there"), &back.display().to_string()]);
        assert!(fs::read(&back).expect("the copy") == content, "the copy differs");

        let mut child = lab.nestbox();
        child.args(["cp", "-", &format!("{id}:piped")]).stdin(Stdio::piped());
        let mut child = child.spawn().expect("it starts");
        child.stdin.take().expect("piped").write_all(&content).expect("it reads");
        assert!(child.wait().expect("it ends").success());
        let output = lab.cli(&["cp", &format!("{id}:/home/user/piped"), "-"]);
        assert!(output.status.success() && output.stdout == content, "the copy differs");

        let missing = lab.cli(&["cp", &format!("{id}:/no/such/file"), "-"]);
        assert_eq!(missing.status.code(), Some(125));
        assert!(missing.stdout.is_empty());
        sandbox.destroy().await;
        daemon.stop().await;
    });
}

#[test]
fn directories_are_copied_both_ways() {
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon().await;
        let sandbox = daemon.create().await;
        let id = &sandbox.id;
        let (here, back) = (lab.path("here"), lab.path("back"));
        let script = "#!/bin/sh\necho ran\n";
        let noise: Vec<u8> = (0..300_000u32).map(|n| (n.wrapping_mul(n) >> 7) as u8).collect();
        fs::create_dir_all(here.join("sub/empty")).expect("directories");
        fs::write(here.join("sub/noise"), &noise).expect("a file");
        fs::write(here.join("run.sh"), script).expect("a file");
        fs::set_permissions(here.join("run.sh"), fs::Permissions::from_mode(0o750))
            .expect("a mode");
        std::os::unix::fs::symlink("sub/noise", here.join("link")).expect("a link");
        let from = here.display().to_string();
        let same = |other: &std::path::Path| {
            let other = other.display();
            crate::support::run(&format!("diff -r --no-dereference {from} {other}"));
        };

        // As cp(1): a new name, or into a directory that is there, or only what is in it.
        lab.cli_ok(&["cp", "-r", &from, &format!("{id}:new")]);
        lab.cli_ok(&["cp", "-r", &from, &format!("{id}:new")]);
        lab.cli_ok(&["cp", "-r", &format!("{from}/."), &format!("{id}:all")]);
        assert_eq!(
            sandbox.sh("new/run.sh; new/here/run.sh; all/run.sh; readlink new/link").await,
            "ran\nran\nran\nsub/noise"
        );
        assert_eq!(sandbox.sh("stat -c '%U %a' new/run.sh new/sub").await, "user 750\nuser 755");

        let to = back.display().to_string();
        lab.cli_ok(&["cp", "-r", &format!("{id}:all"), &to]);
        same(&back);
        let told: Value =
            serde_json::from_str(&lab.cli_ok(&["cp", "-r", "--json", &format!("{id}:all"), &to]))
                .expect("JSON");
        assert_eq!(
            (&told["entries"], &told["size"]),
            (&5.into(), &(noise.len() + script.len()).into())
        );
        same(&back.join("all"));
        let archive = lab.cli(&["cp", "-r", &format!("{id}:all"), "-"]);
        assert!(archive.status.success() && archive.stderr.is_empty());
        let mut again = lab.nestbox();
        again.args(["cp", "-r", "-", &format!("{id}:again")]).stdin(Stdio::piped());
        let mut again = again.spawn().expect("it starts");
        again.stdin.take().expect("piped").write_all(&archive.stdout).expect("it reads");
        assert!(again.wait().expect("it ends").success());
        assert_eq!(sandbox.sh("diff -r --no-dereference all again && echo same").await, "same");
        // With -r a file is a file.
        lab.cli_ok(&["cp", "-r", &format!("{from}/run.sh"), &format!("{id}:file")]);
        lab.cli_ok(&["cp", "-r", &format!("{id}:file"), &lab.path("file").display().to_string()]);
        assert_eq!(fs::read(lab.path("file")).expect("a file"), script.as_bytes());

        for (args, word) in [
            (["cp", &from, &format!("{id}:x")], "cp -r"),
            (["cp", &format!("{id}:all"), &to], "directory"),
        ] {
            let refused = lab.cli(&args);
            let said = String::from_utf8_lossy(&refused.stderr).into_owned();
            assert!(refused.status.code() == Some(125) && said.contains(word), "{said}");
        }
        sandbox.destroy().await;
        daemon.stop().await;
    });
}

/// The agent's host does not trust it: here stands a guest that sends what its files cannot be.
#[test]
fn a_copy_out_of_a_sandbox_stays_in_its_directory() {
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon().await;
        let sandbox = daemon.create().await;
        let id = &sandbox.id;
        for make in ["ln -s /etc/passwd d/link", "ln -s ../../up d/link"] {
            sandbox.sh(&format!("rm -rf d; mkdir d; echo x > d/z; {make}")).await;
            let to = lab.path("to");
            let copied = lab.cli(&["cp", "-r", &format!("{id}:d"), &to.display().to_string()]);
            let said = String::from_utf8_lossy(&copied.stderr).into_owned();
            assert!(copied.status.success() && said.contains("left out a link"), "{said}");
            let names = fs::read_dir(&to).expect("a directory").flatten();
            assert_eq!(names.map(|entry| entry.file_name()).collect::<Vec<_>>(), ["z"]);
            fs::remove_dir_all(&to).expect("it is there");
        }
        // `ID:` is the home, and a script can be run as it was here.
        let script = lab.path("script");
        fs::write(&script, "#!/bin/sh\necho ran\n").expect("a file");
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("a mode");
        let here = script.display().to_string();
        lab.cli_ok(&["cp", &here, &format!("{id}:")]);
        assert_eq!(sandbox.sh("/home/user/script").await, "ran");
        let denied = lab.cli(&["cp", &here, &format!("{id}:/etc/script")]);
        let said = String::from_utf8_lossy(&denied.stderr).into_owned();
        assert!(denied.status.code() == Some(125) && said.contains("to /etc/script"), "{said}");
        lab.cli_ok(&["cp", "--user", "root", &here, &format!("{id}:/etc/script")]);
        assert_eq!(sandbox.sh("stat -c '%U %a' /etc/script").await, "root 755");
        sandbox.destroy().await;
        daemon.stop().await;
    });
}

#[test]
fn run_is_a_sandbox_for_one_command() {
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon().await;
        let output = lab.cli(&["run", "--memory-mb", "256", "--", "sh", "-c", "uname -s; exit 9"]);
        assert_eq!(output.status.code(), Some(9), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.stdout, b"Linux\n");
        assert!(daemon.ids().await.is_empty());

        // ^C takes the sandbox along.
        let mut child = lab.nestbox();
        let mut child = child.args(["run", "--", "sleep", "1000"]).spawn().expect("it starts");
        crate::support::eventually("it sleeps", || async {
            match daemon.ids().await.first() {
                Some(id) => daemon.sandbox(id).state().await == "running",
                None => false,
            }
        })
        .await;
        let pid = nix::unistd::Pid::from_raw(child.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).expect("it hears");
        assert_eq!(child.wait().expect("it ends").code(), Some(130));
        assert!(daemon.ids().await.is_empty());
        daemon.stop().await;
    });
}

#[test]
fn keys_are_made_used_and_taken_back() {
    in_a_lab(0, async |lab| {
        let mut daemon = lab.daemon().await;
        let made: Value =
            serde_json::from_str(&lab.cli_ok(&["key", "create", "ci", "--json"])).expect("JSON");
        let (id, key) = (made["id"].as_str().expect("an id"), made["key"].as_str().expect("a key"));
        let list = lab.cli_ok(&["key", "ls"]);
        assert!(list.contains(id) && !list.contains(key), "{list}");
        lab.cli_ok(&["ls", "--url", &daemon.url, "--api-key", key]);
        lab.cli_ok(&["key", "rm", id]);
        let refused = lab.cli(&["ls", "--url", &daemon.url, "--api-key", key]);
        assert_eq!(refused.status.code(), Some(125));
        daemon.stop().await;
        let alone = lab.cli(&["ls"]);
        assert_eq!(alone.status.code(), Some(125));
        let said = String::from_utf8_lossy(&alone.stderr);
        assert!(said.contains("nestbox serve"), "{said}");
    });
}

#[test]
fn doctor_says_what_sandboxes_would_run_under() {
    in_a_lab(0, async |lab| {
        let images = lab.images().display().to_string();
        let text = lab.cli_ok(&["doctor", "--image-dir", &images]);
        let engine = match Engine::present() {
            Engine::Qemu => "qemu-",
            Engine::Firecracker => "firecracker ",
        };
        assert!(text.contains(&format!("Sandboxes run under {engine}")), "{text}");
        let report = lab.cli_ok(&["doctor", "--json", "--image-dir", &images]);
        let report: Value = serde_json::from_str(&report).expect("JSON");
        assert!(report["hypervisor"].as_str().expect("a text").starts_with(engine));
        assert!(!report["reason"].as_str().expect("a text").is_empty());
        let checks = report["checks"].as_array().expect("a list");
        assert!(checks.len() > 8, "{checks:?}");
        assert!(!lab.data_dir().exists(), "asking makes nothing");
    });
}

#[test]
fn the_demo_passes_twice_and_leaves_nothing() {
    in_a_lab(1, async |lab| {
        let base = lab.data_dir();
        fs::create_dir(base).expect("a directory");
        std::os::unix::fs::symlink(lab.images(), base.join("images")).expect("a link");
        for round in 1..=2 {
            let output = lab.cli(&["demo"]);
            let text = String::from_utf8_lossy(&output.stdout);
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "round {round}: {errors}");
            assert!(text.trim_end().ends_with("demo passed"), "round {round}: {text}");
            assert!(!errors.contains("\x1b["), "no terminal, no colours: {errors:?}");
            let left: Vec<_> =
                fs::read_dir(base).expect("it").flatten().map(|e| e.file_name()).collect();
            assert_eq!(left, ["images"], "round {round}");
        }
        fs::remove_file(base.join("images")).expect("the link");
    });
}

/// The end of a pipe that nobody reads.
fn unread() -> Stdio {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    writer.into()
}

#[test]
fn nothing_panics_because_nobody_reads_what_it_prints() {
    in_a_lab(0, async |lab| {
        let images = lab.images().display().to_string();
        let asked =
            lab.nestbox().args(["doctor", "--image-dir", &images]).stdout(unread()).output();
        let said = String::from_utf8_lossy(&asked.as_ref().expect("it runs").stderr).into_owned();
        assert!(asked.expect("it runs").status.success(), "{said}");

        let serve = ["serve", "--listen", "127.0.0.1:0", "--slot-pool", "0", "--standbys", "0"];
        let mut serve = lab
            .nestbox()
            .args(serve)
            .args(["--image-dir", &images])
            .args(["--vmm-pool", "0"])
            .args(["--allow-missing", "seccomp"])
            .stdout(unread())
            .stderr(unread())
            .spawn()
            .expect("it starts");
        eventually("it answers", || async { lab.cli(&["ls"]).status.success() }).await;
        let pid = Pid::from_raw(serve.id().try_into().expect("a pid"));
        kill(pid, Signal::SIGTERM).expect("it lives");
        assert!(serve.wait().expect("a child").success());
    });
}

#[test]
fn the_daemon_of_a_program_that_is_killed_ends_after_the_last_lease() {
    in_a_lab(1, async |lab| {
        let mut serve = lab.nestbox();
        serve.args(["serve", "--end-with-stdin", "--listen", "127.0.0.1:0", "--image-dir"]);
        serve.arg(lab.images()).stdin(Stdio::piped()).stdout(Stdio::null());
        let mut daemon = serve.spawn().expect("it starts");
        eventually("it runs", || async { lab.data_dir().join("url").exists() }).await;
        let mut client = lab.nestbox();
        client.args([
            "run",
            "--rm",
            "--memory-mb",
            "256",
            "--lease-sec",
            "4",
            "--",
            "sleep",
            "1000",
        ]);
        let mut client = client.spawn().expect("it starts");
        eventually("its sandbox runs", || async { lab.cli_ok(&["ls"]).contains("running") }).await;
        client.kill().expect("it can be killed");
        client.wait().expect("it can be reaped");
        drop(daemon.stdin.take());
        let pid = i32::try_from(daemon.id()).expect("a pid");
        eventually("the daemon ends", || async { !lives(pid) }).await;
        assert!(daemon.wait().expect("it can be reaped").success());
    });
}
