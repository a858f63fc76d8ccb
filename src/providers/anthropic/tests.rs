use serde_json::json;

use super::super::{CacheMarks, Call, FailureKind, Kind, testing};
use super::*;

fn call() -> Call {
    Call { max_tokens: None, ..testing::call("claude-sonnet-4-5", true) }
}

fn provider(base_url: &str) -> ProviderConfig {
    testing::provider(Kind::Anthropic, base_url)
}

fn read(events: &[(&str, &str)]) -> (ResponseAccumulator, Result<Flow, Fault>) {
    let (mut reader, mut partial) = (MessageReader::default(), ResponseAccumulator::default());
    let mut flow = Ok(Flow::More);
    for (name, data) in events {
        let event = Event { name: (*name).to_owned(), data: (*data).to_owned() };
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
        output_tokens: output,
        source: UsageSource::Provider,
        ..Usage::default()
    }
}

#[test]
fn the_request_matches_the_api_reference() {
    let request = testing::request(&call(), &provider(""));
    assert_eq!(request.url, "https://api.anthropic.com/v1/messages");
    assert_eq!(
        request.body,
        json!({"model":"claude-sonnet-4-5","max_tokens":4096,"system":"Be brief.","messages":[{"role":"user","content":"Hi"}],"temperature":0.5,"stream":true})
    );
    assert!(matches!(
        request.headers.as_slice(),
        [("x-api-key", Header::Secret(key)), ("anthropic-version", Header::Plain(version))]
            if key == "sk-1" && version == "2023-06-01"
    ));
}

#[test]
fn constant_prefixes_are_marked_for_the_cache() {
    let written = |system: &str, prompt: &str, marks: (bool, usize)| {
        let call = Call {
            system: Some(system.into()),
            prompt: prompt.into(),
            cache_marks: CacheMarks { system: marks.0, prompt_bytes: marks.1 },
            ..call()
        };
        let body = testing::request(&call, &provider("")).body;
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
    // Blank blocks are refused, and a character is not split.
    for (prompt, bytes) in [("  Hi", 2), ("Hi  ", 2), ("é", 1), ("Hi", 9), ("Hi", 0)] {
        let expected = format!(r#"" " {}"#, json!(prompt));
        assert_eq!(written(" ", prompt, (true, bytes)), expected);
    }
}

#[test]
fn base_url_with_the_version_is_accepted() {
    for base_url in ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/"] {
        assert_eq!(testing::request(&call(), &provider(base_url)).url, "http://h:1/v1/messages");
    }
}

const START: (&str, &str) = (
    "message_start",
    r#"{"type":"message_start","message":{"id":"m","type":"message","role":"assistant","content":[],"model":"claude-sonnet-4-5-20250929","stop_reason":null,"usage":{"input_tokens":25,"cache_creation_input_tokens":100,"cache_read_input_tokens":1000,"output_tokens":1}}}"#,
);

#[test]
fn stream_counts_overwrite_earlier_ones() {
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
        ("content_block_stop", r#"{"type":"content_block_stop","index":0}"#),
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
fn the_event_name_replaces_a_missing_type() {
    assert_eq!(read(&[("message_stop", "{}")]).1, Ok(Flow::End));
}

#[test]
fn an_error_event_keeps_the_usage() {
    let (partial, flow) = read(&[
        START,
        ("error", r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#),
    ]);
    let fault = flow.unwrap_err();
    assert_eq!(fault.kind, FailureKind::Status);
    assert_eq!(fault.message, "reported an error: Overloaded (overloaded_error)");
    assert_eq!(fault.status, None);
    assert_eq!(partial.usage, provider_usage(1125, 1000, 100, 1));
}

#[test]
fn invalid_and_zero_counts_replace_none() {
    let usage = |usage: &str| format!(r#"{{"type":"message_delta","usage":{usage}}}"#);
    let good = usage(r#"{"output_tokens":3}"#);
    for bad in
        [r#"{"output_tokens":-3}"#, r#"{"input_tokens":0,"output_tokens":0}"#, r#""n/a""#, "{}"]
    {
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
fn only_final_counts_cover_the_output() {
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
fn tool_calls_are_kept_for_token_counts() {
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
    assert_eq!((&*partial.text, &*partial.other_output), ("", r#"look{"at":1}"#));
    let (partial, _) = read_document(
        r#"{"content":[{"type":"tool_use","id":"t","name":"look","input":{"at":1}}]}"#,
    );
    assert_eq!((&*partial.text, &*partial.other_output), ("", r#"look{"at":1}"#));
}

#[test]
fn separately_counted_thinking_is_part_of_the_output() {
    for (thinking, reasoning) in [(json!(3), 3), (json!(9), 7), (json!(null), 0)] {
        let usage = json!({"input_tokens": 5, "output_tokens": 7,
            "output_tokens_details": {"thinking_tokens": thinking}});
        let (partial, _) = read_document(&json!({"content": [], "usage": usage}).to_string());
        let expected = Usage { reasoning_tokens: reasoning, ..provider_usage(5, 0, 0, 7) };
        assert_eq!(partial.usage, expected, "{usage}");
    }
}

#[test]
fn nonstandard_tiers_and_speeds_are_billed_differently() {
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
        assert_eq!(partial.billing.note().is_some(), is_billed_otherwise, "{usage}");
        let start = json!({"message": {"usage": usage}}).to_string();
        let (partial, _) = read(&[("message_start", &start)]);
        assert_eq!(partial.billing.note().is_some(), is_billed_otherwise, "{usage}");
    }
}

#[test]
fn the_region_has_a_surcharge_since_version_4_6() {
    for (model, is_known) in [
        ("claude-opus-4-6", true),
        ("claude-opus-4-6-20260205", true),
        ("anthropic/claude-sonnet-4.6", true),
        ("claude-fable-5", true),
        ("claude-haiku-5-5", true),
        ("claude-opus-4-5-20251101", false),
        ("claude-opus-4-20250514", false),
        ("claude-3-5-sonnet-latest", false),
        ("gpt-5", false),
    ] {
        let mut billing = Billing::default();
        note_region(&json!("us"), &mut billing);
        price_region(model, &mut billing);
        assert_eq!(billing.unpriced.is_empty(), is_known, "{model}");
        let note = if is_known { "inference_geo us x1.1" } else { "inference_geo us" };
        assert_eq!(billing.note().as_deref(), Some(note), "{model}");
    }
    for standard in [json!(null), json!(""), json!("global"), json!("not_available"), json!(7)] {
        let mut billing = Billing::default();
        note_region(&standard, &mut billing);
        price_region("claude-opus-4-6", &mut billing);
        assert_eq!(billing, Billing::default(), "{standard}");
    }
}

#[test]
fn the_stated_cost_of_a_message_is_read() {
    let usage = json!({"input_tokens": 5, "output_tokens": 7, "cost": 0.001});
    let (partial, _) = read_document(&json!({"content": [], "usage": usage}).to_string());
    assert_eq!(partial.billing.stated_cost, Some(crate::money::Usd::from_nanousd(1_000_000)));
}

#[test]
fn impossible_counts_of_a_compaction_make_all_unknown() {
    for bad in [json!(-1), json!(1.5), json!("7")] {
        let usage = json!({"input_tokens": 5, "output_tokens": 7,
            "iterations": [{"type": "compaction", "input_tokens": bad, "output_tokens": 1}]});
        let (partial, _) = read_document(&json!({"content": [], "usage": usage}).to_string());
        assert_eq!(partial.usage, Usage::default(), "{usage}");
    }
}

#[test]
fn an_unknown_kind_of_iteration_has_no_price() {
    let usage = json!({"input_tokens": 5, "output_tokens": 7,
        "iterations": [{"type": "message", "input_tokens": 5, "output_tokens": 7}, {"type": "new"}]});
    let (partial, _) = read_document(&json!({"content": [], "usage": usage}).to_string());
    assert_eq!(partial.usage, provider_usage(5, 0, 0, 7));
    assert_eq!(partial.billing.unpriced, ["iteration new"]);
}

#[test]
fn a_final_count_of_zero_leaves_text_uncounted() {
    let text = (
        "content_block_delta",
        r#"{"type":"content_block_delta","delta":{"type":"text_delta","text":"Hello"}}"#,
    );
    let end = ("message_delta", r#"{"type":"message_delta","usage":{"output_tokens":0}}"#);
    let (partial, _) = read(&[START, text, end]);
    assert_eq!(partial.counted, None);
    let (partial, _) =
        read_document(r#"{"content":[],"usage":{"input_tokens":5,"output_tokens":0}}"#);
    assert!(partial.counted.is_some());
}

#[test]
fn code_that_runs_for_a_search_is_free() {
    let code = r#"{"type":"server_tool_use","id":"s","name":"code_execution","input":{}}"#;
    for (uses, is_known) in [("null", false), (r#"{"web_search_requests":1}"#, true)] {
        let document = format!(
            r#"{{"content":[{code}],"usage":{{"input_tokens":5,"output_tokens":7,"server_tool_use":{uses}}}}}"#
        );
        let (partial, _) = read_document(&document);
        assert_eq!(partial.billing.unpriced.is_empty(), is_known, "{uses}");
    }
}

#[test]
fn an_event_without_data_is_identified_by_its_name() {
    let (partial, flow) = read(&[START, ("ping", ""), ("message_stop", "")]);
    assert_eq!((flow, partial.is_complete), (Ok(Flow::End), true));
}

fn read_document(document: &str) -> (ResponseAccumulator, Result<(), Fault>) {
    testing::read_document(&mut MessageReader::default(), document)
}

#[test]
fn a_complete_response_is_parsed() {
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
fn a_document_without_content_is_a_bad_response() {
    for document in ["{}", "[]", "7", r#"{"content":"Hello"}"#] {
        let fault = read_document(document).1.unwrap_err();
        assert_eq!(fault.kind, FailureKind::BadAnswer, "{document}");
    }
    let fault = read_document(r#"{"type":"error","error":{}}"#).1.unwrap_err();
    assert_eq!(fault.kind, FailureKind::Status);
}

#[test]
fn one_hour_cache_writes_are_counted_separately() {
    let usage = r#"{"type":"message_start","message":{"model":"m","usage":{"input_tokens":5,"cache_creation_input_tokens":300,"cache_read_input_tokens":0,"output_tokens":1,"cache_creation":{"ephemeral_5m_input_tokens":100,"ephemeral_1h_input_tokens":200}}}}"#;
    let (partial, _) = read(&[("message_start", usage)]);
    let expected = Usage { cache_write_1h_tokens: 200, ..provider_usage(305, 0, 300, 1) };
    assert_eq!(partial.usage, expected);
}

#[test]
fn a_stream_without_a_message_is_no_answer() {
    for events in [&[("", "[PING]"), ("message_stop", "")][..], &[("message_stop", "{}")]] {
        assert!(!read(events).0.is_complete);
    }
    let balance = r#"{"base_resp":{"status_code":1008,"status_msg":"insufficient balance"}}"#;
    let fault = read(&[("", balance)]).1.unwrap_err();
    assert!(fault.message.contains("insufficient balance"), "{}", fault.message);
    assert_eq!(read(&[("", r#"{"error":"busy"}"#)]).1.unwrap_err().kind, FailureKind::Status);
}

#[test]
fn an_error_as_stop_reason_fails_and_keeps_its_tokens() {
    let delta = r#"{"type":"message_delta","delta":{"stop_reason":"error"},"usage":{"input_tokens":5,"output_tokens":2}}"#;
    let (partial, flow) = read(&[("", delta)]);
    assert_eq!(flow.unwrap_err().kind, FailureKind::Status);
    assert_eq!(partial.usage, provider_usage(5, 0, 0, 2));
    let document =
        r#"{"content":[],"stop_reason":"error","usage":{"input_tokens":5,"output_tokens":2}}"#;
    let (partial, read) = read_document(document);
    assert_eq!(read.unwrap_err().kind, FailureKind::Status);
    assert_eq!(partial.usage, provider_usage(5, 0, 0, 2));
    assert_eq!(read_document(r#"{"content":[],"error":null,"stop_reason":""}"#).1, Ok(()));
}

#[test]
fn an_error_within_any_event_fails_the_message() {
    let base_resp = json!({"status_code": 1008, "status_msg": "insufficient balance"});
    let error = json!({"type": "api_error", "message": "insufficient balance"});
    for event in [
        json!({"type": "message_start", "message": {"error": error}}),
        json!({"type": "message_start", "message": {}, "base_resp": base_resp}),
        json!({"type": "content_block_delta", "delta": {}, "base_resp": base_resp}),
        json!({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "base_resp": base_resp}),
        json!({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "error": error}),
        json!({"type": "message_stop", "base_resp": base_resp}),
    ] {
        let (partial, read) = read(&[("", &event.to_string())]);
        let message = read.unwrap_err().message;
        assert!(message.contains("insufficient balance"), "{event}: {message}");
        assert!(!partial.is_complete, "{event}");
    }
}
