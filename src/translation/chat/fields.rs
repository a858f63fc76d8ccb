//! Moves fields out of a JSON object, so that the unknown ones remain.

use serde_json::Value;

use crate::translation::{Extra, Refusal};

/// Removes a string; a value of another type remains.
pub(super) fn take_str(object: &mut Extra, name: &str) -> Option<String> {
    take(object, name, |value| value.as_str().map(str::to_owned))
}

pub(super) fn take_bool(object: &mut Extra, name: &str) -> Option<bool> {
    take(object, name, Value::as_bool)
}

/// Removes an object; a value of another type remains.
pub(super) fn take_object(object: &mut Extra, name: &str) -> Option<Extra> {
    take(object, name, |value| value.as_object().cloned())
}

/// Removes a field if it has the expected type.
pub(super) fn take<T>(
    object: &mut Extra,
    name: &str,
    read: impl Fn(&Value) -> Option<T>,
) -> Option<T> {
    let read = object.get(name).and_then(read);
    if read.is_some() {
        object.shift_remove(name);
    }
    read
}

/// Removes a field that must have the expected type, or be null.
pub(super) fn expect<T>(
    object: &mut Extra,
    name: &str,
    type_name: &str,
    read: impl Fn(&Value) -> Option<T>,
) -> Result<Option<T>, Refusal> {
    let read = take(object, name, read);
    let is_other = read.is_none() && object.get(name).is_some_and(|value| !value.is_null());
    if is_other { Err(Refusal::new(name, format!("must be {type_name}"))) } else { Ok(read) }
}

/// Keeps the rest of a nested object under its own name.
pub(super) fn keep_rest(extra: &mut Extra, name: &str, rest: Extra) {
    if !rest.is_empty() {
        extra.insert(name.to_owned(), Value::Object(rest));
    }
}

/// Adds the fields that were kept, those of nested objects too.
pub(super) fn merge(object: &mut Extra, extra: &Extra) {
    for (name, value) in extra {
        match (object.get_mut(name), value) {
            (Some(Value::Object(inner)), Value::Object(rest)) => merge(inner, rest),
            _ => {
                object.insert(name.clone(), value.clone());
            }
        }
    }
}

/// Converts `json!({…})`.
pub(super) fn object(value: Value) -> Extra {
    match value {
        Value::Object(object) => object,
        _ => Extra::new(),
    }
}
