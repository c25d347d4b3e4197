//! Questions of a guest, and answers of whoever has the name that it asks for.

#![no_main]

use std::collections::BTreeSet;

use libfuzzer_sys::fuzz_target;
use nestbox_fuzz::domain::egress::Policy;
use nestbox_fuzz::measure;
use nestbox_fuzz::vmm::network::names::fuzzing::{Asked, Judged, judge};

/// More than all that a message of 64 KiB can be made of.
const MEMORY: usize = 16 << 20;

/// Bytes of the longest name.
const LONGEST_NAME: usize = 255;

/// Bytes of a message's head.
const HEAD: usize = 12;

const ALLOWED: &str = r#"{"allow": ["a.com", "*.b.org"]}"#;
const DENIED: &str = r#"{"deny": ["a.com", "*.b.org"]}"#;

// The first two bytes are the length of the question, which the answer follows.
fuzz_target!(|input: &[u8]| {
    let Some((length, rest)) = input.split_first_chunk::<2>() else { return };
    let length = usize::from(u16::from_be_bytes(*length)).min(rest.len());
    let (question, answer) = rest.split_at(length);
    for (text, allowed) in [(ALLOWED, true), (DENIED, false)] {
        let policy: Policy = serde_json::from_str(text).expect("a policy");
        match measure::within(MEMORY, || judge(question, &policy)) {
            Judged::Ask(asked) => {
                let labels = labels(question).expect("a name that others can read");
                assert_eq!(is_listed(&labels), allowed, "{labels:?}, {:?}", asked.name());
                goes_on(&asked, question, answer);
            }
            Judged::Answer(said) => is_an_answer(&said, question),
            Judged::Ignore => {}
        }
    }
});

fn goes_on(asked: &Asked, question: &[u8], answer: &[u8]) {
    let sent = asked.under(7, question);
    assert!(sent[..2] == [0, 7] && sent[2..] == question[2..]);
    is_an_answer(&asked.failed(), question);
    let found = measure::within(MEMORY, || asked.learned(7, answer));
    let Some(found) = found else { return };
    assert!(found.len() <= 64, "{} addresses", found.len());
    let said = said_of(question, answer).expect("an answer that others can read");
    for (address, _) in &found {
        assert!(said.contains(&address.octets()), "{address} of another name");
    }
    let restored = asked.restored(answer);
    assert!(restored[..2] == question[..2] && restored[2..] == answer[2..]);
}

/// An answer of ours: to this question, with no more in it than the question has.
fn is_an_answer(said: &[u8], question: &[u8]) {
    assert!(said.len() >= HEAD && said[..2] == question[..2]);
    assert!(said[2] & 0x80 != 0, "no answer");
    assert_eq!(said[6..8], [0, 0], "it has addresses");
    assert!(said.len() <= usize::from(u16::MAX));
    // Whoever sends small questions in somebody else's name gets nothing larger sent there.
    // Its name may be written out.
    let longest = question.len() + LONGEST_NAME;
    assert!(said.len() <= longest, "{} bytes for {}", said.len(), question.len());
}

/// Labels of a name, in lower case.
type Labels = Vec<Vec<u8>>;

/// The addresses that an answer gives for the name of a question, by way of its aliases.
fn said_of(question: &[u8], answer: &[u8]) -> Option<BTreeSet<[u8; 4]>> {
    let mut names = BTreeSet::from([labels(question)?]);
    let mut addresses = BTreeSet::new();
    let count = |at: usize| Some(u16::from_be_bytes(*answer.get(at..)?.first_chunk()?));
    // One question, which is as long as its name and four bytes.
    let mut at = name(answer, HEAD)?.1 + 4;
    for _ in 0..count(6)? {
        let (owner, end) = name(answer, at)?;
        let (kind, length) = (count(end)?, usize::from(count(end + 8)?));
        let data = answer.get(end + 10..end + 10 + length)?;
        if names.contains(&owner) {
            match (kind, <[u8; 4]>::try_from(data)) {
                (1, Ok(address)) => drop(addresses.insert(address)),
                // One without any data leads nowhere.
                (5, Err(_)) if length == 0 => {}
                (5, _) => drop(names.insert(name(answer, end + 10)?.0)),
                _ => {}
            }
        }
        at = end + 10 + length;
    }
    Some(addresses)
}

/// The labels of the first question's name, as any name server reads them.
fn labels(message: &[u8]) -> Option<Labels> {
    name(message, HEAD).map(|(labels, _)| labels)
}

/// The name at a place, and where what comes after it is.
fn name(message: &[u8], mut at: usize) -> Option<(Labels, usize)> {
    let (mut labels, mut end, mut seen) = (Labels::new(), None, BTreeSet::new());
    loop {
        let length = usize::from(*message.get(at)?);
        match length {
            0 => return Some((labels, end.unwrap_or(at + 1))),
            1..=63 => labels.push(message.get(at + 1..=at + length)?.to_ascii_lowercase()),
            192.. => {
                let to = (length & 63) << 8 | usize::from(*message.get(at + 1)?);
                end.get_or_insert(at + 2);
                if !seen.insert(to) {
                    return None;
                }
                at = to;
                continue;
            }
            _ => return None,
        }
        at += length + 1;
    }
}

fn is_listed(labels: &[Vec<u8>]) -> bool {
    let ends = |end: [&[u8]; 2]| labels.len() >= 2 && labels[labels.len() - 2..] == end;
    match labels.len() {
        2 => ends([b"a", b"com"]),
        _ => ends([b"b", b"org"]),
    }
}
