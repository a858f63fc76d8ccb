//! Answers that were bought before, for clients that say in a field of their request that one will do.
//!
//! An answer is found again by all that it depends on, and by whose it is: what one key has bought
//! is never shown to another.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::attempt::{Operation, TURN_WAIT_MAX};
use super::protocol::Refusal;
use super::{Gateway, Toward};
use crate::event::{Timestamp, hex};
use crate::flow::CACHE_AGE_MAX;
use crate::listener::{Presence, RequestHead};
use crate::providers::{AnswerHead, Call, Cancel};
use crate::response_cache::{CacheLookup, FillGuard, SAME_CALL_POLL};
use crate::store::{ANSWER_BYTES_MAX, Bought, Settlement};

/// The field of a request that says how old an answer may be, in seconds.
const AGE_FIELD: &str = "x-flowledger-cache";
/// The field of an answer to such a request that says whether it was bought before.
pub(super) const CACHED_FIELD: &str = "x-flowledger-cached";
/// Passed fields that change nothing of an answer: how a request is told from its repetition, and what
/// `OpenRouter` calls the program that asks.
const WITHOUT_EFFECT: [&str; 3] = ["idempotency-key", "http-referer", "x-title"];

/// How old an answer may be that will do; none where it is to be bought.
///
/// # Errors
/// Where the field cannot be understood.
pub(super) fn age_max(head: &RequestHead) -> Result<Option<Duration>, Refusal> {
    let mut values = head.all(AGE_FIELD).filter(|value| !value.is_empty());
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
                "`X-Flowledger-Cache` must be how many seconds old an answer may be, 1 to {}",
                CACHE_AGE_MAX.as_secs()
            );
            Refusal::bad_request("bad_cache", message)
        })
}

/// What there is for a call.
pub(super) enum ClientLookup {
    /// The answer.
    Answer(Arc<Bought>),
    /// Nothing. Where the answer is to be kept, the right to buy it: others wait while it is held.
    Nothing(Option<FillGuard>),
}

impl Gateway {
    /// Looks for the answer to a call, where an older one will do. Waits while another client buys it.
    ///
    /// # Errors
    /// When that takes too long, or the call is ended meanwhile, or its client leaves.
    pub(super) fn look(
        &self,
        operation: &Operation<'_>,
        call: &Call,
        cancel: &Cancel,
        presence: &Presence,
    ) -> Result<ClientLookup, Refusal> {
        let Some(age_max) = operation.cache_age else {
            return Ok(ClientLookup::Nothing(None));
        };
        let key = self.answer_key(operation, call);
        // As long as the other may wait and take. Where it fails, the next of those who wait buys.
        let until = Instant::now() + 2 * TURN_WAIT_MAX + self.providers.timeouts_of(call).total;
        loop {
            match self.answers.look(key.clone(), age_max, Timestamp::now()) {
                Ok(CacheLookup::Answer(bought)) => return Ok(ClientLookup::Answer(bought)),
                Ok(CacheLookup::Nothing(fill)) => return Ok(ClientLookup::Nothing(Some(fill))),
                // The call can be made all the same.
                Err(error) => {
                    log::warn!("no answer can be looked up: {error}");
                    return Ok(ClientLookup::Nothing(None));
                }
                Ok(CacheLookup::InFlight) if Instant::now() >= until => {
                    let message = "the same request, made by another, was waited for too long";
                    return Err(Refusal::new(504, "provider_timeout", message));
                }
                Ok(CacheLookup::InFlight) => {
                    if cancel.wait(SAME_CALL_POLL) || presence.has_left() {
                        return Err(self.ended());
                    }
                }
            }
        }
    }

    /// SHA-256 of all that the answer to a client's call depends on, and of whose it is.
    fn answer_key(&self, operation: &Operation<'_>, call: &Call) -> String {
        let adds_usage = self.adds_usage(operation, &call.provider);
        let body = operation.asked.for_model(&call.model, adds_usage);
        let headers = operation.headers.iter();
        let effective: Vec<_> = headers
            .filter(|(name, _)| !WITHOUT_EFFECT.contains(name))
            .collect();
        let own = self.own_key(operation, &call.provider);
        let all = serde_json::json!([
            "v1",
            operation.protocol.name(),
            call.provider,
            call.model,
            self.providers.server_of(&call.provider),
            operation.client.key_id,
            own.map(|own| own.key.hash()),
            effective,
            // Two requests that differ in this alone are the same to the provider.
            adds_usage,
            hex(&Sha256::digest(body)),
        ]);
        hex(&Sha256::digest(all.to_string()))
    }

    /// How a provider is used for clients.
    pub(super) fn toward(&self, provider: &str) -> Toward {
        let toward = self.settings.toward.get(provider);
        toward.copied().unwrap_or_default()
    }
}

/// An answer on its way to a client that is to be kept, as far as it came.
pub(super) struct Recording {
    fill: FillGuard,
    content_type: Option<String>,
    bytes: Vec<u8>,
    is_whole: bool,
}

impl Recording {
    pub(super) fn new(fill: FillGuard) -> Self {
        Self {
            fill,
            content_type: None,
            bytes: Vec::new(),
            is_whole: false,
        }
    }

    /// The answer begins. Gives whether it may be kept.
    pub(super) fn begin(&mut self, head: &AnswerHead) -> bool {
        let mut headers = head.headers.iter();
        let found = headers.find(|(name, _)| name == "content-type");
        self.content_type = found.map(|(_, value)| value.clone());
        head.status == 200
    }

    /// The next piece. Gives whether it may still be kept: no more memory is used than that takes.
    pub(super) fn push(&mut self, bytes: &[u8]) -> bool {
        let fits = self.bytes.len() + bytes.len() <= ANSWER_BYTES_MAX;
        if fits {
            self.bytes.extend_from_slice(bytes);
        }
        fits
    }

    /// That was all; `is_whole` where nothing is missing.
    pub(super) fn end(&mut self, is_whole: bool) {
        self.is_whole = is_whole;
    }

    /// The call succeeded: gives the answer, which others find from now on, to be stored. None where it
    /// is not whole, or not a text: events may hold bytes that are none.
    pub(super) fn done(self, model: &str, settlement: &Settlement) -> Option<Arc<Bought>> {
        if !self.is_whole {
            return None;
        }
        let bought = Bought {
            key: self.fill.key().to_owned(),
            at: settlement.at,
            model: model.to_owned(),
            output: String::from_utf8(self.bytes).ok()?,
            content_type: self.content_type,
            cost: settlement.cost,
        };
        Some(self.fill.done(bought))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(fields: &str) -> Result<Option<Duration>, Refusal> {
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
            assert_eq!(
                (refusal.status, refusal.code),
                (400, "bad_cache"),
                "{value}"
            );
        }
    }
}
