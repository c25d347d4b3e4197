//! Client of envd, the agent inside a guest.
//!
//! An [`Agent`] belongs to one VM: its connections are pooled with it and die with it, so that no
//! request meant for one guest can reach another that later got the same address.

mod background;
mod exec;
mod files;
mod follow;
mod port;
mod process;
mod tree;
mod watch;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use chrono::{SecondsFormat, Utc};
use connectrpc::client::{ClientConfig, HttpClient};
use connectrpc::{ConnectError, ErrorCode};
use nestbox_proto::background::BackgroundClient;
use nestbox_proto::filesystem::FilesystemClient;
use nestbox_proto::process::ProcessClient;
use rand::RngCore;
use serde::Serialize;
use tokio::time::{Instant, sleep, timeout};

use crate::domain::port::GuestPort;
pub use background::{Begin, Following};

pub use crate::domain::port::AGENT_PORT;
pub use files::FileStream;
pub use follow::Wires;
pub use port::ServerStream;
pub use watch::Watching;

/// Carries the token that the agent expects.
const ACCESS_TOKEN: &str = "x-access-token";

/// How far a guest's clock may be behind when the guest is handed out: as long as setting it took.
pub const CLOCK_ERROR: Duration = Duration::from_millis(25);

/// How often the clock is set anew if that took too long.
const CLOCK_ATTEMPTS: u32 = 5;

/// How long one attempt to reach the agent may take: the guest's network is two hops away.
const ATTEMPT: Duration = Duration::from_secs(2);

/// What went wrong between the host and the agent, or inside the guest.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The agent could not be reached, or the connection broke.
    #[error("the guest agent at {address} does not answer")]
    Unreachable { address: SocketAddr, source: Box<dyn std::error::Error + Send + Sync> },
    /// The agent was still silent when the time was over.
    #[error("the guest agent at {address} was silent for {waited:?}")]
    Silent { address: SocketAddr, waited: Duration },
    /// The agent refused the request: the caller asked for something impossible.
    #[error("{message}")]
    Invalid { message: String },
    /// The file or directory is not there.
    #[error("{message}")]
    NotFound { message: String },
    /// What was asked for is taken, or something is already where it is to be made.
    #[error("{message}")]
    Conflict { message: String },
    /// The file has so many bytes, and none of those that were asked for.
    #[error("the file has {length} bytes, and none of the range that was asked for")]
    OutOfRange { length: u64 },
    /// There is more to say than an answer holds.
    #[error("{message}")]
    TooMuch { message: String },
    /// The guest's disk is full.
    #[error("{message}")]
    NoSpace { message: String },
    /// No server of the guest listens where one is asked for.
    #[error("nothing listens on port {port} of the sandbox: start a server there")]
    PortRefused { port: GuestPort },
    /// No server of the guest took the connection in time.
    #[error("port {port} of the sandbox took no connection within {} s", .waited.as_secs())]
    PortSilent { port: GuestPort, waited: Duration },
    /// The agent failed in a way that is not the caller's fault.
    #[error("the guest agent answered {status}: {message}")]
    Failed { status: String, message: String },
}

/// What a guest is told about itself after every start.
#[derive(Debug, Clone, Default)]
pub struct Identity {
    /// Host name inside the guest.
    pub hostname: String,
    /// Environment of every process that users start.
    pub envs: BTreeMap<String, String>,
    /// Resolvers for `/etc/resolv.conf`.
    pub nameservers: Vec<Ipv4Addr>,
    /// What its agent expects until it is told, if it was told before its snapshot was taken.
    pub known_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct InitBody<'a> {
    env_vars: &'a BTreeMap<String, String>,
    #[serde(skip_serializing_if = "str::is_empty")]
    access_token: &'a str,
    timestamp: String,
    hostname: &'a str,
    nameservers: &'a [Ipv4Addr],
    entropy: String,
}

/// A client of the agent in one guest.
#[derive(Clone)]
pub struct Agent {
    address: SocketAddr,
    access_token: String,
    http: reqwest::Client,
    processes: ProcessClient<HttpClient>,
    background: BackgroundClient<HttpClient>,
    files: FilesystemClient<HttpClient>,
}

impl Agent {
    /// Makes a client; connects at the first request.
    ///
    /// `access_token` is what the guest expects once [`Agent::init`] has told it; nothing, if empty.
    pub fn new(address: SocketAddr, access_token: &str) -> Self {
        let base = format!("http://{address}").parse().expect("a socket address makes a URI");
        let config = ClientConfig::new(base)
            .with_default_header(ACCESS_TOKEN, access_token)
            // One message carries at most what a pipe holds; anything near this is not ours.
            .with_default_max_message_size(4 << 20);
        // A guest is one hop away and answers at once or not at all: small writes must not wait for
        // each other, and no proxy of the host's environment belongs in between.
        let http = reqwest::Client::builder()
            .no_proxy()
            .tcp_nodelay(true)
            .connect_timeout(ATTEMPT)
            .build()
            .expect("a client without TLS needs nothing that can be missing");
        let rpc = HttpClient::plaintext();
        Self {
            address,
            access_token: access_token.to_owned(),
            http,
            processes: ProcessClient::new(rpc.clone(), config.clone()),
            background: BackgroundClient::new(rpc.clone(), config.clone()),
            files: FilesystemClient::new(rpc, config),
        }
    }

    /// The agent's address, as the host reaches it.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits until the agent answers, at most `limit`.
    ///
    /// # Errors
    ///
    /// [`AgentError::Silent`] when the time is over.
    pub async fn wait_until_healthy(&self, limit: Duration) -> Result<(), AgentError> {
        let started = Instant::now();
        loop {
            let attempt = self.http.get(self.url("/health")).send();
            match timeout(ATTEMPT, attempt).await {
                Ok(Ok(answer)) if answer.status().is_success() => return Ok(()),
                Ok(_) | Err(_) if started.elapsed() >= limit => {
                    let waited = started.elapsed();
                    return Err(AgentError::Silent { address: self.address, waited });
                }
                Ok(_) | Err(_) => sleep(Duration::from_millis(10)).await,
            }
        }
    }

    /// Tells a guest that was just started or restored who it is: clock, randomness, name,
    /// environment, and the token that this client has. Tries again while the agent cannot be
    /// reached, at most for `limit`. The clock is then right to [`CLOCK_ERROR`], unless the host is
    /// too busy for that.
    ///
    /// # Errors
    ///
    /// Any [`AgentError`]; the guest is not fit for use then.
    pub async fn init(&self, identity: &Identity, limit: Duration) -> Result<(), AgentError> {
        let started = Instant::now();
        let took = loop {
            let asked = Instant::now();
            match self.try_init(identity).await {
                Ok(()) => break asked.elapsed(),
                Err(AgentError::Unreachable { .. }) if started.elapsed() < limit => {
                    sleep(Duration::from_millis(5)).await;
                }
                Err(error) => return Err(error),
            }
        };
        // The first request takes a restored guest in software a tenth of a second, and the clock is
        // behind by as much; the same again takes milliseconds.
        match took <= CLOCK_ERROR {
            true => Ok(()),
            false => self.set_clock().await,
        }
    }

    /// Sets the clock of a guest that stood still. It is then right to [`CLOCK_ERROR`], unless the
    /// host is too busy for that.
    ///
    /// # Errors
    ///
    /// [`AgentError::Unreachable`], [`AgentError::Failed`].
    pub async fn set_clock(&self) -> Result<(), AgentError> {
        for _ in 0..CLOCK_ATTEMPTS {
            let asked = Instant::now();
            let body = serde_json::json!({ "timestamp": timestamp() });
            let answer = self.send(self.http.post(self.url("/init")).json(&body)).await?;
            expect_success(answer).await?;
            if asked.elapsed() <= CLOCK_ERROR {
                break;
            }
        }
        Ok(())
    }

    async fn try_init(&self, identity: &Identity) -> Result<(), AgentError> {
        let mut entropy = [0u8; 64];
        rand::rng().fill_bytes(&mut entropy);
        let body = InitBody {
            env_vars: &identity.envs,
            access_token: &self.access_token,
            timestamp: timestamp(),
            hostname: &identity.hostname,
            nameservers: &identity.nameservers,
            entropy: BASE64_STANDARD.encode(entropy),
        };
        let mut request = self.http.post(self.url("/init")).json(&body);
        if let Some(token) = &identity.known_token {
            request = request.header(ACCESS_TOKEN, token);
        }
        let answer = request.send().await.map_err(|source| self.unreachable(source))?;
        expect_success(answer).await.map(drop)
    }

    /// Has the guest bring to its disk what it has written.
    ///
    /// # Errors
    ///
    /// [`AgentError::Unreachable`], [`AgentError::Failed`].
    pub async fn sync(&self) -> Result<(), AgentError> {
        let answer = self.send(self.http.post(self.url("/sync"))).await?;
        expect_success(answer).await.map(drop)
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    async fn send(
        &self,
        request: reqwest::RequestBuilder,
    ) -> Result<reqwest::Response, AgentError> {
        request
            .header(ACCESS_TOKEN, &self.access_token)
            .send()
            .await
            .map_err(|source| self.unreachable(source))
    }

    /// What the agent's refusal of an rpc means.
    fn refused(&self, error: ConnectError) -> AgentError {
        let message = error.message.clone().unwrap_or_default();
        let status = || error.code.as_str().to_owned();
        match error.code {
            ErrorCode::NotFound => AgentError::NotFound { message },
            ErrorCode::AlreadyExists => AgentError::Conflict { message },
            ErrorCode::InvalidArgument | ErrorCode::FailedPrecondition => {
                AgentError::Invalid { message }
            }
            ErrorCode::ResourceExhausted => AgentError::NoSpace { message },
            ErrorCode::Internal => AgentError::Failed { status: status(), message },
            // It came with the image's snapshot, and lives as long as the sandbox.
            ErrorCode::Unimplemented => AgentError::Failed {
                status: status(),
                message: "it is older than the daemon and cannot do this: make a new sandbox"
                    .into(),
            },
            _ => self.unreachable(error),
        }
    }

    fn unreachable(
        &self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> AgentError {
        AgentError::Unreachable { address: self.address, source: source.into() }
    }
}

/// Now, as `POST /init` takes it.
fn timestamp() -> String {
    Utc::now().to_rfc3339_opts(SecondsFormat::Nanos, true)
}

/// The body of the agent's plain HTTP errors.
#[derive(serde::Deserialize)]
struct ErrorBody {
    message: String,
}

async fn expect_success(answer: reqwest::Response) -> Result<reqwest::Response, AgentError> {
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    if let Some(length) = length_of_refused(&answer) {
        return Err(AgentError::OutOfRange { length });
    }
    let text = answer.text().await.unwrap_or_default();
    let message = match serde_json::from_str::<ErrorBody>(&text) {
        Ok(body) => body.message,
        Err(_) => text,
    };
    Err(match status.as_u16() {
        // Refused by the guest's kernel, whoever asks: nothing that the agent could do better.
        400 | 403 => AgentError::Invalid { message },
        // The agent's other reason for this status is a wrong token, which is no caller's mistake.
        401 if message.starts_with("user not found") => AgentError::Invalid { message },
        404 => AgentError::NotFound { message },
        507 => AgentError::NoSpace { message },
        _ => AgentError::Failed { status: status.to_string(), message },
    })
}

/// How long the file is of which a range was asked for that it does not have.
fn length_of_refused(answer: &reqwest::Response) -> Option<u64> {
    let refused = answer.status() == http::StatusCode::RANGE_NOT_SATISFIABLE;
    let range = answer.headers().get(http::header::CONTENT_RANGE).filter(|_| refused)?;
    range.to_str().ok()?.strip_prefix("bytes */")?.parse().ok()
}
