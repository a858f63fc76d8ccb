//! Anthropic's messages: <https://docs.anthropic.com/en/api/messages>, streamed as in
//! <https://docs.anthropic.com/en/api/messages-streaming>. Pure: no network, no clock.

use serde_json::{Map, Value, json};

use super::wire::{
    Count, Fault, Flow, Header, Reader, Request, ResponseAccumulator, counts_anything, event_json,
    reported_fault,
};
use super::{Call, ProviderConfig, sse};
use crate::event::{Usage, UsageSource};
use crate::secret::Secret;

/// Where Anthropic's own API is.
pub(super) const BASE_URL: &str = "https://api.anthropic.com";

/// The version of the API that this module speaks; the header is required.
const VERSION: &str = "2023-06-01";

/// The limit of an answer where the call sets none, tokens: the API requires one. Every model
/// allows this much.
pub(super) const MAX_TOKENS_DEFAULT: u32 = 4096;

/// The request for a call.
pub(super) fn request(call: &Call, provider: &ProviderConfig) -> Request {
    let key = provider.key().map(api_key);
    Request {
        url: url(provider),
        headers: key.into_iter().chain([version()]).collect(),
        body: body(call),
    }
}

/// Where messages are asked for.
pub(super) fn url(provider: &ProviderConfig) -> String {
    let base_url = provider.base_url();
    // With `/v1` is how compatible servers and OpenAI's own URL are written: take it as meant.
    let base_url = base_url.strip_suffix("/v1").unwrap_or(base_url);
    format!("{base_url}/v1/messages")
}

/// The header that carries a key.
pub(super) fn api_key(key: &Secret) -> (&'static str, Header) {
    ("x-api-key", Header::Secret(key.expose().to_owned()))
}

/// The header that says which version of the API is spoken.
pub(super) fn version() -> (&'static str, Header) {
    ("anthropic-version", Header::Plain(VERSION))
}

fn body(call: &Call) -> Value {
    let mut body = Map::new();
    body.insert("model".into(), call.model.clone().into());
    body.insert(
        "max_tokens".into(),
        call.max_tokens.unwrap_or(MAX_TOKENS_DEFAULT).into(),
    );
    if let Some(system) = &call.system {
        let system = match call.cache_marks.system && !is_blank(system) {
            true => json!([marked(system)]),
            false => system.clone().into(),
        };
        body.insert("system".into(), system);
    }
    body.insert(
        "messages".into(),
        json!([{"role": "user", "content": content(call)}]),
    );
    if let Some(temperature) = call.temperature {
        body.insert("temperature".into(), temperature.into());
    }
    if call.stream {
        body.insert("stream".into(), true.into());
    }
    body.into()
}

/// The prompt; its marked beginning, if there is one, in a block of its own. The API refuses blocks
/// without anything but white space. What is shorter than a model caches (from 1,024 tokens on) is
/// taken without.
fn content(call: &Call) -> Value {
    match call.prompt.split_at_checked(call.cache_marks.prompt_bytes) {
        Some((beginning, "")) if !is_blank(beginning) => json!([marked(beginning)]),
        Some((beginning, rest)) if !is_blank(beginning) && !is_blank(rest) => {
            json!([marked(beginning), {"type": "text", "text": rest}])
        }
        _ => call.prompt.clone().into(),
    }
}

/// A text up to whose end the request is to be cached:
/// <https://docs.anthropic.com/en/docs/build-with-claude/prompt-caching>. There may be four of them.
fn marked(text: &str) -> Value {
    json!({"type": "text", "text": text, "cache_control": {"type": "ephemeral"}})
}

fn is_blank(text: &str) -> bool {
    text.trim().is_empty()
}

/// Reads answers.
#[derive(Debug, Default)]
pub(super) struct MessageReader {
    counts: Counts,
}

impl Reader for MessageReader {
    fn event(
        &mut self,
        event: &sse::Event,
        partial: &mut ResponseAccumulator,
    ) -> Result<Flow, Fault> {
        let data = event_json(event)?;
        // The name of the event stands in its data as well; some proxies keep only one of them.
        match data["type"].as_str().unwrap_or(&event.name) {
            "message_start" => {
                let message = &data["message"];
                partial.note_model(&message["model"]);
                // That it counts an output of 1 says nothing: there is none yet.
                self.note_usage(&message["usage"], false, partial);
            }
            "content_block_start" => note_block(&data["content_block"], partial)?,
            "content_block_delta" => note_block(&data["delta"], partial)?,
            "message_delta" => {
                partial.note_finish(&data["delta"]["stop_reason"]);
                self.note_usage(&data["usage"], true, partial);
            }
            "message_stop" => {
                partial.is_complete = true;
                return Ok(Flow::End);
            }
            "error" => return Err(fault_of(&data)),
            // `ping`, `content_block_stop`, and what may be added: to be ignored, says the API.
            _ => {}
        }
        Ok(Flow::More)
    }

    fn document(
        &mut self,
        document: &Value,
        partial: &mut ResponseAccumulator,
    ) -> Result<(), Fault> {
        partial.note_model(&document["model"]);
        self.note_usage(&document["usage"], true, partial);
        if document["type"] == "error" || document.get("error").is_some_and(|e| !e.is_null()) {
            return Err(fault_of(document));
        }
        let Some(blocks) = document["content"].as_array() else {
            return Err(Fault::bad_answer("the answer has no `content`"));
        };
        for block in blocks {
            note_block(block, partial)?;
        }
        self.note_usage(&document["usage"], true, partial);
        partial.note_finish(&document["stop_reason"]);
        partial.is_complete = true;
        Ok(())
    }
}

impl MessageReader {
    fn note_usage(&mut self, usage: &Value, is_behind: bool, partial: &mut ResponseAccumulator) {
        // Fast mode costs more: <https://platform.claude.com/docs/en/build-with-claude/fast-mode>.
        for tier in ["service_tier", "speed"] {
            partial.note_tier(&usage[tier]);
        }
        if !counts_anything(usage) {
            return;
        }
        self.counts.overwrite(usage);
        let counts = self.counts.normal_usage();
        if is_behind && usage["output_tokens"].is_u64() {
            partial.note_usage(counts, true);
        } else {
            partial.usage = counts;
        }
    }
}

/// Reads how many tokens a message has: <https://platform.claude.com/docs/en/api/messages-count-tokens>.
#[derive(Debug)]
pub(super) struct CountReader;

impl Reader for CountReader {
    fn event(&mut self, _: &sse::Event, _: &mut ResponseAccumulator) -> Result<Flow, Fault> {
        Err(Fault::bad_answer("a number of tokens came as a stream"))
    }

    fn document(
        &mut self,
        document: &Value,
        partial: &mut ResponseAccumulator,
    ) -> Result<(), Fault> {
        if !document["input_tokens"].is_u64() {
            return Err(Fault::bad_answer("the answer has no `input_tokens`"));
        }
        partial.is_complete = true;
        Ok(())
    }
}

/// Takes in a block or its delta. Thinking and the use of tools are billed as a part of the answer, but
/// are no text of it.
fn note_block(block: &Value, partial: &mut ResponseAccumulator) -> Result<(), Fault> {
    match block["type"].as_str() {
        Some("text" | "text_delta") => partial.push(block["text"].as_str().unwrap_or_default()),
        Some("thinking" | "thinking_delta") => {
            partial.note_thinking(&block["thinking"]);
            Ok(())
        }
        Some("tool_use" | "server_tool_use" | "mcp_tool_use") => {
            partial.note_beside(&block["name"]);
            // Of a stream it is empty, and comes in pieces.
            if block["input"].as_object().is_some_and(|it| !it.is_empty()) {
                partial.note_beside(&block["input"]);
            }
            Ok(())
        }
        Some("input_json_delta") => {
            partial.note_beside(&block["partial_json"]);
            Ok(())
        }
        _ => Ok(()),
    }
}

fn fault_of(document: &Value) -> Fault {
    reported_fault(document).unwrap_or_else(|| {
        Fault::new(
            super::FailureKind::Status,
            "reported an error without saying which",
        )
    })
}

/// The counts of a message. Those of `message_delta` are cumulative ("The token counts shown in
/// the usage field of the message_delta event are cumulative"), so each one overwrites.
#[derive(Debug, Default)]
struct Counts {
    /// Neither read from nor written to the cache.
    input: Count,
    cache_read: Count,
    cache_write: Count,
    /// Of `cache_write`, those that are kept for an hour.
    cache_write_1h: Count,
    output: Count,
    /// Of `output`, what was thought.
    thinking: Count,
}

impl Counts {
    fn overwrite(&mut self, usage: &Value) {
        let by_age = &usage["cache_creation"];
        let by_kind = &usage["output_tokens_details"];
        for (usage, name, kept) in [
            (usage, "input_tokens", &mut self.input),
            (usage, "cache_read_input_tokens", &mut self.cache_read),
            (usage, "cache_creation_input_tokens", &mut self.cache_write),
            (
                by_age,
                "ephemeral_1h_input_tokens",
                &mut self.cache_write_1h,
            ),
            (usage, "output_tokens", &mut self.output),
            (by_kind, "thinking_tokens", &mut self.thinking),
        ] {
            kept.overwrite(usage, name);
        }
    }

    /// The three kinds of input are apart from each other: "Total input tokens in a request is
    /// the summation of `input_tokens`, `cache_creation_input_tokens`, and
    /// `cache_read_input_tokens`". `output_tokens` includes thinking.
    fn normal_usage(&self) -> Usage {
        let all = [
            self.input,
            self.cache_read,
            self.cache_write,
            self.cache_write_1h,
            self.output,
            self.thinking,
        ];
        if !Count::are_known(&all) {
            return Usage::default();
        }
        let (read, written) = (self.cache_read.tokens(), self.cache_write.tokens());
        Usage {
            input_tokens: self.input.tokens() + read + written,
            cached_input_tokens: read,
            cache_write_tokens: written,
            cache_write_1h_tokens: self.cache_write_1h.tokens().min(written),
            output_tokens: self.output.tokens(),
            reasoning_tokens: self.thinking.tokens().min(self.output.tokens()),
            source: UsageSource::Provider,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{CacheMarks, FailureKind, Kind};
    use super::*;

    fn call() -> Call {
        Call {
            provider: "a".into(),
            model: "claude-sonnet-4-5".into(),
            system: Some("Be brief.".into()),
            prompt: "Hi".into(),
            max_tokens: None,
            temperature: Some(0.5),
            stream: true,
            first_byte_timeout: None,
            total_timeout: None,
            cache_marks: CacheMarks::default(),
        }
    }

    fn provider(base_url: &str) -> ProviderConfig {
        ProviderConfig {
            kind: Kind::Anthropic,
            base_url: base_url.into(),
            api_key: Some(Secret::new("sk-ant-1")),
            missing_key_hint: None,
            stream_usage: true,
        }
    }

    fn read(events: &[(&str, &str)]) -> (ResponseAccumulator, Result<Flow, Fault>) {
        let (mut reader, mut partial) = (MessageReader::default(), ResponseAccumulator::default());
        let mut flow = Ok(Flow::More);
        for (name, data) in events {
            let event = sse::Event {
                name: (*name).to_owned(),
                data: (*data).to_owned(),
            };
            flow = reader.event(&event, &mut partial);
            if flow != Ok(Flow::More) {
                break;
            }
        }
        (partial, flow)
    }

    fn provider_usage(input: u64, read: u64, written: u64, output: u64) -> Usage {
        Usage {
            input_tokens: input,
            cached_input_tokens: read,
            cache_write_tokens: written,
            cache_write_1h_tokens: 0,
            output_tokens: output,
            reasoning_tokens: 0,
            source: UsageSource::Provider,
        }
    }

    #[test]
    fn a_request_is_as_the_reference_has_it() {
        let request = request(&call(), &provider(""));
        assert_eq!(request.url, "https://api.anthropic.com/v1/messages");
        assert_eq!(
            request.body.to_string(),
            r#"{"model":"claude-sonnet-4-5","max_tokens":4096,"system":"Be brief.","messages":[{"role":"user","content":"Hi"}],"temperature":0.5,"stream":true}"#
        );
        assert!(matches!(
            request.headers.as_slice(),
            [("x-api-key", Header::Secret(key)), ("anthropic-version", Header::Plain("2023-06-01"))]
                if key == "sk-ant-1"
        ));
    }

    #[test]
    fn constant_parts_are_marked_where_the_provider_takes_the_marks() {
        let written = |system: &str, prompt: &str, marks: (bool, usize)| {
            let call = Call {
                system: Some(system.into()),
                prompt: prompt.into(),
                cache_marks: CacheMarks {
                    system: marks.0,
                    prompt_bytes: marks.1,
                },
                ..call()
            };
            let body = request(&call, &provider("")).body;
            format!("{} {}", body["system"], body["messages"][0]["content"])
        };
        assert_eq!(
            written("Be brief.", "Rules: no é. Ants", (true, 13)),
            r#"[{"type":"text","text":"Be brief.","cache_control":{"type":"ephemeral"}}] [{"type":"text","text":"Rules: no é.","cache_control":{"type":"ephemeral"}},{"type":"text","text":" Ants"}]"#
        );
        assert_eq!(
            written("Be brief.", "Hi", (false, 2)),
            r#""Be brief." [{"type":"text","text":"Hi","cache_control":{"type":"ephemeral"}}]"#
        );
        // Blank blocks are refused, and a character is not cut.
        for (prompt, bytes) in [("  Hi", 2), ("Hi  ", 2), ("é", 1), ("Hi", 9), ("Hi", 0)] {
            let expected = format!(r#"" " {}"#, json!(prompt));
            assert_eq!(written(" ", prompt, (true, bytes)), expected);
        }
    }

    #[test]
    fn a_base_url_with_the_version_is_taken_as_meant() {
        for base_url in [
            "http://h:1",
            "http://h:1/",
            "http://h:1/v1",
            "http://h:1/v1/",
        ] {
            assert_eq!(
                request(&call(), &provider(base_url)).url,
                "http://h:1/v1/messages"
            );
        }
    }

    const START: (&str, &str) = (
        "message_start",
        r#"{"type":"message_start","message":{"id":"m","type":"message","role":"assistant","content":[],"model":"claude-sonnet-4-5-20250929","stop_reason":null,"usage":{"input_tokens":25,"cache_creation_input_tokens":100,"cache_read_input_tokens":1000,"output_tokens":1}}}"#,
    );

    #[test]
    fn a_stream_is_put_together_and_its_counts_overwrite() {
        let (partial, flow) = read(&[
            START,
            (
                "content_block_start",
                r#"{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}"#,
            ),
            ("ping", r#"{"type": "ping"}"#),
            (
                "content_block_delta",
                r#"{"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"hm"}}"#,
            ),
            (
                "content_block_delta",
                r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hel"}}"#,
            ),
            (
                "content_block_delta",
                r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"lo"}}"#,
            ),
            (
                "content_block_stop",
                r#"{"type":"content_block_stop","index":0}"#,
            ),
            ("something_new", r#"{"type":"something_new"}"#),
            (
                "message_delta",
                r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":7}}"#,
            ),
            (
                "message_delta",
                r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":15}}"#,
            ),
            ("message_stop", r#"{"type":"message_stop"}"#),
        ]);
        assert_eq!(flow, Ok(Flow::End));
        assert_eq!(partial.text, "Hello");
        assert_eq!(partial.model.as_deref(), Some("claude-sonnet-4-5-20250929"));
        assert_eq!(partial.finish_reason.as_deref(), Some("end_turn"));
        assert_eq!(partial.usage, provider_usage(1125, 1000, 100, 15));
        assert!(partial.is_complete);
    }

    #[test]
    fn cache_counts_may_come_in_the_delta_only() {
        let (partial, _) = read(&[
            (
                "message_start",
                r#"{"type":"message_start","message":{"usage":{"input_tokens":25,"output_tokens":1}}}"#,
            ),
            (
                "message_delta",
                r#"{"type":"message_delta","delta":{},"usage":{"input_tokens":20,"cache_read_input_tokens":5,"cache_creation_input_tokens":null,"output_tokens":3}}"#,
            ),
        ]);
        assert_eq!(partial.usage, provider_usage(25, 5, 0, 3));
        assert!(!partial.is_complete);
    }

    #[test]
    fn the_name_of_an_event_serves_where_its_data_has_no_type() {
        assert_eq!(read(&[("message_stop", "{}")]).1, Ok(Flow::End));
    }

    #[test]
    fn an_error_event_is_a_fault_that_keeps_the_usage() {
        let (partial, flow) = read(&[
            START,
            (
                "error",
                r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#,
            ),
        ]);
        let fault = flow.unwrap_err();
        assert_eq!(fault.kind, FailureKind::Status);
        assert_eq!(
            fault.message,
            "reported an error: Overloaded (overloaded_error)"
        );
        assert_eq!(fault.status, None);
        assert_eq!(partial.usage, provider_usage(1125, 1000, 100, 1));
    }

    #[test]
    fn impossible_counts_and_zeros_replace_none() {
        let usage = |usage: &str| format!(r#"{{"type":"message_delta","usage":{usage}}}"#);
        let good = usage(r#"{"output_tokens":3}"#);
        for bad in [
            r#"{"output_tokens":-3}"#,
            r#"{"input_tokens":0,"output_tokens":0}"#,
            r#""n/a""#,
            "{}",
        ] {
            let bad = usage(bad);
            let (bad, good) = (("message_delta", &*bad), ("message_delta", &*good));
            let usage = |events: &[(&str, &str)]| read(events).0.usage;
            let start = provider_usage(1125, 1000, 100, 1);
            assert_eq!(usage(&[START, bad]), start, "{bad:?}");
            let end = provider_usage(1125, 1000, 100, 3);
            assert_eq!(usage(&[START, bad, good, bad]), end, "{bad:?}");
            assert_eq!(usage(&[bad]), Usage::default(), "{bad:?}");
        }
    }

    #[test]
    fn only_what_counts_the_answer_behind_it_counts_it() {
        let text = (
            "content_block_delta",
            r#"{"type":"content_block_delta","delta":{"type":"text_delta","text":"Hello"}}"#,
        );
        for (usage, counted) in [
            ("null", None),
            ("{}", None),
            (r#"{"cache_read_input_tokens":7}"#, None),
            (r#"{"output_tokens":15}"#, Some(5)),
        ] {
            let delta = format!(r#"{{"type":"message_delta","delta":{{}},"usage":{usage}}}"#);
            let (partial, _) = read(&[START, text, ("message_delta", &delta)]);
            assert_eq!(partial.counted.map(|it| it.text), counted, "{usage}");
        }
    }

    #[test]
    fn the_use_of_tools_is_kept_to_be_counted() {
        let (partial, _) = read(&[
            START,
            (
                "content_block_start",
                r#"{"type":"content_block_start","index":0,"content_block":{"type":"tool_use","id":"t","name":"look","input":{}}}"#,
            ),
            (
                "content_block_delta",
                r#"{"type":"content_block_delta","index":0,"delta":{"type":"input_json_delta","partial_json":"{\"at\""}}"#,
            ),
            (
                "content_block_delta",
                r#"{"type":"content_block_delta","index":0,"delta":{"type":"input_json_delta","partial_json":":1}"}}"#,
            ),
        ]);
        assert_eq!((&*partial.text, &*partial.beside), ("", r#"look{"at":1}"#));
        let (partial, _) = read_document(
            r#"{"content":[{"type":"tool_use","id":"t","name":"look","input":{"at":1}}]}"#,
        );
        assert_eq!((&*partial.text, &*partial.beside), ("", r#"look{"at":1}"#));
    }

    #[test]
    fn thinking_that_is_counted_apart_is_a_part_of_the_output() {
        for (thinking, reasoning) in [(json!(3), 3), (json!(9), 7), (json!(null), 0)] {
            let usage = json!({"input_tokens": 5, "output_tokens": 7,
                "output_tokens_details": {"thinking_tokens": thinking}});
            let (partial, _) = read_document(&json!({"content": [], "usage": usage}).to_string());
            let expected = Usage {
                reasoning_tokens: reasoning,
                ..provider_usage(5, 0, 0, 7)
            };
            assert_eq!(partial.usage, expected, "{usage}");
        }
    }

    #[test]
    fn another_service_tier_or_speed_is_billed_otherwise() {
        for (name, value, is_billed_otherwise) in [
            ("service_tier", "standard", false),
            ("service_tier", "priority", true),
            ("service_tier", "batch", true),
            ("speed", "standard", false),
            ("speed", "fast", true),
        ] {
            let usage = json!({"input_tokens": 5, "output_tokens": 7, name: value});
            let document = json!({"content": [], "usage": usage}).to_string();
            let (partial, _) = read_document(&document);
            assert_eq!(partial.is_billed_otherwise, is_billed_otherwise, "{usage}");
            let start = json!({"message": {"usage": usage}}).to_string();
            let (partial, _) = read(&[("message_start", &start)]);
            assert_eq!(partial.is_billed_otherwise, is_billed_otherwise, "{usage}");
        }
    }

    #[test]
    fn an_event_without_data_is_known_by_its_name() {
        let (partial, flow) = read(&[START, ("ping", ""), ("message_stop", "")]);
        assert_eq!((flow, partial.is_complete), (Ok(Flow::End), true));
    }

    fn read_document(document: &str) -> (ResponseAccumulator, Result<(), Fault>) {
        let mut partial = ResponseAccumulator::default();
        let document = serde_json::from_str(document).unwrap();
        let read = MessageReader::default().document(&document, &mut partial);
        (partial, read)
    }

    #[test]
    fn a_whole_answer_is_read() {
        let (partial, read) = read_document(
            r#"{"id":"m","type":"message","role":"assistant","model":"claude-sonnet-4-5-20250929","content":[{"type":"thinking","thinking":"hm"},{"type":"text","text":"Hel"},{"type":"text","text":"lo"}],"stop_reason":"max_tokens","usage":{"input_tokens":10,"cache_creation_input_tokens":0,"cache_read_input_tokens":90,"cache_creation":{"ephemeral_5m_input_tokens":0},"output_tokens":4}}"#,
        );
        assert_eq!(read, Ok(()));
        assert_eq!(partial.text, "Hello");
        assert_eq!(partial.finish_reason.as_deref(), Some("max_tokens"));
        assert_eq!(partial.usage, provider_usage(100, 90, 0, 4));
        assert!(partial.is_complete);
    }

    #[test]
    fn a_document_without_content_is_a_bad_answer() {
        for document in ["{}", "[]", "7", r#"{"content":"Hello"}"#] {
            let fault = read_document(document).1.unwrap_err();
            assert_eq!(fault.kind, FailureKind::BadAnswer, "{document}");
        }
        let fault = read_document(r#"{"type":"error","error":{}}"#)
            .1
            .unwrap_err();
        assert_eq!(fault.kind, FailureKind::Status);
    }

    #[test]
    fn what_is_kept_for_an_hour_is_told_apart_from_what_is_kept_for_five_minutes() {
        let usage = r#"{"type":"message_start","message":{"model":"m","usage":{"input_tokens":5,"cache_creation_input_tokens":300,"cache_read_input_tokens":0,"output_tokens":1,"cache_creation":{"ephemeral_5m_input_tokens":100,"ephemeral_1h_input_tokens":200}}}}"#;
        let (partial, _) = read(&[("message_start", usage)]);
        let expected = Usage {
            cache_write_1h_tokens: 200,
            ..provider_usage(305, 0, 300, 1)
        };
        assert_eq!(partial.usage, expected);
    }
}
