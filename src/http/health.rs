//! `/health` and `/metrics`: for those who watch the daemon.

use actix_web::middleware::from_fn;
use actix_web::{HttpResponse, get, web};
use serde::Serialize;

use super::auth::{Caller, authenticate};
use super::error::only;
use crate::actors::control_plane::ControlPlane;

#[derive(Serialize)]
struct HealthView {
    status: &'static str,
    version: &'static str,
}

#[get("/health")]
async fn health() -> HttpResponse {
    HttpResponse::Ok().json(HealthView { status: "ok", version: env!("CARGO_PKG_VERSION") })
}

#[get("/metrics", wrap = "from_fn(authenticate)")]
async fn metrics(_: Caller, control: web::Data<ControlPlane>) -> HttpResponse {
    HttpResponse::Ok()
        .content_type("application/openmetrics-text; version=1.0.0; charset=utf-8")
        .body(control.encode_metrics())
}

/// The routes of this file.
pub fn routes(config: &mut web::ServiceConfig) {
    config.service(health).service(metrics);
    config.service(only("/health", "GET")).service(only("/metrics", "GET"));
}
