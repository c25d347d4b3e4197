//! What to do about a page fault.
//!
//! A page is in one of three states, and what fills it follows from that alone:
//!
//! ```text
//!             fault, prefetch                   given back
//! untouched -----------------> served --------------------------> given back --.
//!     |      (the lineage's)      ^                                 ^  |        |
//!     |                           '------------- fault (zero) ------|--'        |
//!     '-------------------------- given back -----------------------'-----------'
//! ```
//!
//! Only an untouched page is ever the lineage's. One that was given back stays zero for ever, also
//! when a fault of it is seen a second time: the kernel drops the page a moment after it has said
//! so, and by then the first fault may have been served.
//!
//! Faults are served in windows, for a fault costs more than a page. A window is aligned, so that
//! windows do not overlap, unless the fault continues a run that is read in order: then it begins
//! there and grows. It never leaves its region, nor passes a page that is not untouched.
//!
//! Knows no descriptor and does no I/O.

use std::ops::Range;

use super::OutsideOfMemory;
use super::bitmap::Bitmap;
use crate::vmm::storage::memory::{PAGE_SIZE, PageMap, Region, RegionError, Source};

/// Pages of a window around a fault that continues nothing: only the one that is asked for. A guest then
/// gets 11 % of what is in use until its first command is done; with 2 it is 15 %, with 4 20 %, with 16
/// 35 % (Debian, 256 MiB). Faults are some 2,000, 1,365, 869 and 389, but only of the first restore: the
/// next ones are brought what that one touched, and pay for each page that it did not.
pub(super) const WINDOW: u64 = 1;

/// Pages of the largest window.
pub(super) const LARGEST_WINDOW: u64 = 128;

/// How many runs that are read in order are told apart: some vCPUs, each at its own.
const STREAMS: usize = 4;

/// Pages that are to be filled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fill {
    /// One run of pages, all in one region.
    pub pages: Range<u64>,
    /// With what.
    pub with: Content,
}

/// What fills a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// Zeros.
    Zero,
    /// What the lineage has there.
    Read,
}

/// What a fault asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    /// What to fill, the faulted page among the first, one behind the other.
    pub fills: Vec<Fill>,
    /// Whether the fault was the first of its page.
    pub first: bool,
}

/// Sizes of windows, in pages.
#[derive(Debug, Clone, Copy)]
pub(super) struct Windows {
    /// The first one, a power of two.
    pub first: u64,
    /// The largest one.
    pub largest: u64,
}

impl Default for Windows {
    fn default() -> Self {
        Self { first: WINDOW, largest: LARGEST_WINDOW }
    }
}

/// A run that is read in order.
#[derive(Debug, Clone, Copy, Default)]
struct Stream {
    /// The page that continues it. No run begins with page 0, as none ends there.
    next: u64,
    /// Pages of the window that will do so.
    window: u64,
}

/// Answers faults of one memory.
#[derive(Debug)]
pub(super) struct Resolver<'a> {
    /// Sorted by their pages.
    regions: Vec<Region>,
    map: &'a PageMap,
    served: Bitmap,
    given_back: Bitmap,
    windows: Windows,
    /// The latest one first.
    streams: [Stream; STREAMS],
}

impl<'a> Resolver<'a> {
    /// Begins with a memory of which nothing was touched.
    ///
    /// # Errors
    ///
    /// [`RegionError`] unless the regions are one memory of that size.
    pub fn new(
        regions: Vec<Region>,
        memory_bytes: u64,
        map: &'a PageMap,
        windows: Windows,
    ) -> Result<Self, RegionError> {
        let pages = memory_bytes / PAGE_SIZE as u64;
        Ok(Self {
            regions: Region::sorted(regions, memory_bytes)?,
            map,
            served: Bitmap::new(pages),
            given_back: Bitmap::new(pages),
            windows,
            streams: [Stream::default(); STREAMS],
        })
    }

    /// Says what to fill so that a fault is over.
    ///
    /// # Errors
    ///
    /// [`OutsideOfMemory`].
    pub fn fault(&mut self, address: u64) -> Result<Answer, OutsideOfMemory> {
        let (page, region) = self.locate(address).ok_or(OutsideOfMemory { address })?;
        if self.is_untouched(page) {
            let window = self.window(page);
            let run = self.untouched_around(page, window, &region.pages());
            self.continues(page, run.end);
            return Ok(Answer { fills: self.split(run), first: true });
        }
        // Either the answer to this fault is on its way, and filling finds the page there; or the
        // page was given back, whether or not that was said before, and is zero.
        let window = (page / self.windows.first + 1) * self.windows.first;
        let limit = if self.is_empty(page) { region.pages().end.min(window) } else { page + 1 };
        let end = (page + 1..limit).find(|next| !self.is_empty(*next)).unwrap_or(limit);
        let fill = Fill { pages: page..end, with: Content::Zero };
        Ok(Answer { fills: vec![fill], first: false })
    }

    /// Says what to fill of pages that will probably be asked for.
    pub fn prefetch(&self, pages: Range<u64>) -> Vec<Fill> {
        let mut fills = Vec::new();
        for region in &self.regions {
            let own = region.pages();
            let mut at = pages.start.max(own.start);
            let end = pages.end.min(own.end);
            while at < end {
                if !self.is_untouched(at) {
                    at += 1;
                    continue;
                }
                let run = self.untouched_around(at, at..end, &own);
                at = run.end;
                fills.extend(self.split(run));
            }
        }
        fills
    }

    /// Takes note of pages that were filled.
    pub fn filled(&mut self, pages: Range<u64>) {
        self.served.insert(pages);
    }

    /// Takes note of addresses that were given back, and says which pages that are.
    pub fn give_back(&mut self, addresses: Range<u64>) -> Vec<Range<u64>> {
        let mut runs = Vec::new();
        for region in &self.regions {
            let start = addresses.start.max(region.address);
            let end = addresses.end.min(region.address + region.bytes);
            if start < end {
                let page =
                    |address: u64| (region.offset + address - region.address) / PAGE_SIZE as u64;
                runs.push(page(start)..page(end));
            }
        }
        for run in &runs {
            self.given_back.insert(run.clone());
            self.served.remove(run.clone());
        }
        runs
    }

    /// The pages that were given back at some time.
    pub fn given_back(&self) -> &Bitmap {
        &self.given_back
    }

    /// Where a page is.
    pub fn address(&self, page: u64) -> u64 {
        let offset = page * PAGE_SIZE as u64;
        let number = self.regions.partition_point(|region| region.offset + region.bytes <= offset);
        let region = &self.regions[number];
        region.address + (offset - region.offset)
    }

    /// The regions, in the order of their pages.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    fn locate(&self, address: u64) -> Option<(u64, Region)> {
        let inside =
            |region: &&Region| (region.address..region.address + region.bytes).contains(&address);
        let region = *self.regions.iter().find(inside)?;
        Some(((region.offset + address - region.address) / PAGE_SIZE as u64, region))
    }

    fn is_untouched(&self, page: u64) -> bool {
        !self.served.has(page) && !self.given_back.has(page)
    }

    /// Whether a page was given back and nothing has come after it.
    fn is_empty(&self, page: u64) -> bool {
        !self.served.has(page) && self.given_back.has(page)
    }

    /// The pages that a fault of `page` is served with, if all of them are there to be.
    fn window(&self, page: u64) -> Range<u64> {
        match self.streams.iter().find(|stream| stream.next == page && page > 0) {
            Some(stream) => page..page + stream.window,
            None => {
                let start = page / self.windows.first * self.windows.first;
                start..start + self.windows.first
            }
        }
    }

    /// Takes note that a fault at `page` was served up to `end`.
    fn continues(&mut self, page: u64, end: u64) {
        let found = self.streams.iter().position(|stream| stream.next == page && page > 0);
        let stream = match found {
            Some(number) => {
                let window = (self.streams[number].window * 2).min(self.windows.largest);
                self.streams[..=number].rotate_right(1);
                Stream { next: end, window }
            }
            None => {
                self.streams.rotate_right(1);
                Stream { next: end, window: self.windows.first }
            }
        };
        self.streams[0] = stream;
    }

    /// The longest run of untouched pages that has `page` in it and is within both limits.
    fn untouched_around(&self, page: u64, window: Range<u64>, region: &Range<u64>) -> Range<u64> {
        let (low, high) = (window.start.max(region.start), window.end.min(region.end));
        let (mut start, mut end) = (page, page + 1);
        while start > low && self.is_untouched(start - 1) {
            start -= 1;
        }
        while end < high && self.is_untouched(end) {
            end += 1;
        }
        start..end
    }

    /// Splits a run of untouched pages by what fills them.
    fn split(&self, run: Range<u64>) -> Vec<Fill> {
        let mut fills: Vec<Fill> = Vec::new();
        for (pages, source) in self.map.pieces(run) {
            let with = match source {
                Source::Zero => Content::Zero,
                Source::Base | Source::Stored { .. } => Content::Read,
            };
            match fills.last_mut() {
                Some(last) if last.with == with => last.pages.end = pages.end,
                _ => fills.push(Fill { pages, with }),
            }
        }
        fills
    }
}

#[cfg(test)]
#[path = "resolver_tests.rs"]
mod tests;
