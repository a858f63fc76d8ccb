use serde_json::Value;

use super::{
    Context, Conversation, Piece, Refusal, Reply, StreamReader, StreamWriter, Target, Written,
};
use crate::event::Usage;

pub fn read_request(_: &Value) -> Result<Conversation, Refusal> {
    todo!()
}

pub fn write_request(_: &Conversation, _: &Target) -> Result<Written, Refusal> {
    todo!()
}

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

pub fn check_for_other(_: &Conversation) -> Result<(), Refusal> {
    todo!()
}
