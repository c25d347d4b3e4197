//! What a peer says, which may be longer than a fuzzer's input; and what may be repeated of it.

use crate::domain::printable;

/// Between what is said once and what is said again and again.
const AGAIN: &[u8] = b"<again>";

/// The most that is said.
const LONGEST: usize = 4 << 20;

/// Two to the power of this is how often something is repeated at most.
const MOST_DOUBLINGS: u8 = 20;

/// What an input stands for: its first byte says how often the part behind the mark comes.
pub fn expanded(input: &[u8]) -> Vec<u8> {
    let Some((doublings, said)) = input.split_first() else { return Vec::new() };
    let mark = said.windows(AGAIN.len()).position(|it| it == AGAIN);
    let Some(mark) = mark else { return said.to_vec() };
    let (first, then) = (&said[..mark], &said[mark + AGAIN.len()..]);
    let mut all = first.to_vec();
    if then.is_empty() {
        return all;
    }
    let times = (1_usize << (doublings % (MOST_DOUBLINGS + 1))).min(LONGEST / then.len());
    for _ in 0..times {
        all.extend_from_slice(then);
    }
    all
}

/// Fails if an error has no end, or something in it that could drive a terminal.
#[track_caller]
pub fn is_fit(error: &(dyn std::error::Error + 'static)) {
    // As logs and answers of the API have it.
    for text in [error.to_string(), crate::chain(error).to_string()] {
        assert!(text.len() <= 5 << 10, "{} bytes: {text:.200}", text.len());
        assert_eq!(printable::line(&text, usize::MAX), text);
    }
}
