//! Which generation holds each page.

use std::ops::Range;

/// Where the first page of a run is; the others follow it there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// In the base, at the page's own number.
    Base,
    /// Nowhere: the pages are zero.
    Zero,
    /// In a diff.
    Stored {
        /// Number of the generation in the header, from 1.
        generation: u8,
        /// Offset in pages.
        offset: u64,
    },
}

impl Source {
    /// Where the page is that comes `pages` later.
    pub(super) fn skip(self, pages: u64) -> Self {
        match self {
            Self::Base | Self::Zero => self,
            Self::Stored { generation, offset } => {
                Self::Stored { generation, offset: offset + pages }
            }
        }
    }
}

/// A run of pages that are not the base's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Extent {
    pub pages: Range<u64>,
    pub source: Source,
}

/// Where each page is. Holds only runs that differ from the base, sorted and apart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PageMap(Vec<Extent>);

impl PageMap {
    /// Appends a run behind all others, and joins it to the last one if it continues that one.
    pub(in crate::vmm) fn push(&mut self, pages: Range<u64>, source: Source) {
        debug_assert!(self.0.last().is_none_or(|last| last.pages.end <= pages.start));
        if source == Source::Base || pages.is_empty() {
            return;
        }
        if let Some(last) = self.0.last_mut()
            && last.pages.end == pages.start
            && last.source.skip(last.pages.end - last.pages.start) == source
        {
            last.pages.end = pages.end;
            return;
        }
        self.0.push(Extent { pages, source });
    }

    pub(super) fn extents(&self) -> &[Extent] {
        &self.0
    }

    /// Splits a run of pages by where they are.
    pub(in crate::vmm) fn pieces(
        &self,
        pages: Range<u64>,
    ) -> impl Iterator<Item = (Range<u64>, Source)> {
        let mut at = pages.start;
        let mut extents =
            self.0[self.0.partition_point(|extent| extent.pages.end <= at)..].iter().peekable();
        std::iter::from_fn(move || {
            let start = at;
            let source = match extents.next_if(|extent| extent.pages.start <= start) {
                Some(extent) => {
                    at = extent.pages.end.min(pages.end);
                    extent.source.skip(start - extent.pages.start)
                }
                None => {
                    at = extents.peek().map_or(pages.end, |next| next.pages.start.min(pages.end));
                    Source::Base
                }
            };
            (start < pages.end).then_some((start..at, source))
        })
    }

    /// Renumbers the generations without those, out of `count`, that no page is in. Returns the old
    /// numbers of the others: first the base, which is needed as it is what a VM maps.
    pub(super) fn keep_needed(&mut self, count: usize) -> Vec<usize> {
        let mut needed = vec![false; count];
        needed[0] = true;
        for extent in &self.0 {
            if let Source::Stored { generation, .. } = extent.source {
                needed[usize::from(generation)] = true;
            }
        }
        let kept: Vec<usize> = (0..count).filter(|number| needed[*number]).collect();
        let mut new = vec![0; count];
        (0..).zip(&kept).for_each(|(number, old): (u8, _)| new[*old] = number);
        for extent in &mut self.0 {
            if let Source::Stored { generation, .. } = &mut extent.source {
                *generation = new[usize::from(*generation)];
            }
        }
        kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(offset: u64) -> Source {
        Source::Stored { generation: 1, offset }
    }

    #[test]
    fn runs_that_continue_are_joined() {
        let mut map = PageMap::default();
        map.push(2..3, stored(0));
        map.push(3..5, stored(1));
        map.push(5..6, stored(9));
        map.push(6..7, Source::Zero);
        map.push(7..8, Source::Zero);
        map.push(8..9, Source::Base);
        let runs: Vec<_> = map.extents().iter().map(|e| (e.pages.clone(), e.source)).collect();
        assert_eq!(runs, [(2..5, stored(0)), (5..6, stored(9)), (6..8, Source::Zero)]);
    }

    #[test]
    fn a_run_is_split_by_where_its_pages_are() {
        let mut map = PageMap::default();
        map.push(2..5, stored(0));
        map.push(5..6, Source::Zero);
        map.push(8..9, stored(3));
        let pieces: Vec<_> = map.pieces(3..12).collect();
        let base = Source::Base;
        assert_eq!(
            pieces,
            [
                (3..5, stored(1)),
                (5..6, Source::Zero),
                (6..8, base),
                (8..9, stored(3)),
                (9..12, base)
            ]
        );
        assert_eq!(map.pieces(0..3).collect::<Vec<_>>(), [(0..2, base), (2..3, stored(0))]);
        assert_eq!(map.pieces(4..4).count(), 0);
    }

    #[test]
    fn generations_without_pages_are_dropped() {
        let mut map = PageMap::default();
        map.push(2..5, Source::Stored { generation: 3, offset: 7 });
        map.push(7..8, Source::Stored { generation: 1, offset: 0 });
        assert_eq!(map.keep_needed(5), [0, 1, 3]);
        let sources: Vec<_> = map.extents().iter().map(|extent| extent.source).collect();
        assert_eq!(sources, [Source::Stored { generation: 2, offset: 7 }, stored(0)]);
    }
}
