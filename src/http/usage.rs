//! `GET /v1/sandboxes/{id}/metrics`: what a sandbox takes of its host.

use actix_web::{HttpResponse, get, web};
use chrono::{DateTime, Utc};
use serde::Serialize;

use super::auth::Caller;
use super::error::{ApiError, only};
use crate::actors::control_plane::{ControlPlane, Sample, UsageReport};
use crate::domain::id::SandboxId;

/// What it takes, and what it took.
#[derive(Serialize)]
struct UsageView {
    now: SampleView,
    /// One sample every ten seconds that it ran, the oldest first, of an hour at most.
    history: Vec<SampleView>,
}

/// What it took at a moment.
#[derive(Serialize)]
struct SampleView {
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

#[get("/sandboxes/{id}/metrics")]
async fn metrics(
    _: Caller,
    control: web::Data<ControlPlane>,
    id: web::Path<SandboxId>,
) -> Result<HttpResponse, ApiError> {
    Ok(HttpResponse::Ok().json(UsageView::from(control.usage(&id).await?)))
}

/// The routes of this file.
pub fn routes(config: &mut web::ServiceConfig) {
    config.service(metrics).service(only("/sandboxes/{id}/metrics", "GET"));
}
