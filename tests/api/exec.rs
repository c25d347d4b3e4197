//! Commands: what they print, how they end, what they may be told.

use std::time::{Duration, Instant};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use nestbox::http::OUTPUT_LIMIT;
use nestbox::vmm::simulated::{Mode, Step};
use serde_json::{Value, json};

use crate::nest::{Nest, eventually, process_lives};
use crate::skip::is_root;

#[actix_web::test]
async fn a_command_gives_its_output_and_exit_code() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let done = nest.exec(&id, json!({"cmd": "echo out; echo err >&2; exit 3"})).await;
    assert_eq!((&done["stdout"], &done["stderr"]), (&json!("out\n"), &json!("err\n")));
    assert_eq!((&done["exit_code"], &done["encoding"]), (&json!(3), &json!("utf-8")));
    assert_eq!((&done["timed_out"], &done["truncated"]), (&json!(false), &json!(false)));
    assert!(done["duration_ms"].as_u64().unwrap() < 30_000);
}

#[actix_web::test]
async fn a_line_goes_to_a_shell_and_arguments_go_as_they_are() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    assert_eq!(nest.sh(&id, "echo $((6 * 7)) | tr 4 9").await, "92\n");

    let args = json!({"cmd": "printf", "args": ["%s|", "$HOME", "a b", "", "*", "\u{e9}", "-n"]});
    let done = nest.exec(&id, args).await;
    assert_eq!(done["stdout"], "$HOME|a b||*|\u{e9}|-n|");

    let done = nest.exec(&id, json!({"cmd": "true; false", "args": []})).await;
    assert_eq!(done["exit_code"], 127, "no shell looks at a program's name: {done}");
}

#[actix_web::test]
async fn a_missing_command_is_exit_code_127_and_no_failure_of_the_request() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    for body in [
        json!({"cmd": "no-such-command", "args": ["x"]}),
        json!({"cmd": "/no/such/command", "args": []}),
        json!({"cmd": "no-such-command"}),
    ] {
        let done = nest.exec(&id, body).await;
        assert_eq!(done["exit_code"], 127, "{done}");
        assert!(done["stderr"].as_str().unwrap().contains("no"), "{done}");
    }
}

#[actix_web::test]
async fn a_file_that_cannot_be_executed_is_exit_code_126() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    for cmd in ["/etc/passwd", "/etc"] {
        let done = nest.exec(&id, json!({"cmd": cmd, "args": []})).await;
        assert_eq!(done["exit_code"], 126, "{done}");
    }
}

#[actix_web::test]
async fn an_end_by_a_signal_is_128_and_its_number() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    assert_eq!(nest.exec(&id, json!({"cmd": "kill -9 $$"})).await["exit_code"], 137);
    assert_eq!(nest.exec(&id, json!({"cmd": "kill $$"})).await["exit_code"], 143);
}

#[actix_web::test]
async fn standard_input_is_at_its_end() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let done = nest.exec(&id, json!({"cmd": "cat", "args": [], "timeout_sec": 20})).await;
    assert_eq!((&done["exit_code"], &done["stdout"]), (&json!(0), &json!("")));
}

#[actix_web::test]
async fn output_that_is_no_text_is_base64() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let line = r"printf '\377\000\001'; printf plain >&2";
    let done = nest.exec(&id, json!({"cmd": line})).await;
    assert_eq!(done["encoding"], "base64");
    let decoded = |field: &str| BASE64_STANDARD.decode(done[field].as_str().unwrap()).unwrap();
    assert_eq!((decoded("stdout"), decoded("stderr")), (vec![255, 0, 1], b"plain".to_vec()));

    let nul = nest.exec(&id, json!({"cmd": r"printf 'a\000b'"})).await;
    assert_eq!((&nul["encoding"], &nul["stdout"]), (&json!("utf-8"), &json!("a\0b")));
}

#[actix_web::test]
async fn text_that_is_cut_in_a_character_stays_text() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let line = "yes \u{20ac} | tr -d '\\n' | head -c 9000000";
    let done = nest.exec(&id, json!({"cmd": line})).await;
    assert_eq!((&done["encoding"], &done["truncated"]), (&json!("utf-8"), &json!(true)));
    let kept = done["stdout"].as_str().unwrap();
    assert_eq!(kept.len(), OUTPUT_LIMIT - OUTPUT_LIMIT % 3);
    assert!(kept.chars().all(|c| c == '\u{20ac}'));
}

/// Memory is the whole process's, so the work is done in a process of its own.
#[test]
fn a_command_that_prints_100_mb_is_cut_in_flat_memory() {
    let alone = "exec::one_hundred_megabytes_alone";
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", alone, "--ignored", "--test-threads", "1"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[actix_web::test]
#[ignore = "run in a process of its own by another test"]
async fn one_hundred_megabytes_alone() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    nest.sh(&id, "true").await;
    let before = peak_mib();
    let line = "head -c 100000000 /dev/zero | tr '\\0' x; echo done >&2";
    let done = nest.exec(&id, json!({"cmd": line})).await;
    assert_eq!((&done["exit_code"], &done["stderr"]), (&json!(0), &json!("done\n")));
    assert_eq!(done["truncated"], true);
    let kept = done["stdout"].as_str().unwrap();
    assert!(kept.len() == OUTPUT_LIMIT && kept.bytes().all(|byte| byte == b'x'));
    // What is kept exists a few times over while an answer is made of it and read again, here
    // in the same process.
    let grown = peak_mib() - before;
    assert!(grown < 80, "grew by {grown} MiB");
}

/// The most memory that this process ever had resident.
fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

#[actix_web::test]
async fn a_time_limit_kills_a_command_and_all_it_started() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let line = "sleep 1000 & echo $!; sh -c 'trap \"\" TERM; sleep 1000' & echo $!; echo $$; wait";
    let started = Instant::now();
    let done = nest.exec(&id, json!({"cmd": line, "timeout_sec": 1})).await;
    assert!(started.elapsed() < Duration::from_secs(10));
    assert_eq!((&done["exit_code"], &done["timed_out"]), (&json!(124), &json!(true)));
    assert!(done["duration_ms"].as_u64().unwrap() >= 1000);
    let pids: Vec<i32> =
        done["stdout"].as_str().unwrap().lines().map(|pid| pid.parse().unwrap()).collect();
    assert_eq!(pids.len(), 3, "what was printed before is kept");
    for pid in pids {
        eventually("the command's processes end", async || (!process_lives(pid)).then_some(()))
            .await;
    }
    assert_eq!(nest.sh(&id, "echo on").await, "on\n", "the sandbox is as before");
}

#[actix_web::test]
async fn variables_directory_and_user_are_as_asked_for() {
    let nest = Nest::start().await;
    let id = nest.create(json!({"envs": {"A": "sandbox", "B": "sandbox"}})).await;
    let body =
        json!({"cmd": "echo $A $B $C; pwd", "envs": {"B": "exec", "C": "a b"}, "cwd": "/usr"});
    assert_eq!(nest.exec(&id, body).await["stdout"], "sandbox exec a b\n/usr\n");
    assert_eq!(nest.sh(&id, "echo $A $B $C").await, "sandbox sandbox\n");
    if is_root("to switch users") {
        let body = json!({"cmd": "id -un", "user": "nobody", "cwd": "/"});
        assert_eq!(nest.exec(&id, body).await["stdout"], "nobody\n");
    }
}

#[actix_web::test]
async fn a_command_that_cannot_be_started_so_is_the_callers_mistake() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    for (body, word) in [
        (json!({"cmd": "true", "cwd": "/no/such/dir"}), "/no/such/dir"),
        (json!({"cmd": "true", "cwd": "/etc/passwd"}), "cwd"),
        (json!({"cmd": "true", "user": "no-such-user"}), "no-such-user"),
        (json!({"cmd": ""}), "cmd"),
        (json!({"args": ["x"]}), "cmd"),
        (json!({"cmd": "a\0b"}), "NUL"),
        (json!({"cmd": "echo", "args": ["a\0b"]}), "NUL"),
        (json!({"cmd": "true", "cwd": "/\0"}), "NUL"),
        (json!({"cmd": "true", "user": "\0"}), "NUL"),
        (json!({"cmd": "true", "envs": {"A": "\0"}}), "NUL"),
        (json!({"cmd": "true", "envs": {"A=B": "x"}}), "variable"),
        (json!({"cmd": "true", "envs": {"": "x"}}), "variable"),
        (json!({"cmd": "true", "timeout_sec": 0}), "timeout_sec"),
        (json!({"cmd": "true", "timeout_sec": 604801}), "timeout_sec"),
        (json!({"cmd": "true", "timeout_sec": 1.5}), "timeout_sec"),
        (json!({"cmd": ["true"]}), "cmd"),
    ] {
        let message = nest.try_exec(&id, body.clone()).await.error(400, "invalid_request");
        assert!(message.contains(word) || message.contains("invalid type"), "{body}: {message}");
    }
}

#[actix_web::test]
async fn arguments_beyond_what_the_kernel_takes_are_no_failure_of_the_daemon() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let long = "x".repeat(1 << 20);
    let answer = nest.try_exec(&id, json!({"cmd": "true", "args": [long]})).await;
    assert!(answer.status < 500, "{} {}", answer.status, answer.json());
    assert_eq!(nest.sh(&id, "echo on").await, "on\n");
}

#[actix_web::test]
async fn a_command_waits_for_no_other_one() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let slow = nest.begin_exec(&id, &json!({"cmd": "sleep 1000"}));
    for _ in 0..3 {
        assert_eq!(nest.sh(&id, "echo quick").await, "quick\n");
    }
    assert!(!slow.is_finished());
    slow.abort();
}

#[actix_web::test]
async fn commands_run_only_where_a_sandbox_runs() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    nest.destroy(&id).await;
    let message = nest.try_exec(&id, json!({"cmd": "true"})).await.error(409, "invalid_state");
    assert!(message.contains("stopped"), "{message}");

    nest.machines.set_mode(Step::Boot, Mode::SingleStep);
    let creating = nest.begin_create();
    let boot = nest.machines.held(Step::Boot).await;
    let coming = boot.id.to_string();
    let answer = nest.try_exec(&coming, json!({"cmd": "true"})).await;
    let message = answer.error(409, "invalid_state");
    assert!(message.contains("starting") && message.contains("not running yet"), "{message}");
    boot.succeed();
    assert_eq!(creating.await.unwrap().status, 201);
    assert_eq!(nest.sh(&coming, "echo on").await, "on\n");
}

#[actix_web::test]
async fn a_command_whose_caller_hangs_up_is_killed() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let file = nest.path("pid");
    let body = json!({"cmd": format!("echo $$ > {file}.new; mv {file}.new {file}; sleep 1000")});
    let running = nest.begin_exec(&id, &body);
    let pid: i32 = eventually("the command runs", async || {
        std::fs::read_to_string(&file).ok()?.trim().parse().ok()
    })
    .await;
    nest.hang_up(running).await;
    eventually("the command ends", async || (!process_lives(pid)).then_some(())).await;
    assert_eq!(nest.sandbox(&id).await["state"], Value::from("running"));
}
