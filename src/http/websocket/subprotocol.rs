//! Subprotocols that a client offers. Browsers can send no header of their own with a WebSocket, but
//! these: so one of them may carry the API key. It is never the one that is chosen, because the
//! answer would tell it to whoever reads answers.

use actix_web::http::header::{HeaderMap, SEC_WEBSOCKET_PROTOCOL, UPGRADE};

use crate::http::error::ApiError;

/// What all our WebSockets speak.
const NESTBOX: &str = "nestbox";

/// What precedes the key. Whoever passes subprotocols on leaves those out that begin so.
pub const KEY_PREFIX: &str = "nestbox.key.";

/// The API key that is offered with a WebSocket.
pub fn offered_key(headers: &HeaderMap) -> Option<&str> {
    let is_websocket = |upgrade: &str| upgrade.eq_ignore_ascii_case("websocket");
    let upgrade = headers.get(UPGRADE)?.to_str().ok()?;
    if !upgrade.split(',').any(|protocol| is_websocket(protocol.trim())) {
        return None;
    }
    offered(headers).find_map(|protocol| protocol.strip_prefix(KEY_PREFIX))
}

/// The subprotocol to answer with, if any were offered that we know.
///
/// # Errors
///
/// 400 for a client that offers its key alone: it would not take an answer that chooses none.
pub(super) fn chosen(headers: &HeaderMap) -> Result<Option<&'static str>, ApiError> {
    if offered(headers).any(|protocol| protocol == NESTBOX) {
        return Ok(Some(NESTBOX));
    }
    if offered(headers).any(|protocol| protocol.starts_with(KEY_PREFIX)) {
        let error = format!("offer the subprotocol {NESTBOX} beside the one with the key");
        return Err(ApiError::invalid(error));
    }
    Ok(None)
}

fn offered(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let lines = headers.get_all(SEC_WEBSOCKET_PROTOCOL).filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',').map(str::trim))
}
