//! The client, session, end user and project of calls at `/v1`.

use serde_json::{Value, json};

use crate::harness::{Response, TestServer};

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

fn rows(server: &TestServer, query: &str) -> Vec<Value> {
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
    assert!(header.trim_end().ends_with(",client,session,end_user,project,billing"), "{header}");
    assert!(row.ends_with(",OpenAI/Python,s-2,'=ann,website,"), "{row}");
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
