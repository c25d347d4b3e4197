//! One process in a guest: started, heard to its end, signalled, written to.

use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use connectrpc::client::CallOptions;
use connectrpc::{ConnectError, ErrorCode};
use nestbox_proto::process::__buffa::oneof::process_event::Event;
use nestbox_proto::process::__buffa::oneof::process_event::data_event::Output;
use nestbox_proto::process::__buffa::oneof::process_input::Input;
use nestbox_proto::process::__buffa::oneof::process_selector::Selector;
use nestbox_proto::process::__buffa::view::StartResponseView;
use nestbox_proto::process::process_event::{DataEvent, EndEvent};
use nestbox_proto::process::pty::Size;
use nestbox_proto::process::{
    CloseStdinRequest, PTY, ProcessConfig, ProcessInput, ProcessSelector, SendInputRequest,
    SendSignalRequest, Signal as WireSignal, StartRequest, UpdateRequest,
};
use nix::sys::signal::Signal as Number;

use super::error::{is_over_a_limit, message_of};
use super::transport::Messages;
use super::tree::acting_as;
use super::{Agent, AgentError, QUICK};
use crate::domain::exec::{Exec, ExecInput, OutputStream, Signal};
use crate::domain::process::{ProcessRef, TerminalSize};

/// How long the agent may take to signal a command and all it started.
const SIGNAL_LIMIT: Duration = Duration::from_secs(5);

/// Shells' word for "there is no such command".
const NOT_FOUND_CODE: i32 = 127;
/// Shells add the number of the signal that ended a command.
const SIGNALLED_CODE: i32 = 128;
/// Shells' word for "it is there, but cannot be executed".
const NOT_EXECUTABLE_CODE: i32 = 126;

type Events = Messages<StartResponseView<'static>>;

/// What a process reads from its standard input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stdin {
    /// Nothing.
    Closed,
    /// What it is sent.
    Open,
}

/// What came of a start.
pub(super) enum Start {
    /// It runs. Boxed, because it is more than a kilobyte.
    Runs(Box<Process>),
    /// There is no such program, or it cannot be executed.
    Failed {
        /// A shell's exit code for that.
        code: i32,
        /// A line for standard error.
        message: String,
    },
}

/// What is heard of a process.
pub(super) enum Heard {
    /// It has written something.
    Output {
        stream: OutputStream,
        data: Bytes,
        /// Number of the last byte, if they are numbered.
        seq: Option<u64>,
    },
    /// So many bytes are not kept any more.
    Lost(u64),
    /// It has ended with this exit code, as a shell gives it.
    Ended(i32),
}

/// A process that can be heard.
pub(super) trait Listen: Send {
    /// Waits for what it does next. While nobody waits the agent sends no more than fits between
    /// here and there.
    ///
    /// # Errors
    ///
    /// [`AgentError::Unreachable`] if the connection breaks before it has ended.
    fn next(&mut self) -> impl Future<Output = Result<Heard, AgentError>> + Send;
}

/// What a process reads its input from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Channel {
    /// A pipe.
    Pipe,
    /// A terminal.
    Terminal,
}

/// A process that was started.
pub(super) struct Process {
    /// Reaches it while it is being heard.
    pub control: Control,
    events: Events,
}

/// Reaches a process that runs.
#[derive(Clone)]
pub(super) struct Control {
    pub agent: Agent,
    /// Its id in the guest.
    pub pid: u32,
    /// Where its input goes.
    pub channel: Channel,
}

impl Agent {
    /// Starts a program; once this returns, it has a process id.
    ///
    /// # Errors
    ///
    /// [`AgentError::Invalid`] for a working directory or user that is not there,
    /// [`AgentError::Exhausted`] if the guest can have no other process.
    pub(super) async fn start_process(
        &self,
        exec: Exec,
        stdin: Stdin,
    ) -> Result<Start, AgentError> {
        let options = acting_as(exec.user.as_deref());
        let request = StartRequest {
            process: config(exec).into(),
            stdin: Some(stdin == Stdin::Open),
            ..Default::default()
        };
        self.within(QUICK, self.started(request, options)).await?
    }

    async fn started(
        &self,
        request: StartRequest,
        options: CallOptions,
    ) -> Result<Start, AgentError> {
        let mut events = match self.processes.start_with_options(request, options).await {
            Ok(events) => events,
            Err(error) => return self.not_started(error),
        };
        loop {
            match events.message().await {
                Ok(Some(message)) => {
                    let event = message.to_owned_message().event.into_option();
                    if let Some(Event::Start(start)) = event.and_then(|event| event.event) {
                        let (agent, channel) = (self.clone(), Channel::Pipe);
                        let control = Control { agent, pid: start.pid, channel };
                        return Ok(Start::Runs(Box::new(Process { control, events })));
                    }
                }
                Ok(None) => return Err(self.unreachable("the stream ended before the start")),
                Err(error) => return self.not_started(error),
            }
        }
    }

    fn not_started(&self, error: ConnectError) -> Result<Start, AgentError> {
        let message = message_of(&error);
        let code = match error.code {
            ErrorCode::NotFound => NOT_FOUND_CODE,
            ErrorCode::PermissionDenied => NOT_EXECUTABLE_CODE,
            ErrorCode::InvalidArgument => return Err(AgentError::Invalid { message }),
            ErrorCode::ResourceExhausted if !is_over_a_limit(&error) => {
                return Err(AgentError::Exhausted { message });
            }
            _ => return Err(self.broken(&error)),
        };
        Ok(Start::Failed { code, message: format!("{message}\n") })
    }
}

impl Listen for Process {
    /// While nobody waits the process stands still with its pipe full.
    async fn next(&mut self) -> Result<Heard, AgentError> {
        let agent = &self.control.agent;
        loop {
            let event = match self.events.message().await {
                Ok(Some(message)) => {
                    message.to_owned_message().event.into_option().and_then(|e| e.event)
                }
                Ok(None) => return Err(agent.unreachable("the stream ended before the command")),
                Err(error) => return Err(agent.broken(&error)),
            };
            match event {
                Some(Event::Data(data)) => {
                    if let Some((stream, data)) = output(*data) {
                        return Ok(Heard::Output { stream, data, seq: None });
                    }
                }
                Some(Event::End(end)) => return Ok(Heard::Ended(exit_code(&end))),
                Some(Event::Start(_) | Event::Keepalive(_)) | None => {}
            }
        }
    }
}

impl Control {
    /// Kills the process and everything it started. An agent that does not answer is noticed by
    /// whoever waits for the VM.
    pub async fn kill(&self) {
        if let Err(error) = self.signal(Signal::Kill).await {
            tracing::warn!(pid = self.pid, error = %crate::chain(&error),
                "a command was not killed");
        }
    }

    /// Sends a signal. What is gone already is fine.
    ///
    /// # Errors
    ///
    /// [`AgentError::Failed`], [`AgentError::Silent`].
    pub async fn signal(&self, signal: Signal) -> Result<(), AgentError> {
        let signal = match signal {
            Signal::Hangup => WireSignal::SIGNAL_SIGHUP,
            Signal::Interrupt => WireSignal::SIGNAL_SIGINT,
            Signal::Quit => WireSignal::SIGNAL_SIGQUIT,
            Signal::Kill => WireSignal::SIGNAL_SIGKILL,
            Signal::User1 => WireSignal::SIGNAL_SIGUSR1,
            Signal::User2 => WireSignal::SIGNAL_SIGUSR2,
            Signal::Terminate => WireSignal::SIGNAL_SIGTERM,
        };
        let request = SendSignalRequest { process: self.selector().into(), signal: signal.into() };
        let sent = self.agent.processes.send_signal(request);
        match self.agent.within(SIGNAL_LIMIT, sent).await? {
            Err(error) if error.code != ErrorCode::NotFound => Err(failed(&error)),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Changes the size of its terminal.
    ///
    /// # Errors
    ///
    /// [`AgentError::Failed`] if it has none.
    pub async fn resize(&self, size: TerminalSize) -> Result<(), AgentError> {
        let request = UpdateRequest { process: self.selector().into(), pty: pty(size).into() };
        let resized = self.agent.processes.update(request);
        match self.agent.within(QUICK, resized).await? {
            Err(error) if error.code != ErrorCode::NotFound => Err(failed(&error)),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Writes to its standard input, or closes it. Waits until the process has room for all of it.
    /// What has ended takes it without reading it.
    ///
    /// # Errors
    ///
    /// [`AgentError::Failed`] if nothing can be read from it any more.
    pub async fn write(&self, input: ExecInput) -> Result<(), AgentError> {
        let process = self.selector().into();
        let outcome = match input {
            ExecInput::Data(data) => {
                let input = match self.channel {
                    Channel::Pipe => Input::Stdin(data.into()),
                    Channel::Terminal => Input::Pty(data.into()),
                };
                let input = ProcessInput { input: Some(input) };
                let request = SendInputRequest { process, input: input.into() };
                self.agent.processes.send_input(request).await.map(drop)
            }
            ExecInput::End => {
                let request = CloseStdinRequest { process };
                self.agent.processes.close_stdin(request).await.map(drop)
            }
        };
        match outcome {
            Err(error) if error.code != ErrorCode::NotFound => Err(failed(&error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// What it is called from outside.
    pub fn name(&self) -> ProcessRef {
        ProcessRef::Pid(self.pid)
    }

    fn selector(&self) -> ProcessSelector {
        ProcessSelector { selector: Some(Selector::Pid(self.pid)) }
    }
}

/// A command as the agent is asked to start it.
pub(super) fn config(exec: Exec) -> ProcessConfig {
    ProcessConfig {
        cmd: exec.cmd,
        args: exec.args,
        envs: exec.envs.into_iter().collect(),
        cwd: exec.cwd,
    }
}

/// A terminal of this size.
pub(super) fn pty(size: TerminalSize) -> PTY {
    let size = Size { cols: size.cols().into(), rows: size.rows().into() };
    PTY { size: size.into() }
}

/// Some output, if it is any that we know.
pub(super) fn output(data: DataEvent) -> Option<(OutputStream, Bytes)> {
    match data.output? {
        Output::Stdout(data) => Some((OutputStream::Stdout, data.into())),
        Output::Stderr(data) => Some((OutputStream::Stderr, data.into())),
        Output::Pty(data) => Some((OutputStream::Terminal, data.into())),
    }
}

/// How a process ended, as a shell says it.
pub(super) fn exit_code(end: &EndEvent) -> i32 {
    if end.exited { end.exit_code } else { signal_code(&end.status) }
}

fn failed(error: &ConnectError) -> AgentError {
    AgentError::Failed { status: error.code.as_str().to_owned(), message: message_of(error) }
}

/// The exit code of a shell whose command was ended by a signal. The agent names signals as people
/// do, or as signal(7) does where people have no word.
fn signal_code(status: &str) -> i32 {
    let name = status.strip_prefix("signal: ").unwrap_or(status);
    let number = match name {
        "killed" => Ok(Number::SIGKILL),
        "terminated" => Ok(Number::SIGTERM),
        "interrupt" => Ok(Number::SIGINT),
        "hangup" => Ok(Number::SIGHUP),
        "segmentation fault" => Ok(Number::SIGSEGV),
        "aborted" => Ok(Number::SIGABRT),
        "broken pipe" => Ok(Number::SIGPIPE),
        other => Number::from_str(other),
    };
    // A signal without a name is a real-time one; its number did not come through.
    number.map_or(SIGNALLED_CODE, |number| SIGNALLED_CODE + number as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_by_a_signal_has_the_code_that_shells_give_it() {
        assert_eq!(signal_code("signal: killed"), 137);
        assert_eq!(signal_code("signal: SIGUSR1"), 138);
        assert_eq!(signal_code("signal: 34"), 128);
    }
}
