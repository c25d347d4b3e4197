//! Commands in a guest, run to their end with bounded output.

use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::process::{Heard, Listen, Start, Stdin};
use super::{Agent, AgentError};
use crate::domain::exec::{Exec, ExecEnd, ExecOutput, OutputStream};

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
        let mut process = match self.start_process(exec, Stdin::Closed).await? {
            Start::Runs(process) => process,
            Start::Failed { code, message } => {
                return Ok(ExecOutput {
                    stdout: Vec::new(),
                    stderr: message.into_bytes(),
                    dropped: 0,
                    end: ExecEnd::Exited(code),
                    duration: started.elapsed(),
                });
            }
        };
        let control = process.control.clone();
        let end = loop {
            let heard = tokio::select! {
                biased;
                () = abandoned.cancelled() => {
                    control.kill().await;
                    break ExecEnd::Abandoned;
                }
                () = until(deadline) => {
                    control.kill().await;
                    break ExecEnd::TimedOut;
                }
                heard = process.next() => heard?,
            };
            match heard {
                Heard::Output { stream: OutputStream::Stdout, data, .. } => stdout.push(&data),
                Heard::Output { stream: OutputStream::Stderr, data, .. } => stderr.push(&data),
                // Of what runs in the background, and this does not.
                Heard::Output { stream: OutputStream::Terminal, .. } | Heard::Lost(_) => {}
                Heard::Ended(code) => break ExecEnd::Exited(code),
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
    fn output_beyond_the_limit_is_counted_not_kept() {
        let mut output = Bounded::new(5);
        output.push(b"abc");
        output.push(b"defg");
        output.push(b"h");
        assert_eq!((output.bytes.as_slice(), output.dropped), (&b"abcde"[..], 3));
    }
}
