use proptest::prelude::*;

use super::super::testing::{any_counts, call, holds_sum_rules, provider, read, read_document};
use super::super::wire::Header;
use super::super::{FailureKind, Kind};
use super::*;
use crate::secret::Secret;

fn usage(input_tokens: u64, output_tokens: u64) -> Usage {
    Usage { input_tokens, output_tokens, source: UsageSource::Provider, ..Usage::default() }
}

#[test]
fn the_request_matches_the_api_reference() {
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
    let keyless = ProviderConfig { api_key: Some(Secret::new("")), ..with_key };
    let call = Call { system: None, max_tokens: None, temperature: None, stream: false, ..call };
    let made = request(&call, &keyless);
    assert!(made.headers.is_empty());
    assert_eq!(
        made.body.to_string(),
        r#"{"model":"llama3.2:3b","messages":[{"role":"user","content":"Hi"}],"stream":false}"#
    );
}

#[test]
fn url_of_the_compatible_api_is_accepted() {
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
fn counts_come_from_the_last_object() {
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
    assert_eq!((partial.text.as_str(), partial.thinking.as_str()), ("Hello", "hm"));
    assert_eq!(partial.usage, usage(26, 290));
    assert_eq!(partial.finish_reason.as_deref(), Some("stop"));
    assert_eq!(partial.model.as_deref(), Some("llama3.2"));
    assert!(partial.is_complete);
}

#[test]
fn errors_are_reported_and_a_message_is_required() {
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
fn invalid_counts_are_discarded() {
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

#[test]
fn an_end_without_a_message_is_no_answer() {
    for (last, is_complete) in [
        (r#"{"done":true}"#, false),
        (r#"{"done":true,"done_reason":"stop","message":null}"#, false),
        (r#"{"done":true,"eval_count":1}"#, true),
        (r#"{"done":true,"message":{"content":""}}"#, true),
    ] {
        let (partial, flow) = read(&mut ChatReader, &[last]);
        assert_eq!((flow, partial.is_complete), (Ok(Flow::End), is_complete), "{last}");
    }
    let failed = r#"{"message":{"content":"a"},"done":true,"done_reason":"error"}"#;
    let (partial, flow) = read(&mut ChatReader, &[failed]);
    assert_eq!(flow.unwrap_err().kind, FailureKind::Status);
    assert_eq!(partial.text, "a");
}

proptest! {
    #[test]
    fn parts_of_counts_do_not_exceed_their_sum(
        counts in any_counts(&["prompt_eval_count", "eval_count"]),
    ) {
        let mut partial = ResponseAccumulator::default();
        let _ = ChatReader.document(&counts, &mut partial);
        prop_assert!(holds_sum_rules(&partial.usage), "{:?}", partial.usage);
    }
}
