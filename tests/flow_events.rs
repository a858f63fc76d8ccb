//! `FLOW_CHANGED` and `RUN_DELETED`: every way to change a flow, and the deletion of runs.

use serde_json::{Value, json};

use crate::binary::Home;
use crate::harness::{Client, TestServer, two_nodes};
use crate::optimizer_fixture::{Fixture, apply, flow_of, run_times, suggestion};

fn put(server: &TestServer, path: &str, body: &Value) {
    let response = server.request("PUT", path, &[], body.to_string().as_bytes());
    assert!(response.status < 300, "{}", response.text());
}

fn delete(server: &TestServer, path: &str) {
    assert_eq!(server.request("DELETE", path, &[], b"").status, 204, "{path}");
}

/// Returns the changes of a flow as `[name, change]`, up to the first with this change.
fn changes_until(client: &mut Client, flow: i64, last: &str) -> Value {
    let is_of_flow =
        |it: &Value| it["type"] == "FLOW_CHANGED" && it["payload"]["flowId"] == json!(flow);
    let seen = client.until(|it| is_of_flow(it) && it["payload"]["change"] == last);
    let changes = seen.iter().filter(|it| is_of_flow(it));
    assert!(changes.clone().all(|it| it["seq"].is_u64()), "{seen:#?}");
    let changes = changes.map(|it| json!([it["payload"]["name"], it["payload"]["change"]]));
    Value::Array(changes.collect())
}

#[test]
fn each_change_of_a_flow_or_its_triggers_is_announced() {
    let server = TestServer::start();
    let mut client = server.client();
    let flow = server.save(&two_nodes());
    let path = format!("/api/flows/{flow}");
    let mut renamed = two_nodes();
    renamed["name"] = json!("New name");
    put(&server, &path, &renamed);
    put(&server, &format!("{path}/hook"), &json!({}));
    put(&server, &format!("{path}/schedule"), &json!({"cron": "0 0 1 1 *"}));
    for trigger in ["hook", "schedule"] {
        delete(&server, &format!("{path}/{trigger}"));
        // Nothing is left to remove, so nothing changes.
        let again = server.request("DELETE", &format!("{path}/{trigger}"), &[], b"");
        assert_eq!(again.status, 404);
    }
    delete(&server, &path);
    assert_eq!(
        changes_until(&mut client, flow, "deleted"),
        json!([
            ["Two nodes", "created"],
            ["New name", "saved"],
            ["New name", "triggers"],
            ["New name", "triggers"],
            ["New name", "triggers"],
            ["New name", "triggers"],
            ["New name", "deleted"],
        ])
    );
}

#[test]
fn a_flow_that_the_command_line_saves_is_announced() {
    let mut server = TestServer::start();
    let seq = server.client().hello["payload"]["seq"].as_u64().unwrap();
    server.stop();
    let home = Home::new();
    let mut flow = two_nodes();
    for prompt in ["first", "second"] {
        flow["data"]["nodes"][0]["data"]["prompt"] = json!(prompt);
        let file = home.write("flow.json", flow.to_string());
        let data = server.data().to_str().unwrap();
        let ended = home.run(&["run", file.to_str().unwrap(), "--data", data]);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    }
    server.start_again();
    let flows = server.get("/api/flows").json();
    let flow = flows["items"][0]["id"].as_i64().unwrap();
    let changes = changes_until(&mut server.client_since(seq), flow, "saved");
    assert_eq!(changes, json!([["Two nodes", "created"], ["Two nodes", "saved"]]));
}

#[test]
fn an_applied_and_a_reverted_suggestion_change_their_flow() {
    let server = Fixture::answering(1_000, 1_000);
    let flow = flow_of(&server, "gpt-4o");
    run_times(&server, flow, 5, |_| "again".into());
    let found = suggestion(&server, "cache");
    let mut client = server.client();
    let path = apply(&server, &found);
    let saved = json!([["One", "saved"]]);
    assert_eq!(changes_until(&mut client, flow, "saved"), saved);
    assert_eq!(server.post(&format!("{path}/revert"), &json!({})).status, 200);
    assert_eq!(changes_until(&mut client, flow, "saved"), saved);
}

#[test]
fn a_deleted_run_is_announced() {
    let server = TestServer::start();
    let flow = server.save(&two_nodes());
    let run = server.run(flow, &json!({"topic": "x"}));
    let mut client = server.client();
    let path = format!("/api/runs/{}", run["runId"].as_str().unwrap());
    delete(&server, &path);
    let deleted = client.next();
    assert_eq!(deleted["type"], "RUN_DELETED");
    assert!(deleted["seq"].is_u64());
    let payload = &deleted["payload"];
    assert_eq!((&payload["flowId"], &payload["runId"]), (&json!(flow), &run["runId"]));
}
