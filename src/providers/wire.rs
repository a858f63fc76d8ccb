//! Common parts of the providers' protocols: the request as data, the accumulated answer, errors
//! and token counts. Pure: no network, no clock.

use serde_json::Value;

use super::billing::{Billing, SERVICE_TIER};
use super::excerpt::one_line;
use super::failure::{FailureKind, Fault};
use super::framer::{Event, Framing};
use super::json;
use super::object::ProviderObject;
use crate::event::{Usage, UsageSource};

/// Limits the text of an answer, in bytes: the longest of current models (128,000 tokens) is about
/// 600 KiB.
pub(super) const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The maximum token count; a higher one is an error of the provider. It is a thousand times the
/// largest context, and sums of a few such counts stay far from overflow.
const TOKENS_MAX: u64 = 1_000_000_000;

/// Limits the name of a model, in bytes, like the limit for clients.
const MODEL_BYTES_MAX: usize = 256;

pub(super) const FINISH_CHARS_MAX: usize = 100;

/// Limits the text of a keep-alive, in bytes.
const KEEP_ALIVE_BYTES_MAX: usize = 100;

/// Service tiers with standard prices: OpenAI's
/// (<https://platform.openai.com/docs/api-reference/chat/object>), Anthropic's
/// (<https://platform.claude.com/docs/en/api/service-tiers>) and Groq's
/// (<https://console.groq.com/docs/service-tiers>).
const STANDARD_TIERS: [&str; 5] = ["", "auto", "default", "standard", "on_demand"];

#[derive(Debug)]
pub(super) struct Request {
    pub(super) url: String,
    /// In addition to `content-type` and `accept`.
    pub(super) headers: Vec<(&'static str, Header)>,
    pub(super) body: Value,
}

pub(super) enum Header {
    Plain(String),
    Secret(String),
}

impl std::fmt::Debug for Header {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Plain(value) => value,
            Self::Secret(_) => "***",
        })
    }
}

/// The received length of an answer, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) text: usize,
    pub(super) thinking: usize,
    pub(super) other_output: usize,
}

/// The part of an answer that has arrived.
#[derive(Debug, Default)]
pub(super) struct ResponseAccumulator {
    pub(super) text: String,
    /// Number of text bytes beyond [`ANSWER_BYTES_MAX`]; none if these fail the answer. The text of
    /// a forwarded answer is only counted.
    pub(super) beyond: Option<usize>,
    /// The visible thinking; only counted.
    pub(super) thinking: String,
    /// Output other than text, such as tool calls; only counted.
    pub(super) other_output: String,
    pub(super) usage: Usage,
    /// The received length when the provider last counted the answer; `usage` excludes later
    /// output. Zero if the provider counted the prompt, but not the answer. None if it counted
    /// nothing, or only before the answer began, as in Anthropic's first event.
    pub(super) counted: Option<Extent>,
    pub(super) billing: Billing,
    /// True if the provider counted text, images and sound apart.
    pub(super) has_modalities: bool,
    pub(super) model: Option<String>,
    pub(super) finish_reason: Option<String>,
    /// True if the provider marked the end of the answer.
    pub(super) is_complete: bool,
    /// The object that the provider stores.
    pub(super) object: Option<ProviderObject>,
    /// True if missing counts cannot be estimated from texts, as for images and sound.
    pub(super) has_no_estimate: bool,
}

impl ResponseAccumulator {
    /// Returns whether any part of the answer has arrived.
    pub(super) fn has_any(&self) -> bool {
        [&self.text, &self.thinking, &self.other_output].iter().any(|it| !it.is_empty())
    }

    pub(super) fn push(&mut self, piece: &str) -> Result<(), Fault> {
        let remaining = match self.beyond {
            Some(1..) => 0,
            _ => ANSWER_BYTES_MAX - self.text.len(),
        };
        let (piece, rest) = piece.split_at(piece.floor_char_boundary(remaining));
        match &mut self.beyond {
            Some(beyond) => *beyond += rest.len(),
            None if rest.is_empty() => {}
            None => {
                let message =
                    format!("the response is longer than {ANSWER_BYTES_MAX} bytes; set max_tokens");
                return Err(Fault::new(FailureKind::TooLarge, message));
            }
        }
        self.text.push_str(piece);
        Ok(())
    }

    /// Adds to the thinking, up to the maximum length of an answer.
    pub(super) fn note_thinking(&mut self, piece: &Value) {
        extend(&mut self.thinking, piece.as_str().unwrap_or_default());
    }

    /// Adds to the output other than text, with the same limit. A value that is not a text counts
    /// as the JSON that the model wrote.
    pub(super) fn note_other_output(&mut self, piece: &Value) {
        match piece {
            Value::Null => {}
            Value::String(piece) => extend(&mut self.other_output, piece),
            piece => extend(&mut self.other_output, &piece.to_string()),
        }
    }

    /// Notes the provider's counts. If they include the answer, they cover everything received so
    /// far.
    pub(super) fn note_usage(&mut self, usage: Usage, counts_answer: bool) {
        self.usage = replace_nonzero(&self.usage, usage);
        let counted = self.counted.get_or_insert_default();
        if counts_answer {
            *counted = Extent {
                text: self.text.len() + self.beyond.unwrap_or_default(),
                thinking: self.thinking.len(),
                other_output: self.other_output.len(),
            };
        }
    }

    /// Notes the model that answers. An impossible name is ignored, because it would go to logs,
    /// tables and every viewer.
    pub(super) fn note_model(&mut self, model: &Value) {
        let is_name = |name: &&str| {
            (1..=MODEL_BYTES_MAX).contains(&name.len()) && !name.chars().any(char::is_control)
        };
        if let Some(model) = model.as_str().map(str::trim).filter(is_name) {
            self.model = Some(model.to_owned());
        }
    }

    pub(super) fn note_finish(&mut self, reason: &Value) {
        if let Some(reason) = finish_reason(reason) {
            self.finish_reason = Some(one_line(reason, FINISH_CHARS_MAX));
        }
    }

    /// Notes the service tier, because only the price of the standard one is known.
    pub(super) fn note_tier(&mut self, tier: &Value) {
        if let Some(tier) = tier.as_str() {
            let mut standard = STANDARD_TIERS.iter();
            if !standard.any(|known| known.eq_ignore_ascii_case(tier)) {
                let tier = one_line(tier, FINISH_CHARS_MAX);
                self.billing.note_unpriced(format!("{SERVICE_TIER} {tier}"));
            }
        }
    }
}

/// Returns the later counts, with the earlier ones in place of zeros. Parts never exceed their sum.
fn replace_nonzero(earlier: &Usage, later: Usage) -> Usage {
    // Invalid counts make all counts unknown.
    if later.source == UsageSource::None {
        return later;
    }
    let latest = |later: u64, earlier: u64| if later == 0 { earlier } else { later };
    let input = latest(later.input_tokens, earlier.input_tokens);
    let read = latest(later.cached_input_tokens, earlier.cached_input_tokens).min(input);
    let written = latest(later.cache_write_tokens, earlier.cache_write_tokens).min(input - read);
    let output = latest(later.output_tokens, earlier.output_tokens);
    Usage {
        input_tokens: input,
        cached_input_tokens: read,
        cache_write_tokens: written,
        cache_write_1h_tokens: latest(later.cache_write_1h_tokens, earlier.cache_write_1h_tokens)
            .min(written),
        output_tokens: output,
        reasoning_tokens: latest(later.reasoning_tokens, earlier.reasoning_tokens).min(output),
        source: later.source,
    }
}

fn extend(text: &mut String, piece: &str) {
    let remaining = ANSWER_BYTES_MAX.saturating_sub(text.len());
    text.push_str(&piece[..piece.floor_char_boundary(remaining)]);
}

/// The decision to continue a stream or stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    More,
    End,
}

/// Reads a provider's answer into a [`ResponseAccumulator`]; one per call.
pub(super) trait Reader {
    fn framing(&self) -> Framing {
        Framing::Sse
    }
    fn event(&mut self, event: &Event, partial: &mut ResponseAccumulator) -> Result<Flow, Fault>;
    /// Parses an answer in one piece.
    fn parse(&self, bytes: &[u8]) -> serde_json::Result<Value> {
        json::read(bytes)
    }
    /// Reads an answer in one piece.
    fn document(&mut self, body: &Value, partial: &mut ResponseAccumulator) -> Result<(), Fault>;
    /// Prepares for an answer that is neither JSON nor a stream of events. Returns false if there
    /// is none in this protocol.
    fn begin_bytes(&mut self, _partial: &mut ResponseAccumulator) -> bool {
        false
    }
}

/// The data of the last event of OpenAI's streams.
pub(super) const DONE: &str = "[DONE]";

/// Returns the reason for the end of an answer. An empty one is no end: some servers write it into
/// every chunk. So is the text `null`, which DashScope's own protocol uses, or Python's `None`.
pub(super) fn finish_reason(reason: &Value) -> Option<&str> {
    let is_empty =
        |reason: &str| ["", "null", "none"].iter().any(|empty| reason.eq_ignore_ascii_case(empty));
    reason.as_str().map(str::trim).filter(|reason| !is_empty(reason))
}

/// Parses the JSON of an event; null if the event only keeps the connection open.
pub(super) fn event_json(event: &Event) -> Result<Value, Fault> {
    // Some proxies end streams of every protocol like OpenAI's.
    if ["", DONE].contains(&event.data.trim()) || is_keep_alive_text(event) {
        return Ok(Value::Null);
    }
    json::read(event.data.as_bytes())
        .map_err(|error| Fault::bad_answer(format!("a stream event is not JSON: {error}")))
}

/// Returns whether an event has no content and keeps the connection open.
pub(super) fn is_keep_alive(event: &Event) -> bool {
    let data = event.data.trim();
    let is_empty = ["", "{}", "[]", "null", "\"\""].contains(&data);
    (is_empty && event.name != "error") || is_keep_alive_text(event)
}

/// Returns whether an event keeps the connection open with data that is not JSON, such as `ping` or
/// a date. The standard has comments for this; some proxies copy a comment into the data
/// (<https://openrouter.ai/docs/api/reference/streaming>: `: OPENROUTER PROCESSING`). Broken content
/// has the marks of JSON, and an error in plain text is not a keep-alive.
fn is_keep_alive_text(event: &Event) -> bool {
    let data = event.data.trim();
    let is_broken_json =
        data.contains(['{', '}', '"']) || (data.starts_with('[') && !data.ends_with(']'));
    (1..=KEEP_ALIVE_BYTES_MAX).contains(&data.len())
        && data != DONE
        && !is_broken_json
        && event.name != "error"
        && !data.to_ascii_lowercase().contains("error")
        && serde_json::from_str::<Value>(data).is_err()
}

/// Fails if an answer with status 200 reports an error: within a stream, a provider has no other
/// way.
pub(super) fn check_reported(document: &Value) -> Result<(), Fault> {
    if let Some(error) = document.get("error").filter(|error| is_error(error)) {
        let message = provider_message(document).unwrap_or_else(|| error.to_string());
        return Err(reported(&message));
    }
    // MiniMax: <https://platform.minimax.io/docs/api-reference/errorcode.md>; 0 is a success.
    let status = &document["base_resp"];
    let code = &status["status_code"];
    if matches!(code, Value::Number(_)) && *code != 0 {
        let message = status["status_msg"].as_str().unwrap_or("unknown error");
        return Err(reported(&format!("{message} (status_code {code})")));
    }
    Ok(())
}

/// Fails if a part of an answer reports that the model stopped because of an error: by an `error`
/// of its own, or by one of these reasons. OpenRouter reports errors after the answer's beginning
/// this way, with status 200 (<https://openrouter.ai/docs/api/reference/errors-and-debugging>).
pub(super) fn check_part(part: &Value, reasons: &[&str]) -> Result<(), Fault> {
    if let Some(error) = part.get("error").filter(|error| is_error(error)) {
        let message = provider_message(part).unwrap_or_else(|| error.to_string());
        return Err(reported(&message));
    }
    let reasons = reasons.iter().filter_map(|name| finish_reason(&part[*name]));
    let error = reasons.into_iter().find(|reason| reason.to_ascii_lowercase().contains("error"));
    error.map_or(Ok(()), |reason| Err(reported(&format!("the response ended with `{reason}`"))))
}

fn reported(message: &str) -> Fault {
    Fault::new(FailureKind::Status, format!("reported an error: {message}"))
}

/// Some servers write a field `error` without content into every answer.
pub(super) fn is_error(error: &Value) -> bool {
    match error {
        Value::Null | Value::Bool(false) => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(members) => !members.is_empty(),
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::Bool(true) => true,
    }
}

/// Returns the message of a provider's error. OpenAI writes `{"error":{"message","type","code"}}`,
/// Anthropic `{"type":"error","error":{"type","message"}}`, Google
/// `{"error":{"code","message","status"}}`, Ollama `{"error":"…"}`; compatible servers also write
/// `{"message":"…"}`, `{"detail":"…"}` or an array of one such object.
pub fn provider_message(document: &Value) -> Option<String> {
    let document = document.get(0).unwrap_or(document);
    let error = &document["error"];
    let message = [&error["message"], error, &document["message"], &document["detail"]]
        .into_iter()
        .find_map(Value::as_str)?;
    let kind = error["type"].as_str().or(error["status"].as_str());
    match kind.filter(|kind| !kind.is_empty()) {
        Some(kind) => Some(format!("{message} ({kind})")),
        None => Some(message.to_owned()),
    }
}

/// A token count is negative, above `TOKENS_MAX` or not an integer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BadCount;

/// Returns the named count; none if it is missing or null. An impossible one is logged.
pub(super) fn count(usage: &Value, name: &str) -> Result<Option<u64>, BadCount> {
    let value = &usage[name];
    if value.is_null() {
        return Ok(None);
    }
    match whole_number(value) {
        Some(tokens) => Ok(Some(tokens)),
        None => {
            // The value is not logged, because it may have any length.
            log::warn!("ignored a provider's usage: `{name}` is not a valid token count");
            Err(BadCount)
        }
    }
}

/// Returns a possible token count. Some servers write it as `1200.0`.
fn whole_number(value: &Value) -> Option<u64> {
    #[expect(clippy::cast_precision_loss, reason = "the limit is exact")]
    let is_possible = |number: &f64| (0.0..=TOKENS_MAX as f64).contains(number);
    let number = value.as_f64().filter(is_possible).filter(|number| number.fract() == 0.0)?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked above")]
    Some(number as u64)
}

/// Returns whether the named count is valid and not 0.
pub(super) fn is_counted(usage: &Value, name: &str) -> bool {
    whole_number(&usage[name]) > Some(0)
}

/// The places and names under which servers report one count.
pub(super) type Spellings<'a> = [(&'a Value, &'a str)];

/// Returns the first of these that is counted, else the first that exists: servers repeat a count
/// under several names, or report 0 under those that they do not use.
pub(super) fn spelled<'a>(spellings: &Spellings<'a>) -> (&'a Value, &'a str) {
    let counted = spellings.iter().find(|(usage, name)| is_counted(usage, name));
    let existing = || spellings.iter().find(|(usage, name)| !usage[*name].is_null());
    counted.or_else(existing).copied().unwrap_or((&Value::Null, ""))
}

/// Returns whether a usage counts anything. Some servers end a stream with a usage of only zeros,
/// or one that is not an object, after they have counted.
pub(super) fn counts_anything(usage: &Value) -> bool {
    let counts = usage.as_object();
    counts.is_some_and(|counts| counts.values().any(|value| whole_number(value) > Some(0)))
}

/// The latest value of one count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Count {
    #[default]
    Missing,
    Known(u64),
    Impossible,
}

/// The counts of an answer, each from the last event that had it.
#[derive(Debug)]
pub(super) struct Counts<const N: usize>([Count; N]);

impl<const N: usize> Default for Counts<N> {
    fn default() -> Self {
        Self([Count::Missing; N])
    }
}

impl<const N: usize> Counts<N> {
    /// Takes the existing counts of these names. A 0 replaces no other count, and an impossible one
    /// replaces no valid one.
    pub(super) fn overwrite(&mut self, counts: [(&Value, &str); N]) {
        for (kept, (usage, name)) in self.0.iter_mut().zip(counts) {
            match count(usage, name) {
                Ok(Some(0)) if *kept != Count::Missing => {}
                Ok(Some(tokens)) => *kept = Count::Known(tokens),
                Err(BadCount) if *kept == Count::Missing => *kept = Count::Impossible,
                Ok(None) | Err(BadCount) => {}
            }
        }
    }

    /// Returns whether no event had any of these counts.
    pub(super) fn are_missing(&self) -> bool {
        self.0 == [Count::Missing; N]
    }

    /// Returns the counts, with 0 for missing ones; none if all are missing, or one is impossible.
    pub(super) fn tokens(&self) -> Option<[u64; N]> {
        let is_usable = !self.are_missing() && !self.0.contains(&Count::Impossible);
        is_usable.then(|| {
            self.0.map(|count| match count {
                Count::Known(tokens) => tokens,
                Count::Missing | Count::Impossible => 0,
            })
        })
    }
}

/// Returns an object without its null members, which are unset parts of a request.
pub(super) fn without_nulls(mut object: Value) -> Value {
    if let Some(members) = object.as_object_mut() {
        members.retain(|_, value| !value.is_null());
    }
    object
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn out_of_range_counts_are_invalid() {
        let usage = json!({"ok": 7, "null": null, "negative": -1, "huge": 1_000_000_001u64,
            "overflow": 1e300, "fraction": 1.5, "text": "7", "object": {}, "float": 1200.0,
            "most": 1_000_000_000});
        assert_eq!(count(&usage, "ok"), Ok(Some(7)));
        assert_eq!(count(&usage, "float"), Ok(Some(1_200)));
        assert_eq!(count(&usage, "most"), Ok(Some(1_000_000_000)));
        assert_eq!(count(&usage, "null"), Ok(None));
        assert_eq!(count(&usage, "missing"), Ok(None));
        for name in ["negative", "huge", "overflow", "fraction", "text", "object"] {
            assert_eq!(count(&usage, name), Err(BadCount), "{name}");
        }
    }

    #[test]
    fn a_zero_replaces_no_earlier_count() {
        let first = json!({"a": 5, "b": 0, "c": -1});
        let mut counts = Counts::default();
        for usage in [&first, &json!({"a": 0, "b": null, "c": 0}), &json!({"a": null, "b": 0})] {
            counts.overwrite([(usage, "a"), (usage, "b")]);
            assert_eq!(counts.tokens(), Some([5, 0]));
        }
        let mut impossible = Counts::default();
        for usage in [&first, &json!({"c": 0})] {
            impossible.overwrite([(usage, "c")]);
            assert_eq!(impossible.tokens(), None);
        }
    }

    #[test]
    fn parts_kept_from_earlier_counts_fit_their_sum() {
        let mut partial = ResponseAccumulator::default();
        let usage = |counts: [u64; 6]| Usage {
            input_tokens: counts[0],
            cached_input_tokens: counts[1],
            cache_write_tokens: counts[2],
            cache_write_1h_tokens: counts[3],
            output_tokens: counts[4],
            reasoning_tokens: counts[5],
            source: UsageSource::Provider,
        };
        for (later, expected) in [
            ([100, 60, 30, 20, 50, 40], [100, 60, 30, 20, 50, 40]),
            ([0; 6], [100, 60, 30, 20, 50, 40]),
            ([80, 0, 0, 0, 30, 0], [80, 60, 20, 20, 30, 30]),
        ] {
            partial.note_usage(usage(later), later[4] > 0);
            assert_eq!(partial.usage, usage(expected), "{later:?}");
        }
        partial.note_usage(Usage::default(), false);
        assert_eq!(partial.usage, Usage::default());
    }

    #[test]
    fn the_first_counted_name_applies() {
        let usage = json!({"a": 0, "b": 7, "c": 9, "bad": -1});
        let found = |names: &[&'static str]| {
            let names: Vec<_> = names.iter().map(|name| (&usage, *name)).collect();
            let (usage, name) = spelled(&names);
            count(usage, name)
        };
        assert_eq!(found(&["a", "none", "b", "c"]), Ok(Some(7)));
        assert_eq!(found(&["bad", "b"]), Ok(Some(7)));
        assert_eq!(found(&["none", "bad", "a"]), Err(BadCount));
        assert_eq!(found(&["none", "a"]), Ok(Some(0)));
        assert_eq!(found(&["none"]), Ok(None));
    }

    #[test]
    fn the_message_is_found_in_every_error_format() {
        for (document, message) in [
            (json!({"error": {"message": "m", "type": "t"}}), "m (t)"),
            (json!({"error": {"message": "m", "type": null, "code": 7}}), "m"),
            (json!({"type": "error", "error": {"type": "t", "message": "m"}}), "m (t)"),
            (
                json!({"error": {"code": 429, "message": "m", "status": "RESOURCE_EXHAUSTED"}}),
                "m (RESOURCE_EXHAUSTED)",
            ),
            (json!({"error": "m"}), "m"),
            (json!({"message": "m"}), "m"),
            (json!({"detail": "m"}), "m"),
            (json!([{"error": {"message": "m"}}]), "m"),
        ] {
            assert_eq!(provider_message(&document).as_deref(), Some(message), "{document}");
        }
        for document in [json!({}), json!([]), json!(1), json!("x"), json!({"error": {"x": 1}})] {
            assert_eq!(provider_message(&document), None, "{document}");
        }
    }

    #[test]
    fn short_text_without_marks_of_json_is_a_keep_alive() {
        let event = |name: &str, data: &str| Event { name: name.into(), data: data.into() };
        for data in [
            ": OPENROUTER PROCESSING",
            ":",
            "ping",
            "PING",
            "[PING]",
            "keep-alive",
            "keep_alive",
            "still processing ...",
            "heartbeat: 7",
            "-",
            "OK",
            "loading",
            "2026-11-30T10:00:00Z",
        ] {
            assert!(is_keep_alive_text(&event("", data)), "{data}");
            assert_eq!(event_json(&event("", data)), Ok(Value::Null), "{data}");
        }
        assert!(is_keep_alive_text(&event("keepalive", "2026-11-30T10:00:00Z")));
        for data in ["", " ", "{}", "[]", "null", "\"\""] {
            assert!(is_keep_alive(&event("", data)), "{data}");
            assert!(event_json(&event("", data)).is_ok(), "{data}");
        }
        for data in [
            "{",
            "{\"choices\":[{\"delta\":{\"content\":\"ping",
            "{ping}",
            ": {\"choices\":[]}",
            "\"ping",
            "[1,",
            "[{]",
            "ping error",
            "ok\"}}]}",
        ] {
            assert!(!is_keep_alive(&event("", data)), "{data}");
            assert!(event_json(&event("", data)).is_err(), "{data}");
        }
        assert!(!is_keep_alive(&event("", DONE)));
        assert_eq!(event_json(&event("", DONE)), Ok(Value::Null));
        for data in ["ping", "", "{}"] {
            assert!(!is_keep_alive(&event("error", data)), "{data}");
        }
        assert!(!is_keep_alive_text(&event("", &"ping ".repeat(100))));
    }

    #[test]
    fn errors_of_an_answer_with_status_200_are_reported() {
        let message = |document: Value| check_reported(&document).unwrap_err().message;
        assert_eq!(message(json!({"error": {"message": "m"}})), "reported an error: m");
        let balance = json!({"status_code": 1008, "status_msg": "insufficient balance"});
        assert_eq!(
            message(json!({"choices": null, "base_resp": balance})),
            "reported an error: insufficient balance (status_code 1008)"
        );
        for error in [json!(null), json!(""), json!({}), json!([]), json!(false), json!(0)] {
            assert_eq!(check_reported(&json!({"error": error})), Ok(()), "{error}");
        }
        assert_eq!(check_reported(&json!({"base_resp": {"status_code": 0}})), Ok(()));
    }

    #[test]
    fn model_names_and_finish_reasons_are_cleaned() {
        let mut partial = ResponseAccumulator::default();
        let longest = "m".repeat(MODEL_BYTES_MAX);
        for (name, kept) in [
            ("", None),
            ("a\u{0}b", None),
            ("a\nb", None),
            (&*format!("{longest}m"), None),
            (&*longest, Some(&*longest)),
            (" m-1 ", Some("m-1")),
            ("a\u{7f}", Some("m-1")),
        ] {
            partial.note_model(&json!(name));
            assert_eq!(partial.model.as_deref(), kept, "{name:?}");
        }
        partial.note_finish(&json!(format!("st\u{0}op\n{}", "x".repeat(3 << 20))));
        let reason = partial.finish_reason.unwrap();
        assert!(reason.starts_with("st op xxx"), "{reason}");
        assert!(reason.chars().count() <= FINISH_CHARS_MAX + 1, "{reason}");
    }

    #[test]
    fn only_tiers_with_standard_prices_are_standard() {
        for (tier, is_billed_otherwise) in [
            (json!(null), false),
            (json!("default"), false),
            (json!("STANDARD"), false),
            (json!("auto"), false),
            (json!("on_demand"), false),
            (json!(7), false),
            (json!("priority"), true),
            (json!("flex"), true),
            (json!("batch"), true),
        ] {
            let mut partial = ResponseAccumulator::default();
            partial.note_tier(&tier);
            assert_eq!(partial.billing.note().is_some(), is_billed_otherwise, "{tier}");
        }
    }

    #[test]
    fn response_size_is_limited() {
        let mut partial = ResponseAccumulator::default();
        let piece = "x".repeat(ANSWER_BYTES_MAX);
        assert_eq!(partial.push(&piece), Ok(()));
        assert_eq!(partial.push("x").unwrap_err().kind, FailureKind::TooLarge);
        for _ in 0..2 {
            partial.note_other_output(&json!(piece));
            partial.note_thinking(&json!(piece));
        }
        let lengths = (partial.other_output.len(), partial.thinking.len());
        assert_eq!(lengths, (ANSWER_BYTES_MAX, ANSWER_BYTES_MAX));
    }

    #[test]
    fn excess_text_of_a_forwarded_response_is_only_counted() {
        let mut partial = ResponseAccumulator { beyond: Some(0), ..ResponseAccumulator::default() };
        // The last character has no room for all of its bytes.
        for piece in ["x".repeat(ANSWER_BYTES_MAX - 1).as_str(), "\u{20ac}y", "z"] {
            assert_eq!(partial.push(piece), Ok(()));
        }
        assert_eq!(partial.text.len(), ANSWER_BYTES_MAX - 1);
        assert_eq!(partial.beyond, Some(5));
        partial.note_usage(Usage::default(), true);
        assert_eq!(partial.counted.unwrap().text, ANSWER_BYTES_MAX + 4);
    }
}
