//! What a hypervisor may answer as JSON, and how much of it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use nestbox_fuzz::said::expanded;
use nestbox_fuzz::{measure, vmm::hypervisor::json};
use serde_json::Value;

/// As `vmm::hypervisor::json` has it.
const MOST_VALUES: usize = 16_384;

/// An object with one field is the largest of them.
const BYTES_PER_VALUE: usize = 1024;

fuzz_target!(|input: &[u8]| {
    let mut text = expanded(input);
    // QMP gives it no longer lines.
    text.truncate(1 << 20);
    let limit = 4 * text.len() + MOST_VALUES * BYTES_PER_VALUE;
    let read = measure::within(limit, || json::parse(&text));
    let whole = serde_json::from_slice::<Value>(&text);
    match (read, whole) {
        (Ok(read), Ok(whole)) => {
            assert!(count(&read) <= MOST_VALUES, "{} values", count(&read));
            assert_eq!(read, whole);
            let written = serde_json::to_vec(&read).expect("only text is a key");
            let again = json::parse(&written).expect("what was written can be read");
            assert!(same(&again, &read), "{read} became {again}");
        }
        (Ok(read), Err(error)) => panic!("{read} is no JSON: {error}"),
        (Err(error), Ok(whole)) => assert!(least(&text, &whole) > MOST_VALUES, "{error}"),
        (Err(_), Err(_)) => {}
    }
});

/// Numbers with a point are read to the last bit only if that is asked for.
fn same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(a), Value::Number(b)) => {
            let near = |a: f64, b: f64| (a - b).abs() <= a.abs() * 1e-12;
            a == b || matches!((a.as_f64(), b.as_f64()), (Some(a), Some(b)) if near(a, b))
        }
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            let fields =
                |(name, value): (&String, &Value)| b.get(name).is_some_and(|b| same(value, b));
            a.len() == b.len() && a.iter().all(fields)
        }
        (one, other) => one == other,
    }
}

/// How many values are in a text, at most: a name that comes twice in an object hides one.
fn least(text: &[u8], whole: &Value) -> usize {
    let between = text.iter().filter(|byte| matches!(**byte, b',' | b'[' | b'{')).count();
    between.max(count(whole)) + 1
}

fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(count).sum(),
        Value::Object(fields) => fields.values().map(count).sum(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 0,
    }
}
