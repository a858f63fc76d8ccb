//! Input of routes: path segment, query and body.

use std::str::FromStr;
use std::time::Duration;

use serde::de::DeserializeOwned;

use crate::error::{Error, Fault, Result};
use crate::flow::{check_integers, without_mark};
use crate::listener::{ApiError, Presence, RequestBody, RequestHead};

const BODY_BYTES_MAX: u64 = 4 << 20;
const BODY_TIME_MAX: Duration = Duration::from_secs(30);
const LIMIT_DEFAULT: usize = 100;
const LIMIT_MAX: usize = 1_000;

pub struct Request<'a, 'b> {
    pub head: &'a RequestHead,
    pub client: Presence,
    /// The path segment that matches the `*` of the route.
    pub name: &'a str,
    pub body: &'a mut RequestBody<'b>,
}

impl Request<'_, '_> {
    /// Reads the body. A route that does not call this accepts none.
    pub fn body(&mut self) -> Result<Vec<u8>, ApiError> {
        self.body_up_to(BODY_BYTES_MAX)
    }

    pub fn body_up_to(&mut self, bytes_max: u64) -> Result<Vec<u8>, ApiError> {
        self.body.read(bytes_max, BODY_TIME_MAX)
    }

    pub fn query(&self) -> Query {
        let (_, query) = self.head.target.split_once('?').unwrap_or_default();
        Query::parse(query)
    }

    /// Returns the id of a flow, a key, a price or a suggestion.
    pub fn id(&self, kind: &str) -> Result<i64> {
        let id = self.name;
        id.parse().map_err(|_| Error::NotFound(format!("{kind} `{id}`")))
    }
}

/// The parameters of a query. [`Query::finish`] rejects unknown ones, because a misspelled filter would
/// return wrong numbers.
pub struct Query {
    pairs: Vec<(String, String)>,
    faults: Vec<Fault>,
}

impl Query {
    pub fn parse(text: &str) -> Self {
        let pairs = form_urlencoded::parse(text.as_bytes()).into_owned().collect();
        Self { pairs, faults: Vec::new() }
    }

    /// Takes a parameter; an empty one counts as missing.
    pub fn take<T: FromStr<Err: std::fmt::Display>>(&mut self, name: &str) -> Option<T> {
        let at = self.pairs.iter().position(|(key, _)| key == name)?;
        let (_, value) = self.pairs.remove(at);
        if value.is_empty() {
            return None;
        }
        match value.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                self.faults.push(Fault::new(name, error.to_string()));
                None
            }
        }
    }

    /// Returns a parameter that stays.
    pub fn peek(&self, name: &str) -> Option<&str> {
        self.pairs.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Replaces a parameter.
    pub fn set(&mut self, name: &str, value: &str) {
        self.pairs.retain(|(key, _)| key != name);
        self.pairs.push((name.to_owned(), value.to_owned()));
    }

    /// Returns the parameters as the query of an address, except some.
    pub fn to_text(&self, except: &[&str]) -> String {
        let pairs = self.pairs.iter().filter(|(key, _)| !except.contains(&key.as_str()));
        form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish()
    }

    /// Takes a list of values that are separated by commas; a missing one is empty.
    pub fn take_list<T: FromStr<Err: std::fmt::Display>>(&mut self, name: &str) -> Vec<T> {
        let text: String = self.take(name).unwrap_or_default();
        let mut values = Vec::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            match part.parse::<T>() {
                Ok(value) => values.push(value),
                Err(error) => self.faults.push(Fault::new(name, error.to_string())),
            }
        }
        values
    }

    pub fn take_limit(&mut self) -> usize {
        let limit: Option<usize> = self.take("limit");
        if limit.is_some_and(|limit| !(1..=LIMIT_MAX).contains(&limit)) {
            self.faults
                .push(Fault::new("limit", format!("must be a whole number from 1 to {LIMIT_MAX}")));
        }
        limit.unwrap_or(LIMIT_DEFAULT)
    }

    pub fn finish(mut self) -> Result<()> {
        for (name, _) in self.pairs {
            self.faults.push(Fault::new(name, "unknown parameter"));
        }
        if self.faults.is_empty() {
            return Ok(());
        }
        Err(Error::Invalid { message: "cannot read the query".into(), faults: self.faults })
    }
}

/// Parses a JSON body, which may begin with a byte order mark.
///
/// # Errors
/// 400 for invalid syntax, 422 for a wrong type and for an integer that would be rounded.
pub fn read_json<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    let body = without_mark(body);
    let fault = |status, code, error: String| {
        ApiError::new(status, code, format!("cannot read the request body: {error}"))
    };
    let read = serde_json::from_slice(body).map_err(|error| {
        let (status, code) = if error.is_data() { (422, "invalid") } else { (400, "invalid_json") };
        fault(status, code, error.to_string())
    })?;
    check_integers(body).map_err(|error| fault(422, "invalid", error))?;
    Ok(read)
}
