//! The text of a client's prompt, for a bound that is tighter than its bytes: the hashes of its
//! prefixes, and the count of its tokens. Pure.
//!
//! A prefix has the same tokens in the next request of a conversation even if its bytes differ:
//! clients move the marks of the prompt cache, and write a text as a string or as a list of one part.

use std::hash::{BuildHasher, Hash, Hasher, RandomState};

use serde_json::Value;
use serde_json::value::RawValue;

use super::chat_request::ChatRequest;
use super::json::{each_element, each_field};
use super::prompt::Prompt;
use crate::calls::{PromptText, TextSize};
use crate::providers::{ApiFormat, count_tokens, has_known_tokenizer};

/// Fields that add no tokens to the prompt.
const WITHOUT_TOKENS: [&str; 14] = [
    "model",
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "n",
    "stream",
    "stream_options",
    "metadata",
    "user",
    "temperature",
    "top_p",
    "top_k",
    "seed",
    "store",
];
/// The mark of a block that Claude Code changes with each request
/// (<https://github.com/anthropics/claude-code/issues/68900>). It always has about the same tokens.
const BILLING_BLOCK: &str = "\"x-anthropic-billing-header";
/// Longer blocks are no such mark. Claude Code's has about 90 bytes.
const BILLING_BLOCK_BYTES_MAX: usize = 256;
/// Contents nested deeper are compared byte for byte, to limit the stack.
const NESTING_MAX: usize = 4;
const CACHE_MARK: &str = "cache_control";
/// More than the tokens that chat models add for each field and element in their prompt: 3 for a
/// message, and up to 7 for a function and 3 for each property of its parameters, which has several
/// fields (<https://cookbook.openai.com/examples/how_to_count_tokens_with_tiktoken>).
const FRAME_TOKENS: u64 = 3;
/// Longer texts are not counted, to limit the time: about 0.1 s.
const COUNTED_BYTES_MAX: u64 = 1 << 20;

/// The prompt of a client as a provider gets it.
#[derive(Debug)]
pub(super) struct SentPrompt<'a> {
    pub(super) request: &'a ChatRequest<'a>,
    /// The format at the provider, which may be another one than the client's.
    pub(super) format: ApiFormat,
}

impl PromptText for SentPrompt<'_> {
    fn size(&self) -> TextSize {
        self.request.text_size_in(self.format, &self.request.prompt, true)
    }

    fn prefixes(&self, hasher: &RandomState) -> Vec<u64> {
        let request = self.request;
        match request.messages() {
            Some(messages) if !request.prompt.is_changing() => {
                prefixes(request.body(), messages, hasher)
            }
            _ => Vec::new(),
        }
    }

    fn size_after(&self, prefix: usize) -> TextSize {
        let mut rest = Prompt::default();
        let mut at = 0;
        let _ = each_element(self.request.messages().map_or("", RawValue::get), |message| {
            if at > prefix {
                rest = rest.and(Prompt::read(message.get(), [message]));
            }
            at += 1;
        });
        self.request.text_size_in(self.format, &rest, false)
    }

    fn can_count(&self, model: &str) -> bool {
        let format = self.request.format();
        let is_openai = matches!(format, ApiFormat::ChatCompletions | ApiFormat::Responses);
        is_openai && has_known_tokenizer(model)
    }

    fn count(&self, model: &str) -> Option<u64> {
        let TextSize { bytes, media_tokens, tool_tokens } = self.size();
        if media_tokens > 0 || bytes > COUNTED_BYTES_MAX || !self.can_count(model) {
            return None;
        }
        let body: Value = serde_json::from_str(self.request.body()).ok()?;
        Some(tokens_of(&body) + tool_tokens)
    }
}

/// Hashes the prefixes of a prompt that end with one of its messages, each with all other fields of
/// the body. None if `messages` is a text.
fn prefixes(body: &str, messages: &RawValue, hasher: &RandomState) -> Vec<u64> {
    let mut hash = hasher.build_hasher();
    let read = each_field(body, |name, value| {
        let is_messages = std::ptr::eq(value.get(), messages.get());
        if !is_messages && !WITHOUT_TOKENS.contains(&name) {
            name.hash(&mut hash);
            hash_content(value, name == "system", 0, &mut hash);
        }
    });
    let mut prefixes = Vec::new();
    if read.is_ok() {
        let _ = each_element(messages.get(), |message| {
            hash_fields(message, 0, &mut hash);
            prefixes.push(hash.finish());
        });
    }
    prefixes
}

/// Hashes a text or a list of parts. A text is equal to a list with one part of that text. The first
/// part of a system prompt may be the billing block, which is left out.
fn hash_content(content: &RawValue, is_system: bool, depth: usize, hash: &mut impl Hasher) {
    let mut may_be_billing = is_system;
    let is_list = each_element(content.get(), |part| {
        let is_billing = may_be_billing
            && part.get().len() <= BILLING_BLOCK_BYTES_MAX
            && part.get().contains(BILLING_BLOCK);
        may_be_billing = false;
        if !is_billing {
            hash_fields(part, depth, hash);
        }
    });
    if is_list.is_err() {
        content.get().hash(hash);
    }
}

/// Hashes an object without its cache mark. A part with nothing but a text is hashed as the text.
fn hash_fields(object: &RawValue, depth: usize, hash: &mut impl Hasher) {
    let mut fields: Vec<(String, &RawValue)> = Vec::new();
    let is_object = each_field(object.get(), |name, value| {
        if name != CACHE_MARK {
            fields.push((name.to_owned(), value));
        }
    });
    if is_object.is_err() {
        object.get().hash(hash);
        return;
    }
    if let [(kind, value), (name, text)] = &fields[..]
        && (kind.as_str(), value.get(), name.as_str()) == ("type", "\"text\"", "text")
    {
        text.get().hash(hash);
        return;
    }
    fields.len().hash(hash);
    for (name, value) in fields {
        name.hash(hash);
        match &*name {
            "content" if depth < NESTING_MAX => hash_content(value, false, depth + 1, hash),
            _ => value.get().hash(hash),
        }
    }
}

/// Counts all texts of a body from above: names and values, and the frame of each. Chat models read
/// tools in a shorter form than JSON.
fn tokens_of(value: &Value) -> u64 {
    match value {
        Value::Null | Value::Bool(_) => 1,
        Value::Number(number) => count_tokens(&number.to_string()),
        Value::String(text) => count_tokens(text),
        Value::Array(elements) => {
            elements.iter().map(|element| tokens_of(element) + FRAME_TOKENS).sum()
        }
        Value::Object(fields) => {
            let tokens =
                |(name, value): (&String, _)| count_tokens(name) + tokens_of(value) + FRAME_TOKENS;
            fields.iter().map(tokens).sum()
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn sent<'a>(request: &'a ChatRequest<'a>) -> SentPrompt<'a> {
        SentPrompt { request, format: request.format() }
    }

    fn all(body: &Value, hasher: &RandomState) -> Vec<u64> {
        of_text(&body.to_string(), hasher)
    }

    fn of_text(body: &str, hasher: &RandomState) -> Vec<u64> {
        let mut found = Vec::new();
        each_field(body, |name, value| {
            if name == "messages" {
                found = prefixes(body, value, hasher);
            }
        })
        .unwrap();
        found
    }

    #[test]
    fn a_conversation_keeps_the_hashes_of_its_prefixes() {
        let hasher = RandomState::new();
        let mark = json!({"type": "ephemeral"});
        let system = |cch: &str| {
            json!([
                {"type": "text", "text": format!("x-anthropic-billing-header: cc_version=2; cch={cch};")},
                {"type": "text", "text": "Be brief.", "cache_control": mark}])
        };
        let first = json!({"model": "a", "max_tokens": 64_000, "system": system("0a1b2"),
            "tools": [{"name": "look", "cache_control": mark}],
            "messages": [{"role": "user", "content": [
                {"type": "text", "text": "Hi", "cache_control": mark}]}]});
        let second = json!({"max_tokens": 9, "model": "b", "system": system("ffff0"),
            "tools": [{"name": "look"}],
            "messages": [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "input": {}}]},
                {"role": "user", "content": [
                    {"type": "tool_result", "content": "ok", "cache_control": mark}]}]});
        let (first, second) = (all(&first, &hasher), all(&second, &hasher));
        assert_eq!((first.len(), second.len()), (1, 3));
        assert_eq!(first[0], second[0]);
    }

    #[test]
    fn another_prompt_has_another_hash() {
        let hasher = RandomState::new();
        let base = json!({"system": "s", "tools": [{"name": "a"}], "messages": [
            {"role": "user", "content": "Hi"}]});
        let mut hashes = vec![all(&base, &hasher)[0]];
        for (pointer, value) in [
            ("/system", json!("t")),
            ("/tools/0/name", json!("b")),
            ("/messages/0/role", json!("assistant")),
            ("/messages/0/content", json!("Ho")),
            ("/messages/0/content", json!([{"type": "image", "text": "Hi"}])),
            ("/messages/0/content", json!([{"type": "text", "text": "Hi", "x": 1}])),
        ] {
            let mut other = base.clone();
            *other.pointer_mut(pointer).unwrap() = value;
            hashes.push(all(&other, &hasher)[0]);
        }
        let mut thinking = base;
        thinking["thinking"] = json!({"type": "enabled", "budget_tokens": 1});
        hashes.push(all(&thinking, &hasher)[0]);
        let count = hashes.len();
        hashes.sort_unstable();
        hashes.dedup();
        assert_eq!(hashes.len(), count);
    }

    #[test]
    fn a_long_billing_block_and_other_lists_are_hashed() {
        let hasher = RandomState::new();
        let mark = |text: &str| format!("x-anthropic-billing-header: cch=1;{text}");
        let long = "a".repeat(BILLING_BLOCK_BYTES_MAX);
        let body = |system: &str, text: &str, input: &str| {
            json!({"system": [{"type": "text", "text": mark(system)}], "input": input, "messages": [
                {"role": "user", "content": [{"type": "text", "text": mark(text)}]}]})
        };
        let base = all(&body("", "", ""), &hasher);
        assert_eq!(all(&body("b", "", ""), &hasher), base);
        for (system, text, input) in [(&*long, "", ""), ("", "b", ""), ("", "", "b")] {
            assert_ne!(all(&body(system, text, input), &hasher), base, "{system} {text} {input}");
        }
    }

    #[test]
    fn contents_that_may_change_have_no_prefixes() {
        let hasher = RandomState::new();
        let format = ApiFormat::Responses;
        for (field, has_prefix) in [
            (r#""conversation":"conv_1""#, true), // The gateway adds the reference later.
            (r#""prompt":{"id":"pmpt_1"}"#, false),
            (r#""previous_response_id":"resp_1""#, true),
        ] {
            let body = format!(r#"{{"model":"m","input":[{{"content":"a"}}],{field}}}"#);
            let mut request = ChatRequest::read(format, body.as_bytes(), None).unwrap();
            assert_eq!(sent(&request).prefixes(&hasher).len() == 1, has_prefix, "{body}");
            request.prompt.add_reference(true);
            assert!(sent(&request).prefixes(&hasher).is_empty());
        }
        for (part, has_prefix) in [
            (r#"{"type":"document","source":{"type":"url","url":"https://a"}}"#, false),
            (r#"{"type":"document","source":{"type":"file","file_id":"f"}}"#, true),
            (r#"{"type":"image","source":{"type":"url","url":"https://a"}}"#, true),
        ] {
            let body = format!(r#"{{"model":"m","messages":[{{"content":[{part}]}}]}}"#);
            let request = ChatRequest::read(ApiFormat::Messages, body.as_bytes(), None).unwrap();
            assert_eq!(sent(&request).prefixes(&hasher).len() == 1, has_prefix, "{body}");
        }
    }

    #[test]
    fn deep_contents_do_not_use_up_the_stack() {
        let hasher = RandomState::new();
        let deep = |text: &str| {
            let levels = 200_000;
            let (begin, end) = (r#"{"content":["#.repeat(levels), "]}".repeat(levels));
            of_text(&format!(r#"{{"messages":[{begin}{text}{end}]}}"#), &hasher)
        };
        assert_eq!(deep("1").len(), 1);
        assert_ne!(deep("1"), deep("2"));
    }

    #[test]
    fn a_count_covers_the_frames_of_messages() {
        let body = json!({"model": "gpt-4o", "messages": [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": "Say hello."}]})
        .to_string();
        let format = ApiFormat::ChatCompletions;
        let request = ChatRequest::read(format, body.as_bytes(), None).unwrap();
        // OpenAI counts 3 for each message and for the answer, 1 for each role, 6 and 3 for the texts.
        let counted = sent(&request).count("gpt-4o").unwrap();
        assert!((20..60).contains(&counted), "{counted}");
        assert_eq!(sent(&request).count("claude-opus-4-6"), None);
    }
}
