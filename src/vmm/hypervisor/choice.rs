//! Which hypervisor to use on this host, and why.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

use crate::domain::engine::Engine;
use crate::vmm::hypervisor::firecracker::{self, Firecracker, Jailing};
use crate::vmm::hypervisor::kvm::{self, Check, Outcome};
use crate::vmm::hypervisor::qemu::{Accel, Qemu, Root};
use crate::vmm::hypervisor::{Hypervisor, HypervisorError};
use crate::vmm::storage::disk::Devices;

/// A guest that works is up long before that, with hardware virtualization at least.
const TRIAL_LIMIT: Duration = Duration::from_secs(30);

/// What somebody wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// The best one that works here.
    Auto,
    /// Firecracker.
    Firecracker,
    /// QEMU, with or without hardware virtualization.
    Qemu,
}

/// What the choice depends on.
#[derive(Debug, Clone, Copy)]
pub struct Preferences<'a> {
    /// What somebody wants.
    pub wanted: Wanted,
    /// The Firecracker program, if not the one on `PATH`.
    pub firecracker: Option<&'a Path>,
    /// Whether a hypervisor sees a root of its own or the host's.
    pub jailing: Jailing,
    /// Where disks are made.
    pub data_dir: &'a Path,
}

/// No hypervisor can be used.
#[derive(Debug, thiserror::Error)]
pub enum ChoiceError {
    /// The one that was asked for cannot be.
    #[error("Firecracker cannot be used here: {what}: {found}")]
    Firecracker {
        /// What was looked at.
        what: String,
        /// What was found.
        found: String,
    },
    /// The only one left cannot be used.
    #[error("no hypervisor can be used")]
    None(#[source] HypervisorError),
}

/// What was chosen.
pub struct Choice {
    /// The hypervisor.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// Everything that was looked at on the way.
    pub checks: Vec<Check>,
    /// Why it was chosen, in one sentence.
    pub reason: String,
}

/// What QEMU's documentation says of itself in software: docs/system/security.rst, "Virtualization Use Case"
/// and "Non-virtualization Use Case".
const SOFTWARE_CAVEAT: &str = "QEMU's authors do not promise that a guest in software cannot take QEMU over: what \
     keeps it from the host then is QEMU's own user, its filter of system calls and the files it has open \
     (docs/security.md); hardware virtualization is better";

impl Choice {
    /// What should be known about how well the choice isolates guests.
    pub fn caveat(&self) -> Option<&'static str> {
        match self.hypervisor.engine() {
            Engine::QemuTcg => Some(SOFTWARE_CAVEAT),
            Engine::Firecracker | Engine::QemuKvm | Engine::Simulated => None,
        }
    }
}

/// The parts of an image that a trial boots.
pub struct TrialImage<'a> {
    /// Uncompressed kernel.
    pub kernel: &'a Path,
    /// Initial file system.
    pub initramfs: &'a Path,
    /// Root file system; it is not written to.
    pub rootfs: &'a Path,
}

/// Chooses a hypervisor. `image` is booted once under KVM, if KVM looks good and nobody has tried
/// since the host booted; not if somebody wants Firecracker in any case.
///
/// # Errors
///
/// [`ChoiceError`], saying what to install.
pub async fn choose(
    preferences: Preferences<'_>,
    image: Option<TrialImage<'_>>,
) -> Result<Choice, ChoiceError> {
    let mut checks = kvm::look();
    let no_kvm = first_bad(&checks);
    let mut firecracker = None;
    match preferences.wanted {
        Wanted::Qemu => {}
        Wanted::Auto | Wanted::Firecracker => {
            let (found, looked) = look_for_firecracker(preferences).await;
            checks.extend(looked);
            firecracker = found;
        }
    }
    match (preferences.wanted, firecracker, first_bad(&checks)) {
        (Wanted::Firecracker, Some(firecracker), None) => {
            let reason = "the settings ask for it".to_owned();
            Ok(Choice { hypervisor: Arc::new(firecracker), checks, reason })
        }
        (Wanted::Firecracker, _, bad) => {
            let Check { what, found, .. } = bad.expect("what is not found is a bad check");
            Err(ChoiceError::Firecracker { what, found })
        }
        (Wanted::Auto, Some(firecracker), None) => {
            let verdict = firecracker_verdict(&firecracker, image.as_ref()).await;
            let good = verdict.outcome == Outcome::Good;
            checks.push(verdict);
            match good {
                true => {
                    let reason = "hardware virtualization works here".to_owned();
                    Ok(Choice { hypervisor: Arc::new(firecracker), checks, reason })
                }
                false => choose_qemu(preferences, no_kvm, checks, image).await,
            }
        }
        (Wanted::Auto | Wanted::Qemu, _, _) => {
            choose_qemu(preferences, no_kvm, checks, image).await
        }
    }
}

fn first_bad(checks: &[Check]) -> Option<Check> {
    checks.iter().find(|check| check.outcome != Outcome::Good).cloned()
}

/// QEMU, on the CPU where that works. `no_kvm` says why KVM is out of the question, if it is.
async fn choose_qemu(
    preferences: Preferences<'_>,
    no_kvm: Option<Check>,
    mut checks: Vec<Check>,
    image: Option<TrialImage<'_>>,
) -> Result<Choice, ChoiceError> {
    let mut bad = no_kvm;
    if bad.is_none() {
        // The trial runs as root, VMs do not.
        let mut looked = vec![kvm::look_for_others()];
        if first_bad(&looked).is_none() {
            looked.push(qemu_verdict(image).await?);
        }
        bad = first_bad(&looked);
        checks.extend(looked);
    }
    let (accel, reason) = match bad {
        None => (Accel::Kvm, "hardware virtualization works here".to_owned()),
        Some(check) => (
            Accel::Tcg,
            format!("in software, because hardware virtualization does not work: {}", check.found),
        ),
    };
    let root = match preferences.jailing {
        Jailing::Jailer => Root::Empty,
        Jailing::None => Root::Host,
    };
    let qemu = Qemu::find(accel, root).await.map_err(ChoiceError::None)?;
    let found = format!("{} {}", qemu.program().display(), qemu.version());
    checks.push(Check::of("QEMU is installed", Ok(found)));
    checks.push(Check::of("QEMU is confined", Ok(qemu.confinement())));
    if accel == Accel::Tcg {
        let (what, found) =
            ("a guest in software is isolated".to_owned(), SOFTWARE_CAVEAT.to_owned());
        checks.push(Check { what, outcome: Outcome::Unknown, found });
    }
    Ok(Choice { hypervisor: Arc::new(qemu), checks, reason })
}

/// Looks at everything that Firecracker needs beside KVM; stops at the first that is bad.
async fn look_for_firecracker(preferences: Preferences<'_>) -> (Option<Firecracker>, Vec<Check>) {
    let found = Firecracker::find(preferences.firecracker, preferences.jailing).await;
    let said = match &found {
        Ok(it) => Ok(format!(
            "{} {} (supported: {}), confined {}",
            it.program().display(),
            it.version(),
            firecracker::SUPPORTED,
            it.confinement(),
        )),
        Err(error) => Err(crate::chain(error).to_string()),
    };
    let mut checks = vec![Check::of("Firecracker is installed", said)];
    let Ok(firecracker) = found else { return (None, checks) };
    // Asking makes nothing, so the directory may not be there yet.
    let mut existing = preferences.data_dir.ancestors();
    let existing = existing.find(|dir| dir.exists()).unwrap_or(Path::new("/"));
    let devices = Devices::open(existing);
    let devices = devices.map(|_| "yes".to_owned());
    let devices = devices.map_err(|error| crate::chain(&error).to_string());
    checks.push(Check::of("device-mapper makes snapshots", devices));
    checks.push(Check::of("userfaultfd can be used", userfaultfd(preferences.jailing)));
    if preferences.jailing == Jailing::None {
        // The jailer makes a device of its own.
        checks.push(kvm::look_for_others());
    }
    (Some(firecracker), checks)
}

/// Whether an unprivileged Firecracker may have the faults of its guest served by a pager. Those are
/// the kernel's own, which userfaultfd(2) leaves to who may open its device. Firecracker asks for
/// none in another way where there is a device, whatever the setting.
fn userfaultfd(jailing: Jailing) -> Result<String, String> {
    const SETTING: &str = "/proc/sys/vm/unprivileged_userfaultfd";
    let device = Path::new("/dev/userfaultfd");
    match (jailing, device.exists()) {
        (Jailing::Jailer, true) => Ok("/dev/userfaultfd, which the jailer passes on".to_owned()),
        (Jailing::None, true) => {
            kvm::open_to_vms(device).map(|_| "/dev/userfaultfd, which VMs may open".to_owned())
        }
        (_, false) => match std::fs::read_to_string(SETTING) {
            Ok(value) if value.trim() == "1" => Ok("by everybody".to_owned()),
            _ => Err(format!(
                "there is no /dev/userfaultfd, which Linux 6.1 brings: \
                 before that it takes `echo 1 > {SETTING}`"
            )),
        },
    }
}

const BOOTS: &str = "a guest boots under KVM";

fn nothing_to_try_with() -> Check {
    let found = "no image to try with: build one with `nestbox image build debian`".to_owned();
    Check { what: BOOTS.to_owned(), outcome: Outcome::Unknown, found }
}

/// Whether an image boots under KVM: from memory, or by trying.
async fn firecracker_verdict(firecracker: &Firecracker, image: Option<&TrialImage<'_>>) -> Check {
    const NAME: &str = "firecracker";
    if let Some(kept) = kvm::kept_verdict(NAME) {
        return kept;
    }
    let Some(image) = image else { return nothing_to_try_with() };
    let tried = async {
        let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
        let config = dir.path().join("config.json");
        let text = Firecracker::trial_config(image.kernel, image.initramfs, image.rootfs);
        std::fs::write(&config, text).map_err(|error| error.to_string())?;
        let mut command = Command::new(firecracker.program());
        command.args(["--no-api", "--level", "Error", "--config-file"]).arg(&config);
        trial(command).await
    };
    keep(NAME, Check::of(BOOTS, tried.await))
}

/// The same with QEMU.
async fn qemu_verdict(image: Option<TrialImage<'_>>) -> Result<Check, ChoiceError> {
    const NAME: &str = "qemu";
    if let Some(kept) = kvm::kept_verdict(NAME) {
        return Ok(kept);
    }
    let Some(image) = image else { return Ok(nothing_to_try_with()) };
    let qemu = Qemu::find(Accel::Kvm, Root::Host).await.map_err(ChoiceError::None)?;
    let mut command = Command::new(qemu.program());
    command.args(qemu.trial_command(image.kernel, image.initramfs, image.rootfs));
    Ok(keep(NAME, Check::of(BOOTS, trial(command).await)))
}

fn keep(program: &str, verdict: Check) -> Check {
    if let Err(error) = kvm::keep_verdict(program, &verdict) {
        tracing::warn!(%error, "the outcome of the trial boot is not kept");
    }
    verdict
}

/// Boots an image without network until its agent speaks.
async fn trial(mut command: Command) -> Result<String, String> {
    let mut process = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("the hypervisor does not start: {error}"))?;
    let console = process.stdout.take().expect("it is piped");
    let mut lines = BufReader::new(console).lines();
    let mut last = String::new();
    let speaks = async {
        while let Ok(Some(line)) = lines.next_line().await {
            if line.contains("envd: ready") {
                return true;
            }
            last = line;
        }
        false
    };
    let outcome = timeout(TRIAL_LIMIT, speaks).await;
    let killed = process.kill().await;
    match outcome {
        Ok(true) => Ok("it does".to_owned()),
        Ok(false) => {
            let mut errors = String::new();
            if let Some(mut stderr) = process.stderr.take() {
                use tokio::io::AsyncReadExt;
                // What cannot be read is not told.
                let _ = stderr.read_to_string(&mut errors).await;
            }
            let said = errors.lines().last().unwrap_or(&last).to_owned();
            Err(format!("the hypervisor ended before the guest's agent spoke: {said}"))
        }
        Err(_) => {
            killed.map_err(|error| format!("the hypervisor cannot be ended: {error}"))?;
            Err(format!("the guest's agent was silent for {TRIAL_LIMIT:?}; last line: {last}"))
        }
    }
}
