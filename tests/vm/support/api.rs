//! The REST API and the sandboxes behind it, as tests speak of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use reqwest::{Method, RequestBuilder, multipart};
use serde_json::{Value, json};

use super::socket::Socket;
use super::{PATIENCE, eventually};

/// A client of one daemon.
#[derive(Debug, Clone)]
pub struct Api {
    http: reqwest::Client,
    pub url: String,
    pub key: String,
    pub(super) data_dir: PathBuf,
}

/// What the daemon answered.
#[derive(Debug, Clone)]
pub struct Answer {
    /// HTTP's status; 0 if there was no whole answer.
    pub status: u16,
    pub body: Value,
}

impl Answer {
    /// The error's code, such as `not_found`.
    pub fn code(&self) -> &str {
        self.body["error"]["code"].as_str().unwrap_or_default()
    }

    /// The error's message.
    pub fn message(&self) -> &str {
        self.body["error"]["message"].as_str().unwrap_or_default()
    }

    /// Panics unless the answer is an error with this status and code.
    #[track_caller]
    pub fn is_error(&self, status: u16, code: &str) -> &Self {
        assert_eq!((self.status, self.code()), (status, code), "{}", self.body);
        self
    }

    /// The body of an answer with this status.
    #[track_caller]
    pub fn expect(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.body);
        self.body
    }
}

impl Api {
    pub(super) fn new(url: &str, key: &str, data_dir: &Path) -> Self {
        // A test that waits for a program lets kept connections grow too old without noticing.
        let http = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0);
        let http = http.build().expect("a client");
        Self { http, url: url.to_owned(), key: key.to_owned(), data_dir: data_dir.to_owned() }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http
            .request(method, format!("{}{path}", self.url))
            .header("X-API-Key", &self.key)
            .timeout(Duration::from_secs(300))
    }

    async fn send(&self, request: RequestBuilder) -> Answer {
        let answer = async {
            let response = request.send().await?;
            Ok((response.status().as_u16(), response.text().await?))
        };
        let (status, text) = answer.await.unwrap_or_else(|error: reqwest::Error| {
            (0, format!("the connection broke: {error:?}"))
        });
        Answer { status, body: serde_json::from_str(&text).unwrap_or(Value::String(text)) }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(self.request(Method::GET, path)).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send(self.request(Method::POST, path).json(body)).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.send(self.request(Method::DELETE, path)).await
    }

    /// One of the daemon's metrics that has no labels.
    pub async fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").await.expect(200);
        let text = text.as_str().expect("a text").to_owned();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{name} in {text}")).parse().expect("a number")
    }

    /// Asks for a sandbox.
    pub async fn try_create(&self, wish: Value) -> Answer {
        self.post("/v1/sandboxes", &wish).await
    }

    /// Makes a sandbox of the smallest useful shape.
    pub async fn create(&self) -> Sandbox {
        self.create_with(json!({ "memory_mb": 256 })).await
    }

    /// Makes a sandbox.
    pub async fn create_with(&self, wish: Value) -> Sandbox {
        let body = self.try_create(wish).await.expect(201);
        assert_eq!(body["state"], "running");
        self.sandbox(body["id"].as_str().expect("an id"))
    }

    /// A sandbox that is there already.
    pub fn sandbox(&self, id: &str) -> Sandbox {
        Sandbox { api: self.clone(), id: id.to_owned() }
    }

    /// The ids of sandboxes that are not stopped.
    pub async fn ids(&self) -> Vec<String> {
        let states = "pending,starting,running,pausing,paused,resuming,stopping,missing,error";
        let list = format!("/v1/sandboxes?limit=1000&state={states}");
        let body = self.get(&list).await.expect(200);
        let list = body["sandboxes"].as_array().expect("a list").iter();
        list.map(|sandbox| sandbox["id"].as_str().expect("an id").to_owned()).collect()
    }

    /// What has a process and is no sandbox yet: standbys, and what was started ahead.
    pub async fn unclaimed(&self) -> Vec<Sandbox> {
        let known = self.ids().await;
        let entries = fs::read_dir(self.data_dir.join("sandboxes")).expect("sandboxes").flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        let all = names.filter(|name| !known.contains(name)).map(|name| self.sandbox(&name));
        all.filter(|it| it.try_record().is_some_and(|it| it["process"].is_object())).collect()
    }

    /// Waits until there is a sandbox, or the boot of a warm snapshot, whose VM runs.
    pub async fn starting(&self) -> Sandbox {
        let sandboxes = self.data_dir.join("sandboxes");
        for _ in 0..PATIENCE.as_millis() / 5 {
            for entry in fs::read_dir(&sandboxes).into_iter().flatten().flatten() {
                let sandbox = self.sandbox(&entry.file_name().to_string_lossy());
                if sandbox.try_record().is_some_and(|record| record["process"].is_object()) {
                    return sandbox;
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("no VM was started within {PATIENCE:?}");
    }
}

/// What came of a command.
#[derive(Debug)]
pub struct Output {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub exit_code: i64,
    pub timed_out: bool,
    pub truncated: bool,
}

impl Output {
    fn of(body: &Value) -> Self {
        let bytes = |field: &str| {
            let text = body[field].as_str().expect("a text");
            match body["encoding"].as_str() {
                Some("utf-8") => text.as_bytes().to_vec(),
                Some("base64") => BASE64_STANDARD.decode(text).expect("base64"),
                other => panic!("unknown encoding {other:?}"),
            }
        };
        Self {
            stdout: bytes("stdout"),
            stderr: bytes("stderr"),
            exit_code: body["exit_code"].as_i64().expect("a number"),
            timed_out: body["timed_out"] == true,
            truncated: body["truncated"] == true,
        }
    }

    /// Standard output as text without white space around it.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim().to_owned()
    }

    /// Standard error as text.
    pub fn errors(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

/// One sandbox.
#[derive(Debug, Clone)]
pub struct Sandbox {
    pub(super) api: Api,
    pub id: String,
}

impl Sandbox {
    pub(super) fn path(&self, rest: &str) -> String {
        format!("/v1/sandboxes/{}{rest}", self.id)
    }

    /// The same sandbox, seen through a daemon that was started again.
    pub fn through(&self, api: &Api) -> Self {
        api.sandbox(&self.id)
    }

    /// Runs a line of shell that succeeds; returns what it printed, trimmed.
    pub async fn sh(&self, line: &str) -> String {
        let output = self.exec(json!({ "cmd": line })).await;
        assert_eq!(output.exit_code, 0, "{line}: {}{}", output.text(), output.errors());
        output.text()
    }

    /// As [`Sandbox::sh`], as root.
    pub async fn sh_as_root(&self, line: &str) -> String {
        let output = self.exec(json!({ "cmd": line, "user": "root" })).await;
        assert_eq!(output.exit_code, 0, "{line}: {}{}", output.text(), output.errors());
        output.text()
    }

    /// Runs a command that can be run, however it ends.
    pub async fn exec(&self, wish: Value) -> Output {
        Output::of(&self.try_exec(wish).await.expect(200))
    }

    /// Asks for a command.
    pub async fn try_exec(&self, wish: Value) -> Answer {
        self.api.post(&self.path("/exec"), &wish).await
    }

    /// Opens a session for one command; at most `window` bytes wait to be read here.
    pub async fn session(&self, window: Option<u32>) -> Socket {
        Socket::open(&self.api.url, &self.path("/exec/stream"), &self.api.key, window).await
    }

    /// Opens another WebSocket of its.
    pub async fn socket(&self, rest: &str) -> Socket {
        Socket::open(&self.api.url, &self.path(rest), &self.api.key, None).await
    }

    /// Asks for a WebSocket as one would, and takes whatever is answered instead.
    pub async fn try_socket(&self, rest: &str) -> Answer {
        let request = self.api.request(Method::GET, &self.path(rest));
        let request = request.header("connection", "Upgrade").header("upgrade", "websocket");
        let request = request.header("sec-websocket-version", "13");
        self.api.send(request.header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")).await
    }

    /// Asks about something of its.
    pub async fn get(&self, rest: &str) -> Answer {
        self.api.get(&self.path(rest)).await
    }

    /// Asks for the end of something of its.
    pub async fn delete(&self, rest: &str) -> Answer {
        self.api.delete(&self.path(rest)).await
    }

    /// Asks for a file to be written.
    pub async fn try_write(&self, path: &str, content: impl Into<Vec<u8>>) -> Answer {
        let form = multipart::Form::new()
            .text("path", path.to_owned())
            .part("file", multipart::Part::bytes(content.into()));
        let request = self.api.request(Method::POST, &self.path("/files/write"));
        self.api.send(request.multipart(form)).await
    }

    /// Writes a file.
    pub async fn write(&self, path: &str, content: impl Into<Vec<u8>>) {
        let content = content.into();
        let size = content.len();
        let body = self.try_write(path, content).await.expect(200);
        assert_eq!(body["size"], size);
    }

    /// Reads a file.
    pub async fn read(&self, path: &str) -> Vec<u8> {
        let request = self.api.request(Method::POST, &self.path("/files/read"));
        let response = request.json(&json!({ "path": path })).send().await.expect("an answer");
        assert_eq!(response.status(), 200, "{path}");
        response.bytes().await.expect("a whole file").to_vec()
    }

    /// Asks for a file.
    pub async fn try_read(&self, path: &str) -> Answer {
        self.api.post(&self.path("/files/read"), &json!({ "path": path })).await
    }

    /// A request about a file, or with `rest` about something of it.
    pub fn about_file(&self, method: Method, rest: &str, path: &str) -> RequestBuilder {
        let target = self.path(&format!("/files{rest}"));
        self.api.request(method, &target).query(&[("path", path)])
    }

    /// Sends a request that is answered with JSON.
    pub async fn send(&self, request: RequestBuilder) -> Answer {
        self.api.send(request).await
    }

    /// What the API shows of it.
    pub async fn look(&self) -> Value {
        self.api.get(&self.path("")).await.expect(200)
    }

    /// Asks for what it takes of the host.
    pub async fn usage(&self) -> Answer {
        self.api.get(&self.path("/metrics")).await
    }

    /// Its state.
    pub async fn state(&self) -> String {
        self.look().await["state"].as_str().expect("a text").to_owned()
    }

    /// Waits until it is in a state; returns the reason that it gives.
    pub async fn becomes(&self, state: &str) -> String {
        eventually(&format!("{} is {state}", self.id), || async { self.state().await == state })
            .await;
        self.look().await["reason"].as_str().unwrap_or_default().to_owned()
    }

    /// Asks for its end.
    pub async fn try_destroy(&self) -> Answer {
        self.api.delete(&self.path("")).await
    }

    /// Destroys it; when this returns, it is gone.
    pub async fn destroy(&self) {
        self.try_destroy().await.expect(204);
        assert_eq!(self.state().await, "stopped");
    }

    /// Its directory on the host.
    pub fn dir(&self) -> PathBuf {
        self.api.data_dir.join("sandboxes").join(&self.id)
    }

    /// What its host keeps to find it again, if that is there.
    pub fn try_record(&self) -> Option<Value> {
        serde_json::from_slice(&fs::read(self.dir().join("sandbox.json")).ok()?).ok()
    }

    /// What its host keeps to find it again.
    pub fn record(&self) -> Value {
        self.try_record().expect("a record")
    }

    /// The process of its VM.
    pub fn vm_pid(&self) -> i32 {
        let pid = self.record()["process"]["pid"].as_i64().expect("a pid");
        i32::try_from(pid).expect("a pid")
    }

    /// The number of its network slot.
    pub fn slot(&self) -> u32 {
        u32::try_from(self.record()["slot"].as_u64().expect("a slot")).expect("a slot")
    }

    /// Kills its VM, as a crash of the hypervisor would end it.
    pub fn kill_vm(&self) {
        kill(Pid::from_raw(self.vm_pid()), Signal::SIGKILL).expect("it can be killed");
    }
}
