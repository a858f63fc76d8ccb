//! Writes the streams of clients:
//! <https://platform.claude.com/docs/en/build-with-claude/streaming>.

use serde_json::{Value, json};

use super::super::conversation::Stop;
use super::super::piece::{Opened, Piece, StreamWriter};
use super::super::{Api, Context, Signature};
use super::reply::{head, signed_id, stop_for_client, write_stop, write_usage};
use crate::event::Usage;

/// Writes events. A block is started when its first content is known, so that an empty part leaves no
/// block, and the id of a tool call can carry the signature that follows its first piece.
pub struct EventWriter {
    context: Context,
    has_begun: bool,
    has_ended: bool,
    has_calls: bool,
    is_refused: bool,
    stop: Option<Stop>,
    index: u64,
    open: Option<Open>,
}

struct Open {
    opened: Opened,
    is_started: bool,
    /// The first piece of a tool call's arguments, until the next piece.
    held: Option<String>,
}

impl EventWriter {
    pub fn new(context: Context) -> Self {
        Self {
            context,
            has_begun: false,
            has_ended: false,
            has_calls: false,
            is_refused: false,
            stop: None,
            index: 0,
            open: None,
        }
    }

    fn begin(&mut self, id: &str, model: &str, usage: &Usage, bytes: &mut Vec<u8>) {
        if self.has_begun {
            return;
        }
        self.has_begun = true;
        let mut message = head(id, model, &self.context);
        message.insert("content".into(), json!([]));
        message.insert("stop_reason".into(), Value::Null);
        message.insert("stop_sequence".into(), Value::Null);
        message.insert("usage".into(), write_usage(usage));
        event("message_start", json!({"message": message}), bytes);
    }

    fn open(&mut self, opened: &Opened, bytes: &mut Vec<u8>) {
        self.close(bytes);
        self.has_calls |= matches!(opened, Opened::ToolCall { .. });
        self.is_refused |= *opened == Opened::Refusal;
        self.open = Some(Open { opened: opened.clone(), is_started: false, held: None });
    }

    fn delta(&mut self, text: &str, bytes: &mut Vec<u8>) {
        let Some(open) = &mut self.open else {
            return;
        };
        if text.is_empty() {
            return;
        }
        let is_call = matches!(open.opened, Opened::ToolCall { .. });
        if is_call && !open.is_started && open.held.is_none() {
            open.held = Some(text.to_owned());
            return;
        }
        self.start(None, bytes);
        self.write_delta(text, bytes);
    }

    fn write_delta(&self, text: &str, bytes: &mut Vec<u8>) {
        let Some(open) = &self.open else {
            return;
        };
        let delta = match open.opened {
            Opened::Text | Opened::Refusal => json!({"type": "text_delta", "text": text}),
            Opened::Thinking => json!({"type": "thinking_delta", "thinking": text}),
            Opened::ToolCall { .. } => json!({"type": "input_json_delta", "partial_json": text}),
        };
        event("content_block_delta", json!({"index": self.index, "delta": delta}), bytes);
    }

    /// Starts the block of the open part, if it is not started, and writes the held piece.
    fn start(&mut self, signature: Option<&Signature>, bytes: &mut Vec<u8>) {
        let Some(open) = &mut self.open else {
            return;
        };
        if open.is_started {
            return;
        }
        open.is_started = true;
        let is_redacted = signature.is_some_and(|it| it.is_redacted && it.api == Api::Messages);
        let block = match &open.opened {
            Opened::Text | Opened::Refusal => json!({"type": "text", "text": ""}),
            Opened::Thinking if is_redacted => {
                let data = signature.map(|signature| signature.value.as_str());
                json!({"type": "redacted_thinking", "data": data})
            }
            Opened::Thinking => json!({"type": "thinking", "thinking": "", "signature": ""}),
            Opened::ToolCall { id, name, .. } => {
                let id = signed_id(id, signature);
                json!({"type": "tool_use", "id": id, "name": name, "input": {}})
            }
        };
        let held = open.held.take();
        let start = json!({"index": self.index, "content_block": block});
        event("content_block_start", start, bytes);
        if let Some(held) = held {
            self.write_delta(&held, bytes);
        }
    }

    fn sign(&mut self, signature: &Signature, bytes: &mut Vec<u8>) {
        let Some(open) = &self.open else {
            return;
        };
        match open.opened {
            Opened::Thinking => {
                let is_hidden =
                    !open.is_started && signature.is_redacted && signature.api == Api::Messages;
                self.start(Some(signature), bytes);
                if is_hidden {
                    return;
                }
                let signature = signature.text_for(Api::Messages);
                let delta = json!({"type": "signature_delta", "signature": signature});
                event("content_block_delta", json!({"index": self.index, "delta": delta}), bytes);
            }
            Opened::ToolCall { .. } => self.start(Some(signature), bytes),
            // A text has no field for it.
            Opened::Text | Opened::Refusal => {}
        }
    }

    fn close(&mut self, bytes: &mut Vec<u8>) {
        if self.open.as_ref().is_some_and(|it| matches!(it.opened, Opened::ToolCall { .. })) {
            self.start(None, bytes);
        }
        if self.open.take().is_some_and(|open| open.is_started) {
            event("content_block_stop", json!({"index": self.index}), bytes);
            self.index += 1;
        }
    }
}

impl StreamWriter for EventWriter {
    fn piece(&mut self, piece: &Piece, usage: &Usage, bytes: &mut Vec<u8>) {
        match piece {
            Piece::Begin { id, model } => return self.begin(id, model, usage, bytes),
            _ => self.begin("", "", usage, bytes),
        }
        match piece {
            Piece::Begin { .. } => {}
            Piece::Open(opened) => self.open(opened, bytes),
            Piece::Delta(text) => self.delta(text, bytes),
            Piece::Signature(signature) => self.sign(signature, bytes),
            Piece::Close => self.close(bytes),
            Piece::Stop(stop) => self.stop = Some(stop.clone()),
        }
    }

    fn end(&mut self, usage: &Usage, bytes: &mut Vec<u8>) {
        if std::mem::replace(&mut self.has_ended, true) {
            return;
        }
        self.begin("", "", usage, bytes);
        self.close(bytes);
        let stop = stop_for_client(self.stop.as_ref(), self.has_calls, self.is_refused);
        let (reason, sequence) = write_stop(Some(&stop));
        let delta = json!({"stop_reason": reason, "stop_sequence": sequence});
        let usage = write_usage(usage);
        event("message_delta", json!({"delta": delta, "usage": usage}), bytes);
        event("message_stop", json!({}), bytes);
    }
}

/// Adds an event, whose name is also its type.
fn event(name: &str, mut data: Value, bytes: &mut Vec<u8>) {
    data["type"] = name.into();
    bytes.extend(format!("event: {name}\ndata: {data}\n\n").into_bytes());
}
