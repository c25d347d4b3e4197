//! A lab: a thread in network and mount namespaces of its own with an empty `/run`, so that a test
//! sees only what it made and runs beside any other test or daemon.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::census::{Census, processes_of};
use super::daemon::{Daemon, Options, bare_command};
use super::engine::Engine;
use super::own_machine::separate;
use super::skip::{is_root, skip};

/// VMs of all tests together: enough that the long test holds up no other, few enough that boots on
/// two cores stay quick.
const VM_LIMIT: u32 = 5;

static VMS: Mutex<u32> = Mutex::new(0);
static VM_GONE: Condvar = Condvar::new();

/// One test's machine.
pub struct Lab {
    root: tempfile::TempDir,
    data_dir: PathBuf,
    images: PathBuf,
}

/// Runs a test that has at most `vms` VMs at a time in a lab of its own, and compares what is on the
/// machine before and after. A test that cannot run is skipped.
pub fn in_a_lab(vms: u32, test: impl AsyncFnOnce(&Lab) + Send + 'static) {
    if !is_root("a VM") {
        return;
    }
    let images = match images() {
        Ok(images) => images,
        Err(reason) => {
            skip(&reason);
            return;
        }
    };
    let _turn = Turn::take(vms);
    let machine = thread::spawn(move || {
        separate();
        let lab = Lab::new(images);
        let before = Census::take(lab.data_dir());
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(test(&lab));
        before.compare(&Census::take(lab.data_dir()));
    });
    if let Err(panic) = machine.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Where the images are, or why no VM can be started.
fn images() -> Result<PathBuf, String> {
    let program = Engine::present().program();
    if nestbox::vmm::find_program(program).is_none() {
        return Err(format!("{program} is not installed: run `scripts/setup.sh tests`"));
    }
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join(".nestbox/images");
    let dir = std::env::var_os("NESTBOX_TEST_IMAGES").map_or_else(default, PathBuf::from);
    match dir.join("debian/image.json").is_file() {
        true => Ok(dir),
        false => Err(format!("no image called debian in {}: `make test` makes it", dir.display())),
    }
}

impl Lab {
    fn new(images: PathBuf) -> Self {
        // Only root may look inside, as in `/root`.
        let root = tempfile::Builder::new()
            .prefix("nestbox-vm-")
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir()
            .expect("a directory");
        let data_dir = root.path().join("data");
        Self { root, data_dir, images }
    }

    /// Where the daemon keeps everything. It makes the directory itself.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Where images are.
    pub fn images(&self) -> &Path {
        &self.images
    }

    /// Images of the test's own, the same but without a warm snapshot.
    pub fn cold_images(&self) -> PathBuf {
        let images = self.path("images");
        if !images.exists() {
            let mut copy = Command::new("cp");
            // Links: nobody writes to what is in an image.
            copy.args(["-al"]).arg(&self.images).arg(&images);
            assert!(copy.status().expect("cp runs").success(), "images are on another device");
            for image in fs::read_dir(&images).expect("images").flatten() {
                let _ = fs::remove_dir_all(image.path().join("warm"));
            }
        }
        images
    }

    /// A path for a file of the test's own.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// Starts the daemon as most tests want it.
    pub async fn daemon(&self) -> Daemon {
        self.daemon_with(Options::default()).await
    }

    /// Starts a daemon.
    pub async fn daemon_with(&self, options: Options) -> Daemon {
        Daemon::start(self, options).await
    }

    /// The program with nothing of the caller's environment, knowing this lab's daemon.
    pub fn nestbox(&self) -> Command {
        let mut command = bare_command();
        command.env("NESTBOX_DATA_DIR", &self.data_dir);
        command
    }

    /// Runs the program to its end.
    pub fn cli(&self, args: &[&str]) -> Output {
        self.nestbox().args(args).output().expect("the program starts")
    }

    /// Runs the program to its end, which is a good one; returns what it printed.
    pub fn cli_ok(&self, args: &[&str]) -> String {
        let output = self.cli(args);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {}: {errors}", output.status);
        String::from_utf8(output.stdout).expect("text")
    }
}

impl Drop for Lab {
    /// A test that failed leaves VMs; the machine's other users should not suffer from them.
    fn drop(&mut self) {
        if thread::panicking() {
            let log = fs::read_to_string(self.path("daemon.log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let last = &lines[lines.len().saturating_sub(60)..];
            eprintln!("--- the daemon's log ends with\n{}\n---", last.join("\n"));
            for (pid, _) in processes_of(&self.data_dir) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }
}

/// The right to have some VMs.
struct Turn(u32);

impl Turn {
    fn take(vms: u32) -> Self {
        assert!(vms <= VM_LIMIT, "a test has at most {VM_LIMIT} VMs");
        let mut running = VMS.lock().unwrap_or_else(PoisonError::into_inner);
        while *running + vms > VM_LIMIT {
            running = VM_GONE.wait(running).unwrap_or_else(PoisonError::into_inner);
        }
        *running += vms;
        Self(vms)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *VMS.lock().unwrap_or_else(PoisonError::into_inner) -= self.0;
        VM_GONE.notify_all();
    }
}

/// Runs a command of single words on the lab's machine; returns what it printed.
pub fn run(command: &str) -> String {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().expect("a program")).args(words).output();
    let output = output.unwrap_or_else(|error| panic!("{command}: {error}"));
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}
