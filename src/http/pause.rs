//! `POST /v1/sandboxes/{id}/pause` and `/resume`.

use actix_web::{HttpResponse, post, web};

use super::auth::Caller;
use super::body::{Empty, Optional};
use super::error::ApiError;
use super::openapi::failures::Life;
use super::openapi::{Routes, Section};
use super::sandboxes::SandboxView;
use super::trace::{Traced, WithTrace};
use crate::actors::control::ControlPlane;
use crate::domain::id::SandboxId;
use crate::domain::trace::Trace;

/// Pauses a sandbox: its memory goes to disk, and it takes none of the host's.
#[utoipa::path(
    operation_id = "pauseSandbox",
    params(SandboxId, Traced),
    request_body = Option<Empty>,
    responses((status = 200, description = "It is paused.", body = WithTrace<SandboxView>), Life),
)]
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

/// Resumes a paused sandbox where it was.
#[utoipa::path(
    operation_id = "resumeSandbox",
    params(SandboxId, Traced),
    request_body = Option<Empty>,
    responses((status = 200, description = "It is running.", body = WithTrace<SandboxView>), Life),
)]
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
pub fn routes(routes: &mut Routes) {
    routes.section(Section::Sandboxes).add(pause).add(resume);
}
