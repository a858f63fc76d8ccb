//! Suggestions in the page: how they come, are looked into, tried, applied and taken back.

use serde_json::{Value, json};

use crate::harness::{TestServer, agent, chain, eventually};
use crate::optimizer::{flow_of, of_kind, run_times, server, upstream};
use crate::page::{MARKUP, Person, element, selector};

const PATH: &str = "/api/ledger/optimizations";
/// What four calls of 0.0125 USD for nothing, seen for moments, come to.
const PROMISE: &str = "likely 1.50 USD in 30 days (0.03 to 2.97), from 4 calls";

impl Person {
    /// Sees, in a list of the dialog, the card of a suggestion, and that it has this text in it.
    #[track_caller]
    fn sees_card(&self, list: &str, id: &Value, text: &str) {
        let card = format!("{} [data-saving-id='{id}']", selector(list));
        self.browser.wait_for(&format!(
            "(card => card.checkVisibility() && card.innerText.includes({}))(document.querySelector({}))",
            json!(text),
            json!(card),
        ));
    }

    /// Sees the number of open suggestions on the button, or that there is none.
    #[track_caller]
    fn sees_badge(&self, open: usize) {
        let badge = element("savings-badge");
        self.browser.wait_for(&match open {
            0 => format!("{badge}.hidden"),
            _ => format!("{badge}.innerText.includes('{open}')"),
        });
    }

    #[track_caller]
    fn has_the_focus_on(&self, css: &str) {
        self.browser
            .wait_for(&format!("document.activeElement?.matches({})", json!(css)));
    }

    #[track_caller]
    fn does_not_see(&self, testid: &str) {
        let is_hidden = format!("!{}?.checkVisibility()", element(testid));
        assert_eq!(self.browser.eval(&is_hidden), true, "{testid}");
    }

    /// Neither the page nor the dialog is wider than a phone.
    #[track_caller]
    fn finds_that_it_fits(&self) {
        let body = "document.querySelector('[data-testid=savings] .sheet-body')";
        let too_wide = format!(
            "[{body}.scrollWidth - {body}.clientWidth, [...{body}.querySelectorAll('*')].filter(
                (it) => it.getBoundingClientRect().right > {body}.getBoundingClientRect().right
            ).map((it) => it.outerHTML.slice(0, 200))]"
        );
        assert_eq!(
            self.browser.eval(&too_wide)[0],
            0,
            "{}",
            self.browser.eval(&too_wide)
        );
        self.cannot_scroll_sideways(390);
    }

    /// The next time that the page asks for a path that ends like this, somebody else gives the flow
    /// this name just before.
    fn is_preceded(&self, server: &TestServer, flow: i64, name: &str, method: &str, end: &str) {
        let mut other = saved(server, flow);
        other["name"] = json!(name);
        self.browser.eval(&format!(
            "void (() => {{
                const ask = window.fetch;
                let left = 1;
                window.fetch = async (path, options) => {{
                    if (options.method === {0} && path.endsWith({1}) && left-- > 0)
                        await ask('/api/flows/{flow}', {{ method: 'PUT', body: {2} }});
                    return ask(path, options);
                }};
            }})()",
            json!(method),
            json!(end),
            json!(other.to_string()),
        ));
    }
}

/// The suggestion to keep answers of a flow, once it rests on so many calls.
fn cache_of(server: &TestServer, flow: i64, calls: u64) -> Value {
    let mut found = Value::Null;
    eventually("the suggestion is made", || {
        let mut all = of_kind(server, "cache", "OPEN").into_iter();
        found = all.find(|it| it["flowId"] == flow).unwrap_or_default();
        found["calls"] == calls
    });
    found
}

/// The optimizer has looked at the flow as it is now.
fn can_be_applied(server: &TestServer, id: &Value) {
    eventually("it has been looked at again", || {
        server.get(&format!("{PATH}/{id}")).json()["conflict"].is_null()
    });
}

fn saved(server: &TestServer, flow: i64) -> Value {
    server.get(&format!("/api/flows/{flow}")).json()
}

#[test]
fn a_suggestion_comes_by_itself_is_looked_into_applied_and_taken_back() {
    let upstream = upstream(1_000, 1_000);
    let server = server(&upstream);
    let flow = flow_of(&server, "gpt-4o");
    let before = saved(&server, flow);
    let person = Person::opens(&server);
    let browser = &person.browser;
    person.sees_that_it_is("Connected");
    person.sees_badge(0);
    run_times(&server, flow, 5, |_| "again".into());
    person.sees_toast("saving", "One: Keep its answers: likely ");
    person.sees_badge(1);
    let id = &cache_of(&server, flow, 4)["id"];

    // The toast leads to its card, which says what it rests on.
    person.presses("toast-button");
    person.sees_card("saving-open", id, PROMISE);
    person.has_the_focus_on("[data-testid=saving] h4");
    person.sees_card("saving-open", id, "One · N");
    person.sees_text("saving-reason", "4 of 5 calls asked exactly what had been");
    assert_eq!(
        browser.eval(&format!("{}.ariaLabel", element("interval"))),
        "Between 0.03 and 2.97 USD in 30 days, most likely 1.50"
    );
    browser.click("document.querySelector('[data-testid=saving-evidence] summary')");
    person.sees_text("saving-evidence", "Repeated cost\n0.05 USD");
    person.sees_text("saving-applied", "Nothing was applied yet.");

    // What it changes is seen before there is a button that applies it.
    person.does_not_see("saving-apply");
    person.does_not_see("saving-try");
    person.presses("saving-show");
    person.sees_text("saving-change", "node n cache.maxAgeS");
    person.sees_text("change-before", "not there");
    person.sees_text("change-after", "604800");
    assert_eq!(saved(&server, flow)["data"], before["data"]);
    person.presses("saving-apply");
    person.sees_card("saving-applied", id, PROMISE);
    person.sees_text("saving-realised", "not measured yet");
    person.sees_text("savings", "“Keep its answers” was applied.");
    person.has_the_focus_on("[data-testid=saving-applied] h4");
    person.sees_text("saving-open", "Nothing is proposed.");
    person.sees_badge(0);
    let node = &saved(&server, flow)["data"]["nodes"][0]["data"];
    assert_eq!(node["cache"]["maxAgeS"], 604_800);
    person.presses("saving-show");
    person.sees_text("change-after", "604800");
    person.does_not_see("saving-apply");

    // Taken back after a question.
    person.presses("saving-take-back");
    person.sees_text("ask", "“One” gets back what it said before");
    person.presses("ask-no");
    person.has_the_focus_on(&selector("saving-take-back"));
    person.presses("saving-take-back");
    person.presses("ask-yes");
    person.sees_text("savings", "“Keep its answers” was taken back.");
    person.has_the_focus_on("[data-testid=saving-past] > summary");
    assert_eq!(saved(&server, flow)["data"], before["data"]);
    browser.press("Enter");
    person.sees_card("saving-past", id, "Taken back");
    browser.press("Escape");
    person.has_the_focus_on(&selector("savings-button"));
    person.has_not_reloaded();
    person.has_a_clean_console(&[]);
}

#[test]
fn what_somebody_else_changed_meanwhile_is_told_and_stays() {
    let upstream = upstream(1_000, 1_000);
    let server = server(&upstream);
    let flow = flow_of(&server, "gpt-4o");
    run_times(&server, flow, 5, |_| "again".into());
    let id = &cache_of(&server, flow, 4)["id"];
    let person = Person::opens(&server);
    person.sees_that_it_is("Connected");
    person.sees_badge(1);
    person.presses("savings-button");

    // Before it is looked at.
    let end = format!("/{id}");
    person.is_preceded(&server, flow, "First", "GET", &end);
    person.presses("saving-show");
    person.sees_text(
        "saving-conflict",
        "has changed since the suggestion was made",
    );
    person.does_not_see("saving-apply");
    can_be_applied(&server, id);
    person.presses("saving-look-again");
    person.sees_text("saving-change", "node n cache.maxAgeS");

    // Between the look and the press.
    person.is_preceded(&server, flow, "Second", "GET", &end);
    person.presses("saving-apply");
    person.sees_text(
        "saving-change",
        "Not applied: something has changed meanwhile",
    );
    can_be_applied(&server, id);
    person.presses("saving-look-again");
    person.sees_text("saving-apply", "Apply");

    // And after the last look, where the server refuses.
    person.is_preceded(&server, flow, "Third", "POST", "/apply");
    person.presses("saving-apply");
    person.sees_text(
        "saving-change",
        &format!("Not applied: flow {flow} has changed since"),
    );
    let other = saved(&server, flow);
    assert_eq!(other["name"], "Third");
    assert!(other["data"]["nodes"][0]["data"]["cache"].is_null());
    can_be_applied(&server, id);
    person.presses("saving-apply");
    person.sees_card("saving-applied", id, PROMISE);

    person.is_preceded(&server, flow, "Fourth", "POST", "/revert");
    person.presses("saving-take-back");
    person.presses("ask-yes");
    person.sees_card(
        "saving-applied",
        id,
        &format!("Not taken back: flow {flow} has changed since"),
    );
    assert_eq!(saved(&server, flow)["name"], "Fourth");
    person.has_a_clean_console(&["409"]);
}

#[test]
fn suggestions_come_and_go_in_the_open_dialog_as_text_also_on_a_phone() {
    let upstream = upstream(1_000, 1_000);
    let server = server(&upstream);
    let name = format!("{MARKUP}{}", "unbreakable".repeat(9));
    let save = |name: &str| {
        let mut node = agent(MARKUP, "openai", "gpt-4o", "Say {{ input.what }}");
        node["data"]["stream"] = json!(false);
        server.save(&chain(name, &[node]))
    };
    let (first, second) = (save(&name), save("Second"));
    let person = Person::opens(&server);
    let browser = &person.browser;
    person.sees_that_it_is("Connected");
    browser.resize(390, 844, true);
    person.presses("savings-button");
    person.sees_text("saving-open", "Nothing is proposed.");
    person.finds_that_it_fits();
    for flow in [first, second] {
        run_times(&server, flow, 5, |_| "again".into());
    }
    let [first, second] = [first, second].map(|flow| cache_of(&server, flow, 4)["id"].clone());
    person.sees_card("saving-open", &first, &name);
    person.sees_card("saving-open", &second, "Second");
    person.sees_badge(2);
    let of_first = |testid: &str| {
        format!("document.querySelector(`[data-saving-id='{first}'] [data-testid={testid}]`)")
    };
    browser.click(&of_first("saving-show"));
    browser.wait_for(&format!("{}.checkVisibility()", of_first("saving-apply")));
    browser.click(&format!(
        "{}.querySelector('summary')",
        of_first("saving-evidence")
    ));
    person.finds_that_it_fits();
    // Before and after are one below the other.
    let [before, after] = ["before", "after"].map(|side| of_first(&format!("change-{side}")));
    assert_eq!(
        browser.eval(&format!(
            "{before}.getBoundingClientRect().bottom <= {after}.getBoundingClientRect().top"
        )),
        true
    );

    // Dismissed elsewhere.
    server.post(&format!("{PATH}/{second}/dismiss"), &json!({}));
    person.sees_badge(1);
    browser.wait_for(&format!(
        "!document.querySelector(`[data-testid=saving-open] [data-saving-id='{second}']`)"
    ));
    // And here.
    browser.click(&of_first("saving-dismiss"));
    person.sees_text("savings", "“Keep its answers” was dismissed.");
    person.has_the_focus_on("[data-testid=saving-past] > summary");
    person.sees_badge(0);
    let status = |id: &Value| server.get(&format!("{PATH}/{id}")).json()["status"].clone();
    assert_eq!(
        [status(&first), status(&second)],
        ["DISMISSED", "DISMISSED"]
    );

    // They are asked for by who wants to see them.
    browser.reload();
    person.presses("savings-button");
    person.sees_text("saving-open", "Nothing is proposed.");
    browser.click("document.querySelector('[data-testid=saving-past] > summary')");
    for id in [&first, &second] {
        person.sees_card("saving-past", id, "Dismissed, ");
    }
    person.finds_that_it_fits();
    assert_eq!(browser.eval("typeof window.hacked"), "undefined");
    person.has_a_clean_console(&[]);
}
