//! What the control plane can ask of a host, near or far.
//!
//! Requests and answers are plain values of [`crate::domain::host`], which another machine could be
//! sent. Whatever changes a sandbox is answered with its status; the same is published to a
//! [`StatusSink`], and [`HostClient::inventory`] lists it: three ways to
//! one place, where the greatest generation stays.

use async_trait::async_trait;

use super::host::workplace::Workplace;
use crate::domain::egress::{Policy, PolicyRevision};
use crate::domain::host::{Destroyed, HostError, Inventory, Prepare, Prepared, SandboxSpec};
use crate::domain::id::SandboxId;
use crate::domain::name::TemplateName;
use crate::domain::snapshot::{Existing, SnapshotInfo, Storage};
use crate::domain::status::{SandboxReport, SandboxStatus};
use crate::domain::trace::Trace;
use crate::domain::usage::{HostLoad, UsageReport};

/// A host. Whatever is begun runs to its end there, whether or not the answer is waited for.
///
/// About a sandbox that does not live there each answers with [`ErrorKind::InvalidState`], unless it
/// says something else.
///
/// [`ErrorKind::InvalidState`]: crate::domain::host::ErrorKind::InvalidState
#[async_trait]
pub trait HostClient: Send + Sync + 'static {
    /// The host's id.
    fn id(&self) -> &str;

    /// Asks whether the host takes sandboxes. If so it keeps memory for them for some time, and says by
    /// which ids they are to be made.
    ///
    /// # Errors
    ///
    /// Why it does not take them. Nothing is kept for them then.
    async fn prepare(&self, request: Prepare) -> Result<Prepared, HostError>;

    /// Makes a sandbox from its template and waits until it runs. Of one that is there already it only
    /// gives the status: an answer that was lost can be asked for again.
    ///
    /// # Errors
    ///
    /// Nothing is left of it on the host.
    async fn create(&self, spec: SandboxSpec, trace: Trace) -> Result<SandboxReport, HostError>;

    /// Makes sandboxes that begin as `parent` is now, and waits until they run: all or none.
    ///
    /// # Errors
    ///
    /// There are no children then. The parent runs on, or its status says what became of it.
    async fn fork(
        &self,
        parent: &SandboxId,
        children: Vec<SandboxSpec>,
        trace: Trace,
    ) -> Result<Vec<SandboxReport>, HostError>;

    /// Waits until a sandbox is not being made any more. Does not wait for one that is not there.
    async fn settle(&self, id: &SandboxId);

    /// Ends a sandbox and gives back all it holds; idempotent, from every state. Waits for no database.
    ///
    /// # Errors
    ///
    /// It is unknown whether it was ended.
    async fn destroy(&self, id: &SandboxId) -> Result<Destroyed, HostError>;

    /// Pauses a sandbox; idempotent.
    ///
    /// # Errors
    ///
    /// It runs on, or its status says what became of it.
    async fn pause(&self, id: &SandboxId, trace: Trace) -> Result<SandboxReport, HostError>;

    /// Makes a paused sandbox run again; idempotent.
    ///
    /// # Errors
    ///
    /// It is still paused, also if there is no memory for it now.
    async fn resume(&self, id: &SandboxId, trace: Trace) -> Result<SandboxReport, HostError>;

    /// Keeps what a running or paused sandbox is now under a name.
    ///
    /// # Errors
    ///
    /// The sandbox is as it was, or its status says what became of it.
    async fn snapshot(
        &self,
        id: &SandboxId,
        name: &TemplateName,
        existing: Existing,
    ) -> Result<SnapshotInfo, HostError>;

    /// The named snapshots on the host's disk.
    ///
    /// # Errors
    ///
    /// They cannot be listed.
    async fn snapshots(&self) -> Result<Vec<SnapshotInfo>, HostError>;

    /// Removes a named snapshot; says whether there was one. What was made from it lives on.
    ///
    /// # Errors
    ///
    /// It may be there still, and can be removed again.
    async fn remove_snapshot(&self, name: &TemplateName) -> Result<bool, HostError>;

    /// What a sandbox may reach; none if nothing of it is there.
    ///
    /// # Errors
    ///
    /// The host does not say.
    async fn network(&self, id: &SandboxId) -> Result<Option<PolicyRevision>, HostError>;

    /// Changes what a sandbox may reach: at once if it runs, else for when it is resumed.
    ///
    /// # Errors
    ///
    /// It reaches what it did before.
    async fn set_network(
        &self,
        id: &SandboxId,
        policy: Policy,
    ) -> Result<PolicyRevision, HostError>;

    /// Has a sandbox destroyed unless this is said again within so many seconds; or no more, if that is
    /// none.
    ///
    /// # Errors
    ///
    /// Nothing has changed.
    async fn set_lease(&self, id: &SandboxId, lease_sec: Option<u32>) -> Result<(), HostError>;

    /// What a sandbox takes on disk; none if nothing of it is there.
    ///
    /// # Errors
    ///
    /// It cannot be told.
    async fn storage(&self, id: &SandboxId) -> Result<Option<Storage>, HostError>;

    /// What a sandbox takes and took, seen from outside: that is no work done in it. None if nothing of
    /// it is there.
    ///
    /// # Errors
    ///
    /// It cannot be told.
    async fn usage(&self, id: &SandboxId) -> Result<Option<UsageReport>, HostError>;

    /// Has what all sandboxes take now be kept, out of turn.
    ///
    /// # Errors
    ///
    /// Nothing was kept.
    async fn sample(&self) -> Result<(), HostError>;

    /// All that lives on the host.
    ///
    /// # Errors
    ///
    /// It cannot be told: what is not listed may be there all the same.
    async fn inventory(&self) -> Result<Inventory, HostError>;

    /// What the host carries, as it was last heard.
    fn load(&self) -> HostLoad;

    /// Leads into a sandbox, if it lives in this process.
    fn workplace(&self, id: &SandboxId) -> Option<Workplace>;
}

/// Where a host's decisions become known: the control plane's side.
#[async_trait]
pub trait StatusSink: Send + Sync + 'static {
    /// Records what a host reports of a sandbox, unless as much or more is known.
    async fn publish(&self, report: &SandboxReport) -> Result<Published, SinkError>;

    /// Records when work was last done in a sandbox, and when its time is over if it runs out now.
    async fn touch(&self, id: &SandboxId, status: &SandboxStatus) -> Result<(), SinkError>;
}

/// What came of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Published {
    /// It is known.
    Known,
    /// Something else is known by this generation or a later one.
    Stale(i64),
    /// Nothing is known of such a sandbox.
    Unknown,
}

/// The control plane could not take a status.
#[derive(Debug, thiserror::Error)]
#[error("the control plane did not take the status")]
pub struct SinkError(#[source] pub Box<dyn std::error::Error + Send + Sync>);
