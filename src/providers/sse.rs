//! Server-sent events, read bit by bit: <https://html.spec.whatwg.org/multipage/server-sent-events.html>.
//!
//! Pure: bytes in, events out, however the bytes are split. `id` and `retry` are of no use here
//! and ignored, as are comments.

use std::collections::VecDeque;

/// The longest line, and the longest data of one event, bytes. Providers send a few hundred bytes
/// at a time; a whole answer in one event still fits.
pub(super) const LINE_BYTES_MAX: usize = 1024 * 1024;

/// One event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Event {
    /// The field `event`; empty where there is none.
    pub(super) name: String,
    /// The fields `data`, joined by line feeds.
    pub(super) data: String,
}

/// A line or an event is longer than the parser's limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooLong;

/// Reads events from pieces of a stream.
#[derive(Debug)]
pub(super) struct Parser {
    /// The longest line, and the longest data of one event, bytes.
    bytes_max: usize,
    /// The line that has not ended yet. Bytes, because a piece may end within a character.
    line: Vec<u8>,
    /// Whether the last byte was a carriage return, so that a line feed now belongs to it.
    after_return: bool,
    /// Whether a line has ended: only the first may begin with a byte order mark.
    begun: bool,
    /// The event that has not ended yet, and whether it has any `data`.
    event: Event,
    has_data: bool,
    /// Events that nobody has taken yet.
    ready: VecDeque<Event>,
}

impl Default for Parser {
    fn default() -> Self {
        Self::with_limit(LINE_BYTES_MAX)
    }
}

impl Parser {
    /// One that takes lines and events of at most so many bytes.
    pub(super) fn with_limit(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            line: Vec::new(),
            after_return: false,
            begun: false,
            event: Event::default(),
            has_data: false,
            ready: VecDeque::new(),
        }
    }

    /// Reads a piece; the events that it completes can be taken with [`Parser::next`]. After an
    /// error the stream is of no more use.
    pub(super) fn push(&mut self, mut bytes: &[u8]) -> Result<(), TooLong> {
        if let Some(first) = bytes.first()
            && std::mem::take(&mut self.after_return)
            && *first == b'\n'
        {
            bytes = &bytes[1..];
        }
        while let Some(end) = bytes.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
            self.extend_line(&bytes[..end])?;
            self.end_line()?;
            let is_pair = bytes[end] == b'\r' && bytes.get(end + 1) == Some(&b'\n');
            self.after_return = bytes[end] == b'\r' && end + 1 == bytes.len();
            bytes = &bytes[end + 1 + usize::from(is_pair)..];
        }
        self.extend_line(bytes)
    }

    /// The next complete event.
    pub(super) fn next(&mut self) -> Option<Event> {
        self.ready.pop_front()
    }

    /// The event that the stream ended within. By the standard it is to be dropped, but some
    /// servers forget the empty line after the last event.
    pub(super) fn finish(&mut self) -> Option<Event> {
        // What is too long is of no use at the end either.
        if !self.line.is_empty() && self.end_line().is_err() {
            return None;
        }
        self.dispatch();
        self.next()
    }

    fn extend_line(&mut self, bytes: &[u8]) -> Result<(), TooLong> {
        if self.line.len() + bytes.len() > self.bytes_max {
            return Err(TooLong);
        }
        self.line.extend_from_slice(bytes);
        Ok(())
    }

    fn end_line(&mut self) -> Result<(), TooLong> {
        let line = std::mem::take(&mut self.line);
        let mut bytes = line.as_slice();
        if !std::mem::replace(&mut self.begun, true) {
            bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
        }
        let read = if bytes.is_empty() {
            self.dispatch();
            Ok(())
        } else {
            self.field(&String::from_utf8_lossy(bytes))
        };
        self.line = line;
        self.line.clear(); // Keeps the memory for the next line.
        read
    }

    /// Reads `name: value`, `name:value` or `name`. A comment is a field without a name.
    fn field(&mut self, line: &str) -> Result<(), TooLong> {
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match name {
            "event" => value.clone_into(&mut self.event.name),
            "data" => {
                // One more for the line feed that may join the two.
                if self.event.data.len() + 1 + value.len() > self.bytes_max {
                    return Err(TooLong);
                }
                if std::mem::replace(&mut self.has_data, true) {
                    self.event.data.push('\n');
                }
                self.event.data.push_str(value);
            }
            _ => {}
        }
        Ok(())
    }

    fn dispatch(&mut self) {
        let event = std::mem::take(&mut self.event);
        if std::mem::take(&mut self.has_data) {
            self.ready.push_back(event);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// All events of a stream that comes in those pieces.
    fn events<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<(String, String)> {
        let mut parser = Parser::default();
        let mut events = Vec::new();
        for piece in pieces {
            parser.push(piece).unwrap();
            events.extend(std::iter::from_fn(|| parser.next()));
        }
        events.extend(parser.finish());
        events
            .into_iter()
            .map(|event| (event.name, event.data))
            .collect()
    }

    fn data(text: &str) -> Vec<String> {
        events([text.as_bytes()])
            .into_iter()
            .map(|(_, data)| data)
            .collect()
    }

    #[test]
    fn lines_end_with_lf_crlf_or_cr() {
        assert_eq!(data("data: a\n\ndata: b\n\n"), ["a", "b"]);
        assert_eq!(data("data: a\r\n\r\ndata: b\r\n\r\n"), ["a", "b"]);
        assert_eq!(data("data: a\r\rdata: b\r\r"), ["a", "b"]);
    }

    #[test]
    fn data_of_several_lines_is_joined() {
        assert_eq!(data("data: {\ndata:  1\ndata:}\n\n"), ["{\n 1\n}"]);
        assert_eq!(data("data\ndata\n\n"), ["\n"]);
    }

    #[test]
    fn comments_other_fields_and_events_without_data_are_skipped() {
        assert_eq!(
            data(": keep-alive\n\nid: 7\nretry: 1\nfoo\n\ndata: a\n\nevent: x\n\n"),
            ["a"]
        );
    }

    #[test]
    fn an_event_has_its_name_and_the_next_does_not_inherit_it() {
        let found = events([b"event: ping\ndata: {}\n\ndata: b\n\n".as_slice()]);
        assert_eq!(
            found,
            [("ping".into(), "{}".into()), (String::new(), "b".into())]
        );
    }

    #[test]
    fn a_byte_order_mark_is_skipped_at_the_start_only() {
        assert_eq!(data("\u{feff}data: a\n\n\u{feff}data: b\n\n"), ["a"]);
    }

    #[test]
    fn the_last_event_counts_without_its_empty_line() {
        assert_eq!(data("data: a\n\ndata: [DONE]"), ["a", "[DONE]"]);
    }

    #[test]
    fn what_is_not_utf8_is_replaced() {
        assert_eq!(events([b"data: \xff\n\n".as_slice()])[0].1, "\u{fffd}");
    }

    #[test]
    fn a_line_without_end_is_refused_at_the_limit() {
        let mut parser = Parser::default();
        let piece = vec![b'x'; LINE_BYTES_MAX];
        assert_eq!(parser.push(&piece), Ok(()));
        assert_eq!(parser.push(b"x"), Err(TooLong));
    }

    #[test]
    fn an_event_of_many_lines_is_refused_at_the_limit() {
        let line = format!("data: {}\n", "x".repeat(LINE_BYTES_MAX / 2));
        let mut parser = Parser::default();
        assert_eq!(parser.push(line.as_bytes()), Ok(()));
        assert_eq!(parser.push(line.as_bytes()), Err(TooLong));
    }

    proptest! {
        #[test]
        fn events_do_not_depend_on_how_the_bytes_are_split(
            lines in prop::collection::vec(
                prop_oneof![
                    Just(String::new()),
                    "(data|event|:|id)(: ?)?[a-zäß€🦀\u{feff} :]{0,6}",
                ],
                0..12,
            ),
            ends in prop::collection::vec(prop_oneof![Just("\n"), Just("\r\n"), Just("\r")], 12),
            cuts in prop::collection::vec(0usize..200, 0..20),
        ) {
            let text: String =
                lines.iter().zip(&ends).map(|(line, end)| format!("{line}{end}")).collect();
            let bytes = text.as_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces = cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]);
            let whole = events([bytes]);
            prop_assert_eq!(&events(pieces), &whole);
            prop_assert_eq!(&events(bytes.chunks(1)), &whole);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            events([bytes.as_slice()]);
        }
    }
}
