//! The internal form of a streamed answer.

use serde_json::Value;

use super::conversation::{Extra, Part, PartKind, Reply, Stop};
use super::signature::Signature;
use crate::event::Usage;

/// A piece of an answer. Exactly one part is open at a time: `Open`, any number of `Delta` and
/// `Signature`, `Close`.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    /// The first piece. Both are empty if the provider states none.
    Begin {
        id: String,
        model: String,
    },
    Open(Opened),
    /// Extends the open part: its text, or the arguments of the tool call.
    Delta(String),
    /// The signature of the open part. That of a tool call follows `Open` directly, because other
    /// APIs carry it in the call's id.
    Signature(Signature),
    Close,
    /// The reason for the end. Only the usage follows.
    Stop(Stop),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opened {
    Text,
    Thinking,
    Refusal,
    ToolCall { id: String, name: String, is_custom: bool },
}

/// Reads the events of a provider's stream; one per answer.
pub trait StreamReader {
    /// Adds the pieces of an event to `pieces`. `name` is the event's name, if the stream has names.
    /// Ignores events that it does not know.
    fn event(&mut self, name: &str, data: &Value, pieces: &mut Vec<Piece>);

    /// Adds the pieces that were held back, at the end of a complete stream: closes an open part, and
    /// adds `Stop` if it was missing.
    fn end(&mut self, pieces: &mut Vec<Piece>);
}

/// Writes the events of a client's stream; one per answer.
pub trait StreamWriter {
    /// Adds the bytes of a piece to `bytes`. `usage` has the counts that are known so far.
    fn piece(&mut self, piece: &Piece, usage: &Usage, bytes: &mut Vec<u8>);

    /// Adds the end of a complete stream: the reason, the usage, and the last event.
    fn end(&mut self, usage: &Usage, bytes: &mut Vec<u8>);
}

/// Returns an answer in one piece as the pieces of a stream. Parts that a stream cannot have are
/// left out.
pub fn pieces_of(reply: &Reply) -> Vec<Piece> {
    let mut pieces = vec![Piece::Begin { id: reply.id.clone(), model: reply.model.clone() }];
    for part in &reply.parts {
        let Some((opened, text)) = opened(part) else {
            continue;
        };
        let is_call = matches!(opened, Opened::ToolCall { .. });
        let signature = part.signature.clone().map(Piece::Signature);
        pieces.push(Piece::Open(opened));
        pieces.extend(signature.clone().filter(|_| is_call));
        if !text.is_empty() {
            pieces.push(Piece::Delta(text.to_owned()));
        }
        pieces.extend(signature.filter(|_| !is_call));
        pieces.push(Piece::Close);
    }
    pieces.extend(reply.stop.clone().map(Piece::Stop));
    pieces
}

fn opened(part: &Part) -> Option<(Opened, &str)> {
    Some(match &part.kind {
        PartKind::Text(text) => (Opened::Text, text),
        PartKind::Thinking(text) => (Opened::Thinking, text),
        PartKind::Refusal(text) => (Opened::Refusal, text),
        PartKind::ToolCall { id, name, arguments, is_custom } => {
            let (id, name) = (id.clone(), name.clone());
            (Opened::ToolCall { id, name, is_custom: *is_custom }, arguments)
        }
        _ => return None,
    })
}

/// Returns the pieces of a whole stream as an answer in one piece.
pub fn reply_of(pieces: Vec<Piece>) -> Reply {
    let mut reply = Reply {
        id: String::new(),
        model: String::new(),
        parts: Vec::new(),
        stop: None,
        extra: Extra::new(),
    };
    for piece in pieces {
        match piece {
            Piece::Begin { id, model } => {
                reply.id = id;
                reply.model = model;
            }
            Piece::Open(opened) => reply.parts.push(Part::new(empty(opened))),
            Piece::Delta(text) => {
                if let Some(extended) = reply.parts.last_mut().and_then(text_of) {
                    extended.push_str(&text);
                }
            }
            Piece::Signature(signature) => {
                if let Some(part) = reply.parts.last_mut() {
                    part.signature = Some(signature);
                }
            }
            Piece::Close => {}
            Piece::Stop(stop) => reply.stop = Some(stop),
        }
    }
    reply
}

fn empty(opened: Opened) -> PartKind {
    match opened {
        Opened::Text => PartKind::Text(String::new()),
        Opened::Thinking => PartKind::Thinking(String::new()),
        Opened::Refusal => PartKind::Refusal(String::new()),
        Opened::ToolCall { id, name, is_custom } => {
            PartKind::ToolCall { id, name, arguments: String::new(), is_custom }
        }
    }
}

fn text_of(part: &mut Part) -> Option<&mut String> {
    match &mut part.kind {
        PartKind::Text(text)
        | PartKind::Thinking(text)
        | PartKind::Refusal(text)
        | PartKind::ToolCall { arguments: text, .. } => Some(text),
        _ => None,
    }
}
