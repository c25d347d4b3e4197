//! The REST API, as far as it is measured.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use reqwest::{Method, Response, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Nothing that is measured takes as long; a daemon that hangs must not keep the benchmark.
const REQUEST_LIMIT: Duration = Duration::from_secs(120);

/// A client of one daemon.
pub struct Client {
    url: String,
    http: reqwest::Client,
}

/// What came of a create.
pub enum Created {
    /// A sandbox that runs.
    Sandbox(String),
    /// The host has no room for another one.
    NoRoom(String),
}

/// One step of an operation.
#[derive(Debug, Deserialize)]
pub struct Span {
    pub span: String,
    pub start_ms: f64,
    pub took_ms: f64,
}

#[derive(Deserialize)]
struct Sandbox {
    id: String,
}

#[derive(Deserialize)]
struct Sandboxes {
    sandboxes: Vec<Sandbox>,
    #[serde(default)]
    trace: Vec<Span>,
}

impl Client {
    pub fn new(url: &str, key: &str) -> Result<Self> {
        let mut headers = reqwest::header::HeaderMap::new();
        headers.insert("x-api-key", key.parse()?);
        let http = reqwest::Client::builder().no_proxy().default_headers(headers);
        Ok(Self { url: format!("{url}/v1"), http: http.timeout(REQUEST_LIMIT).build()? })
    }

    pub async fn create(&self) -> Result<String> {
        match self.try_create().await? {
            Created::Sandbox(id) => Ok(id),
            Created::NoRoom(why) => bail!("create was refused: {why}"),
        }
    }

    pub async fn try_create(&self) -> Result<Created> {
        let answer = self.send(Method::POST, "/sandboxes", Some(json!({}))).await?;
        if answer.status() == StatusCode::SERVICE_UNAVAILABLE {
            return Ok(Created::NoRoom(answer.text().await?));
        }
        Ok(Created::Sandbox(read::<Sandbox>(answer).await?.id))
    }

    pub async fn list(&self) -> Result<Vec<String>> {
        let answer = self.send(Method::GET, "/sandboxes?limit=1000", None).await?;
        let answer: Sandboxes = read(answer).await?;
        Ok(answer.sandboxes.into_iter().map(|sandbox| sandbox.id).collect())
    }

    pub async fn destroy(&self, id: &str) -> Result<()> {
        let answer = self.send(Method::DELETE, &format!("/sandboxes/{id}"), None).await?;
        checked(answer).await.map(drop)
    }

    pub async fn pause(&self, id: &str) -> Result<()> {
        let answer = self.send(Method::POST, &format!("/sandboxes/{id}/pause"), None).await?;
        checked(answer).await.map(drop)
    }

    pub async fn resume(&self, id: &str) -> Result<()> {
        let answer = self.send(Method::POST, &format!("/sandboxes/{id}/resume"), None).await?;
        checked(answer).await.map(drop)
    }

    /// Makes one child; gives it, and where the time went.
    pub async fn fork(&self, id: &str) -> Result<(String, Vec<Span>)> {
        let path = format!("/sandboxes/{id}/fork?trace=true");
        let answer: Sandboxes = read(self.send(Method::POST, &path, None).await?).await?;
        let child = answer.sandboxes.into_iter().next().context("a fork without children")?;
        Ok((child.id, answer.trace))
    }

    /// Runs a line for the shell and gives its exit code.
    pub async fn shell(&self, id: &str, line: &str) -> Result<i64> {
        self.exec(id, json!({"cmd": line})).await
    }

    pub async fn exec_true(&self, id: &str) -> Result<()> {
        match self.exec(id, json!({"cmd": "true", "args": []})).await? {
            0 => Ok(()),
            code => bail!("true ended with {code}"),
        }
    }

    async fn exec(&self, id: &str, body: Value) -> Result<i64> {
        let path = format!("/sandboxes/{id}/exec");
        let answer: Value = read(self.send(Method::POST, &path, Some(body)).await?).await?;
        answer["exit_code"].as_i64().context("an exec without an exit code")
    }

    async fn send(&self, method: Method, path: &str, body: Option<Value>) -> Result<Response> {
        let mut request = self.http.request(method, format!("{}{path}", self.url));
        if let Some(body) = body {
            request = request.json(&body);
        }
        Ok(request.send().await?)
    }
}

async fn read<T: DeserializeOwned>(answer: Response) -> Result<T> {
    Ok(checked(answer).await?.json().await?)
}

async fn checked(answer: Response) -> Result<Response> {
    match answer.status() {
        status if status.is_success() => Ok(answer),
        status => bail!("{} answered {status}: {}", answer.url().clone(), answer.text().await?),
    }
}
