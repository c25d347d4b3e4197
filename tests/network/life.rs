//! Slots come and go, and nothing stays behind.

use std::collections::HashSet;
use std::fs;
use std::io::{BufRead, BufReader, ErrorKind};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use futures::future::{join_all, try_join_all};
use nestbox::domain::egress::Policy;
use nestbox::domain::slot::{SLOT_COUNT, SlotIndex};
use nestbox::vmm::network::{NetworkError, SlotPool};
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::lab::{Guest, Traces, config, eventually, on_own_machine, run};

const CLAIMS: &str = "/run/nestbox/slots";

fn data_dir() -> TempDir {
    TempDir::new().expect("a data directory")
}

async fn start(data_dir: &TempDir, pool_size: usize) -> SlotPool {
    SlotPool::start(config(data_dir.path(), pool_size), &[]).await.expect("the pool starts")
}

fn slot(number: u32) -> SlotIndex {
    number.try_into().expect("a good number")
}

fn link_exists(slot: SlotIndex) -> bool {
    run("ip -br link").lines().any(|line| line.starts_with(&format!("{}@", slot.host_link_name())))
}

fn claims() -> Vec<String> {
    let entries = fs::read_dir(CLAIMS).expect("the claims").flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Claims every number but one for another daemon, so that the next slot is known.
fn leave_only(free: Option<SlotIndex>, owner: &Path) {
    fs::create_dir_all(CLAIMS).expect("the claims");
    for number in (0..SLOT_COUNT).filter(|number| Some(slot(*number)) != free) {
        std::os::unix::fs::symlink(owner, format!("{CLAIMS}/{number}")).expect("a claim");
    }
}

#[test]
fn fifty_slots_come_and_go_and_nothing_stays_behind() {
    on_own_machine(|| async {
        let data = data_dir();
        let before = Traces::now();
        let pool = start(&data, 4).await;
        for _ in 0..5 {
            let slots = try_join_all((0..10).map(|_| pool.acquire())).await.expect("ten slots");
            for slot in slots {
                slot.release().await.expect("a clean release");
            }
        }
        pool.shutdown().await.expect("a clean shutdown");
        assert_eq!(Traces::now(), before);
    });
}

#[test]
fn twenty_acquires_at_once_get_twenty_whole_slots() {
    on_own_machine(|| async {
        let data = data_dir();
        let pool = start(&data, 3).await;
        let mut users = JoinSet::new();
        for _ in 0..20 {
            let pool = pool.clone();
            users.spawn(async move {
                let slot = pool.acquire().await.expect("a slot");
                drop(slot.tap().await.expect("its tap"));
                slot
            });
        }
        let slots = users.join_all().await;
        let addresses: HashSet<_> = slots.iter().map(|slot| slot.address()).collect();
        assert_eq!(addresses.len(), 20);
        for released in join_all(slots.into_iter().map(|slot| slot.release())).await {
            released.expect("a clean release");
        }
        pool.shutdown().await.expect("a clean shutdown");
    });
}

#[test]
fn a_slot_has_no_ipv6_address_anywhere() {
    on_own_machine(|| async {
        let data = data_dir();
        let pool = start(&data, 0).await;
        let slot = pool.acquire().await.expect("a slot");
        let _guest = Guest::attach(&slot).await;
        let (name, link) = (slot.index().namespace_name(), slot.index().host_link_name());
        assert_eq!(run(&format!("ip -6 -n {name} addr")), "");
        assert_eq!(run(&format!("ip -6 addr show dev {link}")), "");
        slot.release().await.expect("a clean release");
    });
}

#[test]
fn the_pool_fills_itself_up_again() {
    on_own_machine(|| async {
        let data = data_dir();
        let pool = start(&data, 3).await;
        eventually("three ready slots", || pool.status().ready == 3).await;
        let slot = pool.acquire().await.expect("a slot");
        eventually("three ready slots again", || pool.status().ready == 3).await;
        slot.release().await.expect("a clean release");
        pool.shutdown().await.expect("a clean shutdown");
    });
}

#[test]
fn a_number_comes_back_late_and_with_a_greater_generation() {
    on_own_machine(|| async {
        let data = data_dir();
        let pool = start(&data, 0).await;
        let first = pool.acquire().await.expect("a slot");
        let (index, generation) = (first.index(), first.generation());
        first.release().await.expect("a clean release");
        let second = pool.acquire().await.expect("a slot");
        assert_ne!(second.index(), index);
        second.release().await.expect("a clean release");

        leave_only(Some(index), data_dir().path());
        let again = pool.acquire().await.expect("the only free slot");
        assert_eq!(again.index(), index);
        assert!(again.generation() > generation);
        again.release().await.expect("a clean release");
    });
}

#[test]
fn a_machine_without_a_free_number_says_so() {
    on_own_machine(|| async {
        let (data, other) = (data_dir(), data_dir());
        let pool = start(&data, 0).await;
        leave_only(None, other.path());
        let error = pool.acquire().await.expect_err("no number is free");
        assert!(matches!(error, NetworkError::Exhausted), "{error}");
        pool.shutdown().await.expect("a clean shutdown");
    });
}

#[test]
fn a_slot_that_fails_in_its_last_steps_is_undone() {
    on_own_machine(|| async {
        let (data, other) = (data_dir(), data_dir());
        let pool = start(&data, 0).await;
        leave_only(Some(slot(7)), other.path());
        // Somebody else's route for the very address: the kernel will not add a second one.
        run("ip link add lan0 type veth peer name lan1");
        run("ip link set lan0 up");
        run("ip link set lan1 up");
        run("ip route add 10.11.0.8/32 dev lan0");
        let before = Traces::now();
        let error = pool.acquire().await.expect_err("the route is taken");
        assert!(
            matches!(error, NetworkError::Link { action: "configure the host's link", .. }),
            "{error}"
        );
        assert_eq!(Traces::now(), before);

        run("ip route del 10.11.0.8/32 dev lan0");
        pool.acquire().await.expect("the number is free again").release().await.expect("released");
    });
}

#[test]
fn an_unclaimed_namespace_or_link_is_passed_over_and_left_alone() {
    on_own_machine(|| async {
        let (data, other) = (data_dir(), data_dir());
        let pool = start(&data, 0).await;
        leave_only(Some(slot(7)), other.path());
        fs::remove_file(format!("{CLAIMS}/8")).expect("free 8, too");
        fs::remove_file(format!("{CLAIMS}/9")).expect("free 9, too");
        run("ip netns add nestbox-7");
        run("ip link add nb8 type veth peer name nb8-peer");
        let taken = pool.acquire().await.expect("the third number is good");
        assert_eq!(taken.index(), slot(9));
        assert!(Path::new("/run/netns/nestbox-7").exists());
        assert!(run("ip -br link").contains("nb8"));
        taken.release().await.expect("a clean release");
    });
}

#[test]
fn a_dropped_slot_is_removed_by_the_janitor() {
    on_own_machine(|| async {
        let data = data_dir();
        let pool = start(&data, 0).await;
        let slot = pool.acquire().await.expect("a slot");
        let index = slot.index();
        drop(slot);
        eventually("no claim", || claims().is_empty()).await;
        assert!(!link_exists(index));
        pool.shutdown().await.expect("a clean shutdown");
    });
}

#[test]
fn a_release_that_nobody_waits_for_is_done_all_the_same() {
    on_own_machine(|| async {
        let data = data_dir();
        let pool = start(&data, 0).await;
        let slot = pool.acquire().await.expect("a slot");
        let stopped_waiting = tokio::time::timeout(Duration::ZERO, slot.release()).await;
        assert!(stopped_waiting.is_err());
        eventually("no claim", || claims().is_empty()).await;
        pool.shutdown().await.expect("a clean shutdown");
    });
}

#[test]
fn a_tap_has_one_user_at_a_time() {
    on_own_machine(|| async {
        let data = data_dir();
        let pool = start(&data, 0).await;
        let slot = pool.acquire().await.expect("a slot");
        let first = slot.tap().await.expect("the tap");
        let error = slot.tap().await.expect_err("it is taken");
        let NetworkError::Tap { source, .. } = error else { panic!("{error}") };
        assert_eq!(source.kind(), ErrorKind::ResourceBusy);
        drop(first);
        slot.tap().await.expect("the tap is free again");
        slot.release().await.expect("a clean release");
    });
}

#[test]
fn a_slot_is_removed_even_while_a_dying_vm_still_holds_its_tap() {
    on_own_machine(|| async {
        let data = data_dir();
        let before = Traces::now();
        let pool = start(&data, 0).await;
        let slot = pool.acquire().await.expect("a slot");
        let tap = slot.tap().await.expect("the tap");
        slot.release().await.expect("a clean release");
        pool.shutdown().await.expect("a clean shutdown");
        assert_eq!(Traces::now(), before);
        drop(tap);
    });
}

#[test]
fn slots_in_use_survive_a_shutdown_and_are_adopted() {
    on_own_machine(|| async {
        let data = data_dir();
        let pool = start(&data, 2).await;
        let kept = pool.acquire().await.expect("a slot");
        let dropped_later = pool.acquire().await.expect("a slot");
        let (index, other, generation) = (kept.index(), dropped_later.index(), kept.generation());
        let tap = kept.tap().await.expect("the tap");
        kept.detach();
        pool.shutdown().await.expect("a clean shutdown");
        drop(dropped_later);
        assert!(link_exists(index) && link_exists(other));
        assert!(
            run("nft list tables").contains("nestbox"),
            "a slot in use needs the host's filter"
        );

        let pool = SlotPool::start(config(data.path(), 1), &[index, other]).await.expect("a start");
        let adopted = pool.adopt(index, &Policy::default(), None).await.expect("the slot is whole");
        assert!(adopted.generation() > generation);
        drop(tap);
        adopted.release().await.expect("a clean release");
        pool.adopt(other, &Policy::default(), None)
            .await
            .expect("the slot is whole")
            .release()
            .await
            .expect("released");
        pool.shutdown().await.expect("a clean shutdown");
        assert!(claims().is_empty());
        assert!(!run("nft list tables").contains("nestbox"));
    });
}

#[test]
fn a_slot_that_is_not_whole_is_not_adopted() {
    on_own_machine(|| async {
        let data = data_dir();
        let pool = start(&data, 0).await;
        let slot = pool.acquire().await.expect("a slot");
        let index = slot.index();
        slot.detach();
        run(&format!("ip link del {}", index.host_link_name()));
        let error =
            pool.adopt(index, &Policy::default(), None).await.expect_err("its link is gone");
        assert!(
            matches!(error, NetworkError::NotAdoptable { missing: "link to the host", .. }),
            "{error}"
        );
    });
}

/// Stands for a daemon in the test below: holds three slots until it is killed.
#[test]
#[ignore = "only started by another test"]
fn a_daemon_that_waits_to_be_killed() {
    let data = std::env::var("NESTBOX_TEST_DATA_DIR").expect("started by the test");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let pool = SlotPool::start(config(Path::new(&data), 2), &[]).await.expect("the pool");
        let slots = try_join_all((0..3).map(|_| pool.acquire())).await.expect("three slots");
        eventually("two ready slots", || pool.status().ready == 2).await;
        println!("\nholding {}", slots[0].index());
        std::future::pending::<()>().await;
    });
}

/// Starts the daemon above on this test's machine, kills it once it holds its slots, and returns the
/// number of one of them.
fn start_and_kill(data_dir: &Path) -> SlotIndex {
    let mut daemon = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "life::a_daemon_that_waits_to_be_killed", "--ignored", "--nocapture"])
        .env("NESTBOX_TEST_DATA_DIR", data_dir)
        .stdout(Stdio::piped())
        .spawn()
        .expect("the daemon starts");
    let lines = BufReader::new(daemon.stdout.take().expect("piped")).lines();
    let held = lines
        .map_while(Result::ok)
        .find_map(|line| line.strip_prefix("holding ")?.parse::<u32>().ok())
        .expect("the daemon holds slots");
    daemon.kill().expect("kill -9");
    daemon.wait().expect("it is dead");
    slot(held)
}

#[test]
fn what_a_killed_daemon_left_is_reaped_by_its_next_start_except_what_is_adopted() {
    on_own_machine(|| async {
        let data = data_dir();
        let before = Traces::now();
        let held = start_and_kill(data.path());
        assert_eq!(claims().len(), 5);

        let pool = SlotPool::start(config(data.path(), 0), &[held]).await.expect("a start");
        assert_eq!(claims(), [held.to_string()]);
        let adopted = pool.adopt(held, &Policy::default(), None).await.expect("the slot is whole");
        let guest = Guest::attach(&adopted).await;
        drop(guest);
        adopted.release().await.expect("a clean release");
        pool.shutdown().await.expect("a clean shutdown");
        assert_eq!(Traces::now(), before);
    });
}

#[test]
fn what_a_daemon_left_that_was_killed_halfway_is_reaped() {
    on_own_machine(|| async {
        let data = data_dir();
        let before = Traces::now();
        // What is there after each step: the claim, the mount point, the namespace, the link.
        fs::create_dir_all(CLAIMS).expect("the claims");
        for number in 0..4 {
            std::os::unix::fs::symlink(data.path(), format!("{CLAIMS}/{number}")).expect("a claim");
        }
        run("ip netns add nestbox-2");
        run("ip netns add nestbox-3");
        run("ip link add nb3 address 02:00:0a:0c:00:06 type veth peer name veth0 netns nestbox-3");
        fs::write("/run/netns/nestbox-1", "").expect("a mount point");

        let pool = start(&data, 0).await;
        pool.shutdown().await.expect("a clean shutdown");
        assert_eq!(Traces::now(), before);
    });
}

#[test]
fn a_slot_that_vanished_with_a_reboot_is_discarded() {
    on_own_machine(|| async {
        let data = data_dir();
        let pool = SlotPool::start(config(data.path(), 0), &[slot(5)]).await.expect("a start");
        let error =
            pool.adopt(slot(5), &Policy::default(), None).await.expect_err("there is nothing");
        assert!(matches!(error, NetworkError::NotAdoptable { .. }), "{error}");
        pool.discard(slot(5)).await.expect("nothing is left");
        assert!(claims().is_empty());
        pool.shutdown().await.expect("a clean shutdown");
    });
}

#[test]
fn a_closed_pool_hands_out_nothing_but_takes_slots_back() {
    on_own_machine(|| async {
        let data = data_dir();
        let pool = start(&data, 1).await;
        let slot = pool.acquire().await.expect("a slot");
        let handle = pool.clone();
        pool.shutdown().await.expect("a clean shutdown");
        handle.shutdown().await.expect("once is enough");
        let error = handle.acquire().await.expect_err("it is closed");
        assert!(matches!(error, NetworkError::Closed), "{error}");
        slot.release().await.expect("a clean release");
        assert!(claims().is_empty());
    });
}

#[test]
fn other_daemons_slots_are_left_alone_unless_their_data_directory_is_gone() {
    on_own_machine(|| async {
        let (ours, theirs) = (data_dir(), data_dir());
        let their_slot = start_and_kill(theirs.path());

        let pool = start(&ours, 0).await;
        assert_eq!(claims().len(), 5, "their data directory is there, so they may come back");
        let error =
            pool.adopt(their_slot, &Policy::default(), None).await.expect_err("it is theirs");
        assert!(matches!(error, NetworkError::ClaimedElsewhere { .. }), "{error}");
        assert!(link_exists(their_slot));
        pool.shutdown().await.expect("a clean shutdown");
        assert!(run("nft list tables").contains("nestbox"), "their guests still need the filter");

        theirs.close().expect("their data directory goes away");
        let pool = start(&ours, 0).await;
        assert!(claims().is_empty());
        assert!(!link_exists(their_slot));
        pool.shutdown().await.expect("a clean shutdown");
    });
}

#[test]
fn a_running_daemon_keeps_the_hosts_filter_when_another_one_stops() {
    on_own_machine(|| async {
        let (one, two) = (data_dir(), data_dir());
        let (first, second) = (start(&one, 0).await, start(&two, 0).await);
        first.shutdown().await.expect("a clean shutdown");
        assert!(run("nft list tables").contains("nestbox"));
        second.shutdown().await.expect("a clean shutdown");
        assert!(!run("nft list tables").contains("nestbox"));
    });
}

#[test]
fn a_filter_that_somebody_flushed_comes_back() {
    on_own_machine(|| async {
        let data = data_dir();
        let mut config = config(data.path(), 0);
        config.keep_period = Duration::from_millis(50);
        let pool = SlotPool::start(config, &[]).await.expect("a start");
        let loaded = run("nft list ruleset");
        run("nft flush ruleset");
        eventually("the filter is back", || run("nft list ruleset") == loaded).await;
        pool.shutdown().await.expect("a clean shutdown");
    });
}
