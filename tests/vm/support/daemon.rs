//! The daemon: the real binary, started, ended and killed.

use std::fs::{self, File};
use std::io;
use std::ops::Deref;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::api::Api;
use super::lab::Lab;
use super::{Census, Engine, PATIENCE};

/// The daemon's own variable: the best that works here, if it is not set.
const HYPERVISOR: &str = "NESTBOX_HYPERVISOR";

/// Names a directory for the logs and consoles of tests that fail.
const LEFT: &str = "NESTBOX_TEST_LEFT";

/// A script in QEMU's place needs a shell, which QEMU's own root has not.
const NO_JAILER: [&str; 2] = ["--jailer", "off"];

/// How a daemon is started.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where it listens.
    pub listen: String,
    /// Network slots that it keeps ready.
    pub slot_pool: usize,
    /// Sandboxes that it keeps ready.
    pub standbys: usize,
    /// Firecrackers that it keeps ready.
    pub vmm_pool: usize,
    /// Where its images are; the lab's if absent.
    pub images: Option<PathBuf>,
    /// Its database; in the data directory if absent.
    pub database: Option<PathBuf>,
    /// Where it looks for programs; where the test does if absent.
    pub path: Option<String>,
    /// What is to fail on purpose, such as `frozen=kill-vm`.
    pub fault: Option<String>,
    /// Descriptors that it may have open, by the soft limit and by the hard one; as many as the test
    /// if absent.
    pub nofile: Option<(u32, u32)>,
    /// More of the command line.
    pub flags: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        let listen = "127.0.0.1:0".to_owned();
        let (images, database, path, fault, nofile) = (None, None, None, None, None);
        let flags = Vec::new();
        let (slot_pool, standbys, vmm_pool) = (1, 0, 0);
        Self { listen, slot_pool, standbys, vmm_pool, images, database, path, fault, nofile, flags }
    }
}

/// What a daemon finds around it; the rest of its environment is the same in each test.
#[derive(Debug, Clone, Default)]
struct Environment {
    path: Option<String>,
    fault: Option<String>,
    nofile: Option<(u32, u32)>,
}

/// A running daemon. Dropped without being stopped, it is killed.
pub struct Daemon {
    api: Api,
    process: Option<Child>,
    command: Vec<String>,
    environment: Environment,
    lab_root: PathBuf,
    data_dir: PathBuf,
}

impl Deref for Daemon {
    type Target = Api;

    fn deref(&self) -> &Api {
        &self.api
    }
}

/// The program in an environment that says nothing but where programs are, and which hypervisor the
/// tests are about.
pub fn bare_command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nestbox"));
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.envs(std::env::var_os(HYPERVISOR).map(|name| (HYPERVISOR, name)));
    command.stdin(Stdio::null());
    command
}

impl Daemon {
    pub(super) async fn start(lab: &Lab, options: Options) -> Self {
        let text = |path: &Path| path.display().to_string();
        let mut command: Vec<String> =
            ["serve", "--log", "info,actix_server=warn,sea_orm_migration=warn"]
                .map(str::to_owned)
                .into();
        let images = options.images.as_deref().unwrap_or(lab.images());
        for (flag, value) in [
            ("--listen", options.listen.clone()),
            ("--data-dir", text(lab.data_dir())),
            ("--image-dir", text(images)),
            ("--slot-pool", options.slot_pool.to_string()),
            ("--standbys", options.standbys.to_string()),
            ("--vmm-pool", options.vmm_pool.to_string()),
        ] {
            command.extend([flag.to_owned(), value]);
        }
        if Engine::present() == Engine::Firecracker {
            // Its guests run in a machine that runs in software itself.
            command.extend(["--boot-timeout-sec".to_owned(), PATIENCE.as_secs().to_string()]);
            // The lab's was built for glibc.
            command.extend(["--allow-missing", "seccomp"].map(str::to_owned));
        }
        if let Some(database) = &options.database {
            command.extend(["--database-url".to_owned(), text(database)]);
        }
        command.extend(options.flags.iter().cloned());
        if options.path.is_some() && Engine::present() != Engine::Firecracker {
            command.extend(NO_JAILER.map(str::to_owned));
        }
        let lab_root = lab.path("");
        let Options { path, fault, nofile, .. } = options;
        let environment = Environment { path, fault, nofile };
        let (process, api) = launch(&command, &environment, &lab_root, lab.data_dir()).await;
        let data_dir = lab.data_dir().to_owned();
        Self { api, process: Some(process), command, environment, lab_root, data_dir }
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("the daemon runs").id()
    }

    /// The API, to be called from several tasks.
    pub fn api(&self) -> &Api {
        &self.api
    }

    /// What the daemon printed on standard output since it was started the last time.
    pub fn announced(&self) -> String {
        fs::read_to_string(self.lab_root.join("daemon.out")).expect("its output")
    }

    /// Everything that the daemon has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.lab_root.join("daemon.log")).expect("its log")
    }

    /// What belongs to the daemon and its sandboxes now.
    pub fn census(&self) -> Census {
        Census::take(&self.data_dir)
    }

    /// Waits until there is exactly what there was before; panics with the difference.
    pub async fn is_back_to(&self, idle: &Census) {
        for _ in 0..500 {
            if self.census() == *idle {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        idle.compare(&self.census());
    }

    /// Kills the daemon, as a crash or the kernel's lack of memory would.
    pub async fn kill9(&mut self) {
        let mut process = self.process.take().expect("the daemon runs");
        process.kill().expect("it can be killed");
        process.wait().expect("it can be reaped");
    }

    /// Has it find programs in `path` when it is started the next time.
    pub fn set_path(&mut self, path: Option<String>) {
        self.environment.path = path;
        let with_shell = NO_JAILER.map(str::to_owned);
        self.command.retain(|word| !with_shell.contains(word));
        if self.environment.path.is_some() && Engine::present() != Engine::Firecracker {
            self.command.extend(with_shell);
        }
    }

    /// Has it fail on purpose when it is started the next time, or no more.
    pub fn set_fault(&mut self, fault: Option<&str>) {
        self.environment.fault = fault.map(str::to_owned);
    }

    /// Waits for the daemon to end by itself, and says how.
    pub async fn ended(&mut self) -> ExitStatus {
        let process = self.process.as_mut().expect("the daemon runs");
        let status = wait(process).await;
        self.process = None;
        status.unwrap_or_else(|| panic!("the daemon did not end within {PATIENCE:?}"))
    }

    /// Starts the daemon again, on the same data directory.
    pub async fn start_again(&mut self) {
        assert!(self.process.is_none(), "the daemon runs already");
        let (process, api) =
            launch(&self.command, &self.environment, &self.lab_root, &self.data_dir).await;
        self.process = Some(process);
        self.api = api;
    }

    /// Ends the daemon as its init system would, and checks that this is orderly.
    pub async fn stop(&mut self) {
        let status = self.signal(Signal::SIGTERM).await;
        assert!(status.success(), "the daemon ended with {status}");
        for name in ["url", "nestbox.sock"] {
            assert!(!self.data_dir.join(name).exists(), "nobody answers at {name} any more");
        }
        let log = self.log();
        assert!(!log.contains("panicked at"), "something panicked:\n{log}");
    }

    /// Sends a signal and waits for the daemon to end.
    pub async fn signal(&mut self, signal: Signal) -> ExitStatus {
        let mut process = self.process.take().expect("the daemon runs");
        kill(Pid::from_raw(process.id() as i32), signal).expect("it can be signalled");
        match wait(&mut process).await {
            Some(status) => status,
            None => {
                process.kill().expect("it can be killed");
                process.wait().expect("it can be reaped");
                panic!("the daemon did not end within {PATIENCE:?} of {signal}");
            }
        }
    }
}

impl Daemon {
    /// Copies its log and its sandboxes' consoles to a directory named after the lab.
    fn leave_logs(&self, left: &Path) -> io::Result<()> {
        let left = left.join(self.lab_root.components().next_back().expect("a name"));
        fs::create_dir_all(&left)?;
        fs::copy(self.lab_root.join("daemon.log"), left.join("daemon.log"))?;
        for sandbox in fs::read_dir(self.data_dir.join("sandboxes"))?.flatten() {
            let name = format!("{}.console.log", sandbox.file_name().to_string_lossy());
            // One that is being made has none yet.
            let _ = fs::copy(sandbox.path().join("console.log"), left.join(name));
        }
        Ok(())
    }
}

/// Waits for the end of a process, as long as anything may take.
async fn wait(process: &mut Child) -> Option<ExitStatus> {
    let started = Instant::now();
    while started.elapsed() <= PATIENCE {
        if let Some(status) = process.try_wait().expect("it can be reaped") {
            return Some(status);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    None
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(left) = std::env::var_os(LEFT).filter(|_| thread::panicking()) {
            let _ = self.leave_logs(Path::new(&left));
        }
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// Starts the program and waits until it answers.
async fn launch(
    command: &[String],
    environment: &Environment,
    lab_root: &Path,
    data_dir: &Path,
) -> (Child, Api) {
    let output = lab_root.join("daemon.out");
    let log = File::options().create(true).append(true).open(lab_root.join("daemon.log"));
    let mut program = bare_command();
    if let Some((soft, hard)) = environment.nofile {
        let bare = program;
        program = Command::new("prlimit");
        program.arg(format!("--nofile={soft}:{hard}")).arg(bare.get_program());
        program.env_clear().envs(bare.get_envs().filter_map(|(name, value)| Some((name, value?))));
        program.stdin(Stdio::null());
    }
    let mut process = program
        .args(command)
        .envs(environment.path.as_ref().map(|path| ("PATH", path)))
        .envs(environment.fault.as_ref().map(|fault| ("NESTBOX_FAULT", fault)))
        .stdout(File::create(&output).expect("a file for its output"))
        .stderr(log.expect("a file for its log"))
        .spawn()
        .expect("the daemon starts");
    let started = Instant::now();
    let url = loop {
        let text = fs::read_to_string(&output).expect("its output");
        // Whole lines only.
        let announced = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        if let Some((_, url)) = announced.lines().find_map(|line| line.split_once(" listens on ")) {
            break url.to_owned();
        }
        if let Some(status) = process.try_wait().expect("it can be asked") {
            let log = fs::read_to_string(lab_root.join("daemon.log")).unwrap_or_default();
            panic!("the daemon ended with {status} ({:?}):\n{log}", status.signal());
        }
        assert!(started.elapsed() < PATIENCE, "the daemon did not start within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    let key = fs::read_to_string(data_dir.join("api-key")).expect("its API key");
    let api = Api::new(&url, key.trim(), data_dir);
    assert_eq!(api.get("/health").await.status, 200, "the daemon answers");
    (process, api)
}
