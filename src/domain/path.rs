//! Names and paths in a guest. To its kernel they are bytes, nearly always UTF-8 and never surely.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer};

/// A name or a path in a guest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GuestPath(Vec<u8>);

impl GuestPath {
    /// What it is to the guest's kernel.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// It as a text, in which what is not UTF-8 is replaced.
    pub fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.0)
    }

    /// Its bytes, if its text is not all there is to it.
    pub fn raw(&self) -> Option<&[u8]> {
        std::str::from_utf8(&self.0).is_err().then_some(&self.0)
    }
}

impl From<&str> for GuestPath {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl From<String> for GuestPath {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl From<Vec<u8>> for GuestPath {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for GuestPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text())
    }
}

/// From bytes too, where there are some, as in a query.
impl<'de> Deserialize<'de> for GuestPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        impl Visitor<'_> for Any {
            type Value = GuestPath;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a path")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<GuestPath, E> {
                Ok(text.into())
            }

            fn visit_byte_buf<E: Error>(self, bytes: Vec<u8>) -> Result<GuestPath, E> {
                Ok(bytes.into())
            }
        }

        deserializer.deserialize_string(Any)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_text_is_not_only_its_text() {
        let (text, bytes) = (GuestPath::from("/a/\u{e4}"), GuestPath::from(b"/a/\xe4".to_vec()));
        assert_eq!((text.raw(), text.to_string().as_str()), (None, "/a/\u{e4}"));
        assert_eq!(bytes.raw(), Some(&b"/a/\xe4"[..]));
        assert_eq!(bytes.to_string(), "/a/\u{fffd}");
        assert_ne!(bytes, GuestPath::from(bytes.to_string()));
    }
}
