//! Whether a sandbox fits on this host: its shape, its rates, and the memory that there is now.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::domain::id::SandboxId;
use crate::domain::rates::{InvalidRate, RateLimits};
use crate::domain::shape::Shape;
use crate::vmm::host_memory::host_memory;

/// Host memory that a VM takes beside its guest's: the hypervisor itself and its translations.
const VM_OVERHEAD_MIB: u64 = 96;

/// How long memory is kept for a sandbox that nobody begins to make.
const PROMISE: Duration = Duration::from_secs(30);

/// What a host has to give.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// CPUs, and thus the largest number of vCPUs of one sandbox.
    pub cpus: u32,
    /// Memory of the host.
    pub memory_mib: u64,
    /// Memory that is kept free for the host itself and for running sandboxes to grow into.
    pub reserve_mib: u64,
    /// How fast any sandbox is at most.
    pub rates: RateLimits,
}

/// Why a host does not take a sandbox.
#[derive(Debug, thiserror::Error)]
pub enum AdmissionError {
    /// It has not as many CPUs.
    #[error("this host has {cpus} CPUs, so a sandbox has from 1 to {cpus} vCPUs")]
    TooManyVcpus { cpus: u32 },
    /// No sandbox can have as much memory here, or as little.
    #[error("memory of a sandbox is from {least} to {most} MiB on this host")]
    MemoryOutOfRange { least: u64, most: u64 },
    /// No sandbox may be so fast here.
    #[error(transparent)]
    Rates(#[from] InvalidRate),
    /// It has no memory left for another one now.
    #[error(
        "the host has no memory left for it: {needed} MiB are needed, {available} MiB are \
         available beyond the {reserve} MiB that are kept free"
    )]
    OutOfMemory { needed: u64, available: u64, reserve: u64 },
    /// Its memory cannot be read.
    #[error("the host's memory is unknown")]
    UnknownMemory(#[source] std::io::Error),
}

/// Memory that a sandbox has not taken yet.
#[derive(Debug, Clone, Copy)]
struct Promise {
    memory_mib: u64,
    /// When it is given up; never while the sandbox is being made.
    until: Option<Instant>,
}

/// Decides what fits. Cheap to clone.
#[derive(Clone)]
pub struct Admission {
    limits: Limits,
    promises: Arc<Mutex<HashMap<SandboxId, Promise>>>,
}

/// Keeps memory for a sandbox that is being made, until this is dropped.
pub struct Reservation {
    id: SandboxId,
    promises: Arc<Mutex<HashMap<SandboxId, Promise>>>,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        lock(&self.promises).remove(&self.id);
    }
}

impl Admission {
    /// Of a host that has so much to give.
    pub fn new(limits: Limits) -> Self {
        Self { limits, promises: Arc::default() }
    }

    /// Checks that the host could ever run a VM of this shape.
    ///
    /// # Errors
    ///
    /// [`AdmissionError::TooManyVcpus`], [`AdmissionError::MemoryOutOfRange`].
    pub fn check_shape(&self, shape: Shape) -> Result<(), AdmissionError> {
        let Limits { cpus, memory_mib, .. } = self.limits;
        if !(1..=cpus).contains(&shape.vcpus) {
            return Err(AdmissionError::TooManyVcpus { cpus });
        }
        let least = u64::from(Shape::MIN_MEMORY_MIB);
        // What the host has, not what it can spare now: that is asked when the sandbox is made.
        let most = memory_mib.saturating_sub(VM_OVERHEAD_MIB).max(least);
        if !(least..=most).contains(&shape.memory_mib.into()) {
            return Err(AdmissionError::MemoryOutOfRange { least, most });
        }
        Ok(())
    }

    /// The rates of a sandbox that asks for these.
    ///
    /// # Errors
    ///
    /// [`AdmissionError::Rates`].
    pub fn rates(&self, wanted: RateLimits) -> Result<RateLimits, AdmissionError> {
        Ok(wanted.within(&self.limits.rates)?)
    }

    /// Keeps memory for sandboxes that are about to be made: for all of them or for none.
    ///
    /// # Errors
    ///
    /// [`AdmissionError::OutOfMemory`].
    pub fn promise(&self, ids: &[SandboxId], shape: Shape) -> Result<(), AdmissionError> {
        let mut promises = lock(&self.promises);
        let memory_mib = needed(shape);
        self.check_memory(&mut promises, memory_mib * ids.len() as u64)?;
        let promise = Promise { memory_mib, until: Some(Instant::now() + PROMISE) };
        promises.extend(ids.iter().map(|id| (id.clone(), promise)));
        Ok(())
    }

    /// Keeps memory for a sandbox while it is made or resumed: what it was promised, or what there is.
    ///
    /// # Errors
    ///
    /// [`AdmissionError::OutOfMemory`].
    pub fn reserve(&self, id: &SandboxId, shape: Shape) -> Result<Reservation, AdmissionError> {
        let mut promises = lock(&self.promises);
        let memory_mib = needed(shape);
        if promises.remove(id).is_none_or(|promise| promise.is_over()) {
            self.check_memory(&mut promises, memory_mib)?;
        }
        promises.insert(id.clone(), Promise { memory_mib, until: None });
        Ok(Reservation { id: id.clone(), promises: self.promises.clone() })
    }

    /// Real memory decides: what is available now, less what is promised to those that start.
    fn check_memory(
        &self,
        promises: &mut HashMap<SandboxId, Promise>,
        needed: u64,
    ) -> Result<(), AdmissionError> {
        promises.retain(|_, promise| !promise.is_over());
        let memory = host_memory().map_err(AdmissionError::UnknownMemory)?;
        let reserve = self.limits.reserve_mib;
        let promised: u64 = promises.values().map(|promise| promise.memory_mib).sum();
        let available = memory.available_mib.saturating_sub(promised + reserve);
        match needed > available {
            true => Err(AdmissionError::OutOfMemory { needed, available, reserve }),
            false => Ok(()),
        }
    }
}

impl Promise {
    fn is_over(&self) -> bool {
        self.until.is_some_and(|until| until <= Instant::now())
    }
}

fn needed(shape: Shape) -> u64 {
    u64::from(shape.memory_mib) + VM_OVERHEAD_MIB
}

fn lock(
    promises: &Mutex<HashMap<SandboxId, Promise>>,
) -> MutexGuard<'_, HashMap<SandboxId, Promise>> {
    promises.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission() -> Admission {
        let memory_mib = host_memory().expect("is known").available_mib;
        let rates = RateLimits::default();
        Admission::new(Limits { cpus: 1, memory_mib, reserve_mib: 0, rates })
    }

    fn ids<const N: usize>() -> [SandboxId; N] {
        std::array::from_fn(|_| SandboxId::random())
    }

    #[test]
    fn memory_is_promised_once_and_given_back() {
        let admission = admission();
        // There is one, and not two, whatever others take and give back meanwhile.
        let most = admission.limits.memory_mib * 3 / 4;
        let shape = Shape { vcpus: 1, memory_mib: u32::try_from(most).expect("fits") };
        let [first, second, third] = ids();
        admission.promise(std::slice::from_ref(&first), shape).expect("there is as much");
        let refused = admission.promise(&[second.clone(), third.clone()], shape);
        assert!(matches!(refused, Err(AdmissionError::OutOfMemory { .. })));
        // What was promised is there for whom it was promised to, and for nobody else.
        let held = admission.reserve(&first, shape).expect("was promised");
        assert!(admission.reserve(&second, shape).is_err());
        drop(held);
        drop(admission.reserve(&second, shape).expect("was given back"));
        assert!(lock(&admission.promises).is_empty());
    }

    #[test]
    fn a_promise_that_nobody_takes_up_is_given_up() {
        let admission = admission();
        let [id] = ids();
        admission.promise(std::slice::from_ref(&id), Shape::DEFAULT).expect("there is as much");
        let mut promises = lock(&admission.promises);
        promises.get_mut(&id).expect("is kept").until = Some(Instant::now());
        admission.check_memory(&mut promises, 1).expect("there is as much");
        assert!(promises.is_empty());
    }
}
