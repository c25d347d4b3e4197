//! `/v1/sandboxes`: create, list, look at, destroy.

mod idempotency;
mod query;

use std::collections::{BTreeMap, BTreeSet};

use actix_web::{HttpRequest, HttpResponse, delete, get, post, web};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use query::{ClearQuery, Ended, ListQuery, StateFilter};

use super::auth::Caller;
use super::body::Json;
use super::error::ApiError;
use super::lease;
use super::network::NetworkPolicy;
use super::openapi::failures::{Life, Making};
use super::openapi::{Routes, Section};
use super::page;
use super::trace::{Traced, WithTrace};
use crate::actors::control::{ControlPlane, CreateSandbox};
use crate::domain::egress::Policy;
use crate::domain::id::SandboxId;
use crate::domain::lifecycle::SandboxState;
use crate::domain::name::TemplateName;
use crate::domain::object::or_default;
use crate::domain::port::GuestPort;
use crate::domain::rates::RateLimits;
use crate::domain::snapshot::Storage;
use crate::domain::trace::Trace;
use crate::entity::sandboxes::{Idempotency, Sandbox};

/// What a sandbox is made from unless the request says otherwise.
const DEFAULT_TEMPLATE: &str = "debian";

/// Labels and variables are carried with every look at a sandbox, so they stay small.
const MAX_ENTRIES: usize = 128;
const MAX_ENTRY_BYTES: usize = 32 << 10;

/// Body of `POST /v1/sandboxes`; every field may be left out.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = CreateSandbox, examples(json!({
    "template": "debian",
    "vcpus": 1,
    "memory_mb": 512,
    "timeout_sec": 600,
    "envs": {"LANG": "C.UTF-8"},
    "metadata": {"owner": "ada"},
    "public_ports": [8000],
})))]
struct CreateBody {
    /// An image or a snapshot; `debian` if absent.
    #[schema(value_type = Option<TemplateName>)]
    template: Option<String>,
    /// Virtual CPUs; 1 if absent, those of the snapshot if it is made from one.
    #[schema(minimum = 1)]
    vcpus: Option<u32>,
    /// Memory in MiB; 512 if absent, that of the snapshot if it is made from one.
    #[schema(minimum = 1)]
    memory_mb: Option<u32>,
    /// Seconds without work after which it is destroyed; never if absent.
    #[schema(minimum = 1)]
    timeout_sec: Option<u32>,
    /// Seconds after which it is destroyed unless its client has renewed this lease; it needs none if
    /// absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 86_400)]
    lease_sec: Option<u32>,
    /// Variables of all that runs in it: at most 128 and 32 KiB.
    #[serde(default, deserialize_with = "or_default")]
    #[schema(nullable)]
    envs: BTreeMap<String, String>,
    /// Labels, to find it by: at most 128 and 32 KiB.
    #[serde(default, deserialize_with = "or_default")]
    #[schema(nullable)]
    metadata: BTreeMap<String, String>,
    /// Ports of servers in it that anybody may reach.
    #[schema(value_type = Vec<GuestPort>, max_items = 128, nullable)]
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "BTreeSet::is_empty")]
    public_ports: BTreeSet<GuestPort>,
    /// What it may reach; everything if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<NetworkPolicy>)]
    network: Option<Policy>,
    /// How fast it may use its disk and its network; as fast as the host lets it if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<RateLimitsBody>)]
    rate_limits: Option<RateLimits>,
}

/// How fast a sandbox may be. What has no limit is as fast as the host lets it.
///
/// Stands for the domain's [`RateLimits`], which check themselves when they are read.
#[derive(ToSchema)]
#[schema(as = RateLimits, examples(json!({"disk_bytes_per_sec": 52_428_800})))]
#[expect(dead_code, reason = "a description of another type")]
struct RateLimitsBody {
    /// Bytes that are read from the disk and written to it.
    #[schema(minimum = 65536, maximum = 1_000_000_000_000_u64)]
    disk_bytes_per_sec: Option<u64>,
    /// Reads and writes of the disk.
    #[schema(minimum = 10, maximum = 1_000_000_000)]
    disk_ops_per_sec: Option<u64>,
    /// Bytes that are sent, and as many that are received. What goes through this API, to and from its
    /// commands and files, does not count.
    #[schema(minimum = 16384, maximum = 4_294_967_295_u64)]
    network_bytes_per_sec: Option<u64>,
}

/// A sandbox, as the API shows it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Sandbox, examples(json!({
    "id": "k3v9x1p0qzt7m2c8rw5b",
    "template": "debian",
    "state": "running",
    "reason": null,
    "vcpus": 1,
    "memory_mb": 512,
    "timeout_sec": 600,
    "metadata": {"owner": "ada"},
    "public_ports": [8000],
    "rate_limits": {"network_bytes_per_sec": 12_500_000},
    "hypervisor": "firecracker",
    "host_id": "3f0c9a52d1",
    "created_at": "2026-11-25T22:46:45.120394Z",
    "last_active_at": "2026-11-25T22:48:02.004511Z",
    "expires_at": "2026-11-25T22:58:02.004511Z",
})))]
pub(super) struct SandboxView {
    /// Its id.
    id: SandboxId,
    /// What it was made from.
    template: TemplateName,
    /// Where it is in its life.
    state: SandboxState,
    /// Why it is in this state, if that is not what somebody asked for.
    reason: Option<String>,
    /// Virtual CPUs.
    vcpus: u32,
    /// Memory in MiB.
    memory_mb: u32,
    /// Seconds without work after which it is destroyed; never if absent.
    timeout_sec: Option<u32>,
    /// Labels.
    metadata: BTreeMap<String, String>,
    /// Ports that anybody may reach.
    public_ports: BTreeSet<GuestPort>,
    /// How fast it may use its disk and its network.
    #[schema(value_type = RateLimitsBody)]
    rate_limits: RateLimits,
    /// What its VM runs under.
    hypervisor: String,
    /// The host that it is on.
    host_id: String,
    /// When it was asked for.
    created_at: DateTime<Utc>,
    /// When work was done in it last.
    last_active_at: DateTime<Utc>,
    /// When it is destroyed unless work is done in it; never if absent.
    expires_at: Option<DateTime<Utc>>,
}

impl From<Sandbox> for SandboxView {
    fn from(sandbox: Sandbox) -> Self {
        Self {
            id: sandbox.id,
            template: sandbox.template,
            state: sandbox.state,
            reason: sandbox.reason,
            vcpus: sandbox.shape.vcpus,
            memory_mb: sandbox.shape.memory_mib,
            timeout_sec: sandbox.timeout_sec,
            metadata: sandbox.metadata,
            public_ports: sandbox.public_ports,
            rate_limits: sandbox.rates,
            hypervisor: sandbox.hypervisor,
            host_id: sandbox.host_id,
            created_at: sandbox.created_at,
            last_active_at: sandbox.last_active_at,
            expires_at: sandbox.expires_at,
        }
    }
}

/// A sandbox with what takes a look at its host to know.
#[derive(Serialize, ToSchema)]
#[schema(as = SandboxDetails)]
struct DetailedView {
    #[serde(flatten)]
    sandbox: SandboxView,
    /// What it has in use on the host's disk; absent if nothing is left of it there.
    storage: Option<StorageView>,
}

/// Bytes in use on the host's disk.
#[derive(Serialize, ToSchema)]
#[schema(as = Storage, examples(json!({
    "memory_bytes": 104_857_600,
    "memory_generations": 1,
    "disk_bytes": 2_097_152,
    "shared_bytes": 104_857_600,
})))]
struct StorageView {
    /// Of memory that was written to disk.
    memory_bytes: u64,
    /// How many files that memory is in, each with what changed since the one before.
    memory_generations: u32,
    /// Of all layers of its disk.
    disk_bytes: u64,
    /// Of those, what others use too.
    shared_bytes: u64,
}

impl From<Storage> for StorageView {
    fn from(storage: Storage) -> Self {
        let Storage { memory_bytes, memory_generations, disk_bytes, shared_bytes } = storage;
        Self { memory_bytes, memory_generations, disk_bytes, shared_bytes }
    }
}

/// A page of sandboxes.
#[derive(Serialize, ToSchema)]
#[schema(as = SandboxList)]
struct ListView {
    /// The newest first.
    sandboxes: Vec<SandboxView>,
    /// Where the next page begins; absent on the last one.
    #[schema(example = "MTc2NDExMDgwNTEyMDM5NC5rM3Y5eDFwMHF6dDdtMmM4cnc1Yg")]
    next_cursor: Option<String>,
}

/// Makes a sandbox, which runs when the answer comes.
#[utoipa::path(
    operation_id = "createSandbox",
    params(
        Traced,
        ("Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 255,
         description = "The same key and body give the same sandbox back; another body is a 409."),
    ),
    responses(
        (status = 201, description = "It runs.", body = WithTrace<SandboxView>),
        Making,
    ),
)]
#[post("/sandboxes")]
async fn create(
    caller: Caller,
    control: web::Data<ControlPlane>,
    request: HttpRequest,
    traced: web::Query<Traced>,
    body: Json<CreateBody>,
) -> Result<HttpResponse, ApiError> {
    let body = body.0;
    let idempotency = idempotency::of(&request, &body)?;
    let request = create_sandbox(body, idempotency)?;
    let trace = Trace::default();
    let sandbox = control.create(request, &caller.0, trace.clone()).await?;
    Ok(HttpResponse::Created().json(traced.view(SandboxView::from(sandbox), &trace)))
}

/// Lists sandboxes, the newest first.
#[utoipa::path(
    operation_id = "listSandboxes",
    params(
        ("state" = inline(Option<Vec<StateFilter>>), Query, style = Form,
         description = "Only those in one of these states; those that have not ended if absent."),
        ("metadata" = Option<Vec<String>>, Query, style = Form, explode,
         description = "Only those with this label, as `key=value`; can be repeated."),
        page::Window,
    ),
    responses((status = 200, description = "One page.", body = ListView)),
)]
#[get("/sandboxes")]
async fn list(
    _: Caller,
    control: web::Data<ControlPlane>,
    query: web::Query<Vec<(String, String)>>,
) -> Result<HttpResponse, ApiError> {
    let query = ListQuery::parse(query.into_inner())?;
    let page = control.list(&query.filter, query.limit, query.after).await?;
    Ok(HttpResponse::Ok().json(ListView {
        sandboxes: page.sandboxes.into_iter().map(SandboxView::from).collect(),
        next_cursor: page.next.map(|cursor| cursor.to_string()),
    }))
}

/// Shows a sandbox.
#[utoipa::path(
    operation_id = "getSandbox",
    params(SandboxId),
    responses((status = 200, description = "The sandbox.", body = DetailedView)),
)]
#[get("/sandboxes/{id}")]
async fn get(
    _: Caller,
    control: web::Data<ControlPlane>,
    id: web::Path<SandboxId>,
) -> Result<HttpResponse, ApiError> {
    let sandbox = SandboxView::from(control.get(&id).await?);
    let storage = control.storage(&id).await.map(StorageView::from);
    Ok(HttpResponse::Ok().json(DetailedView { sandbox, storage }))
}

/// Destroys a sandbox, in whatever state it is.
#[utoipa::path(
    operation_id = "destroySandbox",
    params(SandboxId),
    responses((status = 204, description = "Nothing of it is left."), Life),
)]
#[delete("/sandboxes/{id}")]
async fn destroy(
    _: Caller,
    control: web::Data<ControlPlane>,
    id: web::Path<SandboxId>,
) -> Result<HttpResponse, ApiError> {
    control.destroy(&id).await?;
    Ok(HttpResponse::NoContent().finish())
}

/// What was forgotten.
#[derive(Serialize, ToSchema)]
#[schema(as = Cleared, examples(json!({"cleared": 3})))]
struct ClearedView {
    /// How many sandboxes.
    cleared: u64,
}

/// Forgets the sandboxes that have ended. They would be forgotten a week after their end.
#[utoipa::path(
    operation_id = "clearSandboxes",
    params(ClearQuery),
    responses((status = 200, description = "They are not listed any more.", body = ClearedView)),
)]
#[delete("/sandboxes")]
async fn clear(
    _: Caller,
    control: web::Data<ControlPlane>,
    query: web::Query<ClearQuery>,
) -> Result<HttpResponse, ApiError> {
    let ClearQuery { state: Ended::Ended } = query.into_inner();
    let cleared = control.forget_ended().await?;
    Ok(HttpResponse::Ok().json(ClearedView { cleared }))
}

/// The routes of this file.
pub fn routes(routes: &mut Routes) {
    routes.section(Section::Sandboxes).add(list).add(create).add(clear).add(get).add(destroy);
}

fn create_sandbox(
    body: CreateBody,
    idempotency: Option<Idempotency>,
) -> Result<CreateSandbox, ApiError> {
    let template = body.template.as_deref().unwrap_or(DEFAULT_TEMPLATE);
    let template = template.parse().map_err(|error| ApiError::invalid(format!("{error}")))?;
    if body.timeout_sec == Some(0) {
        return Err(ApiError::invalid("timeout_sec is at least 1; leave it out for no timeout"));
    }
    check_entries("envs", &body.envs)?;
    check_entries("metadata", &body.metadata)?;
    check_environment(&body.envs)?;
    if body.public_ports.len() > MAX_ENTRIES {
        return Err(ApiError::invalid(format!("public_ports has at most {MAX_ENTRIES} ports")));
    }
    Ok(CreateSandbox {
        template,
        vcpus: body.vcpus,
        memory_mib: body.memory_mb,
        timeout_sec: body.timeout_sec,
        lease_sec: lease::check(body.lease_sec)?,
        envs: body.envs,
        metadata: body.metadata,
        public_ports: body.public_ports,
        network: body.network.unwrap_or_default(),
        rates: body.rate_limits.unwrap_or_default(),
        idempotency,
    })
}

fn check_entries(field: &str, entries: &BTreeMap<String, String>) -> Result<(), ApiError> {
    let bytes: usize = entries.iter().map(|(key, value)| key.len() + value.len()).sum();
    if entries.len() > MAX_ENTRIES || bytes > MAX_ENTRY_BYTES {
        return Err(ApiError::invalid(format!(
            "{field} has at most {MAX_ENTRIES} entries and {MAX_ENTRY_BYTES} bytes in all"
        )));
    }
    if entries.iter().any(|(key, value)| key.contains('\0') || value.contains('\0')) {
        return Err(ApiError::invalid(format!("{field} may not contain NUL characters")));
    }
    Ok(())
}

/// Checks names of environment variables, here and for commands.
pub(super) fn check_environment(envs: &BTreeMap<String, String>) -> Result<(), ApiError> {
    let bad = |(key, value): (&String, &String)| {
        key.is_empty() || key.contains(['=', '\0']) || value.contains('\0')
    };
    match envs.iter().any(bad) {
        true => Err(ApiError::invalid("a variable's name is not empty and has no = and no NUL")),
        false => Ok(()),
    }
}
