use crate::translation::{Piece, StreamReader};
use serde_json::Value;
#[derive(Default)]
pub struct EventReader;

impl StreamReader for EventReader {
    fn event(&mut self, _: &str, _: &Value, _: &mut Vec<Piece>) {
        todo!()
    }

    fn end(&mut self, _: &mut Vec<Piece>) {
        todo!()
    }
}
