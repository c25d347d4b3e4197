//! A slot in use: the guard that keeps one VM's network.

use std::fmt;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use nix::time::{ClockId, clock_gettime};

use super::NetworkError;
use super::filter::egress::Reach;
use super::names::NameGuard;
use super::namespace::{self, on_thread};
use super::pool::Shared;
use super::{setup, tap};
use crate::domain::egress::Policy;
use crate::domain::slot::SlotIndex;

/// Which use of a slot's number this is: it grows with every use, also from one daemon to the next
/// while the machine is up. Whoever keeps connections to a slot's address keeps this beside them and
/// uses them only while it is the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Generation(u64);

impl Generation {
    /// The clock does the counting: no number is in use twice within a nanosecond.
    fn now() -> Self {
        let now = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("every kernel has this clock");
        let (seconds, nanoseconds) = (now.tv_sec() as u64, now.tv_nsec() as u64);
        Self(seconds * 1_000_000_000 + nanoseconds)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// What holds for the guest now.
#[derive(Debug)]
struct Enforced {
    reach: Reach,
    /// There while the policy has rules about names.
    names: Option<NameGuard>,
}

/// The network of one VM. [`Slot::release`] is the way out when the VM is gone, [`Slot::detach`]
/// when the VM is to outlive this daemon; a dropped slot is removed by the pool's janitor, unless the
/// pool is shut down.
pub struct Slot {
    index: SlotIndex,
    generation: Generation,
    namespace: std::path::PathBuf,
    enforced: tokio::sync::Mutex<Enforced>,
    /// `None` once somebody else is responsible.
    pool: Option<Arc<Shared>>,
}

impl Slot {
    /// A slot whose rules are those of a reach.
    pub(super) fn new(index: SlotIndex, pool: Arc<Shared>, reach: Reach) -> Self {
        let enforced = tokio::sync::Mutex::new(Enforced { reach, names: None });
        let namespace = namespace::path(index);
        Self { index, generation: Generation::now(), namespace, enforced, pool: Some(pool) }
    }

    /// The number, from which a later daemon adopts the slot.
    pub fn index(&self) -> SlotIndex {
        self.index
    }

    /// Which use of the number this is.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// The address by which this host reaches the guest.
    pub fn address(&self) -> Ipv4Addr {
        self.index.access_address()
    }

    /// Path of the network namespace.
    pub fn namespace(&self) -> &Path {
        &self.namespace
    }

    /// Opens the tap device for a VM process to inherit. It carries Ethernet frames with a
    /// virtio-net header and works in whatever namespace the VM process runs. The descriptor is
    /// close-on-exec and blocking: whoever starts the process clears the flag in the child.
    ///
    /// # Errors
    ///
    /// [`NetworkError::Tap`]; with `ResourceBusy` as the cause while a VM still has the tap.
    pub async fn tap(&self) -> Result<OwnedFd, NetworkError> {
        let slot = self.index;
        let open = move || {
            namespace::enter_slot(slot)
                .and_then(|()| tap::open())
                .map_err(|source| NetworkError::Tap { slot, source })
        };
        on_thread("nestbox-tap", open).await
    }

    /// Has the policy decide what the guest reaches from now on, in new connections and in those that
    /// there are, and lets so many bytes a second pass each way. A slot that was just acquired has the
    /// policy that allows everything and the pool's rate; the same once more costs nothing.
    ///
    /// # Errors
    ///
    /// [`NetworkError::Namespace`], [`NetworkError::Filter`], [`NetworkError::NameGuard`]; what held
    /// before holds on.
    pub async fn limit(&self, policy: &Policy, rate: Option<u32>) -> Result<(), NetworkError> {
        let mut now = self.enforced.lock().await;
        let reach = self.pool().reach(policy, rate);
        if now.reach == reach {
            return Ok(());
        }
        let rules = {
            let (slot, reach) = (self.index, reach.clone());
            on_thread("nestbox-egress", move || setup::limit(slot, &reach))
        };
        match (now.names.take(), policy.has_names()) {
            (Some(names), true) => {
                let changed = names.change(&reach, rules).await;
                now.names = Some(names);
                changed?;
            }
            (None, true) => {
                let names = self.start_names(&reach).await?;
                match rules.await {
                    Ok(()) => now.names = Some(names),
                    Err(error) => {
                        names.stop().await;
                        return Err(error);
                    }
                }
            }
            (names, false) => match (rules.await, names) {
                (Ok(()), Some(names)) => names.stop().await,
                (Ok(()), None) => {}
                (Err(error), names) => {
                    now.names = names;
                    return Err(error);
                }
            },
        }
        now.reach = reach;
        Ok(())
    }

    /// Serves names to a guest whose rules are there already.
    pub(super) async fn guard_names(&self) -> Result<(), NetworkError> {
        let mut now = self.enforced.lock().await;
        if now.reach.policy.has_names() && now.names.is_none() {
            now.names = Some(self.start_names(&now.reach).await?);
        }
        Ok(())
    }

    async fn start_names(&self, reach: &Reach) -> Result<NameGuard, NetworkError> {
        NameGuard::start(self.index, reach, self.pool().name_limits()).await
    }

    fn pool(&self) -> &Arc<Shared> {
        self.pool.as_ref().expect("a slot that is there to be used has its pool")
    }

    /// Removes the slot, of which the VM has to be gone. Once this has been polled, removal goes on
    /// even if the caller stops waiting.
    ///
    /// # Errors
    ///
    /// [`NetworkError::Incomplete`] when something is left; the janitor keeps trying then.
    pub async fn release(mut self) -> Result<(), NetworkError> {
        // Before the namespace, of which nobody may be in the way.
        if let Some(names) = self.enforced.get_mut().names.take() {
            names.stop().await;
        }
        match self.pool.take() {
            Some(pool) => pool.release(self.index).await,
            None => Ok(()),
        }
    }

    /// Leaves the slot in place for the next daemon to adopt.
    pub fn detach(mut self) {
        self.pool = None;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.take() {
            pool.hand_to_janitor(self.index);
        }
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot").field("index", &self.index).finish_non_exhaustive()
    }
}
