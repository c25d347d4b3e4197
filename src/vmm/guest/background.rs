//! Processes in a guest that run on whoever follows them. The agent keeps what they write.

use std::time::Duration;

use chrono::{DateTime, Utc};
use connectrpc::ErrorCode;
use connectrpc::client::CallOptions;
use nestbox_proto::background::__buffa::oneof::follow_event::Event;
use nestbox_proto::background::__buffa::oneof::follow_request::Begin as WireBegin;
use nestbox_proto::background::__buffa::view::FollowResponseView;
use nestbox_proto::background::{FollowRequest, Info, ListRequest, StartRequest, StopRequest};
use nestbox_proto::process::__buffa::oneof::process_selector::Selector;
use nestbox_proto::process::ProcessSelector;

use super::error::message_of;
use super::process::{Channel, Control, Heard, Listen, config, exit_code, output, pty};
use super::transport::Messages;
use super::tree::acting_as;
use super::{Agent, AgentError, QUICK};
use crate::domain::exec::Exec;
use crate::domain::process::{ProcessInfo, ProcessRef, Tag, TerminalSize};

/// How long the agent may take to end a process: it kills it after 5 s.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// Bytes of the longest list of processes that is taken, each of which may have long arguments.
const LIST_LIMIT: usize = 4 << 20;

type Events = Messages<FollowResponseView<'static>>;

/// Where to begin with what a process has written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// After the byte with this number; 0 is before the first.
    After(u64),
    /// With so many bytes, at most, of those that are kept.
    Tail(u64),
}

/// A process that is followed.
pub struct Following {
    pub(super) control: Control,
    /// Its tag, if it has one.
    pub(super) tag: Option<Tag>,
    events: Events,
}

impl Following {
    /// Whether it runs on a terminal.
    pub fn has_terminal(&self) -> bool {
        self.control.channel == Channel::Terminal
    }

    /// Changes the size of its terminal.
    ///
    /// # Errors
    ///
    /// [`AgentError::Failed`] if it has none.
    pub async fn resize(&self, size: TerminalSize) -> Result<(), AgentError> {
        self.control.resize(size).await
    }
}

impl Agent {
    /// Starts a program, on a terminal if that is given a size; gives its process id. Without a
    /// program, a terminal gets a login shell.
    ///
    /// # Errors
    ///
    /// [`AgentError::Invalid`] for a program, working directory or user that is not there,
    /// [`AgentError::Conflict`] if another process that runs has the tag.
    pub async fn start_background(
        &self,
        exec: Exec,
        terminal: Option<TerminalSize>,
        tag: Option<&Tag>,
    ) -> Result<u32, AgentError> {
        let options = acting_as(exec.user.as_deref());
        let request = StartRequest {
            process: config(exec).into(),
            pty: terminal.map(pty).into(),
            tag: tag.map(ToString::to_string),
        };
        let started = self.background.start_with_options(request, options);
        match self.within(QUICK, started).await? {
            Ok(answer) => Ok(answer.into_owned().pid),
            // There is no program, or none that may be executed: nothing runs whose exit code could
            // say so.
            Err(error)
                if [ErrorCode::NotFound, ErrorCode::PermissionDenied].contains(&error.code) =>
            {
                Err(AgentError::Invalid { message: message_of(&error) })
            }
            Err(error) => Err(self.refused(error)),
        }
    }

    /// The processes that were started so, those included that have ended lately.
    ///
    /// # Errors
    ///
    /// [`AgentError::Unreachable`].
    pub async fn list_background(&self) -> Result<Vec<ProcessInfo>, AgentError> {
        let options = CallOptions::default()
            .with_max_message_size(LIST_LIMIT)
            .with_element_memory_limit(LIST_LIMIT);
        let answer = self.background.list_with_options(ListRequest::default(), options);
        let answer = self.within(QUICK, answer).await?;
        let answer = answer.map_err(|error| self.refused(error))?;
        Ok(answer.into_owned().processes.into_iter().map(info).collect())
    }

    /// Asks a process to end, has it killed if it does not, and waits until it has ended.
    ///
    /// # Errors
    ///
    /// [`AgentError::NotFound`], [`AgentError::Silent`].
    pub async fn stop_background(&self, process: &ProcessRef) -> Result<(), AgentError> {
        let request = StopRequest { process: selector(process).into() };
        let stopped = self.within(STOP_LIMIT, self.background.stop(request)).await?;
        stopped.map(drop).map_err(|error| self.refused(error))
    }

    /// Follows a process.
    ///
    /// # Errors
    ///
    /// [`AgentError::NotFound`], [`AgentError::Invalid`] for a number that none of its bytes has yet.
    pub async fn listen(
        &self,
        process: &ProcessRef,
        begin: Begin,
    ) -> Result<Following, AgentError> {
        let begin = match begin {
            Begin::After(seq) => WireBegin::After(seq),
            Begin::Tail(bytes) => WireBegin::Tail(bytes),
        };
        let request = FollowRequest { process: selector(process).into(), begin: Some(begin) };
        self.within(QUICK, self.followed(request)).await?
    }

    async fn followed(&self, request: FollowRequest) -> Result<Following, AgentError> {
        let mut events =
            self.background.follow(request).await.map_err(|error| self.refused(error))?;
        loop {
            let event = match events.message().await {
                Ok(Some(message)) => message.to_owned_message().event.into_option(),
                Ok(None) => return Err(self.unreachable("the stream ended before the start")),
                Err(error) => return Err(self.refused(error)),
            };
            if let Some(Event::Start(start)) = event.and_then(|event| event.event) {
                let channel = if start.terminal { Channel::Terminal } else { Channel::Pipe };
                let control = Control { agent: self.clone(), pid: start.pid, channel };
                let tag = start.tag.and_then(|tag| tag.parse().ok());
                return Ok(Following { control, tag, events });
            }
        }
    }
}

impl Listen for Following {
    async fn next(&mut self) -> Result<Heard, AgentError> {
        let agent = &self.control.agent;
        loop {
            let event = match self.events.message().await {
                Ok(Some(message)) => {
                    message.to_owned_message().event.into_option().and_then(|e| e.event)
                }
                Ok(None) => return Err(agent.unreachable("the stream ended before the process")),
                Err(error) => return Err(agent.broken(&error)),
            };
            match event {
                Some(Event::Output(event)) => {
                    let seq = Some(event.seq);
                    if let Some((stream, data)) = event.data.into_option().and_then(output) {
                        return Ok(Heard::Output { stream, data, seq });
                    }
                }
                Some(Event::Lost(lost)) => return Ok(Heard::Lost(lost.bytes)),
                Some(Event::End(end)) => return Ok(Heard::Ended(exit_code(&end))),
                Some(Event::Start(_) | Event::Keepalive(_)) | None => {}
            }
        }
    }
}

fn selector(process: &ProcessRef) -> ProcessSelector {
    let selector = match process {
        ProcessRef::Pid(pid) => Selector::Pid(*pid),
        ProcessRef::Tag(tag) => Selector::Tag(tag.to_string()),
    };
    ProcessSelector { selector: Some(selector) }
}

fn info(info: Info) -> ProcessInfo {
    let config = info.config.into_option().unwrap_or_default();
    ProcessInfo {
        pid: info.pid,
        tag: info.tag.and_then(|tag| tag.parse().ok()),
        cmd: config.cmd,
        args: config.args,
        cwd: config.cwd,
        terminal: info.terminal,
        started_at: DateTime::<Utc>::from_timestamp_millis(info.started_at_ms).unwrap_or_default(),
        first_seq: info.first_seq,
        next_seq: info.next_seq,
        exit_code: info.end.into_option().map(|end| exit_code(&end)),
    }
}
