//! What a guest reaches, and what reaches it.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::symlink;

use nestbox::domain::slot::{SLOT_COUNT, SlotIndex};
use serde_json::json;

use crate::support::{Options, Sandbox, World, in_a_lab, run};

const OUTSIDE: &str = World::OUTSIDE;
const HOST: &str = World::HOST;
const HOST_ELSEWHERE: &str = World::HOST_ELSEWHERE;
const WEB: u16 = World::WEB;

/// What curl says of a URL from inside: the body, or its exit code. A packet that nobody refuses
/// takes longer than it waits.
async fn fetch(sandbox: &Sandbox, url: &str) -> Result<String, i64> {
    let args = ["--silent", "--show-error", "--noproxy", "*", "--max-time", "15", url];
    let output = sandbox.exec(json!({ "cmd": "curl", "args": args })).await;
    match output.exit_code {
        0 => Ok(output.text()),
        code => Err(code),
    }
}

/// curl's "could not connect": somebody said no.
const REFUSED: Result<String, i64> = Err(7);

#[test]
fn a_guest_reaches_the_world_but_not_the_host_nor_other_guests() {
    in_a_lab(2, async |lab| {
        let world = World::connect();
        let options = Options { listen: "0.0.0.0:0".to_owned(), ..Options::default() };
        let mut daemon = lab.daemon_with(options).await;
        let (guest, other) = tokio::join!(daemon.create(), daemon.create());
        let serve = format!("cd /tmp && nohup python3 -m http.server {WEB} >/dev/null 2>&1 &");
        other.sh(&serve).await;
        let up = format!(
            "for i in $(seq 100); do curl -so /dev/null localhost:{WEB} && break; sleep 0.1; done"
        );
        other.sh(&up).await;

        // The world sees the host, not the guest.
        let outside = fetch(&guest, &format!("http://{OUTSIDE}:{WEB}/")).await;
        assert_eq!(outside, Ok(HOST.to_owned()));

        let api: u16 = daemon.url.rsplit_once(':').expect("a port").1.parse().expect("a port");
        let slot = |sandbox: &Sandbox| SlotIndex::try_from(sandbox.slot()).expect("a slot");
        let (own, neighbour) = (slot(&guest), slot(&other));
        let mut closed = vec!["169.254.169.254:80".to_owned()];
        for address in [
            HOST.parse().expect("an address"),
            HOST_ELSEWHERE.parse().expect("an address"),
            Ipv4Addr::new(169, 254, 0, 22),
            own.host_address(),
            own.uplink_address(),
            neighbour.host_address(),
            neighbour.uplink_address(),
            neighbour.access_address(),
        ] {
            closed.extend([api, WEB, 49983].map(|port| format!("{address}:{port}")));
        }
        let guest = &guest;
        let tries = closed.into_iter().map(|address| async move {
            let answer = fetch(guest, &format!("http://{address}/")).await;
            (address, answer)
        });
        for (address, answer) in futures::future::join_all(tries).await {
            assert_eq!(answer, REFUSED, "{address}");
        }

        // Root in the guest has no more rights out there.
        guest.sh_as_root("ip addr add 10.12.0.77/32 dev eth0 || true").await;
        let address = neighbour.access_address();
        let spoofed = json!({ "cmd": "curl", "user": "root", "args":
            ["-s", "--interface", "10.12.0.77", "-m", "2", format!("http://{address}:{WEB}/")] });
        assert_ne!(guest.exec(spoofed).await.exit_code, 0);

        tokio::join!(guest.destroy(), other.destroy());
        daemon.stop().await;
        world.disconnect();
    });
}

#[test]
fn the_hosts_own_reach_is_untouched_by_sandboxes() {
    in_a_lab(1, async |lab| {
        let world = World::connect();
        let mut daemon = lab.daemon().await;
        let sandbox = daemon.create().await;
        let fetched = run(&format!("curl -s --noproxy * -m 5 http://{OUTSIDE}:{WEB}/"));
        assert_eq!(fetched, HOST);
        let fetched = run(&format!("curl -s --noproxy * -m 5 http://{HOST_ELSEWHERE}:{WEB}/"));
        assert_eq!(fetched, HOST_ELSEWHERE);
        // From outside nobody gets at a guest, though the host forwards now.
        let slot = SlotIndex::try_from(sandbox.slot()).expect("a slot");
        run(&format!("ip -n outside route add 10.11.0.0/16 via {HOST}"));
        let address = slot.access_address();
        let attempt = std::process::Command::new("ip")
            .args(["netns", "exec", "outside", "curl", "-s", "--noproxy", "*", "-m", "3"])
            .arg(format!("http://{address}:49983/health"))
            .status()
            .expect("curl runs");
        assert!(!attempt.success(), "{attempt}");
        sandbox.destroy().await;
        daemon.stop().await;
        world.disconnect();
    });
}

#[test]
fn a_slot_that_is_used_again_belongs_to_the_new_guest_from_its_first_packet() {
    in_a_lab(1, async |lab| {
        // All numbers but one are somebody else's.
        let slots = std::path::Path::new("/run/nestbox/slots");
        fs::create_dir_all(slots).expect("the claims");
        let free = 12_345;
        for number in (0..SLOT_COUNT).filter(|number| *number != free) {
            symlink(lab.path(""), slots.join(number.to_string())).expect("a claim");
        }
        let mut daemon = lab.daemon_with(Options { slot_pool: 0, ..Options::default() }).await;
        for round in 0..4 {
            let sandbox = daemon.create().await;
            assert_eq!(sandbox.slot(), free);
            assert_eq!(sandbox.sh("hostname").await, sandbox.id, "round {round}");
            assert_eq!(sandbox.sh("ls").await, "", "round {round}");
            sandbox.sh("touch mark").await;
            sandbox.destroy().await;
        }
        daemon.stop().await;
        // While anybody has a claim, the host's filter stays.
        run("nft delete table inet nestbox");
        fs::remove_dir_all(slots).expect("the claims");
    });
}

#[test]
fn a_sandbox_without_a_free_slot_is_refused_and_leaves_nothing() {
    in_a_lab(1, async |lab| {
        let slots = std::path::Path::new("/run/nestbox/slots");
        fs::create_dir_all(slots).expect("the claims");
        for number in 0..SLOT_COUNT {
            symlink(lab.path(""), slots.join(number.to_string())).expect("a claim");
        }
        let mut daemon = lab.daemon_with(Options { slot_pool: 0, ..Options::default() }).await;
        let idle = daemon.census();
        let answer = daemon.try_create(json!({})).await;
        assert!(answer.status >= 500, "{answer:?}");
        daemon.is_back_to(&idle).await;
        daemon.stop().await;
        // While anybody has a claim, the host's filter stays.
        run("nft delete table inet nestbox");
        fs::remove_dir_all(slots).expect("the claims");
    });
}
