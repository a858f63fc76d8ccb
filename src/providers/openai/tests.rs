use serde_json::json;

use super::super::wire::ANSWER_BYTES_MAX;
use super::super::{FailureKind, Kind, testing};
use super::*;

fn call(stream: bool) -> Call {
    testing::call("gpt-5-mini", stream)
}

fn provider(base_url: &str) -> ProviderConfig {
    testing::provider(Kind::OpenAi, base_url)
}

fn read(events: &[&str]) -> (ResponseAccumulator, Result<Flow, Fault>) {
    testing::read(&mut ChatReader::default(), events)
}

fn provider_usage(input: u64, cached: u64, output: u64, reasoning: u64) -> Usage {
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
    let request = testing::request(&call(true), &provider("https://api.openai.com/v1/"));
    assert_eq!(request.url, "https://api.openai.com/v1/chat/completions");
    assert_eq!(
        request.body,
        json!({"model":"gpt-5-mini","messages":[{"role":"system","content":"Be brief."},{"role":"user","content":"Hi"}],"max_completion_tokens":9,"temperature":0.5,"stream":true,"stream_options":{"include_usage":true}})
    );
    assert!(matches!(
        request.headers.as_slice(),
        [("authorization", Header::Secret(value))] if value == "Bearer sk-1"
    ));
    assert!(!format!("{request:?}").contains("sk-1"));
}

#[test]
fn compatible_servers_get_only_the_legacy_fields() {
    let mut call = call(false);
    let body_of = |call: &Call| testing::request(call, &provider("http://localhost:8080/v1")).body;
    assert_eq!(body_of(&call)["max_tokens"], 9);
    (call.system, call.max_tokens, call.temperature) = (None, None, None);
    assert_eq!(
        body_of(&call),
        json!({"model": "gpt-5-mini", "messages": [{"role": "user", "content": "Hi"}]})
    );
}

#[test]
fn the_host_determines_the_token_limit_field() {
    for (url, name) in [
        ("https://api.openai.com/v1", "max_completion_tokens"),
        ("https://user@api.openai.com:443", "max_completion_tokens"),
        ("https://me.openai.azure.com/openai/v1", "max_completion_tokens"),
        ("https://api.openai.com.example.org/v1", "max_tokens"),
        ("http://[::1]:8080/v1", "max_tokens"),
        ("nonsense", "max_tokens"),
    ] {
        assert_eq!(max_tokens_name(url), name, "{url}");
    }
}

#[test]
fn usage_comes_from_the_last_chunk() {
    let (partial, flow) = read(&[
        r#"{"model":"gpt-5-mini-2025-08-07","choices":[{"index":0,"delta":{"role":"assistant","content":"","refusal":null},"finish_reason":null}],"usage":null}"#,
        r#"{"model":"gpt-5-mini-2025-08-07","choices":[{"index":0,"delta":{"content":"Hel"},"finish_reason":null}],"usage":null}"#,
        r#"{"model":"gpt-5-mini-2025-08-07","choices":[{"index":0,"delta":{"content":"lo"},"finish_reason":null}],"usage":null}"#,
        r#"{"model":"gpt-5-mini-2025-08-07","choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":null}"#,
        r#"{"model":"gpt-5-mini-2025-08-07","choices":[],"usage":{"prompt_tokens":19,"completion_tokens":10,"total_tokens":29,"prompt_tokens_details":{"cached_tokens":4,"audio_tokens":0},"completion_tokens_details":{"reasoning_tokens":8}}}"#,
        "[DONE]",
    ]);
    assert_eq!(flow, Ok(Flow::End));
    assert_eq!(partial.text, "Hello");
    assert_eq!(partial.model.as_deref(), Some("gpt-5-mini-2025-08-07"));
    assert_eq!(partial.finish_reason.as_deref(), Some("stop"));
    assert_eq!(partial.usage, provider_usage(19, 4, 10, 8));
    assert!(partial.is_complete);
}

#[test]
fn cumulative_usage_is_not_added_up() {
    let (partial, _) = read(&[
        r#"{"choices":[{"delta":{"content":"a"}}],"usage":{"prompt_tokens":5,"completion_tokens":1}}"#,
        r#"{"choices":[{"delta":{"content":"b"}}],"usage":{"prompt_tokens":5,"completion_tokens":2}}"#,
        r#"{"choices":[],"usage":{}}"#,
    ]);
    assert_eq!(partial.usage, provider_usage(5, 0, 2, 0));
    assert!(!partial.is_complete);
}

#[test]
fn usage_without_counts_replaces_none() {
    let good = r#"{"choices":[{"delta":{"content":"a"},"finish_reason":"stop"}],"usage":{"prompt_tokens":5,"completion_tokens":7,"prompt_tokens_details":{"cached_tokens":2},"completion_tokens_details":{"reasoning_tokens":3}}}"#;
    for later in [
        r#""n/a""#,
        "null",
        "[]",
        "{}",
        r#"{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}"#,
        r#"{"prompt_tokens":-1,"completion_tokens":9}"#,
        r#"{"prompt_tokens":5}"#,
        r#"{"completion_tokens":7,"completion_tokens_details":{"reasoning_tokens":3}}"#,
        r#"{"total_tokens":12}"#,
    ] {
        let later = format!(r#"{{"choices":[],"usage":{later}}}"#);
        // It may also be the first event.
        let (partial, _) = read(&[&later, good, &later]);
        if later.contains(r#""prompt_tokens":5"#) {
            assert_eq!(partial.usage.output_tokens, 7, "{later}");
        } else {
            assert_eq!(partial.usage, provider_usage(5, 2, 7, 3), "{later}");
        }
        assert_eq!(partial.counted.unwrap().text, 1, "{later}");
    }
}

#[test]
fn cached_tokens_are_found_under_each_of_their_names() {
    for usage in [
        json!({"prompt_tokens": 9, "completion_tokens": 1, "prompt_cache_hit_tokens": 4, "prompt_cache_miss_tokens": 5}),
        json!({"prompt_tokens": 9, "completion_tokens": 1, "cached_tokens": 4}),
        json!({"prompt_tokens": 9, "completion_tokens": 1, "cached_tokens": 4, "prompt_tokens_details": null}),
        json!({"prompt_tokens": 9, "completion_tokens": 1, "prompt_cache_hit_tokens": 8, "prompt_tokens_details": {"cached_tokens": 4}}),
    ] {
        assert_eq!(normal_usage(&usage), Ok(provider_usage(9, 4, 1, 0)), "{usage}");
    }
    for name in
        ["cached_tokens", "cache_read_input_tokens", "cache_read_tokens", "cached_read_tokens"]
    {
        let usage = json!({"prompt_tokens": 9, "completion_tokens": 1, "cached_tokens": 0,
            "prompt_tokens_details": {name: 4, "cached_tokens": if name == "cached_tokens" { 4 } else { 0 }}});
        assert_eq!(normal_usage(&usage), Ok(provider_usage(9, 4, 1, 0)), "{usage}");
    }
    let impossible = json!({"prompt_tokens": 9, "prompt_cache_hit_tokens": -4});
    assert_eq!(normal_usage(&impossible), Err(BadCount));
}

#[test]
fn cache_writes_are_found_under_each_of_their_names() {
    let details = [
        "cache_write_tokens",
        "cache_creation_tokens",
        "cache_creation_input_tokens",
        "cached_creation_tokens",
    ];
    let details = details.map(|name| json!({"prompt_tokens_details": {name: 6}}));
    let flat = ["cache_creation_input_tokens", "cache_creation_tokens", "cache_write_tokens"];
    let both = json!({"cache_creation_input_tokens": 6,
        "prompt_tokens_details": {"cache_creation_tokens": 6, "cached_tokens": 0}});
    for more in details.into_iter().chain(flat.map(|name| json!({name: 6}))).chain([both]) {
        let mut usage = json!({"prompt_tokens": 9, "completion_tokens": 1});
        usage.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let expected = Usage { cache_write_tokens: 6, ..provider_usage(9, 0, 1, 0) };
        assert_eq!(normal_usage(&usage), Ok(expected), "{usage}");
    }
}

#[test]
fn one_hour_writes_are_found_under_each_of_their_names() {
    let nested = json!({"ephemeral_5m_input_tokens": 2, "ephemeral_1h_input_tokens": 4});
    for more in [
        json!({"cache_creation": nested}),
        json!({"cache_creation_input_tokens": 6, "cache_creation": nested}),
        json!({"cache_creation_input_tokens": 6, "claude_cache_creation_1_h_tokens": 4}),
        json!({"cache_creation_input_tokens": 6, "ephemeral_1h_input_tokens": 4}),
        json!({"prompt_tokens_details": {"cache_creation_tokens": 6, "cache_creation_token_details": nested}}),
    ] {
        let mut usage = json!({"prompt_tokens": 9, "completion_tokens": 1});
        usage.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let written = Usage { cache_write_tokens: 6, cache_write_1h_tokens: 4, ..Usage::default() };
        let expected =
            Usage { input_tokens: 9, output_tokens: 1, source: UsageSource::Provider, ..written };
        assert_eq!(normal_usage(&usage), Ok(expected), "{usage}");
    }
}

#[test]
fn reasoning_beyond_the_completion_follows_the_total() {
    let usage = |total: Value| {
        json!({"prompt_tokens": 10, "completion_tokens": 9, "total_tokens": total,
            "completion_tokens_details": {"reasoning_tokens": 50}})
    };
    assert_eq!(normal_usage(&usage(json!(19))), Ok(provider_usage(10, 0, 9, 9)));
    for beside in [json!(69), json!(null), json!(70)] {
        assert_eq!(normal_usage(&usage(beside)), Ok(provider_usage(10, 0, 59, 50)));
    }
}

#[test]
fn uses_of_server_tools_have_no_known_price() {
    for (more, note) in [
        (json!({"num_search_queries": 3}), Some("tool fee")),
        (json!({"citation_tokens": 900}), Some("tool fee")),
        (json!({"num_sources_used": 4}), Some("tool fee")),
        (json!({"server_tool_use": {"web_search_requests": 1}}), Some("tool fee")),
        (json!({"search_context_size": "low"}), Some("search context low")),
        (json!({"search_context_size": "high"}), None),
        (json!({"num_sources_used": 0, "server_tool_use": {"web_search_requests": 0}}), None),
    ] {
        let mut usage = json!({"prompt_tokens": 9, "completion_tokens": 1});
        usage.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let (partial, _) = read(&[&json!({"choices": [], "usage": usage}).to_string()]);
        assert_eq!(partial.billing.note().as_deref(), note, "{usage}");
    }
    for (model, has_fee) in [
        ("openai/gpt-5-search-api-2025-10-14", true),
        ("gpt-4o-search-preview", true),
        ("gpt-4o", false),
    ] {
        let mut billing = Billing::default();
        note_search_model(model, &mut billing);
        assert_eq!(!billing.unpriced.is_empty(), has_fee, "{model}");
    }
}

#[test]
fn output_other_than_text_has_no_known_price() {
    for (message, note) in [
        (r#"{"content":"a","images":[{"type":"image_url"}]}"#, Some("image tokens")),
        (r#"{"content":null,"audio":{"id":"a"}}"#, Some("audio tokens")),
        (r#"{"content":"a","executed_tools":[{"type":"search"}]}"#, Some("tool fee")),
        (r#"{"content":"a","annotations":[{"type":"url_citation"}]}"#, Some("tool fee")),
        (r#"{"content":"a","images":[],"audio":null,"annotations":[{"type":"file"}]}"#, None),
    ] {
        let (partial, _) = read_document(&format!(r#"{{"choices":[{{"message":{message}}}]}}"#));
        assert_eq!(partial.billing.note().as_deref(), note, "{message}");
        let (partial, _) = read(&[&format!(r#"{{"choices":[{{"delta":{message}}}]}}"#)]);
        assert_eq!(partial.billing.note().as_deref(), note, "{message}");
    }
}

#[test]
fn nonstandard_tiers_and_audio_are_billed_differently() {
    let usage = r#""usage":{"prompt_tokens":5,"completion_tokens":7,"prompt_tokens_details":{"audio_tokens":PROMPT},"completion_tokens_details":{"audio_tokens":ANSWER}}"#;
    for (tier, prompt, answer, is_billed_otherwise) in [
        ("null", 0, 0, false),
        (r#""default""#, 0, 0, false),
        (r#""flex""#, 0, 0, true),
        ("null", 1, 0, true),
        ("null", 0, 1, true),
    ] {
        let usage =
            usage.replace("PROMPT", &prompt.to_string()).replace("ANSWER", &answer.to_string());
        let chunk = format!(r#"{{"service_tier":{tier},"choices":[],{usage}}}"#);
        let (partial, _) = read(&[&chunk]);
        assert_eq!(partial.billing.note().is_some(), is_billed_otherwise, "{chunk}");
        assert_eq!(partial.usage, provider_usage(5, 0, 7, 0), "{chunk}");
        let message = r#""choices":[{"message":{"content":"a"}}]"#;
        let document = format!(r#"{{"service_tier":{tier},{message},{usage}}}"#);
        let (partial, _) = read_document(&document);
        assert_eq!(partial.billing.note().is_some(), is_billed_otherwise, "{document}");
    }
}

#[test]
fn stream_is_complete_when_each_choice_has_ended() {
    let chunk = |index: u64, finish: &str| {
        format!(
            r#"{{"choices":[{{"index":{index},"delta":{{"content":"a"}},"finish_reason":{finish}}}]}}"#
        )
    };
    let stop = r#""stop""#;
    for (chunks, is_complete) in [
        (&[(0, "null"), (1, "null"), (0, stop)][..], false),
        (&[(0, "null"), (1, "null"), (0, stop), (1, stop)], true),
        (&[(0, stop), (1, "null")], false),
        (&[(0, "null"), (0, stop)], true),
        (&[(0, r#""""#)], false),
        (&[(0, r#"" ""#)], false),
        (&[(0, r#""null""#)], false),
        (&[(0, "false"), (0, "0"), (0, "{}")], false),
        (&[(0, r#""""#), (0, stop), (0, r#""""#)], true),
        // A chunk for a choice that has already ended.
        (&[(0, stop), (0, "null")], true),
    ] {
        let chunks: Vec<String> =
            chunks.iter().map(|(index, finish)| chunk(*index, finish)).collect();
        let chunks: Vec<&str> = chunks.iter().map(String::as_str).collect();
        let (partial, _) = read(&chunks);
        assert_eq!(partial.is_complete, is_complete, "{chunks:?}");
        let (partial, _) = read(&[&chunks[..], &[r#"{"choices":[]}"#, "[DONE]"]].concat());
        assert!(partial.is_complete);
    }
}

#[test]
fn tool_calls_and_other_choices_are_kept_for_token_counts() {
    let (partial, _) = read(&[
        r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"id":"c","type":"function","function":{"name":"look","arguments":""}}]}}]}"#,
        r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\"at\""}}]}}]}"#,
        r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":":1}"}}]}}]}"#,
    ]);
    assert_eq!((&*partial.text, &*partial.other_output), ("", r#"look{"at":1}"#));
    let (partial, _) = read_document(
        r#"{"choices":[
            {"message":{"content":"A","tool_calls":[{"function":{"name":"look","arguments":{"at":1}}},
                {"custom":{"name":"say","input":"x"}}]}},
            {"message":{"content":"B","function_call":{"name":"old","arguments":"{}"}}}]}"#,
    );
    assert_eq!((&*partial.text, &*partial.other_output), ("A", r#"look{"at":1}sayxold{}B"#));
}

#[test]
fn event_without_data_changes_nothing() {
    let (partial, flow) = read(&["", r#"{"choices":[{"delta":{"content":"a"}}]}"#, " "]);
    assert_eq!((flow, &*partial.text), (Ok(Flow::More), "a"));
}

#[test]
fn a_server_that_refuses_the_option_gets_no_usage_request() {
    let provider = ProviderConfig { stream_usage: false, ..provider("http://localhost:8080/v1") };
    let body = testing::request(&call(true), &provider).body;
    assert_eq!((&body["stream"], body.get("stream_options")), (&json!(true), None));
}

#[test]
fn reasoning_counted_beside_the_completion_is_added_to_it() {
    // xAI's counts, as in its documentation.
    let xai = json!({"prompt_tokens": 32, "completion_tokens": 9, "total_tokens": 135,
        "completion_tokens_details": {"reasoning_tokens": 94}});
    assert_eq!(normal_usage(&xai), Ok(provider_usage(32, 0, 103, 94)));
    let openai = json!({"prompt_tokens": 10, "completion_tokens": 9, "total_tokens": 19,
        "completion_tokens_details": {"reasoning_tokens": 5}});
    assert_eq!(normal_usage(&openai), Ok(provider_usage(10, 0, 9, 5)));
}

#[test]
fn invalid_usage_is_discarded() {
    for usage in [
        r#"{"prompt_tokens":-5,"completion_tokens":1}"#,
        r#"{"prompt_tokens":5,"completion_tokens":99999999999999999999999}"#,
        r#"{"prompt_tokens":"5","completion_tokens":1}"#,
        r#"{"prompt_tokens":5,"completion_tokens":1,"prompt_tokens_details":{"cached_tokens":-1}}"#,
        r#"{"prompt_tokens":null}"#,
        r#""none""#,
        "[]",
    ] {
        let (partial, flow) = read(&[&format!(r#"{{"choices":[],"usage":{usage}}}"#)]);
        assert_eq!(flow, Ok(Flow::More), "{usage}");
        assert_eq!(partial.usage, Usage::default(), "{usage}");
    }
}

#[test]
fn cached_tokens_are_capped_at_the_input_tokens() {
    let usage = json!({"prompt_tokens": 5, "completion_tokens": 1,
        "prompt_tokens_details": {"cached_tokens": 9, "cache_write_tokens": 3}});
    assert_eq!(normal_usage(&usage), Ok(provider_usage(5, 5, 1, 0)));
}

#[test]
fn an_error_within_a_stream_keeps_the_usage() {
    let (partial, flow) = read(&[
        r#"{"choices":[{"delta":{"content":"a"}}],"usage":{"prompt_tokens":5,"completion_tokens":1}}"#,
        r#"{"error":{"message":"The server had an error","type":"server_error"}}"#,
    ]);
    let fault = flow.unwrap_err();
    assert_eq!(fault.kind, FailureKind::Status);
    assert_eq!(fault.message, "reported an error: The server had an error (server_error)");
    assert_eq!(fault.status, None);
    assert_eq!(partial.usage, provider_usage(5, 0, 1, 0));
}

#[test]
fn an_event_that_is_not_json_is_a_bad_response() {
    assert_eq!(read(&["{"]).1.unwrap_err().kind, FailureKind::BadAnswer);
}

#[test]
fn stream_cannot_grow_beyond_the_limit() {
    let piece = format!(r#"{{"choices":[{{"delta":{{"content":"{}"}}}}]}}"#, "x".repeat(1 << 19));
    let events = vec![piece.as_str(); ANSWER_BYTES_MAX / (1 << 19) + 1];
    let (partial, flow) = read(&events);
    assert_eq!(flow.unwrap_err().kind, FailureKind::TooLarge);
    assert_eq!(partial.text.len(), ANSWER_BYTES_MAX);
}

fn read_document(document: &str) -> (ResponseAccumulator, Result<(), Fault>) {
    testing::read_document(&mut ChatReader::default(), document)
}

#[test]
fn a_complete_response_is_parsed() {
    let (partial, read) = read_document(
        r#"{"id":"c","object":"chat.completion","model":"gpt-5-mini-2025-08-07","choices":[{"index":0,"message":{"role":"assistant","content":"Hello","refusal":null},"finish_reason":"length"}],"usage":{"prompt_tokens":19,"completion_tokens":10,"total_tokens":29}}"#,
    );
    assert_eq!(read, Ok(()));
    assert_eq!(partial.text, "Hello");
    assert_eq!(partial.model.as_deref(), Some("gpt-5-mini-2025-08-07"));
    assert_eq!(partial.finish_reason.as_deref(), Some("length"));
    assert_eq!(partial.usage, provider_usage(19, 0, 10, 0));
    assert!(partial.is_complete);
}

#[test]
fn refusals_and_content_parts_are_text() {
    let message = |message: &str| {
        read_document(&format!(r#"{{"choices":[{{"message":{message}}}]}}"#)).0.text
    };
    assert_eq!(message(r#"{"content":null,"refusal":"No."}"#), "No.");
    assert_eq!(
        message(r#"{"content":[{"type":"thinking","thinking":[]},{"type":"text","text":"A"}]}"#),
        "A"
    );
    assert_eq!(message(r#"{"content":null,"tool_calls":[]}"#), "");
}

#[test]
fn a_document_without_a_choice_is_a_bad_response() {
    for document in ["{}", "[]", "7", "null", r#"{"choices":[]}"#, r#"{"choices":{"0":1}}"#] {
        let fault = read_document(document).1.unwrap_err();
        assert_eq!(fault.kind, FailureKind::BadAnswer, "{document}");
    }
    let fault = read_document(r#"{"error":{"message":"no credit"}}"#).1.unwrap_err();
    assert_eq!(fault.message, "reported an error: no credit");
}

#[test]
fn an_error_of_a_choice_fails_and_keeps_its_tokens() {
    let usage = r#""usage":{"prompt_tokens":5,"completion_tokens":1}"#;
    let error = r#""error":{"code":502,"message":"Upstream error"}"#;
    for (part, end, message) in [
        (r#"{"content":"par"}"#, format!(r#""finish_reason":"error",{error}"#), "Upstream error"),
        (r#"{"content":"par"}"#, error.to_owned(), "Upstream error"),
        (r#"{"content":"par"}"#, r#""finish_reason":"error""#.into(), "ended with `error`"),
        (r#"{"content":"par"}"#, r#""finish_reason":"ERROR""#.into(), "ended with `ERROR`"),
        (
            r#"{"content":"par"}"#,
            r#""finish_reason":"stop","native_finish_reason":"error""#.into(),
            "ended with `error`",
        ),
        (
            r#"{"content":"par","error":{"message":"Upstream error"}}"#,
            r#""finish_reason":null"#.into(),
            "Upstream error",
        ),
    ] {
        let chunk = format!(r#"{{"choices":[{{"delta":{part},{end}}}],{usage}}}"#);
        let (streamed, flow) = read(&[&chunk]);
        let document = format!(r#"{{"choices":[{{"message":{part},{end}}}],{usage}}}"#);
        let (whole, answer) = read_document(&document);
        for (partial, fault) in [(streamed, flow.unwrap_err()), (whole, answer.unwrap_err())] {
            assert_eq!(fault.kind, FailureKind::Status, "{chunk}");
            assert!(fault.message.contains(message), "{}", fault.message);
            assert_eq!((&*partial.text, partial.usage), ("par", provider_usage(5, 0, 1, 0)));
        }
    }
    let (_, read) = read_document(r#"{"choices":[{"finish_reason":"error"}]}"#);
    assert_eq!(read.unwrap_err().kind, FailureKind::Status);
    let fine = r#"{"choices":[{"message":{"content":"a"},"finish_reason":"stop","error":null}]}"#;
    assert_eq!(read_document(fine).1, Ok(()));
}

#[test]
fn a_stream_without_choices_is_no_answer() {
    for before in [r#"{"choices":null}"#, r#"{"choices":[]}"#, r#"{"code":1,"msg":"no"}"#, ""] {
        let (partial, flow) = read(&[before, "[DONE]"]);
        assert_eq!((flow, partial.is_complete), (Ok(Flow::End), false), "{before}");
    }
    let (partial, _) = read(&[r#"{"choices":[{"delta":{}}]}"#, "[DONE]"]);
    assert!(partial.is_complete);
}

#[test]
fn an_event_named_error_is_an_error() {
    let event = Event { name: "error".into(), data: r#"{"code":7,"message":"no credit"}"#.into() };
    let read = ChatReader::default().event(&event, &mut ResponseAccumulator::default());
    assert_eq!(read.unwrap_err().message, "reported an error: no credit");
}
