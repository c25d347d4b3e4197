//! Who may ask: an API key in `X-API-Key`, or for a WebSocket among the subprotocols it offers.
//!
//! The key is looked at before anything else of a request, so that a stranger neither learns from
//! errors nor has bodies read. A handler that takes a [`Caller`] cannot be reached without one.

use std::future::{Ready, ready};

use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::{Payload, ServiceRequest, ServiceResponse};
use actix_web::http::header::HeaderValue;
use actix_web::middleware::Next;
use actix_web::{FromRequest, HttpMessage, HttpRequest, web};

use super::connections::Visit;
use super::error::{ApiError, Code};
use super::websocket::offered_key;
use crate::actors::control::{CallerId, ControlPlane};

/// The header that carries the key.
pub const API_KEY_HEADER: &str = "X-API-Key";

/// Somebody with a valid API key.
#[derive(Clone)]
pub struct Caller(pub CallerId);

/// The middleware: lets requests with a valid key pass.
///
/// # Errors
///
/// Those of what comes after it; its own are answers.
pub async fn authenticate(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, actix_web::Error> {
    match caller(&request).await {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            Ok(next.call(request).await?.map_into_boxed_body())
        }
        Err(error) => Ok(request.error_response(error)),
    }
}

async fn caller(request: &ServiceRequest) -> Result<Caller, ApiError> {
    let control = request.app_data::<web::Data<ControlPlane>>();
    let control = control.expect("every app is made with a control plane").clone();
    let header = request.headers().get(API_KEY_HEADER).map(HeaderValue::to_str);
    let offered = || offered_key(request.headers()).map(Ok);
    let Some(key) = header.or_else(offered) else {
        return Err(refused("an API key is needed in the header X-API-Key"));
    };
    let caller = match key {
        Ok(key) => control.authenticate(key).await?,
        Err(_) => None,
    };
    if caller.is_some() {
        Visit::is_known(request.request());
    }
    caller.map(Caller).ok_or_else(|| refused("the API key is not valid"))
}

fn refused(message: &str) -> ApiError {
    ApiError::new(Code::Unauthorized, message)
}

impl FromRequest for Caller {
    type Error = ApiError;
    type Future = Ready<Result<Self, ApiError>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let caller = request.extensions().get::<Caller>().cloned();
        // A route outside the middleware lets nobody in.
        ready(caller.ok_or_else(|| refused("an API key is needed in the header X-API-Key")))
    }
}
