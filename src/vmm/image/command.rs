//! Runs the programs that images are made with. Knows nothing of images.

use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus, Stdio};

use nix::sys::prctl;
use nix::sys::signal::Signal;

/// How many lines of a failed program's messages an error carries.
const TAIL_LINES: usize = 12;

/// A program that could not do its part.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The program is not on this machine.
    #[error("{program} is not installed; `apt-get install {package}` provides it")]
    Missing {
        /// What was called.
        program: String,
        /// The Debian package it comes from.
        package: &'static str,
    },
    /// The program could not be started or listened to.
    #[error("cannot run {program}")]
    Run {
        /// What was called.
        program: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The program ran and reported failure.
    #[error("{program} failed ({status}): {tail}")]
    Failed {
        /// What was called.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// The last lines it wrote to standard error.
        tail: String,
    },
}

/// One call of a program: built like [`Command`], but its failure explains itself.
pub struct Tool {
    program: &'static str,
    package: &'static str,
    command: Command,
}

impl Tool {
    /// Prepares a call of `program`, which Debian's `package` provides. It speaks plain English,
    /// never asks, and does not outlive the thread that runs it.
    pub fn new(program: &'static str, package: &'static str) -> Self {
        let mut command = Command::new(program);
        command.env("LC_ALL", "C.UTF-8").env("DEBIAN_FRONTEND", "noninteractive");
        command.stdin(Stdio::null());
        // SAFETY: the closure runs between fork and exec and makes one system call, which is
        // async-signal-safe; it touches no memory of the parent's other threads.
        unsafe {
            command.pre_exec(|| prctl::set_pdeathsig(Signal::SIGTERM).map_err(io::Error::from));
        }
        Self { program, package, command }
    }

    /// Adds one argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets the working directory.
    pub fn current_dir(mut self, dir: impl AsRef<std::path::Path>) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Runs the program to its end, and throws its standard output away.
    ///
    /// # Errors
    /// [`CommandError::Missing`], [`CommandError::Run`] or [`CommandError::Failed`].
    pub fn run(self) -> Result<(), CommandError> {
        self.run_watched(|_| {})
    }

    /// The same, and gives each line of the program's standard error to `line` as it comes.
    ///
    /// # Errors
    /// As [`Tool::run`].
    pub fn run_watched(mut self, mut line: impl FnMut(&str)) -> Result<(), CommandError> {
        self.command.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = self.command.spawn().map_err(|e| self.spawn(e))?;
        let stderr = child.stderr.take().expect("standard error is piped");
        let mut tail: Vec<String> = Vec::new();
        for bytes in BufReader::new(stderr).split(b'\n') {
            let text = bytes.map_err(|e| self.spawn(e))?;
            let text = String::from_utf8_lossy(&text);
            line(text.trim_end());
            if tail.len() == TAIL_LINES {
                tail.remove(0);
            }
            tail.push(text.trim_end().to_owned());
        }
        let status = child.wait().map_err(|e| self.spawn(e))?;
        self.check(status, &tail.join("\n"))
    }

    /// Runs the program and returns what it wrote to standard output.
    ///
    /// # Errors
    /// As [`Tool::run`].
    pub fn output(mut self) -> Result<Vec<u8>, CommandError> {
        let output = self.command.output().map_err(|e| self.spawn(e))?;
        self.check(output.status, String::from_utf8_lossy(&output.stderr).trim_end())?;
        Ok(output.stdout)
    }

    /// Runs the program with `input` as its standard input and returns its standard output.
    ///
    /// # Errors
    /// As [`Tool::run`].
    pub fn filter(mut self, input: std::fs::File) -> Result<Vec<u8>, CommandError> {
        self.command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = self.command.spawn().map_err(|e| self.spawn(e))?;
        let mut bytes = Vec::new();
        let mut stdout = child.stdout.take().expect("standard output is piped");
        stdout.read_to_end(&mut bytes).map_err(|e| self.spawn(e))?;
        let status = child.wait().map_err(|e| self.spawn(e))?;
        self.check(status, "the input is damaged")?;
        Ok(bytes)
    }

    fn spawn(&self, source: io::Error) -> CommandError {
        let program = self.program.to_owned();
        match source.kind() {
            io::ErrorKind::NotFound => CommandError::Missing { program, package: self.package },
            _ => CommandError::Run { program, source },
        }
    }

    fn check(&self, status: ExitStatus, tail: &str) -> Result<(), CommandError> {
        if status.success() {
            return Ok(());
        }
        let lines: Vec<&str> = tail.lines().collect();
        let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n");
        Err(CommandError::Failed { program: self.program.to_owned(), status, tail })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_names_its_package() {
        let error = Tool::new("no-such-program", "some-package").run().unwrap_err();
        assert_eq!(
            error.to_string(),
            "no-such-program is not installed; `apt-get install some-package` provides it"
        );
    }

    #[test]
    fn a_failure_carries_what_the_program_said() {
        let error =
            Tool::new("sh", "dash").args(["-c", "echo sorry >&2; exit 3"]).run().unwrap_err();
        assert!(error.to_string().contains("sorry"), "{error}");
    }
}
