//! Shared by the tests of the optimizer: a server with a scripted provider, flows and their runs,
//! and the suggestions that follow.

use std::io::Write;
use std::net::TcpStream;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use flowledger::config::Config;
use flowledger::optimizer::{Pass, Wanted};
use flowledger::providers::{Cancel, Kind};
use flowledger::store::Change;
use flowledger::time::Timestamp;
use serde_json::{Value, json};

use crate::harness::{Response, TestServer, add_provider, agent, chain, eventually};
use crate::upstream::{Upstream, completion_of, json_answer};

pub const PATH: &str = "/api/ledger/optimizations";
/// Days that a saving is projected to.
const DAYS: i64 = 30;

/// A server and its provider. The server stops first.
pub struct Fixture {
    server: TestServer,
    pub upstream: Upstream,
}

impl Fixture {
    /// Uses the upstream as `openai`.
    pub fn of(upstream: Upstream) -> Self {
        Self::with(upstream, &[("openai", Kind::OpenAi)], |_| {})
    }

    /// Uses an `openai` upstream whose answers have these token counts for any model.
    pub fn answering(input_tokens: u64, output_tokens: u64) -> Self {
        Self::of(upstream(input_tokens, output_tokens))
    }

    /// Uses an `anthropic` upstream whose answers have these token counts.
    pub fn of_anthropic(upstream: Upstream) -> Self {
        Self::with(upstream, &[("anthropic", Kind::Anthropic)], |_| {})
    }

    /// Uses the same upstream under several names and changes the configuration.
    pub fn with(
        upstream: Upstream,
        providers: &[(&str, Kind)],
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let server = TestServer::start_with(|config| {
            for (name, kind) in providers {
                add_provider(config, name, *kind, upstream.url());
            }
            change(config);
        });
        Self { server, upstream }
    }

    /// Returns a separate optimizer pass over the server's data.
    pub fn pass(&self) -> Pass {
        let core = self.server.server().core();
        let (store, providers) = (Arc::clone(&core.store), Arc::clone(&core.providers));
        Pass::new(store, providers, Cancel::new())
    }

    /// Stops the server, runs this SQL statement with the flow's id, and starts the server again.
    pub fn alter(&mut self, flow: i64, sql: &str) {
        self.server.leave_unverified();
        self.server.stop();
        assert_ne!(database(&self.server).execute(sql, [flow]).unwrap(), 0);
        self.server.start_again();
    }
}

impl Deref for Fixture {
    type Target = TestServer;

    fn deref(&self) -> &TestServer {
        &self.server
    }
}

impl DerefMut for Fixture {
    fn deref_mut(&mut self) -> &mut TestServer {
        &mut self.server
    }
}

/// A server with the upstream as `openai`, for tests that keep both separately.
pub fn server(upstream: &Upstream) -> TestServer {
    TestServer::start_with(|config| {
        add_provider(config, "openai", Kind::OpenAi, upstream.url());
    })
}

/// Applies a suggestion and returns its path.
#[track_caller]
pub fn apply(server: &TestServer, found: &Value) -> String {
    let path = format!("{PATH}/{}", found["id"]);
    let applied = server.post(&format!("{path}/apply"), &json!({}));
    assert_eq!(applied.status, 200, "{}", applied.text());
    path
}

/// Names and creation times (seconds) of the models in OpenAI's list.
const OPENAI_MODELS: &[(&str, i64)] = &[
    ("babbage-002", 1_692_634_615),
    ("chatgpt-4o-latest", 1_723_515_131),
    ("dall-e-3", 1_698_785_189),
    ("davinci-002", 1_692_634_301),
    ("gpt-3.5-turbo", 1_677_610_602),
    ("gpt-3.5-turbo-0125", 1_706_048_358),
    ("gpt-3.5-turbo-1106", 1_698_959_748),
    ("gpt-3.5-turbo-16k", 1_683_758_102),
    ("gpt-3.5-turbo-instruct", 1_692_901_427),
    ("gpt-4", 1_687_882_411),
    ("gpt-4-turbo", 1_712_361_441),
    ("gpt-4.1", 1_744_316_542),
    ("gpt-4.1-2025-04-14", 1_744_315_746),
    ("gpt-4.1-mini", 1_744_318_173),
    ("gpt-4.1-mini-2025-04-14", 1_744_317_547),
    ("gpt-4.1-nano", 1_744_321_707),
    ("gpt-4.1-nano-2025-04-14", 1_744_321_025),
    ("gpt-4o", 1_715_367_049),
    ("gpt-4o-2024-05-13", 1_715_368_132),
    ("gpt-4o-2024-08-06", 1_722_814_719),
    ("gpt-4o-2024-11-20", 1_739_331_543),
    ("gpt-4o-audio-preview", 1_727_460_443),
    ("gpt-4o-mini", 1_721_172_741),
    ("gpt-4o-mini-2024-07-18", 1_721_172_717),
    ("gpt-4o-mini-search-preview", 1_741_391_161),
    ("gpt-4o-mini-transcribe", 1_742_068_596),
    ("gpt-4o-mini-tts", 1_742_403_959),
    ("gpt-4o-realtime-preview", 1_727_659_998),
    ("gpt-5", 1_754_425_777),
    ("gpt-5-2025-08-07", 1_754_075_360),
    ("gpt-5-codex", 1_757_527_818),
    ("gpt-5-mini", 1_754_425_928),
    ("gpt-5-mini-2025-08-07", 1_754_425_867),
    ("gpt-5-nano", 1_754_426_384),
    ("gpt-image-1", 1_745_517_030),
    ("o3", 1_744_225_308),
    ("o3-mini", 1_737_146_383),
    ("o4-mini", 1_744_225_351),
    ("omni-moderation-latest", 1_731_689_265),
    ("text-embedding-3-small", 1_705_948_997),
    ("tts-1", 1_681_940_951),
    ("whisper-1", 1_677_532_384),
];

/// A list of models in OpenAI's format.
pub fn list_of(models: &[Value]) -> String {
    json_answer("200 OK", &json!({"object": "list", "data": models}).to_string())
}

/// A provider that answers with the output of `script` and lists OpenAI's models.
pub fn openai(script: impl Fn(&str, &mut TcpStream) + Send + Sync + 'static) -> Upstream {
    let models = OPENAI_MODELS.iter();
    let models = models.map(|(id, created)| json!({"id": id, "created": created}));
    let list = list_of(&models.collect::<Vec<_>>());
    Upstream::listing(move |stream| drop(stream.write_all(list.as_bytes())), script)
}

/// The same, with answers that have these token counts for any model.
pub fn upstream(input_tokens: u64, output_tokens: u64) -> Upstream {
    openai(move |body, stream| {
        let request: Value = serde_json::from_str(body).unwrap();
        let model = request["model"].as_str().unwrap();
        let answer = completion_of(model, "well", input_tokens, output_tokens);
        let _ = stream.write_all(answer.as_bytes());
    })
}

/// Saves a flow of one node at this model; the prompt is the run's input.
pub fn flow_of(server: &TestServer, model: &str) -> i64 {
    let mut node = agent("n", "openai", model, "Say {{ input.what }}");
    node["data"]["stream"] = json!(false);
    server.save(&chain("One", &[node]))
}

pub fn run_times(server: &TestServer, flow: i64, count: usize, what: impl Fn(usize) -> String) {
    for number in 0..count {
        let run = server.run(flow, &json!({"what": what(number)}));
        assert_eq!(run["status"], "COMPLETED", "{run}");
    }
}

/// Returns the suggestions of this kind and status.
pub fn of_kind(server: &TestServer, kind: &str, status: &str) -> Vec<Value> {
    let all = server.get(&format!("{PATH}?status={status}")).json();
    let items = all["items"].as_array().unwrap().iter();
    items.filter(|item| item["kind"] == kind).cloned().collect()
}

/// Waits for the only suggestion of this kind.
pub fn suggestion(server: &TestServer, kind: &str) -> Value {
    let mut found = Vec::new();
    eventually("the suggestion is made", || {
        found = of_kind(server, kind, "OPEN");
        !found.is_empty()
    });
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

/// Waits until the optimizer has processed everything so far: a flow with repeated prompts produces
/// the suggestion that this waits for.
pub fn wait_for_pass(server: &TestServer) {
    let flow = flow_of(server, "gpt-4o");
    run_times(server, flow, 4, |_| "the same".into());
    eventually("the optimizer finished a pass", || {
        let found = of_kind(server, "cache", "OPEN");
        found.iter().any(|item| item["flowId"] == flow)
    });
}

/// A flow of `first` and `second` in a row, and an output with this template.
pub fn two_and_output(first: &str, second: &str, output: &str) -> Value {
    let quiet = |id: &str, prompt: &str| {
        let mut node = agent(id, "openai", "gpt-4o", prompt);
        node["data"]["stream"] = json!(false);
        node
    };
    let output = json!({"id": "out", "type": "output", "data": {"template": output}});
    chain("Two", &[quiet("first", first), quiet("second", second), output])
}

/// Returns the suggestions of this kind and status for a flow.
pub fn of_flow(server: &TestServer, flow: i64, kind: &str, status: &str) -> Vec<Value> {
    let mut found = of_kind(server, kind, status);
    found.retain(|it| it["flowId"] == flow);
    found
}

/// Replaces the saved flow with a changed one.
pub fn put(server: &TestServer, flow: i64, change: impl FnOnce(&mut Value)) {
    let path = format!("/api/flows/{flow}");
    let mut document = server.get(&path).json();
    change(&mut document);
    let saved = server.request("PUT", &path, &[], document.to_string().as_bytes());
    assert_eq!(saved.status, 200, "{}", saved.text());
}

#[track_caller]
pub fn is_a_conflict(refused: &Response) {
    let found = (refused.status, refused.error_code());
    assert_eq!(found, (409, "conflict".to_owned()), "{}", refused.text());
}

pub fn database(server: &TestServer) -> rusqlite::Connection {
    rusqlite::Connection::open(server.data().join("flowledger.db")).unwrap()
}

/// Moves the first calls of a flow back in time by `ms`.
pub fn put_back(server: &TestServer, flow: i64, calls: usize, ms: i64) {
    let put_back = "UPDATE ledger SET timestamp_ms = timestamp_ms - ?3 WHERE id IN
        (SELECT id FROM ledger WHERE flow_id = ?1 ORDER BY id LIMIT ?2)";
    let changed = database(server).execute(put_back, (flow, calls, ms));
    assert_eq!(changed.unwrap(), calls);
}

pub const DAY_MS: i64 = 24 * 60 * 60 * 1000;

/// Returns the changes that a pass has written.
pub fn written(pass: &mut Pass, now: Timestamp) -> Vec<Change> {
    let mut all = Vec::new();
    pass.run(Wanted::default(), now, &mut |change| {
        all.push(change);
        Ok(())
    })
    .unwrap();
    all
}

/// Returns the 30-day projection of the only suggestion in `written`.
pub fn expected_nanousd(written: &[Change]) -> i64 {
    match written {
        [Change::Propose { proposal, .. }] => {
            proposal.saving_per_30_days.unwrap().expected_usd.nanousd
        }
        other => panic!("{other:?}"),
    }
}

/// Returns the three amounts in nano-dollars.
pub fn interval(found: &Value) -> [i64; 3] {
    ["lowUsd", "expectedUsd", "highUsd"].map(|key| {
        let usd = found["savingPer30Days"][key].as_f64();
        (usd.unwrap_or_else(|| panic!("{found}")) * 1e9).round() as i64
    })
}

/// The projection of `calls` calls at one price within moments, which count as a day: the low end
/// is the observed amount, the expected value 30 times that, ± 1.96 times the square root of the
/// sum of their squares.
pub fn interval_of(calls: i64, each: i64) -> [i64; 3] {
    let seen = calls * each;
    let deviation = 1.96 * (calls as f64).sqrt() * each as f64;
    let [low, high] = [-deviation, deviation].map(|by| (DAYS as f64 * (seen as f64 + by)) as i64);
    [low.clamp(0, seen), DAYS * seen, high]
}

/// Compares amounts up to rounding.
pub fn assert_near(found: [i64; 3], expected: [i64; 3]) {
    for (found, expected) in found.iter().zip(expected) {
        let apart = (found - expected).abs();
        assert!(apart <= DAYS + expected / 1_000_000, "{found} for {expected}");
    }
}

/// An Anthropic answer with these token counts.
pub fn message_of(model: &str, input_tokens: u64, output_tokens: u64) -> String {
    let body = json!({"id": "m", "type": "message", "role": "assistant", "model": model,
        "stop_reason": "end_turn", "content": [{"type": "text", "text": "well"}],
        "usage": {"input_tokens": input_tokens, "output_tokens": output_tokens}});
    json_answer("200 OK", &body.to_string())
}
