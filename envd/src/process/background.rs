//! The rpcs of `background.Background`.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use connectrpc::{
    ConnectError, Encodable, RequestContext, Response, ServiceRequest, ServiceResult, ServiceStream,
};
use futures::{Stream, StreamExt};
use nestbox_proto::background as wire;
use nestbox_proto::background::FollowEvent;
use nestbox_proto::background::follow_event::{
    Event, KeepAlive, LostEvent, OutputEvent, StartEvent,
};
use nestbox_proto::background::follow_request::Begin;
use nestbox_proto::process::{ProcessConfig, ProcessSelector};
use nix::sys::signal::Signal;
use tokio::time::timeout;

use super::kept::{Keep, Kept};
use super::record::{Pace, Reader, Record, Seen};
use super::run::Process;
use super::service::{self, Processes};
use crate::agent::keepalive;
use crate::agent::users::User;

/// How long a process that is asked to end may take, before it is killed.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// How long a terminal waits for a reader that takes nothing.
const PATIENCE: Duration = Duration::from_secs(10);

/// Shells that log somebody in, the best first.
const SHELLS: [&str; 2] = ["/bin/bash", "/bin/sh"];
/// What `/etc/passwd` names where nobody shall log in, and where nobody has chosen.
const NO_CHOICE: [&str; 3] = ["nologin", "false", "sh"];

/// The processes that run in the background.
pub struct Background {
    processes: Arc<Processes>,
    keep: Arc<Keep>,
}

impl Background {
    /// Starts with none; they are among all `processes`.
    pub fn new(processes: Arc<Processes>) -> Self {
        Self { processes, keep: Arc::default() }
    }

    fn select(&self, selector: Option<ProcessSelector>) -> Result<Arc<Kept>, ConnectError> {
        let selector = selector.and_then(|selector| selector.selector);
        let selector = selector
            .ok_or_else(|| ConnectError::invalid_argument("process selector is missing"))?;
        self.keep.find(&selector).ok_or_else(|| {
            use nestbox_proto::process::process_selector::Selector;
            ConnectError::not_found(match selector {
                Selector::Pid(pid) => format!("there is no process {pid} in the background"),
                Selector::Tag(tag) => format!("there is no process {tag} in the background"),
            })
        })
    }

    fn check_free(&self, tag: Option<&String>) -> Result<(), ConnectError> {
        let same = |kept: &Arc<Kept>| kept.tag.as_ref() == tag && kept.runs();
        match tag.and_then(|_| self.keep.all().into_iter().find(same)) {
            Some(kept) => {
                let pid = kept.pid;
                let tag = kept.tag.as_deref().unwrap_or_default();
                Err(ConnectError::already_exists(format!(
                    "process {pid} has the tag {tag} and runs"
                )))
            }
            None => Ok(()),
        }
    }

    /// The process itself, while it runs. Another one may have its id afterwards.
    fn alive(&self, kept: &Kept) -> Option<Arc<Process>> {
        kept.runs().then(|| self.processes.running(kept.pid)).flatten()
    }
}

impl wire::Background for Background {
    async fn start<'a>(
        &'a self,
        context: RequestContext,
        request: ServiceRequest<'_, wire::StartRequest>,
    ) -> ServiceResult<impl Encodable<wire::StartResponse> + Send + use<'a>> {
        let user = self.processes.user_of(context.headers())?;
        let mut request = request.to_owned_message();
        self.check_free(request.tag.as_ref())?;
        let terminal = request.pty.is_set();
        let mut config = request.process.into_option().unwrap_or_default();
        if terminal && config.cmd.is_empty() {
            config.cmd = login_shell(&user);
            config.args = vec!["-l".to_owned()];
        }
        let pace = if terminal { Pace::OfReaders(PATIENCE) } else { Pace::Own };
        let record = Arc::new(Record::new(pace));
        let start = nestbox_proto::process::StartRequest {
            process: config.clone().into(),
            pty: std::mem::take(&mut request.pty),
            tag: request.tag.clone(),
            ..Default::default()
        };
        let started_at = SystemTime::now();
        let launched = self.processes.launch(start, &user, None, Some(Arc::clone(&record)));
        // Nobody follows it by the other service; its record does.
        let (process, _) = launched?;
        let pid = process.pid.cast_unsigned();
        self.keep.add(Kept {
            pid,
            tag: request.tag,
            config: ProcessConfig { envs: Default::default(), ..config },
            terminal,
            started_at,
            record,
            stopping: AtomicBool::new(false),
        });
        let (ended, keep) = (process.ended.clone(), Arc::clone(&self.keep));
        tokio::spawn(async move {
            ended.cancelled().await;
            keep.forget();
        });
        Response::ok(wire::StartResponse { pid })
    }

    async fn list<'a>(
        &'a self,
        _context: RequestContext,
        _request: ServiceRequest<'_, wire::ListRequest>,
    ) -> ServiceResult<impl Encodable<wire::ListResponse> + Send + use<'a>> {
        let processes = self.keep.all().iter().map(|kept| info(kept)).collect();
        Response::ok(wire::ListResponse { processes })
    }

    async fn follow(
        &self,
        context: RequestContext,
        request: ServiceRequest<'_, wire::FollowRequest>,
    ) -> ServiceResult<ServiceStream<impl Encodable<wire::FollowResponse> + Send + use<>>> {
        let request = request.to_owned_message();
        let kept = self.select(request.process.into_option())?;
        let reader = kept.record.read(first(&kept, request.begin)?);
        let events = follow(&kept, reader, keepalive::interval(context.headers()));
        Response::stream_ok(events.map(|event| Ok(wire::FollowResponse { event: event.into() })))
    }

    async fn stop<'a>(
        &'a self,
        _context: RequestContext,
        request: ServiceRequest<'_, wire::StopRequest>,
    ) -> ServiceResult<impl Encodable<wire::StopResponse> + Send + use<'a>> {
        let kept = self.select(request.to_owned_message().process.into_option())?;
        if let Some(process) = self.alive(&kept) {
            // Shells that talk to people ignore SIGTERM; that their terminal is gone they do not.
            let signal = if kept.terminal { Signal::SIGHUP } else { Signal::SIGTERM };
            // It may have ended at this very moment.
            let _ = process.signal(signal);
            if !kept.stopping.swap(true, Ordering::Relaxed) {
                let process = Arc::clone(&process);
                tokio::spawn(async move {
                    if timeout(STOP_GRACE, process.ended.cancelled()).await.is_err() {
                        let _ = process.kill();
                    }
                });
            }
            let ended = process.ended.clone();
            drop(process);
            ended.cancelled().await;
        }
        Response::ok(wire::StopResponse::default())
    }
}

/// The shell of a user who has chosen one, else the best there is.
fn login_shell(user: &User) -> String {
    let name = Path::new(&user.shell).file_name().and_then(|name| name.to_str());
    let chosen = name.is_some_and(|name| !NO_CHOICE.contains(&name));
    let there = |shell: &&str| Path::new(shell).exists();
    let best = || SHELLS.iter().find(|shell| there(shell)).unwrap_or(&SHELLS[1]);
    if chosen && there(&user.shell.as_str()) { user.shell.clone() } else { (*best()).to_owned() }
}

fn info(kept: &Kept) -> wire::Info {
    let extent = kept.record.extent();
    let since = kept.started_at.duration_since(UNIX_EPOCH).unwrap_or_default();
    wire::Info {
        config: kept.config.clone().into(),
        pid: kept.pid,
        tag: kept.tag.clone(),
        terminal: kept.terminal,
        started_at_ms: i64::try_from(since.as_millis()).unwrap_or(i64::MAX),
        first_seq: extent.dropped + 1,
        next_seq: extent.written + 1,
        end: extent.end.map(|end| service::end(end.outcome)).into(),
    }
}

/// The number after which a reader begins.
fn first(kept: &Kept, begin: Option<Begin>) -> Result<u64, ConnectError> {
    let extent = kept.record.extent();
    match begin {
        None => Ok(extent.dropped),
        Some(Begin::Tail(bytes)) => Ok(extent.written.saturating_sub(bytes).max(extent.dropped)),
        Some(Begin::After(seq)) if seq <= extent.written => Ok(seq),
        // Of another process, or of this one before a copy of the sandbox was taken.
        Some(Begin::After(seq)) => Err(ConnectError::invalid_argument(format!(
            "process {} has written {} bytes so far, fewer than {seq}",
            kept.pid, extent.written
        ))),
    }
}

/// What a reader is sent: the start, then what it has not heard, and keepalives while nothing happens.
fn follow(
    kept: &Kept,
    reader: Reader,
    interval: Duration,
) -> impl Stream<Item = FollowEvent> + Send + use<> {
    let (pid, tag, terminal) = (kept.pid, kept.tag.clone(), kept.terminal);
    let start = StartEvent { pid, tag, terminal };
    let start = FollowEvent { event: Some(start.into()) };
    let rest = futures::stream::unfold(Some(reader), move |reader| async move {
        let mut reader = reader?;
        let (event, reader) = match timeout(interval, reader.next()).await {
            Ok(seen @ Seen::Ended(_)) => (encode(seen), None),
            Ok(seen @ (Seen::Lost(_) | Seen::Output(_))) => (encode(seen), Some(reader)),
            Err(_) => (KeepAlive::default().into(), Some(reader)),
        };
        Some((FollowEvent { event: Some(event) }, reader))
    });
    futures::stream::once(std::future::ready(start)).chain(rest)
}

fn encode(seen: Seen) -> Event {
    match seen {
        Seen::Lost(bytes) => LostEvent { bytes }.into(),
        Seen::Output(piece) => {
            let data = service::data(piece.kind, piece.bytes).into();
            OutputEvent { seq: piece.seq, data }.into()
        }
        Seen::Ended(outcome) => service::end(outcome).into(),
    }
}
