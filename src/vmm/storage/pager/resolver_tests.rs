#![allow(clippy::single_range_in_vec_init, reason = "a run of pages is a range")]

use proptest::prelude::*;

use super::*;

const PAGES: u64 = 256;
const SIZE: u64 = PAGE_SIZE as u64;
/// Two regions with a gap, as under a hole of the PCI bus; the second one lies lower.
const LOW: Region = Region { address: 1 << 30, bytes: 100 * SIZE, offset: 0 };
const HIGH: Region = Region { address: 1 << 20, bytes: (PAGES - 100) * SIZE, offset: 100 * SIZE };

/// Large enough to have something before and behind a fault.
const WINDOWS: Windows = Windows { first: 16, largest: 128 };

fn stored(offset: u64) -> Source {
    Source::Stored { generation: 1, offset }
}

fn map(runs: &[(Range<u64>, Source)]) -> PageMap {
    let mut map = PageMap::default();
    runs.iter().for_each(|(pages, source)| map.push(pages.clone(), *source));
    map
}

fn resolver(map: &PageMap) -> Resolver<'_> {
    Resolver::new(vec![HIGH, LOW], PAGES * SIZE, map, WINDOWS).unwrap()
}

fn one(pages: Range<u64>, with: Content) -> Answer {
    Answer { fills: vec![Fill { pages, with }], first: true }
}

/// Serves a fault as the kernel would let a pager do it: answered, then taken note of.
fn serve(resolver: &mut Resolver, page: u64) -> Answer {
    let answer = resolver.fault(resolver.address(page) + 5).unwrap();
    answer.fills.iter().for_each(|fill| resolver.filled(fill.pages.clone()));
    answer
}

#[test]
fn a_fault_is_served_with_its_window() {
    let map = PageMap::default();
    let mut resolver = resolver(&map);
    assert_eq!(serve(&mut resolver, 40), one(32..48, Content::Read));
    assert_eq!(resolver.address(99), LOW.address + 99 * SIZE);
    assert_eq!(resolver.address(100), HIGH.address);
}

#[test]
fn a_window_stays_in_its_region() {
    let map = PageMap::default();
    let mut resolver = resolver(&map);
    assert_eq!(serve(&mut resolver, 98), one(96..100, Content::Read));
    assert_eq!(serve(&mut resolver, 104), one(100..112, Content::Read));
    assert_eq!(serve(&mut resolver, 255), one(240..256, Content::Read));
}

#[test]
fn an_address_outside_of_all_regions_is_an_error() {
    let map = PageMap::default();
    let mut resolver = resolver(&map);
    for address in [0, LOW.address - 1, LOW.address + LOW.bytes, HIGH.address + HIGH.bytes] {
        assert_eq!(resolver.fault(address), Err(OutsideOfMemory { address }));
    }
}

#[test]
fn zero_pages_are_not_read() {
    let map = map(&[(34..36, Source::Zero), (36..38, stored(0)), (40..48, Source::Zero)]);
    let answer = resolver(&map).fault(LOW.address + 33 * SIZE).unwrap();
    let fills: Vec<_> = answer.fills.into_iter().map(|fill| (fill.pages, fill.with)).collect();
    let (zero, read) = (Content::Zero, Content::Read);
    assert_eq!(fills, [(32..34, read), (34..36, zero), (36..40, read), (40..48, zero)]);
}

#[test]
fn a_run_in_order_is_served_with_growing_windows() {
    let map = PageMap::default();
    let region = Region { address: 1 << 30, bytes: 1 << 30, offset: 0 };
    let mut resolver = Resolver::new(vec![region], 1 << 30, &map, WINDOWS).unwrap();
    let mut next = 1000;
    let mut lengths = Vec::new();
    for other in 0..7 {
        let answer = serve(&mut resolver, next);
        let run = answer.fills[0].pages.clone();
        lengths.push(run.end - next);
        next = run.end;
        // Somebody else faults here and there meanwhile.
        serve(&mut resolver, 100_000 + other * 1000);
    }
    assert_eq!(lengths, [8, 16, 32, 64, 128, 128, 128]);
}

#[test]
fn a_page_that_was_given_back_is_zero_for_ever() {
    let map = PageMap::default();
    let mut resolver = resolver(&map);
    serve(&mut resolver, 32);
    let addresses = resolver.address(40)..resolver.address(44);
    assert_eq!(resolver.give_back(addresses.clone()), [40..44]);
    let zero = Answer { fills: vec![Fill { pages: 41..44, with: Content::Zero }], first: false };
    assert_eq!(serve(&mut resolver, 41), zero);
    let again = Answer { fills: vec![Fill { pages: 42..43, with: Content::Zero }], first: false };
    assert_eq!(serve(&mut resolver, 42), again, "the kernel dropped it after it was filled");
    resolver.give_back(addresses);
    assert_eq!(serve(&mut resolver, 43).fills[0].with, Content::Zero);
    assert_eq!(resolver.given_back().runs(), [40..44]);
}

#[test]
fn what_is_given_back_across_regions_is_found_in_both() {
    let map = PageMap::default();
    let mut resolver = resolver(&map);
    assert_eq!(resolver.give_back(0..1 << 40), [0..100, 100..256]);
    assert_eq!(resolver.give_back(0..SIZE), []);
}

#[test]
fn only_untouched_pages_are_prefetched() {
    let map = map(&[(10..12, Source::Zero)]);
    let mut resolver = resolver(&map);
    resolver.filled(4..6);
    resolver.give_back(resolver.address(8)..resolver.address(9));
    let fills: Vec<_> =
        resolver.prefetch(0..110).into_iter().map(|fill| (fill.pages, fill.with)).collect();
    let (zero, read) = (Content::Zero, Content::Read);
    let expected = [
        (0..4, read),
        (6..8, read),
        (9..10, read),
        (10..12, zero),
        (12..100, read),
        (100..110, read),
    ];
    assert_eq!(fills, expected);
}

/// What happens to a memory.
#[derive(Debug, Clone)]
enum Deed {
    Fault(u64),
    Prefetch(Range<u64>),
    GiveBack(Range<u64>),
}

fn run() -> impl Strategy<Value = Range<u64>> {
    (0..PAGES, 1..40u64).prop_map(|(start, length)| start..(start + length).min(PAGES))
}

fn deed() -> impl Strategy<Value = Deed> {
    prop_oneof![
        8 => (0..PAGES).prop_map(Deed::Fault),
        2 => run().prop_map(Deed::Prefetch),
        1 => run().prop_map(Deed::GiveBack),
    ]
}

/// What a page should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Model {
    Untouched,
    Served,
    GivenBack,
}

proptest! {
    /// Untouched pages are filled once and with what the map says, others with zeros if at all.
    #[test]
    fn answers_agree_with_the_model(
        zero in prop::collection::vec(any::<bool>(), PAGES as usize),
        deeds in prop::collection::vec(deed(), 1..200),
    ) {
        let runs: Vec<_> = (0..PAGES).filter(|page| zero[*page as usize]).collect();
        let runs: Vec<_> = runs.into_iter().map(|page| (page..page + 1, Source::Zero)).collect();
        let map = map(&runs);
        let mut resolver = resolver(&map);
        let mut model = vec![Model::Untouched; PAGES as usize];
        for deed in deeds {
            let (fills, fault) = match deed {
                Deed::Fault(page) => {
                    let address = resolver.address(page);
                    let answer = resolver.fault(address).unwrap();
                    let untouched = model[page as usize] == Model::Untouched;
                    prop_assert_eq!(answer.first, untouched);
                    prop_assert!(answer.fills.iter().any(|fill| fill.pages.contains(&page)));
                    (answer.fills, Some(page))
                }
                Deed::Prefetch(pages) => {
                    let fills = resolver.prefetch(pages.clone());
                    let count: u64 = fills.iter().map(|fill| fill.pages.end - fill.pages.start).sum();
                    let untouched = pages.clone().filter(|page| model[*page as usize] == Model::Untouched);
                    prop_assert_eq!(count, untouched.count() as u64);
                    (fills, None)
                }
                Deed::GiveBack(pages) => {
                    let start = resolver.address(pages.start);
                    let region = if pages.start < 100 { LOW } else { HIGH };
                    let bytes = (pages.end - pages.start) * SIZE;
                    let end = (start + bytes).min(region.address + region.bytes);
                    for run in resolver.give_back(start..end) {
                        model[run.start as usize..run.end as usize].fill(Model::GivenBack);
                    }
                    (Vec::new(), None)
                }
            };
            let mut next = fills.first().map(|fill| fill.pages.start);
            for fill in fills {
                let pages = fill.pages.clone();
                prop_assert!(!pages.is_empty());
                prop_assert!(pages.end <= 100 || pages.start >= 100, "one region");
                if fault.is_some() {
                    prop_assert_eq!(next, Some(pages.start), "one behind the other");
                    next = Some(pages.end);
                }
                for page in pages.clone() {
                    let lineage = if zero[page as usize] { Content::Zero } else { Content::Read };
                    match model[page as usize] {
                        Model::Untouched => prop_assert_eq!(fill.with, lineage),
                        Model::GivenBack => prop_assert_eq!(fill.with, Content::Zero),
                        Model::Served => {
                            prop_assert_eq!(fill.with, Content::Zero);
                            prop_assert_eq!(Some(page), fault, "nobody has asked for it");
                        }
                    }
                    model[page as usize] = Model::Served;
                }
                resolver.filled(pages);
            }
        }
    }
}
