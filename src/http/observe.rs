//! Around every request: an id, a span, metrics, and errors in one form whoever made them.

use std::time::Instant;

use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderName, HeaderValue};
use actix_web::middleware::Next;
use actix_web::web;
use rand::RngCore;
use tracing::Instrument;

use super::body_guard::Holding;
use super::connections::Busy;
use super::error::ApiError;
use super::ports::Proxied;
use crate::actors::control::ControlPlane;

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
    let busy = Busy::of(request.request());
    let response = next.call(request).instrument(span.clone()).await?;
    let response = match busy {
        Some(busy) => response.map_body(|_, body| Holding::over(body.boxed(), busy)),
        None => response.map_into_boxed_body(),
    };
    // What a server in a sandbox answers is its own, error or not.
    let proxied = response.response().extensions().contains::<Proxied>();
    let mut response = if proxied { response } else { in_one_form(response, &id, &span) };
    let value = HeaderValue::from_str(&id).expect("hexadecimal digits make a header");
    if !proxied || !response.headers().contains_key(REQUEST_ID) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    let Some(control) = control else { return Ok(response) };
    control.metrics().answered(response.status().as_u16(), started.elapsed());
    Ok(match response.status() {
        // Its body goes on for as long as the WebSocket does.
        StatusCode::SWITCHING_PROTOCOLS => {
            let open = control.metrics().socket_opened();
            response.map_body(|_, body| Holding::over(body, open))
        }
        _ => response,
    })
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
        let (status, error) = (status.as_u16(), error.map(ToString::to_string));
        // An error is a fault of ours; that of a guest or of a full disk is none.
        match status {
            500 => tracing::error!(parent: span, status, error, internals, "a request failed"),
            507 => tracing::warn!(parent: span, status, error, internals, "a request failed"),
            _ => tracing::info!(parent: span, status, error, internals, "a request failed"),
        }
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
