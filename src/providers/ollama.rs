//! Ollama's own API: <https://github.com/ollama/ollama/blob/main/docs/api.md>, of which `/api/chat`.
//! Pure: no network, no clock.
//!
//! Its OpenAI-compatible API (<https://docs.ollama.com/api/openai-compatibility>) has no `options`, and
//! reports a prompt whose count it left out as a prompt of 0 tokens; it serves clients that speak that
//! protocol, as <https://docs.ollama.com/api/anthropic-compatibility> serves those of Anthropic's.

use serde_json::{Map, Value, json};

use super::wire::{
    Count, Fault, Flow, Framing, Header, Reader, Request, ResponseAccumulator, event_json,
    reported_fault,
};
use super::{Call, ProviderConfig, sse};
use crate::event::{Usage, UsageSource};

/// Where Ollama listens unless told otherwise.
pub(super) const BASE_URL: &str = "http://127.0.0.1:11434";

/// The address without the API's own part. With `/v1` the compatible APIs are written, with `/api` this
/// one: taken as meant.
fn base_url(provider: &ProviderConfig) -> &str {
    let base_url = provider.base_url();
    ["/v1", "/api"]
        .iter()
        .find_map(|path| base_url.strip_suffix(path))
        .unwrap_or(base_url)
}

/// Where chat completions are asked for in OpenAI's protocol.
pub(super) fn chat_url(provider: &ProviderConfig) -> String {
    format!("{}/v1/chat/completions", base_url(provider))
}

/// Where messages are asked for in Anthropic's protocol.
pub(super) fn messages_url(provider: &ProviderConfig) -> String {
    format!("{}/v1/messages", base_url(provider))
}

/// The request for a call. A key is what <https://docs.ollama.com/cloud> and proxies want.
pub(super) fn request(call: &Call, provider: &ProviderConfig) -> Request {
    let authorization = provider.key().map(|key| {
        (
            "authorization",
            Header::Secret(format!("Bearer {}", key.expose())),
        )
    });
    Request {
        url: format!("{}/api/chat", base_url(provider)),
        headers: authorization.into_iter().collect(),
        body: body(call),
    }
}

fn body(call: &Call) -> Value {
    let system = call
        .system
        .as_ref()
        .map(|text| json!({"role": "system", "content": text}));
    let user = json!({"role": "user", "content": call.prompt});
    let messages: Vec<Value> = system.into_iter().chain([user]).collect();
    let mut body = Map::new();
    body.insert("model".into(), call.model.clone().into());
    body.insert("messages".into(), messages.into());
    // Always said: an answer is streamed unless this is false.
    body.insert("stream".into(), call.stream.into());
    let mut options = Map::new();
    if let Some(tokens) = call.max_tokens {
        options.insert("num_predict".into(), tokens.into());
    }
    if let Some(temperature) = call.temperature {
        options.insert("temperature".into(), temperature.into());
    }
    if !options.is_empty() {
        body.insert("options".into(), options.into());
    }
    body.into()
}

/// Reads answers. Needs no memory of its own: the counts come once, with the last object.
#[derive(Debug, Default)]
pub(super) struct ChatReader;

impl Reader for ChatReader {
    fn framing(&self) -> Framing {
        Framing::Lines
    }

    fn event(
        &mut self,
        event: &sse::Event,
        partial: &mut ResponseAccumulator,
    ) -> Result<Flow, Fault> {
        take_in(&event_json(event)?, partial)
    }

    fn document(
        &mut self,
        document: &Value,
        partial: &mut ResponseAccumulator,
    ) -> Result<(), Fault> {
        take_in(document, partial)?;
        if !document["message"].is_object() {
            return Err(Fault::bad_answer("the answer has no `message`"));
        }
        partial.is_complete = true;
        Ok(())
    }
}

fn take_in(document: &Value, partial: &mut ResponseAccumulator) -> Result<Flow, Fault> {
    partial.note_model(&document["model"]);
    let message = &document["message"];
    partial.note_thinking(&message["thinking"]);
    let pushed = partial.push(message["content"].as_str().unwrap_or_default());
    if let Some(usage) = normal_usage(document) {
        partial.note_usage(usage, usage.output_tokens > 0);
    }
    pushed?;
    if let Some(fault) = reported_fault(document) {
        return Err(fault);
    }
    if document["done"] != true {
        return Ok(Flow::More);
    }
    partial.note_finish(&document["done_reason"]);
    partial.is_complete = true;
    Ok(Flow::End)
}

/// The counts of the last object, where it has any. `eval_count` includes thinking, which is not
/// counted apart.
///
/// `prompt_eval_count` is left out where the server found all of the prompt in its memory
/// (<https://github.com/ollama/ollama/issues/2068>, versions up to 0.1.3x), and is 0 in others then.
/// No prompt has 0 tokens, so 0 means here that it is not known, and `estimate` says what
/// becomes of it. (Where such a version counted a part of the prompt only, nothing shows it.)
fn normal_usage(document: &Value) -> Option<Usage> {
    let (mut input, mut output) = (Count::Missing, Count::Missing);
    input.overwrite(document, "prompt_eval_count");
    output.overwrite(document, "eval_count");
    let counts = [input, output];
    if counts == [Count::Missing; 2] {
        return None;
    }
    if !Count::are_known(&counts) {
        return Some(Usage::default());
    }
    Some(Usage {
        input_tokens: input.tokens(),
        output_tokens: output.tokens(),
        source: UsageSource::Provider,
        ..Usage::default()
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{any_counts, call, holds_sum_rules, provider, read, read_document};
    use super::super::{FailureKind, Kind};
    use super::*;
    use crate::secret::Secret;

    fn usage(input_tokens: u64, output_tokens: u64) -> Usage {
        Usage {
            input_tokens,
            output_tokens,
            source: UsageSource::Provider,
            ..Usage::default()
        }
    }

    #[test]
    fn a_request_is_as_the_reference_has_it() {
        let call = call("llama3.2:3b", true);
        let with_key = provider(Kind::Ollama, "");
        let made = request(&call, &with_key);
        assert_eq!(made.url, "http://127.0.0.1:11434/api/chat");
        assert_eq!(
            made.body.to_string(),
            r#"{"model":"llama3.2:3b","messages":[{"role":"system","content":"Be brief."},{"role":"user","content":"Hi"}],"stream":true,"options":{"num_predict":9,"temperature":0.5}}"#
        );
        assert!(matches!(
            made.headers.as_slice(),
            [("authorization", Header::Secret(value))] if value == "Bearer sk-1"
        ));
        let keyless = ProviderConfig {
            api_key: Some(Secret::new("")),
            ..with_key
        };
        let call = Call {
            system: None,
            max_tokens: None,
            temperature: None,
            stream: false,
            ..call
        };
        let made = request(&call, &keyless);
        assert!(made.headers.is_empty());
        assert_eq!(
            made.body.to_string(),
            r#"{"model":"llama3.2:3b","messages":[{"role":"user","content":"Hi"}],"stream":false}"#
        );
    }

    #[test]
    fn an_address_of_the_compatible_api_is_taken_as_meant() {
        for base_url in ["http://h:1", "http://h:1/v1", "http://h:1/api/"] {
            let made = request(&call("m", true), &provider(Kind::Ollama, base_url));
            assert_eq!(made.url, "http://h:1/api/chat");
            let provider = provider(Kind::Ollama, base_url);
            assert_eq!(chat_url(&provider), "http://h:1/v1/chat/completions");
            assert_eq!(messages_url(&provider), "http://h:1/v1/messages");
        }
    }

    const LAST: &str = r#"{"model":"llama3.2","message":{"role":"assistant","content":""},"done":true,"done_reason":"stop","total_duration":4883583458,"prompt_eval_count":26,"eval_count":290}"#;

    #[test]
    fn a_stream_is_put_together_with_the_counts_of_its_last_object() {
        let (partial, flow) = read(
            &mut ChatReader,
            &[
                r#"{"model":"llama3.2","message":{"role":"assistant","content":"","thinking":"hm"},"done":false}"#,
                r#"{"model":"llama3.2","message":{"role":"assistant","content":"Hel"},"done":false}"#,
                r#"{"model":"llama3.2","message":{"role":"assistant","content":"lo"},"done":false}"#,
                LAST,
            ],
        );
        assert_eq!(flow, Ok(Flow::End));
        assert_eq!(
            (partial.text.as_str(), partial.thinking.as_str()),
            ("Hello", "hm")
        );
        assert_eq!(partial.usage, usage(26, 290));
        assert_eq!(partial.finish_reason.as_deref(), Some("stop"));
        assert_eq!(partial.model.as_deref(), Some("llama3.2"));
        assert!(partial.is_complete);
    }

    #[test]
    fn an_error_is_told_and_a_document_without_a_message_is_a_bad_answer() {
        let (partial, flow) = read(
            &mut ChatReader,
            &[
                r#"{"message":{"content":"a"},"done":false}"#,
                r#"{"error":"model runner has unexpectedly stopped"}"#,
            ],
        );
        assert_eq!(
            flow.unwrap_err().message,
            "reported an error: model runner has unexpectedly stopped"
        );
        assert_eq!(partial.text, "a");
        for document in ["{}", "[]", "7", "null", r#"{"message":"a"}"#] {
            let (_, read) = read_document(&mut ChatReader, document);
            assert_eq!(read.unwrap_err().kind, FailureKind::BadAnswer, "{document}");
        }
    }

    #[test]
    fn counts_that_cannot_be_are_no_usage() {
        for counts in [
            r#""prompt_eval_count":-1,"eval_count":3"#,
            r#""prompt_eval_count":1.5,"eval_count":3"#,
            r#""prompt_eval_count":1,"eval_count":"3""#,
            r#""prompt_eval_count":1,"eval_count":1e18"#,
            r#""prompt_eval_count":null"#,
        ] {
            let document = format!(r#"{{"message":{{"content":"a"}},"done":true,{counts}}}"#);
            let (partial, read) = read_document(&mut ChatReader, &document);
            assert_eq!(read, Ok(()));
            assert_eq!(partial.usage, Usage::default(), "{counts}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_counted_its_parts_do_not_exceed_it(
            counts in any_counts(&["prompt_eval_count", "eval_count"]),
        ) {
            let mut partial = ResponseAccumulator::default();
            let _ = ChatReader.document(&counts, &mut partial);
            prop_assert!(holds_sum_rules(&partial.usage), "{:?}", partial.usage);
        }
    }
}
