//! Reads the body of a request, and decodes it if the client compressed it.

use std::io::Read;
use std::time::Duration;

use crate::listener::{ApiError, RequestBody, RequestHead};
use crate::providers::{Coding, Decoder, ZSTD_WINDOW_BYTES_MAX};

/// Limits a request body, compressed or not, in bytes; images are sent as base64.
const BODY_BYTES_MAX: usize = 32 << 20;
/// Limits the time to receive a body: enough for the largest one on a slow line.
const BODY_TIME_MAX: Duration = Duration::from_secs(120);
/// Size of the buffer for decoded bytes.
const READ_BYTES: usize = 64 << 10;

/// Reads and decodes the whole body.
///
/// # Errors
/// As [`RequestBody::read`], and 415 for an unknown coding, 400 for a damaged body.
pub(super) fn read(head: &RequestHead, body: &mut RequestBody<'_>) -> Result<Vec<u8>, ApiError> {
    let codings = match Coding::parse_all(head.all("content-encoding")) {
        Ok(codings) => codings,
        Err(name) => {
            body.discard_received();
            let message = format!(
                "unsupported content-encoding `{name}`; use gzip, deflate, zstd or identity"
            );
            return Err(ApiError::new(415, "unsupported_encoding", message));
        }
    };
    let bytes = body.read(BODY_BYTES_MAX as u64, BODY_TIME_MAX)?;
    match codings.is_empty() {
        true => Ok(bytes),
        false => decode(&bytes, &codings, |decoded| {
            body.count(bytes.len() + ZSTD_WINDOW_BYTES_MAX + decoded)
        }),
    }
}

/// Decodes a body. `count` is called with the length before it grows.
fn decode(
    bytes: &[u8],
    codings: &[Coding],
    mut count: impl FnMut(usize) -> Result<(), ApiError>,
) -> Result<Vec<u8>, ApiError> {
    let (mut decoder, mut decoded) = (Decoder::new(bytes, codings), Vec::new());
    let mut buffer = vec![0; READ_BYTES];
    loop {
        count(decoded.len() + READ_BYTES)?;
        let length = decoder.read(&mut buffer).map_err(|error| {
            let message = format!("cannot decode the compressed request body: {error}");
            ApiError::bad_request("bad_encoding", message)
        })?;
        if length == 0 {
            return Ok(decoded);
        }
        if decoded.len() + length > BODY_BYTES_MAX {
            let message = format!(
                "the decoded request body is too large; the limit is {BODY_BYTES_MAX} bytes"
            );
            return Err(ApiError::new(413, "body_too_large", message));
        }
        decoded.extend_from_slice(&buffer[..length]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decoded_body_has_the_same_limit() {
        let zeros = vec![b' '; BODY_BYTES_MAX + 1];
        // Stored without a change, as the decoder allows.
        let refusal = decode(&zeros, &[Coding::Gzip], |_| Ok(())).unwrap_err();
        assert_eq!((refusal.status, refusal.code), (413, "body_too_large"));
        let busy = ApiError::new(503, "busy", "no room");
        let refusal = decode(&zeros, &[Coding::Gzip], |length| match length {
            0..1_000_000 => Ok(()),
            _ => Err(busy.clone()),
        });
        assert_eq!(refusal.unwrap_err().status, 503);
    }
}
