//! The views of runs in a real browser: live output, attempts, items, retry, lists and deletion.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::bounded;
use flowledger::providers::Kind;
use serde_json::json;

use crate::harness::{DEADLINE, TestServer, add_provider, agent, chain, two_nodes};
use crate::page::{Person, element, selector};
use crate::upstream::{Upstream, completion, json_answer};

/// Markup that would run a script if it were not shown as text.
const MARKUP: &str = "<img src=x onerror='window.hacked=1'>";

impl Person {
    /// Waits until a node of the graph is in this state.
    #[track_caller]
    fn sees_node(&self, node: &str, state: &str) {
        self.browser.wait_for(&format!("{}?.dataset.state === {}", graph_node(node), json!(state)));
    }

    /// Selects a node of the graph and waits for its panel.
    #[track_caller]
    fn selects_node(&self, node: &str) {
        self.browser.click(&graph_node(node));
        self.browser.wait_for(&format!(
            "{}?.dataset.nodeId === {}",
            element("node-run"),
            json!(node)
        ));
    }
}

fn graph_node(id: &str) -> String {
    format!(
        "document.querySelector('[data-testid=graph] [data-testid=node][data-node-id={}]')",
        json!(id)
    )
}

#[test]
fn a_run_is_shown_live_with_its_streaming_output() {
    let (upstream, proceed) = Upstream::stepwise();
    let server = TestServer::start_with(|config| {
        add_provider(config, "openai", Kind::OpenAi, upstream.url());
    });
    let flow = server.save(&chain(
        "Article",
        &[
            agent("draft", "openai", "gpt-4o-mini", "On {{ input.topic }}"),
            agent("edit", "echo", "echo-1", "Edit {{ nodes.draft.output }}"),
        ],
    ));
    let run = server.execute(flow, &json!({"topic": "bees"}));
    let person = Person::opens_at(&server, &format!("/runs/{run}"));
    person.sees_that_it_is("connected");
    person.sees_node("draft", "running");
    person.sees_node("edit", "waiting");
    person.sees_text("run-cost", "none yet");
    person.selects_node("draft");
    person.is_at(&format!("/runs/{run}?node=draft"));
    proceed.send_timeout((), DEADLINE).unwrap();
    person.sees_text("stream-text", "small");
    proceed.send_timeout((), DEADLINE).unwrap();
    person.sees_node("draft", "completed");
    person.sees_node("edit", "completed");
    person.sees_text("node-output", "Bees are small insects.");
    person.sees_text("node-prompt", "On bees");
    person.sees_text("run-status", "completed");
    // gpt-4o-mini: 0.15 and 0.60 USD per million tokens.
    person.sees_text("run-cost", "$0.21");
    person.sees_text("run-facts", "1,000,005 → 100,008");
    person.selects_node("edit");
    person.sees_text("node-output", "Edit Bees are small insects.");
    person.has_not_reloaded();
    person.has_a_clean_console(&[]);
}

#[test]
fn a_failed_run_is_retried_and_keeps_finished_nodes() {
    let is_fixed = Arc::new(AtomicBool::new(false));
    let fixed = Arc::clone(&is_fixed);
    let upstream = Upstream::start(move |body, stream| {
        let answer = if body.contains("second") && !fixed.load(Ordering::SeqCst) {
            json_answer("402 Payment Required", r#"{"error":{"message":"no credit"}}"#)
        } else {
            completion("well", 10, 5)
        };
        drop(stream.write_all(answer.as_bytes()));
    });
    let server = TestServer::start_with(|config| {
        add_provider(config, "openai", Kind::OpenAi, upstream.url());
    });
    let nodes = ["first", "second"].map(|id| {
        let mut node = agent(id, "openai", "gpt-4o-mini", id);
        node["data"]["stream"] = json!(false);
        node
    });
    let flow = server.save(&chain("Fixed", &nodes));
    server.run(flow, &json!({}));
    // An old failed run, from the list.
    let person = Person::opens_at(&server, "/runs?status=FAILED");
    person.sees_list("run-row", &["Fixed"]);
    person.browser.click(&format!("{}.querySelector('a')", element("run-row")));
    person.sees_text("run-error", "no credit");
    person.sees_node("second", "failed");
    is_fixed.store(true, Ordering::SeqCst);
    person.presses("run-retry");
    person.sees_node("second", "completed");
    person.sees_node("first", "completed");
    person.sees_text("run-status", "completed");
    person.browser.wait_for(&format!("!{}", element("run-retry")));
    assert_eq!(upstream.count(), 3);
    person.presses("run-again");
    person.sees_text("run-status", "completed");
    person.browser.eval("history.back()");
    person.browser.eval("history.back()");
    person.is_at("/runs?status=FAILED");
    person.has_not_reloaded();
    person.has_a_clean_console(&[]);
}

#[test]
fn a_failed_node_shows_its_prompt_and_each_attempt() {
    let error = format!("out of order: {MARKUP}");
    let upstream = Upstream::start(move |_, stream| {
        let error = json!({"error": {"message": error}}).to_string();
        let answer = json_answer("500 Internal Server Error", &error);
        let _ = stream.write_all(answer.as_bytes());
    });
    let server = TestServer::start_with(|config| {
        add_provider(config, "openai", Kind::OpenAi, upstream.url());
    });
    let mut second = agent("second", "openai", "gpt-4o-mini", "Judge {{ nodes.first.output }}");
    second["data"]["system"] = json!(format!("Be brief, {MARKUP}"));
    second["data"]["retry"] = json!({"attempts": 2, "backoffMs": 1});
    let first = agent("first", "echo", "echo-1", "On {{ input.topic }}");
    let flow = server.save(&chain("Judged", &[first, second]));
    let topic = format!("{MARKUP} {}", "unbreakable".repeat(100));
    let run = server.run(flow, &json!({"topic": topic}));
    let run = run["runId"].as_str().unwrap();
    let person = Person::opens_at(&server, &format!("/runs/{run}"));
    person.browser.resize(360, 800, true);
    person.sees_text("run-error", &format!("out of order: {MARKUP}"));
    person.presses("show-failed");
    person.browser.wait_for(&format!("{}?.dataset.state === 'failed'", element("node-run")));
    person.sees_list("run-attempt", &["Attempt 1", "Attempt 2"]);
    person.sees_text("node-run", "openai/gpt-4o-mini");
    person.sees_text("node-run", &format!("Be brief, {MARKUP}"));
    // Long texts are folded at first.
    let prompt = element("node-prompt");
    assert_eq!(person.browser.eval(&format!("{prompt}.open")), false);
    person.browser.click(&format!("{prompt}.querySelector('summary')"));
    person.sees_text("node-prompt", &format!("Judge [echo of echo-1] On {MARKUP}"));
    person.cannot_scroll_sideways(360);
    assert_eq!(
        person.browser.eval("[document.scripts.length, document.images.length]"),
        json!([1, 0])
    );
    // An attempt links to its call, and the call to its run.
    person.presses("attempt-call");
    person.sees_text("call-panel", "out of order");
    person.browser.eval("history.back()");
    person.browser.wait_for(&format!("{}?.dataset.state === 'failed'", element("node-run")));
    person.has_a_clean_console(&[]);
    assert_eq!(person.browser.eval("typeof window.hacked"), "undefined");
}

#[test]
fn map_items_are_counted_live_and_can_be_opened() {
    let (leave, left) = bounded::<()>(100);
    let upstream = Upstream::start(move |body, stream| {
        let _ = left.recv_timeout(DEADLINE);
        let answer = if body.contains("word 30.") {
            json_answer("400 Bad Request", r#"{"error":{"message":"no word"}}"#)
        } else {
            completion("well", 100, 1_000)
        };
        drop(stream.write_all(answer.as_bytes()));
    });
    let server = TestServer::start_with(|config| {
        add_provider(config, "openai", Kind::OpenAi, upstream.url());
    });
    let mut map = agent("each", "openai", "gpt-4o-mini", "A word {{ item }}.");
    map["type"] = json!("map");
    map["data"]["stream"] = json!(false);
    map["data"]["items"] = json!("{{ input.list }}");
    let flow = server.save(&chain("Words", &[map]));
    let list: Vec<u32> = (0..60).collect();
    let run = server.execute(flow, &json!({"list": list}));
    for _ in 0..3 {
        leave.send(()).unwrap();
    }
    let person = Person::opens_at(&server, &format!("/runs/{run}?node=each"));
    let browser = &person.browser;
    person.sees_text("items-all", "4 started");
    person.sees_text("items-running", "1 running");
    // New items do not disturb a reader of another one.
    let item = |number: u32| {
        format!("document.querySelector('[data-testid=run-item][data-item=\"{number}\"]')")
    };
    browser.click(&format!("{}.querySelector('summary')", item(1)));
    browser.wait_for(&format!("{}.innerText.includes('A word 1.')", item(1)));
    browser.eval(&format!("void ({}.isRead = true)", item(1)));
    for _ in 0..57 {
        leave.send(()).unwrap();
    }
    person.sees_text("run-status", "failed");
    person.sees_text("items-all", "31 started");
    person.sees_text("items-completed", "30 completed");
    person.sees_text("items-failed", "1 failed");
    browser.wait_for(&format!("{0}.isRead && {0}.querySelector('details').open", item(1)));
    let says = |number: u32, text: &str| {
        browser.wait_for(&format!("{}.innerText.includes({})", item(number), json!(text)));
    };
    for text in ["100 → 1,000", "$0.000615", "Attempt 1", "well"] {
        says(1, text);
    }
    // The list is paginated, because a map may have a thousand items.
    let count = format!("document.querySelectorAll({}).length", json!(selector("run-item")));
    assert_eq!(browser.eval(&count), 25);
    person.presses("items-more");
    browser.wait_for(&format!("{count} === 31"));
    browser.resize(360, 800, true);
    person.presses("items-failed");
    browser.wait_for(&format!("{count} === 1"));
    browser.click(&format!("{}.querySelector('summary')", item(30)));
    says(30, "no word");
    person.cannot_scroll_sideways(360);
    person.has_a_clean_console(&[]);
}

#[test]
fn runs_are_filtered_selected_and_deleted() {
    let server = TestServer::start();
    let flow = server.save(&two_nodes());
    let bad =
        server.save(&chain("Bad", &[agent("a", "echo", "echo-1", "{{ 1 / (input.x | int) }}")]));
    for topic in ["ants", "bees"] {
        server.run(flow, &json!({"topic": topic}));
    }
    server.run(bad, &json!({"x": 0}));
    let count = || server.get("/api/runs").json()["items"].as_array().unwrap().len();
    let person = Person::opens_at(&server, "/runs");
    person.sees_list("run-row", &["Bad", "Two nodes", "Two nodes"]);
    person.presses("status-FAILED");
    person.sees_list("run-row", &["Bad"]);
    person.browser.wait_for("location.search.includes('status=FAILED')");
    person.presses("clear-filters");
    person.types("runs-search", "two");
    person.sees_list("run-row", &["Two nodes", "Two nodes"]);
    // New runs appear while the page is open.
    server.run(flow, &json!({"topic": "moths"}));
    person.sees_list("run-row", &["Two nodes"; 3]);
    person.presses("select-all");
    person.presses("bulk-delete");
    person.sees_text("confirm", "Ledger rows stay");
    person.presses("confirm-cancel");
    assert_eq!(count(), 4);
    person.presses("bulk-delete");
    person.presses("confirm-ok");
    person.sees_toast("done", "3 runs deleted");
    person.browser.wait_for(&format!("!{}", element("run-row")));
    assert_eq!(count(), 1);
    assert_eq!(server.get("/api/ledger/summary").json()["total"]["calls"], 6);

    // A deleted run says so, and leads on.
    let id = server.get("/api/runs").json()["items"][0]["runId"].as_str().unwrap().to_owned();
    person.goes_to(&format!("/runs/{id}"));
    person.browser.click("document.querySelector('[data-testid=run-menu] summary')");
    person.presses_text("Delete run…");
    person.presses("confirm-ok");
    person.sees_view("Runs");
    person.goes_to(&format!("/runs/{id}"));
    person.sees("This run does not exist.");
    person.has_a_clean_console(&["404"]);
}
