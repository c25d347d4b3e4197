//! The last bytes of a process's output, numbered.
//!
//! Bytes are numbered rather than chunks: then small writes can be put together, and a bound on
//! bytes is a bound on memory.

use std::collections::VecDeque;

use bytes::Bytes;

use super::stream::Kind;

/// Bytes that are kept of one process.
pub const LIMIT: usize = 1 << 20;
/// Changes between streams that are kept with them: a process may write one byte to each in turn.
const SPANS: usize = 16 * 1024;

/// Neighbouring bytes of one stream.
#[derive(Debug, Clone, Copy)]
struct Span {
    kind: Kind,
    /// Number of its last byte.
    end: u64,
}

/// What is kept.
#[derive(Debug, Default)]
pub struct Ring {
    bytes: VecDeque<u8>,
    spans: VecDeque<Span>,
    /// How many bytes were written before the oldest that is kept.
    dropped: u64,
}

/// Some output of one stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Which stream.
    pub kind: Kind,
    /// Number of its last byte.
    pub seq: u64,
    /// The bytes.
    pub bytes: Bytes,
}

impl Ring {
    /// How many bytes are kept no more: the oldest that is has the next number.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// How many bytes have been written: the number of the last one.
    pub fn written(&self) -> u64 {
        self.dropped + self.bytes.len() as u64
    }

    /// Adds what was written; the oldest makes room for it.
    pub fn push(&mut self, kind: Kind, chunk: &[u8]) {
        let end = self.written() + chunk.len() as u64;
        let kept = &chunk[chunk.len().saturating_sub(LIMIT)..];
        let room = LIMIT - kept.len();
        self.bytes.drain(..self.bytes.len().saturating_sub(room));
        self.bytes.extend(kept);
        self.dropped = end - self.bytes.len() as u64;
        match self.spans.back_mut() {
            Some(last) if last.kind == kind => last.end = end,
            Some(_) | None => self.spans.push_back(Span { kind, end }),
        }
        if self.spans.len() > SPANS
            && let Some(oldest) = self.spans.front()
        {
            let excess = oldest.end.saturating_sub(self.dropped);
            self.bytes.drain(..usize::try_from(excess).unwrap_or(usize::MAX).min(self.bytes.len()));
            self.dropped = end - self.bytes.len() as u64;
        }
        while self.spans.front().is_some_and(|oldest| oldest.end <= self.dropped) {
            self.spans.pop_front();
        }
    }

    /// The bytes after number `after`, at most `most`, as far as one stream goes. None if there are
    /// none yet, or the first of them is not kept any more.
    pub fn read(&self, after: u64, most: usize) -> Option<Piece> {
        let from = usize::try_from(after.checked_sub(self.dropped)?).ok()?;
        let span = self.spans.get(self.spans.partition_point(|span| span.end <= after))?;
        let length = usize::try_from(span.end - after).unwrap_or(usize::MAX).min(most);
        let bytes = copy(&self.bytes, from, length);
        Some(Piece { kind: span.kind, seq: after + length as u64, bytes })
    }

    /// Gives back memory that is not needed, once nothing more will come.
    pub fn shrink(&mut self) {
        self.bytes.shrink_to_fit();
        self.spans.shrink_to_fit();
    }
}

fn copy(bytes: &VecDeque<u8>, from: usize, length: usize) -> Bytes {
    let (front, back) = bytes.as_slices();
    let part = |slice: &[u8], offset: usize| {
        let start = from.saturating_sub(offset).min(slice.len());
        let end = (from + length).saturating_sub(offset).min(slice.len());
        start..end
    };
    let mut copied = Vec::with_capacity(length);
    copied.extend_from_slice(&front[part(front, 0)]);
    copied.extend_from_slice(&back[part(back, front.len())]);
    copied.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything that can be read, and where it begins.
    fn all(ring: &Ring, most: usize) -> (u64, Vec<(Kind, Vec<u8>)>) {
        let (mut at, mut pieces) = (ring.dropped(), Vec::<(Kind, Vec<u8>)>::new());
        while let Some(piece) = ring.read(at, most) {
            assert_eq!(piece.seq, at + piece.bytes.len() as u64, "numbers are of bytes");
            at = piece.seq;
            match pieces.last_mut() {
                Some((kind, bytes)) if *kind == piece.kind => bytes.extend(&piece.bytes),
                _ => pieces.push((piece.kind, piece.bytes.to_vec())),
            }
        }
        assert_eq!(at, ring.written());
        (ring.dropped(), pieces)
    }

    #[test]
    fn it_can_be_read_from_any_number_in_pieces_of_one_stream() {
        let mut ring = Ring::default();
        assert_eq!(ring.read(0, 10), None);
        ring.push(Kind::Stdout, b"ab");
        ring.push(Kind::Stdout, b"cd");
        ring.push(Kind::Stderr, b"e");
        let piece = |kind, seq, bytes: &'static [u8]| {
            Some(Piece { kind, seq, bytes: Bytes::from_static(bytes) })
        };
        assert_eq!(ring.read(0, 10), piece(Kind::Stdout, 4, b"abcd"));
        assert_eq!(ring.read(1, 2), piece(Kind::Stdout, 3, b"bc"));
        assert_eq!(ring.read(4, 10), piece(Kind::Stderr, 5, b"e"));
        assert_eq!(ring.read(5, 10), None);
    }

    #[test]
    fn it_holds_the_last_bytes_and_says_how_many_are_gone() {
        let mut ring = Ring::default();
        let mut written = Vec::new();
        for number in 0..60_000u32 {
            let line = format!("{number}:{}\n", "x".repeat(number as usize % 91));
            let kind = if number % 7 == 0 { Kind::Stderr } else { Kind::Stdout };
            ring.push(kind, line.as_bytes());
            written.extend(line.into_bytes());
        }
        let (dropped, pieces) = all(&ring, 1000);
        assert_eq!(ring.written(), written.len() as u64);
        let kept: Vec<u8> = pieces.into_iter().flat_map(|(_, bytes)| bytes).collect();
        assert!(kept.len() <= LIMIT && kept.len() > LIMIT / 2, "{}", kept.len());
        assert!(kept == written[usize::try_from(dropped).unwrap()..], "they are the last ones");
        assert_eq!(ring.read(dropped - 1, 10), None);
    }

    #[test]
    fn single_bytes_to_two_streams_in_turn_take_bounded_memory() {
        let mut ring = Ring::default();
        for number in 0..100_000u32 {
            let kind = if number % 2 == 0 { Kind::Stderr } else { Kind::Stdout };
            ring.push(kind, b"x");
        }
        assert_eq!((ring.spans.len(), ring.bytes.len(), ring.written()), (SPANS, SPANS, 100_000));
        let (dropped, pieces) = all(&ring, 10);
        assert_eq!((dropped, pieces.len()), (100_000 - SPANS as u64, SPANS));
    }

    #[test]
    fn more_than_fits_at_once_leaves_its_end() {
        let mut ring = Ring::default();
        ring.push(Kind::Stdout, b"gone");
        ring.push(Kind::Stderr, &vec![b'x'; LIMIT + 10]);
        assert_eq!((ring.dropped(), ring.bytes.len()), (14, LIMIT));
        let (_, pieces) = all(&ring, LIMIT);
        assert_eq!(pieces, [(Kind::Stderr, vec![b'x'; LIMIT])]);
    }
}
