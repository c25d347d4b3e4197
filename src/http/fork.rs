//! `POST /v1/sandboxes/{id}/fork`: more sandboxes that begin as this one is now.

use actix_web::{HttpResponse, post, web};
use serde::{Deserialize, Serialize};

use super::auth::Caller;
use super::body::Optional;
use super::error::{ApiError, only};
use super::sandboxes::SandboxView;
use super::trace::Traced;
use crate::actors::control_plane::{ControlPlane, Trace};
use crate::domain::id::SandboxId;

/// Each is a VM that starts at once with the others.
const MOST_CHILDREN: usize = 16;

/// Body of the request; it may be left out.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ForkBody {
    /// 1 if absent.
    count: Option<usize>,
}

#[derive(Serialize)]
struct ForkView {
    sandboxes: Vec<SandboxView>,
}

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
    let trace = Trace::default();
    let children = control.fork(&id, count, &caller.0, trace.clone()).await?;
    let sandboxes = children.into_iter().map(SandboxView::from).collect();
    Ok(HttpResponse::Created().json(traced.view(ForkView { sandboxes }, &trace)))
}

/// The routes of this file.
pub fn routes(config: &mut web::ServiceConfig) {
    config.service(fork).service(only("/sandboxes/{id}/fork", "POST"));
}
