//! The way of rpcs to an agent, and the limits on what comes back.
//!
//! Root in a guest can put anything in the agent's place. So nothing that is answered is followed,
//! and nothing is read without an end: a head is at most what hyper's buffer holds (some 400 KiB, and
//! 100 headers), the body of an error 64 KiB, a message what its call allows. The library refuses a
//! message that claims to be longer before it makes room for it, and no compression is built in.

use connectrpc::ConnectError;
use connectrpc::client::{
    BoxFuture, ClientBody, ClientConfig, ClientTransport, HttpClient, ServerStream,
};
use http::{Request, Response};
use http_body_util::Limited;
use hyper::body::Incoming;

/// Bytes of the longest body of an error that is read. What JSON says in so many bytes takes some
/// hundred times as many here, at worst.
pub(super) const ERROR_LIMIT: usize = 64 << 10;

/// Bytes of the longest message, where a call allows no more. The longest that an agent sends is what
/// it has read from a pipe at once, 32 KiB.
const MESSAGE_LIMIT: usize = 256 << 10;

/// Bytes that all the elements of a message may take here, where a call allows no more.
const ELEMENTS_LIMIT: usize = 1 << 20;

/// A stream of messages from an agent.
pub(super) type Messages<View> = ServerStream<Limited<Incoming>, View>;

/// Sends rpcs to one agent.
#[derive(Debug, Clone)]
pub(super) struct Transport(HttpClient);

impl Transport {
    /// Connects at the first rpc.
    pub fn new() -> Self {
        Self(HttpClient::plaintext())
    }

    /// How rpcs go to the agent at `base`, each with a header.
    pub fn config(base: http::Uri, header: &'static str, value: &str) -> ClientConfig {
        ClientConfig::new(base)
            .with_default_header(header, value)
            .with_default_max_message_size(MESSAGE_LIMIT)
            .with_default_element_memory_limit(ELEMENTS_LIMIT)
    }
}

impl ClientTransport for Transport {
    type ResponseBody = Limited<Incoming>;
    type Error = ConnectError;

    fn send(
        &self,
        request: Request<ClientBody>,
    ) -> BoxFuture<'static, Result<Response<Self::ResponseBody>, Self::Error>> {
        let answer = self.0.send(request);
        Box::pin(async move {
            let answer = answer.await?;
            let status = answer.status();
            if status.is_redirection() || status.is_informational() {
                return Err(ConnectError::internal(format!("it answered {status}")));
            }
            // A stream of messages ends when the agent ends it; each message has a limit.
            let limit = if status.is_success() { usize::MAX } else { ERROR_LIMIT };
            Ok(answer.map(|body| Limited::new(body, limit)))
        })
    }
}
