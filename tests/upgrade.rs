//! A database of the previous version opens, verifies and continues.

use std::fs;
use std::path::Path;

use flowledger::providers::Kind;
use serde_json::json;

use crate::harness::{TestServer, add_provider};

/// Made by version 0.1.0 at commit a5fa9df: two flows, 21 runs (one failed), cached calls, a
/// refused call, budgets, a key and a suggestion.
const DATABASE: &str = "tests/fixtures/previous-version.db";

#[test]
fn a_database_of_the_previous_version_opens_and_verifies() {
    let data = tempfile::tempdir().unwrap();
    let made = Path::new(env!("CARGO_MANIFEST_DIR")).join(DATABASE);
    fs::copy(made, data.path().join("flowledger.db")).unwrap();

    let server = TestServer::start_with(|config| {
        config.data = data.path().to_owned();
        add_provider(config, "openai", Kind::OpenAi, "http://127.0.0.1:9/v1");
    });
    let rows = server.get("/api/ledger?limit=200").json();
    let rows = rows["items"].as_array().unwrap();
    assert_eq!(rows.len(), 35);
    let count = |field: &str, value: serde_json::Value| {
        rows.iter().filter(|row| row[field] == value).count()
    };
    assert_eq!(count("status", json!("SUCCESS")), 33);
    assert_eq!(count("refused", json!("budget")), 1);
    assert_eq!(count("cached", json!(true)), 10);
    let budgets = server.get("/api/budget").json();
    assert_eq!(budgets["budgets"].as_array().unwrap().len(), 2);
    assert_eq!(server.get("/api/keys").json()["items"][0]["name"], "laptop");

    let flow = json!({"name": "New", "data": {"edges": [],
        "nodes": [crate::harness::agent("n", "echo", "echo-1", "Hi")]}});
    let run = server.run(server.save(&flow), &json!({}));
    assert_eq!(run["status"], "COMPLETED", "{run}");
}
