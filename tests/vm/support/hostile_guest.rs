//! Root in a guest who has put himself in the place of its agent.

use std::fs;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;

use super::{Daemon, Sandbox, eventually};

/// Kills the agent until its port is free for a moment, and answers there himself from then on. PID 1
/// starts another agent at once, but not two within a second; all later ones find the port taken. What
/// he answers he is told on another port.
const PROGRAM: &str = r#"
import os, signal, socket, sys, threading, time

state = {"mode": "nothing", "asked": 0}
CANARY = sys.argv[1]
BLOCK = b"x" * (1 << 20)
CHUNK = b"100000\r\n" + BLOCK + b"\r\n"
CODES = [301, 302, 303, 307, 308]

def agents():
    for name in os.listdir("/proc"):
        if name.isdigit() and name != "1":
            try:
                words = open(f"/proc/{name}/cmdline", "rb").read().split(b"\0")
            except OSError:
                continue
            if words[:2] == [b"envd", b"agent"]:
                yield int(name)

def take_port():
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    while True:
        for pid in agents():
            os.kill(pid, signal.SIGKILL)
        try:
            listener.bind(("0.0.0.0", 49983))
            listener.listen(64)
            return listener
        except OSError:
            time.sleep(0.002)

def endless(connection, first, then):
    connection.sendall(first)
    # Longer than anything has to last, and not for ever.
    for _ in range(2500):
        connection.sendall(then)

def answer(connection):
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        if not piece:
            return
        data += piece
    state["asked"] += 1
    mode = state["mode"]
    chunked = b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nTransfer-Encoding: chunked\r\n\r\n"
    stream = chunked % b"application/connect+proto"
    if mode == "redirect":
        code = CODES[state["asked"] % len(CODES)]
        head = f"HTTP/1.1 {code} X\r\nLocation: {CANARY}\r\nContent-Length: 0\r\n\r\n"
        connection.sendall(head.encode())
    elif mode == "error":
        endless(connection, b"HTTP/1.1 500 X\r\nContent-Length: 2621440000\r\n\r\n", BLOCK)
    elif mode == "headers":
        endless(connection, b"HTTP/1.1 200 OK\r\n", b"X-Y: " + b"z" * 1000 + b"\r\n")
    elif mode == "chunks":
        endless(connection, b"HTTP/1.1 404 X\r\nTransfer-Encoding: chunked\r\n\r\n", CHUNK)
    elif mode == "length":
        connection.sendall(stream + b"5\r\n\0\xff\xff\xff\xff\r\n")
        endless(connection, b"", CHUNK)
    elif mode == "frames":
        connection.sendall(stream + b"b\r\n\xff\x00\x00\x00\x06\xde\xad\xbe\xef\x00\x00\r\n0\r\n\r\n")
    elif mode == "types":
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>")
    elif mode == "terminal":
        body = b'{"code":"invalid_argument","message":"\\u001b]0;owned\\u0007\\u202e"}'
        connection.sendall(b"HTTP/1.1 400 X\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    elif mode == "file":
        endless(connection, chunked % b"application/octet-stream", CHUNK)
    elif mode == "trickle":
        connection.sendall(b"HTTP/1.1 500 X\r\nContent-Length: 1000000\r\n\r\n")
        while True:
            connection.sendall(b"x")
            time.sleep(0.1)
    connection.close()

def quietly(work, *args):
    try:
        work(*args)
    except OSError:
        pass

def serve(listener, work):
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=quietly, args=(work, connection), daemon=True).start()

def listen_to_the_test(connection):
    words = connection.recv(65536).split()
    name = words[1].decode().strip("/") if len(words) > 1 else ""
    if name != "count":
        state["mode"], state["asked"] = name, 0
    body = str(state["asked"]).encode()
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    connection.close()

orders = socket.create_server(("0.0.0.0", 8099), backlog=64)
threading.Thread(target=serve, args=(orders, listen_to_the_test), daemon=True).start()
serve(take_port(), answer)
"#;

/// The guest, and where the host must not go.
pub struct HostileGuest {
    pub sandbox: Sandbox,
    visits: Arc<AtomicUsize>,
}

impl HostileGuest {
    /// Takes a sandbox over from within.
    pub async fn take_over(sandbox: Sandbox) -> Self {
        let canary = TcpListener::bind("127.0.0.1:0").expect("a port of the host's");
        let address = canary.local_addr().expect("its number");
        let visits = Arc::new(AtomicUsize::new(0));
        let count = visits.clone();
        std::thread::spawn(move || {
            while canary.accept().is_ok() {
                count.fetch_add(1, Ordering::SeqCst);
            }
        });
        sandbox.write("/tmp/hostile.py", PROGRAM).await;
        let begin = format!(
            "nohup setsid python3 /tmp/hostile.py http://{address}/ >/tmp/said 2>&1 </dev/null &"
        );
        // The agent may be gone before it can say that this was done.
        sandbox.try_exec(json!({ "cmd": begin, "user": "root" })).await;
        let guest = Self { sandbox, visits };
        eventually("the guest is taken over", || async {
            guest.tell("redirect").await && {
                let answer = guest.sandbox.try_exec(json!({ "cmd": "true" })).await;
                answer.status != 200 && guest.asked().await.is_some_and(|asked| asked > 0)
            }
        })
        .await;
        guest
    }

    /// Has it answer so from now on.
    pub async fn answers(&self, mode: &str) {
        assert!(self.tell(mode).await, "it still listens to us");
    }

    async fn tell(&self, mode: &str) -> bool {
        self.sandbox.get(&format!("/ports/8099/{mode}")).await.status == 200
    }

    /// How often it has been asked for anything since it was told the last time.
    pub async fn asked(&self) -> Option<u64> {
        let answer = self.sandbox.get("/ports/8099/count").await;
        answer.body.as_u64().filter(|_| answer.status == 200)
    }

    /// How often the host went where it was sent.
    pub fn visits(&self) -> usize {
        self.visits.load(Ordering::SeqCst)
    }
}

/// How much larger the daemon became at its peak, since this was made.
pub struct Growth {
    pid: u32,
    before: u64,
}

impl Growth {
    /// Has the kernel forget the peak: proc(5), `clear_refs`.
    pub fn begin(daemon: &Daemon) -> Self {
        let pid = daemon.pid();
        fs::write(format!("/proc/{pid}/clear_refs"), "5").expect("it can be forgotten");
        Self { pid, before: memory_mib(pid, "VmRSS:") }
    }

    pub fn mib(&self) -> u64 {
        memory_mib(self.pid, "VmHWM:").saturating_sub(self.before)
    }
}

fn memory_mib(pid: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("the field");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") >> 10
}
