//! Cost of an optimizer pass: the first over a million calls, and one over a thousand new calls.
//! `make bench-optimizer` prints it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[allow(dead_code)]
#[path = "ledger/fill.rs"]
mod fill;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flowledger::optimizer::{Pass, Wanted};
use flowledger::providers::{Cancel, Kind, Network, ProviderConfig, Providers, Timeouts};
use flowledger::secret::Secret;
use flowledger::store::{Change, NewFlow, Store};
use flowledger::time::Timestamp;
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;

/// Number of initial calls.
const CALLS: u64 = 1_000_000;
/// Number of new calls.
const NEW_CALLS: u64 = 1_000;
/// Number of flows, and of nodes per flow (see `fill`).
const FLOWS: i64 = 8;
const NODES: usize = 12;
/// Highest cost of the second pass relative to the first: a pass should cost only as much as the
/// new calls and their flows.
const AIM_RATIO: f64 = 0.05;
/// An address without a listener, because a pass requests the model list.
const NOWHERE: &str = "http://127.0.0.1:9";

fn main() {
    let dir = tempfile::tempdir().unwrap();
    let (store, mut writer) = Store::open(&dir.path().join("data")).unwrap();
    let now = Timestamp::now();
    for flow in 0..FLOWS {
        let document = document(flow).to_string();
        let change = Change::CreateFlow(NewFlow {
            name: format!("Flow {flow}"),
            document,
            origin: None,
            at: now,
        });
        writer.transaction(|batch| batch.apply(&change)).unwrap();
    }
    fill::fill(dir.path(), CALLS, now.0);
    within_30_days(dir.path(), now);
    println!(
        "{CALLS} calls of {FLOWS} flows of {NODES} nodes each in 30 days; {:.0} MB",
        fill::size(dir.path()) as f64 / 1e6
    );
    println!(
        "{:<34} {:>9} {:>9} {:>12} {:>13} {:>9}",
        "a pass over", "ms", "CPU ms", "CPU us/call", "suggestions", "RSS +kB"
    );
    let mut pass = Pass::new(Arc::new(store), Arc::new(providers()), Cancel::new());
    let first = measure(&mut pass, "all of them, as after a start", CALLS);
    fill::fill(dir.path(), NEW_CALLS, now.0);
    let new = measure(&mut pass, "1,000 new ones", NEW_CALLS);
    measure(&mut pass, "nothing new", 1);
    let ratio = new.as_secs_f64() / first.as_secs_f64();
    println!(
        "the pass over 1,000 costs {ratio:.4} of the one over a million (aim: {AIM_RATIO}): {}",
        if ratio <= AIM_RATIO { "met" } else { "missed" }
    );
}

/// Runs a pass, prints a row, and returns its CPU time.
fn measure(pass: &mut Pass, what: &str, calls: u64) -> Duration {
    let before_kb = rss_kb();
    let (began, cpu) = (Instant::now(), cpu_time());
    let mut changes = 0;
    let mut go_on = true;
    while go_on {
        let now = Timestamp::now();
        pass.run(Wanted::default(), now, &mut |_| {
            changes += 1;
            Ok(())
        })
        .unwrap();
        go_on = pass.rest(now).is_zero();
    }
    let (took, cpu) = (began.elapsed(), cpu_time() - cpu);
    println!(
        "{what:<34} {:>9.1} {:>9.1} {:>12.2} {changes:>13} {:>9}",
        took.as_secs_f64() * 1e3,
        cpu.as_secs_f64() * 1e3,
        cpu.as_secs_f64() * 1e6 / calls as f64,
        rss_kb().saturating_sub(before_kb)
    );
    cpu
}

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn rss_kb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn document(flow: i64) -> serde_json::Value {
    let nodes: Vec<_> = (0..NODES)
        .map(|node| {
            json!({"id": format!("node-{node}"), "type": "agent", "data": {
                "provider": "openai", "model": "gpt-5", "prompt": format!("{flow} {{{{ input.what }}}}")}})
        })
        .collect();
    json!({"name": format!("Flow {flow}"), "data": {"nodes": nodes, "edges": []}})
}

fn providers() -> Providers {
    let provider = |name: &str, kind, base_url: &str| {
        let config = ProviderConfig {
            kind,
            base_url: base_url.to_owned(),
            api_key: Some(Secret::new("k")),
            missing_key_hint: None,
            stream_usage: true,
            trust_stated_cost: None,
            apis: Vec::new(),
            network: Network::default(),
        };
        (name.to_owned(), config)
    };
    let providers = BTreeMap::from([
        provider("openai", Kind::OpenAi, NOWHERE),
        provider("anthropic", Kind::Anthropic, NOWHERE),
    ]);
    Providers::new(providers, Timeouts::default())
}

/// Moves the calls closer together.
fn within_30_days(dir: &Path, now: Timestamp) {
    let connection = fill::open(dir);
    connection.pragma_update(None, "synchronous", "OFF").unwrap();
    // Prices them as gpt-5, so that there are savings to find.
    let closer = "UPDATE ledger SET timestamp_ms = ?1 - (?1 - timestamp_ms) * 29 / 90,
        cost_nanousd = cost_nanousd * 20";
    connection.execute(closer, [now.0]).unwrap();
}
