//! Writes streams, as server-sent events or as the elements of a JSON array:
//! <https://ai.google.dev/api/generate-content#method:-models.streamgeneratecontent>.

use serde_json::{Value, json};

use super::parts::write_part;
use super::reply::{Names, names, write_stop, write_usage};
use super::signatures::pack_thoughts;
use crate::event::Usage;
use crate::translation::{
    Context, Extra, Opened, Part, PartKind, Piece, Signature, Stop, StreamWriter,
};

/// Writes the chunks of a stream. Function calls are whole; texts and thoughts are written as they
/// come, and their signatures with an empty text, as Google does.
pub struct ChunkWriter {
    context: Context,
    names: Names,
    open: Option<Open>,
    /// The signed thoughts since the last call.
    thoughts: Vec<Part>,
    stop: Option<Stop>,
    has_begun: bool,
}

struct Open {
    opened: Opened,
    /// The text or the arguments so far, except for a text that is no thought.
    text: String,
    signature: Option<Signature>,
}

impl ChunkWriter {
    pub fn new(context: Context) -> Self {
        let names = names("", "", &context);
        Self { context, names, open: None, thoughts: Vec::new(), stop: None, has_begun: false }
    }

    fn delta(&mut self, text: &str, bytes: &mut Vec<u8>) {
        let Some(open) = &mut self.open else {
            return;
        };
        if !matches!(open.opened, Opened::Text | Opened::Refusal) {
            open.text.push_str(text);
        }
        self.text(text, None, bytes);
    }

    fn signature(&mut self, signature: &Signature, bytes: &mut Vec<u8>) {
        if let Some(open) = &mut self.open {
            open.signature = Some(signature.clone());
            self.text("", Some(signature.clone()), bytes);
        }
    }

    /// Writes a text or its signature.
    fn text(&mut self, text: &str, signature: Option<Signature>, bytes: &mut Vec<u8>) {
        let kind = match self.open.as_ref().map(|open| &open.opened) {
            Some(Opened::Text | Opened::Refusal) => PartKind::Text(text.to_owned()),
            Some(Opened::Thinking) => PartKind::Thinking(text.to_owned()),
            Some(Opened::ToolCall { .. }) | None => return,
        };
        let part = Part { signature, ..Part::new(kind) };
        self.part(&part, bytes);
    }

    fn close(&mut self, bytes: &mut Vec<u8>) {
        let Some(Open { opened, text, signature }) = self.open.take() else {
            return;
        };
        match opened {
            Opened::Thinking if signature.is_some() => {
                self.thoughts.push(Part { signature, ..Part::new(PartKind::Thinking(text)) });
            }
            Opened::ToolCall { id, name, is_custom } => {
                let signature = signature.or_else(|| pack_thoughts(&self.thoughts));
                self.thoughts.clear();
                let kind = PartKind::ToolCall { id, name, arguments: text, is_custom };
                self.part(&Part { signature, ..Part::new(kind) }, bytes);
            }
            _ => {}
        }
    }

    fn part(&mut self, part: &Part, bytes: &mut Vec<u8>) {
        let part = write_part(part, &Extra::new(), None);
        let content = json!({"parts": [part], "role": "model"});
        self.chunk(json!({"content": content, "index": 0}), None, bytes);
    }

    fn chunk(&mut self, candidate: Value, usage: Option<Value>, bytes: &mut Vec<u8>) {
        let mut chunk = json!({"candidates": [candidate]});
        if let Some(usage) = usage {
            chunk["usageMetadata"] = usage;
        }
        chunk["modelVersion"] = self.names.model.as_str().into();
        chunk["responseId"] = self.names.id.as_str().into();
        let before: &[u8] = match (self.context.is_array, self.has_begun) {
            (false, _) => b"data: ",
            (true, false) => b"[",
            (true, true) => b",\r\n",
        };
        self.has_begun = true;
        bytes.extend_from_slice(before);
        bytes.extend_from_slice(chunk.to_string().as_bytes());
        if !self.context.is_array {
            bytes.extend_from_slice(b"\r\n\r\n");
        }
    }
}

impl StreamWriter for ChunkWriter {
    fn piece(&mut self, piece: &Piece, _: &Usage, bytes: &mut Vec<u8>) {
        match piece {
            Piece::Begin { id, model } => self.names = names(id, model, &self.context),
            Piece::Open(opened) => {
                let opened = opened.clone();
                self.open = Some(Open { opened, text: String::new(), signature: None });
            }
            Piece::Delta(text) => self.delta(text, bytes),
            Piece::Signature(signature) => self.signature(signature, bytes),
            Piece::Close => self.close(bytes),
            Piece::Stop(stop) => self.stop = Some(stop.clone()),
        }
    }

    fn end(&mut self, usage: &Usage, bytes: &mut Vec<u8>) {
        self.close(bytes);
        let reason = self.stop.as_ref().map_or("STOP", write_stop);
        // Google's clients take a content without parts for an invalid answer.
        let content = json!({"parts": [{"text": ""}], "role": "model"});
        let candidate = json!({"content": content, "finishReason": reason, "index": 0});
        self.chunk(candidate, write_usage(usage), bytes);
        if self.context.is_array {
            bytes.extend_from_slice(b"]");
        }
    }
}
