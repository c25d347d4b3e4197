//! One Firecracker that runs.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::api::{Api, ApiError};
use super::jail::{Jail, NEW_DEVICES, NEW_MEMORY};
use super::tap_filter::{self, Packets};
use super::vm_config;
use crate::domain::printable;
use crate::domain::rates::RateLimits;
use crate::vmm::hypervisor::console::Console;
use crate::vmm::hypervisor::vmm_log::{self, VmmLog};
use crate::vmm::hypervisor::{HypervisorError, LayeredDisk, Vm};
use crate::vmm::process::{KILL_LIMIT, ProcessId, VmProcess};
use crate::vmm::storage::memory::{self, BuildId, GuestMemory, Lineage, PAGE_SIZE};
use crate::vmm::storage::pager::{self, WorkingSet};

/// What Firecracker itself has to say, in a sandbox's directory.
const LOG: &str = "firecracker.log";
/// The pipe that it comes through.
pub const LOG_PIPE: &str = "firecracker.pipe";
/// The pipe that its guest's console comes through, and what Firecracker logs.
pub const CONSOLE_PIPE: &str = "console.pipe";

/// Beside the record: what belongs to a VM besides its own process.
const COMPANIONS: &str = "firecracker.json";

/// Longest state of devices that is read, in bytes: 13 kB are normal.
const MAX_DEVICES: u64 = 16 << 20;

/// A pager that sees its VM's end goes too; one that ends a moment before that is seen here has most
/// likely done so for that reason.
const GRACE: Duration = Duration::from_millis(200);

/// What the guests of each snapshot touched first when it was last restored, and the same for all
/// snapshots that have a base in common: one that nobody was restored from is much like its parent.
#[derive(Debug, Clone, Default)]
pub struct WorkingSets(Arc<Mutex<HashMap<Family, WorkingSet>>>);

/// What has a working set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Family {
    Snapshot(BuildId),
    /// Device and inode of a base. A wrong set costs time and nothing else.
    Base(u64, u64),
}

impl Family {
    fn of_base(memory: &Lineage) -> Option<Self> {
        let data = memory.files().first()?.metadata().ok()?;
        Some(Self::Base(data.dev(), data.ino()))
    }
}

/// Of the memory that a snapshot has in use, the part that is brought ahead of its guest: one of so many.
/// All that was ever brought counts as touched, so that a set grows until it has this much.
const SHARE_AHEAD: u64 = 8;

/// Snapshots whose working sets are kept, a few kilobytes each.
const MOST_SETS: usize = 1000;

impl WorkingSets {
    /// That of a snapshot, empty if nothing is known.
    pub fn of(&self, build: BuildId, memory: &Lineage) -> WorkingSet {
        let sets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let base = || sets.get(&Family::of_base(memory)?);
        sets.get(&Family::Snapshot(build)).or_else(base).cloned().unwrap_or_default()
    }

    fn learn(&self, family: Family, set: WorkingSet) {
        let mut sets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if sets.len() >= MOST_SETS && !sets.contains_key(&family) {
            // Any of them: it costs one slower restore.
            let other = sets.keys().next().copied();
            other.and_then(|other| sets.remove(&other));
        }
        sets.insert(family, set);
    }
}

/// Where a VM came from, for [`WorkingSets`].
pub struct Learning {
    build: BuildId,
    base: Option<Family>,
    most_pages: u64,
    sets: WorkingSets,
}

impl Learning {
    /// For a VM that is restored from that memory of a snapshot.
    pub fn new(build: BuildId, memory: &Lineage, sets: WorkingSets) -> Self {
        // What cannot be measured is not learned.
        let bytes = memory.usage().map_or(0, |usage| usage.bytes);
        let most_pages = bytes / PAGE_SIZE as u64 / SHARE_AHEAD;
        Self { build, base: Family::of_base(memory), most_pages, sets }
    }
}

/// The processes that a VM consists of beside its own, kept on disk for a later daemon.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Companions {
    /// Serves its memory; a VM that was booted has its own.
    pub pager: Option<ProcessId>,
}

impl Companions {
    pub fn write(self, dir: &Path) -> io::Result<()> {
        let path = dir.join(COMPANIONS);
        let new = path.with_extension("json.new");
        fs::write(&new, serde_json::to_vec(&self).expect("numbers are plain data"))?;
        fs::rename(&new, &path)
    }

    pub fn read(dir: &Path) -> io::Result<Self> {
        Ok(serde_json::from_slice(&fs::read(dir.join(COMPANIONS))?)?)
    }
}

/// A Firecracker and its pager.
pub struct FirecrackerVm {
    process: VmProcess,
    pager: Option<VmProcess>,
    api: Api,
    jail: Jail,
    dir: PathBuf,
    console: Console,
    log: VmmLog,
    learning: Option<Learning>,
}

impl FirecrackerVm {
    /// Takes charge of a process that runs in the jail of `dir`.
    ///
    /// # Errors
    ///
    /// [`HypervisorError::Process`] if it, or its pager, has ended.
    pub fn attach(
        process: ProcessId,
        pager: Option<ProcessId>,
        jail: Jail,
        dir: &Path,
        learning: Option<Learning>,
    ) -> Result<Self, HypervisorError> {
        Ok(Self {
            process: VmProcess::watch(process)?,
            pager: pager.map(VmProcess::watch).transpose().map_err(|error| {
                // Nobody answers its page faults: it is of no use, though its process is there.
                HypervisorError::Ended { how: format!("has lost its pager: {error}") }
            })?,
            api: Api::of(process.pid, jail.root()),
            jail,
            dir: dir.to_owned(),
            console: {
                let pipe = vmm_log::follow_pipe(dir, CONSOLE_PIPE);
                Console::read(pipe.map_err(file_error("follow"))?, dir)
            },
            log: VmmLog::follow(dir, LOG, LOG_PIPE).map_err(file_error("follow"))?,
            learning,
        })
    }

    /// Does something with the API of a Firecracker that is starting; if that ends meanwhile, its end
    /// is the error.
    pub async fn start<T>(
        &self,
        verb: &'static str,
        work: impl Future<Output = Result<T, ApiError>>,
    ) -> Result<T, HypervisorError> {
        tokio::select! {
            biased;
            done = work => match done {
                Ok(done) => Ok(done),
                Err(error @ (ApiError::Broken(_) | ApiError::Connect(_))) => {
                    // A connection that breaks is the first sign of the end; the end says more.
                    match tokio::time::timeout(GRACE, self.ended()).await {
                        Ok(how) => Err(HypervisorError::Ended { how }),
                        Err(_) => Err(control(verb)(error)),
                    }
                }
                Err(error) => Err(control(verb)(error)),
            },
            how = self.ended() => Err(HypervisorError::Ended { how }),
        }
    }

    /// Its API.
    pub fn api(&self) -> &Api {
        &self.api
    }

    fn set_packets(&self, packets: Packets) -> Result<(), HypervisorError> {
        tap_filter::set(&self.process, packets).map_err(|error| HypervisorError::Control {
            verb: "reach the network of",
            source: error.into(),
        })
    }

    async fn set_state(&self, state: &str) -> Result<(), ApiError> {
        self.api.patch("/vm", &json!({"state": state})).await
    }

    async fn own_end(&self) -> String {
        let how = self.process.ended().await;
        match self.log.last_words().await {
            Some(words) => format!("{how}: {words}"),
            None => how,
        }
    }

    /// Waits for the pager to end before its VM, and says how. Never returns for a VM without one.
    async fn pager_ended(&self) -> String {
        let Some(pager) = &self.pager else { return std::future::pending().await };
        let how = pager.ended().await;
        match self.pager_error() {
            Some(error) => format!("{how}: {error}"),
            None => how,
        }
    }

    /// Ends a VM that is of no use any more.
    async fn put_down(&self, which: &str) {
        if let Err(error) = self.process.kill(KILL_LIMIT).await {
            tracing::error!(error = %crate::chain(&error), "a VM {which} lives on");
        }
    }

    /// What the pager said when it failed, if it did.
    fn pager_error(&self) -> Option<String> {
        let state = pager::State::read(&self.dir).ok()?;
        state.error().map(|error| printable::line(error, 1024))
    }
}

fn control(verb: &'static str) -> impl Fn(ApiError) -> HypervisorError {
    move |source| HypervisorError::Control { verb, source: Box::new(source) }
}

fn file_error(verb: &'static str) -> impl Fn(io::Error) -> HypervisorError {
    move |source| HypervisorError::Control { verb, source: source.into() }
}

#[async_trait]
impl Vm for FirecrackerVm {
    fn process(&self) -> ProcessId {
        self.process.id()
    }

    fn companion(&self) -> Option<ProcessId> {
        self.pager.as_ref().map(VmProcess::id)
    }

    async fn agent_started(&self) {
        self.console.agent_started().await;
    }

    async fn ended(&self) -> String {
        let pager = tokio::select! {
            biased;
            how = self.own_end() => return how,
            how = self.pager_ended() => how,
            () = self.console.guest_stopped() => {
                // There is no switch that its guest could turn it off with.
                self.put_down("whose guest has shut down").await;
                return "was ended because its guest had shut down".to_owned();
            }
        };
        if let Ok(how) = tokio::time::timeout(GRACE, self.own_end()).await {
            return match self.pager_error() {
                // It was the pager that ended it.
                Some(error) => format!("was ended by its pager: {error}"),
                None => how,
            };
        }
        // Nobody answers its page faults any more: it would hang for ever at the next one.
        self.put_down("without its pager").await;
        format!("was ended because its pager {pager}")
    }

    async fn answers(&self) -> Result<(), HypervisorError> {
        self.api.get("/").await.map(drop).map_err(control("reach"))
    }

    async fn freeze(&self) -> Result<(), HypervisorError> {
        self.set_packets(Packets::Drop)?;
        self.set_state("Paused").await.map_err(control("freeze"))?;
        // What Firecracker had been told before it paused, by the guest or the tap, it does before
        // it answers once more.
        self.api.get("/").await.map_err(control("freeze"))?;
        Ok(())
    }

    async fn thaw(&self) -> Result<(), HypervisorError> {
        // One that runs already just goes on.
        self.set_state("Resumed").await.map_err(control("thaw"))?;
        self.set_packets(Packets::Pass)
    }

    async fn save_devices(&self) -> Result<Vec<u8>, HypervisorError> {
        const VERB: &str = "save the devices of";
        self.jail.remove(NEW_DEVICES).map_err(file_error(VERB))?;
        let (path, body) = vm_config::save_devices();
        match self.api.put(path, &body).await {
            // As intended.
            Err(ApiError::Refused { fault, .. })
                if fault.contains(vm_config::NO_MEMORY_REFUSAL) => {}
            Err(error) => return Err(control(VERB)(error)),
            Ok(()) => {
                let error = io::Error::other("it has written a memory where none can be");
                return Err(file_error(VERB)(error));
            }
        }
        let bytes = self.jail.read(NEW_DEVICES, MAX_DEVICES).map_err(file_error(VERB))?;
        self.jail.remove(NEW_DEVICES).map_err(file_error(VERB))?;
        Ok(bytes)
    }

    async fn save_memory(&self, to: &Path) -> Result<(), HypervisorError> {
        const VERB: &str = "save the memory of";
        let (path, body) = vm_config::save_all();
        self.api.put(path, &body).await.map_err(control(VERB))?;
        let (jail, to) = (self.jail.clone(), to.to_owned());
        let work = move || {
            let memory = jail.take(NEW_MEMORY, &to).map_err(file_error(VERB))?;
            // Firecracker writes every page.
            memory::punch_zeros(&memory).map(drop).map_err(file_error(VERB))
        };
        tokio::task::spawn_blocking(work).await.expect("moving a file does not panic")
    }

    async fn limit_disk(&self, rates: &RateLimits) -> Result<(), HypervisorError> {
        let (path, body) = vm_config::limit_disk(rates);
        self.api.patch(path, &body).await.map_err(control("limit the disk of"))
    }

    fn memory(&self, _: &Lineage) -> Result<GuestMemory, HypervisorError> {
        let state = pager::State::read(&self.dir).map_err(|error| HypervisorError::Control {
            verb: "find the memory of",
            source: error.into(),
        })?;
        let given_back = state.given_back().to_vec();
        Ok(GuestMemory::served(self.process.id().pid, state.regions(), given_back)?)
    }

    fn learn(&self) {
        let Some(Learning { build, base, most_pages, sets }) = &self.learning else { return };
        match pager::State::read(&self.dir) {
            Ok(state) => {
                let set = state.working_set().first(*most_pages);
                for family in [Some(Family::Snapshot(*build)), *base].into_iter().flatten() {
                    sets.learn(family, set.clone());
                }
            }
            Err(error) => tracing::debug!(error = %crate::chain(&error), "no working set"),
        }
    }

    fn layered_disk(&self) -> Option<&dyn LayeredDisk> {
        None
    }

    async fn kill(&self) -> Result<(), HypervisorError> {
        self.process.kill(KILL_LIMIT).await?;
        if let Some(pager) = &self.pager {
            // It sees the end and goes by itself, but nobody has to wait for that.
            pager.kill(KILL_LIMIT).await?;
        }
        Ok(())
    }
}
