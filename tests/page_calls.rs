//! The view of calls in a real browser: filters in the address, order, panel, keyboard, live rows.

use serde_json::json;

use flowledger::providers::Kind;

use crate::harness::{TestServer, add_provider, agent, chain};
use crate::page::{Person, element};
use crate::upstream::{Upstream, completion};

impl Person {
    /// Waits until the table has rows for these nodes, in this order and no others.
    #[track_caller]
    fn sees_calls_of(&self, labels: &[&str]) {
        self.browser.wait_for(&format!(
            "JSON.stringify([...document.querySelectorAll('[data-testid=ledger-row] \
             [data-column=node]')].map((cell) => cell.innerText.trim())) === {}",
            json!(json!(labels).to_string())
        ));
    }
}

fn with_calls(server: &TestServer, nodes: &[&str]) -> i64 {
    let nodes: Vec<_> = nodes.iter().map(|id| agent(id, "echo", "echo-1", "Hello")).collect();
    let flow = server.save(&chain("Steps", &nodes));
    server.run(flow, &json!({}));
    flow
}

#[test]
fn filters_of_calls_live_in_the_address() {
    let server = TestServer::start();
    with_calls(&server, &["plan", "draft", "edit"]);
    let person = Person::opens_at(&server, "/calls?period=all&node=draft");
    person.sees_calls_of(&["DRAFT"]);
    person.sees_text("calls-sums", "1 call");
    person.presses("remove-filter");
    person.is_at("/calls?period=all");
    person.sees_calls_of(&["EDIT", "DRAFT", "PLAN"]);
    person.types("calls-search", "pla");
    person.is_at("/calls?period=all&q=pla");
    person.sees_calls_of(&["PLAN"]);
    person.has_a_clean_console(&[]);
}

#[test]
fn a_call_opens_in_a_panel_with_a_deep_link() {
    let server = TestServer::start();
    with_calls(&server, &["plan", "draft"]);
    let person = Person::opens_at(&server, "/calls?period=all");
    person.sees_calls_of(&["DRAFT", "PLAN"]);
    person.browser.click("document.querySelectorAll('[data-testid=ledger-row]')[1]");
    person.is_at("/calls?period=all&call=1");
    person.sees_text("call-facts", "PLAN");
    person.browser.press("k");
    person.is_at("/calls?period=all&call=2");
    person.sees_text("call-facts", "DRAFT");
    person.presses("dialog-close");
    person.is_at("/calls?period=all");
    // The focus is on the call that was shown last.
    person.browser.wait_for("document.activeElement.closest('tr')?.dataset.key === '2'");
    person.browser.press("ArrowDown");
    person.browser.wait_for("document.activeElement.closest('tr')?.dataset.key === '1'");
    person.goes_to("/calls?call=2");
    person.sees_text("call-facts", "DRAFT");
    person.has_a_clean_console(&[]);
}

#[test]
fn new_calls_appear_on_top_of_the_open_list() {
    let server = TestServer::start();
    let flow = with_calls(&server, &["plan"]);
    let person = Person::opens_at(&server, "/calls?period=all");
    person.sees_that_it_is("connected");
    person.sees_calls_of(&["PLAN"]);
    server.run(flow, &json!({}));
    person.browser.wait_for(&format!(
        "document.querySelectorAll('[data-testid=ledger-row]').length === 2 && \
         {}.dataset.entryId === '2' && {0}.dataset.status === 'SUCCESS'",
        element("ledger-row")
    ));
    person.has_not_reloaded();
    person.has_a_clean_console(&[]);
}

#[test]
fn a_live_call_has_names_and_changes_in_place() {
    let (upstream, release) = Upstream::held(completion("done", 100, 1_000));
    let server = TestServer::start_with(|config| {
        add_provider(config, "openai", Kind::OpenAi, upstream.url());
    });
    let person = Person::opens_at(&server, "/calls?period=all");
    person.sees_that_it_is("connected");
    person.sees("No calls yet.");
    let flow = server.save(&chain("Slow one", &[agent("plan", "openai", "gpt-4o-mini", "x")]));
    server.execute(flow, &json!({}));
    person.sees_calls_of(&["PLAN"]);
    person.sees_text("ledger-row", "Slow one");
    let row = element("ledger-row");
    person.browser.wait_for(&format!("{row}.dataset.status === 'PENDING'"));
    person.browser.eval(&format!("void (window.pendingRow = {row})"));
    release.send(()).unwrap();
    person.browser.wait_for(&format!("{row}.dataset.status === 'SUCCESS'"));
    assert_eq!(person.browser.eval(&format!("{row} === pendingRow")), true);
    person.sees_calls_of(&["PLAN"]);
    person.has_not_reloaded();
    person.has_a_clean_console(&[]);
}
