//! What a request asks for after the `?`: as bytes, because a path is, which need not be UTF-8.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use axum::extract::FromRequestParts;
use http::Uri;
use http::request::Parts;
use percent_encoding::percent_decode;

use super::error::HttpError;

/// What `/files` takes besides the file itself.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct FileQuery {
    /// Which file; an upload may name it in the body instead.
    pub path: Option<OsString>,
    /// Whose file.
    pub username: Option<String>,
    /// Stands in for the token.
    pub signature: Option<String>,
    /// Seconds since 1970.
    pub signature_expiration: Option<i64>,
}

impl FileQuery {
    /// That of a request. What is not known is passed over.
    ///
    /// # Errors
    ///
    /// [`HttpError::Invalid`] for what is said twice, and for a text or a number that is none.
    pub fn of(uri: &Uri) -> Result<Self, HttpError> {
        let mut query = Self::default();
        let pairs = uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        for pair in pairs {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (name, value) = (decoded(name), decoded(value));
            let twice = match name.as_slice() {
                b"path" => query.path.replace(OsString::from_vec(value)).is_some(),
                b"username" => query.username.replace(text(value)?).is_some(),
                b"signature" => query.signature.replace(text(value)?).is_some(),
                b"signature_expiration" => {
                    let number = text(value)?.parse().map_err(|_| {
                        HttpError::invalid("signature_expiration is no number of seconds")
                    })?;
                    query.signature_expiration.replace(number).is_some()
                }
                _ => false,
            };
            if twice {
                return Err(HttpError::invalid("the query says something twice"));
            }
        }
        Ok(query)
    }
}

impl<S: Sync> FromRequestParts<S> for FileQuery {
    type Rejection = HttpError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, HttpError> {
        Self::of(&parts.uri)
    }
}

fn decoded(text: &str) -> Vec<u8> {
    percent_decode(text.replace('+', " ").as_bytes()).collect()
}

fn text(value: Vec<u8>) -> Result<String, HttpError> {
    String::from_utf8(value).map_err(|_| HttpError::invalid("the query is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn a_path_is_bytes_and_all_else_is_text() {
        let query = |text: &str| FileQuery::of(&format!("/files?{text}").parse().unwrap());
        let path = |text: &str| query(text).unwrap().path.unwrap();
        assert_eq!(path("path=/a%20b+c%2B").as_bytes(), b"/a b c+");
        assert_eq!(path("other=%FF&path=bad%FF%c3%a4").as_bytes(), b"bad\xff\xc3\xa4");
        assert_eq!(query("").unwrap(), FileQuery::default());
        let named = query("username=user&signature=v1_x&signature_expiration=-7").unwrap();
        assert_eq!(
            (named.username.as_deref(), named.signature_expiration),
            (Some("user"), Some(-7))
        );
        for wrong in ["path=a&path=b", "username=%FF", "signature_expiration=x"] {
            assert!(query(wrong).is_err(), "{wrong}");
        }
    }
}
