//! The bodies of a call: texts that are cut, with masked secrets, and compressed.

use std::io::{Read, Write};

use flate2::Compression;
use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;

use crate::error::{Error, Result};
use crate::time::Timestamp;

/// Limits the text of one body, in bytes; the rest is cut off.
pub const BODY_BYTES_MAX: usize = 256 << 10;
/// Limits the decoded text of a body, in bytes: masks and replaced characters may lengthen it.
const TEXT_BYTES_MAX: u64 = 4 * BODY_BYTES_MAX as u64;

/// The request or the response of a call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BodyPart {
    /// Compressed; none if the content is no text.
    pub(super) text: Option<Vec<u8>>,
    /// The length of the whole content.
    pub bytes: u64,
    pub is_cut: bool,
    pub content_type: Option<String>,
}

impl BodyPart {
    /// Compresses the text, if the content is any.
    pub fn new(text: Option<&str>, bytes: u64, is_cut: bool, content_type: Option<String>) -> Self {
        let text = text.and_then(|text| {
            let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
            // Writing into memory does not fail.
            encoder.write_all(text.as_bytes()).ok()?;
            encoder.finish().ok()
        });
        Self { text, bytes, is_cut, content_type }
    }

    /// Returns the text, if the content is any.
    pub fn text(&self) -> Result<Option<String>> {
        let Some(compressed) = &self.text else {
            return Ok(None);
        };
        let mut text = String::new();
        DeflateDecoder::new(compressed.as_slice())
            .take(TEXT_BYTES_MAX)
            .read_to_string(&mut text)
            .map_err(|error| Error::internal(format!("cannot read a stored body: {error}")))?;
        Ok(Some(text))
    }

    pub(super) fn stored_bytes(&self) -> usize {
        self.text.as_ref().map_or(0, Vec::len)
    }
}

#[derive(Clone, Debug)]
pub struct NewBody {
    pub ledger_id: i64,
    /// The end user as the row of the call had it at first.
    pub end_user: Option<String>,
    pub at: Timestamp,
    pub request: BodyPart,
    pub response: BodyPart,
}

/// Selects bodies to remove.
#[derive(Clone, Debug)]
pub enum Bodies {
    OfRow(i64),
    /// Those of all rows up to this one.
    UpTo(i64),
    /// Those of an end user, by its names.
    OfEndUser(Vec<String>),
}
