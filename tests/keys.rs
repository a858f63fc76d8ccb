//! Virtual keys after their creation: edits, rotation, permitted models and rates.

use std::io::Write;

use flowledger::gateway::Target;
use serde_json::{Value, json};

use crate::binary::everything_below;
use crate::clients::{chat, rows, server, server_with};
use crate::harness::{Response, TestServer, eventually, two_nodes};
use crate::upstream::{Upstream, completion};

const CHAT: &str = "/v1/chat/completions";
const MESSAGES: &str = "/v1/messages";

struct Key {
    id: i64,
    header: String,
}

fn create(server: &TestServer, body: &Value) -> Key {
    let made = server.post("/api/keys", body);
    assert_eq!(made.status, 201, "{}", made.text());
    Key::of(&made)
}

impl Key {
    fn of(made: &Response) -> Self {
        let made = made.json();
        let header = format!("Bearer {}", made["key"].as_str().unwrap());
        Self { id: made["id"].as_i64().unwrap(), header }
    }

    fn ask_at(&self, server: &TestServer, path: &str, body: &Value) -> Response {
        let headers = [("authorization", &*self.header)];
        server.request("POST", path, &headers, body.to_string().as_bytes())
    }

    fn ask(&self, server: &TestServer, model: &str) -> Response {
        self.ask_at(server, CHAT, &chat(model, false))
    }

    fn models(&self, server: &TestServer) -> Vec<String> {
        let headers = [("authorization", &*self.header)];
        let list = server.request("GET", "/v1/models", &headers, b"").json();
        let names = list["data"].as_array().unwrap().iter();
        names.map(|model| model["id"].as_str().unwrap().to_owned()).collect()
    }

    fn edit(&self, server: &TestServer, body: &Value) -> Response {
        let path = format!("/api/keys/{}", self.id);
        server.request("PATCH", &path, &[], body.to_string().as_bytes())
    }

    fn rotate(&self, server: &TestServer, body: &Value) -> Response {
        server.post(&format!("/api/keys/{}/rotate", self.id), body)
    }
}

fn upstream() -> Upstream {
    Upstream::saying(completion("Hello", 9, 1))
}

fn stored(server: &TestServer) -> Value {
    server.get("/api/keys").json()["items"][0].clone()
}

#[test]
fn an_edit_changes_only_its_fields_at_once() {
    let upstream = upstream();
    let mut server = server(&upstream);
    let flow = server.save(&two_nodes());
    let key = create(&server, &json!({"name": "a", "requestsPerMinute": 9, "flows": [flow]}));
    let edited = key.edit(&server, &json!({"models": ["openai/gpt-4o*"], "tokensPerMinute": 70}));
    assert_eq!(edited.status, 200, "{}", edited.text());
    let expected = |view: &Value| {
        assert_eq!(view["models"], json!(["openai/gpt-4o*"]), "{view}");
        assert_eq!((&view["requestsPerMinute"], &view["tokensPerMinute"]), (&json!(9), &json!(70)));
        assert_eq!((&view["flows"], &view["name"]), (&json!([flow]), &json!("a")));
        assert!(view["key"].is_null() && view["expiresAt"].is_null(), "{view}");
    };
    expected(&edited.json());
    for _ in 0..2 {
        expected(&stored(&server));
        assert_eq!(key.ask(&server, "openai/gpt-3").status, 403);
        server.start_again();
    }
    // Null removes a limit; without fields, nothing changes.
    let all = json!({"models": null, "requestsPerMinute": null, "tokensPerMinute": null,
        "flows": null, "expiresAt": "2999-01-01"});
    assert_eq!(key.edit(&server, &all).status, 200);
    assert_eq!(key.edit(&server, &json!({})).status, 200);
    assert_eq!(key.ask(&server, "openai/gpt-3").status, 200);
    let view = stored(&server);
    assert_eq!(
        (&view["models"], &view["requestsPerMinute"], &view["flows"]),
        (&Value::Null, &Value::Null, &json!([]))
    );
    assert!(view["expiresAt"].as_str().unwrap().starts_with("2999-01-01"), "{view}");
}

#[test]
fn an_edited_expiry_applies_to_the_next_call() {
    let upstream = upstream();
    let server = server(&upstream);
    let key = create(&server, &json!({"name": "a"}));
    let soon = flowledger::time::Timestamp(flowledger::time::Timestamp::now().0 + 500);
    assert_eq!(key.edit(&server, &json!({"expiresAt": soon})).status, 200);
    eventually("the key expires", || key.ask(&server, "gpt-4o").status == 401);
    assert_eq!(key.edit(&server, &json!({"expiresAt": null})).status, 200);
    assert_eq!(key.ask(&server, "gpt-4o").status, 200);
}

#[test]
fn invalid_limits_are_refused_field_by_field() {
    let upstream = upstream();
    let server = server(&upstream);
    let key = create(&server, &json!({"name": "a"}));
    for (field, body) in [
        ("name", json!({"name": "b"})),
        ("expiresAt", json!({"expiresAt": "2020-01-01"})),
        ("flows[0]", json!({"flows": [99]})),
        ("models", json!({"models": []})),
        (
            "models",
            json!({"models": vec!["openai/x"; 101].iter().enumerate()
            .map(|(at, model)| format!("{model}{at}")).collect::<Vec<_>>()}),
        ),
        ("models[0]", json!({"models": ["gpt-4o"]})),
        ("models[1]", json!({"models": ["openai/gpt-4o", "nobody/x"]})),
        ("models[0]", json!({"models": ["openai/*x"]})),
        ("requestsPerMinute", json!({"requestsPerMinute": 0})),
        ("requestsPerMinute", json!({"requestsPerMinute": 100_001})),
        ("tokensPerMinute", json!({"tokensPerMinute": 0})),
    ] {
        let edited = key.edit(&server, &body);
        assert_eq!(edited.status, 422, "{body}");
        assert_eq!(edited.json()["error"]["details"][0]["field"], field, "{body}");
        if field != "name" {
            let mut new = body.clone();
            new["name"] = json!("new");
            let created = server.post("/api/keys", &new);
            assert_eq!(created.status, 422, "{body}");
            assert_eq!(created.json()["error"]["details"][0]["field"], field, "{body}");
        }
    }
    assert_eq!(key.edit(&server, &json!({"requestsPerMinute": -1})).status, 422);
    assert_eq!(key.edit(&server, &json!({"budget": null})).status, 422);
    assert_eq!(key.edit(&server, &json!([])).status, 422);
    let missing = Key { id: key.id + 1, ..key };
    assert_eq!(missing.edit(&server, &json!({"flows": []})).status, 404);
    assert_eq!(missing.rotate(&server, &json!({})).status, 404);
    assert_eq!(server.get("/api/keys").json()["items"].as_array().unwrap().len(), 1);
}

#[test]
fn repeated_flows_and_models_are_stored_once() {
    let upstream = upstream();
    let server = server(&upstream);
    let (one, other) = (server.save(&two_nodes()), server.save(&two_nodes()));
    let limits = json!({"name": "a", "flows": [other, one, other], "models": ["echo/*", "echo/*"]});
    let key = create(&server, &limits);
    assert_eq!(stored(&server)["flows"], json!([other, one]));
    assert_eq!(stored(&server)["models"], json!(["echo/*"]));
    key.edit(&server, &json!({"flows": [one, one]}));
    assert_eq!(stored(&server)["flows"], json!([one]));
}

#[test]
fn a_rotated_key_stays_valid_for_its_grace_period() {
    let upstream = upstream();
    let mut server = server(&upstream);
    let limits = json!({"name": "a", "models": ["openai/gpt-4o*"]});
    let old = create(&server, &limits);
    let rotated = old.rotate(&server, &json!({"graceSeconds": 2_000}));
    assert_eq!(rotated.status, 200, "{}", rotated.text());
    let new = Key::of(&rotated);
    assert_eq!((new.id, new.header != old.header), (old.id, true));
    let until = rotated.json()["formerKeyValidUntil"].as_str().unwrap().to_owned();
    let end: flowledger::time::Timestamp = until.parse().unwrap();
    let grace_ms = end.0 - flowledger::time::Timestamp::now().0;
    assert!((1_900_000..=2_000_000).contains(&grace_ms), "{grace_ms}");
    for _ in 0..2 {
        for key in [&old, &new] {
            assert_eq!(key.ask(&server, "gpt-4o").status, 200);
            assert_eq!(key.ask(&server, "gpt-3").status, 403);
        }
        assert_eq!(stored(&server)["formerKeyValidUntil"], until);
        server.start_again();
    }
    let rows = rows(&server, 4);
    assert!(rows.iter().all(|row| row["key_name"] == "a"), "{rows:?}");
    // Both keys are in no file.
    server.stop();
    for (path, bytes) in everything_below(server.data()) {
        for key in [&old, &new] {
            let secret = key.header.trim_start_matches("Bearer ").as_bytes();
            assert!(!bytes.windows(secret.len()).any(|part| part == secret), "{path:?}");
        }
    }
}

#[test]
fn a_rotated_key_is_refused_after_its_grace_period() {
    let upstream = upstream();
    let mut server = server(&upstream);
    let old = create(&server, &json!({"name": "a"}));
    let new = Key::of(&old.rotate(&server, &json!({"graceSeconds": 0})));
    let newest = Key::of(&new.rotate(&server, &json!({"graceSeconds": 1})));
    eventually("the grace period ends", || new.ask(&server, "gpt-4o").status == 401);
    for _ in 0..2 {
        for key in [&old, &new] {
            let refused = key.ask(&server, "gpt-4o");
            assert_eq!(refused.status, 401, "{}", refused.text());
            assert!(refused.text().contains("replaced by a new one"), "{}", refused.text());
        }
        assert_eq!(newest.ask(&server, "gpt-4o").status, 200);
        assert!(stored(&server)["formerKeyValidUntil"].is_null());
        server.start_again();
    }
    // A deleted key takes its former ones with it.
    let path = format!("/api/keys/{}", newest.id);
    assert_eq!(server.request("DELETE", &path, &[], b"").status, 204);
    for key in [&old, &newest] {
        assert!(key.ask(&server, "gpt-4o").text().contains("unknown key"));
    }
}

#[test]
fn grace_periods_are_bounded_and_an_hour_by_default() {
    let upstream = upstream();
    let server = server(&upstream);
    let key = create(&server, &json!({"name": "a"}));
    for grace in [json!(-1), json!(2_592_001), json!("1"), json!(1.5)] {
        let refused = key.rotate(&server, &json!({"graceSeconds": grace}));
        assert_eq!(refused.status, 422, "{grace}");
    }
    assert_eq!(key.rotate(&server, &json!({"grace": 1})).status, 422);
    let path = format!("/api/keys/{}/rotate", key.id);
    let rotated = server.request("POST", &path, &[], b"");
    assert_eq!(rotated.status, 200, "{}", rotated.text());
    let end = rotated.json()["formerKeyValidUntil"].as_str().unwrap().to_owned();
    let end: flowledger::time::Timestamp = end.parse().unwrap();
    let grace_s = (end.0 - flowledger::time::Timestamp::now().0) / 1_000;
    assert!((3_500..=3_600).contains(&grace_s), "{grace_s}");
    // Former keys are limited, but only while they are valid.
    for _ in 0..9 {
        assert_eq!(key.rotate(&server, &json!({})).status, 200);
    }
    assert_eq!(key.rotate(&server, &json!({})).status, 409);
    assert_eq!(key.ask(&server, "gpt-4o").status, 200);
}

#[test]
fn a_key_uses_only_its_models_in_any_spelling() {
    let upstream = upstream();
    let server = server(&upstream);
    let models = json!(["openai/gpt-4o*", "anthropic/claude-haiku-4-5"]);
    let key = create(&server, &json!({"name": "a", "models": models}));
    for model in ["gpt-4o", "openai/gpt-4o-mini", "openai/GPT-4o-2024-11-20"] {
        assert_eq!(key.ask(&server, model).status, 200, "{model}");
    }
    for model in ["gpt-5", "openai/gpt-4", "echo/echo-1"] {
        let refused = key.ask(&server, model);
        assert_eq!(refused.status, 403, "{model}: {}", refused.text());
        assert_eq!(refused.json()["error"]["code"], "model_not_allowed");
    }
    // A router could fall back to another model.
    for (models, status) in [
        (json!(["gpt-4o", "gpt-4o-mini"]), 200),
        (json!(["gpt-4o", "o1-pro"]), 403),
        (json!([{"any": "thing"}]), 403),
    ] {
        let mut body = chat("gpt-4o", false);
        body["models"] = models.clone();
        assert_eq!(key.ask_at(&server, CHAT, &body).status, status, "{models}");
    }
    let message = |model: &str| json!({"model": model, "max_tokens": 9, "messages": []});
    for path in [MESSAGES, "/v1/messages/count_tokens"] {
        let refused = key.ask_at(&server, path, &message("claude-opus-4-6"));
        assert_eq!(refused.status, 403, "{path}");
        assert_eq!(refused.json()["type"], "error", "{path}");
    }
    let allowed = key.ask_at(&server, MESSAGES, &message("claude-haiku-4.5"));
    assert_ne!(allowed.status, 403, "{}", allowed.text());
    // Refused calls have no row.
    let models: Vec<Value> = rows(&server, 5).iter().map(|row| row["provider"].clone()).collect();
    assert_eq!(models.iter().filter(|provider| *provider == "openai").count(), 4);
    // Other clients use every model.
    assert_eq!(server.post(CHAT, &chat("gpt-5", false)).status, 200);
}

#[test]
fn the_limits_of_a_key_apply_to_responses() {
    let upstream = upstream();
    let server = server(&upstream);
    let limits = json!({"name": "a", "models": ["openai/gpt-4o*"], "requestsPerMinute": 1});
    let key = create(&server, &limits);
    let ask = |model: &str, more: &Value| {
        let body = json!({"model": model, "input": "Hi", "store": false, "models": more});
        key.ask_at(&server, "/v1/responses", &body)
    };
    for (model, more) in [("gpt-5", json!(null)), ("gpt-4o", json!(["gpt-5"]))] {
        let refused = ask(model, &more);
        assert_eq!((refused.status, refused.error_code()), (403, "model_not_allowed".into()));
    }
    assert_eq!(upstream.count(), 0);
    assert_ne!(ask("gpt-4o", &json!(["gpt-4o-mini"])).status, 403);
    let refused = ask("gpt-4o", &json!(null));
    assert_eq!((refused.status, refused.error_code()), (429, "rate_limit".into()));
    assert_eq!(upstream.count(), 1);
}

#[test]
fn an_alias_uses_only_the_targets_of_its_key() {
    let upstream = upstream();
    let server = server_with(&upstream, |config| {
        let target = |model: &str| Target { provider: "openai".into(), model: model.into() };
        let aliases = &mut config.gateway.aliases;
        aliases.insert("mixed".into(), vec![target("gpt-5"), target("gpt-4o-mini")]);
        aliases.insert("large".into(), vec![target("gpt-5")]);
    });
    let key = create(&server, &json!({"name": "a", "models": ["openai/gpt-4o*"]}));
    assert_eq!(key.ask(&server, "mixed").status, 200);
    let refused = key.ask(&server, "large");
    assert_eq!((refused.status, refused.error_code()), (403, "model_not_allowed".into()));
    let request: Value = serde_json::from_str(&upstream.requests().recv().unwrap()).unwrap();
    assert_eq!(request["model"], "gpt-4o-mini");
    assert_eq!(upstream.count(), 1);
}

#[test]
fn the_model_list_of_a_key_has_only_its_models() {
    let upstream = upstream();
    let server = server_with(&upstream, |config| {
        let target = |model: &str| Target { provider: "openai".into(), model: model.into() };
        let aliases = &mut config.gateway.aliases;
        aliases.insert("small".into(), vec![target("gpt-4o-mini")]);
        aliases.insert("large".into(), vec![target("gpt-5")]);
    });
    let all = create(&server, &json!({"name": "all"}));
    let key = create(&server, &json!({"name": "a", "models": ["openai/gpt-4o*"]}));
    let (every, own) = (all.models(&server), key.models(&server));
    assert!(every.len() > own.len() && every.contains(&"large".to_owned()), "{every:?}");
    assert!(own.contains(&"small".to_owned()) && own.contains(&"openai/gpt-4o".to_owned()));
    // The names of the protocol's own provider are also listed without it.
    let is_own =
        |name: &String| name == "small" || name.trim_start_matches("openai/").starts_with("gpt-4o");
    assert!(own.iter().all(is_own), "{own:?}");
    let one = |model: &str| {
        let headers = [("authorization", &*key.header)];
        server.request("GET", &format!("/v1/models/{model}"), &headers, b"").status
    };
    assert_eq!((one("openai/gpt-4o"), one("large"), one("openai/gpt-5")), (200, 404, 404));
}

#[test]
fn requests_above_the_rate_of_a_key_are_refused_without_a_row() {
    let upstream = upstream();
    let server = server(&upstream);
    let key = create(&server, &json!({"name": "a", "requestsPerMinute": 2}));
    let other = create(&server, &json!({"name": "b"}));
    for _ in 0..2 {
        assert_eq!(key.ask(&server, "gpt-4o").status, 200);
    }
    let refused = key.ask(&server, "gpt-4o");
    assert_eq!((refused.status, refused.error_code()), (429, "rate_limit".into()));
    let seconds: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=60).contains(&seconds), "{seconds}");
    assert!(refused.text().contains("key `a`"), "{}", refused.text());
    let body = json!({"model": "claude-haiku-4-5", "max_tokens": 9, "messages": []});
    let refused = key.ask_at(&server, MESSAGES, &body);
    assert_eq!((refused.status, refused.json()["type"].clone()), (429, json!("error")));
    // A new key counts with the one that it replaces, and others have their own counts.
    let new = Key::of(&key.rotate(&server, &json!({})));
    assert_eq!(new.ask(&server, "gpt-4o").status, 429);
    assert_eq!(other.ask(&server, "gpt-4o").status, 200);
    assert_eq!(rows(&server, 3).len(), 3);
    assert_eq!(key.edit(&server, &json!({"requestsPerMinute": 3})).status, 200);
    assert_eq!(key.ask(&server, "gpt-4o").status, 200);
    assert_eq!(key.ask(&server, "gpt-4o").status, 429);
}

#[test]
fn the_fallbacks_of_a_request_count_as_one() {
    let refusal = crate::upstream::json_answer("500 No", "{}");
    let upstream = Upstream::start(move |body, stream| {
        let answer = match body.contains("gpt-4o-mini") {
            true => completion("Hello", 9, 1),
            false => refusal.clone(),
        };
        let _ = stream.write_all(answer.as_bytes());
    });
    let server = server_with(&upstream, |config| {
        let target = |model: &str| Target { provider: "openai".into(), model: model.into() };
        let targets = vec![target("gpt-5"), target("gpt-4o-mini")];
        config.gateway.aliases.insert("mixed".into(), targets);
    });
    let key = create(&server, &json!({"name": "a", "requestsPerMinute": 2}));
    for status in [200, 200, 429] {
        assert_eq!(key.ask(&server, "mixed").status, status);
    }
    assert_eq!(rows(&server, 4).len(), 4);
}

#[test]
fn calls_that_are_not_made_do_not_count_for_the_rate() {
    let upstream = upstream();
    let server = server(&upstream);
    let budget = json!({"per": "day", "limitTokens": 1_000});
    let key = create(&server, &json!({"name": "a", "requestsPerMinute": 1, "budget": budget}));
    let mut large = chat("gpt-4o", false);
    large["max_tokens"] = json!(5_000);
    for _ in 0..3 {
        assert_eq!(key.ask_at(&server, CHAT, &large).status, 402);
    }
    let mut small = chat("gpt-4o", false);
    small["max_tokens"] = json!(5);
    assert_eq!(key.ask_at(&server, CHAT, &small).status, 200);
    assert_eq!(key.ask_at(&server, CHAT, &small).status, 429);
}

#[test]
fn tokens_are_estimated_and_corrected_when_a_call_ends() {
    let upstream = upstream();
    let server = server(&upstream);
    let key = create(&server, &json!({"name": "a", "tokensPerMinute": 1_000}));
    let mut body = chat("gpt-4o", false);
    body["max_tokens"] = json!(900);
    // Each call has 10 tokens in the end, so the next one fits. Its end may be noted after the
    // client has its answer; a refused call does not count.
    for _ in 0..8 {
        eventually("the call fits", || key.ask_at(&server, CHAT, &body).status == 200);
    }
    // 80 tokens and the estimate of this call are too much.
    body["max_tokens"] = json!(950);
    assert_eq!(key.ask_at(&server, CHAT, &body).status, 429);
    body["max_tokens"] = json!(800);
    eventually("the call fits", || key.ask_at(&server, CHAT, &body).status == 200);
}

#[test]
fn parallel_calls_stay_within_the_rate_of_a_key() {
    let upstream = upstream();
    let server = server(&upstream);
    let key = create(&server, &json!({"name": "a", "requestsPerMinute": 5}));
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let calls: Vec<_> =
            (0..16).map(|_| scope.spawn(|| key.ask(&server, "gpt-4o").status)).collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 5, "{statuses:?}");
    assert_eq!(statuses.iter().filter(|status| **status == 429).count(), 11, "{statuses:?}");
    assert_eq!((upstream.count(), rows(&server, 5).len()), (5, 5));
}

#[test]
fn a_cached_response_does_not_count_for_the_rate() {
    let upstream = upstream();
    let server = server(&upstream);
    let key = create(&server, &json!({"name": "a", "requestsPerMinute": 2}));
    let body = chat("gpt-4o", false).to_string();
    let ask = || {
        let headers = [("authorization", &*key.header), ("x-flowledger-cache", "100")];
        server.request("POST", CHAT, &headers, body.as_bytes()).status
    };
    for _ in 0..6 {
        assert_eq!(ask(), 200);
    }
    assert_eq!(upstream.count(), 1);
}
