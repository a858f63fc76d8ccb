//! OpenAI's chat completions, and the fields that compatible servers add to them.
//!
//! A request that is read and written in this API is equal, except for these forms of the same
//! meaning: a content of one text part is a string, `stop` is an array, the output limit has the
//! target's name, tool calls have a `type`, and `stream: false`, `response_format` of type `text` and
//! `reasoning_content` or `reasoning` beside `reasoning_details` of the same text are left out.

mod content;
mod fields;
mod message;
mod read_request;
#[cfg(test)]
mod tests;
mod thoughts;
mod write_messages;
mod write_own;
mod write_request;

use serde_json::Value;

pub use self::read_request::{check_for_other, read_request};
pub use self::write_request::write_request;
use super::{Context, Piece, Reply, StreamReader, StreamWriter};
use crate::event::Usage;

pub fn read_reply(_: &Value) -> Reply {
    todo!()
}

pub fn write_reply(_: &Reply, _: &Usage, _: &Context) -> Value {
    todo!()
}

#[derive(Default)]
pub struct ChunkReader;

impl StreamReader for ChunkReader {
    fn event(&mut self, _: &str, _: &Value, _: &mut Vec<Piece>) {
        todo!()
    }

    fn end(&mut self, _: &mut Vec<Piece>) {
        todo!()
    }
}

pub struct ChunkWriter;

impl ChunkWriter {
    pub fn new(_: Context) -> Self {
        todo!()
    }
}

impl StreamWriter for ChunkWriter {
    fn piece(&mut self, _: &Piece, _: &Usage, _: &mut Vec<u8>) {
        todo!()
    }

    fn end(&mut self, _: &Usage, _: &mut Vec<u8>) {
        todo!()
    }
}
