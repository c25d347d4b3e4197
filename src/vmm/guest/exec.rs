//! Commands in a guest, run to their end with bounded output.

use std::str::FromStr;
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use connectrpc::client::CallOptions;
use connectrpc::{ConnectError, ErrorCode};
use nestbox_proto::process::__buffa::oneof::process_event::Event;
use nestbox_proto::process::__buffa::oneof::process_event::data_event::Output;
use nestbox_proto::process::__buffa::oneof::process_selector::Selector;
use nestbox_proto::process::{
    ProcessConfig, ProcessSelector, SendSignalRequest, Signal, StartRequest,
};
use nix::sys::signal::Signal as Number;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::{Agent, AgentError};
use crate::domain::exec::{Exec, ExecEnd, ExecOutput};

/// How long the agent may take to kill a command and all it started.
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// Shells' word for "there is no such command".
const NOT_FOUND_CODE: i32 = 127;
/// Shells add the number of the signal that ended a command.
const SIGNALLED_CODE: i32 = 128;
/// Shells' word for "it is there, but cannot be executed".
const NOT_EXECUTABLE_CODE: i32 = 126;

/// Output up to a limit; what is beyond is counted, not kept.
struct Bounded {
    bytes: Vec<u8>,
    limit: usize,
    dropped: u64,
}

impl Bounded {
    fn new(limit: usize) -> Self {
        Self { bytes: Vec::new(), limit, dropped: 0 }
    }

    fn push(&mut self, data: &[u8]) {
        let room = self.limit - self.bytes.len();
        let kept = data.len().min(room);
        self.bytes.extend_from_slice(&data[..kept]);
        self.dropped += (data.len() - kept) as u64;
    }
}

impl Agent {
    /// Runs a command to its end. Cancelling `abandoned` kills it.
    ///
    /// # Errors
    ///
    /// [`AgentError::Invalid`] for a working directory or user that is not there. A command that
    /// is not there is no error but exit code 127, as in a shell.
    pub async fn exec(
        &self,
        exec: Exec,
        abandoned: &CancellationToken,
    ) -> Result<ExecOutput, AgentError> {
        let started = Instant::now();
        let deadline = exec.time_limit.map(|limit| started + limit);
        let (mut stdout, mut stderr) =
            (Bounded::new(exec.output_limit), Bounded::new(exec.output_limit));
        let options = match &exec.user {
            Some(user) => {
                let credentials = BASE64_STANDARD.encode(format!("{user}:"));
                CallOptions::default().with_header("authorization", format!("Basic {credentials}"))
            }
            None => CallOptions::default(),
        };
        let request = StartRequest {
            process: ProcessConfig {
                cmd: exec.cmd,
                args: exec.args,
                envs: exec.envs.into_iter().collect(),
                cwd: exec.cwd,
                ..Default::default()
            }
            .into(),
            stdin: Some(false),
            ..Default::default()
        };

        let mut stream = match self.processes.start_with_options(request, options).await {
            Ok(stream) => stream,
            Err(error) => return self.not_started(error, started),
        };
        let mut pid = None;
        let end = loop {
            let message = tokio::select! {
                biased;
                () = abandoned.cancelled() => {
                    self.kill_process(pid).await;
                    break ExecEnd::Abandoned;
                }
                () = until(deadline) => {
                    self.kill_process(pid).await;
                    break ExecEnd::TimedOut;
                }
                message = stream.message() => message,
            };
            let event = match message {
                Ok(Some(message)) => {
                    message.to_owned_message().event.into_option().and_then(|e| e.event)
                }
                Ok(None) => return Err(self.unreachable("the stream ended before the command")),
                Err(error) if pid.is_none() => return self.not_started(error, started),
                Err(error) => return Err(self.unreachable(error)),
            };
            match event {
                Some(Event::Start(start)) => pid = Some(start.pid),
                Some(Event::Data(data)) => match data.output {
                    Some(Output::Stdout(data)) => stdout.push(&data),
                    Some(Output::Stderr(data)) => stderr.push(&data),
                    Some(Output::Pty(_)) | None => {}
                },
                Some(Event::End(end)) if end.exited => break ExecEnd::Exited(end.exit_code),
                Some(Event::End(end)) => break ExecEnd::Exited(signal_code(&end.status)),
                Some(Event::Keepalive(_)) | None => {}
            }
        };
        Ok(ExecOutput {
            dropped: stdout.dropped + stderr.dropped,
            stdout: stdout.bytes,
            stderr: stderr.bytes,
            end,
            duration: started.elapsed(),
        })
    }

    /// Kills a process of this sandbox and everything it started. What is gone already is fine, and
    /// an agent that does not answer is noticed by whoever waits for the VM.
    async fn kill_process(&self, pid: Option<u32>) {
        let Some(pid) = pid else { return };
        let process = ProcessSelector { selector: Some(Selector::Pid(pid)), ..Default::default() };
        let request = SendSignalRequest {
            process: process.into(),
            signal: Signal::SIGNAL_SIGKILL.into(),
            ..Default::default()
        };
        match timeout(KILL_LIMIT, self.processes.send_signal(request)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) if error.code == ErrorCode::NotFound => {}
            Ok(Err(error)) => tracing::warn!(pid, %error, "a command was not killed"),
            Err(_) => tracing::warn!(pid, "the agent did not answer a request to kill a command"),
        }
    }

    fn not_started(&self, error: ConnectError, started: Instant) -> Result<ExecOutput, AgentError> {
        let message = error.message.clone().unwrap_or_default();
        let code = match error.code {
            ErrorCode::NotFound => NOT_FOUND_CODE,
            ErrorCode::PermissionDenied => NOT_EXECUTABLE_CODE,
            ErrorCode::InvalidArgument => return Err(AgentError::Invalid { message }),
            ErrorCode::ResourceExhausted => return Err(AgentError::NoSpace { message }),
            _ => return Err(self.unreachable(error)),
        };
        Ok(ExecOutput {
            stdout: Vec::new(),
            stderr: format!("{message}\n").into_bytes(),
            dropped: 0,
            end: ExecEnd::Exited(code),
            duration: started.elapsed(),
        })
    }
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

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
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

    #[test]
    fn output_beyond_the_limit_is_counted_not_kept() {
        let mut output = Bounded::new(5);
        output.push(b"abc");
        output.push(b"defg");
        output.push(b"h");
        assert_eq!((output.bytes.as_slice(), output.dropped), (&b"abcde"[..], 3));
    }
}
