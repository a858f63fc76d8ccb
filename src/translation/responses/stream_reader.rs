//! Reads the events of a provider's stream, OpenAI's and those of compatible servers:
//! <https://platform.openai.com/docs/api-reference/responses-streaming>.

use serde_json::Value;

use super::item::SUMMARY_GAP;
use super::reply::{read_item, stop_of};
use crate::translation::{Opened, Part, PartKind, Piece, Signature, Stop, StreamReader};

/// Reads the events of a provider's stream.
///
/// Parts follow in the order in which they appear. One is open at a time; the texts of later ones
/// are held. The complete text of a part in a later event (`done`, the item, or the answer) adds
/// only the rest after the deltas.
#[derive(Default)]
pub struct EventReader {
    has_begun: bool,
    has_ended: bool,
    parts: Vec<PartState>,
    /// The number of parts that are closed.
    closed: usize,
}

/// The place of a part within its item.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Slot {
    /// A part of a message, by its index.
    Content(u64),
    Call,
    Reasoning,
}

struct PartState {
    slot: Slot,
    output_index: Option<u64>,
    item_id: Option<String>,
    /// None until the id and the name of a call are known.
    opened: Option<Opened>,
    text: String,
    /// The start of the last section of reasoning in `text`.
    section_start: usize,
    /// The bytes of `text` that were given out.
    sent: usize,
    is_open: bool,
    signature: Option<Signature>,
    is_done: bool,
    /// True if the text is that of the summary, false if it is the reasoning itself.
    is_summary: Option<bool>,
    /// The index of the last part of the text of reasoning.
    last_index: u64,
}

impl StreamReader for EventReader {
    fn event(&mut self, name: &str, data: &Value, pieces: &mut Vec<Piece>) {
        if self.has_ended {
            return;
        }
        let kind = data["type"].as_str().unwrap_or(name);
        self.begin(&data["response"], kind, pieces);
        let delta = data["delta"].as_str();
        match kind {
            "response.output_item.added" => self.item(data, false),
            "response.output_item.done" => self.item(data, true),
            "response.content_part.added" => self.content_part(data, false),
            "response.content_part.done" => self.content_part(data, true),
            "response.output_text.delta" => self.content(data, Opened::Text, delta, false),
            "response.output_text.done" => {
                self.content(data, Opened::Text, data["text"].as_str(), true);
            }
            "response.refusal.delta" => self.content(data, Opened::Refusal, delta, false),
            "response.refusal.done" => {
                self.content(data, Opened::Refusal, data["refusal"].as_str(), true);
            }
            "response.function_call_arguments.delta" | "response.custom_tool_call_input.delta" => {
                self.arguments(data, delta, false);
            }
            "response.function_call_arguments.done" => {
                self.arguments(data, data["arguments"].as_str(), true);
            }
            "response.custom_tool_call_input.done" => {
                self.arguments(data, data["input"].as_str(), true);
            }
            "response.reasoning_summary_text.delta" => self.thinking(data, true, delta, false),
            "response.reasoning_summary_text.done" => {
                self.thinking(data, true, data["text"].as_str(), true);
            }
            "response.reasoning_text.delta" => self.thinking(data, false, delta, false),
            "response.reasoning_text.done" => {
                self.thinking(data, false, data["text"].as_str(), true);
            }
            "response.completed" | "response.incomplete" => {
                self.complete(&data["response"], pieces);
            }
            _ => {}
        }
        self.flush(pieces);
    }

    fn end(&mut self, pieces: &mut Vec<Piece>) {
        if !self.has_ended {
            self.begin(&Value::Null, "response.completed", pieces);
            self.finish(&Value::Null, pieces);
        }
    }
}

impl EventReader {
    fn begin(&mut self, response: &Value, kind: &str, pieces: &mut Vec<Piece>) {
        if self.has_begun || !kind.starts_with("response.") {
            return;
        }
        self.has_begun = true;
        let text = |key: &str| response[key].as_str().unwrap_or_default().to_owned();
        pieces.push(Piece::Begin { id: text("id"), model: text("model") });
    }

    /// Returns the part of an event, a new one if it is unknown. Some servers leave out the index:
    /// <https://github.com/ggml-org/llama.cpp/issues/20607>.
    fn part(
        &mut self,
        slot: Slot,
        output_index: Option<u64>,
        item_id: Option<&str>,
    ) -> &mut PartState {
        let is_same = |part: &PartState| {
            let is_same_item = match (output_index, part.output_index) {
                (Some(index), Some(of_part)) => index == of_part,
                _ => match (item_id, part.item_id.as_deref()) {
                    (Some(id), Some(of_part)) => id == of_part,
                    _ => !part.is_done,
                },
            };
            part.slot == slot && is_same_item
        };
        let found = self.parts.iter().rposition(is_same);
        let index = found.unwrap_or_else(|| {
            self.parts.push(PartState::new(slot, output_index, item_id.map(str::to_owned)));
            self.parts.len() - 1
        });
        &mut self.parts[index]
    }

    fn part_of(&mut self, slot: Slot, data: &Value) -> &mut PartState {
        self.part(slot, data["output_index"].as_u64(), data["item_id"].as_str())
    }

    /// Reads text of a message: a delta, or all of it.
    fn content(&mut self, data: &Value, opened: Opened, text: Option<&str>, is_done: bool) {
        let slot = Slot::Content(data["content_index"].as_u64().unwrap_or(0));
        let part = self.part_of(slot, data);
        part.opened.get_or_insert(opened);
        part.take(text, is_done);
        part.is_done |= is_done;
    }

    fn content_part(&mut self, data: &Value, is_done: bool) {
        let part = &data["part"];
        let opened = match part["type"].as_str() {
            Some("output_text" | "text") => Opened::Text,
            Some("refusal") => Opened::Refusal,
            // Reasoning has events of its own.
            _ => return,
        };
        let text = part["text"].as_str().or(part["refusal"].as_str());
        self.content(data, opened, text.filter(|_| is_done), is_done);
    }

    fn arguments(&mut self, data: &Value, text: Option<&str>, is_whole: bool) {
        // The call is done with its item, which has its name in any case.
        self.part_of(Slot::Call, data).take(text, is_whole);
    }

    fn thinking(&mut self, data: &Value, is_summary: bool, text: Option<&str>, is_whole: bool) {
        let index = if is_summary { &data["summary_index"] } else { &data["content_index"] };
        let index = index.as_u64().unwrap_or(0);
        let part = self.part_of(Slot::Reasoning, data);
        part.opened.get_or_insert(Opened::Thinking);
        let text = text.unwrap_or_default();
        // A server that shows both sends the same twice.
        if text.is_empty() || *part.is_summary.get_or_insert(is_summary) != is_summary {
            return;
        }
        let is_new = index != part.last_index;
        if is_new && !part.text.is_empty() {
            part.text.push_str(SUMMARY_GAP);
            part.section_start = part.text.len();
        }
        part.last_index = index;
        if is_whole {
            part.take_section(text);
        } else {
            part.text.push_str(text);
        }
    }

    fn item(&mut self, data: &Value, is_done: bool) {
        let item = &data["item"];
        let id = item["id"].as_str();
        let index = data["output_index"].as_u64();
        for (position, part) in read_item(item).into_iter().enumerate() {
            if let Some(slot) = slot_of(&part, position) {
                let is_message = matches!(slot, Slot::Content(_));
                if is_message && !is_done {
                    continue;
                }
                self.part(slot, index, id).take_part(part, is_done);
            }
        }
        if is_done && let Some(index) = index {
            // Parts that the item does not have will not go on.
            let parts = self.parts.iter_mut().filter(|part| part.output_index == Some(index));
            parts.for_each(|part| part.is_done = true);
        }
    }

    /// Adds what the complete answer has beyond the events before it.
    fn complete(&mut self, response: &Value, pieces: &mut Vec<Piece>) {
        let items = response["output"].as_array().map_or(&[][..], Vec::as_slice);
        let mut seen: Vec<(Slot, usize)> = Vec::new();
        for item in items {
            for (position, part) in read_item(item).into_iter().enumerate() {
                let Some(slot) = slot_of(&part, position) else {
                    continue;
                };
                // Servers count items differently, so the n-th of a kind is the n-th of the stream.
                let kind = match slot {
                    Slot::Content(_) => Slot::Content(0),
                    other => other,
                };
                let earlier = seen.iter().filter(|(of, _)| *of == kind).count();
                seen.push((kind, position));
                self.nth(kind, earlier, slot).take_part(part, true);
            }
        }
        self.finish(response, pieces);
    }

    /// Returns the n-th part of a kind; a new one if there are fewer.
    fn nth(&mut self, kind: Slot, n: usize, slot: Slot) -> &mut PartState {
        let is_kind = |part: &PartState| match kind {
            Slot::Content(_) => matches!(part.slot, Slot::Content(_)),
            other => part.slot == other,
        };
        let mut positions = (0..self.parts.len()).filter(|index| is_kind(&self.parts[*index]));
        let index = positions.nth(n).unwrap_or_else(|| {
            self.parts.push(PartState::new(slot, None, None));
            self.parts.len() - 1
        });
        &mut self.parts[index]
    }

    fn finish(&mut self, response: &Value, pieces: &mut Vec<Piece>) {
        self.has_ended = true;
        self.parts.iter_mut().for_each(|part| part.is_done = true);
        self.flush(pieces);
        let has = |is_kind: fn(&Opened) -> bool| {
            self.parts.iter().filter_map(|part| part.opened.as_ref()).any(is_kind)
        };
        let has_calls = has(|opened| matches!(opened, Opened::ToolCall { .. }));
        let has_refusal = has(|opened| *opened == Opened::Refusal);
        let stop: Stop = stop_of(response, has_calls, has_refusal);
        pieces.push(Piece::Stop(stop));
    }

    /// Gives out all that is in order.
    fn flush(&mut self, pieces: &mut Vec<Piece>) {
        while let Some(part) = self.parts.get_mut(self.closed) {
            part.flush(pieces);
            if !part.is_done {
                return;
            }
            self.closed += 1;
        }
    }
}

fn slot_of(part: &Part, position: usize) -> Option<Slot> {
    match &part.kind {
        PartKind::Text(_) | PartKind::Refusal(_) => Some(Slot::Content(position as u64)),
        PartKind::ToolCall { .. } => Some(Slot::Call),
        PartKind::Thinking(_) => Some(Slot::Reasoning),
        _ => None,
    }
}

impl PartState {
    fn new(slot: Slot, output_index: Option<u64>, item_id: Option<String>) -> Self {
        Self {
            slot,
            output_index,
            item_id,
            opened: None,
            text: String::new(),
            section_start: 0,
            sent: 0,
            is_open: false,
            signature: None,
            is_done: false,
            is_summary: None,
            last_index: 0,
        }
    }

    /// Adds a delta, or the rest of the whole text.
    fn take(&mut self, text: Option<&str>, is_whole: bool) {
        let text = text.unwrap_or_default();
        if self.is_done {
            return;
        }
        if is_whole {
            self.take_whole(text);
        } else {
            self.text.push_str(text);
        }
    }

    fn take_whole(&mut self, whole: &str) {
        if let Some(rest) = whole.strip_prefix(self.text.as_str()) {
            self.text.push_str(rest);
        }
    }

    /// Adds the rest of the whole text of the last section of reasoning.
    fn take_section(&mut self, whole: &str) {
        if let Some(rest) = whole.strip_prefix(&self.text[self.section_start..]) {
            self.text.push_str(rest);
        }
    }

    /// Takes a part of an item, which is complete if `is_done`.
    fn take_part(&mut self, part: Part, is_done: bool) {
        if self.is_done {
            return;
        }
        let (opened, text) = match part.kind {
            PartKind::Text(text) => (Opened::Text, text),
            PartKind::Refusal(text) => (Opened::Refusal, text),
            PartKind::Thinking(text) => (Opened::Thinking, text),
            PartKind::ToolCall { id, name, arguments, is_custom } => {
                (Opened::ToolCall { id, name, is_custom }, arguments)
            }
            _ => return,
        };
        self.opened.get_or_insert(opened);
        if is_done || self.slot == Slot::Call {
            self.signature = part.signature.or(self.signature.take());
        }
        if is_done {
            self.take_whole(&text);
            self.is_done = true;
        }
    }

    fn flush(&mut self, pieces: &mut Vec<Piece>) {
        let Some(opened) = &self.opened else {
            return;
        };
        if !self.is_open {
            self.is_open = true;
            pieces.push(Piece::Open(opened.clone()));
            // That of a call precedes its arguments.
            if self.slot == Slot::Call {
                pieces.extend(self.signature.take().map(Piece::Signature));
            }
        }
        if self.sent < self.text.len() {
            pieces.push(Piece::Delta(self.text[self.sent..].to_owned()));
            self.sent = self.text.len();
        }
        if self.is_done {
            pieces.extend(
                self.signature.take().filter(|_| self.slot != Slot::Call).map(Piece::Signature),
            );
            pieces.push(Piece::Close);
        }
    }
}
