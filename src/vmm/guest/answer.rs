//! Answers to plain HTTP requests, read with a limit in bytes and in time: whoever answers may be
//! anybody.

use std::time::Duration;

use http::{StatusCode, header};
use reqwest::Response;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::AgentError;
use super::error::said;
use super::transport::ERROR_LIMIT;

/// Bytes of the longest answer in JSON: an agent says some hundred.
const JSON_LIMIT: usize = 64 << 10;

/// How long what follows a head may take, where it is short.
const REST_LIMIT: Duration = Duration::from_secs(5);

/// The longest header that is passed on, in bytes.
const HEADER_LIMIT: usize = 1 << 10;

/// The body of the agent's plain HTTP errors.
#[derive(serde::Deserialize)]
struct ErrorBody {
    message: String,
}

/// A body that is not what it should be.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError {
    /// It is longer than any that an agent sends.
    #[error("the answer is longer than {limit} bytes")]
    TooLong { limit: usize },
    /// It comes too slowly.
    #[error("the answer was not complete within {REST_LIMIT:?}")]
    TooSlow,
    /// It broke off.
    #[error("the answer broke off")]
    Broken(#[source] reqwest::Error),
    /// It is not the JSON that was expected.
    #[error("the answer makes no sense")]
    Malformed(#[source] serde_json::Error),
}

/// Gives an answer back if it is a success.
///
/// # Errors
///
/// What the agent says, or that it says something that no agent does.
pub(super) async fn expect_success(mut answer: Response) -> Result<Response, AgentError> {
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    if let Some(length) = length_of_refused(&answer) {
        return Err(AgentError::OutOfRange { length });
    }
    if !status.is_client_error() && !status.is_server_error() {
        // A redirect leads to wherever somebody in the guest would like the host to go.
        let message = "no agent answers so".to_owned();
        return Err(AgentError::Failed { status: status.to_string(), message });
    }
    let mut body = Vec::new();
    // As much of it as there is: the status says what counts.
    let _ = read(&mut answer, &mut body, ERROR_LIMIT).await;
    Err(refusal(status, &body))
}

/// What a refusal means.
fn refusal(status: StatusCode, body: &[u8]) -> AgentError {
    let message = match serde_json::from_slice::<ErrorBody>(body) {
        Ok(body) => said(&body.message),
        Err(_) => said(&String::from_utf8_lossy(body)),
    };
    match status.as_u16() {
        // Refused by the guest's kernel, whoever asks: nothing that the agent could do better.
        400 | 403 => AgentError::Invalid { message },
        // The agent's other reason for this status is a wrong token, which is no caller's mistake.
        401 if message.starts_with("user not found") => AgentError::Invalid { message },
        404 => AgentError::NotFound { message },
        507 => AgentError::NoSpace { message },
        _ => AgentError::Failed { status: status.to_string(), message },
    }
}

/// How long the file is of which a range was asked for that it does not have.
fn length_of_refused(answer: &Response) -> Option<u64> {
    let refused = answer.status() == StatusCode::RANGE_NOT_SATISFIABLE;
    let range = answer.headers().get(header::CONTENT_RANGE).filter(|_| refused)?;
    range.to_str().ok()?.strip_prefix("bytes */")?.parse().ok()
}

/// The JSON of a short answer.
///
/// # Errors
///
/// [`BodyError`].
pub(super) async fn json<T: DeserializeOwned>(mut answer: Response) -> Result<T, BodyError> {
    let mut body = Vec::new();
    read(&mut answer, &mut body, JSON_LIMIT).await?;
    serde_json::from_slice(&body).map_err(BodyError::Malformed)
}

/// Reads a body to its end, but no more of it than `limit` bytes. What was read is there in any case.
async fn read(answer: &mut Response, body: &mut Vec<u8>, limit: usize) -> Result<(), BodyError> {
    let reading = async {
        while let Some(piece) = answer.chunk().await.map_err(BodyError::Broken)? {
            let room = limit - body.len();
            body.extend_from_slice(&piece[..piece.len().min(room)]);
            if piece.len() > room {
                return Err(BodyError::TooLong { limit });
            }
        }
        Ok(())
    };
    timeout(REST_LIMIT, reading).await.unwrap_or(Err(BodyError::TooSlow))
}

/// A header that is passed on, if it is one that can be.
pub(super) fn header(answer: &Response, name: header::HeaderName) -> Option<String> {
    let value = answer.headers().get(name)?.to_str().ok()?;
    (value.len() <= HEADER_LIMIT).then(|| value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_sorted_by_its_status_and_its_message_is_fit_to_be_shown() {
        let refusal = |status: u16, body: &str| {
            refusal(StatusCode::from_u16(status).unwrap(), body.as_bytes())
        };
        let error = refusal(404, r#"{"code":404,"message":"no \u001b[31mfile"}"#);
        assert!(matches!(&error, AgentError::NotFound { .. }), "{error:?}");
        assert_eq!(error.to_string(), "no \\u{1b}[31mfile");
        let error = refusal(500, &"x".repeat(5000));
        assert!(error.to_string().len() < 1100, "{error}");
        for (status, body) in [(401, "nobody"), (500, ""), (599, "\u{202e}"), (429, "{}")] {
            let error = refusal(status, body);
            assert!(matches!(error, AgentError::Failed { .. }), "{error:?}");
        }
        assert!(matches!(refusal(401, "user not found: x"), AgentError::Invalid { .. }));
        assert!(matches!(refusal(507, "full"), AgentError::NoSpace { .. }));
    }
}
