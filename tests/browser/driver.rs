//! A browser: Chromium, spoken to through its driver in the W3C WebDriver protocol.
//!
//! The protocol is JSON over HTTP, and the tests need a dozen of its commands: the crates for it
//! bring more than that is.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Lab, PATIENCE, eventually};

const CHROMIUM: &str = "chromium";
const DRIVER: &str = "chromedriver";

/// The key under which the protocol has an element's id.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// Without a screen, as root, and without a word to anybody but the page's server.
const FLAGS: &[&str] = &[
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=1280,900",
    "--lang=en",
];

/// What is missing on this machine, if anything is.
pub fn missing() -> Option<String> {
    let absent = [CHROMIUM, DRIVER].into_iter().find(|name| {
        let found = nestbox::vmm::find_program(name);
        found.is_none()
    });
    absent.map(|name| format!("{name} is not installed: run `scripts/setup.sh tests`"))
}

/// An element of the page.
#[derive(Debug, Clone)]
pub struct Element(String);

/// A browser with one window. Dropped without being closed, it is killed.
pub struct Browser {
    http: reqwest::Client,
    /// Of the session, with the driver's address.
    url: String,
    driver: Child,
    /// Everything of the browser's: what it writes, and how its processes are known.
    dir: PathBuf,
}

impl Browser {
    /// Starts one that knows nothing yet.
    pub async fn start(lab: &Lab) -> Self {
        let dir = tempfile::Builder::new().prefix("browser-").tempdir_in(lab.path(""));
        let dir = dir.expect("a directory").keep();
        for name in ["profile", "downloads", "home"] {
            fs::create_dir(dir.join(name)).expect("a directory");
        }
        let output = dir.join("driver.out");
        let driver = Command::new(DRIVER)
            // A free one, which it prints.
            .arg("--port=0")
            .env("HOME", dir.join("home"))
            .stdin(Stdio::null())
            .stdout(File::create(&output).expect("a file"))
            .stderr(File::create(dir.join("driver.err")).expect("a file"))
            .process_group(0)
            .spawn()
            .expect("the driver starts");
        let http = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build();
        let http = http.expect("a client");
        let mut browser = Self { http, url: String::new(), driver, dir };
        let port = || fs::read_to_string(&output).ok().and_then(|text| port_in(&text));
        eventually("the driver listens", || async { port().is_some() }).await;
        browser.url = format!("http://127.0.0.1:{}", port().expect("a port"));
        browser.begin().await;
        browser
    }

    async fn begin(&mut self) {
        let mut flags: Vec<String> = FLAGS.iter().map(|flag| (*flag).to_owned()).collect();
        flags.push(format!("--user-data-dir={}", self.dir.join("profile").display()));
        let downloads = json!({
            "download.default_directory": self.downloads(),
            "download.prompt_for_download": false,
        });
        let wish = json!({"capabilities": {"alwaysMatch": {
            "goog:chromeOptions": {"args": flags, "prefs": downloads},
            "goog:loggingPrefs": {"browser": "ALL"},
        }}});
        let session = self.call(Method::POST, "/session", wish).await;
        self.url += &format!("/session/{}", session["sessionId"].as_str().expect("a session"));
    }

    /// Where the browser keeps what it downloads.
    pub fn downloads(&self) -> PathBuf {
        self.dir.join("downloads")
    }

    async fn try_call(&self, method: Method, path: &str, body: Value) -> Result<Value, String> {
        let mut request = self.http.request(method.clone(), format!("{}{path}", self.url));
        if method == Method::POST {
            request = request.json(&body);
        }
        let response = request.send().await.expect("the driver answers");
        let good = response.status().is_success();
        let mut answer: Value = response.json().await.expect("JSON");
        let value = answer["value"].take();
        match good {
            true => Ok(value),
            false => Err(format!("{}: {}", value["error"], value["message"])),
        }
    }

    async fn call(&self, method: Method, path: &str, body: Value) -> Value {
        let answer = self.try_call(method, path, body).await;
        answer.unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        self.call(Method::POST, path, body).await
    }

    async fn get(&self, path: &str) -> Value {
        self.call(Method::GET, path, Value::Null).await
    }

    /// Opens an address.
    pub async fn open(&self, url: &str) {
        self.post("/url", json!({ "url": url })).await;
    }

    /// Loads the page anew.
    pub async fn reload(&self) {
        self.post("/refresh", json!({})).await;
    }

    /// What the address bar shows.
    pub async fn address(&self) -> String {
        self.get("/url").await.as_str().expect("an address").to_owned()
    }

    /// Runs a piece of script, and gives what it returns.
    pub async fn script(&self, script: &str, args: Value) -> Value {
        self.post("/execute/sync", json!({"script": script, "args": args})).await
    }

    /// Elements that an XPath leads to and that can be seen.
    pub async fn seen(&self, xpath: &str) -> Vec<Element> {
        let found = self.post("/elements", json!({"using": "xpath", "value": xpath})).await;
        let mut seen = Vec::new();
        for element in found.as_array().expect("a list") {
            let element = Element(element[ELEMENT].as_str().expect("an element").to_owned());
            // One that is gone by now is not seen.
            let shown = self.try_call(Method::GET, &element.path("/displayed"), Value::Null).await;
            if shown == Ok(Value::Bool(true)) {
                seen.push(element);
            }
        }
        seen
    }

    /// Clicks on it. False if it went away meanwhile, or something is before it.
    pub async fn try_click(&self, element: &Element) -> bool {
        self.try_call(Method::POST, &element.path("/click"), json!({})).await.is_ok()
    }

    /// Clicks into an input and replaces what is in it.
    pub async fn fill(&self, element: &Element, text: &str) {
        self.post(&element.path("/clear"), json!({})).await;
        if !text.is_empty() {
            self.post(&element.path("/value"), json!({ "text": text })).await;
        }
    }

    /// Chooses files in an input that a person would see the browser's dialog of.
    pub async fn choose_files(&self, css: &str, files: &[&Path]) {
        let input = self.post("/element", json!({"using": "css selector", "value": css})).await;
        let input = Element(input[ELEMENT].as_str().expect("an element").to_owned());
        let paths: Vec<String> = files.iter().map(|path| path.display().to_string()).collect();
        self.post(&input.path("/value"), json!({ "text": paths.join("\n") })).await;
    }

    /// Presses and lets go of one key after another, wherever the keyboard is.
    pub async fn keys(&self, keys: &str) {
        let press = |key: char| {
            let key = key.to_string();
            [json!({"type": "keyDown", "value": key}), json!({"type": "keyUp", "value": key})]
        };
        self.act(keys.chars().flat_map(press).collect()).await;
    }

    /// Presses a key while another one is held.
    pub async fn chord(&self, held: char, key: char) {
        let (held, key) = (held.to_string(), key.to_string());
        self.act(vec![
            json!({"type": "keyDown", "value": held}),
            json!({"type": "keyDown", "value": key}),
            json!({"type": "keyUp", "value": key}),
            json!({"type": "keyUp", "value": held}),
        ])
        .await;
    }

    async fn act(&self, actions: Vec<Value>) {
        let keyboard = json!({"type": "key", "id": "keyboard", "actions": actions});
        self.post("/actions", json!({ "actions": [keyboard] })).await;
    }

    /// Sends a command of Chromium's own protocol.
    pub async fn devtools(&self, command: &str, params: Value) -> Value {
        self.post("/goog/cdp/execute", json!({"cmd": command, "params": params})).await
    }

    /// What the browser has complained about since it was asked the last time.
    pub async fn complaints(&self) -> Vec<String> {
        let entries = self.post("/se/log", json!({ "type": "browser" })).await;
        let entries = entries.as_array().expect("a list").iter();
        entries.map(|entry| entry["message"].as_str().expect("a text").to_owned()).collect()
    }

    /// Keeps what the window looks like in `target/browser`.
    pub async fn keep_picture(&self, name: &str) {
        let picture = self.get("/screenshot").await;
        let picture = BASE64_STANDARD.decode(picture.as_str().expect("a text")).expect("base64");
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("target").join("browser");
        fs::create_dir_all(&dir).expect("a directory");
        fs::write(dir.join(format!("{name}.png")), picture).expect("a picture");
    }

    /// Closes it.
    pub async fn close(mut self) {
        self.call(Method::DELETE, "", Value::Null).await;
        let pid = Pid::from_raw(self.driver.id().cast_signed());
        kill(pid, Signal::SIGTERM).expect("it can be ended");
        self.driver.wait().expect("it can be reaped");
        let gone = || async { processes_of(&self.dir).is_empty() };
        eventually("all of the browser has ended", gone).await;
        // Its processes write to the last moment.
        fs::remove_dir_all(&self.dir).expect("it can be removed");
    }
}

impl Element {
    fn path(&self, rest: &str) -> String {
        format!("/element/{}{rest}", self.0)
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.driver.kill();
        let _ = self.driver.wait();
        while let Some(pid) = processes_of(&self.dir).pop() {
            let _ = kill(pid, Signal::SIGKILL);
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// The port in what the driver prints once it listens.
fn port_in(text: &str) -> Option<u16> {
    let (_, rest) = text.split_once("started successfully on port ")?;
    rest.trim_start().split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Processes that were started with a directory, as all of a browser's are with its profile. Those
/// that have ended have no command line any more.
fn processes_of(dir: &Path) -> Vec<Pid> {
    let dir = dir.display().to_string();
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let ours = pids.filter(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(&dir)
    });
    ours.map(Pid::from_raw).collect()
}
