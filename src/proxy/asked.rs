//! What a client asks, read from the body of its request as far as flowledger has to know it, and
//! the body as it goes on: byte for byte the client's, but for the model and, where usage would
//! stay unknown, one option. Pure.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use super::protocol::{Protocol, Refusal};
use crate::event::hex;
use crate::gateway::{ANSWER_TOKENS_ASSUMED, CacheWrites};

/// The longest name of a model, bytes.
const MODEL_BYTES_MAX: usize = 256;
/// A text in base64 of at least this many bytes is taken for an image or a sound …
const MEDIA_BYTES_MIN: usize = 4 << 10;
/// … which is counted as a text of so many: some 2,000 tokens, as the largest images have.
const MEDIA_COUNTS_AS_BYTES: u64 = 4 << 10;

/// A request, read.
#[derive(Debug)]
pub struct Asked<'a> {
    protocol: Protocol,
    body: &'a [u8],
    /// The model that is asked, as the client calls it.
    pub model: String,
    model_at: Range<usize>,
    /// Whether the answer is to come piece by piece.
    pub is_streamed: bool,
    /// Whether the client wants to see the usage of a streamed chat completion.
    pub wants_usage: bool,
    options_at: Option<Range<usize>>,
    /// Where the last field ends.
    fields_end: usize,
    /// The limit of the answer, of all its choices together, in tokens.
    pub max_tokens: Option<u32>,
    /// How long a text it is, images and the like left out, bytes.
    pub prompt_bytes: u64,
    /// What of it may be written to the provider's cache.
    pub cache_writes: CacheWrites,
    system: Option<&'a RawValue>,
    messages: Option<&'a RawValue>,
}

/// The fields of an object in order, their values as they were written.
struct Fields<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FieldsVisitor;
        impl<'de> Visitor<'de> for FieldsVisitor {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    fields.push((Cow::Owned(name), map.next_value()?));
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(FieldsVisitor)
    }
}

impl<'a> Asked<'a> {
    /// Reads a body.
    ///
    /// # Errors
    /// Where it is no JSON object with a model, or says twice what has to be understood.
    pub fn read(protocol: Protocol, body: &'a [u8]) -> Result<Self, Refusal> {
        let Fields(fields) = serde_json::from_slice(body).map_err(|error| {
            let message = format!("the body cannot be read: {error}");
            Refusal::bad_request("invalid_json", message)
        })?;
        let model_value = once(&fields, "model")?
            .ok_or_else(|| Refusal::bad_request("missing_model", "`model` is missing"))?;
        let model: String = serde_json::from_str(model_value.get())
            .ok()
            .filter(|model: &String| !model.is_empty() && model.len() <= MODEL_BYTES_MAX)
            .ok_or_else(|| {
                let message = format!("`model` must be a text of 1 to {MODEL_BYTES_MAX} bytes");
                Refusal::bad_request("bad_model", message)
            })?;
        let is_streamed = match once(&fields, "stream")?.map(RawValue::get) {
            None | Some("false" | "null") => false,
            Some("true") => true,
            Some(_) => {
                let message = "`stream` must be true or false";
                return Err(Refusal::bad_request("bad_stream", message));
            }
        };
        let options = once(&fields, "stream_options")?;
        let wants_usage = options
            .and_then(|options| serde_json::from_str::<Value>(options.get()).ok())
            .is_some_and(|options| options["include_usage"] == true);
        let limit = |name| {
            let value = once(&fields, name).ok().flatten()?;
            serde_json::from_str::<u32>(value.get()).ok()
        };
        let max_tokens = limit("max_completion_tokens").or_else(|| limit("max_tokens"));
        let max_tokens = match limit("n") {
            None | Some(0 | 1) => max_tokens,
            Some(choices) => {
                let each = max_tokens.unwrap_or(ANSWER_TOKENS_ASSUMED);
                Some(each.saturating_mul(choices))
            }
        };
        let last = |name: &str| {
            let found = fields.iter().rev().find(|(known, _)| known == name);
            found.map(|(_, value)| *value)
        };
        Ok(Self {
            protocol,
            body,
            model,
            model_at: place(body, model_value),
            is_streamed,
            wants_usage,
            options_at: options.map(|options| place(body, options)),
            fields_end: fields.last().map_or(0, |(_, value)| place(body, value).end),
            max_tokens,
            prompt_bytes: text_bytes(body),
            cache_writes: cache_writes(body),
            system: last("system"),
            messages: last("messages"),
        })
    }

    /// The body with another model, and, for `asks_usage`, the option that has a streamed chat
    /// completion end with its usage.
    pub fn for_model(&self, model: &str, asks_usage: bool) -> Vec<u8> {
        let model = Value::from(model).to_string();
        let mut edits = vec![(self.model_at.clone(), model)];
        if asks_usage {
            edits.push(self.with_usage());
        }
        edits.sort_by_key(|(place, _)| place.start);
        let mut body = Vec::with_capacity(self.body.len() + 64);
        let mut done = 0;
        for (place, text) in edits {
            body.extend_from_slice(&self.body[done..place.start]);
            body.extend_from_slice(text.as_bytes());
            done = place.end;
        }
        body.extend_from_slice(&self.body[done..]);
        body
    }

    fn with_usage(&self) -> (Range<usize>, String) {
        let given = self
            .options_at
            .clone()
            .and_then(|place| serde_json::from_slice::<Value>(&self.body[place]).ok());
        match (self.options_at.clone(), given) {
            (Some(place), Some(Value::Object(mut options))) => {
                options.insert("include_usage".into(), true.into());
                (place, Value::Object(options).to_string())
            }
            (Some(place), _) => (place, r#"{"include_usage":true}"#.into()),
            (None, _) => {
                let end = self.fields_end;
                let option = r#","stream_options":{"include_usage":true}"#;
                (end..end, option.into())
            }
        }
    }

    /// SHA-256 of what is asked: of the system text, a zero byte and the messages, as they were
    /// written.
    pub fn prompt_hash(&self) -> String {
        let mut hash = Sha256::new();
        if let (Some(system), Protocol::Anthropic) = (self.system, self.protocol) {
            hash.update(system.get());
            hash.update([0]);
        }
        hash.update(self.messages.map_or("", RawValue::get));
        hex(&hash.finalize())
    }

    /// All texts of the request, one after the other.
    pub fn all_texts(&self) -> String {
        let read = |raw: Option<&RawValue>| {
            raw.and_then(|raw| serde_json::from_str(raw.get()).ok())
                .unwrap_or(Value::Null)
        };
        let messages = read(self.messages);
        let messages = messages.as_array().map_or(&[][..], Vec::as_slice);
        std::iter::once(text_of(&read(self.system)))
            .chain(messages.iter().map(|message| text_of(&message["content"])))
            .collect::<Vec<_>>()
            .join("\n")
    }

    /// The system text and the last message of a user, for `echo`.
    pub fn texts(&self) -> (Option<String>, String) {
        let read = |raw: Option<&RawValue>| {
            raw.and_then(|raw| serde_json::from_str(raw.get()).ok())
                .unwrap_or(Value::Null)
        };
        let messages = read(self.messages);
        let messages = messages.as_array().map_or(&[][..], Vec::as_slice);
        let of_role = |role: &'static str| {
            let of_role = move |message: &&Value| message["role"] == role;
            messages.iter().filter(of_role)
        };
        let mut system: Vec<String> = of_role("system")
            .map(|message| text_of(&message["content"]))
            .collect();
        if self.system.is_some() {
            system.push(text_of(&read(self.system)));
        }
        let system = Some(system.join("\n")).filter(|text| !text.is_empty());
        let last = of_role("user").next_back();
        (
            system,
            last.map_or_else(String::new, |message| text_of(&message["content"])),
        )
    }
}

/// The text of a message: it is one, or has parts that are.
fn text_of(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => {
            let texts = parts.iter().filter_map(|part| part["text"].as_str());
            texts.collect::<Vec<_>>().join("\n")
        }
        _ => String::new(),
    }
}

/// The value of a field that must not be there twice: of two, nobody knows which one counts.
fn once<'a>(
    fields: &[(Cow<'a, str>, &'a RawValue)],
    name: &str,
) -> Result<Option<&'a RawValue>, Refusal> {
    let mut found = fields.iter().filter(|(known, _)| known == name);
    match (found.next(), found.next()) {
        (_, Some(_)) => {
            let message = format!("`{name}` is there twice");
            Err(Refusal::bad_request("ambiguous", message))
        }
        (first, None) => Ok(first.map(|(_, value)| *value)),
    }
}

/// Where a value that was read from `body` stands in it.
fn place(body: &[u8], value: &RawValue) -> Range<usize> {
    let start = value.get().as_ptr().addr() - body.as_ptr().addr();
    start..start + value.get().len()
}

/// How long a body is, where texts in base64 that are too long to be anything but media count as
/// the largest image does.
fn text_bytes(body: &[u8]) -> u64 {
    let is_base64 = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/=-_".contains(byte);
    let mut bytes = body.len() as u64;
    let mut run = 0_usize;
    for byte in body.iter().chain([&b' ']) {
        if is_base64(byte) {
            run += 1;
            continue;
        }
        if run >= MEDIA_BYTES_MIN {
            bytes = bytes - run as u64 + MEDIA_COUNTS_AS_BYTES;
        }
        run = 0;
    }
    bytes
}

/// What the provider may be asked to write to its cache: nothing, unless the field that asks for it
/// may be named somewhere. JSON can also write its letters as `\u0063`, which no one does otherwise.
fn cache_writes(body: &[u8]) -> CacheWrites {
    let Ok(text) = std::str::from_utf8(body) else {
        return CacheWrites::Long;
    };
    let is_letter = |(at, escape): (usize, &str)| {
        matches!(text.as_bytes().get(at + escape.len()), Some(b'5'..=b'7'))
    };
    if text.contains("cache_control") || text.match_indices("\\u00").any(is_letter) {
        CacheWrites::Long
    } else {
        CacheWrites::None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(body: &str) -> Result<Asked<'_>, Refusal> {
        Asked::read(Protocol::OpenAi, body.as_bytes())
    }

    #[test]
    fn a_request_that_may_mark_what_is_to_be_cached_is_known_as_such() {
        for (content, expected) in [
            (r#""Hi""#, CacheWrites::None),
            (r#""\u00e9 \u001b""#, CacheWrites::None),
            (
                r#"[{"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}]"#,
                CacheWrites::Long,
            ),
            (
                r#"[{"type": "text", "text": "Hi", "cache\u005fcontrol": {"type": "ephemeral"}}]"#,
                CacheWrites::Long,
            ),
            (
                r#"[{"type": "text", "text": "Hi", "\u0063ache_control": {"type": "ephemeral"}}]"#,
                CacheWrites::Long,
            ),
        ] {
            let body = format!(
                r#"{{"model": "m", "messages": [{{"role": "user", "content": {content}}}]}}"#
            );
            assert_eq!(read(&body).unwrap().cache_writes, expected, "{body}");
        }
    }

    fn rewritten(body: &str, asks_usage: bool) -> String {
        let asked = read(body).unwrap();
        String::from_utf8(asked.for_model("new", asks_usage)).unwrap()
    }

    #[test]
    fn nothing_but_the_model_is_replaced() {
        let body = "{ \"a\" : 1.0e+2,\"model\":\t\"p\\/old\" , \"n\":123456789012345678901234567890.10,\n \"x\": {\"model\":\"p/old\"}, \"a\":2}";
        assert_eq!(
            rewritten(body, false),
            body.replacen("\"p\\/old\"", "\"new\"", 1)
        );
        assert_eq!(read(body).unwrap().model, "p/old");
    }

    #[test]
    fn usage_is_asked_for_beside_what_the_client_asks_for() {
        assert_eq!(
            rewritten(r#"{"model":"m","stream":true }"#, true),
            r#"{"model":"new","stream":true,"stream_options":{"include_usage":true} }"#
        );
        assert_eq!(
            rewritten(
                r#"{"stream_options":{"include_obfuscation":false,"include_usage":false},"model":"m"}"#,
                true
            ),
            r#"{"stream_options":{"include_obfuscation":false,"include_usage":true},"model":"new"}"#
        );
        assert_eq!(
            rewritten(r#"{"model":"m","stream_options":null}"#, true),
            r#"{"model":"new","stream_options":{"include_usage":true}}"#
        );
    }

    #[test]
    fn what_cannot_be_understood_in_one_way_only_is_refused() {
        for (body, code) in [
            ("", "invalid_json"),
            ("[]", "invalid_json"),
            ("{\"model\":\"m\"} x", "invalid_json"),
            ("{}", "missing_model"),
            (r#"{"model":7}"#, "bad_model"),
            (r#"{"model":""}"#, "bad_model"),
            (r#"{"model":"a","model":"b"}"#, "ambiguous"),
            (r#"{"model":"a","stream":true,"stream":false}"#, "ambiguous"),
            (r#"{"model":"a","mode\u006c":"b"}"#, "ambiguous"),
            (r#"{"model":"a","stream":"yes"}"#, "bad_stream"),
        ] {
            assert_eq!(read(body).unwrap_err().code, code, "{body}");
        }
    }

    #[test]
    fn the_limit_is_that_of_all_choices() {
        for (fields, expected) in [
            ("", None),
            (r#","max_tokens":10"#, Some(10)),
            (r#","max_tokens":10,"max_completion_tokens":20"#, Some(20)),
            (r#","max_tokens":10,"n":3"#, Some(30)),
            (r#","n":2"#, Some(2 * ANSWER_TOKENS_ASSUMED)),
            (r#","max_tokens":4294967295,"n":3"#, Some(u32::MAX)),
            (r#","max_tokens":-1,"n":"x""#, None),
        ] {
            let body = format!(r#"{{"model":"m"{fields}}}"#);
            assert_eq!(read(&body).unwrap().max_tokens, expected, "{body}");
        }
    }

    #[test]
    fn media_do_not_count_as_text() {
        let image = "A".repeat(1 << 20);
        let body = format!(
            r#"{{"model":"m","messages":[{{"role":"user","content":[{{"image_url":{{"url":"data:image/png;base64,{image}"}}}}]}}]}}"#
        );
        assert!(read(&body).unwrap().prompt_bytes < 5_000);
        let text = "many words ".repeat(1_000);
        let body = format!(r#"{{"model":"m","messages":[{{"role":"user","content":"{text}"}}]}}"#);
        assert!(read(&body).unwrap().prompt_bytes > 11_000);
    }

    #[test]
    fn the_last_text_of_the_user_is_what_echo_answers() {
        let body = r#"{"model":"m","messages":[{"role":"system","content":"s"},{"role":"user","content":"a"},
            {"role":"user","content":[{"type":"text","text":"b"},{"type":"image_url"},{"type":"text","text":"c"}]}]}"#;
        assert_eq!(
            read(body).unwrap().texts(),
            (Some("s".into()), "b\nc".into())
        );
    }

    proptest! {
        #[test]
        fn no_body_makes_it_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Asked::read(Protocol::Anthropic, &body);
        }

        #[test]
        fn other_fields_keep_their_bytes(before in "[ \\n]{0,3}", value in "-?[1-9][0-9]{0,30}(\\.[0-9]{1,20})?", after in "[ \\t]{0,3}") {
            let body = format!("{before}{{\"x\":{value}{after},\"model\":\"m\"}}");
            let expected = format!("{before}{{\"x\":{value}{after},\"model\":\"new\"}}");
            prop_assert_eq!(rewritten(&body, false), expected);
        }
    }
}
