//! Who may call: whoever has the token, and for one file whoever has a signature made with it.
//!
//! A guest that was just booted has no token yet. Until the host has given it one it does nothing for
//! anybody: who is quick enough to call before could plant something that stays.

use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use http::{HeaderValue, Method, StatusCode, header};
use sha2::{Digest, Sha256};

use crate::agent::settings::Context;

use super::error::HttpError;
use super::query::FileQuery;

/// Carries the token.
const TOKEN: &str = "x-access-token";
/// Time left to a call. Zero means no limit to the SDKs, and no time at all to the library.
const TIMEOUT: &str = "connect-timeout-ms";

/// Lets a request through, or answers it with 401.
pub async fn check(
    State(context): State<Arc<Context>>,
    mut request: Request,
    next: Next,
) -> Response {
    if request.headers().get(TIMEOUT).is_some_and(|value| value == "0") {
        request.headers_mut().remove(TIMEOUT);
    }
    match allowed(&context, &request) {
        Ok(()) => next.run(request).await,
        Err(error) if is_rpc(&request) => {
            // The body of a Connect error; clients take it for streams as well, at this status.
            let body = serde_json::json!({
                "code": "unauthenticated", "message": error.to_string(),
            });
            let kind = HeaderValue::from_static("application/json");
            let headers = [(header::CONTENT_TYPE, kind)];
            (StatusCode::UNAUTHORIZED, headers, body.to_string()).into_response()
        }
        Err(error) => error.into_response(),
    }
}

/// Rpcs are `/package.Service/Method`.
fn is_rpc(request: &Request) -> bool {
    let mut parts = request.uri().path().split('/').skip(1);
    let (service, method) = (parts.next(), parts.next());
    service.is_some_and(|name| name.contains('.')) && method.is_some() && parts.next().is_none()
}

fn allowed(context: &Context, request: &Request) -> Result<(), HttpError> {
    let path = request.uri().path();
    if path == "/health" {
        return Ok(());
    }
    let settings = context.settings();
    let Some(token) = &settings.token else {
        return match path == "/init" && request.method() == Method::POST {
            true => Ok(()),
            false => Err(HttpError::Unauthorized { message: "no access token has been set yet" }),
        };
    };
    if let Some(given) = request.headers().get(TOKEN) {
        return match same(given.as_bytes(), token.as_bytes()) {
            true => Ok(()),
            false => Err(HttpError::Unauthorized { message: "invalid access token" }),
        };
    }
    let missing = HttpError::Unauthorized { message: "missing access token" };
    if path != "/files" {
        return Err(missing);
    }
    let Ok(query) = FileQuery::of(request.uri()) else {
        return Err(missing);
    };
    let operation = if request.method() == Method::POST { "write" } else { "read" };
    match &query.signature {
        Some(signature) => verify(signature, &query, operation, token, now()),
        None => Err(missing),
    }
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

fn verify(
    signature: &str,
    query: &FileQuery,
    operation: &str,
    token: &str,
    now: i64,
) -> Result<(), HttpError> {
    let user = query.username.as_deref().unwrap_or_default();
    let mut text = query.path.as_deref().unwrap_or_default().as_bytes().to_vec();
    text.extend_from_slice(format!(":{operation}:{user}:{token}").as_bytes());
    if let Some(expiration) = query.signature_expiration {
        text.extend_from_slice(format!(":{expiration}").as_bytes());
    }
    let expected = format!("v1_{}", STANDARD_NO_PAD.encode(Sha256::digest(text)));
    if !same(signature.as_bytes(), expected.as_bytes()) {
        return Err(HttpError::Unauthorized { message: "invalid signature" });
    }
    match query.signature_expiration {
        Some(expiration) if expiration < now => {
            Err(HttpError::Unauthorized { message: "signature is already expired" })
        }
        _ => Ok(()),
    }
}

/// Compares without telling by its duration where the difference is.
fn same(given: &[u8], expected: &[u8]) -> bool {
    let differences = given.iter().zip(expected).fold(0, |sum, (a, b)| sum | (a ^ b));
    given.len() == expected.len() && std::hint::black_box(differences) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(expiration: Option<i64>) -> FileQuery {
        FileQuery {
            path: Some("a.txt".into()),
            username: Some("user".to_owned()),
            signature: None,
            signature_expiration: expiration,
        }
    }

    #[test]
    fn a_signature_holds_for_its_path_operation_and_time_only() {
        // sha256("a.txt:read:user:secret") and sha256("a.txt:read:user:secret:100")
        let digest = |text: &str| format!("v1_{}", STANDARD_NO_PAD.encode(Sha256::digest(text)));
        let endless = digest("a.txt:read:user:secret");
        let short = digest("a.txt:read:user:secret:100");
        let check = |signature: &str, query: &FileQuery, operation, now| {
            verify(signature, query, operation, "secret", now).map_err(|error| error.to_string())
        };
        assert_eq!(check(&endless, &query(None), "read", 1), Ok(()));
        assert_eq!(check(&short, &query(Some(100)), "read", 100), Ok(()));
        let late = check(&short, &query(Some(100)), "read", 101);
        assert_eq!(late, Err("signature is already expired".to_owned()));
        let wrong = Err("invalid signature".to_owned());
        assert_eq!(check(&endless, &query(None), "write", 1), wrong);
        assert_eq!(check(&short, &query(Some(200)), "read", 1), wrong);
        assert_eq!(check("", &query(None), "read", 1), wrong);
    }

    #[test]
    fn comparison_sees_length_and_content() {
        assert!(same(b"abc", b"abc"));
        assert!(!same(b"abd", b"abc"));
        assert!(!same(b"ab", b"abc"));
        assert!(!same(b"", b"abc"));
    }
}
