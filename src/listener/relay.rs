//! Passing a request on to the HTTP server behind the listener, and its answer back.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use super::auth::Denied;
use super::request_head::{Body, RequestHead};
use super::{Next, READ_BYTES, read_some, refuse};
use crate::websocket;

/// The largest body of a request.
pub const BODY_BYTES_MAX: u64 = 4 << 20;
/// How long a body may take.
const BODY_TIME_MAX: Duration = Duration::from_secs(30);
/// How long the server behind may take a part of a request; it reads as it comes.
const BACKEND_WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// The largest head of an answer; the server behind is ours, and its heads are small.
const ANSWER_HEAD_BYTES_MAX: usize = 64 << 10;
/// How many header fields an answer may have.
const ANSWER_FIELDS_MAX: usize = 64;
/// How much of an answer is passed on at a time.
const ANSWER_CHUNK_BYTES: usize = 16 << 10;
/// After a refusal, what the client still sends is dropped for this long, so that the system does
/// not answer it with a reset that overtakes the refusal.
const LINGER_TIME: Duration = Duration::from_millis(500);

/// Fields that concern one connection, not the request (RFC 9110, section 7.6.1), and those that
/// the listener has dealt with.
const NOT_PASSED_ON: &[&str] = &[
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "content-length",
    "upgrade",
    "expect",
];

/// Passes one request on and its answer back. Not inlined, because a thread that becomes the reader
/// of a WebSocket would carry its stack for days.
#[inline(never)]
pub(super) fn request(
    backend: &Path,
    client: &TcpStream,
    buffer: &mut Vec<u8>,
    head: &RequestHead,
) -> Next {
    if matches!(head.body, Body::Length(length) if length > BODY_BYTES_MAX) {
        return too_large(BODY_BYTES_MAX);
    }
    if let Err(next) = let_continue(client, head) {
        return next;
    }
    let deadline = Instant::now() + BODY_TIME_MAX;
    // Chunks are put together here: the server behind sees a length, always.
    let whole = match head.body {
        Body::Length(_) => None,
        Body::Chunked => {
            match read_chunks(client, buffer, deadline, BODY_BYTES_MAX, &mut |_| Ok(())) {
                Ok(body) => Some(body),
                Err(refusal) => return refusal,
            }
        }
    };
    let mut backend = match connect(backend) {
        Ok(backend) => backend,
        Err(error) => {
            log::error!("the HTTP server behind the gate cannot be reached: {error}");
            return refuse(503, "busy", "the server is busy; try again in a second");
        }
    };
    let length = match (&whole, head.body) {
        (Some(body), _) => body.len() as u64,
        (None, Body::Length(length)) => length,
        (None, Body::Chunked) => 0,
    };
    // An answer may come before the body was taken (and the body then be refused): so an error
    // while writing is no reason not to look for it.
    let mut sent = backend.write_all(&request_head(head, length));
    if let (Ok(()), Some(body)) = (&sent, &whole) {
        sent = backend.write_all(body);
    } else if sent.is_ok() {
        match copy_body(client, buffer, &mut backend, length, deadline) {
            Ok(()) => {}
            Err(Copy::Client(error)) => {
                let timed_out = error.kind() == io::ErrorKind::TimedOut;
                return if timed_out {
                    refuse(408, "timeout", "the request's body took too long")
                } else {
                    Next::Close
                };
            }
            Err(Copy::Backend(error)) => sent = Err(error),
        }
    }
    match answer(&mut backend, client, head.method == "HEAD") {
        Ok(true) if sent.is_ok() && head.keeps_alive() => Next::KeepAlive,
        Ok(_) => Next::Close,
        Err(Copy::Client(_)) => Next::Close,
        Err(Copy::Backend(error)) => {
            log::error!("no answer from the HTTP server behind the gate: {error}");
            refuse(500, "internal", "the server failed to answer")
        }
    }
}

/// Asks for the body where the client waits to be asked.
pub(super) fn let_continue(mut client: &TcpStream, head: &RequestHead) -> Result<(), Next> {
    let is_asked = head.has_token("expect", "100-continue") && head.body != Body::Length(0);
    if is_asked && client.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").is_err() {
        return Err(Next::Close);
    }
    Ok(())
}

fn connect(backend: &Path) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(backend)?;
    stream.set_write_timeout(Some(BACKEND_WRITE_TIMEOUT))?;
    Ok(stream)
}

/// Which side a copy failed on.
enum Copy {
    Client(io::Error),
    Backend(io::Error),
}

fn request_head(head: &RequestHead, length: u64) -> Vec<u8> {
    let mut text = format!(
        "{} {} HTTP/1.{}\r\n",
        head.method, head.target, head.version
    );
    for (name, value) in &head.headers {
        if !NOT_PASSED_ON.contains(&name.as_str()) {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
    }
    text.push_str(&format!(
        "content-length: {length}\r\nconnection: close\r\n\r\n"
    ));
    text.into_bytes()
}

/// Passes `length` bytes on, first those that were read already.
fn copy_body(
    client: &TcpStream,
    buffer: &mut Vec<u8>,
    backend: &mut UnixStream,
    mut length: u64,
    deadline: Instant,
) -> Result<(), Copy> {
    while length > 0 {
        if buffer.is_empty()
            && read_some(client, buffer, READ_BYTES, deadline).map_err(Copy::Client)? == 0
        {
            return Err(Copy::Client(io::ErrorKind::UnexpectedEof.into()));
        }
        let count = buffer
            .len()
            .min(usize::try_from(length).unwrap_or(usize::MAX));
        backend.write_all(&buffer[..count]).map_err(Copy::Backend)?;
        buffer.drain(..count);
        length -= count as u64;
    }
    Ok(())
}

/// Reads a chunked body of up to `bytes_max` bytes (RFC 9112, section 7.1). Before each chunk, `grows`
/// is told how many bytes there will be with it.
pub(super) fn read_chunks(
    client: &TcpStream,
    buffer: &mut Vec<u8>,
    deadline: Instant,
    bytes_max: u64,
    grows: &mut dyn FnMut(usize) -> Result<(), Next>,
) -> Result<Vec<u8>, Next> {
    let mut body = Vec::new();
    loop {
        let (size, line) = loop {
            match httparse::parse_chunk_size(buffer) {
                // httparse takes a line without a size for a size of 0.
                Ok(_) if !buffer.first().is_none_or(u8::is_ascii_hexdigit) => {
                    return Err(bad_chunks());
                }
                Ok(httparse::Status::Complete((line, size))) => break (size, line),
                Ok(httparse::Status::Partial) if buffer.len() < 1024 => {
                    more(client, buffer, deadline)?
                }
                _ => return Err(bad_chunks()),
            }
        };
        // No sum: a size may be as large as a number can be.
        if size > bytes_max - body.len() as u64 {
            return Err(too_large(bytes_max));
        }
        buffer.drain(..line);
        // At most the limit, which fits.
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        if size == 0 {
            return skip_trailers(client, buffer, deadline).map(|()| body);
        }
        grows(body.len() + size)?;
        while buffer.len() < size + 2 {
            more(client, buffer, deadline)?;
        }
        if &buffer[size..size + 2] != b"\r\n" {
            return Err(refuse(
                400,
                "bad_request",
                "a chunk does not end where it says",
            ));
        }
        body.extend_from_slice(&buffer[..size]);
        buffer.drain(..size + 2);
    }
}

fn bad_chunks() -> Next {
    refuse(400, "bad_request", "the chunks of the body cannot be read")
}

/// Trailers mean nothing to any route.
fn skip_trailers(client: &TcpStream, buffer: &mut Vec<u8>, deadline: Instant) -> Result<(), Next> {
    let mut skipped = 0;
    loop {
        let Some(end) = buffer.windows(2).position(|pair| pair == b"\r\n") else {
            if skipped + buffer.len() > super::request_head::HEAD_BYTES_MAX {
                return Err(refuse(431, "head_too_large", "the trailers are too long"));
            }
            more(client, buffer, deadline)?;
            continue;
        };
        buffer.drain(..end + 2);
        skipped += end + 2;
        if end == 0 {
            return Ok(());
        }
    }
}

fn more(client: &TcpStream, buffer: &mut Vec<u8>, deadline: Instant) -> Result<(), Next> {
    match read_some(client, buffer, READ_BYTES, deadline) {
        Ok(count) if count > 0 => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::TimedOut => {
            Err(refuse(408, "timeout", "the request's body took too long"))
        }
        _ => Err(Next::Close),
    }
}

/// Passes the answer back. Gives whether it was whole, so that another may follow it.
fn answer(backend: &mut UnixStream, mut client: &TcpStream, head_only: bool) -> Result<bool, Copy> {
    let mut bytes = Vec::new();
    let mut chunk = vec![0; ANSWER_CHUNK_BYTES];
    let (mut end, head_length) = loop {
        let count = backend.read(&mut chunk).map_err(Copy::Backend)?;
        if count == 0 || bytes.len() > ANSWER_HEAD_BYTES_MAX {
            return Err(Copy::Backend(io::ErrorKind::UnexpectedEof.into()));
        }
        bytes.extend_from_slice(&chunk[..count]);
        if let Some(found) = find_end(&bytes, head_only).map_err(Copy::Backend)? {
            break found;
        }
    };
    end.count(&bytes[head_length..]);
    client.write_all(&bytes).map_err(Copy::Client)?;
    loop {
        let count = backend.read(&mut chunk).map_err(Copy::Backend)?;
        if count == 0 {
            return Ok(end.is_reached());
        }
        end.count(&chunk[..count]);
        client.write_all(&chunk[..count]).map_err(Copy::Client)?;
    }
}

/// Where an answer should end.
enum End {
    AfterBytes(u64),
    AfterLastChunk { tail: Vec<u8> },
    Unknown,
}

const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

impl End {
    fn count(&mut self, bytes: &[u8]) {
        match self {
            Self::AfterBytes(left) => *left = left.wrapping_sub(bytes.len() as u64),
            Self::AfterLastChunk { tail } => {
                tail.extend_from_slice(bytes);
                tail.drain(..tail.len().saturating_sub(LAST_CHUNK.len()));
            }
            Self::Unknown => {}
        }
    }

    fn is_reached(&self) -> bool {
        match self {
            Self::AfterBytes(left) => *left == 0,
            Self::AfterLastChunk { tail } => tail == LAST_CHUNK,
            Self::Unknown => false,
        }
    }
}

fn find_end(bytes: &[u8], head_only: bool) -> io::Result<Option<(End, usize)>> {
    let mut fields = vec![httparse::EMPTY_HEADER; ANSWER_FIELDS_MAX];
    let mut response = httparse::Response::new(&mut fields);
    let parsed = response.parse(bytes).map_err(io::Error::other)?;
    let httparse::Status::Complete(head_length) = parsed else {
        return Ok(None);
    };
    let field = |name: &str| {
        let found = response
            .headers
            .iter()
            .find(|field| field.name.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(found.value).ok()
    };
    let has_no_body = head_only || matches!(response.code, Some(204 | 304));
    let end = match (
        has_no_body,
        field("content-length"),
        field("transfer-encoding"),
    ) {
        (true, _, _) => End::AfterBytes(0),
        (_, Some(length), _) => length.parse().map_or(End::Unknown, End::AfterBytes),
        (_, None, Some(_)) => End::AfterLastChunk { tail: Vec::new() },
        (_, None, None) => End::Unknown,
    };
    Ok(Some((end, head_length)))
}

pub(super) fn too_large(bytes_max: u64) -> Next {
    refuse(
        413,
        "body_too_large",
        &format!("a request's body may have {bytes_max} bytes"),
    )
}

/// How the API says why a request is turned away.
pub(super) fn error_body(denied: &Denied) -> Vec<u8> {
    serde_json::json!({"error": {"code": denied.code, "message": denied.message}})
        .to_string()
        .into_bytes()
}

/// An answer of the listener's own; the connection ends with it. Pages of `origin` may read it.
pub(super) fn error_response(denied: &Denied, body: &[u8], origin: Option<&str>) -> Vec<u8> {
    let mut extra = match denied.status {
        401 => "www-authenticate: Bearer\r\n",
        426 => "upgrade: websocket\r\n",
        429 | 503 => "retry-after: 1\r\n",
        _ => "",
    }
    .to_owned();
    if let Some(origin) = origin {
        extra.push_str(&format!(
            "access-control-allow-origin: {origin}\r\nvary: origin\r\n"
        ));
    }
    let head = format!(
        "HTTP/1.1 {} {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n{extra}connection: close\r\n\r\n",
        denied.status,
        reason(denied.status),
        body.len()
    );
    [head.as_bytes(), body].concat()
}

pub(super) fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        401 => "Unauthorized",
        402 => "Payment Required",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        413 => "Content Too Large",
        421 => "Misdirected Request",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        499 => "Client Closed Request",
        500 => "Internal Server Error",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "Error",
    }
}

/// Says that nothing more follows, and waits a little for the client to take it.
pub(super) fn linger(stream: &TcpStream) {
    let _ = stream.shutdown(Shutdown::Write);
    websocket::drain(stream, LINGER_TIME);
}
