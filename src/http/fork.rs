//! `POST /v1/sandboxes/{id}/fork`: more sandboxes that begin as this one is now.

use actix_web::{HttpResponse, post, web};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::auth::Caller;
use super::body::Optional;
use super::error::ApiError;
use super::lease;
use super::openapi::failures::Life;
use super::openapi::{Routes, Section};
use super::sandboxes::SandboxView;
use super::trace::{Traced, WithTrace};
use crate::actors::control::ControlPlane;
use crate::domain::id::SandboxId;
use crate::domain::trace::Trace;

/// Each is a VM that starts at once with the others.
const MOST_CHILDREN: usize = 16;

/// Body of the request; it may be left out.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ForkSandbox, examples(json!({"count": 2})))]
struct ForkBody {
    /// How many; 1 if absent.
    #[schema(minimum = 1, maximum = 16)]
    count: Option<usize>,
    /// Seconds after which each is destroyed unless its lease is renewed; none has a lease if absent.
    #[schema(minimum = 1, maximum = 86_400)]
    lease_sec: Option<u32>,
}

/// The children of a fork.
#[derive(Serialize, ToSchema)]
#[schema(as = Children)]
struct ForkView {
    /// All of them run.
    sandboxes: Vec<SandboxView>,
}

/// Forks a running sandbox: makes more that begin as it is now, all or none of them.
#[utoipa::path(
    operation_id = "forkSandbox",
    params(SandboxId, Traced),
    request_body = Option<ForkBody>,
    responses((status = 201, description = "All run.", body = WithTrace<ForkView>), Life),
)]
#[post("/sandboxes/{id}/fork")]
async fn fork(
    caller: Caller,
    control: web::Data<ControlPlane>,
    id: web::Path<SandboxId>,
    traced: web::Query<Traced>,
    body: Optional<ForkBody>,
) -> Result<HttpResponse, ApiError> {
    let count = body.0.count.unwrap_or(1);
    if !(1..=MOST_CHILDREN).contains(&count) {
        return Err(ApiError::invalid(format!("count is from 1 to {MOST_CHILDREN}")));
    }
    let lease_sec = lease::check(body.0.lease_sec)?;
    let trace = Trace::default();
    let children = control.fork(&id, count, lease_sec, &caller.0, trace.clone()).await?;
    let sandboxes = children.into_iter().map(SandboxView::from).collect();
    Ok(HttpResponse::Created().json(traced.view(ForkView { sandboxes }, &trace)))
}

/// The routes of this file.
pub fn routes(routes: &mut Routes) {
    routes.section(Section::Sandboxes).add(fork);
}
