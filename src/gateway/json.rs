//! Parses JSON in place: fields and elements in order, as slices of the text. Nothing is stored, so
//! a body of many small fields needs no additional memory, and nesting uses no stack. Pure.

use std::borrow::Cow;
use std::fmt;

use serde::Deserializer;
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// Visits the fields of an object, in order, up to the first syntax error.
pub fn each_field<'a>(
    text: &'a str,
    visit: impl FnMut(&str, &'a RawValue),
) -> serde_json::Result<()> {
    struct Fields<F>(F);
    impl<'de, F: FnMut(&str, &'de RawValue)> Visitor<'de> for Fields<F> {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
            while let Some(name) = map.next_key::<&RawValue>()? {
                (self.0)(&unquoted(name), map.next_value()?);
            }
            Ok(())
        }
    }
    let mut json = serde_json::Deserializer::from_str(text);
    json.deserialize_map(Fields(visit))?;
    json.end()
}

/// Visits the elements of a list, in order, up to the first syntax error.
pub fn each_element<'a>(text: &'a str, visit: impl FnMut(&'a RawValue)) -> serde_json::Result<()> {
    struct Elements<F>(F);
    impl<'de, F: FnMut(&'de RawValue)> Visitor<'de> for Elements<F> {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an array")
        }

        fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<(), A::Error> {
            while let Some(element) = list.next_element()? {
                (self.0)(element);
            }
            Ok(())
        }
    }
    let mut json = serde_json::Deserializer::from_str(text);
    json.deserialize_seq(Elements(visit))?;
    json.end()
}

/// Returns the name of a field; empty if it is not valid text, such as half a surrogate pair.
fn unquoted(name: &RawValue) -> Cow<'_, str> {
    let quoted = name.get();
    match quoted.strip_prefix('"').and_then(|it| it.strip_suffix('"')) {
        Some(name) if !name.contains('\\') => name.into(),
        _ => serde_json::from_str(quoted).map(Cow::Owned).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_visited_in_order_with_their_raw_values() {
        let text = r#"{"a" : 1.0, "\u0062\"":"\ud800","\ud800":{"x":[1,2]} , "c": 1e999}"#;
        let mut seen = Vec::new();
        each_field(text, |name, value| seen.push((name.to_owned(), value.get()))).unwrap();
        let expected =
            [("a", "1.0"), ("b\"", r#""\ud800""#), ("", r#"{"x":[1,2]}"#), ("c", "1e999")];
        assert_eq!(seen, expected.map(|(name, value)| (name.to_owned(), value)));
        assert!(each_field("[1]", |_, _| {}).is_err());
        assert!(each_field("{} x", |_, _| {}).is_err());
    }

    #[test]
    fn elements_are_visited_with_their_raw_values() {
        let mut seen = Vec::new();
        each_element(r#"[1.0, {"a":1 },[] ]"#, |element| seen.push(element.get())).unwrap();
        assert_eq!(seen, ["1.0", r#"{"a":1 }"#, "[]"]);
        assert!(each_element("{}", |_| {}).is_err());
    }
}
