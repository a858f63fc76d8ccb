use crate::event::Usage;
use crate::translation::{Context, Piece, StreamWriter};
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
