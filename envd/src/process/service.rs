//! The rpcs of `process.Process`.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use connectrpc::{
    ConnectError, Encodable, InboundStream, RequestContext, Response, ServiceRequest,
    ServiceResult, ServiceStream,
};
use futures::{Stream, StreamExt};
use http::HeaderMap;
use nestbox_proto::process as wire;
use nestbox_proto::process::process_event::data_event::Output;
use nestbox_proto::process::process_event::{DataEvent, EndEvent, KeepAlive, StartEvent};
use nestbox_proto::process::process_input::Input as InputData;
use nestbox_proto::process::process_selector::Selector;
use nestbox_proto::process::stream_input_request::Event as InputEvent;
use nestbox_proto::process::{ProcessEvent, ProcessInfo, ProcessInput, ProcessSelector, Signal};
use nix::errno::Errno;
use nix::sys::signal::Signal as Number;
use tokio::io::unix::AsyncFd;

use crate::agent::keepalive;
use crate::agent::settings::{Context, RequestError};
use crate::agent::users::User;

use super::cgroup::Cgroups;
use super::record::Record;
use super::run::{self, Event, Events, Input, Outcome, Process};
use super::start::{StartError, Starter, window};
use super::stream::{self, Kind};

/// A process that outlives its deadline is killed this much after the stream of whoever started
/// it: the caller is then told about the deadline, not about the signal.
const AFTER_DEADLINE: Duration = Duration::from_millis(20);

/// The processes of this guest.
pub struct Processes {
    context: Arc<Context>,
    cgroups: Arc<Cgroups>,
    starter: Starter,
    running: Arc<Mutex<BTreeMap<u32, Arc<Process>>>>,
}

impl Processes {
    /// Starts with none.
    ///
    /// # Errors
    ///
    /// The kernel's, when the agent lacks what every start needs.
    pub fn new(context: Arc<Context>) -> std::io::Result<Self> {
        let cgroups = Arc::new(Cgroups::new(context.place));
        let starter = Starter::new(Arc::clone(&context), Arc::clone(&cgroups))?;
        Ok(Self { context, cgroups, starter, running: Arc::default() })
    }

    /// Does ahead what the first start would have to wait for.
    pub fn prepare(&self) {
        self.cgroups.prepare();
    }

    /// Kills all processes, and removes their cgroups once they are gone.
    pub async fn shut_down(&self) {
        let all: Vec<_> = self.lock().values().cloned().collect();
        for process in &all {
            // It may have ended at this very moment.
            let _ = process.kill();
        }
        for process in &all {
            process.ended.cancelled().await;
        }
        self.cgroups.remove_all();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u32, Arc<Process>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, selector: Option<Selector>) -> Result<Arc<Process>, ConnectError> {
        let running = self.lock();
        match selector {
            Some(Selector::Pid(pid)) => running.get(&pid).cloned().ok_or_else(|| {
                ConnectError::not_found(format!("process with pid {pid} not found"))
            }),
            Some(Selector::Tag(tag)) => running
                .values()
                .find(|process| process.tag.as_ref() == Some(&tag))
                .cloned()
                .ok_or_else(|| {
                    ConnectError::not_found(format!("process with tag {tag} not found"))
                }),
            None => Err(ConnectError::invalid_argument("process selector is missing")),
        }
    }

    fn select(&self, selector: Option<ProcessSelector>) -> Result<Arc<Process>, ConnectError> {
        self.find(selector.and_then(|selector| selector.selector))
    }

    /// Starts a process, and has it run to its end whoever follows it.
    ///
    /// # Errors
    ///
    /// As [`Starter::start`].
    pub(super) fn launch(
        &self,
        request: wire::StartRequest,
        user: &User,
        deadline: Option<std::time::Instant>,
        record: Option<Arc<Record>>,
    ) -> Result<(Arc<Process>, Events), StartError> {
        let started = self.starter.start(request, user, record)?;
        let process = Arc::new(started.process);
        // Before it is run: nothing it writes is missed.
        let events = process.follow();
        self.lock().insert(process.pid.cast_unsigned(), Arc::clone(&process));
        self.supervise(
            &process,
            Launched {
                pidfd: started.pidfd,
                sources: started.sources,
                deadline: deadline.map(tokio::time::Instant::from_std),
            },
        );
        Ok((process, events))
    }

    /// The process that runs under this id.
    pub(super) fn running(&self, pid: u32) -> Option<Arc<Process>> {
        self.lock().get(&pid).cloned()
    }

    /// Who a request acts as.
    ///
    /// # Errors
    ///
    /// As [`Context::user_of`].
    pub(super) fn user_of(&self, headers: &HeaderMap) -> Result<Arc<User>, RequestError> {
        self.context.user_of(headers)
    }

    /// Runs a process until it and the streams it leaves behind have ended.
    fn supervise(&self, process: &Arc<Process>, started: Launched) {
        let (running, cgroups) = (Arc::clone(&self.running), Arc::clone(&self.cgroups));
        let process = Arc::clone(process);
        tokio::spawn(async move {
            let Launched { pidfd, sources, deadline } = started;
            let (left, outcome) = run::run(&process, pidfd, sources, deadline).await;
            let pid = process.pid.cast_unsigned();
            running.lock().unwrap_or_else(PoisonError::into_inner).remove(&pid);
            if let Some(cgroup) = process.take_cgroup() {
                cgroups.release(cgroup);
            }
            process.announce(outcome);
            drop(process);
            run::discard(left).await;
        });
    }
}

/// What [`Processes::supervise`] takes over.
struct Launched {
    pidfd: AsyncFd<OwnedFd>,
    sources: Vec<stream::Source>,
    deadline: Option<tokio::time::Instant>,
}

impl wire::Process for Processes {
    async fn list<'a>(
        &'a self,
        _context: RequestContext,
        _request: ServiceRequest<'_, wire::ListRequest>,
    ) -> ServiceResult<impl Encodable<wire::ListResponse> + Send + use<'a>> {
        let info = |process: &Arc<Process>| ProcessInfo {
            config: process.config.clone().into(),
            pid: process.pid.cast_unsigned(),
            tag: process.tag.clone(),
        };
        let processes = self.lock().values().map(info).collect();
        Response::ok(wire::ListResponse { processes })
    }

    async fn start(
        &self,
        context: RequestContext,
        request: ServiceRequest<'_, wire::StartRequest>,
    ) -> ServiceResult<ServiceStream<impl Encodable<wire::StartResponse> + Send + use<>>> {
        let user = self.user_of(context.headers())?;
        let deadline = context.deadline().and_then(|at| at.checked_add(AFTER_DEADLINE));
        let (process, events) = self.launch(request.to_owned_message(), &user, deadline, None)?;
        let pid = process.pid.cast_unsigned();
        let events = follow(pid, events, keepalive::interval(context.headers()));
        Response::stream_ok(events.map(|event| Ok(wire::StartResponse { event: event.into() })))
    }

    async fn connect(
        &self,
        context: RequestContext,
        request: ServiceRequest<'_, wire::ConnectRequest>,
    ) -> ServiceResult<ServiceStream<impl Encodable<wire::ConnectResponse> + Send + use<>>> {
        let process = self.select(request.to_owned_message().process.into_option())?;
        let pid = process.pid.cast_unsigned();
        let events = follow(pid, process.follow(), keepalive::interval(context.headers()));
        Response::stream_ok(events.map(|event| Ok(wire::ConnectResponse { event: event.into() })))
    }

    async fn update<'a>(
        &'a self,
        _context: RequestContext,
        request: ServiceRequest<'_, wire::UpdateRequest>,
    ) -> ServiceResult<impl Encodable<wire::UpdateResponse> + Send + use<'a>> {
        let request = request.to_owned_message();
        let process = self.select(request.process.into_option())?;
        if let Some(pty) = request.pty.as_option() {
            let terminal = process.terminal.as_ref().ok_or_else(no_terminal)?;
            stream::resize(terminal.get_ref().as_fd(), window(pty))
                .map_err(|error| ConnectError::internal(format!("cannot resize: {error}")))?;
        }
        Response::ok(wire::UpdateResponse::default())
    }

    async fn stream_input<'a>(
        &'a self,
        _context: RequestContext,
        mut requests: InboundStream<wire::StreamInputRequest>,
    ) -> ServiceResult<impl Encodable<wire::StreamInputResponse> + Send + use<'a>> {
        let mut process = None;
        while let Some(request) = requests.next().await {
            match (request?.to_owned_message().event, &process) {
                (Some(InputEvent::Start(start)), None) => {
                    process = Some(self.select(start.process.into_option())?);
                }
                (Some(InputEvent::Start(_)), Some(_)) => {
                    return Err(ConnectError::invalid_argument("input was started already"));
                }
                (Some(InputEvent::Data(data)), Some(process)) => {
                    write_input(process, data.input.into_option()).await?;
                }
                (Some(InputEvent::Data(_)), None) => {
                    return Err(ConnectError::invalid_argument("input must start with a process"));
                }
                (Some(InputEvent::Keepalive(_)) | None, _) => {}
            }
        }
        Response::ok(wire::StreamInputResponse::default())
    }

    async fn send_input<'a>(
        &'a self,
        _context: RequestContext,
        request: ServiceRequest<'_, wire::SendInputRequest>,
    ) -> ServiceResult<impl Encodable<wire::SendInputResponse> + Send + use<'a>> {
        let request = request.to_owned_message();
        let process = self.select(request.process.into_option())?;
        write_input(&process, request.input.into_option()).await?;
        Response::ok(wire::SendInputResponse::default())
    }

    async fn send_signal<'a>(
        &'a self,
        _context: RequestContext,
        request: ServiceRequest<'_, wire::SendSignalRequest>,
    ) -> ServiceResult<impl Encodable<wire::SendSignalResponse> + Send + use<'a>> {
        let request = request.to_owned_message();
        let process = self.select(request.process.into_option())?;
        let sent = match request.signal.as_known() {
            Some(Signal::SIGNAL_SIGHUP) => process.signal(Number::SIGHUP),
            Some(Signal::SIGNAL_SIGINT) => process.signal(Number::SIGINT),
            Some(Signal::SIGNAL_SIGQUIT) => process.signal(Number::SIGQUIT),
            Some(Signal::SIGNAL_SIGKILL) => process.kill(),
            Some(Signal::SIGNAL_SIGUSR1) => process.signal(Number::SIGUSR1),
            Some(Signal::SIGNAL_SIGUSR2) => process.signal(Number::SIGUSR2),
            Some(Signal::SIGNAL_SIGTERM) => process.signal(Number::SIGTERM),
            Some(Signal::SIGNAL_UNSPECIFIED) | None => {
                return Err(ConnectError::invalid_argument(
                    "signal must be SIGHUP, SIGINT, SIGQUIT, SIGKILL, SIGUSR1, SIGUSR2 or SIGTERM",
                ));
            }
        };
        match sent {
            // It has ended, and will be gone from the list in a moment.
            Ok(()) | Err(Errno::ESRCH) => Response::ok(wire::SendSignalResponse::default()),
            Err(errno) => Err(ConnectError::internal(format!("cannot signal: {}", errno.desc()))),
        }
    }

    async fn close_stdin<'a>(
        &'a self,
        _context: RequestContext,
        request: ServiceRequest<'_, wire::CloseStdinRequest>,
    ) -> ServiceResult<impl Encodable<wire::CloseStdinResponse> + Send + use<'a>> {
        let process = self.select(request.to_owned_message().process.into_option())?;
        let mut input = process.input.lock().await;
        match &*input {
            Input::Terminal(_) => {
                return Err(ConnectError::failed_precondition(
                    "input of a terminal ends with the character Ctrl-D, not by closing it",
                ));
            }
            Input::Pipe(_) | Input::Closed => *input = Input::Closed,
        }
        Response::ok(wire::CloseStdinResponse::default())
    }
}

fn no_terminal() -> ConnectError {
    ConnectError::failed_precondition("process has no terminal")
}

async fn write_input(process: &Process, input: Option<ProcessInput>) -> Result<(), ConnectError> {
    let data = input.and_then(|input| input.input);
    let data = data.ok_or_else(|| ConnectError::invalid_argument("input is missing"))?;
    let writing = async {
        let input = process.input.lock().await;
        let (target, bytes) = match (&*input, &data) {
            (Input::Pipe(fd), InputData::Stdin(bytes))
            | (Input::Terminal(fd), InputData::Pty(bytes)) => (fd, bytes),
            (Input::Closed, InputData::Stdin(_)) => {
                return Err(ConnectError::failed_precondition("standard input is closed"));
            }
            (Input::Terminal(_), InputData::Stdin(_)) => {
                return Err(ConnectError::failed_precondition(
                    "process has a terminal, and no other standard input",
                ));
            }
            (Input::Pipe(_) | Input::Closed, InputData::Pty(_)) => return Err(no_terminal()),
        };
        stream::write_all(target, bytes).await.map_err(|error| {
            ConnectError::failed_precondition(format!("standard input is closed: {error}"))
        })
    };
    tokio::select! {
        written = writing => written,
        // A descendant may hold the other end open without ever reading it.
        () = process.ended.cancelled() => {
            Err(ConnectError::not_found(format!("process with pid {} has ended", process.pid)))
        }
    }
}

/// What a follower is sent: the start, then events, and keepalives while nothing happens.
fn follow(
    pid: u32,
    events: Events,
    interval: Duration,
) -> impl Stream<Item = ProcessEvent> + Send + use<> {
    let start = StartEvent { pid };
    let start = ProcessEvent { event: Some(start.into()) };
    let rest = futures::stream::unfold(events, move |mut events| async move {
        let event = match tokio::time::timeout(interval, events.next()).await {
            Ok(event) => encode(event?),
            Err(_) => KeepAlive::default().into(),
        };
        Some((ProcessEvent { event: Some(event) }, events))
    });
    futures::stream::once(std::future::ready(start)).chain(rest)
}

fn encode(event: Event) -> wire::process_event::Event {
    match event {
        Event::Data(kind, bytes) => data(kind, bytes).into(),
        Event::End(outcome) => end(outcome).into(),
    }
}

/// Some output, as both services tell it.
pub(super) fn data(kind: Kind, bytes: Bytes) -> DataEvent {
    let output = match kind {
        Kind::Stdout => Output::Stdout(bytes.into()),
        Kind::Stderr => Output::Stderr(bytes.into()),
        Kind::Terminal => Output::Pty(bytes.into()),
    };
    DataEvent { output: Some(output) }
}

/// The end of a process, as both services tell it.
pub(super) fn end(outcome: Outcome) -> EndEvent {
    let (exit_code, exited, status) = match outcome {
        Outcome::Exited(status) => (status, true, format!("exit status {status}")),
        Outcome::Killed(signal) => (-1, false, format!("signal: {}", describe(signal))),
    };
    let error = (outcome != Outcome::Exited(0)).then(|| status.clone());
    EndEvent { exit_code, exited, status, error }
}

fn describe(signal: Number) -> String {
    match signal {
        Number::SIGKILL => "killed".to_owned(),
        Number::SIGTERM => "terminated".to_owned(),
        Number::SIGINT => "interrupt".to_owned(),
        Number::SIGHUP => "hangup".to_owned(),
        Number::SIGSEGV => "segmentation fault".to_owned(),
        Number::SIGABRT => "aborted".to_owned(),
        Number::SIGPIPE => "broken pipe".to_owned(),
        other => other.as_str().to_owned(),
    }
}
