//! What holds for every input of the two parsers that strangers reach. The fuzz targets in `fuzz/`
//! look for inputs for which it does not; the tests below try those of `tests/fixtures/corpus/`,
//! with small changes as well.

use flowledger::event::Request;
use flowledger::listener::RequestHead;
use flowledger::websocket::{FILTER_ITEMS_MAX, read_request};

/// Longer inputs are cut in so many places, not in all.
const CUTS_MAX: usize = 64;

/// A request's head.
pub fn request_head(bytes: &[u8]) {
    let whole = RequestHead::parse(bytes);
    let complete = match &whole {
        Ok(Some((_, length))) => *length,
        Ok(None) => bytes.len(),
        Err(_) => return,
    };
    assert!(complete <= bytes.len());
    // What has come so far is never refused when the whole is not, and never taken for the whole.
    for cut in (0..complete).step_by(complete / CUTS_MAX + 1) {
        assert_eq!(RequestHead::parse(&bytes[..cut]), Ok(None), "cut at {cut}");
    }
    let Ok(Some((head, length))) = whole else {
        return;
    };
    // What follows a head changes nothing about it.
    let alone = RequestHead::parse(&bytes[..length]);
    assert_eq!(alone, Ok(Some((head.clone(), length))));
    assert!(head.target.starts_with('/') && head.target.starts_with(head.path()));
    let _ = (head.query("since"), head.keeps_alive());
    // Written again, it is read as the same.
    let written = written(&head);
    if written.len() > length {
        // A value that was no UTF-8 is longer now, and the head perhaps over the limit.
        return;
    }
    let read = RequestHead::parse(written.as_bytes());
    assert_eq!(read, Ok(Some((head, written.len()))), "{written:?}");
}

/// A head as short as it can be written, so that it is not over the limit when it was not before.
fn written(head: &RequestHead) -> String {
    let mut text = format!("{} {} HTTP/1.{}\n", head.method, head.target, head.version);
    for (name, value) in &head.headers {
        text.push_str(&format!("{name}:{value}\n"));
    }
    text + "\n"
}

/// A client's message.
pub fn client_message(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let read = read_request(text);
    // What is read is JSON, and its type is the one that it says.
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
            // Written again, it is read as the same.
            assert_eq!(read_request(&value.to_string()).as_ref(), Ok(request));
        }
        Err((code, message)) => {
            assert_eq!(*code == "invalid_json", value.is_err());
            assert!(!message.is_empty());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::*;

    /// A corpus: every file of `NAME/`, written by hand, and every line of `NAME.hex`, which are the
    /// small ones of those inputs that `cargo fuzz run NAME` found and its `-merge=1` left.
    fn corpus(name: &str) -> Vec<Vec<u8>> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/corpus");
        let files = fs::read_dir(dir.join(name)).unwrap();
        let mut inputs: Vec<_> =
            files.map(|file| fs::read(file.unwrap().path()).unwrap()).collect();
        assert!(inputs.len() >= 10, "a corpus of {} files", inputs.len());
        let found = fs::read_to_string(dir.join(format!("{name}.hex"))).unwrap();
        inputs.extend(found.lines().map(bytes_of_hex));
        assert!(inputs.len() >= 300, "a corpus of {} inputs", inputs.len());
        inputs
    }

    fn bytes_of_hex(line: &str) -> Vec<u8> {
        let digits = line.as_bytes().chunks(2);
        digits
            .map(|two| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap())
            .collect()
    }

    /// A change of an input: something goes, something comes in its place.
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
    fn heads_of_the_corpus_are_read_or_refused_always_in_the_same_way() {
        corpus("request_head").iter().for_each(|bytes| request_head(bytes));
    }

    #[test]
    fn messages_of_the_corpus_are_read_or_refused() {
        corpus("client_message").iter().for_each(|bytes| client_message(bytes));
    }

    #[test]
    fn changed_heads_are_read_or_refused_always_in_the_same_way() {
        holds_for_changed("request_head", request_head);
    }

    #[test]
    fn changed_messages_are_read_or_refused() {
        holds_for_changed("client_message", client_message);
    }
}
