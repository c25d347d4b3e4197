//! `POST /v1/sandboxes/{id}/pause` and `/resume`.

use actix_web::{HttpResponse, post, web};

use super::auth::Caller;
use super::body::{Empty, Optional};
use super::error::{ApiError, only};
use super::sandboxes::SandboxView;
use super::trace::Traced;
use crate::actors::control_plane::{ControlPlane, Trace};
use crate::domain::id::SandboxId;

#[post("/sandboxes/{id}/pause")]
async fn pause(
    _: Caller,
    control: web::Data<ControlPlane>,
    id: web::Path<SandboxId>,
    traced: web::Query<Traced>,
    _: Optional<Empty>,
) -> Result<HttpResponse, ApiError> {
    let trace = Trace::default();
    let sandbox = control.pause(&id, trace.clone()).await?;
    Ok(HttpResponse::Ok().json(traced.view(SandboxView::from(sandbox), &trace)))
}

#[post("/sandboxes/{id}/resume")]
async fn resume(
    _: Caller,
    control: web::Data<ControlPlane>,
    id: web::Path<SandboxId>,
    traced: web::Query<Traced>,
    _: Optional<Empty>,
) -> Result<HttpResponse, ApiError> {
    let trace = Trace::default();
    let sandbox = control.resume(&id, trace.clone()).await?;
    Ok(HttpResponse::Ok().json(traced.view(SandboxView::from(sandbox), &trace)))
}

/// The routes of this file.
pub fn routes(config: &mut web::ServiceConfig) {
    config.service(pause).service(resume);
    config.service(only("/sandboxes/{id}/pause", "POST"));
    config.service(only("/sandboxes/{id}/resume", "POST"));
}
