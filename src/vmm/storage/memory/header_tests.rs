use proptest::prelude::*;

use super::*;
use crate::vmm::storage::memory::tests::origin;

const MIB: u64 = 1 << 20;

fn header() -> Header {
    let build = |number| GenerationName::Build(BuildId::from_u64(number));
    let mut map = PageMap::default();
    map.push(3..5, Source::Stored { generation: 1, offset: 0 });
    map.push(5..6, Source::Zero);
    map.push(6..7, Source::Stored { generation: 2, offset: 0 });
    map.push(255..256, Source::Stored { generation: 1, offset: 2 });
    let generations = vec![
        Generation { name: GenerationName::Plain, bytes: MIB, written: at(3) },
        Generation { name: build(7), bytes: 3 * 4096, written: at(4) },
        Generation { name: build(8), bytes: 4096, written: at(5) },
    ];
    Header { origin: origin(), generations, map }
}

fn at(seconds: i64) -> Option<Written> {
    Some(Written { seconds, nanos: 999_999_999 })
}

/// A header as somebody would write it who can compute a checksum.
fn with_checksum(content: &[u8]) -> Vec<u8> {
    let mut bytes = Header::MAGIC.to_vec();
    bytes.extend(content);
    bytes.extend(Sha256::digest(&bytes));
    bytes
}

/// The header's content, that is without magic and checksum.
fn content() -> Vec<u8> {
    let bytes = header().encode().unwrap();
    bytes[8..bytes.len() - CHECKSUM_SIZE].to_vec()
}

/// Parses the content after the last `numbers.len()` of its numbers have been replaced.
fn with_last(numbers: &[u32]) -> Result<Header, HeaderError> {
    let mut content = content();
    content.truncate(content.len() - 4 * numbers.len());
    numbers.iter().for_each(|number| content.extend(number.to_le_bytes()));
    Header::parse(&with_checksum(&content))
}

#[test]
fn a_header_reads_back() {
    let bytes = header().encode().unwrap();
    assert_eq!(Header::parse(&bytes), Ok(header()));
    assert_eq!(bytes, with_checksum(&content()));
}

#[test]
fn every_damaged_byte_is_noticed() {
    let bytes = header().encode().unwrap();
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << bit;
            assert!(Header::parse(&damaged).is_err(), "byte {at}, bit {bit}");
        }
    }
}

#[test]
fn every_cut_is_noticed_with_and_without_a_checksum() {
    let bytes = header().encode().unwrap();
    for length in 0..bytes.len() {
        assert!(Header::parse(&bytes[..length]).is_err(), "{length} bytes");
    }
    let content = content();
    for length in 0..content.len() {
        let cut = Header::parse(&with_checksum(&content[..length]));
        assert_eq!(cut, Err(HeaderError::Truncated), "{length} bytes");
    }
}

#[test]
fn what_follows_the_end_is_refused() {
    let mut content = content();
    content.push(0);
    assert_eq!(Header::parse(&with_checksum(&content)), Err(HeaderError::Trailing { bytes: 1 }));
}

#[test]
fn another_version_is_named() {
    let mut bytes = header().encode().unwrap();
    bytes[7] = 3;
    let error = Header::parse(&bytes).unwrap_err();
    assert_eq!(error.to_string(), "it has version 3, and this program reads up to 2");
    assert_eq!(Header::parse(b"QEVM and more"), Err(HeaderError::Magic));
}

#[test]
fn a_header_of_the_version_before_is_read_without_times() {
    let mut old = header();
    old.generations.iter_mut().for_each(|generation| generation.written = None);
    let bytes = old.encode().unwrap();
    assert_eq!(bytes[7], 1);
    assert_eq!(bytes.len() + 3 * 12, header().encode().unwrap().len());
    assert_eq!(Header::parse(&bytes), Ok(old));
}

#[test]
fn a_time_is_known_again_and_no_other_one_is() {
    let written = Written { seconds: 7, nanos: 5 };
    assert!(written.is(written) && written.is(Written { seconds: 7, nanos: 0 }));
    for (seconds, nanos) in [(7, 4), (7, 6), (8, 5), (8, 0), (6, 5)] {
        assert!(!written.is(Written { seconds, nanos }), "{seconds}.{nanos}");
    }
}

#[test]
fn wrong_extents_are_refused() {
    assert_eq!(with_last(&[255, 1, 1, 2]), Ok(header()));
    for (wrong, why) in [
        ([255, 0, 1, 2], "no pages"),
        ([255, 2, 1, 0], "beyond the memory"),
        ([u32::MAX, u32::MAX, 1, 0], "far beyond the memory"),
        ([6, 1, 1, 2], "overlapping"),
        ([0, 1, 1, 2], "out of order"),
        ([255, 1, 1, 3], "beyond the generation"),
        ([250, 3, 1, 1], "reaching beyond the generation"),
        ([255, 1, 1, u32::MAX], "far beyond the generation"),
        ([255, 1, 3, 0], "no such generation"),
        ([255, 1, 257, 0], "no such generation, modulo 256"),
        ([255, 1, 0, 1], "zeros have no offset"),
    ] {
        assert_eq!(with_last(&wrong), Err(HeaderError::Extent { index: 3 }), "{why}");
    }
    assert_eq!(
        Header::parse(&with_checksum(&{
            let mut content = content();
            let count = content.len() - 4 * EXTENT_SIZE - 4;
            content[count..count + 4].copy_from_slice(&u32::MAX.to_le_bytes());
            content
        })),
        Err(HeaderError::Truncated),
        "an extent count is not believed"
    );
}

/// Encodes the header with a change, which says the same as parsing it: encoding refuses what
/// parsing does.
fn changed(change: impl FnOnce(&mut Header)) -> Result<Vec<u8>, HeaderError> {
    let mut header = header();
    change(&mut header);
    header.encode()
}

#[test]
fn wrong_generations_are_refused() {
    let wrong = |index| Err(HeaderError::Generation { index });
    assert_eq!(changed(|h| h.generations[0].bytes += 4096), wrong(0));
    assert_eq!(changed(|h| h.origin.shape.memory_mib = 2), wrong(0));
    assert_eq!(changed(|h| h.generations[1].bytes += 1), wrong(1));
    assert_eq!(changed(|h| h.generations[1].bytes = 0), wrong(1));
    assert_eq!(changed(|h| h.generations[2].name = GenerationName::Plain), wrong(2));
    assert_eq!(changed(|h| h.generations[2].name = h.generations[1].name), wrong(2));
    let late = Some(Written { seconds: 0, nanos: 1_000_000_000 });
    assert_eq!(changed(|h| h.generations[1].written = late), wrong(1));
    assert_eq!(changed(|h| h.generations.clear()), Err(HeaderError::Count { count: 0 }));
    let many = |count: usize| {
        changed(|header| {
            header.generations.extend((3..count as u64).map(|number| Generation {
                name: GenerationName::Build(BuildId::from_u64(100 + number)),
                bytes: 4096,
                written: at(9),
            }));
        })
    };
    assert!(many(MAX_GENERATIONS).is_ok());
    assert_eq!(many(256), Err(HeaderError::Count { count: 256 }));
}

#[test]
fn wrong_shapes_and_texts_are_refused() {
    for (vcpus, memory_mib) in [(0, 1), (1, 0), (1, u32::MAX)] {
        let encoded = changed(|h| h.origin.shape = Shape { vcpus, memory_mib });
        assert_eq!(encoded, Err(HeaderError::Shape { vcpus, memory_mib }));
    }
    for length in [MAX_TEXT + 1, 1 << 16] {
        let encoded = changed(|h| h.origin.provenance.guest_kernel = "x".repeat(length));
        assert_eq!(encoded, Err(HeaderError::Text), "{length}");
    }
    let mut content = content();
    assert_eq!(&content[8..14], b"\x08\0qemu");
    content[10] = 0xff;
    assert_eq!(Header::parse(&with_checksum(&content)), Err(HeaderError::Text));
}

/// Contents that get far: a good one with a few bytes replaced.
fn nearly_good() -> impl Strategy<Value = Vec<u8>> {
    let byte = (any::<prop::sample::Index>(), prop_oneof![0..4u8, any::<u8>()]);
    (prop::collection::vec(byte, 1..6), 0..20usize).prop_map(|(changes, extra)| {
        let mut content = content();
        for (at, byte) in changes {
            *at.get_mut(&mut content) = byte;
        }
        content.extend(vec![0; extra.saturating_sub(15)]);
        content
    })
}

proptest! {
    /// Whoever wrote it: a header is refused, or it means something and can be written again.
    #[test]
    fn a_hostile_header_is_refused_or_sound(
        content in prop_oneof![
            nearly_good(),
            prop::collection::vec(any::<u8>(), 0..300),
        ],
    ) {
        if let Ok(header) = Header::parse(&with_checksum(&content)) {
            let mut free = 0;
            for extent in header.map.extents() {
                prop_assert!(free <= extent.pages.start && extent.pages.start < extent.pages.end);
                free = extent.pages.end;
                if let Source::Stored { generation, offset } = extent.source {
                    let stored = header.generations[usize::from(generation)].bytes;
                    let pages = extent.pages.end - extent.pages.start;
                    prop_assert!((offset + pages) * 4096 <= stored);
                }
            }
            prop_assert!(free * 4096 <= memory_bytes(header.origin.shape));
            prop_assert_eq!(Header::parse(&header.encode().unwrap()), Ok(header));
        }
    }
}
