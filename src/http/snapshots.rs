//! `/v1/snapshots`: take, list, look at and delete named snapshots.

use std::num::NonZeroU32;

use actix_web::{HttpResponse, delete, get, post, web};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::auth::Caller;
use super::error::{ApiError, only};
use super::page;
use crate::actors::control_plane::{ControlPlane, Existing};
use crate::domain::id::SandboxId;
use crate::domain::name::TemplateName;
use crate::entity::Cursor;
use crate::entity::snapshots::Snapshot;

/// Body of `POST /v1/snapshots`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateBody {
    sandbox_id: SandboxId,
    name: TemplateName,
    /// Whether it may take the place of another one of this name.
    #[serde(default)]
    overwrite: bool,
}

/// A snapshot, as the API shows it.
#[derive(Serialize)]
struct SnapshotView {
    name: TemplateName,
    sandbox_id: SandboxId,
    image: TemplateName,
    vcpus: u32,
    /// In MiB.
    memory_mb: u32,
    hypervisor: String,
    memory_bytes: u64,
    memory_generations: u32,
    disk_bytes: u64,
    shared_bytes: u64,
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

#[derive(Serialize)]
struct ListView {
    snapshots: Vec<SnapshotView>,
    next_cursor: Option<String>,
}

#[post("/snapshots")]
async fn create(
    _: Caller,
    control: web::Data<ControlPlane>,
    body: web::Json<CreateBody>,
) -> Result<HttpResponse, ApiError> {
    let CreateBody { sandbox_id, name, overwrite } = body.into_inner();
    let existing = if overwrite { Existing::Replace } else { Existing::Keep };
    let snapshot = control.create_snapshot(&sandbox_id, name, existing).await?;
    Ok(HttpResponse::Created().json(SnapshotView::from(snapshot)))
}

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

#[get("/snapshots/{name}")]
async fn get(
    _: Caller,
    control: web::Data<ControlPlane>,
    name: web::Path<TemplateName>,
) -> Result<HttpResponse, ApiError> {
    Ok(HttpResponse::Ok().json(SnapshotView::from(control.snapshot(&name).await?)))
}

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
pub fn routes(config: &mut web::ServiceConfig) {
    config.service(create).service(list).service(get).service(remove);
    config.service(only("/snapshots", "GET, POST"));
    config.service(only("/snapshots/{name}", "GET, DELETE"));
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
