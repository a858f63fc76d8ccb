//! Fields of JSON objects whose names have two spellings.

use serde_json::{Map, Number, Value};

/// Returns the name in snake case.
fn snake(name: &str) -> String {
    let mut snake = String::with_capacity(name.len() + 4);
    for letter in name.chars() {
        if letter.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(letter.to_ascii_lowercase());
    }
    snake
}

/// Removes a field in either spelling.
pub(super) fn take(object: &mut Map<String, Value>, name: &str) -> Option<Value> {
    object.remove(name).or_else(|| object.remove(&snake(name)))
}

/// Removes a field in either spelling if `read` accepts its value.
pub(super) fn take_as<T>(
    object: &mut Map<String, Value>,
    name: &str,
    read: impl Fn(&Value) -> Option<T>,
) -> Option<T> {
    let found = read(get(object, name)?)?;
    take(object, name);
    Some(found)
}

/// Returns a field in either spelling.
pub(super) fn get<'a>(object: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    object.get(name).or_else(|| object.get(&snake(name)))
}

/// Returns the elements of a repeated field. A single message stands for a list of one, as in
/// Google's examples: `"parts": {"text": "…"}` in <https://ai.google.dev/gemini-api/docs/thinking>.
pub(super) fn elements(value: Value) -> Option<Vec<Value>> {
    match value {
        Value::Array(list) => Some(list),
        Value::Object(_) => Some(vec![value]),
        _ => None,
    }
}

pub(super) fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

/// Returns a count, which Python's client may write with a fraction of zero.
pub(super) fn whole(value: &Value) -> Option<u64> {
    let fraction = || value.as_f64().filter(|it| *it >= 0.0 && *it < 1e15 && it.fract() == 0.0);
    value.as_u64().or_else(|| fraction().map(|it| it as u64))
}

/// Writes a number without a fraction of zero.
pub(super) fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 {
        return Value::from(value as i64);
    }
    Number::from_f64(value).map_or(Value::Null, Value::Number)
}

/// 64-bit FNV-1a: <http://www.isthe.com/chongo/tech/comp/fnv/>.
pub(super) fn hash(text: &str) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    text.bytes().fold(0xcbf2_9ce4_8422_2325, step)
}
