//! A set of pages, one bit each.

use std::ops::Range;

/// Pages of one byte of a bitmap.
const BITS: u64 = 8;

/// A set of pages of a memory of fixed size. The lowest bit of a byte is its first page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bitmap(Vec<u8>);

impl Bitmap {
    /// An empty set out of `pages` pages.
    pub fn new(pages: u64) -> Self {
        Self(vec![0; pages.div_ceil(BITS) as usize])
    }

    /// The set that is written in `bytes`.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }

    /// Whether it has this page.
    pub fn has(&self, page: u64) -> bool {
        self.0[(page / BITS) as usize] & mask(page) != 0
    }

    /// Adds a run of pages.
    pub fn insert(&mut self, pages: Range<u64>) {
        pages.for_each(|page| self.0[(page / BITS) as usize] |= mask(page));
    }

    /// Takes a run of pages out.
    pub fn remove(&mut self, pages: Range<u64>) {
        pages.for_each(|page| self.0[(page / BITS) as usize] &= !mask(page));
    }

    /// The bytes in which a run of pages is, and where they begin.
    pub fn bytes_of(&self, pages: &Range<u64>) -> (usize, &[u8]) {
        let start = (pages.start / BITS) as usize;
        (start, &self.0[start..pages.end.div_ceil(BITS) as usize])
    }

    /// The runs of pages that it has, in order.
    pub fn runs(&self) -> Vec<Range<u64>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        for (byte, base) in self.0.iter().zip((0..).step_by(BITS as usize)) {
            if *byte == 0 {
                continue;
            }
            for page in (base..base + BITS).filter(|page| byte & mask(*page) != 0) {
                match runs.last_mut() {
                    Some(last) if last.end == page => last.end += 1,
                    _ => runs.push(page..page + 1),
                }
            }
        }
        runs
    }
}

fn mask(page: u64) -> u8 {
    1 << (page % BITS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_what_was_put_in_and_not_taken_out() {
        let mut set = Bitmap::new(100);
        set.insert(3..20);
        set.insert(99..100);
        set.remove(8..9);
        assert_eq!(set.runs(), [3..8, 9..20, 99..100]);
        assert!(set.has(7) && !set.has(8) && set.has(9));
        assert_eq!(set.bytes_of(&(3..9)), (0, &[0xf8, 0xfe][..]));
        assert_eq!(Bitmap::from_bytes(set.bytes_of(&(0..100)).1), set);
    }
}
