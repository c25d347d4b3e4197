//! `/health` and `/metrics`: for those who watch the daemon.

use actix_web::middleware::from_fn;
use actix_web::{HttpResponse, get, web};
use serde::Serialize;
use utoipa::ToSchema;

use super::auth::{Caller, authenticate};
use super::connections::Connections;
use super::openapi::{Routes, Section};
use crate::actors::control::ControlPlane;

/// That the daemon answers.
#[derive(Serialize, ToSchema)]
#[schema(as = Health, examples(json!({"status": "ok", "version": "0.1.0"})))]
struct HealthView {
    /// Always `ok`.
    status: &'static str,
    /// Of the daemon.
    version: &'static str,
}

/// Says that the daemon answers.
#[utoipa::path(
    operation_id = "getHealth",
    responses((status = 200, description = "It does.", body = HealthView)),
)]
#[get("/health")]
async fn health() -> HttpResponse {
    HttpResponse::Ok().json(HealthView { status: "ok", version: env!("CARGO_PKG_VERSION") })
}

/// Shows the daemon's metrics, for Prometheus.
#[utoipa::path(
    operation_id = "getMetrics",
    security(("api_key" = [])),
    responses((
        status = 200,
        description = "All metrics, in the text format of OpenMetrics.",
        body = String,
        content_type = "application/openmetrics-text",
    )),
)]
#[get("/metrics", wrap = "from_fn(authenticate)")]
async fn metrics(
    _: Caller,
    control: web::Data<ControlPlane>,
    connections: web::Data<Connections>,
) -> HttpResponse {
    control.metrics().connections_seen(connections.counts());
    HttpResponse::Ok()
        .content_type("application/openmetrics-text; version=1.0.0; charset=utf-8")
        .body(control.encode_metrics())
}

/// The routes of this file.
pub fn routes(routes: &mut Routes) {
    routes.section(Section::Daemon).add(health).add(metrics);
}
