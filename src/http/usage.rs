//! `GET /v1/sandboxes/{id}/metrics`: what a sandbox takes of its host.

use actix_web::{HttpResponse, get, web};
use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;

use super::auth::Caller;
use super::error::ApiError;
use super::openapi::failures::State;
use super::openapi::{Routes, Section};
use crate::actors::control::ControlPlane;
use crate::domain::id::SandboxId;
use crate::domain::usage::{Sample, UsageReport};

/// What it takes, and what it took.
#[derive(Serialize, ToSchema)]
#[schema(as = Usage)]
struct UsageView {
    /// At this moment.
    now: SampleView,
    /// One sample every ten seconds that it ran, the oldest first, of an hour at most.
    history: Vec<SampleView>,
}

/// What it took at a moment.
#[derive(Serialize, ToSchema)]
#[schema(as = Sample, examples(json!({
    "at": "2026-11-25T22:46:45.120394Z",
    "cpu_percent": 12.5,
    "memory_used_bytes": 104_857_600,
    "memory_total_bytes": 536_870_912,
    "disk_used_bytes": 2_097_152,
})))]
struct SampleView {
    /// When.
    at: DateTime<Utc>,
    /// Of one CPU, since the sample before.
    cpu_percent: f64,
    /// What its VM has for itself.
    memory_used_bytes: u64,
    /// What its guest has at most.
    memory_total_bytes: u64,
    /// Blocks in use, all layers of its disk.
    disk_used_bytes: u64,
}

impl From<UsageReport> for UsageView {
    fn from(report: UsageReport) -> Self {
        let view = |sample: Sample| SampleView {
            at: sample.at,
            // More digits would only look exact.
            cpu_percent: (f64::from(sample.cpu_percent) * 100.0).round() / 100.0,
            memory_used_bytes: sample.memory_bytes,
            memory_total_bytes: report.memory_total_bytes,
            disk_used_bytes: sample.disk_bytes,
        };
        Self { now: view(report.now), history: report.history.into_iter().map(view).collect() }
    }
}

/// Shows what a sandbox takes of its host, and took within the last hour.
#[utoipa::path(
    operation_id = "getSandboxMetrics",
    params(SandboxId),
    responses((status = 200, description = "Now and before.", body = UsageView), State),
)]
#[get("/sandboxes/{id}/metrics")]
async fn metrics(
    _: Caller,
    control: web::Data<ControlPlane>,
    id: web::Path<SandboxId>,
) -> Result<HttpResponse, ApiError> {
    Ok(HttpResponse::Ok().json(UsageView::from(control.usage(&id).await?)))
}

/// The routes of this file.
pub fn routes(routes: &mut Routes) {
    routes.section(Section::Sandboxes).add(metrics);
}
