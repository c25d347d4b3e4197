//! From a request to a running program: environment, working directory, user, streams.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use connectrpc::ConnectError;
use nestbox_proto::process::{PTY, ProcessConfig, StartRequest};
use nix::errno::Errno;
use nix::pty::Winsize;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{Pid, Uid};
use thiserror::Error;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::agent::settings::{Context, Place, RequestError, Settings};
use crate::agent::users::User;

use super::cgroup::Cgroups;
use super::record::Record;
use super::run::{Input, Process};
use super::spawn::{Child, Identity, Program, SpawnError, Spawner, Standing, Streams};
use super::stream::{self, Kind, Shared, Source};

/// Where programs are looked for unless the caller says otherwise.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Terminal type of a process with a terminal, unless the caller says otherwise.
const TERM: &str = "xterm-256color";

/// Why a process could not be started.
#[derive(Debug, Error)]
pub enum StartError {
    /// The request names no command.
    #[error("command is missing")]
    NoCommand,
    /// A string of the request contains a zero byte.
    #[error("{what} contains a NUL byte")]
    Nul {
        /// Which part of the request.
        what: &'static str,
    },
    /// A variable's name is empty or contains `=`.
    #[error("not a name of an environment variable: {name:?}")]
    VariableName {
        /// The name.
        name: String,
    },
    /// User or path are not usable.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The working directory is not there, or not for this user.
    #[error("cwd {path}: {}", .source.desc())]
    Cwd {
        /// Resolved path.
        path: String,
        /// The kernel's answer.
        source: Errno,
    },
    /// There is no such program.
    #[error("command not found: {command}")]
    NotFound {
        /// As asked for.
        command: String,
    },
    /// There is a file of that name, but not one this user may execute.
    #[error("permission denied: {command}")]
    NotExecutable {
        /// As asked for.
        command: String,
    },
    /// The kernel does not take the file for a program, or not with such arguments.
    #[error("cannot execute {command}: {}", .source.desc())]
    Rejected {
        /// As asked for.
        command: String,
        /// The kernel's answer.
        source: Errno,
    },
    /// No pipe or terminal could be made.
    #[error("cannot make the process's streams")]
    Streams(#[source] io::Error),
    /// No process could be made.
    #[error("cannot start a process")]
    Spawn(#[source] SpawnError),
}

impl From<StartError> for ConnectError {
    fn from(error: StartError) -> Self {
        let message = error.to_string();
        match error {
            StartError::NoCommand
            | StartError::Nul { .. }
            | StartError::VariableName { .. }
            | StartError::Request(_)
            | StartError::Cwd { .. }
            | StartError::Rejected { .. } => ConnectError::invalid_argument(message),
            StartError::NotFound { .. } => ConnectError::not_found(message),
            StartError::NotExecutable { .. } => ConnectError::permission_denied(message),
            StartError::Streams(source) => {
                ConnectError::resource_exhausted(format!("{message}: {source}"))
            }
            StartError::Spawn(source) => {
                ConnectError::resource_exhausted(format!("{message}: {source}"))
            }
        }
    }
}

/// A process that has just been started, and what is needed to [`super::run::run`] it.
pub struct Started {
    /// The process.
    pub process: Process,
    /// Readable when it has ended.
    pub pidfd: AsyncFd<OwnedFd>,
    /// Its output.
    pub sources: Vec<Source>,
}

/// Starts processes.
pub struct Starter {
    context: Arc<Context>,
    cgroups: Arc<Cgroups>,
    spawner: Mutex<Spawner>,
    /// `/dev/null`, which stands in for a standard input that stays closed.
    null: File,
}

impl Starter {
    /// Prepares what every start needs.
    ///
    /// # Errors
    ///
    /// The kernel's, when there is no memory or no `/dev/null`.
    pub fn new(context: Arc<Context>, cgroups: Arc<Cgroups>) -> io::Result<Self> {
        let null = File::options().read(true).write(true).open("/dev/null")?;
        Ok(Self { context, cgroups, spawner: Mutex::new(Spawner::new()?), null })
    }

    /// Starts what `request` asks for, as `user`. What it writes goes into `record`, if there is one.
    ///
    /// # Errors
    ///
    /// [`StartError`]; no process is left then.
    pub fn start(
        &self,
        request: StartRequest,
        user: &User,
        record: Option<Arc<Record>>,
    ) -> Result<Started, StartError> {
        let StartRequest { process, pty, tag, stdin, .. } = request;
        let config = process.into_option().unwrap_or_default();
        if config.cmd.is_empty() {
            return Err(StartError::NoCommand);
        }
        let settings = self.context.settings();
        let mut env = environment(&settings, user, &config);
        if pty.is_set() {
            env.entry("TERM".to_owned()).or_insert_with(|| TERM.to_owned());
        }
        let workdirs = self.workdirs(&settings, user, &config)?;
        let candidates = candidates(&config.cmd, env.get("PATH").map_or("", |path| path))?;
        let args = std::iter::once(&config.cmd).chain(&config.args);
        let args = args.map(|arg| c_string("argument", arg)).collect::<Result<Vec<_>, _>>()?;
        let env = variables(&env)?;

        let wanted = Wanted::of(pty.as_option(), stdin);
        let plumbing = plumbing(wanted, user).map_err(StartError::Streams)?;
        let cgroup = self.cgroups.acquire();
        let program = Program {
            candidates: &candidates,
            args: &args,
            env: &env,
            workdirs: &workdirs,
            identity: Uid::effective().is_root().then_some(Identity {
                uid: user.uid,
                gid: user.gid,
                groups: &user.groups,
            }),
            streams: plumbing.streams(&self.null),
            cgroup: cgroup.as_ref().map(|cgroup| cgroup.dir()),
            standing: match self.context.place {
                Place::Guest => Standing::Usual,
                Place::Host => Standing::Inherited,
            },
        };
        let spawned = self.spawner.lock().unwrap_or_else(PoisonError::into_inner).spawn(&program);
        match spawned.and_then(watched) {
            Ok((pid, pidfd)) => {
                let Plumbing { input, terminal, sources, .. } = plumbing;
                let process = Process::new(pid, tag, config, input, terminal, cgroup, record);
                Ok(Started { process, pidfd, sources })
            }
            Err(error) => {
                if let Some(cgroup) = cgroup {
                    self.cgroups.release(cgroup);
                }
                let workdir = workdirs.first().map(|dir| dir.to_string_lossy().into_owned());
                Err(explain(error, config.cmd, workdir.unwrap_or_default()))
            }
        }
    }

    fn workdirs(
        &self,
        settings: &Settings,
        user: &User,
        config: &ProcessConfig,
    ) -> Result<Vec<CString>, StartError> {
        let given = config.cwd.as_deref().filter(|cwd| !cwd.is_empty());
        let path = self.context.path(given.unwrap_or_default(), user)?;
        let mut workdirs = vec![c_path(&path)?];
        // An image need not have a home for its user; only what was asked for must be there.
        if given.is_none() {
            if settings.default_workdir.is_some() {
                workdirs.push(c_path(&user.home)?);
            }
            workdirs.push(c"/".to_owned());
        }
        Ok(workdirs)
    }
}

/// Which streams a process gets.
#[derive(Debug, Clone, Copy)]
enum Wanted {
    /// Pipes, with standard input to be written to by callers.
    Pipes,
    /// Pipes, with nothing to read from standard input.
    OutputOnly,
    /// A terminal of this size.
    Terminal(Winsize),
}

impl Wanted {
    fn of(pty: Option<&PTY>, stdin: Option<bool>) -> Self {
        match (pty, stdin) {
            (Some(pty), _) => Self::Terminal(window(pty)),
            (None, Some(false)) => Self::OutputOnly,
            (None, None | Some(true)) => Self::Pipes,
        }
    }
}

fn plumbing(wanted: Wanted, user: &User) -> io::Result<Plumbing> {
    let (input, stdin) = match wanted {
        Wanted::Terminal(size) => {
            let (ours, theirs) = stream::terminal(size, user.uid)?;
            return Ok(Plumbing {
                input: Input::Terminal(Arc::clone(&ours)),
                sources: vec![Source::new(Kind::Terminal, Arc::clone(&ours))],
                terminal: Some(ours),
                theirs: Theirs::Terminal(theirs),
            });
        }
        Wanted::Pipes => {
            let (ours, theirs) = stream::input_pipe()?;
            (Input::Pipe(ours), Some(theirs))
        }
        Wanted::OutputOnly => (Input::Closed, None),
    };
    let (stdout, stdout_theirs) = stream::output_pipe()?;
    let (stderr, stderr_theirs) = stream::output_pipe()?;
    Ok(Plumbing {
        input,
        terminal: None,
        sources: vec![Source::new(Kind::Stdout, stdout), Source::new(Kind::Stderr, stderr)],
        theirs: Theirs::Pipes { stdin, stdout: stdout_theirs, stderr: stderr_theirs },
    })
}

/// Has the runtime watch a child. One that cannot be watched could never be waited for, so it is
/// killed instead.
fn watched(child: Child) -> Result<(i32, AsyncFd<OwnedFd>), SpawnError> {
    let Child { pid, pidfd } = child;
    stream::watched(pidfd, Interest::READABLE).map(|pidfd| (pid, pidfd)).map_err(|error| {
        let (pidfd, error) = error.into_parts();
        let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
        let _ = waitid(Id::PIDFd(pidfd.as_fd()), WaitPidFlag::WEXITED);
        let errno = error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw);
        SpawnError::Watch(errno)
    })
}

/// Both ends of a process's streams. The child's are closed when this is dropped.
struct Plumbing {
    input: Input,
    terminal: Option<Shared>,
    sources: Vec<Source>,
    theirs: Theirs,
}

enum Theirs {
    Pipes { stdin: Option<OwnedFd>, stdout: OwnedFd, stderr: OwnedFd },
    Terminal(OwnedFd),
}

impl Plumbing {
    fn streams<'a>(&'a self, null: &'a File) -> Streams<'a> {
        match &self.theirs {
            Theirs::Terminal(fd) => Streams::Terminal(fd.as_fd()),
            Theirs::Pipes { stdin, stdout, stderr } => Streams::Separate([
                stdin.as_ref().map_or_else(|| null.as_fd(), |fd| fd.as_fd()),
                stdout.as_fd(),
                stderr.as_fd(),
            ]),
        }
    }
}

/// A terminal's size in characters, with the usual one where none is given.
pub fn window(pty: &PTY) -> Winsize {
    let size = pty.size.as_option();
    let number = |asked: Option<u32>, usual: u16| match asked {
        None | Some(0) => usual,
        Some(asked) => u16::try_from(asked).unwrap_or(u16::MAX),
    };
    Winsize {
        ws_col: number(size.map(|size| size.cols), 80),
        ws_row: number(size.map(|size| size.rows), 24),
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

fn environment(
    settings: &Settings,
    user: &User,
    config: &ProcessConfig,
) -> BTreeMap<String, String> {
    let mut env = BTreeMap::from([
        ("PATH".to_owned(), PATH.to_owned()),
        // Text is UTF-8 unless somebody says otherwise. Where an image lacks it, it is as none.
        ("LANG".to_owned(), "C.UTF-8".to_owned()),
        ("HOME".to_owned(), user.home.to_string_lossy().into_owned()),
        ("USER".to_owned(), user.name.clone()),
        ("LOGNAME".to_owned(), user.name.clone()),
        ("SHELL".to_owned(), user.shell.clone()),
    ]);
    env.extend(settings.env.clone());
    env.extend(config.envs.clone());
    env
}

fn variables(env: &BTreeMap<String, String>) -> Result<Vec<CString>, StartError> {
    let variable = |(name, value): (&String, &String)| {
        if name.is_empty() || name.contains('=') {
            return Err(StartError::VariableName { name: name.clone() });
        }
        c_string("environment variable", &format!("{name}={value}"))
    };
    env.iter().map(variable).collect()
}

fn candidates(command: &str, path: &str) -> Result<Vec<CString>, StartError> {
    if command.contains('/') {
        return Ok(vec![c_string("command", command)?]);
    }
    // An empty element means the working directory, as for a shell.
    let candidate = |dir: &str| match dir {
        "" => c_string("command", &format!("./{command}")),
        _ => c_string("command", &format!("{dir}/{command}")),
    };
    path.split(':').map(candidate).collect()
}

fn c_string(what: &'static str, text: &str) -> Result<CString, StartError> {
    CString::new(text).map_err(|_| StartError::Nul { what })
}

fn c_path(path: &Path) -> Result<CString, StartError> {
    let bytes = OsStr::as_bytes(path.as_os_str());
    CString::new(bytes).map_err(|_| StartError::Nul { what: "cwd" })
}

fn explain(error: SpawnError, command: String, workdir: String) -> StartError {
    match error {
        SpawnError::Workdir(source) => StartError::Cwd { path: workdir, source },
        SpawnError::Exec(Errno::ENOENT) => StartError::NotFound { command },
        SpawnError::Exec(Errno::EACCES | Errno::EPERM) => StartError::NotExecutable { command },
        SpawnError::Exec(source) => StartError::Rejected { command, source },
        other @ (SpawnError::Clone(_)
        | SpawnError::Watch(_)
        | SpawnError::Terminal(_)
        | SpawnError::Streams(_)
        | SpawnError::Identity(_)) => StartError::Spawn(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_looked_for_in_each_directory_and_a_path_is_not() {
        let names = |command, path| -> Vec<String> {
            let candidates = candidates(command, path).unwrap();
            candidates.into_iter().map(|name| name.into_string().unwrap()).collect()
        };
        assert_eq!(names("ls", "/a:/b"), ["/a/ls", "/b/ls"]);
        assert_eq!(names("ls", "/a:"), ["/a/ls", "./ls"]);
        assert_eq!(names("./ls", "/a"), ["./ls"]);
    }
}
