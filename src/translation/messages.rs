//! Anthropic's messages: <https://platform.claude.com/docs/en/api/messages>. Facts about fields are
//! from the types of Anthropic's SDK for Python, 2.12.0, unless a comment names another source.

mod adapt;
mod blocks;
mod models;
mod read_request;
mod reply;
mod schema;
mod stream_reader;
mod stream_writer;
#[cfg(test)]
mod tests;
mod thinking;
mod turns;
mod write_request;

pub use self::read_request::{check_for_other, read_request};
pub use self::reply::{read_reply, write_reply};
pub use self::stream_reader::EventReader;
pub use self::stream_writer::EventWriter;
pub use self::write_request::write_request;
