//! Budgets in a real browser: the form, its faults, and the spent and held amounts.

use serde_json::json;

use flowledger::providers::Kind;

use crate::harness::{TestServer, add_provider, chain};
use crate::page::{Person, element};
use crate::upstream::{Upstream, completion};

#[test]
fn the_held_part_of_a_budget_is_hatched() {
    let (upstream, release) = Upstream::held(completion("done", 100, 1_000));
    let server = TestServer::start_with(|config| {
        add_provider(config, "openai", Kind::OpenAi, upstream.url());
    });
    let budget = json!({"budgets": [{"name": "daily", "per": "day", "limitTokens": 10_000, "bound": "strict", "onShort": "refuse", "minOutputTokens": 2_000}]});
    let put = server.request("PUT", "/api/budget", &[], budget.to_string().as_bytes());
    assert_eq!(put.status, 200, "{}", put.text());
    let node = json!({"id": "only", "type": "agent", "data": {"label": "ONLY", "role": "tester",
        "provider": "openai", "model": "gpt-4o-mini", "prompt": "x", "maxTokens": 1_000}});
    let flow = server.save(&chain("Dear", &[node]));
    release.send(()).unwrap();
    server.run(flow, &json!({}));
    server.execute(flow, &json!({}));
    let person = Person::opens_at(&server, "/budgets");
    person.sees_text("meter-numbers", "1,100 tokens spent");
    person.sees_text("meter-numbers", "tokens held");
    let held = "document.querySelector('.meter-held')";
    person.browser.wait_for(&format!(
        "{held}.clientWidth > 0 && getComputedStyle({held}).backgroundImage.includes('gradient')"
    ));
    release.send(()).unwrap();
    person.sees_text("meter-numbers", "2,200 of 10,000 tokens used");
    person.browser.wait_for(&format!("{held}.clientWidth === 0"));
    // The form keeps the options of a hard budget.
    person.presses("budget-edit");
    person.types("budget-limit", "20000");
    person.presses("budget-save");
    person.sees_text("meter-numbers", "2,200 of 20,000 tokens used");
    let saved = &server.get("/api/budget").json()["budgets"][0];
    assert_eq!(
        (&saved["bound"], &saved["onShort"], &saved["minOutputTokens"]),
        (&json!("strict"), &json!("refuse"), &json!(2_000))
    );
    person.has_not_reloaded();
    person.has_a_clean_console(&[]);
}

#[test]
fn a_budget_is_added_and_deleted_and_faults_are_at_fields() {
    let server = TestServer::start();
    let person = Person::opens_at(&server, "/budgets");
    person.sees("No budgets yet.");
    person.presses("budget-add");
    person.types("budget-name", "daily");
    person.types("budget-limit", "12,50");
    person.types("budget-timezone", "Mars/Base");
    person.presses("budget-save");
    person.sees_text("budget-limit-fault", "is not an amount of US dollars");
    person.sees_text("budget-timezone-fault", "use an IANA name");
    person.browser.wait_for(&format!("document.activeElement === {}", element("budget-limit")));
    person.types("budget-limit", "0.001300000");
    person.types("budget-timezone", "Europe/Berlin");
    person.presses("budget-save");
    person.sees_text("meter-numbers", "$0.0013");
    person.sees_text("budget-terms", "in Europe/Berlin");
    person.browser.wait_for("document.activeElement.dataset.testid === 'budget-edit'");
    person.presses("budget-menu");
    person.presses("budget-delete");
    person.presses("confirm-ok");
    person.sees_toast("done", "was deleted");
    person.sees("No budgets yet.");
    assert_eq!(server.get("/api/budget").json()["budgets"], json!([]));
    person.has_a_clean_console(&["422"]);
}
