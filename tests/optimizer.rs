//! Suggestions of the optimizer from real runs, with amounts recomputed here, and their life cycle.

use std::io::Write;
use std::sync::Barrier;

use flowledger::error::Error;
use flowledger::event::suggestion::{Kind as Ground, Proposal, Status};
use flowledger::optimizer::{Pass, Wanted};
use flowledger::providers::Kind;
use flowledger::store::Change;
use flowledger::time::Timestamp;
use serde_json::{Value, json};

use crate::binary::Home;
use crate::harness::{DEADLINE, TestServer, agent, chain, eventually};
use crate::optimizer_fixture::{
    DAY_MS, Fixture, PATH, apply, assert_near, database, expected_nanousd, flow_of, interval,
    interval_of, is_a_conflict, message_of, of_flow, of_kind, openai, put, put_back, run_times,
    suggestion, two_and_output, upstream, wait_for_pass, written,
};
use crate::upstream::{Upstream, completion_of};

#[test]
fn repeated_prompts_are_suggested_with_their_exact_cost() {
    let server = Fixture::answering(1_000, 1_000);
    let mut client = server.client();
    let flow = flow_of(&server, "gpt-4o");
    // Two prompts; one is sent five times, so four calls were unnecessary.
    run_times(&server, flow, 6, |at| if at == 3 { "once".into() } else { "again".into() });
    let reported = client.until_type("OPTIMIZATION_AVAILABLE");
    let reported = &reported.last().unwrap()["payload"];
    let found = suggestion(&server, "cache");
    assert_eq!(reported["suggestion"]["id"], found["id"], "{reported}");
    assert_eq!((&reported["flowId"], &reported["nodeId"]), (&json!(flow), &json!("n")));
    // 1,000 tokens at 2.5 and 1,000 at 10 dollars per million.
    assert_eq!(found["calls"], 4, "{found}");
    assert_eq!(found["evidence"]["repeatedCostNanousd"], 4 * 12_500_000);
    // An observation of moments counts as a day; by chance, four calls may be two or eight.
    let saving = &found["savingPer30Days"];
    assert_eq!(saving["lowUsd"], 0.03, "{saving}");
    assert_eq!(saving["expectedUsd"], 1.5, "{saving}");
    assert_eq!(saving["highUsd"], 2.97, "{saving}");
}

#[test]
fn different_prompts_and_cached_nodes_get_no_cache_suggestion() {
    let server = Fixture::answering(1_000, 1_000);
    let flow = flow_of(&server, "gpt-4o");
    run_times(&server, flow, 5, |at| at.to_string());
    let mut node = agent("n", "openai", "gpt-4o", "The same");
    node["data"]["cache"] = json!(true);
    node["data"]["stream"] = json!(false);
    let cached = server.save(&chain("Cached", &[node]));
    run_times(&server, cached, 5, |_| String::new());
    wait_for_pass(&server);
    let found = of_kind(&server, "cache", "OPEN");
    assert!(
        found.iter().all(|item| item["flowId"] != flow && item["flowId"] != cached),
        "{found:?}"
    );
}

#[test]
fn a_cheaper_model_in_use_is_suggested_with_repriced_calls() {
    let server = Fixture::answering(1_000, 100);
    let used = flow_of(&server, "gpt-4o-mini");
    run_times(&server, used, 10, |at| at.to_string());
    let flow = flow_of(&server, "gpt-4o");
    run_times(&server, flow, 10, |at| at.to_string());
    let found = suggestion(&server, "model_switch");
    assert_eq!(found["flowId"], flow);
    let evidence = &found["evidence"];
    assert_eq!(evidence["toModel"], "gpt-4o-mini", "{found}");
    assert_eq!(evidence["calls"], 10);
    // 2.5 and 10 dollars per million compared with 0.15 and 0.6.
    assert_eq!(evidence["costNanousd"], 10 * (1_000 * 2_500 + 100 * 10_000));
    assert_eq!(evidence["toCostNanousd"], 10 * (1_000 * 150 + 100 * 600));
    let saving = 10 * (1_000 * 2_350 + 100 * 9_400);
    let low = found["savingPer30Days"]["lowUsd"].as_f64().unwrap();
    let expected = found["savingPer30Days"]["expectedUsd"].as_f64().unwrap();
    assert!((expected - saving as f64 * 30.0 / 1e9).abs() < 1e-8, "{found}");
    assert!(low <= saving as f64 / 1e9 + 1e-9, "{found}");
}

#[test]
fn a_suggestion_is_applied_reverted_and_refused_if_stale() {
    let server = Fixture::answering(1_000, 1_000);
    let mut client = server.client();
    let flow = flow_of(&server, "gpt-4o");
    let before = server.get(&format!("/api/flows/{flow}")).json();
    run_times(&server, flow, 5, |_| "again".into());
    let found = suggestion(&server, "cache");
    let path = format!("{PATH}/{}", found["id"]);
    let shown = server.get(&path).json();
    assert_eq!(
        shown["changes"],
        json!([{"what": "node n", "key": "cache.maxAgeS", "before": null, "after": 604_800}]),
        "{shown}"
    );
    let applied = server.post(&format!("{path}/apply"), &json!({}));
    assert_eq!(applied.status, 200, "{}", applied.text());
    assert_eq!(applied.json()["status"], "APPLIED");
    let after = server.get(&format!("/api/flows/{flow}")).json();
    assert_eq!(after["data"]["nodes"][0]["data"]["cache"]["maxAgeS"], 604_800);
    let reported = client.until_type("OPTIMIZATION_CHANGED");
    assert_eq!(reported.last().unwrap()["payload"]["suggestion"]["status"], "APPLIED");
    // The change takes effect: a run makes no call.
    let count = server.upstream.count();
    run_times(&server, flow, 2, |_| "anew".into());
    assert_eq!(server.upstream.count(), count + 1);

    let again = server.post(&format!("{path}/apply"), &json!({}));
    assert_eq!((again.status, again.error_code().as_str()), (409, "conflict"));
    let reverted = server.post(&format!("{path}/revert"), &json!({}));
    assert_eq!(reverted.json()["status"], "REVERTED", "{}", reverted.text());
    let back = server.get(&format!("/api/flows/{flow}")).json();
    assert_eq!(back["data"], before["data"]);
    assert_eq!(server.post(&format!("{path}/revert"), &json!({})).status, 409);
}

#[test]
fn a_stale_suggestion_is_not_applied() {
    let server = Fixture::answering(1_000, 1_000);
    let flow = flow_of(&server, "gpt-4o");
    run_times(&server, flow, 5, |_| "again".into());
    let found = suggestion(&server, "cache");
    put(&server, flow, |flow| {
        flow["data"]["nodes"][0]["id"] = json!("other");
    });
    // The result does not depend on whether the optimizer has seen the change.
    let apply = format!("{PATH}/{}/apply", found["id"]);
    is_a_conflict(&server.post(&apply, &json!({})));
    let node = &server.get(&format!("/api/flows/{flow}")).json()["data"]["nodes"][0];
    assert_eq!((&node["id"], &node["data"]["cache"]), (&json!("other"), &Value::Null));
    eventually("it is withdrawn", || of_kind(&server, "cache", "WITHDRAWN").len() == 1);
    is_a_conflict(&server.post(&apply, &json!({})));
}

#[test]
fn only_the_displayed_change_can_be_applied() {
    let server = Fixture::answering(1_000, 100);
    let flow = flow_of(&server, "gpt-4o");
    run_times(&server, flow, 10, |at| at.to_string());
    let found = suggestion(&server, "model_switch");
    let path = format!("{PATH}/{}", found["id"]);
    let shown = server.get(&path).json();
    // The provider serves this model, and no flow uses it.
    assert_eq!(shown["changes"][0]["after"], "gpt-4.1-mini", "{shown}");
    let version = shown["version"].as_str().unwrap();

    // The same change, in a flow that was renamed since.
    put(&server, flow, |flow| flow["name"] = json!("Another"));
    eventually("it is checked again", || server.get(&path).json()["conflict"].is_null());
    let apply = format!("{path}/apply");
    is_a_conflict(&server.post(&apply, &json!({"version": version})));

    // Another change of the same flow.
    let shown = server.get(&path).json();
    let version = shown["version"].as_str().unwrap();
    let cheaper = flow_of(&server, "gpt-4o-mini");
    run_times(&server, cheaper, 10, |at| at.to_string());
    run_times(&server, flow, 1, |_| "more".into());
    eventually("one that a flow uses is put forward", || {
        server.get(&path).json()["evidence"]["toModel"] == "gpt-4o-mini"
    });
    is_a_conflict(&server.post(&apply, &json!({"version": version})));
    let name = "openai/gpt-4o-mini";
    let shown = server.get(&path).json();
    let other = &shown["alternatives"][0]["name"];
    let other = json!({"alternative": other, "version": shown["version"]});
    is_a_conflict(&server.post(&apply, &other));
    let unknown = server.post(&apply, &json!({"alternative": "openai/none"}));
    assert_eq!(unknown.status, 422, "{}", unknown.text());
    let same = json!({"alternative": name, "version": shown["version"]});
    let applied = server.post(&apply, &same);
    assert_eq!(applied.status, 200, "{}", applied.text());
    let node = &server.get(&format!("/api/flows/{flow}")).json()["data"]["nodes"][0];
    assert_eq!(node["data"]["model"], "gpt-4o-mini");
    assert!(applied.json()["version"].is_null(), "{}", applied.text());
}

#[test]
fn the_recommended_change_can_be_applied_by_name() {
    let server = Fixture::answering(1_000, 100);
    let flow = flow_of(&server, "gpt-4o");
    run_times(&server, flow, 10, |at| at.to_string());
    let found = suggestion(&server, "model_switch");
    let to = &found["edit"]["values"];
    let name = format!("openai/{}", to["model"].as_str().unwrap());
    let apply = format!("{PATH}/{}/apply", found["id"]);
    let applied = server.post(&apply, &json!({"alternative": name}));
    assert_eq!(applied.status, 200, "{}", applied.text());
    assert_eq!(applied.json()["edit"], found["edit"]);
}

#[test]
fn an_applied_alternative_keeps_its_own_evidence() {
    let server = Fixture::answering(1_000, 100);
    let flow = flow_of(&server, "gpt-4o");
    run_times(&server, flow, 10, |at| at.to_string());
    let found = suggestion(&server, "model_switch");
    let other = found["alternatives"].as_array().unwrap().last().unwrap();
    let name = other["name"].as_str().unwrap();
    let path = format!("{PATH}/{}", found["id"]);
    let applied = server.post(&format!("{path}/apply"), &json!({"alternative": name}));
    assert_eq!(applied.status, 200, "{}", applied.text());
    let kept = server.get(&path).json();
    let model = name.split_once('/').unwrap().1;
    assert_eq!(kept["title"], format!("Switch from gpt-4o to {model}"));
    assert_eq!(kept["evidence"]["toModel"], model, "{kept}");
    assert_eq!(kept["edit"]["values"]["model"], model);
    let saving = |it: &Value| it["savingPer30Days"].clone();
    assert_eq!(saving(&kept), saving(other));
    assert_ne!(saving(&kept), saving(&found));
    let costs = |key: &str| kept["evidence"][key].as_f64().unwrap();
    let saved = costs("costNanousd") - costs("toCostNanousd");
    let expected = saving(&kept)["expectedUsd"].as_f64().unwrap();
    assert!((expected - saved * 30.0 / 1e9).abs() < 1e-6, "{kept}");
}

#[test]
fn a_changed_flow_cannot_be_reverted() {
    let server = Fixture::answering(1_000, 1_000);
    let flow = flow_of(&server, "gpt-4o");
    run_times(&server, flow, 5, |_| "again".into());
    let found = suggestion(&server, "cache");
    let path = format!("{PATH}/{}", found["id"]);
    server.post(&format!("{path}/apply"), &json!({}));
    put(&server, flow, |flow| flow["name"] = json!("Another"));
    is_a_conflict(&server.post(&format!("{path}/revert"), &json!({})));
    assert_eq!(server.get(&format!("/api/flows/{flow}")).json()["name"], "Another");
}

#[test]
fn a_dismissed_suggestion_returns_only_after_a_node_change() {
    let server = Fixture::answering(1_000, 1_000);
    let flow = flow_of(&server, "gpt-4o");
    run_times(&server, flow, 5, |_| "again".into());
    let found = suggestion(&server, "cache");
    let path = format!("{PATH}/{}", found["id"]);
    assert_eq!(server.post(&format!("{path}/dismiss"), &json!({})).json()["status"], "DISMISSED");
    // More calls on the same day, and a change of text that only people read.
    run_times(&server, flow, 10, |_| "again".into());
    put(&server, flow, |flow| {
        let node = &mut flow["data"]["nodes"][0];
        node["position"] = json!({"x": 1, "y": 2});
        node["data"]["label"] = json!("New");
        node["data"]["role"] = json!("teller");
    });
    wait_for_pass(&server);
    assert_eq!(server.get(&path).json()["status"], "DISMISSED");
    put(&server, flow, |flow| {
        flow["data"]["nodes"][0]["data"]["prompt"] = json!("Tell {{ input.what }}");
    });
    run_times(&server, flow, 5, |_| "again".into());
    eventually("it is suggested again", || {
        let now = server.get(&path).json();
        now["status"] == "OPEN" && now["calls"] == 4
    });
}

#[test]
fn outdated_suggestions_are_withdrawn_after_a_restart() {
    let mut server = Fixture::answering(1_000, 1_000);
    let (kept, removed) = (flow_of(&server, "gpt-4o"), flow_of(&server, "gpt-4o"));
    for flow in [kept, removed] {
        run_times(&server, flow, 5, |_| "again".into());
    }
    eventually("both are suggested", || of_kind(&server, "cache", "OPEN").len() == 2);
    server.start_again();
    let gone = server.request("DELETE", &format!("/api/flows/{removed}"), &[], b"");
    assert_eq!(gone.status, 204);
    eventually("one is withdrawn", || of_kind(&server, "cache", "WITHDRAWN").len() == 1);
    assert_eq!(of_kind(&server, "cache", "OPEN")[0]["flowId"], kept);
}

#[test]
fn a_prompt_change_withdraws_a_suggestion_permanently() {
    let mut server = Fixture::answering(1_000, 1_000);
    let flow = flow_of(&server, "gpt-4o");
    run_times(&server, flow, 5, |_| "again".into());
    suggestion(&server, "cache");
    // Text that only people read changes nothing.
    put(&server, flow, |flow| {
        flow["data"]["nodes"][0]["data"]["label"] = json!("New");
    });
    wait_for_pass(&server);
    assert_eq!(of_flow(&server, flow, "cache", "OPEN").len(), 1);
    put(&server, flow, |flow| {
        flow["data"]["nodes"][0]["data"]["prompt"] = json!("Tell {{ input.what }}");
    });
    eventually("it is withdrawn", || of_flow(&server, flow, "cache", "WITHDRAWN").len() == 1);
    run_times(&server, flow, 3, |_| "again".into());
    server.start_again();
    run_times(&server, flow, 1, |_| "once".into());
    wait_for_pass(&server);
    assert_eq!(of_flow(&server, flow, "cache", "OPEN"), Vec::<Value>::new());
    // Three unnecessary calls since.
    run_times(&server, flow, 1, |_| "again".into());
    eventually("it is suggested again", || {
        let found = of_flow(&server, flow, "cache", "OPEN");
        found.first().is_some_and(|it| it["calls"] == 3)
    });
}

#[test]
fn reverted_changes_do_not_revive_old_calls_after_a_restart() {
    let mut server = Fixture::answering(1_000, 1_000);
    let flow = flow_of(&server, "gpt-4o");
    run_times(&server, flow, 10, |_| "again".into());
    suggestion(&server, "model_switch");
    let path = format!("{PATH}/{}", suggestion(&server, "cache")["id"]);
    for step in ["apply", "revert"] {
        let done = server.post(&format!("{path}/{step}"), &json!({}));
        assert_eq!(done.status, 200, "{}", done.text());
    }
    eventually("the other one is withdrawn", || {
        of_flow(&server, flow, "model_switch", "WITHDRAWN").len() == 1
    });
    server.start_again();
    wait_for_pass(&server);
    let open = of_flow(&server, flow, "model_switch", "OPEN");
    assert_eq!(open, Vec::<Value>::new());
}

#[test]
fn a_proposal_for_an_older_flow_is_refused() {
    let server = Fixture::answering(1_000, 1_000);
    let flow = flow_of(&server, "gpt-4o");
    run_times(&server, flow, 5, |_| "again".into());
    let found = suggestion(&server, "cache");
    let proposal: Proposal = serde_json::from_value(found.clone()).unwrap();
    apply(&server, &found);
    let late = server.server().core().journal.commit_one(Change::Propose {
        flow_id: flow,
        flow_name: "One".into(),
        proposal: Box::new(proposal),
        at: Timestamp::now(),
    });
    assert!(matches!(late, Err(Error::Conflict(_))), "{late:?}");
    assert_eq!(of_flow(&server, flow, "cache", "OPEN"), Vec::<Value>::new());
}

#[test]
fn a_limit_suggestion_is_withdrawn_without_its_budget() {
    let server = Fixture::answering(1_000, 100);
    let set = |budgets: Value| {
        let body = json!({"budgets": budgets}).to_string();
        let answer = server.request("PUT", "/api/budget", &[], body.as_bytes());
        assert_eq!(answer.status, 200, "{}", answer.text());
    };
    let flow = flow_of(&server, "gpt-4o");
    run_times(&server, flow, 10, |at| at.to_string());
    suggestion(&server, "model_switch");
    assert_eq!(of_kind(&server, "max_tokens", "OPEN"), Vec::<Value>::new());
    set(json!([{"name": "daily", "per": "day", "limitUsd": "1"}]));
    suggestion(&server, "max_tokens");
    set(json!([]));
    eventually("it is withdrawn", || of_kind(&server, "max_tokens", "WITHDRAWN").len() == 1);
}

#[test]
fn the_projection_of_an_idle_flow_shrinks_until_withdrawn() {
    let server = Fixture::answering(1_000, 1_000);
    let flow = flow_of(&server, "gpt-4o");
    run_times(&server, flow, 5, |_| "again".into());
    let found = suggestion(&server, "cache");
    let now = Timestamp::now();
    let after = |minutes: i64| Timestamp(now.0 + minutes * 60 * 1000);
    let mut pass = server.pass();
    written(&mut pass, now);
    // The optimizer checks a flow at most once an hour.
    assert!(written(&mut pass, after(59)).is_empty());
    const DAY: i64 = 24 * 60;
    let expected = expected_nanousd(&written(&mut pass, after(10 * DAY)));
    // Four calls in ten days, 12,500,000 nano-dollars each.
    assert!((expected - 150_000_000).abs() < 1_000, "{expected}");
    let gone = written(&mut pass, after(40 * DAY));
    let id = found["id"].as_i64().unwrap();
    assert!(
        matches!(gone[..], [Change::CloseSuggestion { id: closed, status: Status::Withdrawn, .. }] if closed == id),
        "{gone:?}"
    );
}

#[test]
fn changed_prices_are_applied_while_idle() {
    let home = Home::new();
    let price = |per_mtok: &str| {
        let model = "[[price]]\nprovider = 'openai'\nmodel = 'gpt-4o-mini'\n";
        let price = format!("input_per_mtok = '{per_mtok}'\noutput_per_mtok = '{per_mtok}'\n");
        home.write("mine.toml", format!("{model}{price}"))
    };
    let path = price("0.1");
    let upstream = upstream(1_000, 100);
    let server = Fixture::with(upstream, &[("openai", Kind::OpenAi)], |config| {
        config.prices = Some(path);
    });
    for model in ["gpt-4o-mini", "gpt-4o"] {
        let flow = flow_of(&server, model);
        run_times(&server, flow, 10, |at| at.to_string());
    }
    let found = suggestion(&server, "model_switch");
    assert_eq!(found["evidence"]["toModel"], "gpt-4o-mini", "{found}");
    let mut pass = server.pass();
    let now = Timestamp::now();
    written(&mut pass, now);
    assert!(written(&mut pass, now).is_empty());
    // More expensive than the current model.
    price("20");
    eventually("another model is put forward", || {
        written(&mut pass, now).iter().any(|change| match change {
            Change::Propose { proposal, .. } => {
                proposal.kind == Ground::ModelSwitch
                    && proposal.evidence["toModel"] != "gpt-4o-mini"
                    && proposal.evidence["model"] == "gpt-4o"
            }
            _ => false,
        })
    });
}

#[test]
fn calls_are_priced_by_the_tiers_of_current_user_prices() {
    let home = Home::new();
    let price = |tiers: &str| {
        let model = "[[price]]\nprovider = 'openai'\nmodel = 'gpt-4o-mini'\n";
        let rates = "input_per_mtok = '0.1'\noutput_per_mtok = '0.1'\n";
        home.write("mine.toml", format!("{model}{rates}{tiers}"))
    };
    let path = price("");
    let upstream = openai(|body, stream| {
        let request: Value = serde_json::from_str(body).unwrap();
        let input_tokens = if body.contains("long") { 2_000 } else { 500 };
        let model = request["model"].as_str().unwrap();
        let answer = completion_of(model, "well", input_tokens, 100);
        let _ = stream.write_all(answer.as_bytes());
    });
    let server = Fixture::with(upstream, &[("openai", Kind::OpenAi)], |config| {
        config.prices = Some(path);
    });
    for model in ["gpt-4o-mini", "gpt-4o"] {
        let flow = flow_of(&server, model);
        for length in ["short", "long"] {
            run_times(&server, flow, 5, |at| format!("{length} {at}"));
        }
    }
    suggestion(&server, "model_switch");
    let mut pass = server.pass();
    let now = Timestamp::now();
    written(&mut pass, now);
    price("tiers = [{above = 900, input_per_mtok = '1', output_per_mtok = '0.1'}]\n");
    // Five of 500 tokens at 100 nano-dollars, five of 2,000 at 1,000, and their answers at 100.
    let cost = 5 * 500 * 100 + 5 * 2_000 * 1_000 + 10 * 100 * 100;
    eventually("long prompts alone are priced as such", || {
        written(&mut pass, now).iter().any(|change| match change {
            Change::Propose { proposal, .. } => {
                proposal.kind == Ground::ModelSwitch && proposal.evidence["toCostNanousd"] == cost
            }
            _ => false,
        })
    });
}

#[test]
fn unreadable_suggestions_of_a_flow_do_not_block_others() {
    let mut server = Fixture::answering(1_000, 1_000);
    server.leave_unverified();
    let flows = [flow_of(&server, "gpt-4o"), flow_of(&server, "gpt-4o")];
    for flow in flows {
        run_times(&server, flow, 5, |_| "again".into());
        eventually("the suggestion is made", || of_flow(&server, flow, "cache", "OPEN").len() == 1);
    }
    server.stop();
    let spoil = "UPDATE suggestions SET proposal = '{' WHERE flow_id = ?1";
    assert_eq!(database(&server).execute(spoil, [flows[0]]).unwrap(), 1);
    server.start_again();
    let mut pass = server.pass();
    let later = Timestamp(Timestamp::now().0 + 10 * DAY_MS);
    let mut reported = Vec::new();
    let done = pass.run(Wanted::default(), later, &mut |change| {
        if let Change::Propose { flow_id, .. } = change {
            reported.push(flow_id);
        }
        Ok(())
    });
    assert!(done.is_err());
    assert_eq!(reported, [flows[1]]);
}

#[test]
fn failed_writes_are_retried_in_the_next_pass() {
    let server = Fixture::answering(1_000, 1_000);
    let flow = flow_of(&server, "gpt-4o");
    run_times(&server, flow, 5, |_| "again".into());
    let path = format!("{PATH}/{}", suggestion(&server, "cache")["id"]);
    let full = |pass: &mut Pass, now: Timestamp| {
        let refused =
            pass.run(Wanted::default(), now, &mut |_| Err(Error::internal("the disk is full")));
        assert!(refused.is_err());
    };
    let later = Timestamp(Timestamp::now().0 + 10 * DAY_MS);
    let mut late = server.pass();
    full(&mut late, later);
    assert!(late.rest(later).is_zero());
    assert!(expected_nanousd(&written(&mut late, later)) < 1_500_000_000);

    // The measurement survives too.
    let applied = server.post(&format!("{path}/apply"), &json!({}));
    assert_eq!(applied.status, 200, "{}", applied.text());
    let mut measuring = server.pass();
    written(&mut measuring, Timestamp::now());
    run_times(&server, flow, 2, |_| "anew".into());
    eventually("it is measured", || server.get(&path).json()["realised"]["calls"] == 1);
    full(&mut measuring, Timestamp::now());
    let written = written(&mut measuring, Timestamp::now());
    assert!(
        matches!(&written[..], [Change::SetRealised { realised, .. }] if realised.calls == 1),
        "{written:?}"
    );
}

#[test]
fn measurements_survive_deleted_runs_and_restarts() {
    let mut server = Fixture::answering(1_000, 1_000);
    let flow = server.save(&two_and_output(
        "A {{ input.what }}",
        "B {{ input.what }}",
        "{{ nodes.second.output }}",
    ));
    run_times(&server, flow, 10, |at| at.to_string());
    let path = format!("{PATH}/{}", suggestion(&server, "dead_node")["id"]);
    let applied = server.post(&format!("{path}/apply"), &json!({}));
    assert_eq!(applied.status, 200, "{}", applied.text());
    let measured = |server: &TestServer, runs: u64| {
        eventually("the runs are measured", || {
            server.get(&path).json()["realised"]["calls"] == runs
        });
    };
    run_times(&server, flow, 3, |at| format!("after {at}"));
    measured(&server, 3);
    let runs = server.get(&format!("/api/runs?flow_id={flow}&limit=50"));
    for run in runs.json()["items"].as_array().unwrap() {
        let path = format!("/api/runs/{}", run["runId"].as_str().unwrap());
        assert_eq!(server.request("DELETE", &path, &[], b"").status, 204);
    }
    server.start_again();
    run_times(&server, flow, 1, |_| "later".into());
    measured(&server, 4);
    let saved = server.get(&path).json()["realised"]["savedUsd"].clone();
    assert_eq!(saved, 0.05);
}

#[test]
fn an_unused_call_is_suggested_for_removal_with_its_cost() {
    let server = Fixture::answering(1_000, 1_000);
    let dead = server.save(&two_and_output(
        "A {{ input.what }}",
        "B {{ input.what }}",
        "{{ nodes.second.output }}",
    ));
    let alive = server.save(&two_and_output(
        "A {{ input.what }}",
        "B {{ nodes.first.output }} {{ input.what }}",
        "{{ nodes.second.output }}",
    ));
    for flow in [alive, dead] {
        run_times(&server, flow, 10, |at| format!("{flow} {at}"));
    }
    let found = suggestion(&server, "dead_node");
    assert_eq!((&found["flowId"], &found["nodeId"]), (&json!(dead), &json!("first")));
    assert_eq!(found["calls"], 10, "{found}");
    assert_eq!(found["evidence"]["costNanousd"], 10 * 12_500_000);
    assert_near(interval(&found), interval_of(10, 12_500_000));
    apply(&server, &found);
    let count = server.upstream.count();
    run_times(&server, dead, 1, |_| "after".into());
    assert_eq!(server.upstream.count(), count + 1);
}

#[test]
fn the_later_of_two_unused_calls_is_removed_first() {
    let server = Fixture::answering(1_000, 1_000);
    let flow = server.save(&two_and_output(
        "A {{ input.what }}",
        "B {{ nodes.first.output }}",
        "{{ input.what }}",
    ));
    run_times(&server, flow, 10, |at| at.to_string());
    for node in ["second", "first"] {
        let found = suggestion(&server, "dead_node");
        assert_eq!(found["nodeId"], node);
        apply(&server, &found);
    }
    let count = server.upstream.count();
    run_times(&server, flow, 1, |_| "after".into());
    assert_eq!(server.upstream.count(), count);
}

/// Makes all nodes of a flow take longer.
const TOOK_LONG: &str = "UPDATE run_nodes SET finished_ms = started_ms + 150 WHERE run_id IN
    (SELECT id FROM runs WHERE flow_id = ?1)";

#[test]
fn independent_sequential_calls_are_suggested_as_parallel() {
    let mut server = Fixture::answering(10, 10);
    let both = "{{ nodes.first.output }} {{ nodes.second.output }}";
    let apart = server.save(&two_and_output("A {{ input.what }}", "B {{ input.what }}", both));
    let needed = server.save(&two_and_output(
        "A {{ input.what }}",
        "B {{ input.what }} {{ nodes.first.output }}",
        both,
    ));
    for flow in [apart, needed] {
        run_times(&server, flow, 10, |at| at.to_string());
        server.alter(flow, TOOK_LONG);
    }
    let found = suggestion(&server, "parallel");
    assert_eq!((&found["flowId"], &found["nodeId"]), (&json!(apart), &json!("second")));
    assert_eq!(found["otherNodeId"], "first");
    assert_eq!(found["savingMs"], 150, "{found}");
    assert!(found["savingPer30Days"].is_null());
    apply(&server, &found);
    let flow = server.get(&format!("/api/flows/{apart}")).json();
    let edges = flow["data"]["edges"].as_array().unwrap();
    assert_eq!(edges.len(), 2, "{edges:?}");
    assert!(edges.iter().all(|edge| edge["target"] == "out"), "{edges:?}");
}

#[test]
fn the_command_line_lists_suggestions_without_changes() {
    let server = Fixture::answering(1_000, 1_000);
    let home = Home::new();
    let config = format!(
        "[providers.openai]\nkind = \"openai\"\nbase_url = \"{}\"\napi_key = \"k\"\n",
        server.upstream.url()
    );
    let config = home.write("flowledger.toml", config);
    let optimize = |more: &[&str]| {
        let data = server.data().to_str().unwrap();
        let args = ["optimize", "--data", data, "--config", config.to_str().unwrap()];
        let ended = home.run(&[&args[..], more].concat());
        assert_eq!((ended.code, &*ended.stderr), (Some(0), ""), "{ended:?}");
        ended.stdout
    };
    assert!(optimize(&[]).contains("No savings found"));
    let flow = flow_of(&server, "gpt-4o");
    run_times(&server, flow, 5, |_| "again".into());
    let found = suggestion(&server, "cache");
    let json: Value = serde_json::from_str(&optimize(&["--json"])).unwrap();
    let open = json["open"].as_array().unwrap();
    assert_eq!(open.len(), 1, "{json}");
    for key in ["id", "flowId", "kind", "calls", "savingPer30Days", "evidence", "edit"] {
        assert_eq!(open[0][key], found[key], "{key}");
    }
    // Independent of the providers in the environment of the shell.
    let data = server.data().to_str().unwrap();
    let elsewhere = home.run(&["optimize", "--json", "--data", data]);
    let json: Value = serde_json::from_str(&elsewhere.stdout).unwrap();
    assert_eq!(json["open"], Value::from(open.clone()), "{json}");
    let why = json["notUsable"][0].as_str().unwrap();
    assert!(why.starts_with("openai: "), "{why}");
    assert!(elsewhere.stderr.contains(why), "{}", elsewhere.stderr);
    let table = optimize(&[]);
    assert!(table.contains("$1.5 ($0.03 to $2.97)"), "{table}");
    let path = format!("{PATH}/{}", found["id"]);
    server.post(&format!("{path}/apply"), &json!({}));
    let applied = optimize(&[]);
    assert!(applied.contains("No savings found") && applied.contains("Saved so far"), "{applied}");
}

#[test]
fn a_shared_prefix_is_suggested_for_the_prompt_cache() {
    let upstream = Upstream::start(|_, stream| {
        let _ = stream.write_all(message_of("claude-sonnet-4-5", 4_000, 10).as_bytes());
    });
    let server = Fixture::of_anthropic(upstream);
    let flow_with = |prompt: &str| {
        let mut node = agent("n", "anthropic", "claude-sonnet-4-5", prompt);
        node["data"]["stream"] = json!(false);
        server.save(&chain("One", &[node]))
    };
    // Three quarters of the prompt are constant.
    let long = flow_with(&format!("{}{{{{ input.what }}}}", "a".repeat(3_000)));
    let late = flow_with(&format!("{{{{ input.what }}}}{}", "a".repeat(3_000)));
    // As long, but this model caches no prompts below 4,096 tokens.
    let mut node = agent("n", "anthropic", "claude-haiku-4-5", "");
    node["data"]["stream"] = json!(false);
    node["data"]["prompt"] = json!(format!("{}{{{{ input.what }}}}", "a".repeat(3_000)));
    let short = server.save(&chain("Short", &[node]));
    for flow in [late, short, long] {
        run_times(&server, flow, 10, |at| format!("{at}{}", "b".repeat(999)));
    }
    let found = suggestion(&server, "prompt_cache");
    assert_eq!(found["flowId"], long, "{found}");
    let evidence = &found["evidence"];
    assert_eq!(evidence["prefixTokens"], 3_000, "{found}");
    assert_eq!((&evidence["reads"], &evidence["writes"]), (&json!(9), &json!(1)));
    // At 3 dollars per million, 0.30 for cache reads and 3.75 for cache writes.
    let saved: i64 = 3_000 * (9 * 2_700 - 750);
    assert_eq!(evidence["savedNanousd"], saved);
    assert_near(interval(&found), interval_of(10, saved / 10));
    apply(&server, &found);
    while server.upstream.requests().try_recv().is_ok() {}
    run_times(&server, long, 1, |_| "after".into());
    let sent = server.upstream.requests().recv_timeout(DEADLINE).unwrap();
    assert!(sent.contains("cache_control"), "{sent}");
}

#[test]
fn an_idle_node_does_not_stop_the_optimizer() {
    let upstream = Upstream::start(|_, stream| {
        let _ = stream.write_all(message_of("claude-sonnet-4-5", 4_000, 10).as_bytes());
    });
    let mut server = Fixture::of_anthropic(upstream);
    let mut node = agent("n", "anthropic", "claude-sonnet-4-5", "{{ input.what }}");
    node["data"]["stream"] = json!(false);
    let empty = server.save(&chain("Empty", &[node.clone()]));
    node["data"]["prompt"] = json!("Say {{ input.what }}");
    let flow = server.save(&chain("Repeated", &[node]));
    // As many calls as the optimizer reads for the node's inputs.
    run_times(&server, empty, 20, |_| String::new());
    for _ in 0..2 {
        run_times(&server, flow, 4, |_| "the same".into());
        eventually("the other flow is checked", || {
            of_kind(&server, "cache", "OPEN").iter().any(|item| item["flowId"] == flow)
        });
        assert!(server.server().fatal().is_empty());
        server.start_again();
    }
}

#[test]
fn concurrent_calls_cannot_read_an_unwritten_cache() {
    // No call is answered before all were sent.
    let all_made = Barrier::new(10);
    let upstream = Upstream::start(move |body, stream| {
        if body.contains("at once") {
            all_made.wait();
        }
        let _ = stream.write_all(message_of("claude-sonnet-4-5", 4_000, 10).as_bytes());
    });
    let server = Fixture::of_anthropic(upstream);
    let beginning = "a".repeat(3_000);
    let map = json!({"id": "each", "type": "map", "data": {
        "provider": "anthropic", "model": "claude-sonnet-4-5", "stream": false, "atOnce": 10,
        "items": "{{ input.list }}", "prompt": format!("{beginning}at once {{{{ item }}}}")}});
    let at_once = server.save(&chain("At once", &[map]));
    let list: Vec<usize> = (0..10).collect();
    let run = server.run(at_once, &json!({"list": list}));
    assert_eq!(run["status"], "COMPLETED", "{run}");
    let prompt = format!("{beginning}{{{{ input.what }}}}");
    let mut node = agent("n", "anthropic", "claude-sonnet-4-5", &prompt);
    node["data"]["stream"] = json!(false);
    let in_turn = server.save(&chain("In turn", &[node]));
    run_times(&server, in_turn, 10, |at| at.to_string());
    let found = suggestion(&server, "prompt_cache");
    assert_eq!(found["flowId"], in_turn, "{found}");
}

#[test]
fn a_burst_is_projected_over_all_observed_days() {
    let mut server = Fixture::answering(10_000, 1_000);
    server.leave_unverified();
    let flow = flow_of(&server, "gpt-4o");
    run_times(&server, flow, 5, |_| "again".into());
    let found = suggestion(&server, "cache");
    let each = 10_000 * 2_500 + 1_000 * 10_000;
    assert_near(interval(&found), interval_of(4, each));
    let is_marked_as_guess =
        |found: &Value| found["reason"].as_str().unwrap().contains("is a rough estimate");
    assert!(is_marked_as_guess(&found), "{found}");

    // The first call was ten days ago. Three of the others repeat within a week, on one day.
    server.stop();
    put_back(&server, flow, 1, 10 * DAY_MS);
    server.start_again();
    let path = format!("{PATH}/{}", found["id"]);
    let seen = 3 * each;
    let mut found = Value::Null;
    eventually("ten days were processed", || {
        found = server.get(&path).json();
        found["calls"] == 3
    });
    let [low, expected, high] = interval(&found);
    assert!((expected - 3 * seen).abs() < seen / 1_000, "{found}");
    // One day of eleven: it may recur three times as often, or never.
    let deviation = (1.96 * 3.0 * seen as f64) as i64;
    assert_eq!(low, 0);
    assert!((high - expected - deviation).abs() < seen / 1_000, "{found}");
    assert!(!is_marked_as_guess(&found), "{found}");

    // The node is older than the known days, so the burst came once in all of them.
    server.stop();
    let older = "UPDATE runs SET id = '01000000' || substr(id, 9) WHERE id =
        (SELECT min(id) FROM runs WHERE flow_id = ?1)";
    let older_nodes = "UPDATE run_nodes SET run_id = '01000000' || substr(run_id, 9) WHERE run_id =
        (SELECT min(id) FROM runs WHERE flow_id = ?1)";
    for change in [older_nodes, older] {
        assert_eq!(database(&server).execute(change, [flow]).unwrap(), 1);
    }
    server.start_again();
    eventually("all days were processed", || {
        let [_, expected, _] = interval(&server.get(&path).json());
        (seen * 30 / 31..=seen).contains(&expected)
    });
}

#[test]
fn repeats_are_projected_from_the_end_of_caching() {
    let mut server = Fixture::answering(10_000, 1_000);
    server.leave_unverified();
    let flow = flow_of(&server, "gpt-4o");
    run_times(&server, flow, 1, |_| "again".into());
    server.stop();
    put_back(&server, flow, 1, 5 * DAY_MS);
    server.start_again();
    put(&server, flow, |flow| {
        flow["data"]["nodes"][0]["data"]["cache"] = json!({"maxAgeS": 60});
    });
    put(&server, flow, |flow| {
        let data = flow["data"]["nodes"][0]["data"].as_object_mut().unwrap();
        data.remove("cache");
    });
    run_times(&server, flow, 4, |_| "again".into());
    wait_for_pass(&server);
    let found = of_flow(&server, flow, "cache", "OPEN").remove(0);
    let each = 10_000 * 2_500 + 1_000 * 10_000;
    assert_eq!(found["calls"], 4, "{found}");
    // Within a day, although the node is known for five.
    assert_near(interval(&found), interval_of(4, each));
    assert!(found["reason"].as_str().unwrap().contains("is a rough estimate"));
}

#[test]
fn an_open_suggestion_is_withdrawn_well_below_its_threshold() {
    let mut server = Fixture::answering(440, 10);
    server.leave_unverified();
    let flow = flow_of(&server, "gpt-4o");
    // Three times 1.2 thousandths of a dollar in a day: 10.8 cents in 30 days. The threshold is 10.
    run_times(&server, flow, 4, |_| "again".into());
    let path = format!("{PATH}/{}", suggestion(&server, "cache")["id"]);
    for (days, status) in [(1.3, "OPEN"), (2.0, "WITHDRAWN")] {
        server.stop();
        let back_ms = (days * DAY_MS as f64) as i64;
        let set = "UPDATE ledger SET timestamp_ms = ?2 WHERE id IN
            (SELECT min(id) FROM ledger WHERE flow_id = ?1)";
        let now: i64 = jiff::Timestamp::now().as_millisecond();
        database(&server).execute(set, (flow, now - back_ms)).unwrap();
        server.start_again();
        wait_for_pass(&server);
        assert_eq!(server.get(&path).json()["status"], status);
    }
}

#[test]
fn overlapping_suggestions_are_marked_and_updated_on_apply() {
    let server = Fixture::answering(1_000, 1_000);
    let flow = flow_of(&server, "gpt-4o");
    // Ten prompts; one repeats five times.
    run_times(&server, flow, 15, |at| at.min(9).to_string());
    let is_reported = |kind: &str, calls: u64| {
        let found = of_kind(&server, kind, "OPEN");
        found.iter().any(|it| it["calls"] == calls)
    };
    eventually("both are suggested", || is_reported("cache", 5) && is_reported("model_switch", 15));
    for kind in ["cache", "model_switch"] {
        let found = suggestion(&server, kind);
        let reason = found["reason"].as_str().unwrap();
        assert!(reason.contains("savings overlap"), "{reason}");
    }
    let cache = suggestion(&server, "cache");
    apply(&server, &cache);
    // A cheaper model saves nothing on calls that are no longer made.
    eventually("ten calls are left", || is_reported("model_switch", 10));
    let found = suggestion(&server, "model_switch");
    assert_eq!(found["evidence"]["costNanousd"], 10 * 12_500_000, "{found}");
    assert!(!found["reason"].as_str().unwrap().contains("add up"), "{found}");
}

#[test]
fn unpriced_calls_and_maps_are_measured_by_node_time() {
    let mut server = Fixture::of(openai(|_, stream| {
        let _ = stream.write_all(completion_of("homemade", "well", 10, 10).as_bytes());
    }));
    let map = json!({"id": "first", "type": "map", "data": {"provider": "openai", "stream": false,
        "model": "homemade", "items": "{{ input.list }}", "atOnce": 4, "prompt": "A {{ item }}"}});
    let mut node = agent("second", "openai", "homemade", "B {{ input.what }}");
    node["data"]["stream"] = json!(false);
    let output = "{{ nodes.first.output }} {{ nodes.second.output }}";
    let output = json!({"id": "out", "type": "output", "data": {"template": output}});
    let flow = server.save(&chain("Map", &[map, node, output]));
    for at in 0..10 {
        let run = server.run(flow, &json!({"what": at, "list": [1, 2, 3, 4]}));
        assert_eq!(run["status"], "COMPLETED", "{run}");
    }
    // Longer than its calls, and not the same each time.
    let took = "UPDATE run_nodes SET finished_ms = started_ms + 200 + 100 * (node_id = 'second')
        + (SELECT count(*) FROM runs WHERE id < run_id) WHERE run_id IN
        (SELECT id FROM runs WHERE flow_id = ?1)";
    server.alter(flow, took);
    let found = suggestion(&server, "parallel");
    assert_eq!(found["evidence"]["secondAverageMs"], 305, "{found}");
    assert_eq!(found["evidence"]["firstAverageMs"], 205, "{found}");
    assert_eq!(found["savingMs"], 205, "{found}");
}
