//! Serves the faults of one VM until it ends.
//!
//! One thread, for a fault is a read and a copy, and both are the kernel's. Faults come before what
//! is prefetched. Pages that are being given back come before faults: who touches such a page at
//! the same time gets zeros or what was there, but who touches it later must get zeros.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::PagerError;
use super::handshake::{Handshake, Peer};
use super::resolver::{Content, Fill, Resolver, Windows};
use super::slim::let_go_of_code;
use super::state::{Counters, Phase, StateFile};
use super::uffd::{Event, Uffd};
use super::working_set::WorkingSet;
use crate::vmm::storage::memory::{Lineage, PAGE_SIZE};

/// How old counters and the working set in the state file may be.
const REPORT_EVERY: Duration = Duration::from_millis(100);

/// How long a VM that has hung up may take to end, with all its memory and devices.
const LINGER: Duration = Duration::from_secs(5);

/// How long nothing has happened when a pager lets go of memory that it used meanwhile.
const AT_REST: Duration = Duration::from_secs(1);

/// Pause before a fault is tried again whose memory is just being given back.
const RETRY: Duration = Duration::from_millis(1);

/// Pages that are prefetched before faults are looked for again.
const PREFETCH_PAGES: u64 = 64;

/// Runs of pages that are, too. Most have a single page and take two system calls, a look takes four; but
/// a fault that comes meanwhile waits for all of them.
const PREFETCH_RUNS: usize = 16;

/// Windows of a working set that are sorted, so that neighbours are read at once; the order of faults is
/// kept beyond that. Of some 1,400 windows 930 runs are left, of 64 sorted at a time 1,390.
const SORTED_WINDOWS: usize = 1024;

/// How an attempt to fill pages went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// They are there.
    Done,
    /// Pages are being given back: read events, and try again.
    Again,
    /// The VM has no memory any more.
    Gone,
}

/// Why pages are filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    Fault,
    Prefetch,
}

/// A VM's memory in the making.
pub(super) struct Server<'a> {
    lineage: &'a Lineage,
    peer: &'a Peer,
    state: &'a StateFile,
    uffd: Uffd,
    resolver: Resolver<'a>,
    /// Addresses that somebody waits for.
    faults: VecDeque<u64>,
    /// Pages that are still to be prefetched.
    ahead: VecDeque<Range<u64>>,
    buffer: Vec<u8>,
    events: Vec<Event>,
    counters: Counters,
    working_set: WorkingSet,
    /// The first window that is not in the state file as it is here.
    unreported: usize,
    reported: Instant,
    /// Whether something is not in the state file.
    dirty: bool,
    /// Whether nothing has happened for so long that nothing is expected to.
    at_rest: bool,
    hung_up: Option<Instant>,
}

impl<'a> Server<'a> {
    /// Takes over the memory that a VM gives, and says so in the state file.
    ///
    /// # Errors
    ///
    /// [`PagerError::Regions`] if it is not the memory of `lineage`, [`PagerError::Uffd`] if the
    /// descriptor does not serve it, [`PagerError::State`].
    pub fn begin(
        lineage: &'a Lineage,
        peer: &'a Peer,
        state: &'a StateFile,
        handshake: Handshake,
        prefetch: &WorkingSet,
        windows: Windows,
    ) -> Result<Self, PagerError> {
        let Handshake { uffd, regions } = handshake;
        let resolver = Resolver::new(regions, lineage.memory_bytes(), lineage.map(), windows)?;
        let first = resolver.regions().first().map_or(0..0, |r| r.address..r.address + r.bytes);
        let uffd = Uffd::new(uffd, &first)
            .map_err(|source| PagerError::Uffd { verb: "take over", source })?;
        state.set_regions(resolver.regions()).map_err(PagerError::writing)?;
        state.set_phase(Phase::Serving).map_err(PagerError::writing)?;
        let pages = lineage.memory_bytes() / PAGE_SIZE as u64;
        Ok(Self {
            lineage,
            peer,
            state,
            uffd,
            resolver,
            faults: VecDeque::new(),
            ahead: ahead(prefetch, pages),
            buffer: vec![0; windows.largest.max(PREFETCH_PAGES) as usize * PAGE_SIZE],
            events: Vec::new(),
            counters: Counters::default(),
            working_set: WorkingSet::default(),
            unreported: 0,
            reported: Instant::now(),
            dirty: false,
            at_rest: false,
            hung_up: None,
        })
    }

    /// Serves until the VM ends.
    ///
    /// # Errors
    ///
    /// [`PagerError`] for anything because of which a fault cannot be served: the VM is to be
    /// killed then, or it waits for ever.
    pub fn serve(&mut self) -> Result<(), PagerError> {
        let outcome = self.run();
        self.report().map_err(PagerError::writing)?;
        outcome
    }

    fn run(&mut self) -> Result<(), PagerError> {
        let mut pause = None;
        loop {
            if !self.wait(pause)? {
                return Ok(());
            }
            self.read_events()?;
            let step = match self.faults.is_empty() {
                false => self.serve_faults()?,
                true => self.prefetch()?,
            };
            pause = match step {
                Step::Done => None,
                Step::Again => Some(RETRY),
                Step::Gone => return Ok(()),
            };
            if self.dirty && self.reported.elapsed() >= REPORT_EVERY {
                self.report().map_err(PagerError::writing)?;
            }
        }
    }

    /// Waits until there is something to do; says whether the VM is still there.
    fn wait(&mut self, pause: Option<Duration>) -> Result<bool, PagerError> {
        let failed = |source: io::Error| PagerError::Uffd { verb: "wait for", source };
        let idle = self.faults.is_empty() && self.ahead.is_empty();
        let timeout = match (pause, idle) {
            (Some(pause), _) => PollTimeout::try_from(pause).expect("it is a millisecond"),
            (None, false) => PollTimeout::ZERO,
            (None, true) if self.dirty || self.hung_up.is_some() => {
                PollTimeout::try_from(REPORT_EVERY).expect("it is a moment")
            }
            (None, true) if !self.at_rest => {
                PollTimeout::try_from(AT_REST).expect("it is a second")
            }
            (None, true) => PollTimeout::NONE,
        };
        let settled = idle && !self.dirty && self.hung_up.is_none();
        let mut fds = [
            PollFd::new(self.uffd.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.peer.process(), PollFlags::POLLIN),
            // A hang-up is told without being asked for.
            PollFd::new(self.peer.socket(), PollFlags::empty()),
        ];
        // One that has hung up would be ready for ever.
        let count = if self.hung_up.is_some() { 2 } else { 3 };
        let happened = match poll(&mut fds[..count], timeout) {
            Ok(count) => count > 0,
            Err(Errno::EINTR) => true,
            Err(errno) => return Err(failed(errno.into())),
        };
        let ready = |fd: &PollFd<'_>| fd.revents().unwrap_or(PollFlags::empty());
        if ready(&fds[0]).contains(PollFlags::POLLERR) {
            return Err(failed(Errno::EIO.into()));
        }
        let (ended, hangs_up) = (!ready(&fds[1]).is_empty(), !ready(&fds[2]).is_empty());
        if settled && !happened && !self.at_rest {
            let_go_of_code();
        }
        self.at_rest = settled && !happened;
        if hangs_up && self.hung_up.is_none() {
            self.hung_up = Some(Instant::now());
        }
        match self.hung_up {
            // A process closes its files before it is seen to have ended. Until then it is served.
            Some(since) if !ended && since.elapsed() > LINGER => Err(PagerError::HungUp),
            Some(_) | None => Ok(!ended),
        }
    }

    /// Reads all events, and takes note of pages that were given back before any fault is served.
    fn read_events(&mut self) -> Result<(), PagerError> {
        self.state.lock().map_err(PagerError::writing)?;
        let read = self.uffd.read(&mut self.events);
        let noted = read
            .map_err(|source| PagerError::Uffd { verb: "read events of", source })
            .and_then(|()| self.note_events());
        self.state.unlock().map_err(PagerError::writing)?;
        noted
    }

    fn note_events(&mut self) -> Result<(), PagerError> {
        for event in std::mem::take(&mut self.events) {
            match event {
                Event::Fault(address) => {
                    self.counters.faults += 1;
                    self.faults.push_back(address);
                }
                Event::Removed(addresses) => {
                    for pages in self.resolver.give_back(addresses) {
                        self.counters.pages_given_back += pages.end - pages.start;
                        self.state
                            .set_given_back(self.resolver.given_back(), &pages)
                            .map_err(PagerError::writing)?;
                    }
                }
                Event::Unexpected(event) => return Err(PagerError::Unexpected { event }),
            }
            self.dirty = true;
        }
        Ok(())
    }

    fn serve_faults(&mut self) -> Result<Step, PagerError> {
        while let Some(address) = self.faults.front().copied() {
            let answer = self.resolver.fault(address)?;
            for fill in &answer.fills {
                match self.fill(fill, Cause::Fault)? {
                    Step::Done => {}
                    // The fault stays the first one: what is to be filled may be less by then.
                    stop @ (Step::Again | Step::Gone) => return Ok(stop),
                }
                if answer.first {
                    self.remember(fill.pages.clone());
                }
            }
            self.faults.pop_front();
        }
        Ok(Step::Done)
    }

    fn prefetch(&mut self) -> Result<Step, PagerError> {
        let mut left = PREFETCH_PAGES;
        for _ in 0..PREFETCH_RUNS {
            let Some(pages) = self.ahead.front().cloned() else { break };
            let Some(rest) = left.checked_sub(pages.end - pages.start) else { break };
            for fill in self.resolver.prefetch(pages.clone()) {
                match self.fill(&fill, Cause::Prefetch)? {
                    Step::Done => {}
                    stop @ (Step::Again | Step::Gone) => return Ok(stop),
                }
            }
            // Also what was there already: it was wanted before it was prefetched.
            self.remember(pages);
            self.ahead.pop_front();
            left = rest;
        }
        Ok(Step::Done)
    }

    fn fill(&mut self, fill: &Fill, cause: Cause) -> Result<Step, PagerError> {
        match fill.with {
            Content::Zero => self.fill_zero(fill.pages.clone(), cause),
            Content::Read => {
                let mut at = fill.pages.start;
                for data in self.lineage.data(fill.pages.clone())? {
                    let hole = self.fill_zero(at..data.start, cause)?;
                    at = data.end;
                    let step = match hole {
                        Step::Done => self.fill_data(data, cause)?,
                        Step::Again | Step::Gone => hole,
                    };
                    if step != Step::Done {
                        return Ok(step);
                    }
                }
                self.fill_zero(at..fill.pages.end, cause)
            }
        }
    }

    fn fill_zero(&mut self, pages: Range<u64>, cause: Cause) -> Result<Step, PagerError> {
        let before = self.filled(cause);
        let step = self.put(pages, cause, |uffd, address, pages| {
            uffd.zero(address, (pages.end - pages.start) * PAGE_SIZE as u64)
        });
        self.counters.pages_zero += self.filled(cause) - before;
        step
    }

    fn fill_data(&mut self, pages: Range<u64>, cause: Cause) -> Result<Step, PagerError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let length = (pages.end - pages.start) as usize * PAGE_SIZE;
        let read = self.lineage.read(std::slice::from_ref(&pages), &mut buffer[..length]);
        let first = pages.start;
        let step = read.map_err(PagerError::from).and_then(|()| {
            self.counters.bytes_read += length as u64;
            self.put(pages, cause, |uffd, address, pages| {
                let offset = |page: u64| (page - first) as usize * PAGE_SIZE;
                uffd.copy(address, &buffer[offset(pages.start)..offset(pages.end)])
            })
        });
        self.buffer = buffer;
        step
    }

    /// Puts a run of pages in place, all that are not there yet.
    fn put(
        &mut self,
        pages: Range<u64>,
        cause: Cause,
        call: impl Fn(&Uffd, u64, Range<u64>) -> Result<u64, Errno>,
    ) -> Result<Step, PagerError> {
        let page_size = PAGE_SIZE as u64;
        let mut at = pages.start;
        self.dirty |= at < pages.end;
        while at < pages.end {
            let address = self.resolver.address(at);
            let end = match call(&self.uffd, address, at..pages.end) {
                Ok(bytes) => {
                    let count = bytes / page_size;
                    match cause {
                        Cause::Fault => self.counters.pages_faulted += count,
                        Cause::Prefetch => self.counters.pages_prefetched += count,
                    }
                    at + count
                }
                Err(Errno::EEXIST) => {
                    // Whoever waits for it does not know yet.
                    match self.uffd.wake(&(address..address + page_size)) {
                        Ok(()) => at + 1,
                        Err(Errno::ESRCH) => return Ok(Step::Gone),
                        Err(errno) => return Err(PagerError::fill(address, errno)),
                    }
                }
                // The VM has unmapped it, as one that ends does: nobody can wait there.
                Err(Errno::ENOENT) => pages.end,
                Err(Errno::EAGAIN) => return Ok(Step::Again),
                Err(Errno::ESRCH) => return Ok(Step::Gone),
                Err(errno) => return Err(PagerError::fill(address, errno)),
            };
            self.resolver.filled(at..end);
            at = end;
        }
        Ok(Step::Done)
    }

    fn filled(&self, cause: Cause) -> u64 {
        match cause {
            Cause::Fault => self.counters.pages_faulted,
            Cause::Prefetch => self.counters.pages_prefetched,
        }
    }

    /// Adds to the working set.
    fn remember(&mut self, pages: Range<u64>) {
        if let Some(window) = self.working_set.push(pages) {
            self.unreported = self.unreported.min(window);
            self.dirty = true;
        }
    }

    /// Writes what is not in the state file yet.
    fn report(&mut self) -> io::Result<()> {
        self.state.set_working_set(&self.working_set, self.unreported)?;
        self.state.set_counters(self.counters)?;
        self.unreported = self.working_set.windows().len();
        self.reported = Instant::now();
        self.dirty = false;
        Ok(())
    }
}

/// What to prefetch, in which order: neighbours together, in pieces between which faults are served.
fn ahead(set: &WorkingSet, pages: u64) -> VecDeque<Range<u64>> {
    let mut ahead = VecDeque::new();
    for windows in set.windows().chunks(SORTED_WINDOWS) {
        let mut windows = windows.to_vec();
        windows.sort_unstable_by_key(|run| run.start);
        let mut runs: Vec<Range<u64>> = Vec::new();
        for run in windows {
            let run = run.start.min(pages)..run.end.min(pages);
            match runs.last_mut() {
                Some(last) if run.start <= last.end => last.end = last.end.max(run.end),
                _ => runs.push(run),
            }
        }
        for run in runs {
            let starts = (run.start..run.end).step_by(PREFETCH_PAGES as usize);
            ahead.extend(starts.map(|start| start..run.end.min(start + PREFETCH_PAGES)));
        }
    }
    ahead
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_prefetched_together_and_in_pieces() {
        let set = WorkingSet::parse(
            &WorkingSet::from_iter([300..316, 0..16, 16..40, 32..48, 990..2000]).encode(),
        );
        let pieces: Vec<_> = ahead(&set, 1000).into();
        assert_eq!(pieces, [0..48, 300..316, 990..1000]);
        let set = WorkingSet::from_iter([0..128, 128..130]);
        let pieces: Vec<_> = ahead(&set, 1000).into();
        assert_eq!(pieces, [0..64, 64..128, 128..130]);
    }
}
