//! Around every request: an id, a span, metrics, and errors in one form whoever made them.

use std::time::Instant;

use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{self, HeaderName, HeaderValue};
use actix_web::middleware::Next;
use actix_web::web;
use rand::RngCore;
use tracing::Instrument;

use super::error::ApiError;
use crate::actors::control_plane::ControlPlane;

/// The header that carries the request's id in every answer.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The middleware.
///
/// # Errors
///
/// None of its own; what handlers and extractors fail with has become an answer before.
pub async fn observe(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, actix_web::Error> {
    let started = Instant::now();
    let id = format!("{:016x}", rand::rng().next_u64());
    let span = tracing::info_span!("request", request_id = %id,
        method = %request.method(), path = request.path());
    let control = request.app_data::<web::Data<ControlPlane>>().cloned();
    let response = next.call(request).instrument(span.clone()).await?;
    let mut response = in_one_form(response.map_into_boxed_body(), &id, &span);
    let value = HeaderValue::from_str(&id).expect("hexadecimal digits make a header");
    response.headers_mut().insert(REQUEST_ID, value);
    if let Some(control) = control {
        control.metrics().answered(response.status().as_u16(), started.elapsed());
    }
    Ok(response)
}

/// Gives errors our body, and the log what the body must not tell.
fn in_one_form(
    response: ServiceResponse,
    request_id: &str,
    span: &tracing::Span,
) -> ServiceResponse {
    let status = response.status();
    if !status.is_client_error() && !status.is_server_error() {
        return response;
    }
    let error = response.response().error().and_then(|error| error.as_error::<ApiError>());
    if status.is_server_error() {
        let internals = error.and_then(ApiError::internals);
        tracing::error!(parent: span, status = status.as_u16(),
            error = error.map(ToString::to_string), internals, "a request failed");
    }
    let is_json = |value: &HeaderValue| value.as_bytes().starts_with(b"application/json");
    match error {
        Some(error) => {
            let body = error.response(Some(request_id));
            response.into_response(body)
        }
        None if response.headers().get(header::CONTENT_TYPE).is_some_and(is_json) => response,
        None => response.into_response(ApiError::foreign(status).response(Some(request_id))),
    }
}
