//! Splits a streamed answer into frames: whole events, and lines outside any event. A frame has its
//! raw bytes for the client, and its event for the reader of text and usage.
//!
//! Server-sent events follow <https://html.spec.whatwg.org/multipage/server-sent-events.html>; `id`
//! and `retry` are ignored. In NDJSON (<https://github.com/ndjson/ndjson-spec>) each line is an
//! event. Of a JSON array, each element is an event, and a frame includes what precedes it. Pure: the
//! frames do not depend on the split of the input.

mod json_array;

use json_array::{JsonArray, Part};

const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// The format of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    Sse,
    NdJson,
    JsonArray,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Event {
    /// The field `event`; empty if there is none.
    pub(super) name: String,
    /// The fields `data`, joined by line feeds.
    pub(super) data: String,
}

/// A complete part of a stream.
#[derive(Debug)]
pub(super) struct Frame<'a> {
    pub(super) raw: &'a [u8],
    /// None for comments, blank lines and other lines without data.
    pub(super) event: Option<&'a Event>,
    /// False for an event that the stream ended within.
    pub(super) is_ended: bool,
}

/// A frame is longer than the framer's limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooLong;

/// Splits the input. A frame has at most one event, and only an incomplete event or line is held
/// back.
#[derive(Debug)]
pub(super) struct Framer {
    framing: Framing,
    frame_bytes_max: usize,
    bytes: Vec<u8>,
    /// Indices in `bytes`: the start of the next frame, the start of its incomplete line, and the
    /// end of the search for line ends.
    start: usize,
    line: usize,
    searched: usize,
    /// True if the frame has a line of an event.
    in_event: bool,
    /// True if the last line ended with a carriage return; a line feed that follows belongs to it.
    after_return: bool,
    /// Only the first line may begin with a byte order mark.
    is_first_line: bool,
    event: Event,
    has_data: bool,
    array: JsonArray,
}

impl Framer {
    pub(super) fn new(framing: Framing, frame_bytes_max: usize) -> Self {
        Self {
            framing,
            frame_bytes_max,
            bytes: Vec::new(),
            start: 0,
            line: 0,
            searched: 0,
            in_event: false,
            after_return: false,
            is_first_line: true,
            event: Event::default(),
            has_data: false,
            array: JsonArray::default(),
        }
    }

    /// Adds input; [`Framer::next`] returns the frames that it completes.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.start);
        self.array.drop_start(self.start);
        self.line = self.line.saturating_sub(self.start);
        self.searched -= self.start;
        self.start = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// Returns the next complete frame.
    ///
    /// # Errors
    /// Fails for a frame over the limit; the stream is then unusable.
    pub(super) fn next(&mut self) -> Result<Option<Frame<'_>>, TooLong> {
        if self.framing == Framing::JsonArray {
            return self.next_element();
        }
        let next = self.bytes.get(self.searched);
        if let Some(next) = next
            && std::mem::take(&mut self.after_return)
            && *next == b'\n'
        {
            self.searched += 1;
            self.line = self.searched;
            if !self.in_event {
                return self.cut().map(Some);
            }
        }
        let is_sse = self.framing == Framing::Sse;
        let is_end = |byte: &u8| *byte == b'\n' || (is_sse && *byte == b'\r');
        while let Some(length) = self.bytes[self.searched..].iter().position(is_end) {
            let end = self.searched + length;
            let is_return = self.bytes[end] == b'\r';
            let is_pair = self.bytes[end..].starts_with(b"\r\n");
            self.after_return = is_return && end + 1 == self.bytes.len();
            self.read_line(end);
            self.searched = end + 1 + usize::from(is_pair);
            self.line = self.searched;
            if !self.in_event {
                return self.cut().map(Some);
            }
        }
        self.searched = self.bytes.len();
        match self.searched - self.start > self.frame_bytes_max {
            true => Err(TooLong),
            false => Ok(None),
        }
    }

    /// Returns the next element of an array, or its end without an event.
    fn next_element(&mut self) -> Result<Option<Frame<'_>>, TooLong> {
        while let Some(byte) = self.bytes.get(self.searched) {
            let part = self.array.read(*byte, self.searched);
            self.searched += 1;
            let Some(part) = part else { continue };
            self.event.data.clear();
            if let Part::Element(start) = part {
                let element = String::from_utf8_lossy(&self.bytes[start..self.searched]);
                self.event.data.push_str(&element);
                self.has_data = true;
            }
            return self.cut().map(Some);
        }
        match self.searched - self.start > self.frame_bytes_max {
            true => Err(TooLong),
            false => Ok(None),
        }
    }

    /// Returns the event that the stream ended within. The standard drops it, but some servers omit
    /// the empty line after the last event.
    pub(super) fn finish(&mut self) -> Option<Frame<'_>> {
        // An incomplete element is not valid JSON.
        if self.framing == Framing::JsonArray {
            return None;
        }
        self.searched = self.bytes.len();
        if self.line < self.searched {
            self.read_line(self.searched);
        }
        self.line = self.searched;
        let rest = self.cut().ok().filter(|frame| frame.event.is_some());
        rest.map(|frame| Frame { is_ended: false, ..frame })
    }

    fn cut(&mut self) -> Result<Frame<'_>, TooLong> {
        let start = std::mem::replace(&mut self.start, self.searched);
        let raw = &self.bytes[start..self.searched];
        if raw.len() > self.frame_bytes_max {
            return Err(TooLong);
        }
        self.in_event = false;
        let has_data = std::mem::take(&mut self.has_data);
        Ok(Frame { raw, event: has_data.then_some(&self.event), is_ended: true })
    }

    /// Reads the line from `self.line` to `end`.
    fn read_line(&mut self, end: usize) {
        let mut line = &self.bytes[self.line..end];
        if std::mem::take(&mut self.is_first_line) {
            line = line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line);
        }
        if !self.in_event {
            self.event.name.clear();
            self.event.data.clear();
        }
        if self.framing == Framing::NdJson {
            let line = String::from_utf8_lossy(line.trim_ascii());
            self.event.data.push_str(&line);
            self.has_data = !line.is_empty();
            return;
        }
        if line.is_empty() {
            self.in_event = false;
            return;
        }
        let colon = line.iter().position(|byte| *byte == b':');
        let (name, value) = line.split_at(colon.unwrap_or(line.len()));
        let value = value.strip_prefix(b":").unwrap_or(value);
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match name {
            b"event" => self.event.name = String::from_utf8_lossy(value).into_owned(),
            b"data" => {
                if std::mem::replace(&mut self.has_data, true) {
                    self.event.data.push('\n');
                }
                self.event.data.push_str(&String::from_utf8_lossy(value));
            }
            b"id" | b"retry" => {}
            // A comment (empty name) or an unknown field: not part of an event.
            _ => return,
        }
        self.in_event = true;
    }
}

#[cfg(test)]
mod tests;
