//! Stored bodies of clients' calls: their texts, secrets, limits and removal.

use std::io::Write;
use std::time::Duration;

use crossbeam_channel::bounded;
use flowledger::config::{BodyLimits, Config};
use flowledger::secret::Secret;
use flowledger::store::BODY_BYTES_MAX;
use serde_json::{Value, json};

use crate::clients::{chat, rows, server, server_with};
use crate::harness::{DEADLINE, TestServer, eventually, two_nodes};
use crate::upstream::{STREAM_HEAD, Upstream, completion, delta, json_answer};

const CHAT: &str = "/v1/chat/completions";
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn store_bodies(config: &mut Config) {
    config.retention.bodies = Some(BodyLimits { age: 30 * DAY, bytes_max: 1 << 30 });
    config.gateway.stores_bodies = true;
}

fn storing(upstream: &Upstream) -> TestServer {
    server_with(upstream, store_bodies)
}

fn path(row: &Value) -> String {
    format!("/api/ledger/{}/body", row["id"])
}

/// Returns the body of a row, once it is stored.
fn body(server: &TestServer, row: &Value) -> Value {
    let mut body = Value::Null;
    eventually("the body is stored", || {
        let response = server.get(&path(row));
        body = response.json();
        response.status == 200
    });
    body
}

fn named(user: &str) -> Value {
    let mut request = chat("gpt-4o-mini", false);
    request["user"] = json!(user);
    request
}

#[test]
fn bodies_are_off_by_default() {
    let upstream = Upstream::saying(completion("well", 1, 1));
    let server = server(&upstream);
    assert_eq!(server.post(CHAT, &chat("gpt-4o-mini", false)).status, 200);
    let rows = rows(&server, 1);
    let answer = server.get(&path(&rows[0]));
    assert_eq!((answer.status, answer.error_code().as_str()), (404, "not_found"));
    assert!(answer.text().contains("bodies_days"), "{}", answer.text());
    assert_eq!(server.request("DELETE", &path(&rows[0]), &[], b"").status, 404);
    let removed = server.request("DELETE", "/api/bodies", &[], b"");
    assert_eq!(removed.json(), json!({"removed": 0}));
    assert_eq!(server.get("/api/settings").json()["retention"]["bodies_days"], Value::Null);
}

#[test]
fn a_body_is_what_the_client_sent_and_got() {
    let upstream = Upstream::saying(completion("wéll", 1, 1));
    let server = storing(&upstream);
    let request = chat("gpt-4o-mini", false).to_string();
    let json = [("content-type", "application/json")];
    let answer = server.request("POST", CHAT, &json, request.as_bytes());
    let flow = server.save(&two_nodes());
    server.run(flow, &json!({"topic": "x"}));
    let rows = rows(&server, 3);
    let expected = json!({
        "request": request, "response": answer.text(),
        "request_bytes": request.len(), "response_bytes": answer.body.len(),
        "is_request_cut": false, "is_response_cut": false,
        "request_content_type": "application/json", "response_content_type": "application/json",
    });
    assert_eq!(body(&server, &rows[0]), expected);
    let has_body =
        |row: &Value| server.get(&format!("/api/ledger/{}", row["id"])).json()["has_body"].clone();
    assert_eq!([has_body(&rows[0]), has_body(&rows[1])], [json!(true), json!(false)]);
    // Prompts and outputs of flows are part of their runs.
    assert_eq!(server.get(&path(&rows[1])).status, 404);
    assert_eq!(server.get("/api/ledger/99/body").status, 404);
    assert_eq!(server.get("/api/settings").json()["retention"]["bodies_days"], 30);
}

#[test]
fn a_stream_is_stored_as_it_was_sent_even_if_it_breaks_off() {
    let upstream = Upstream::start(|body, stream| {
        let end = if body.contains("broken") { "" } else { "data: [DONE]\n\n" };
        let _ = stream.write_all(format!("{STREAM_HEAD}{}{end}", delta("wéll")).as_bytes());
    });
    let server = storing(&upstream);
    for content in ["whole", "broken"] {
        let mut request = chat("gpt-4o-mini", true);
        request["messages"][0]["content"] = json!(content);
        let answer = server.post(CHAT, &request);
        let rows = rows(&server, if content == "whole" { 1 } else { 2 });
        let body = body(&server, rows.last().unwrap());
        assert_eq!(body["response"], answer.text());
        assert_eq!(body["response_content_type"], "text/event-stream");
        assert_eq!(body["response"].as_str().unwrap().contains("error"), content == "broken");
    }
}

#[test]
fn secrets_are_masked_in_both_bodies() {
    let token = "token-of-the-server";
    let upstream = Upstream::start(move |_, stream| {
        let text = format!("test-key and {token} and own-key-1234");
        let _ = stream.write_all(completion(&text, 1, 1).as_bytes());
    });
    let server = server_with(&upstream, |config| {
        store_bodies(config);
        config.token = Some(Secret::new(token));
    });
    let bearer = format!("Bearer {token}");
    let access = [("authorization", bearer.as_str()), ("x-api-key", "own-key-1234")];
    let made = server.request("POST", "/api/keys", &access, br#"{"name":"laptop"}"#).json();
    let key = made["key"].as_str().unwrap();
    let mut request = chat("gpt-4o-mini", false);
    request["messages"][0]["content"] = json!(format!("{key} test-key {token} own-key-1234"));
    let escaped = request.to_string().replace("test-key", "t\\u0065st-key");
    assert_eq!(server.request("POST", CHAT, &access, escaped.as_bytes()).status, 200);
    let mut stored = Value::Null;
    eventually("the body is stored", || {
        let answer = server.request("GET", "/api/ledger/1/body", &access, b"");
        stored = answer.json();
        answer.status == 200
    });
    let text = |name: &str| stored[name].as_str().unwrap().to_owned();
    assert!(text("request").contains("\"*** *** *** ***\""), "{stored}");
    assert!(text("response").contains("*** and *** and ***"), "{stored}");
    assert_eq!(stored["request_bytes"], escaped.len());
}

#[test]
fn long_bodies_are_cut_and_binary_ones_only_measured() {
    let long = "é".repeat(BODY_BYTES_MAX);
    let upstream = Upstream::of_heads({
        let long = long.clone();
        move |head, _, stream| {
            let answer = match head.contains("/transcriptions") {
                true => json_answer("200 OK", r#"{"text":"heard"}"#),
                false => completion(&long, 1, 1),
            };
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    let server = storing(&upstream);
    let mut request = chat("gpt-4o-mini", false);
    request["messages"][0]["content"] = json!(long);
    assert_eq!(server.post(CHAT, &request).status, 200);
    let stored = body(&server, &rows(&server, 1)[0]);
    for (text, cut) in [("request", "is_request_cut"), ("response", "is_response_cut")] {
        let length = stored[text].as_str().unwrap().len();
        assert!((BODY_BYTES_MAX - 1..=BODY_BYTES_MAX).contains(&length), "{length}");
        assert_eq!(stored[cut], true);
    }
    assert_eq!(stored["request_bytes"], request.to_string().len());
    let form = "--x\r\ncontent-disposition: form-data; name=\"model\"\r\n\r\nwhisper-1\r\n--x\r\n\
                content-disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\nRIFF\r\n--x--\r\n";
    let headers = [("content-type", "multipart/form-data; boundary=x")];
    let answer = server.request("POST", "/v1/audio/transcriptions", &headers, form.as_bytes());
    assert_eq!(answer.status, 200, "{}", answer.text());
    let stored = body(&server, &rows(&server, 2)[1]);
    assert_eq!((&stored["request"], &stored["is_request_cut"]), (&Value::Null, &json!(false)));
    assert_eq!(stored["request_bytes"], form.len());
    assert_eq!(stored["response"], answer.text());
}

#[test]
fn each_attempt_has_its_own_response() {
    let upstream = Upstream::start(|body, stream| {
        let answer = match body.contains("gpt-4o-mini") {
            true => json_answer("500 Internal Server Error", r#"{"error":{"message":"no luck"}}"#),
            false => completion("well", 1, 1),
        };
        let _ = stream.write_all(answer.as_bytes());
    });
    let server = server_with(&upstream, |config| {
        store_bodies(config);
        let target = |model: &str| flowledger::gateway::Target {
            provider: "openai".into(),
            model: model.into(),
        };
        let targets = vec![target("gpt-4o-mini"), target("gpt-4o")];
        config.gateway.aliases.insert("fast".into(), targets);
    });
    let answer = server.post(CHAT, &chat("fast", false));
    assert_eq!(answer.status, 200, "{}", answer.text());
    let rows = rows(&server, 2);
    let bodies = [body(&server, &rows[0]), body(&server, &rows[1])];
    assert!(bodies[0]["response"].as_str().unwrap().contains("no luck"), "{bodies:?}");
    assert_eq!(bodies[1]["response"], answer.text());
    assert_eq!(bodies[0]["request"], bodies[1]["request"]);
}

#[test]
fn cached_and_refused_calls_have_bodies_too() {
    let upstream = Upstream::saying(completion("well", 1, 1));
    let server = storing(&upstream);
    let cached = [("x-flowledger-cache", "3600")];
    let request = chat("gpt-4o-mini", false).to_string();
    for _ in 0..2 {
        assert_eq!(server.request("POST", CHAT, &cached, request.as_bytes()).status, 200);
    }
    let budget = json!({"budgets": [{"name": "b", "per": "day", "limitUsd": "0.000001"}]});
    let set = server.request("PUT", "/api/budget", &[], budget.to_string().as_bytes());
    assert_eq!(set.status, 200, "{}", set.text());
    let refused = server.post(CHAT, &chat("gpt-4o-mini", false));
    assert_eq!(refused.status, 402, "{}", refused.text());
    let rows = rows(&server, 3);
    let bodies: Vec<Value> = rows.iter().map(|row| body(&server, row)).collect();
    assert_eq!(rows[1]["cached"], true);
    assert_eq!(bodies[1]["response"], bodies[0]["response"]);
    assert_eq!(bodies[2]["response"], refused.text());
}

#[test]
fn bodies_can_be_removed() {
    let (release, held) = bounded::<()>(0);
    let upstream = Upstream::start(move |body, stream| {
        if body.contains("held") {
            let _ = held.recv_timeout(DEADLINE);
        }
        let _ = stream.write_all(completion("well", 1, 1).as_bytes());
    });
    let server = storing(&upstream);
    for user in ["ann", "ann", "ben", "ben"] {
        assert_eq!(server.post(CHAT, &named(user)).status, 200);
    }
    let stored = rows(&server, 4);
    stored.iter().for_each(|row| drop(body(&server, row)));
    let count = || stored.iter().filter(|row| server.get(&path(row)).status == 200).count();
    assert_eq!(server.request("DELETE", &path(&stored[3]), &[], b"").status, 204);
    assert_eq!(server.request("DELETE", &path(&stored[3]), &[], b"").status, 404);
    assert_eq!(count(), 3);
    std::thread::scope(|scope| {
        // Its name is erased while it is in flight.
        let call = scope.spawn(|| {
            let mut request = named("ann");
            request["messages"][0]["content"] = json!("held");
            server.post(CHAT, &request)
        });
        eventually("the call is made", || upstream.count() == 5);
        assert_eq!(server.request("DELETE", "/api/end-users/ann", &[], b"").status, 200);
        release.send_timeout((), DEADLINE).unwrap();
        assert_eq!(call.join().unwrap().status, 200);
    });
    assert_eq!(count(), 1);
    // Its body would be stored before that of a later call.
    assert_eq!(server.post(CHAT, &named("ben")).status, 200);
    let all = rows(&server, 6);
    body(&server, &all[5]);
    assert_eq!(server.get(&path(&all[4])).status, 404);
    let removed = server.request("DELETE", "/api/bodies", &[], b"");
    assert_eq!((removed.status, removed.json()), (200, json!({"removed": 2})));
    assert_eq!(count(), 0);
}

#[test]
fn the_oldest_bodies_are_removed_beyond_the_size() {
    let upstream = Upstream::saying(completion("well", 1, 1));
    let server = server_with(&upstream, |config| {
        store_bodies(config);
        config.retention.bodies = Some(BodyLimits { age: 30 * DAY, bytes_max: 3_000 });
    });
    // Random digits cannot be compressed to less than half.
    let text = |seed: u64| {
        let mut state = seed;
        let digits = (0..2_000).map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            char::from_digit((state >> 60) as u32, 16).unwrap()
        });
        digits.collect::<String>()
    };
    for seed in 1..=5 {
        let mut request = chat("gpt-4o-mini", false);
        request["messages"][0]["content"] = json!(text(seed));
        assert_eq!(server.post(CHAT, &request).status, 200);
    }
    let rows = rows(&server, 5);
    let stored = |row: &Value| server.get(&path(row)).status == 200;
    eventually("old bodies are removed", || !stored(&rows[2]) && stored(&rows[4]));
    assert!(rows[..2].iter().all(|row| !stored(row)));
    assert!(stored(&rows[3]) && stored(&rows[4]));
}
