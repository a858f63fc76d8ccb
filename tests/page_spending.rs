//! Sums in the page: spending by day and by any group.

use std::io::Write;

use flowledger::providers::Kind;
use serde_json::{Value, json};

use crate::harness::{TestServer, add_provider};
use crate::page::Person;
use crate::upstream::{Upstream, completion_of};

const SUMS: &str = "[...document.querySelectorAll('#spending tbody tr')].map((row) => [...row.cells].map((cell) => cell.innerText).join(' '))";

fn chooses(person: &Person, id: &str, value: &str) {
    person.browser.eval(&format!(
        "void (({0}.value = {1}), {0}.dispatchEvent(new Event('change')))",
        format_args!("document.getElementById('{id}')"),
        json!(value),
    ));
}

#[track_caller]
fn sees_sums(person: &Person, expected: &[&str]) {
    let rows = json!(expected).to_string();
    person.browser.wait_for(&format!("JSON.stringify({SUMS}) === {}", json!(rows)));
}

#[test]
fn spending_is_shown_by_day_and_tag_and_updates_live() {
    let upstream = Upstream::start(|body, stream| {
        let request: Value = serde_json::from_str(body).unwrap();
        let model = request["model"].as_str().unwrap();
        let _ = stream.write_all(completion_of(model, "well", 1_000, 100).as_bytes());
    });
    let server = TestServer::start_with(|config| {
        add_provider(config, "openai", Kind::OpenAi, upstream.url());
    });
    let send = |model: &str, tags: &str| {
        let body = json!({"model": model, "messages": [{"role": "user", "content": "Hi"}]});
        let headers = [("x-flowledger-tags", tags)];
        let body = body.to_string();
        let answer = server.request("POST", "/v1/chat/completions", &headers, body.as_bytes());
        assert_eq!(answer.status, 200, "{}", answer.text());
    };
    send("openai/gpt-4o-mini", "team=a,beta");
    send("openai/gpt-4o-mini", "team=a");
    let person = Person::opens(&server);
    person.sees_that_it_is("Connected");
    person.browser.click("document.querySelector('#spending summary')");
    sees_sums(&person, &["gpt-4o-mini $0.00042 2 2,000 200", "Total $0.00042 2 2,000 200"]);
    chooses(&person, "spending-by", "tag");
    sees_sums(
        &person,
        &["team=a $0.00042 2 2,000 200", "beta $0.00021 1 1,000 100", "Total $0.00042 2 2,000 200"],
    );
    // Without a reload.
    send("openai/unheard-of", "beta");
    sees_sums(
        &person,
        &["team=a $0.00042 2 2,000 200", "beta $0.00021 2 2,000 200", "Total $0.00042 3 3,000 300"],
    );
    person.browser.wait_for(
        "document.querySelector('[data-testid=spending-note]').innerText.startsWith('The cost excludes 1 call with unknown price.')",
    );
    chooses(&person, "spending-period", "day");
    chooses(&person, "spending-by", "model");
    sees_sums(
        &person,
        &[
            "gpt-4o-mini $0.00042 2 2,000 200",
            "unheard-of unknown cost 1 1,000 100",
            "Total $0.00042 3 3,000 300",
        ],
    );
    let days = "[...document.querySelectorAll('.day')]";
    person.browser.wait_for(&format!(
        "(days => days.length === 30 && days.at(-1).dataset.calls === '3' && days[0].dataset.calls === '0'
            && days.at(-1).title.endsWith('$0.00042, 3 calls, 1 call with unknown price')
            && days.at(-1).firstChild.getBoundingClientRect().height > 50
            && days[0].firstChild.getBoundingClientRect().height === 0)({days})"
    ));
    person.browser.resize(360, 800, true);
    person.cannot_scroll_sideways(360);
    person.has_a_clean_console(&[]);
}

#[test]
fn the_ledger_shows_the_calls_of_one_session() {
    let server = TestServer::start();
    let send = |session: &str| {
        let body = json!({"model": "echo/echo-1", "messages": [{"role": "user", "content": "Hi"}]});
        let headers = [("x-flowledger-session", session), ("x-flowledger-user", "ann")];
        let body = body.to_string();
        let answer = server.request("POST", "/v1/chat/completions", &headers, body.as_bytes());
        assert_eq!(answer.status, 200, "{}", answer.text());
    };
    send("a");
    send("b");
    let person = Person::opens(&server);
    person.sees_that_it_is("Connected");
    let rows = "document.querySelectorAll('[data-testid=ledger-row]').length";
    person.browser.wait_for(&format!("{rows} === 2"));
    chooses(&person, "ledger-filter", "session");
    person.browser.wait_for("!document.querySelector('[data-testid=ledger-filter-name]').hidden");
    person.browser.eval(
        "void ((name => ((name.value = 'a'), name.dispatchEvent(new Event('change'))))(
            document.querySelector('[data-testid=ledger-filter-name]')))",
    );
    person.browser.wait_for(&format!("{rows} === 1"));
    person.browser.wait_for("document.getElementById('csv').href.endsWith('?session=a')");
    // Only new rows of the session appear.
    send("b");
    send("a");
    person.browser.wait_for(&format!("{rows} === 2"));
    // A settled row is not drawn again while it is clicked.
    person.browser.wait_for("!document.querySelector('[data-status=PENDING]')");
    person.browser.click("document.querySelector('[data-testid=ledger-row] .toggle')");
    let details = "document.querySelector('#ledger .details').textContent";
    person.browser.wait_for(&format!("{details}.includes('Sessiona')"));
    person.browser.wait_for(&format!("{details}.includes('End userann')"));
}
