//! A stream of events cut into pieces that a client can use by themselves: whole events, and lines that
//! are of no event. Pure: bytes in, the same bytes out, however they are split.

/// What a stream may begin with.
const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// The fields that an event consists of. Lines with other names, or with none, which are comments, mean
/// nothing to it.
const FIELDS: [&[u8]; 4] = [b"event", b"data", b"id", b"retry"];

/// Cuts a stream as `sse::Parser` reads it: no piece holds more than one event, and nothing is held
/// back but an event, or a line, that is not over.
#[derive(Debug, Default)]
pub(super) struct SseFramer {
    /// What came since the last piece, and before it what was not removed yet.
    bytes: Vec<u8>,
    /// Where in it the next piece begins, the line that has not ended, and what was not looked at.
    start: usize,
    line: usize,
    searched: usize,
    /// Whether there is a line of an event before the one that has not ended.
    in_event: bool,
    /// Whether the last line ended with a carriage return, so that a line feed now belongs to it.
    after_return: bool,
    /// Whether a line has ended: only the first may begin with a byte order mark.
    begun: bool,
}

impl SseFramer {
    /// Takes what came; the pieces that it completes are given by [`SseFramer::next`].
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.start);
        self.line -= self.start;
        self.searched -= self.start;
        self.start = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// The next complete piece.
    pub(super) fn next(&mut self) -> Option<&[u8]> {
        let next = *self.bytes.get(self.searched)?;
        if std::mem::take(&mut self.after_return) && next == b'\n' {
            self.searched += 1;
            self.line = self.searched;
            if !self.in_event {
                return Some(self.cut());
            }
        }
        loop {
            let rest = &self.bytes[self.searched..];
            let Some(length) = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r')) else {
                self.searched = self.bytes.len();
                return None;
            };
            let end = self.searched + length;
            let line = &self.bytes[self.line..end];
            let is_first = !std::mem::replace(&mut self.begun, true);
            let line = line
                .strip_prefix(BYTE_ORDER_MARK)
                .filter(|_| is_first)
                .unwrap_or(line);
            let is_blank = line.is_empty();
            self.in_event = !is_blank && (self.in_event || is_of_an_event(line));
            let is_pair = self.bytes[end..].starts_with(b"\r\n");
            self.after_return = self.bytes[end..] == *b"\r";
            self.searched = end + 1 + usize::from(is_pair);
            self.line = self.searched;
            if !self.in_event {
                return Some(self.cut());
            }
        }
    }

    /// What did not end.
    pub(super) fn rest(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    fn cut(&mut self) -> &[u8] {
        let start = std::mem::replace(&mut self.start, self.searched);
        &self.bytes[start..self.searched]
    }
}

fn is_of_an_event(line: &[u8]) -> bool {
    let name = line.split(|byte| *byte == b':').next();
    name.is_some_and(|name| FIELDS.contains(&name))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::sse;
    use super::*;

    /// The pieces of a stream that comes in those parts, and what is left.
    fn cut<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Vec<u8>>, Vec<u8>) {
        let mut pieces = SseFramer::default();
        let mut found = Vec::new();
        for part in parts {
            pieces.push(part);
            while let Some(piece) = pieces.next() {
                found.push(piece.to_vec());
            }
        }
        let rest = pieces.rest().to_vec();
        (found, rest)
    }

    fn texts(text: &str) -> (Vec<String>, String) {
        let (pieces, rest) = cut([text.as_bytes()]);
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (pieces.into_iter().map(text).collect(), text(rest))
    }

    #[test]
    fn an_event_is_a_piece_however_its_lines_end() {
        for (text, pieces, rest) in [
            ("data: a\n\nda", &["data: a\n\n"][..], "da"),
            ("data: a\r\n\r\nrest", &["data: a\r\n\r\n"], "rest"),
            ("data: a\r\rrest", &["data: a\r\r"], "rest"),
            ("data: a\n\r\nrest", &["data: a\n\r\n"], "rest"),
            ("event: x\ndata: b\n", &[], "event: x\ndata: b\n"),
            ("data: a\r\n", &[], "data: a\r\n"),
            ("\u{feff}data: a\n\n", &["\u{feff}data: a\n\n"], ""),
        ] {
            assert_eq!(
                texts(text),
                (
                    pieces.iter().map(|it| (*it).to_owned()).collect(),
                    rest.into()
                ),
                "{text:?}"
            );
        }
    }

    #[test]
    fn a_line_that_is_of_no_event_is_a_piece() {
        assert_eq!(
            texts(": a\n\n: b\r\n{\"x\":1}\n: c").0,
            [": a\n", "\n", ": b\r\n", "{\"x\":1}\n"]
        );
        // Amid an event it cannot come before what that began with.
        assert_eq!(texts("data: a\n: b\n\n").0, ["data: a\n: b\n\n"]);
    }

    #[test]
    fn a_line_feed_that_comes_late_ends_no_line() {
        let (pieces, rest) = cut([&b"data: a\r"[..], b"\ndata: b\r\n\r", b"\n", b"id: 1"]);
        assert_eq!(pieces, [&b"data: a\r\ndata: b\r\n\r"[..], b"\n"]);
        assert_eq!(rest, b"id: 1");
    }

    proptest! {
        #[test]
        fn all_bytes_come_in_order_and_nothing_complete_is_held_back(
            lines in prop::collection::vec(
                prop_oneof![
                    Just(String::new()),
                    "\u{feff}?(data|event|:|id|x)(: ?)?[a-zäß€🦀\u{feff} :]{0,6}",
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
            let (pieces, rest) = cut(cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]));
            prop_assert_eq!([pieces.concat(), rest.clone()].concat(), bytes);
            let mut parser = sse::Parser::default();
            for piece in &pieces {
                parser.push(piece).unwrap();
                parser.next();
                // One event at most, and none that goes on in the next piece.
                prop_assert_eq!(parser.next(), None);
                prop_assert_eq!(parser.finish(), None);
            }
            parser.push(&rest).unwrap();
            prop_assert_eq!(parser.next(), None);
        }
    }
}
