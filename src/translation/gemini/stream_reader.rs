use crate::translation::{Piece, StreamReader};
use serde_json::Value;
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
