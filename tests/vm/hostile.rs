//! Guests that have turned against their host.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nestbox::domain::slot::SlotIndex;
use reqwest::Method;
use serde_json::json;

use crate::support::{Growth, HostileGuest, Options, Sandbox, eventually, in_a_lab};

/// By how much a guest may make the daemon larger.
const GROWTH_MIB: u64 = 32;

/// How long the daemon may take to be done with an answer that makes no sense.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// How long the daemon may take to end while a guest keeps it waiting.
const END_LIMIT: Duration = Duration::from_secs(20);

#[test]
fn whatever_answers_in_the_agents_place_costs_the_daemon_little_and_leads_it_nowhere() {
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon().await;
        let guest = HostileGuest::take_over(daemon.create().await).await;
        let sandbox = &guest.sandbox;
        for mode in ["redirect", "error", "headers", "chunks", "length", "frames", "types"] {
            guest.answers(mode).await;
            let growth = Growth::begin(&daemon);
            let started = Instant::now();
            // The page is a success to who only looks at the status, so nothing is read.
            let read = sandbox.try_read("/etc/hostname");
            let list = sandbox.get("/files/list?path=/");
            let stat = sandbox.get("/files/stat?path=/");
            let listed = sandbox.get("/processes");
            let run = sandbox.try_exec(json!({ "cmd": "true" }));
            let (read, list, stat, listed, run) = tokio::join!(read, list, stat, listed, run);
            for (what, answer) in [("list", list), ("stat", stat), ("ps", listed), ("exec", run)] {
                let status = answer.status;
                // An agent that says that something is not there is believed.
                let is_refusal = status == 502 || (mode == "chunks" && status == 404);
                assert!(is_refusal, "{what}, {mode}: {status} {}", answer.body);
            }
            if !["types", "length", "frames"].contains(&mode) {
                assert!([502, 404].contains(&read.status), "{mode}: {}", read.status);
            }
            assert!(started.elapsed() < ANSWER_LIMIT, "{mode}: {:?}", started.elapsed());
            let grown = growth.mib();
            assert!(grown < GROWTH_MIB, "{mode}: grew by {grown} MiB");
            // Not each of the five has to get through: it may be sent on a connection that the guest is
            // just closing.
            let asked = guest.asked().await;
            assert!(asked.is_some_and(|asked| asked > 2), "it was asked {asked:?} times: {mode}");
        }
        assert_eq!(guest.visits(), 0, "the host went where its guest had sent it");
        files_without_an_end(&guest, &Growth::begin(&daemon)).await;
        terminals_are_left_alone(&guest).await;

        // While it keeps a request waiting, the daemon ends in order.
        guest.answers("trickle").await;
        let waiting = tokio::spawn({
            let sandbox = sandbox.clone();
            async move { sandbox.try_read("/etc/hostname").await }
        });
        eventually("it is asked", || async { guest.asked().await == Some(1) }).await;
        let started = Instant::now();
        daemon.stop().await;
        assert!(started.elapsed() < END_LIMIT, "it took {:?}", started.elapsed());
        waiting.await.expect("no panic").is_error(502, "agent_error");

        daemon.start_again().await;
        sandbox.through(daemon.api()).destroy().await;
        daemon.stop().await;
    });
}

/// A file is passed on as it comes, and let go of when its reader has enough.
async fn files_without_an_end(guest: &HostileGuest, growth: &Growth) {
    guest.answers("file").await;
    let request = guest.sandbox.about_file(Method::GET, "", "/etc/hostname");
    let mut file = request.send().await.expect("an answer");
    assert_eq!(file.status(), 200);
    let mut taken = 0;
    while taken < 40 << 20 {
        taken += file.chunk().await.expect("it goes on").expect("it has no end").len();
    }
    drop(file);
    assert!(growth.mib() < GROWTH_MIB, "grew by {} MiB", growth.mib());
}

/// What it says is shown, but does nothing to whoever reads it.
async fn terminals_are_left_alone(guest: &HostileGuest) {
    guest.answers("terminal").await;
    let answer = guest.sandbox.get("/files/stat?path=/").await;
    let message = answer.is_error(400, "invalid_request").message();
    assert_eq!(message, "\\u{1b}]0;owned\\u{7}\\u{202e}");
}

/// Asks agents without a token, as root, whom no firewall keeps away: the agents themselves refuse.
#[derive(Default)]
struct Asker {
    stop: Arc<AtomicBool>,
    /// How often the agent of each machine has refused.
    refusals: Arc<Mutex<HashMap<String, usize>>>,
    /// Each machine has its own, for one that stands frozen answers nobody for a while.
    threads: RefCell<HashMap<String, JoinHandle<()>>>,
}

impl Asker {
    const ASKS: [&str; 3] =
        ["GET /envs", "GET /files?path=/etc/shadow&username=root", "POST /sync"];

    fn ask_again_and_again(&self, machine: &Sandbox) {
        let mut threads = self.threads.borrow_mut();
        if threads.contains_key(&machine.id) {
            return;
        }
        let Some(address) = agent_of(machine) else { return };
        let (stop, refusals, id) = (self.stop.clone(), self.refusals.clone(), machine.id.clone());
        let ask = move || {
            while !stop.load(Ordering::Relaxed) {
                for ask in Self::ASKS {
                    let Some(answer) = ask_without_a_token(address, ask) else { continue };
                    assert_eq!(answer, "HTTP/1.1 401", "{ask} of {id}");
                    *refusals.lock().expect("no panic").entry(id.clone()).or_default() += 1;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        threads.insert(machine.id.clone(), std::thread::spawn(ask));
    }

    fn refusals(&self) -> HashMap<String, usize> {
        self.refusals.lock().expect("no panic").clone()
    }

    /// Whether an agent did anything else than refuse.
    fn has_failed(&self) -> bool {
        self.threads.borrow().values().any(JoinHandle::is_finished)
    }

    /// All refusals, and nothing but refusals.
    async fn stop(self) -> HashMap<String, usize> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.take().into_values() {
            let ended = tokio::task::spawn_blocking(move || thread.join());
            ended.await.expect("no panic").expect("nothing but refusals");
        }
        self.refusals()
    }
}

/// What an agent answers to somebody without its token, if it answers.
fn ask_without_a_token(address: SocketAddr, request: &str) -> Option<String> {
    // A packet to a frozen VM is lost, and TCP sends another only after a second: ask anew instead.
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_millis(50)).ok()?;
    stream.set_read_timeout(Some(Duration::from_millis(500))).expect("it has a limit");
    write!(stream, "{request} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").ok()?;
    let mut head = [0; 12];
    stream.read_exact(&mut head).ok()?;
    Some(String::from_utf8_lossy(&head).into_owned())
}

/// The agent of whatever has a slot.
fn agent_of(machine: &Sandbox) -> Option<SocketAddr> {
    let slot = u32::try_from(machine.try_record()?["slot"].as_u64()?).ok()?;
    let slot = SlotIndex::try_from(slot).ok()?;
    Some((slot.access_address(), 49983).into())
}

#[test]
fn an_agent_does_nothing_for_whoever_has_no_token_at_any_moment_of_its_life() {
    in_a_lab(3, async |lab| {
        let images = Some(lab.cold_images());
        let options = Options { images, standbys: 1, ..Options::default() };
        let mut daemon = lab.daemon_with(options).await;
        let api = daemon.api().clone();
        let creating = tokio::spawn(async move {
            // The first boots the image and has a standby made, which the second becomes.
            let first = api.create().await;
            eventually("a standby", || async { !api.unclaimed().await.is_empty() }).await;
            let standby = api.unclaimed().await.remove(0);
            let second = api.create().await;
            assert_eq!(second.id, standby.id, "the standby has become a sandbox");
            [first, second]
        });
        let asker = Asker::default();
        // A standby stands frozen but for a moment, and is sure to answer once it is a sandbox. So it is
        // asked until then: the boot, the first sandbox and the second have refused.
        eventually("three agents have refused", || async {
            for machine in everything(lab.data_dir(), daemon.api()) {
                asker.ask_again_and_again(&machine);
            }
            asker.has_failed() || creating.is_finished() && asker.refusals().len() >= 3
        })
        .await;
        let refusals = asker.stop().await;
        let sandboxes = creating.await.expect("no panic");
        for sandbox in sandboxes {
            assert!(refusals.contains_key(&sandbox.id), "{refusals:?}");
            assert_eq!(sandbox.sh("echo on").await, "on");
            sandbox.destroy().await;
        }
        daemon.stop().await;
    });
}

/// All that has a directory, whatever it is.
fn everything(data_dir: &std::path::Path, api: &crate::support::Api) -> Vec<Sandbox> {
    let entries = std::fs::read_dir(data_dir.join("sandboxes")).into_iter().flatten().flatten();
    entries.map(|entry| api.sandbox(&entry.file_name().to_string_lossy())).collect()
}
