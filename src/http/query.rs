//! Queries that name a file: percent-encoded bytes, because a path is, which need not be UTF-8.

use std::future::{Ready, ready};

use actix_web::dev::Payload;
use actix_web::{FromRequest, HttpRequest};
use percent_encoding::percent_decode;
use serde::de::value::{Error, MapDeserializer};
use serde::de::{DeserializeOwned, Deserializer, Error as _, IntoDeserializer, Visitor};
use serde::forward_to_deserialize_any;

use super::error::ApiError;

/// The query of a request, as the actix-web extractor of that name, for fields that may be bytes.
pub struct Query<T>(pub T);

impl<T: DeserializeOwned> FromRequest for Query<T> {
    type Error = actix_web::Error;
    type Future = Ready<Result<Self, actix_web::Error>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let query = parse(request.query_string()).map(Self);
        ready(query.map_err(|error| ApiError::invalid(error.to_string()).into()))
    }
}

fn parse<T: DeserializeOwned>(query: &str) -> Result<T, Error> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (Value::of(name), Value::of(value))
    });
    T::deserialize(MapDeserializer::new(pairs))
}

/// One side of a pair.
struct Value(Vec<u8>);

impl Value {
    fn of(encoded: &str) -> Self {
        Self(percent_decode(encoded.replace('+', " ").as_bytes()).collect())
    }

    fn text(self) -> Result<String, Error> {
        String::from_utf8(self.0).map_err(|_| Error::custom("it is not UTF-8"))
    }
}

impl IntoDeserializer<'_> for Value {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for Value {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match String::from_utf8(self.0) {
            Ok(text) => visitor.visit_string(text),
            Err(bytes) => visitor.visit_byte_buf(bytes.into_bytes()),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_bool(self.text()?.parse().map_err(Error::custom)?)
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_u32(self.text()?.parse().map_err(Error::custom)?)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u16 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct
        newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::domain::path::GuestPath;

    #[derive(Debug, Deserialize, PartialEq, Eq)]
    #[serde(deny_unknown_fields)]
    struct Some {
        path: GuestPath,
        user: Option<String>,
        #[serde(default)]
        depth: u32,
        #[serde(default)]
        recursive: bool,
    }

    #[test]
    fn paths_are_bytes_and_the_rest_is_what_it_is() {
        let query = parse::<Some>("path=%2Fa+b%FF&user=u%C3%A4&depth=3&recursive=true").unwrap();
        let path = GuestPath::from(b"/a b\xff".to_vec());
        let user = Option::Some("u\u{e4}".to_owned());
        assert_eq!(query, Some { path, user, depth: 3, recursive: true });
        for (wrong, why) in [
            ("", "path"),
            ("path=a&path=b", "duplicate"),
            ("path=a&more=b", "more"),
            ("path=a&user=%FF", "expected a string"),
            ("path=a&depth=-1", "digit"),
            ("path=a&depth=%FF", "UTF-8"),
            ("path=a&recursive=1", "true"),
        ] {
            let error = parse::<Some>(wrong).unwrap_err().to_string();
            assert!(error.contains(why), "{wrong}: {error}");
        }
    }
}
