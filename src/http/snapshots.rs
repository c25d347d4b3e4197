//! `/v1/snapshots`: take, list, look at and delete named snapshots.

use std::num::NonZeroU32;

use actix_web::{HttpResponse, delete, get, post, web};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::auth::Caller;
use super::body::Json;
use super::error::ApiError;
use super::openapi::failures::{Making, Names};
use super::openapi::{Routes, Section};
use super::page;
use crate::actors::control::ControlPlane;
use crate::domain::id::SandboxId;
use crate::domain::name::TemplateName;
use crate::domain::object::or_default;
use crate::domain::snapshot::Existing;
use crate::entity::Cursor;
use crate::entity::snapshots::Snapshot;

/// Body of `POST /v1/snapshots`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = CreateSnapshot, examples(json!({
    "sandbox_id": "k3v9x1p0qzt7m2c8rw5b",
    "name": "ready",
    "overwrite": true,
})))]
struct CreateBody {
    /// Of what it is taken; running or paused.
    sandbox_id: SandboxId,
    /// What it is to be called.
    name: TemplateName,
    /// Whether it may take the place of another one of this name.
    #[serde(default, deserialize_with = "or_default")]
    #[schema(nullable)]
    overwrite: bool,
}

/// A snapshot, as the API shows it.
#[derive(Serialize, ToSchema)]
#[schema(as = Snapshot, examples(json!({
    "name": "ready",
    "sandbox_id": "k3v9x1p0qzt7m2c8rw5b",
    "image": "debian",
    "vcpus": 1,
    "memory_mb": 512,
    "hypervisor": "firecracker",
    "memory_bytes": 104_857_600,
    "memory_generations": 2,
    "disk_bytes": 2_097_152,
    "shared_bytes": 104_857_600,
    "created_at": "2026-11-25T22:46:45.120394Z",
})))]
struct SnapshotView {
    /// By which sandboxes are made from it.
    name: TemplateName,
    /// Of which sandbox it was taken.
    sandbox_id: SandboxId,
    /// The image that all began with.
    image: TemplateName,
    /// Virtual CPUs of sandboxes from it.
    vcpus: u32,
    /// Memory of sandboxes from it, in MiB.
    memory_mb: u32,
    /// Which hypervisor can restore it.
    hypervisor: String,
    /// Of memory, on disk.
    memory_bytes: u64,
    /// How many files that memory is in.
    memory_generations: u32,
    /// Of all layers of its disk.
    disk_bytes: u64,
    /// Of those, what others use too.
    shared_bytes: u64,
    /// When it was taken.
    created_at: DateTime<Utc>,
}

impl From<Snapshot> for SnapshotView {
    fn from(snapshot: Snapshot) -> Self {
        Self {
            name: snapshot.name,
            sandbox_id: snapshot.sandbox_id,
            image: snapshot.image,
            vcpus: snapshot.shape.vcpus,
            memory_mb: snapshot.shape.memory_mib,
            hypervisor: snapshot.hypervisor,
            memory_bytes: snapshot.memory_bytes,
            memory_generations: snapshot.memory_generations,
            disk_bytes: snapshot.disk_bytes,
            shared_bytes: snapshot.shared_bytes,
            created_at: snapshot.created_at,
        }
    }
}

/// A page of snapshots.
#[derive(Serialize, ToSchema)]
#[schema(as = SnapshotList)]
struct ListView {
    /// The newest first.
    snapshots: Vec<SnapshotView>,
    /// Where the next page begins; absent on the last one.
    #[schema(example = "MTc2NDExMDgwNTEyMDM5NC5yZWFkeQ")]
    next_cursor: Option<String>,
}

/// Takes a snapshot of a sandbox, which goes on.
#[utoipa::path(
    operation_id = "createSnapshot",
    responses((status = 201, description = "It can be used.", body = SnapshotView), Making),
)]
#[post("/snapshots")]
async fn create(
    _: Caller,
    control: web::Data<ControlPlane>,
    body: Json<CreateBody>,
) -> Result<HttpResponse, ApiError> {
    let CreateBody { sandbox_id, name, overwrite } = body.0;
    let existing = if overwrite { Existing::Replace } else { Existing::Keep };
    let snapshot = control.create_snapshot(&sandbox_id, name, existing).await?;
    Ok(HttpResponse::Created().json(SnapshotView::from(snapshot)))
}

/// Lists snapshots, the newest first.
#[utoipa::path(
    operation_id = "listSnapshots",
    params(page::Window),
    responses((status = 200, description = "One page.", body = ListView)),
)]
#[get("/snapshots")]
async fn list(
    _: Caller,
    control: web::Data<ControlPlane>,
    query: web::Query<Vec<(String, String)>>,
) -> Result<HttpResponse, ApiError> {
    let (limit, after) = window(query.into_inner())?;
    let page = control.snapshots(limit, after).await?;
    Ok(HttpResponse::Ok().json(ListView {
        snapshots: page.snapshots.into_iter().map(SnapshotView::from).collect(),
        next_cursor: page.next.map(|cursor| cursor.to_string()),
    }))
}

/// Shows a snapshot.
#[utoipa::path(
    operation_id = "getSnapshot",
    params(TemplateName),
    responses((status = 200, description = "The snapshot.", body = SnapshotView)),
)]
#[get("/snapshots/{name}")]
async fn get(
    _: Caller,
    control: web::Data<ControlPlane>,
    name: web::Path<TemplateName>,
) -> Result<HttpResponse, ApiError> {
    Ok(HttpResponse::Ok().json(SnapshotView::from(control.snapshot(&name).await?)))
}

/// Deletes a snapshot; sandboxes that were made from it live on.
#[utoipa::path(
    operation_id = "deleteSnapshot",
    params(TemplateName),
    responses((status = 204, description = "It is gone."), Names),
)]
#[delete("/snapshots/{name}")]
async fn remove(
    _: Caller,
    control: web::Data<ControlPlane>,
    name: web::Path<TemplateName>,
) -> Result<HttpResponse, ApiError> {
    control.remove_snapshot(&name).await?;
    Ok(HttpResponse::NoContent().finish())
}

/// The routes of this file.
pub fn routes(routes: &mut Routes) {
    routes.section(Section::Snapshots).add(list).add(create).add(get).add(remove);
}

/// Reads `limit` and `cursor`.
fn window(
    pairs: Vec<(String, String)>,
) -> Result<(NonZeroU32, Option<Cursor<TemplateName>>), ApiError> {
    let (mut limit, mut after) = (page::DEFAULT, None);
    for (name, value) in pairs {
        match name.as_str() {
            "limit" => limit = page::limit(&value)?,
            "cursor" => after = Some(page::cursor(&value)?),
            _ => return Err(ApiError::invalid(format!("unknown parameter {name:?}"))),
        }
    }
    Ok((limit, after))
}
