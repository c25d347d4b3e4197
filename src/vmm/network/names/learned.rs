//! The addresses that were answered for allowed names: in the kernel's set for a time, and here for
//! as long, so that not every answer costs a change of the rules.

use std::collections::HashMap;
use std::future::Future;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use crate::domain::slot::SlotIndex;
use crate::vmm::network::NetworkError;
use crate::vmm::network::egress::{LEARNED, MOST_LEARNED};
use crate::vmm::network::namespace::{self, on_thread};
use crate::vmm::network::ruleset;

/// Programs keep addresses for longer than they were told to, but not for ever.
const SHORTEST: Duration = Duration::from_secs(5 * 60);
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// What is known, and until when.
#[derive(Debug)]
pub(super) struct Learned {
    slot: SlotIndex,
    until: Mutex<HashMap<Ipv4Addr, Instant>>,
}

impl Learned {
    pub fn new(slot: SlotIndex) -> Self {
        Self { slot, until: Mutex::default() }
    }

    /// Has the rules know the addresses that `wanted` gives, with how long they are valid. It is
    /// asked when nobody changes the rules.
    ///
    /// # Errors
    ///
    /// [`NetworkError::TooManyNames`], [`NetworkError::Filter`], [`NetworkError::Namespace`]: then
    /// they may not be known.
    pub async fn learn(
        &self,
        wanted: impl FnOnce() -> Vec<(Ipv4Addr, Duration)>,
    ) -> Result<(), NetworkError> {
        let mut until = self.until.lock().await;
        let now = Instant::now();
        until.retain(|_, end| *end > now);
        let needed = |valid: Duration| valid.clamp(SHORTEST, LONGEST);
        let known = |address: &Ipv4Addr, valid| {
            until.get(address).is_some_and(|end| *end >= now + needed(valid))
        };
        let mut fresh = wanted();
        fresh.retain(|(address, valid)| !known(address, *valid));
        if fresh.is_empty() {
            return Ok(());
        }
        if until.len() + fresh.len() > MOST_LEARNED as usize {
            return Err(NetworkError::TooManyNames { slot: self.slot });
        }
        // Twice as long as needed: whoever asks again within the first half changes nothing.
        let fresh: HashMap<_, _> =
            fresh.into_iter().map(|(address, valid)| (address, needed(valid) * 2)).collect();
        let (slot, elements) = (self.slot, fresh.clone());
        let add = move || {
            let failed = |source| NetworkError::Namespace { slot, action: "enter", source };
            namespace::enter_slot(slot).map_err(failed)?;
            ruleset::renew_addresses(LEARNED, &elements, &format!("slot {slot}"))
        };
        on_thread("nestbox-learn", add).await?;
        until.extend(fresh.into_iter().map(|(address, valid)| (address, now + valid)));
        Ok(())
    }

    /// Forgets all, if `change` succeeds; nothing is learned meanwhile.
    ///
    /// # Errors
    ///
    /// That of `change`.
    pub async fn forget<E>(&self, change: impl Future<Output = Result<(), E>>) -> Result<(), E> {
        let mut until = self.until.lock().await;
        change.await?;
        until.clear();
        Ok(())
    }
}
