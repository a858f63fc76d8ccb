use serde_json::{Value, json};

use super::fields::object;
use super::message::{NO_ARGUMENTS, call, put_signature};
use super::reply::{completion_id, write_stop, write_usage};
use super::thoughts::{CONTENT, DETAILS, detail};
use crate::event::Usage;
use crate::translation::{Api, Context, Extra, Opened, Piece, Signature, Stop, StreamWriter};

/// Writes the chunks of a streamed chat completion:
/// <https://platform.openai.com/docs/api-reference/chat-streaming>.
pub struct ChunkWriter {
    context: Context,
    has_begun: bool,
    /// The beginning of each chunk, up to its choices.
    head: String,
    open: Option<Opened>,
    /// A tool call before its arguments, because its id may carry a signature.
    held: Option<HeldCall>,
    thoughts: usize,
    calls: usize,
    stop: Option<Stop>,
}

struct HeldCall {
    id: String,
    name: String,
    is_custom: bool,
    signature: Option<Signature>,
}

impl ChunkWriter {
    pub fn new(context: Context) -> Self {
        Self {
            has_begun: false,
            head: head("", "", &context),
            context,
            open: None,
            held: None,
            thoughts: 0,
            calls: 0,
            stop: None,
        }
    }

    fn choice(&self, delta: &Value, finish: Option<&str>, bytes: &mut Vec<u8>) {
        let head = &self.head;
        let finish = Value::from(finish);
        let choice = format!(
            "{head}[{{\"index\":0,\"delta\":{delta},\"logprobs\":null,\"finish_reason\":{finish}}}]}}\n\n"
        );
        bytes.extend_from_slice(choice.as_bytes());
    }

    fn usage(&self, usage: &Usage, bytes: &mut Vec<u8>) {
        let (head, usage) = (&self.head, write_usage(usage));
        bytes.extend_from_slice(format!("{head}[],\"usage\":{usage}}}\n\n").as_bytes());
    }

    fn begin(&mut self, bytes: &mut Vec<u8>) {
        if !self.has_begun {
            self.has_begun = true;
            self.choice(&json!({"role": "assistant", "content": ""}), None, bytes);
        }
    }

    fn delta(&mut self, text: &str, bytes: &mut Vec<u8>) {
        match &self.open {
            Some(Opened::Text) => self.choice(&json!({"content": text}), None, bytes),
            Some(Opened::Refusal) => self.choice(&json!({"refusal": text}), None, bytes),
            Some(Opened::Thinking) => {
                let details = [detail(text, None, self.thoughts)];
                self.choice(&json!({CONTENT: text, DETAILS: details}), None, bytes);
            }
            Some(Opened::ToolCall { is_custom, .. }) => {
                let is_custom = *is_custom;
                self.flush("", bytes);
                self.arguments(text, is_custom, bytes);
            }
            None => {}
        }
    }

    fn arguments(&self, text: &str, is_custom: bool, bytes: &mut Vec<u8>) {
        // Custom tools: https://github.com/openai/openai-openapi/issues/576
        let call = if is_custom {
            json!({"index": self.calls, "custom": {"input": text}})
        } else {
            json!({"index": self.calls, "function": {"arguments": text}})
        };
        self.choice(&json!({"tool_calls": [call]}), None, bytes);
    }

    /// Writes the held tool call.
    fn flush(&mut self, arguments: &str, bytes: &mut Vec<u8>) {
        let Some(HeldCall { mut id, name, is_custom, signature }) = self.held.take() else {
            return;
        };
        if let Some(foreign) = signature.as_ref().filter(|it| it.api != Api::Chat) {
            id = foreign.attach_to(&id);
        }
        let mut written: Extra = object(json!({"index": self.calls}));
        written.extend(call(&id, &name, arguments, is_custom));
        if let Some(signature) = &signature {
            put_signature(&mut written, signature);
        }
        self.choice(&json!({"tool_calls": [written]}), None, bytes);
    }

    fn signature(&mut self, signature: &Signature, bytes: &mut Vec<u8>) {
        match (&self.open, &mut self.held) {
            (Some(Opened::Thinking), _) => {
                let mut detail = detail("", Some(signature), self.thoughts);
                if detail.get("text").is_some_and(|text| text == "") {
                    detail.shift_remove("text");
                }
                self.choice(&json!({DETAILS: [detail]}), None, bytes);
            }
            (_, Some(held)) => held.signature = Some(signature.clone()),
            // Chat completions have no place for the signature of a text.
            _ => {}
        }
    }

    fn close(&mut self, bytes: &mut Vec<u8>) {
        let is_custom = self.held.as_ref().is_some_and(|held| held.is_custom);
        self.flush(if is_custom { "" } else { NO_ARGUMENTS }, bytes);
        match self.open.take() {
            Some(Opened::Thinking) => self.thoughts += 1,
            Some(Opened::ToolCall { .. }) => self.calls += 1,
            _ => {}
        }
    }
}

/// Returns the beginning of a chunk.
fn head(id: &str, model: &str, context: &Context) -> String {
    let chunk = json!({
        "id": completion_id(id, context),
        "object": "chat.completion.chunk",
        "created": context.created,
        "model": if model.is_empty() { &context.model } else { model },
        "choices": null,
    });
    format!("data: {chunk}").trim_end_matches("null}").to_owned()
}

impl StreamWriter for ChunkWriter {
    fn piece(&mut self, piece: &Piece, _: &Usage, bytes: &mut Vec<u8>) {
        if let Piece::Begin { id, model } = piece {
            self.head = head(id, model, &self.context);
        }
        self.begin(bytes);
        match piece {
            Piece::Begin { .. } => {}
            Piece::Open(opened) => {
                if let Opened::ToolCall { id, name, is_custom } = opened {
                    self.held = Some(HeldCall {
                        id: id.clone(),
                        name: name.clone(),
                        is_custom: *is_custom,
                        signature: None,
                    });
                }
                self.open = Some(opened.clone());
            }
            Piece::Delta(text) => self.delta(text, bytes),
            Piece::Signature(signature) => self.signature(signature, bytes),
            Piece::Close => self.close(bytes),
            Piece::Stop(stop) => self.stop = Some(stop.clone()),
        }
    }

    fn end(&mut self, usage: &Usage, bytes: &mut Vec<u8>) {
        self.begin(bytes);
        self.close(bytes);
        let default = if self.calls > 0 { "tool_calls" } else { "stop" };
        let finish = self.stop.as_ref().map_or(default, write_stop);
        self.choice(&json!({}), Some(finish), bytes);
        if self.context.wants_usage {
            self.usage(usage, bytes);
        }
        bytes.extend_from_slice(b"data: [DONE]\n\n");
    }
}
