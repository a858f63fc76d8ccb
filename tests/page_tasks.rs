//! The tasks of everyday use, each in at most three clicks from the overview, in a wide window with
//! the mouse, on a phone with a finger, and in a wide window with the keyboard alone.
//!
//! A click is a press of the mouse, a tap, or, with the keyboard, a shortcut or a press of Enter or
//! Space. A choice in a list of the browser (`select`) counts once. The following do not count,
//! because they lead nowhere else: typing, scrolling, moving the focus, and the main button that
//! sends a form or confirms a question.

use std::cell::Cell;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use flowledger::providers::Kind;
use headless_chrome::protocol::cdp::Browser::{GrantPermissions, SetDownloadBehavior};
use headless_chrome::protocol::cdp::Emulation::{SetEmulatedMedia, SetTouchEmulationEnabled};
use headless_chrome::protocol::cdp::Page::SetInterceptFileChooserDialog;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{DEADLINE, TestServer, add_provider, agent, chain, eventually};
use crate::ledger_rows;
use crate::page::{Person, element, selector};
use crate::upstream::{STREAM_HEAD, Upstream, completion, delta, json_answer};

const CLICKS_MAX: u32 = 3;
const FLOWS: usize = 112;
const CALLS: u64 = 10_000;
/// Virtual rows keep the page light with any number of calls.
const ELEMENTS_MAX: u64 = 3_000;
/// Focusable elements between two that a task uses; more would be a burden.
const TABS_MAX: usize = 60;
/// The smallest side of a target for a finger, in pixels (WCAG 2.2, 2.5.8).
const TARGET_MIN: f64 = 24.0;
/// The duration of the slow node's call.
const SLOW: Duration = Duration::from_millis(300);

#[test]
fn finding_takes_at_most_three_clicks_by_mouse() {
    do_all(&FINDING, By::Mouse);
}

#[test]
fn finding_takes_at_most_three_taps_on_a_phone() {
    do_all(&FINDING, By::Touch);
}

#[test]
fn finding_takes_at_most_three_presses_by_keyboard() {
    do_all(&FINDING, By::Keyboard);
}

#[test]
fn following_takes_at_most_three_clicks_by_mouse() {
    do_all(&FOLLOWING, By::Mouse);
}

#[test]
fn following_takes_at_most_three_taps_on_a_phone() {
    do_all(&FOLLOWING, By::Touch);
}

#[test]
fn following_takes_at_most_three_presses_by_keyboard() {
    do_all(&FOLLOWING, By::Keyboard);
}

#[test]
fn changing_takes_at_most_three_clicks_by_mouse() {
    do_all(&CHANGING, By::Mouse);
}

#[test]
fn changing_takes_at_most_three_taps_on_a_phone() {
    do_all(&CHANGING, By::Touch);
}

#[test]
fn changing_takes_at_most_three_presses_by_keyboard() {
    do_all(&CHANGING, By::Keyboard);
}

fn do_all(tasks: &[(&str, Task)], by: By) {
    let seeded = Seeded::start();
    let user = User::opens(&seeded, by);
    let does = |name: &str, task: Task| {
        user.begins_anew();
        task(&user, &seeded);
        let clicks = user.clicks.get();
        assert!(clicks <= CLICKS_MAX, "{name} takes {clicks} clicks");
        if by == By::Touch {
            user.person.cannot_scroll_sideways(390);
        }
    };
    // All are tried, so that one report names all that fail.
    let mut failed = tasks.to_vec();
    failed.retain(|(name, task)| catch_unwind(AssertUnwindSafe(|| does(name, *task))).is_err());
    let failed: Vec<&str> = failed.iter().map(|(name, _)| *name).collect();
    assert_eq!(failed, Vec::<&str>::new());
    user.person.has_a_clean_console(&[]);
}

type Task = fn(&User, &Seeded);

const FINDING: [(&str, Task); 9] = [
    ("find what happened in the last run", last_run),
    ("this and last month's cost by model", cost_by_model),
    ("see a run as a graph", run_as_graph),
    ("find the slow node", slow_node),
    ("find the dearest calls", dearest_calls),
    ("list failed calls", failed_calls),
    ("CSV of the failed calls", csv_of_failed_calls),
    ("search flows", search_flows),
    ("search calls", search_calls),
];

const FOLLOWING: [(&str, Task); 6] = [
    ("follow streaming output in a run", follow_stream),
    ("deep link and back button", deep_link_and_back),
    ("copy a run id", copy_run_id),
    ("switch the theme", switch_theme),
    ("keep the place while rows arrive", keep_place),
    ("112 flows and 10,000 calls", many_rows),
];

const CHANGING: [(&str, Task); 9] = [
    ("create a flow", create_flow),
    ("change a prompt", change_prompt),
    ("set a budget", set_budget),
    ("create a key", create_key),
    ("connect an OpenAI SDK", connect_sdk),
    ("import a flow", import_flow),
    ("export a flow", export_flow),
    ("delete the imported flow", delete_flow),
    ("retry an old failed run", retry_old_run),
];

/* The server. */

/// A server with many flows and calls, three flows of interest, and an upstream that can fail, be
/// slow, and stream.
struct Seeded {
    server: TestServer,
    quick: i64,
    article: i64,
    live: i64,
    is_fixed: Arc<AtomicBool>,
    /// Each value lets the stream continue.
    proceed: Sender<()>,
    _upstream: Upstream,
}

impl Seeded {
    fn start() -> Self {
        let is_fixed = Arc::new(AtomicBool::new(false));
        let (proceed, wait) = bounded::<()>(0);
        let upstream = answering(Arc::clone(&is_fixed), wait);
        let mut server = TestServer::start_with(|config| {
            add_provider(config, "openai", Kind::OpenAi, upstream.url());
        });
        server.leave_unverified();
        let others: Vec<i64> = (3..FLOWS).map(|number| server.save(&echoing(number))).collect();
        server.stop();
        let newest_ms = flowledger::time::Timestamp::now().0;
        ledger_rows::fill(server.data().parent().unwrap(), CALLS, newest_ms);
        server.start_again();
        let article = server.save(&chain(
            "Article",
            &[
                agent("plan", "echo", "echo-1", "Plan it"),
                calling("research", "SLOW: {{ nodes.plan.output }}"),
                calling("write", "DEAR: {{ nodes.research.output }}"),
            ],
        ));
        let report = [calling("collect", "Collect"), calling("publish", "BROKEN")];
        let report = server.save(&chain("Report", &report));
        let live = server.save(&chain("Live story", &[calling("tell", "STREAM")]));
        server.run(report, &json!({}));
        for flow in &others[..3] {
            server.run(*flow, &json!({}));
        }
        server.run(article, &json!({}));
        let quick = others[0];
        Self { server, quick, article, live, is_fixed, proceed, _upstream: upstream }
    }

    fn flow(&self, id: i64) -> Value {
        self.server.get(&format!("/api/flows/{id}")).json()
    }
}

fn answering(is_fixed: Arc<AtomicBool>, wait: Receiver<()>) -> Upstream {
    // Nothing is ever sent, so a receiver with a timeout is a slow call.
    let (silent, slow) = bounded::<()>(0);
    Upstream::start(move |body, stream| {
        let _open = &silent;
        let answer = if body.contains("STREAM") {
            let _ = stream.write_all(format!("{STREAM_HEAD}{}", delta("Once upon ")).as_bytes());
            let _ = wait.recv_timeout(DEADLINE);
            let _ = stream.write_all(delta("a time").as_bytes());
            let _ = wait.recv_timeout(DEADLINE);
            let usage =
                json!({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 9}});
            let _ = write!(stream, "{}data: {usage}\n\ndata: [DONE]\n\n", delta("."));
            return;
        } else if body.contains("BROKEN") && !is_fixed.load(Ordering::SeqCst) {
            json_answer("402 Payment Required", r#"{"error":{"message":"no credit"}}"#)
        } else if body.contains("SLOW") {
            let _ = slow.recv_timeout(SLOW);
            completion("found", 10, 5)
        } else if body.contains("DEAR") {
            completion("An article on bees", 2_000_000, 5)
        } else {
            completion("well", 10, 5)
        };
        drop(stream.write_all(answer.as_bytes()));
    })
}

fn echoing(number: usize) -> Value {
    chain(&format!("Flow {number:03}"), &[agent("a", "echo", "echo-1", "hi")])
}

/// A node on the upstream; only the prompt `STREAM` streams.
fn calling(id: &str, prompt: &str) -> Value {
    let mut node = agent(id, "openai", "gpt-4o-mini", prompt);
    node["data"]["stream"] = json!(prompt == "STREAM");
    node
}

/* The user. */

#[derive(Clone, Copy, PartialEq)]
enum By {
    Mouse,
    Touch,
    Keyboard,
}

/// A user who can act in one way only, and counts the clicks.
struct User {
    person: Person,
    by: By,
    clicks: Cell<u32>,
    downloads: TempDir,
}

impl User {
    fn opens(seeded: &Seeded, by: By) -> Self {
        let person = Person::opens(&seeded.server);
        let downloads = tempfile::tempdir().unwrap();
        let browser = &person.browser;
        let (width, height) = if by == By::Touch { (390, 844) } else { (1440, 900) };
        browser.resize(width, height, by == By::Touch);
        browser.call::<SetTouchEmulationEnabled>(json!({"enabled": by == By::Touch}));
        let theme = if by == By::Touch { "dark" } else { "light" };
        let features = json!([{"name": "prefers-color-scheme", "value": theme}]);
        browser.call::<SetEmulatedMedia>(json!({"features": features}));
        let path = downloads.path();
        let behavior = json!({"behavior": "allow", "downloadPath": path});
        browser.call::<SetDownloadBehavior>(behavior);
        let permissions = json!(["clipboardReadWrite", "clipboardSanitizedWrite"]);
        browser.call::<GrantPermissions>(json!({"permissions": permissions}));
        browser.call::<SetInterceptFileChooserDialog>(json!({"enabled": true}));
        Self { person, by, clicks: Cell::new(0), downloads }
    }

    /// Opens the overview with the default settings.
    fn begins_anew(&self) {
        self.person.browser.eval("localStorage.clear()");
        self.person.goes_to("/");
        self.person.sees_view("Overview");
        self.person.browser.wait_for(&element("tiles"));
        self.clicks.set(0);
    }

    fn eval(&self, expression: &str) -> Value {
        self.person.browser.eval(expression)
    }

    #[track_caller]
    fn waits_for(&self, condition: &str) -> Value {
        self.person.browser.wait_for(condition)
    }

    #[track_caller]
    fn sees_heading(&self, text: &str) {
        self.waits_for(&format!(
            "document.querySelector('main h1')?.innerText === {}",
            json!(text)
        ));
    }

    fn count_click(&self) {
        self.clicks.set(self.clicks.get() + 1);
    }

    /// Clicks an element, which is a JavaScript expression.
    #[track_caller]
    fn clicks(&self, element: &str) {
        self.count_click();
        self.hits(element);
    }

    /// Clicks the main button of a form or a question; Enter in a line of a form does the same.
    #[track_caller]
    fn confirms(&self, testid: &str) {
        let is_in_line = "document.activeElement.matches('form input:not([type=checkbox])')";
        if self.by == By::Keyboard && self.eval(is_in_line) == true {
            self.person.browser.press("Enter");
        } else {
            self.hits(&visible(testid));
        }
    }

    #[track_caller]
    fn hits(&self, element: &str) {
        let browser = &self.person.browser;
        match self.by {
            By::Mouse => browser.click(element),
            By::Touch => {
                self.is_large_enough(element);
                browser.tap(element);
            }
            By::Keyboard => {
                self.reaches(element);
                // The arrow keys that move between radio buttons also choose one.
                if self.eval(&format!("{element}.type")) != "radio" {
                    browser.press("Enter");
                }
            }
        }
    }

    #[track_caller]
    fn is_large_enough(&self, element: &str) {
        // A click anywhere in a row opens it, and a label belongs to its control. Links in a sentence
        // are as high as its lines.
        let sides = self.waits_for(&format!(
            "(element => {{
                const {{ width, height }} = (element.closest('tr[data-key], label') ?? element).getBoundingClientRect();
                return element.closest('p') ? [1e6, 1e6] : [width, height];
            }})({element})"
        ));
        for side in [0, 1].map(|at: usize| sides[at].as_f64().unwrap()) {
            assert!(side >= TARGET_MIN, "{element} is too small for a finger: {sides}");
        }
    }

    /// Moves the focus to an element with the Tab and arrow keys.
    #[track_caller]
    fn reaches(&self, element: &str) {
        let browser = &self.person.browser;
        let mut presses = 0;
        loop {
            let step = self.waits_for(&NEXT_KEY.replace("ELEMENT", element));
            let Some(key) = step["key"].as_str() else { return };
            for _ in 0..step["times"].as_u64().unwrap() {
                if key == "Shift+Tab" {
                    browser.press_shift_tab();
                } else {
                    browser.press(key);
                }
                presses += 1;
            }
            assert!(presses <= TABS_MAX, "{element} is not reached after {presses} keys");
        }
    }

    /// Goes to a view by its link, or by its shortcut.
    #[track_caller]
    fn goes(&self, view: &str, letter: &str) {
        if self.by == By::Keyboard {
            self.count_click();
            self.person.browser.press("g");
            self.person.browser.press(letter);
        } else {
            let link = format!("nav-{view}");
            if self.by == By::Touch && self.eval(&format!("!{}", visible(&link))) == true {
                self.clicks(&visible("nav-more"));
            }
            self.clicks(&visible(&link));
        }
        let title = format!("{}{}", view[..1].to_uppercase(), &view[1..]);
        self.person.sees_view(&title);
        self.waits_for("document.activeElement === document.querySelector('main h1')");
    }

    /// Chooses an option of a list.
    #[track_caller]
    fn picks(&self, testid: &str, value: &str) {
        let list = visible(testid);
        self.count_click();
        if self.by == By::Keyboard {
            self.reaches(&list);
            let index = |of: &str| self.eval(&format!("{list}.{of}")).as_i64().unwrap();
            let wanted = index(&format!("querySelector('option[value={}]').index", json!(value)));
            let distance = wanted - index("selectedIndex");
            for _ in 0..distance.abs() {
                let key = if distance > 0 { "ArrowDown" } else { "ArrowUp" };
                self.person.browser.press(key);
            }
        } else {
            // The browser draws the list outside of the page, where the protocol cannot click.
            self.waits_for(&format!("{list}.checkVisibility()"));
            self.eval(&format!(
                "void ({list}.value = {}, {list}.dispatchEvent(new Event('change', {{ bubbles: true }})))",
                json!(value)
            ));
        }
        self.waits_for(&format!("{list}.value === {}", json!(value)));
    }

    /// Replaces the text of a field.
    #[track_caller]
    fn types(&self, testid: &str, text: &str) {
        let field = visible(testid);
        if self.by == By::Keyboard {
            self.reaches(&field);
        } else {
            self.hits(&field);
        }
        self.waits_for(&format!("document.activeElement === {field}"));
        self.eval(&format!("{field}.select()"));
        self.person.browser.type_text(text);
    }

    /// Puts the focus into the search of a view.
    #[track_caller]
    fn begins_search(&self, testid: &str) {
        if self.by == By::Keyboard {
            self.count_click();
            self.person.browser.press("/");
        } else {
            self.clicks(&visible(testid));
        }
        self.waits_for(&format!("document.activeElement === {}", visible(testid)));
    }

    /// Scrolls to the last row that is loaded.
    #[track_caller]
    fn scrolls_to_end(&self) {
        if self.by == By::Keyboard {
            self.reaches("document.querySelector('tr[data-key] .row-link[tabindex=\"0\"]')");
            self.person.browser.press("End");
        } else {
            self.eval("scrollTo(0, document.scrollingElement.scrollHeight)");
        }
    }

    /// Returns the content of the file that is downloaded next.
    #[track_caller]
    fn downloads(&self, act: impl FnOnce()) -> (String, String) {
        act();
        let dir = self.downloads.path();
        let finished = || -> Option<PathBuf> {
            let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
            let files: Vec<_> = files.collect();
            let [file] = &files[..] else { return None };
            let is_finished = file.extension().is_some_and(|kind| kind == "csv" || kind == "json");
            is_finished.then(|| file.clone())
        };
        eventually("the download", || finished().is_some());
        let file = finished().unwrap();
        let content = std::fs::read_to_string(&file).unwrap();
        std::fs::remove_file(&file).unwrap();
        (file.file_name().unwrap().to_string_lossy().into_owned(), content)
    }

    #[track_caller]
    fn has_copied(&self, part: &str) {
        self.waits_for("[...document.querySelectorAll('button.copy')].some((button) => button.innerText === 'Copied')");
        let copied = self.eval("navigator.clipboard.readText()");
        assert!(copied.as_str().unwrap().contains(part), "{copied} should contain {part}");
    }
}

/// Returns the key that moves the focus towards ELEMENT, and how often to press it, or an empty
/// object if it has the focus. In lists, graphs and radio buttons, one element is in the Tab order
/// and arrow keys move to the others.
const NEXT_KEY: &str = "(() => {
    const element = ELEMENT;
    if (!element.checkVisibility() || element.disabled || element.ariaDisabled === 'true') return null;
    const active = document.activeElement;
    if (active === element) return {};
    const kind = ['.row-link', '.graph-node', 'input[type=radio]'].find((selectors) => element.matches(selectors));
    const group = kind ? [...document.querySelectorAll(kind)].filter(({ name }) => name === element.name) : [element];
    const at = group.indexOf(active);
    if (at >= 0) {
        const steps = group.indexOf(element) - at;
        const [back, on] = kind === '.graph-node' && innerWidth > 768 ? ['ArrowLeft', 'ArrowRight'] : ['ArrowUp', 'ArrowDown'];
        return { key: steps < 0 ? back : on, times: 1 };
    }
    const root = [...document.querySelectorAll('dialog[open]')].at(-1) ?? document;
    const stops = [...root.querySelectorAll('a[href], button, input, select, textarea, summary, [tabindex]')].filter((one) =>
        one.tabIndex >= 0 && !one.disabled && one.checkVisibility({ visibilityProperty: true }) && (one.type !== 'radio' || one.checked || one === element));
    const target = group.length > 1 ? group.find((one) => stops.includes(one)) : element;
    const from = stops.findLastIndex((one) => one === active || active.compareDocumentPosition(one) & Node.DOCUMENT_POSITION_PRECEDING);
    const distance = stops.indexOf(target) - from;
    if (distance <= 0) return { key: 'Shift+Tab', times: Math.max(1, -distance + (stops[from] === active ? 0 : 1)) };
    return { key: 'Tab', times: distance };
})()";

/// An expression for the visible element with this test id.
fn visible(testid: &str) -> String {
    format!(
        "[...document.querySelectorAll({})].find((element) => element.checkVisibility())",
        json!(selector(testid))
    )
}

/// An expression for the row with this text.
fn row(testid: &str, text: &str) -> String {
    format!(
        "[...document.querySelectorAll({})].find((row) => row.innerText.includes({}))",
        json!(selector(testid)),
        json!(text)
    )
}

fn link_of(testid: &str, text: &str) -> String {
    format!("{}.querySelector('.row-link')", row(testid, text))
}

fn node(id: &str) -> String {
    format!("document.querySelector('.graph-node[data-node-id={id}]')")
}

/* The tasks. */

fn opens_last_run_of(user: &User, flow: &str) {
    user.goes("runs", "r");
    user.clicks(&link_of("run-row", flow));
    user.sees_heading(flow);
}

fn last_run(user: &User, _: &Seeded) {
    user.goes("runs", "r");
    user.waits_for(&row("run-row", "Article"));
    user.clicks("document.querySelector('[data-testid=run-row] .row-link')");
    user.person.sees_text("run-status", "completed");
    user.person.sees_text("run-output", "An article on bees");
    user.person.sees_text("run-cost", "$0.30");
}

/// Compares the table with the sums of the server: the models and their numbers of calls.
fn sees_models_from(user: &User, months_ago: u32) {
    let expected = format!(
        "(async () => {{
            const now = new Date();
            const month = (ago) => new Date(now.getFullYear(), now.getMonth() - ago, 1).toISOString();
            const to = {months_ago} === 0 ? '' : `&to=${{month({months_ago} - 1)}}`;
            const sums = await (await fetch(`/api/ledger/summary?group_by=model&from=${{month({months_ago})}}${{to}}`)).json();
            return sums.items.map(({{ key, calls }}) => `${{key}} ${{calls.toLocaleString('en-US')}}`).sort();
        }})()"
    );
    let models = user.eval(&expected);
    assert!(models.as_array().is_some_and(|all| all.len() > 1), "{models}");
    user.waits_for(&format!(
        "JSON.stringify([...document.querySelectorAll('[data-testid=model-row]')].map(({{ cells }}) => \
         `${{cells[0].innerText.trim()}} ${{cells[1].innerText.trim()}}`).sort()) === {}",
        json!(models.to_string())
    ));
}

fn cost_by_model(user: &User, _: &Seeded) {
    user.picks("period-select", "month");
    sees_models_from(user, 0);
    user.picks("period-select", "last-month");
    sees_models_from(user, 1);
    user.person.is_at("/?period=last-month");
}

fn create_flow(user: &User, _: &Seeded) {
    user.goes("flows", "f");
    user.clicks(&visible("new-flow"));
    user.clicks(&visible("template-plan-then-write"));
    user.person.sees_view("Plan, then write");
    user.waits_for("document.querySelectorAll('.graph-node').length >= 2");
}

fn change_prompt(user: &User, seeded: &Seeded) {
    user.goes("flows", "f");
    user.clicks(&link_of("flow", "Article"));
    user.person.sees_view("Article");
    user.clicks(&node("plan"));
    user.types("node-prompt", "Plan it well");
    user.confirms("node-save");
    user.person.sees_toast("done", "Saved Article");
    let flow = seeded.flow(seeded.article);
    assert_eq!(flow["data"]["nodes"][0]["data"]["prompt"], "Plan it well");
}

fn run_as_graph(user: &User, _: &Seeded) {
    opens_last_run_of(user, "Article");
    for (id, state) in [("plan", "completed"), ("research", "completed"), ("write", "completed")] {
        user.waits_for(&format!("{}.dataset.state === '{state}'", node(id)));
    }
    user.waits_for("document.querySelectorAll('[data-testid=graph-edge]').length === 2");
}

fn slow_node(user: &User, _: &Seeded) {
    opens_last_run_of(user, "Article");
    user.person.sees_text("slowest", "slowest");
    user.clicks(&format!("{}.closest('button')", element("slowest")));
    user.waits_for(&format!("{}.dataset.nodeId === 'research'", element("node-run")));
    user.person.sees_text("node-run", "Duration");
}

fn dearest_calls(user: &User, _: &Seeded) {
    user.goes("calls", "c");
    user.clicks(&visible("quick-most-expensive"));
    user.person.is_at("/calls?sort=cost");
    user.waits_for(
        "document.querySelector('[data-testid=ledger-row] [data-column=cost]').innerText.includes('$0.30')",
    );
}

fn opens_failed_calls(user: &User) {
    user.clicks(&visible("failed-calls"));
    user.person.sees_view("Calls");
    user.person.sees_text("filter-chip", "failed");
    user.waits_for(&format!(
        "(rows => rows.length > 5 && rows.every((row) => row.dataset.status !== 'SUCCESS'))
            ([...document.querySelectorAll({})])",
        json!(selector("ledger-row"))
    ));
}

fn failed_calls(user: &User, _: &Seeded) {
    opens_failed_calls(user);
    user.waits_for(&row("ledger-row", "PUBLISH"));
}

/// The ids of all rows, top to bottom; only those in the window are in the document.
const ALL_IDS: &str = "(async () => {
    const ids = new Set();
    for (let before = -1; before !== scrollY || !document.querySelector('.table-end'); ) {
        before = scrollY;
        for (const row of document.querySelectorAll('[data-testid=ledger-row]')) ids.add(row.dataset.entryId);
        scrollBy({ top: innerHeight / 2, behavior: 'instant' });
        await new Promise((done) => setTimeout(done, 150));
    }
    return [...ids];
})()";

fn csv_of_failed_calls(user: &User, _: &Seeded) {
    opens_failed_calls(user);
    let (name, csv) = user.downloads(|| user.clicks(&visible("ledger-csv")));
    assert_eq!(name, "ledger.csv");
    let mut lines = csv.lines();
    let columns: Vec<&str> = lines.next().unwrap().split(',').collect();
    assert!(columns.contains(&"flow_name"), "{columns:?}");
    let at = columns.iter().position(|column| *column == "id").unwrap();
    let ids: Vec<&str> = lines.map(|line| line.split(',').nth(at).unwrap()).collect();
    assert_eq!(json!(ids), user.eval(ALL_IDS));
}

fn set_budget(user: &User, seeded: &Seeded) {
    user.goes("budgets", "b");
    user.clicks(&visible("budget-add"));
    user.types("budget-name", "Everything");
    user.types("budget-limit", "250");
    user.confirms("budget-save");
    user.person.sees_list("budget", &["Everything"]);
    let saved = seeded.server.get("/api/budget").json();
    assert_eq!(saved["budgets"][0]["per"], "month");
}

fn create_key(user: &User, _: &Seeded) {
    user.goes("connect", "k");
    user.clicks(&visible("key-add"));
    user.types("key-name", "laptop");
    user.confirms("key-save");
    let key = user.waits_for(&format!("{}.innerText", element("key-secret")));
    user.confirms("key-copy");
    user.has_copied(key.as_str().unwrap());
    user.confirms("key-done");
    user.waits_for(&row("key", "laptop"));
}

fn connect_sdk(user: &User, seeded: &Seeded) {
    user.goes("connect", "k");
    user.person.sees_text("client-code", "from openai import OpenAI");
    user.clicks(&format!(
        "{}.closest('.code-block').querySelector('button.copy')",
        element("client-code")
    ));
    user.has_copied(&format!("base_url=\"http://{}/v1\"", seeded.server.address()));
}

fn import_flow(user: &User, seeded: &Seeded) {
    user.goes("flows", "f");
    user.clicks(&visible("new-flow"));
    user.clicks(&visible("new-files"));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("imported.json");
    let document = chain("Imported flow", &[agent("a", "echo", "echo-1", "hi")]);
    std::fs::write(&file, document.to_string()).unwrap();
    user.person.browser.choose_files(&selector("file-input"), &[file.to_str().unwrap()]);
    user.person.sees_view("Imported flow");
    let found = seeded.server.get("/api/flows?summary=true&q=Imported").json();
    assert_eq!(found["items"][0]["node_count"], 1);
}

fn opens_menu_of(user: &User, flow: &str) {
    user.goes("flows", "f");
    user.clicks(&format!("{}.querySelector('.menu summary')", row("flow", flow)));
}

fn export_flow(user: &User, seeded: &Seeded) {
    opens_menu_of(user, "Article");
    let (name, text) = user.downloads(|| user.clicks(&visible("flow-export")));
    assert!(name.to_lowercase().contains("article"), "{name}");
    let exported: Value = serde_json::from_str(&text).unwrap();
    let saved = seeded.flow(seeded.article);
    assert_eq!(exported["name"], saved["name"]);
    assert_eq!(exported["data"], saved["data"]);
}

fn delete_flow(user: &User, seeded: &Seeded) {
    opens_menu_of(user, "Imported flow");
    user.clicks(&visible("flow-delete"));
    user.confirms("confirm-ok");
    user.person.sees_toast("done", "Deleted Imported flow");
    user.waits_for(&format!("!{}", row("flow", "Imported flow")));
    let found = seeded.server.get("/api/flows?summary=true&q=Imported").json();
    assert_eq!(found["items"], json!([]));
}

fn search_flows(user: &User, _: &Seeded) {
    user.goes("flows", "f");
    user.waits_for(&element("flow-search"));
    user.begins_search("flow-search");
    user.person.browser.type_text("flow 077");
    user.person.sees_list("flow", &["Flow 077"]);
}

fn search_calls(user: &User, _: &Seeded) {
    if user.by != By::Keyboard {
        user.goes("calls", "c");
    }
    user.begins_search("calls-search");
    user.person.browser.type_text("no credit");
    user.waits_for("location.search.includes('q=no+credit')");
    user.person.sees_list("ledger-row", &["PUBLISH"]);
}

fn retry_old_run(user: &User, seeded: &Seeded) {
    seeded.is_fixed.store(true, Ordering::SeqCst);
    opens_last_run_of(user, "Report");
    user.person.sees_text("run-error", "no credit");
    user.clicks(&visible("run-retry"));
    user.person.sees_text("run-status", "completed");
    user.waits_for(&format!("{}.dataset.state === 'completed'", node("publish")));
}

fn follow_stream(user: &User, seeded: &Seeded) {
    seeded.server.execute(seeded.live, &json!({}));
    let link = format!("{}.querySelector('a')", row("running-run", "Live story"));
    user.clicks(&link);
    user.sees_heading("Live story");
    user.clicks(&node("tell"));
    user.waits_for(&element("node-run"));
    seeded.proceed.send_timeout((), DEADLINE).unwrap();
    user.person.sees_text("stream-text", "a time");
    seeded.proceed.send_timeout((), DEADLINE).unwrap();
    user.person.sees_text("node-output", "Once upon a time.");
}

fn deep_link_and_back(user: &User, seeded: &Seeded) {
    let runs = seeded.server.get("/api/runs?q=Article&limit=1").json();
    let run = format!("/runs/{}", runs["items"][0]["runId"].as_str().unwrap());
    user.person.goes_to(&format!("{run}?node=research"));
    user.waits_for(&format!("{}.dataset.nodeId === 'research'", element("node-run")));
    user.person.goes_to(&run);
    user.clicks(&visible("run-flow"));
    user.person.sees_view("Article");
    user.goes("runs", "r");
    user.clicks(&visible("status-FAILED"));
    user.person.is_at("/runs?status=FAILED");
    user.eval("history.back()");
    user.person.sees_view("Article");
    user.eval("history.back()");
    user.person.is_at(&run);
    user.person.sees_text("run-status", "completed");
    user.eval("history.forward()");
    user.eval("history.forward()");
    user.person.is_at("/runs?status=FAILED");
    user.waits_for(&format!("{}.ariaPressed === 'true'", visible("status-FAILED")));
    user.person.has_not_reloaded();
}

fn copy_run_id(user: &User, _: &Seeded) {
    opens_last_run_of(user, "Article");
    let id = user.waits_for(&format!("{}.innerText", element("run-id")));
    let copy = format!("{}.parentElement.querySelector('button.copy')", element("run-id"));
    user.clicks(&copy);
    user.has_copied(id.as_str().unwrap());
}

fn switch_theme(user: &User, _: &Seeded) {
    let background = "getComputedStyle(document.body).backgroundColor";
    let before = user.eval(background);
    let theme = if user.by == By::Touch { "light" } else { "dark" };
    user.goes("settings", "t");
    user.clicks(&visible(&format!("theme-{theme}")));
    user.waits_for(&format!("{background} !== {before}"));
    user.waits_for(&format!("document.documentElement.dataset.theme === '{theme}'"));
}

fn keep_place(user: &User, seeded: &Seeded) {
    user.goes("calls", "c");
    user.waits_for("document.querySelectorAll('[data-testid=ledger-row]').length > 10");
    user.person.sees_that_it_is("connected");
    if user.by == By::Keyboard {
        user.reaches("document.querySelector('tr[data-key] .row-link[tabindex=\"0\"]')");
        user.person.browser.press("PageDown");
    } else {
        user.eval("scrollTo({ top: 2 * innerHeight, behavior: 'instant' })");
    }
    user.waits_for("scrollY > 100");
    let seen = user.waits_for(
        "(row => row && { id: row.dataset.key, top: row.getBoundingClientRect().top })
            ([...document.querySelectorAll('tr[data-key]')].find((row) => row.getBoundingClientRect().top > innerHeight / 2))",
    );
    for _ in 0..3 {
        seeded.server.run(seeded.quick, &json!({}));
    }
    user.person.sees_text("news-button", "3 new calls");
    let place = format!(
        "Math.abs(document.querySelector('tr[data-key=\"{}\"]').getBoundingClientRect().top - {})",
        seen["id"].as_str().unwrap(),
        seen["top"]
    );
    let moved = user.eval(&place).as_f64().unwrap();
    assert!(moved <= 1.0, "the row moved by {moved} px");
    user.clicks(&visible("news-button"));
    user.waits_for("scrollY < 100");
    user.waits_for(&format!("!{}", element("news-button")));
}

fn many_rows(user: &User, seeded: &Seeded) {
    user.goes("calls", "c");
    user.picks("period-select", "all");
    user.person.sees_text("calls-sums", "10,0");
    for rows in [100, 200, 300] {
        user.scrolls_to_end();
        user.waits_for(&format!(
            "[...document.querySelectorAll('tr[data-key]')].some((row) => Number(row.ariaRowIndex) >= {rows})"
        ));
    }
    let elements = user.eval("document.querySelectorAll('*').length").as_u64().unwrap();
    assert!(elements <= ELEMENTS_MAX, "{elements} elements");
    user.goes("flows", "f");
    user.waits_for(&row("flow", "Article"));
    user.scrolls_to_end();
    let flows = seeded.server.get("/api/flows?summary=true&limit=1000").json();
    let count = flows["items"].as_array().unwrap().len();
    assert!(count >= FLOWS);
    user.person.sees(&format!("All {count} flows"));
    user.waits_for("scrollY > innerHeight");
}
