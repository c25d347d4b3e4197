//! The rpcs of `filesystem.Filesystem`.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use connectrpc::{
    ConnectError, Encodable, RequestContext, Response, ServiceRequest, ServiceResult, ServiceStream,
};
use futures::{Stream, StreamExt};
use http::HeaderMap;
use nestbox_proto::filesystem as wire;
use nestbox_proto::filesystem::watch_dir_response::{Event, KeepAlive, StartEvent};
use nestbox_proto::filesystem::{EntryInfo, EventType, FilesystemEvent};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::agent::keepalive;
use crate::agent::rights;
use crate::agent::settings::{Context, RequestError};
use crate::agent::users::User;

use super::entry;
use super::tree::{self, Owner, TreeError};
use super::watch::{Change, Network, Reach, Watch, WatchError};

/// Watchers that callers have made and not removed.
const WATCHERS: usize = 256;

/// The guest's files.
pub struct Files {
    context: Arc<Context>,
    watchers: Mutex<HashMap<String, Watcher>>,
    made: AtomicU64,
}

/// A watch that collects until its caller asks. Dropping it stops the task that drains inotify.
struct Watcher {
    watch: Arc<Watch>,
    entries: Entries,
    _collecting: DropGuard,
}

/// Whether events describe what they are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Entries {
    Included,
    Left,
}

impl From<bool> for Entries {
    fn from(include: bool) -> Self {
        if include { Self::Included } else { Self::Left }
    }
}

impl From<TreeError> for ConnectError {
    fn from(error: TreeError) -> Self {
        let message = error.to_string();
        match error {
            TreeError::NotFound { .. } => ConnectError::not_found(message),
            TreeError::DirectoryExists { .. } | TreeError::InTheWay { .. } => {
                ConnectError::already_exists(message)
            }
            TreeError::Refused { .. } => ConnectError::failed_precondition(message),
            TreeError::NotDirectory { .. } | TreeError::Root | TreeError::IntoItself { .. } => {
                ConnectError::invalid_argument(message)
            }
            TreeError::Full | TreeError::TooMuch { .. } => {
                ConnectError::resource_exhausted(message)
            }
            TreeError::Other { .. } => ConnectError::internal(message),
        }
    }
}

impl From<WatchError> for ConnectError {
    fn from(error: WatchError) -> Self {
        let message = error.to_string();
        match error {
            WatchError::NotFound { .. } => ConnectError::not_found(message),
            WatchError::NotDirectory { .. } | WatchError::Network { .. } => {
                ConnectError::invalid_argument(message)
            }
            WatchError::Refused { .. } => ConnectError::failed_precondition(message),
            WatchError::TooMany => ConnectError::resource_exhausted(message),
            WatchError::Lost => ConnectError::data_loss(message),
            WatchError::Other { .. } => ConnectError::internal(message),
        }
    }
}

impl Files {
    /// Starts without watchers.
    pub fn new(context: Arc<Context>) -> Self {
        Self { context, watchers: Mutex::default(), made: AtomicU64::new(1) }
    }

    fn request(
        &self,
        headers: &HeaderMap,
        path: &str,
        raw: &[u8],
    ) -> Result<(Arc<User>, PathBuf), RequestError> {
        let user = self.context.user_of(headers)?;
        let path = self.context.path(name(path, raw), &user)?;
        Ok((user, path))
    }

    /// Does what may wait for a disk, away from the runtime's thread and with the user's rights.
    async fn blocking<T, F>(&self, user: Arc<User>, work: F) -> Result<T, ConnectError>
    where
        T: Send + 'static,
        F: FnOnce(&Context) -> Result<T, TreeError> + Send + 'static,
    {
        let context = Arc::clone(&self.context);
        let work = move || rights::with(&user, || work(&context));
        match tokio::task::spawn_blocking(work).await {
            Ok(Ok(done)) => done.map_err(ConnectError::from),
            Ok(Err(error)) => Err(ConnectError::internal(error.to_string())),
            Err(error) => Err(ConnectError::internal(error.to_string())),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Watcher>> {
        self.watchers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A name as bytes, which it also is where it is no text.
fn name<'a>(text: &'a str, raw: &'a [u8]) -> &'a OsStr {
    if raw.is_empty() { text.as_ref() } else { OsStr::from_bytes(raw) }
}

fn owner(user: &User) -> Owner {
    Owner { uid: user.uid, gid: user.gid }
}

fn describe(path: &Path, context: &Context) -> Result<EntryInfo, TreeError> {
    entry::describe(path, &context.users)
        .map_err(|error| TreeError::from_io("cannot look at", path, error))
}

fn watcher_not_found(id: &str) -> ConnectError {
    ConnectError::not_found(format!("watcher with id {id} not found"))
}

fn network(allowed: bool) -> Network {
    if allowed { Network::Allowed } else { Network::Refused }
}

fn reach(recursive: bool) -> Reach {
    if recursive { Reach::Below } else { Reach::Here }
}

/// Sets up a watch away from the runtime's thread: a tree may be large.
async fn watch(
    user: Arc<User>,
    path: PathBuf,
    reach: Reach,
    network: Network,
) -> Result<Watch, ConnectError> {
    let watch = tokio::task::spawn_blocking(move || Watch::new(user, &path, reach, network)).await;
    Ok(watch.map_err(|error| ConnectError::internal(error.to_string()))??)
}

fn event(change: Change, root: &Path, entries: Entries, context: &Context) -> FilesystemEvent {
    let name = match change.path.strip_prefix(root) {
        Ok(rest) if !rest.as_os_str().is_empty() => rest.as_os_str(),
        _ => OsStr::new("."),
    };
    // After a removal or a move, whatever is at that path is something else.
    let still_there = match change.kind {
        EventType::EVENT_TYPE_CREATE
        | EventType::EVENT_TYPE_WRITE
        | EventType::EVENT_TYPE_CHMOD => true,
        EventType::EVENT_TYPE_UNSPECIFIED
        | EventType::EVENT_TYPE_REMOVE
        | EventType::EVENT_TYPE_RENAME => false,
    };
    let entry = (still_there && entries == Entries::Included)
        .then(|| entry::describe(&change.path, &context.users).ok())
        .flatten();
    FilesystemEvent {
        name: name.to_string_lossy().into_owned(),
        raw_name: entry::raw(name),
        r#type: change.kind.into(),
        entry: entry.into(),
    }
}

impl wire::Filesystem for Files {
    async fn stat<'a>(
        &'a self,
        context: RequestContext,
        request: ServiceRequest<'_, wire::StatRequest>,
    ) -> ServiceResult<impl Encodable<wire::StatResponse> + Send + use<'a>> {
        let (user, path) = self.request(context.headers(), request.path, request.raw_path)?;
        let entry = self.blocking(user, move |context| describe(&path, context)).await?;
        Response::ok(wire::StatResponse { entry: entry.into() })
    }

    async fn make_dir<'a>(
        &'a self,
        context: RequestContext,
        request: ServiceRequest<'_, wire::MakeDirRequest>,
    ) -> ServiceResult<impl Encodable<wire::MakeDirResponse> + Send + use<'a>> {
        let (user, path) = self.request(context.headers(), request.path, request.raw_path)?;
        let owner = owner(&user);
        let make = move |context: &Context| {
            tree::make_dir(&path, owner)?;
            describe(&path, context)
        };
        let entry = self.blocking(user, make).await?;
        Response::ok(wire::MakeDirResponse { entry: entry.into() })
    }

    async fn r#move<'a>(
        &'a self,
        context: RequestContext,
        request: ServiceRequest<'_, wire::MoveRequest>,
    ) -> ServiceResult<impl Encodable<wire::MoveResponse> + Send + use<'a>> {
        let (user, source) = self.request(context.headers(), request.source, request.raw_source)?;
        let destination =
            self.context.path(name(request.destination, request.raw_destination), &user)?;
        let owner = owner(&user);
        let rename = move |context: &Context| {
            tree::rename(&source, &destination, owner)?;
            describe(&destination, context)
        };
        let entry = self.blocking(user, rename).await?;
        Response::ok(wire::MoveResponse { entry: entry.into() })
    }

    async fn list_dir<'a>(
        &'a self,
        context: RequestContext,
        request: ServiceRequest<'_, wire::ListDirRequest>,
    ) -> ServiceResult<impl Encodable<wire::ListDirResponse> + Send + use<'a>> {
        let (user, path) = self.request(context.headers(), request.path, request.raw_path)?;
        let depth = request.depth;
        let list = move |context: &Context| {
            let paths = tree::list(&path, depth)?;
            // What is gone since it was listed is left out.
            Ok(paths.iter().filter_map(|path| describe(path, context).ok()).collect())
        };
        let entries = self.blocking(user, list).await?;
        Response::ok(wire::ListDirResponse { entries })
    }

    async fn remove<'a>(
        &'a self,
        context: RequestContext,
        request: ServiceRequest<'_, wire::RemoveRequest>,
    ) -> ServiceResult<impl Encodable<wire::RemoveResponse> + Send + use<'a>> {
        let (user, path) = self.request(context.headers(), request.path, request.raw_path)?;
        self.blocking(user, move |_| tree::remove(&path)).await?;
        Response::ok(wire::RemoveResponse::default())
    }

    async fn watch_dir(
        &self,
        context: RequestContext,
        request: ServiceRequest<'_, wire::WatchDirRequest>,
    ) -> ServiceResult<ServiceStream<impl Encodable<wire::WatchDirResponse> + Send + use<>>> {
        let (user, path) = self.request(context.headers(), request.path, request.raw_path)?;
        let network = network(request.allow_network_mounts);
        let watch = watch(user, path, reach(request.recursive), network).await?;
        let interval = keepalive::interval(context.headers());
        let entries = request.include_entry.into();
        let shared = Arc::clone(&self.context);
        Response::stream_ok(
            events(watch, entries, shared, interval)
                .map(|event| Ok(wire::WatchDirResponse { event: Some(event?) })),
        )
    }

    async fn create_watcher<'a>(
        &'a self,
        context: RequestContext,
        request: ServiceRequest<'_, wire::CreateWatcherRequest>,
    ) -> ServiceResult<impl Encodable<wire::CreateWatcherResponse> + Send + use<'a>> {
        let (user, path) = self.request(context.headers(), request.path, request.raw_path)?;
        let network = network(request.allow_network_mounts);
        if self.lock().len() >= WATCHERS {
            return Err(WatchError::TooMany.into());
        }
        let watch = Arc::new(watch(user, path, reach(request.recursive), network).await?);
        let collecting = CancellationToken::new();
        tokio::spawn(collecting.clone().run_until_cancelled_owned(collect(Arc::clone(&watch))));
        let watcher = Watcher {
            watch,
            entries: request.include_entry.into(),
            _collecting: collecting.drop_guard(),
        };
        let watcher_id = format!("w{}", self.made.fetch_add(1, Ordering::Relaxed));
        self.lock().insert(watcher_id.clone(), watcher);
        Response::ok(wire::CreateWatcherResponse { watcher_id })
    }

    async fn get_watcher_events<'a>(
        &'a self,
        _context: RequestContext,
        request: ServiceRequest<'_, wire::GetWatcherEventsRequest>,
    ) -> ServiceResult<impl Encodable<wire::GetWatcherEventsResponse> + Send + use<'a>> {
        let (watch, entries) = {
            let watchers = self.lock();
            let watcher = watchers
                .get(request.watcher_id)
                .ok_or_else(|| watcher_not_found(request.watcher_id))?;
            (Arc::clone(&watcher.watch), watcher.entries)
        };
        let events = described(watch, entries, Arc::clone(&self.context)).await?;
        Response::ok(wire::GetWatcherEventsResponse { events })
    }

    async fn remove_watcher<'a>(
        &'a self,
        _context: RequestContext,
        request: ServiceRequest<'_, wire::RemoveWatcherRequest>,
    ) -> ServiceResult<impl Encodable<wire::RemoveWatcherResponse> + Send + use<'a>> {
        match self.lock().remove(request.watcher_id) {
            Some(_) => Response::ok(wire::RemoveWatcherResponse::default()),
            None => Err(watcher_not_found(request.watcher_id)),
        }
    }
}

/// Keeps inotify's own small queue empty, and new directories watched, while nobody asks.
async fn collect(watch: Arc<Watch>) {
    loop {
        watch.ready().await;
    }
}

/// What a stream of changes sends: that it has begun, then changes, and keepalives when idle.
fn events(
    watch: Watch,
    entries: Entries,
    context: Arc<Context>,
    interval: Duration,
) -> impl Stream<Item = Result<Event, ConnectError>> + Send + use<> {
    let started = futures::stream::once(std::future::ready(Ok(StartEvent::default().into())));
    let changes = futures::stream::unfold(Some(Arc::new(watch)), move |watch| {
        let context = Arc::clone(&context);
        async move {
            let watch = watch?;
            let batch = match tokio::time::timeout(interval, watch.ready()).await {
                Err(_) => vec![Ok(KeepAlive::default().into())],
                Ok(()) => match described(Arc::clone(&watch), entries, context).await {
                    Ok(events) => events.into_iter().map(|event| Ok(event.into())).collect(),
                    Err(error) => return Some((vec![Err(error)], None)),
                },
            };
            Some((batch, Some(watch)))
        }
    });
    started.chain(changes.map(futures::stream::iter).flatten())
}

/// Takes what has changed, and looks at it away from the runtime's thread.
async fn described(
    watch: Arc<Watch>,
    entries: Entries,
    context: Arc<Context>,
) -> Result<Vec<FilesystemEvent>, ConnectError> {
    let look = move || {
        let changes = watch.take()?;
        let described = |change| event(change, watch.root(), entries, &context);
        watch.with_rights(|| changes.into_iter().map(described).collect())
    };
    let looked = tokio::task::spawn_blocking(look).await;
    Ok(looked.map_err(|error| ConnectError::internal(error.to_string()))??)
}
