//! The page in a real Chromium with 10,000 calls: what each view loads, when its content appears
//! beside an empty page of the same server, and the longest tasks of its script while a reader
//! scrolls and while 700 calls end in five seconds.
//!
//! `make bench-page` prints the tables, and `make pictures` takes the pictures of the documents. The server is a separate process.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[allow(dead_code)]
#[path = "../../tests/browser.rs"]
mod browser;
#[allow(dead_code)]
#[path = "../runs/client.rs"]
mod client;
#[allow(dead_code)]
#[path = "../ledger/fill.rs"]
mod fill;
mod harness;
mod pictures;
#[allow(dead_code)]
#[path = "../runs/processes.rs"]
mod processes;

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use flowledger::time::Timestamp;
use serde_json::{Value, json};

use browser::Browser;
use client::Client;
use processes::{Server, Upstream};

const ROWS: u64 = 10_000;
/// Calls that end while a view is open, and the time for them.
const LIVE_CALLS: u32 = 700;
const LIVE_TIME: Duration = Duration::from_secs(5);
/// Loads of each view; the table has the median.
const LOADS: usize = 5;
/// Longer tasks make a page feel slow (W3C, Long Tasks API).
const AIM_TASK_MS: f64 = 50.0;
const AIM_REQUESTS: u64 = 15;
const AIM_KB: f64 = 120.0;
const VIEWS: [&str; 8] =
    ["/", "/flows", "/runs", "/calls", "/savings", "/budgets", "/connect", "/settings"];

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["server", data, url] => processes::serve(data.as_ref(), url),
        ["upstream", delay_ms] => {
            processes::answer(Duration::from_millis(delay_ms.parse().unwrap()));
        }
        ["pictures"] => pictures::take(),
        [] => bench(),
        other => panic!("unknown arguments {other:?}; expected none or `pictures`"),
    }
}

fn bench() {
    let upstream = Upstream::start(Duration::ZERO);
    let dir = tempfile::tempdir().unwrap();
    // Creates the database.
    Server::start(dir.path(), &upstream.url).stop();
    fill::fill(dir.path(), ROWS, Timestamp::now().0);
    let server = Server::start(dir.path(), &upstream.url);
    let browser = Browser::launch();
    let origin = format!("http://{}", server.address);
    loads(&browser, &origin);
    println!();
    tasks(&browser, &origin, server.address);
}

fn loads(browser: &Browser, origin: &str) {
    println!(
        "{:<10} {:>9} {:>8} {:>9} {:>12} {:>7}  aim: {AIM_REQUESTS} requests, {AIM_KB} KB",
        "view", "requests", "KB", "elements", "content ms", "ratio"
    );
    let empty = median(|| {
        browser.open(&format!("{origin}/api/health"));
        browser
            .eval("performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd")
            .as_f64()
    });
    for view in VIEWS {
        let mut found = Value::Null;
        let content = median(|| {
            // Without its cache, as on the first visit.
            let browser = Browser::launch();
            browser.open(&format!("{origin}{view}"));
            found = browser.eval(LOADED);
            found["content"].as_f64()
        });
        let (requests, kb) =
            (found["requests"].as_u64().unwrap(), found["bytes"].as_f64().unwrap() / 1000.0);
        println!(
            "{view:<10} {requests:>9} {kb:>8.1} {:>9} {content:>12.0} {:>7.1}  {}",
            found["elements"],
            content / empty,
            aim(requests <= AIM_REQUESTS && kb <= AIM_KB)
        );
    }
    println!("an empty page of the same server: {empty:.0} ms");
}

/// Waits for a quiet network, then returns the counters of the browser.
const LOADED: &str = "new Promise((done) => {
    let content = 0;
    new PerformanceObserver((list) => (content = list.getEntries().at(-1).startTime))
        .observe({ type: 'largest-contentful-paint', buffered: true });
    const look = (before) => {
        const all = performance.getEntriesByType('resource');
        if (all.length !== before) return setTimeout(look, 400, all.length);
        const navigation = performance.getEntriesByType('navigation')[0];
        done({
            content,
            requests: all.length + 1,
            bytes: [navigation, ...all].reduce((sum, { encodedBodySize }) => sum + encodedBodySize, 0),
            elements: document.querySelectorAll('*').length,
        });
    };
    look(-1);
})";

fn median(mut measure: impl FnMut() -> Option<f64>) -> f64 {
    let mut times: Vec<f64> = (0..LOADS).map(|_| measure().unwrap()).collect();
    times.sort_by(f64::total_cmp);
    times[LOADS / 2]
}

fn tasks(browser: &Browser, origin: &str, address: SocketAddr) {
    println!(
        "{:<34} {:>11} {:>12}  aim: no task over {AIM_TASK_MS} ms",
        "doing", "long tasks", "longest ms"
    );
    browser.open(&format!("{origin}/calls?period=all"));
    browser.wait_for("document.querySelectorAll('[data-testid=ledger-row]').length > 10");
    report("scrolling through the calls", || {
        browser.eval(WATCH);
        browser.eval(SCROLL);
        browser.eval(WATCHED)
    });
    for view in ["/calls", "/", "/runs", "/flows"] {
        browser.open(&format!("{origin}{view}"));
        browser.wait_for(
            "document.querySelector('main h1') && document.querySelector('[data-state=connected]')",
        );
        // The view's own start is not part of the measurement.
        browser.eval("new Promise((done) => setTimeout(done, 1000))");
        report(&format!("{LIVE_CALLS} calls end, {view} is open"), || {
            browser.eval(WATCH);
            send_calls(address);
            browser.eval("new Promise((done) => setTimeout(done, 500))");
            browser.eval(WATCHED)
        });
    }
}

fn report(doing: &str, measure: impl FnOnce() -> Value) {
    let found = measure();
    let longest = found["longest"].as_f64().unwrap();
    println!("{doing:<34} {:>11} {longest:>12.0}  {}", found["count"], aim(longest < AIM_TASK_MS));
}

const WATCH: &str = "void (() => {
    window.longTasks = [];
    window.taskObserver?.disconnect();
    window.taskObserver = new PerformanceObserver((list) => longTasks.push(...list.getEntries().map((task) => task.duration)));
    taskObserver.observe({ type: 'longtask' });
})()";

const WATCHED: &str = "({ count: longTasks.length, longest: Math.max(0, ...longTasks) })";

/// Scrolls quickly (12,000 px/s at 60 frames a second) until the end of the page stays the same.
const SCROLL: &str = "new Promise((done) => {
    let still = 0;
    const step = () => {
        const before = scrollY;
        scrollBy({ top: 200, behavior: 'instant' });
        still = scrollY === before ? still + 1 : 0;
        if (still < 60) requestAnimationFrame(step);
        else done(null);
    };
    step();
})";

/// Makes the calls through the gateway, evenly over the time.
fn send_calls(address: SocketAddr) {
    let mut client = Client::connect(address);
    let body = json!({"model": "echo/echo-1", "messages": [{"role": "user", "content": "hello"}]});
    let body = body.to_string();
    let began = Instant::now();
    for call in 0..LIVE_CALLS {
        client.send("/v1/chat/completions", &body);
        client.answer("200");
        let due = LIVE_TIME * (call + 1) / LIVE_CALLS;
        thread::sleep(due.saturating_sub(began.elapsed()));
    }
}

fn aim(is_met: bool) -> &'static str {
    if is_met { "met" } else { "missed" }
}
