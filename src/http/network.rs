//! `/v1/sandboxes/{id}/network`: what a sandbox may reach.

use actix_web::{HttpResponse, get, put, web};
use utoipa::ToSchema;

use super::auth::Caller;
use super::body::Json;
use super::error::ApiError;
use super::openapi::failures::Life;
use super::openapi::{Routes, Section};
use crate::actors::control::ControlPlane;
use crate::domain::egress::{Policy, Rule, Verdict};
use crate::domain::id::SandboxId;

/// What a sandbox may reach: `allow` wins over `deny`, and both over the default. Private networks are
/// closed unless a rule of `allow` is about just them, or the host has them open.
///
/// Stands for the domain's [`Policy`], which checks itself when it is read.
#[derive(ToSchema)]
#[schema(examples(json!({"default": "deny", "allow": ["*.example.com"], "deny": []})))]
#[expect(dead_code, reason = "a description of another type")]
pub struct NetworkPolicy {
    /// What goes for all that no rule names; if absent, `deny` if there are only rules in `allow`.
    default: Option<Verdict>,
    /// What may be reached.
    #[schema(required = false, max_items = 128, nullable)]
    allow: Vec<Rule>,
    /// What may not be reached.
    #[schema(required = false, max_items = 128, nullable)]
    deny: Vec<Rule>,
}

/// Shows what a sandbox may reach.
#[utoipa::path(
    operation_id = "getNetworkPolicy",
    params(SandboxId),
    responses((status = 200, description = "The whole policy.", body = NetworkPolicy), Life),
)]
#[get("/sandboxes/{id}/network")]
async fn show(
    _: Caller,
    control: web::Data<ControlPlane>,
    id: web::Path<SandboxId>,
) -> Result<HttpResponse, ApiError> {
    Ok(HttpResponse::Ok().json(control.network(&id).await?))
}

/// Decides anew what a sandbox may reach, also over connections that it has.
#[utoipa::path(
    operation_id = "setNetworkPolicy",
    params(SandboxId),
    request_body = NetworkPolicy,
    responses((status = 200, description = "What holds now.", body = NetworkPolicy), Life),
)]
#[put("/sandboxes/{id}/network")]
async fn replace(
    _: Caller,
    control: web::Data<ControlPlane>,
    id: web::Path<SandboxId>,
    body: Json<Policy>,
) -> Result<HttpResponse, ApiError> {
    let policy = body.0;
    control.set_network(&id, policy.clone()).await?;
    Ok(HttpResponse::Ok().json(policy))
}

/// The routes of this file.
pub fn routes(routes: &mut Routes) {
    routes.section(Section::Network).add(show).add(replace);
}
