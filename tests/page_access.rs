//! Every view is accessible by axe's rules (WCAG 2.2 AA and best practices), on wide screens and
//! phones, light and dark, and fits the window.

use std::path::Path;

use serde_json::json;

use crate::harness::{TestServer, agent, chain, two_nodes};
use crate::page::Person;

const AXE: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/target/axe/node_modules/axe-core/axe.min.js");

/// Returns the violations, each as its rule and the first elements.
const CHECK: &str = "axe.run(document, { resultTypes: ['violations'] }).then(({ violations }) =>
    violations.map(({ id, nodes }) => `${id}: ${nodes.slice(0, 3).map(({ target, failureSummary }) =>
        `${target.join(' ')} (${failureSummary.replaceAll('\\n', ' ')})`).join(', ')}`))";

/// Waits until nothing was loaded for a while.
const QUIET: &str = "new Promise((done) => {
    const look = (before) => {
        const count = performance.getEntriesByType('resource').length;
        if (count === before) done(null);
        else setTimeout(look, 300, count);
    };
    look(-1);
})";

/// A server with flows, runs, calls, a key, a budget and triggers.
fn seeded() -> (TestServer, Vec<String>) {
    let server = TestServer::start();
    let flow = server.save(&two_nodes());
    let bad = server.save(&chain(
        "Fails",
        &[
            agent("first", "echo", "echo-1", "hello"),
            agent("second", "echo", "echo-1", "{{ 1 / (input.zero | int) }}"),
        ],
    ));
    let run = server.run(flow, &json!({"topic": "ants"}));
    let failed = server.run(bad, &json!({"zero": 0}));
    server.post("/api/keys", &json!({"name": "editor"}));
    let budget = json!({"budgets": [{"name": "All", "per": "month", "limitUsd": 5, "hard": true}]});
    server.request("PUT", "/api/budget", &[], budget.to_string().as_bytes());
    let cron = json!({"cron": "0 7 * * *"}).to_string();
    server.request("PUT", &format!("/api/flows/{flow}/schedule"), &[], cron.as_bytes());
    let mut paths: Vec<String> =
        ["/", "/flows", "/runs", "/calls", "/savings", "/budgets", "/connect", "/settings"]
            .map(str::to_owned)
            .to_vec();
    paths.push(format!("/flows/{flow}"));
    for run in [run, failed] {
        paths.push(format!("/runs/{}", run["runId"].as_str().unwrap()));
    }
    paths.push("/calls?call=1".into());
    (server, paths)
}

fn check(width: u32, height: u32, theme: &str) {
    let axe = std::fs::read_to_string(Path::new(AXE)).expect("no axe-core: run tests/setup.sh");
    let (server, paths) = seeded();
    let person = Person::opens(&server);
    person.browser.resize(width, height, width < 600);
    person.browser.eval(&format!(
        "localStorage.setItem('flowledger.settings', JSON.stringify({{ theme: {} }}))",
        json!(theme)
    ));
    let mut violations = Vec::new();
    for path in paths {
        person.goes_to(&path);
        person.sees_that_it_is("connected");
        // The page fetches its data in parts, and is complete when the network is quiet.
        person.browser.wait_for("!document.querySelector('.loading')");
        person.browser.eval(QUIET);
        person.browser.eval(&format!("void {axe}"));
        let found = person.browser.eval(CHECK);
        for violation in found.as_array().into_iter().flatten() {
            violations.push(format!("{path}: {}", violation.as_str().unwrap_or_default()));
        }
        if width < 600 {
            person.cannot_scroll_sideways(width);
        }
    }
    assert_eq!(violations, Vec::<String>::new());
    person.has_a_clean_console(&[]);
}

#[test]
fn views_are_accessible_on_a_wide_light_screen() {
    check(1440, 900, "light");
}

#[test]
fn views_are_accessible_on_a_dark_phone() {
    check(390, 844, "dark");
}
