//! `/v1/sandboxes`: create, list, look at, destroy.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;

use actix_web::{HttpRequest, HttpResponse, delete, get, post, web};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::auth::Caller;
use super::error::{ApiError, only};
use super::page;
use super::trace::Traced;
use crate::actors::control_plane::{ControlPlane, CreateSandbox, Storage, Trace};
use crate::domain::egress::Policy;
use crate::domain::id::SandboxId;
use crate::domain::name::TemplateName;
use crate::domain::port::GuestPort;
use crate::domain::sandbox::SandboxState;
use crate::entity::Cursor;
use crate::entity::sandboxes::{Filter, Idempotency, Sandbox};

/// The header by which a repeated create is known.
const IDEMPOTENCY_KEY: &str = "Idempotency-Key";

/// What a sandbox is made from unless the request says otherwise.
const DEFAULT_TEMPLATE: &str = "debian";

/// Labels and variables are carried with every look at a sandbox, so they stay small.
const MAX_ENTRIES: usize = 128;
const MAX_ENTRY_BYTES: usize = 32 << 10;

/// Body of `POST /v1/sandboxes`; every field may be left out.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct CreateBody {
    template: Option<String>,
    vcpus: Option<u32>,
    memory_mb: Option<u32>,
    timeout_sec: Option<u32>,
    #[serde(default)]
    envs: BTreeMap<String, String>,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    public_ports: BTreeSet<GuestPort>,
    /// What it may reach; everything if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    network: Option<Policy>,
}

/// A sandbox, as the API shows it.
#[derive(Debug, Serialize)]
pub(super) struct SandboxView {
    id: SandboxId,
    template: TemplateName,
    state: SandboxState,
    reason: Option<String>,
    vcpus: u32,
    /// In MiB.
    memory_mb: u32,
    timeout_sec: Option<u32>,
    metadata: BTreeMap<String, String>,
    public_ports: BTreeSet<GuestPort>,
    hypervisor: String,
    host_id: String,
    created_at: DateTime<Utc>,
    last_active_at: DateTime<Utc>,
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
            hypervisor: sandbox.hypervisor,
            host_id: sandbox.host_id,
            created_at: sandbox.created_at,
            last_active_at: sandbox.last_active_at,
            expires_at: sandbox.expires_at,
        }
    }
}

/// A sandbox with what takes a look at its host to know.
#[derive(Serialize)]
struct DetailedView {
    #[serde(flatten)]
    sandbox: SandboxView,
    /// None if nothing is left of it on its host.
    storage: Option<StorageView>,
}

/// Bytes in use on the host's disk.
#[derive(Serialize)]
struct StorageView {
    memory_bytes: u64,
    memory_generations: u32,
    disk_bytes: u64,
    shared_bytes: u64,
}

impl From<Storage> for StorageView {
    fn from(storage: Storage) -> Self {
        let Storage { memory_bytes, memory_generations, disk_bytes, shared_bytes } = storage;
        Self { memory_bytes, memory_generations, disk_bytes, shared_bytes }
    }
}

#[derive(Serialize)]
struct ListView {
    sandboxes: Vec<SandboxView>,
    next_cursor: Option<String>,
}

#[post("/sandboxes")]
async fn create(
    caller: Caller,
    control: web::Data<ControlPlane>,
    request: HttpRequest,
    traced: web::Query<Traced>,
    body: web::Json<CreateBody>,
) -> Result<HttpResponse, ApiError> {
    let body = body.into_inner();
    let idempotency = idempotency(&request, &body)?;
    let request = create_sandbox(body, idempotency)?;
    let trace = Trace::default();
    let sandbox = control.create(request, &caller.0, trace.clone()).await?;
    Ok(HttpResponse::Created().json(traced.view(SandboxView::from(sandbox), &trace)))
}

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

#[delete("/sandboxes/{id}")]
async fn destroy(
    _: Caller,
    control: web::Data<ControlPlane>,
    id: web::Path<SandboxId>,
) -> Result<HttpResponse, ApiError> {
    control.destroy(&id).await?;
    Ok(HttpResponse::NoContent().finish())
}

/// The routes of this file.
pub fn routes(config: &mut web::ServiceConfig) {
    config.service(create).service(list).service(get).service(destroy);
    config.service(only("/sandboxes", "GET, POST")).service(only("/sandboxes/{id}", "GET, DELETE"));
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
        envs: body.envs,
        metadata: body.metadata,
        public_ports: body.public_ports,
        network: body.network.unwrap_or_default(),
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

/// The caller's name for the request, and a digest of what it asks for.
fn idempotency(request: &HttpRequest, body: &CreateBody) -> Result<Option<Idempotency>, ApiError> {
    let Some(key) = request.headers().get(IDEMPOTENCY_KEY) else { return Ok(None) };
    let key = key.to_str().ok().filter(|key| (1..=255).contains(&key.len()));
    let Some(key) = key else {
        return Err(ApiError::invalid("an Idempotency-Key is 1 to 255 visible characters"));
    };
    // Of the parsed body, so that the order of fields and white space do not matter.
    let text = serde_json::to_vec(body).expect("a body has only string keys");
    let request_digest = Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Some(Idempotency { key: key.to_owned(), request_digest }))
}

struct ListQuery {
    filter: Filter,
    limit: NonZeroU32,
    after: Option<Cursor>,
}

impl ListQuery {
    /// `state` (repeatable, or several separated by commas), `metadata` (`key=value`, repeatable),
    /// `limit`, `cursor`. Without `state`, those that are not stopped.
    fn parse(pairs: Vec<(String, String)>) -> Result<Self, ApiError> {
        let mut query = Self { filter: Filter::default(), limit: page::DEFAULT, after: None };
        for (name, value) in pairs {
            match name.as_str() {
                "state" => {
                    for state in value.split(',') {
                        let state: Result<SandboxState, _> = state.parse();
                        query
                            .filter
                            .states
                            .push(state.map_err(|e| ApiError::invalid(e.to_string()))?);
                    }
                }
                "metadata" => {
                    let (key, value) = value
                        .split_once('=')
                        .ok_or_else(|| ApiError::invalid("metadata is given as key=value"))?;
                    query.filter.metadata.insert(key.to_owned(), value.to_owned());
                }
                "limit" => query.limit = page::limit(&value)?,
                "cursor" => query.after = Some(page::cursor(&value)?),
                _ => return Err(ApiError::invalid(format!("unknown parameter {name:?}"))),
            }
        }
        if query.filter.states.is_empty() {
            let living = |state: &SandboxState| *state != SandboxState::Stopped;
            query.filter.states = SandboxState::ALL.into_iter().filter(living).collect();
        }
        Ok(query)
    }
}
