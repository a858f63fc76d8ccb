use serde_json::Value;

use super::content::take_content;
use super::message::{take_signature, text_of_arguments};
use super::reply::{call_id, read_stop};
use super::thoughts::{CONTENT, DETAILS, THINKING, field_of, signature_of_detail, text_of_detail};
use crate::translation::{Api, Extra, Opened, PartKind, Piece, Signature, Stop, StreamReader};

/// Reads the chunks of a streamed chat completion.
///
/// The first tool call is passed on as it arrives. Everything after it waits for the end of the
/// stream, because the arguments of calls may alternate.
#[derive(Default)]
pub struct ChunkReader {
    has_begun: bool,
    id: String,
    open: Option<Slot>,
    held: Vec<Slot>,
    calls: Vec<Call>,
    finish: Option<String>,
    has_thoughts: bool,
    has_empty_thoughts: bool,
}

/// A part of the answer.
struct Slot {
    key: Key,
    opened: Opened,
    /// False until the name of a tool call is known.
    is_open: bool,
    /// The text without a piece.
    text: String,
    is_empty: bool,
    signature: Option<Signature>,
    /// The fields of an item of `reasoning_details`.
    detail: Extra,
}

/// The part to which a delta belongs.
#[derive(Clone, PartialEq)]
enum Key {
    Text,
    Refusal,
    /// The field of thoughts.
    Thoughts(&'static str),
    /// The type and index of an item of `reasoning_details`.
    Detail(Value, Value),
    /// The number of a tool call.
    Call(usize),
}

/// A tool call, to find the one to which a delta belongs.
#[derive(Default)]
struct Call {
    index: Option<u64>,
    id: String,
    name: String,
    arguments: String,
}

impl StreamReader for ChunkReader {
    fn event(&mut self, _: &str, data: &Value, pieces: &mut Vec<Piece>) {
        let choices = data["choices"].as_array().map_or(&[][..], Vec::as_slice);
        let is_first = |choice: &&Value| matches!(choice["index"].as_u64(), None | Some(0));
        // Azure's first chunk has no choice, id or model.
        let Some(choice) = choices.iter().find(is_first) else {
            return;
        };
        self.begin(data, pieces);
        let message = Some(&choice["message"]).filter(|_| self.open.is_none());
        let delta = choice["delta"].as_object().or_else(|| message.and_then(Value::as_object));
        if let Some(delta) = delta {
            self.delta(delta, pieces);
        }
        if let Some(finish) = choice["finish_reason"].as_str().filter(|it| !it.is_empty()) {
            self.finish = Some(finish.to_owned());
        }
    }

    fn end(&mut self, pieces: &mut Vec<Piece>) {
        self.begin(&Value::Null, pieces);
        let slots = self.open.take().into_iter().chain(std::mem::take(&mut self.held));
        slots.for_each(|slot| slot.close(pieces));
        let has_calls = !self.calls.is_empty();
        let stop = match self.finish.take() {
            Some(finish) => read_stop(&finish, has_calls),
            None if has_calls => Stop::ToolCalls,
            None => Stop::End,
        };
        pieces.push(Piece::Stop(stop));
    }
}

impl ChunkReader {
    fn begin(&mut self, data: &Value, pieces: &mut Vec<Piece>) {
        if !self.has_begun {
            let text = |name: &str| data[name].as_str().unwrap_or_default().to_owned();
            self.has_begun = true;
            self.id = text("id");
            pieces.push(Piece::Begin { id: self.id.clone(), model: text("model") });
        }
    }

    fn delta(&mut self, delta: &Extra, pieces: &mut Vec<Piece>) {
        self.thoughts(delta, pieces);
        match delta.get("content") {
            Some(Value::String(text)) => self.extend(Key::Text, text, pieces),
            Some(Value::Array(_)) => self.content(&mut delta.clone(), pieces),
            _ => {}
        }
        if let Some(text) = delta.get("refusal").and_then(Value::as_str) {
            self.extend(Key::Refusal, text, pieces);
        }
        let calls = delta.get("tool_calls").and_then(Value::as_array);
        for call in calls.into_iter().flatten().filter_map(Value::as_object) {
            self.call(call, pieces);
        }
    }

    /// Reads Mistral's lists of texts and thoughts.
    fn content(&mut self, delta: &mut Extra, pieces: &mut Vec<Piece>) {
        for part in take_content(delta) {
            match &part.kind {
                PartKind::Text(text) => self.extend(Key::Text, text, pieces),
                PartKind::Refusal(text) => self.extend(Key::Refusal, text, pieces),
                PartKind::Thinking(text) => self.extend(Key::Thoughts(THINKING), text, pieces),
                _ => {}
            }
        }
    }

    fn thoughts(&mut self, delta: &Extra, pieces: &mut Vec<Piece>) {
        match field_of(delta) {
            Some(DETAILS) => {
                let details = delta[DETAILS].as_array().into_iter().flatten();
                details.filter_map(Value::as_object).for_each(|it| self.detail(it, pieces));
            }
            Some(name) => {
                let text = delta[name].as_str().unwrap_or_default();
                self.has_empty_thoughts |= name == CONTENT && text.is_empty();
                self.extend(Key::Thoughts(name), text, pieces);
            }
            None => {}
        }
    }

    fn detail(&mut self, detail: &Extra, pieces: &mut Vec<Piece>) {
        let of = |name: &str| detail.get(name).cloned().unwrap_or_default();
        let slot = self.slot(Key::Detail(of("type"), of("index")), pieces);
        let text = text_of_detail(detail);
        slot.text.push_str(text);
        slot.is_empty &= text.is_empty();
        for (name, value) in detail {
            let is_text =
                !text.is_empty() && value == text && ["text", "summary"].contains(&&**name);
            if !is_text && (!value.is_null() || !slot.detail.contains_key(name)) {
                slot.detail.insert(name.clone(), value.clone());
            }
        }
        self.advance(pieces);
    }

    fn extend(&mut self, key: Key, text: &str, pieces: &mut Vec<Piece>) {
        if text.is_empty() {
            return;
        }
        let slot = self.slot(key, pieces);
        slot.text.push_str(text);
        slot.is_empty = false;
        self.advance(pieces);
    }

    fn call(&mut self, delta: &Extra, pieces: &mut Vec<Piece>) {
        let custom = delta.get("custom").and_then(Value::as_object);
        let empty = Extra::new();
        let (inner, input) = match custom {
            Some(custom) => (custom, "input"),
            None => {
                let function = delta.get("function").and_then(Value::as_object);
                (function.unwrap_or(&empty), "arguments")
            }
        };
        let name = inner.get("name").and_then(Value::as_str).unwrap_or_default();
        let arguments = text_of_arguments(inner.get(input));
        if self.calls.is_empty() {
            self.empty_thoughts(pieces);
        }
        let number = self.call_number(delta, name);
        let call = &mut self.calls[number];
        call.arguments.push_str(&arguments);
        if call.name.is_empty() {
            call.name = name.to_owned();
        }
        let id = if call.id.is_empty() { call_id(&self.id, number) } else { call.id.clone() };
        let slot = self.slot(Key::Call(number), pieces);
        if let Opened::ToolCall { id: shown_id, name: shown, is_custom } = &mut slot.opened
            && !slot.is_open
        {
            let (clean, signature) = Signature::detach_from(&id);
            *shown_id = clean.to_owned();
            slot.signature = signature.or(slot.signature.take());
            *is_custom |= custom.is_some();
            if !name.is_empty() {
                *shown = name.to_owned();
            }
        }
        slot.text.push_str(&arguments);
        if let Some(signature) = take_signature(&mut delta.clone()) {
            slot.signature = Some(signature);
        }
        self.advance(pieces);
    }

    /// Returns the number of the call to which a delta belongs, a new one if it begins a call.
    ///
    /// Servers leave out the index, or state 0 for all calls, and repeat the id and the name, or
    /// have no id: <https://github.com/QuantumNous/new-api/pull/2701>,
    /// <https://github.com/meilisearch/meilisearch/pull/5712>.
    fn call_number(&mut self, delta: &Extra, name: &str) -> usize {
        let index = delta.get("index").and_then(Value::as_u64);
        let id = delta.get("id").and_then(Value::as_str).unwrap_or_default();
        let found = self.calls.iter().rposition(|call| match index {
            _ if !id.is_empty() && call.id == id => true,
            Some(_) => call.index == index && (id.is_empty() || call.id.is_empty()),
            None => id.is_empty(),
        });
        // Another name, or one after complete arguments, begins another call.
        let is_other = |call: &Call| {
            let is_same = (!id.is_empty() && call.id == id) || call.name.is_empty();
            let is_complete = || serde_json::from_str::<Extra>(&call.arguments).is_ok();
            !name.is_empty() && !is_same && (call.name != name || is_complete())
        };
        let number = found.filter(|number| !is_other(&self.calls[*number]));
        let number = number.unwrap_or_else(|| {
            self.calls.push(Call { index, ..Call::default() });
            self.calls.len() - 1
        });
        if self.calls[number].id.is_empty() {
            self.calls[number].id = id.to_owned();
        }
        number
    }

    /// Adds empty thoughts before tool calls: DeepSeek wants them back.
    fn empty_thoughts(&mut self, pieces: &mut Vec<Piece>) {
        if self.has_empty_thoughts && !self.has_thoughts {
            self.slot(Key::Thoughts(CONTENT), pieces);
            self.advance(pieces);
        }
    }

    /// Returns the part of a key. A new one closes the open part, or waits if that is a tool call.
    fn slot(&mut self, key: Key, pieces: &mut Vec<Piece>) -> &mut Slot {
        self.has_thoughts |= matches!(key, Key::Thoughts(_) | Key::Detail(..));
        let is_call = matches!(key, Key::Call(_));
        let open_key = self.open.as_ref().map(|slot| &slot.key);
        if open_key != Some(&key) {
            if matches!(open_key, Some(Key::Call(_))) {
                let last = self.held.len().saturating_sub(1);
                let mut slots = self.held.iter().enumerate();
                let found = slots.position(|(at, slot)| slot.key == key && (is_call || at == last));
                let at = found.unwrap_or_else(|| {
                    self.held.push(Slot::new(key));
                    self.held.len() - 1
                });
                return &mut self.held[at];
            }
            if let Some(slot) = self.open.take() {
                slot.close(pieces);
            }
        }
        self.open.get_or_insert_with(|| Slot::new(key))
    }

    /// Adds the pieces of the open part that are known.
    fn advance(&mut self, pieces: &mut Vec<Piece>) {
        if let Some(slot) = &mut self.open {
            slot.advance(pieces);
        }
    }
}

impl Slot {
    fn new(key: Key) -> Self {
        let opened = match &key {
            Key::Text => Opened::Text,
            Key::Refusal => Opened::Refusal,
            Key::Thoughts(_) | Key::Detail(..) => Opened::Thinking,
            Key::Call(_) => {
                Opened::ToolCall { id: String::new(), name: String::new(), is_custom: false }
            }
        };
        let signature = match &key {
            Key::Thoughts(name) => Some(Signature::new(Api::Chat, *name)),
            _ => None,
        };
        Self {
            key,
            opened,
            is_open: false,
            text: String::new(),
            is_empty: true,
            signature,
            detail: Extra::new(),
        }
    }

    fn advance(&mut self, pieces: &mut Vec<Piece>) {
        if !self.is_open {
            if matches!(&self.opened, Opened::ToolCall { name, .. } if name.is_empty()) {
                return;
            }
            self.is_open = true;
            pieces.push(Piece::Open(self.opened.clone()));
        }
        if matches!(self.key, Key::Call(_)) {
            pieces.extend(self.signature.take().map(Piece::Signature));
        }
        if !self.text.is_empty() {
            pieces.push(Piece::Delta(std::mem::take(&mut self.text)));
        }
    }

    fn close(mut self, pieces: &mut Vec<Piece>) {
        self.advance(pieces);
        if !self.is_open {
            pieces.push(Piece::Open(self.opened));
            pieces.extend(self.signature.take().map(Piece::Signature));
            pieces.extend(Some(self.text).filter(|text| !text.is_empty()).map(Piece::Delta));
        }
        if matches!(self.key, Key::Detail(..)) {
            if !self.is_empty {
                self.detail.shift_remove("text");
                self.detail.shift_remove("summary");
            }
            self.signature = signature_of_detail(&self.detail);
        }
        pieces.extend(self.signature.map(Piece::Signature));
        pieces.push(Piece::Close);
    }
}
