//! A daemon for one test, and the words in which tests speak to it.

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use actix::Arbiter;
use actix_web::dev::ServerHandle;
use actix_web::rt;
use nestbox::actors::control::ControlPlane;
use nestbox::actors::host::Limits;
use nestbox::domain::id::SandboxId;
use nestbox::entity::Database;
use nestbox::http::{
    API_KEY_HEADER, Budget, Connections, Front, Heartbeat, Listeners, OwnNames, Ports, Sockets,
    create_server,
};
use nestbox::startup::{API_KEY_FILE, SOCKET_FILE, URL_FILE, assemble, limits, token_secret};
use nestbox::vmm::simulated::SimulatedMachines;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Nothing takes longer than this, even on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Below which the servers in sandboxes have names.
pub const DOMAIN: &str = "nest.example";

/// A daemon with simulated machines. Nothing of it is left once it is dropped.
pub struct Nest {
    pub url: String,
    pub key: String,
    pub machines: SimulatedMachines,
    pub control: ControlPlane,
    pub arbiter: Arbiter,
    pub database: Database,
    pub client: reqwest::Client,
    /// For files of "guests", which are files of this host.
    pub dir: TempDir,
    pub sockets: Sockets,
    server: ServerHandle,
}

impl Drop for Nest {
    fn drop(&mut self) {
        // The server is told at once; waiting for it would only take time.
        drop(self.server.stop(false));
        self.machines.end_all();
        self.arbiter.stop();
        if !std::thread::panicking() {
            assert_eq!(PANICS.load(Ordering::SeqCst), 0, "a panic in the daemon is a bug");
        }
    }
}

/// Panics in threads of any daemon of this process: supervisors and the server would hide them.
static PANICS: AtomicUsize = AtomicUsize::new(0);

fn count_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let thread = std::thread::current();
            if thread.name().is_none_or(|name| name.starts_with("actix-")) {
                PANICS.fetch_add(1, Ordering::SeqCst);
            }
            usual(panic);
        }));
    });
}

impl Nest {
    /// A daemon on a host with all the memory that is really there.
    pub async fn start() -> Self {
        let real = limits(Some(0)).unwrap();
        Self::with_limits(Limits { cpus: 2, ..real }).await
    }

    pub async fn with_limits(limits: Limits) -> Self {
        Self::with(limits, Sockets::default(), Ports::new(DOMAIN)).await
    }

    /// A daemon with other ideas of when a client is gone.
    pub async fn with_heartbeat(heartbeat: Heartbeat) -> Self {
        let real = limits(Some(0)).unwrap();
        Self::with(Limits { cpus: 2, ..real }, Sockets::new(heartbeat), Ports::new(DOMAIN)).await
    }

    /// A daemon with other ideas of how servers in sandboxes are reached.
    pub async fn with_ports(ports: Ports) -> Self {
        let real = limits(Some(0)).unwrap();
        Self::with(Limits { cpus: 2, ..real }, Sockets::default(), ports).await
    }

    /// A daemon that takes so many connections.
    pub async fn with_budget(budget: Budget) -> Self {
        let real = limits(Some(0)).unwrap();
        let mut front = front(Sockets::default(), Ports::new(DOMAIN));
        front.connections = Connections::new(budget);
        Self::with_front(Limits { cpus: 2, ..real }, front).await
    }

    async fn with(limits: Limits, sockets: Sockets, ports: Ports) -> Self {
        Self::with_front(limits, front(sockets, ports)).await
    }

    async fn with_front(limits: Limits, front: Front) -> Self {
        let templates = ["debian", "alpine-3.20"].map(|name| name.parse().unwrap());
        let machines = SimulatedMachines::new(templates);
        let dir = tempfile::tempdir().unwrap();
        Self::assemble_with(limits, machines, dir, front).await
    }

    /// A daemon that finds the machines and the database of a former one.
    pub async fn assemble(limits: Limits, machines: SimulatedMachines, dir: TempDir) -> Self {
        let front = front(Sockets::default(), Ports::new(DOMAIN));
        Self::assemble_with(limits, machines, dir, front).await
    }

    async fn assemble_with(
        limits: Limits,
        machines: SimulatedMachines,
        dir: TempDir,
        front: Front,
    ) -> Self {
        count_panics();
        let file = dir.path().join("nestbox.db");
        let database = Database::open(file.to_str().unwrap()).await.unwrap();
        let kept = database.clone();
        let arbiter = Arbiter::new();
        let handle = arbiter.handle();
        let known = Arc::new(machines.clone());
        let secret = token_secret(dir.path()).unwrap();
        let (control, host) =
            assemble(&handle, "host-of-the-test", limits, database, known, secret).await.unwrap();
        host.adopt_survivors().await;
        control.reconcile().await.unwrap();
        let key = control.create_key("test").await.unwrap().secret;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        // One thread: what reached it before a request has been seen when that is answered.
        let sockets = front.sockets.clone();
        let listeners = Listeners { tcp: listener, unix: Some(socket(dir.path())) };
        let server = create_server(control.clone(), listeners, 1, front).unwrap();
        let handle = server.handle();
        rt::spawn(server);
        let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
        let url = format!("http://{address}");
        std::fs::write(dir.path().join(URL_FILE), &url).unwrap();
        std::fs::write(dir.path().join(API_KEY_FILE), &key).unwrap();
        let (database, server) = (kept, handle);
        Self { url, key, machines, control, arbiter, database, client, dir, sockets, server }
    }

    /// Ends the daemon and starts another one on the same machines and database.
    pub async fn restart(self) -> Self {
        let (machines, dir) = self.end().await;
        Self::assemble(Limits { cpus: 2, ..limits(Some(0)).unwrap() }, machines, dir).await
    }

    /// Ends the daemon; its machines and its database stay.
    pub async fn end(mut self) -> (SimulatedMachines, TempDir) {
        self.server.stop(true).await;
        self.arbiter.stop();
        let machines = std::mem::replace(&mut self.machines, SimulatedMachines::new([]));
        let dir = std::mem::replace(&mut self.dir, tempfile::tempdir().unwrap());
        (machines, dir)
    }

    /// A request with the right API key.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.anonymous(method, path).header(API_KEY_HEADER, &self.key)
    }

    /// A request without an API key.
    pub fn anonymous(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.url))
    }

    pub async fn get(&self, path: &str) -> Answer {
        Answer::of(self.request(Method::GET, path)).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        Answer::of(self.request(Method::DELETE, path)).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        Answer::of(self.request(Method::POST, path).json(&body)).await
    }

    /// Makes a small sandbox with what `body` says besides; returns its id.
    pub async fn create(&self, body: Value) -> String {
        let answer = self.post("/v1/sandboxes", small(body)).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        answer.json()["id"].as_str().unwrap().to_owned()
    }

    pub async fn sandbox(&self, id: &str) -> Value {
        let answer = self.get(&format!("/v1/sandboxes/{id}")).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()
    }

    pub async fn state(&self, id: &str) -> String {
        self.sandbox(id).await["state"].as_str().unwrap().to_owned()
    }

    /// Waits until the sandbox is in this state, and returns it.
    pub async fn becomes(&self, id: &str, state: &str) -> Value {
        eventually(&format!("{id} becomes {state}"), async || {
            Some(self.sandbox(id).await).filter(|sandbox| sandbox["state"] == state)
        })
        .await
    }

    pub async fn destroy(&self, id: &str) -> Answer {
        self.delete(&format!("/v1/sandboxes/{id}")).await
    }

    /// Sends a command and takes whatever is answered.
    pub async fn try_exec(&self, id: &str, body: Value) -> Answer {
        self.post(&format!("/v1/sandboxes/{id}/exec"), body).await
    }

    /// Runs a command to its end.
    pub async fn exec(&self, id: &str, body: Value) -> Value {
        let answer = self.try_exec(id, body).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()
    }

    /// Runs a shell line that works, and returns what it printed.
    pub async fn sh(&self, id: &str, line: &str) -> String {
        let done = self.exec(id, json!({"cmd": line})).await;
        assert_eq!(done["exit_code"], 0, "{done}");
        done["stdout"].as_str().unwrap().to_owned()
    }

    /// Starts a request that goes on beside the test. Aborting it hangs up.
    pub fn begin(&self, request: RequestBuilder) -> rt::task::JoinHandle<Answer> {
        rt::spawn(Answer::of(request))
    }

    /// Hangs up, and waits until the daemon has seen it.
    pub async fn hang_up(&self, request: rt::task::JoinHandle<Answer>) {
        request.abort();
        assert!(request.await.unwrap_err().is_cancelled());
        for _ in 0..2 {
            assert_eq!(self.get("/health").await.status, 200);
        }
    }

    pub fn begin_create(&self) -> rt::task::JoinHandle<Answer> {
        let body = small(json!({}));
        self.begin(self.request(Method::POST, "/v1/sandboxes").json(&body))
    }

    pub fn begin_exec(&self, id: &str, body: &Value) -> rt::task::JoinHandle<Answer> {
        let path = format!("/v1/sandboxes/{id}/exec");
        self.begin(self.request(Method::POST, &path).json(body))
    }

    pub async fn pause(&self, id: &str) -> Answer {
        self.begin_to(id, "pause").await.unwrap()
    }

    pub async fn resume(&self, id: &str) -> Answer {
        self.begin_to(id, "resume").await.unwrap()
    }

    /// Forks a sandbox; returns the ids of its children.
    pub async fn fork(&self, id: &str, count: usize) -> Vec<String> {
        let path = format!("/v1/sandboxes/{id}/fork");
        let answer = self.post(&path, json!({"count": count})).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        let children = answer.json()["sandboxes"].as_array().unwrap().clone();
        children.iter().map(|child| child["id"].as_str().unwrap().to_owned()).collect()
    }

    pub async fn snapshot(&self, id: &str, name: &str) -> Answer {
        self.begin_snapshot(id, name).await.unwrap()
    }

    /// Starts `pause`, `resume` or `fork`, without a body.
    pub fn begin_to(&self, id: &str, what: &str) -> rt::task::JoinHandle<Answer> {
        self.begin(self.request(Method::POST, &format!("/v1/sandboxes/{id}/{what}")))
    }

    pub fn begin_snapshot(&self, id: &str, name: &str) -> rt::task::JoinHandle<Answer> {
        let body = json!({"sandbox_id": id, "name": name});
        self.begin(self.request(Method::POST, "/v1/snapshots").json(&body))
    }

    pub fn begin_destroy(&self, id: &str) -> rt::task::JoinHandle<Answer> {
        self.begin(self.request(Method::DELETE, &format!("/v1/sandboxes/{id}")))
    }

    /// A path that no other test uses.
    pub fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    /// Ends the sandbox's VM as `kill -9` would.
    pub fn kill_vm(&self, id: &str) {
        assert!(self.machines.kill(&id.parse::<SandboxId>().unwrap()), "{id} has a VM");
    }
}

fn front(sockets: Sockets, ports: Ports) -> Front {
    let names = OwnNames::new([DOMAIN.to_owned()]);
    let connections = Connections::new(Budget { all: 4096, strangers: 2048 });
    Front { sockets, ports, names, connections }
}

/// The socket of a daemon with this data directory.
fn socket(dir: &Path) -> UnixListener {
    let path = dir.join(SOCKET_FILE);
    // That of a former one.
    drop(std::fs::remove_file(&path));
    UnixListener::bind(path).unwrap()
}

/// A request for a sandbox that takes little memory, so that tests can run side by side.
pub fn small(mut body: Value) -> Value {
    let fields = body.as_object_mut().unwrap();
    fields.entry("memory_mb").or_insert(json!(128));
    body
}

/// What was answered.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub body: bytes::Bytes,
}

impl Answer {
    pub async fn of(request: RequestBuilder) -> Self {
        let response = request.send().await.expect("the daemon answers");
        let (status, headers) = (response.status(), response.headers().clone());
        let body = match status {
            StatusCode::NO_CONTENT => bytes::Bytes::new(),
            _ => response.bytes().await.expect("an answer is whole"),
        };
        Self { status: status.as_u16(), headers, body }
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("an answer is JSON")
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// Asserts the documented form of an error, and returns its message.
    #[track_caller]
    pub fn error(&self, status: u16, code: &str) -> String {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.header("content-type"), Some("application/json"), "{self:?}");
        let body = self.json();
        let outer: Vec<&String> = body.as_object().unwrap().keys().collect();
        assert_eq!(outer, ["error"], "{body}");
        let error = body["error"].as_object().unwrap();
        assert_eq!(error["code"], code, "{body}");
        let id = self.header("x-request-id").expect("every answer has an id");
        let mut names: Vec<&str> = error.keys().map(String::as_str).collect();
        names.sort_unstable();
        if status >= 500 {
            assert_eq!(names, ["code", "message", "request_id"], "{body}");
            assert_eq!(error["request_id"], id);
        } else {
            assert_eq!(names, ["code", "message"], "{body}");
        }
        let message = error["message"].as_str().unwrap().to_owned();
        assert!(!message.is_empty() && !message.contains("nestbox::"), "{message}");
        message
    }
}

/// Waits until `look` finds something.
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < end, "not in time: {what}");
        rt::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Whether a process is there and is not a zombie.
pub fn process_lives(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().next());
    state.is_some_and(|state| state != "Z" && state != "X")
}
