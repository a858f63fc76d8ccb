//! What the page loads, by the browser's own counters, with 112 flows and 10,000 calls.

use serde_json::{Value, json};

use crate::browser::Browser;
use crate::harness::{TestServer, agent, chain};
use crate::ledger_rows;

const FLOWS: usize = 112;
const CALLS: u64 = 10_000;
/// The aims of decision 18.
const REQUESTS_MAX: u64 = 15;
const BYTES_MAX: u64 = 120_000;
/// Lists have virtual rows or few rows, so the page stays light with any number of them.
const ELEMENTS_MAX: u64 = 3_000;

/// Returns a server with many flows and calls.
pub fn large_server() -> TestServer {
    let mut server = TestServer::start();
    server.leave_unverified();
    for number in 0..FLOWS {
        server.save(&chain(&format!("Flow {number:03}"), &[agent("a", "echo", "echo-1", "hi")]));
    }
    server.run(3, &json!({}));
    server.stop();
    let newest_ms = flowledger::time::Timestamp::now().0;
    ledger_rows::fill(server.data().parent().unwrap(), CALLS, newest_ms);
    server.start_again();
    server
}

/// Waits for a quiet network, then returns the counters.
const LOADED: &str = "new Promise((done) => {
    const look = (before) => {
        const all = performance.getEntriesByType('resource');
        if (all.length !== before) return setTimeout(look, 400, all.length);
        const entries = [...performance.getEntriesByType('navigation'), ...all];
        done({
            requests: entries.length,
            bytes: entries.reduce((sum, { encodedBodySize }) => sum + encodedBodySize, 0),
            elements: document.querySelectorAll('*').length,
            repeated: all.map(({ name }) => name).filter((name, at, names) => names.indexOf(name) !== at),
            files: entries.map(({ name, encodedBodySize }) => `${name.replace(location.origin, '')} ${encodedBodySize}`),
        });
    };
    look(-1);
})";

fn load(server: &TestServer, path: &str) -> Value {
    let browser = Browser::launch();
    browser.open(&format!("http://{}{path}", server.address()));
    browser.wait_for("document.querySelector('main h1')");
    let loaded = browser.eval(LOADED);
    assert_eq!(browser.console(), Vec::<String>::new(), "{path}");
    loaded
}

#[test]
fn the_first_load_of_a_view_is_small() {
    let server = large_server();
    for path in ["/", "/flows", "/runs", "/calls?period=all"] {
        let loaded = load(&server, path);
        let files = &loaded["files"];
        assert!(loaded["requests"].as_u64().unwrap() <= REQUESTS_MAX, "{path}: {files:#}");
        assert!(loaded["bytes"].as_u64().unwrap() <= BYTES_MAX, "{path}: {files:#}");
        assert!(loaded["elements"].as_u64().unwrap() <= ELEMENTS_MAX, "{path}: {loaded:#}");
        assert_eq!(loaded["repeated"], json!([]), "{path}");
    }
}
