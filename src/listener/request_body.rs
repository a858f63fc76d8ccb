//! A request's body, read only if its handler asks for it.

use std::cell::Cell;
use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, TcpStream};
use std::sync::{Mutex, MutexGuard, PoisonError};
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

/// The client that a body counts for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum BodyOwner {
    /// The number of a virtual key.
    Key(i64),
    Address(IpAddr),
}

/// Counts the bytes of larger bodies in memory, by client.
#[derive(Debug, Default)]
pub(super) struct BodyBytes(Mutex<HashMap<BodyOwner, usize>>);

impl BodyBytes {
    /// Reserves more bytes for a client. It may have half of the room that all others leave, so
    /// that there is room for another client whatever these do. Returns false if that is used up.
    fn reserve(&self, owner: BodyOwner, more: usize) -> bool {
        let mut table = self.table();
        let own = table.get(&owner).copied().unwrap_or_default();
        let others = table.values().sum::<usize>() - own;
        let fits = own.saturating_add(more) <= BODIES_BYTES_MAX.saturating_sub(others) / 2;
        if fits {
            table.insert(owner, own + more);
        }
        fits
    }

    fn release(&self, owner: BodyOwner, bytes: usize) {
        let mut table = self.table();
        let left = table.get(&owner).map_or(0, |own| own.saturating_sub(bytes));
        match left {
            0 => table.remove(&owner),
            left => table.insert(owner, left),
        };
    }

    fn table(&self) -> MutexGuard<'_, HashMap<BodyOwner, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub struct RequestBody<'a> {
    client: &'a TcpStream,
    /// Bytes read from the client but not used yet.
    buffer: &'a mut Vec<u8>,
    head: &'a RequestHead,
    is_unread: &'a Cell<bool>,
    body_bytes: &'a BodyBytes,
    owner: BodyOwner,
    /// This body's part of `body_bytes`, until its request is answered.
    counted: usize,
}

impl<'a> RequestBody<'a> {
    pub(super) fn new(
        client: &'a TcpStream,
        buffer: &'a mut Vec<u8>,
        head: &'a RequestHead,
        is_unread: &'a Cell<bool>,
        body_bytes: &'a BodyBytes,
        owner: BodyOwner,
    ) -> Self {
        Self { client, buffer, head, is_unread, body_bytes, owner, counted: 0 }
    }

    /// Reads the whole body. If the client expects it, sends `100 Continue` first.
    ///
    /// # Errors
    /// 413 beyond `bytes_max`, 408 after `time_max`, 400 for malformed chunks and for a client that
    /// has left, 503 if larger bodies fill their shared memory or this client's share of it.
    pub fn read(&mut self, bytes_max: u64, time_max: Duration) -> Result<Vec<u8>, ApiError> {
        let mut body = Vec::new();
        if !self.is_unread.get() {
            return Ok(body);
        }
        if matches!(self.head.body, Body::Length(length) if length > bytes_max) {
            return Err(too_large(bytes_max));
        }
        // HTTP/1.0 has no interim responses (RFC 9110, section 10.1.1).
        if self.head.version == 1 && self.head.has_token("expect", "100-continue") {
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

    /// Returns the declared length; none for a body in chunks.
    pub fn length(&self) -> Option<u64> {
        match self.head.body {
            Body::Length(length) => Some(length),
            Body::Chunked => None,
        }
    }

    /// Returns a reader of the body as it arrives, which is not kept in memory. If the client expects
    /// it, sends `100 Continue` first.
    ///
    /// # Errors
    /// 413 for a body that is declared longer than `bytes_max`. Later errors are those of
    /// [`RequestBody::read`], in [`BodyReader::error`].
    pub fn reader(
        &mut self,
        bytes_max: u64,
        time_max: Duration,
    ) -> Result<BodyReader<'_, 'a>, ApiError> {
        let length = self.length();
        if length.is_some_and(|length| length > bytes_max) {
            return Err(too_large(bytes_max));
        }
        if self.is_unread.get() && self.head.has_token("expect", "100-continue") {
            // A client that has left is detected below.
            let _ = self.client.write_all(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        Ok(BodyReader {
            part_left: length.unwrap_or_default(),
            is_in_chunk: false,
            bytes_left: bytes_max,
            deadline: Instant::now() + time_max,
            error: None,
            body: self,
        })
    }

    /// Discards the body if all of it has arrived, so that the connection can serve another
    /// request. Never waits; a chunked body stays unread.
    pub fn discard_received(&mut self) {
        if let Body::Length(length) = self.head.body
            && self.is_unread.get()
            && length <= self.buffer.len() as u64
        {
            self.buffer.drain(..length as usize);
            self.is_unread.set(false);
        }
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
            self.end_chunk(deadline)?;
        }
    }

    /// Skips the line end after a chunk.
    fn end_chunk(&mut self, deadline: Instant) -> Result<(), ApiError> {
        while self.buffer.len() < 2 {
            self.fill(deadline)?;
        }
        if !self.buffer.starts_with(b"\r\n") {
            return Err(bad_request("a body chunk is longer than its declared size"));
        }
        self.buffer.drain(..2);
        Ok(())
    }

    fn read_chunk_size(&mut self, deadline: Instant) -> Result<u64, ApiError> {
        loop {
            match line_end(self.buffer)? {
                Some(end) if end < CHUNK_LINE_BYTES_MAX && is_size(&self.buffer[..end]) => {
                    let Ok(httparse::Status::Complete((line, size))) =
                        httparse::parse_chunk_size(self.buffer)
                    else {
                        break;
                    };
                    self.buffer.drain(..line);
                    return Ok(size);
                }
                None if self.buffer.len() < CHUNK_LINE_BYTES_MAX => self.fill(deadline)?,
                _ => break,
            }
        }
        Err(bad_request("cannot read the chunked request body"))
    }

    /// Skips the trailers; no route uses them.
    fn skip_trailers(&mut self, deadline: Instant) -> Result<(), ApiError> {
        let mut skipped = 0;
        loop {
            let Some(end) = line_end(self.buffer)? else {
                if skipped + self.buffer.len() > HEAD_BYTES_MAX {
                    let message =
                        format!("trailers too large; the limit is {HEAD_BYTES_MAX} bytes");
                    return Err(ApiError::new(431, "head_too_large", message));
                }
                self.fill(deadline)?;
                continue;
            };
            let is_valid = end == 0 || is_field(&self.buffer[..end]);
            self.buffer.drain(..end + 2);
            skipped += end + 2;
            if !is_valid {
                return Err(bad_request("cannot read the trailers of the request body"));
            }
            if end == 0 {
                return Ok(());
            }
        }
    }

    fn fill(&mut self, deadline: Instant) -> Result<(), ApiError> {
        receive(self.client, self.buffer, LINE_READ_BYTES, deadline)
    }

    /// Counts the memory of a body before it grows to `bytes`, with other forms of it.
    ///
    /// # Errors
    /// 503 if larger bodies fill their shared memory or this client's share of it.
    pub fn count(&mut self, bytes: usize) -> Result<(), ApiError> {
        if bytes <= SMALL_BODY_BYTES {
            return Ok(());
        }
        let more = bytes.saturating_sub(self.counted);
        if !self.body_bytes.reserve(self.owner, more) {
            let message = "too many large requests at once; try again in a second";
            return Err(ApiError::new(503, "busy", message));
        }
        self.counted += more;
        Ok(())
    }
}

/// Reads a body as it arrives.
pub struct BodyReader<'b, 'a> {
    body: &'b mut RequestBody<'a>,
    /// The rest of the body, or of the current chunk.
    part_left: u64,
    is_in_chunk: bool,
    /// The rest of the limit of a body in chunks.
    bytes_left: u64,
    deadline: Instant,
    error: Option<ApiError>,
}

impl BodyReader<'_, '_> {
    /// Returns the reason why reading failed, if it did.
    pub fn error(&mut self) -> Option<ApiError> {
        self.error.take()
    }

    /// Begins the next chunk if the current one is over. Returns false at the end.
    fn begin_part(&mut self) -> Result<bool, ApiError> {
        if self.part_left > 0 {
            return Ok(true);
        }
        if matches!(self.body.head.body, Body::Length(_)) {
            return Ok(false);
        }
        if self.is_in_chunk {
            self.body.end_chunk(self.deadline)?;
        }
        let size = self.body.read_chunk_size(self.deadline)?;
        if size > self.bytes_left {
            return Err(too_large(self.bytes_left));
        }
        self.bytes_left -= size;
        self.is_in_chunk = true;
        self.part_left = size;
        if size == 0 {
            self.body.skip_trailers(self.deadline)?;
        }
        Ok(size > 0)
    }

    fn read_part(&mut self, buffer: &mut [u8]) -> Result<usize, ApiError> {
        if !self.body.is_unread.get() || buffer.is_empty() {
            return Ok(0);
        }
        if !self.begin_part()? {
            self.body.is_unread.set(false);
            return Ok(0);
        }
        if self.body.buffer.is_empty() {
            let step = READ_BYTES.min(usize::try_from(self.part_left).unwrap_or(READ_BYTES));
            receive(self.body.client, self.body.buffer, step, self.deadline)?;
        }
        let part = usize::try_from(self.part_left).unwrap_or(usize::MAX);
        let length = buffer.len().min(self.body.buffer.len()).min(part);
        buffer[..length].copy_from_slice(&self.body.buffer[..length]);
        self.body.buffer.drain(..length);
        self.part_left -= length as u64;
        if self.part_left == 0 && matches!(self.body.head.body, Body::Length(_)) {
            self.body.is_unread.set(false);
        }
        Ok(length)
    }
}

impl Read for BodyReader<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.read_part(buffer).map_err(|error| {
            let message = error.message.clone();
            self.error = Some(error);
            io::Error::other(message)
        })
    }
}

impl Drop for RequestBody<'_> {
    fn drop(&mut self) {
        if self.counted > 0 {
            self.body_bytes.release(self.owner, self.counted);
        }
    }
}

/// Returns the end of the first line, without its CRLF; none if it is incomplete.
///
/// # Errors
/// Refuses a line feed alone and other control characters: another parser in front may read them
/// as the end of the line (RFC 9112, section 2.2).
fn line_end(bytes: &[u8]) -> Result<Option<usize>, ApiError> {
    let end = bytes.iter().position(|byte| *byte == b'\n');
    let line = &bytes[..end.unwrap_or(bytes.len())];
    let text = line.strip_suffix(b"\r");
    let is_control = |byte: &u8| byte.is_ascii_control() && *byte != b'\t';
    if text.unwrap_or(line).iter().any(is_control) || (end.is_some() && text.is_none()) {
        return Err(bad_request("cannot read the chunked request body: invalid line"));
    }
    Ok(end.map(|end| end - 1))
}

/// Returns whether a line is a size, optionally with extensions. httparse also accepts a line
/// without a size, and white space after it.
fn is_size(line: &[u8]) -> bool {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let rest = &line[digits..];
    digits > 0 && (rest.is_empty() || rest.trim_ascii_start().starts_with(b";"))
}

/// Returns whether a trailer has the form of a header field.
fn is_field(line: &[u8]) -> bool {
    let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    let colon = line.iter().position(|byte| *byte == b':');
    colon.is_some_and(|colon| colon > 0 && line[..colon].iter().all(is_token))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_client_can_use_up_the_room_for_bodies() {
        const STEP: usize = 1 << 20;
        let bytes = BodyBytes::default();
        let fill = |owner| (0..).take_while(|_| bytes.reserve(owner, STEP)).count();
        let total = BODIES_BYTES_MAX / STEP;
        let [one, two, three] = [
            BodyOwner::Key(1),
            BodyOwner::Key(2),
            BodyOwner::Address("127.0.0.1".parse().unwrap()),
        ];
        assert_eq!(fill(one), total / 2);
        assert_eq!(fill(two), total / 4);
        assert_eq!(fill(three), total / 8);
        assert_eq!(fill(one), 0);
        bytes.release(one, total / 2 * STEP);
        assert!(fill(two) > 0);
        assert!(fill(one) > 0);
        assert!(bytes.table().values().sum::<usize>() < BODIES_BYTES_MAX);
    }

    #[test]
    fn chunk_lines_need_crlf_and_no_control_characters() {
        for (line, expected) in [
            (&b"5\r\nhello"[..], Some(1)),
            (b"5;a=\"b\xc3\"\t\r\n", Some(9)),
            (b"\r\n", Some(0)),
            (b"5", None),
            (b"5\r", None),
        ] {
            assert_eq!(line_end(line).unwrap(), expected, "{line:?}");
        }
        for line in [
            &b"5\n"[..],
            b"5;a\nb\r\n",
            b"5;\0\r\n",
            b"5;\x7f\r\n",
            b"5\r\r\n",
            b"5;\rx",
            b"5;\0",
            b"\n",
        ] {
            assert!(line_end(line).is_err(), "{line:?}");
        }
        for line in [&b"0"[..], b"1F", b"5;a", b"5 \t;a=b"] {
            assert!(is_size(line), "{line:?}");
        }
        for line in [&b""[..], b"5 ", b"5 a", b" 5", b";a", b"0x5", b"+5", b"5\t"] {
            assert!(!is_size(line), "{line:?}");
        }
        assert!(is_field(b"x-sum: 1") && is_field(b"x:"));
        for line in [&b"x"[..], b" x: 1", b": 1", b"x : 1", b"x y: 1"] {
            assert!(!is_field(line), "{line:?}");
        }
    }
}
