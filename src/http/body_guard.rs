//! Bodies of answers that hold something for as long as they are being sent.

use std::pin::Pin;
use std::task::{Context, Poll};

use actix_web::body::{BodySize, BoxBody, MessageBody};
use bytes::Bytes;

/// The body of an answer, and what is dropped with it: when it has ended, or nobody takes more of it.
pub struct Holding<G> {
    body: BoxBody,
    _guard: G,
}

impl<G: Unpin + 'static> Holding<G> {
    /// The same body, with a guard.
    pub fn over(body: BoxBody, guard: G) -> BoxBody {
        BoxBody::new(Self { body, _guard: guard })
    }
}

impl<G: Unpin> MessageBody for Holding<G> {
    type Error = <BoxBody as MessageBody>::Error;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Self::Error>>> {
        Pin::new(&mut self.body).poll_next(context)
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use actix_web::body::to_bytes;

    use super::*;

    #[actix_web::test]
    async fn a_guard_goes_with_its_body_and_not_before() {
        let guard = Rc::new(());
        let body = Holding::over(BoxBody::new("body"), guard.clone());
        assert_eq!(body.size(), BodySize::Sized(4));
        assert_eq!(Rc::strong_count(&guard), 2);
        assert_eq!(to_bytes(body).await.unwrap(), "body");
        assert_eq!(Rc::strong_count(&guard), 1);
        let body = Holding::over(BoxBody::new("body"), guard.clone());
        drop(body);
        assert_eq!(Rc::strong_count(&guard), 1);
    }
}
