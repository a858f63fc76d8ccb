//! The views of flows in a real browser: the list, new flows, the editor, inputs, and triggers.

use std::io::Write;

use crossbeam_channel::bounded;
use flowledger::config::Config;
use flowledger::providers::Kind;
use serde_json::{Value, json};

use crate::harness::{DEADLINE, TestServer, add_provider, agent, chain, eventually, two_nodes};
use crate::page::{Person, element};
use crate::upstream::{STREAM_HEAD, Upstream, completion, delta, json_answer};

/// Would run if the page inserted it as markup instead of text.
const MARKUP: &str = "<img src=x onerror=\"window.hacked = true\"><script>hacked = true</script>";

/// A flow to paste; its provider is in line 9.
const PASTED: &str = r#"{
  "name": "Pasted",
  "data": {
    "nodes": [{
      "id": "one",
      "type": "agent",
      "data": {
        "label": "One",
        "provider": "nobody",
        "model": "echo-1",
        "prompt": "Hello"
      }
    }],
    "edges": []
  }
}"#;

/// A flow with an integer that JavaScript's numbers round.
const LARGE: &str = r#"{"name": "Large", "meta": {"id": 9007199254740993}, "data": {"edges": [], "nodes": [
    {"id": "one", "type": "agent", "meta": [-9007199254740995],
     "data": {"label": "One", "provider": "echo", "model": "echo-1", "prompt": "Hello"}}]}}"#;

/// Starts a server without the example flows.
fn start_empty(change: impl FnOnce(&mut Config)) -> TestServer {
    let server = TestServer::start_with(change);
    for flow in server.get("/api/flows").json()["items"].as_array().unwrap() {
        let path = format!("/api/flows/{}", flow["id"]);
        assert_eq!(server.request("DELETE", &path, &[], b"").status, 204);
    }
    server
}

/// Clicks an item of the first menu of flows.
#[track_caller]
fn chooses_from_menu(person: &Person, item: &str) {
    person.browser.click(&format!("{}.querySelector('summary')", element("flow-menu")));
    person.presses(item);
}

/// Gives files to the page as its file dialog does.
#[track_caller]
fn chooses_files(person: &Person, files: &[(&str, &str)]) {
    person.browser.wait_for(&format!(
        "(() => {{
            const [input, all] = [{}, new DataTransfer()];
            for (const [name, text] of {}) all.items.add(new File([text], name));
            input.files = all.files;
            return input.dispatchEvent(new Event('change', {{ bubbles: true }}));
        }})()",
        element("file-input"),
        json!(files)
    ));
}

#[track_caller]
fn selects_node(person: &Person, node: &str) {
    person.browser.click(&graph_node(node));
    person.browser.wait_for(&element("node-panel"));
}

#[track_caller]
fn sees_node_state(person: &Person, node: &str, state: &str) {
    person.browser.wait_for(&format!("{}?.dataset.state === {}", graph_node(node), json!(state)));
}

fn graph_node(id: &str) -> String {
    format!("document.querySelector('[data-testid=graph] [data-node-id={}]')", json!(id))
}

/// Returns the stored document of a flow, without the keys that the server adds.
fn document_of(server: &TestServer, flow: i64) -> Value {
    let mut flow = server.get(&format!("/api/flows/{flow}")).json();
    for key in ["id", "node_count", "inputs", "created_at", "updated_at"] {
        flow.as_object_mut().unwrap().remove(key);
    }
    flow
}

fn put(server: &TestServer, path: &str, body: &Value) {
    let response = server.request("PUT", path, &[], body.to_string().as_bytes());
    assert_eq!(response.status, 200, "{}", response.text());
}

fn prompt_of(server: &TestServer, flow: i64) -> Value {
    document_of(server, flow)["data"]["nodes"][0]["data"]["prompt"].clone()
}

#[test]
fn flows_are_listed_with_their_facts_and_found_by_search() {
    let upstream = Upstream::saying(completion("well", 1_000_000, 100_000));
    let server = start_empty(|config| {
        add_provider(config, "openai", Kind::OpenAi, upstream.url());
    });
    let mut node = agent("only", "openai", "gpt-4o-mini", "x");
    node["data"]["stream"] = json!(false);
    let mut paid = chain("Weekly report", &[node]);
    paid["description"] = json!("Sums up the bees of a week");
    let paid = server.save(&paid);
    let bad = agent("a", "echo", "echo-1", "{{ 1 / (input.x | int) }}");
    let bad = server.save(&chain("Broken", &[bad]));
    let quiet = server.save(&two_nodes());
    put(&server, &format!("/api/flows/{paid}/hook"), &json!({}));
    let yearly = json!({"cron": "0 0 1 1 *", "timezone": "UTC", "missed": "skip", "input": {"topic": ""}, "enabled": true});
    put(&server, &format!("/api/flows/{quiet}/schedule"), &yearly);
    server.run(paid, &json!({}));
    server.run(bad, &json!({"x": 0}));

    let person = Person::opens_at(&server, "/flows?sort=name&order=asc");
    person.sees_list("flow", &["Broken", "Two nodes", "Weekly report"]);
    let row = |flow: i64, texts: &[&str]| {
        person.browser.wait_for(&format!(
            "(row => {}.every((text) => row.innerText.includes(text)))(document.querySelector('[data-testid=flow][data-flow-id=\"{flow}\"]'))",
            json!(texts)
        ));
    };
    // gpt-4o-mini: 0.15 and 0.60 USD per million tokens.
    row(paid, &["Sums up the bees of a week", "completed", "$0.21", "webhook"]);
    row(bad, &["failed", "$0"]);
    row(quiet, &["No runs yet", "next", "in "]);
    person.types("flow-search", "bees");
    person.sees_list("flow", &["Weekly report"]);
    person.is_at("/flows?sort=name&order=asc&q=bees");
    person.browser.eval("document.querySelector('[data-testid=flow] a').click()");
    person.sees_view("Weekly report");
    person.sees("Sums up the bees of a week");
    person.browser.eval("history.back()");
    person.sees_list("flow", &["Weekly report"]);
    person.types("flow-search", "wasps");
    person.sees("No flow matches the search.");
    person.presses_text("Clear the search");
    person.sees_list("flow", &["Broken", "Two nodes", "Weekly report"]);
    person.has_not_reloaded();
    person.has_a_clean_console(&[]);
}

#[test]
fn changes_by_the_api_appear_without_a_reload() {
    let server = start_empty(|_| {});
    let person = Person::opens_at(&server, "/flows");
    person.sees_that_it_is("connected");
    person.sees("No flows yet.");
    let flow = server.save(&two_nodes());
    person.sees_list("flow", &["Two nodes"]);
    server.run(flow, &json!({"topic": "bees"}));
    person.sees_text("flow", "completed");
    let mut renamed = two_nodes();
    renamed["name"] = json!("Renamed");
    put(&server, &format!("/api/flows/{flow}"), &renamed);
    person.sees_list("flow", &["Renamed"]);
    let other = server.save(&two_nodes());
    person.sees_list("flow", &["Renamed", "Two nodes"]);
    for id in [flow, other] {
        server.request("DELETE", &format!("/api/flows/{id}"), &[], b"");
    }
    person.sees("No flows yet.");
    person.has_not_reloaded();
    person.has_a_clean_console(&[]);
}

#[test]
fn new_flows_come_from_templates_text_and_files() {
    let server = start_empty(|_| {});
    let person = Person::opens_at(&server, "/flows");
    person.presses("new-flow");
    person.presses("template-two-views");
    person.sees_view("Two views, one answer");
    person.sees("Two calls at the same time and a third that joins them.");
    let count = || server.get("/api/flows").json()["items"].as_array().unwrap().len();
    assert_eq!(count(), 1);

    // Faults of the server are shown at their lines, and lead to them.
    person.presses("nav-flows");
    person.presses("new-flow");
    person.presses("new-paste");
    person.is_at("/flows/new");
    person.types("editor-text", PASTED);
    person.presses("editor-save");
    person.sees_text("editor-faults", "unknown provider `nobody`");
    person.sees_list("editor-fault", &["Line 9"]);
    person.browser.wait_for("document.querySelector('.text-mark[data-line=\"9\"]')");
    person.presses("editor-fault");
    person.has_the_focus_on("editor-text");
    person.browser.wait_for(&format!(
        "(area => area.value.slice(area.selectionStart).startsWith('\"provider\"'))({})",
        element("editor-text")
    ));
    assert_eq!(count(), 1);
    person.types("editor-text", &PASTED.replace("nobody", "echo"));
    person.presses("editor-save");
    person.sees_view("Pasted");

    // Of several files, the good ones are imported, and each bad one says why.
    person.presses("nav-flows");
    person.presses("new-flow");
    chooses_files(&person, &[("large.json", LARGE), ("bad.json", PASTED), ("cut.json", "{")]);
    person.sees_text("import-status", "1 of 3 files imported, 2 failed.");
    person.sees_list("import-result", &["large.json", "unknown provider `nobody`", "cut.json"]);
    person.presses_text("Fix in the editor");
    person.is_at("/flows/new");
    person.sees_list("editor-fault", &["Line 9"]);
    person.types("editor-text", &PASTED.replace("nobody", "echo").replace("Pasted", "Mended"));
    person.presses("editor-save");
    person.sees_view("Mended");
    assert_eq!(count(), 4);
    person.has_not_reloaded();
    person.has_a_clean_console(&["422"]);
}

#[test]
fn the_editor_shows_faults_and_conflicts_at_their_place() {
    let server = TestServer::start();
    let flow = server.save(&two_nodes());
    let path = format!("/api/flows/{flow}");
    let person = Person::opens_at(&server, &format!("/flows/{flow}"));
    person.sees_that_it_is("connected");
    person.presses("edit-button");
    person.is_at(&format!("/flows/{flow}?edit=1"));
    person.sees_text("editor-syntax", "Valid JSON.");
    // A syntax error has a line and is not sent.
    person.types("editor-text", "{\n  \"name\": \"x\",\n  \"data\": nothing\n}");
    person.sees_text("editor-syntax", "Line 3, column 11: expected a value");
    person.presses("editor-save");
    person.has_the_focus_on("editor-text");
    assert_eq!(document_of(&server, flow)["name"], "Two nodes");
    person.types("editor-text", PASTED);
    person.sees_text("editor-syntax", "Valid JSON. Not saved yet.");
    person.presses("editor-save");
    person.sees_list("editor-fault", &["Line 9"]);

    // A change by someone else is shown, and is only overwritten after a question.
    let mut other = two_nodes();
    other["name"] = json!("Theirs");
    put(&server, &path, &other);
    person.sees_text("changed-elsewhere", "This flow was changed elsewhere.");
    person.types("editor-text", &PASTED.replace("nobody", "echo"));
    person.presses("editor-save");
    person.sees_text("confirm", "Overwrite another change?");
    person.presses("confirm-cancel");
    assert_eq!(document_of(&server, flow)["name"], "Theirs");
    person.presses("editor-save");
    person.presses("confirm-ok");
    person.sees_view("Pasted");
    assert_eq!(document_of(&server, flow)["name"], "Pasted");
    person.has_not_reloaded();
    person.has_a_clean_console(&["422"]);
}

#[test]
fn unsaved_changes_ask_before_the_editor_is_left() {
    let server = TestServer::start();
    let flow = server.save(&two_nodes());
    let editor = format!("/flows/{flow}?edit=1");
    let person = Person::opens_at(&server, &format!("/flows/{flow}"));
    person.presses("edit-button");
    // Without changes, nothing is asked.
    person.browser.wait_for(&element("editor-text"));
    person.presses("nav-flows");
    person.sees_view("Flows");
    person.browser.eval("history.back()");
    person.is_at(&editor);
    person.types("editor-text", "{}");
    person.sees_text("editor-syntax", "Not saved yet.");
    person.presses("nav-flows");
    person.sees_text("confirm", "The flow was not saved.");
    person.presses("confirm-cancel");
    person.is_at(&editor);
    person.browser.eval("history.back()");
    person.sees_text("confirm", "The flow was not saved.");
    person.browser.press("Escape");
    person.browser.wait_for(&format!("!{}", element("confirm")));
    person.is_at(&editor);
    person.browser.wait_for(&format!("{}.value === '{{}}'", element("editor-text")));
    // Closing the window would ask as well.
    let is_asked = "(event => (window.dispatchEvent(event), event.defaultPrevented))
        (new Event('beforeunload', { cancelable: true }))";
    assert_eq!(person.browser.eval(is_asked), true);
    person.presses("editor-cancel");
    person.presses("confirm-ok");
    person.sees_view("Two nodes");
    person.is_at(&format!("/flows/{flow}"));
    assert_eq!(person.browser.eval(is_asked), false);
    assert_eq!(document_of(&server, flow), two_nodes());
    person.has_not_reloaded();
    person.has_a_clean_console(&[]);
}

#[test]
fn large_integers_survive_import_edit_copy_and_export() {
    let server = start_empty(|_| {});
    let mut expected: Value = serde_json::from_str(LARGE).unwrap();
    let person = Person::opens_at(&server, "/flows");
    person.presses("new-flow");
    chooses_files(&person, &[("large.json", LARGE)]);
    person.sees_view("Large");
    let flow = server.get("/api/flows").json()["items"][0]["id"].as_i64().unwrap();
    person.is_at(&format!("/flows/{flow}"));
    assert_eq!(document_of(&server, flow), expected);

    // Edited beside the graph.
    selects_node(&person, "one");
    person.types("node-prompt", "Goodbye");
    person.presses("node-save");
    person.sees_toast("done", "Saved Large");
    expected["data"]["nodes"][0]["data"]["prompt"] = json!("Goodbye");
    assert_eq!(document_of(&server, flow), expected);

    // Edited as JSON.
    person.presses("edit-button");
    let area = element("editor-text");
    let text = person.browser.wait_for(&format!("{area}.value"));
    person.types("editor-text", &text.as_str().unwrap().replace("Goodbye", "Farewell"));
    person.presses("editor-save");
    person.is_at(&format!("/flows/{flow}"));
    expected["data"]["nodes"][0]["data"]["prompt"] = json!("Farewell");
    assert_eq!(document_of(&server, flow), expected);

    // Exported: the file has the document and nothing else.
    person.browser.eval(
        "void (URL.createObjectURL = (blob) => (blob.text().then((text) => (window.exported = text)), 'blob:x'),
               HTMLAnchorElement.prototype.click = function () { window.exportedAs = this.download; })",
    );
    chooses_from_menu(&person, "flow-export");
    let exported = person.browser.wait_for("window.exportedAs && window.exported");
    assert_eq!(serde_json::from_str::<Value>(exported.as_str().unwrap()).unwrap(), expected);
    assert_eq!(person.browser.eval("window.exportedAs"), "Large.json");

    // Duplicated.
    chooses_from_menu(&person, "flow-duplicate");
    person.sees_view("Large (copy)");
    expected["name"] = json!("Large (copy)");
    assert_eq!(document_of(&server, flow + 1), expected);
    person.has_not_reloaded();
    person.has_a_clean_console(&[]);
}

#[test]
fn a_prompt_is_edited_beside_the_graph() {
    let server = TestServer::start();
    let flow = server.save(&two_nodes());
    let person = Person::opens_at(&server, &format!("/flows/{flow}"));
    person.sees_that_it_is("connected");
    selects_node(&person, "plan");
    person.is_at(&format!("/flows/{flow}?node=plan"));
    person.has_the_focus_on("node-prompt");
    // A refused change is shown at its field and is not lost.
    person.types("node-prompt", "Plan {{ input.topic");
    person.presses("node-save");
    person.browser.wait_for(&element("node-prompt-fault"));
    assert_eq!(prompt_of(&server, flow), "Plan {{ input.topic }}");
    // Another node is selected only after a question.
    person.browser.click(&graph_node("draft"));
    person.sees_text("confirm", "The input was not saved.");
    person.presses("confirm-cancel");
    person.is_at(&format!("/flows/{flow}?node=plan"));
    person.types("node-prompt", "Outline {{ input.topic }}");
    person.presses("node-save");
    person.sees_toast("done", "Saved Two nodes");
    assert_eq!(prompt_of(&server, flow), "Outline {{ input.topic }}");
    // A change of the same node by someone else is only overwritten after a question.
    person.types("node-prompt", "Mine");
    let mut theirs = two_nodes();
    theirs["data"]["nodes"][0]["data"]["prompt"] = json!("Theirs");
    put(&server, &format!("/api/flows/{flow}"), &theirs);
    person
        .browser
        .wait_for(&format!("{}.textContent.includes('Theirs')", element("node-definition")));
    assert_eq!(person.browser.eval(&format!("{}.value", element("node-prompt"))), "Mine");
    person.presses("node-save");
    person.sees_text("confirm", "Overwrite another change?");
    person.presses("confirm-cancel");
    assert_eq!(prompt_of(&server, flow), "Theirs");
    person.presses("node-save");
    person.presses("confirm-ok");
    eventually("the change is stored", || prompt_of(&server, flow) == "Mine");
    person.sees_text("node-form", "Save");
    person.has_not_reloaded();
    person.has_a_clean_console(&["422"]);
}

#[test]
fn deleting_a_flow_asks_and_cancels_its_open_runs() {
    let (_hold, wait) = bounded::<()>(0);
    let upstream = Upstream::start(move |_, stream| {
        let _ = stream.write_all(format!("{STREAM_HEAD}{}", delta("Bees")).as_bytes());
        let _ = wait.recv_timeout(DEADLINE);
    });
    let server = start_empty(|config| {
        add_provider(config, "openai", Kind::OpenAi, upstream.url());
    });
    let flow = server.save(&chain("Open", &[agent("a", "openai", "gpt-4o-mini", "x")]));
    let idle = server.save(&two_nodes());
    let run = server.execute(flow, &json!({}));
    let person = Person::opens_at(&server, "/flows?sort=name&order=asc");
    person.sees_list("flow", &["Open", "Two nodes"]);
    chooses_from_menu(&person, "flow-delete");
    person.sees_text("confirm", "It has 1 open run, which must be cancelled first.");
    person.sees_text("confirm", "Its runs and ledger rows stay.");
    person.presses("confirm-cancel");
    assert_eq!(server.get(&format!("/api/flows/{flow}")).status, 200);
    chooses_from_menu(&person, "flow-delete");
    person.presses("confirm-ok");
    person.sees_toast("done", "Deleted Open");
    person.sees_list("flow", &["Two nodes"]);
    assert_eq!(server.get(&format!("/api/flows/{flow}")).status, 404);
    assert_eq!(server.get(&format!("/api/runs/{run}")).json()["status"], "CANCELLED");

    // A flow without open runs, from its own view.
    person.browser.eval("document.querySelector('[data-testid=flow] a').click()");
    person.sees_view("Two nodes");
    chooses_from_menu(&person, "flow-delete");
    person.sees_text("confirm", "Delete this flow?");
    person.presses("confirm-ok");
    person.sees_view("Flows");
    person.sees("No flows yet.");
    assert_eq!(server.get(&format!("/api/flows/{idle}")).status, 404);
    person.has_not_reloaded();
    person.has_a_clean_console(&[]);
}

#[test]
fn declared_inputs_have_a_form_with_types() {
    let server = start_empty(|_| {});
    let nodes = json!([
        {"id": "in", "type": "input", "data": {"inputs": [
            {"name": "topic"}, {"name": "words", "type": "number", "default": 100},
            {"name": "tags", "type": "list", "default": []}]}},
        {"id": "is_long", "type": "condition", "data": {"expression": "input.words > 50"}},
        {"id": "much", "type": "template", "data": {"template": "Much about {{ input.topic }}"}},
        {"id": "little", "type": "template", "data": {"template": "Little about {{ input.topic }}"}},
    ]);
    let edges = json!([
        {"source": "in", "target": "is_long"},
        {"source": "is_long", "sourceHandle": "true", "target": "much"},
        {"source": "is_long", "sourceHandle": "false", "target": "little"},
    ]);
    let flow = server.save(&json!({"name": "Branches", "data": {"nodes": nodes, "edges": edges}}));
    let person = Person::opens_at(&server, "/flows");
    person.sees_that_it_is("connected");
    person.presses("run-button");
    person.sees_text("run-dialog", "A number; default: 100");
    person.sees_text("run-dialog", "A JSON array; default: []");
    // In the declared order.
    assert_eq!(
        person.browser.eval("[...document.querySelectorAll('[data-testid=run-dialog] [name]')].map(({ name }) => name)"),
        json!(["topic", "words", "tags"])
    );
    person.types("input-words", "many");
    person.types("input-tags", "{}");
    person.presses("input-save");
    person.sees_text("input-topic-fault", "is required");
    person.sees_text("input-words-fault", "must be a number");
    person.sees_text("input-tags-fault", "must be a JSON array");
    person.has_the_focus_on("input-topic");
    person.types("input-topic", "ants");
    person.types("input-words", "9007199254740993");
    person.types("input-tags", "[\"small\"]");
    person.presses("input-save");
    person.sees_text("run-status", "completed");
    sees_node_state(&person, "much", "completed");
    sees_node_state(&person, "little", "skipped");
    let run = server.get("/api/runs").json()["items"][0]["runId"].as_str().unwrap().to_owned();
    person.is_at(&format!("/runs/{run}"));
    let input = server.get(&format!("/api/runs/{run}")).json()["input"].clone();
    assert_eq!(input, json!({"topic": "ants", "words": 9007199254740993_i64, "tags": ["small"]}));

    // From the flow's view, with the default of what is left empty.
    person.goes_to(&format!("/flows/{flow}"));
    person.presses("run-button");
    person.types("input-topic", "bees");
    person.types("input-words", "7");
    person.presses("input-save");
    sees_node_state(&person, "little", "completed");
    sees_node_state(&person, "much", "skipped");
    person.has_a_clean_console(&[]);
}

#[test]
fn the_view_of_a_flow_follows_a_live_run() {
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
    let person = Person::opens_at(&server, &format!("/flows/{flow}?node=draft"));
    person.sees_that_it_is("connected");
    person.sees_text("flow-facts", "none yet");
    person.sees("No runs yet.");
    // A run that another program starts.
    let run = server.execute(flow, &json!({"topic": "bees"}));
    sees_node_state(&person, "draft", "running");
    sees_node_state(&person, "edit", "waiting");
    person.sees_text("newest-run", "running");
    person.sees_list("recent-run", &["running"]);
    proceed.send_timeout((), DEADLINE).unwrap();
    person.sees_text("node-output", "small");
    proceed.send_timeout((), DEADLINE).unwrap();
    sees_node_state(&person, "draft", "completed");
    sees_node_state(&person, "edit", "completed");
    person.sees_text("newest-run", "completed");
    person.sees_text("node-result", "$0.21");
    person.sees_list("recent-run", &["completed"]);
    person.presses("node-run-link");
    person.is_at(&format!("/runs/{run}?node=draft"));
    person.has_not_reloaded();
    person.has_a_clean_console(&[]);
}

#[test]
fn a_webhook_is_created_and_its_secret_is_shown_once() {
    let server = TestServer::start();
    let flow = server.save(&two_nodes());
    let person = Person::opens_at(&server, &format!("/flows/{flow}"));
    let browser = &person.browser;
    person.sees_that_it_is("connected");
    person.presses("webhook-create");
    person.sees_text("webhook-created", "shown only once");
    let url = person.reads("webhook-url");
    let path = url.strip_prefix(&format!("http://{}", server.address())).unwrap();
    let secret = person.reads("webhook-secret");
    let deliver = |secret: &str| {
        let fields = [("x-flowledger-secret", secret)];
        server.request("POST", path, &fields, br#"{"topic": "bees"}"#).status
    };
    assert_eq!(deliver(&secret), 202);
    let example = [
        format!("curl '{url}'"),
        format!("-H 'X-Flowledger-Secret: {secret}'"),
        "-H 'Idempotency-Key: order-17'".to_owned(),
        r#"-d '{"topic":"…"}'"#.to_owned(),
    ];
    assert_eq!(person.reads("webhook-curl"), example.join(" \\\n  "));

    // A secret that was not copied is not lost by Escape.
    person.has_the_focus_on("webhook-copy");
    browser.press("Escape");
    person.sees_text("confirm", "Close without copying the secret?");
    browser.press("Escape");
    browser.wait_for(&format!("!{}", element("confirm")));
    person.sees_text("webhook-secret", &secret);
    person.presses("webhook-copy");
    person.sees_text("webhook-copy", "Copied");
    browser.press("Escape");
    browser.wait_for(&format!("!{}", element("webhook-created")));
    // It disappears with the dialog and is stored nowhere.
    let is_kept = format!(
        "[document.documentElement.outerHTML, JSON.stringify(localStorage), JSON.stringify(sessionStorage)]
            .some((text) => text.includes({}))",
        json!(secret)
    );
    assert_eq!(browser.eval(&is_kept), false);
    person.goes_to(&format!("/flows/{flow}"));
    person.sees_text("webhook-url", &url);

    // A new secret and the removal of the webhook need a confirmation.
    person.presses("webhook-replace");
    person.presses("confirm-cancel");
    assert_eq!(deliver(&secret), 202);
    person.presses("webhook-replace");
    person.presses("confirm-ok");
    person.sees_text("webhook-created", "shown only once");
    let renewed = person.reads("webhook-secret");
    assert_eq!((deliver(&secret), deliver(&renewed)), (401, 202));
    person.presses("webhook-done");
    person.presses("confirm-ok");
    person.presses("webhook-delete");
    person.sees_text("confirm", "can no longer run “Two nodes”");
    browser.press("Escape");
    person.has_the_focus_on("webhook-delete");
    person.presses("webhook-delete");
    person.presses("confirm-ok");
    person.sees_toast("done", "Webhook deleted");
    person.has_the_focus_on("webhook-create");
    assert_eq!(deliver(&renewed), 401);
    assert_eq!(server.get(&format!("/api/flows/{flow}/hook")).status, 404);
    // Triggers that do not exist are not requested.
    person.has_a_clean_console(&[]);
}

#[test]
fn a_schedule_is_saved_disabled_and_deleted() {
    let server = TestServer::start();
    let flow = server.save(&two_nodes());
    let path = format!("/api/flows/{flow}/schedule");
    let person = Person::opens_at(&server, &format!("/flows/{flow}"));
    person.sees_that_it_is("connected");
    person.presses("schedule-add");
    // Errors are shown at their fields, and no input is lost.
    person.types("schedule-cron", "0 25 * * *");
    person.types("schedule-timezone", "Mars/Phobos");
    person.presses("schedule-save");
    person.sees_text("schedule-cron-fault", "hour `25`");
    person.sees_text("schedule-timezone-fault", "unknown time zone `Mars/Phobos`");
    person.has_the_focus_on("schedule-cron");
    person.types("schedule-cron", "0 12 1 7 *");
    person.types("schedule-timezone", "America/New_York");
    person.types("schedule-input", "{topic");
    person.presses("schedule-save");
    person.sees_text("schedule-input-fault", "is not valid JSON");
    assert_eq!(server.get(&path).status, 404);
    person.browser.press("Escape");
    person.sees_text("confirm", "The input was not saved.");
    person.presses("confirm-cancel");
    person.types("schedule-input", r#"{"topic": "hornets", "id": 9007199254740993}"#);
    person.presses("schedule-save");
    person.sees_text("schedule", "Next runs (America/New_York)");
    person.sees_text("schedule-times", "Jul 1");
    person.sees_text("schedule-times", "12:00");
    person.sees_text("schedule-expression", "0 12 1 7 *");
    let saved = server.get(&path).json();
    assert_eq!(saved["input"], json!({"topic": "hornets", "id": 9007199254740993_i64}));
    let times = format!(
        "[...{}.querySelectorAll('time')].map((time) => time.dateTime)",
        element("schedule-times")
    );
    assert_eq!(person.browser.eval(&times), saved["upcoming"]);
    assert_eq!(saved["upcoming"].as_array().unwrap().len(), 5);

    // Edited: shown as saved, and large integers survive.
    person.presses("schedule-edit");
    person.types("schedule-cron", "0 13 1 7 *");
    let missed = element("schedule-missed");
    person.browser.eval(&format!(
        "void ({missed}.value = 'once', {missed}.dispatchEvent(new Event('change', {{ bubbles: true }})))"
    ));
    person.presses("schedule-save");
    person.sees_text("schedule-expression", "0 13 1 7 *");
    let saved = server.get(&path).json();
    assert_eq!(saved["input"], json!({"topic": "hornets", "id": 9007199254740993_i64}));
    person.presses("schedule-enable");
    person.sees_text("schedule-times", "Disabled: no runs are scheduled.");
    let saved = server.get(&path).json();
    assert_eq!((&saved["enabled"], &saved["missed"]), (&json!(false), &json!("once")));
    person.goes_to("/flows");
    person.sees_text("flow", "schedule off");
    person.goes_to(&format!("/flows/{flow}"));
    person.sees_text("schedule-times", "Disabled: no runs are scheduled.");
    person.presses("schedule-delete");
    person.presses("confirm-ok");
    person.sees_toast("done", "Schedule deleted");
    person.has_the_focus_on("schedule-add");
    assert_eq!(server.get(&path).status, 404);
    person.has_a_clean_console(&["422"]);
}

#[test]
fn markup_from_flows_and_providers_is_shown_as_text() {
    // Names may have 200 bytes; answers and errors are longer.
    let text = format!("{MARKUP}{}", "unbreakable".repeat(9));
    let answer = format!("{MARKUP}{}", "unbreakable".repeat(100));
    let upstream = Upstream::start(move |body, stream| {
        let answer = if body.contains("please fail") {
            let error = json!({"error": {"message": answer}}).to_string();
            json_answer("500 Internal Server Error", &error)
        } else {
            completion(&answer, 1, 1)
        };
        let _ = stream.write_all(answer.as_bytes());
    });
    let server = start_empty(|config| {
        add_provider(config, "openai", Kind::OpenAi, upstream.url());
    });
    let node = |id: &str, prompt: &str| {
        json!({"id": id, "type": "agent", "data": {
            "label": text, "role": text, "provider": "openai", "model": text, "prompt": prompt}})
    };
    let (good, bad) = (format!("{text} good"), format!("{text} bad"));
    let prompt = format!("{text} {{{{ input.topic }}}}");
    let flow = server.save(&json!({"name": good, "description": text,
        "data": {"nodes": [node(MARKUP, &prompt)], "edges": []}}));
    let failing = server.save(&chain(&bad, &[node("only", "please fail")]));
    let run = server.run(flow, &json!({"topic": MARKUP}))["runId"].clone();
    server.run(failing, &json!({}));
    let run = run.as_str().unwrap();
    let person = Person::opens_at(&server, "/flows");
    person.browser.resize(360, 800, true);
    let views = ["/", "/flows", "/runs", "/calls", "/calls?call=1", "/budgets", "/connect"];
    let mut views: Vec<String> = views.map(str::to_owned).to_vec();
    views.push(format!("/flows/{flow}"));
    views.push(format!("/flows/{failing}?node=only"));
    views.push(format!("/flows/{flow}?edit=1"));
    views.push(format!("/runs/{run}"));
    for path in views {
        person.goes_to(&path);
        if !path.starts_with("/budgets") {
            person.browser.wait_for(&format!(
                "document.body.innerText.includes({0}) || document.querySelector('textarea')?.value.includes('<img src=x')",
                json!(MARKUP)
            ));
        }
        person.cannot_scroll_sideways(360);
        let parsed = "[document.images.length, document.scripts.length, typeof window.hacked]";
        assert_eq!(person.browser.eval(parsed), json!([0, 1, "undefined"]), "{path}");
    }
    person.has_a_clean_console(&[]);

    // If markup did get in, the Content-Security-Policy would still block it.
    person
        .browser
        .eval(&format!("document.body.insertAdjacentHTML('beforeend', {})", json!(MARKUP)));
    eventually("the policy refuses it", || {
        person.browser.console().iter().any(|text| text.contains("Content Security Policy"))
    });
    assert_eq!(person.browser.eval("typeof window.hacked"), "undefined");
}
