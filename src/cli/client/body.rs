//! What goes to the daemon and what comes back, as its API shows it.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, Utc};
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::ClientError;
use crate::domain::egress::{Rule, Verdict};
use crate::domain::lifecycle::SandboxState;
use crate::domain::port::GuestPort;

/// What a new sandbox shall be. What is none is the daemon's to choose.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct CreateRequest {
    pub template: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_sec: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease_sec: Option<u32>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub envs: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub public_ports: Vec<GuestPort>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkRequest>,
    #[serde(skip_serializing_if = "RateLimitsRequest::is_empty")]
    pub rate_limits: RateLimitsRequest,
}

/// How fast a sandbox may be; also the flags that say so.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Args)]
pub struct RateLimitsRequest {
    /// Bytes that it reads from its disk and writes to it a second, at most
    #[arg(long, value_name = "BYTES")]
    #[serde(skip_serializing_if = "Option::is_none")]
    disk_bytes_per_sec: Option<u64>,
    /// Reads and writes of its disk a second, at most
    #[arg(long, value_name = "COUNT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    disk_ops_per_sec: Option<u64>,
    /// Bytes that it sends, and as many that it receives, a second, at most
    #[arg(long, value_name = "BYTES")]
    #[serde(skip_serializing_if = "Option::is_none")]
    network_bytes_per_sec: Option<u64>,
}

impl RateLimitsRequest {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What a sandbox may reach. Without a default, the lists say it.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct NetworkRequest {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default: Option<Verdict>,
    pub allow: Vec<Rule>,
    pub deny: Vec<Rule>,
}

/// A sandbox as the API shows it. The state is a text, so that a newer daemon's states show too.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Sandbox {
    pub id: String,
    pub template: String,
    pub state: String,
    pub vcpus: u32,
    pub memory_mb: u32,
    pub created_at: DateTime<Utc>,
    /// Where the time went, if that was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace: Option<Vec<Span>>,
    /// Everything else, to be passed on.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

/// Which sandboxes to list. States are always named: what the daemon lists without any is its
/// own choice.
#[derive(Debug)]
pub struct ListQuery {
    pub states: Vec<SandboxState>,
    pub metadata: BTreeMap<String, String>,
}

/// A command for a sandbox. `args` is always there, if empty: without it the daemon would hand
/// `cmd` to a shell.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct ExecRequest {
    pub cmd: String,
    pub args: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub envs: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_sec: Option<u32>,
}

/// A command that shall run in the background.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct BackgroundRequest {
    #[serde(flatten)]
    pub exec: ExecRequest,
    /// Always true.
    pub background: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
}

/// A command that runs in the background.
#[derive(Debug, Serialize, Deserialize)]
pub struct Started {
    pub pid: u32,
    pub tag: Option<String>,
}

/// What is known of a process in the background. The state is a text, so that a newer daemon's
/// states show too.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Process {
    pub pid: u32,
    pub tag: Option<String>,
    pub cmd: String,
    pub args: Vec<String>,
    pub terminal: bool,
    pub state: String,
    pub exit_code: Option<i64>,
    pub started_at: DateTime<Utc>,
    /// Number that the next byte of its output gets.
    pub next_seq: u64,
    /// Everything else, to be passed on.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

#[derive(Deserialize)]
pub struct Processes {
    pub processes: Vec<Process>,
}

/// What came of a command.
#[derive(Debug, Serialize, Deserialize)]
pub struct ExecAnswer {
    pub stdout: String,
    pub stderr: String,
    pub exit_code: i64,
    pub encoding: Encoding,
    /// It was killed because its time was over.
    #[serde(default)]
    pub timed_out: bool,
    /// It printed more than is here.
    #[serde(default)]
    pub truncated: bool,
    /// Everything else, to be passed on.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

/// How output is put into JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Encoding {
    #[serde(rename = "utf-8")]
    Utf8,
    #[serde(rename = "base64")]
    Base64,
}

/// Whether the daemon shall say where an operation's time went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tracing {
    Off,
    On,
}

/// One step of an operation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Span {
    pub span: String,
    /// When it began, from the beginning of the operation.
    pub start_ms: f64,
    pub took_ms: f64,
}

/// What came of a fork.
#[derive(Debug, Serialize, Deserialize)]
pub struct Forked {
    pub sandboxes: Vec<Sandbox>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace: Option<Vec<Span>>,
    /// Everything else, to be passed on.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

/// Bytes that a sandbox or a snapshot has in use on its host's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Storage {
    /// Its memory, all generations.
    pub memory_bytes: u64,
    pub memory_generations: u32,
    /// Its overlays and the image's root disk.
    pub disk_bytes: u64,
    /// How much of both others use too: it stays when this one goes.
    pub shared_bytes: u64,
}

/// A snapshot that shall be taken.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct SnapshotRequest {
    pub sandbox_id: String,
    pub name: String,
    /// Whether an older one of that name is replaced.
    pub overwrite: bool,
}

/// A named snapshot.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Snapshot {
    pub name: String,
    pub image: String,
    pub vcpus: u32,
    pub memory_mb: u32,
    #[serde(flatten)]
    pub storage: Storage,
    pub created_at: DateTime<Utc>,
    /// Everything else, to be passed on.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

/// What a sandbox takes of its host.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Usage {
    pub now: Sample,
}

/// What a sandbox took at a moment.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Sample {
    pub at: DateTime<Utc>,
    pub cpu_percent: f64,
    pub memory_used_bytes: u64,
    pub memory_total_bytes: u64,
    pub disk_used_bytes: u64,
}

/// Which events are wanted.
#[derive(Debug, Clone, Default)]
pub struct EventQuery {
    pub sandbox_id: Option<String>,
    /// Those after this one.
    pub after: Option<String>,
}

impl EventQuery {
    /// The same as parameters of a request.
    pub fn pairs(&self) -> Vec<(&'static str, String)> {
        let sandbox = self.sandbox_id.iter().map(|id| ("sandbox_id", id.clone()));
        sandbox.chain(self.after.iter().map(|id| ("after", id.clone()))).collect()
    }
}

/// Something that happened.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Event {
    pub id: String,
    pub at: DateTime<Utc>,
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sandbox_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Everything else, to be passed on.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

/// One page of events.
#[derive(Debug, Deserialize)]
pub struct EventPage {
    pub events: Vec<Event>,
    pub next_cursor: Option<String>,
    /// Some that were asked for are not kept any more.
    #[serde(default)]
    pub lost: bool,
}

/// What a stream of events says.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum EventMessage {
    /// Something about the stream itself.
    Notice(EventNotice),
    /// Something that happened.
    Event(Event),
}

/// What a stream of events says about itself.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum EventNotice {
    /// What comes after this event follows.
    Start { after: String },
    /// Something is missing here.
    Lost,
    /// Why the stream is about to end.
    Error { message: String },
}

/// One page of a list.
#[derive(Deserialize)]
pub struct Page<T> {
    #[serde(alias = "sandboxes", alias = "snapshots")]
    pub items: Vec<T>,
    pub next_cursor: Option<String>,
}

/// Where an upload went.
#[derive(Debug, Serialize, Deserialize)]
pub struct Written {
    pub path: String,
    pub size: u64,
}

/// What came out of an archive.
#[derive(Debug, Serialize, Deserialize)]
pub struct Unpacked {
    pub path: String,
    pub entries: u64,
    pub size: u64,
}

/// What is at a path. The type is a text, so that a newer daemon's types show too.
#[derive(Debug, Serialize, Deserialize)]
pub struct Entry {
    /// From the root.
    pub path: String,
    /// Of a link, that of what it leads to.
    pub r#type: String,
    pub mode: u32,
    pub modified_at: DateTime<Utc>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub symlink_target: Option<String>,
    /// Everything else, to be passed on.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

/// A new API key; the key itself is never shown again.
#[derive(Debug, Serialize, Deserialize)]
pub struct NewKey {
    pub id: String,
    pub name: String,
    pub key: String,
    pub created_at: DateTime<Utc>,
}

/// An API key without the key.
#[derive(Debug, Serialize, Deserialize)]
pub struct Key {
    pub id: String,
    pub name: String,
    pub prefix: String,
    pub created_at: DateTime<Utc>,
    pub last_used_at: Option<DateTime<Utc>>,
}

#[derive(Serialize, Deserialize)]
pub struct Keys {
    pub api_keys: Vec<Key>,
}

/// How many sandboxes were forgotten.
#[derive(Deserialize)]
pub struct Cleared {
    pub cleared: u64,
}

/// The body of an error.
#[derive(Deserialize)]
pub struct Envelope {
    pub error: Inner,
}

#[derive(Deserialize)]
pub struct Inner {
    pub message: String,
    pub request_id: Option<String>,
}

impl Encoding {
    /// The bytes that a command printed.
    ///
    /// # Errors
    ///
    /// [`ClientError::BadBase64`].
    pub fn decode(self, text: &str) -> Result<Vec<u8>, ClientError> {
        match self {
            Self::Utf8 => Ok(text.as_bytes().to_vec()),
            Self::Base64 => STANDARD.decode(text).map_err(ClientError::BadBase64),
        }
    }
}
