//! Fixtures for the tests of the readers.

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::call::{CacheMarks, Call};
use super::call_request;
use super::config::{Kind, ProviderConfig};
use super::failure::Fault;
use super::framer::Event;
use super::network::Network;
use super::response_sink::{AnswerHead, ResponseSink};
use super::wire::{Flow, Reader, Request, ResponseAccumulator};
use crate::event::Usage;
use crate::secret::Secret;

/// A call with all options of a request.
pub(super) fn call(model: &str, stream: bool) -> Call {
    Call {
        provider: "p".into(),
        model: model.into(),
        system: Some("Be brief.".into()),
        prompt: "Hi".into(),
        max_tokens: Some(9),
        temperature: Some(0.5),
        stream,
        first_byte_timeout: None,
        total_timeout: None,
        cache_marks: CacheMarks::default(),
        key: None,
    }
}

/// A provider with the key `sk-1`.
pub(super) fn provider(kind: Kind, base_url: &str) -> ProviderConfig {
    ProviderConfig {
        kind,
        base_url: base_url.into(),
        api_key: Some(Secret::new("sk-1")),
        missing_key_hint: None,
        stream_usage: true,
        trust_stated_cost: None,
        apis: Vec::new(),
        network: Network::default(),
    }
}

/// Returns the request for a call.
pub(super) fn request(call: &Call, provider: &ProviderConfig) -> Request {
    call_request::request(call, provider).unwrap().unwrap().0
}

/// Reads events with this data, up to the first that ends the answer.
pub(super) fn read(
    reader: &mut dyn Reader,
    events: &[&str],
) -> (ResponseAccumulator, Result<Flow, Fault>) {
    let mut partial = ResponseAccumulator::default();
    let mut flow = Ok(Flow::More);
    for data in events {
        let event = Event { name: String::new(), data: (*data).to_owned() };
        flow = reader.event(&event, &mut partial);
        if flow != Ok(Flow::More) {
            break;
        }
    }
    (partial, flow)
}

pub(super) fn read_document(
    reader: &mut dyn Reader,
    document: &str,
) -> (ResponseAccumulator, Result<(), Fault>) {
    let mut partial = ResponseAccumulator::default();
    let document = serde_json::from_str(document).unwrap();
    let read = reader.document(&document, &mut partial);
    (partial, read)
}

/// Usually a count, sometimes an invalid value.
pub(super) fn any_count() -> impl Strategy<Value = Value> {
    prop_oneof![
        4 => (0u64..1000).prop_map(Value::from),
        2 => (0u64..=1_000_000_000).prop_map(Value::from),
        1 => any::<u64>().prop_map(Value::from),
        1 => any::<i64>().prop_map(Value::from),
        1 => any::<f64>().prop_map(Value::from),
        1 => prop_oneof![Just(json!(null)), Just(json!("7")), Just(json!({})), Just(json!([1])), Just(json!(true))],
    ]
}

/// An object with some of these names.
pub(super) fn any_counts(names: &'static [&'static str]) -> impl Strategy<Value = Value> {
    prop::collection::vec(prop::option::weighted(0.8, any_count()), names.len()).prop_map(
        move |counts| {
            let named = names.iter().zip(counts);
            let given = named.filter_map(|(name, count)| Some(((*name).to_owned(), count?)));
            Value::Object(given.collect::<Map<_, _>>())
        },
    )
}

/// Returns true if the sums hold, as they must for any provider's answer.
pub(super) fn holds_sum_rules(usage: &Usage) -> bool {
    usage.cached_input_tokens + usage.cache_write_tokens <= usage.input_tokens
        && usage.cache_write_1h_tokens <= usage.cache_write_tokens
        && usage.reasoning_tokens <= usage.output_tokens
        && usage.output_tokens <= 3_000_000_000
        && (usage.source != crate::event::UsageSource::None || *usage == Usage::default())
}

/// A client that keeps the bytes of an answer.
#[derive(Default)]
pub(super) struct Kept(pub(super) Vec<u8>);

impl ResponseSink for Kept {
    fn whole(&mut self, _: &AnswerHead, body: &[u8]) -> bool {
        self.piece(body)
    }
    fn begin(&mut self, _: &AnswerHead) -> bool {
        true
    }
    fn piece(&mut self, bytes: &[u8]) -> bool {
        self.0.extend_from_slice(bytes);
        true
    }
    fn end(&mut self, _: bool) {}
}
