//! The caller's name for a request, by which a repeated one is known.

use actix_web::HttpRequest;
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::entity::sandboxes::Idempotency;
use crate::http::error::ApiError;

/// The header by which a repeated create is known.
const IDEMPOTENCY_KEY: &str = "Idempotency-Key";

/// The caller's name for the request, and a digest of what it asks for.
pub(super) fn of(
    request: &HttpRequest,
    body: &impl Serialize,
) -> Result<Option<Idempotency>, ApiError> {
    let Some(key) = request.headers().get(IDEMPOTENCY_KEY) else { return Ok(None) };
    let key = key.to_str().ok().filter(|key| (1..=255).contains(&key.len()));
    let Some(key) = key else {
        return Err(ApiError::invalid("an Idempotency-Key is 1 to 255 visible characters"));
    };
    // Of the parsed body, so that the order of fields and white space do not matter.
    let text = serde_json::to_vec(body).expect("a body has only string keys");
    let request_digest = hex::encode(Sha256::digest(text));
    Ok(Some(Idempotency { key: key.to_owned(), request_digest }))
}
