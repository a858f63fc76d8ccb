//! An HTTP response with a status other than 2xx.

use std::io::Read;
use std::time::Duration;

use serde_json::{Value, json};
use ureq::Body;
use ureq::http::Response;
use ureq::http::header::{HeaderName, LOCATION, RETRY_AFTER};

use super::content_encoding::{self, Decoder};
use super::excerpt::{EXCERPT_CHARS_MAX, describe, one_line};
use super::failure::{FailureKind, Fault};
use super::wire::provider_message;
use crate::time::Timestamp;

/// Limits a failure's message, in characters.
pub(super) const MESSAGE_CHARS_MAX: usize = 1000;

/// The maximum delay that a provider can request; a retry after a longer one is useless.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 60 * 60);

pub(super) struct Refusal {
    pub(super) status: u16,
    pub(super) retry_after: Option<Duration>,
    pub(super) location: Option<String>,
    pub(super) body: String,
    /// True if that is the whole body, or replaces an undecodable one.
    pub(super) is_whole: bool,
}

impl Refusal {
    /// Reads a response and at most `bytes_max` of its body; less if its connection breaks.
    pub(super) fn read(response: Response<Body>, bytes_max: usize) -> Self {
        let (head, body) = response.into_parts();
        let header = |name: HeaderName| head.headers.get(name)?.to_str().ok();
        let mut bytes = Vec::new();
        let is_whole = match content_encoding::of(&head.headers) {
            Ok(codings) => {
                let decoder = Decoder::new(body.into_reader(), &codings);
                let _ = decoder.take(bytes_max as u64 + 1).read_to_end(&mut bytes);
                bytes.len() <= bytes_max
            }
            // In this form, clients of every protocol read the message.
            Err(message) => {
                let error = json!({"type": "api_error", "message": message});
                bytes = json!({"type": "error", "error": error}).to_string().into_bytes();
                true
            }
        };
        bytes.truncate(bytes_max);
        let body = String::from_utf8_lossy(&bytes).into_owned();
        let stated = || serde_json::from_str(&body).ok().and_then(|body| retry_delay(&body));
        Self {
            status: head.status.as_u16(),
            retry_after: header(RETRY_AFTER)
                .and_then(|it| retry_after(it, Timestamp::now()))
                .or_else(stated),
            location: header(LOCATION).map(str::to_owned),
            body,
            is_whole,
        }
    }

    /// Describes the failure of a call to `provider`.
    pub(super) fn fault(&self, provider: &str) -> Fault {
        let status = self.status;
        let advice = match status {
            // Following the redirect would send the key there.
            300..=399 => {
                format!(
                    "; redirects are not followed, so correct the base_url of provider {provider}"
                )
            }
            401 | 403 => format!("; check the API key of provider {provider}"),
            404 => format!("; check the model and the base_url of provider {provider}"),
            _ => String::new(),
        };
        let excerpt = self.excerpt();
        Fault {
            kind: FailureKind::Status,
            message: format!("returned status {status}: {excerpt}{advice}"),
            status: Some(status),
            retry_after: self.retry_after,
        }
    }

    fn excerpt(&self) -> String {
        if let (300..=399, Some(location)) = (self.status, &self.location) {
            return format!("redirect to {}", one_line(location, EXCERPT_CHARS_MAX));
        }
        let document = serde_json::from_str::<Value>(&self.body).ok();
        match document.as_ref().and_then(provider_message) {
            // Reserves room for the advice.
            Some(message) => one_line(&message, MESSAGE_CHARS_MAX - EXCERPT_CHARS_MAX),
            None => describe(&self.body),
        }
    }
}

/// Returns the delay that Google states in the body of an error, such as `7s`, because it sends no
/// `Retry-After`: <https://cloud.google.com/apis/design/errors#error_payloads> (`RetryInfo`).
pub fn retry_delay(body: &Value) -> Option<Duration> {
    let details = body.get(0).unwrap_or(body)["error"]["details"].as_array()?;
    let delay = details.iter().find_map(|detail| detail["retryDelay"].as_str())?;
    let seconds: f64 = delay.strip_suffix('s')?.parse().ok()?;
    Some(Duration::try_from_secs_f64(seconds).ok()?.min(RETRY_AFTER_MAX))
}

/// Parses `Retry-After`: seconds, or a date (RFC 9110, 10.2.3).
fn retry_after(header: &str, now: Timestamp) -> Option<Duration> {
    let header = header.trim();
    let wait = match header.parse::<f64>() {
        // The standard requires whole seconds; some servers send fractions.
        Ok(seconds) => Duration::try_from_secs_f64(seconds).ok()?,
        Err(_) => {
            let date = jiff::fmt::rfc2822::parse(header).ok()?;
            let wait_ms = date.timestamp().as_millisecond().saturating_sub(now.0);
            Duration::from_millis(u64::try_from(wait_ms).unwrap_or(0))
        }
    };
    Some(wait.min(RETRY_AFTER_MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn refusal(status: u16, body: &str) -> String {
        let refusal = Refusal {
            status,
            retry_after: None,
            location: Some("http://elsewhere/".into()),
            body: body.into(),
            is_whole: true,
        };
        refusal.fault("p").message
    }

    #[test]
    fn provider_message_is_kept_with_advice() {
        assert_eq!(
            refusal(401, r#"{"error":{"message":"Incorrect API key","type":"invalid"}}"#),
            "returned status 401: Incorrect API key (invalid); check the API key of provider p"
        );
        assert_eq!(
            refusal(
                529,
                r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#
            ),
            "returned status 529: Overloaded (overloaded_error)"
        );
        assert_eq!(
            refusal(307, ""),
            "returned status 307: redirect to http://elsewhere/; redirects are not followed, \
             so correct the base_url of provider p"
        );
        assert_eq!(refusal(500, ""), "returned status 500: empty body");
    }

    #[test]
    fn a_long_body_is_truncated_to_one_line() {
        assert_eq!(refusal(500, "oh\n\x1b[31mno"), "returned status 500: oh [31mno");
        let message = refusal(500, &"ä".repeat(500));
        assert!(message.ends_with(&format!("{}…", "ä".repeat(300))), "{message}");
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now: Timestamp = "2025-12-04T10:00:00Z".parse().unwrap();
        let wait = |header| retry_after(header, now);
        assert_eq!(wait("20"), Some(Duration::from_secs(20)));
        assert_eq!(wait(" 0.5 "), Some(Duration::from_millis(500)));
        assert_eq!(wait("Thu, 04 Dec 2025 10:00:30 GMT"), Some(Duration::from_secs(30)));
        assert_eq!(wait("Thu, 04 Dec 2025 09:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!(wait("99999999999999999"), Some(RETRY_AFTER_MAX));
        for nonsense in ["", "-1", "NaN", "inf", "1e400", "soon"] {
            assert_eq!(wait(nonsense), None, "{nonsense}");
        }
    }

    #[test]
    fn google_states_the_delay_in_the_body() {
        let delay = |text: &str| {
            let info =
                json!({"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": text});
            retry_delay(&json!({"error": {"code": 429, "details": [{"reason": "r"}, info]}}))
        };
        assert_eq!(delay("7s"), Some(Duration::from_secs(7)));
        assert_eq!(delay("0.5s"), Some(Duration::from_millis(500)));
        for nonsense in ["", "7", "-1s", "xs", "NaNs"] {
            assert_eq!(delay(nonsense), None, "{nonsense}");
        }
        assert_eq!(retry_delay(&json!({"error": "e"})), None);
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in "(?s).{0,80}", tags in "[<>/!a-zA-Z]{0,80}") {
            let now = Timestamp(0);
            retry_after(&text, now);
            refusal(404, &text);
            refusal(404, &format!("<html><title{tags}</title"));
            prop_assert!(one_line(&text, 10).chars().count() <= 11);
        }
    }
}
