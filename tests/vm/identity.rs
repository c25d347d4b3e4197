//! Who a guest is after its VM was restored: time, name, environment, network. That clones share no
//! randomness is tested with a hundred of them in `leaks`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nestbox::domain::slot::SlotIndex;
use serde_json::json;

use crate::support::{Sandbox, in_a_lab, run};

/// How far a guest's clock may be off.
const CLOCK_LIMIT: f64 = 0.050;

/// A first packet that is lost is sent again after one second, at the earliest.
const FIRST_PACKET: Duration = Duration::from_millis(900);

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs_f64()
}

/// Asks the guest for the time with the first command that runs in it. What it says lies between the
/// host's times before and after, give or take how far its clock may be off.
async fn clock_is_right(sandbox: &Sandbox) {
    let before = now();
    let guest: f64 = sandbox.sh("date +%s.%N").await.parse().expect("a time");
    let after = now();
    assert!(
        before - CLOCK_LIMIT <= guest && guest <= after + CLOCK_LIMIT,
        "{guest} is not between {before} and {after}"
    );
}

#[test]
fn clocks_are_right_before_the_first_command() {
    in_a_lab(2, async |lab| {
        let mut daemon = lab.daemon().await;
        let sandbox = daemon.create().await;
        clock_is_right(&sandbox).await;
        sandbox.pause().await;
        // Its clock stands still meanwhile.
        tokio::time::sleep(Duration::from_secs(2)).await;
        sandbox.resume().await;
        clock_is_right(&sandbox).await;
        let children = sandbox.fork(1).await;
        clock_is_right(&children[0]).await;
        clock_is_right(&sandbox).await;
        sandbox.snapshot("later").await;
        children[0].destroy().await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let late = daemon.create_with(json!({ "template": "later" })).await;
        clock_is_right(&late).await;
        for sandbox in [sandbox, late] {
            sandbox.destroy().await;
        }
        daemon.delete_snapshot("later").await;
        daemon.stop().await;
    });
}

#[test]
fn a_guest_has_the_name_environment_and_token_that_it_was_given() {
    in_a_lab(2, async |lab| {
        let mut daemon = lab.daemon().await;
        let wish = json!({ "memory_mb": 256, "envs": { "COLOUR": "red" } });
        let parent = daemon.create_with(wish).await;
        let name_and_colour = async |sandbox: &Sandbox, colour: &str| {
            let text = sandbox.sh("hostname; echo $COLOUR").await;
            assert_eq!(text, format!("{}\n{colour}", sandbox.id));
            // The daemon's own requests carry the token, and they work; others do not.
            let bare = "curl -s -o /dev/null -w '%{http_code}' localhost:49983/envs";
            assert_eq!(sandbox.sh(bare).await, "401");
        };
        name_and_colour(&parent, "red").await;
        parent.pause().await;
        parent.resume().await;
        name_and_colour(&parent, "red").await;
        let child = parent.fork(1).await.remove(0);
        name_and_colour(&child, "red").await;
        let token = |sandbox: &Sandbox| sandbox.record()["access_token"].clone();
        assert_ne!(token(&parent), token(&child));
        child.destroy().await;

        parent.snapshot("painted").await;
        let wish = json!({ "template": "painted", "envs": { "COLOUR": "blue", "SIZE": "xl" } });
        let painted = daemon.create_with(wish).await;
        name_and_colour(&painted, "blue").await;
        assert_eq!(painted.sh("echo $SIZE").await, "xl");
        for sandbox in [parent, painted] {
            sandbox.destroy().await;
        }
        daemon.delete_snapshot("painted").await;
        daemon.stop().await;
    });
}

/// How often the kernel has sent something again to the guest, over the connections to it that it has.
fn sent_again(sandbox: &Sandbox) -> u32 {
    let slot = SlotIndex::try_from(sandbox.slot()).expect("a slot");
    let connections = run(&format!("ss -tinH state established dst {}", slot.access_address()));
    assert!(connections.contains("cwnd:"), "the daemon keeps a connection: {connections:?}");
    // ss(8): unacknowledged now, slash, all that were ever sent again, the first packet included;
    // missing if none was.
    let counts = connections.split_whitespace().filter_map(|word| word.strip_prefix("retrans:"));
    let ever = counts.filter_map(|count| count.split_once('/'));
    ever.map(|(_, ever)| ever.parse::<u32>().expect("a number")).sum()
}

#[test]
fn the_first_packet_after_a_restore_gets_through() {
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon().await;
        let sandbox = daemon.create().await;
        let (mut to_the_guest, mut from_the_guest) = (Vec::new(), Vec::new());
        for _ in 0..4 {
            sandbox.pause().await;
            sandbox.resume().await;
            sandbox.sh("true").await;
            to_the_guest.push(sent_again(&sandbox));
            // Refused or answered, the answer comes at once; a packet that is lost does not.
            let connect = "\
import socket, time
outside = socket.socket()
outside.settimeout(5)
start = time.time()
try:
    outside.connect(('169.254.0.22', 9))
except ConnectionRefusedError:
    pass
print(time.time() - start)";
            let wish = json!({ "cmd": "python3", "args": ["-c", connect] });
            let took: f64 = sandbox.exec(wish).await.text().parse().expect("seconds");
            from_the_guest.push(took);
        }
        println!("sent again to the guest: {to_the_guest:?}; from the guest: {from_the_guest:?} s");
        // A neighbour that is remembered wrongly is so each time. A guest that wakes up too slowly to
        // answer in a second, on a host that is emulated itself, is not.
        assert!(to_the_guest.contains(&0), "to the guest, sent again: {to_the_guest:?}");
        let least = from_the_guest.iter().copied().fold(f64::MAX, f64::min);
        assert!(least < FIRST_PACKET.as_secs_f64(), "from the guest: {from_the_guest:?} s");
        sandbox.destroy().await;
        daemon.stop().await;
    });
}
