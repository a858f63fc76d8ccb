//! Gemini's `generateContent` and `streamGenerateContent`:
//! <https://ai.google.dev/api/generate-content>.
//!
//! The API accepts its fields in camel case and in snake case, as all of protobuf's JSON does:
//! <https://protobuf.dev/programming-guides/json/>. So do the readers; the writers use camel case.

mod config;
mod fields;
mod parts;
mod read_request;
mod reply;
mod schema;
mod signatures;
mod stream_reader;
mod stream_writer;
mod thinking;
mod write_own;
mod write_request;

pub use self::read_request::{check_for_other, read_request};
pub use self::reply::{read_reply, write_reply};
pub(super) use self::signatures::MARK as SIGNATURE_MARK;
pub use self::stream_reader::ChunkReader;
pub use self::stream_writer::ChunkWriter;
pub use self::write_request::write_request;

#[cfg(test)]
mod tests;
