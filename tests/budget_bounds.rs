//! Hard budgets and the calls of coding agents: long prompts that recur, and high output limits.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use flowledger::config::Config;
use flowledger::providers::Kind;
use serde_json::{Value, json};

use crate::harness::{DEADLINE, Response, TestServer, add_provider, eventually};
use crate::upstream::{Upstream, completion, json_answer};

const MESSAGES: &str = "/v1/messages";
const CHAT: &str = "/v1/chat/completions";
/// Costs 3 USD per million tokens of input, 3.75 of cache writes and 15 of output.
const MODEL: &str = "claude-sonnet-4-5";
const INPUT_NANOUSD: u64 = 3_000;
const OUTPUT_NANOUSD: u64 = 15_000;
/// The limit of Claude Code.
const MAX_TOKENS: u64 = 64_000;

fn server_with(upstream: &Upstream, change: impl FnOnce(&mut Config)) -> TestServer {
    let url = upstream.url().to_owned();
    TestServer::start_with(move |config| {
        add_provider(config, "openai", Kind::OpenAi, &url);
        add_provider(config, "anthropic", Kind::Anthropic, url.trim_end_matches("/v1"));
        change(config);
    })
}

fn set(server: &TestServer, budgets: Value) {
    let body = json!({"budgets": budgets}).to_string();
    let answer = server.request("PUT", "/api/budget", &[], body.as_bytes());
    assert_eq!(answer.status, 200, "{}", answer.text());
}

/// A server with a hard budget of 2 USD a day.
fn server(upstream: &Upstream, more: Value) -> TestServer {
    let server = server_with(upstream, |_| {});
    let mut budget = json!({"name": "daily", "per": "day", "limitUsd": "2"});
    for (key, value) in more.as_object().unwrap() {
        budget[key] = value.clone();
    }
    set(&server, json!([budget]));
    server
}

fn state(server: &TestServer) -> Value {
    server.get("/api/budget").json()["budgets"][0]["state"].clone()
}

fn usd(value: &Value) -> f64 {
    value.as_str().map_or_else(|| value.as_f64().unwrap(), |text| text.parse().unwrap())
}

fn rows(server: &TestServer) -> Vec<Value> {
    let rows = server.get("/api/ledger?limit=1000").json();
    rows["items"].as_array().unwrap().clone()
}

/// Returns the sum of all costs once every call is settled.
fn spent(server: &TestServer) -> f64 {
    eventually("all calls are settled", || {
        rows(server).iter().all(|row| row["status"] != "PENDING")
    });
    rows(server).iter().map(|row| row["total_cost_usd"].as_f64().unwrap()).sum()
}

/// The request of a coding agent: 75 KB of system prompt and tools, and a conversation.
fn agent_request(turns: usize) -> Value {
    let words = "Read the file before you edit it, and keep the changes small. ";
    let tools: Vec<Value> = (0..16)
        .map(|at| json!({"name": format!("tool{at}"), "description": words.repeat(40), "input_schema": {"type": "object"}}))
        .collect();
    let mut messages = vec![json!({"role": "user", "content": "Mend the failing test."})];
    for turn in 0..turns {
        let id = format!("toolu_{turn}");
        messages.push(json!({"role": "assistant", "content": [{"type": "tool_use", "id": id, "name": "tool1", "input": {}}]}));
        messages.push(json!({"role": "user", "content": [{"type": "tool_result", "tool_use_id": id, "content": words.repeat(3)}]}));
    }
    json!({
        "model": MODEL, "max_tokens": MAX_TOKENS, "tools": tools, "messages": messages,
        "system": [{"type": "text", "text": words.repeat(550), "cache_control": {"type": "ephemeral"}}],
    })
}

/// Counts tokens as Claude does for such a prompt.
fn input_tokens(body: &str) -> u64 {
    body.len() as u64 * 24 / 100
}

fn message(input_tokens: u64, output_tokens: u64) -> String {
    let answer = json!({"id": "m", "type": "message", "role": "assistant", "model": MODEL,
        "content": [{"type": "text", "text": "done"}], "stop_reason": "end_turn",
        "usage": {"input_tokens": input_tokens, "output_tokens": output_tokens}});
    json_answer("200 OK", &answer.to_string())
}

/// An upstream that answers with 300 tokens.
fn agent_upstream() -> Upstream {
    Upstream::start(|body, stream| {
        let _ = stream.write_all(message(input_tokens(body), 300).as_bytes());
    })
}

fn cost(request: &Value) -> f64 {
    (input_tokens(&request.to_string()) * INPUT_NANOUSD + 300 * OUTPUT_NANOUSD) as f64 / 1e9
}

fn lowered(response: &Response) -> Option<u64> {
    response.header("x-flowledger-max-tokens").map(|limit| limit.parse().unwrap())
}

#[test]
fn calls_of_a_coding_agent_pass_while_they_fit() {
    let upstream = agent_upstream();
    let server = server(&upstream, json!({}));
    let (mut fitting, mut passed, mut total) = (0, 0, 0.0);
    for turn in 0..60 {
        let request = agent_request(turn);
        assert!(request.to_string().len() > 75_000);
        total += cost(&request);
        fitting += usize::from(total <= 2.0);
        let response = server.post(MESSAGES, &request);
        match response.status {
            200 => passed += 1,
            402 => {}
            _ => panic!("{}", response.text()),
        }
    }
    assert!(fitting >= 25 && passed * 100 >= fitting * 95, "{passed} of {fitting}");
    assert!(spent(&server) <= 2.0);
}

#[test]
fn the_limit_is_lowered_to_the_remaining_amount() {
    let upstream = agent_upstream();
    let server = server(&upstream, json!({"limitUsd": "0.5"}));
    let response = server.post(MESSAGES, &agent_request(0));
    assert_eq!(response.status, 200, "{}", response.text());
    let limit = lowered(&response).unwrap();
    // Before the first measurement, a byte counts as a token: about 0.29 USD.
    assert!((10_000..20_000).contains(&limit), "{limit}");
    let forwarded = upstream.requests().recv_timeout(DEADLINE).unwrap();
    let expected = agent_request(0)
        .to_string()
        .replace("\"max_tokens\":64000", &format!("\"max_tokens\":{limit}"));
    assert_eq!(forwarded, expected, "only the limit differs");
    spent(&server);
    // Now the prompt is measured, which leaves more for the answer.
    let response = server.post(MESSAGES, &agent_request(1));
    assert!(lowered(&response).unwrap() > limit + 5_000);
    // Enough is left for the whole limit.
    set(&server, json!([{"name": "daily", "per": "day", "limitUsd": "50"}]));
    assert_eq!(lowered(&server.post(MESSAGES, &agent_request(1))), None);
}

#[test]
fn the_whole_limit_is_held_until_the_settlement() {
    let (arrived, arrivals) = crossbeam_channel::unbounded();
    let (release, released) = crossbeam_channel::unbounded::<()>();
    let upstream = Upstream::start(move |body, stream| {
        arrived.send(()).unwrap();
        let _ = released.recv_timeout(DEADLINE);
        let _ = stream.write_all(message(input_tokens(body), 300).as_bytes());
    });
    let server = server(&upstream, json!({"limitUsd": "0.5"}));
    std::thread::scope(|scope| {
        let call = scope.spawn(|| server.post(MESSAGES, &agent_request(0)).status);
        arrivals.recv_timeout(DEADLINE).unwrap();
        let during = state(&server);
        assert_eq!(usd(&during["spent"]), 0.0);
        assert!((0.499..=0.5).contains(&usd(&during["held"])), "{during}");
        assert_eq!(during["used"], during["held"]);
        release.send(()).unwrap();
        assert_eq!(call.join().unwrap(), 200);
    });
    let spent = spent(&server);
    eventually("the reservation is free", || usd(&state(&server)["held"]) == 0.0);
    assert!((usd(&state(&server)["spent"]) - spent).abs() < 1e-9);
}

#[test]
fn no_limit_goes_below_the_minimum_or_the_thinking_budget() {
    let upstream = agent_upstream();
    let server = server(&upstream, json!({}));
    // Sets a budget that has this amount left.
    let leave = |amount: f64, more: Value| {
        let mut budget = json!({"name": "daily", "per": "day", "limitUsd": "2"});
        set(&server, json!([budget]));
        budget["limitUsd"] = json!(format!("{:.9}", spent(&server) + amount));
        for (key, value) in more.as_object().unwrap() {
            budget[key] = value.clone();
        }
        set(&server, json!([budget]));
    };
    let ask = |more: Value| {
        let mut request = json!({"model": MODEL, "max_tokens": 8_000, "messages": [{"role": "user", "content": "Hi"}]});
        for (key, value) in more.as_object().unwrap() {
            request[key] = value.clone();
        }
        let response = server.post(MESSAGES, &request);
        (response.status, lowered(&response))
    };
    let thinking = |tokens: u64| json!({"thinking": {"type": "enabled", "budget_tokens": tokens}});
    // 2,000 tokens of output cost 0.03 USD.
    leave(0.03, json!({}));
    let (status, limit) = ask(json!({}));
    let limit = limit.unwrap();
    assert!(status == 200 && (1_800..2_000).contains(&limit), "{limit}");
    for (amount, more, budget, expected) in [
        (0.03, thinking(1_024), json!({}), 200),
        (0.03, thinking(2_000), json!({}), 402),
        (0.0155, json!({}), json!({}), 402),
        (0.0155, json!({"max_tokens": 1_000}), json!({}), 200),
        (0.05, json!({}), json!({"minOutputTokens": 5_000}), 402),
        (0.01, json!({}), json!({"minOutputTokens": 1}), 200),
        (0.05, json!({}), json!({"onShort": "refuse"}), 402),
    ] {
        leave(amount, budget.clone());
        assert_eq!(ask(more.clone()).0, expected, "{amount} {more} {budget}");
    }
}

#[test]
fn every_limit_of_chat_completions_is_lowered() {
    let upstream = Upstream::saying(completion("done", 10, 10));
    let server = server_with(&upstream, |_| {});
    // gpt-4o-mini costs 0.6 USD per million tokens of output.
    let fits = |tokens: u64| json!([{"name": "b", "per": "day", "limitTokens": tokens}]);
    for (fields, expected) in [
        (r#""max_tokens":9000"#, r#""max_tokens":LIMIT"#),
        (
            r#""max_completion_tokens":9000,"max_tokens":100"#,
            r#""max_completion_tokens":LIMIT,"max_tokens":100"#,
        ),
        (
            r#""max_tokens":8000,"max_completion_tokens":9e3"#,
            r#""max_tokens":LIMIT,"max_completion_tokens":LIMIT"#,
        ),
        (
            r#""max_tokens":null,"max_completion_tokens":9000"#,
            r#""max_tokens":null,"max_completion_tokens":LIMIT"#,
        ),
        (r#""n":2,"max_tokens":4000"#, r#""n":2,"max_tokens":LIMIT"#),
        (r#""n":1"#, r#""n":1,"max_tokens":LIMIT"#),
    ] {
        set(&server, json!([]));
        set(&server, fits(1_000_000));
        let used = state(&server)["used"].as_u64().unwrap();
        set(&server, fits(used + 4_000));
        let body = format!(
            r#"{{"model":"gpt-4o-mini","messages":[{{"role":"user","content":"Hi"}}],{fields}}}"#
        );
        let response = server.request("POST", CHAT, &[], body.as_bytes());
        assert_eq!(response.status, 200, "{fields}: {}", response.text());
        let limit = lowered(&response).unwrap();
        let choices = if fields.contains("\"n\":2") { 2 } else { 1 };
        assert!((3_500..4_000).contains(&(limit * choices)), "{fields}: {limit}");
        let forwarded = upstream.requests().recv_timeout(DEADLINE).unwrap();
        let expected = body.replace(fields, &expected.replace("LIMIT", &limit.to_string()));
        assert_eq!(forwarded, expected);
        spent(&server);
    }
}

#[test]
fn a_response_without_a_limit_gets_one_if_too_little_is_left() {
    let answer = json!({"id": "r", "object": "response", "status": "completed", "model": "gpt-4o-mini",
        "output": [], "usage": {"input_tokens": 10, "output_tokens": 10}});
    let upstream = Upstream::saying(json_answer("200 OK", &answer.to_string()));
    let server = server_with(&upstream, |_| {});
    set(&server, json!([{"name": "b", "per": "day", "limitTokens": 3_000}]));
    for (fields, expected) in [
        ("", r#","max_output_tokens":LIMIT"#),
        (r#","max_output_tokens":9000"#, r#","max_output_tokens":LIMIT"#),
    ] {
        let body = format!(r#"{{"model":"gpt-4o-mini","input":"Hi","store":false{fields}}}"#);
        let response = server.request("POST", "/v1/responses", &[], body.as_bytes());
        assert_eq!(response.status, 200, "{}", response.text());
        let limit = lowered(&response).unwrap();
        assert!((2_500..3_000).contains(&limit), "{limit}");
        let forwarded = upstream.requests().recv_timeout(DEADLINE).unwrap();
        let body = body.replace(&format!("false{fields}"), "false");
        let expected = expected.replace("LIMIT", &limit.to_string());
        assert_eq!(forwarded, body.replace("false", &format!("false{expected}")));
        spent(&server);
    }
}

#[test]
fn limits_within_options_are_lowered() {
    let gemini = json!({"candidates": [{"content": {"parts": [{"text": "done"}]}, "finishReason": "STOP"}],
        "usageMetadata": {"promptTokenCount": 10, "candidatesTokenCount": 10, "totalTokenCount": 20}});
    let ollama = json!({"model": "m", "message": {"role": "assistant", "content": "done"}, "done": true,
        "done_reason": "stop", "prompt_eval_count": 10, "eval_count": 10});
    for (kind, name, answer, path, body, status) in [
        (
            Kind::Gemini,
            "gemini",
            &gemini,
            "/v1beta/models/gemini-2.5-flash:generateContent",
            r#"{"contents":[{"parts":[{"text":"Hi"}]}],"generationConfig":{"maxOutputTokens":9000}}"#,
            200,
        ),
        (
            Kind::Gemini,
            "gemini",
            &gemini,
            "/v1beta/models/gemini-2.5-flash:generateContent",
            r#"{"contents":[],"generationConfig":{"maxOutputTokens":9000,"thinkingConfig":{"thinkingBudget":4000}}}"#,
            402,
        ),
        (
            Kind::Ollama,
            "ollama",
            &ollama,
            "/api/chat",
            r#"{"model":"m","stream":false,"messages":[{"role":"user","content":"Hi"}],"options":{"num_predict":9000}}"#,
            200,
        ),
    ] {
        let upstream = Upstream::saying(json_answer("200 OK", &answer.to_string()));
        let url = upstream.url().to_owned();
        let server = server_with(&upstream, |config| add_provider(config, name, kind, &url));
        set(&server, json!([{"name": "b", "per": "day", "limitTokens": 3_000}]));
        let response = server.request("POST", path, &[], body.as_bytes());
        assert_eq!(response.status, status, "{path}: {}", response.text());
        if status == 200 {
            let limit = lowered(&response).unwrap();
            assert!((2_500..3_000).contains(&limit), "{limit}");
            let forwarded = upstream.requests().recv_timeout(DEADLINE).unwrap();
            assert!(forwarded.contains(&format!(":{limit}}}")), "{forwarded}");
        }
    }
}

#[test]
fn openai_prompts_are_counted_only_if_the_bytes_do_not_fit() {
    let upstream = Upstream::saying(completion("done", 15_000, 10));
    let server = server_with(&upstream, |_| {});
    let text = "Read the file before you edit it, and keep the changes small. ".repeat(1_200);
    let ask = |model: &str| {
        let request = json!({"model": model, "max_tokens": 2_000, "messages": [{"role": "user", "content": text}]});
        server.post(CHAT, &request)
    };
    // 74,400 bytes are about 16,800 tokens.
    set(&server, json!([{"name": "b", "per": "day", "limitTokens": 19_500}]));
    let refused = ask("unknown-model");
    assert_eq!(refused.status, 402);
    assert!(refused.text().contains("this call up to 76"), "{}", refused.text());
    let response = ask("gpt-4o-mini");
    assert_eq!((response.status, lowered(&response)), (200, None), "{}", response.text());
    spent(&server);
    set(&server, json!([{"name": "b", "per": "day", "limitTokens": 19_500, "bound": "strict"}]));
    assert_eq!(ask("gpt-4o-mini").status, 402);
}

#[test]
fn measured_densities_survive_a_restart_and_strict_budgets_ignore_them() {
    let upstream = agent_upstream();
    let mut server = server(&upstream, json!({"limitUsd": "50"}));
    assert_eq!(server.post(MESSAGES, &agent_request(0)).status, 200);
    spent(&server);
    server.start_again();
    // 76,000 tokens cost 0.29 USD if all are written to the cache; a quarter of them fits.
    let budget = |bound: &str| json!([{"name": "daily", "per": "day", "limitUsd": "0.25", "bound": bound, "timezone": "Asia/Tokyo"}]);
    let used = usd(&state(&server)["used"]);
    assert!(used < 0.1, "{used}");
    set(&server, budget("strict"));
    assert_eq!(server.post(MESSAGES, &agent_request(1)).status, 402);
    set(&server, budget("estimated"));
    assert_eq!(server.post(MESSAGES, &agent_request(1)).status, 200);
}

/// Sends 64 calls at once, and returns their statuses.
fn race(server: &TestServer) -> Vec<u16> {
    std::thread::scope(|scope| {
        let calls: Vec<_> = (0..64)
            .map(|at| scope.spawn(move || server.post(MESSAGES, &agent_request(at % 4)).status))
            .collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    })
}

#[test]
fn parallel_calls_that_use_their_whole_limit_stay_within_the_budget() {
    for (bound, rest) in [("estimated", false), ("strict", true)] {
        // A strict bound covers a token for each byte.
        let upstream = Upstream::start(move |body, stream| {
            let request: Value = serde_json::from_str(body).unwrap();
            let input = if rest { body.len() as u64 } else { input_tokens(body) };
            let limit = request["max_tokens"].as_u64().unwrap();
            let _ = stream.write_all(message(input, limit).as_bytes());
        });
        let server = server(&upstream, json!({"bound": bound}));
        let passed = race(&server).into_iter().filter(|status| *status == 200).count();
        assert!(passed >= 2, "{bound}: {passed}");
        let spent = spent(&server);
        assert!((1.5..=2.0).contains(&spent), "{bound}: {spent}");
    }
}

#[test]
fn parallel_calls_that_fit_pass_once_others_have_ended() {
    let in_flight = Arc::new(AtomicUsize::new(0));
    let upstream = {
        let in_flight = Arc::clone(&in_flight);
        Upstream::start(move |body, stream| {
            in_flight.fetch_add(1, Ordering::SeqCst);
            let _ = stream.write_all(message(input_tokens(body), 300).as_bytes());
            in_flight.fetch_sub(1, Ordering::SeqCst);
        })
    };
    let server = server(&upstream, json!({}));
    let passed = race(&server).into_iter().filter(|status| *status == 200).count();
    let fitting = (2.0 / cost(&agent_request(3))) as usize;
    assert!(fitting >= 30 && passed * 100 >= fitting * 95, "{passed} of {fitting}");
    assert!(spent(&server) <= 2.0);
}
