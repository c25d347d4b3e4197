//! The pages that a VM asks for first.

use std::ops::Range;

/// How many windows are kept: a guest's start and first command have some 1,800, of a page each mostly.
pub(super) const MOST_WINDOWS: usize = 4096;

/// Bytes of a window in files: first page and number of pages, both 32 bits.
pub(super) const WINDOW_BYTES: usize = 8;

/// Most pages that neighbouring windows are joined to: a later prefetch should not wait long for one.
const LONGEST: u64 = 128;

/// The runs of pages that a VM has touched, in the order in which it did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WorkingSet(Vec<Range<u64>>);

impl WorkingSet {
    /// The runs, in order.
    pub fn windows(&self) -> &[Range<u64>] {
        &self.0
    }

    /// The number of pages.
    pub fn pages(&self) -> u64 {
        self.0.iter().map(|run| run.end - run.start).sum()
    }

    /// Its first windows, of at most so many pages.
    pub fn first(&self, pages: u64) -> Self {
        let mut left = pages;
        let fits = |run: &&Range<u64>| {
            let fitting = left.checked_sub(run.end - run.start);
            left = fitting.unwrap_or_default();
            fitting.is_some()
        };
        Self(self.0.iter().take_while(fits).cloned().collect())
    }

    /// Whether it has no page.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Writes it as bytes, to be kept beside a snapshot.
    pub fn encode(&self) -> Vec<u8> {
        self.0.iter().flat_map(encode_window).collect()
    }

    /// Reads what [`WorkingSet::encode`] wrote. What is no window is left out: a wrong working set
    /// costs time and nothing else.
    pub fn parse(bytes: &[u8]) -> Self {
        let windows = bytes.chunks_exact(WINDOW_BYTES).take(MOST_WINDOWS).map(|bytes| {
            let (first, count) = bytes.split_at(WINDOW_BYTES / 2);
            let number = |bytes: &[u8]| {
                u64::from(u32::from_le_bytes(bytes.try_into().expect("half of a window")))
            };
            let first = number(first);
            first..first + number(count)
        });
        Self(windows.filter(|run| !run.is_empty()).collect())
    }

    /// Adds a run, unless there are enough; says which window is new or longer now.
    pub(super) fn push(&mut self, run: Range<u64>) -> Option<usize> {
        let count = self.0.len();
        match self.0.last_mut() {
            Some(last) if last.end == run.start && run.end - last.start <= LONGEST => {
                last.end = run.end;
            }
            _ if count == MOST_WINDOWS => return None,
            _ => self.0.push(run),
        }
        Some(self.0.len() - 1)
    }
}

impl FromIterator<Range<u64>> for WorkingSet {
    fn from_iter<T: IntoIterator<Item = Range<u64>>>(runs: T) -> Self {
        let mut set = Self::default();
        for run in runs {
            set.push(run);
        }
        set
    }
}

/// A window as bytes. A header's page numbers have 32 bits too.
pub(super) fn encode_window(run: &Range<u64>) -> [u8; WINDOW_BYTES] {
    let [a, b, c, d] = (run.start as u32).to_le_bytes();
    let [e, f, g, h] = ((run.end - run.start) as u32).to_le_bytes();
    [a, b, c, d, e, f, g, h]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_working_set_reads_back_in_order() {
        let set: WorkingSet = [32..48, 0..16, 16..32, 900..901].into_iter().collect();
        assert_eq!(set.windows(), [32..48, 0..32, 900..901]);
        assert_eq!((WorkingSet::parse(&set.encode()), set.pages()), (set, 49));
    }

    #[test]
    fn a_working_set_begins_with_what_was_touched_first() {
        let set: WorkingSet = [32..48, 0..16, 900..901, 2..3].into_iter().collect();
        assert_eq!(set.first(33).windows(), [32..48, 0..16, 900..901]);
        assert_eq!(set.first(31).pages(), 16);
        assert!(set.first(15).is_empty());
        assert_eq!(set.first(1000), set);
    }

    #[test]
    fn a_working_set_is_bounded() {
        let set: WorkingSet = (0..10_000).map(|n| n * 100..n * 100 + 1).collect();
        assert_eq!(set.windows().len(), MOST_WINDOWS);
        let long = WorkingSet::parse(&vec![1; WINDOW_BYTES * (MOST_WINDOWS + 1)]);
        assert_eq!(long.windows().len(), MOST_WINDOWS);
        assert!(WorkingSet::parse(&[0; 20]).is_empty(), "what is no window is left out");
    }
}
