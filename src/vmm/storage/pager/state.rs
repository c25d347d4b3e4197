//! What a pager says about itself, in a file of its own that the daemon reads at any time.
//!
//! Little-endian, at fixed offsets, so that each part is written alone; a number of things is
//! written after the things:
//!
//! | offset | field | bytes |
//! | --- | --- | --- |
//! | 0 | magic; the last byte is the version | 8 |
//! | 8 | phase | 4 |
//! | 16 | counters, in the order of [`Counters`] | 6 * 8 |
//! | 64 | number of regions; from 72 address, length, offset of each | 4; 24 each |
//! | 512 | length of the error; from 516 its text | 4; up to 1,532 |
//! | 2048 | number of windows of the working set | 4 |
//! | 2056 | pages of the memory | 8 |
//! | 4096 | the windows | 8 each |
//! | 36864 | pages that were given back, one bit each | pages / 8 |
//!
//! A VM that gives pages back goes on as soon as its pager has read that. So that nobody reads the
//! file between this and the writing of it, the pager locks the file before it reads events and
//! unlocks it when it has written what they were, and a reader takes the lock too.

use std::fs::{self, File};
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::{FallocateFlags, fallocate};

use super::PagerError;
use super::bitmap::Bitmap;
use super::working_set::{MOST_WINDOWS, WINDOW_BYTES, WorkingSet, encode_window};
use crate::vmm::storage::memory::Region;

/// Name of the file.
pub(super) const STATE: &str = "pager.state";

const MAGIC: [u8; 8] = *b"NESTPAG\x01";
const PHASE: usize = 8;
const COUNTERS: usize = 16;
const REGION_COUNT: usize = 64;
const REGIONS: usize = 72;
const REGION_BYTES: usize = 24;
const ERROR_LENGTH: usize = 512;
const ERROR: usize = 516;
const WINDOW_COUNT: usize = 2048;
const PAGES: usize = 2056;
const WINDOWS: usize = 4096;
const GIVEN_BACK: usize = WINDOWS + MOST_WINDOWS * WINDOW_BYTES;

/// Firecracker has two at most.
pub(super) const MOST_REGIONS: usize = 16;

const _: () = assert!(REGIONS + MOST_REGIONS * REGION_BYTES <= ERROR_LENGTH);
const _: () = assert!(GIVEN_BACK == 36864);

/// How far a pager has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// It waits for the VM.
    Waiting,
    /// It serves the VM; the regions are known.
    Serving,
    /// The VM has ended, and the pager with it.
    Ended,
    /// It has failed and killed the VM; the error is known.
    Failed,
}

/// What a pager has done. All but the first are pages or bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Faults.
    pub faults: u64,
    /// Pages that were filled because of faults: those asked for and their neighbours.
    pub pages_faulted: u64,
    /// Pages that were filled before anybody asked.
    pub pages_prefetched: u64,
    /// Pages out of both that were zero and not read.
    pub pages_zero: u64,
    /// Bytes that were read from the generations.
    pub bytes_read: u64,
    /// Pages that the VM gave back.
    pub pages_given_back: u64,
}

impl Counters {
    fn to_array(self) -> [u64; 6] {
        let Self {
            faults,
            pages_faulted,
            pages_prefetched,
            pages_zero,
            bytes_read,
            pages_given_back,
        } = self;
        [faults, pages_faulted, pages_prefetched, pages_zero, bytes_read, pages_given_back]
    }

    fn from_array(numbers: [u64; 6]) -> Self {
        let [faults, pages_faulted, pages_prefetched, pages_zero, bytes_read, pages_given_back] =
            numbers;
        Self { faults, pages_faulted, pages_prefetched, pages_zero, bytes_read, pages_given_back }
    }
}

/// What a pager said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    phase: Phase,
    counters: Counters,
    regions: Vec<Region>,
    error: Option<String>,
    working_set: WorkingSet,
    given_back: Vec<Range<u64>>,
}

impl State {
    /// Reads what the pager of the sandbox in `dir` has said so far. Counters and the working set
    /// of a pager that is busy are up to a tenth of a second old; the rest is as it is. Waits while
    /// the pager reads events, which is microseconds.
    ///
    /// # Errors
    ///
    /// [`PagerError::State`], with `NotFound` if no pager was started there, or `InvalidData` if
    /// the file is no pager's.
    pub fn read(dir: &Path) -> Result<Self, PagerError> {
        let path = dir.join(STATE);
        let read = || {
            let mut file = File::open(&path)?;
            file.lock_shared()?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            parse(&bytes).ok_or_else(|| io::ErrorKind::InvalidData.into())
        };
        read().map_err(|source| PagerError::State { verb: "read", path: path.clone(), source })
    }

    /// How far it has come.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Where the memory is in the VM's process; empty before the VM has come.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// What was prefetched, then what was asked for, in order.
    pub fn working_set(&self) -> &WorkingSet {
        &self.working_set
    }

    /// What it has done.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The pages that the VM gave back at some time, in order. Of a frozen VM it is all of them.
    pub fn given_back(&self) -> &[Range<u64>] {
        &self.given_back
    }

    /// Why it has failed.
    pub fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }
}

fn parse(bytes: &[u8]) -> Option<State> {
    let u32_at = |at: usize| {
        Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().expect("four bytes")))
    };
    let u64_at = |at: usize| {
        Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().expect("eight bytes")))
    };
    if bytes.get(..MAGIC.len())? != MAGIC {
        return None;
    }
    let phase = match u32_at(PHASE)? {
        0 => Phase::Waiting,
        1 => Phase::Serving,
        2 => Phase::Ended,
        3 => Phase::Failed,
        _ => return None,
    };
    let mut counters = [0; 6];
    for (number, counter) in counters.iter_mut().enumerate() {
        *counter = u64_at(COUNTERS + number * 8)?;
    }
    let count = u32_at(REGION_COUNT)? as usize;
    let region = |number: usize| {
        let at = REGIONS + number * REGION_BYTES;
        Some(Region { address: u64_at(at)?, bytes: u64_at(at + 8)?, offset: u64_at(at + 16)? })
    };
    let regions = (0..count.min(MOST_REGIONS)).map(region).collect::<Option<_>>()?;
    let error = match u32_at(ERROR_LENGTH)? as usize {
        0 => None,
        length => {
            let text = bytes.get(ERROR..(ERROR + length).min(WINDOW_COUNT))?;
            Some(String::from_utf8_lossy(text).into_owned())
        }
    };
    let count = (u32_at(WINDOW_COUNT)? as usize).min(MOST_WINDOWS);
    let working_set = WorkingSet::parse(bytes.get(WINDOWS..WINDOWS + count * WINDOW_BYTES)?);
    let length = usize::try_from(u64_at(PAGES)?.div_ceil(8)).ok()?;
    let given_back = bytes.get(GIVEN_BACK..GIVEN_BACK.checked_add(length)?)?;
    let given_back = Bitmap::from_bytes(given_back).runs();
    let counters = Counters::from_array(counters);
    Some(State { phase, counters, regions, error, working_set, given_back })
}

/// The file, as its pager has it.
#[derive(Debug)]
pub(super) struct StateFile(File);

impl StateFile {
    /// Makes the file for a memory of so many pages, with all its blocks, in the place of one that
    /// a former pager may still write to.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn create(dir: &Path, pages: u64) -> io::Result<Self> {
        let new = dir.join(format!("{STATE}.new"));
        let mut options = File::options();
        let file = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        let bytes = GIVEN_BACK as u64 + pages.div_ceil(8);
        fallocate(&file, FallocateFlags::empty(), 0, bytes as i64)?;
        file.write_all_at(&MAGIC, 0)?;
        file.write_all_at(&pages.to_le_bytes(), PAGES as u64)?;
        fs::rename(&new, dir.join(STATE))?;
        Ok(Self(file))
    }

    /// Takes the file that the daemon has made.
    pub fn open(file: File) -> Self {
        Self(file)
    }

    /// The open file.
    pub fn into_file(self) -> File {
        self.0
    }

    /// Has readers wait.
    pub fn lock(&self) -> io::Result<()> {
        self.0.lock()
    }

    /// Lets readers go on.
    pub fn unlock(&self) -> io::Result<()> {
        self.0.unlock()
    }

    pub fn set_phase(&self, phase: Phase) -> io::Result<()> {
        let number: u32 = match phase {
            Phase::Waiting => 0,
            Phase::Serving => 1,
            Phase::Ended => 2,
            Phase::Failed => 3,
        };
        self.put(PHASE, &number.to_le_bytes())
    }

    pub fn set_counters(&self, counters: Counters) -> io::Result<()> {
        let bytes: Vec<u8> = counters.to_array().into_iter().flat_map(u64::to_le_bytes).collect();
        self.put(COUNTERS, &bytes)
    }

    /// Writes where the memory is; not more than [`MOST_REGIONS`].
    pub fn set_regions(&self, regions: &[Region]) -> io::Result<()> {
        debug_assert!(regions.len() <= MOST_REGIONS);
        let numbers = regions.iter().flat_map(|r| [r.address, r.bytes, r.offset]);
        let bytes: Vec<u8> = numbers.flat_map(u64::to_le_bytes).collect();
        self.put(REGIONS, &bytes)?;
        self.put(REGION_COUNT, &(regions.len() as u32).to_le_bytes())
    }

    /// Writes the windows from number `from` on.
    pub fn set_working_set(&self, set: &WorkingSet, from: usize) -> io::Result<()> {
        let bytes: Vec<u8> = set.windows()[from..].iter().flat_map(encode_window).collect();
        self.put(WINDOWS + from * WINDOW_BYTES, &bytes)?;
        self.put(WINDOW_COUNT, &(set.windows().len() as u32).to_le_bytes())
    }

    /// Writes which of these pages were given back.
    pub fn set_given_back(&self, set: &Bitmap, pages: &Range<u64>) -> io::Result<()> {
        let (at, bytes) = set.bytes_of(pages);
        self.put(GIVEN_BACK + at, bytes)
    }

    /// Writes why the pager has failed.
    pub fn set_error(&self, text: &str) -> io::Result<()> {
        let end = text.floor_char_boundary(WINDOW_COUNT - ERROR);
        self.put(ERROR, &text.as_bytes()[..end])?;
        self.put(ERROR_LENGTH, &(end as u32).to_le_bytes())?;
        self.set_phase(Phase::Failed)
    }

    fn put(&self, at: usize, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, at as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let file = StateFile::create(dir.path(), 1000).unwrap();
        let state = State::read(dir.path()).unwrap();
        assert_eq!((state.phase(), state.counters()), (Phase::Waiting, Counters::default()));
        assert!(state.regions().is_empty() && state.working_set().is_empty());
        assert!(state.error().is_none() && state.given_back().is_empty());

        let regions = [
            Region { address: 1 << 30, bytes: 4096, offset: 0 },
            Region { address: 1 << 40, bytes: 999 * 4096, offset: 4096 },
        ];
        let counters = Counters::from_array([1, 2, 3, 4, 5, 6]);
        let mut set: WorkingSet = [5..6, 8..24].into_iter().collect();
        let mut pages = Bitmap::new(1000);
        pages.insert(990..1000);
        file.set_regions(&regions).unwrap();
        file.set_counters(counters).unwrap();
        file.set_working_set(&set, 0).unwrap();
        set.push(100..101);
        file.set_working_set(&set, 2).unwrap();
        file.set_given_back(&pages, &(990..1000)).unwrap();
        file.set_phase(Phase::Serving).unwrap();
        let state = State::read(dir.path()).unwrap();
        assert_eq!((state.phase(), state.counters()), (Phase::Serving, counters));
        assert_eq!((state.regions(), state.working_set()), (&regions[..], &set));
        assert_eq!(state.given_back(), std::slice::from_ref(&(990..1000)));

        file.set_error(&"ö".repeat(2000)).unwrap();
        let state = State::read(dir.path()).unwrap();
        assert_eq!(state.phase(), Phase::Failed);
        assert_eq!(state.error(), Some("ö".repeat(766).as_str()), "a long text is cut off");
    }

    #[test]
    fn what_is_no_state_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let kind = || {
            let PagerError::State { source, .. } = State::read(dir.path()).unwrap_err() else {
                panic!("another error")
            };
            source.kind()
        };
        assert_eq!(kind(), io::ErrorKind::NotFound);
        let file = StateFile::create(dir.path(), 1000).unwrap();
        for (at, bytes) in [(0, &[0][..]), (PHASE, &[9]), (PAGES, &[255; 8])] {
            let file = File::options().write(true).open(dir.path().join(STATE)).unwrap();
            file.write_all_at(bytes, at as u64).unwrap();
            assert_eq!(kind(), io::ErrorKind::InvalidData);
            StateFile::create(dir.path(), 1000).unwrap();
        }
        file.into_file().set_len(100).unwrap();
        State::read(dir.path()).expect("a former pager writes to a file of its own");
    }

    #[test]
    fn a_reader_waits_for_events_to_be_written() {
        let dir = tempfile::tempdir().unwrap();
        let file = StateFile::create(dir.path(), 8).unwrap();
        file.lock().unwrap();
        let path = dir.path().to_owned();
        let reader = std::thread::spawn(move || State::read(&path).unwrap().phase());
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(!reader.is_finished());
        file.set_phase(Phase::Serving).unwrap();
        file.unlock().unwrap();
        assert_eq!(reader.join().unwrap(), Phase::Serving);
    }
}
