//! Who gets a place, and who loses one.

use super::*;

const ONE: u32 = 1;
const OTHER: u32 = 2;

fn guest(number: u32) -> SlotIndex {
    number.try_into().expect("a good number")
}

/// A budget of that many places in all.
fn budget(per_guest: usize, all: u64) -> Arc<Budget> {
    let (files, _) = getrlimit(Resource::RLIMIT_NOFILE).expect("there is a limit");
    let budget = Budget::new(per_guest, files / all);
    assert_eq!(budget.most(), all as usize, "of {files} files");
    budget
}

fn places(budget: &Arc<Budget>, owner: u32, count: usize) -> Vec<Place> {
    (0..count).map(|n| budget.take(guest(owner)).unwrap_or_else(|| panic!("place {n}"))).collect()
}

/// Makes believe that a place was used in the future, so that no other one is newer.
fn renew(place: &Place) {
    place.activity.0.store(u64::MAX, Ordering::Relaxed);
}

/// Makes believe that a place was used the last time when the clock began.
fn age(place: &Place) {
    place.activity.0.store(0, Ordering::Relaxed);
    while now() == 0 {
        std::thread::yield_now();
    }
}

fn cut(places: &[Place]) -> Vec<usize> {
    let cut = places.iter().enumerate().filter(|(_, place)| place.cut.is_cancelled());
    cut.map(|(n, _)| n).collect()
}

#[test]
fn a_guest_has_so_many_and_the_next_one_waits_for_a_place_of_its_own() {
    let budget = budget(3, 8);
    let mut held = places(&budget, ONE, 3);
    assert!(budget.take(guest(ONE)).is_none(), "it has all that it may have");
    assert_eq!(cut(&held), [0_usize; 0], "nothing of it is idle");
    places(&budget, OTHER, 3);
    held.pop();
    places(&budget, ONE, 1);
}

#[test]
fn when_all_are_taken_whoever_has_fewer_gets_the_oldest_of_whoever_has_most() {
    let budget = budget(8, 8);
    let mut hoard = places(&budget, ONE, 7);
    let few = places(&budget, OTHER, 1);
    hoard.iter().for_each(renew);
    age(&hoard[4]);
    assert!(budget.take(guest(OTHER)).is_none(), "not before one is given back");
    assert_eq!((cut(&hoard), cut(&few)), (vec![4], vec![]));
    assert!(budget.take(guest(OTHER)).is_none());
    assert_eq!(cut(&hoard), [4], "one at a time");
    hoard.remove(4);
    let more = budget.take(guest(OTHER)).expect("the place that was given back");
    assert!(budget.take(guest(ONE)).is_none());
    assert!(!more.cut.is_cancelled(), "who has most takes nothing of others");
}

#[tokio::test]
async fn who_waits_gets_a_place_as_soon_as_one_is_given_back() {
    let budget = budget(8, 8);
    let mut held = places(&budget, ONE, 4);
    let others = places(&budget, OTHER, 4);
    let waiting = tokio::spawn({
        let budget = budget.clone();
        async move { budget.place(guest(ONE)).await }
    });
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    held.pop();
    let place = timeout(Duration::from_millis(900), waiting).await.expect("sooner than it looks");
    assert_eq!(place.expect("no panic").guest, guest(ONE));
    drop(others);
}
