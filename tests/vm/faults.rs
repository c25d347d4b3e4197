//! A failure at every step of every operation: a sandbox is as before it or as after it, and where
//! its VM is gone it says so.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::{Daemon, Lab, Options, Sandbox, Witness, eventually, in_a_lab};

/// What comes of an operation that fails at a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// An error: all is as before.
    Undone,
    /// The operation is done in spite of the failure.
    Done,
    /// An error: the VM is gone, and what was in it.
    Lost,
    /// The operation is done, and then the VM is gone.
    DoneThenLost,
    /// Done if its memory was read before the kernel had freed it, else lost.
    DoneOrLost,
}

use End::{Done, DoneOrLost, DoneThenLost, Lost, Undone};

const ACTIONS: [&str; 3] = ["disk-full", "kill-daemon", "kill-vm"];

/// A step, and what comes of each action there.
type Step = (&'static str, [End; 3]);

const PAUSE: [Step; 7] = [
    ("capture-begun", [Undone, Undone, Lost]),
    ("frozen", [Undone, Undone, Lost]),
    ("devices-saved", [Undone, Undone, DoneOrLost]),
    ("memory-written", [Undone, Undone, Done]),
    ("snapshot-written", [Undone, Undone, Done]),
    ("pause-committed", [Done, Done, Done]),
    ("vm-ended", [Done, Done, Done]),
];

const CAPTURE: [Step; 7] = [
    ("capture-begun", [Undone, Undone, Lost]),
    ("frozen", [Undone, Undone, Lost]),
    ("devices-saved", [Undone, Undone, Lost]),
    ("memory-written", [Undone, Undone, Lost]),
    ("snapshot-written", [Undone, Undone, Lost]),
    ("disk-switched", [Undone, Undone, DoneThenLost]),
    ("thawed", [Undone, Undone, DoneThenLost]),
];

const RESTORE: [Step; 5] = [
    // There is no VM yet that could be killed.
    ("slot-taken", [Undone, Undone, Done]),
    ("overlay-made", [Undone, Undone, Done]),
    ("restored", [Undone, Undone, Undone]),
    ("restore-thawed", [Undone, Undone, Undone]),
    ("introduced", [Undone, Undone, DoneThenLost]),
];

/// Name of a snapshot whose witness begins each new sandbox of a test.
const SEED: &str = "seed";

/// A daemon that fails, and what its failures are done to.
struct Stage {
    daemon: Daemon,
    data_dir: PathBuf,
    sandbox: Sandbox,
    witness: Witness,
    /// The witness as it is in the seed.
    seed: Witness,
    /// Failures so far.
    failures: usize,
}

/// One failure of an operation.
#[derive(Debug, Clone, Copy)]
struct Case {
    step: &'static str,
    action: &'static str,
    end: End,
}

fn cases(steps: &[Step]) -> impl Iterator<Item = Case> {
    steps.iter().flat_map(|&(step, ends)| {
        ACTIONS.into_iter().zip(ends).map(move |(action, end)| Case { step, action, end })
    })
}

impl Stage {
    async fn set(lab: &Lab) -> Self {
        let daemon = lab.daemon_with(Options { slot_pool: 0, ..Options::default() }).await;
        let sandbox = daemon.create().await;
        let witness = Witness::start(&sandbox).await;
        sandbox.snapshot(SEED).await;
        let seed = witness.clone();
        let data_dir = lab.data_dir().to_owned();
        Self { daemon, data_dir, sandbox, witness, seed, failures: 0 }
    }

    /// Has the next operation fail.
    async fn arm(&mut self, case: Case) {
        self.failures += 1;
        self.restart(Some(&format!("{}={}", case.step, case.action))).await;
    }

    async fn restart(&mut self, fault: Option<&str>) {
        self.daemon.kill9().await;
        self.daemon.set_fault(fault);
        self.daemon.start_again().await;
        self.sandbox = self.sandbox.through(self.daemon.api());
    }

    /// Looks at what the caller was told, and has the daemon run again; says what the caller has to
    /// believe.
    async fn answered(&mut self, case: Case, status: u16, body: &Value) -> End {
        if case.action == "kill-daemon" {
            assert_eq!(status, 0, "{case:?}: {body}");
            self.daemon.ended().await;
            self.daemon.set_fault(None);
            self.daemon.start_again().await;
            self.sandbox = self.sandbox.through(self.daemon.api());
        }
        let failed = self.daemon.log().matches("failing on purpose").count();
        assert_eq!(failed, self.failures, "{case:?} is a step on the way");
        let good = matches!(status, 200 | 201);
        let end = match case.end {
            DoneOrLost if good => Done,
            DoneOrLost => Lost,
            end => end,
        };
        match (case.action, end) {
            ("kill-daemon", _) => {}
            (_, Done | DoneThenLost) => assert!(good, "{case:?}: {body}"),
            ("disk-full", _) => {
                assert_eq!((status, &body["error"]["code"]), (507, &json!("no_space")), "{case:?}");
            }
            _ => assert!((500..=502).contains(&status), "{case:?}: {body}"),
        }
        end
    }

    /// What there is besides files.
    fn amounts(&self) -> Vec<usize> {
        let census = self.daemon.census();
        let kinds = ["network namespaces", "links", "claimed slots", "processes", "cgroups"];
        kinds.map(|kind| census.count(kind)).to_vec()
    }

    /// Waits until there is no more than at another time.
    async fn is_back_to(&self, case: Case, before: &[usize]) {
        let what = format!("all is as before {case:?}, with {before:?}");
        eventually(&what, || async { self.amounts() == before }).await;
        let left = fs::read_dir(self.data_dir.join("snapshots/forks"));
        assert_eq!(left.expect("a directory").count(), 0, "{case:?}: a fork's snapshot is left");
    }

    /// The sandbox runs as it did.
    async fn runs(&mut self, case: Case) {
        assert_eq!(self.sandbox.state().await, "running", "{case:?}");
        self.witness.goes_on(&self.sandbox).await;
        let (snapshot, overlay) = (self.sandbox.snapshot_dir(), self.sandbox.overlay());
        let build = |path: &Path, prefix: &str| {
            let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
            name.strip_prefix(prefix).expect("a name of ours").to_owned()
        };
        assert_eq!(build(&snapshot, "snapshot-"), build(&overlay, "disk-"), "{case:?}");
    }

    /// The sandbox is paused, and nothing else is there.
    async fn is_paused(&self, case: Case) {
        assert_eq!(self.sandbox.state().await, "paused", "{case:?}");
        self.sandbox.snapshot_dir();
        assert!(self.sandbox.files("disk-").is_empty(), "{case:?}");
        assert_eq!(self.sandbox.record()["process"], json!(null), "{case:?}");
    }

    /// The sandbox's VM is gone. That is told, it can be destroyed, and another takes its place.
    async fn is_lost(&mut self, case: Case) {
        let reason = self.sandbox.becomes("error").await;
        assert!(reason.contains("VM"), "{case:?}: {reason}");
        self.sandbox.destroy().await;
        let sandbox = self.daemon.create_with(json!({ "template": SEED })).await;
        self.take(sandbox, self.seed.clone()).await;
    }

    /// Goes on with another sandbox.
    async fn take(&mut self, sandbox: Sandbox, witness: Witness) {
        (self.sandbox, self.witness) = (sandbox, witness);
        self.witness.goes_on(&self.sandbox).await;
    }

    /// Destroys all that is left, and says good-bye.
    async fn strike(mut self) {
        for id in self.daemon.ids().await {
            self.daemon.sandbox(&id).destroy().await;
        }
        self.daemon.delete_snapshot(SEED).await;
        self.daemon.stop().await;
    }
}

#[test]
fn a_pause_that_fails_at_any_step_is_done_or_not() {
    in_a_lab(1, async |lab| {
        let mut stage = Stage::set(lab).await;
        let before = stage.amounts();
        for case in cases(&PAUSE) {
            stage.arm(case).await;
            let answer = stage.sandbox.try_pause().await;
            match stage.answered(case, answer.status, &answer.body).await {
                Undone => stage.runs(case).await,
                Lost => stage.is_lost(case).await,
                Done | DoneThenLost | DoneOrLost => {
                    stage.is_paused(case).await;
                    stage.sandbox.resume().await;
                    stage.runs(case).await;
                }
            }
            stage.sandbox.pause().await;
            stage.is_paused(case).await;
            stage.sandbox.resume().await;
            stage.runs(case).await;
            stage.is_back_to(case, &before).await;
        }
        stage.strike().await;
    });
}

#[test]
fn a_resume_that_fails_at_any_step_is_done_or_not() {
    in_a_lab(1, async |lab| {
        let mut stage = Stage::set(lab).await;
        stage.sandbox.pause().await;
        let before = stage.amounts();
        for case in cases(&RESTORE) {
            stage.arm(case).await;
            let answer = stage.sandbox.try_resume().await;
            match stage.answered(case, answer.status, &answer.body).await {
                Undone => {
                    stage.is_paused(case).await;
                    stage.is_back_to(case, &before).await;
                }
                DoneThenLost => {
                    stage.is_lost(case).await;
                    stage.sandbox.pause().await;
                }
                Done | Lost | DoneOrLost => {
                    stage.runs(case).await;
                    stage.sandbox.pause().await;
                }
            }
            stage.sandbox.resume().await;
            stage.runs(case).await;
            stage.sandbox.pause().await;
            stage.is_back_to(case, &before).await;
        }
        stage.strike().await;
    });
}

#[test]
fn a_snapshot_that_fails_at_any_step_is_taken_or_not() {
    in_a_lab(2, async |lab| {
        const NAME: &str = "taken";
        let mut stage = Stage::set(lab).await;
        let before = stage.amounts();
        for case in cases(&CAPTURE) {
            stage.arm(case).await;
            let answer = stage.sandbox.try_snapshot(NAME, false).await;
            let end = stage.answered(case, answer.status, &answer.body).await;
            let taken = stage.daemon.snapshot_names().await.iter().any(|name| name == NAME);
            assert_eq!(taken, end == DoneThenLost, "{case:?}");
            match end {
                Undone => stage.runs(case).await,
                DoneThenLost => {
                    let before_its_end = stage.witness.clone();
                    stage.is_lost(case).await;
                    stage.sandbox.destroy().await;
                    let copy = stage.daemon.create_with(json!({ "template": NAME })).await;
                    stage.take(copy, before_its_end).await;
                    stage.daemon.delete_snapshot(NAME).await;
                }
                Lost | Done | DoneOrLost => stage.is_lost(case).await,
            }
            stage.sandbox.snapshot(NAME).await;
            stage.daemon.delete_snapshot(NAME).await;
            stage.runs(case).await;
            stage.is_back_to(case, &before).await;
        }
        stage.strike().await;
    });
}

#[test]
fn a_fork_that_fails_at_any_step_makes_all_children_or_none() {
    in_a_lab(2, async |lab| {
        let mut stage = Stage::set(lab).await;
        let before = stage.amounts();
        // A child that ends as soon as it runs is another sandbox's loss.
        let (_, of_children) = RESTORE.split_last().expect("steps");
        for case in cases(&CAPTURE).chain(cases(of_children)) {
            stage.arm(case).await;
            let answer = stage.sandbox.try_fork(1).await;
            let end = stage.answered(case, answer.status, &answer.body).await;
            let child = answer.body["sandboxes"][0]["id"].as_str();
            let child = child.map(|id| stage.daemon.sandbox(id));
            match (end, child) {
                (Undone, None) => stage.runs(case).await,
                (Done, Some(child)) => {
                    stage.witness.clone().goes_on(&child).await;
                    child.destroy().await;
                    stage.runs(case).await;
                }
                (DoneThenLost, Some(child)) => {
                    let before_its_end = stage.witness.clone();
                    stage.is_lost(case).await;
                    stage.sandbox.destroy().await;
                    stage.take(child, before_its_end).await;
                }
                (Lost, None) => stage.is_lost(case).await,
                (end, child) => panic!("{case:?}: {end:?} with {child:?}"),
            }
            // What never ran is told of, and no more.
            for id in stage.daemon.ids().await {
                let other = stage.daemon.sandbox(&id);
                if id != stage.sandbox.id {
                    assert!(!other.becomes("error").await.is_empty(), "{case:?}");
                    other.destroy().await;
                }
            }
            let child = stage.sandbox.fork(1).await.remove(0);
            stage.witness.clone().goes_on(&child).await;
            child.destroy().await;
            stage.runs(case).await;
            stage.is_back_to(case, &before).await;
        }
        stage.strike().await;
    });
}

#[test]
fn a_create_that_fails_at_any_step_makes_a_sandbox_or_leaves_nothing() {
    in_a_lab(1, async |lab| {
        let mut stage = Stage::set(lab).await;
        stage.sandbox.destroy().await;
        let before = stage.amounts();
        for case in cases(&RESTORE) {
            stage.arm(case).await;
            let answer = stage.daemon.try_create(json!({ "template": SEED })).await;
            let end = stage.answered(case, answer.status, &answer.body).await;
            if end == Done {
                let id = answer.body["id"].as_str().expect("an id");
                stage.seed.clone().goes_on(&stage.daemon.sandbox(id)).await;
            }
            for id in stage.daemon.ids().await {
                let sandbox = stage.daemon.sandbox(&id);
                if end != Done {
                    let reason = sandbox.becomes("error").await;
                    assert!(!reason.is_empty(), "{case:?}");
                    assert!(!sandbox.dir().exists() || end == DoneThenLost, "{case:?}");
                }
                sandbox.destroy().await;
            }
            stage.is_back_to(case, &before).await;
            let sandbox = stage.daemon.create_with(json!({ "template": SEED })).await;
            stage.seed.clone().goes_on(&sandbox).await;
            sandbox.destroy().await;
            stage.is_back_to(case, &before).await;
        }
        stage.strike().await;
    });
}
