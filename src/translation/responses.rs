//! OpenAI's Responses API: <https://platform.openai.com/docs/api-reference/responses>.
//!
//! An item of a request's `input` is a turn. Reading and writing keeps everything, apart from
//! spellings that mean the same: a text `input` or `content` becomes a list with one text (`output`
//! the reverse), a message gets its `type`, a reasoning item its `summary`; `stream: false`,
//! `text.format` of type `text`, and empty `input`, `tools`, `text` and `reasoning` are left out;
//! equal namespaces of tools are joined if they follow each other. Reasoning that another API's model
//! signed is left out, because OpenAI rejects it.

mod item;
mod models;
mod read_request;
mod reply;
mod settings;
mod stream_reader;
mod stream_writer;
#[cfg(test)]
mod tests;
mod write_request;

pub use self::read_request::{check_for_other, read_request};
pub use self::reply::{read_reply, write_reply};
pub use self::stream_reader::EventReader;
pub use self::stream_writer::EventWriter;
pub use self::write_request::write_request;
