//! The only place that picks concrete parts and starts actors.

#![allow(
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "it talks to whoever starts the daemon"
)]

mod confinement;
mod data_dir;
mod descriptors;
mod doctor;
mod hardening;
mod limits;
mod listen;
mod log_repeats;
mod reserve;
mod serve;
mod telemetry;
mod uids;
mod warm_up;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use actix::{Arbiter, ArbiterHandle};
use anyhow::{Context, Result, bail};
use chrono::{TimeDelta, Utc};
use nix::fcntl::Flock;

use crate::actors::control::{ControlPlane, DatabaseSink, Hosts, TokenSecret, start_host};
use crate::actors::host::manager::Adoption;
use crate::actors::host::{Identity, Limits, LocalHost};
use crate::actors::host_client::HostClient;
use crate::actors::metrics::Metrics;
use crate::config::{Config, HypervisorChoice, JailerChoice};
use crate::domain::egress::Lan;
use crate::domain::engine::Engine;
use crate::domain::shape::Shape;
use crate::entity::hosts::{Host, HostState};
use crate::entity::{self, Database};
use crate::vmm::fault::Faults;
use crate::vmm::host::{HostMachines, HostSettings, left_running};
use crate::vmm::hypervisor::choice::{Choice, Preferences, TrialImage, Wanted, choose};
use crate::vmm::hypervisor::firecracker::Jailing;
use crate::vmm::image::ImageStore;
use crate::vmm::machine::Machines;
pub use crate::vmm::storage::pager;

use self::reserve::Reserve;
pub use data_dir::token_secret;
pub use doctor::doctor;
pub use limits::limits;
pub use listen::bind;
pub use serve::{Until, serve};
pub use warm_up::warm_up;

/// Name of the file with the first API key, in the data directory.
pub const API_KEY_FILE: &str = "api-key";
/// Name of the file with the daemon's URL, in the data directory.
pub const URL_FILE: &str = "url";
/// Name of the socket by which the command line reaches the daemon, in the data directory.
pub const SOCKET_FILE: &str = "nestbox.sock";
/// Records of sandboxes that are over are kept for a week, and looked through once an hour.
const RETENTION: TimeDelta = TimeDelta::days(7);
const RETENTION_PERIOD: Duration = Duration::from_secs(3600);

/// Events that are kept: some 20 MB.
const EVENTS_KEPT: u32 = 100_000;
/// How often events beyond that are deleted; a chunk of them each time.
const EVENTS_PERIOD: Duration = Duration::from_secs(60);

/// Everything that runs in a daemon, beside its HTTP server.
pub struct Daemon {
    /// What the API calls.
    pub control: ControlPlane,
    /// What became of the sandboxes of a former daemon.
    pub adoption: Adoption,
    /// Which hypervisor runs, and why.
    pub reason: String,
    /// What whoever runs the host should know about its walls.
    pub warnings: Vec<String>,
    reserve: Arc<Reserve>,
    machines: Arc<dyn Machines>,
    database: Database,
    arbiter: Arbiter,
    _lock: Flock<File>,
}

impl Daemon {
    /// Starts everything that the settings ask for.
    ///
    /// # Errors
    ///
    /// With what to do about it; nothing runs then.
    pub async fn start(config: &Config) -> Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            bail!("the daemon makes network namespaces and VMs, so it has to be started as root");
        }
        uids::check(Path::new("/"), config.vm_uid_base)?;
        let limits = limits(config.memory_reserve_mib)?;
        let limits = Limits { rates: config.rates()?, ..limits };
        let Some(lock) = data_dir::claim(&config.data_dir)? else {
            bail!(
                "another daemon uses {}: stop it, or choose another --data-dir",
                config.data_dir.display()
            );
        };
        let location = config.database_location();
        let beside = entity::directory_of(&location);
        let reserve = Reserve::of(beside.as_deref().unwrap_or(&config.data_dir));
        // Records of machines and what names this daemon need some, too.
        reserve.make_room();
        let database = Database::open_with(&location, Some(reserve.clone())).await?;
        let images = ImageStore::open(config.image_dir());
        let choice = choose_for_survivors(config, &images).await?;
        let missing = confinement::missing(&config.data_dir, &*choice.hypervisor)?;
        let mut warnings = confinement::judge(missing, &config.allow_missing)?;
        warnings.extend(choice.caveat().map(str::to_owned));
        let machines =
            HostMachines::start(host_settings(config)?, choice.hypervisor, images).await?;
        let machines: Arc<dyn Machines> = Arc::new(machines);
        let host_id = data_dir::host_id(&config.data_dir)?;
        let secret = token_secret(&config.data_dir)?;
        let arbiter = Arbiter::new();
        let (control, host) = assemble(
            &arbiter.handle(),
            &host_id,
            limits,
            database.clone(),
            machines.clone(),
            secret,
        )
        .await?;
        let adoption = host.adopt_survivors().await;
        for id in control.reconcile().await? {
            tracing::warn!(sandbox_id = %id, "VM not found at startup");
        }
        reserve.keep();
        tokio::spawn(forget_old(database.clone()));
        tokio::spawn(forget_old_events(database.clone()));
        Ok(Self {
            control,
            adoption,
            reason: choice.reason,
            warnings,
            reserve,
            machines,
            database,
            arbiter,
            _lock: lock,
        })
    }

    /// Writes the first API key into the data directory, if there is none at all yet.
    ///
    /// # Errors
    ///
    /// If the key cannot be written.
    pub async fn ensure_key(&self, data_dir: &Path) -> Result<PathBuf> {
        let path = data_dir.join(API_KEY_FILE);
        if !self.control.has_keys().await? {
            let key = self.control.create_key("first").await?;
            data_dir::write_named(&path, &format!("{}\n", key.secret))?;
        }
        Ok(path)
    }

    /// What runs the sandboxes, such as "qemu-tcg 7.2.22".
    pub fn engine(&self) -> String {
        let engine = self.machines.engine();
        format!("{} {}", engine.engine.as_str(), engine.version)
    }

    /// Ends the daemon in order. Running sandboxes run on.
    pub async fn shut_down(self) {
        self.arbiter.stop();
        self.machines.shut_down().await;
        if let Err(error) = self.database.close().await {
            tracing::warn!(error = %crate::chain(&error), "the database did not close in order");
        }
    }
}

/// What this machine is called.
fn host_name() -> Result<String> {
    Ok(nix::unistd::gethostname()?.to_string_lossy().into_owned())
}

/// Connects database, machines and actors; tests do it with machines of their own.
///
/// # Errors
///
/// If the host cannot be recorded.
pub async fn assemble(
    arbiter: &ArbiterHandle,
    host_id: &str,
    limits: Limits,
    database: Database,
    machines: Arc<dyn Machines>,
    secret: TokenSecret,
) -> Result<(ControlPlane, LocalHost)> {
    let capacity = Shape {
        vcpus: limits.cpus,
        memory_mib: u32::try_from(limits.memory_mib).unwrap_or(u32::MAX),
    };
    let host = Host {
        id: host_id.to_owned(),
        name: host_name()?,
        state: HostState::Ready,
        hypervisor: machines.engine().engine.as_str().to_owned(),
        capacity,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        last_heartbeat_at: Some(Utc::now()),
        created_at: Utc::now(),
    };
    let epoch = database.hosts().register(&host).await?;
    let identity = Identity { id: host_id.to_owned(), epoch };
    let sink = Arc::new(DatabaseSink(database.clone()));
    let metrics = Arc::new(Metrics::default());
    let host = LocalHost::start(arbiter, identity, limits, machines, sink, metrics.clone());
    start_host(arbiter, host_id.to_owned(), database.clone());
    let hosts = Hosts::new([Arc::new(host.clone()) as Arc<dyn HostClient>]);
    Ok((ControlPlane::new(database, hosts, metrics, secret), host))
}

/// Chooses as the settings say; `doctor` does it too.
///
/// # Errors
///
/// With what to install.
pub async fn choose_hypervisor(config: &Config, images: &ImageStore) -> Result<Choice> {
    let wanted = match config.hypervisor {
        HypervisorChoice::Auto => Wanted::Auto,
        HypervisorChoice::Firecracker => Wanted::Firecracker,
        HypervisorChoice::Qemu => Wanted::Qemu,
    };
    let preferences = Preferences {
        wanted,
        firecracker: config.firecracker.as_deref(),
        jailing: match config.jailer {
            JailerChoice::On => Jailing::Jailer,
            JailerChoice::Off => Jailing::None,
        },
        data_dir: &config.data_dir,
    };
    // Any image will do to see whether a guest boots.
    let first = images.list()?.into_iter().next();
    let trial = first.as_ref().map(|image| TrialImage {
        kernel: &image.kernel,
        initramfs: &image.initramfs,
        rootfs: &image.rootfs,
    });
    Ok(choose(preferences, trial).await?)
}

/// Chooses such that sandboxes which a former daemon left running can be adopted: another hypervisor
/// could only end them.
async fn choose_for_survivors(config: &Config, images: &ImageStore) -> Result<Choice> {
    let choice = choose_hypervisor(config, images).await?;
    let chosen = choice.hypervisor.engine();
    let running = left_running(&config.data_dir);
    let Some(other) = running.into_iter().find(|engine| !chosen.adopts(*engine)) else {
        return Ok(choice);
    };
    let theirs = match other {
        Engine::Firecracker => HypervisorChoice::Firecracker,
        Engine::QemuKvm | Engine::QemuTcg => HypervisorChoice::Qemu,
        // Its machines are processes of tests, which end with them.
        Engine::Simulated => return Ok(choice),
    };
    let (chosen, other) = (chosen.as_str(), other.as_str());
    if config.hypervisor != HypervisorChoice::Auto {
        bail!(
            "sandboxes run here under {other}, which {chosen} cannot take over: start the daemon \
             with the hypervisor they have, and pause or destroy them before you change it"
        );
    }
    tracing::warn!("sandboxes run here under {other}, so {chosen} has to wait until none do");
    choose_hypervisor(&Config { hypervisor: theirs, ..config.clone() }, images).await
}

/// Deletes records of sandboxes that are long over, again and again.
async fn forget_old(database: Database) {
    let mut period = tokio::time::interval(RETENTION_PERIOD);
    loop {
        period.tick().await;
        match database.sandboxes().delete_over_before(Utc::now() - RETENTION).await {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "old records were deleted"),
            Err(error) => {
                tracing::warn!(error = %crate::chain(&error), "old records were not deleted");
            }
        }
    }
}

/// Deletes the oldest events, again and again.
async fn forget_old_events(database: Database) {
    let mut period = tokio::time::interval(EVENTS_PERIOD);
    loop {
        period.tick().await;
        match database.events().prune(EVENTS_KEPT).await {
            Ok(0) => {}
            Ok(count) => tracing::debug!(count, "old events were deleted"),
            Err(error) => {
                tracing::warn!(error = %crate::chain(&error), "old events were not deleted");
            }
        }
    }
}

fn host_settings(config: &Config) -> Result<HostSettings> {
    uids::check(Path::new("/"), config.vm_uid_base)?;
    let fault = config.fault.as_deref().map(str::parse).transpose()?;
    Ok(HostSettings {
        data_dir: config.data_dir.clone(),
        lan: if config.allow_lan { Lan::Open } else { Lan::Closed },
        dns_rate: config.dns_rate.try_into().context("dns_rate is 0")?,
        rates: config.rates()?,
        slot_pool: config.slot_pool,
        standbys: config.standbys,
        vmm_pool: config.vmm_pool,
        first_uid: config.vm_uid_base,
        boot_timeout: Duration::from_secs(config.boot_timeout_sec),
        vmm_timeout: Some(Duration::from_secs(config.vmm_timeout_sec)).filter(|it| !it.is_zero()),
        faults: Faults::new(fault),
    })
}
