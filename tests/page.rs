//! The page in a real Chromium against the real server, as a user sees it.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use crossbeam_channel::bounded;
use flowledger::providers::Kind;
use flowledger::secret::Secret;
use serde_json::{Value, json};

use crate::browser::Browser;
use crate::harness::{DEADLINE, TestServer, add_provider, agent, chain, eventually, two_nodes};
use crate::upstream::{STREAM_HEAD, Upstream, completion, delta, json_answer};

/// A user of the page.
pub struct Person {
    pub browser: Browser,
}

impl Person {
    /// Opens the server's page in a new browser.
    pub fn opens(server: &TestServer) -> Self {
        let browser = Browser::launch();
        browser.open(&format!("http://{}/", server.address()));
        browser.eval(WITNESS);
        Self { browser }
    }

    /// Checks the connection indicator: its text and its state.
    #[track_caller]
    pub fn sees_that_it_is(&self, word: &str) {
        self.browser.wait_for(&format!(
            "(line => line.dataset.state === {} && line.querySelector('.word').innerText === {})({})",
            json!(word.to_lowercase()),
            json!(word),
            element("connection"),
        ));
    }

    #[track_caller]
    fn presses_run(&self, flow: &str) {
        self.browser.click(&in_card(flow, &selector("run-button")));
    }

    #[track_caller]
    fn types(&self, input: &str, flow: &str, text: &str) {
        let field = in_card(flow, &selector(&format!("input-{input}")));
        self.browser.type_into(&field, text);
    }

    /// Waits for a toast of this kind with this text, now or earlier.
    #[track_caller]
    pub fn sees_toast(&self, kind: &str, text: &str) {
        self.browser.wait_for(&format!(
            "witness.some((what) => what.startsWith({}) && what.includes({}))",
            json!(format!("toast {kind}: ")),
            json!(text)
        ));
    }

    /// Waits for these events in this order, now or earlier: toasts as `toast KIND: TITLE` and
    /// nodes as `node ID STATE`.
    #[track_caller]
    fn sees_in_turn(&self, expected: &[&str]) {
        self.browser.wait_for(&format!(
            "(() => {{
                let at = -1;
                return {}.every((what) => (at = witness.findIndex((seen, i) => i > at && seen.startsWith(what))) >= 0);
            }})()",
            json!(expected)
        ));
    }

    #[track_caller]
    fn sees_node(&self, flow: &str, node: &str, state: &str, text: &str) {
        let node = in_card(flow, &format!("[data-node-id={}]", json!(node)));
        self.browser.wait_for(&format!(
            "(node => node.dataset.state === {} && node.querySelector('.node-text').innerText.includes({}))({node})",
            json!(state),
            json!(text),
        ));
    }

    /// Waits until the line below a flow starts with this text.
    #[track_caller]
    fn sees_run_line(&self, flow: &str, text: &str) {
        self.browser.wait_for(&format!(
            "{}.innerText.startsWith({})",
            in_card(flow, ".run-line"),
            json!(text)
        ));
    }

    /// Waits until the ledger has exactly these rows, from the top, as `NUMBER NODE STATUS`.
    #[track_caller]
    fn sees_rows(&self, expected: &[&str]) {
        self.browser.wait_for(&format!(
            "JSON.stringify({ROWS}.map((row) => [
                row.dataset.entryId,
                row.querySelector('[data-column=node]').innerText,
                row.dataset.status,
            ].join(' '))) === JSON.stringify({})",
            json!(expected)
        ));
    }

    /// Checks a cell of the newest row.
    #[track_caller]
    fn sees_cell(&self, column: &str, text: &str) {
        self.browser.wait_for(&format!(
            "{ROWS}[0].querySelector('[data-column={column}]').innerText.includes({})",
            json!(text)
        ));
    }

    /// Presses a button of a flow's card and waits for the dialog that it opens.
    #[track_caller]
    fn opens_dialog(&self, flow: &str, name: &str) {
        let button = in_card(flow, &selector(&format!("{name}-button")));
        self.browser.click(&button);
        self.browser.wait_for(&format!("{}.open", element(name)));
    }

    #[track_caller]
    pub fn presses(&self, testid: &str) {
        self.browser.click(&element(testid));
    }

    /// Closes a dialog with Escape and checks that the focus returns to the button that opened it.
    #[track_caller]
    fn escapes_to(&self, flow: &str, name: &str) {
        self.browser.press("Escape");
        let button = in_card(flow, &selector(&format!("{name}-button")));
        self.browser
            .wait_for(&format!("!{}.open && document.activeElement === {button}", element(name)));
    }

    /// Waits until the element with this test id contains this text.
    #[track_caller]
    pub fn sees_text(&self, testid: &str, text: &str) {
        self.browser.wait_for(&format!(
            "{0}.checkVisibility() && {0}.innerText.includes({1})",
            element(testid),
            json!(text)
        ));
    }

    /// Returns the text of an element.
    #[track_caller]
    pub fn reads(&self, testid: &str) -> String {
        let text = self.browser.wait_for(&format!("{}.innerText", element(testid)));
        text.as_str().unwrap().to_owned()
    }

    /// Checks the error of a form field, also in its accessible description.
    #[track_caller]
    fn sees_fault(&self, form: &str, field: &str, text: &str) {
        self.sees_text(&format!("{form}-{field}-fault"), text);
        self.browser.wait_for(&format!(
            "(field => field.ariaInvalid === 'true'
                && field.getAttribute('aria-describedby').includes({}.id))({})",
            element(&format!("{form}-{field}-fault")),
            element(&format!("{form}-{field}")),
        ));
    }

    /// Expands the newest row of the ledger and checks these texts in it.
    #[track_caller]
    fn finds_in_newest_row(&self, texts: &[&str]) {
        self.browser.click(&format!("{ROWS}[0].querySelector('.toggle')"));
        self.browser.wait_for(&format!(
            "{}.every((text) => {ROWS}[0].parentElement.innerText.includes(text))",
            json!(texts)
        ));
    }

    /// Types text into a field of the budget form.
    #[track_caller]
    fn fills_in(&self, field: &str, text: &str) {
        let field = element(&format!("budget-{field}"));
        self.browser.type_into(&field, text);
    }

    /// Checks the usage bar of a budget, also its accessible value.
    #[track_caller]
    fn sees_budget(&self, name: &str, percent: u32, text: &str) {
        self.browser.wait_for(&format!(
            "(budget => {{
                const meter = budget.querySelector('[role=meter]');
                return budget.innerText.includes({0})
                    && meter.getAttribute('aria-valuenow') === {1}
                    && meter.getAttribute('aria-valuetext').includes({0})
                    && Math.round(100 * meter.firstChild.clientWidth / meter.clientWidth) === {percent};
            }})(document.querySelector(`[data-testid=budget][data-name=${{CSS.escape({2})}}]`))",
            json!(text),
            json!(percent.to_string()),
            json!(name),
        ));
    }

    #[track_caller]
    fn sees_total(&self, name: &str, text: &str) {
        self.browser.wait_for(&format!(
            "{}.innerText === {}",
            element(&format!("total-{name}")),
            json!(text)
        ));
    }

    /// Checks that the page was not reloaded since it was opened.
    #[track_caller]
    pub fn has_not_reloaded(&self) {
        assert_eq!(self.browser.eval("typeof window.witness"), "object");
    }

    /// Checks the console: no exceptions, Content-Security-Policy violations or failed loads,
    /// except those that a test expects.
    #[track_caller]
    pub fn has_a_clean_console(&self, but_for: &[&str]) {
        let mut complaints = self.browser.console();
        complaints.retain(|text| !but_for.iter().any(|known| text.contains(known)));
        assert_eq!(complaints, Vec::<String>::new());
    }

    /// Checks that the page fits into a window of this width.
    #[track_caller]
    pub fn cannot_scroll_sideways(&self, width: u32) {
        let found = self.browser.eval(
            "[document.scrollingElement.scrollWidth, [...document.querySelectorAll('body *')].filter(
                (element) => element.getBoundingClientRect().right > document.documentElement.clientWidth
            ).map(({ tagName, className }) => `${tagName}.${className}`)]",
        );
        assert_eq!(found[0], width, "perhaps for one of these: {}", found[1]);
    }
}

/// Records toasts and node states as they appear, because a polling test would miss short ones.
const WITNESS: &str = "void (() => {
    window.witness = [];
    const write = (records) => {
        for (const { type, target, addedNodes } of records) {
            if (type === 'attributes' && target.dataset.testid === 'node') {
                witness.push(`node ${target.dataset.nodeId} ${target.dataset.state}`);
            }
            for (const added of addedNodes) {
                if (added.dataset?.testid === 'toast') {
                    const texts = [...added.querySelectorAll('strong, p')].map((e) => e.textContent);
                    witness.push(`toast ${added.dataset.kind}: ${texts.join(': ')}`);
                }
            }
        }
    };
    const what = { subtree: true, childList: true, attributes: true, attributeFilter: ['data-state'] };
    new MutationObserver(write).observe(document, what);
})()";

const ROWS: &str = "[...document.querySelectorAll('[data-testid=ledger-row]')]";

pub fn selector(testid: &str) -> String {
    format!("[data-testid={}]", json!(testid))
}

pub fn element(testid: &str) -> String {
    format!("document.querySelector({})", json!(selector(testid)))
}

/// An expression for `selector` in the card of the flow with this name.
pub fn in_card(flow: &str, selector: &str) -> String {
    format!(
        "[...document.querySelectorAll('[data-testid=flow]')]
            .find((card) => card.querySelector('h3').textContent === {}).querySelector({})",
        json!(flow),
        json!(selector)
    )
}

/// The end of a streamed answer.
fn end_of_stream(input_tokens: u64, output_tokens: u64) -> String {
    let finish = json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]});
    let usage = json!({"prompt_tokens": input_tokens, "completion_tokens": output_tokens});
    let usage = json!({"choices": [], "usage": usage});
    format!("data: {finish}\n\ndata: {usage}\n\ndata: [DONE]\n\n")
}

#[test]
fn a_failed_run_is_resumed_and_keeps_finished_nodes() {
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
    server.save(&chain("Fixed", &nodes));
    let person = Person::opens(&server);
    person.sees_that_it_is("Connected");
    person.presses_run("Fixed");
    person.sees_node("Fixed", "second", "failed", "no credit");
    is_fixed.store(true, Ordering::SeqCst);
    let button = in_card("Fixed", &selector("resume-button"));
    person.browser.click(&button);
    person.sees_node("Fixed", "second", "completed", "well");
    person.sees_node("Fixed", "first", "completed", "well");
    person.sees_run_line("Fixed", "Completed");
    person.browser.wait_for(&format!("{button}.hidden"));
    assert_eq!(upstream.count(), 3);
}

#[test]
fn declared_inputs_have_a_form_and_skipped_nodes_are_shown() {
    let server = TestServer::start();
    let nodes = json!([
        {"id": "in", "type": "input", "data": {"inputs": [
            {"name": "topic"}, {"name": "words", "type": "number", "default": 100}]}},
        {"id": "is_long", "type": "condition", "data": {"expression": "input.words > 50"}},
        {"id": "much", "type": "template", "data": {"template": "Much about {{ input.topic }}"}},
        {"id": "little", "type": "template", "data": {"template": "Little about {{ input.topic }}"}},
    ]);
    let edges = json!([
        {"source": "in", "target": "is_long"},
        {"source": "is_long", "sourceHandle": "true", "target": "much"},
        {"source": "is_long", "sourceHandle": "false", "target": "little"},
    ]);
    server.save(&json!({"name": "Branches", "data": {"nodes": nodes, "edges": edges}}));
    let person = Person::opens(&server);
    person.sees_that_it_is("Connected");
    person.types("topic", "Branches", "ants");
    person.presses_run("Branches");
    person.sees_node("Branches", "much", "completed", "Much about ants");
    person.sees_node("Branches", "little", "skipped", "Little about");
    person.sees_run_line("Branches", "Completed");
    person.types("words", "Branches", "7");
    person.presses_run("Branches");
    person.sees_node("Branches", "little", "completed", "Little about ants");
    person.sees_node("Branches", "much", "skipped", "Much about");
}

#[test]
fn a_run_is_shown_live_and_its_calls_are_in_the_ledger() {
    let (resume_upstream, wait) = bounded::<()>(0);
    let upstream = Upstream::start(move |body, stream| {
        if body.contains("please fail") {
            let error = r#"{"error":{"message":"out of order, try <b>later</b>"}}"#;
            let answer = json_answer("500 Internal Server Error", error);
            let _ = stream.write_all(answer.as_bytes());
            return;
        }
        let _ = stream.write_all(format!("{STREAM_HEAD}{}", delta("Bees are ")).as_bytes());
        let _ = wait.recv_timeout(DEADLINE);
        let end = end_of_stream(1_000_000, 100_000);
        let _ = stream.write_all(format!("{}{end}", delta("insects.")).as_bytes());
    });
    let server = TestServer::start_with(|config| {
        add_provider(config, "openai", Kind::OpenAi, upstream.url());
    });
    server.save(&chain(
        "Article",
        &[
            agent("draft", "openai", "gpt-4o-mini", "On {{ input.topic }}"),
            agent("edit", "echo", "echo-1", "Edit {{ nodes.draft.output }}"),
        ],
    ));
    server.save(&chain("Broken", &[agent("only", "openai", "gpt-4o-mini", "please fail")]));
    let person = Person::opens(&server);
    person.sees_that_it_is("Connected");
    person.sees_node("Article", "draft", "waiting", "On {{ input.topic }}");
    person.sees_run_line("Article", "No runs yet");
    person.sees_total("calls", "0");

    // The page shows partial output and the row while the provider still writes.
    person.types("topic", "Article", "bees");
    person.presses_run("Article");
    person.sees_toast("started", "Article started");
    person.sees_node("Article", "draft", "running", "Bees are");
    person.sees_run_line("Article", "Running · 0 of 2 nodes completed");
    person.sees_rows(&["1 DRAFT PENDING"]);
    let request = upstream.requests().recv_timeout(DEADLINE).unwrap();
    assert!(request.contains("On bees"), "{request}");

    resume_upstream.send_timeout((), DEADLINE).unwrap();
    person.sees_toast("completed", "Article completed");
    person
        .sees_in_turn(&["toast started: Article started", "toast completed: Article completed: "]);
    person.sees_in_turn(&["node draft running", "node draft completed", "node edit completed"]);
    person.sees_node("Article", "draft", "completed", "Bees are insects.");
    person.sees_node("Article", "edit", "completed", "Edit Bees are insects.");
    person.sees_run_line("Article", "Completed after ");
    person.sees_rows(&["2 EDIT SUCCESS", "1 DRAFT SUCCESS"]);
    person.sees_total("calls", "2");
    person.sees_total("input-tokens", "1,000,004");
    person.sees_total("output-tokens", "100,007");
    // gpt-4o-mini: 0.15 and 0.60 USD per million tokens.
    person.sees_total("cost", "$0.21");

    // A failed run shows its error in the toast, at the node, below the flow and in its row.
    person.presses_run("Broken");
    person.sees_toast("failed", "Broken failed: ");
    person.sees_toast("failed", "out of order, try <b>later</b>");
    person.sees_node("Broken", "only", "failed", "out of order, try <b>later</b>");
    person.sees_run_line("Broken", "Failed after ");
    person.sees_rows(&["3 ONLY FAILED", "2 EDIT SUCCESS", "1 DRAFT SUCCESS"]);
    person.sees_cell("status", "out of order, try <b>later</b>");
    person.sees_total("calls", "3");
    person.sees_total("cost", "$0.21");

    person.has_not_reloaded();
    person.has_a_clean_console(&[]);
}

#[test]
fn the_page_reconnects_and_catches_up_after_a_restart() {
    let mut server = TestServer::start();
    let flow = server.save(&two_nodes());
    server.run(flow, &json!({"topic": "ants"}));
    let person = Person::opens(&server);
    person.sees_that_it_is("Connected");
    let rows = ["2 DRAFT SUCCESS", "1 PLAN SUCCESS"];
    person.sees_rows(&rows);

    server.stop();
    person.sees_that_it_is("Disconnected");
    person.presses_run("Two nodes");
    person.sees_toast("error", "Cannot start Two nodes: cannot reach the server");

    server.start_again();
    server.run(flow, &json!({"topic": "bees"}));
    person.sees_that_it_is("Connected");
    person.sees_toast("completed", "Two nodes completed");
    let rows = [&["4 DRAFT SUCCESS", "3 PLAN SUCCESS"], &rows[..]].concat();
    person.sees_rows(&rows);
    person.sees_total("calls", "4");
    person.sees_node("Two nodes", "draft", "completed", "bees");

    // If a network blocks WebSockets but not HTTP, the page polls.
    person.browser.eval(
        "void (window.Blocked = window.WebSocket, \
         window.WebSocket = class extends Blocked { constructor() { super('ws://127.0.0.1:1/'); } })",
    );
    server.start_again();
    person.sees_that_it_is("Disconnected");
    server.run(flow, &json!({"topic": "wasps"}));
    person.sees_node("Two nodes", "draft", "completed", "wasps");
    let rows = [&["6 DRAFT SUCCESS", "5 PLAN SUCCESS"], &rows[..]].concat();
    person.sees_rows(&rows);
    person.sees_total("calls", "6");
    person
        .browser
        .wait_for(&format!("{}.innerText.includes('polling every 5 s')", element("connection")));
    person.sees_that_it_is("Disconnected");

    // Events that polling already showed do not appear twice after the reconnect.
    person.browser.eval("void (window.WebSocket = Blocked)");
    person.browser.click(&format!("{}.querySelector('button')", element("connection")));
    person.sees_that_it_is("Connected");
    server.run(flow, &json!({"topic": "moths"}));
    let rows = [&["8 DRAFT SUCCESS", "7 PLAN SUCCESS"], &rows[..]].concat();
    person.sees_rows(&rows);
    person.sees_total("calls", "8");
    let completed_toasts = "witness.filter((what) => what.startsWith('toast completed')).length";
    person.browser.wait_for(&format!("{completed_toasts} >= 3"));
    let runs_since_open = 3;
    assert_eq!(person.browser.eval(completed_toasts), runs_since_open);
    person.has_not_reloaded();
    person.has_a_clean_console(&["net::ERR_"]);
}

#[test]
fn the_page_asks_for_the_token_until_it_is_valid_and_stores_it() {
    let server = TestServer::start_with(|config| config.token = Some(Secret::new("right-one")));
    let person = Person::opens(&server);
    let browser = &person.browser;
    let asks = "document.querySelector('dialog').open";
    let says_invalid = |refused: bool| {
        browser.wait_for(&format!(
            "{asks} && document.getElementById('token-error').hidden !== {refused}"
        ));
    };
    says_invalid(false);
    browser.type_into(&element("token-input"), "wrong-one");
    browser.click(&element("token-submit"));
    says_invalid(true);
    browser.type_into(&element("token-input"), "right-one");
    browser.click(&element("token-submit"));
    person.sees_that_it_is("Connected");
    person.presses_run("Plan, then write");
    person.sees_toast("completed", "Plan, then write completed");
    person.sees_rows(&["2 Draft SUCCESS", "1 Plan SUCCESS"]);
    assert_eq!(browser.eval(asks), false);

    browser.reload();
    person.sees_that_it_is("Connected");
    person.sees_rows(&["2 Draft SUCCESS", "1 Plan SUCCESS"]);
    assert_eq!(browser.eval(asks), false);
    person.has_a_clean_console(&["401", "'ws://"]);
}

#[test]
fn a_webhook_is_created_and_its_secret_is_shown_once() {
    let server = TestServer::start();
    let flow = server.save(&two_nodes());
    let person = Person::opens(&server);
    let browser = &person.browser;
    person.sees_that_it_is("Connected");
    person.types("topic", "Two nodes", "it's an example");
    person.opens_dialog("Two nodes", "triggers");
    person.presses("webhook-create");
    person.sees_text("webhook-created", "shown only once");
    let url = person.reads("webhook-url");
    let path = url.strip_prefix(&format!("http://{}", server.address())).unwrap();
    let secret = person.reads("webhook-secret");
    let deliver = |secret: &str| {
        let fields = [("x-flowledger-secret", secret)];
        let answer = server.request("POST", path, &fields, br#"{"topic": "bees"}"#);
        answer.status
    };
    assert_eq!(deliver(&secret), 202);
    person.sees_toast("completed", "Two nodes completed");
    person.sees_node("Two nodes", "draft", "completed", "bees");
    // The example is valid shell and uses the values typed into the card.
    let example = person.reads("webhook-curl");
    let expected = [
        format!("curl '{url}'"),
        format!("-H 'X-Flowledger-Secret: {secret}'"),
        "-H 'Idempotency-Key: order-17'".to_owned(),
        r#"-d '{"topic":"it'\''s an example"}'"#.to_owned(),
    ];
    assert_eq!(example, expected.join(" \\\n  "));
    let copy = "document.activeElement.matches('.copy') && document.activeElement";
    browser.click(copy);
    browser.wait_for(&format!("({copy}).innerText === 'Copied'"));

    // The secret disappears with the dialog and is stored nowhere.
    person.escapes_to("Two nodes", "triggers");
    let is_kept = format!(
        "[document.documentElement.outerHTML, JSON.stringify(localStorage), JSON.stringify(sessionStorage)]
            .some((text) => text.includes({}))",
        json!(secret)
    );
    assert_eq!(browser.eval(&is_kept), false);
    browser.press("Enter");
    person.sees_text("webhook-url", &url);
    assert_eq!(browser.eval(&is_kept), false);

    // A new secret and the removal of the webhook need a confirmation.
    person.presses("webhook-replace");
    person.presses("confirm-cancel");
    assert_eq!(deliver(&secret), 202);
    person.presses("webhook-replace");
    person.presses("confirm-ok");
    person.sees_text("webhook-created", "shown only once");
    let renewed = person.reads("webhook-secret");
    assert_eq!((deliver(&secret), deliver(&renewed)), (401, 202));
    person.presses("webhook-delete");
    person.sees_text("confirm", "can no longer run “Two nodes”");
    browser.press("Escape");
    browser.wait_for(&format!(
        "!{} && document.activeElement === {}",
        element("confirm"),
        element("webhook-delete")
    ));
    person.presses("webhook-delete");
    person.presses("confirm-ok");
    person.sees_text("webhook", "Webhook deleted.");
    browser.wait_for(&format!("document.activeElement === {}", element("webhook-create")));
    assert_eq!(deliver(&renewed), 401);
    let answer = server.get(&format!("/api/flows/{flow}/hook"));
    assert_eq!(answer.status, 404);
    // The page requests the missing webhook, so the console has this error.
    person.has_a_clean_console(&["404"]);
}

#[test]
fn large_integers_survive_an_edit_in_the_page() {
    let server = TestServer::start();
    let flow = server.save(&two_nodes());
    let path = format!("/api/flows/{flow}/schedule");
    let person = Person::opens(&server);
    let browser = &person.browser;
    person.sees_that_it_is("Connected");
    person.opens_dialog("Two nodes", "triggers");
    let types = |field: &str, text: &str| {
        browser.type_into(&element(&format!("schedule-{field}")), text);
    };
    types("cron", "0 12 1 7 *");
    types("input", r#"{"id": 9007199254740993, "of": [-9007199254740995, "9007199254740993"]}"#);
    person.presses("schedule-save");
    person.sees_text("schedule-times", "Next runs");
    // Shown again, and saved again with another change.
    person.escapes_to("Two nodes", "triggers");
    person.opens_dialog("Two nodes", "triggers");
    browser.wait_for(&format!("{}.value.includes('9007199254740993')", element("schedule-input")));
    types("cron", "0 13 1 7 *");
    person.presses("schedule-save");
    eventually("the schedule is saved", || server.get(&path).text().contains("0 13 1 7 *"));
    let input = server.get(&path).json()["input"].clone();
    let expected =
        json!({"id": 9007199254740993_i64, "of": [-9007199254740995_i64, "9007199254740993"]});
    assert_eq!(input, expected);
}

#[test]
fn schedule_errors_appear_at_their_fields() {
    let mut server = TestServer::start();
    let flow = server.save(&two_nodes());
    let path = format!("/api/flows/{flow}/schedule");
    let person = Person::opens(&server);
    let browser = &person.browser;
    person.sees_that_it_is("Connected");
    person.opens_dialog("Two nodes", "triggers");
    person.sees_text("schedule-times", "No schedule");
    let types = |field: &str, text: &str| {
        browser.type_into(&element(&format!("schedule-{field}")), text);
    };
    let value_of = |field: &str| browser.eval(&format!("{}.value", element(field)));

    types("cron", "0 25 * * *");
    types("timezone", "Mars/Phobos");
    types("input", r#"{"topic": "wasps"}"#);
    person.presses("schedule-save");
    person.sees_fault("schedule", "cron", "hour `25`");
    person.sees_fault("schedule", "timezone", "unknown time zone `Mars/Phobos`");
    browser.wait_for(&format!("document.activeElement === {}", element("schedule-cron")));
    assert_eq!(value_of("schedule-cron"), "0 25 * * *");
    assert_eq!(value_of("schedule-input"), r#"{"topic": "wasps"}"#);
    types("cron", "0 12 1 7 *");
    types("timezone", "America/New_York");
    types("input", "{topic");
    person.presses("schedule-save");
    person.sees_fault("schedule", "input", "is not valid JSON");
    assert_eq!(server.get(&path).status, 404);

    // Typed text survives the dialog and a server restart.
    types("input", r#"{"topic": "hornets"}"#);
    person.escapes_to("Two nodes", "triggers");
    person.opens_dialog("Two nodes", "triggers");
    person.sees_text("schedule", "You have unsaved changes.");
    server.stop();
    person.presses("schedule-save");
    person.sees_text("schedule", "cannot reach the server");
    assert_eq!(value_of("schedule-input"), r#"{"topic": "hornets"}"#);
    server.start_again();
    person.presses("schedule-save");
    person.sees_text("schedule-times", "Next runs (America/New_York)");
    person.sees_text("schedule-times", "Jul 1");
    person.sees_text("schedule-times", "12:00");
    let times = format!(
        "[...{}.querySelectorAll('time')].map((time) => time.dateTime)",
        element("schedule-times")
    );
    let saved = server.get(&path).json();
    assert_eq!(saved["input"], json!({"topic": "hornets"}));
    assert_eq!(saved["upcoming"].as_array().unwrap().len(), 5);
    assert_eq!(browser.eval(&times), saved["upcoming"]);
    let faults =
        "[...document.querySelectorAll('.fault')].some((fault) => fault.checkVisibility())";
    assert_eq!(browser.eval(faults), false);

    person.presses("schedule-enabled");
    browser.eval(&format!("void ({}.value = 'once')", element("schedule-missed")));
    person.presses("schedule-save");
    person.sees_text("schedule-times", "Disabled: no runs are scheduled.");
    let saved = server.get(&path).json();
    assert_eq!(
        (&saved["enabled"], &saved["missed"], &saved["upcoming"]),
        (&json!(false), &json!("once"), &json!([]))
    );
    person.escapes_to("Two nodes", "triggers");
    person.opens_dialog("Two nodes", "triggers");
    person.sees_text("schedule-times", "Disabled: no runs are scheduled.");
    assert_eq!(value_of("schedule-cron"), "0 12 1 7 *");
    person.presses("schedule-delete");
    person.presses("confirm-ok");
    person.sees_text("schedule-times", "No schedule");
    assert_eq!(server.get(&path).status, 404);
    person.has_a_clean_console(&["404", "422", "net::ERR_"]);
}

#[test]
fn a_failed_run_shows_attempts_and_prompts_per_node() {
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
    let person = Person::opens(&server);
    let browser = &person.browser;
    person.sees_that_it_is("Connected");
    browser.resize(360, 800, true);
    person.opens_dialog("Judged", "history");
    person.sees_text("history", "No runs yet.");
    // New runs appear without a reload, whichever client starts them.
    let topic = format!("{MARKUP} {}", "unbreakable".repeat(100));
    server.run(flow, &json!({"topic": topic}));
    person.sees_text("history-status", "failed");
    person.sees_text("history-error", "out of order");
    let node = |id: &str| {
        format!("document.querySelector('[data-testid=history-node][data-node-id={id}]')")
    };
    let says = |id: &str, text: &str| {
        browser.wait_for(&format!("{}.innerText.includes({})", node(id), json!(text)));
    };
    // The failed node is expanded.
    says("second", "failed · 2 attempts");
    says("second", "Attempt 1");
    says("second", "Attempt 2");
    says("second", "openai / gpt-4o-mini");
    says("second", &format!("out of order: {MARKUP}"));
    says("second", &format!("Be brief, {MARKUP}"));
    let statuses = format!(
        "[...{}.querySelectorAll('[data-testid=history-attempt]')].map(({{ dataset }}) => dataset.status)",
        node("second")
    );
    assert_eq!(browser.eval(&statuses), json!(["FAILED", "FAILED"]));
    // Long texts are collapsed at first.
    let prompt = format!("{}.querySelector('[data-testid=history-prompt]')", node("second"));
    assert_eq!(browser.eval(&format!("{prompt}.open")), false);
    browser.click(&format!("{prompt}.querySelector('summary')"));
    says("second", &format!("Judge [echo of echo-1] On {MARKUP}"));
    browser.click(&format!("{}.querySelector('summary')", node("first")));
    says("first", "9 → 12 tokens");
    person.cannot_scroll_sideways(360);
    let inside = format!("{}.scrollWidth", element("history"));
    let width = format!("{}.clientWidth", element("history"));
    assert_eq!(browser.eval(&inside), browser.eval(&width));
    assert_eq!(browser.eval("document.scripts.length"), 1);
    assert_eq!(browser.eval("document.images.length"), 1);

    // An expanded item stays expanded when more runs arrive.
    server.run(flow, &json!({"topic": "ants"}));
    browser.wait_for(&format!("{}.options.length === 2", element("history-run")));
    assert_eq!(browser.eval(&format!("{prompt}.open")), true);
    person.escapes_to("Judged", "history");
    // A call in the ledger links to its run.
    browser.resize(1280, 800, false);
    browser.click(&format!("{ROWS}[0].querySelector('.toggle')"));
    person.presses("ledger-run");
    person.sees_text("history-input", "ants");
    person.has_a_clean_console(&[]);
}

#[test]
fn a_run_is_deleted_after_confirmation_and_keeps_its_rows() {
    let server = TestServer::start();
    let flow = server.save(&two_nodes());
    for topic in ["ants", "bees"] {
        server.run(flow, &json!({"topic": topic}));
    }
    let person = Person::opens(&server);
    let browser = &person.browser;
    person.sees_that_it_is("Connected");
    person.sees_node("Two nodes", "draft", "completed", "bees");
    person.opens_dialog("Two nodes", "history");
    person.sees_text("history-input", "bees");
    let rows = ["4 DRAFT SUCCESS", "3 PLAN SUCCESS", "2 DRAFT SUCCESS", "1 PLAN SUCCESS"];
    let count = || server.get("/api/runs").json()["items"].as_array().unwrap().len();

    person.presses("history-delete");
    person.sees_text("confirm", "Its 2 ledger rows stay.");
    person.presses("confirm-cancel");
    assert_eq!(count(), 2);
    person.presses("history-delete");
    person.presses("confirm-ok");
    person.sees_text("history", "Run deleted. Its ledger rows stay.");
    person.sees_text("history-input", "ants");
    assert_eq!(count(), 1);
    person.sees_node("Two nodes", "draft", "completed", "ants");
    person.sees_rows(&rows);

    person.presses("history-delete");
    person.presses("confirm-ok");
    person.sees_text("history", "No runs left.");
    assert_eq!(count(), 0);
    person.escapes_to("Two nodes", "history");
    person.sees_run_line("Two nodes", "No runs yet");
    person.sees_rows(&rows);
    browser.reload();
    person.sees_rows(&rows);
    person.has_a_clean_console(&[]);
}

/// A node at the provider `openai`, answered in one piece.
fn agent_node(id: &str, prompt: &str, more: &Value) -> Value {
    let mut node = agent(id, "openai", "gpt-4o-mini", prompt);
    node["data"]["stream"] = json!(false);
    for (key, value) in more.as_object().unwrap() {
        node["data"][key] = value.clone();
    }
    node
}

#[test]
fn map_items_are_counted_live_and_can_be_opened() {
    let (leave, left) = bounded::<()>(100);
    let upstream = Upstream::start(move |body, stream| {
        let _ = left.recv_timeout(DEADLINE);
        let answer = if body.contains("word 30.") {
            let error = json!({"error": {"message": format!("no word: {MARKUP}")}}).to_string();
            json_answer("400 Bad Request", &error)
        } else {
            completion("well", 100, 1_000)
        };
        drop(stream.write_all(answer.as_bytes()));
    });
    let server = TestServer::start_with(|config| {
        add_provider(config, "openai", Kind::OpenAi, upstream.url());
    });
    let more = json!({"items": "{{ input.list }}"});
    let mut map = agent_node("each", "A word {{ item }}.", &more);
    map["type"] = json!("map");
    let flow = server.save(&chain("Words", &[map]));
    let person = Person::opens(&server);
    let browser = &person.browser;
    person.sees_that_it_is("Connected");
    let list: Vec<u32> = (0..60).collect();
    server.execute(flow, &json!({"list": list}));
    for _ in 0..3 {
        leave.send(()).unwrap();
    }
    let counts = in_card("Words", ".node-meta");
    let counted = format!("{counts}.innerText === 'Items: 3 completed · 1 running'");
    browser.wait_for(&counted);
    // Also after a reload.
    browser.reload();
    browser.wait_for(&counted);
    person.opens_dialog("Words", "history");
    browser.click("document.querySelector('[data-testid=history-node] summary')");
    person.sees_text("items-all", "4 started");
    person.sees_text("items-running", "1 running");
    // New items do not disturb a reader of another one.
    let item = |number: u32| {
        format!("document.querySelector('[data-testid=history-item][data-item=\"{number}\"]')")
    };
    browser.click(&format!("{}.querySelector('summary')", item(1)));
    browser.wait_for(&format!("{}.innerText.includes('A word 1.')", item(1)));
    browser.eval(&format!("void ({}.isRead = true)", item(1)));
    for _ in 0..57 {
        leave.send(()).unwrap();
    }
    person.sees_text("history-status", "failed");
    person.sees_text("items-all", "31 started");
    person.sees_text("items-completed", "30 completed");
    person.sees_text("items-failed", "1 failed");
    let is_read = format!(
        "{0}.isRead && {0}.querySelector('details').open && document.activeElement === {0}.querySelector('summary')",
        item(1)
    );
    browser.wait_for(&is_read);
    let says = |number: u32, text: &str| {
        browser.wait_for(&format!("{}.innerText.includes({})", item(number), json!(text)));
    };
    for text in ["100 → 1,000", "$0.000615", "Attempt 1", "well"] {
        says(1, text);
    }
    // The list is paginated, because a map may have a thousand items.
    let count = "document.querySelectorAll('[data-testid=history-item]').length";
    assert_eq!(browser.eval(count), 25);
    person.presses("items-more");
    browser.wait_for(&format!("{count} === 31 && {}.contains(document.activeElement)", item(25)));
    browser.resize(360, 800, true);
    person.presses("items-failed");
    browser.wait_for(&format!("{count} === 1"));
    browser.click(&format!("{}.querySelector('summary')", item(30)));
    says(30, &format!("no word: {MARKUP}"));
    says(30, "A word 30.");
    let body = "document.querySelector('[data-testid=history] .sheet-body')";
    let is_within = format!("{body}.scrollWidth === {body}.clientWidth");
    assert_eq!(browser.eval(&is_within), true);
    person.cannot_scroll_sideways(360);
    person.has_a_clean_console(&[]);
}

#[test]
fn the_held_part_of_a_budget_is_hatched() {
    let (release, released) = crossbeam_channel::unbounded::<()>();
    let upstream = Upstream::start(move |_, stream| {
        let _ = released.recv_timeout(DEADLINE);
        let _ = stream.write_all(completion("done", 100, 1_000).as_bytes());
    });
    let server = TestServer::start_with(|config| {
        add_provider(config, "openai", Kind::OpenAi, upstream.url());
    });
    let budget = json!({"budgets": [{"name": "daily", "per": "day", "limitTokens": 10_000, "bound": "strict", "onShort": "refuse", "minOutputTokens": 2_000}]});
    let put = server.request("PUT", "/api/budget", &[], budget.to_string().as_bytes());
    assert_eq!(put.status, 200, "{}", put.text());
    let flow =
        server.save(&chain("Dear", &[agent_node("only", "x", &json!({"maxTokens": 1_000}))]));
    release.send(()).unwrap();
    server.run(flow, &json!({}));
    server.execute(flow, &json!({}));
    let person = Person::opens(&server);
    person.presses("budgets-button");
    // 1,100 tokens of the first call, 1,033 reserved for the second.
    person.sees_budget("daily", 21, "2,133 of 10,000 tokens used");
    person.sees_text("budgets", "1,100 tokens spent, 1,033 tokens held");
    let share = "Math.round(100 * document.querySelector('.meter-held').clientWidth
        / document.querySelector('.meter-fill').clientWidth)";
    person.browser.wait_for(&format!("Math.abs({share} - 48) <= 2"));
    release.send(()).unwrap();
    person.sees_budget("daily", 22, "2,200 of 10,000 tokens used");
    person.browser.wait_for("document.querySelector('.meter-held').clientWidth === 0");
    // The form keeps the options of a hard budget.
    person.presses("budget-edit");
    person.fills_in("limit", "20000");
    person.presses("budget-save");
    person.sees_budget("daily", 11, "2,200 of 20,000 tokens used");
    let saved = &server.get("/api/budget").json()["budgets"][0];
    assert_eq!(
        (&saved["bound"], &saved["onShort"], &saved["minOutputTokens"]),
        (&json!("strict"), &json!("refuse"), &json!(2_000))
    );
    person.has_a_clean_console(&[]);
}

#[test]
fn a_budget_set_in_the_page_warns_and_refuses_a_call() {
    let upstream = Upstream::saying(completion("done", 100, 1_000));
    let server = TestServer::start_with(|config| {
        add_provider(config, "openai", Kind::OpenAi, upstream.url());
    });
    let flow =
        server.save(&chain("Dear", &[agent_node("only", "x", &json!({"maxTokens": 1_000}))]));
    let person = Person::opens(&server);
    let browser = &person.browser;
    person.sees_that_it_is("Connected");
    browser.resize(360, 800, true);
    person.presses("budgets-button");
    person.sees_text("budgets", "No budgets yet.");
    person.presses("budget-add");
    person.fills_in("name", MARKUP);
    person.fills_in("limit", "12,50");
    person.fills_in("timezone", "Mars/Base");
    person.presses("budget-save");
    person.sees_fault("budget", "limit", "is not an amount of US dollars");
    person.sees_fault("budget", "timezone", "use an IANA name");
    browser.wait_for(&format!("document.activeElement === {}", element("budget-limit")));
    // Typed text is still there when the dialog opens again.
    browser.press("Escape");
    browser.wait_for(&format!("document.activeElement === {}", element("budgets-button")));
    browser.press("Enter");
    person.sees_text("budgets", "You have unsaved changes.");
    assert_eq!(browser.eval(&format!("{}.value", element("budget-name"))), MARKUP);
    person.fills_in("limit", "0.001300000");
    person.fills_in("timezone", "Europe/Berlin");
    person.presses("budget-save");
    person.sees_budget(MARKUP, 0, "$0 of $0.0013 used");
    person.sees_text("budgets", "in Europe/Berlin");
    browser.wait_for("document.activeElement.dataset.testid === 'budget-edit'");
    let body = "document.querySelector('[data-testid=budgets] .sheet-body')";
    let is_within = format!("{body}.scrollWidth === {body}.clientWidth");
    assert_eq!(browser.eval(&is_within), true);
    person.cannot_scroll_sideways(360);

    // Budgets that other clients add meanwhile stay, with their exact amounts.
    let mut budgets = server.get("/api/budget").json();
    let other = json!({"name": "other", "per": "run", "limitUsd": "9007199254.740993", "flowId": flow, "hard": false});
    budgets["budgets"].as_array_mut().unwrap().push(other);
    let put = server.request("PUT", "/api/budget", &[], budgets.to_string().as_bytes());
    assert_eq!(put.status, 200, "{}", put.text());
    // The form works with the keyboard alone.
    browser.press("Enter");
    person.fills_in("name", "daily");
    browser.press("Enter");
    person.sees_budget("daily", 0, "$0 of $0.0013 used");
    let budgets = server.get("/api/budget").json();
    assert_eq!(budgets["budgets"][0]["name"], "daily");
    assert_eq!(budgets["budgets"][1]["limitUsd"], "9007199254.740993");
    person.sees_text("budgets", "$9,007,199,254.740993 for each run");
    person.sees_text("budgets", "flow Dear");

    // A change between the page's read and its write is not lost either.
    browser.eval(
        "void (() => {
            const send = window.fetch;
            window.fetch = async (path, options) => {
                if (options?.method !== 'PUT') return send(path, options);
                window.fetch = send;
                const { budgets } = await (await send('/api/budget')).json();
                budgets.push({ name: 'faster', per: 'run', limitTokens: 1000000 });
                await send('/api/budget', { method: 'PUT', body: JSON.stringify({ budgets }) });
                return send(path, options);
            };
        })()",
    );
    browser.press("Enter");
    person.fills_in("limit", "0.0013");
    browser.press("Enter");
    person.sees_text("budgets", "“daily” was saved.");
    person.sees_text("budgets", "1,000,000 tokens for each run");
    let saved = server.get("/api/budget").json();
    let names: Vec<&Value> =
        saved["budgets"].as_array().unwrap().iter().map(|budget| &budget["name"]).collect();
    assert_eq!(names, ["daily", "other", "faster"]);

    // Two calls fit, and the bar moves without a reload. A third would not fit.
    for _ in 0..2 {
        server.run(flow, &json!({}));
    }
    person.sees_budget("daily", 94, "$0.00123 of $0.0013 used");
    person.sees_toast("warning", "Budget “daily”: 80 % used");
    server.run(flow, &json!({}));
    browser.press("Escape");
    person.sees_cell("status", "failed: refused");
    person.sees_cell("status", "budget `daily` refused the call: limit 0.0013 USD per day");
    person.finds_in_newest_row(&["Refused by a budget", "$0"]);

    person.presses("budgets-button");
    person.presses("budget-delete");
    person.sees_text("confirm", "“daily” will no longer limit calls.");
    person.presses("confirm-ok");
    person.sees_text("budgets", "“daily” was deleted.");
    let budgets = server.get("/api/budget").json();
    assert_eq!(budgets["budgets"].as_array().unwrap().len(), 2);
    person.has_a_clean_console(&["409", "422"]);
}

#[test]
fn a_key_with_a_budget_is_created_shown_once_and_removed() {
    let upstream = Upstream::saying(completion("done", 9, 1));
    let server = TestServer::start_with(|config| {
        add_provider(config, "openai", Kind::OpenAi, upstream.url());
    });
    let person = Person::opens(&server);
    let browser = &person.browser;
    person.sees_that_it_is("Connected");
    browser.resize(360, 800, true);
    person.presses("keys-button");
    person.sees_text("keys", "No keys yet.");
    let fits = || {
        let body = "document.querySelector('[data-testid=keys] .sheet-body')";
        let is_within = format!("{body}.scrollWidth === {body}.clientWidth");
        assert_eq!(browser.eval(&is_within), true);
        person.cannot_scroll_sideways(360);
    };
    let types = |field: &str, text: &str| {
        browser.type_into(&element(&format!("key-{field}")), text);
    };
    let chooses = |field: &str, value: &str| {
        browser.eval(&format!(
            "void ({}.value = {})",
            element(&format!("key-{field}")),
            json!(value)
        ));
    };
    let has_focus = |testid: &str| {
        browser.wait_for(&format!("document.activeElement?.matches({})", json!(selector(testid))));
    };

    // The error is shown at its field, and no key is created.
    person.presses("key-add");
    has_focus("key-name");
    person.presses("key-hasBudget");
    types("limit", "much");
    chooses("expiresAt", "2020-02-01");
    person.presses("key-save");
    person.sees_fault("key", "name", "must be a string of 1 to 100 bytes");
    person.sees_fault("key", "expiresAt", "must be in the future");
    person.sees_fault("key", "limit", "is not an amount of US dollars");
    has_focus("key-name");
    fits();
    chooses("unit", "tokens");
    types("limit", "1,000");
    person.presses("key-save");
    person.sees_fault("key", "limit", "must be a whole number of tokens");
    // Typed text is still there when the dialog opens again, and the keyboard is enough.
    browser.press("Escape");
    has_focus("keys-button");
    browser.press("Enter");
    person.sees_text("keys", "You have unsaved changes.");
    chooses("expiresAt", "2999-02-01");
    types("limit", "1000");
    types("name", MARKUP);
    browser.press("Enter");
    person.sees_text("key-created", "shown only once");
    browser
        .wait_for("document.activeElement.matches('[data-testid=key-created] .short-text .copy')");
    fits();
    let key = person.reads("key-secret");
    assert!(person.reads("key-curl").contains(&format!("Bearer {key}'")));
    let saved = server.get("/api/keys").json()["items"][0].clone();
    assert_eq!((&saved["name"], &saved["budgets"]), (&json!(MARKUP), &json!([MARKUP])));
    assert!(saved["expiresAt"].as_str().unwrap().starts_with("2999-0"));
    person.sees_text("key", "Last used\nnever");

    // The budget fills as the key is used.
    let headers = [("authorization", &*format!("Bearer {key}"))];
    let body = json!({"model": "gpt-4o-mini", "max_tokens": 10, "messages": [{"role": "user", "content": "Hi"}]});
    let body = body.to_string();
    let answer = server.request("POST", "/v1/chat/completions", &headers, body.as_bytes());
    assert_eq!(answer.status, 200, "{}", answer.text());
    person.sees_text("key-budget", "1 % · 10 of 1,000 tokens used");
    browser.wait_for(&format!("!{}.innerText.includes('never')", element("key")));

    // The key disappears with the dialog and is stored nowhere.
    browser.press("Escape");
    has_focus("keys-button");
    let is_kept = format!(
        "[document.documentElement.outerHTML, JSON.stringify(localStorage), JSON.stringify(sessionStorage)]
            .some((text) => text.includes({}))",
        json!(key)
    );
    assert_eq!(browser.eval(&is_kept), false);
    person.presses("keys-button");
    person.presses("key-add");
    types("name", MARKUP);
    person.presses("key-save");
    person.sees_text("key-form", "already exists");
    person.presses("key-cancel");
    has_focus("key-add");

    person.presses("key-delete");
    person.sees_text("confirm", "will be refused");
    person.sees_text("confirm", "stay for a later key of the same name");
    person.presses("confirm-cancel");
    has_focus("key-delete");
    person.presses("key-delete");
    person.presses("key-with-budgets");
    person.presses("confirm-ok");
    person.sees_text("keys", "” and the budget “");
    person.sees_text("keys", "No keys yet.");
    has_focus("key-add");
    assert_eq!(server.get("/api/budget").json()["budgets"], json!([]));
    assert_eq!(browser.eval("typeof window.hacked"), "undefined");
    person.has_a_clean_console(&["409", "422"]);
}

#[test]
fn a_key_is_edited_and_replaced_in_the_page() {
    let server = TestServer::start();
    let flow = server.save(&chain("Named", &[agent("only", "echo", "echo-1", "x")]));
    let limits = json!({"name": "bot", "expiresAt": "2999-02-01T12:34:56Z"});
    let old = server.post("/api/keys", &limits).json()["key"].as_str().unwrap().to_owned();
    let person = Person::opens(&server);
    let browser = &person.browser;
    person.sees_that_it_is("Connected");
    browser.resize(360, 800, true);
    person.presses("keys-button");
    let types = |field: &str, text: &str| {
        browser.type_into(&element(&format!("key-{field}")), text);
    };
    let has_focus = |testid: &str| {
        browser.wait_for(&format!("document.activeElement?.matches({})", json!(selector(testid))));
    };
    person.presses("key-edit");
    has_focus("key-models");
    assert_eq!(browser.eval(&format!("{}.disabled", element("key-name"))), true);
    types("models", "echo/echo-1\nnobody/x");
    types("requestsPerMinute", "1,000");
    person.presses("key-save");
    person.sees_fault("key", "requestsPerMinute", "must be a whole number");
    types("requestsPerMinute", "2");
    types("tokensPerMinute", "5000");
    person.presses("key-save");
    person.sees_fault("key", "models", "unknown provider `nobody`");
    types(
        "models",
        "echo/echo-1\necho/a-very-long-name-of-a-model-that-does-not-fit-into-one-line*",
    );
    browser.eval(&format!("void ({}.options[0].selected = true)", element("key-flows")));
    person.presses("key-save");
    person.sees_text("keys", "“bot” was saved.");
    has_focus("key-edit");
    for text in ["Models\necho/echo-1", "Flows\nNamed", "Per minute\n2 requests, 5,000 tokens"] {
        person.sees_text("key", text);
    }
    let body = "document.querySelector('[data-testid=keys] .sheet-body')";
    let is_within = format!("{body}.scrollWidth === {body}.clientWidth");
    assert_eq!(browser.eval(&is_within), true);
    person.cannot_scroll_sideways(360);
    let saved = server.get("/api/keys").json()["items"][0].clone();
    assert_eq!((&saved["flows"], &saved["requestsPerMinute"]), (&json!([flow]), &json!(2)));
    // The time of the expiry stays, because the day was not changed.
    assert_eq!(saved["expiresAt"], "2999-02-01T12:34:56.000Z");

    person.presses("key-rotate");
    person.sees_text("confirm", "The current key stays valid for");
    person.presses("confirm-cancel");
    has_focus("key-rotate");
    person.presses("key-rotate");
    person.presses("confirm-ok");
    person.sees_text("key-created", "shown only once");
    person.sees_text("key", "Former key\nvalid until");
    let new = person.reads("key-secret");
    let status = |key: &str| {
        let headers = [("authorization", &*format!("Bearer {key}"))];
        server.request("GET", "/v1/models", &headers, b"").status
    };
    assert_eq!((status(&old), status(&new)), (200, 200));
    assert_ne!(old, new);

    // Cleared limits are removed.
    person.presses("key-edit");
    for field in ["models", "requestsPerMinute", "tokensPerMinute"] {
        types(field, "");
    }
    person.presses("key-save");
    person.sees_text("keys", "“bot” was saved.");
    let saved = server.get("/api/keys").json()["items"][0].clone();
    assert_eq!((&saved["models"], &saved["tokensPerMinute"]), (&json!(null), &json!(null)));
    assert_eq!(saved["flows"], json!([flow]));
    person.has_a_clean_console(&["422"]);
}

#[test]
fn a_row_shows_cache_savings_and_time_to_first_token() {
    let upstream = Upstream::start(|body, stream| {
        let answer = if body.contains("streamed") {
            format!("{STREAM_HEAD}{}{}", delta("well"), end_of_stream(10, 5))
        } else {
            completion("well", 100, 1_000)
        };
        drop(stream.write_all(answer.as_bytes()));
    });
    let server = TestServer::start_with(|config| {
        add_provider(config, "openai", Kind::OpenAi, upstream.url());
    });
    let cached =
        server.save(&chain("Cached", &[agent_node("only", "same", &json!({"cache": true}))]));
    let streamed = agent("only", "openai", "gpt-4o-mini", "streamed");
    let streamed = server.save(&chain("Streamed", &[streamed]));
    let person = Person::opens(&server);
    person.sees_that_it_is("Connected");
    for _ in 0..2 {
        server.run(cached, &json!({}));
    }
    person.sees_rows(&["2 ONLY SUCCESS", "1 ONLY SUCCESS"]);
    person.sees_cell("status", "cached, saved $0.000615");
    person.sees_cell("cost", "$0");
    person.sees_text("saved-note", "$0.000615 saved by the cache");
    person.finds_in_newest_row(&["Cost", "cached, saved $0.000615"]);
    person.presses("ledger-run");
    person.browser.click("document.querySelector('[data-testid=history-node] summary')");
    person.sees_text("history-attempt", "cached, saved $0.000615");
    person.browser.press("Escape");
    server.run(streamed, &json!({}));
    person.sees_rows(&["3 ONLY SUCCESS", "2 ONLY SUCCESS", "1 ONLY SUCCESS"]);
    person.finds_in_newest_row(&["First token", "after "]);
    person.has_a_clean_console(&[]);
}

/// Would run if the page inserted it as markup instead of text.
pub const MARKUP: &str =
    "<img src=x onerror=\"window.hacked = true\"><script>hacked = true</script>";

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
    let server = TestServer::start_with(|config| {
        add_provider(config, "openai", Kind::OpenAi, upstream.url());
    });
    let node = |id: &str, prompt: &str| {
        json!({"id": id, "type": "agent", "data": {
            "label": text, "role": text, "provider": "openai", "model": text, "prompt": prompt}})
    };
    let good = format!("{text} good");
    let bad = format!("{text} bad");
    let prompt = format!("{text} {{{{ input.topic }}}}");
    server.save(&json!({"name": good, "description": text,
        "data": {"nodes": [node(MARKUP, &prompt)], "edges": []}}));
    server.save(&chain(&bad, &[node("only", "please fail")]));
    let person = Person::opens(&server);
    person.sees_that_it_is("Connected");
    person.browser.resize(360, 800, true);
    person.cannot_scroll_sideways(360);

    person.types("topic", &good, MARKUP);
    person.presses_run(&good);
    person.sees_toast("completed", &format!("{good} completed"));
    person.sees_node(&good, MARKUP, "completed", MARKUP);
    person.presses_run(&bad);
    person.sees_toast("failed", MARKUP);
    person.sees_node(&bad, "only", "failed", MARKUP);
    for column in ["flow", "node", "role", "model", "status"] {
        person.sees_cell(column, MARKUP);
    }
    person.browser.click(&format!("{ROWS}[0].querySelector('.toggle')"));
    person.browser.wait_for("document.querySelector('.details').innerText.includes('<img src=x')");
    person.browser.click("document.querySelector('#spending summary')");
    person
        .browser
        .wait_for("document.querySelector('#spending tbody').innerText.includes('<img src=x')");
    person.cannot_scroll_sideways(360);

    let images = "[...document.images].map((image) => image.getAttribute('src'))";
    assert_eq!(person.browser.eval(images), json!(["/assets/icon.svg"]));
    assert_eq!(person.browser.eval("document.scripts.length"), 1);
    person.has_a_clean_console(&[]);

    // If markup did get in, the Content-Security-Policy would still block it.
    person
        .browser
        .eval(&format!("document.body.insertAdjacentHTML('beforeend', {})", json!(MARKUP)));
    eventually("the policy refuses it", || {
        let console = person.browser.console();
        console.iter().any(|text| text.contains("Content Security Policy"))
    });
    assert_eq!(person.browser.eval("typeof window.hacked"), "undefined");
}

#[test]
fn a_mark_of_direction_in_a_name_reorders_nothing_beside_it() {
    let server = TestServer::start();
    let name = "Exe\u{202e}cod";
    server.save(&chain(name, &[agent("a\u{202e}b", "echo", "echo-1", "hello")]));
    let person = Person::opens(&server);
    person.presses_run(name);
    person.sees_toast("completed", &format!("{name} completed"));
    // The text after the name stays to the right of it.
    let after = "(toast => {
        const range = document.createRange();
        range.selectNodeContents(toast.lastChild);
        const [name, rest] = [toast.querySelector('bdi'), range].map((it) => it.getBoundingClientRect());
        return toast.lastChild.nodeType === Node.TEXT_NODE && rest.left >= name.right - 1;
    })(document.querySelector('[data-testid=toast] strong'))";
    assert_eq!(person.browser.eval(after), true);
    let cells = "[...document.querySelectorAll('td, td span, .toast strong')]
        .every((cell) => getComputedStyle(cell).unicodeBidi === 'isolate')";
    assert_eq!(person.browser.eval(cells), true);
    person.has_a_clean_console(&[]);
}

#[test]
fn live_js_works_on_allowed_origins() {
    let (site, stranger) = (Site::start(), Site::start());
    let server = TestServer::start_with(|config| config.allow_origins = vec![site.origin()]);
    let flow = server.save(&two_nodes());
    let browser = Browser::launch();

    browser.open(&format!("{}/?http://{}", site.origin(), server.address()));
    browser.wait_for("live.isConnected && live.lastMessage.type === 'HELLO'");
    assert_eq!(browser.eval("live.sendMessage({ type: 'PING' })"), true);
    browser.wait_for("live.lastMessage.type === 'PONG'");
    let subscribe = json!({"type": "SUBSCRIBE", "payload": {"types": ["FLOW_STATUS"]}});
    assert_eq!(browser.eval(&format!("live.sendMessage({subscribe})")), true);
    // The reply to a later message shows that the server has accepted the earlier one.
    browser.eval("void (messages.length = 0, live.sendMessage({ type: 'PING' }))");
    browser.wait_for("messages.some(({ type }) => type === 'PONG')");
    let run = format!(
        "fetch(server + '/api/flows/{flow}/execute?wait=true', {{
            method: 'POST',
            headers: {{ 'Content-Type': 'application/json' }},
            body: JSON.stringify({{ input: {{ topic: 'bees' }} }}),
        }}).then((response) => response.json()).then((run) => run.status)"
    );
    assert_eq!(browser.eval(&run), "COMPLETED");
    browser.wait_for("live.lastMessage.payload.status === 'FINISHED'");
    assert_eq!(
        browser.eval("messages.slice(1).map(({ type, payload }) => `${type} ${payload.status}`)"),
        json!([
            "FLOW_STATUS STARTED",
            "FLOW_STATUS NODE_COMPLETE",
            "FLOW_STATUS NODE_COMPLETE",
            "FLOW_STATUS FINISHED"
        ])
    );
    browser.eval("live.close()");
    assert_eq!(
        browser.eval("[live.isConnected, live.sendMessage({ type: 'PING' })]"),
        json!([false, false])
    );
    assert_eq!(browser.console(), Vec::<String>::new());

    browser.open(&format!("{}/?http://{}", stranger.origin(), server.address()));
    browser.wait_for("live.status.state === 'disconnected'");
    assert_eq!(browser.eval("live.lastMessage"), Value::Null);
    let asks = "fetch(server + '/api/flows').then(() => 'allowed', () => 'refused')";
    assert_eq!(browser.eval(asks), "refused");
    assert_eq!(browser.eval(&format!("{run}.catch(() => 'refused')")), "refused");
    // Browsers send this without a preflight, like a form.
    browser.eval(&format!(
        "fetch(server + '/api/flows/{flow}/execute?wait=true', {{ method: 'POST', mode: 'no-cors' }}).then(() => null)"
    ));
    assert_eq!(
        server.get("/api/ledger/summary").json()["total"]["calls"],
        2,
        "the stranger started no run"
    );
}

/// Another web site on its own port: one page that connects to the server whose address follows
/// `?`.
struct Site {
    address: SocketAddr,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

const SITE_PAGE: &str =
    "<!doctype html><html lang=en><meta charset=utf-8><title>Another site</title>
<link rel=icon href='data:,'>
<script type=module>
    window.server = location.search.slice(1);
    window.messages = [];
    const { connect } = await import(`${server}/assets/live.js`);
    window.live = connect({ onMessage: (message) => messages.push(message) });
</script></html>";

impl Site {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stopping = Arc::new(AtomicBool::new(false));
        let is_stopping = Arc::clone(&stopping);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if is_stopping.load(Ordering::SeqCst) {
                    return;
                }
                // Browsers open spare connections and send nothing on them. Without a thread for
                // each, the first silent one would block all others.
                std::thread::spawn(move || drop(answer(&stream)));
            }
        });
        Self { address, stopping, thread: Some(thread) }
    }

    fn origin(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Reads a request and answers with the page, for any path.
fn answer(mut stream: &TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(DEADLINE))?;
    for line in BufReader::new(stream).lines() {
        if line?.is_empty() {
            break;
        }
    }
    write!(
        stream,
        "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{SITE_PAGE}",
        SITE_PAGE.len()
    )
}
