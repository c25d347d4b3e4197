//! Which host makes a sandbox, seen with hosts that answer as a test says.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use chrono::Utc;

use super::{CallerId, ControlError, ControlPlane, CreateSandbox, Hosts, TokenSecret, Workplace};
use crate::actors::host_client::HostClient;
use crate::domain::egress::{Policy, PolicyRevision};
use crate::domain::engine::Engine;
use crate::domain::host::{
    Destroyed, ErrorKind, HostError, Inventory, Prepare, Prepared, SandboxSpec,
};
use crate::domain::id::SandboxId;
use crate::domain::lifecycle::SandboxState;
use crate::domain::name::TemplateName;
use crate::domain::rates::RateLimits;
use crate::domain::shape::Shape;
use crate::domain::snapshot::{Existing, SnapshotInfo, Storage};
use crate::domain::status::{HostEpoch, SandboxReport, SandboxStatus};
use crate::domain::trace::Trace;
use crate::domain::usage::{HostLoad, UsageReport};
use crate::entity::Database;
use crate::entity::hosts::{Host, HostState};
use crate::entity::sandboxes::{Filter, Idempotency};

/// Where a host refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refuses {
    Nothing,
    Prepare,
    Create,
}

/// A host that is no more than its answers.
struct FakeHost {
    id: String,
    epoch: HostEpoch,
    refuses: Refuses,
    retryable: bool,
    prepared: AtomicUsize,
    sandboxes: Mutex<BTreeMap<SandboxId, SandboxReport>>,
}

impl FakeHost {
    fn refusal(&self) -> HostError {
        let retryable = self.retryable;
        HostError {
            retryable,
            ..HostError::new(ErrorKind::Unavailable, format!("{} is full", self.id))
        }
    }

    fn made(&self) -> Vec<SandboxId> {
        let sandboxes = self.sandboxes.lock().unwrap_or_else(PoisonError::into_inner);
        sandboxes.keys().cloned().collect()
    }
}

fn not_asked<T>() -> Result<T, HostError> {
    unreachable!("no test asks for it")
}

#[async_trait]
impl HostClient for FakeHost {
    fn id(&self) -> &str {
        &self.id
    }

    async fn prepare(&self, request: Prepare) -> Result<Prepared, HostError> {
        self.prepared.fetch_add(1, Ordering::SeqCst);
        if self.refuses == Refuses::Prepare {
            return Err(self.refusal());
        }
        Ok(Prepared {
            ids: (0..request.count).map(|_| SandboxId::random()).collect(),
            shape: Shape::DEFAULT,
            rates: request.rates,
            engine: Engine::Simulated,
        })
    }

    async fn create(&self, spec: SandboxSpec, _: Trace) -> Result<SandboxReport, HostError> {
        if self.refuses == Refuses::Create {
            return Err(self.refusal());
        }
        let status = SandboxStatus {
            state: SandboxState::Running,
            reason: None,
            generation: 2,
            timeout_sec: spec.timeout_sec,
            lease_sec: spec.lease_sec,
            last_active_at: spec.created_at,
        };
        let report =
            SandboxReport { id: spec.id.clone(), status, slot: Some(1), epoch: self.epoch };
        let mut sandboxes = self.sandboxes.lock().unwrap_or_else(PoisonError::into_inner);
        sandboxes.insert(spec.id, report.clone());
        Ok(report)
    }

    async fn fork(
        &self,
        _: &SandboxId,
        _: Vec<SandboxSpec>,
        _: Trace,
    ) -> Result<Vec<SandboxReport>, HostError> {
        not_asked()
    }

    async fn settle(&self, _: &SandboxId) {}

    async fn destroy(&self, id: &SandboxId) -> Result<Destroyed, HostError> {
        let mut sandboxes = self.sandboxes.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(mut report) = sandboxes.remove(id) else { return Ok(Destroyed::Unknown) };
        report.status.state = SandboxState::Stopped;
        report.status.generation += 2;
        Ok(Destroyed::Gone(report))
    }

    async fn pause(&self, _: &SandboxId, _: Trace) -> Result<SandboxReport, HostError> {
        not_asked()
    }

    async fn resume(&self, _: &SandboxId, _: Trace) -> Result<SandboxReport, HostError> {
        not_asked()
    }

    async fn snapshot(
        &self,
        _: &SandboxId,
        _: &TemplateName,
        _: Existing,
    ) -> Result<SnapshotInfo, HostError> {
        not_asked()
    }

    async fn snapshots(&self) -> Result<Vec<SnapshotInfo>, HostError> {
        Ok(Vec::new())
    }

    async fn remove_snapshot(&self, _: &TemplateName) -> Result<bool, HostError> {
        not_asked()
    }

    async fn network(&self, _: &SandboxId) -> Result<Option<PolicyRevision>, HostError> {
        not_asked()
    }

    async fn set_network(&self, _: &SandboxId, _: Policy) -> Result<PolicyRevision, HostError> {
        not_asked()
    }

    async fn set_lease(&self, _: &SandboxId, _: Option<u32>) -> Result<(), HostError> {
        not_asked()
    }

    async fn storage(&self, _: &SandboxId) -> Result<Option<Storage>, HostError> {
        not_asked()
    }

    async fn usage(&self, _: &SandboxId) -> Result<Option<UsageReport>, HostError> {
        not_asked()
    }

    async fn sample(&self) -> Result<(), HostError> {
        not_asked()
    }

    async fn inventory(&self) -> Result<Inventory, HostError> {
        not_asked()
    }

    fn load(&self) -> HostLoad {
        HostLoad::default()
    }

    fn workplace(&self, _: &SandboxId) -> Option<Workplace> {
        None
    }
}

/// A control plane with such hosts, and its database.
struct Cluster {
    control: ControlPlane,
    hosts: Vec<Arc<FakeHost>>,
    database: Database,
    _dir: tempfile::TempDir,
}

impl Cluster {
    async fn of(hosts: &[(Refuses, bool)]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("nestbox.db");
        let database = Database::open(file.to_str().expect("a path")).await.expect("opens");
        let mut fakes = Vec::new();
        for (number, (refuses, retryable)) in hosts.iter().enumerate() {
            let id = format!("host-{number}");
            let epoch = database.hosts().register(&row(&id)).await.expect("registers");
            let (prepared, sandboxes) = (AtomicUsize::new(0), Mutex::default());
            let (refuses, retryable) = (*refuses, *retryable);
            fakes.push(Arc::new(FakeHost { id, epoch, refuses, retryable, prepared, sandboxes }));
        }
        let hosts = Hosts::new(fakes.iter().map(|fake| fake.clone() as Arc<dyn HostClient>));
        let secret = TokenSecret::new(&[7; 32]);
        let control = ControlPlane::new(database.clone(), hosts, Arc::default(), secret);
        Self { control, hosts: fakes, database, _dir: dir }
    }

    /// Asks for a sandbox; gives the host that has it.
    async fn create(&self) -> Result<String, ControlError> {
        let request = CreateSandbox {
            template: "debian".parse().expect("a name"),
            vcpus: None,
            memory_mib: None,
            timeout_sec: None,
            lease_sec: None,
            envs: BTreeMap::new(),
            metadata: BTreeMap::new(),
            public_ports: BTreeSet::new(),
            network: Policy::default(),
            rates: RateLimits::default(),
            idempotency: Some(Idempotency { key: "once".into(), request_digest: "it".into() }),
        };
        let caller = CallerId("key".to_owned());
        let made = self.control.create(request, &caller, Trace::default()).await?;
        assert_eq!(made.state, SandboxState::Running);
        Ok(made.host_id)
    }

    /// How many rows there are.
    async fn rows(&self) -> usize {
        let limit = 100.try_into().expect("not zero");
        let page = self.control.list(&Filter::default(), limit, None).await.expect("lists");
        page.sandboxes.len()
    }
}

fn row(id: &str) -> Host {
    Host {
        id: id.to_owned(),
        name: id.to_owned(),
        state: HostState::Ready,
        hypervisor: "simulated".to_owned(),
        capacity: Shape::DEFAULT,
        version: "1".to_owned(),
        last_heartbeat_at: None,
        created_at: Utc::now(),
    }
}

#[tokio::test]
async fn a_create_that_a_host_does_not_take_is_made_by_another_one() {
    for refuses in [Refuses::Prepare, Refuses::Create] {
        let cluster = Cluster::of(&[(refuses, true), (Refuses::Nothing, true)]).await;
        assert_eq!(cluster.create().await.expect("one takes it"), "host-1");
        assert_eq!(cluster.hosts[0].made(), []);
        assert_eq!(cluster.rows().await, 1, "nothing is left of the attempt");
        // The same request again is the same sandbox, and asks no host.
        assert_eq!(cluster.create().await.expect("is known"), "host-1");
        assert_eq!(cluster.hosts[1].prepared.load(Ordering::SeqCst), 1);
        assert_eq!(cluster.hosts[1].made().len(), 1);
    }
}

#[tokio::test]
async fn a_create_that_failed_for_good_is_not_tried_elsewhere() {
    let cluster = Cluster::of(&[(Refuses::Create, false), (Refuses::Nothing, true)]).await;
    cluster.create().await.expect_err("it failed");
    assert_eq!(cluster.hosts[1].prepared.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_create_that_no_host_takes_tells_why_the_first_one_does_not() {
    let cluster = Cluster::of(&[(Refuses::Prepare, true), (Refuses::Create, true)]).await;
    let error = cluster.create().await.expect_err("none takes it");
    assert_eq!(
        (error.kind(), error.to_string().as_str()),
        (ErrorKind::Unavailable, "host-0 is full")
    );
    assert_eq!(cluster.rows().await, 0);
    let none = Cluster::of(&[]).await.create().await.expect_err("there is none");
    assert!(matches!(none, ControlError::NoHost));
}

/// A second daemon on the same database has other hosts: what it cannot ask for it does not close.
#[tokio::test]
async fn a_row_is_closed_only_on_the_word_of_its_host() {
    let cluster = Cluster::of(&[(Refuses::Nothing, true), (Refuses::Nothing, true)]).await;
    cluster.create().await.expect("is made");
    let [id] = &cluster.hosts[0].made()[..] else { panic!("the first host has it") };
    let other: Arc<dyn HostClient> = cluster.hosts[1].clone();
    let secret = TokenSecret::new(&[7; 32]);
    let stranger =
        ControlPlane::new(cluster.database.clone(), Hosts::new([other]), Arc::default(), secret);
    let error = stranger.destroy(id).await.expect_err("its host cannot be asked");
    assert!(matches!(&error, ControlError::UnknownHost(host) if host == "host-0"), "{error}");
    assert_eq!(stranger.get(id).await.expect("is there").state, SandboxState::Running);
    assert_eq!(cluster.hosts[0].made().len(), 1);
    cluster.control.destroy(id).await.expect("its host can be asked");
    assert_eq!(stranger.get(id).await.expect("is there").state, SandboxState::Stopped);
    assert_eq!(cluster.hosts[0].made(), []);
}
