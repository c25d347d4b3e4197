//! Bodies in JSON, which are objects, and may be left out.

use actix_web::dev::Payload;
use actix_web::http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use actix_web::{FromRequest, HttpRequest, web};
use futures::future::LocalBoxFuture;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use utoipa::ToSchema;

use crate::domain::object::Object;

/// A JSON object.
pub struct Json<T>(pub T);

impl<T: DeserializeOwned + 'static> FromRequest for Json<T> {
    type Error = actix_web::Error;
    type Future = LocalBoxFuture<'static, Result<Self, actix_web::Error>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let json = web::Json::<Object<T>>::from_request(request, payload);
        Box::pin(async { Ok(Self(json.await?.into_inner().0)) })
    }
}

/// A JSON object, or nothing at all, which means the same as `{}`.
pub struct Optional<T>(pub T);

/// A body without any fields.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(examples(json!({})))]
pub struct Empty {}

impl<T: DeserializeOwned + Default + 'static> FromRequest for Optional<T> {
    type Error = actix_web::Error;
    type Future = LocalBoxFuture<'static, Result<Self, actix_web::Error>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let headers = request.headers();
        let length = headers.get(CONTENT_LENGTH);
        let none = length.is_none_or(|length| length == "0");
        if none && !headers.contains_key(TRANSFER_ENCODING) {
            return Box::pin(async { Ok(Self(T::default())) });
        }
        let json = Json::<T>::from_request(request, payload);
        Box::pin(async { Ok(Self(json.await?.0)) })
    }
}
