//! Large files in and out of a sandbox: in flat memory, never half there, as fast as can be.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{StreamExt, stream};
use nestbox::domain::slot::SlotIndex;
use reqwest::{Body, Method};
use serde_json::json;
use tokio::io::AsyncWriteExt;

use crate::support::{Daemon, Sandbox, eventually, in_a_lab};

const MIB: usize = 1 << 20;

/// So many MiB, each different from the one before.
fn content(mib: usize) -> impl futures::Stream<Item = std::io::Result<Bytes>> + Send + 'static {
    let pattern: Vec<u8> = (0..MIB).map(|at| (at % 253) as u8).collect();
    stream::iter((0..mib).map(move |number| {
        let mut piece = pattern.clone();
        piece[0] = u8::try_from(number % 251).expect("less than 251");
        Ok(piece.into())
    }))
}

async fn upload(sandbox: &Sandbox, path: &str, mib: usize) {
    let request = sandbox.about_file(Method::PUT, "", path);
    let answer = sandbox.send(request.body(Body::wrap_stream(content(mib)))).await.expect(200);
    assert_eq!(answer["size"], mib * MIB);
}

/// Downloads a file and compares it with what was uploaded.
async fn download(sandbox: &Sandbox, path: &str, mib: usize, look: impl Fn()) {
    let answer = sandbox.about_file(Method::GET, "", path).send().await.expect("an answer");
    assert_eq!(
        (answer.status().as_u16(), answer.content_length()),
        (200, Some((mib * MIB) as u64))
    );
    let (mut received, mut expected) = (answer.bytes_stream(), content(mib));
    let (mut piece, mut whole) = (Bytes::new(), Bytes::new());
    let mut total = 0;
    loop {
        if piece.is_empty() {
            match received.next().await {
                Some(next) => piece = next.expect("a whole file"),
                None => break,
            }
        }
        if whole.is_empty() {
            whole = expected.next().await.expect("no more than was sent").expect("a piece");
            look();
        }
        let length = piece.len().min(whole.len());
        assert!(piece.split_to(length) == whole.split_to(length), "it differs after {total} bytes");
        total += length;
    }
    assert_eq!(total, mib * MIB);
}

fn memory_mib(pid: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("the field");
    line.split_whitespace().next().expect("a number").parse::<u64>().expect("a number") / 1024
}

#[test]
fn a_file_larger_than_the_guests_memory_goes_in_and_out_in_flat_memory() {
    const SIZE: usize = 320;
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon().await;
        let sandbox = daemon.create().await;
        upload(&sandbox, "/tmp/first", 1).await;
        download(&sandbox, "/tmp/first", 1, || ()).await;
        let before = memory_mib(daemon.pid(), "VmRSS:");
        upload(&sandbox, "/home/user/large", SIZE).await;
        // A reader that stops for a while stops the sender; nobody keeps the rest for it.
        download(&sandbox, "/home/user/large", SIZE, || {
            std::thread::sleep(Duration::from_millis(5));
        })
        .await;
        let most = memory_mib(daemon.pid(), "VmHWM:");
        eprintln!("the daemon: {before} MiB before, at most {most} MiB");
        assert!(most < before + 30, "the daemon grew from {before} to {most} MiB");

        let part = sandbox.about_file(Method::GET, "", "/home/user/large");
        let part = part.header("range", "bytes=1048575-1048576").send().await.expect("an answer");
        assert_eq!(part.status(), 206);
        assert_eq!(part.bytes().await.expect("two bytes")[..], [143, 1]);
        sandbox.destroy().await;
        daemon.stop().await;
    });
}

#[test]
fn a_client_that_vanishes_in_the_middle_of_a_gigabyte_leaves_nothing() {
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon().await;
        let sandbox = daemon.create().await;
        sandbox.sh("mkdir up; echo as it was > up/old").await;
        let count = async || sandbox.sh("ls -A up | wc -l").await;
        for name in ["new", "old"] {
            let address = daemon.url.strip_prefix("http://").expect("a URL");
            let mut stream = tokio::net::TcpStream::connect(address).await.expect("a connection");
            let head = format!(
                "PUT /v1/sandboxes/{}/files?path=up/{name} HTTP/1.1\r\nhost: localhost\r\n\
                 x-api-key: {}\r\ncontent-length: 1073741824\r\n\r\n",
                sandbox.id, daemon.key
            );
            stream.write_all(head.as_bytes()).await.expect("it is heard");
            stream.write_all(&vec![7; 20 * MIB]).await.expect("it is taken");
            eventually("it is under way", || async { count().await == "2" }).await;
            drop(stream);
            eventually("nothing is left of it", || async { count().await == "1" }).await;
        }
        assert_eq!(sandbox.sh("cat up/old").await, "as it was");
        sandbox.destroy().await;
        daemon.stop().await;
    });
}

#[test]
fn a_full_disk_is_told_to_an_upload_of_either_kind_and_leaves_nothing() {
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon().await;
        let sandbox = daemon.create().await;
        let fill = "fallocate -l $(df --output=avail -B1 / | tail -n 1) /fill; \
                    dd if=/dev/zero of=/fill2 bs=64k 2>/dev/null; df --output=avail / | tail -n 1";
        assert_eq!(sandbox.sh_as_root(fill).await, "0");
        let request = sandbox.about_file(Method::PUT, "", "/home/user/big");
        let answer = sandbox.send(request.body(Body::wrap_stream(content(32)))).await;
        answer.is_error(507, "no_space");
        let told = sandbox.about_file(Method::PUT, "", "/home/user/big");
        sandbox.send(told.body(vec![7; 32 * MIB])).await.is_error(507, "no_space");
        assert_eq!(sandbox.sh("ls -A /home/user | grep -ce big -e envd || true").await, "0");
        sandbox.sh_as_root("rm /fill /fill2").await;
        upload(&sandbox, "/home/user/big", 8).await;
        sandbox.destroy().await;
        daemon.stop().await;
    });
}

/// Which way bytes go, seen from the guest.
#[derive(Clone, Copy)]
enum Way {
    In,
    Out,
}

/// A server in the guest that has `cat` copy a file to or from each connection.
const CAT: &str = r#"
import socket, subprocess
server = socket.create_server(("", 9000))
while True:
    connection, _ = server.accept()
    if connection.recv(1) == b"o":
        subprocess.run(["cat", "/tmp/cat"], stdout=connection)
    else:
        subprocess.run(["cat"], stdin=connection, stdout=open("/tmp/cat", "wb"))
    connection.close()
"#;

/// How long `cat` takes for so many MiB, over a plain TCP connection.
async fn by_cat(sandbox: &Sandbox, way: Way, mib: usize) -> Duration {
    let slot = SlotIndex::try_from(sandbox.slot()).expect("a slot");
    let address = (slot.access_address(), 9000);
    let copying = tokio::task::spawn_blocking(move || {
        let began = Instant::now();
        let mut stream = TcpStream::connect(address).expect("a connection");
        let mut piece = vec![7; MIB];
        let mut total = 0;
        match way {
            Way::In => {
                stream.write_all(b"i").expect("it listens");
                for _ in 0..mib {
                    stream.write_all(&piece).expect("it reads");
                }
                stream.shutdown(Shutdown::Write).expect("the end");
                // It closes when it has written all of it.
                assert_eq!(stream.read(&mut piece).expect("its end"), 0);
            }
            Way::Out => {
                stream.write_all(b"o").expect("it listens");
                while let read @ 1.. = stream.read(&mut piece).expect("it writes") {
                    total += read;
                }
                assert_eq!(total, mib * MIB);
            }
        }
        began.elapsed()
    });
    copying.await.expect("no panic")
}

/// How long the API takes for the same.
async fn by_api(sandbox: &Sandbox, way: Way, mib: usize) -> Duration {
    let piece = Bytes::from(vec![7; MIB]);
    let began = Instant::now();
    match way {
        Way::In => {
            let pieces =
                stream::iter((0..mib).map(move |_| Ok::<_, std::io::Error>(piece.clone())));
            let request = sandbox.about_file(Method::PUT, "", "/tmp/api");
            sandbox.send(request.body(Body::wrap_stream(pieces))).await.expect(200);
        }
        Way::Out => {
            let request = sandbox.about_file(Method::GET, "", "/tmp/api");
            let mut answer = request.send().await.expect("an answer");
            let mut total = 0;
            while let Some(piece) = answer.chunk().await.expect("a whole file") {
                total += piece.len();
            }
            assert_eq!(total, mib * MIB);
        }
    }
    began.elapsed()
}

async fn served(daemon: &Daemon) -> Sandbox {
    let sandbox = daemon.create_with(json!({ "memory_mb": 512 })).await;
    sandbox.write("/tmp/cat.py", CAT).await;
    sandbox.sh("nohup python3 /tmp/cat.py >/tmp/cat.log 2>&1 & sleep 1").await;
    let ready = || async { sandbox.sh("grep -c ':2328 ' /proc/net/tcp || true").await == "1" };
    eventually("it listens", ready).await;
    sandbox
}

#[test]
#[ignore = "a measurement, of several minutes"]
fn a_transfer_is_nearly_as_fast_as_cat_over_tcp() {
    // The guest's /tmp is half of its memory, and holds both files, and one twice while it is replaced.
    const SIZE: usize = 32;
    const TURNS: usize = 7;
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon().await;
        let sandbox = served(&daemon).await;
        let mut times = [(); 4].map(|()| Vec::new());
        // In turns, so that what else the machine does is the same for all. The first is no sample.
        for turn in 0..=TURNS {
            let taken = [
                by_cat(&sandbox, Way::In, SIZE).await,
                by_api(&sandbox, Way::In, SIZE).await,
                by_cat(&sandbox, Way::Out, SIZE).await,
                by_api(&sandbox, Way::Out, SIZE).await,
            ];
            if turn > 0 {
                times.iter_mut().zip(taken).for_each(|(times, taken)| times.push(taken));
            }
        }
        let rates = times.map(|mut times| {
            times.sort();
            let rate = |time: &Duration| SIZE as f64 / time.as_secs_f64();
            (rate(&times[TURNS / 2]), rate(&times[TURNS - 1]), rate(&times[0]))
        });
        for (name, rate) in ["cat in", "api in", "cat out", "api out"].iter().zip(rates) {
            eprintln!("{name:8} {:6.1} MiB/s ({:.1} to {:.1})", rate.0, rate.1, rate.2);
        }
        let (into, out) = (rates[1].0 / rates[0].0, rates[3].0 / rates[2].0);
        eprintln!("ratios: in {into:.2}, out {out:.2} (n = {TURNS}, {SIZE} MiB)");
        sandbox.destroy().await;
        daemon.stop().await;
        assert!(into >= 0.7 && out >= 0.7, "in {into:.2}, out {out:.2}");
    });
}
