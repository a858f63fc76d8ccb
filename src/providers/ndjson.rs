//! JSON texts in lines, one in each (<https://github.com/ndjson/ndjson-spec>), read bit by bit.
//! Pure: bytes in, lines out, however the bytes are split.

use super::sse::{Event, LINE_BYTES_MAX, TooLong};

/// Reads lines from pieces of a stream.
#[derive(Debug, Default)]
pub(super) struct Parser {
    /// What nobody has taken yet: whole lines, and one that has not ended. Bytes, because a piece may
    /// end within a character.
    bytes: Vec<u8>,
    /// Where in it the next line begins, and how far it was searched for an end.
    start: usize,
    searched: usize,
}

impl Parser {
    /// Reads a piece; the lines that it completes can be taken with [`Parser::next`]. After an error
    /// the stream is of no more use.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<(), TooLong> {
        self.bytes.drain(..self.start);
        self.searched -= self.start;
        self.start = 0;
        self.bytes.extend_from_slice(bytes);
        let lines = self.bytes.split(|byte| *byte == b'\n');
        if lines.map(<[u8]>::len).any(|length| length > LINE_BYTES_MAX) {
            return Err(TooLong);
        }
        Ok(())
    }

    /// The next complete line that is not blank, as an event without a name.
    pub(super) fn next(&mut self) -> Option<Event> {
        loop {
            let rest = self.bytes.get(self.searched..).unwrap_or_default();
            let Some(length) = rest.iter().position(|byte| *byte == b'\n') else {
                self.searched = self.bytes.len();
                return None;
            };
            let end = self.searched + length;
            let line = event(&self.bytes[self.start..end]);
            self.start = end + 1;
            self.searched = self.start;
            if line.is_some() {
                return line;
            }
        }
    }

    /// The line that the stream ended within: the last one may lack its line feed.
    pub(super) fn finish(&mut self) -> Option<Event> {
        let rest = std::mem::take(&mut self.bytes);
        let line = rest.get(self.start..).and_then(event);
        (self.start, self.searched) = (0, 0);
        line
    }
}

fn event(line: &[u8]) -> Option<Event> {
    let data = String::from_utf8_lossy(line);
    let data = data.trim_start_matches('\u{feff}').trim();
    (!data.is_empty()).then(|| Event {
        name: String::new(),
        data: data.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lines<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<String> {
        let mut parser = Parser::default();
        let mut lines = Vec::new();
        for piece in pieces {
            parser.push(piece).unwrap();
            lines.extend(std::iter::from_fn(|| parser.next()));
        }
        lines.extend(parser.finish());
        lines.into_iter().map(|event| event.data).collect()
    }

    #[test]
    fn blank_lines_are_skipped_and_the_last_needs_no_end() {
        let text = "\u{feff}{}\r\n\n  \n[1]\n{\"a\":\n2";
        assert_eq!(lines([text.as_bytes()]), ["{}", "[1]", "{\"a\":", "2"]);
    }

    #[test]
    fn a_line_without_end_is_refused_at_the_limit() {
        let mut parser = Parser::default();
        assert_eq!(parser.push(&vec![b'x'; LINE_BYTES_MAX]), Ok(()));
        assert_eq!(parser.push(b"x"), Err(TooLong));
    }

    proptest! {
        #[test]
        fn lines_do_not_depend_on_how_the_bytes_are_split(
            bytes in prop::collection::vec(
                prop_oneof![Just(b'\n'), Just(b'\r'), Just(b' '), any::<u8>()], 0..200),
            cuts in prop::collection::vec(0usize..200, 0..20),
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces = cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]);
            let whole = lines([bytes.as_slice()]);
            prop_assert_eq!(&lines(pieces), &whole);
            prop_assert_eq!(&lines(bytes.chunks(1)), &whole);
        }
    }
}
