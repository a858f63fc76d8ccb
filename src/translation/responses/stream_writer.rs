//! Writes the events of a client's stream:
//! <https://platform.openai.com/docs/api-reference/responses-streaming>.

use serde_json::{Map, Value, json};

use super::reply::{
    Call, call_id, finish, message_item, reasoning_id, reasoning_item, refusal_content, response,
    text_content,
};
use crate::event::Usage;
use crate::translation::{Context, Opened, Piece, Signature, Stop, StreamWriter};

/// Writes the events of a client's stream. Texts that follow each other are parts of one message.
pub struct EventWriter {
    context: Context,
    /// The answer so far, without its output; empty before the first event.
    response: Map<String, Value>,
    sequence_number: u64,
    /// The complete items.
    output: Vec<Value>,
    /// The contents of the open message.
    message: Option<Vec<Value>>,
    open: Option<OpenPart>,
    has_refusal: bool,
    stop: Option<Stop>,
}

struct OpenPart {
    opened: Opened,
    text: String,
    signature: Option<Signature>,
    /// True after the client knows the item. The id of a call waits for its signature.
    is_announced: bool,
}

impl EventWriter {
    pub fn new(context: Context) -> Self {
        Self {
            context,
            response: Map::new(),
            sequence_number: 0,
            output: Vec::new(),
            message: None,
            open: None,
            has_refusal: false,
            stop: None,
        }
    }

    fn begin(&mut self, id: &str, model: &str, bytes: &mut Vec<u8>) {
        if !self.response.is_empty() {
            return;
        }
        self.response = response(id, model, &self.context);
        self.lifecycle("response.created", bytes);
        self.lifecycle("response.in_progress", bytes);
    }

    /// Writes an event with the whole answer.
    fn lifecycle(&mut self, name: &str, bytes: &mut Vec<u8>) {
        let number = self.next_number();
        let start = format!("event: {name}\ndata: {{\"type\":\"{name}\",");
        bytes.extend_from_slice(start.as_bytes());
        bytes.extend_from_slice(format!("\"sequence_number\":{number},\"response\":").as_bytes());
        write_json(&self.response, bytes);
        bytes.extend_from_slice(b"}\n\n");
    }

    fn next_number(&mut self) -> u64 {
        let number = self.sequence_number;
        self.sequence_number += 1;
        number
    }

    /// Writes an event of the open item.
    fn event(&mut self, name: &str, mut fields: Value, bytes: &mut Vec<u8>) {
        fields["type"] = name.into();
        fields["sequence_number"] = self.next_number().into();
        fields["output_index"] = self.output.len().into();
        bytes.extend_from_slice(format!("event: {name}\ndata: ").as_bytes());
        write_json(&fields, bytes);
        bytes.extend_from_slice(b"\n\n");
    }

    /// Returns the id of the open item.
    fn item_id(&self) -> String {
        let (base, index) = (&self.context.id, self.output.len());
        match &self.open {
            Some(part) => match &part.opened {
                Opened::Text | Opened::Refusal => message_id(base, index),
                Opened::Thinking => reasoning_id(base, index, None),
                Opened::ToolCall { name, is_custom, .. } => {
                    Call { call_id: "", name, is_custom: *is_custom }.item_id(base, index)
                }
            },
            None => message_id(base, index),
        }
    }

    fn open_part(&mut self, opened: &Opened, bytes: &mut Vec<u8>) {
        self.close_part(bytes);
        let is_text = matches!(opened, Opened::Text | Opened::Refusal);
        if !is_text {
            self.close_message(bytes);
        }
        let part = OpenPart {
            opened: opened.clone(),
            text: String::new(),
            signature: None,
            is_announced: is_text,
        };
        self.open = Some(part);
        if !is_text {
            return;
        }
        if self.message.is_none() {
            self.message = Some(Vec::new());
            let item = message_item(&self.context.id, self.output.len(), Vec::new(), "in_progress");
            self.event("response.output_item.added", json!({"item": item}), bytes);
        }
        let part = self.content("");
        self.content_event("response.content_part.added", json!({"part": part}), bytes);
    }

    fn content(&self, text: &str) -> Value {
        match self.open.as_ref().map(|part| &part.opened) {
            Some(Opened::Refusal) => refusal_content(text),
            _ => text_content(text),
        }
    }

    /// Writes an event of the open part of a message.
    fn content_event(&mut self, name: &str, mut fields: Value, bytes: &mut Vec<u8>) {
        fields["item_id"] = self.item_id().into();
        fields["content_index"] = self.message.as_ref().map_or(0, Vec::len).into();
        self.event(name, fields, bytes);
    }

    /// Tells the client about a call or reasoning.
    fn announce(&mut self, bytes: &mut Vec<u8>) {
        let Some(part) = &mut self.open else {
            return;
        };
        if std::mem::replace(&mut part.is_announced, true) {
            return;
        }
        let (base, index) = (&self.context.id, self.output.len());
        let item = match &part.opened {
            Opened::ToolCall { id, name, is_custom } => {
                let call_id = call_id(base, index, id, part.signature.as_ref());
                let call = Call { call_id: &call_id, name, is_custom: *is_custom };
                call.item(base, index, "", "in_progress")
            }
            _ => reasoning_item(base, index, "", None),
        };
        self.event("response.output_item.added", json!({"item": item}), bytes);
    }

    fn delta(&mut self, text: &str, bytes: &mut Vec<u8>) {
        self.announce(bytes);
        let Some(part) = &mut self.open else {
            return;
        };
        let is_first = part.text.is_empty();
        part.text.push_str(text);
        let item_id = self.item_id();
        let Some(part) = &self.open else {
            return;
        };
        match &part.opened {
            Opened::Text => {
                let fields = json!({"delta": text, "logprobs": []});
                self.content_event("response.output_text.delta", fields, bytes);
            }
            Opened::Refusal => {
                self.content_event("response.refusal.delta", json!({"delta": text}), bytes);
            }
            Opened::ToolCall { is_custom, .. } => {
                let name = if *is_custom {
                    "response.custom_tool_call_input.delta"
                } else {
                    "response.function_call_arguments.delta"
                };
                self.event(name, json!({"item_id": item_id, "delta": text}), bytes);
            }
            Opened::Thinking => {
                if is_first {
                    let part = json!({"type": "summary_text", "text": ""});
                    let fields = json!({"item_id": item_id, "summary_index": 0, "part": part});
                    self.event("response.reasoning_summary_part.added", fields, bytes);
                }
                let fields = json!({"item_id": item_id, "summary_index": 0, "delta": text});
                self.event("response.reasoning_summary_text.delta", fields, bytes);
            }
        }
    }

    fn close_part(&mut self, bytes: &mut Vec<u8>) {
        let is_bare_call = self.open.as_ref().is_some_and(|part| {
            part.text.is_empty()
                && matches!(&part.opened, Opened::ToolCall { is_custom: false, .. })
        });
        if is_bare_call {
            self.delta("{}", bytes);
        }
        self.announce(bytes);
        let item_id = self.item_id();
        let content = self.open.as_ref().map(|part| self.content(&part.text));
        let Some(OpenPart { opened, text, .. }) = &self.open else {
            return;
        };
        let (opened, text) = (opened.clone(), text.clone());
        match opened {
            Opened::Text | Opened::Refusal => self.close_text(&opened, &text, content, bytes),
            Opened::ToolCall { is_custom, .. } => {
                let (name, field) = if is_custom {
                    ("response.custom_tool_call_input.done", "input")
                } else {
                    ("response.function_call_arguments.done", "arguments")
                };
                self.event(name, json!({"item_id": item_id, field: text}), bytes);
                self.close_item(&item_id, bytes);
            }
            Opened::Thinking => {
                if !text.is_empty() {
                    let place = json!({"item_id": item_id, "summary_index": 0});
                    let mut fields = place.clone();
                    fields["text"] = json!(text);
                    self.event("response.reasoning_summary_text.done", fields, bytes);
                    let mut fields = place;
                    fields["part"] = json!({"type": "summary_text", "text": text});
                    self.event("response.reasoning_summary_part.done", fields, bytes);
                }
                self.close_item(&item_id, bytes);
            }
        }
    }

    /// Closes a part of a message.
    fn close_text(
        &mut self,
        opened: &Opened,
        text: &str,
        content: Option<Value>,
        bytes: &mut Vec<u8>,
    ) {
        if *opened == Opened::Refusal {
            self.has_refusal = true;
            self.content_event("response.refusal.done", json!({"refusal": text}), bytes);
        } else {
            let fields = json!({"text": text, "logprobs": []});
            self.content_event("response.output_text.done", fields, bytes);
        }
        self.content_event("response.content_part.done", json!({"part": content}), bytes);
        if let Some(message) = &mut self.message {
            message.extend(content);
        }
        self.open = None;
    }

    /// Completes a call or reasoning. The id of reasoning stays the one that the client knows.
    fn close_item(&mut self, item_id: &str, bytes: &mut Vec<u8>) {
        let Some(part) = self.open.take() else {
            return;
        };
        let (base, index) = (&self.context.id, self.output.len());
        let signature = part.signature.as_ref();
        let item = match &part.opened {
            Opened::ToolCall { id, name, is_custom } => {
                let call_id = call_id(base, index, id, signature);
                let call = Call { call_id: &call_id, name, is_custom: *is_custom };
                call.item(base, index, &part.text, "completed")
            }
            _ => {
                let mut item = reasoning_item(base, index, &part.text, signature);
                item["id"] = item_id.into();
                item
            }
        };
        self.event("response.output_item.done", json!({"item": item}), bytes);
        self.output.push(item);
    }

    fn close_message(&mut self, bytes: &mut Vec<u8>) {
        if let Some(contents) = self.message.take() {
            let status =
                if self.stop == Some(Stop::MaxTokens) { "incomplete" } else { "completed" };
            let item = message_item(&self.context.id, self.output.len(), contents, status);
            self.event("response.output_item.done", json!({"item": item}), bytes);
            self.output.push(item);
        }
    }
}

fn message_id(base: &str, index: usize) -> String {
    super::reply::item_id("msg", base, index)
}

fn write_json<T: serde::Serialize>(value: &T, bytes: &mut Vec<u8>) {
    // Writing to memory cannot fail, and every key is a string.
    let _ = serde_json::to_writer(bytes, value);
}

impl StreamWriter for EventWriter {
    fn piece(&mut self, piece: &Piece, _: &Usage, bytes: &mut Vec<u8>) {
        if let Piece::Begin { id, model } = piece {
            return self.begin(id, model, bytes);
        }
        self.begin("", "", bytes);
        match piece {
            Piece::Begin { .. } => {}
            Piece::Open(opened) => self.open_part(opened, bytes),
            Piece::Delta(text) => self.delta(text, bytes),
            Piece::Signature(signature) => {
                let part = self.open.as_mut();
                let is_call = |part: &OpenPart| matches!(part.opened, Opened::ToolCall { .. });
                // A call keeps the id that the client knows.
                if let Some(part) = part.filter(|part| !(is_call(part) && part.is_announced)) {
                    part.signature = Some(signature.clone());
                }
            }
            Piece::Close => self.close_part(bytes),
            Piece::Stop(stop) => self.stop = Some(stop.clone()),
        }
    }

    fn end(&mut self, usage: &Usage, bytes: &mut Vec<u8>) {
        self.begin("", "", bytes);
        self.close_part(bytes);
        self.close_message(bytes);
        let output = std::mem::take(&mut self.output);
        finish(&mut self.response, output, self.stop.as_ref(), self.has_refusal, usage);
        let is_complete = self.response["status"] == "completed";
        let name = if is_complete { "response.completed" } else { "response.incomplete" };
        self.lifecycle(name, bytes);
    }
}
