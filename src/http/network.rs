//! `/v1/sandboxes/{id}/network`: what a sandbox may reach.

use actix_web::{HttpResponse, get, put, web};

use super::auth::Caller;
use super::error::{ApiError, only};
use crate::actors::control_plane::ControlPlane;
use crate::domain::egress::Policy;
use crate::domain::id::SandboxId;

#[get("/sandboxes/{id}/network")]
async fn show(
    _: Caller,
    control: web::Data<ControlPlane>,
    id: web::Path<SandboxId>,
) -> Result<HttpResponse, ApiError> {
    Ok(HttpResponse::Ok().json(control.network(&id).await?))
}

#[put("/sandboxes/{id}/network")]
async fn replace(
    _: Caller,
    control: web::Data<ControlPlane>,
    id: web::Path<SandboxId>,
    body: web::Json<Policy>,
) -> Result<HttpResponse, ApiError> {
    let policy = body.into_inner();
    control.set_network(&id, policy.clone()).await?;
    Ok(HttpResponse::Ok().json(policy))
}

/// The routes of this file.
pub fn routes(config: &mut web::ServiceConfig) {
    config.service(show).service(replace).service(only("/sandboxes/{id}/network", "GET, PUT"));
}
