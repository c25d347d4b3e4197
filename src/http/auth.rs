//! Who may ask: an API key in `X-API-Key`. A handler that takes a [`Caller`] cannot be reached
//! without one.

use std::future::Future;
use std::pin::Pin;

use actix_web::dev::Payload;
use actix_web::{FromRequest, HttpRequest, web};

use super::error::{ApiError, Code};
use crate::actors::control_plane::{CallerId, ControlPlane};

/// The header that carries the key.
pub const API_KEY_HEADER: &str = "X-API-Key";

/// Somebody with a valid API key.
pub struct Caller(pub CallerId);

impl FromRequest for Caller {
    type Error = ApiError;
    type Future = Pin<Box<dyn Future<Output = Result<Self, ApiError>>>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let control = request.app_data::<web::Data<ControlPlane>>().cloned();
        let key = request.headers().get(API_KEY_HEADER).map(|key| key.to_str().map(str::to_owned));
        Box::pin(async move {
            let control = control.expect("every app is made with a control plane");
            let refused = |message: &str| ApiError::new(Code::Unauthorized, message);
            let key = match key {
                Some(Ok(key)) => key,
                Some(Err(_)) => return Err(refused("the API key is not valid")),
                None => return Err(refused("an API key is needed in the header X-API-Key")),
            };
            match control.authenticate(&key).await? {
                Some(caller) => Ok(Self(caller)),
                None => Err(refused("the API key is not valid")),
            }
        })
    }
}
