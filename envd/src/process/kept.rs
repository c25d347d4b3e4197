//! The processes whose output is kept: those that run, and the last ones that have ended.
//!
//! They outlive whoever started them, a pause and the daemon, because the guest's memory does.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use nestbox_proto::process::ProcessConfig;
use nestbox_proto::process::process_selector::Selector;

use super::record::Record;

/// Ended processes that are kept.
const ENDED: usize = 64;
/// Bytes of output that are kept of all ended processes together.
const ENDED_BYTES: usize = 16 << 20;

/// One process.
#[derive(Debug)]
pub struct Kept {
    /// Its id.
    pub pid: u32,
    /// The caller's name for it.
    pub tag: Option<String>,
    /// As it was asked for, without its environment, which may hold secrets.
    pub config: ProcessConfig,
    /// Whether it runs on a terminal.
    pub terminal: bool,
    /// When it was started.
    pub started_at: SystemTime,
    /// What it has written.
    pub record: Arc<Record>,
    /// Whether it will be killed if it does not end.
    pub stopping: AtomicBool,
}

impl Kept {
    /// Whether it has not ended yet.
    pub fn runs(&self) -> bool {
        self.record.extent().end.is_none()
    }
}

/// All of them, in the order in which they were started.
#[derive(Debug, Default)]
pub struct Keep(Mutex<Vec<Arc<Kept>>>);

impl Keep {
    /// Keeps one more. An ended one whose id it got is forgotten.
    pub fn add(&self, kept: Kept) {
        let mut all = self.lock();
        all.retain(|other| other.pid != kept.pid);
        all.push(Arc::new(kept));
    }

    /// All that are kept.
    pub fn all(&self) -> Vec<Arc<Kept>> {
        self.lock().clone()
    }

    /// The one that is meant: of several with one tag the last.
    pub fn find(&self, selector: &Selector) -> Option<Arc<Kept>> {
        let meant = |kept: &&Arc<Kept>| match selector {
            Selector::Pid(pid) => kept.pid == *pid,
            Selector::Tag(tag) => kept.tag.as_ref() == Some(tag),
        };
        self.lock().iter().rev().find(meant).cloned()
    }

    /// Forgets what ended first, as long as too much is kept.
    pub fn forget(&self) {
        let mut all = self.lock();
        let end = |kept: &Arc<Kept>| kept.record.extent().end.map(|end| (end.at, kept.pid));
        let mut ended: Vec<_> = all.iter().filter_map(end).collect();
        ended.sort_unstable_by(|one, other| other.cmp(one));
        let (mut count, mut bytes) = (0, 0);
        let mut keeps = |pid: u32| {
            let kept = all.iter().find(|kept| kept.pid == pid);
            count += 1;
            bytes += kept.map_or(0, |kept| kept.record.extent().kept());
            count <= ENDED && bytes <= ENDED_BYTES
        };
        let forgotten: Vec<u32> =
            ended.into_iter().map(|(_, pid)| pid).filter(|pid| !keeps(*pid)).collect();
        all.retain(|kept| !forgotten.contains(&kept.pid));
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Kept>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::Pace;
    use super::super::ring::LIMIT;
    use super::super::run::Outcome;
    use super::super::stream::Kind;
    use super::*;

    fn add(keep: &Keep, pid: u32, tag: &str, output: usize) -> Arc<Record> {
        let record = Arc::new(Record::new(Pace::Own));
        record.append(Kind::Stdout, &vec![b'x'; output]);
        keep.add(Kept {
            pid,
            tag: Some(tag.to_owned()),
            config: ProcessConfig::default(),
            terminal: false,
            started_at: SystemTime::now(),
            record: Arc::clone(&record),
            stopping: AtomicBool::new(false),
        });
        record
    }

    fn pids(keep: &Keep) -> Vec<u32> {
        keep.all().iter().map(|kept| kept.pid).collect()
    }

    #[test]
    fn a_tag_means_the_last_one_and_an_id_that_came_again_the_new_one() {
        let keep = Keep::default();
        add(&keep, 1, "a", 1).end(Outcome::Exited(0));
        add(&keep, 2, "a", 2);
        let pid = |selector| keep.find(&selector).map(|kept| kept.pid);
        assert_eq!(pid(Selector::Tag("a".to_owned())), Some(2));
        assert_eq!(pid(Selector::Pid(1)), Some(1));
        assert_eq!(pid(Selector::Pid(3)), None);
        add(&keep, 1, "b", 3);
        assert_eq!(pids(&keep), [2, 1]);
        assert!(keep.find(&Selector::Pid(1)).unwrap().runs());
    }

    #[test]
    fn those_that_run_stay_and_of_those_that_ended_the_last() {
        let keep = Keep::default();
        add(&keep, 1, "runs", LIMIT);
        let late = add(&keep, 2, "late", 1);
        for pid in 10..10 + ENDED as u32 {
            add(&keep, pid, "x", 1).end(Outcome::Exited(0));
        }
        late.end(Outcome::Exited(0));
        keep.forget();
        let expected: Vec<u32> = [1, 2].into_iter().chain(11..10 + ENDED as u32).collect();
        assert_eq!(pids(&keep), expected);
    }

    #[test]
    fn the_output_of_ended_ones_is_bounded_together() {
        let keep = Keep::default();
        for pid in 0..20 {
            add(&keep, pid, "x", LIMIT).end(Outcome::Exited(0));
        }
        keep.forget();
        assert_eq!(pids(&keep), (4..20).collect::<Vec<_>>());
    }
}
