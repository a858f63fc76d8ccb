//! The client, session, end user and project of calls at `/v1`; budgets per session, loops and
//! subscriptions.

use std::io::Write;

use flowledger::config::Config;
use flowledger::gateway::{ClientPolicy, LoopLimits};
use flowledger::providers::Kind;
use flowledger::secret::Secret;
use serde_json::{Value, json};

use crate::harness::{DEADLINE, Response, TestServer, add_provider, eventually};
use crate::upstream::{Upstream, completion_of, json_answer};

const CHAT: &str = "/v1/chat/completions";

/// Calls `echo` with headers and further fields of the body.
fn ask(server: &TestServer, headers: &[(&str, &str)], more: &Value) -> Response {
    let mut body = json!({"model": "echo/echo-1", "messages": [{"role": "user", "content": "Hi"}]});
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    server.request("POST", CHAT, headers, body.to_string().as_bytes())
}

/// A call of `session` for `end_user`.
fn ask_for(server: &TestServer, session: &str, end_user: &str) {
    let headers = [("x-flowledger-session", session), ("x-flowledger-user", end_user)];
    assert_eq!(ask(server, &headers, &json!({})).status, 200);
}

/// Returns the rows once none is pending.
fn rows(server: &TestServer, query: &str) -> Vec<Value> {
    eventually("all calls are settled", || {
        let pending = server.get("/api/ledger?status=PENDING").json();
        pending["items"].as_array().unwrap().is_empty()
    });
    let rows = server.get(&format!("/api/ledger?limit=1000&{query}")).json();
    rows["items"].as_array().unwrap().clone()
}

#[test]
fn an_origin_is_stored_filtered_and_grouped() {
    let server = TestServer::start();
    let user = json!({"device_id": "d", "account_uuid": "acc", "session_id": "s-1"}).to_string();
    let claude = [("user-agent", "claude-cli/2.1.86 (external, cli)")];
    assert_eq!(ask(&server, &claude, &json!({"metadata": {"user_id": user}})).status, 200);
    let python = [
        ("user-agent", "OpenAI/Python 1.109.1"),
        ("x-flowledger-project", "website"),
        ("x-flowledger-session", "s-2"),
    ];
    assert_eq!(
        ask(&server, &python, &json!({"user": "=ann", "prompt_cache_key": "k"})).status,
        200
    );
    assert_eq!(ask(&server, &[], &json!({})).status, 200);
    for (query, expected) in [
        ("client=claude-cli", json!(["claude-cli", "s-1", "acc", null])),
        ("session=s-1", json!(["claude-cli", "s-1", "acc", null])),
        ("end_user=%3Dann", json!(["OpenAI/Python", "s-2", "=ann", "website"])),
        ("project=website&session=s-2", json!(["OpenAI/Python", "s-2", "=ann", "website"])),
    ] {
        let rows = rows(&server, query);
        let names = ["client", "session", "end_user", "project"].map(|name| rows[0][name].clone());
        assert_eq!((rows.len(), json!(names)), (1, expected), "{query}");
    }
    assert!(rows(&server, "session=acc").is_empty());
    for (group, expected) in [
        ("client", json!([null, "OpenAI/Python", "claude-cli"])),
        ("session", json!([null, "s-1", "s-2"])),
        ("end_user", json!([null, "=ann", "acc"])),
        ("project", json!([null, "website"])),
    ] {
        let sums = server.get(&format!("/api/ledger/summary?group_by={group}")).json();
        let items = sums["items"].as_array().unwrap();
        let keys: Vec<&Value> = items.iter().map(|item| &item["key"]).collect();
        assert_eq!((json!(keys), &sums["total"]["calls"]), (expected, &json!(3)), "{group}");
    }
    let csv = server.get("/api/ledger.csv?session=s-2").text();
    let (header, row) = csv.trim_end().split_once('\n').unwrap();
    assert!(
        header
            .trim_end()
            .ends_with(",client,session,end_user,project,billing,flow_name,node_label"),
        "{header}"
    );
    assert!(row.ends_with(",OpenAI/Python,s-2,'=ann,website,,,"), "{row}");
}

#[test]
fn an_invalid_explicit_name_is_refused_without_a_row() {
    let server = TestServer::start();
    let long = "x".repeat(201);
    for (header, code) in [
        ("x-flowledger-session", "bad_session"),
        ("x-flowledger-user", "bad_user"),
        ("x-flowledger-project", "bad_project"),
    ] {
        let response = ask(&server, &[(header, &long)], &json!({}));
        assert_eq!((response.status, response.error_code().as_str()), (400, code));
    }
    assert!(rows(&server, "").is_empty());
}

#[test]
fn hashed_end_users_are_found_by_their_name() {
    let mut server = TestServer::start_with(|config| config.gateway.hash_end_users = true);
    ask_for(&server, "s", "ann");
    ask_for(&server, "s", "ann");
    ask_for(&server, "s", "ben");
    assert_eq!(rows(&server, "").len(), 3);
    let hash = rows(&server, "end_user=ann")[0]["end_user"].as_str().unwrap().to_owned();
    assert!(hash.starts_with("sha256:") && hash.len() == 39, "{hash}");
    assert_eq!(rows(&server, &format!("end_user={hash}")).len(), 2);
    let budget = json!({"budgets": [
        {"name": "ann", "per": "day", "limitTokens": 100_000, "endUser": "ann"}]});
    let set = server.request("PUT", "/api/budget", &[], budget.to_string().as_bytes());
    assert_eq!(set.json()["budgets"][0]["endUser"], json!(hash), "{}", set.text());
    let used = set.json()["budgets"][0]["state"]["used"].as_u64();
    let tokens = |row: &Value, name: &str| row[name].as_u64().unwrap();
    let ben = &rows(&server, "end_user=ben")[0];
    assert_eq!(used, Some(2 * (tokens(ben, "input_tokens") + tokens(ben, "output_tokens"))));
    // The key of the hashes is a part of the database.
    server.start_again();
    ask_for(&server, "s", "ann");
    assert_eq!(rows(&server, &format!("end_user={hash}")).len(), 3);
    let export = server.get("/api/end-users/ann/export").text();
    assert_eq!(export.lines().count(), 3);
    let erased = server.request("DELETE", "/api/end-users/ann", &[], b"");
    assert_eq!(erased.json(), json!({"rows": 3}));
    assert!(rows(&server, &format!("end_user={hash}")).is_empty());
}

#[test]
fn an_end_user_is_exported_and_erased() {
    let server = TestServer::start();
    let name = "Zoe Ärger <z@x.de>";
    let body = json!({"user": name});
    for _ in 0..3 {
        assert_eq!(ask(&server, &[("x-flowledger-session", "s")], &body).status, 200);
    }
    ask_for(&server, "s", "Zoe");
    assert_eq!(rows(&server, "").len(), 4);
    let path = "/api/end-users/Zoe%20%C3%84rger%20%3Cz%40x.de%3E";
    let export = server.get(&format!("{path}/export"));
    assert_eq!(export.header("content-type"), Some("application/x-ndjson"));
    let exported: Vec<Value> =
        export.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(exported, rows(&server, "")[1..]);
    let csv = server.get(&format!("{path}/export?format=csv")).text();
    assert_eq!((csv.lines().count(), csv.matches(name).count()), (4, 3), "{csv}");
    assert_eq!(server.get(&format!("{path}/export?format=xml")).status, 422);
    let erased = server.request("DELETE", path, &[], b"");
    assert_eq!((erased.status, erased.json()), (200, json!({"rows": 3})));
    // The rows stay, and the other user.
    let users = rows(&server, "session=s").into_iter().map(|row| row["end_user"].clone());
    assert_eq!(users.collect::<Vec<_>>(), [json!("Zoe"), json!(null), json!(null), json!(null)]);
    assert_eq!(server.get(&format!("{path}/export")).text(), "");
    let again = server.request("DELETE", path, &[], b"");
    assert_eq!(again.json(), json!({"rows": 0}));
    let mut client = server.client_since(0);
    ask_for(&server, "last", "Zoe");
    let is_last = |message: &Value| message["payload"]["entry"]["session"] == "last";
    for message in client.until(is_last) {
        assert!(!message.to_string().contains("rger"), "{message}");
    }
    // The harness verifies the database at the end.
}

/// Answers with 1,000 tokens for 100 in the protocol of the request.
fn upstream() -> Upstream {
    Upstream::start(|body, stream| {
        let answer = if body.contains("\"input\"") {
            let response = json!({"id": "resp_1", "object": "response", "created_at": 1,
                "status": "completed", "error": null, "model": "gpt-4o-mini", "output": [],
                "usage": {"input_tokens": 100, "output_tokens": 1_000, "total_tokens": 1_100,
                    "input_tokens_details": {"cached_tokens": 0},
                    "output_tokens_details": {"reasoning_tokens": 0}}});
            json_answer("200 OK", &response.to_string())
        } else if body.contains("gpt") {
            completion_of("gpt-4o-mini", "done", 100, 1_000)
        } else {
            let message = json!({"type": "message", "model": "claude-haiku-4-5", "content": [],
                "stop_reason": "end_turn", "usage": {"input_tokens": 100, "output_tokens": 1_000}});
            json_answer("200 OK", &message.to_string())
        };
        let _ = stream.write_all(answer.as_bytes());
    })
}

fn server_with(upstream: &Upstream, change: impl FnOnce(&mut Config)) -> TestServer {
    let url = upstream.url().to_owned();
    TestServer::start_with(move |config| {
        add_provider(config, "openai", Kind::OpenAi, &url);
        add_provider(config, "anthropic", Kind::Anthropic, url.trim_end_matches("/v1"));
        change(config);
    })
}

/// The price of a call at [`upstream`] by Claude Haiku 4.5: 100 x 1 and 1,000 x 5 USD a million.
const NOTIONAL: f64 = 0.0051;
const LOGIN: &str = "Bearer sk-ant-oat01-of-the-client";
const TOKEN: &str = "the-token-of-the-server";

/// A message of Claude Code with its own login, and a key of flowledger.
fn message(server: &TestServer, key: &str) -> Response {
    let body = json!({"model": "anthropic/claude-haiku-4-5", "max_tokens": 1_000,
        "messages": [{"role": "user", "content": "Hi"}]});
    let headers = [("authorization", LOGIN), ("x-flowledger-key", key)];
    server.request("POST", "/v1/messages", &headers, body.to_string().as_bytes())
}

fn as_owner(server: &TestServer, method: &str, path: &str, body: &Value) -> Value {
    let authorization = format!("Bearer {TOKEN}");
    let headers = [("authorization", &*authorization)];
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let answer = server.request(method, path, &headers, body.as_bytes());
    assert!(answer.status < 300, "{}", answer.text());
    answer.json()
}

#[test]
fn a_subscription_passes_on_and_costs_no_money() {
    let upstream = upstream();
    let server = server_with(&upstream, |config| config.token = Some(Secret::new(TOKEN)));
    let owner = |method: &str, path: &str, body: &Value| as_owner(&server, method, path, body);
    let key = owner("POST", "/api/keys", &json!({"name": "ann"}))["key"].clone();
    let key = key.as_str().unwrap();
    // A budget in money that allows no paid call at all.
    let budgets = json!({"budgets": [
        {"name": "money", "per": "day", "limitUsd": "0"},
        {"name": "tokens", "per": "day", "limitTokens": 100_000},
        {"name": "notional", "per": "day", "limitUsd": "1", "includeSubscriptions": true}]});
    owner("PUT", "/api/budget", &budgets);
    for key in [key, TOKEN] {
        let response = message(&server, key);
        assert_eq!(response.status, 200, "{}", response.text());
        let head = upstream.heads().recv_timeout(DEADLINE).unwrap();
        assert!(head.contains("authorization: bearer sk-ant-oat01-of-the-client\n"), "{head}");
        assert!(!head.contains("x-api-key") && !head.contains("x-flowledger-key"), "{head}");
    }
    assert_eq!(message(&server, "fl-wrong").status, 401);
    let settled = || {
        let rows = owner("GET", "/api/ledger", &Value::Null)["items"].as_array().unwrap().clone();
        rows.iter().all(|row| row["status"] == "SUCCESS").then_some(rows)
    };
    eventually("the calls are settled", || settled().is_some());
    for (row, key_name) in settled().unwrap().iter().zip([json!(null), json!("ann")]) {
        assert_eq!(row["billing"], "subscription");
        assert_eq!((&row["total_cost_usd"], &row["key_name"]), (&json!(NOTIONAL), &key_name));
    }
    let sums = owner("GET", "/api/ledger/summary", &Value::Null);
    for sums in [&sums["total"], &sums["items"][0]] {
        assert_eq!(sums["total_cost_usd"].as_f64(), Some(0.0), "{sums}");
        assert_eq!(sums["subscription_cost_usd"].as_f64(), Some(2.0 * NOTIONAL));
    }
    let budgets = owner("GET", "/api/budget", &Value::Null);
    let used = |at: usize| budgets["budgets"][at]["state"]["used"].clone();
    assert_eq!([used(0), used(1), used(2)], [json!("0"), json!(2_200), json!("0.0102")]);
    // Without its login the client's call is paid with the configured key, which is not allowed.
    let body = json!({"model": "anthropic/claude-haiku-4-5", "max_tokens": 9, "messages": []});
    let paid = [("x-flowledger-key", key)];
    let paid = server.request("POST", "/v1/messages", &paid, body.to_string().as_bytes());
    assert_eq!(paid.status, 402, "{}", paid.text());
    // A login of Anthropic is sent to no other provider.
    owner("PUT", "/api/budget", &json!({"budgets": []}));
    let body = json!({"model": "openai/gpt-4o-mini", "messages": []}).to_string();
    let headers = [("authorization", LOGIN), ("x-flowledger-key", key)];
    assert_eq!(server.request("POST", CHAT, &headers, body.as_bytes()).status, 200);
    let head = upstream.heads().recv_timeout(DEADLINE).unwrap();
    assert!(head.contains("authorization: bearer test-key\n"), "{head}");
}

#[test]
fn a_login_is_never_sent_to_other_providers() {
    let upstream = upstream();
    let url = upstream.url();
    let server = server_with(&upstream, |config| {
        config.token = Some(Secret::new(TOKEN));
        add_provider(config, "other", Kind::Anthropic, url.trim_end_matches("/v1"));
        let policy = ClientPolicy { pass_through_key: true, ..ClientPolicy::default() };
        config.gateway.policies.insert("openai".into(), policy);
    });
    for (path, model) in [("/v1/messages", "other/claude-haiku-4-5"), (CHAT, "openai/gpt-4o-mini")]
    {
        let body = json!({"model": model, "max_tokens": 9, "messages": []}).to_string();
        // A wrong key of flowledger is no key for a provider either.
        let token = format!("Bearer {TOKEN}");
        for headers in [
            [("authorization", LOGIN), ("x-flowledger-key", TOKEN)],
            [("authorization", &*token), ("x-flowledger-key", "mistyped")],
        ] {
            let response = server.request("POST", path, &headers, body.as_bytes());
            assert_eq!(response.status, 200, "{}", response.text());
            let head = upstream.heads().recv_timeout(DEADLINE).unwrap();
            assert!(head.contains("test-key\n"), "{head}");
            assert!(!head.contains("sk-ant-oat") && !head.contains("mistyped"), "{head}");
        }
    }
    for row in as_owner(&server, "GET", "/api/ledger", &Value::Null)["items"].as_array().unwrap() {
        assert_eq!(row["billing"], Value::Null);
    }
}

/// Asks `gpt-4o-mini` in a session.
fn ask_in(server: &TestServer, session: &str, messages: &Value) -> Response {
    let body = json!({"model": "openai/gpt-4o-mini", "max_tokens": 1_000, "messages": messages});
    let headers = [("x-flowledger-session", session)];
    server.request("POST", CHAT, &headers, body.to_string().as_bytes())
}

fn set_budgets(server: &TestServer, budgets: &Value) {
    let body = json!({"budgets": budgets}).to_string();
    let answer = server.request("PUT", "/api/budget", &[], body.as_bytes());
    assert_eq!(answer.status, 200, "{}", answer.text());
}

fn says(text: &str) -> Value {
    json!([{"role": "user", "content": text}])
}

#[test]
fn a_session_budget_binds_each_session_apart() {
    let upstream = upstream();
    let mut server = server_with(&upstream, |_| {});
    // Each call uses 1,100 tokens and reserves at most 1,100 before it.
    let budget = json!([{"name": "s", "per": "session", "limitTokens": 3_000}]);
    set_budgets(&server, &budget);
    for session in ["a", "b"] {
        let statuses: Vec<u16> =
            (0..3).map(|at| ask_in(&server, session, &says(&at.to_string())).status).collect();
        assert_eq!(statuses, [200, 200, 402], "{session}");
    }
    server.start_again();
    let refused = ask_in(&server, "a", &says("x"));
    let message = refused.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("limit 3000 tokens per session"), "{message}");
    // Without a session there is no limit.
    let body = json!({"model": "openai/gpt-4o-mini", "messages": says("x")}).to_string();
    for _ in 0..4 {
        assert_eq!(server.request("POST", CHAT, &[], body.as_bytes()).status, 200);
    }
    assert!(server.get("/api/budget").json()["budgets"][0]["state"].is_null());
}

#[test]
fn a_looping_session_is_reported_once_and_stopped() {
    let upstream = upstream();
    let server = server_with(&upstream, |config| {
        config.gateway.loop_limits = LoopLimits { repeats: 3, turns: 4 };
    });
    let mut client = server.client();
    for _ in 0..6 {
        assert_eq!(ask_in(&server, "warned", &says("again")).status, 200);
    }
    set_budgets(
        &server,
        &json!([
        {"name": "stop", "per": "session", "limitUsd": "5", "onLoop": "stop"}]),
    );
    let statuses: Vec<u16> =
        (0..5).map(|_| ask_in(&server, "repeats", &says("again")).status).collect();
    assert_eq!(statuses, [200, 200, 200, 402, 402]);
    // Another text of the user goes on.
    assert_eq!(ask_in(&server, "repeats", &says("something else")).status, 200);
    let mut messages = says("build it");
    let mut statuses = Vec::new();
    for turn in 0..5 {
        statuses.push(ask_in(&server, "grows", &messages).status);
        let messages = messages.as_array_mut().unwrap();
        messages.push(json!({"role": "assistant", "tool_calls": [{"id": turn}]}));
        messages.push(json!({"role": "tool", "tool_call_id": turn, "content": "failed"}));
    }
    assert_eq!(statuses, [200, 200, 200, 200, 402]);
    assert_eq!(ask_in(&server, "last", &says("Hi")).status, 200);
    let is_last = |message: &Value| message["payload"]["entry"]["session"] == "last";
    let messages = client.until(is_last);
    let warnings = messages.iter().filter(|message| message["type"] == "BUDGET_WARNING");
    let warnings: Vec<Value> = warnings
        .map(|it| &it["payload"])
        .map(|it| json!([it["kind"], it["session"], it["budget"], it["hard"], it["used"]]))
        .collect();
    let repeats = "it sent the same request 4 times";
    let grows = "it sent 5 requests without new text of the user";
    assert_eq!(
        json!(warnings),
        json!([
            ["loop", "warned", "", false, repeats],
            ["loop", "repeats", "stop", true, repeats],
            ["loop", "grows", "stop", true, grows]
        ])
    );
    let refused = rows(&server, "session=grows");
    assert_eq!(refused[0]["refused"], "budget");
    let message = refused[0]["error_message"].as_str().unwrap();
    assert!(message.contains("budget `stop` stopped the session"), "{message}");
}

#[test]
fn a_session_of_codex_is_counted_and_stopped() {
    let upstream = upstream();
    let server = server_with(&upstream, |config| {
        config.gateway.loop_limits = LoopLimits { repeats: 2, turns: 50 };
    });
    set_budgets(
        &server,
        &json!([
        {"name": "stop", "per": "session", "limitUsd": "5", "client": "codex_cli_rs",
         "onLoop": "stop"}]),
    );
    let ask = |agent: &str| {
        let body = json!({"model": "openai/gpt-4o-mini", "max_output_tokens": 1_000,
            "prompt_cache_key": "thread", "input": [{"role": "user",
                "content": [{"type": "input_text", "text": "Hi"}]}]});
        let headers = [("user-agent", agent), ("session-id", "s-1"), ("thread-id", "thread")];
        server.request("POST", "/v1/responses", &headers, body.to_string().as_bytes()).status
    };
    let codex = "codex_cli_rs/0.128.0 (Mac OS 15.5; arm64)";
    assert_eq!([ask(codex), ask(codex), ask(codex)], [200, 200, 402]);
    // The budget covers this client only.
    assert_eq!(ask("other/1.0"), 200);
    let rows = rows(&server, "client=codex_cli_rs&session=s-1");
    assert_eq!((rows.len(), &rows[0]["refused"]), (3, &json!("budget")));
    assert_eq!(
        (&rows[1]["total_cost_usd"], &rows[1]["end_user"]),
        (&json!(0.000_615), &json!(null))
    );
}
