//! Usage and cost of each provider's answers: shapes of answers from the providers' documentation
//! (`tests/fixtures/usage`, handwritten), through the real client.

use std::collections::BTreeMap;
use std::io::Write;

use flowledger::event::{Usage, UsageSource};
use flowledger::money::Usd;
use flowledger::providers::{
    Answer, CacheMarks, Call, Cancel, Failure, Kind, Network, ProviderConfig, Providers, Timeouts,
};
use flowledger::secret::Secret;
use flowledger::time::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::clients;
use crate::upstream::{STREAM_HEAD, Upstream, json_answer};

const LINES_HEAD: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\nconnection: close\r\n\r\n";

/// The answers of one provider.
#[derive(Deserialize)]
struct Fixtures {
    kind: Kind,
    impossible: Impossible,
    cases: Vec<Case>,
}

/// A complete answer with its expected counts and their source.
#[derive(Deserialize)]
struct Impossible {
    model: String,
    document: Value,
    at: Vec<String>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    model: String,
    stream: bool,
    events: Option<Vec<Value>>,
    document: Option<Value>,
    /// A part of the error message, if the answer is a failure.
    fails: Option<String>,
    text: String,
    finish_reason: Option<String>,
    usage: BTreeMap<String, Value>,
    cost_nanousd: Option<i64>,
}

impl Case {
    fn on_the_wire(&self, kind: Kind) -> String {
        match (&self.events, &self.document) {
            (Some(events), None) => on_the_wire(kind, events),
            (None, Some(document)) => json_answer("200 OK", &document.to_string()),
            _ => panic!("{}: neither events nor a document, or both", self.name),
        }
    }
}

fn all() -> Vec<Fixtures> {
    [
        include_str!("fixtures/usage/openai.json"),
        include_str!("fixtures/usage/anthropic.json"),
        include_str!("fixtures/usage/gemini.json"),
        include_str!("fixtures/usage/ollama.json"),
    ]
    .map(|text| serde_json::from_str(text).unwrap())
    .into()
}

/// The name in the configuration; it selects the prices if the address is not a known one.
fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::OpenAi => "openai",
        Kind::Anthropic => "anthropic",
        Kind::Gemini => "gemini",
        Kind::Ollama => "ollama",
        Kind::Echo => "echo",
    }
}

/// A day on which the fixtures' prices were valid.
fn day() -> Timestamp {
    "2025-12-01T10:00:00Z".parse().unwrap()
}

fn on_the_wire(kind: Kind, events: &[Value]) -> String {
    let head = match kind {
        Kind::Ollama => LINES_HEAD,
        _ => STREAM_HEAD,
    };
    let events = events.iter().map(|event| match (kind, event) {
        (Kind::Ollama, _) => format!("{event}\n"),
        (_, Value::String(word)) => format!("data: {word}\n\n"),
        (Kind::Anthropic, _) => {
            let name = event["type"].as_str().unwrap();
            format!("event: {name}\ndata: {event}\n\n")
        }
        _ => format!("data: {event}\n\n"),
    });
    head.to_owned() + &events.collect::<String>()
}

/// Makes a call that gets this answer; also returns its text deltas.
fn ask(
    kind: Kind,
    model: &str,
    stream: bool,
    wire: String,
) -> (Result<Answer, Failure>, String, Providers, Call) {
    let upstream = Upstream::start(move |_, stream| drop(stream.write_all(wire.as_bytes())));
    let provider = ProviderConfig {
        kind,
        base_url: upstream.url().to_owned(),
        api_key: Some(Secret::new("test-key")),
        missing_key_hint: None,
        stream_usage: true,
        trust_stated_cost: None,
        apis: Vec::new(),
        network: Network::default(),
    };
    let providers = [(name(kind).to_owned(), provider)].into();
    let providers = Providers::new(providers, Timeouts::default());
    let call = Call {
        provider: name(kind).into(),
        model: model.into(),
        system: None,
        prompt: "Hi there".into(),
        max_tokens: None,
        temperature: None,
        stream,
        first_byte_timeout: None,
        total_timeout: None,
        cache_marks: CacheMarks::default(),
        key: None,
    };
    let mut pieces = String::new();
    let outcome = providers.call(&call, &Cancel::new(), &mut |piece| pieces.push_str(piece));
    (outcome, pieces, providers, call)
}

/// Omitted counts are 0.
fn usage(given: &BTreeMap<String, Value>) -> Usage {
    let mut usage = serde_json::to_value(Usage::default()).unwrap();
    for (name, value) in given {
        usage[name] = value.clone();
    }
    serde_json::from_value(usage).unwrap()
}

fn check(kind: Kind, case: &Case) {
    let at = format!("{}: {}", name(kind), case.name);
    let wire = case.on_the_wire(kind);
    let (outcome, pieces, providers, call) = ask(kind, &case.model, case.stream, wire);
    let (found, model, billing) = match outcome {
        Ok(answer) => {
            assert_eq!(case.fails, None, "{at}");
            assert_eq!(answer.text, case.text, "{at}");
            assert_eq!(answer.finish_reason, case.finish_reason, "{at}");
            (answer.usage, answer.model, answer.billing)
        }
        Err(failure) => {
            let part = case.fails.as_ref().unwrap_or_else(|| panic!("{at}: {failure}"));
            assert!(failure.message.contains(part), "{at}: {failure}");
            (failure.usage, failure.model, failure.billing)
        }
    };
    if case.stream {
        assert_eq!(pieces, case.text, "{at}");
    }
    assert_eq!(found, usage(&case.usage), "{at}");
    let cost = providers.charge(&call, &model, &found, &billing, day()).cost;
    assert_eq!(cost, case.cost_nanousd.map(Usd::from_nanousd), "{at}");
}

#[test]
fn provider_responses_yield_the_documented_usage_and_cost() {
    for fixtures in all() {
        assert!(fixtures.cases.iter().any(|case| case.stream));
        assert!(fixtures.cases.iter().any(|case| !case.stream));
        for case in &fixtures.cases {
            check(fixtures.kind, case);
        }
    }
}

/// Makes the call as a client at `/v1` and returns its ledger row.
fn row_of(kind: Kind, case: &Case) -> Value {
    let wire = case.on_the_wire(kind);
    let upstream = Upstream::start(move |_, stream| drop(stream.write_all(wire.as_bytes())));
    let server = clients::server(&upstream);
    let path = match kind {
        Kind::Anthropic => "/v1/messages",
        _ => "/v1/chat/completions",
    };
    let body = json!({"model": case.model, "stream": case.stream,
        "messages": [{"role": "user", "content": "Hi there"}]});
    server.post(path, &body);
    clients::rows(&server, 1).remove(0)
}

#[test]
fn forwarded_responses_are_accounted_like_flow_calls() {
    let both = all()
        .into_iter()
        .filter(|fixtures| matches!(fixtures.kind, Kind::OpenAi | Kind::Anthropic));
    for Fixtures { kind, cases, .. } in both {
        for case in &cases {
            let at = format!("{}: {}", name(kind), case.name);
            let row = row_of(kind, case);
            let status = if case.fails.is_some() { "FAILED" } else { "SUCCESS" };
            assert_eq!(row["status"], status, "{at}: {row}");
            let expected = serde_json::to_value(usage(&case.usage)).unwrap();
            for (name, expected) in expected.as_object().unwrap() {
                // Ledger rows do not record the lifetime of a cache write.
                if name != "cache_write_1h_tokens" {
                    assert_eq!(&row[name], expected, "{name} of {at}");
                }
            }
            let cost = row["total_cost_usd"].as_f64();
            let cost = cost.map(|cost| (cost * 1e9).round() as i64);
            assert_eq!(cost, case.cost_nanousd, "{at}: {row}");
        }
    }
}

#[test]
fn one_invalid_count_makes_all_counts_estimates() {
    let wrong = [
        json!(-1),
        json!(1_000_000_001),
        json!(u64::MAX),
        json!(1e300),
        json!(1.5),
        json!("7"),
        json!({}),
        json!([7]),
        json!(true),
    ];
    for fixtures in all() {
        let Impossible { model, document, at } = &fixtures.impossible;
        for (place, wrong) in at.iter().flat_map(|place| wrong.iter().map(move |w| (place, w))) {
            let mut document = document.clone();
            *document.pointer_mut(place).unwrap() = wrong.clone();
            let wire = json_answer("200 OK", &document.to_string());
            let answer = ask(fixtures.kind, model, false, wire).0.unwrap();
            let expected = Usage {
                input_tokens: 8,
                output_tokens: 2,
                source: UsageSource::Estimated,
                ..Usage::default()
            };
            assert_eq!(answer.usage, expected, "{place}: {wrong}");
        }
    }
}
