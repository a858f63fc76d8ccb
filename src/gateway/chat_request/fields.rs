//! The known fields of a request's body, with their places in it. Pure.

use std::fmt;
use std::ops::Range;

use serde_json::value::RawValue;

use super::super::json::each_field;
use crate::listener::ApiError;
use crate::providers::ANSWER_TOKENS_ASSUMED;

/// The known fields of an object, with their original text.
pub(super) struct Fields<'a> {
    found: Vec<(&'static str, &'a RawValue)>,
    /// The end of the last field in the body.
    pub(super) end: usize,
}

impl<'a> Fields<'a> {
    /// Parses the object `text`, a part of `body`. Duplicate fields are ambiguous, so they are an
    /// error; so are names in another case, which some servers accept.
    pub(super) fn read(
        body: &str,
        text: &'a str,
        known_fields: &'static [&'static str],
    ) -> Result<Self, ApiError> {
        let mut fields = Self { found: Vec::new(), end: 0 };
        let mut ambiguous = None;
        each_field(text, |name, value| {
            fields.end = range_of(body, value).end;
            let mut known = known_fields.iter().copied();
            let Some(known) = known.find(|known| known.eq_ignore_ascii_case(name)) else {
                return;
            };
            if name != known {
                ambiguous.get_or_insert(format!("unknown field `{name}`; use `{known}`"));
            } else if fields.get(known).is_some() {
                ambiguous.get_or_insert(format!("duplicate field `{known}`"));
            } else {
                fields.found.push((known, value));
            }
        })
        .map_err(invalid_json)?;
        match ambiguous {
            Some(message) => Err(ApiError::bad_request("ambiguous", message)),
            None => Ok(fields),
        }
    }

    pub(super) fn get(&self, name: &str) -> Option<&'a RawValue> {
        let mut found = self.found.iter();
        found.find(|(known, _)| *known == name).map(|(_, value)| *value)
    }

    /// Returns the field with one of these names, which servers treat as the same.
    pub(super) fn one_of(&self, names: &[&str]) -> Result<Option<&'a RawValue>, ApiError> {
        let mut found = names.iter().filter_map(|name| self.get(name));
        match (found.next(), found.next()) {
            (_, Some(_)) => {
                let message = format!("ambiguous fields; use one of `{}`", names.join("`, `"));
                Err(ApiError::bad_request("ambiguous", message))
            }
            (value, None) => Ok(value),
        }
    }

    /// Returns a whole number; none if it is missing or null. Other values are an error, because
    /// providers interpret them differently.
    pub(super) fn whole(&self, name: &str) -> Result<Option<f64>, ApiError> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        serde_json::from_str::<Option<f64>>(value.get())
            .ok()
            .filter(|number| number.is_none_or(|number| number.fract() == 0.0))
            .ok_or_else(|| {
                let message = format!("`{name}` must be a whole number or null");
                ApiError::bad_request("bad_limit", message)
            })
    }

    /// Returns a value that is true or false; none if it is missing or null.
    pub(super) fn flag(&self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.get(name).map(RawValue::get) {
            None | Some("null") => Ok(None),
            Some("true") => Ok(Some(true)),
            Some("false") => Ok(Some(false)),
            Some(_) => {
                let message = format!("`{name}` must be true or false");
                let code = if name == "stream" { "bad_stream" } else { "bad_value" };
                Err(ApiError::bad_request(code, message))
            }
        }
    }

    /// Returns the id of a stored object: a text, or an object with an `id`.
    pub(super) fn id(&self, body: &str, name: &str) -> Result<Option<String>, ApiError> {
        let Some(mut value) = self.get(name).filter(|value| value.get() != "null") else {
            return Ok(None);
        };
        if value.get().starts_with('{') {
            let object = Fields::read(body, value.get(), &["id"])?;
            value = object.get("id").unwrap_or(value);
        }
        serde_json::from_str(value.get()).map(Some).map_err(|_| {
            let message = format!("`{name}` must be an id or null");
            ApiError::bad_request("bad_id", message)
        })
    }

    /// Returns a limit in tokens. Some servers treat a negative limit as none.
    pub(super) fn limit(&self, name: &str) -> Result<Option<u32>, ApiError> {
        let limit = self.whole(name)?;
        Ok(limit.map(|limit| match limit {
            ..0.0 => ANSWER_TOKENS_ASSUMED,
            _ => saturating(limit),
        }))
    }
}

pub(super) fn saturating(number: f64) -> u32 {
    number as u32
}

pub(super) fn invalid_json(error: impl fmt::Display) -> ApiError {
    ApiError::bad_request("invalid_json", format!("cannot read the request body: {error}"))
}

/// Returns the range in `body` of a value that was parsed from it.
pub(super) fn range_of(body: &str, value: &RawValue) -> Range<usize> {
    let start = value.get().as_ptr().addr() - body.as_ptr().addr();
    start..start + value.get().len()
}
