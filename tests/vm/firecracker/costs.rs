//! What things cost under Firecracker, and what the least would cost that could do the same. Times of
//! the lab say nothing of other machines; ratios within one run do.

use std::time::{Duration, Instant};

use nestbox::vmm::storage::memory::Durability;
use nestbox::vmm::storage::pager::State;
use nestbox::vmm::storage::snapshot::Snapshot;
use serde_json::{Value, json};

use super::floor::{Floor, Way};
use super::{pager_of, rollup, under_firecracker};
use crate::support::{Daemon, Lab, Options, Sandbox, eventually};

const TURNS: usize = 5;

/// After so many turns the results are shown after each, for a lab whose time may run out.
const ENOUGH: usize = 3;

/// What a create to the end of a first command may take of the floor's time.
const BAR: f64 = 1.5;

/// What a daemon does after an answer is no part of what is measured next.
const SETTLE: Duration = Duration::from_secs(1);

/// Waits until a daemon has ready what it keeps ready.
async fn settle(daemon: &Daemon, kept: &Options) {
    let wanted = [
        ("nestbox_slots_ready", kept.slot_pool),
        ("nestbox_vmms_ready", kept.vmm_pool),
        ("nestbox_standbys_ready", kept.standbys),
    ];
    let ready = || async {
        for (name, count) in wanted {
            if daemon.metric(name).await != count as f64 {
                return false;
            }
        }
        true
    };
    eventually("all is ready", ready).await;
    tokio::time::sleep(SETTLE).await;
}

/// Samples under names, in the order in which these came up.
#[derive(Default)]
struct Samples(Vec<(String, Vec<f64>)>);

impl Samples {
    fn add(&mut self, name: &str, sample: f64) {
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, samples)) => samples.push(sample),
            None => self.0.push((name.to_owned(), vec![sample])),
        }
    }

    /// Adds the steps of an operation. Those that are done twice count together.
    fn add_spans(&mut self, verb: &str, answer: &Value) {
        let mut sums = Self::default();
        for span in answer["trace"].as_array().expect("a trace") {
            let name = format!("{verb}: {}", span["span"].as_str().expect("a name"));
            sums.add(&name, span["took_ms"].as_f64().expect("a number"));
        }
        for (name, times) in sums.0 {
            self.add(&name, times.iter().sum());
        }
    }

    fn median(&self, name: &str) -> f64 {
        let found = self.0.iter().find(|(known, _)| known == name);
        let mut samples = found.expect("it was measured").1.clone();
        samples.sort_by(f64::total_cmp);
        samples[samples.len() / 2]
    }

    /// Each with all of its samples, turn by turn: a run that drifts shows it.
    fn print(&self) {
        for (name, samples) in &self.0 {
            let turns: Vec<_> = samples.iter().map(|sample| format!("{sample:.1}")).collect();
            eprintln!("{name:<44} p50 {:>9.1}  of {}", self.median(name), turns.join(" "));
        }
    }
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

async fn exec_true(sandbox: &Sandbox) {
    let output = sandbox.exec(json!({ "cmd": "true", "args": [] })).await;
    assert_eq!(output.exit_code, 0);
}

/// Creates a sandbox and runs a first command in it.
async fn create(daemon: &Daemon, samples: &mut Samples) -> Sandbox {
    let started = Instant::now();
    let wish = json!({ "memory_mb": 256 });
    let answer = daemon.post("/v1/sandboxes?trace=true", &wish).await.expect(201);
    let sandbox = daemon.sandbox(answer["id"].as_str().expect("an id"));
    samples.add("create (ms)", milliseconds(started));
    exec_true(&sandbox).await;
    samples.add("create to first exec (ms)", milliseconds(started));
    samples.add_spans("create", &answer);
    sandbox
}

/// One sandbox's life.
async fn live(daemon: &Daemon, kept: &Options, samples: &mut Samples) {
    let sandbox = create(daemon, samples).await;
    settle(daemon, kept).await;
    samples.add("VM, proportional (kB)", rollup(sandbox.vm_pid(), "Pss") as f64);
    samples.add("pager, proportional (kB)", rollup(pager_of(&sandbox), "Pss") as f64);

    let path = format!("/v1/sandboxes/{}", sandbox.id);
    for verb in ["pause", "resume", "fork"] {
        settle(daemon, kept).await;
        let started = Instant::now();
        let body = if verb == "fork" { json!({ "count": 1 }) } else { json!({}) };
        let answer = daemon.post(&format!("{path}/{verb}?trace=true"), &body).await;
        samples.add(&format!("{verb} (ms)"), milliseconds(started));
        assert!([200, 201].contains(&answer.status), "{answer:?}");
        samples.add_spans(verb, &answer.body);
        match verb {
            "resume" => {
                exec_true(&sandbox).await;
                samples.add("resume to first exec (ms)", milliseconds(started));
            }
            "fork" => {
                let child = answer.body["sandboxes"][0]["id"].as_str().expect("a child");
                daemon.sandbox(child).destroy().await;
            }
            _ => {}
        }
    }
    settle(daemon, kept).await;
    let started = Instant::now();
    sandbox.destroy().await;
    samples.add("destroy (ms)", milliseconds(started));
}

fn report(samples: &Samples, floors: &[&str]) {
    samples.print();
    let ours = samples.median("create to first exec (ms)");
    for name in floors {
        let ratio = ours / samples.median(name);
        let met = if ratio <= BAR { "met" } else { "NOT met" };
        eprintln!("create to first exec over {name}: {ratio:.2}, bar {BAR}: {met}");
    }
}

/// Has a daemon and the script take turns.
async fn take_turns(lab: &Lab, kept: Options, turn: impl AsyncFn(&Daemon, &Options, &mut Samples)) {
    let mut daemon = lab.daemon_with(kept.clone()).await;
    let first = daemon.create().await;
    exec_true(&first).await;
    tokio::time::sleep(SETTLE).await;
    let state = State::read(&first.dir()).expect("its pager's state");
    let snapshot = Snapshot::open(&first.snapshot_dir()).expect("its snapshot");
    let snapshot = snapshot.link_into(&lab.path("snapshot"), Durability::Cached);
    let snapshot = snapshot.expect("a link");
    first.destroy().await;
    let floor = Floor::start(lab).await;

    let mut samples = Samples::default();
    let ways = [(Way::Jailer, "floor, jailer (ms)"), (Way::Directly, "floor, directly (ms)")];
    for number in 1..=TURNS {
        settle(&daemon, &kept).await;
        turn(&daemon, &kept, &mut samples).await;
        for (way, name) in ways {
            settle(&daemon, &kept).await;
            samples.add(name, floor.restore(&snapshot, state.working_set(), way).await);
        }
        eprintln!("turn {number} of {TURNS}");
        if number >= ENOUGH {
            report(&samples, &ways.map(|(_, name)| name));
        }
    }
    floor.release().await;
    daemon.stop().await;
}

/// As shipped, but for standbys: each create loads the snapshot, as the script does.
#[test]
#[ignore = "a measurement of some minutes"]
fn a_create_takes_hardly_longer_than_a_script() {
    under_firecracker(3, async |lab| {
        take_turns(lab, Options { vmm_pool: 1, ..Options::default() }, live).await;
    });
}

/// As shipped: each create gets a machine that was restored before.
#[test]
#[ignore = "a measurement of some minutes"]
fn a_create_from_a_standby_takes_less_than_a_script() {
    under_firecracker(3, async |lab| {
        let kept = Options { vmm_pool: 1, standbys: 1, ..Options::default() };
        take_turns(lab, kept, async |daemon: &Daemon, _: &Options, samples: &mut Samples| {
            create(daemon, samples).await.destroy().await;
        })
        .await;
    });
}

/// Nothing is started before it is asked for, but a network slot.
#[test]
#[ignore = "a measurement of some minutes"]
fn a_create_with_nothing_made_ahead_over_a_script() {
    under_firecracker(3, async |lab| take_turns(lab, Options::default(), live).await);
}
