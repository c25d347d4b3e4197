//! Client of envd, the agent inside a guest.
//!
//! An [`Agent`] belongs to one VM: its connections are pooled with it and die with it, so that no
//! request meant for one guest can reach another that later got the same address.

mod answer;
mod background;
mod error;
mod exec;
mod files;
mod follow;
mod port;
mod process;
mod transport;
mod tree;
mod watch;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use chrono::{SecondsFormat, Utc};
use nestbox_proto::background::BackgroundClient;
use nestbox_proto::filesystem::FilesystemClient;
use nestbox_proto::process::ProcessClient;
use rand::RngCore;
use serde::Serialize;
use tokio::time::{Instant, sleep, timeout};

use self::answer::expect_success;
use self::transport::Transport;
pub use background::{Begin, Following};

pub use crate::domain::port::AGENT_PORT;
pub use error::AgentError;
pub use files::FileStream;
pub use follow::ExecChannels;
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

/// How long an agent may take for what it does at once, on a host with too much to do.
const QUICK: Duration = Duration::from_secs(60);

/// How long an agent may take for what the guest's disk may make long.
const LONG: Duration = Duration::from_secs(600);

/// What a guest is told about itself after every start.
#[derive(Debug, Clone, Default)]
pub struct Identity {
    /// Host name inside the guest.
    pub hostname: String,
    /// Environment of every process that users start.
    pub envs: BTreeMap<String, String>,
    /// Resolvers for `/etc/resolv.conf`.
    pub nameservers: Vec<Ipv4Addr>,
    /// What its agent expects until it is told, if it was told before.
    pub known_token: Option<String>,
}

/// What is absent stays as it is.
#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct InitBody<'a> {
    timestamp: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    env_vars: Option<&'a BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    access_token: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hostname: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nameservers: Option<&'a [Ipv4Addr]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    entropy: Option<String>,
}

/// A client of the agent in one guest.
#[derive(Clone)]
pub struct Agent {
    address: SocketAddr,
    access_token: String,
    http: reqwest::Client,
    processes: ProcessClient<Transport>,
    background: BackgroundClient<Transport>,
    files: FilesystemClient<Transport>,
}

impl Agent {
    /// Makes a client; connects at the first request.
    ///
    /// `access_token` is what the guest expects once [`Agent::init`] or [`Agent::claim`] has told it.
    pub fn new(address: SocketAddr, access_token: &str) -> Self {
        let base = format!("http://{address}").parse().expect("a socket address makes a URI");
        let config = Transport::config(base, ACCESS_TOKEN, access_token);
        // A guest is one hop away and answers at once or not at all: small writes must not wait for
        // each other, and no proxy of the host's environment belongs in between. Nor is it the guest
        // that says where the host connects to.
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .tcp_nodelay(true)
            .connect_timeout(ATTEMPT)
            .build()
            .expect("a client without TLS needs nothing that can be missing");
        let rpc = Transport::new();
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

    /// Has a guest that was just booted expect the token that this client has, with every request from
    /// now on. Until then it does nothing for anybody.
    ///
    /// # Errors
    ///
    /// Any [`AgentError`]; somebody else may have been quicker.
    pub async fn claim(&self) -> Result<(), AgentError> {
        let token = Some(self.access_token.as_str());
        let body = InitBody { timestamp: timestamp(), access_token: token, ..InitBody::default() };
        self.ask(QUICK, self.http.post(self.url("/init")).json(&body)).await.map(drop)
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
            let left = limit.saturating_sub(started.elapsed());
            match self.within(left, self.try_init(identity)).await? {
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
    /// [`AgentError::Unreachable`], [`AgentError::Silent`], [`AgentError::Failed`].
    pub async fn set_clock(&self) -> Result<(), AgentError> {
        for _ in 0..CLOCK_ATTEMPTS {
            let asked = Instant::now();
            let body = InitBody { timestamp: timestamp(), ..InitBody::default() };
            self.ask(QUICK, self.http.post(self.url("/init")).json(&body)).await?;
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
            timestamp: timestamp(),
            env_vars: Some(&identity.envs),
            access_token: Some(&self.access_token),
            hostname: Some(&identity.hostname),
            nameservers: Some(&identity.nameservers),
            entropy: Some(BASE64_STANDARD.encode(entropy)),
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
    /// [`AgentError::Unreachable`], [`AgentError::Silent`], [`AgentError::Failed`].
    pub async fn sync(&self) -> Result<(), AgentError> {
        self.ask(LONG, self.http.post(self.url("/sync"))).await.map(drop)
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Sends a request; gives its answer if that is a success, and has begun in time.
    async fn ask(
        &self,
        limit: Duration,
        request: reqwest::RequestBuilder,
    ) -> Result<reqwest::Response, AgentError> {
        self.within(limit, async { expect_success(self.send(request).await?).await }).await?
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
}

/// Now, as `POST /init` takes it.
fn timestamp() -> String {
    Utc::now().to_rfc3339_opts(SecondsFormat::Nanos, true)
}

#[cfg(test)]
mod hostile_tests;
