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
mod reply;
mod stream_reader;
mod stream_writer;
#[cfg(test)]
mod tests;
mod thoughts;
mod write_messages;
mod write_own;
mod write_request;

pub use self::read_request::{check_for_other, forget, read_request};
pub use self::reply::{read_reply, write_reply};
pub use self::stream_reader::ChunkReader;
pub use self::stream_writer::ChunkWriter;
pub use self::write_request::write_request;
