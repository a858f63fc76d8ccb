//! Reads streams: a sequence of answers, each with the next parts.

use serde_json::Value;

use super::fields::{get, text};
use super::reply::{complete_id, is_blocked, is_call, read_parts, read_stop};
use crate::translation::{Opened, Part, PartKind, Piece, Stop, StreamReader};

/// Reads the chunks of a stream. Texts of the same kind continue the open part, until a signature
/// ends it.
#[derive(Default)]
pub struct ChunkReader {
    has_begun: bool,
    id: String,
    open: Option<Opened>,
    calls: usize,
    reason: String,
    is_blocked: bool,
}

impl ChunkReader {
    fn begin(&mut self, data: &Value, pieces: &mut Vec<Piece>) {
        if self.has_begun {
            return;
        }
        self.has_begun = true;
        let field = |name: &str| data.as_object().and_then(|it| text(get(it, name)?));
        self.id = field("responseId").unwrap_or_default();
        let model = field("modelVersion").unwrap_or_default();
        pieces.push(Piece::Begin { id: self.id.clone(), model });
    }

    fn close(&mut self, pieces: &mut Vec<Piece>) {
        pieces.extend(self.open.take().map(|_| Piece::Close));
    }

    fn part(&mut self, mut part: Part, pieces: &mut Vec<Piece>) {
        if is_call(&part) {
            complete_id(&mut part, &self.id, self.calls);
            self.calls += 1;
        }
        let (opened, text) = match part.kind {
            PartKind::Text(text) => (Opened::Text, text),
            PartKind::Thinking(text) => (Opened::Thinking, text),
            PartKind::ToolCall { id, name, arguments, is_custom } => {
                self.close(pieces);
                pieces.push(Piece::Open(Opened::ToolCall { id, name, is_custom }));
                pieces.extend(part.signature.map(Piece::Signature));
                pieces.push(Piece::Delta(arguments));
                pieces.push(Piece::Close);
                return;
            }
            _ => return,
        };
        // An empty text, which the last chunk often has, opens no part.
        if text.is_empty() && part.signature.is_none() {
            return;
        }
        self.text(opened, text, pieces);
        if let Some(signature) = part.signature {
            pieces.push(Piece::Signature(signature));
            self.close(pieces);
        }
    }

    fn text(&mut self, opened: Opened, text: String, pieces: &mut Vec<Piece>) {
        if self.open.as_ref() != Some(&opened) {
            self.close(pieces);
            pieces.push(Piece::Open(opened.clone()));
            self.open = Some(opened);
        }
        if !text.is_empty() {
            pieces.push(Piece::Delta(text));
        }
    }
}

impl StreamReader for ChunkReader {
    fn event(&mut self, _: &str, data: &Value, pieces: &mut Vec<Piece>) {
        self.begin(data, pieces);
        let candidate = &data["candidates"][0];
        for part in read_parts(candidate) {
            self.part(part, pieces);
        }
        let reason = candidate.as_object().and_then(|it| text(get(it, "finishReason")?));
        if let Some(reason) = reason {
            self.reason = reason;
        }
        self.is_blocked |= is_blocked(data);
    }

    fn end(&mut self, pieces: &mut Vec<Piece>) {
        self.begin(&Value::Null, pieces);
        self.close(pieces);
        let has_calls = self.calls > 0;
        let stop = read_stop(&self.reason, has_calls).unwrap_or(match has_calls {
            _ if self.is_blocked => Stop::Refused,
            true => Stop::ToolCalls,
            false => Stop::End,
        });
        pieces.push(Piece::Stop(stop));
    }
}
