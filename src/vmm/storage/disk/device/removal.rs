//! Takes devices away, and waits for those that are still in use.
//!
//! A device stays busy for a moment after the VM that had it is gone: the kernel closes the files of a
//! process that was killed after it has reported its end, and later still what was in flight. Only that
//! is worth waiting for.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use tokio_util::sync::CancellationToken;

use super::error::DeviceError;
use super::stack::Stack;

/// How long a device that is in use is waited for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// Before the second attempt; each further wait is twice as long.
    pub first: Duration,
    /// The longest wait between two attempts.
    pub longest: Duration,
    /// All of it.
    pub total: Duration,
}

impl Patience {
    /// Devices were seen to be free 28 to 212 ms after their VM had been killed.
    pub const USUAL: Self = Self {
        first: Duration::from_millis(4),
        longest: Duration::from_millis(200),
        total: Duration::from_secs(5),
    };
}

/// Whose device is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    /// One VM's, which is gone: nothing has a reason to lie on it.
    One,
    /// All those that lie on it.
    Many,
}

/// What an attempt has come to.
enum Attempt {
    Removed,
    /// Others lie on it, and may.
    Needed,
    /// Somebody has it open.
    Busy,
}

/// What a device lay on, from the top down.
#[must_use = "they are to be released"]
pub(super) struct Below(Vec<String>);

/// Removes a VM's device, and returns what it lay on.
///
/// # Errors
///
/// [`DeviceError::Busy`], [`DeviceError::Cancelled`], [`DeviceError::Kernel`]; the device stays then.
pub(super) async fn remove(
    stack: &Arc<Stack>,
    name: &str,
    patience: Patience,
    cancel: Option<&CancellationToken>,
) -> Result<Below, DeviceError> {
    let top = name.to_owned();
    let below = blocking(stack, move |stack| stack.below(&top)).await?;
    remove_one(stack, name, Owner::One, patience, cancel).await?;
    Ok(Below(below))
}

impl Below {
    /// Removes layers until one is needed by another device. The kernel then detaches their files.
    ///
    /// # Errors
    ///
    /// As [`remove`]; that layer and all below it stay.
    pub async fn release(
        self,
        stack: &Arc<Stack>,
        patience: Patience,
        cancel: Option<&CancellationToken>,
    ) -> Result<(), DeviceError> {
        for name in &self.0 {
            match remove_one(stack, name, Owner::Many, patience, cancel).await? {
                End::Removed => {}
                End::Needed => return Ok(()),
            }
        }
        Ok(())
    }
}

/// How removing has ended.
enum End {
    Removed,
    Needed,
}

async fn remove_one(
    stack: &Arc<Stack>,
    name: &str,
    owner: Owner,
    patience: Patience,
    cancel: Option<&CancellationToken>,
) -> Result<End, DeviceError> {
    let begun = Instant::now();
    let mut wait = patience.first;
    loop {
        let device = name.to_owned();
        match blocking(stack, move |stack| attempt(stack, &device, owner)).await? {
            Attempt::Removed => return Ok(End::Removed),
            Attempt::Needed => return Ok(End::Needed),
            Attempt::Busy => {}
        }
        let waited = begun.elapsed();
        if waited + wait > patience.total {
            return Err(DeviceError::Busy { name: name.to_owned(), waited });
        }
        let cancelled = async {
            match cancel {
                Some(cancel) => cancel.cancelled().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = cancelled => return Err(DeviceError::Cancelled { name: name.to_owned() }),
            () = tokio::time::sleep(wait) => {}
        }
        wait = (wait * 2).min(patience.longest);
    }
}

fn attempt(stack: &Stack, name: &str, owner: Owner) -> Result<Attempt, DeviceError> {
    let _turn = stack.turn();
    let failed = DeviceError::kernel("remove", name);
    match stack.remove_now(name) {
        Ok(()) => Ok(Attempt::Removed),
        Err(error) if error.raw_os_error() == Some(Errno::EBUSY as i32) => {
            let needed =
                owner == Owner::Many && stack.kernel.carries_another(name).unwrap_or(false);
            Ok(if needed { Attempt::Needed } else { Attempt::Busy })
        }
        Err(error) => Err(failed(error)),
    }
}

/// Runs what blocks where blocking is allowed.
pub(super) async fn blocking<T: Send + 'static>(
    stack: &Arc<Stack>,
    work: impl FnOnce(&Stack) -> T + Send + 'static,
) -> T {
    let stack = stack.clone();
    let done = tokio::task::spawn_blocking(move || work(&stack)).await;
    done.expect("calls of the kernel do not panic")
}
