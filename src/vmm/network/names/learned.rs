//! The addresses that were answered for allowed names: in the kernel's set for a time, and here for
//! as long, so that not every answer costs a change of the rules.

use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use crate::domain::egress::Rule;
use crate::domain::slot::SlotIndex;
use crate::vmm::network::NetworkError;
use crate::vmm::network::filter::egress::{LEARNED, LEARNED_PORTS, MOST_LEARNED};
use crate::vmm::network::filter::ruleset::Renewal;
use crate::vmm::network::namespace::{self, on_thread};

/// Programs keep addresses for longer than they were told to, but not for ever.
const SHORTEST: Duration = Duration::from_secs(5 * 60);
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// An address of an allowed name.
#[derive(Debug)]
pub(super) struct Found {
    pub address: Ipv4Addr,
    /// How long it is valid.
    pub valid: Duration,
    /// The rules that open a port of it.
    pub ports: Vec<Rule>,
}

/// What is known of one guest's addresses.
#[derive(Debug)]
pub(super) struct Learned {
    slot: SlotIndex,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    addresses: HashMap<Ipv4Addr, Instant>,
    ports: HashMap<(Ipv4Addr, u16), Port>,
}

/// A port of an address, and the rules that open it.
#[derive(Debug)]
struct Port {
    until: Instant,
    rules: BTreeSet<Rule>,
}

/// What is to be known beside what is.
#[derive(Debug, Default, Clone)]
struct Fresh {
    addresses: HashMap<Ipv4Addr, Duration>,
    ports: HashMap<(Ipv4Addr, u16), Duration>,
    rules: Vec<((Ipv4Addr, u16), Rule)>,
}

impl Learned {
    pub fn new(slot: SlotIndex) -> Self {
        Self { slot, known: Mutex::default() }
    }

    /// Has the rules know what `wanted` gives. It is asked when nobody changes the rules.
    ///
    /// # Errors
    ///
    /// [`NetworkError::TooManyNames`], [`NetworkError::Filter`], [`NetworkError::Namespace`]: then
    /// they may not be known.
    pub async fn learn(&self, wanted: impl FnOnce() -> Vec<Found>) -> Result<(), NetworkError> {
        let mut known = self.known.lock().await;
        let now = Instant::now();
        known.forget_old(now);
        let fresh = known.lacks(&wanted(), now);
        if fresh.addresses.is_empty() && fresh.ports.is_empty() {
            return Ok(());
        }
        let most = MOST_LEARNED as usize;
        if known.addresses.len() + fresh.addresses.len() > most
            || known.ports.len() + fresh.ports.len() > most
        {
            return Err(NetworkError::TooManyNames { slot: self.slot });
        }
        let (slot, new) = (self.slot, fresh.clone());
        let add = move || {
            let failed = |source| NetworkError::Namespace { slot, action: "enter", source };
            namespace::enter_slot(slot).map_err(failed)?;
            let renewal = Renewal::new().of(LEARNED, &new.addresses).of(LEARNED_PORTS, &new.ports);
            renewal.apply(&format!("slot {slot}"))
        };
        on_thread("nestbox-learn", add).await?;
        known.add(fresh, now);
        Ok(())
    }

    /// The rules that open a port of an address, because their names led there.
    pub async fn opened_by(&self, server: SocketAddrV4) -> BTreeSet<Rule> {
        let known = self.known.lock().await;
        let port = known.ports.get(&(*server.ip(), server.port()));
        let valid = port.filter(|port| port.until > Instant::now());
        valid.map(|port| port.rules.clone()).unwrap_or_default()
    }

    /// Forgets all, if `change` succeeds; nothing is learned meanwhile.
    ///
    /// # Errors
    ///
    /// That of `change`.
    pub async fn forget<E>(&self, change: impl Future<Output = Result<(), E>>) -> Result<(), E> {
        let mut known = self.known.lock().await;
        change.await?;
        *known = Known::default();
        Ok(())
    }
}

impl Known {
    fn forget_old(&mut self, now: Instant) {
        self.addresses.retain(|_, until| *until > now);
        self.ports.retain(|_, port| port.until > now);
    }

    /// What is not known for long enough. It is to be known for twice as long as needed: whoever asks
    /// again within the first half changes nothing.
    fn lacks(&self, wanted: &[Found], now: Instant) -> Fresh {
        let mut fresh = Fresh::default();
        for Found { address, valid, ports } in wanted {
            let needed = (*valid).clamp(SHORTEST, LONGEST);
            if self.addresses.get(address).is_none_or(|until| *until < now + needed) {
                fresh.addresses.insert(*address, needed * 2);
            }
            for rule in ports {
                let Some(port) = rule.port() else { continue };
                let pair = (*address, port);
                let known = self.ports.get(&pair);
                let enough = |port: &Port| port.until >= now + needed && port.rules.contains(rule);
                if known.is_some_and(enough) {
                    continue;
                }
                let left = known.map_or(Duration::ZERO, |port| port.until.duration_since(now));
                let valid = fresh.ports.entry(pair).or_default();
                *valid = (*valid).max(needed * 2).max(left);
                fresh.rules.push((pair, rule.clone()));
            }
        }
        fresh
    }

    fn add(&mut self, fresh: Fresh, now: Instant) {
        for (address, valid) in fresh.addresses {
            self.addresses.insert(address, now + valid);
        }
        for (pair, valid) in fresh.ports {
            let until = now + valid;
            let new = || Port { until, rules: BTreeSet::new() };
            self.ports.entry(pair).or_insert_with(new).until = until;
        }
        for (pair, rule) in fresh.rules {
            if let Some(port) = self.ports.get_mut(&pair) {
                port.rules.insert(rule);
            }
        }
    }
}
