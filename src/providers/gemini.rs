//! Google's Gemini API: <https://ai.google.dev/api/generate-content>. Pure: no network, no clock.

use serde_json::{Map, Value, json};

use super::wire::{
    BadCount, Count, Fault, Flow, Header, Reader, Request, ResponseAccumulator, count,
    counts_anything, event_json, reported_fault,
};
use super::{Call, ProviderConfig, openai, sse};
use crate::event::{Usage, UsageSource};

/// Where Google's own API is.
pub(super) const BASE_URL: &str = "https://generativelanguage.googleapis.com";

/// The version of the API that is spoken where the address names none:
/// <https://ai.google.dev/gemini-api/docs/api-versions>.
const VERSION: &str = "v1beta";

/// The request for a call. The key goes into a header and not into the URL, where logs would have it:
/// <https://ai.google.dev/api/all-methods>.
pub(super) fn request(call: &Call, provider: &ProviderConfig) -> Request {
    let method = if call.stream {
        "streamGenerateContent?alt=sse"
    } else {
        "generateContent"
    };
    let key = provider
        .key()
        .map(|key| ("x-goog-api-key", Header::Secret(key.expose().to_owned())));
    Request {
        url: format!(
            "{}/{}:{method}",
            versioned(provider.base_url()),
            resource(&call.model)
        ),
        headers: key.into_iter().collect(),
        body: body(call),
    }
}

/// Where chat completions are asked for in OpenAI's protocol, with the key as a bearer token:
/// <https://ai.google.dev/gemini-api/docs/openai>.
pub(super) fn chat_url(provider: &ProviderConfig) -> String {
    let base_url = versioned(provider.base_url());
    format!("{base_url}/openai/chat/completions")
}

/// Token counts of chat completions in the normal form. `completion_tokens` leaves out thoughts, of which
/// nothing but `total_tokens` tells: 9 of the prompt and 1 of the answer are 103 in all, in
/// <https://discuss.ai.google.dev/t/127400>. Thoughts are billed as the answer is.
pub(super) fn chat_usage(usage: &Value) -> Result<Usage, BadCount> {
    let counted = openai::normal_usage(usage)?;
    let total = count(usage, "total_tokens")?.unwrap_or(0);
    let output = total.saturating_sub(counted.input_tokens);
    // The total alone does not say what to bill.
    if counted.source == UsageSource::None || output <= counted.output_tokens {
        return Ok(counted);
    }
    let thoughts = output - counted.output_tokens;
    Ok(Usage {
        output_tokens: output,
        reasoning_tokens: counted.reasoning_tokens + thoughts,
        ..counted
    })
}

/// The address with a version at its end, as `/v1beta` or `/v1`; one that is there is kept. With `/openai`
/// the compatible API is written: taken as meant.
pub(super) fn versioned(base_url: &str) -> String {
    let base_url = base_url.strip_suffix("/openai").unwrap_or(base_url);
    let last = base_url.rsplit('/').next().unwrap_or_default();
    let is_version = last
        .strip_prefix('v')
        .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    if is_version {
        base_url.to_owned()
    } else {
        format!("{base_url}/{VERSION}")
    }
}

/// The model's name as the API wants it: `models/NAME`, where no collection (`tunedModels/NAME`) is
/// named. What a path cannot hold is escaped.
fn resource(model: &str) -> String {
    let mut path = String::from(if model.contains('/') { "" } else { "models/" });
    for byte in model.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/@".contains(&byte) {
            path.push(char::from(byte));
        } else {
            path.push_str(&format!("%{byte:02X}"));
        }
    }
    path
}

fn body(call: &Call) -> Value {
    let mut body = Map::new();
    if let Some(system) = &call.system {
        body.insert(
            "systemInstruction".into(),
            json!({"parts": [{"text": system}]}),
        );
    }
    body.insert(
        "contents".into(),
        json!([{"role": "user", "parts": [{"text": call.prompt}]}]),
    );
    let mut config = Map::new();
    if let Some(tokens) = call.max_tokens {
        config.insert("maxOutputTokens".into(), tokens.into());
    }
    if let Some(temperature) = call.temperature {
        config.insert("temperature".into(), temperature.into());
    }
    if !config.is_empty() {
        body.insert("generationConfig".into(), config.into());
    }
    body.into()
}

/// Reads answers. A stream is a sequence of documents of the same form, and ends where its
/// connection does.
#[derive(Debug, Default)]
pub(super) struct ContentReader {
    counts: Counts,
}

impl Reader for ContentReader {
    fn event(
        &mut self,
        event: &sse::Event,
        partial: &mut ResponseAccumulator,
    ) -> Result<Flow, Fault> {
        self.take_in(&event_json(event)?, partial)?;
        Ok(Flow::More)
    }

    fn document(
        &mut self,
        document: &Value,
        partial: &mut ResponseAccumulator,
    ) -> Result<(), Fault> {
        self.take_in(document, partial)?;
        if !document["candidates"][0].is_object() {
            return Err(Fault::bad_answer("the answer has no `candidates[0]`"));
        }
        // A document is all there is, also where a compatible server gives no reason for its end.
        partial.is_complete = true;
        Ok(())
    }
}

impl ContentReader {
    fn take_in(
        &mut self,
        document: &Value,
        partial: &mut ResponseAccumulator,
    ) -> Result<(), Fault> {
        partial.note_model(&document["modelVersion"]);
        let taken = take_candidate(&document["candidates"][0], partial);
        // After the text: the totals are of this piece as well.
        self.note_usage(&document["usageMetadata"], partial);
        taken?;
        if let Some(fault) = reported_fault(document) {
            return Err(fault);
        }
        // Set where the prompt was blocked; then there are no candidates:
        // <https://ai.google.dev/api/generate-content#PromptFeedback>.
        if let Some(reason) = document["promptFeedback"]["blockReason"].as_str() {
            return Err(Fault::bad_answer(format!(
                "the prompt was blocked by the provider: {reason}"
            )));
        }
        check_finish(partial)
    }

    fn note_usage(&mut self, usage: &Value, partial: &mut ResponseAccumulator) {
        if !counts_anything(usage) {
            return;
        }
        self.counts.overwrite(usage);
        let is_counted = |name: &str| usage[name].as_u64() > Some(0);
        let counts_answer = is_counted("candidatesTokenCount");
        partial.note_usage(self.counts.normal_usage(), counts_answer);
        if let (Some(counted), true) = (&mut partial.counted, is_counted("thoughtsTokenCount")) {
            counted.thinking = partial.thinking.len();
        }
    }
}

fn take_candidate(candidate: &Value, partial: &mut ResponseAccumulator) -> Result<(), Fault> {
    let parts = candidate["content"]["parts"].as_array();
    for part in parts.into_iter().flatten() {
        // "Indicates if the part is thought from the model": <https://ai.google.dev/api/caching#Part>.
        if part["thought"] == true {
            partial.note_thinking(&part["text"]);
        } else {
            partial.push(part["text"].as_str().unwrap_or_default())?;
        }
    }
    partial.note_finish(&candidate["finishReason"]);
    partial.is_complete |= candidate["finishReason"].is_string();
    Ok(())
}

/// An answer that was withheld (`SAFETY`, `RECITATION`, `PROHIBITED_CONTENT`, …) is none. What was cut
/// short by such a reason is an answer that says so in its reason, as at `MAX_TOKENS`. The reasons:
/// <https://ai.google.dev/api/generate-content#FinishReason>.
fn check_finish(partial: &ResponseAccumulator) -> Result<(), Fault> {
    match partial.finish_reason.as_deref() {
        None | Some("STOP" | "MAX_TOKENS" | "FINISH_REASON_UNSPECIFIED") => Ok(()),
        Some(reason) if partial.text.is_empty() => Err(Fault::bad_answer(format!(
            "the provider gave no text, because: {reason}"
        ))),
        Some(_) => Ok(()),
    }
}

/// The counts of an answer. In a stream each event has the totals until then, so each overwrites; a
/// zero is left out, as proto3 does, and never comes after something greater.
/// <https://ai.google.dev/api/generate-content#UsageMetadata>
#[derive(Debug, Default)]
struct Counts {
    /// "When `cachedContent` is set, this is still the total effective prompt size".
    prompt: Count,
    cached: Count,
    /// Tokens of the results of tools, which the model read as well; not within `prompt`.
    tool_prompt: Count,
    candidates: Count,
    /// Beside `candidates`: "Total token count for the generation request (prompt + thoughts +
    /// response candidates)", says the description of `totalTokenCount`.
    thoughts: Count,
    total: Count,
}

impl Counts {
    fn overwrite(&mut self, usage: &Value) {
        for (name, kept) in [
            ("promptTokenCount", &mut self.prompt),
            ("cachedContentTokenCount", &mut self.cached),
            ("toolUsePromptTokenCount", &mut self.tool_prompt),
            ("candidatesTokenCount", &mut self.candidates),
            ("thoughtsTokenCount", &mut self.thoughts),
            ("totalTokenCount", &mut self.total),
        ] {
            kept.overwrite(usage, name);
        }
    }

    fn normal_usage(&self) -> Usage {
        let parts = [
            self.prompt,
            self.cached,
            self.tool_prompt,
            self.candidates,
            self.thoughts,
        ];
        // The total alone does not say what to bill.
        if !Count::are_known(&parts) || self.total == Count::Impossible {
            return Usage::default();
        }
        let input = self.prompt.tokens() + self.tool_prompt.tokens();
        let (candidates, thoughts) = (self.candidates.tokens(), self.thoughts.tokens());
        // Servers that speak this API for other models may count thoughts within; then the total
        // shows it.
        let are_within = thoughts <= candidates && self.total == Count::Given(input + candidates);
        Usage {
            input_tokens: input,
            cached_input_tokens: self.cached.tokens().min(input),
            cache_write_tokens: 0,
            cache_write_1h_tokens: 0,
            output_tokens: if are_within {
                candidates
            } else {
                candidates + thoughts
            },
            reasoning_tokens: thoughts,
            source: UsageSource::Provider,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{any_counts, call, holds_sum_rules, provider, read, read_document};
    use super::super::{FailureKind, Kind};
    use super::*;

    fn usage(input: u64, cached: u64, output: u64, reasoning: u64) -> Usage {
        Usage {
            input_tokens: input,
            cached_input_tokens: cached,
            output_tokens: output,
            reasoning_tokens: reasoning,
            source: UsageSource::Provider,
            ..Usage::default()
        }
    }

    #[test]
    fn a_request_is_as_the_reference_has_it() {
        let call = call("gemini-2.5-flash", true);
        let made = request(&call, &provider(Kind::Gemini, ""));
        assert_eq!(
            made.url,
            "https://generativelanguage.googleapis.com/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse"
        );
        assert_eq!(
            made.body.to_string(),
            r#"{"systemInstruction":{"parts":[{"text":"Be brief."}]},"contents":[{"role":"user","parts":[{"text":"Hi"}]}],"generationConfig":{"maxOutputTokens":9,"temperature":0.5}}"#
        );
        assert!(matches!(
            made.headers.as_slice(),
            [("x-goog-api-key", Header::Secret(key))] if key == "sk-1"
        ));
        assert!(!format!("{made:?}").contains("sk-1"));
        let call = Call {
            system: None,
            max_tokens: None,
            temperature: None,
            stream: false,
            ..call
        };
        let made = request(&call, &provider(Kind::Gemini, "http://h:1/v1beta/"));
        assert_eq!(
            made.url,
            "http://h:1/v1beta/models/gemini-2.5-flash:generateContent"
        );
        assert_eq!(
            made.body.to_string(),
            r#"{"contents":[{"role":"user","parts":[{"text":"Hi"}]}]}"#
        );
    }

    #[test]
    fn a_model_cannot_lead_out_of_its_place_in_the_url() {
        for (model, path) in [
            ("models/gemini-2.5-pro", "models/gemini-2.5-pro"),
            ("tunedModels/mine-1", "tunedModels/mine-1"),
            ("a b?key=x#y%2F:z", "models/a%20b%3Fkey%3Dx%23y%252F%3Az"),
            ("ü", "models/%C3%BC"),
        ] {
            assert_eq!(resource(model), path);
        }
    }

    #[test]
    fn running_totals_replace_each_other_and_thoughts_are_beside_the_answer() {
        let (partial, flow) = read(
            &mut ContentReader::default(),
            &[
                r#"{"candidates":[{"content":{"parts":[{"text":"I think","thought":true}],"role":"model"},"index":0}],"usageMetadata":{"promptTokenCount":12,"totalTokenCount":40,"thoughtsTokenCount":28},"modelVersion":"gemini-2.5-flash"}"#,
                r#"{"candidates":[{"content":{"parts":[{"text":"Hel"}],"role":"model"},"index":0}],"usageMetadata":{"promptTokenCount":12,"candidatesTokenCount":1,"totalTokenCount":43,"thoughtsTokenCount":30},"modelVersion":"gemini-2.5-flash"}"#,
                r#"{"candidates":[{"content":{"parts":[{"text":"lo"}],"role":"model"},"finishReason":"STOP","index":0}],"usageMetadata":{"promptTokenCount":12,"cachedContentTokenCount":4,"candidatesTokenCount":2,"totalTokenCount":44,"thoughtsTokenCount":30},"modelVersion":"gemini-2.5-flash"}"#,
            ],
        );
        assert_eq!(flow, Ok(Flow::More));
        assert!(partial.is_complete);
        assert_eq!(
            (partial.text.as_str(), partial.thinking.as_str()),
            ("Hello", "I think")
        );
        assert_eq!(partial.usage, usage(12, 4, 32, 30));
        assert_eq!(partial.finish_reason.as_deref(), Some("STOP"));
        assert_eq!(partial.model.as_deref(), Some("gemini-2.5-flash"));
    }

    #[test]
    fn totals_that_leave_out_the_answer_do_not_count_it() {
        let piece = |part: &str, usage: &str| {
            format!(
                r#"{{"candidates":[{{"content":{{"parts":[{part}]}}}}],"usageMetadata":{usage}}}"#
            )
        };
        let thought = r#"{"text":"I think","thought":true}"#;
        let prompt_alone = r#"{"promptTokenCount":12,"totalTokenCount":12}"#;
        for (pieces, text, thinking) in [
            (vec![piece(r#"{"text":"Hello"}"#, prompt_alone)], 0, 0),
            (
                vec![
                    piece(
                        r#"{"text":"Hel"}"#,
                        r#"{"promptTokenCount":12,"candidatesTokenCount":1}"#,
                    ),
                    piece(r#"{"text":"lo"}"#, prompt_alone),
                ],
                3,
                0,
            ),
            (
                vec![
                    piece(
                        thought,
                        r#"{"promptTokenCount":12,"thoughtsTokenCount":28}"#,
                    ),
                    piece(r#"{"text":"Hello"}"#, prompt_alone),
                ],
                0,
                7,
            ),
        ] {
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let (partial, _) = read(&mut ContentReader::default(), &pieces);
            let counted = partial.counted.unwrap();
            assert_eq!(
                (counted.text, counted.thinking),
                (text, thinking),
                "{pieces:?}"
            );
        }
    }

    fn counts_of(usage: Value) -> Usage {
        let mut counts = Counts::default();
        counts.overwrite(&usage);
        counts.normal_usage()
    }

    #[test]
    fn what_tools_gave_is_read_too_and_thoughts_within_the_answer_are_not_added() {
        assert_eq!(
            counts_of(
                json!({"promptTokenCount": 10, "toolUsePromptTokenCount": 90, "candidatesTokenCount": 5, "thoughtsTokenCount": 7, "totalTokenCount": 112})
            ),
            usage(100, 0, 12, 7)
        );
        assert_eq!(
            counts_of(
                json!({"promptTokenCount": 10, "candidatesTokenCount": 12, "thoughtsTokenCount": 7, "totalTokenCount": 22})
            ),
            usage(10, 0, 12, 7)
        );
        assert_eq!(counts_of(json!({"totalTokenCount": 22})), Usage::default());
    }

    #[test]
    fn what_was_blocked_or_withheld_is_a_failure_that_says_why() {
        for (document, message) in [
            (
                r#"{"promptFeedback":{"blockReason":"PROHIBITED_CONTENT"},"usageMetadata":{"promptTokenCount":9,"totalTokenCount":9}}"#,
                "the prompt was blocked by the provider: PROHIBITED_CONTENT",
            ),
            (
                r#"{"candidates":[{"finishReason":"SAFETY","index":0}],"usageMetadata":{"promptTokenCount":9,"totalTokenCount":9}}"#,
                "the provider gave no text, because: SAFETY",
            ),
        ] {
            let (partial, read_whole) = read_document(&mut ContentReader::default(), document);
            let fault = read_whole.unwrap_err();
            assert_eq!(
                (fault.kind, fault.message.as_str()),
                (FailureKind::BadAnswer, message)
            );
            assert_eq!(partial.usage, usage(9, 0, 0, 0));
            let (partial, flow) = read(&mut ContentReader::default(), &[document]);
            assert_eq!(flow.unwrap_err(), fault);
            assert_eq!(partial.usage, usage(9, 0, 0, 0));
        }
        // With text it is an answer that was cut short.
        let (partial, read_whole) = read_document(
            &mut ContentReader::default(),
            r#"{"candidates":[{"content":{"parts":[{"text":"Once"}]},"finishReason":"RECITATION"}]}"#,
        );
        assert_eq!(read_whole, Ok(()));
        assert_eq!(partial.text, "Once");
    }

    #[test]
    fn an_error_amid_a_stream_keeps_the_usage_and_names_its_status() {
        let (partial, flow) = read(
            &mut ContentReader::default(),
            &[
                r#"{"candidates":[{"content":{"parts":[{"text":"a"}]}}],"usageMetadata":{"promptTokenCount":3,"candidatesTokenCount":1}}"#,
                r#"{"error":{"code":503,"message":"The model is overloaded.","status":"UNAVAILABLE"}}"#,
            ],
        );
        assert_eq!(
            flow.unwrap_err().message,
            "reported an error: The model is overloaded. (UNAVAILABLE)"
        );
        assert_eq!(partial.usage, usage(3, 0, 1, 0));
        assert!(!partial.is_complete);
    }

    #[test]
    fn a_document_without_a_candidate_is_a_bad_answer() {
        for document in ["{}", "[]", "7", "null", r#"{"candidates":[]}"#] {
            let (_, read) = read_document(&mut ContentReader::default(), document);
            assert_eq!(read.unwrap_err().kind, FailureKind::BadAnswer, "{document}");
        }
    }

    #[test]
    fn the_compatible_api_is_found_whatever_the_address_ends_with() {
        for base_url in [
            "http://h:1",
            "http://h:1/v1beta",
            "http://h:1/v1beta/openai/",
        ] {
            let provider = provider(Kind::Gemini, base_url);
            let expected = "http://h:1/v1beta/openai/chat/completions";
            assert_eq!(chat_url(&provider), expected);
        }
    }

    #[test]
    fn thoughts_that_only_the_total_of_a_chat_completion_counts_are_of_the_answer() {
        for (counts, expected) in [
            (json!([9, 1, 103, null]), Ok((9, 94, 93))),
            (json!([9, 1, 103, 93]), Ok((9, 94, 93))),
            (json!([9, 94, 103, 93]), Ok((9, 94, 93))),
            (json!([9, null, 103, null]), Ok((9, 94, 94))),
            (json!([9, 1, 10, null]), Ok((9, 1, 0))),
            (json!([9, 1, null, null]), Ok((9, 1, 0))),
            (json!([9, 1, 3, null]), Ok((9, 1, 0))),
            (json!([null, null, 103, null]), Ok((0, 0, 0))),
            (json!([9, 1, -1, null]), Err(BadCount)),
        ] {
            let usage = json!({
                "prompt_tokens": counts[0], "completion_tokens": counts[1],
                "total_tokens": counts[2],
                "completion_tokens_details": {"reasoning_tokens": counts[3]},
            });
            let read = chat_usage(&usage)
                .map(|it| (it.input_tokens, it.output_tokens, it.reasoning_tokens));
            assert_eq!(read, expected, "{counts}");
        }
    }

    proptest! {
        #[test]
        fn whatever_a_chat_completion_counts_its_parts_do_not_exceed_it(
            counts in any_counts(&["prompt_tokens", "completion_tokens", "total_tokens"]),
        ) {
            let usage = chat_usage(&counts).unwrap_or_default();
            prop_assert!(holds_sum_rules(&usage), "{usage:?}");
        }

        #[test]
        fn whatever_is_counted_its_parts_do_not_exceed_it(
            all in prop::collection::vec(any_counts(&[
                "promptTokenCount", "cachedContentTokenCount", "toolUsePromptTokenCount",
                "candidatesTokenCount", "thoughtsTokenCount", "totalTokenCount",
            ]), 1..4),
        ) {
            let mut reader = ContentReader::default();
            let mut partial = ResponseAccumulator::default();
            for usage in &all {
                let document = json!({"candidates": [{}], "usageMetadata": usage});
                let _ = reader.document(&document, &mut partial);
                prop_assert!(holds_sum_rules(&partial.usage), "{:?}", partial.usage);
            }
        }
    }
}
