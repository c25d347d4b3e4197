//! `HEAD`: what `GET` would answer, without the body.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::Method;
use actix_web::middleware::Next;
use actix_web::{HttpRequest, web};
use bytes::Bytes;

use super::ports::{Ports, leads_to_server};

/// The middleware. Servers in sandboxes see what was asked, and answer it themselves.
///
/// # Errors
///
/// None of its own.
pub async fn answer(
    mut request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, actix_web::Error> {
    if request.method() != Method::HEAD || is_for_a_server(request.request()) {
        return Ok(next.call(request).await?.map_into_boxed_body());
    }
    request.head_mut().method = Method::GET;
    let response = next.call(request).await?;
    // The body is dropped unread: no file is read for it, and no directory packed.
    Ok(response.map_body(|_, body| BoxBody::new(Unsent(body.size()))))
}

/// A body of which only the size is sent.
struct Unsent(BodySize);

impl MessageBody for Unsent {
    type Error = Infallible;

    fn size(&self) -> BodySize {
        self.0
    }

    fn poll_next(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Self::Error>>> {
        Poll::Ready(None)
    }
}

fn is_for_a_server(request: &HttpRequest) -> bool {
    let ports = request.app_data::<web::Data<Ports>>();
    ports.is_some_and(|ports| leads_to_server(request.head(), &ports.domain))
}
