//! Rows for answers whose counts are missing, late, invalid or billed at another rate.

use std::io::Write;

use flowledger::config::Config;
use flowledger::providers::Kind;
use serde_json::{Value, json};

use crate::harness::{TestServer, add_provider, agent, chain, eventually};
use crate::upstream::{STREAM_HEAD, Upstream, completion, delta, json_answer};

const CHAT: &str = "/v1/chat/completions";
const MESSAGES: &str = "/v1/messages";

/// A server whose providers `openai` and `anthropic` are the upstream.
fn server_with(upstream: &Upstream, change: impl FnOnce(&mut Config)) -> TestServer {
    TestServer::start_with(|config| {
        add_provider(config, "openai", Kind::OpenAi, upstream.url());
        add_provider(config, "anthropic", Kind::Anthropic, upstream.url());
        change(config);
    })
}

/// Runs a flow with one call and returns its row.
fn row_of_flow(server: &TestServer, provider: &str, model: &str) -> Value {
    let flow = server.save(&chain("One", &[agent("a", provider, model, "Hi")]));
    let run = server.run(flow, &json!({}));
    let path = format!("/api/ledger?run_id={}", run["runId"].as_str().unwrap());
    server.get(&path).json()["items"][0].clone()
}

/// Makes a call at `/v1` and returns its row.
fn row_of_client(server: &TestServer, path: &str, model: &str, is_streamed: bool) -> Value {
    let body = json!({"model": model, "max_tokens": 9, "stream": is_streamed,
        "messages": [{"role": "user", "content": "Hi"}]});
    server.post(path, &body);
    let mut row = Value::Null;
    eventually("the newest row is settled", || {
        row = server.get("/api/ledger?limit=1").json()["items"][0].clone();
        row["status"] != "PENDING"
    });
    row
}

/// A stream of these events, Anthropic's with their names.
fn events(events: &[Value]) -> String {
    let event = |event: &Value| match event["type"].as_str() {
        Some(name) => format!("event: {name}\ndata: {event}\n\n"),
        None => format!("data: {event}\n\n"),
    };
    STREAM_HEAD.to_owned() + &events.iter().map(event).collect::<String>()
}

fn tokens(row: &Value) -> (u64, u64, &str) {
    (
        row["input_tokens"].as_u64().unwrap(),
        row["output_tokens"].as_u64().unwrap(),
        row["usage_source"].as_str().unwrap(),
    )
}

const HAIKU: &str = "claude-haiku-4-5";

fn message_start() -> Value {
    json!({"type": "message_start", "message": {"model": HAIKU,
        "usage": {"input_tokens": 25, "output_tokens": 1}}})
}

#[test]
fn a_response_without_final_counts_is_estimated() {
    for usage in
        [Value::Null, json!({}), json!({"cache_read_input_tokens": 0}), json!({"input_tokens": 25})]
    {
        let text = "one two three four five six seven eight nine ten".repeat(40);
        let upstream = Upstream::saying(events(&[
            message_start(),
            json!({"type": "content_block_delta", "index": 0,
                "delta": {"type": "text_delta", "text": text}}),
            json!({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": usage}),
            json!({"type": "message_stop"}),
        ]));
        let server = server_with(&upstream, |_| {});
        let row = row_of_flow(&server, "anthropic", HAIKU);
        assert_eq!(row["status"], "SUCCESS", "{row:#}");
        let (input, output, source) = tokens(&row);
        assert_eq!((input, source), (25, "estimated"), "{usage}: {row:#}");
        assert!(output >= 400, "{usage}: {row:#}");
        let row = row_of_client(&server, MESSAGES, &format!("anthropic/{HAIKU}"), true);
        assert_eq!(row["usage_source"], "estimated", "{usage}: {row:#}");
    }
}

#[test]
fn an_uncounted_tool_call_is_estimated() {
    let arguments = json!({"city": "Paris", "days": [1, 2, 3, 4, 5, 6, 7, 8, 9]}).to_string();
    let (first, rest) = arguments.split_at(9);
    let call = |arguments: &str| {
        json!({"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0,
            "function": {"name": "weather", "arguments": arguments}}]}}]})
    };
    let of_openai = events(&[
        call(first),
        call(rest),
        json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}),
    ]);
    let whole_of_openai = json!({"choices": [{"index": 0, "finish_reason": "tool_calls", "message": {
        "content": null, "tool_calls": [{"function": {"name": "weather", "arguments": arguments}}]}}]});
    let input = |json: &str| {
        json!({"type": "content_block_delta", "index": 0,
            "delta": {"type": "input_json_delta", "partial_json": json}})
    };
    let of_anthropic = events(&[
        json!({"type": "message_start", "message": {"model": HAIKU}}),
        json!({"type": "content_block_start", "index": 0,
            "content_block": {"type": "tool_use", "name": "weather", "input": {}}}),
        input(first),
        input(rest),
        json!({"type": "message_delta", "delta": {"stop_reason": "tool_use"}}),
        json!({"type": "message_stop"}),
    ]);
    let whole_of_anthropic = json!({"content": [{"type": "tool_use", "name": "weather",
        "input": serde_json::from_str::<Value>(&arguments).unwrap()}]});
    for (path, model, is_streamed, answer) in [
        (CHAT, "openai/gpt-4o-mini", true, of_openai),
        (CHAT, "openai/gpt-4o-mini", false, json_answer("200 OK", &whole_of_openai.to_string())),
        (MESSAGES, "anthropic/claude-haiku-4-5", true, of_anthropic),
        (
            MESSAGES,
            "anthropic/claude-haiku-4-5",
            false,
            json_answer("200 OK", &whole_of_anthropic.to_string()),
        ),
    ] {
        let upstream = Upstream::saying(answer);
        let server = server_with(&upstream, |_| {});
        let row = row_of_client(&server, path, model, is_streamed);
        assert_eq!(row["status"], "SUCCESS", "{model} {is_streamed}: {row:#}");
        let (_, output, source) = tokens(&row);
        assert_eq!(source, "estimated", "{model} {is_streamed}: {row:#}");
        assert!(output >= 20, "{model} {is_streamed}: {row:#}");
    }
}

#[test]
fn trailing_usage_without_counts_is_ignored() {
    let end = json!({"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1_000, "completion_tokens": 100}});
    for usage in
        [json!("n/a"), json!({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0})]
    {
        let later = json!({"choices": [], "usage": usage});
        let upstream = Upstream::saying(events(&[end.clone(), later]));
        let server = server_with(&upstream, |_| {});
        for row in [
            row_of_flow(&server, "openai", "gpt-4o-mini"),
            row_of_client(&server, CHAT, "openai/gpt-4o-mini", true),
        ] {
            assert_eq!(tokens(&row), (1_000, 100, "provider"), "{usage}: {row:#}");
        }
    }
}

#[test]
fn an_event_without_data_does_not_break_a_stream() {
    let usage = json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1_000, "completion_tokens": 100}});
    let ping = "event: ping\ndata:\n\n";
    let answer = format!("{STREAM_HEAD}{ping}{}{ping}data: {usage}\n\n", delta("a"));
    let upstream = Upstream::saying(answer);
    let server = server_with(&upstream, |_| {});
    for row in [
        row_of_flow(&server, "openai", "gpt-4o-mini"),
        row_of_client(&server, CHAT, "openai/gpt-4o-mini", true),
    ] {
        assert_eq!(row["status"], "SUCCESS", "{row:#}");
        assert_eq!(tokens(&row), (1_000, 100, "provider"), "{row:#}");
    }
}

#[test]
fn a_stream_with_unfinished_choices_fails() {
    let choice = |index: u64, finish: Value| json!({"choices": [{"index": index, "delta": {"content": "a"}, "finish_reason": finish}]});
    let chunks = [choice(0, Value::Null), choice(1, Value::Null), choice(0, json!("stop"))];
    for (last, status) in [(None, "FAILED"), (Some(choice(1, json!("stop"))), "SUCCESS")] {
        let chunks: Vec<Value> = chunks.iter().cloned().chain(last).collect();
        let upstream = Upstream::saying(events(&chunks));
        let server = server_with(&upstream, |_| {});
        let row = row_of_client(&server, CHAT, "openai/gpt-4o-mini", true);
        assert_eq!(row["status"], status, "{row:#}");
    }
}

#[test]
fn an_overlong_model_name_is_replaced_by_the_requested_one() {
    for name in ["m".repeat(3 << 20), "a\u{0}b\nc".to_owned()] {
        let answer = completion("well", 1_000, 10).replace("gpt-4o-mini", "@");
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        let body = body.replace("\"@\"", &json!(name).to_string());
        let upstream = Upstream::saying(json_answer("200 OK", &body));
        let server = server_with(&upstream, |_| {});
        for row in [
            row_of_flow(&server, "openai", "gpt-4o-mini"),
            row_of_client(&server, CHAT, "openai/gpt-4o-mini", false),
        ] {
            assert_eq!(row["model_used"], "gpt-4o-mini");
            assert_eq!(row["status"], "SUCCESS");
            assert!(row["total_cost_usd"].as_f64() > Some(0.0), "{row:#}");
        }
        let metrics = server.get("/metrics").text();
        assert!(metrics.len() < 100_000, "{}", metrics.len());
    }
}

#[test]
fn other_tiers_and_audio_have_tokens_but_no_known_cost() {
    let of_openai = |tier: &str, audio: u64| {
        json!({"model": "gpt-4o-mini", "service_tier": tier,
            "choices": [{"index": 0, "message": {"content": "a"}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 1_000, "completion_tokens": 100,
                "completion_tokens_details": {"audio_tokens": audio}}})
    };
    let of_anthropic = |tier: &str| {
        json!({"model": HAIKU, "content": [{"type": "text", "text": "a"}],
            "usage": {"input_tokens": 1_000, "output_tokens": 100, "service_tier": tier}})
    };
    for (provider, answer, is_known) in [
        ("openai", of_openai("default", 0), true),
        ("openai", of_openai("priority", 0), false),
        ("openai", of_openai("default", 50), false),
        ("anthropic", of_anthropic("standard"), true),
        ("anthropic", of_anthropic("batch"), false),
    ] {
        let (model, path) = match provider {
            "openai" => ("gpt-4o-mini", CHAT),
            _ => (HAIKU, MESSAGES),
        };
        let upstream = Upstream::saying(json_answer("200 OK", &answer.to_string()));
        let server = server_with(&upstream, |_| {});
        for row in [
            row_of_flow(&server, provider, model),
            row_of_client(&server, path, &format!("{provider}/{model}"), false),
        ] {
            assert_eq!(tokens(&row), (1_000, 100, "provider"), "{answer}");
            assert_eq!(row["total_cost_usd"].is_null(), !is_known, "{answer}: {row:#}");
            assert_eq!(row.get("price_id").is_some(), is_known, "{answer}: {row:#}");
        }
    }
}

#[test]
fn stream_usage_is_not_requested_after_a_refusal() {
    let end = json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1_000, "completion_tokens": 100}});
    let upstream = Upstream::saying(events(&[end]));
    for stream_usage in [true, false] {
        let server = server_with(&upstream, |config| {
            config.providers.get_mut("openai").unwrap().stream_usage = stream_usage;
        });
        for row in [
            row_of_flow(&server, "openai", "gpt-4o-mini"),
            row_of_client(&server, CHAT, "openai/gpt-4o-mini", true),
        ] {
            assert_eq!(tokens(&row), (1_000, 100, "provider"), "{row:#}");
            let body = upstream.requests().recv().unwrap();
            assert_eq!(body.contains("stream_options"), stream_usage, "{body}");
        }
    }
}

#[test]
fn implausible_costs_are_unknown_and_keep_sums_valid() {
    let dir = tempfile::tempdir().unwrap();
    let prices = dir.path().join("mine.toml");
    let price = "[[price]]\nprovider = 'openai'\nmodel = '*'\ninput_per_mtok = '100000'";
    std::fs::write(&prices, price).unwrap();
    let upstream = Upstream::saying(completion("well", 1_000_000_000, 1_000_000_000));
    let server = server_with(&upstream, |config| config.prices = Some(prices));
    let mut nodes = ["a", "b"].map(|id| agent(id, "openai", "gpt-4o-mini", "Hi"));
    for node in &mut nodes {
        node["data"]["stream"] = json!(false);
    }
    let run = server.run(server.save(&chain("Two", &nodes)), &json!({}));
    assert_eq!(run["status"], "COMPLETED", "{run:#}");
    let summary = server.get("/api/ledger/summary");
    assert_eq!(summary.status, 200, "{}", summary.text());
    let total = &summary.json()["total"];
    let expected = (json!(2), json!(2), json!(0));
    assert_eq!(
        (total["calls"].clone(), total["unpriced_calls"].clone(), total["total_cost_usd"].clone()),
        expected
    );
}

/// The rows of a call that states this usage: in a flow and at `/v1`, streamed and not.
fn rows_with_usage(usage: &Value, trust: Option<bool>) -> [Value; 4] {
    const MODEL: &str = "gpt-4o-mini";
    let end = json!({"model": MODEL, "choices": [{"index": 0, "delta": {"content": "Hello"},
        "finish_reason": "stop"}]});
    let stream = events(&[end, json!({"choices": [], "usage": usage})]) + "data: [DONE]\n\n";
    let whole = json!({"model": MODEL, "usage": usage, "choices": [{"index": 0,
        "message": {"content": "Hello"}, "finish_reason": "stop"}]});
    let whole = json_answer("200 OK", &whole.to_string());
    let upstream = Upstream::start(move |body, socket| {
        let is_streamed = body.contains("\"stream\":true");
        let answer = if is_streamed { &stream } else { &whole };
        let _ = socket.write_all(answer.as_bytes());
    });
    let server = server_with(&upstream, |config| {
        config.providers.get_mut("openai").unwrap().trust_stated_cost = trust;
    });
    let in_flow = |is_streamed: bool| {
        let mut node = agent("a", "openai", MODEL, "Hi");
        node["data"]["stream"] = json!(is_streamed);
        let run = server.run(server.save(&chain("One", &[node])), &json!({}));
        let path = format!("/api/ledger?run_id={}", run["runId"].as_str().unwrap());
        server.get(&path).json()["items"][0].clone()
    };
    let of_client =
        |is_streamed: bool| row_of_client(&server, CHAT, &format!("openai/{MODEL}"), is_streamed);
    [in_flow(false), in_flow(true), of_client(false), of_client(true)]
}

#[test]
fn a_trusted_provider_states_the_cost() {
    let stated = |more: Value| {
        let mut usage = json!({"prompt_tokens": 10, "completion_tokens": 140});
        usage.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        usage
    };
    let byok = |fee: f64| {
        json!({"cost": fee, "is_byok": true,
            "cost_details": {"upstream_inference_cost": 0.036_079_5}})
    };
    for (usage, cost) in [
        (stated(json!({"cost": 0.005_15})), 0.005_15),
        (stated(json!({"cost": {"total_cost": 0.005_15}})), 0.005_15),
        (stated(byok(0.0)), 0.036_079_5),
        (stated(byok(0.001)), 0.037_079_5),
        // Some servers state the upstream's bill as both.
        (stated(byok(0.036_079_5)), 0.036_079_5),
    ] {
        for row in rows_with_usage(&usage, Some(true)) {
            assert_eq!(row["cost_source"], "provider", "{row:#}");
            assert_eq!(row["total_cost_usd"], json!(cost), "{row:#}");
            assert_eq!(row["provider_cost_usd"], json!(cost), "{row:#}");
            assert_eq!(row["price_cost_usd"], json!(0.000_085_5), "{row:#}");
        }
    }
}

#[test]
fn a_stated_cost_of_an_untrusted_provider_is_only_kept() {
    for (cost, kept) in
        [(json!(0), json!(0.0)), (json!(-1), Value::Null), (json!("1"), Value::Null)]
    {
        let usage = json!({"prompt_tokens": 10, "completion_tokens": 140, "cost": cost});
        for row in rows_with_usage(&usage, None) {
            assert_eq!(row["cost_source"], "price", "{row:#}");
            assert_eq!(row["total_cost_usd"], json!(0.000_085_5), "{row:#}");
            assert_eq!(row["provider_cost_usd"].as_f64(), kept.as_f64(), "{row:#}");
        }
    }
}

#[test]
fn unknown_tokens_are_null_and_counted_apart() {
    let upstream = Upstream::saying(json_answer("500 Oops", "{}"));
    let server = server_with(&upstream, |_| {});
    let row = row_of_client(&server, CHAT, "openai/gpt-4o-mini", false);
    for name in ["input_tokens", "cached_input_tokens", "output_tokens", "reasoning_tokens"] {
        assert_eq!(row.get(name), Some(&Value::Null), "{row:#}");
    }
    let sums = server.get("/api/ledger/summary").json()["total"].clone();
    assert_eq!((&sums["unpriced_calls"], &sums["unknown_cost_calls"]), (&json!(0), &json!(1)));
    let csv = server.get("/api/ledger.csv").text();
    let mut lines = csv.lines().map(|line| line.split(',').collect::<Vec<_>>());
    let (head, row) = (lines.next().unwrap(), lines.next().unwrap());
    let at = head.iter().position(|name| *name == "input_tokens").unwrap();
    assert_eq!(row[at], "", "{row:?}");
}

/// The rows of a call that gets this answer, in a flow and at `/v1/messages`.
fn rows_with_message(provider: &str, model: &str, usage: &Value) -> [Value; 2] {
    let message = json!({"model": model, "content": [{"type": "text", "text": "Hello"}],
        "stop_reason": "end_turn", "usage": usage});
    let upstream = Upstream::saying(json_answer("200 OK", &message.to_string()));
    let server = server_with(&upstream, |config| {
        for name in ["openrouter", "dashscope-intl"] {
            add_provider(config, name, Kind::Anthropic, upstream.url());
        }
    });
    let mut node = agent("a", provider, model, "Hi");
    node["data"]["stream"] = json!(false);
    let run = server.run(server.save(&chain("One", &[node])), &json!({}));
    let path = format!("/api/ledger?run_id={}", run["runId"].as_str().unwrap());
    let in_flow = server.get(&path).json()["items"][0].clone();
    [in_flow, row_of_client(&server, MESSAGES, &format!("{provider}/{model}"), false)]
}

#[test]
fn surcharges_and_fees_are_part_of_the_cost() {
    let usage = json!({"input_tokens": 1_000, "output_tokens": 500, "inference_geo": "us",
        "server_tool_use": {"web_search_requests": 2}});
    for row in rows_with_message("anthropic", "claude-opus-4-6", &usage) {
        assert_eq!(row["total_cost_usd"], json!(0.039_25), "{row:#}");
        assert_eq!(row["cost_note"], "2 web searches, inference_geo us x1.1", "{row:#}");
        assert_eq!(row["cost_source"], "price", "{row:#}");
    }
}

#[test]
fn an_unknown_region_leaves_the_cost_unknown() {
    let usage = json!({"input_tokens": 1_000, "output_tokens": 500, "inference_geo": "eu"});
    for row in rows_with_message("anthropic", "claude-opus-4-6", &usage) {
        assert_eq!(tokens(&row), (1_000, 500, "provider"), "{row:#}");
        assert_eq!(row["total_cost_usd"], Value::Null, "{row:#}");
        assert_eq!(row["cost_note"], "inference_geo eu", "{row:#}");
    }
}

#[test]
fn a_model_without_hour_write_price_has_no_cost() {
    let usage = json!({"input_tokens": 3, "output_tokens": 100,
        "cache_creation_input_tokens": 10_000,
        "cache_creation": {"ephemeral_1h_input_tokens": 10_000}});
    for row in rows_with_message("openrouter", "anthropic/claude-opus-4.6", &usage) {
        assert_eq!(tokens(&row), (10_003, 100, "provider"), "{row:#}");
        assert_eq!(row["total_cost_usd"], Value::Null, "{row:#}");
        assert_eq!(row["cost_note"], "one-hour cache writes", "{row:#}");
    }
    for row in rows_with_message("anthropic", "claude-opus-4-6", &usage) {
        assert_eq!(row["total_cost_usd"], json!(0.102_515), "{row:#}");
    }
    let for_minutes = json!({"input_tokens": 3, "output_tokens": 100,
        "cache_creation_input_tokens": 10_000});
    for row in rows_with_message("openrouter", "anthropic/claude-opus-4.6", &for_minutes) {
        assert_eq!(row["total_cost_usd"], json!(0.065_015), "{row:#}");
    }
}

#[test]
fn cache_tokens_without_a_price_have_no_cost() {
    for part in ["cache_read_input_tokens", "cache_creation_input_tokens"] {
        let usage = json!({"input_tokens": 3, "output_tokens": 100, part: 10_000});
        for row in rows_with_message("dashscope-intl", "qwen-max", &usage) {
            assert_eq!(tokens(&row), (10_003, 100, "provider"), "{row:#}");
            assert_eq!(row["total_cost_usd"], Value::Null, "{row:#}");
            assert_eq!(row["cost_note"], "cache tokens", "{row:#}");
        }
    }
    let uncached = json!({"input_tokens": 1_000, "output_tokens": 100});
    for row in rows_with_message("dashscope-intl", "qwen-max", &uncached) {
        assert_eq!(row["total_cost_usd"], json!(0.002_24), "{row:#}");
    }
}

#[test]
fn compactions_of_a_message_are_billed() {
    let usage = json!({"input_tokens": 23_000, "output_tokens": 1_000, "iterations": [
        {"type": "compaction", "input_tokens": 180_000, "output_tokens": 3_500},
        {"type": "message", "input_tokens": 23_000, "output_tokens": 1_000}]});
    for row in rows_with_message("anthropic", "claude-sonnet-4-5", &usage) {
        assert_eq!(tokens(&row), (203_000, 4_500, "provider"), "{row:#}");
        // No prompt reaches the tier above 200,000 tokens.
        assert_eq!(row["total_cost_usd"], json!(0.676_5), "{row:#}");
    }
}

#[test]
fn xai_states_the_cost_in_ticks() {
    let usage = json!({"prompt_tokens": 10, "completion_tokens": 140,
        "cost_in_usd_ticks": 37_756_000, "num_sources_used": 4});
    for row in rows_with_usage(&usage, Some(true)) {
        assert_eq!(row["cost_source"], "provider", "{row:#}");
        assert_eq!(row["total_cost_usd"], json!(0.003_775_6), "{row:#}");
    }
    for row in rows_with_usage(&usage, Some(false)) {
        assert_eq!(row["total_cost_usd"], Value::Null, "{row:#}");
        assert_eq!(row["cost_note"], "tool fee", "{row:#}");
    }
}

#[test]
fn image_tokens_leave_the_cost_unknown() {
    let usage = json!({"prompt_tokens": 10, "completion_tokens": 1_290,
        "completion_tokens_details": {"image_tokens": 1_290}});
    for row in rows_with_usage(&usage, None) {
        assert_eq!(tokens(&row), (10, 1_290, "provider"), "{row:#}");
        assert_eq!(row["total_cost_usd"], Value::Null, "{row:#}");
        assert_eq!(row["cost_note"], "image tokens", "{row:#}");
    }
}

#[test]
fn audio_in_a_prompt_leaves_the_cost_unknown() {
    let answer = json!({"model": "gemini-2.5-flash",
        "choices": [{"index": 0, "message": {"content": "a"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1_000, "completion_tokens": 100, "total_tokens": 1_100}});
    let upstream = Upstream::saying(json_answer("200 OK", &answer.to_string()));
    let server = server_with(&upstream, |config| {
        add_provider(config, "gemini", Kind::Gemini, upstream.url());
    });
    let text = json!({"type": "text", "text": "Hi"});
    let image = json!({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}});
    let audio = json!({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}});
    let video = json!({"type": "video_url", "video_url": {"url": "https://example.com/a.mp4"}});
    for (part, is_known) in [(text, true), (image, true), (audio, false), (video, false)] {
        let body = json!({"model": "gemini/gemini-2.5-flash",
            "messages": [{"role": "user", "content": [part]}]});
        server.post(CHAT, &body);
        let mut row = Value::Null;
        eventually("the newest row is settled", || {
            row = server.get("/api/ledger?limit=1").json()["items"][0].clone();
            row["status"] == "SUCCESS"
        });
        assert_eq!(tokens(&row), (1_000, 100, "provider"), "{row:#}");
        assert_eq!(row["total_cost_usd"].is_number(), is_known, "{part}: {row:#}");
        let note = (!is_known).then_some("audio tokens");
        assert_eq!(row["cost_note"].as_str(), note, "{part}: {row:#}");
    }
}

#[test]
fn a_fractional_count_is_no_count() {
    let usage = json!({"prompt_tokens": 1_200.5, "completion_tokens": 100});
    for row in rows_with_usage(&usage, None) {
        assert_eq!(row["usage_source"], "estimated", "{row:#}");
    }
}

#[test]
fn a_stated_cost_of_an_untrusted_failure_decides_nothing() {
    let answer = json!({"error": {"message": "x"}, "usage": {"cost": 0}});
    let upstream = Upstream::saying(json_answer("200 OK", &answer.to_string()));
    let server = server_with(&upstream, |config| {
        config.failed_call_costs = toml::from_str("broken = \"zero\"").unwrap();
    });
    let row = row_of_client(&server, CHAT, "openai/gpt-4o-mini", false);
    assert_eq!((&row["status"], &row["total_cost_usd"]), (&json!("FAILED"), &json!(0)), "{row:#}");
}

#[test]
fn the_reservation_includes_surcharges_and_fees_of_a_request() {
    let upstream = Upstream::saying(json_answer("200 OK", "{}"));
    let server = server_with(&upstream, |_| {});
    // 10,000 tokens of output cost 0.25 USD; ×1.1 and five searches are beyond the limit.
    let budgets = json!({"budgets": [
        {"name": "b", "per": "month", "limitUsd": "0.26", "allowUnpriced": true, "onShort": "refuse"}]});
    let set = server.request("PUT", "/api/budget", &[], budgets.to_string().as_bytes());
    assert_eq!(set.status, 200, "{}", set.text());
    let status = |more: Value| {
        let mut body = json!({"model": "anthropic/claude-opus-4-6", "max_tokens": 10_000,
            "messages": [{"role": "user", "content": "Hi"}]});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        server.post(MESSAGES, &body).status
    };
    assert_eq!(status(json!({"inference_geo": "us"})), 402);
    let search = json!({"type": "web_search_20250305", "name": "web_search", "max_uses": 5});
    assert_eq!(status(json!({"tools": [search]})), 402);
    assert_ne!(status(json!({})), 402);
}

#[test]
fn a_byte_order_mark_before_a_response_is_skipped() {
    let body = format!(
        "\u{feff}{}",
        json!({"model": "gpt-4o-mini",
        "usage": {"prompt_tokens": 10, "completion_tokens": 2},
        "choices": [{"index": 0, "message": {"content": "well"}, "finish_reason": "stop"}]})
    );
    let upstream = Upstream::saying(json_answer("200 OK", &body));
    let server = server_with(&upstream, |_| {});
    for row in [
        row_of_client(&server, CHAT, "openai/gpt-4o-mini", false),
        row_of_flow(&server, "openai", "gpt-4o-mini"),
    ] {
        assert_eq!((&row["status"], tokens(&row)), (&json!("SUCCESS"), (10, 2, "provider")));
    }
}
