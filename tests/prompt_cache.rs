//! Nodes whose constant prefixes are marked for the provider's prompt cache: requests, cost, and no
//! budget overrun.

use flowledger::providers::Kind;
use serde_json::{Value, json};

use crate::harness::{DEADLINE, TestServer, add_provider, agent, chain};
use crate::upstream::{Upstream, completion, json_answer};

const MODEL: &str = "claude-sonnet-4-5";

fn server(upstream: &Upstream, kind: Kind) -> TestServer {
    TestServer::start_with(|config| add_provider(config, "anthropic", kind, upstream.url()))
}

/// A provider that writes to its cache with the first call and reads from it with all others.
fn caching() -> Upstream {
    let first = std::sync::atomic::AtomicBool::new(true);
    Upstream::start(move |_, stream| {
        let is_first = first.swap(false, std::sync::atomic::Ordering::SeqCst);
        let (written, read) = if is_first { (2_000, 0) } else { (0, 2_000) };
        let body = json!({
            "type": "message", "model": MODEL, "content": [{"type": "text", "text": "done"}],
            "usage": {"input_tokens": 10, "cache_creation_input_tokens": written, "cache_read_input_tokens": read, "output_tokens": 1},
        });
        let answer = json_answer("200 OK", &body.to_string());
        let _ = std::io::Write::write_all(stream, answer.as_bytes());
    })
}

fn agent_node(prompt: &str) -> Value {
    let mut node = agent("only", "anthropic", MODEL, prompt);
    node["data"]["stream"] = json!(false);
    node["data"]["maxTokens"] = json!(1);
    node["data"]["system"] = json!("Be brief.");
    node["data"]["promptCache"] = json!(true);
    node
}

fn request(upstream: &Upstream) -> Value {
    let body = upstream.requests().recv_timeout(DEADLINE).unwrap();
    serde_json::from_str(&body).unwrap()
}

fn marked(text: &str) -> Value {
    json!({"type": "text", "text": text, "cache_control": {"type": "ephemeral"}})
}

#[test]
fn constant_prefixes_are_marked_and_cache_use_is_recorded() {
    let upstream = caching();
    let server = server(&upstream, Kind::Anthropic);
    let mut node = agent_node("Rules: none.\n{#- not told -#} Now: {{ item }}");
    node["type"] = json!("map");
    node["data"]["items"] = json!("input.list");
    let flow = server.save(&chain("Each", &[node]));
    let run = server.run(flow, &json!({"list": ["ants", "bees", ""]}));
    assert_eq!(run["status"], "COMPLETED", "{run:#}");
    for item in ["ants", "bees"] {
        let body = request(&upstream);
        assert_eq!(body["system"], json!([marked("Be brief.")]));
        let rest = json!({"type": "text", "text": item});
        let content = &body["messages"][0]["content"];
        assert_eq!(*content, json!([marked("Rules: none.Now: "), rest]));
    }
    let content = request(&upstream)["messages"][0]["content"].clone();
    assert_eq!(content, json!([marked("Rules: none.Now: ")]));
    let rows = server.get("/api/ledger").json();
    let mut shown: Vec<Value> = rows["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| {
            let of = |key: &str| row[key].clone();
            json!([
                of("input_tokens"),
                of("cache_write_tokens"),
                of("cached_input_tokens"),
                of("total_cost_usd")
            ])
        })
        .collect();
    shown.reverse();
    // 10 × 3 + 2,000 × 3.75 (or 0.30) + 1 × 15 millionths of a dollar.
    let read = json!([2_010, 0, 2_000, 0.000_645]);
    assert_eq!(shown, [json!([2_010, 2_000, 0, 0.007_545]), read.clone(), read]);
}

#[test]
fn only_constant_prefixes_of_opted_in_nodes_are_marked() {
    let upstream = caching();
    let server = server(&upstream, Kind::Anthropic);
    let mut node = agent_node("{{ input.x }} and more");
    node["data"]["system"] = json!("Be {{ input.x }}.");
    let flow = server.save(&chain("One", std::slice::from_ref(&node)));
    server.run(flow, &json!({"x": "brief"}));
    node["data"]["promptCache"] = json!(false);
    node["data"]["prompt"] = json!("all constant");
    let flow = server.save(&chain("Two", &[node]));
    server.run(flow, &json!({"x": "brief"}));
    for prompt in ["brief and more", "all constant"] {
        let body = request(&upstream);
        assert_eq!(body["system"], "Be brief.");
        assert_eq!(body["messages"][0]["content"], prompt);
    }
}

#[test]
fn a_provider_that_caches_by_itself_gets_no_marks() {
    let upstream = Upstream::saying(completion("done", 10, 1));
    let server = server(&upstream, Kind::OpenAi);
    let flow = server.save(&chain("One", &[agent_node("Rules. {{ input.x }}")]));
    let run = server.run(flow, &json!({"x": "ants"}));
    assert_eq!(run["status"], "COMPLETED", "{run:#}");
    assert_eq!(
        request(&upstream)["messages"],
        json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Rules. ants"}])
    );
}

#[test]
fn a_hard_budget_covers_cache_write_costs() {
    let upstream = caching();
    let server = server(&upstream, Kind::Anthropic);
    // 4,009 bytes count as 4,041 tokens, at 3 millionths each, or at 3.75 for a cache write.
    let mut node = agent_node(&"x".repeat(4_000));
    let budget = json!({"budgets": [{"name": "daily", "per": "day", "limitUsd": "0.013"}]});
    let answer = server.request("PUT", "/api/budget", &[], budget.to_string().as_bytes());
    assert_eq!(answer.status, 200, "{}", answer.text());
    let flow = server.save(&chain("Marked", std::slice::from_ref(&node)));
    let run = server.run(flow, &json!({}));
    let error = run["error"].as_str().unwrap_or_default();
    assert!(error.contains("budget `daily` refused the call"), "{run:#}");
    assert_eq!(upstream.count(), 0);
    node["data"]["promptCache"] = json!(false);
    let flow = server.save(&chain("Plain", &[node]));
    server.run(flow, &json!({}));
    assert_eq!(upstream.count(), 1);
}

#[test]
fn the_worst_cost_of_a_run_includes_cache_writes() {
    let upstream = caching();
    let server = server(&upstream, Kind::Anthropic);
    let most = |cached: bool| {
        let mut node = agent_node(&"x".repeat(4_000));
        node["data"]["promptCache"] = json!(cached);
        let flow = server.save(&chain("One", &[node]));
        let path = format!("/api/flows/{flow}/estimate");
        let estimate = server.request("POST", &path, &[], b"{}").json();
        estimate["worst"]["cost"].as_f64().unwrap()
    };
    let (plain, cached) = (most(false), most(true));
    // Without the one token of the answer, a write costs a quarter more.
    let answer = 0.000_015;
    let share = (cached - answer) / (plain - answer);
    assert!((share - 1.25).abs() < 1e-6, "{plain} {cached}");
}

#[test]
fn a_non_boolean_cache_option_is_refused() {
    let upstream = caching();
    let server = server(&upstream, Kind::Anthropic);
    let mut node = agent_node("x");
    node["data"]["promptCache"] = json!({"system": true});
    let body = chain("One", &[node]).to_string();
    let answer = server.request("POST", "/api/flows", &[], body.as_bytes());
    assert_eq!(answer.status, 422, "{}", answer.text());
    let fault = &answer.json()["error"]["details"][0];
    assert_eq!(fault["field"], "data.nodes[0].data.promptCache");
    let message = fault["message"].as_str().unwrap();
    assert!(message.contains("expected a boolean"), "{message}");
}
