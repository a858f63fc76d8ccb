use serde_json::{Value, json};

use super::fields::object;
use super::message::{call, put_signature};
use super::reply::{completion_id, write_stop, write_usage};
use super::thoughts::{CONTENT, DETAILS, detail};
use crate::event::Usage;
use crate::translation::{Api, Context, Extra, Opened, Piece, Signature, Stop, StreamWriter};

/// Writes the chunks of a streamed chat completion:
/// <https://platform.openai.com/docs/api-reference/chat-streaming>.
pub struct ChunkWriter {
    context: Context,
    has_begun: bool,
    id: String,
    model: String,
    open: Option<Opened>,
    /// A tool call with its first arguments. It waits for more or for the end, because its id may
    /// carry a signature that comes after the arguments.
    held: Option<HeldCall>,
    thoughts: usize,
    calls: usize,
    stop: Option<Stop>,
}

struct HeldCall {
    id: String,
    name: String,
    arguments: String,
    is_custom: bool,
    signature: Option<Signature>,
}

impl ChunkWriter {
    pub fn new(context: Context) -> Self {
        Self {
            has_begun: false,
            id: completion_id("", &context),
            model: context.model.clone(),
            context,
            open: None,
            held: None,
            thoughts: 0,
            calls: 0,
            stop: None,
        }
    }

    fn chunk(&self, choices: &Value, usage: Option<Value>, bytes: &mut Vec<u8>) {
        let mut chunk = object(json!({
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.context.created,
            "model": self.model,
            "choices": choices,
        }));
        if let Some(usage) = usage {
            chunk.insert("usage".to_owned(), usage);
        }
        let chunk = Value::Object(chunk);
        bytes.extend_from_slice(format!("data: {chunk}\n\n").as_bytes());
    }

    fn choice(&self, delta: &Value, finish: Option<&str>, bytes: &mut Vec<u8>) {
        let choice = json!({
            "index": 0, "delta": delta, "logprobs": null, "finish_reason": finish,
        });
        self.chunk(&json!([choice]), None, bytes);
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
                match &mut self.held {
                    Some(held) if held.arguments.is_empty() => held.arguments.push_str(text),
                    _ => {
                        self.flush(bytes);
                        self.arguments(text, is_custom, bytes);
                    }
                }
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
    fn flush(&mut self, bytes: &mut Vec<u8>) {
        let Some(HeldCall { mut id, name, arguments, is_custom, signature }) = self.held.take()
        else {
            return;
        };
        if let Some(foreign) = signature.as_ref().filter(|it| it.api != Api::Chat) {
            id = foreign.attach_to(&id);
        }
        let mut written: Extra = object(json!({"index": self.calls}));
        written.extend(call(&id, &name, &arguments, is_custom));
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
        self.flush(bytes);
        match self.open.take() {
            Some(Opened::Thinking) => self.thoughts += 1,
            Some(Opened::ToolCall { .. }) => self.calls += 1,
            _ => {}
        }
    }
}

impl StreamWriter for ChunkWriter {
    fn piece(&mut self, piece: &Piece, _: &Usage, bytes: &mut Vec<u8>) {
        if let Piece::Begin { id, model } = piece {
            self.id = completion_id(id, &self.context);
            if !model.is_empty() {
                self.model.clone_from(model);
            }
        }
        self.begin(bytes);
        match piece {
            Piece::Begin { .. } => {}
            Piece::Open(opened) => {
                if let Opened::ToolCall { id, name, is_custom } = opened {
                    self.held = Some(HeldCall {
                        id: id.clone(),
                        name: name.clone(),
                        arguments: String::new(),
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
            self.chunk(&json!([]), Some(write_usage(usage)), bytes);
        }
        bytes.extend_from_slice(b"data: [DONE]\n\n");
    }
}
