//! What a process has written, kept for those who come later, and who reads it now.
//!
//! ```text
//!   run() --append--> ring --next--> reader 1
//!     ^                        \---> reader 2 ...
//!     '------- room() waits for readers of a terminal
//! ```
//!
//! A process on pipes never waits for its readers: who is too slow is told how much is gone. One on a
//! terminal does, as it would for a person's: but only for those who still take something.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::time::timeout;

use super::ring::{Piece, Ring};
use super::run::Outcome;
use super::stream::{CHUNK, Kind, Turn};

/// Bytes that a reader may be behind before a terminal waits for it.
const AHEAD: u64 = 64 * 1024;
/// Whether a process waits for those who read what it writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// It does not.
    Own,
    /// It does, but not longer than this for one that takes nothing, until it takes something again.
    OfReaders(Duration),
}

/// The record of one process.
#[derive(Debug)]
pub struct Record {
    pace: Pace,
    state: Mutex<State>,
    /// There is something to read.
    changed: Notify,
    /// Something was read, or a reader has left.
    taken: Notify,
}

#[derive(Debug, Default)]
struct State {
    ring: Ring,
    end: Option<End>,
    readers: BTreeMap<u64, Place>,
    /// Names the next reader.
    next: u64,
}

/// Where a reader is.
#[derive(Debug)]
struct Place {
    /// Number of the last byte it knows.
    at: u64,
    /// Whether it is waited for.
    attentive: bool,
}

/// What a reader is told.
#[derive(Debug)]
pub enum Seen {
    /// So many bytes are not kept any more.
    Lost(u64),
    /// Some output.
    Output(Piece),
    /// The end.
    Ended(Outcome),
}

/// Somebody who reads a record.
#[derive(Debug)]
pub struct Reader {
    record: Arc<Record>,
    name: u64,
    turn: Turn,
}

/// How much a record holds.
#[derive(Debug, Clone, Copy)]
pub struct Extent {
    /// How many bytes are kept no more.
    pub dropped: u64,
    /// How many were written.
    pub written: u64,
    /// When and how the process ended, if it has.
    pub end: Option<End>,
}

/// The end of a process.
#[derive(Debug, Clone, Copy)]
pub struct End {
    /// When.
    pub at: Instant,
    /// How.
    pub outcome: Outcome,
}

impl Extent {
    /// How many bytes it holds.
    pub fn kept(&self) -> usize {
        usize::try_from(self.written - self.dropped).unwrap_or(usize::MAX)
    }
}

impl Record {
    /// Of a process that has written nothing yet.
    pub fn new(pace: Pace) -> Self {
        Self { pace, state: Mutex::default(), changed: Notify::new(), taken: Notify::new() }
    }

    /// How much it holds.
    pub fn extent(&self) -> Extent {
        let state = self.state();
        let (dropped, written) = (state.ring.dropped(), state.ring.written());
        Extent { dropped, written, end: state.end }
    }

    /// Adds what the process has written.
    pub fn append(&self, kind: Kind, chunk: &[u8]) {
        self.state().ring.push(kind, chunk);
        self.changed.notify_waiters();
    }

    /// Waits until all readers that the process waits for have taken enough.
    pub async fn room(&self) {
        let Pace::OfReaders(patience) = self.pace else { return };
        loop {
            let taken = self.taken.notified();
            if !self.state().behind().any(|place| place.attentive) {
                return;
            }
            if timeout(patience, taken).await.is_err() {
                self.state().behind().for_each(|place| place.attentive = false);
            }
        }
    }

    /// The process has ended, and all it has written is here.
    pub fn end(&self, outcome: Outcome) {
        let mut state = self.state();
        state.end = Some(End { at: Instant::now(), outcome });
        state.ring.shrink();
        drop(state);
        self.changed.notify_waiters();
    }

    /// Reads it from the byte after number `after` on.
    pub fn read(self: &Arc<Self>, after: u64) -> Reader {
        let mut state = self.state();
        let name = state.next;
        state.next += 1;
        state.readers.insert(name, Place { at: after, attentive: true });
        Reader { record: Arc::clone(self), name, turn: Turn::default() }
    }

    /// What a reader has not been told yet, if there is something.
    fn take(&self, name: u64) -> Option<Seen> {
        let mut state = self.state();
        let State { ring, end, readers, .. } = &mut *state;
        let place = readers.get_mut(&name)?;
        let lost = ring.dropped().saturating_sub(place.at);
        place.attentive = true;
        if lost > 0 {
            place.at = ring.dropped();
            return Some(Seen::Lost(lost));
        }
        match ring.read(place.at, CHUNK) {
            Some(piece) => {
                place.at = piece.seq;
                self.taken.notify_waiters();
                Some(Seen::Output(piece))
            }
            None => end.map(|end| Seen::Ended(end.outcome)),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn behind(&mut self) -> impl Iterator<Item = &mut Place> {
        let written = self.ring.written();
        self.readers.values_mut().filter(move |place| written.saturating_sub(place.at) > AHEAD)
    }
}

impl Reader {
    /// Waits for something to tell. Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Seen {
        loop {
            self.turn.go_on().await;
            let changed = self.record.changed.notified();
            if let Some(seen) = self.record.take(self.name) {
                if let Seen::Output(piece) = &seen {
                    self.turn.spend(piece.bytes.len());
                }
                return seen;
            }
            changed.await;
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.record.state().readers.remove(&self.name);
        self.record.taken.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERMINAL: Pace = Pace::OfReaders(Duration::from_secs(1));

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(test);
    }

    fn record(pace: Pace, bytes: u64) -> Arc<Record> {
        let record = Arc::new(Record::new(pace));
        record.append(Kind::Terminal, &vec![b'x'; usize::try_from(bytes).unwrap()]);
        record
    }

    async fn waits(record: &Record) -> bool {
        timeout(Duration::from_millis(1), record.room()).await.is_err()
    }

    #[test]
    fn a_terminal_waits_for_readers_that_are_far_behind_and_pipes_do_not() {
        run(async {
            let pipes = record(Pace::Own, 2 * AHEAD);
            let _slow = pipes.read(0);
            assert!(!waits(&pipes).await);

            let terminal = record(TERMINAL, 2 * AHEAD);
            assert!(!waits(&terminal).await, "nobody reads");
            let mut slow = terminal.read(0);
            let _late = terminal.read(2 * AHEAD);
            assert!(waits(&terminal).await);
            while terminal.extent().written - terminal.state().readers[&0].at > AHEAD {
                assert!(matches!(slow.next().await, Seen::Output(_)));
            }
            assert!(!waits(&terminal).await);
        });
    }

    #[test]
    fn a_reader_that_leaves_or_takes_nothing_is_not_waited_for() {
        run(async {
            let terminal = record(TERMINAL, 2 * AHEAD);
            let gone = terminal.read(0);
            assert!(waits(&terminal).await);
            drop(gone);
            assert!(!waits(&terminal).await);

            let mut stuck = terminal.read(0);
            terminal.room().await;
            assert!(!waits(&terminal).await, "patience ends once, not at every write");
            stuck.next().await;
            terminal.append(Kind::Terminal, &vec![b'x'; usize::try_from(AHEAD).unwrap()]);
            assert!(waits(&terminal).await, "it has taken something again");
        });
    }

    #[test]
    fn a_reader_that_is_too_slow_is_told_how_much_is_gone_and_then_the_rest() {
        run(async {
            let record = record(Pace::Own, 10);
            let mut reader = record.read(4);
            let chunk = vec![b'y'; CHUNK];
            let chunks = super::super::ring::LIMIT / CHUNK;
            (0..chunks).for_each(|_| record.append(Kind::Terminal, &chunk));
            record.end(Outcome::Exited(3));
            assert!(matches!(reader.next().await, Seen::Lost(6)));
            let mut seen = 0;
            loop {
                match reader.next().await {
                    Seen::Output(piece) => seen += piece.bytes.len(),
                    Seen::Ended(outcome) => break assert_eq!(outcome, Outcome::Exited(3)),
                    Seen::Lost(bytes) => panic!("{bytes} bytes"),
                }
            }
            assert_eq!(seen, chunks * CHUNK);
        });
    }
}
