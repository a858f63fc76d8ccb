//! Recommended models: models of existing flows, and models that the providers list.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::time::Instant;

use flowledger::providers::{Cancel, Kind, Network, ProviderConfig, Providers, Timeouts};
use flowledger::secret::Secret;
use serde_json::{Value, json};

use crate::harness::{TestServer, agent, chain, eventually};
use crate::optimizer_fixture::{
    Fixture, apply, assert_near, flow_of, interval, interval_of, list_of, message_of, of_kind,
    run_times, suggestion, wait_for_pass,
};
use crate::upstream::{Upstream, completion_of, json_answer};

/// Waits for the suggestion about a flow.
fn switch_of(server: &TestServer, flow: i64) -> Value {
    let mut found = Value::Null;
    eventually("a model is put forward", || {
        let all = of_kind(server, "model_switch", "OPEN");
        let one = all.into_iter().find(|item| item["flowId"] == flow);
        found = one.unwrap_or_default();
        !found.is_null()
    });
    found
}

/// Returns the names of the alternatives, in order.
fn alternatives(found: &Value) -> Vec<&str> {
    let all = found["alternatives"].as_array();
    let all = all.into_iter().flatten();
    all.map(|it| it["name"].as_str().unwrap()).collect()
}

#[test]
fn openai_models_get_the_smallest_step_down_to_a_newer_one() {
    let server = Fixture::answering(1_000, 100);
    let names = ["gpt-4o", "gpt-4.1", "gpt-5"];
    let flows = names.map(|name| flow_of(&server, name));
    for flow in flows {
        run_times(&server, flow, 10, |at| at.to_string());
    }
    let [four_o, four_one, five] = flows.map(|flow| switch_of(&server, flow));
    // 2.5 and 10 dollars per million, compared with 0.4 and 1.6.
    assert_eq!(four_o["evidence"]["toModel"], "gpt-4.1-mini", "{four_o}");
    let saved = 1_000 * (2_500 - 400) + 100 * (10_000 - 1_600);
    assert_near(interval(&four_o), interval_of(10, saved));
    assert!(four_o["reason"].as_str().unwrap().contains("less than 1 day"));
    // Excludes older models, models for other purposes, reasoning models and duplicates under two
    // names.
    assert_eq!(alternatives(&four_o), ["openai/gpt-4o-mini", "openai/gpt-4.1-nano"]);
    assert_eq!(four_one["evidence"]["toModel"], "gpt-4.1-mini", "{four_one}");
    let saved = 1_000 * (2_000 - 400) + 100 * (8_000 - 1_600);
    assert_near(interval(&four_one), interval_of(10, saved));
    assert_eq!(alternatives(&four_one), ["openai/gpt-4.1-nano"]);
    assert_eq!(five["evidence"]["toModel"], "gpt-5-mini", "{five}");
    assert_eq!(alternatives(&five), ["openai/gpt-5-nano"]);
    // Repeated passes change nothing.
    wait_for_pass(&server);
    assert_eq!(server.upstream.lists(), 1);
}

#[test]
fn only_newer_anthropic_models_are_recommended() {
    let models: Vec<Value> = [
        ("claude-opus-4-5-20251101", "2025-11-24"),
        ("claude-haiku-4-5-20251001", "2025-10-15"),
        ("claude-sonnet-4-5-20250929", "2025-09-29"),
        ("claude-opus-4-1-20250805", "2025-08-05"),
        ("claude-sonnet-4-20250514", "2025-05-22"),
        ("claude-3-haiku-20240307", "2024-03-07"),
    ]
    .iter()
    .map(|(id, day)| json!({"type": "model", "id": id, "created_at": format!("{day}T00:00:00Z")}))
    .collect();
    let list = list_of(&models);
    let upstream = Upstream::listing(
        move |stream| drop(stream.write_all(list.as_bytes())),
        |body, stream| {
            let request: Value = serde_json::from_str(body).unwrap();
            let answer = message_of(request["model"].as_str().unwrap(), 1_000, 100);
            let _ = stream.write_all(answer.as_bytes());
        },
    );
    // The second is for `wait_for_pass`.
    let names = [("anthropic", Kind::Anthropic), ("openai", Kind::OpenAi)];
    let server = Fixture::with(upstream, &names, |_| {});
    let flow_at = |model: &str| {
        let mut node = agent("n", "anthropic", model, "Say {{ input.what }}");
        node["data"]["stream"] = json!(false);
        server.save(&chain("One", &[node]))
    };
    // By a name that is not on the list.
    let (older, newest) = (flow_at("claude-opus-4-1"), flow_at("claude-opus-4-5-20251101"));
    for flow in [newest, older] {
        run_times(&server, flow, 9, |at| at.to_string());
    }
    run_times(&server, newest, 1, |_| "last".into());
    run_times(&server, older, 1, |_| "last".into());
    let found = switch_of(&server, older);
    // 15 and 75 dollars per million, compared with 5 and 25.
    assert_eq!(found["evidence"]["toModel"], "claude-opus-4-5-20251101", "{found}");
    let saved = 1_000 * (15_000 - 5_000) + 100 * (75_000 - 25_000);
    assert_near(interval(&found), interval_of(10, saved));
    assert_eq!(
        alternatives(&found),
        ["anthropic/claude-sonnet-4-5-20250929", "anthropic/claude-haiku-4-5-20251001"]
    );
    let all = of_kind(&server, "model_switch", "OPEN");
    assert!(all.iter().all(|item| item["flowId"] != newest), "{all:?}");
}

#[test]
fn an_unused_unlisted_model_is_not_recommended() {
    let upstream = Upstream::start(|body, stream| {
        let request: Value = serde_json::from_str(body).unwrap();
        let answer = completion_of(request["model"].as_str().unwrap(), "well", 1_000, 100);
        let _ = stream.write_all(answer.as_bytes());
    });
    let server = Fixture::of(upstream);
    let flow = flow_of(&server, "gpt-4o");
    run_times(&server, flow, 10, |at| at.to_string());
    wait_for_pass(&server);
    assert_eq!(of_kind(&server, "model_switch", "OPEN"), Vec::<Value>::new());
    // The list was requested once, failed, and is not requested again soon.
    assert_eq!(server.upstream.lists(), 1);
    // Among the models in use, the smallest step down is recommended, even if others are cheaper.
    for used in ["gpt-4.1-nano", "gpt-4.1-mini"] {
        let used = flow_of(&server, used);
        run_times(&server, used, 10, |at| at.to_string());
    }
    run_times(&server, flow, 1, |_| "another".into());
    eventually("the mildest used is put forward", || {
        let all = of_kind(&server, "model_switch", "OPEN");
        all.iter().any(|it| it["flowId"] == flow && it["evidence"]["toModel"] == "gpt-4.1-mini")
    });
}

#[test]
fn small_savings_or_short_contexts_are_not_recommended() {
    let models = [
        json!({"id": "gpt-4o", "created": 1_715_367_049}),
        json!({"id": "gpt-4.1", "created": 1_744_316_542}),
        json!({"id": "gpt-4o-mini", "created": 1_721_172_741, "context_length": 1_099}),
    ];
    let list = list_of(&models);
    let upstream = Upstream::listing(
        move |stream| drop(stream.write_all(list.as_bytes())),
        |body, stream| {
            let request: Value = serde_json::from_str(body).unwrap();
            let answer = completion_of(request["model"].as_str().unwrap(), "well", 1_000, 100);
            let _ = stream.write_all(answer.as_bytes());
        },
    );
    let server = Fixture::of(upstream);
    let flow = flow_of(&server, "gpt-4o");
    run_times(&server, flow, 10, |at| at.to_string());
    wait_for_pass(&server);
    assert_eq!(server.upstream.lists(), 1);
    assert_eq!(of_kind(&server, "model_switch", "OPEN"), Vec::<Value>::new());
}

#[test]
fn a_recommended_fallback_swaps_places_with_the_model() {
    let server = Fixture::answering(1_000, 100);
    let mut node = agent("n", "openai", "gpt-4.1", "Say {{ input.what }}");
    node["data"]["stream"] = json!(false);
    node["data"]["fallback"] = json!([
        {"provider": "openai", "model": "gpt-4.1-mini"}, {"provider": "echo", "model": "echo-1"}]);
    let flow = server.save(&chain("Falls back", &[node]));
    run_times(&server, flow, 10, |at| at.to_string());
    let found = suggestion(&server, "model_switch");
    apply(&server, &found);
    let data = server.get(&format!("/api/flows/{flow}")).json()["data"]["nodes"][0]["data"].clone();
    assert_eq!(data["model"], "gpt-4.1-mini");
    assert_eq!(
        data["fallback"],
        json!([{"provider": "openai", "model": "gpt-4.1"}, {"provider": "echo", "model": "echo-1"}])
    );
}

#[test]
fn shutdown_does_not_wait_for_a_slow_model_list() {
    let upstream = Upstream::listing(
        // Until the client disconnects.
        |stream| drop(stream.read(&mut [0])),
        |body, stream| {
            let request: Value = serde_json::from_str(body).unwrap();
            let answer = completion_of(request["model"].as_str().unwrap(), "well", 1_000, 100);
            let _ = stream.write_all(answer.as_bytes());
        },
    );
    let mut server = Fixture::of(upstream);
    let flow = flow_of(&server, "gpt-4o");
    run_times(&server, flow, 1, |at| at.to_string());
    eventually("it is asked", || server.upstream.lists() == 1);
    let began = Instant::now();
    server.stop();
    assert!(began.elapsed().as_secs() < 5, "{:?}", began.elapsed());
}

fn providers(upstream: &Upstream, kind: Kind) -> Providers {
    let provider = ProviderConfig {
        kind,
        base_url: upstream.url().to_owned(),
        api_key: Some(Secret::new("sk-very-secret")),
        missing_key_hint: None,
        stream_usage: true,
        trust_stated_cost: None,
        apis: Vec::new(),
        network: Network::default(),
    };
    Providers::new(BTreeMap::from([("p".to_owned(), provider)]), Timeouts::default())
}

fn lists(list: String) -> Upstream {
    Upstream::listing(move |stream| drop(stream.write_all(list.as_bytes())), |_, _| {})
}

#[test]
fn model_list_errors_hide_the_key_and_long_lists_are_refused() {
    let error = r#"{"error":{"message":"Incorrect API key: sk-very-secret"}}"#;
    let upstream = lists(json_answer("401 Unauthorized", error));
    let error = providers(&upstream, Kind::OpenAi).list_models("p", &Cancel::new());
    let error = error.unwrap_err();
    assert!(error.contains("Incorrect API key") && !error.contains("very-secret"), "{error}");
    let upstream = lists(json_answer("200 OK", &" ".repeat((4 << 20) + 1)));
    let error = providers(&upstream, Kind::OpenAi).list_models("p", &Cancel::new());
    let error = error.unwrap_err();
    assert!(error.contains("longer than 4194304 bytes"), "{error}");
    let upstream = lists(list_of(&[json!({"id": "m"})]));
    let list = providers(&upstream, Kind::OpenAi).list_models("p", &Cancel::new());
    assert_eq!(list.unwrap()[0].name, "m");
    for kind in [Kind::Ollama, Kind::Echo] {
        let providers = providers(&upstream, kind);
        assert!(!providers.has_list("p"));
        // Clients can use Ollama's models, so they are listed for them alone.
        assert_eq!(providers.has_client_list("p"), kind == Kind::Ollama);
    }
    assert_eq!(upstream.lists(), 1);
}
