use proptest::prelude::*;
use serde_json::json;

use super::super::testing::{any_counts, call, holds_sum_rules, provider, read, read_document};
use super::super::{Call, FailureKind, Kind, testing};
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
fn the_request_matches_the_api_reference() {
    let call = call("gemini-2.5-flash", true);
    let made = testing::request(&call, &provider(Kind::Gemini, ""));
    assert_eq!(
        made.url,
        "https://generativelanguage.googleapis.com/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse"
    );
    assert_eq!(
        made.body,
        json!({"systemInstruction":{"parts":[{"text":"Be brief."}]},"contents":[{"role":"user","parts":[{"text":"Hi"}]}],"generationConfig":{"maxOutputTokens":9,"temperature":0.5}})
    );
    assert!(matches!(
        made.headers.as_slice(),
        [("x-goog-api-key", Header::Secret(key))] if key == "sk-1"
    ));
    assert!(!format!("{made:?}").contains("sk-1"));
    let call = Call { system: None, max_tokens: None, temperature: None, stream: false, ..call };
    let made = testing::request(&call, &provider(Kind::Gemini, "http://h:1/v1beta/"));
    assert_eq!(made.url, "http://h:1/v1beta/models/gemini-2.5-flash:generateContent");
    assert_eq!(made.body.to_string(), r#"{"contents":[{"role":"user","parts":[{"text":"Hi"}]}]}"#);
}

#[test]
fn the_model_is_escaped_in_the_url() {
    for (model, path) in [
        ("models/gemini-2.5-pro", "models/gemini-2.5-pro"),
        ("tunedModels/mine-1", "tunedModels/mine-1"),
        ("a b?key=x#y%2F:z", "models/a%20b%3Fkey%3Dx%23y%252F%3Az"),
        ("ü", "models/%C3%BC"),
        ("../../admin", "models/%2E%2E%2F%2E%2E%2Fadmin"),
        ("tunedModels/../x", "models/tunedModels%2F%2E%2E%2Fx"),
        ("..", "models/%2E%2E"),
        (".", "models/%2E"),
        ("a//b", "models/a%2F%2Fb"),
        ("/admin", "models/%2Fadmin"),
        ("%2e%2e/x", "%252e%252e/x"),
        ("..\\x", "models/..%5Cx"),
    ] {
        assert_eq!(resource(model), path);
    }
}

#[test]
fn running_totals_overwrite_and_exclude_thoughts() {
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
    assert_eq!((partial.text.as_str(), partial.thinking.as_str()), ("Hello", "I think"));
    assert_eq!(partial.usage, usage(12, 4, 32, 30));
    assert_eq!(partial.finish_reason.as_deref(), Some("STOP"));
    assert_eq!(partial.model.as_deref(), Some("gemini-2.5-flash"));
}

#[test]
fn totals_without_output_do_not_cover_it() {
    let piece = |part: &str, usage: &str| {
        format!(r#"{{"candidates":[{{"content":{{"parts":[{part}]}}}}],"usageMetadata":{usage}}}"#)
    };
    let thought = r#"{"text":"I think","thought":true}"#;
    let prompt_alone = r#"{"promptTokenCount":12,"totalTokenCount":12}"#;
    for (pieces, text, thinking) in [
        (vec![piece(r#"{"text":"Hello"}"#, prompt_alone)], 0, 0),
        (
            vec![
                piece(r#"{"text":"Hel"}"#, r#"{"promptTokenCount":12,"candidatesTokenCount":1}"#),
                piece(r#"{"text":"lo"}"#, prompt_alone),
            ],
            3,
            0,
        ),
        (
            vec![
                piece(thought, r#"{"promptTokenCount":12,"thoughtsTokenCount":28}"#),
                piece(r#"{"text":"Hello"}"#, prompt_alone),
            ],
            0,
            7,
        ),
    ] {
        let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
        let (partial, _) = read(&mut ContentReader::default(), &pieces);
        let counted = partial.counted.unwrap();
        assert_eq!((counted.text, counted.thinking), (text, thinking), "{pieces:?}");
    }
}

fn counts_of(usage: Value) -> Usage {
    let mut partial = ResponseAccumulator::default();
    ContentReader::default().note_usage(&usage, &mut partial);
    partial.usage
}

#[test]
fn tool_results_are_input_and_thoughts_are_not_added_twice() {
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
fn only_tokens_with_another_price_leave_the_cost_unknown() {
    for (usage, unpriced) in [
        (json!({"promptTokensDetails": [{"modality": "IMAGE", "tokenCount": 258}]}), &[][..]),
        (json!({"promptTokensDetails": [{"modality": "VIDEO", "tokenCount": 9}]}), &[]),
        (
            json!({"promptTokensDetails": [{"modality": "AUDIO", "tokenCount": 9}]}),
            &["audio tokens"],
        ),
        (json!({"promptTokensDetails": [{"modality": "AUDIO", "tokenCount": 0}]}), &[]),
        (
            json!({"candidatesTokensDetails": [{"modality": "IMAGE", "tokenCount": 9}]}),
            &["image tokens"],
        ),
    ] {
        let mut partial = ResponseAccumulator::default();
        ContentReader::default().note_usage(&usage, &mut partial);
        assert_eq!(partial.billing.unpriced, unpriced, "{usage}");
        assert!(partial.has_modalities);
    }
    let embedded = json!({"embedding": {}, "usageMetadata": {"promptTokenDetails": [
        {"modality": "IMAGE", "tokenCount": 9}]}});
    let mut partial = ResponseAccumulator::default();
    EmbeddingReader.document(&embedded, &mut partial).unwrap();
    assert_eq!(partial.billing.unpriced, ["image tokens"]);
}

#[test]
fn a_blocked_response_is_a_failure_with_its_reason() {
    for (document, message) in [
        (
            r#"{"promptFeedback":{"blockReason":"PROHIBITED_CONTENT"},"usageMetadata":{"promptTokenCount":9,"totalTokenCount":9}}"#,
            "the provider blocked the prompt: PROHIBITED_CONTENT",
        ),
        (
            r#"{"candidates":[{"finishReason":"SAFETY","index":0}],"usageMetadata":{"promptTokenCount":9,"totalTokenCount":9}}"#,
            "the provider returned no text: SAFETY",
        ),
    ] {
        let (partial, read_whole) = read_document(&mut ContentReader::default(), document);
        let fault = read_whole.unwrap_err();
        assert_eq!((fault.kind, fault.message.as_str()), (FailureKind::BadAnswer, message));
        assert_eq!(partial.usage, usage(9, 0, 0, 0));
        let (partial, flow) = read(&mut ContentReader::default(), &[document]);
        assert_eq!(flow.unwrap_err(), fault);
        assert_eq!(partial.usage, usage(9, 0, 0, 0));
    }
    // With text, the answer counts as cut short.
    let (partial, read_whole) = read_document(
        &mut ContentReader::default(),
        r#"{"candidates":[{"content":{"parts":[{"text":"Once"}]},"finishReason":"RECITATION"}]}"#,
    );
    assert_eq!(read_whole, Ok(()));
    assert_eq!(partial.text, "Once");
}

#[test]
fn error_within_a_stream_keeps_usage_and_names_its_status() {
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
fn a_document_without_a_candidate_is_a_bad_response() {
    for document in ["{}", "[]", "7", "null", r#"{"candidates":[]}"#] {
        let (_, read) = read_document(&mut ContentReader::default(), document);
        assert_eq!(read.unwrap_err().kind, FailureKind::BadAnswer, "{document}");
    }
}

#[test]
fn the_compatible_api_is_derived_from_every_url_form() {
    for base_url in ["http://h:1", "http://h:1/v1beta", "http://h:1/v1beta/openai/"] {
        let provider = provider(Kind::Gemini, base_url);
        let expected = "http://h:1/v1beta/openai/chat/completions";
        assert_eq!(chat_url(&provider), expected);
    }
}

#[test]
fn thoughts_counted_only_in_the_total_are_output() {
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
        let read =
            chat_usage(&usage).map(|it| (it.input_tokens, it.output_tokens, it.reasoning_tokens));
        assert_eq!(read, expected, "{counts}");
    }
}

#[test]
fn only_a_finish_reason_ends_a_stream() {
    for (reason, is_complete) in [
        (r#""STOP""#, true),
        (r#""""#, false),
        ("null", false),
        ("0", false),
        (r#""FINISH_REASON_UNSPECIFIED""#, false),
    ] {
        let part = r#""content":{"parts":[{"text":"a"}]}"#;
        let event = format!(r#"{{"candidates":[{{{part},"finishReason":{reason}}}]}}"#);
        let (partial, flow) =
            read(&mut ContentReader::default(), &["ping", &event, "[PING]", "[DONE]"]);
        assert_eq!((flow, partial.is_complete), (Ok(Flow::More), is_complete), "{reason}");
    }
    let error = r#"{"candidates":[{"content":{"parts":[{"text":"a"}]},"finishReason":"ERROR"}]}"#;
    let (partial, flow) = read(&mut ContentReader::default(), &[error]);
    assert_eq!(flow.unwrap_err().kind, FailureKind::Status);
    assert_eq!(partial.text, "a");
}

proptest! {
    #[test]
    fn parts_of_chat_counts_do_not_exceed_their_sum(
        counts in any_counts(&["prompt_tokens", "completion_tokens", "total_tokens"]),
    ) {
        let usage = chat_usage(&counts).unwrap_or_default();
        prop_assert!(holds_sum_rules(&usage), "{usage:?}");
    }

    #[test]
    fn parts_of_counts_do_not_exceed_their_sum(
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
