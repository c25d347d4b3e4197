//! Values that are given as objects, with names.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// What is read from an object only. A struct by itself is read from an array as well, field after field:
/// nobody is told of that, and the next field would change what such an array says.
#[derive(Debug, Default)]
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Fields(PhantomData))
    }
}

struct Fields<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
    type Value = Object<T>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(Object)
    }
}

/// A field that may be left out, or null, which means the same: its default value.
///
/// # Errors
///
/// That there is something else.
pub fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Fork {
        #[serde(default, deserialize_with = "or_default")]
        count: u32,
    }

    #[test]
    fn only_an_object_is_one() {
        let read = |text| {
            let read = serde_json::from_str::<Object<Fork>>(text);
            read.map(|Object(fork)| fork.count).map_err(|error| error.to_string())
        };
        assert_eq!((read("{}"), read(r#"{"count": 3}"#)), (Ok(0), Ok(3)));
        assert_eq!(read(r#"{"count": null}"#), Ok(0));
        for text in ["[]", "[3]", "3", "null", "\"count\""] {
            assert!(read(text).unwrap_err().contains("expected an object"), "{text}");
        }
        let twice = read(r#"{"count": 1, "count": 2}"#).unwrap_err();
        assert_eq!(twice, "duplicate field `count` at line 1 column 20");
        assert!(read(r#"{"number": 1}"#).unwrap_err().contains("unknown field"));
    }
}
