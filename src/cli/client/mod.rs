//! The REST API as the command line uses it.

mod body;
mod files;
mod session;
mod stream;
mod tls;
mod transport;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::HeaderValue;
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use rustls::ClientConfig;
use serde::de::DeserializeOwned;

use super::discover::{Daemon, Way};
use super::peer::PeerError;
use super::url::{self, UrlError};
use crate::domain::egress::Policy;
use crate::domain::lifecycle::ENDED;
use body::{Cleared, Envelope, Inner, Page, Processes};
use tls::TlsError;

pub(super) use body::{
    BackgroundRequest, CreateRequest, Entry, Event, EventMessage, EventNotice, EventPage,
    EventQuery, ExecAnswer, ExecRequest, Forked, Keys, ListQuery, NetworkRequest, NewKey, Process,
    RateLimitsRequest, Sample, Sandbox, Snapshot, SnapshotRequest, Span, Started, Storage, Tracing,
    Usage,
};
pub(super) use files::There;
pub(super) use session::{
    Closing, Data, Heard, Listener, SessionMessage, SessionRequest, Size, Speaker, StartRequest,
};
pub(super) use stream::{Socket, Stream};

/// Rows asked for in one request of a list.
const PAGE: u32 = 100;

/// How long a daemon may take to take a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// Talks to one daemon with one key.
pub(super) struct Client {
    http: reqwest::Client,
    base: Url,
    key: HeaderValue,
    /// The daemon's URL as it was given, for messages.
    url: String,
    way: Way,
    /// If it is spoken.
    tls: Option<Arc<ClientConfig>>,
}

/// A request was not answered as it should have been.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    #[error(transparent)]
    Url(#[from] UrlError),
    #[error("the api key has characters that no key has")]
    BadKey,
    #[error("cannot set up the http client")]
    SetUp(#[source] reqwest::Error),
    #[error("cannot reach the daemon at {url}: is it running?")]
    Unreachable { url: String, source: reqwest::Error },
    #[error("cannot reach the daemon at {url}: is it running?")]
    NoConnection { url: String, source: io::Error },
    #[error("the connection to the daemon at {url} broke")]
    Broken { url: String, source: reqwest::Error },
    #[error("the connection to the daemon at {url} broke")]
    Lost { url: String, source: hyper::Error },
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// The daemon refused, in its own words.
    #[error("{message}")]
    Refused { status: StatusCode, message: String },
    /// The daemon failed; its log has more under the request's id.
    #[error("{message} (request {request_id} in the daemon's log)")]
    Failed { message: String, request_id: String },
    #[error("the stream from the daemon at {url} broke")]
    NoStream { url: String, source: tokio_tungstenite::tungstenite::Error },
    #[error("{url} answered {status}, but not in nestbox's way")]
    NotNestbox { url: String, status: StatusCode },
    #[error("the daemon's answer cannot be read")]
    BadAnswer(#[source] serde_json::Error),
    #[error("the daemon's answer holds bad base64")]
    BadBase64(#[source] base64::DecodeError),
}

impl Client {
    /// Prepares requests to a daemon; connects to nothing yet.
    ///
    /// # Errors
    ///
    /// [`ClientError::Url`], [`ClientError::BadKey`], [`ClientError::Tls`], [`ClientError::SetUp`].
    pub fn new(daemon: Daemon) -> Result<Self, ClientError> {
        let mut base = url::parse(&daemon.url)?;
        // A base without a final slash would lose its last part when joined.
        let path = format!("{}/v1/", base.path().trim_end_matches('/'));
        base.set_path(&path);
        let mut key = HeaderValue::from_str(&daemon.api_key).map_err(|_| ClientError::BadKey)?;
        key.set_sensitive(true);
        let http = reqwest::Client::builder()
            // A redirect would carry the key to somewhere else.
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_LIMIT);
        // A proxy of the environment would get the key, and leads to another machine anyway.
        let given = matches!(daemon.way, Way::Given { .. });
        let http = match !given || url::is_loopback(&base) {
            true => http.no_proxy(),
            false => http,
        };
        let tls = match &daemon.way {
            Way::Given { ca } if base.scheme() == "https" => {
                Some(Arc::new(tls::config(ca.as_deref())?))
            }
            _ => None,
        };
        let http = http.build().map_err(ClientError::SetUp)?;
        Ok(Self { http, base, key, url: daemon.url, way: daemon.way, tls })
    }

    /// Creates a sandbox; waits until it runs.
    pub async fn create(
        &self,
        request: &CreateRequest,
        idempotency_key: Option<&str>,
        tracing: Tracing,
    ) -> Result<Sandbox, ClientError> {
        let mut builder = self.operation(&["sandboxes"], tracing).json(request);
        if let Some(key) = idempotency_key {
            builder = builder.header("Idempotency-Key", key);
        }
        self.json(builder).await
    }

    /// Lists all sandboxes that the query asks for, newest first.
    pub async fn list(&self, query: &ListQuery) -> Result<Vec<Sandbox>, ClientError> {
        let states = query.states.iter().map(|state| state.as_str()).collect::<Vec<_>>();
        let mut filter = vec![("state", states.join(","))];
        filter.extend(query.metadata.iter().map(|(k, v)| ("metadata", format!("{k}={v}"))));
        self.all_pages("sandboxes", &filter).await
    }

    /// Has the daemon forget the sandboxes that have ended; gives their number.
    pub async fn clear(&self) -> Result<u64, ClientError> {
        let request = self.request(Method::DELETE, &["sandboxes"]).query(&[("state", ENDED)]);
        self.json::<Cleared>(request).await.map(|cleared| cleared.cleared)
    }

    /// Gives one sandbox.
    pub async fn get(&self, id: &str) -> Result<Sandbox, ClientError> {
        self.json(self.request(Method::GET, &["sandboxes", id])).await
    }

    /// Destroys a sandbox; it is no error when it is gone already.
    pub async fn destroy(&self, id: &str) -> Result<(), ClientError> {
        match self.send(self.request(Method::DELETE, &["sandboxes", id])).await {
            Err(ClientError::Refused { status: StatusCode::NOT_FOUND, .. }) => Ok(()),
            other => other.map(drop),
        }
    }

    /// Says what a sandbox may reach.
    pub async fn network(&self, id: &str) -> Result<Policy, ClientError> {
        self.json(self.request(Method::GET, &["sandboxes", id, "network"])).await
    }

    /// Changes what a sandbox may reach.
    pub async fn set_network(
        &self,
        id: &str,
        wanted: &NetworkRequest,
    ) -> Result<Policy, ClientError> {
        self.json(self.request(Method::PUT, &["sandboxes", id, "network"]).json(wanted)).await
    }

    /// Freezes a sandbox to disk; it is no error when it is frozen already.
    pub async fn pause(&self, id: &str, tracing: Tracing) -> Result<Sandbox, ClientError> {
        self.json(self.operation(&["sandboxes", id, "pause"], tracing)).await
    }

    /// Lets a frozen sandbox go on; it is no error when it runs.
    pub async fn resume(&self, id: &str, tracing: Tracing) -> Result<Sandbox, ClientError> {
        self.json(self.operation(&["sandboxes", id, "resume"], tracing)).await
    }

    /// Says that a sandbox is still wanted: it is destroyed if that is not said again within so many
    /// seconds.
    pub async fn renew_lease(&self, id: &str, lease_sec: u32) -> Result<(), ClientError> {
        let body = serde_json::json!({ "lease_sec": lease_sec });
        self.send(self.request(Method::PUT, &["sandboxes", id, "lease"]).json(&body))
            .await
            .map(drop)
    }

    /// Has a sandbox live on without us.
    pub async fn end_lease(&self, id: &str) -> Result<(), ClientError> {
        self.send(self.request(Method::DELETE, &["sandboxes", id, "lease"])).await.map(drop)
    }

    /// Makes `count` copies of a running sandbox; waits until they run.
    pub async fn fork(
        &self,
        id: &str,
        count: u32,
        lease_sec: Option<u32>,
        tracing: Tracing,
    ) -> Result<Forked, ClientError> {
        let mut body = serde_json::json!({ "count": count });
        if let Some(lease_sec) = lease_sec {
            body["lease_sec"] = lease_sec.into();
        }
        self.json(self.operation(&["sandboxes", id, "fork"], tracing).json(&body)).await
    }

    /// Takes a snapshot of a sandbox.
    pub async fn create_snapshot(
        &self,
        request: &SnapshotRequest,
    ) -> Result<Snapshot, ClientError> {
        self.json(self.request(Method::POST, &["snapshots"]).json(request)).await
    }

    /// Lists all snapshots, newest first.
    pub async fn snapshots(&self) -> Result<Vec<Snapshot>, ClientError> {
        self.all_pages("snapshots", &[]).await
    }

    /// Removes a snapshot.
    pub async fn remove_snapshot(&self, name: &str) -> Result<(), ClientError> {
        self.send(self.request(Method::DELETE, &["snapshots", name])).await.map(drop)
    }

    /// What a sandbox takes of its host.
    pub async fn usage(&self, id: &str) -> Result<Usage, ClientError> {
        self.json(self.request(Method::GET, &["sandboxes", id, "metrics"])).await
    }

    /// The last events, the oldest first.
    pub async fn last_events(
        &self,
        query: &EventQuery,
        count: u32,
    ) -> Result<Vec<Event>, ClientError> {
        if count == 0 {
            return Ok(Vec::new());
        }
        let request = self.request(Method::GET, &["events"]);
        let page: EventPage =
            self.json(request.query(&query.pairs()).query(&[("limit", count)])).await?;
        Ok(page.events.into_iter().rev().collect())
    }

    /// A page of what came after the event that the query names, the oldest first.
    pub async fn events_after(
        &self,
        query: &EventQuery,
        cursor: Option<&str>,
    ) -> Result<EventPage, ClientError> {
        let query = match cursor {
            // It says where it goes on.
            Some(_) => &EventQuery { after: None, ..query.clone() },
            None => query,
        };
        let request = self.request(Method::GET, &["events"]).query(&query.pairs());
        self.json(request.query(&cursor.map(|cursor| ("cursor", cursor)).as_slice())).await
    }

    /// Follows what happens after the event that the query names, or from now on.
    pub async fn follow_events(&self, query: &EventQuery) -> Result<Stream, ClientError> {
        self.stream(&["events"], &query.pairs()).await
    }

    /// Runs a command in a sandbox and waits for its end.
    pub async fn exec(&self, id: &str, request: &ExecRequest) -> Result<ExecAnswer, ClientError> {
        self.json(self.request(Method::POST, &["sandboxes", id, "exec"]).json(request)).await
    }

    /// Starts a command in the background of a sandbox.
    pub async fn exec_background(
        &self,
        id: &str,
        request: &BackgroundRequest,
    ) -> Result<Started, ClientError> {
        self.json(self.request(Method::POST, &["sandboxes", id, "exec"]).json(request)).await
    }

    /// Lists what runs in the background of a sandbox, or did.
    pub async fn processes(&self, id: &str) -> Result<Vec<Process>, ClientError> {
        let list: Processes =
            self.json(self.request(Method::GET, &["sandboxes", id, "processes"])).await?;
        Ok(list.processes)
    }

    /// Ends a process; waits until it has ended.
    pub async fn stop_process(&self, id: &str, process: &str) -> Result<(), ClientError> {
        let path = ["sandboxes", id, "processes", process];
        self.send(self.request(Method::DELETE, &path)).await.map(drop)
    }

    /// Makes an API key.
    pub async fn create_key(&self, name: &str) -> Result<NewKey, ClientError> {
        let body = serde_json::json!({ "name": name });
        self.json(self.request(Method::POST, &["api-keys"]).json(&body)).await
    }

    /// Lists the API keys.
    pub async fn keys(&self) -> Result<Keys, ClientError> {
        self.json(self.request(Method::GET, &["api-keys"])).await
    }

    /// Deletes an API key.
    pub async fn delete_key(&self, id: &str) -> Result<(), ClientError> {
        self.send(self.request(Method::DELETE, &["api-keys", id])).await.map(drop)
    }

    /// A request for something that takes its time.
    fn operation(&self, path: &[&str], tracing: Tracing) -> RequestBuilder {
        let request = self.request(Method::POST, path);
        match tracing {
            Tracing::Off => request,
            Tracing::On => request.query(&[("trace", "true")]),
        }
    }

    async fn all_pages<T: DeserializeOwned>(
        &self,
        collection: &str,
        filter: &[(&str, String)],
    ) -> Result<Vec<T>, ClientError> {
        let mut items = Vec::new();
        let mut cursor: Option<String> = None;
        loop {
            let mut request =
                self.request(Method::GET, &[collection]).query(&[("limit", PAGE)]).query(filter);
            if let Some(cursor) = &cursor {
                request = request.query(&[("cursor", cursor)]);
            }
            let page: Page<T> = self.json(request).await?;
            items.extend(page.items);
            match page.next_cursor {
                Some(next) => cursor = Some(next),
                None => return Ok(items),
            }
        }
    }

    fn request(&self, method: Method, path: &[&str]) -> RequestBuilder {
        self.request_at(method, self.url_of(path))
    }

    fn request_at(&self, method: Method, url: Url) -> RequestBuilder {
        self.http.request(method, url).header("x-api-key", self.key.clone())
    }

    fn url_of(&self, path: &[&str]) -> Url {
        let mut url = self.base.clone();
        // Each part is encoded by itself: an id from the command line cannot leave its place.
        url.path_segments_mut()
            .expect("the base was checked when it was parsed")
            .pop_if_empty()
            .extend(path);
        url
    }

    async fn json<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, ClientError> {
        let response = self.send(request).await?;
        let body = response.bytes().await.map_err(|error| self.broken(error))?;
        serde_json::from_slice(&body).map_err(ClientError::BadAnswer)
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, ClientError> {
        let request = request.build().map_err(|error| self.broken(error))?;
        let response = self.transmit(request).await?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = response.bytes().await.map_err(|error| self.broken(error))?;
        Err(answered(&self.url, status, &body))
    }

    fn broken(&self, error: reqwest::Error) -> ClientError {
        let url = self.url.clone();
        let source = error.without_url();
        if source.is_connect() {
            ClientError::Unreachable { url, source }
        } else {
            ClientError::Broken { url, source }
        }
    }
}

/// The error that a daemon answered.
fn answered(url: &str, status: StatusCode, body: &[u8]) -> ClientError {
    match serde_json::from_slice(body) {
        Ok(Envelope { error: Inner { message, request_id: None } }) => {
            ClientError::Refused { status, message }
        }
        Ok(Envelope { error: Inner { message, request_id: Some(request_id) } }) => {
            ClientError::Failed { message, request_id }
        }
        Err(_) => ClientError::NotNestbox { url: url.to_owned(), status },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(url: &str) -> Result<Client, ClientError> {
        let (url, api_key) = (url.to_owned(), "key".to_owned());
        Client::new(Daemon { url, api_key, way: Way::Given { ca: None } })
    }

    #[test]
    fn paths_are_joined_below_the_url() {
        for (url, want) in [
            ("http://127.0.0.1:80", "http://127.0.0.1/v1/sandboxes/a"),
            ("http://127.0.0.1:8080/", "http://127.0.0.1:8080/v1/sandboxes/a"),
            ("http://host/nest/box?x=1", "http://host/nest/box/v1/sandboxes/a"),
            ("https://host/v1", "https://host/v1/sandboxes/a"),
        ] {
            let request = client(url).unwrap().request(Method::GET, &["sandboxes", "a"]);
            assert_eq!(request.build().unwrap().url().as_str(), want);
        }
    }

    #[test]
    fn an_id_cannot_leave_its_place() {
        let client = client("http://host").unwrap();
        let request = client.request(Method::DELETE, &["sandboxes", "../api-keys/1?x#y"]);
        let url = request.build().unwrap().url().to_string();
        assert_eq!(url, "http://host/v1/sandboxes/..%2Fapi-keys%2F1%3Fx%23y");
    }

    #[test]
    fn args_are_sent_even_when_there_are_none() {
        let request = ExecRequest { cmd: "true".to_owned(), ..ExecRequest::default() };
        let json = serde_json::to_string(&request).unwrap();
        assert_eq!(json, r#"{"cmd":"true","args":[]}"#);
    }
}
