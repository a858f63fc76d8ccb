//! Requests that are not passed on to the HTTP server behind, but answered by a [`RequestHandler`] on the
//! client's own connection: whole, or piece by piece, each of which leaves at once.

use std::io::{self, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use socket2::SockRef;

use super::auth::Denied;
use super::request_head::{Body, RequestHead};
use super::{Next, read_some, relay};

/// How long a body may take: the largest over a slow line.
const BODY_TIME_MAX: Duration = Duration::from_secs(120);
/// How much room a body is given at first, whatever the client says of its length.
const BODY_BYTES_FIRST: usize = 64 << 10;
/// How much of a body is read at a time.
const READ_BYTES: usize = 64 << 10;
/// How many bytes the larger bodies of all connections may have together.
const BODIES_BYTES_MAX: usize = 512 << 20;
/// Bodies up to this do not count: 1,024 connections of them are not much.
const SMALL_BODY_BYTES: usize = 128 << 10;

/// Answers requests itself, in the thread of their connection.
pub trait RequestHandler: Send + Sync {
    /// Whether a request is for it. Nothing but `Host` and `Origin` was checked.
    fn takes(&self, head: &RequestHead) -> bool;
    /// The largest body of a request, bytes.
    fn body_bytes_max(&self) -> u64;
    /// Looks at a request before its body is read: whether whoever sent it may come in.
    ///
    /// # Errors
    /// Why not.
    fn admit(&self, head: &RequestHead) -> Result<(), Denied>;
    /// Answers a request.
    fn answer(&self, head: &RequestHead, body: Vec<u8>, reply: &mut ResponseWriter<'_>);
    /// The body of the answer to a request that was turned away, in JSON.
    fn refusal(&self, head: &RequestHead, denied: &Denied) -> Vec<u8>;
}

/// How far an answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Nothing,
    SseFramer,
    Complete,
    /// The client has left, or takes nothing.
    Broken,
}

/// Tells, in any thread, whether a client is still there.
#[derive(Clone, Debug)]
pub struct Presence(Arc<TcpStream>);

impl Presence {
    /// Whether it has closed its connection. Of one that has only said that it will send no more the
    /// same is taken: the two are not to be told apart, and clients of HTTP that close one half while they
    /// wait are rare. Of one that has sent more, as another request, it is not seen.
    pub fn has_left(&self) -> bool {
        let mut byte = [std::mem::MaybeUninit::uninit()];
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        match SockRef::from(&*self.0).recv_with_flags(&mut byte, flags) {
            Ok(count) => count == 0,
            Err(error) => !matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
            ),
        }
    }
}

/// The answer to one request.
pub struct ResponseWriter<'a> {
    stream: &'a Arc<TcpStream>,
    /// Of HTTP; 0 knows no chunks.
    version: u8,
    keep_alive: bool,
    without_body: bool,
    /// That of a page of another server that may read the answer.
    origin: Option<&'a str>,
    state: State,
    status: Option<u16>,
}

impl ResponseWriter<'_> {
    /// Answers with all at once. Gives whether it was sent.
    pub fn whole(&mut self, status: u16, fields: &[(&str, &str)], body: &[u8]) -> bool {
        let mut bytes = self.head(status, fields);
        bytes.extend_from_slice(format!("content-length: {}\r\n\r\n", body.len()).as_bytes());
        if !self.without_body {
            bytes.extend_from_slice(body);
        }
        self.write(&bytes, State::Complete)
    }

    /// Begins an answer in pieces. Gives whether it was sent.
    pub fn begin(&mut self, status: u16, fields: &[(&str, &str)]) -> bool {
        // Without chunks, the end of the connection is the end of the answer.
        self.keep_alive &= self.version > 0;
        let mut bytes = self.head(status, fields);
        bytes.extend_from_slice(match self.version {
            0 => b"\r\n".as_slice(),
            _ => b"transfer-encoding: chunked\r\n\r\n".as_slice(),
        });
        self.write(&bytes, State::SseFramer)
    }

    /// The next piece. Gives whether it was sent.
    pub fn piece(&mut self, bytes: &[u8]) -> bool {
        if self.state != State::SseFramer || self.without_body {
            return self.state != State::Broken;
        }
        if bytes.is_empty() {
            return true;
        }
        if self.version == 0 {
            return self.write(bytes, State::SseFramer);
        }
        let mut chunk = format!("{:x}\r\n", bytes.len()).into_bytes();
        chunk.extend_from_slice(bytes);
        chunk.extend_from_slice(b"\r\n");
        self.write(&chunk, State::SseFramer)
    }

    /// That was the last piece.
    pub fn end(&mut self) {
        if self.state != State::SseFramer {
            return;
        }
        if self.version > 0 && !self.without_body {
            self.write(b"0\r\n\r\n", State::Complete);
        } else {
            self.state = State::Complete;
        }
    }

    /// What tells other threads whether the client is still there.
    pub fn presence(&self) -> Presence {
        Presence(Arc::clone(self.stream))
    }

    /// The status that was answered with.
    pub fn status(&self) -> Option<u16> {
        self.status
    }

    /// Whether nothing was answered yet.
    pub fn is_open(&self) -> bool {
        self.state == State::Nothing
    }

    fn head(&mut self, status: u16, fields: &[(&str, &str)]) -> Vec<u8> {
        self.status = Some(status);
        let mut head = format!("HTTP/1.1 {status} {}\r\n", relay::reason(status));
        let common = [
            ("server", "flowledger"),
            ("x-content-type-options", "nosniff"),
            ("cache-control", "no-store"),
        ];
        for (name, value) in common.iter().chain(fields) {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if let Some(origin) = self.origin {
            head.push_str(&format!(
                "access-control-allow-origin: {origin}\r\nvary: origin\r\n"
            ));
        }
        if !self.keep_alive {
            head.push_str("connection: close\r\n");
        }
        head.into_bytes()
    }

    fn write(&mut self, bytes: &[u8], then: State) -> bool {
        if self.state == State::Broken {
            return false;
        }
        let written = (&mut &**self.stream).write_all(bytes).is_ok();
        self.state = if written { then } else { State::Broken };
        written
    }
}

/// Reads a request's body and has it answered. Not inlined, because a thread that becomes the reader
/// of a WebSocket would carry its stack for days.
#[inline(never)]
pub(super) fn request(
    direct: &dyn RequestHandler,
    bodies: &Bodies,
    client: &Arc<TcpStream>,
    buffer: &mut Vec<u8>,
    head: &RequestHead,
    origin: Option<&str>,
) -> Next {
    let mut reply = ResponseWriter {
        stream: client,
        version: head.version,
        keep_alive: head.keeps_alive(),
        without_body: head.method == "HEAD",
        origin,
        state: State::Nothing,
        status: None,
    };
    // Held until the answer is over, for the body is.
    let mut room = Room { bodies, bytes: 0 };
    let body = direct
        .admit(head)
        .map_err(Next::Refuse)
        .and_then(|()| read_body(direct, client, buffer, head, &mut room));
    match body {
        Ok(body) => direct.answer(head, body, &mut reply),
        Err(Next::Refuse(denied)) => {
            // What is left of the body would be taken for the next request.
            let body_was_read = head.body == Body::Length(0);
            reply.keep_alive &= body_was_read;
            let mut fields = vec![("content-type", "application/json")];
            match denied.status {
                401 => fields.push(("www-authenticate", "Bearer")),
                429 | 503 => fields.push(("retry-after", "1")),
                _ => {}
            }
            let body = direct.refusal(head, &denied);
            if reply.whole(denied.status, &fields, &body) && !reply.keep_alive {
                relay::linger(client);
            }
        }
        Err(next) => return next,
    }
    if reply.state == State::Complete && reply.keep_alive {
        Next::KeepAlive
    } else {
        Next::Close
    }
}

fn read_body(
    direct: &dyn RequestHandler,
    client: &TcpStream,
    buffer: &mut Vec<u8>,
    head: &RequestHead,
    room: &mut Room<'_>,
) -> Result<Vec<u8>, Next> {
    let bytes_max = direct.body_bytes_max();
    if matches!(head.body, Body::Length(length) if length > bytes_max) {
        return Err(relay::too_large(bytes_max));
    }
    relay::let_continue(client, head)?;
    let deadline = Instant::now() + BODY_TIME_MAX;
    let length = match head.body {
        Body::Length(length) => usize::try_from(length).unwrap_or(usize::MAX),
        // How much will come is not known.
        Body::Chunked => {
            let mut grows = |bytes| room.hold(bytes);
            return relay::read_chunks(client, buffer, deadline, bytes_max, &mut grows);
        }
    };
    room.hold(length)?;
    let rest = buffer.split_off(buffer.len().min(length));
    let mut body = std::mem::replace(buffer, rest);
    body.reserve_exact(length.min(BODY_BYTES_FIRST).saturating_sub(body.len()));
    while body.len() < length {
        let wanted = (length - body.len()).min(READ_BYTES);
        match read_some(client, &mut body, wanted, deadline) {
            Ok(count) if count > 0 => {}
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                return Err(super::refuse(
                    408,
                    "timeout",
                    "the request's body took too long",
                ));
            }
            _ => return Err(Next::Close),
        }
    }
    Ok(body)
}

/// How many bytes the larger bodies have that are held at the moment.
#[derive(Debug, Default)]
pub(super) struct Bodies(AtomicUsize);

/// The room that a larger body takes, of all that there is for them.
struct Room<'a> {
    bodies: &'a Bodies,
    bytes: usize,
}

impl Room<'_> {
    /// The body has so many bytes by now.
    fn hold(&mut self, bytes: usize) -> Result<(), Next> {
        if bytes <= SMALL_BODY_BYTES {
            return Ok(());
        }
        let more = bytes.saturating_sub(self.bytes);
        let taken = self.bodies.0.fetch_add(more, Ordering::SeqCst);
        self.bytes += more;
        if taken.saturating_add(more) > BODIES_BYTES_MAX {
            let message = "too many large requests at a time; try again in a second";
            return Err(super::refuse(503, "busy", message));
        }
        Ok(())
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        self.bodies.0.fetch_sub(self.bytes, Ordering::SeqCst);
    }
}
