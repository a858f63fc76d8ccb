//! Reads an answer without a network, for the fuzz targets.

use super::ApiFormat;
use super::call::{CacheMarks, Call};
use super::config::{Kind, ProviderConfig};
use super::framer::Framer;
use super::json;
use super::network::Network;
use super::wire::{Flow, Reader, ResponseAccumulator};
use crate::event::Usage;

/// Limits an event, in bytes.
const EVENT_BYTES_MAX: usize = 1 << 20;

/// The part of an answer that was read.
#[derive(Clone, Debug, PartialEq)]
pub struct ReadAnswer {
    pub text: String,
    pub usage: Usage,
    pub is_complete: bool,
    /// The provider's error, or a fault in the answer.
    pub error: Option<String>,
}

impl ApiFormat {
    /// Reads an answer of a provider: a stream that arrives in pieces of this length, or a document
    /// without one. Returns none if the kind does not support the format.
    pub fn read_answer(
        self,
        kind: Kind,
        bytes: &[u8],
        piece_bytes: Option<usize>,
    ) -> Option<ReadAnswer> {
        let mut reader = self.reader(kind)?;
        let mut partial = ResponseAccumulator { beyond: Some(0), ..ResponseAccumulator::default() };
        let error = match piece_bytes {
            Some(length) => read_stream(reader.as_mut(), bytes, length, &mut partial),
            None => match json::read(bytes) {
                Ok(document) => {
                    reader.document(&document, &mut partial).err().map(|fault| fault.message)
                }
                Err(error) => Some(error.to_string()),
            },
        };
        let ResponseAccumulator { text, usage, is_complete, .. } = partial;
        Some(ReadAnswer { text, usage, is_complete, error })
    }

    fn reader(self, kind: Kind) -> Option<Box<dyn Reader>> {
        let provider = ProviderConfig {
            kind,
            base_url: String::new(),
            api_key: None,
            missing_key_hint: None,
            stream_usage: true,
            network: Network::default(),
            trust_stated_cost: None,
            apis: Vec::new(),
        };
        let call = Call {
            provider: "p".to_owned(),
            model: "m".to_owned(),
            system: None,
            prompt: String::new(),
            max_tokens: None,
            temperature: None,
            stream: true,
            first_byte_timeout: None,
            total_timeout: None,
            cache_marks: CacheMarks::default(),
            key: None,
        };
        let (_, reader) = self.route(kind)?(&provider, &call);
        Some(reader)
    }
}

/// Returns the first error.
fn read_stream(
    reader: &mut dyn Reader,
    bytes: &[u8],
    piece_bytes: usize,
    partial: &mut ResponseAccumulator,
) -> Option<String> {
    let mut framer = Framer::new(reader.framing(), EVENT_BYTES_MAX);
    for piece in bytes.chunks(piece_bytes.max(1)) {
        framer.push(piece);
        loop {
            let event = match framer.next() {
                Ok(Some(frame)) => frame.event,
                Ok(None) => break,
                Err(_) => return Some("an event is too long".to_owned()),
            };
            match event.map(|event| reader.event(event, partial)) {
                None | Some(Ok(Flow::More)) => {}
                Some(Ok(Flow::End)) => return None,
                Some(Err(fault)) => return Some(fault.message),
            }
        }
    }
    None
}
