//! Which hypervisor to use on this host, and why.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

use super::hypervisor::{Hypervisor, HypervisorError};
use super::kvm::{self, Check, Outcome};
use super::qemu::{Accel, Qemu};

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

/// No hypervisor can be used.
#[derive(Debug, thiserror::Error)]
pub enum ChoiceError {
    /// The one that was asked for is not part of this version.
    #[error("Firecracker is not supported by this version: choose auto or qemu")]
    NoFirecracker,
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
/// since the host booted.
///
/// # Errors
///
/// [`ChoiceError`], saying what to install.
pub async fn choose(wanted: Wanted, image: Option<TrialImage<'_>>) -> Result<Choice, ChoiceError> {
    if wanted == Wanted::Firecracker {
        return Err(ChoiceError::NoFirecracker);
    }
    let mut checks = kvm::look();
    if checks.iter().all(|check| check.outcome == Outcome::Good) {
        checks.push(verdict(image).await?);
    }
    let bad = checks.iter().find(|check| check.outcome != Outcome::Good);
    let (accel, reason) = match bad {
        None => (Accel::Kvm, "hardware virtualization works here".to_owned()),
        Some(check) => (
            Accel::Tcg,
            format!("in software, because hardware virtualization does not work: {}", check.found),
        ),
    };
    let qemu = Qemu::find(accel).await.map_err(ChoiceError::None)?;
    let found = format!("{} {}", qemu.program().display(), qemu.version());
    checks.push(Check::of("QEMU is installed", Ok(found)));
    Ok(Choice { hypervisor: Arc::new(qemu), checks, reason })
}

/// Whether an image boots under KVM: from memory, or by trying.
async fn verdict(image: Option<TrialImage<'_>>) -> Result<Check, ChoiceError> {
    if let Some(kept) = kvm::kept_verdict() {
        return Ok(kept);
    }
    let what = "a guest boots under KVM";
    let Some(image) = image else {
        let found = "no image to try with: build one with `nestbox image build debian`".to_owned();
        return Ok(Check { what: what.to_owned(), outcome: Outcome::Unknown, found });
    };
    let qemu = Qemu::find(Accel::Kvm).await.map_err(ChoiceError::None)?;
    let verdict = Check::of(what, trial(&qemu, &image).await);
    if let Err(error) = kvm::keep_verdict(&verdict) {
        tracing::warn!(%error, "the outcome of the trial boot is not kept");
    }
    Ok(verdict)
}

/// Boots an image without network until its agent speaks.
async fn trial(qemu: &Qemu, image: &TrialImage<'_>) -> Result<String, String> {
    let mut process = Command::new(qemu.program())
        .args(qemu.trial_command(image.kernel, image.initramfs, image.rootfs))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("QEMU does not start: {error}"))?;
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
            Err(format!("QEMU ended before the guest's agent spoke: {said}"))
        }
        Err(_) => {
            killed.map_err(|error| format!("QEMU cannot be ended: {error}"))?;
            Err(format!("the guest's agent was silent for {TRIAL_LIMIT:?}; last line: {last}"))
        }
    }
}
