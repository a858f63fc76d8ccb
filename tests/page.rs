//! The page in a real Chromium against the real server, as a user sees it: its frame, addresses,
//! keyboard, token and connection. The views have files of their own.

use serde_json::{Value, json};

use flowledger::secret::Secret;

use crate::browser::Browser;
use crate::harness::{TestServer, agent, chain, two_nodes};

/// A user of the page.
pub struct Person {
    pub browser: Browser,
    origin: String,
}

impl Person {
    /// Opens the server's page in a new browser.
    pub fn opens(server: &TestServer) -> Self {
        Self::opens_at(server, "/")
    }

    /// Opens an address of the server's page in a new browser.
    pub fn opens_at(server: &TestServer, path: &str) -> Self {
        let person =
            Self { browser: Browser::launch(), origin: format!("http://{}", server.address()) };
        person.goes_to(path);
        person
    }

    /// Loads an address as from the browser's address bar.
    #[track_caller]
    pub fn goes_to(&self, path: &str) {
        // The address may be the present one, so the old document is marked.
        self.browser.eval("void (window.isOld = true)");
        self.browser.open(&format!("{}{path}", self.origin));
        self.browser.wait_for("!window.isOld && document.readyState === 'complete'");
        self.browser.eval(WITNESS);
        self.browser.wait_for("document.querySelector('main h1')");
    }

    /// Waits until the page is at this address, its query included.
    #[track_caller]
    pub fn is_at(&self, address: &str) {
        self.browser.wait_for(&format!(
            "decodeURIComponent(location.pathname + location.search) === {}",
            json!(address)
        ));
    }

    /// Waits until the view with this heading is shown, and is the title of the window.
    #[track_caller]
    pub fn sees_view(&self, title: &str) {
        self.browser.wait_for(&format!(
            "document.querySelector('main h1')?.innerText === {0} && document.title.startsWith({0})",
            json!(title)
        ));
    }

    /// Waits for the connection indicator to be in this state.
    #[track_caller]
    pub fn sees_that_it_is(&self, state: &str) {
        self.browser.wait_for(&format!(
            "{}.dataset.state === {}",
            element("connection"),
            json!(state)
        ));
    }

    /// Clicks the element with this test id.
    #[track_caller]
    pub fn presses(&self, testid: &str) {
        self.browser.click(&element(testid));
    }

    /// Clicks the first visible link or button with this text.
    #[track_caller]
    pub fn presses_text(&self, text: &str) {
        self.browser.click(&with_text("a, button, summary, [role=button]", text));
    }

    /// Replaces the text of the field with this test id.
    #[track_caller]
    pub fn types(&self, testid: &str, text: &str) {
        self.browser.type_into(&element(testid), text);
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

    /// Waits until the page contains this text.
    #[track_caller]
    pub fn sees(&self, text: &str) {
        self.browser.wait_for(&format!("document.body.innerText.includes({})", json!(text)));
    }

    /// Waits until the element with this test id is visible and contains this text.
    #[track_caller]
    pub fn sees_text(&self, testid: &str, text: &str) {
        self.browser.wait_for(&format!(
            "{0}.checkVisibility() && {0}.innerText.includes({1})",
            element(testid),
            json!(text)
        ));
    }

    /// Returns the text of an element once it has one.
    #[track_caller]
    pub fn reads(&self, testid: &str) -> String {
        let text = self.browser.wait_for(&format!("{}.innerText", element(testid)));
        text.as_str().unwrap().to_owned()
    }

    /// Waits until the element with this test id has the focus.
    #[track_caller]
    pub fn has_the_focus_on(&self, testid: &str) {
        let focus = format!("document.activeElement?.matches({})", json!(selector(testid)));
        self.browser.wait_for(&focus);
    }

    /// Waits until elements with this test id have these texts, in this order and no others. Each
    /// text need only be a part.
    #[track_caller]
    pub fn sees_list(&self, testid: &str, texts: &[&str]) {
        self.browser.wait_for(&format!(
            "(found => found.length === {0}.length && {0}.every((text, at) => found[at].innerText.includes(text)))
                ([...document.querySelectorAll({1})])",
            json!(texts),
            json!(selector(testid)),
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

/// Records toasts as they appear, because a polling test would miss short ones.
const WITNESS: &str = "void (() => {
    window.witness = [];
    const write = (records) => {
        for (const added of records.flatMap(({ addedNodes }) => [...addedNodes])) {
            if (added.dataset?.testid === 'toast') {
                const texts = [...added.querySelectorAll('strong, p')].map((e) => e.textContent);
                witness.push(`toast ${added.dataset.kind}: ${texts.join(': ')}`);
            }
        }
    };
    new MutationObserver(write).observe(document, { subtree: true, childList: true });
})()";

pub fn selector(testid: &str) -> String {
    format!("[data-testid={}]", json!(testid))
}

pub fn element(testid: &str) -> String {
    format!("document.querySelector({})", json!(selector(testid)))
}

/// An expression for the first visible element of these selectors with this text.
pub fn with_text(selectors: &str, text: &str) -> String {
    format!(
        "[...document.querySelectorAll({})].find((element) => element.checkVisibility() && element.innerText.trim() === {})",
        json!(selectors),
        json!(text)
    )
}

const VIEWS: [(&str, &str, &str); 8] = [
    ("/", "Overview", "o"),
    ("/flows", "Flows", "f"),
    ("/runs", "Runs", "r"),
    ("/calls", "Calls", "c"),
    ("/savings", "Savings", "s"),
    ("/budgets", "Budgets", "b"),
    ("/connect", "Connect", "k"),
    ("/settings", "Settings", "t"),
];

#[test]
fn each_view_has_an_address_a_title_and_a_shortcut() {
    let server = TestServer::start();
    let person = Person::opens(&server);
    for (path, title, letter) in VIEWS {
        person.goes_to(path);
        person.sees_view(title);
        let current = "document.querySelector('.nav [aria-current=page]').innerText";
        assert_eq!(person.browser.eval(current), title);
        person.browser.press("g");
        person.browser.press(if letter == "o" { "c" } else { "o" });
        person.sees_view(if letter == "o" { "Calls" } else { "Overview" });
        person.browser.press("g");
        person.browser.press(letter);
        person.sees_view(title);
        person.is_at(path);
    }
    person.goes_to("/settings");
    person.presses("nav-flows");
    person.sees_view("Flows");
    person.browser.wait_for("document.activeElement === document.querySelector('main h1')");
    person.browser.eval("history.back()");
    person.sees_view("Settings");
    person.browser.eval("history.forward()");
    person.sees_view("Flows");
    person.has_not_reloaded();
    person.goes_to("/flows/no-such-flow");
    person.has_a_clean_console(&["404"]);
}

#[test]
fn the_skip_link_and_help_work_by_keyboard() {
    let server = TestServer::start();
    let person = Person::opens(&server);
    person.sees_view("Overview");
    person.browser.eval("document.activeElement.blur()");
    person.browser.press("Tab");
    assert_eq!(person.browser.eval("document.activeElement.innerText"), "Skip to content");
    person.browser.press("Enter");
    person.browser.wait_for("document.activeElement.id === 'main'");
    person
        .browser
        .eval("document.dispatchEvent(new KeyboardEvent('keydown', { key: '?', bubbles: true }))");
    person.sees_text("shortcuts", "Go to Calls");
    person.browser.press("Escape");
    person.browser.wait_for(&format!("!{}", element("shortcuts")));
    person.has_a_clean_console(&[]);
}

#[test]
fn the_page_asks_for_the_token_until_it_is_valid_and_stores_it() {
    let server = TestServer::start_with(|config| config.token = Some(Secret::new("right-one")));
    let person = Person::opens_at(&server, "/calls");
    let browser = &person.browser;
    let asks = "document.querySelector('[data-testid=token-dialog]')?.open ?? false";
    let says_invalid = |is_invalid: bool| {
        browser.wait_for(&format!(
            "({asks}) && Boolean(document.querySelector('[data-testid=token-error]')) === {is_invalid}"
        ));
    };
    says_invalid(false);
    browser.type_into(&element("token-input"), "wrong-one");
    browser.click(&element("token-submit"));
    says_invalid(true);
    browser.type_into(&element("token-input"), "right-one");
    browser.click(&element("token-submit"));
    person.sees_that_it_is("connected");
    browser.wait_for(&format!("!({asks})"));

    browser.reload();
    person.sees_that_it_is("connected");
    person.sees_view("Calls");
    assert_eq!(browser.eval(asks), false);
    person.has_a_clean_console(&["401", "'ws://"]);
}

#[test]
fn the_page_reconnects_and_polls_without_a_websocket() {
    let mut server = TestServer::start();
    let flow = server.save(&two_nodes());
    server.run(flow, &json!({"topic": "ants"}));
    let person = Person::opens_at(&server, "/calls");
    person.sees_that_it_is("connected");
    person.sees_list("ledger-row", &["DRAFT", "PLAN"]);

    server.stop();
    person.sees_that_it_is("disconnected");
    server.start_again();
    server.run(flow, &json!({"topic": "bees"}));
    person.sees_that_it_is("connected");
    person.sees_list("ledger-row", &["DRAFT", "PLAN", "DRAFT", "PLAN"]);

    // If a network blocks WebSockets but not HTTP, the page polls.
    person.browser.eval(
        "void (window.Blocked = window.WebSocket, \
         window.WebSocket = class extends Blocked { constructor() { super('ws://127.0.0.1:1/'); } })",
    );
    server.start_again();
    person.sees_that_it_is("disconnected");
    server.run(flow, &json!({"topic": "wasps"}));
    person.sees_list("ledger-row", &["DRAFT", "PLAN"].repeat(3));

    person.browser.eval("void (window.WebSocket = Blocked)");
    person.presses_text("Retry now");
    person.sees_that_it_is("connected");
    server.run(flow, &json!({"topic": "moths"}));
    person.sees_list("ledger-row", &["DRAFT", "PLAN"].repeat(4));
    person.has_not_reloaded();
    person.has_a_clean_console(&["net::ERR_"]);
}

#[test]
fn a_mark_of_direction_in_a_name_reorders_nothing_beside_it() {
    let server = TestServer::start();
    let name = "Exe\u{202e}cod";
    let flow = server.save(&chain(name, &[agent("a\u{202e}b", "echo", "echo-1", "{{ nodes }}")]));
    server.run(flow, &json!({}));
    for path in ["/flows", "/runs", "/calls"] {
        let person = Person::opens_at(&server, path);
        person.sees(name);
        let isolated = format!(
            "[...document.querySelectorAll('main *')].filter((element) =>
                [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.includes({})))
                .every((element) => getComputedStyle(element).unicodeBidi === 'isolate' || element.matches('option'))",
            json!(name)
        );
        assert_eq!(person.browser.eval(&isolated), Value::Bool(true), "{path}");
        person.has_a_clean_console(&[]);
    }
}

#[test]
fn the_theme_follows_the_choice_and_else_the_system() {
    let server = TestServer::start();
    let person = Person::opens_at(&server, "/settings");
    let background = "getComputedStyle(document.body).backgroundColor";
    let light = person.browser.eval(background);
    person.presses("theme-dark");
    person.browser.wait_for(&format!("{background} !== {light}"));
    person.browser.reload();
    person.browser.wait_for(&format!("{background} !== {light}"));
    person.presses("theme-light");
    person.browser.wait_for(&format!("{background} === {light}"));
    person.has_a_clean_console(&[]);
}
