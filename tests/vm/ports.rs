//! Servers in real guests, reached from the host.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::symlink;
use std::process::Stdio;
use std::time::Duration;

use nestbox::domain::slot::SLOT_COUNT;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::support::{Daemon, Options, Sandbox, eventually, in_a_lab, run};

/// Says the name of its guest, once or, at `/slow`, for ever.
const SERVER: &str = r#"
import http.server, socket, sys, time
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        name = socket.gethostname().encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(name)
        while self.path == "/slow":
            self.wfile.write(name)
            time.sleep(0.05)
http.server.ThreadingHTTPServer((sys.argv[1], 8000), Handler).serve_forever()
"#;

/// Starts the server in a guest, and waits until it listens.
async fn serve(sandbox: &Sandbox, address: &str) {
    sandbox.write("server.py", SERVER).await;
    sandbox.sh(&format!("nohup python3 server.py {address} >/dev/null 2>&1 &")).await;
    let up = "until curl -so /dev/null localhost:8000; do sleep 0.1; done";
    sandbox.sh(up).await;
}

fn client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(100)).build().expect("one")
}

/// Asks a server by its name; gives the answer.
async fn ask(daemon: &Daemon, sandbox: &Sandbox, path: &str) -> reqwest::Response {
    let url = format!("{}{path}", daemon.url);
    let name = format!("8000-{}.localhost", sandbox.id);
    client().get(url).header("host", name).send().await.expect("an answer")
}

async fn public_one(daemon: &Daemon) -> Sandbox {
    daemon.create_with(json!({ "memory_mb": 256, "public_ports": [8000] })).await
}

#[test]
fn a_server_is_reached_by_name_and_by_path_also_on_its_loopback() {
    in_a_lab(2, async |lab| {
        let mut daemon = lab.daemon().await;
        let (sandbox, lonely) = tokio::join!(daemon.create(), public_one(&daemon));
        serve(&sandbox, "0.0.0.0").await;
        serve(&lonely, "127.0.0.1").await;
        let list = daemon.get(&format!("/v1/sandboxes/{}/ports", sandbox.id)).await.expect(200);
        let token = list["token"].as_str().expect("a text");
        let url = list["url"].as_str().expect("a text").replace("{port}", "8000");
        let fetched = run(&format!("curl -sS --noproxy * -H X-Sandbox-Token:{token} {url}"));
        assert_eq!(fetched, sandbox.id);
        let refused = run(&format!("curl -sS --noproxy * -o /dev/null -w %{{http_code}} {url}"));
        assert_eq!(refused, "401");
        let path = format!("/v1/sandboxes/{}/ports/8000/", sandbox.id);
        assert_eq!(daemon.get(&path).await.expect(200), Value::from(sandbox.id.as_str()));

        let answer = ask(&daemon, &lonely, "/").await;
        assert_eq!(answer.text().await.expect("a text"), lonely.id);
        let nobody = format!("/v1/sandboxes/{}/ports/8001/", sandbox.id);
        let answer = daemon.get(&nobody).await;
        let text = answer.is_error(502, "agent_error").body.to_string();
        assert!(text.contains("nothing listens on port 8001"), "{text}");
        let agent = format!("/v1/sandboxes/{}/ports/49983/health", sandbox.id);
        daemon.get(&agent).await.is_error(400, "invalid_request");
        tokio::join!(sandbox.destroy(), lonely.destroy());
        daemon.stop().await;
    });
}

#[test]
fn a_pause_ends_connections_and_the_server_is_there_after_the_resume() {
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon().await;
        for address in ["0.0.0.0", "127.0.0.1"] {
            let sandbox = public_one(&daemon).await;
            serve(&sandbox, address).await;
            let mut slow = ask(&daemon, &sandbox, "/slow").await;
            assert!(slow.chunk().await.expect("it flows").is_some());
            let path = format!("/v1/sandboxes/{}", sandbox.id);
            daemon.post(&format!("{path}/pause"), &json!({})).await.expect(200);
            let broken = loop {
                match slow.chunk().await {
                    Ok(Some(_)) => {}
                    end => break end,
                }
            };
            assert!(broken.is_err(), "half of an answer does not look like a whole one");
            assert_eq!(ask(&daemon, &sandbox, "/").await.status(), 409);
            daemon.post(&format!("{path}/resume"), &json!({})).await.expect(200);
            let answer = ask(&daemon, &sandbox, "/").await;
            assert_eq!(answer.text().await.expect("a text"), sandbox.id);
            sandbox.destroy().await;
        }
        daemon.stop().await;
    });
}

#[test]
fn nothing_meant_for_one_guest_reaches_another_that_has_got_its_address() {
    in_a_lab(1, async |lab| {
        // All numbers but one are somebody else's.
        let slots = std::path::Path::new("/run/nestbox/slots");
        fs::create_dir_all(slots).expect("the claims");
        let free = 12_345;
        for number in (0..SLOT_COUNT).filter(|number| *number != free) {
            symlink(lab.path(""), slots.join(number.to_string())).expect("a claim");
        }
        let mut daemon = lab.daemon_with(Options { slot_pool: 0, ..Options::default() }).await;
        let mut former: Vec<(Sandbox, tokio::task::JoinHandle<Vec<u8>>)> = Vec::new();
        for round in 0..3 {
            let sandbox = public_one(&daemon).await;
            assert_eq!(sandbox.slot(), free);
            serve(&sandbox, "0.0.0.0").await;
            for (gone, _) in &former {
                assert_eq!(ask(&daemon, gone, "/").await.status(), 409, "round {round}");
            }
            let answer = ask(&daemon, &sandbox, "/").await;
            assert_eq!(answer.text().await.expect("a text"), sandbox.id, "round {round}");
            // It is left open, whatever comes.
            let mut slow = ask(&daemon, &sandbox, "/slow").await;
            let first = slow.chunk().await.expect("it flows").expect("it flows");
            let heard = tokio::spawn(async move {
                let mut heard = first.to_vec();
                while let Ok(Some(piece)) = slow.chunk().await {
                    heard.extend(piece);
                }
                heard
            });
            sandbox.destroy().await;
            former.push((sandbox, heard));
        }
        for (sandbox, heard) in former {
            let heard = heard.await.expect("it has ended with its guest");
            let text = String::from_utf8(heard).expect("text");
            assert_eq!(text.replace(&sandbox.id, ""), "", "nobody else was heard");
        }
        daemon.stop().await;
        // While anybody has a claim, the host's filter stays.
        run("nft delete table inet nestbox");
        fs::remove_dir_all(slots).expect("the claims");
    });
}

#[test]
fn port_forward_leads_to_a_guest_until_it_is_interrupted() {
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon().await;
        let sandbox = daemon.create().await;
        serve(&sandbox, "0.0.0.0").await;
        let mut child = lab.nestbox();
        child.args(["port-forward", &sandbox.id, "0:8000", "0:81"]);
        let mut child =
            child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut listens = |port: &str| -> SocketAddr {
            let line = lines.next().expect("a line").expect("text");
            let address = line.strip_prefix("listening on ").expect(&line);
            let (address, rest) = address.split_once(',').expect(&line);
            assert_eq!(rest, format!(" leads to port {port}"));
            address.parse().expect("an address")
        };
        let (served, nothing) = (listens("8000"), listens("81"));
        // Several at once, the first of them to the end.
        let connect = |path: &str| {
            let mut stream = TcpStream::connect(served).expect("a connection");
            stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a limit");
            write!(stream, "GET {path} HTTP/1.0\r\n\r\n").expect("it is sent");
            stream
        };
        let mut slow = connect("/slow");
        slow.read_exact(&mut [0; 100]).expect("it flows");
        for _ in 0..3 {
            let mut answer = String::new();
            connect("/").read_to_string(&mut answer).expect("an answer");
            assert!(
                answer.starts_with("HTTP/1.0 200") && answer.ends_with(&sandbox.id),
                "{answer}"
            );
        }
        slow.read_exact(&mut [0; 100]).expect("it still flows");
        drop(slow);
        let mut refused = TcpStream::connect(nothing).expect("a connection");
        assert_eq!(refused.read(&mut [0]).unwrap_or(0), 0, "it is closed");

        kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).expect("it hears");
        let output = child.wait_with_output().expect("it ends");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {errors}", output.status);
        assert!(errors.contains("nothing listens on port 81"), "{errors}");
        eventually("nothing listens", || async { TcpStream::connect(served).is_err() }).await;

        for (ports, word) in [("0", "from 1 to 65535"), ("x:80", "no port"), ("49983", "agent")] {
            let output = lab.cli(&["port-forward", &sandbox.id, ports]);
            assert_eq!(output.status.code(), Some(125), "{ports}");
            assert!(String::from_utf8_lossy(&output.stderr).contains(word), "{ports}");
        }
        sandbox.destroy().await;
        let output = lab.cli(&["port-forward", &sandbox.id, "8000"]);
        assert_eq!(output.status.code(), Some(125));
        assert!(String::from_utf8_lossy(&output.stderr).contains("stopped"));
        daemon.stop().await;
    });
}
