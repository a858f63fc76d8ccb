//! Invariants of the parsers that read untrusted input. The fuzz targets in `fuzz/` search for
//! inputs that break them; the tests below try the inputs of `tests/fixtures/corpus/`, also with
//! small changes.

use flowledger::event::Request;
use flowledger::listener::RequestHead;
use flowledger::providers::{ApiFormat, Kind};
use flowledger::websocket::{FILTER_ITEMS_MAX, read_request};

/// Longer inputs are cut in this many places, not in all.
const CUTS_MAX: usize = 64;

/// Checks a request head.
pub fn request_head(bytes: &[u8]) {
    let whole = RequestHead::parse(bytes);
    let complete = match &whole {
        Ok(Some((_, length))) => *length,
        Ok(None) => bytes.len(),
        Err(_) => return,
    };
    assert!(complete <= bytes.len());
    // A prefix of a valid input is never refused, and never taken as complete.
    for cut in (0..complete).step_by(complete / CUTS_MAX + 1) {
        assert_eq!(RequestHead::parse(&bytes[..cut]), Ok(None), "cut at {cut}");
    }
    let Ok(Some((head, length))) = whole else {
        return;
    };
    // The bytes after a head change nothing about it.
    let alone = RequestHead::parse(&bytes[..length]);
    assert_eq!(alone, Ok(Some((head.clone(), length))));
    assert!(head.target.starts_with('/') && head.target.starts_with(head.path()));
    let _ = (head.query("since"), head.keeps_alive());
    // The serialized head parses to the same value.
    let written = written(&head);
    if written.len() > length {
        // Invalid UTF-8 becomes longer when it is replaced, so the head may now exceed the limit.
        return;
    }
    let read = RequestHead::parse(written.as_bytes());
    assert_eq!(read, Ok(Some((head, written.len()))), "{written:?}");
}

/// Serializes a head in its shortest form, so that it does not exceed a limit that it met before.
fn written(head: &RequestHead) -> String {
    let mut text = format!("{} {} HTTP/1.{}\r\n", head.method, head.target, head.version);
    for (name, value) in &head.headers {
        text.push_str(&format!("{name}:{value}\r\n"));
    }
    text + "\r\n"
}

/// Checks a client message.
pub fn client_message(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let read = read_request(text);
    // An accepted message is JSON, and its type is the parsed one.
    let value: Result<serde_json::Value, _> = serde_json::from_str(text);
    match &read {
        Ok(request) => {
            let value = value.expect("what is read is JSON");
            let expected = match request {
                Request::Ping => "PING",
                Request::Subscribe(filter) => {
                    let flows = filter.flow_ids.as_ref().map_or(0, Vec::len);
                    let types = filter.types.as_ref().map_or(0, Vec::len);
                    assert!(flows.max(types) <= FILTER_ITEMS_MAX);
                    "SUBSCRIBE"
                }
            };
            assert_eq!(value["type"], expected);
            // The serialized message parses to the same value.
            assert_eq!(read_request(&value.to_string()).as_ref(), Ok(request));
        }
        Err((code, message)) => {
            assert_eq!(*code == "invalid_json", value.is_err());
            assert!(!message.is_empty());
        }
    }
}

/// The formats that a corpus names, and the kinds of providers that support them.
const FORMATS: [(&str, ApiFormat, Kind); 12] = [
    ("chat", ApiFormat::ChatCompletions, Kind::OpenAi),
    ("chat-gemini", ApiFormat::ChatCompletions, Kind::Gemini),
    ("messages", ApiFormat::Messages, Kind::Anthropic),
    ("responses", ApiFormat::Responses, Kind::OpenAi),
    ("completions", ApiFormat::Completions, Kind::OpenAi),
    ("embeddings", ApiFormat::Embeddings, Kind::OpenAi),
    ("images", ApiFormat::Images, Kind::OpenAi),
    ("transcriptions", ApiFormat::Transcriptions, Kind::OpenAi),
    ("gemini", ApiFormat::ContentStream, Kind::Gemini),
    ("gemini-array", ApiFormat::ContentArray, Kind::Gemini),
    ("ollama", ApiFormat::OllamaChat, Kind::Ollama),
    ("ollama-generate", ApiFormat::OllamaGenerate, Kind::Ollama),
];
/// More tokens are an error of the provider.
const TOKENS_MAX: u64 = 1_000_000_000;

/// Checks a provider's answer. The first line names its format.
pub fn provider_response(bytes: &[u8]) {
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else {
        return;
    };
    let (name, answer) = (&bytes[..end], &bytes[end + 1..]);
    let mut formats = FORMATS.iter();
    let Some((_, format, kind)) = formats.find(|(format, ..)| format.as_bytes() == name) else {
        return;
    };
    let read = |piece| format.read_answer(*kind, answer, piece).expect("the kind supports it");
    let whole = read(Some(usize::MAX));
    // The split of a stream changes nothing.
    for length in [1, 7, 1_000] {
        assert_eq!(read(Some(length)), whole, "in pieces of {length}");
    }
    for answer in [whole, read(None)] {
        let usage = answer.usage;
        assert!(usage.input_tokens <= TOKENS_MAX && usage.output_tokens <= TOKENS_MAX);
        let cached = usage.cached_input_tokens + usage.cache_write_tokens;
        assert!(cached <= usage.input_tokens, "{usage:?}");
        assert!(usage.reasoning_tokens <= usage.output_tokens, "{usage:?}");
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::*;

    /// A corpus: every file of `NAME/`, which are handwritten, and every line of `NAME.hex`, which
    /// are small inputs that `cargo fuzz run NAME` found and its `-merge=1` kept.
    fn corpus(name: &str) -> Vec<Vec<u8>> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/corpus");
        let files = fs::read_dir(dir.join(name)).unwrap();
        let mut inputs: Vec<_> =
            files.map(|file| fs::read(file.unwrap().path()).unwrap()).collect();
        assert!(inputs.len() >= 10, "a corpus of {} files", inputs.len());
        let found = fs::read_to_string(dir.join(format!("{name}.hex"))).unwrap_or_default();
        inputs.extend(found.lines().map(bytes_of_hex));
        inputs
    }

    fn bytes_of_hex(line: &str) -> Vec<u8> {
        let digits = line.as_bytes().chunks(2);
        digits
            .map(|two| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap())
            .collect()
    }

    /// A change of an input: removes some bytes and inserts others.
    #[derive(Clone, Debug)]
    struct Change {
        at: Index,
        gone: usize,
        new: Vec<u8>,
    }

    fn changes() -> impl Strategy<Value = Vec<Change>> {
        let new = prop_oneof![
            prop::collection::vec(any::<u8>(), 0..4),
            prop::sample::select(vec!["\r\n", "\n", ":", " ", ",", "\"", "{", "[", "\\u0000", "0"])
                .prop_map(|text| text.as_bytes().to_vec()),
        ];
        let change = (any::<Index>(), 0usize..8, new);
        let change = change.prop_map(|(at, gone, new)| Change { at, gone, new });
        prop::collection::vec(change, 1..5)
    }

    fn changed(mut bytes: Vec<u8>, changes: &[Change]) -> Vec<u8> {
        for Change { at, gone, new } in changes {
            let start = at.index(bytes.len() + 1);
            let end = (start + gone).min(bytes.len());
            bytes.splice(start..end, new.iter().copied());
        }
        bytes
    }

    fn holds_for_changed(name: &str, invariant: fn(&[u8])) {
        let corpus = corpus(name);
        let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
            cases: 2_000,
            failure_persistence: None,
            ..ProptestConfig::default()
        });
        let input = (any::<Index>(), changes());
        runner
            .run(&input, |(index, changes)| {
                let bytes = changed(index.get(&corpus).clone(), &changes);
                invariant(&bytes);
                Ok(())
            })
            .unwrap();
    }

    #[test]
    fn corpus_request_heads_parse_deterministically() {
        corpus("request_head").iter().for_each(|bytes| request_head(bytes));
    }

    #[test]
    fn corpus_messages_are_parsed_or_refused() {
        corpus("client_message").iter().for_each(|bytes| client_message(bytes));
    }

    #[test]
    fn corpus_responses_have_possible_counts_in_any_split() {
        let corpus = corpus("provider_response");
        corpus.iter().for_each(|bytes| provider_response(bytes));
        let names = corpus.iter().map(|bytes| bytes.split(|byte| *byte == b'\n').next().unwrap());
        let names: std::collections::BTreeSet<_> = names.collect();
        for (format, ..) in FORMATS {
            assert!(names.contains(format.as_bytes()), "no response in the format {format}");
        }
    }

    #[test]
    fn mutated_responses_have_possible_counts_in_any_split() {
        holds_for_changed("provider_response", provider_response);
    }

    #[test]
    fn mutated_request_heads_parse_deterministically() {
        holds_for_changed("request_head", request_head);
    }

    #[test]
    fn mutated_messages_are_parsed_or_refused() {
        holds_for_changed("client_message", client_message);
    }
}
