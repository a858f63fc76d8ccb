use proptest::prelude::*;
use serde_json::json;

use super::super::framer::{Framer, Framing};
use super::super::testing::{self, any_count, any_counts, holds_sum_rules};
use super::*;
use crate::event::Usage;

/// The events of a streamed answer, after the API reference.
const STREAM: &[&str] = &[
    r#"{"type":"response.created","sequence_number":0,"response":{"id":"resp_1","object":"response","created_at":1741290958,"status":"in_progress","error":null,"incomplete_details":null,"model":"gpt-5-mini-2025-08-07","output":[],"service_tier":"auto","store":true,"usage":null}}"#,
    r#"{"type":"response.in_progress","sequence_number":1,"response":{"id":"resp_1","object":"response","status":"in_progress","model":"gpt-5-mini-2025-08-07","output":[],"service_tier":"auto","usage":null}}"#,
    r#"{"type":"response.output_item.added","sequence_number":2,"output_index":0,"item":{"id":"rs_1","type":"reasoning","summary":[],"encrypted_content":"gAAA"}}"#,
    r#"{"type":"response.reasoning_summary_text.delta","sequence_number":3,"item_id":"rs_1","output_index":0,"summary_index":0,"delta":"Think."}"#,
    r#"{"type":"response.output_item.done","sequence_number":4,"output_index":0,"item":{"id":"rs_1","type":"reasoning","summary":[{"type":"summary_text","text":"Think."}]}}"#,
    r#"{"type":"response.output_item.added","sequence_number":5,"output_index":1,"item":{"id":"fc_1","type":"function_call","status":"in_progress","arguments":"","call_id":"c","name":"look"}}"#,
    r#"{"type":"response.function_call_arguments.delta","sequence_number":6,"item_id":"fc_1","output_index":1,"delta":"{}"}"#,
    r#"{"type":"response.function_call_arguments.done","sequence_number":7,"item_id":"fc_1","output_index":1,"arguments":"{}"}"#,
    r#"{"type":"response.output_item.done","sequence_number":8,"output_index":1,"item":{"id":"fc_1","type":"function_call","status":"completed","arguments":"{}","call_id":"c","name":"look"}}"#,
    r#"{"type":"response.output_item.added","sequence_number":9,"output_index":2,"item":{"id":"msg_1","type":"message","status":"in_progress","role":"assistant","content":[]}}"#,
    r#"{"type":"response.content_part.added","sequence_number":10,"item_id":"msg_1","output_index":2,"content_index":0,"part":{"type":"output_text","text":"","annotations":[]}}"#,
    r#"{"type":"response.output_text.delta","sequence_number":11,"item_id":"msg_1","output_index":2,"content_index":0,"delta":"Hel","logprobs":[]}"#,
    r#"{"type":"response.output_text.delta","sequence_number":12,"item_id":"msg_1","output_index":2,"content_index":0,"delta":"lo","logprobs":[]}"#,
    r#"{"type":"response.output_text.done","sequence_number":13,"item_id":"msg_1","output_index":2,"content_index":0,"text":"Hello"}"#,
    r#"{"type":"response.output_item.done","sequence_number":14,"output_index":2,"item":{"id":"msg_1","type":"message","status":"completed","role":"assistant","content":[{"type":"output_text","text":"Hello","annotations":[]}]}}"#,
    r#"{"type":"response.completed","sequence_number":15,"response":{"id":"resp_1","object":"response","status":"completed","error":null,"incomplete_details":null,"model":"gpt-5-mini-2025-08-07","output":[{"id":"msg_1","type":"message","status":"completed","role":"assistant","content":[{"type":"output_text","text":"Hello","annotations":[]}]}],"service_tier":"default","usage":{"input_tokens":37,"input_tokens_details":{"cached_tokens":5,"cache_write_tokens":2},"output_tokens":11,"output_tokens_details":{"reasoning_tokens":4},"total_tokens":48}}}"#,
];

fn read(events: &[&str]) -> (ResponseAccumulator, Result<Flow, Fault>) {
    testing::read(&mut ResponseReader::default(), events)
}

fn read_document(document: &Value) -> (ResponseAccumulator, Result<(), Fault>) {
    testing::read_document(&mut ResponseReader::default(), &document.to_string())
}

/// Returns the last event of a stream with this status.
fn last(status: &str, fields: Value) -> String {
    let mut response = json!({
        "id": "resp_1", "object": "response", "status": status, "model": "m", "output": [],
        "usage": {"input_tokens": 7, "output_tokens": 3, "total_tokens": 10},
    });
    for (name, value) in fields.as_object().unwrap() {
        response[name] = value.clone();
    }
    json!({"type": format!("response.{status}"), "response": response}).to_string()
}

fn counts(usage: &Usage) -> [u64; 5] {
    [
        usage.input_tokens,
        usage.cached_input_tokens,
        usage.cache_write_tokens,
        usage.output_tokens,
        usage.reasoning_tokens,
    ]
}

#[test]
fn usage_comes_from_the_last_event() {
    let (partial, flow) = read(STREAM);
    assert_eq!(flow, Ok(Flow::End));
    assert!(partial.is_complete);
    assert_eq!(counts(&partial.usage), [37, 5, 2, 11, 4]);
    assert_eq!(partial.model.as_deref(), Some("gpt-5-mini-2025-08-07"));
    assert_eq!(partial.finish_reason.as_deref(), Some("completed"));
    assert_eq!(partial.billing.note(), None);
    // Each part counts once, although later events repeat it.
    assert_eq!((&*partial.text, &*partial.thinking), ("Hello", "Think."));
    assert_eq!(partial.other_output, "look{}");
    let object = partial.object.unwrap();
    assert_eq!((&*object.id, object.status.as_deref()), ("resp_1", Some("completed")));
    assert!(object.is_over());
}

#[test]
fn a_stream_without_its_last_event_is_incomplete() {
    for end in [&[][..], &["[DONE]"]] {
        let (partial, flow) = read(&[&STREAM[..15], end].concat());
        assert!(flow.is_ok() && !partial.is_complete, "{end:?}");
        assert_eq!(partial.usage, Usage::default());
        assert_eq!(partial.text, "Hello");
        assert!(!partial.object.unwrap().is_over());
    }
}

#[test]
fn an_incomplete_response_is_an_answer() {
    let end = last("incomplete", json!({"incomplete_details": {"reason": "max_output_tokens"}}));
    let (partial, flow) = read(&[STREAM[0], &end]);
    assert_eq!(flow, Ok(Flow::End));
    assert_eq!(partial.finish_reason.as_deref(), Some("max_output_tokens"));
    assert_eq!(counts(&partial.usage), [7, 0, 0, 3, 0]);
}

#[test]
fn failed_and_cancelled_responses_keep_their_tokens() {
    let error = json!({"error": {"code": "server_error", "message": "The model crashed."}});
    let (partial, flow) = read(&[STREAM[0], &last("failed", error)]);
    let fault = flow.unwrap_err();
    assert_eq!(fault.kind, FailureKind::Status);
    assert_eq!(fault.message, "reported an error: The model crashed.");
    assert_eq!(counts(&partial.usage), [7, 0, 0, 3, 0]);
    assert!(!partial.is_complete && partial.object.unwrap().is_over());

    let (_, flow) = read(&[&last("failed", json!({"error": null}))]);
    assert_eq!(flow.unwrap_err().message, "reported an error: the response has failed");
    let (partial, flow) = read(&[&last("cancelled", json!({}))]);
    assert_eq!(flow.unwrap_err().kind, FailureKind::Cancelled);
    assert_eq!(counts(&partial.usage), [7, 0, 0, 3, 0]);
}

#[test]
fn error_events_fail_the_call() {
    for (event, message) in [
        (
            r#"{"type":"error","code":"server_error","message":"Oh no.","param":null,"sequence_number":1}"#,
            "reported an error: Oh no.",
        ),
        (
            r#"{"type":"error","error":{"type":"too_many_requests","message":"Later."}}"#,
            "reported an error: Later. (too_many_requests)",
        ),
        (r#"{"type":"error"}"#, "reported an error: unknown error"),
        (r#"{"error":{"message":"Oh."}}"#, "reported an error: Oh."),
    ] {
        let fault = read(&[STREAM[0], event]).1.unwrap_err();
        assert_eq!((fault.kind, &*fault.message), (FailureKind::Status, message));
    }
}

#[test]
fn tools_with_fees_make_the_cost_unknown() {
    for (item, note) in [
        (json!({"type": "web_search_call", "status": "completed"}), Some("tool fee")),
        (json!({"type": "file_search_call"}), Some("tool fee")),
        (json!({"type": "code_interpreter_call"}), Some("tool fee")),
        (json!({"type": "future_tool_call"}), Some("tool fee")),
        (json!({"type": "image_generation_call", "result": "AA"}), Some("image tokens")),
        (json!({"type": "shell_call", "environment": {"type": "container"}}), Some("tool fee")),
        (json!({"type": "shell_call", "environment": {"type": "local"}}), None),
        (json!({"type": "function_call", "name": "f"}), None),
        (json!({"type": "custom_tool_call"}), None),
        (json!({"type": "computer_call"}), None),
        (json!({"type": "mcp_call"}), None),
        (json!({"type": "reasoning"}), None),
    ] {
        let end = last("completed", json!({"output": [item.clone()]}));
        assert_eq!(read(&[&end]).0.billing.note().as_deref(), note, "{item}");
        let done = json!({"type": "response.output_item.done", "item": item}).to_string();
        assert_eq!(read(&[&done]).0.billing.note().as_deref(), note, "{item}");
    }
}

#[test]
fn the_tier_that_was_used_counts() {
    let created = r#"{"type":"response.created","response":{"service_tier":"priority"}}"#;
    let note = |tier: Value| {
        let end = last("completed", json!({"service_tier": tier}));
        read(&[created, &end]).0.billing.note()
    };
    assert_eq!(note(json!("default")), None);
    assert_eq!(note(json!("flex")).as_deref(), Some("service tier flex"));
}

#[test]
fn cache_writes_for_half_a_day_have_no_known_price() {
    let details = |long: u64| {
        let details = json!({"ttl_30m_tokens": 5, "ttl_12h_tokens": long});
        let input = json!({"cache_write_tokens": 5 + long, "cache_write_tokens_details": details});
        let usage = json!({"input_tokens": 9, "input_tokens_details": input, "output_tokens": 1});
        read(&[&last("completed", json!({"usage": usage}))]).0
    };
    assert_eq!(details(0).billing.note(), None);
    assert_eq!(details(0).usage.cache_write_tokens, 5);
    assert_eq!(details(2).billing.note().as_deref(), Some("12-hour cache writes"));
}

#[test]
fn documents_are_read_like_streams() {
    let response: Value = serde_json::from_str(STREAM[15]).unwrap();
    let response = &response["response"];
    let (partial, read) = read_document(response);
    assert_eq!(read, Ok(()));
    assert_eq!(counts(&partial.usage), [37, 5, 2, 11, 4]);
    assert_eq!(partial.text, "Hello");
    let mut failed = response.clone();
    failed["status"] = json!("failed");
    failed["error"] = json!({"code": "server_error", "message": "m"});
    let (partial, read) = read_document(&failed);
    assert_eq!(read.unwrap_err().kind, FailureKind::Status);
    assert_eq!(counts(&partial.usage), [37, 5, 2, 11, 4]);
    let compacted = json!({
        "id": "resp_2", "object": "response.compaction", "created_at": 1,
        "output": [{"type": "compaction", "encrypted_content": "gAAA"}],
        "usage": {"input_tokens": 9, "output_tokens": 2, "total_tokens": 11},
    });
    let (partial, read) = read_document(&compacted);
    assert_eq!((read, counts(&partial.usage)), (Ok(()), [9, 0, 0, 2, 0]));
    let (_, read) = read_document(&json!({"object": "chat.completion", "choices": []}));
    assert_eq!(read.unwrap_err().message, "the response has no `output`");
}

#[test]
fn a_background_response_is_not_over() {
    let queued = json!({
        "id": "resp_1", "object": "response", "status": "queued", "background": true,
        "model": "m", "output": [], "error": null, "usage": null,
    });
    let (partial, read) = read_document(&queued);
    assert_eq!(read, Ok(()));
    assert!(!partial.object.unwrap().is_over());
    assert_eq!(partial.usage, Usage::default());
}

#[test]
fn reading_a_failed_response_does_not_fail() {
    let mut reader = ObjectReader::default();
    let failed = json!({
        "id": "resp_1", "object": "response", "status": "failed", "model": "m", "output": [],
        "error": {"message": "m"}, "usage": {"input_tokens": 7, "output_tokens": 3},
    });
    let (partial, read) = testing::read_document(&mut reader, &failed.to_string());
    assert_eq!((read, counts(&partial.usage)), (Ok(()), [7, 0, 0, 3, 0]));
    assert_eq!(partial.object.unwrap().status.as_deref(), Some("failed"));
    let list = r#"{"object":"list","data":[{"id":"item"}]}"#;
    let (partial, read) = testing::read_document(&mut ObjectReader::default(), list);
    assert_eq!((read, partial.object), (Ok(()), None));
    let end = last("failed", json!({"error": {"message": "m"}}));
    let (partial, flow) = testing::read(&mut ObjectReader::default(), &[&end]);
    assert!(partial.is_complete);
    assert_eq!(flow, Ok(Flow::End));
}

/// Reads bytes as a stream, as the client does.
fn read_bytes(bytes: &[u8]) -> ResponseAccumulator {
    let mut partial = ResponseAccumulator { beyond: Some(0), ..ResponseAccumulator::default() };
    let mut readers: [Box<dyn Reader>; 2] =
        [Box::<ResponseReader>::default(), Box::<ObjectReader>::default()];
    for reader in &mut readers {
        let mut framer = Framer::new(Framing::Sse, 1 << 20);
        framer.push(bytes);
        while let Ok(Some(frame)) = framer.next() {
            if let Some(event) = frame.event {
                let _ = reader.event(event, &mut partial);
            }
        }
        if let Some(frame) = framer.finish()
            && let Some(event) = frame.event
        {
            let _ = reader.event(event, &mut partial);
        }
    }
    partial
}

proptest! {
    #[test]
    fn arbitrary_streams_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(holds_sum_rules(&read_bytes(&bytes).usage));
    }

    #[test]
    fn mutated_streams_keep_the_sum_rules(
        changes in prop::collection::vec((any::<prop::sample::Index>(), 0usize..12, "[\"{}:,0-9a-z\\n]{0,4}"), 1..6),
    ) {
        let frames: Vec<String> = STREAM.iter().map(|data| format!("data: {data}\n\n")).collect();
        let mut bytes = frames.concat().into_bytes();
        for (at, removed, new) in changes {
            let start = at.index(bytes.len());
            let end = (start + removed).min(bytes.len());
            bytes.splice(start..end, new.bytes());
        }
        prop_assert!(holds_sum_rules(&read_bytes(&bytes).usage));
    }

    #[test]
    fn arbitrary_counts_keep_the_sum_rules(
        counts in any_counts(&["input_tokens", "output_tokens", "total_tokens"]),
        input in any_counts(&["cached_tokens", "cache_write_tokens", "audio_tokens"]),
        output in any_counts(&["reasoning_tokens", "audio_tokens"]),
        other in any_count(),
    ) {
        let mut usage = counts;
        usage["input_tokens_details"] = input;
        usage["output_tokens_details"] = output;
        for usage in [usage, other] {
            let end = last("completed", json!({"usage": usage}));
            prop_assert!(holds_sum_rules(&read(&[&end]).0.usage));
        }
    }
}
