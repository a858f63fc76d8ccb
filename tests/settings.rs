//! Settings and models for the page, without secrets.

use flowledger::gateway::Target;
use flowledger::secret::Secret;
use serde_json::{Value, json};

use crate::clients::{chat, rows, server_with};
use crate::harness::TestServer;
use crate::upstream::{Upstream, completion};

#[test]
fn settings_show_no_secrets() {
    let server = TestServer::start_with(|config| {
        config.token = Some(Secret::new("the-token"));
        config.gateway.hash_end_users = true;
    });
    let access = [("authorization", "Bearer the-token")];
    assert_eq!(server.get("/api/settings").status, 401);
    let answer = server.request("GET", "/api/settings", &access, b"");
    let settings = answer.json();
    assert_eq!(
        (&settings["token_required"], &settings["end_users_hashed"]),
        (&json!(true), &json!(true))
    );
    assert_eq!(
        settings["retention"],
        json!({"runs": 100_000, "run_days": 90.0, "events": 1_000_000, "event_days": 7,
            "bodies_days": null, "bodies_mb": null})
    );
    assert!(settings["database_bytes"].as_u64().unwrap() > 0);
    assert!(!answer.text().contains("the-token"));
}

#[test]
fn models_are_those_called_and_those_that_can_be() {
    let upstream = Upstream::saying(completion("well", 1, 1));
    let server = server_with(&upstream, |config| {
        let target = |model: &str| Target { provider: "openai".into(), model: model.into() };
        config.gateway.aliases.insert("fast".into(), vec![target("of-an-alias"), target("gpt-4o")]);
    });
    for model in ["gpt-4o-mini", "echo/echo-1", "gpt-4o-mini"] {
        assert_eq!(server.post("/v1/chat/completions", &chat(model, false)).status, 200);
    }
    rows(&server, 3);
    let models = server.get("/api/models").json()["items"].as_array().unwrap().clone();
    assert!((5..=500).contains(&models.len()), "{}", models.len());
    let found = |name: &str| models.iter().find(|it| it["model"] == name).unwrap();
    assert_eq!((&models[0]["model"], &models[0]["calls"]), (&json!("gpt-4o-mini"), &json!(2)));
    assert!(models[0]["last_seen"].is_string());
    let price = &models[0]["price"];
    assert_eq!((&price["input"], &price["output"]), (&json!(0.15), &json!(0.6)));
    assert_eq!((&price["per"], &models[0]["reason"]), (&json!("million tokens"), &Value::Null));
    assert_eq!(found("echo-1")["price"]["input"], 0);
    let unpriced = found("of-an-alias");
    assert_eq!((&unpriced["price"], &unpriced["calls"]), (&Value::Null, &json!(0)));
    assert!(unpriced["reason"].as_str().unwrap().contains("no price"), "{unpriced}");
    assert_eq!(server.get("/api/models?x=1").status, 422);
}
