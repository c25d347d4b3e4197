//! Commands that are followed over a WebSocket.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Said, Sandbox, Socket, data, eventually, in_a_lab};

#[test]
fn a_command_is_heard_while_it_runs_and_can_be_talked_to() {
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon().await;
        let sandbox = daemon.create().await;

        let mut socket = sandbox.session(None).await;
        socket.start("for i in $(seq 1000); do echo $i; done; echo end >&2; exit 3").await;
        let rest = socket.rest().await;
        let numbers: String = (1..=1000).map(|number| format!("{number}\n")).collect();
        assert_eq!(rest.text(), numbers, "in order");
        assert_eq!((rest.stderr.as_slice(), rest.exit_code), (&b"end\n"[..], Some(3)));
        assert_eq!(rest.code(), Some(1000));

        let mut socket = sandbox.session(None).await;
        socket.start("cat").await;
        socket.send(json!({"type": "stdin", "data": "one\n"})).await;
        socket.stdout("one\n").await;
        socket.send(json!({"type": "stdin", "data": "dHdv/wo=", "encoding": "base64"})).await;
        let Said::Message(echo) = socket.next().await else { panic!("no message") };
        assert_eq!(data(&echo), b"two\xff\n");
        socket.send(json!({"type": "stdin", "eof": true})).await;
        assert_eq!(socket.rest().await.exit_code, Some(0));

        for (message, code) in [
            (json!({"type": "signal", "signal": "SIGINT"}), 130),
            (json!({"type": "signal", "signal": "SIGKILL"}), 137),
            (json!({"type": "stop"}), 143),
        ] {
            let mut socket = sandbox.session(None).await;
            socket.send(json!({"type": "start", "cmd": "sleep", "args": ["1000"]})).await;
            socket.started().await;
            socket.send(message.clone()).await;
            assert_eq!(socket.rest().await.exit_code, Some(code), "{message}");
        }
        sandbox.destroy().await;
        daemon.stop().await;
    });
}

async fn sleepers(sandbox: &Sandbox) -> String {
    sandbox
        .sh("cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n' | grep -cx 735[2] || true")
        .await
}

#[test]
fn a_client_that_vanishes_takes_its_command_along() {
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon().await;
        let sandbox = daemon.create().await;
        let mut socket = sandbox.session(None).await;
        socket.start("trap '' TERM HUP; setsid sleep 7352 & sleep 7352; sleep 7352").await;
        eventually("it runs", || async { sleepers(&sandbox).await == "2" }).await;
        socket.vanish();
        eventually("all of it is gone", || async { sleepers(&sandbox).await == "0" }).await;

        let mut socket = sandbox.session(None).await;
        socket.start("trap '' TERM HUP; setsid sleep 7352 & sleep 7352; sleep 7352").await;
        eventually("it runs", || async { sleepers(&sandbox).await == "2" }).await;
        assert_eq!(socket.close().await.code(), Some(1000));
        eventually("all of it is gone", || async { sleepers(&sandbox).await == "0" }).await;
        sandbox.destroy().await;
        daemon.stop().await;
    });
}

#[test]
fn a_pause_closes_a_session_whose_command_is_there_after_the_resume() {
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon().await;
        let sandbox = daemon.create().await;
        let mut socket = sandbox.session(None).await;
        // It prints more than any queue holds, so it goes on only if nobody waits for the old client.
        let line = "for i in $(seq 100000); do head -c 100000 /dev/zero; echo $i > /tmp/i; done";
        let pid = socket.start(line).await;
        eventually("it counts", || async {
            sandbox.exec(json!({"cmd": "test -s /tmp/i"})).await.exit_code == 0
        })
        .await;
        daemon.post(&format!("/v1/sandboxes/{}/pause", sandbox.id), &json!({})).await.expect(200);
        let rest = socket.rest().await;
        assert_eq!((rest.code(), rest.exit_code), (Some(4001), None), "{:?}", rest.errors);
        daemon.post(&format!("/v1/sandboxes/{}/resume", sandbox.id), &json!({})).await.expect(200);
        assert_eq!(sandbox.sh_as_root(&format!("kill -0 {pid} && echo on")).await, "on");
        let count = async || loop {
            // It is empty for a moment while it is written.
            if let Ok(count) = sandbox.sh("cat /tmp/i").await.parse::<u64>() {
                break count;
            }
        };
        let resumed = count().await;
        eventually("it goes on", || async { count().await > resumed + 100 }).await;

        let mut socket = sandbox.session(None).await;
        socket.start("sleep 1000").await;
        sandbox.kill_vm();
        assert_eq!(socket.rest().await.code(), Some(1011));
        sandbox.destroy().await;
        daemon.stop().await;
    });
}

#[test]
fn a_slow_reader_of_a_gigabyte_stops_the_command_and_costs_no_memory() {
    const SIZE: u64 = 1_000_000_000;
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon().await;
        let sandbox = daemon.create().await;
        let mut socket = sandbox.session(None).await;
        socket.start("true").await;
        socket.rest().await;

        let before = resident_mib(daemon.pid());
        let mut socket = sandbox.session(Some(1 << 16)).await;
        socket.start(&format!("head -c {SIZE} /dev/zero | tr '\\0' x; touch /tmp/written")).await;
        // Nothing is read for a while: the command must stand still, and it cannot have ended.
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(sandbox.sh("test -e /tmp/written || echo waits").await, "waits");
        let (received, most) = read_slowly(&mut socket, daemon.pid()).await;
        assert_eq!(received, SIZE);
        assert!(most < before + 30, "the daemon grew from {before} to {most} MiB");
        eprintln!(
            "resident: {before} MiB before, at most {most} MiB, peak {} MiB",
            memory_mib(daemon.pid(), "VmHWM:")
        );
        sandbox.destroy().await;
        daemon.stop().await;
    });
}

/// Reads to the end with a pause after every 64 MB; gives the bytes of standard output, and the most
/// memory that the daemon had resident meanwhile, in MiB.
async fn read_slowly(socket: &mut Socket, daemon: u32) -> (u64, u64) {
    let (mut received, mut most, mut pause_at) = (0, 0, 0);
    let started = Instant::now();
    loop {
        match socket.next().await {
            Said::Message(message) if message["type"] == "stdout" => {
                let data = data(&message);
                assert!(data.iter().all(|byte| *byte == b'x'));
                received += data.len() as u64;
            }
            Said::Message(message) => assert_eq!(message["exit_code"], 0, "{message}"),
            Said::Closed(code, _) => assert_eq!(code, 1000),
            Said::Nothing => break,
        }
        if received >= pause_at {
            pause_at += 64_000_000;
            tokio::time::sleep(Duration::from_millis(300)).await;
            most = most.max(resident_mib(daemon));
        }
    }
    eprintln!("{received} bytes in {:?}", started.elapsed());
    (received, most)
}

fn resident_mib(pid: u32) -> u64 {
    memory_mib(pid, "VmRSS:")
}

fn memory_mib(pid: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("the field");
    line.split_whitespace().next().expect("a number").parse::<u64>().expect("a number") / 1024
}
