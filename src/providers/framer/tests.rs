use proptest::prelude::*;

use super::*;

const LIMIT: usize = 1 << 20;

#[derive(Debug, Default, PartialEq)]
struct Frames {
    raw: Vec<Vec<u8>>,
    events: Vec<(String, String)>,
    /// Bytes that were no complete frame.
    rest: Vec<u8>,
}

/// Reads a stream that arrives in these parts.
fn read<'a>(framing: Framing, parts: impl IntoIterator<Item = &'a [u8]>) -> Frames {
    let mut framer = Framer::new(framing, LIMIT);
    let mut frames = Frames::default();
    let text = |event: &Event| (event.name.clone(), event.data.clone());
    for part in parts {
        framer.push(part);
        while let Some(frame) = framer.next().unwrap() {
            frames.raw.push(frame.raw.to_vec());
            frames.events.extend(frame.event.map(text));
        }
    }
    frames.rest = framer.bytes[framer.start..].to_vec();
    frames.events.extend(framer.finish().and_then(|frame| frame.event.map(text)));
    frames
}

fn sse(text: &str) -> Frames {
    read(Framing::Sse, [text.as_bytes()])
}

fn data(framing: Framing, text: &str) -> Vec<String> {
    let events = read(framing, [text.as_bytes()]).events;
    events.into_iter().map(|(_, data)| data).collect()
}

fn sse_data(text: &str) -> Vec<String> {
    data(Framing::Sse, text)
}

#[test]
fn sse_lines_end_with_lf_crlf_or_cr() {
    assert_eq!(sse_data("data: a\n\ndata: b\n\n"), ["a", "b"]);
    assert_eq!(sse_data("data: a\r\n\r\ndata: b\r\n\r\n"), ["a", "b"]);
    assert_eq!(sse_data("data: a\r\rdata: b\r\r"), ["a", "b"]);
}

#[test]
fn sse_data_lines_of_an_event_are_joined() {
    assert_eq!(sse_data("data: {\ndata:  1\ndata:}\n\n"), ["{\n 1\n}"]);
    assert_eq!(sse_data("data\ndata\n\n"), ["\n"]);
}

#[test]
fn sse_comments_and_unknown_fields_are_ignored() {
    let text = ": keep-alive\n\nid: 7\nretry: 1\nfoo\n\ndata: a\n\nevent: x\n\n";
    assert_eq!(sse_data(text), ["a"]);
}

#[test]
fn sse_event_name_is_not_inherited() {
    let found = sse("event: ping\ndata: {}\n\nevent: x\n\ndata: b\n\n").events;
    let expected = [("ping", "{}"), ("", "b")];
    assert_eq!(found, expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
}

#[test]
fn byte_order_mark_is_skipped_at_the_start_only() {
    assert_eq!(sse_data("\u{feff}data: a\n\n\u{feff}data: b\n\n"), ["a"]);
}

#[test]
fn last_sse_event_needs_no_empty_line() {
    assert_eq!(sse_data("data: a\n\ndata: [DONE]"), ["a", "[DONE]"]);
}

#[test]
fn invalid_utf8_is_replaced() {
    let frames = read(Framing::Sse, [&b"data: \xff\n\n"[..]]);
    assert_eq!(frames.events[0].1, "\u{fffd}");
}

#[test]
fn ndjson_skips_blank_lines_and_needs_no_last_line_feed() {
    let text = "\u{feff}{}\r\n\n  \n[1]\n{\"a\":\n2";
    let found = data(Framing::NdJson, text);
    assert_eq!(found, ["{}", "[1]", "{\"a\":", "2"]);
}

#[test]
fn elements_of_an_array_are_events_with_their_separators() {
    let text = "[{\"a\": \"]}\\\\\\\"[\"}\n,\r\n[{}, 1]\n, 7, \"{\", {\"b\":[[]]}]\n";
    let frames = read(Framing::JsonArray, [text.as_bytes()]);
    let raw: Vec<_> = frames.raw.iter().map(|raw| String::from_utf8_lossy(raw)).collect();
    let expected =
        ["[{\"a\": \"]}\\\\\\\"[\"}", "\n,\r\n[{}, 1]", "\n, 7, \"{\", {\"b\":[[]]}", "]"];
    assert_eq!(raw, expected);
    let elements: Vec<_> = frames.events.iter().map(|(_, data)| data.as_str()).collect();
    assert_eq!(elements, ["{\"a\": \"]}\\\\\\\"[\"}", "[{}, 1]", "{\"b\":[[]]}"]);
    assert_eq!(frames.rest, b"\n");
}

#[test]
fn objects_need_no_array_and_half_elements_are_dropped() {
    for (text, elements) in [
        ("", &[][..]),
        ("[]", &[]),
        ("[{\"a\":", &[]),
        ("{\"a\":1}", &["{\"a\":1}"]),
        ("{\"a\":1}\n{\"b\":2}", &["{\"a\":1}", "{\"b\":2}"]),
        ("[{\"a\":1},{\"b\":", &["{\"a\":1}"]),
        ("]]{}", &["{}"]),
    ] {
        assert_eq!(data(Framing::JsonArray, text), elements, "{text}");
    }
}

#[test]
fn frame_above_the_limit_is_refused() {
    for framing in [Framing::Sse, Framing::NdJson, Framing::JsonArray] {
        let mut framer = Framer::new(framing, LIMIT);
        framer.push(&vec![b'x'; LIMIT]);
        assert!(framer.next().unwrap().is_none());
        framer.push(b"x");
        assert_eq!(framer.next().unwrap_err(), TooLong);
    }
    // The limit covers all lines of an event, and complete events too.
    let line = format!("data: {}\n", "x".repeat(LIMIT / 2));
    for last in ["", "\n"] {
        let mut framer = Framer::new(Framing::Sse, LIMIT);
        framer.push(format!("{line}{line}{last}").as_bytes());
        assert_eq!(framer.next().unwrap_err(), TooLong);
    }
}

#[test]
fn an_event_is_one_frame_with_any_line_endings() {
    for (text, raw, rest) in [
        ("data: a\n\nda", &["data: a\n\n"][..], "da"),
        ("data: a\r\n\r\nrest", &["data: a\r\n\r\n"], "rest"),
        ("data: a\r\rrest", &["data: a\r\r"], "rest"),
        ("data: a\n\r\nrest", &["data: a\n\r\n"], "rest"),
        ("event: x\ndata: b\n", &[], "event: x\ndata: b\n"),
        ("data: a\r\n", &[], "data: a\r\n"),
        ("\u{feff}data: a\n\n", &["\u{feff}data: a\n\n"], ""),
    ] {
        let frames = sse(text);
        let expected: Vec<_> = raw.iter().map(|it| it.as_bytes()).collect();
        assert_eq!(frames.raw, expected, "{text:?}");
        assert_eq!(frames.rest, rest.as_bytes(), "{text:?}");
    }
}

#[test]
fn a_line_outside_an_event_is_a_frame() {
    let raw = sse(": a\n\n: b\r\n{\"x\":1}\n: c").raw;
    assert_eq!(raw, [&b": a\n"[..], b"\n", b": b\r\n", b"{\"x\":1}\n"]);
    // Within an event, a comment is part of the event's frame.
    let raw = sse("data: a\n: b\n\n").raw;
    assert_eq!(raw, [b"data: a\n: b\n\n"]);
}

#[test]
fn a_late_line_feed_ends_no_line() {
    let parts = [&b"data: a\r"[..], b"\ndata: b\r\n\r", b"\n", b"id: 1"];
    let frames = read(Framing::Sse, parts);
    assert_eq!(frames.raw, [&b"data: a\r\ndata: b\r\n\r"[..], b"\n"]);
    assert_eq!(frames.rest, b"id: 1");
}

fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
    let line = prop_oneof![
        Just(String::new()),
        "\u{feff}?(data|event|:|id|x)(: ?)?[a-zäß€🦀\u{feff} :]{0,6}",
    ];
    let end = prop_oneof![Just("\n"), Just("\r\n"), Just("\r")];
    let text = prop::collection::vec((line, end), 0..12).prop_map(|lines| {
        let lines = lines.iter().map(|(line, end)| format!("{line}{end}"));
        lines.collect::<String>().into_bytes()
    });
    let brackets = "[\\[\\]{}\",:\\\\a\n ]{0,60}".prop_map(String::into_bytes);
    prop_oneof![text, brackets, prop::collection::vec(any::<u8>(), 0..400)]
}

fn joined(frames: &Frames) -> Vec<u8> {
    [frames.raw.concat(), frames.rest.clone()].concat()
}

proptest! {
    #[test]
    fn frames_are_independent_of_read_boundaries(
        bytes in any_bytes(),
        cuts in prop::collection::vec(0usize..200, 0..20),
        framing in prop_oneof![
            Just(Framing::Sse), Just(Framing::NdJson), Just(Framing::JsonArray)
        ],
    ) {
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let whole = read(framing, [&*bytes]);
        let parts = read(framing, cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]));
        let single = read(framing, bytes.chunks(1));
        prop_assert_eq!(&parts.events, &whole.events);
        prop_assert_eq!(&single.events, &whole.events);
        for frames in [&whole, &parts, &single] {
            prop_assert_eq!(&joined(frames), &bytes);
        }
        let mut framer = Framer::new(framing, LIMIT);
        for raw in &whole.raw {
            framer.push(raw);
            prop_assert_eq!(framer.next().unwrap().unwrap().raw, &raw[..]);
            prop_assert!(framer.next().unwrap().is_none());
        }
    }

    #[test]
    fn elements_of_any_array_are_found(
        texts in prop::collection::vec("(?s).{0,12}|[\\[\\]{}\"\\\\]{0,12}", 0..8),
        depth in 0usize..4,
        is_pretty in any::<bool>(),
        size in 1usize..40,
    ) {
        let nested = |text: &String| {
            (0..depth).fold(serde_json::json!({"a": text}), |inner, _| serde_json::json!({"b": [inner]}))
        };
        let elements: Vec<_> = texts.iter().map(nested).collect();
        let array = match is_pretty {
            true => serde_json::to_vec_pretty(&elements).unwrap(),
            false => serde_json::to_vec(&elements).unwrap(),
        };
        let frames = read(Framing::JsonArray, array.chunks(size));
        let found: Vec<serde_json::Value> =
            frames.events.iter().map(|(_, data)| serde_json::from_str(data).unwrap()).collect();
        prop_assert_eq!(found, elements);
        prop_assert_eq!(frames.raw.concat(), array);
    }
}
