//! Trials of a cheaper model on stored inputs: an estimate first, then ordinary calls, and both
//! answers side by side.

use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

use crossbeam_channel::{Sender, bounded};
use flowledger::providers::{Kind, Rate};
use serde_json::{Value, json};

use crate::harness::{DEADLINE, TestServer, agent, chain, eventually, was_logged};
use crate::optimizer_fixture::{
    Fixture, PATH, flow_of, of_kind, openai, run_times, suggestion, wait_for_pass,
};
use crate::upstream::{Upstream, completion_of, json_answer};

/// The expensive model, which flows use, and the cheap one that they use elsewhere.
const EXPENSIVE: &str = "gpt-4o";
const CHEAP: &str = "gpt-4o-mini";

/// Cost in nano-dollars of 1,000 + 100 tokens at the expensive model (2.5 and 10 dollars per
/// million), and of 1,000 + 50 at the cheap one (0.15 and 0.6).
const EXPENSIVE_NANOUSD: u64 = 1_000 * 2_500 + 100 * 10_000;
const CHEAP_NANOUSD: u64 = 1_000 * 150 + 50 * 600;

/// Returns the prompt of a request.
fn prompt_of(request: &Value) -> String {
    let messages = request["messages"].as_array().unwrap();
    messages.last().unwrap()["content"].as_str().unwrap().to_owned()
}

/// The expensive model answers with 100 tokens, all others with 50, or refuse prompts marked as
/// bad.
fn answer(request: &Value) -> String {
    let model = request["model"].as_str().unwrap();
    let prompt = prompt_of(request);
    if model == EXPENSIVE {
        return completion_of(model, &format!("at length: {prompt}"), 1_000, 100);
    }
    if prompt.contains("bad") {
        return json_answer("400 Bad Request", r#"{"error":{"message":"not this one"}}"#);
    }
    completion_of(model, &format!("briefly: {prompt}"), 1_000, 50)
}

fn two_models() -> Upstream {
    openai(|body, stream| {
        let _ = stream.write_all(answer(&serde_json::from_str(body).unwrap()).as_bytes());
    })
}

/// As [`two_models`], but only the expensive model answers at once; the others wait for the sender.
fn only_expensive_answers() -> (Upstream, Sender<()>) {
    let (release, held) = bounded::<()>(0);
    let upstream = openai(move |body, stream| {
        let request: Value = serde_json::from_str(body).unwrap();
        if request["model"] != EXPENSIVE {
            let _ = held.recv_timeout(DEADLINE);
        }
        let _ = stream.write_all(answer(&request).as_bytes());
    });
    (upstream, release)
}

/// Saves two flows and returns the first, with the suggestion to move its calls to the cheap model
/// that the second one uses.
fn switch(server: &TestServer, flow: &Value, input: impl Fn(usize) -> Value) -> (i64, Value) {
    let used = flow_of(server, CHEAP);
    run_times(server, used, 10, |at| at.to_string());
    let flow = server.save(flow);
    for at in 0..10 {
        let run = server.run(flow, &input(at));
        assert_eq!(run["status"], "COMPLETED", "{run}");
    }
    let found = suggestion(server, "model_switch");
    assert_eq!(found["evidence"]["toModel"], CHEAP, "{found}");
    (flow, found)
}

/// A flow of one node at the expensive model, with more in its data.
fn one_node(more: &Value) -> Value {
    let mut node = agent("n", "openai", EXPENSIVE, "Say {{ input.what }}");
    node["data"]["stream"] = json!(false);
    for (key, value) in more.as_object().unwrap() {
        node["data"][key] = value.clone();
    }
    chain("One", &[node])
}

fn input_at(at: usize) -> Value {
    json!({"what": format!("no. {at}")})
}

fn trial_path(suggestion: &Value) -> String {
    format!("{PATH}/{}/trial", suggestion["id"])
}

/// Returns the ledger rows of trials, newest first.
fn trial_rows(server: &TestServer) -> Vec<Value> {
    let rows = server.get("/api/ledger?limit=200").json();
    let rows = rows["items"].as_array().unwrap().iter();
    rows.filter(|row| row["agent_role"] == "trial").cloned().collect()
}

fn usd(nanousd: u64) -> Value {
    json!(nanousd as f64 / 1e9)
}

/// Starts a trial without waiting for the response.
fn begin(server: &TestServer, suggestion: &Value, count: usize) -> TcpStream {
    let body = json!({"count": count, "confirm": true}).to_string();
    let mut stream = server.connect();
    let head = format!(
        "POST {} HTTP/1.1\r\nhost: {}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        trial_path(suggestion),
        server.address(),
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream
}

/// Waits until trials have sent `times` requests.
fn until_requested(upstream: &Upstream, times: usize) {
    for _ in 0..times {
        loop {
            let body = upstream.requests().recv_timeout(DEADLINE).unwrap();
            let request: Value = serde_json::from_str(&body).unwrap();
            if request["model"] != EXPENSIVE {
                break;
            }
        }
    }
}

#[test]
fn a_trial_estimate_reprices_stored_calls_without_a_call() {
    let upstream = two_models();
    let server = Fixture::of(upstream);
    let (flow, found) = switch(&server, &one_node(&json!({})), input_at);
    let count = server.upstream.count();
    let estimate = server.post(&trial_path(&found), &json!({"count": 4}));
    assert_eq!(estimate.status, 200, "{}", estimate.text());
    let estimate = estimate.json();
    assert_eq!(estimate["target"], "openai/gpt-4o-mini");
    assert_eq!(estimate["calls"], 4);
    // The token counts are those of the expensive model.
    let expected = 4 * (1_000 * 150 + 100 * 600);
    assert_eq!(estimate["expectedCostUsd"], usd(expected), "{estimate}");
    // Nine bytes of a prompt, a token for each and 32 for the frame, plus the maximum answer.
    assert_eq!(estimate["answerTokensMax"], 4_096);
    let worst = 4 * ((9 + 32) * 150 + 4_096 * 600);
    assert_eq!(estimate["worstCostUsd"], usd(worst), "{estimate}");
    let runs = server.get(&format!("/api/runs?flow_id={flow}")).json();
    for (at, input) in estimate["inputs"].as_array().unwrap().iter().enumerate() {
        assert_eq!(input["runId"], runs["items"][at]["runId"]);
        assert_eq!(input["promptPreview"], format!("Say no. {}", 9 - at));
        assert!(input["at"].is_string() && input["item"].is_null());
    }
    // Three by default; the request may also choose another model.
    let usual = server.request("POST", &trial_path(&found), &[], b"").json();
    assert_eq!(usual["calls"], 3);
    let other = &found["alternatives"][0]["name"];
    let other_estimate = server.post(&trial_path(&found), &json!({"alternative": other}));
    assert_eq!(other_estimate.json()["target"], *other);
    assert_eq!(server.upstream.count(), count);
    assert!(trial_rows(&server).is_empty());
    let whole = server.get(&format!("{PATH}/{}", found["id"])).json();
    assert!(whole["trial"].is_null(), "{whole}");
}

#[test]
fn a_trial_shows_both_responses_and_its_rows_have_no_run() {
    let upstream = two_models();
    let server = Fixture::of(upstream);
    let node = one_node(&json!({"system": "Be kind", "maxTokens": 300, "temperature": 0.5}));
    let (flow, found) = switch(&server, &node, input_at);
    let run = server.get(&format!("/api/flows/{flow}/status")).json();
    let mut client = server.client();
    while server.upstream.requests().try_recv().is_ok() {}
    let done = server.post(&trial_path(&found), &json!({"count": 2, "confirm": true}));
    assert_eq!(done.status, 200, "{}", done.text());
    let done = done.json();
    assert_eq!((&done["id"], &done["status"]), (&found["id"], &json!("OPEN")));
    let trial = &done["trial"];
    assert_eq!(trial["target"], "openai/gpt-4o-mini");
    assert_eq!(trial["beforeCostUsd"], usd(2 * EXPENSIVE_NANOUSD), "{trial}");
    assert_eq!(trial["afterCostUsd"], usd(2 * CHEAP_NANOUSD), "{trial}");
    let items = trial["items"].as_array().unwrap();
    assert_eq!(items.len(), 2);
    for (at, item) in items.iter().enumerate() {
        let prompt = format!("Say no. {}", 9 - at);
        assert_eq!(item["prompt"], prompt);
        let (mut before, mut after) = (item["before"].clone(), item["after"].clone());
        for one in [&mut before, &mut after] {
            assert!(one["latencyMs"].take().is_u64(), "{item}");
        }
        assert_eq!(
            before,
            json!({"model": EXPENSIVE, "output": format!("at length: {prompt}"), "inputTokens": 1_000,
                "outputTokens": 100, "costUsd": usd(EXPENSIVE_NANOUSD), "latencyMs": null})
        );
        assert_eq!(
            after,
            json!({"model": CHEAP, "output": format!("briefly: {prompt}"), "inputTokens": 1_000,
                "outputTokens": 50, "costUsd": usd(CHEAP_NANOUSD), "latencyMs": null})
        );
    }
    assert_eq!(items[0]["runId"], run["runId"], "{run}");

    // The trial sends the same request as the node.
    let request = server.upstream.requests().recv_timeout(DEADLINE).unwrap();
    let request: Value = serde_json::from_str(&request).unwrap();
    assert_eq!(request["model"], CHEAP);
    assert_eq!(request["messages"][0]["content"], "Be kind");
    assert_eq!(request["temperature"], 0.5);
    assert!(request.to_string().contains(":300"), "{request}");
    assert_ne!(request["stream"], true);

    let rows = trial_rows(&server);
    assert_eq!(rows.len(), 2);
    for row in &rows {
        assert_eq!(row["flow_id"], flow);
        assert_eq!((&row["run_id"], &row["node_id"]), (&Value::Null, &Value::Null));
        assert_eq!((&row["status"], &row["attempt"]), (&json!("SUCCESS"), &json!(1)));
        assert_eq!(row["total_cost_usd"], usd(CHEAP_NANOUSD));
        let same = server.get("/api/ledger?limit=200").json();
        let same = same["items"].as_array().unwrap().iter();
        let same = same.filter(|other| other["prompt_hash"] == row["prompt_hash"]);
        assert_eq!(same.count(), 2, "the run's row and this one");
    }
    assert_ne!(rows[0]["operation_id"], rows[1]["operation_id"]);

    // The event only announces a change; clients fetch the texts.
    let reported = client.until_type("OPTIMIZATION_CHANGED");
    let reported = &reported.last().unwrap()["payload"]["suggestion"];
    assert_eq!((&reported["id"], &reported["trial"]), (&found["id"], &Value::Null));
    let listed = of_kind(&server, "model_switch", "OPEN").remove(0);
    assert!(listed["trial"].is_null(), "{listed}");
    // Trial calls produce no suggestions.
    wait_for_pass(&server);
    let after = server.get(&format!("{PATH}/{}", found["id"])).json();
    assert_eq!((&after["calls"], &after["evidence"]), (&found["calls"], &found["evidence"]));
    assert_eq!(after["trial"], *trial);
}

#[test]
fn trial_responses_are_truncated_with_a_note() {
    let upstream = Upstream::start(|body, stream| {
        let request: Value = serde_json::from_str(body).unwrap();
        let cut = json!({"model": CHEAP, "choices": [{"index": 0, "finish_reason": "length",
            "message": {"role": "assistant", "content": "at great len"}}],
            "usage": {"prompt_tokens": 1_000, "completion_tokens": 4_096}});
        let answer = match prompt_of(&request).contains("no. 9") && request["model"] != EXPENSIVE {
            true => json_answer("200 OK", &cut.to_string()),
            false => answer(&request),
        };
        let _ = stream.write_all(answer.as_bytes());
    });
    let server = Fixture::of(upstream);
    let (_, found) = switch(&server, &one_node(&json!({})), input_at);
    while server.upstream.requests().try_recv().is_ok() {}
    let done = server.post(&trial_path(&found), &json!({"count": 2, "confirm": true}));
    assert_eq!(done.status, 200, "{}", done.text());
    let items = done.json()["trial"]["items"].clone();
    assert_eq!(items[0]["after"]["isCut"], true, "{items}");
    assert!(items[1]["after"]["isCut"].is_null(), "{items}");
    assert!(items[0]["before"]["isCut"].is_null(), "{items}");
    let request = server.upstream.requests().recv_timeout(DEADLINE).unwrap();
    assert!(request.contains(":4096"), "{request}");
}

#[test]
fn a_trial_of_a_map_uses_its_items() {
    let upstream = two_models();
    let server = Fixture::of(upstream);
    let map = json!({"id": "each", "type": "map", "data": {
        "label": "Each", "provider": "openai", "model": EXPENSIVE, "stream": false,
        "items": "{{ input.list }}", "prompt": "Say {{ item }}"
    }});
    let flow = chain("Map", &[map]);
    let (_, found) = switch(&server, &flow, |at| json!({"list": [2 * at, 2 * at + 1]}));
    let done = server.post(&trial_path(&found), &json!({"confirm": true})).json();
    let items = done["trial"]["items"].as_array().unwrap();
    let shown: Vec<(&Value, &str)> = items
        .iter()
        .map(|item| (&item["item"], item["after"]["output"].as_str().unwrap()))
        .collect();
    assert_eq!(
        shown,
        [
            (&json!(1), "briefly: Say 19"),
            (&json!(0), "briefly: Say 18"),
            (&json!(1), "briefly: Say 17")
        ]
    );
    assert_eq!(items[0]["before"]["output"], "at length: Say 19");
    assert_eq!(items[0]["runId"], items[1]["runId"]);
    assert_ne!(items[1]["runId"], items[2]["runId"]);
}

#[test]
fn a_refused_trial_item_does_not_stop_the_rest() {
    let upstream = two_models();
    let server = Fixture::of(upstream);
    let (_, found) = switch(
        &server,
        &one_node(&json!({})),
        |at| json!({"what": if at == 8 { "a bad word".into() } else { at.to_string() }}),
    );
    let done = server.post(&trial_path(&found), &json!({"confirm": true}));
    assert_eq!(done.status, 200, "{}", done.text());
    let trial = &done.json()["trial"];
    let error = trial["items"][1]["after"]["error"].as_str().unwrap();
    assert!(error.contains("not this one"), "{error}");
    assert_eq!(trial["items"][1]["before"]["output"], "at length: Say a bad word");
    for at in [0, 2] {
        assert_eq!(trial["items"][at]["after"]["outputTokens"], 50, "{trial}");
    }
    // An unanswered item counts on neither side.
    assert_eq!(trial["beforeCostUsd"], usd(2 * EXPENSIVE_NANOUSD));
    assert_eq!(trial["afterCostUsd"], usd(2 * CHEAP_NANOUSD));
    let rows = trial_rows(&server);
    let failed: Vec<&Value> = rows.iter().filter(|row| row["status"] == "FAILED").collect();
    assert_eq!((rows.len(), failed.len()), (3, 1));
    assert_eq!(failed[0]["total_cost_usd"], 0);
}

#[test]
fn a_hard_budget_refuses_trial_items_and_records_them() {
    let upstream = two_models();
    let server = Fixture::of(upstream);
    let (_, found) = switch(&server, &one_node(&json!({})), input_at);
    // Room for one worst-case call, but not for two at a time.
    let worst = server.post(&trial_path(&found), &json!({"count": 1})).json();
    let used = 10 * CHEAP_NANOUSD;
    let limit = used + (worst["worstCostUsd"].as_f64().unwrap() * 1e9).round() as u64;
    let budget = json!({"name": "tight", "per": "day", "model": "openai/gpt-4o-mini", "hard": true,
        "limitUsd": usd(limit).to_string()});
    let set = json!({"budgets": [budget]}).to_string();
    let set = server.request("PUT", "/api/budget", &[], set.as_bytes());
    assert_eq!(set.status, 200, "{}", set.text());
    let count = server.upstream.count();
    let done = server.post(&trial_path(&found), &json!({"count": 4, "confirm": true}));
    assert_eq!(done.status, 200, "{}", done.text());
    let trial = &done.json()["trial"];
    let items = trial["items"].as_array().unwrap();
    let refused: Vec<&str> =
        items.iter().filter_map(|item| item["after"]["error"].as_str()).collect();
    // The first call is released; once it is settled, less room is left than the worst case needs.
    assert_eq!(refused.len(), 3, "{trial}");
    assert!(refused[0].contains("budget `tight` refused the call"), "{refused:?}");
    assert_eq!(server.upstream.count(), count + 1);
    assert_eq!(trial["afterCostUsd"], usd(CHEAP_NANOUSD));
    let rows = trial_rows(&server);
    let by_budget = rows.iter().filter(|row| row["refused"] == "budget");
    assert_eq!((rows.len(), by_budget.count()), (4, 3));
}

#[test]
fn a_trial_call_over_the_rate_limit_is_not_made() {
    let upstream = two_models();
    let server = Fixture::with(upstream, &[("openai", Kind::OpenAi)], |config| {
        let rate = Rate {
            requests_per_minute: Some(21),
            tokens_per_minute: None,
            minute: Duration::from_secs(600),
        };
        config.rates = [("openai".to_owned(), rate)].into();
    });
    let (_, found) = switch(&server, &one_node(&json!({})), input_at);
    let done = server.post(&trial_path(&found), &json!({"confirm": true})).json();
    let items = done["trial"]["items"].as_array().unwrap();
    let errors = items.iter().filter_map(|item| item["after"]["error"].as_str());
    let errors: Vec<&str> = errors.collect();
    assert_eq!(errors.len(), 2, "{done}");
    assert!(errors[0].contains("rate limit of provider openai reached"));
    // A call that was not made has no row.
    assert_eq!(trial_rows(&server).len(), 1);
}

#[test]
fn invalid_trials_are_refused_with_their_fields() {
    let upstream = two_models();
    let server = Fixture::of(upstream);
    let (flow, found) = switch(&server, &one_node(&json!({})), input_at);
    let path = trial_path(&found);
    for (body, field) in [
        (json!({"count": 0}), "count"),
        (json!({"count": 11}), "count"),
        (json!({"count": "three"}), "count"),
        (json!({"confirm": 1}), "confirm"),
        (json!({"alternative": "openai/none"}), "alternative"),
        (json!({"alternative": 7}), "alternative"),
        (json!({"models": []}), "models"),
        (json!([3, null, true]), "body"),
    ] {
        let refused = server.post(&path, &body);
        assert_eq!(refused.status, 422, "{body}: {}", refused.text());
        let error = &refused.json()["error"];
        assert_eq!(error["details"][0]["field"], field, "{body}: {error}");
    }
    assert_eq!(server.request("POST", &path, &[], b"{").status, 400);
    assert_eq!(server.post(&format!("{PATH}/999/trial"), &json!({})).status, 404);
    assert_eq!(server.get(&path).status, 405);

    let again = flow_of(&server, EXPENSIVE);
    run_times(&server, again, 5, |_| "again".into());
    let cache = suggestion(&server, "cache");
    let refused = server.post(&trial_path(&cache), &json!({}));
    assert_eq!((refused.status, refused.error_code().as_str()), (409, "conflict"));

    // Deleting runs keeps their cost.
    let runs = server.get(&format!("/api/runs?flow_id={flow}")).json();
    for run in runs["items"].as_array().unwrap() {
        let path = format!("/api/runs/{}", run["runId"].as_str().unwrap());
        assert_eq!(server.request("DELETE", &path, &[], b"").status, 204);
    }
    let refused = server.post(&path, &json!({"confirm": true}));
    assert_eq!(refused.status, 409, "{}", refused.text());
    assert!(refused.text().contains("no stored input"), "{}", refused.text());

    let gone = server.request("DELETE", &format!("/api/flows/{flow}"), &[], b"");
    assert_eq!(gone.status, 204);
    eventually("it is withdrawn", || !of_kind(&server, "model_switch", "WITHDRAWN").is_empty());
    let refused = server.post(&path, &json!({}));
    assert_eq!(refused.status, 409, "{}", refused.text());
    assert!(refused.text().contains("WITHDRAWN"), "{}", refused.text());
    assert!(trial_rows(&server).is_empty());
}

#[test]
fn trials_are_limited_per_suggestion_and_in_total() {
    let (upstream, release) = only_expensive_answers();
    let server = Fixture::of(upstream);
    for _ in 0..3 {
        let flow = flow_of(&server, EXPENSIVE);
        run_times(&server, flow, 10, |at| at.to_string());
    }
    let mut found = Vec::new();
    eventually("all three are suggested", || {
        found = of_kind(&server, "model_switch", "OPEN");
        found.len() == 3
    });
    let _first = begin(&server, &found[0], 1);
    let _second = begin(&server, &found[1], 1);
    until_requested(&server.upstream, 2);
    let twice = server.post(&trial_path(&found[0]), &json!({"confirm": true}));
    assert_eq!((twice.status, twice.error_code().as_str()), (409, "conflict"));
    let third = server.post(&trial_path(&found[2]), &json!({"confirm": true}));
    assert_eq!((third.status, third.error_code().as_str()), (429, "busy"));
    // A request for an estimate does not count as a trial.
    assert_eq!(server.post(&trial_path(&found[2]), &json!({})).status, 200);
    drop(release);
    for tried in &found[..2] {
        let path = format!("{PATH}/{}", tried["id"]);
        eventually("it is tried", || !server.get(&path).json()["trial"].is_null());
    }
    eventually("there is room", || {
        server.post(&trial_path(&found[2]), &json!({"confirm": true})).status == 200
    });
}

#[test]
fn a_trial_continues_after_its_client_disconnects() {
    let (upstream, release) = only_expensive_answers();
    let server = Fixture::of(upstream);
    let flow = flow_of(&server, EXPENSIVE);
    run_times(&server, flow, 10, |at| at.to_string());
    let found = suggestion(&server, "model_switch");
    drop(begin(&server, &found, 2));
    until_requested(&server.upstream, 2);
    drop(release);
    let path = format!("{PATH}/{}", found["id"]);
    eventually("it is kept", || !server.get(&path).json()["trial"].is_null());
    let kept = server.get(&path).json()["trial"].clone();
    assert_eq!(kept["items"][1]["after"]["outputTokens"], 50, "{kept}");
}

#[test]
fn shutdown_ends_a_trial_and_keeps_its_responses() {
    let (upstream, release) = only_expensive_answers();
    let mut server = Fixture::of(upstream);
    let flow = flow_of(&server, EXPENSIVE);
    run_times(&server, flow, 10, |at| at.to_string());
    let found = suggestion(&server, "model_switch");
    let path = format!("{PATH}/{}", found["id"]);

    // No call is answered.
    let first = begin(&server, &found, 6);
    until_requested(&server.upstream, 4);
    server.start_again();
    drop(first);
    let rows = trial_rows(&server);
    assert_eq!(rows.len(), 4, "calls that had not started were not made: {rows:?}");
    for row in &rows {
        assert_eq!((&row["status"], &row["total_cost_usd"]), (&json!("UNKNOWN"), &Value::Null));
    }
    assert!(server.get(&path).json()["trial"].is_null());

    // The upstream's remaining answers have no reader.
    for _ in 0..4 {
        release.send_timeout((), DEADLINE).unwrap();
    }

    // One call is answered.
    let second = begin(&server, &found, 2);
    until_requested(&server.upstream, 2);
    release.send_timeout((), DEADLINE).unwrap();
    eventually("one is answered", || {
        let rows = trial_rows(&server);
        rows.iter().any(|row| row["status"] == "SUCCESS")
    });
    server.start_again();
    drop(second);
    let trial = server.get(&path).json()["trial"].clone();
    let items = trial["items"].as_array().unwrap();
    let answered = items.iter().filter(|it| it["after"]["outputTokens"] == 50);
    let stopped = items.iter().filter(|it| it["after"]["error"] == "the server is shutting down");
    assert_eq!((answered.count(), stopped.count()), (1, 1), "{trial}");
    assert_eq!(trial["beforeCostUsd"], usd(EXPENSIVE_NANOUSD), "{trial}");
}

#[test]
fn a_trial_call_is_settled_after_the_database_recovers() {
    let (upstream, release) = only_expensive_answers();
    let server = Fixture::of(upstream);
    let flow = flow_of(&server, EXPENSIVE);
    run_times(&server, flow, 10, |at| at.to_string());
    let found = suggestion(&server, "model_switch");
    let _client = begin(&server, &found, 1);
    until_requested(&server.upstream, 1);
    let database = rusqlite::Connection::open(server.data().join("flowledger.db")).unwrap();
    let refusing = "CREATE TRIGGER refusing BEFORE UPDATE ON ledger WHEN OLD.agent_role = 'trial'
         BEGIN SELECT RAISE(FAIL, 'no trial is settled'); END";
    database.execute_batch(refusing).unwrap();
    release.send_timeout((), DEADLINE).unwrap();
    eventually("it is refused", || was_logged(&["retrying", "no trial is settled"]));
    assert_eq!(trial_rows(&server)[0]["status"], "PENDING");
    database.execute_batch("DROP TRIGGER refusing").unwrap();
    let path = format!("{PATH}/{}", found["id"]);
    eventually("it is kept", || !server.get(&path).json()["trial"].is_null());
    eventually("it is settled", || trial_rows(&server)[0]["status"] == "SUCCESS");
}
