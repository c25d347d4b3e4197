//! The plain HTTP routes: health, metrics, environment, `POST /init`, `POST /sync`, contents of files,
//! connections to servers.
//!
//! - `access`: who may call
//! - `archive`: directories
//! - `error`: how refusals look
//! - `download`, `upload`: contents
//! - `query`: which file is meant
//! - `range`: a part of a file
//! - `identity`: `POST /init`
//! - `metrics`: what the guest uses
//! - `pending`: a file that is not whole yet
//! - `port`: connections to servers on the loopback

mod access;
mod archive;
mod download;
mod error;
mod identity;
mod metrics;
mod pending;
mod port;
mod query;
mod range;
mod upload;

use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, State};
use axum::routing::{get, post};
use axum::{Json, Router, middleware};
use connectrpc::{ConnectRpcService, DeadlinePolicy};
use http::StatusCode;

use crate::agent::settings::{Context, Place};

/// Bytes of the longest `POST /init`: the host takes an environment of some 2 MiB.
const INIT_LIMIT: usize = 4 << 20;

/// All routes of the agent: these, and the rpcs of `rpc` for every other path.
pub fn router(context: Arc<Context>, rpc: connectrpc::Router) -> Router {
    let policy = DeadlinePolicy::new().with_enforce_on_streams(true);
    let rpc = ConnectRpcService::new(rpc).with_deadline_policy(policy);
    Router::new()
        .route("/health", get(async || StatusCode::NO_CONTENT))
        .route("/metrics", get(metrics::metrics))
        .route("/envs", get(envs))
        // The only one that answers to anybody, if only for a moment: what it takes is short.
        .route("/init", post(identity::init).layer(DefaultBodyLimit::max(INIT_LIMIT)))
        .route("/sync", post(sync))
        .route("/ports/{port}", get(port::connect))
        .route("/files", get(download::download).post(upload::upload))
        .route("/files/archive", get(archive::download).put(archive::upload))
        // An upload is as long as the disk has room.
        .layer(DefaultBodyLimit::disable())
        .fallback_service(rpc)
        .layer(middleware::from_fn_with_state(Arc::clone(&context), access::check))
        .with_state(context)
}

async fn envs(State(context): State<Arc<Context>>) -> Json<serde_json::Value> {
    Json(serde_json::json!(context.settings().env))
}

/// `POST /sync`: everything written so far is on the guest's disk before the answer. The host asks
/// for it before it captures the disk.
async fn sync(State(context): State<Arc<Context>>) -> StatusCode {
    match context.place {
        // SAFETY: sync(2) takes no argument and cannot fail.
        Place::Guest => tokio::task::spawn_blocking(|| unsafe { libc::sync() }).await,
        Place::Host => Ok(()),
    }
    .map_or(StatusCode::INTERNAL_SERVER_ERROR, |()| StatusCode::NO_CONTENT)
}
