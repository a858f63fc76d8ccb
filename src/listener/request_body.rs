//! A request's body, read only if its handler asks for it.

use std::cell::Cell;
use std::io::{self, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::api_error::ApiError;
use super::read_some;
use super::request_head::{Body, HEAD_BYTES_MAX, RequestHead};

/// Limits one read of a body, in bytes.
const READ_BYTES: usize = 64 << 10;
/// Limits one read of a line between chunks …
const LINE_READ_BYTES: usize = 4 << 10;
/// … and the length of such a line.
const CHUNK_LINE_BYTES_MAX: usize = 1 << 10;
/// Limits the total size of larger bodies, for all connections.
const BODIES_BYTES_MAX: usize = 512 << 20;
/// Bodies up to this size do not count: 1,024 connections with such bodies use little memory.
const SMALL_BODY_BYTES: usize = 128 << 10;

/// Counts the bytes of larger bodies in memory.
#[derive(Debug, Default)]
pub(super) struct BodyBytes(AtomicUsize);

pub struct RequestBody<'a> {
    client: &'a TcpStream,
    /// Bytes read from the client but not used yet.
    buffer: &'a mut Vec<u8>,
    head: &'a RequestHead,
    is_unread: &'a Cell<bool>,
    body_bytes: &'a BodyBytes,
    /// This body's share of `body_bytes`, until its request is answered.
    counted: usize,
}

impl<'a> RequestBody<'a> {
    pub(super) fn new(
        client: &'a TcpStream,
        buffer: &'a mut Vec<u8>,
        head: &'a RequestHead,
        is_unread: &'a Cell<bool>,
        body_bytes: &'a BodyBytes,
    ) -> Self {
        Self { client, buffer, head, is_unread, body_bytes, counted: 0 }
    }

    /// Reads the whole body. If the client expects it, sends `100 Continue` first.
    ///
    /// # Errors
    /// 413 beyond `bytes_max`, 408 after `time_max`, 400 for malformed chunks and for a client that
    /// has left, 503 if larger bodies fill their shared memory.
    pub fn read(&mut self, bytes_max: u64, time_max: Duration) -> Result<Vec<u8>, ApiError> {
        let mut body = Vec::new();
        if !self.is_unread.get() {
            return Ok(body);
        }
        if matches!(self.head.body, Body::Length(length) if length > bytes_max) {
            return Err(too_large(bytes_max));
        }
        if self.head.has_token("expect", "100-continue") {
            // A client that has left is detected below.
            let _ = self.client.write_all(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        let deadline = Instant::now() + time_max;
        match self.head.body {
            Body::Length(length) => self.append(&mut body, length, deadline)?,
            Body::Chunked => self.read_chunks(&mut body, bytes_max, deadline)?,
        }
        self.is_unread.set(false);
        Ok(body)
    }

    /// Appends the next `count` bytes to `body`.
    fn append(
        &mut self,
        body: &mut Vec<u8>,
        count: u64,
        deadline: Instant,
    ) -> Result<(), ApiError> {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let end = body.len().saturating_add(count);
        let buffered = self.buffer.len().min(end - body.len());
        body.extend(self.buffer.drain(..buffered));
        while body.len() < end {
            let step = READ_BYTES.min(end - body.len());
            self.count(body.len() + step)?;
            receive(self.client, body, step, deadline)?;
        }
        Ok(())
    }

    /// Appends chunks to `body` up to the last one (RFC 9112, section 7.1).
    fn read_chunks(
        &mut self,
        body: &mut Vec<u8>,
        bytes_max: u64,
        deadline: Instant,
    ) -> Result<(), ApiError> {
        loop {
            let size = self.read_chunk_size(deadline)?;
            // Compare without a sum, which could overflow: a size may be the largest number.
            if size > bytes_max - body.len() as u64 {
                return Err(too_large(bytes_max));
            }
            if size == 0 {
                return self.skip_trailers(deadline);
            }
            self.append(body, size, deadline)?;
            while self.buffer.len() < 2 {
                self.fill(deadline)?;
            }
            if !self.buffer.starts_with(b"\r\n") {
                return Err(bad_request("a body chunk is longer than its declared size"));
            }
            self.buffer.drain(..2);
        }
    }

    fn read_chunk_size(&mut self, deadline: Instant) -> Result<u64, ApiError> {
        loop {
            match httparse::parse_chunk_size(self.buffer) {
                // httparse parses a line without a size as a size of 0.
                Ok(_) if !self.buffer.first().is_none_or(u8::is_ascii_hexdigit) => break,
                Ok(httparse::Status::Complete((line, size))) => {
                    self.buffer.drain(..line);
                    return Ok(size);
                }
                Ok(httparse::Status::Partial) if self.buffer.len() < CHUNK_LINE_BYTES_MAX => {
                    self.fill(deadline)?;
                }
                _ => break,
            }
        }
        Err(bad_request("cannot read the chunked request body"))
    }

    /// Skips the trailers; no route uses them.
    fn skip_trailers(&mut self, deadline: Instant) -> Result<(), ApiError> {
        let mut skipped = 0;
        loop {
            let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\r\n") else {
                if skipped + self.buffer.len() > HEAD_BYTES_MAX {
                    let message =
                        format!("trailers too large; the limit is {HEAD_BYTES_MAX} bytes");
                    return Err(ApiError::new(431, "head_too_large", message));
                }
                self.fill(deadline)?;
                continue;
            };
            self.buffer.drain(..end + 2);
            skipped += end + 2;
            if end == 0 {
                return Ok(());
            }
        }
    }

    fn fill(&mut self, deadline: Instant) -> Result<(), ApiError> {
        receive(self.client, self.buffer, LINE_READ_BYTES, deadline)
    }

    /// Counts the body before it grows to `bytes`.
    fn count(&mut self, bytes: usize) -> Result<(), ApiError> {
        if bytes <= SMALL_BODY_BYTES {
            return Ok(());
        }
        let more = bytes.saturating_sub(self.counted);
        let before = self.body_bytes.0.fetch_add(more, Ordering::SeqCst);
        self.counted += more;
        if before.saturating_add(more) > BODIES_BYTES_MAX {
            let message = "too many large requests at once; try again in a second";
            return Err(ApiError::new(503, "busy", message));
        }
        Ok(())
    }
}

impl Drop for RequestBody<'_> {
    fn drop(&mut self) {
        self.body_bytes.0.fetch_sub(self.counted, Ordering::SeqCst);
    }
}

/// Reads more bytes from the client and appends them.
fn receive(
    client: &TcpStream,
    into: &mut Vec<u8>,
    bytes_max: usize,
    deadline: Instant,
) -> Result<(), ApiError> {
    match read_some(client, into, bytes_max, deadline) {
        Ok(count) if count > 0 => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::TimedOut => {
            let message = "timed out while reading the request body";
            Err(ApiError::new(408, "timeout", message))
        }
        _ => {
            // The client receives no response to half a request.
            let _ = client.shutdown(Shutdown::Write);
            Err(bad_request("the request body is incomplete"))
        }
    }
}

fn bad_request(message: &str) -> ApiError {
    ApiError::bad_request("bad_request", message)
}

fn too_large(bytes_max: u64) -> ApiError {
    let message = format!("request body too large; the limit is {bytes_max} bytes");
    ApiError::new(413, "body_too_large", message)
}
