//! JSON that a hypervisor says, read with a limit: one that a guest has broken out into says what it
//! likes.
//!
//! A limit in bytes is not enough. An object with one field takes a hundred times as much here as in
//! the text, so values are counted too.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// The most values in one text, those within others included. The longest that QEMU says, of a disk
/// with a hundred layers, has some 3,000.
const VALUES: usize = 16_384;

/// Reads a text, whatever is in it.
///
/// # Errors
///
/// That it is no JSON, is nested too deeply, or holds too much.
pub fn parse(text: &[u8]) -> Result<Value, serde_json::Error> {
    let left = Cell::new(VALUES);
    // It refuses what is nested more than 128 deep by itself.
    let mut source = serde_json::Deserializer::from_slice(text);
    let value = Counted(&left).deserialize(&mut source)?;
    source.end()?;
    Ok(value)
}

/// Makes a value, as long as there may be more of them.
#[derive(Clone, Copy)]
struct Counted<'a>(&'a Cell<usize>);

impl<'de> DeserializeSeed<'de> for Counted<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, source: D) -> Result<Value, D::Error> {
        match self.0.get().checked_sub(1) {
            Some(left) => self.0.set(left),
            None => return Err(D::Error::custom("there are too many values in it")),
        }
        source.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Counted<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(name) = fields.next_key()? {
            map.insert(name, fields.next_value_seed(self)?);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn it_reads_what_the_library_reads() {
        for text in [
            "null",
            " [true, false, -1, 18446744073709551615, 1.5e3, \"a\\u0041\\n\"] ",
            r#"{"a": {"b": [{}, [], ""]}, "a": 2, "": null}"#,
        ] {
            let want: Value = serde_json::from_str(text).unwrap();
            assert_eq!(parse(text.as_bytes()).unwrap(), want, "{text}");
        }
    }

    #[test]
    fn what_would_take_much_more_here_than_in_the_text_is_refused() {
        let many = |item: &str| format!("[{}{item}]", format!("{item},").repeat(1 << 17));
        for text in [
            many("{}"),
            many("{\"\":0}"),
            many("[]"),
            many("0"),
            format!(
                "{{{}\"a\":0}}",
                (0..1 << 17).map(|n| format!("\"{n}\":0,")).collect::<String>()
            ),
            "[".repeat(1 << 20),
            "{\"a\":".repeat(1 << 18),
        ] {
            assert!(parse(text.as_bytes()).is_err(), "{text:.20}");
        }
        let most = format!("[{}0]", "0,".repeat(VALUES - 2));
        assert!(parse(most.as_bytes()).is_ok());
    }

    proptest! {
        #[test]
        fn any_bytes_at_all_do_no_harm(text in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&text);
        }
    }
}
