//! Streams for clients at `/v1`: forwarded events, and the accounting of answers without counts, of
//! broken streams and of calls whose client has left.

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use flowledger::event::{Usage, UsageSource};
use flowledger::gateway::{ClientPolicy, Target};
use flowledger::providers::{
    AnswerHead, ApiFormat, CacheMarks, Call, Cancel, Forward, Kind, Network, ProviderConfig,
    Providers, ResponseSink, Timeouts,
};
use serde_json::{Value, json};

use crate::clients::{Conversation, chat, rows, server, server_with};
use crate::harness::{DEADLINE, Response, TestServer, agent, chain};
use crate::upstream::{STREAM_HEAD, Upstream, completion, delta, json_answer};

const CHAT: &str = "/v1/chat/completions";
const MESSAGES: &str = "/v1/messages";
/// The two routes: path, provider and model.
const WAYS: [(&str, &str, &str); 2] =
    [(CHAT, "openai", "gpt-4o-mini"), (MESSAGES, "anthropic", "claude-haiku-4-5")];

fn event(data: &Value) -> String {
    format!("data: {data}\n\n")
}

/// The start of an Anthropic message, with counts but none for the output yet.
fn message_start() -> String {
    let usage = json!({"input_tokens": 25, "output_tokens": 1});
    let message = json!({"model": "claude-haiku-4-5", "content": [], "usage": usage});
    event(&json!({"type": "message_start", "message": message}))
}

fn text_delta(text: &str) -> String {
    let delta = json!({"type": "text_delta", "text": text});
    event(&json!({"type": "content_block_delta", "index": 0, "delta": delta}))
}

/// "Once upon" in two events, in the provider's format.
fn once_upon(provider: &str) -> String {
    match provider {
        "openai" => delta("Once") + &delta(" upon"),
        _ => text_delta("Once") + &text_delta(" upon"),
    }
}

fn ask(server: &TestServer, path: &str, model: &str) -> Response {
    server.post(path, &chat(model, true))
}

/// An upstream that writes one step each time the test releases it.
fn stepwise(steps: &[String]) -> (Upstream, Sender<()>) {
    let (go, wait) = bounded::<()>(0);
    let steps = steps.to_vec();
    let upstream = Upstream::start(move |_, stream| {
        let _ = stream.write_all(STREAM_HEAD.as_bytes());
        for (at, step) in steps.iter().enumerate() {
            if at > 0 && wait.recv_timeout(DEADLINE).is_err() {
                return;
            }
            let _ = stream.write_all(step.as_bytes());
        }
    });
    (upstream, go)
}

/// An upstream that writes `text` and keeps the connection open until the test ends.
pub fn open_ended(text: String) -> (Upstream, Sender<()>) {
    stepwise(&[text, String::new()])
}

/// An upstream that writes `text`, then comments until the test ends.
fn unending(text: String) -> (Upstream, Sender<()>) {
    let (end, ended) = bounded::<()>(0);
    let upstream = Upstream::start(move |_, stream| {
        let _ = stream.write_all(format!("{STREAM_HEAD}{text}").as_bytes());
        while !has_ended(&ended, Duration::from_millis(20)) {
            if stream.write_all(b": keep-alive\n\n").is_err() {
                return;
            }
        }
    });
    (upstream, end)
}

/// Waits up to `time` for the end of the test. Returns true if it has ended.
fn has_ended(end: &Receiver<()>, time: Duration) -> bool {
    !matches!(end.recv_timeout(time), Err(RecvTimeoutError::Timeout))
}

#[test]
fn uncounted_usage_is_estimated_as_in_flows() {
    let stop = event(&json!({"choices": [{"delta": {}, "finish_reason": "stop"}]}));
    let end = event(&json!({"type": "message_stop"}));
    let text = |way: usize| once_upon(WAYS[way].1);
    // "Hi" is one token, plus 6 for the frame. (route, stream, status, input)
    for (way, answer, status, input) in [
        (0, text(0) + &stop + "data: [DONE]\n\n", "SUCCESS", 7),
        (0, text(0), "FAILED", 7),
        (1, text(1) + &end, "SUCCESS", 7),
        (1, message_start() + &text(1) + &end, "SUCCESS", 25),
        (1, message_start() + &text(1), "FAILED", 25),
    ] {
        let (path, provider, model) = WAYS[way];
        let upstream = Upstream::saying(format!("{STREAM_HEAD}{answer}"));
        let server = server(&upstream);
        let flow = server.save(&chain("one", &[agent("a", provider, model, "Hi")]));
        server.run(flow, &json!({}));
        ask(&server, path, model);
        let rows = rows(&server, 2);
        for (name, expected) in [
            ("status", json!(status)),
            ("usage_source", json!("estimated")),
            ("input_tokens", json!(input)),
            ("output_tokens", json!(2)),
        ] {
            assert_eq!(rows[1][name], expected, "{name} of {answer}");
        }
        for name in ["status", "usage_source", "total_cost_usd"] {
            assert_eq!(rows[0][name], rows[1][name], "{name} of {answer}");
        }
        for name in ["input_tokens", "output_tokens", "reasoning_tokens"] {
            assert_eq!(rows[0][name], rows[1][name], "{name} of {answer}");
        }
    }
}

#[test]
fn output_before_a_disconnect_is_recorded() {
    for drain_max in [None, Some(Duration::from_millis(100))] {
        for (path, provider, model) in WAYS {
            let (begin, input) = match provider {
                "openai" => (String::new(), 7),
                _ => (message_start(), 25),
            };
            let (upstream, _end) = unending(begin + &once_upon(provider));
            let server = server_with(&upstream, |config| {
                let policy = ClientPolicy { drain_max, ..ClientPolicy::default() };
                config.gateway.policies.insert(provider.into(), policy);
            });
            let mut conversation = Conversation::with(&server);
            conversation.ask(path, &chat(model, true).to_string());
            conversation.head();
            while !conversation.chunk().contains("upon") {}
            drop(conversation);
            let row = &rows(&server, 1)[0];
            for (name, expected) in [
                ("status", json!("CANCELLED")),
                ("usage_source", json!("estimated")),
                ("input_tokens", json!(input)),
                ("output_tokens", json!(2)),
            ] {
                assert_eq!(row[name], expected, "{name}: {drain_max:?}: {row}");
            }
            assert!(row["total_cost_usd"].is_number(), "{row}");
        }
    }
}

/// A client that has left when its answer begins to arrive.
struct Gone;

impl ResponseSink for Gone {
    fn whole(&mut self, _: &AnswerHead, _: &[u8]) -> bool {
        false
    }

    fn begin(&mut self, _: &AnswerHead) -> bool {
        false
    }

    fn piece(&mut self, _: &[u8]) -> bool {
        false
    }

    fn end(&mut self, _: bool) {}
}

#[test]
fn usage_received_with_a_disconnect_is_counted() {
    let usage = json!({"prompt_tokens": 70, "completion_tokens": 20});
    let counted = event(&json!({"choices": [{"delta": {"content": "x"}}], "usage": usage}));
    let (upstream, _go) = open_ended(counted);
    let provider = ProviderConfig {
        kind: Kind::OpenAi,
        base_url: upstream.url().to_owned(),
        api_key: None,
        missing_key_hint: None,
        stream_usage: true,
        trust_stated_cost: None,
        apis: Vec::new(),
        network: Network::default(),
    };
    let providers = Providers::new([("p".to_owned(), provider)].into(), Timeouts::default());
    let call = Call {
        provider: "p".into(),
        model: "m".into(),
        system: None,
        prompt: String::new(),
        max_tokens: None,
        temperature: None,
        stream: true,
        first_byte_timeout: None,
        total_timeout: None,
        cache_marks: CacheMarks::default(),
        key: None,
    };
    let forward = Forward {
        query: "",
        call: &call,
        api_format: ApiFormat::ChatCompletions,
        method: flowledger::providers::Method::Post,
        path: None,
        texts: &String::new,
        body: b"{}",
        headers: &[],
        key: None,
        hides_usage: false,
        has_sound: false,
        drain_max: None,
        translation: None,
    };
    let not = providers.forward(&forward, &Cancel::new(), &mut Gone);
    let failure = not.unwrap_err().failure;
    let expected = Usage {
        input_tokens: 70,
        output_tokens: 20,
        source: UsageSource::Provider,
        ..Usage::default()
    };
    assert_eq!(failure.usage, expected, "{failure}");
}

#[test]
fn a_text_too_long_to_keep_is_estimated_by_its_length() {
    // 17 tokens each; six MiB together.
    let line = "The quick brown fox jumps over the lazy dog, and rests for 12 minutes.\n";
    let (events, lines) = (96, 923);
    let piece = line.repeat(lines);
    let upstream = Upstream::start(move |_, stream| {
        let _ = stream.write_all(STREAM_HEAD.as_bytes());
        let chunk = event(&json!({"choices": [{"delta": {"content": piece}}]}));
        for _ in 1..events {
            let _ = stream.write_all(chunk.as_bytes());
        }
        // The last text also carries the finish reason.
        let last = json!({"choices": [{"delta": {"content": piece}, "finish_reason": "stop"}]});
        let _ = stream.write_all(event(&last).as_bytes());
    });
    let server = server(&upstream);
    let text = ask(&server, CHAT, "gpt-4o-mini").text();
    assert_eq!(text.matches("data: ").count(), events);
    assert!(!text.contains("error"));
    let row = &rows(&server, 1)[0];
    assert_eq!(row["status"], "SUCCESS", "{row}");
    assert_eq!(row["usage_source"], "estimated", "{row}");
    let exact = (events * lines * 17) as u64;
    let output = row["output_tokens"].as_u64().unwrap();
    assert!(output.abs_diff(exact) * 20 < exact, "{output} for {exact}");
}

/// The JSON of each event, without `[DONE]`.
fn data_of(text: &str) -> Vec<Value> {
    let events = text.split_terminator("\n\n");
    let data = events.map(|event| {
        let lines = event.lines().filter_map(|line| line.strip_prefix("data: "));
        lines.collect::<String>()
    });
    data.filter(|data| !data.is_empty() && data != "[DONE]")
        .map(|data| serde_json::from_str(&data).unwrap_or_else(|error| panic!("{error}: {data}")))
        .collect()
}

#[test]
fn only_complete_events_are_forwarded_and_at_once() {
    for (path, provider, model) in WAYS {
        for asks_for_usage in [false, true] {
            let half = text_delta("never").replace("\n\n", "");
            let half = half.split_at(half.len() - 9).0;
            let text = format!("{}event: x\n{half}", once_upon(provider));
            let (upstream, go) = open_ended(text);
            let server = server(&upstream);
            let mut conversation = Conversation::with(&server);
            let mut body = chat(model, true);
            body["stream_options"] = json!({"include_usage": asks_for_usage});
            conversation.ask(path, &body.to_string());
            conversation.head();
            let mut given = String::new();
            while !given.contains("upon") {
                given += &conversation.chunk();
            }
            assert_eq!(given, once_upon(provider));
            // Now the connection ends.
            go.send_timeout((), DEADLINE).unwrap();
            let rest = conversation.chunks();
            let reported = data_of(&rest);
            assert_eq!(reported.len(), 1, "{rest}");
            let message = reported[0]["error"]["message"].as_str().unwrap();
            assert!(message.contains("before the response was complete"), "{rest}");
            assert_eq!(rows(&server, 1)[0]["status"], "FAILED");
        }
    }
}

#[test]
fn large_events_are_forwarded_and_oversized_ones_refused() {
    for (bytes, status) in [(5 << 20, "SUCCESS"), (17 << 20, "FAILED")] {
        let image = json!({"choices": [{"delta": {"image": "A".repeat(bytes)}}]});
        let large = event(&image) + "data: [DONE]\n\n";
        let answer = delta("x") + &large;
        let upstream = Upstream::saying(format!("{STREAM_HEAD}{answer}"));
        let server = server(&upstream);
        let text = ask(&server, CHAT, "gpt-4o-mini").text();
        if status == "SUCCESS" {
            assert!(text == answer);
        } else {
            let reported = text.strip_prefix(&delta("x")).unwrap();
            assert!(reported.len() < 1_000, "{} bytes", reported.len());
            let reported = &data_of(reported)[0]["error"]["message"];
            assert!(reported.as_str().unwrap().contains("an event is longer than"));
        }
        let row = &rows(&server, 1)[0];
        assert_eq!((&row["status"], &row["output_tokens"]), (&json!(status), &json!(1)));
    }
}

#[test]
fn an_unterminated_final_event_is_terminated() {
    for (last, status) in [
        ("data: [DONE]", "SUCCESS"),
        ("data: [DONE]\r\n", "SUCCESS"),
        ("data: {\"choices\":[{\"delta\":{}}]}", "FAILED"),
        ("data: {\"error\":{\"message\":\"busy\"}}", "FAILED"),
    ] {
        let upstream = Upstream::saying(format!("{STREAM_HEAD}{}{last}", delta("x")));
        let server = server(&upstream);
        let text = ask(&server, CHAT, "gpt-4o-mini").text();
        assert!(text.starts_with(&(delta("x") + last + "\n\n")), "{text}");
        // The gateway's own error follows, unless the provider sent one.
        data_of(&text.replace('\r', ""));
        let is_ours = status == "FAILED" && !last.contains("error");
        assert_eq!(text.contains("before the response"), is_ours, "{text}");
        assert_eq!(rows(&server, 1)[0]["status"], status, "{text}");
    }
}

#[test]
fn a_break_in_the_first_event_triggers_the_fallback() {
    let upstream = Upstream::start(|body, stream| {
        let answer = match body.contains("\"bad\"") {
            true => format!("{STREAM_HEAD}data: {{\"choi"),
            false => format!("{STREAM_HEAD}{}data: [DONE]\n\n", delta("well")),
        };
        let _ = stream.write_all(answer.as_bytes());
    });
    let server = server_with(&upstream, |config| {
        let targets = ["bad", "gpt-4o-mini"]
            .map(|model| Target { provider: "openai".into(), model: model.into() });
        config.gateway.aliases.insert("both".into(), targets.into());
    });
    let text = ask(&server, CHAT, "both").text();
    assert_eq!(text, format!("{}data: [DONE]\n\n", delta("well")));
    let statuses: Vec<Value> = rows(&server, 2).iter().map(|row| row["status"].clone()).collect();
    assert_eq!(statuses, ["FAILED", "SUCCESS"]);
}

#[test]
fn other_streams_are_forwarded_line_by_line() {
    let line = "{\"choices\":[]}\n".to_owned();
    let (upstream, go) = stepwise(&[line.clone(), line.clone(), String::new()]);
    let server = server(&upstream);
    let mut conversation = Conversation::with(&server);
    conversation.ask(CHAT, &chat("gpt-4o-mini", true).to_string());
    conversation.head();
    for _ in 0..2 {
        assert_eq!(conversation.chunk(), line);
        go.send_timeout((), DEADLINE).unwrap();
    }
    assert!(conversation.chunks().contains("provider_bad_answer"));
    rows(&server, 1);
}

#[test]
fn the_key_is_replaced_in_errors_that_come_with_status_200() {
    let error = r#"{"type":"error","error":{"type":"t","message":"bad key test-key"}}"#;
    let clean = error.replace("test-key", "***");
    let stream = |data: &str| format!("{STREAM_HEAD}{}event: error\ndata: {data}", delta("x"));
    for answer in [
        json_answer("200 OK", error),
        json_answer("200 OK", r#"{"detail":"bad key test-key"}"#),
        stream(error) + "\n\n",
        stream(error),
        stream("bad key test-key\n\n"),
        format!("{STREAM_HEAD}bad key test-key\n"),
        format!("{STREAM_HEAD}: bad key test-key\n\n"),
    ] {
        let upstream = Upstream::saying(&*answer);
        let server = server(&upstream);
        for (path, _, model) in WAYS {
            let text = ask(&server, path, model).text();
            assert!(text.contains("bad key ***"), "{answer}: {text}");
            assert!(!text.contains("test-key"), "{answer}: {text}");
            if answer.contains(error) {
                assert!(text.contains(&clean), "{answer}: {text}");
            }
        }
        for row in rows(&server, 2) {
            assert_eq!(row["status"], "FAILED");
            assert!(!row.to_string().contains("test-key"), "{row}");
        }
    }
    // Text of a model is never redacted.
    let upstream = Upstream::saying(format!("{STREAM_HEAD}{}data: [DONE]\n\n", delta("test-key")));
    let text = ask(&server(&upstream), CHAT, "gpt-4o-mini").text();
    assert!(text.contains("test-key"), "{text}");
}

#[test]
fn comments_keep_a_stream_alive_until_the_total_timeout() {
    let (_end, ended) = bounded::<()>(0);
    let upstream = Upstream::start(move |body, stream: &mut TcpStream| {
        let _ = stream.write_all(STREAM_HEAD.as_bytes());
        let is_endless = body.contains("endless");
        let comment = b": OPENROUTER PROCESSING\n\n";
        // Longer than the first-byte timeout.
        for _ in 0..if is_endless { 200 } else { 15 } {
            let is_sent = stream.write_all(comment).is_ok();
            if !is_sent || has_ended(&ended, Duration::from_millis(100)) {
                return;
            }
        }
        let answer = delta("well") + "data: [DONE]\n\n";
        let _ = stream.write_all(answer.as_bytes());
    });
    let server = server_with(&upstream, |config| {
        config.timeouts.first_byte = Duration::from_secs(1);
        config.timeouts.total = Duration::from_secs(4);
    });
    let text = ask(&server, CHAT, "gpt-4o-mini").text();
    assert!(text.starts_with(": OPENROUTER") && text.contains("well"), "{text}");
    let began = Instant::now();
    let text = ask(&server, CHAT, "endless").text();
    assert!(text.contains("total timeout"), "{text}");
    assert!(began.elapsed() < DEADLINE);
    let rows = rows(&server, 2);
    assert_eq!(rows[0]["status"], "SUCCESS");
    assert_eq!(rows[1]["status"], "TIMEOUT");
}

#[test]
fn a_comment_is_forwarded_at_once_without_an_empty_line() {
    let comment = ": keep-alive\n".to_owned();
    let (upstream, go) =
        stepwise(&[comment.clone(), comment.clone(), delta("x") + "data: [DONE]\n\n"]);
    let server = server(&upstream);
    let mut conversation = Conversation::with(&server);
    // The client does not ask for usage, so that chunk is hidden.
    conversation.ask(CHAT, &chat("gpt-4o-mini", true).to_string());
    conversation.head();
    for _ in 0..2 {
        assert_eq!(conversation.chunk(), comment);
        go.send_timeout((), DEADLINE).unwrap();
    }
    assert_eq!(conversation.chunks(), delta("x") + "data: [DONE]\n\n");
    rows(&server, 1);
}

#[test]
fn a_usage_only_last_chunk_is_hidden() {
    let usage = json!({"prompt_tokens": 7, "completion_tokens": 2});
    let plain = json!({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o-mini",
        "system_fingerprint": "f", "service_tier": null, "citations": null, "choices": [], "usage": usage});
    let mut cited = plain.clone();
    cited["citations"] = json!(["https://example.org/"]);
    for (chunk, is_shown) in [(plain, false), (cited, true)] {
        let last = event(&chunk);
        let upstream =
            Upstream::saying(format!("{STREAM_HEAD}{}{last}data: [DONE]\n\n", delta("x")));
        let server = server(&upstream);
        let text = ask(&server, CHAT, "gpt-4o-mini").text();
        assert_eq!(text.contains(&last), is_shown, "{text}");
        let row = &rows(&server, 1)[0];
        assert_eq!(row["usage_source"], "provider");
        assert_eq!((&row["input_tokens"], &row["output_tokens"]), (&json!(7), &json!(2)));
    }
}

#[test]
fn a_too_deeply_nested_response_is_forwarded_and_accounted() {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let counts = r#""usage":{"prompt_tokens":7,"completion_tokens":2}"#;
    let document = format!(
        r#"{{"x":{deep},"model":"gpt-4o-mini","choices":[{{"message":{{"content":"a","y":{deep}}}}}],{counts}}}"#
    );
    let chunk = format!(r#"{{"x":{deep},"choices":[{{"delta":{{"content":"a"}}}}],{counts}}}"#);
    let stream = format!("data: {chunk}\n\ndata: [DONE]\n\n");
    for (answer, body) in
        [(json_answer("200 OK", &document), &document), (format!("{STREAM_HEAD}{stream}"), &stream)]
    {
        let upstream = Upstream::saying(answer);
        let server = server(&upstream);
        let response = ask(&server, CHAT, "gpt-4o-mini");
        assert!(response.status == 200 && response.text() == *body);
        let row = &rows(&server, 1)[0];
        for (name, expected) in [
            ("status", json!("SUCCESS")),
            ("usage_source", json!("provider")),
            ("input_tokens", json!(7)),
            ("output_tokens", json!(2)),
        ] {
            assert_eq!(row[name], expected, "{name}: {row}");
        }
    }
}

#[test]
fn account_headers_of_a_response_are_withheld() {
    let passed = [
        ("retry-after", "7"),
        ("request-id", "r1"),
        ("x-request-id", "r2"),
        ("x-should-retry", "true"),
        ("openai-processing-ms", "12"),
        ("openai-version", "2020-10-01"),
        ("openai-model", "m"),
        ("x-ratelimit-remaining-tokens", "9"),
        ("anthropic-ratelimit-tokens-remaining", "9"),
    ];
    let kept = [
        ("openai-organization", "owner"),
        ("openai-project", "proj_1"),
        ("anthropic-organization-id", "owner"),
        ("set-cookie", "a=b"),
    ];
    let fields: String =
        passed.iter().chain(&kept).map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let with = |answer: &str| answer.replacen("content-type", &format!("{fields}content-type"), 1);
    let stream = format!("{STREAM_HEAD}{}data: [DONE]\n\n", delta("x"));
    for answer in [completion("x", 1, 1), json_answer("429 Slow", "{}"), stream] {
        let upstream = Upstream::saying(with(&answer));
        let response = ask(&server(&upstream), CHAT, "gpt-4o-mini");
        for (name, value) in passed {
            assert_eq!(response.header(name), Some(value), "{name}");
        }
        for (name, _) in kept {
            assert_eq!(response.header(name), None, "{name}");
        }
    }
}

#[test]
fn a_long_error_is_forwarded_whole_or_replaced() {
    for (path, _, model) in WAYS {
        for (bytes, status) in [(300 << 10, 400), (2 << 20, 502)] {
            let message = "no ".repeat(bytes / 3);
            let body = json!({"type": "error", "error": {"message": message}}).to_string();
            let upstream = Upstream::saying(json_answer("400 Bad Request", &body));
            let server = server(&upstream);
            let response = ask(&server, path, model);
            assert_eq!(response.status, status);
            let error_message = response.json()["error"]["message"].clone();
            let error_message = error_message.as_str().unwrap();
            if status == 400 {
                assert!(error_message == message);
            } else {
                assert!(error_message.contains("returned status 400"), "{error_message}");
            }
            let row = &rows(&server, 1)[0];
            let message = row["error_message"].as_str().unwrap();
            assert!(message.contains("status 400: ") && message.len() < 2_000);
            assert_eq!(row["total_cost_usd"], 0);
        }
    }
}

#[test]
fn an_error_event_ends_an_open_stream() {
    let error = event(&json!({"type": "error", "error": {"message": "overloaded"}}));
    for (upstream, _end) in [open_ended(error.clone()), unending(error)] {
        let server = server(&upstream);
        for (path, _, model) in WAYS {
            let began = Instant::now();
            let text = ask(&server, path, model).text();
            assert!(began.elapsed() < DEADLINE);
            assert_eq!(text.matches("overloaded").count(), 1, "{text}");
            assert_eq!(text.matches("error\"").count(), 2, "{text}");
        }
        for row in rows(&server, 2) {
            let message = row["error_message"].as_str().unwrap();
            assert_eq!(row["status"], "FAILED", "{row}");
            assert!(message.ends_with("reported an error: overloaded"), "{row}");
        }
    }
}

/// The stream of a short answer, with these events before its end.
fn answer_with(path: &str, events: &str) -> String {
    match path {
        CHAT => format!("{}{events}data: [DONE]\n\n", delta("well")),
        _ => {
            let end = event(&json!({"type": "message_stop"}));
            message_start() + &text_delta("well") + events + &end
        }
    }
}

#[test]
fn keep_alives_in_data_lines_are_ignored() {
    let texts = [": OPENROUTER PROCESSING", "ping", "OK", "loading", "2026-11-30T10:00:00Z"];
    let texts = texts.map(|data| format!("event: ping\ndata: {data}\n\ndata: {data}\n\n"));
    let empty = ["", "null", "[]", "\"\"", "\"ping\"", "1", "true"];
    let empty = empty.map(|data| format!("data: {data}\n\n"));
    for (path, provider, model) in WAYS {
        let before = texts.concat() + &empty.concat() + "data: {}\n\n";
        let answer = before.clone() + &answer_with(path, &before);
        let upstream = Upstream::saying(format!("{STREAM_HEAD}{answer}"));
        let server = server(&upstream);
        let flow = server.save(&chain("one", &[agent("a", provider, model, "Hi")]));
        let run = server.run(flow, &json!({}));
        assert_eq!(run["status"], "COMPLETED", "{run}");
        // Clients expect objects in data, so they get comments instead.
        let text = ask(&server, path, model).text();
        let replaced = text.replace("data: {}\n\n", "").replace(": keep-alive\n\n", "");
        assert_eq!(replaced, answer_with(path, ""), "{text}");
        let comments = 2 * (2 * texts.len() + empty.len());
        assert_eq!(text.matches(": keep-alive").count(), comments, "{text}");
        for row in rows(&server, 2) {
            assert_eq!(row["status"], "SUCCESS", "{row}");
        }
    }
}

#[test]
fn a_broken_content_event_still_fails() {
    for (path, provider, model) in WAYS {
        for broken in ["data: {\"choices\":[{\n\n", "data: ok\"}}]}\n\n", "data: [1,\n\n"] {
            let answer = answer_with(path, broken);
            let upstream = Upstream::saying(format!("{STREAM_HEAD}{answer}"));
            let server = server(&upstream);
            let flow = server.save(&chain("one", &[agent("a", provider, model, "Hi")]));
            server.run(flow, &json!({}));
            ask(&server, path, model);
            for row in rows(&server, 2) {
                assert_eq!(row["status"], "FAILED", "{broken}: {row}");
            }
        }
    }
}

#[test]
fn a_stream_without_a_finish_reason_is_incomplete() {
    let texts = ["", " ", "null", "None", "none", "NULL"].map(Value::from);
    for reason in texts.into_iter().chain([json!(null), json!(0), json!(false), json!({})]) {
        let choice = json!({"index": 0, "delta": {"content": "well"}, "finish_reason": reason});
        let chunk = event(&json!({"choices": [choice]}));
        let upstream = Upstream::saying(format!("{STREAM_HEAD}{chunk}"));
        let server = server(&upstream);
        let flow = server.save(&chain("one", &[agent("a", "openai", "gpt-4o-mini", "Hi")]));
        server.run(flow, &json!({}));
        ask(&server, CHAT, "gpt-4o-mini");
        for row in rows(&server, 2) {
            assert_eq!(row["status"], "FAILED", "{reason}: {row}");
        }
    }
}

/// A server with an alias for two models of `openai`: `bad` and gpt-4o-mini.
fn server_with_fallback(bad: String) -> (Upstream, TestServer) {
    let upstream = Upstream::start(move |body, stream| {
        let is_streamed = body.contains("\"stream\":true");
        let answer = match (body.contains("\"bad\""), is_streamed) {
            (true, _) => bad.clone(),
            (false, true) => format!("{STREAM_HEAD}{}data: [DONE]\n\n", delta("well")),
            (false, false) => completion("well", 7, 1),
        };
        let _ = stream.write_all(answer.as_bytes());
    });
    let server = server_with(&upstream, |config| {
        let targets = ["bad", "gpt-4o-mini"]
            .map(|model| Target { provider: "openai".into(), model: model.into() });
        config.gateway.aliases.insert("both".into(), targets.into());
    });
    (upstream, server)
}

#[test]
fn an_error_of_a_choice_triggers_the_fallback() {
    let error = json!({"code": 502, "message": "Upstream error"});
    let usage = json!({"prompt_tokens": 9, "completion_tokens": 2});
    let with = |name: &str| {
        let choice =
            json!({"index": 0, name: {"content": "par"}, "finish_reason": "error", "error": error});
        json!({"model": "gpt-4o-mini", "choices": [choice], "usage": usage})
    };
    let chunk = event(&with("delta"));
    let role = json!({"index": 0, "delta": {"role": "assistant", "content": ""}});
    let role = event(&json!({"choices": [role]}));
    for (bad, is_streamed) in [
        (json_answer("200 OK", &with("message").to_string()), false),
        (format!("{STREAM_HEAD}{chunk}data: [DONE]\n\n"), true),
        (format!("{STREAM_HEAD}: OPENROUTER PROCESSING\n\n{role}{chunk}"), true),
        (format!("{STREAM_HEAD}data: {{\"error\":{error},\"usage\":{usage}}}\n\n"), true),
    ] {
        let (_upstream, server) = server_with_fallback(bad.clone());
        let answer = server.post(CHAT, &chat("both", is_streamed)).text();
        assert!(answer.contains("well") && !answer.contains("Upstream"), "{bad}: {answer}");
        // Without another model, the client gets the provider's words.
        let alone = server.post(CHAT, &chat("bad", is_streamed)).text();
        assert!(alone.contains("Upstream error"), "{bad}: {alone}");
        let rows = rows(&server, 3);
        assert_eq!(rows[1]["status"], "SUCCESS");
        for row in [&rows[0], &rows[2]] {
            assert_eq!(row["status"], "FAILED", "{row}");
            assert_eq!((&row["input_tokens"], &row["output_tokens"]), (&json!(9), &json!(2)));
            assert!(row["error_message"].as_str().unwrap().contains("Upstream error"), "{row}");
        }
    }
}

#[test]
fn an_error_after_the_first_event_reaches_the_client() {
    let error = json!({"code": 502, "message": "Upstream error"});
    let choice = json!({"index": 0, "delta": {}, "finish_reason": "error", "error": error});
    let chunk = event(&json!({"choices": [choice]}));
    let counted =
        event(&json!({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 2}}));
    let bad = format!("{STREAM_HEAD}{}{chunk}{counted}data: [DONE]\n\n", delta("par"));
    let (_upstream, server) = server_with_fallback(bad);
    let answer = ask(&server, CHAT, "both").text();
    assert_eq!(answer, format!("{}{chunk}data: [DONE]\n\n", delta("par")));
    let flow = server.save(&chain("one", &[agent("a", "openai", "bad", "Hi")]));
    server.run(flow, &json!({}));
    for row in rows(&server, 2) {
        assert_eq!(row["status"], "FAILED", "{row}");
        // The usage follows the error.
        assert_eq!((&row["input_tokens"], &row["output_tokens"]), (&json!(9), &json!(2)));
    }
}

#[test]
fn a_stream_without_an_answer_fails_and_costs_no_estimate() {
    let balance = json!({"status_code": 1008, "status_msg": "insufficient balance"});
    let refused = json!({"choices": null, "base_resp": balance});
    for (way, answer, message) in [
        (0, "data: [DONE]\n\n".to_owned(), "ended without a response"),
        (0, event(&json!({"choices": null})) + "data: [DONE]\n\n", "ended without a response"),
        (0, event(&refused) + "data: [DONE]\n\n", "insufficient balance"),
        (1, event(&json!({"type": "message_stop"})), "ended without a response"),
        (1, "data: [DONE]\n\n".to_owned(), "ended without a response"),
        (1, event(&refused), "insufficient balance"),
    ] {
        let (path, provider, model) = WAYS[way];
        let upstream = Upstream::saying(format!("{STREAM_HEAD}{answer}"));
        let server = server(&upstream);
        let flow = server.save(&chain("one", &[agent("a", provider, model, "Hi")]));
        assert_eq!(server.run(flow, &json!({}))["status"], "FAILED");
        let response = ask(&server, path, model);
        assert!(response.text().contains(message), "{answer}: {}", response.text());
        assert!(!response.text().contains("[DONE]\n"), "{answer}: {}", response.text());
        for row in rows(&server, 2) {
            assert_eq!((&row["status"], &row["usage_source"]), (&json!("FAILED"), &json!("none")));
            assert!(row["error_message"].as_str().unwrap().contains(message), "{row}");
            assert_eq!(row["input_tokens"], Value::Null, "{row}");
        }
    }
    let (_upstream, server) = server_with_fallback(format!("{STREAM_HEAD}data: [DONE]\n\n"));
    assert!(ask(&server, CHAT, "both").text().contains("well"));
    assert_eq!(rows(&server, 2)[0]["status"], "FAILED");
}

#[test]
fn counts_of_any_server_are_hidden_unless_requested() {
    let usage = json!({"prompt_tokens": 7, "completion_tokens": 2});
    for last in [
        json!({"choices": [], "usage": usage, "timings": {"prompt_n": 12, "prompt_ms": 1.5}}),
        json!({"choices": null, "usage": usage}),
        json!({"id": "c", "choices": [], "usage": usage, "time_info": {"queue_time": 0.1}}),
    ] {
        let answer = format!("{}{}data: [DONE]\n\n", delta("x"), event(&last));
        let upstream = Upstream::saying(format!("{STREAM_HEAD}{answer}"));
        let server = server(&upstream);
        let text = ask(&server, CHAT, "gpt-4o-mini").text();
        assert_eq!(text, delta("x") + "data: [DONE]\n\n");
        let mut body = chat("gpt-4o-mini", true);
        body["stream_options"] = json!({"include_usage": true});
        assert_eq!(server.post(CHAT, &body).text(), answer);
        for row in rows(&server, 2) {
            assert_eq!((&row["input_tokens"], &row["output_tokens"]), (&json!(7), &json!(2)));
        }
    }
}

#[test]
fn the_key_is_replaced_in_response_headers() {
    let fields = "x-request-id: r-test-key\r\nx-ratelimit-test: test-key\r\ncontent-type";
    let with = |answer: String| answer.replacen("content-type", fields, 1);
    let stream = format!("{STREAM_HEAD}{}data: [DONE]\n\n", delta("x"));
    for answer in [completion("x", 1, 1), json_answer("429 Slow", "{}"), stream] {
        let upstream = Upstream::saying(with(answer));
        let response = ask(&server(&upstream), CHAT, "gpt-4o-mini");
        assert_eq!(response.header("x-request-id"), Some("r-***"));
        assert_eq!(response.header("x-ratelimit-test"), Some("***"));
    }
}

#[test]
fn a_stream_asks_reverse_proxies_not_to_buffer() {
    let stream = format!("{STREAM_HEAD}{}data: [DONE]\n\n", delta("x"));
    let upstream = Upstream::saying(stream);
    let server = server(&upstream);
    for model in ["gpt-4o-mini", "echo/echo-1"] {
        let response = ask(&server, CHAT, model);
        assert_eq!(response.header("x-accel-buffering"), Some("no"), "{model}");
    }
    let csv = server.get("/api/ledger.csv");
    assert_eq!(csv.header("x-accel-buffering"), Some("no"));
    assert_eq!(server.get("/api/health").header("x-accel-buffering"), None);
}

#[test]
fn an_error_that_clients_cannot_see_is_replaced() {
    let balance = json!({"status_code": 1008, "status_msg": "insufficient balance"});
    let refused = json!({"choices": [], "base_resp": balance, "error": null});
    for (answer, is_streamed) in [
        (format!("{STREAM_HEAD}{}data: [DONE]\n\n", event(&refused)), true),
        (json_answer("200 OK", &refused.to_string()), false),
    ] {
        let upstream = Upstream::saying(answer);
        let server = server(&upstream);
        let response = server.post(CHAT, &chat("gpt-4o-mini", is_streamed));
        assert_eq!(response.status, 502, "{}", response.text());
        let message = response.json()["error"]["message"].clone();
        assert!(message.as_str().unwrap().contains("insufficient balance"), "{message}");
        assert_eq!(rows(&server, 1)[0]["status"], "FAILED");
    }
}

#[test]
fn the_end_of_a_failed_stream_is_withheld() {
    let balance = json!({"status_code": 1008, "status_msg": "insufficient balance"});
    let broken = json!({"index": 0, "delta": {}, "finish_reason": "network_error"});
    for (path, failed, message) in [
        (CHAT, json!({"choices": [], "base_resp": balance}), "insufficient balance"),
        (CHAT, json!({"choices": [broken]}), "network_error"),
        (MESSAGES, json!({"type": "message_delta", "base_resp": balance}), "insufficient balance"),
    ] {
        let answer = answer_with(path, &event(&failed));
        let upstream = Upstream::saying(format!("{STREAM_HEAD}{answer}"));
        let server = server(&upstream);
        let model = WAYS.iter().find(|way| way.0 == path).unwrap().2;
        let text = ask(&server, path, model).text();
        assert!(!text.contains("[DONE]") && !text.contains("message_stop"), "{text}");
        let last = data_of(&text).pop().unwrap();
        assert!(last["error"]["message"].as_str().unwrap().contains(message), "{text}");
        assert_eq!(rows(&server, 1)[0]["status"], "FAILED");
    }
}
