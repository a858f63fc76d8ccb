//! Reads the streams of providers:
//! <https://platform.claude.com/docs/en/build-with-claude/streaming>.

use std::collections::VecDeque;

use serde_json::Value;

use super::super::conversation::{PartKind, Stop};
use super::super::piece::{Opened, Piece, StreamReader, pieces_of};
use super::super::{Reply, Signature};
use super::blocks::{read_block, read_signature};
use super::reply::{read_reply, read_stop};

/// Reads the events of a stream. Compatible servers leave out `message_start`, indexes or
/// `content_block_stop`, or write the content into `content_block_start`.
#[derive(Default)]
pub struct EventReader {
    has_begun: bool,
    has_ended: bool,
    has_calls: bool,
    /// The first block is live: its pieces are passed on. Later ones are held until it is closed.
    blocks: VecDeque<Block>,
    stop: Option<Stop>,
}

struct Block {
    index: Option<u64>,
    kind: Kind,
    /// The opened part, until it is passed on.
    opened: Option<Opened>,
    held: Vec<Piece>,
    /// The last one counts, as in Anthropic's SDK.
    signature: Option<Signature>,
    /// The input in `content_block_start`, used if no piece of it follows.
    input: Option<String>,
    is_closed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    Thinking,
    ToolCall,
    /// A block that a stream of pieces cannot have, such as the result of a web search.
    Skipped,
}

impl Block {
    fn new(index: Option<u64>, kind: Kind, opened: Option<Opened>) -> Self {
        let (held, signature) = (Vec::new(), None);
        Self { index, kind, opened, held, signature, input: None, is_closed: false }
    }

    fn add(&mut self, text: &str) {
        if !text.is_empty() {
            self.input = None;
            self.held.push(Piece::Delta(text.to_owned()));
        }
    }

    /// Passes on all that is known.
    fn pass_on(&mut self, pieces: &mut Vec<Piece>) {
        pieces.extend(self.opened.take().map(Piece::Open));
        pieces.append(&mut self.held);
    }

    fn close(&mut self) {
        if self.is_closed {
            return;
        }
        self.is_closed = true;
        self.held.extend(self.input.take().map(Piece::Delta));
        self.held.extend(self.signature.take().map(Piece::Signature));
        if self.kind != Kind::Skipped {
            self.held.push(Piece::Close);
        }
    }
}

impl StreamReader for EventReader {
    fn event(&mut self, name: &str, data: &Value, pieces: &mut Vec<Piece>) {
        if self.has_ended {
            return;
        }
        // The event's name is also in its data; some proxies keep only one of them.
        let index = data["index"].as_u64();
        match data["type"].as_str().unwrap_or(name) {
            "message_start" => {
                let text = |key: &str| data["message"][key].as_str().unwrap_or_default().to_owned();
                self.begin(text("id"), text("model"), pieces);
            }
            "content_block_start" => self.start(index, &data["content_block"]),
            "content_block_delta" => self.delta(index, &data["delta"]),
            "content_block_stop" => {
                if let Some(block) = self.block_at(index) {
                    block.close();
                }
            }
            "message_delta" => {
                let delta = &data["delta"];
                let stop = read_stop(&delta["stop_reason"], delta.get("stop_sequence"));
                self.stop = stop.or(self.stop.take());
            }
            "message_stop" => return self.end(pieces),
            // A server that does not stream answers in one piece.
            "message" if !self.has_begun => return self.whole(read_reply(data), pieces),
            _ => return,
        }
        self.pass_on(pieces);
    }

    fn end(&mut self, pieces: &mut Vec<Piece>) {
        if self.has_ended {
            return;
        }
        self.begin(String::new(), String::new(), pieces);
        self.blocks.iter_mut().for_each(Block::close);
        self.pass_on(pieces);
        let default = if self.has_calls { Stop::ToolCalls } else { Stop::End };
        pieces.push(Piece::Stop(self.stop.take().unwrap_or(default)));
        self.has_ended = true;
    }
}

impl EventReader {
    fn begin(&mut self, id: String, model: String, pieces: &mut Vec<Piece>) {
        if !self.has_begun {
            self.has_begun = true;
            pieces.push(Piece::Begin { id, model });
        }
    }

    fn whole(&mut self, reply: Reply, pieces: &mut Vec<Piece>) {
        (self.has_begun, self.has_ended) = (true, true);
        let has_stop = reply.stop.is_some();
        pieces.extend(pieces_of(&reply));
        pieces.extend((!has_stop).then_some(Piece::Stop(Stop::End)));
    }

    /// Returns the last open block with the index; the last open one if the event has none.
    fn block_at(&mut self, index: Option<u64>) -> Option<&mut Block> {
        let mut open = self.blocks.iter_mut().rev().filter(|block| !block.is_closed);
        open.find(|block| index.is_none() || block.index.is_none() || block.index == index)
    }

    fn start(&mut self, index: Option<u64>, content: &Value) {
        // Without an index blocks cannot interleave.
        let is_same = |block: &&mut Block| index.is_none() || block.index == index;
        self.blocks.iter_mut().filter(is_same).for_each(Block::close);
        let block = match content["type"].as_str() {
            Some("tool_use") => self.started_call(index, content),
            _ => started_text(index, content),
        };
        self.blocks.push_back(block);
    }

    fn started_call(&mut self, index: Option<u64>, content: &Value) -> Block {
        self.has_calls = true;
        let text = |key: &str| content[key].as_str().unwrap_or_default();
        let id = Signature::detach_from(text("id")).0.to_owned();
        let name = text("name").to_owned();
        let opened = Opened::ToolCall { id, name, is_custom: false };
        let mut block = Block::new(index, Kind::ToolCall, Some(opened));
        block.input = Some(match &content["input"] {
            Value::String(input) if !input.is_empty() => input.clone(),
            input @ Value::Object(_) => input.to_string(),
            _ => "{}".to_owned(),
        });
        block
    }

    fn delta(&mut self, index: Option<u64>, delta: &Value) {
        let text = |key: &str| delta[key].as_str().unwrap_or_default();
        let (kind, text) = match delta["type"].as_str() {
            Some("text_delta") => (Kind::Text, text("text")),
            Some("thinking_delta") => (Kind::Thinking, text("thinking")),
            Some("signature_delta") => (Kind::Thinking, ""),
            Some("input_json_delta") => (Kind::ToolCall, text("partial_json")),
            _ => return,
        };
        let open = self.block_at(index).map(|block| block.kind);
        if open == Some(Kind::Skipped) {
            return;
        }
        if open != Some(kind) {
            // The server left out the start of the block.
            let content = match kind {
                Kind::Thinking => serde_json::json!({"type": "thinking"}),
                Kind::ToolCall => serde_json::json!({"type": "tool_use"}),
                _ => serde_json::json!({"type": "text"}),
            };
            self.start(index, &content);
        }
        let signature = delta["signature"].as_str();
        if let Some(block) = self.block_at(index) {
            block.add(text);
            let signature = signature.and_then(|value| read_signature(value, false));
            block.signature = signature.or(block.signature.take());
        }
    }

    /// Passes on the live block, and those after it that are closed with it.
    fn pass_on(&mut self, pieces: &mut Vec<Piece>) {
        while let Some(block) = self.blocks.front_mut() {
            if !self.has_begun {
                self.has_begun = true;
                pieces.push(Piece::Begin { id: String::new(), model: String::new() });
            }
            block.pass_on(pieces);
            if !block.is_closed {
                return;
            }
            self.blocks.pop_front();
        }
    }
}

/// Starts a text or a thought, or skips the block.
fn started_text(index: Option<u64>, content: &Value) -> Block {
    let text = |key: &str| content[key].as_str().unwrap_or_default();
    match content["type"].as_str() {
        Some("text") => {
            let mut block = Block::new(index, Kind::Text, Some(Opened::Text));
            block.add(text("text"));
            block
        }
        Some("thinking") => {
            let mut block = Block::new(index, Kind::Thinking, Some(Opened::Thinking));
            block.add(text("thinking"));
            block.signature = read_signature(text("signature"), false);
            block
        }
        Some("redacted_thinking") => {
            let part = read_block(content);
            let is_known = matches!(part.kind, PartKind::Thinking(_));
            let opened = is_known.then_some(Opened::Thinking);
            let kind = if is_known { Kind::Thinking } else { Kind::Skipped };
            let mut block = Block::new(index, kind, opened);
            block.signature = part.signature;
            block
        }
        _ => Block::new(index, Kind::Skipped, None),
    }
}
