//! Cached answers, for clients that opt in with a request header.
//!
//! The cache key covers all data that affects the answer, and its owner: one key never gets the
//! answer that another key paid for.

use std::time::Duration;

use sha2::{Digest, Sha256};

use super::Gateway;
use super::operation::Operation;
use crate::calls::{FillGuard, Filled};
use crate::flow::CACHE_AGE_MAX;
use crate::ids::hex;
use crate::listener::ApiError;
use crate::listener::RequestHead;
use crate::providers::{API_FORMATS, AnswerHead, Call};
use crate::store::ANSWER_BYTES_MAX;

/// The request header with the maximum age of an answer, in seconds.
const AGE_HEADER: &str = "x-flowledger-cache";
/// The response header that reports whether the answer came from the cache.
pub(super) const CACHED_HEADER: &str = "x-flowledger-cached";
/// Forwarded headers that do not affect the answer.
const IRRELEVANT_HEADERS: [&str; 16] = [
    "idempotency-key",
    "http-referer",
    "x-title",
    "x-client-request-id",
    "originator",
    "session_id",
    "session-id",
    "thread-id",
    "conversation_id",
    "x-codex-parent-thread-id",
    "x-codex-turn-metadata",
    "x-codex-turn-state",
    "x-codex-window-id",
    "x-openai-subagent",
    "x-goog-api-client",
    "x-server-timeout",
];

/// Returns the maximum age of a cached answer, if one may be used.
pub(super) fn age_max(head: &RequestHead) -> Result<Option<Duration>, ApiError> {
    let mut values = head.all(AGE_HEADER).filter(|value| !value.is_empty());
    let (value, another) = (values.next(), values.next());
    let Some(value) = value else {
        return Ok(None);
    };
    let is_number = another.is_none() && value.bytes().all(|byte| byte.is_ascii_digit());
    let seconds = value.parse().ok().filter(|_| is_number);
    seconds
        .map(Duration::from_secs)
        .filter(|age| !age.is_zero() && *age <= CACHE_AGE_MAX)
        .map(Some)
        .ok_or_else(|| {
            let message = format!(
                "`X-Flowledger-Cache` must be the maximum age of a cached response in seconds, 1 to {}",
                CACHE_AGE_MAX.as_secs()
            );
            ApiError::bad_request("bad_cache", message)
        })
}

impl Gateway {
    /// Returns the SHA-256, in hexadecimal, of all data that affects the answer, and of its owner.
    pub(super) fn cache_key(&self, operation: &Operation<'_>, call: &Call) -> String {
        let apis = self.providers.apis(&call.provider);
        let translated = operation.format.api().filter(|api| !apis.contains(api)).and(apis.first());
        let adds_usage = self.adds_usage(operation, &call.provider);
        let body = operation.request.for_model(&call.model, adds_usage);
        let mut effective = operation.headers.clone();
        effective.retain(|(name, _)| !IRRELEVANT_HEADERS.contains(name));
        let own = self.own_key(operation, &call.provider);
        let mut all = serde_json::json!([
            "v1",
            operation.protocol.name(),
            call.provider,
            call.model,
            self.providers.server_of(&call.provider),
            operation.client.key_id,
            own.map(|own| own.key.hash()),
            effective,
            // Affects only the answer to the client: the forwarded bodies may be the same.
            adds_usage,
            hex(&Sha256::digest(body)),
        ]);
        if let Some(all) = all.as_array_mut() {
            // One body may be valid for several of the other formats.
            if !API_FORMATS.contains(&operation.format) {
                all.push(format!("{:?}", operation.format).into());
            }
            if let Some(api) = translated {
                all.push(api.name().into());
            }
            if !operation.query.is_empty() {
                all.push(operation.query.as_str().into());
            }
        }
        hex(&Sha256::digest(all.to_string()))
    }
}

/// The part of an answer that has arrived, recorded for the cache.
pub(super) struct Recording {
    fill: FillGuard,
    content_type: Option<String>,
    bytes: Vec<u8>,
    is_whole: bool,
}

impl Recording {
    pub(super) fn new(fill: FillGuard) -> Self {
        Self { fill, content_type: None, bytes: Vec::new(), is_whole: false }
    }

    /// Starts the recording. Returns whether the answer may still be cached, as `push` and `end`
    /// do.
    pub(super) fn begin(&mut self, head: &AnswerHead) -> bool {
        let content_type = head.headers.iter().find(|(name, _)| name == "content-type");
        self.content_type = content_type.map(|(_, value)| value.clone());
        head.status == 200
    }

    pub(super) fn push(&mut self, bytes: &[u8]) -> bool {
        let fits = self.bytes.len() + bytes.len() <= ANSWER_BYTES_MAX;
        if fits {
            self.bytes.extend_from_slice(bytes);
        }
        fits
    }

    pub(super) fn end(&mut self, is_whole: bool) -> bool {
        self.is_whole = is_whole;
        is_whole
    }

    /// Returns the answer if it is complete and valid UTF-8, which a stream need not be.
    pub(super) fn into_filled(self) -> Option<Filled> {
        if !self.is_whole {
            return None;
        }
        Some(Filled {
            fill: self.fill,
            output: String::from_utf8(self.bytes).ok()?,
            content_type: self.content_type,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(fields: &str) -> Result<Option<Duration>, ApiError> {
        let head = format!("POST /v1/messages HTTP/1.1\r\nhost: a\r\n{fields}\r\n");
        let (head, _) = RequestHead::parse(head.as_bytes()).unwrap().unwrap();
        age_max(&head)
    }

    #[test]
    fn an_age_is_a_number_of_seconds_up_to_a_year() {
        assert_eq!(read("").unwrap(), None);
        assert_eq!(read("x-flowledger-cache:\r\n").unwrap(), None);
        for seconds in [1, 3600, 31_536_000] {
            let age = read(&format!("x-flowledger-cache: {seconds}\r\n")).unwrap();
            assert_eq!(age, Some(Duration::from_secs(seconds)));
        }
        for value in [
            "0",
            "31536001",
            "-1",
            "+1",
            "1.5",
            "true",
            "1 h",
            "99999999999999999999",
            "1\r\nx-flowledger-cache: 2",
        ] {
            let refusal = read(&format!("x-flowledger-cache: {value}\r\n")).unwrap_err();
            assert_eq!((refusal.status, refusal.code), (400, "bad_cache"), "{value}");
        }
    }
}
