//! Suggestions in the page: arrival, details, trials, apply and revert.

use std::io::Write;

use serde_json::{Value, json};

use crate::harness::{TestServer, agent, chain, eventually};
use crate::optimizer_fixture::{Fixture, PATH, flow_of, of_kind, openai, run_times};
use crate::page::{MARKUP, Person, element, in_card, selector};
use crate::upstream::{completion_of, json_answer};

/// The projection of four unnecessary calls of 0.0125 USD, seen within moments.
const ESTIMATE: &str = "Likely saves 1.50 USD in 30 days (0.03 to 2.97), based on 4 calls";

impl Person {
    /// Waits until the card of a suggestion, in a list of the dialog, contains this text.
    #[track_caller]
    fn sees_card(&self, list: &str, id: &Value, text: &str) {
        let card = format!("{} [data-saving-id='{id}']", selector(list));
        self.browser.wait_for(&format!(
            "(card => card.checkVisibility() && card.innerText.includes({}))(document.querySelector({}))",
            json!(text),
            json!(card),
        ));
    }

    /// Checks the number of open suggestions on the button, or that there is none.
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
        self.browser.wait_for(&format!("document.activeElement?.matches({})", json!(css)));
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
        assert_eq!(self.browser.eval(&too_wide)[0], 0, "{}", self.browser.eval(&too_wide));
        self.cannot_scroll_sideways(360);
    }

    /// Renames the flow just before the page's next request with this method and path suffix, as
    /// another client would.
    fn is_preceded(&self, server: &TestServer, flow: i64, name: &str, method: &str, end: &str) {
        let mut other = saved(server, flow);
        other["name"] = json!(name);
        self.browser.eval(&format!(
            "void (() => {{
                const send = window.fetch;
                let left = 1;
                window.fetch = async (path, options) => {{
                    if (options.method === {0} && path.endsWith({1}) && left-- > 0)
                        await send('/api/flows/{flow}', {{ method: 'PUT', body: {2} }});
                    return send(path, options);
                }};
            }})()",
            json!(method),
            json!(end),
            json!(other.to_string()),
        ));
    }
}

/// Waits for the cache suggestion of a flow, based on `calls` calls.
fn cache_of(server: &TestServer, flow: i64, calls: u64) -> Value {
    let mut found = Value::Null;
    eventually("the suggestion is made", || {
        let mut all = of_kind(server, "cache", "OPEN").into_iter();
        found = all.find(|it| it["flowId"] == flow).unwrap_or_default();
        found["calls"] == calls
    });
    found
}

/// Waits until the optimizer has processed the current version of the flow.
fn can_be_applied(server: &TestServer, id: &Value) {
    eventually("it was checked again", || {
        server.get(&format!("{PATH}/{id}")).json()["conflict"].is_null()
    });
}

fn saved(server: &TestServer, flow: i64) -> Value {
    server.get(&format!("/api/flows/{flow}")).json()
}

#[test]
fn a_suggestion_appears_and_is_applied_and_reverted() {
    let server = Fixture::answering(1_000, 1_000);
    let flow = flow_of(&server, "gpt-4o");
    let before = saved(&server, flow);
    let person = Person::opens(&server);
    let browser = &person.browser;
    person.sees_that_it_is("Connected");
    person.sees_badge(0);
    run_times(&server, flow, 5, |_| "again".into());
    person.sees_toast("saving", "One: Cache responses of “N”: Likely saves ");
    person.sees_badge(1);
    let id = &cache_of(&server, flow, 4)["id"];

    // The toast leads to the card, which shows the evidence.
    person.presses("toast-button");
    person.sees_card("saving-open", id, ESTIMATE);
    person.has_the_focus_on("[data-testid=saving] h4");
    person.sees_card("saving-open", id, "One · N");
    person.sees_text("saving-reason", "4 of 5 calls repeated a request from");
    assert_eq!(
        browser.eval(&format!("{}.ariaLabel", element("interval"))),
        "Between 0.03 and 2.97 USD in 30 days, most likely 1.50"
    );
    browser.click("document.querySelector('[data-testid=saving-evidence] summary')");
    person.sees_text("saving-evidence", "Repeated cost\n0.05 USD");
    person.sees_text("saving-applied", "No applied suggestions yet.");

    // The page shows the change before it offers the button to apply it.
    person.does_not_see("saving-apply");
    person.does_not_see("saving-try");
    person.presses("saving-show");
    person.sees_text("saving-change", "node n cache.maxAgeS");
    person.sees_text("change-before", "not set");
    person.sees_text("change-after", "604800");
    assert_eq!(saved(&server, flow)["data"], before["data"]);
    person.presses("saving-apply");
    person.sees_card("saving-applied", id, ESTIMATE);
    person.sees_text("saving-measured", "not measured yet");
    person.sees_text("savings", "“Cache responses of “N”” was applied.");
    person.has_the_focus_on("[data-testid=saving-applied] h4");
    person.sees_text("saving-open", "No suggestions yet.");
    person.sees_badge(0);
    let node = &saved(&server, flow)["data"]["nodes"][0]["data"];
    assert_eq!(node["cache"]["maxAgeS"], 604_800);
    person.presses("saving-show");
    person.sees_text("change-after", "604800");
    person.does_not_see("saving-apply");

    // Reverted after a confirmation.
    person.presses("saving-revert");
    person.sees_text("confirm", "“One” returns to its state before");
    person.presses("confirm-cancel");
    person.has_the_focus_on(&selector("saving-revert"));
    person.presses("saving-revert");
    person.presses("confirm-ok");
    person.sees_text("savings", "“Cache responses of “N”” was reverted.");
    person.has_the_focus_on("[data-testid=saving-past] > summary");
    assert_eq!(saved(&server, flow)["data"], before["data"]);
    browser.press("Enter");
    person.sees_card("saving-past", id, "Reverted");
    browser.press("Escape");
    person.has_the_focus_on(&selector("savings-button"));
    person.has_not_reloaded();
    person.has_a_clean_console(&[]);
}

#[test]
fn concurrent_changes_are_reported_and_kept() {
    let server = Fixture::answering(1_000, 1_000);
    let flow = flow_of(&server, "gpt-4o");
    run_times(&server, flow, 5, |_| "again".into());
    let id = &cache_of(&server, flow, 4)["id"];
    let person = Person::opens(&server);
    let browser = &person.browser;
    person.sees_that_it_is("Connected");
    person.sees_badge(1);
    person.presses("savings-button");

    // Changed before the details load.
    let end = format!("/{id}");
    person.is_preceded(&server, flow, "First", "GET", &end);
    person.presses("saving-show");
    person.sees_text("saving-conflict", "changed after the suggestion was made");
    person.does_not_see("saving-apply");
    can_be_applied(&server, id);
    person.presses("saving-reload");
    person.sees_text("saving-change", "node n cache.maxAgeS");

    // Changed between the details and the button press.
    person.is_preceded(&server, flow, "Second", "GET", &end);
    person.presses("saving-apply");
    person.sees_text("saving-change", "Not applied: the change has been updated");
    can_be_applied(&server, id);
    person.presses("saving-reload");
    person.sees_text("saving-apply", "Apply");

    // Changed after the last check of the page, so the server refuses.
    person.is_preceded(&server, flow, "Third", "POST", "/apply");
    person.presses("saving-apply");
    person.sees_text("saving-change", &format!("Cannot apply: flow {flow} changed after"));
    let other = saved(&server, flow);
    assert_eq!(other["name"], "Third");
    assert!(other["data"]["nodes"][0]["data"]["cache"].is_null());
    can_be_applied(&server, id);
    person.presses("saving-apply");
    person.sees_card("saving-applied", id, ESTIMATE);

    // The page updates the flow's card.
    browser.wait_for(&in_card("Third", "h3"));

    person.is_preceded(&server, flow, "Fourth", "POST", "/revert");
    person.presses("saving-revert");
    person.presses("confirm-ok");
    person.sees_card(
        "saving-applied",
        id,
        &format!("Cannot revert: flow {flow} has changed since"),
    );
    assert_eq!(saved(&server, flow)["name"], "Fourth");
    person.has_a_clean_console(&["409"]);
}

#[test]
fn suggestions_update_in_the_open_dialog_on_a_phone() {
    let server = Fixture::answering(1_000, 1_000);
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
    browser.resize(360, 800, true);
    person.presses("savings-button");
    person.sees_text("saving-open", "No suggestions yet.");
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
    browser.click(&format!("{}.querySelector('summary')", of_first("saving-evidence")));
    person.finds_that_it_fits();
    // Before and after are stacked.
    let [before, after] = ["before", "after"].map(|side| of_first(&format!("change-{side}")));
    assert_eq!(
        browser.eval(&format!(
            "{before}.getBoundingClientRect().bottom <= {after}.getBoundingClientRect().top"
        )),
        true
    );

    // Dismissed by another client.
    server.post(&format!("{PATH}/{second}/dismiss"), &json!({}));
    person.sees_badge(1);
    browser.wait_for(&format!(
        "!document.querySelector(`[data-testid=saving-open] [data-saving-id='{second}']`)"
    ));
    // Dismissed in this page.
    browser.click(&of_first("saving-dismiss"));
    let title = format!("Cache responses of “{}”", MARKUP.to_uppercase());
    person.sees_text("savings", &format!("“{title}” was dismissed."));
    person.has_the_focus_on("[data-testid=saving-past] > summary");
    person.sees_badge(0);
    let status = |id: &Value| server.get(&format!("{PATH}/{id}")).json()["status"].clone();
    assert_eq!([status(&first), status(&second)], ["DISMISSED", "DISMISSED"]);

    // Dismissed suggestions load on demand.
    browser.reload();
    person.presses("savings-button");
    person.sees_text("saving-open", "No suggestions yet.");
    browser.click("document.querySelector('[data-testid=saving-past] > summary')");
    for id in [&first, &second] {
        person.sees_card("saving-past", id, "Dismissed, ");
    }
    person.finds_that_it_fits();
    assert_eq!(browser.eval("typeof window.hacked"), "undefined");
    person.has_a_clean_console(&[]);
}

#[test]
fn a_trial_shows_its_price_first_and_can_change_the_model() {
    let upstream = openai(|body, stream| {
        let request: Value = serde_json::from_str(body).unwrap();
        let model = request["model"].as_str().unwrap();
        let answer = match model {
            "gpt-4o" => completion_of(model, &"At length. ".repeat(40), 1_000, 100),
            _ if body.contains("no. 9") => {
                json_answer("400 Bad Request", r#"{"error":{"message":"not this one"}}"#)
            }
            _ => completion_of(model, "Briefly.", 1_000, 50),
        };
        let _ = stream.write_all(answer.as_bytes());
    });
    let server = Fixture::of(upstream);
    let used = flow_of(&server, "gpt-4o-mini");
    run_times(&server, used, 10, |at| at.to_string());
    let flow = flow_of(&server, "gpt-4o");
    run_times(&server, flow, 10, |at| format!("no. {at}"));
    let mut found = Value::Null;
    eventually("the suggestion is made", || {
        let switch = of_kind(&server, "model_switch", "OPEN").pop();
        found = switch.unwrap_or_default();
        found["calls"] == 10
    });
    let count = server.upstream.count();
    let person = Person::opens(&server);
    let browser = &person.browser;
    person.sees_that_it_is("Connected");
    browser.resize(360, 800, true);
    person.presses("savings-button");
    person.sees_text("saving-estimate", ", based on 10 calls");

    // The page shows the cost first, and updates it after each choice.
    person.presses("saving-try");
    person.has_the_focus_on(&selector("trial-count"));
    browser.type_into(&element("trial-count"), "3");
    browser.press("Enter");
    person.sees_text("trial-cost", "3 calls to openai/gpt-4o-mini for about 0.00063 USD");
    browser.type_into(&element("trial-count"), "2");
    person.does_not_see("trial-confirm");
    browser.press("Enter");
    person.sees_text("trial-confirm", "Make 2 calls for about 0.00042 USD");
    person.sees_text("trial-cost", "Say no. 8");
    person.sees_text("trial-cost", "responses are cut off after 4,096 tokens");
    person.has_the_focus_on(&selector("trial-confirm"));
    assert_eq!(server.upstream.count(), count);
    person.finds_that_it_fits();
    browser.press("Enter");
    person.sees_text("trial-results", "Trial of openai/gpt-4o-mini");
    person.has_the_focus_on("[data-testid=trial-results] h5");
    assert_eq!(server.upstream.count(), count + 2);

    // Both answers, stacked on a phone and side by side on a desktop.
    let item = |at: usize, side: &str| {
        format!(
            "document.querySelectorAll('[data-testid=trial-item]')[{at}]
                .querySelector('[data-testid=trial-{side}]')"
        )
    };
    for (at, side, texts) in [
        (0, "before", &["gpt-4o", "At length. At length.", "1,000 in, 100 out", "0.0035 USD"][..]),
        (0, "after", &["not this one"]),
        (1, "before", &["At length.", "Latency"]),
        (1, "after", &["gpt-4o-mini", "Briefly.", "1,000 in, 50 out", "0.00018 USD", "Latency"]),
    ] {
        let missing = format!(
            "{}.filter((text) => !{}.innerText.includes(text))",
            json!(texts),
            item(at, side)
        );
        assert_eq!(browser.eval(&missing), json!([]), "{at} {side}");
    }
    let [before, after] =
        ["before", "after"].map(|side| format!("{}.getBoundingClientRect()", item(1, side)));
    assert_eq!(browser.eval(&format!("{before}.bottom <= {after}.top")), true);
    person.finds_that_it_fits();
    browser.resize(1280, 800, false);
    browser.wait_for(&format!("{before}.right <= {after}.left && {before}.top === {after}.top"));

    // An alternative to the recommended model has its own projection and change.
    let other = &found["alternatives"][0];
    let name = other["name"].as_str().unwrap();
    let expected = other["savingPer30Days"]["expectedUsd"].as_f64().unwrap();
    browser.eval(&format!(
        "void (({0}.value = {1}), {0}.dispatchEvent(new Event('change')))",
        element("saving-alternative"),
        json!(name)
    ));
    person.sees_text("saving-estimate", &format!("Likely saves {expected:.2} USD"));
    let model = name.split_once('/').unwrap().1;
    person.sees_card("saving-open", &found["id"], &format!("Switch from gpt-4o to {model}"));
    person.sees_text("saving-reason", &format!("at {name}."));
    person.presses("saving-show");
    person.sees_text("change-after", model);
    let path = format!("{PATH}/{}?alternative={name}", found["id"]);
    let version = server.get(&path).json()["version"].clone();
    assert!(version.is_string());
    browser.eval(
        "void (() => {
            const send = window.fetch;
            window.fetch = (path, options) => {
                if (path.endsWith('/apply')) window.applied = JSON.parse(options.body);
                return send(path, options);
            };
        })()",
    );
    person.presses("saving-apply");
    person.sees_card("saving-applied", &found["id"], "not measured yet");
    assert_eq!(browser.eval("window.applied"), json!({"alternative": name, "version": version}));
    assert_eq!(saved(&server, flow)["data"]["nodes"][0]["data"]["model"], model);
    person.has_a_clean_console(&[]);
}

#[test]
fn expected_and_measured_savings_are_shown_separately() {
    let server = TestServer::start();
    let person = Person::opens(&server);
    let text_of = |function: &str, input: &Value| {
        person.browser.eval(&format!(
            "import('/assets/saving-format.js').then((texts) => texts.{function}({input}))"
        ))
    };
    let saving = json!({"lowUsd": 0.000_012, "expectedUsd": 0.1, "highUsd": 1_234.5});
    for (input, words) in [
        (
            json!({"savingPer30Days": saving, "calls": 1}),
            "Likely saves 0.10 USD in 30 days (0.000012 to 1,234.50), based on 1 call",
        ),
        (
            json!({"savingMs": 1_500, "calls": 12}),
            "Likely saves 1.50 s in each run, based on 12 calls",
        ),
    ] {
        assert_eq!(text_of("expectedSaving", &input), words);
    }
    let measured = |saved: f64, cost: f64| {
        json!({"since": "2026-11-03T04:05:06Z", "calls": 4, "wouldHaveCostUsd": 0.05,
            "costUsd": cost, "savedUsd": saved})
    };
    let since = person
        .browser
        .eval("import('/assets/format.js').then(({ moment }) => moment('2026-11-03T04:05:06Z'))");
    let since = since.as_str().unwrap();
    let mut slower = measured(0.0, 0.05);
    slower["savedMs"] = json!(-20);
    let mut unused = measured(0.0, 0.0);
    unused["calls"] = json!(0);
    for (input, words) in [
        (Value::Null, "not measured yet".to_owned()),
        (unused, "not measured yet".to_owned()),
        (
            measured(0.0375, 0.0125),
            format!(
                "0.0375 USD saved (cost 0.0125 USD instead of 0.05 USD); 4 calls since {since}"
            ),
        ),
        (
            measured(-0.01, 0.06),
            format!(
                "0.01 USD more spent (cost 0.06 USD instead of 0.05 USD); 4 calls since {since}"
            ),
        ),
        (
            slower,
            format!(
                "0.00 USD saved (cost 0.05 USD instead of 0.05 USD); 20 ms slower in each run; 4 calls since {since}"
            ),
        ),
    ] {
        assert_eq!(text_of("measuredSaving", &input), words);
    }
}
