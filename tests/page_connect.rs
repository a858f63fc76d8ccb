//! The view "Connect" in a real browser: keys, providers, models with prices, and set-ups.

use std::io::Write;

use flowledger::providers::Kind;
use serde_json::{Value, json};

use crate::harness::{TestServer, add_provider, agent, chain};
use crate::page::{Person, element, selector};
use crate::upstream::{Upstream, completion, completion_of};

/// Would run if the page inserted it as markup instead of text.
const MARKUP: &str = "<img src=x onerror=\"window.hacked = true\">";

/// Sets the value of a field that is not typed into: a date or a choice.
#[track_caller]
fn chooses(person: &Person, testid: &str, value: &str) {
    person.browser.wait_for(&format!(
        "(field => (field.value = {}, ['input', 'change'].every((type) => field.dispatchEvent(new Event(type, {{ bubbles: true }})))))({})",
        json!(value),
        element(testid)
    ));
}

/// Clicks an item of the first key's menu.
#[track_caller]
fn chooses_from_menu(person: &Person, item: &str) {
    person.browser.click(&format!("{}.querySelector('summary')", element("key-menu")));
    person.presses(item);
}

#[track_caller]
fn closes(person: &Person, testid: &str) {
    person.browser.wait_for(&format!("!{}", element(testid)));
}

/// An expression for a provider or model of this name.
fn item(testid: &str, name: &str) -> String {
    format!("document.querySelector('{}[data-name={}]')", selector(testid), json!(name))
}

#[track_caller]
fn sees_in(person: &Person, part: &str, texts: &[&str]) {
    person.browser.wait_for(&format!(
        "(shown => {}.every((text) => shown.includes(text)))({part}.innerText)",
        json!(texts)
    ));
}

#[test]
fn a_key_with_a_budget_is_created_shown_once_and_works() {
    let upstream = Upstream::saying(completion("done", 9, 1));
    let server = TestServer::start_with(|config| {
        add_provider(config, "openai", Kind::OpenAi, upstream.url());
    });
    let person = Person::opens_at(&server, "/connect?client=openai-python");
    let browser = &person.browser;
    person.sees_that_it_is("connected");
    browser.resize(360, 800, true);
    person.sees("No keys yet.");
    // Faults are shown at their fields, and no key is created.
    person.presses("key-add");
    person.has_the_focus_on("key-name");
    person.presses("key-hasBudget");
    person.types("key-limit", "much");
    chooses(&person, "key-expiresAt", "2020-02-01");
    person.presses("key-save");
    person.sees_text("key-name-fault", "must be a string of 1 to 100 bytes");
    person.sees_text("key-expiresAt-fault", "must be in the future");
    person.sees_text("key-limit-fault", "is not an amount of US dollars");
    person.has_the_focus_on("key-name");
    person.cannot_scroll_sideways(360);
    chooses(&person, "key-unit", "tokens");
    person.types("key-limit", "1,000");
    person.presses("key-save");
    person.sees_text("key-limit-fault", "must be a whole number of tokens");
    // Escape does not lose the input.
    browser.press("Escape");
    person.sees_text("confirm", "The input was not saved.");
    person.presses("confirm-cancel");
    chooses(&person, "key-expiresAt", "2999-02-01");
    person.types("key-limit", "1000");
    person.types("key-name", MARKUP);
    browser.press("Enter");
    person.sees_text("key-created", "shown only once");
    person.has_the_focus_on("key-copy");
    person.cannot_scroll_sideways(360);
    let key = person.reads("key-secret");
    assert!(person.reads("key-curl").contains(&format!("Bearer {key}'")));
    let saved = server.get("/api/keys").json()["items"][0].clone();
    assert_eq!((&saved["name"], &saved["budgets"]), (&json!(MARKUP), &json!([MARKUP])));
    assert!(saved["expiresAt"].as_str().unwrap().starts_with("2999-0"));

    // A key that was not copied is not lost by Escape.
    browser.press("Escape");
    person.sees_text("confirm", "Close without copying the key?");
    browser.press("Escape");
    closes(&person, "confirm");
    person.sees_text("key-secret", &key);
    person.presses("key-copy");
    person.sees_text("key-copy", "Copied");
    browser.press("Escape");
    closes(&person, "key-created");
    person.sees_text("client-code", &format!("api_key=\"{key}\""));
    person.sees_text("key", "never");

    // The key works for a call, and its budget follows.
    let headers = [("authorization", &*format!("Bearer {key}"))];
    let body = json!({"model": "gpt-4o-mini", "max_tokens": 10, "messages": [{"role": "user", "content": "Hi"}]});
    let body = body.to_string();
    let answer = server.request("POST", "/v1/chat/completions", &headers, body.as_bytes());
    assert_eq!(answer.status, 200, "{}", answer.text());
    person.sees_text("key-budget", "10 of 1,000 tokens");
    person.sees_text("key", "in 1 call");

    // The key is gone with the view and is stored nowhere.
    person.goes_to("/connect");
    person.sees_text("key", MARKUP);
    let is_kept = format!(
        "[document.documentElement.outerHTML, JSON.stringify(localStorage), JSON.stringify(sessionStorage)]
            .some((text) => text.includes({}))",
        json!(key)
    );
    assert_eq!(browser.eval(&is_kept), false);
    assert_eq!(browser.eval("typeof window.hacked"), "undefined");
    person.has_a_clean_console(&["422"]);
}

#[test]
fn a_key_is_edited_replaced_and_deleted() {
    let server = TestServer::start();
    let flow = server.save(&chain("Named", &[agent("only", "echo", "echo-1", "x")]));
    let limits = json!({"name": "bot", "expiresAt": "2999-02-01T12:34:56Z",
        "budget": {"per": "day", "limitUsd": "1", "hard": true}});
    let old = server.post("/api/keys", &limits).json()["key"].as_str().unwrap().to_owned();
    let person = Person::opens_at(&server, "/connect?client=curl");
    let browser = &person.browser;
    person.sees_that_it_is("connected");
    browser.resize(360, 800, true);
    let saved = || server.get("/api/keys").json()["items"][0].clone();
    person.presses("key-edit");
    person.has_the_focus_on("key-models");
    assert_eq!(browser.eval(&format!("{}.disabled", element("key-name"))), true);
    person.types("key-models", "echo/echo-1\nnobody/x");
    person.types("key-requestsPerMinute", "1,000");
    person.presses("key-save");
    person.sees_text("key-requestsPerMinute-fault", "must be a whole number");
    person.types("key-requestsPerMinute", "2");
    person.types("key-tokensPerMinute", "5000");
    person.presses("key-save");
    person.sees_text("key-models-fault", "unknown provider `nobody`");
    person.types("key-models", "echo/echo-1\necho/a-very-long-name-of-a-model-that-does-not-fit*");
    browser.click(&format!("{}.querySelector('input')", element("key-flows")));
    person.presses("key-save");
    person.sees_toast("done", "“bot” was saved");
    person.has_the_focus_on("key-edit");
    for text in ["Models\necho/echo-1", "Flows\nNamed", "Per minute\n2 requests, 5,000 tokens"] {
        person.sees_text("key", text);
    }
    person.cannot_scroll_sideways(360);
    assert_eq!((&saved()["flows"], &saved()["requestsPerMinute"]), (&json!([flow]), &json!(2)));
    // The time of the expiry stays, because the day was not changed.
    assert_eq!(saved()["expiresAt"], "2999-02-01T12:34:56.000Z");
    // Cleared limits are removed.
    person.presses("key-edit");
    for field in ["key-models", "key-requestsPerMinute", "key-tokensPerMinute"] {
        chooses(&person, field, "");
    }
    person.presses("key-save");
    browser.wait_for(&format!("!{}.innerText.includes('Per minute')", element("key")));
    assert_eq!(
        (&saved()["models"], &saved()["tokensPerMinute"], &saved()["flows"]),
        (&Value::Null, &Value::Null, &json!([flow]))
    );

    // Replaced: both keys work in the time of grace.
    let status = |key: &str| {
        let headers = [("authorization", &*format!("Bearer {key}"))];
        server.request("GET", "/v1/models", &headers, b"").status
    };
    chooses_from_menu(&person, "key-rotate");
    person.sees_text("confirm", "The current key stays valid for");
    person.presses("confirm-cancel");
    assert_eq!(saved()["formerKeyValidUntil"], Value::Null);
    chooses_from_menu(&person, "key-rotate");
    person.presses("confirm-ok");
    person.sees_text("key-created", "shown only once");
    let new = person.reads("key-secret");
    assert_ne!(old, new);
    assert_eq!((status(&old), status(&new)), (200, 200));
    person.presses("key-done");
    person.sees_text("confirm", "Close without copying the key?");
    person.presses("confirm-ok");
    person.sees_text("key", "Former key\nvalid until");
    person.sees_text("client-code", &new);
    // Without grace, the former key is refused at once.
    chooses_from_menu(&person, "key-rotate");
    chooses(&person, "key-grace", "0");
    person.presses("confirm-ok");
    browser.wait_for(&format!("{}.innerText !== {}", element("key-secret"), json!(new)));
    let newest = person.reads("key-secret");
    assert_eq!((status(&new), status(&newest)), (401, 200));
    person.presses("key-done");
    person.presses("confirm-ok");

    chooses_from_menu(&person, "key-delete");
    person.sees_text("confirm", "will be refused");
    person.sees_text("confirm", "stay for a later key of the same name");
    person.presses("confirm-cancel");
    assert_eq!(status(&newest), 200);
    chooses_from_menu(&person, "key-delete");
    person.presses("key-with-budgets");
    person.presses("confirm-ok");
    person.sees_toast("done", "“bot” and the budget “bot” were deleted");
    person.sees("No keys yet.");
    person.has_the_focus_on("key-add");
    assert_eq!(status(&newest), 401);
    assert_eq!(server.get("/api/budget").json()["budgets"], json!([]));
    person.has_a_clean_console(&["422"]);
}

#[test]
fn providers_show_states_missing_keys_and_test_calls() {
    let upstream = Upstream::of_heads(|_, _, stream| {
        let _ = stream.write_all(completion("well", 10, 5).as_bytes());
    });
    let server = TestServer::start_with(|config| {
        add_provider(config, "openai", Kind::OpenAi, upstream.url());
        add_provider(config, "gone", Kind::OpenAi, "http://user:secret-word@127.0.0.1:9/v1");
        add_provider(config, "groq", Kind::OpenAi, "http://127.0.0.1:9/v1");
        let keyless = config.providers.get_mut("groq").unwrap();
        (keyless.api_key, keyless.missing_key_hint) = (None, Some("set GROQ_API_KEY".into()));
    });
    let person = Person::opens_at(&server, "/connect?part=providers");
    person.sees_that_it_is("connected");
    let shows = |name: &str, texts: &[&str]| sees_in(&person, &item("provider", name), texts);
    let tests = |name: &str| {
        let button = selector("provider-test");
        person.browser.click(&format!("{}.querySelector('{button}')", item("provider", name)));
    };
    shows("openai", &["not called yet", "API of openai at http://127.0.0.1:"]);
    shows("echo", &["Works offline, is free"]);
    tests("openai");
    shows("openai", &["Test passed in ", ": 1 model listed"]);
    // A call changes the state while the view is open.
    let body =
        json!({"model": "openai/gpt-4o-mini", "messages": [{"role": "user", "content": "Hi"}]});
    assert_eq!(server.post("/v1/chat/completions", &body).status, 200);
    shows("openai", &["ready", "last success"]);
    tests("echo");
    shows("echo", &["Test passed in "]);
    tests("gone");
    shows("gone", &["Test failed: ", "cannot connect"]);
    assert_eq!(
        person.browser.eval("document.documentElement.outerHTML.includes('secret-word')"),
        false
    );
    // Providers without a key are apart, with the name of the variable.
    person.browser.click(&format!("{}.querySelector('summary')", element("providers-missing")));
    person.sees_text("providers-missing", "1 provider without a key");
    shows("groq", &["no key"]);
    person.has_not_reloaded();
    person.has_a_clean_console(&[]);
}

#[test]
fn models_are_shown_with_prices_and_missing_prices() {
    let upstream = Upstream::start(|body, stream| {
        let model = if body.contains("home-made") { "home-made" } else { "gpt-4o-mini" };
        let _ = stream.write_all(completion_of(model, "well", 1_000, 100).as_bytes());
    });
    let server = TestServer::start_with(|config| {
        add_provider(config, "openai", Kind::OpenAi, upstream.url());
    });
    let nodes = ["gpt-4o-mini", "home-made"].map(|model| {
        let mut node = agent(model, "openai", model, "x");
        node["data"]["stream"] = json!(false);
        node
    });
    server.run(server.save(&chain("Two models", &nodes)), &json!({}));
    let person = Person::opens_at(&server, "/connect?part=models");
    // gpt-4o-mini: 0.15 and 0.60 USD per million tokens, cached input 0.075.
    let known = item("model", "openai/gpt-4o-mini");
    sees_in(&person, &known, &["$0.15", "$0.075", "$0.6"]);
    let unknown = item("model", "openai/home-made");
    person.browser.wait_for(&format!("!{unknown}.innerText.includes('$')"));
    person.sees_text("prices-missing", "1 model without a price");
    person.sees_list("price-missing", &["openai/home-made"]);
    sees_in(&person, &element("price-missing"), &["1 call", "1,000 tokens in, 100 out"]);
    person.sees_text("prices-missing", "model = \"home-made\"");
    // A model leads to its calls.
    person.browser.click(&format!("{unknown}.querySelector('a')"));
    person.sees_list("ledger-row", &["home-made"]);
    person.has_not_reloaded();
    person.has_a_clean_console(&[]);
}

#[test]
fn set_ups_name_the_address_of_the_server() {
    let server = TestServer::start();
    let base = format!("http://{}", server.address());
    let person = Person::opens_at(&server, "/connect");
    assert_eq!(person.reads("base-url-openai"), format!("{base}/v1"));
    assert_eq!(person.reads("base-url-anthropic"), base);
    assert_eq!(person.reads("base-url-gemini"), base);
    let select = element("client-select");
    let clients =
        person.browser.eval(&format!("[...{select}.options].map(({{ value }}) => value)"));
    let clients = clients.as_array().unwrap().clone();
    assert!(clients.len() > 10, "{clients:?}");
    let codes = format!(
        "[...document.querySelectorAll({})].map((code) => code.innerText).join('\\n')",
        json!(selector("client-code"))
    );
    for client in clients {
        let client = client.as_str().unwrap();
        chooses(&person, "client-select", client);
        person.is_at(&format!("/connect?client={client}"));
        person.browser.wait_for(&format!("({codes}).includes({})", json!(base)));
    }
    // The address of a client works when it is opened.
    person.goes_to("/connect?client=codex");
    person.sees_text("client-code", &format!("base_url = \"{base}/v1\""));
    person.has_a_clean_console(&[]);
}
