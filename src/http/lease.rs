//! `PUT` and `DELETE /v1/sandboxes/{id}/lease`: a client says that it still wants a sandbox.

use actix_web::{HttpResponse, delete, put, web};
use serde::Deserialize;
use utoipa::ToSchema;

use super::auth::Caller;
use super::body::Json;
use super::error::ApiError;
use super::openapi::failures::State;
use super::openapi::{Routes, Section};
use crate::actors::control::ControlPlane;
use crate::domain::id::SandboxId;
use crate::domain::lifecycle::LEASES;

/// Body of the request.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Lease, examples(json!({"lease_sec": 60})))]
struct LeaseBody {
    /// Seconds from now on, after which it is destroyed unless this is said again.
    #[schema(minimum = 1, maximum = 86_400)]
    lease_sec: u32,
}

/// Renews the lease of a sandbox, or gives it one: it is destroyed when that was not done for so long,
/// whatever state it is in and whatever runs in it.
#[utoipa::path(
    operation_id = "renewLease",
    params(SandboxId),
    responses((status = 204, description = "It lives for so long."), State),
)]
#[put("/sandboxes/{id}/lease")]
async fn renew(
    _: Caller,
    control: web::Data<ControlPlane>,
    id: web::Path<SandboxId>,
    body: Json<LeaseBody>,
) -> Result<HttpResponse, ApiError> {
    control.set_lease(&id, check(Some(body.0.lease_sec))?).await?;
    Ok(HttpResponse::NoContent().finish())
}

/// Takes the lease from a sandbox: it lives on without its client.
#[utoipa::path(
    operation_id = "endLease",
    params(SandboxId),
    responses((status = 204, description = "It has none."), State),
)]
#[delete("/sandboxes/{id}/lease")]
async fn end(
    _: Caller,
    control: web::Data<ControlPlane>,
    id: web::Path<SandboxId>,
) -> Result<HttpResponse, ApiError> {
    control.set_lease(&id, None).await?;
    Ok(HttpResponse::NoContent().finish())
}

/// What a request may ask for.
pub(super) fn check(lease_sec: Option<u32>) -> Result<Option<u32>, ApiError> {
    match lease_sec {
        Some(seconds) if !LEASES.contains(&seconds) => {
            let (least, most) = (LEASES.start(), LEASES.end());
            Err(ApiError::invalid(format!("lease_sec is from {least} to {most}")))
        }
        fits => Ok(fits),
    }
}

/// The routes of this file.
pub fn routes(routes: &mut Routes) {
    routes.section(Section::Sandboxes).add(renew).add(end);
}
