//! Writes the response to a request: whole, as a printed HTTP/1.1 message, or in pieces that are
//! sent at once.

use std::cell::Cell;
use std::io::{self, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use socket2::SockRef;

use super::api_error::ApiError;
use super::request_head::RequestHead;

/// Size of the buffer for a printed response, in bytes.
const PRINT_BYTES: usize = 64 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Nothing,
    Streaming,
    Complete,
    /// The client has left or reads nothing, or the body differs from its declared length.
    Broken,
}

/// Lets any thread check that a client is still connected.
#[derive(Clone, Debug)]
pub struct Presence {
    client: Arc<TcpStream>,
    is_stopping: Arc<AtomicBool>,
}

impl Presence {
    /// Returns true if the client has closed its connection. A half-closed connection counts as
    /// closed: the two look the same, and HTTP clients rarely half-close while they wait. A client
    /// that has sent more, such as another request, does not.
    pub fn is_disconnected(&self) -> bool {
        let mut byte = [std::mem::MaybeUninit::uninit()];
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        let is_over = match SockRef::from(&*self.client).recv_with_flags(&mut byte, flags) {
            Ok(count) => count == 0,
            Err(error) => {
                !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
            }
        };
        // During a shutdown, the server itself ends reading.
        is_over && !self.is_server_stopping()
    }

    pub fn is_server_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::SeqCst)
    }
}

pub struct ResponseWriter<'a> {
    client: &'a Arc<TcpStream>,
    is_stopping: &'a Arc<AtomicBool>,
    /// The client's minor version of HTTP/1; 0 does not support chunks.
    version: u8,
    keep_alive: bool,
    /// Prevents reuse of the connection: an unread body would be parsed as the next request.
    body_is_unread: &'a Cell<bool>,
    without_body: bool,
    /// The origin of another server's page that may read the response.
    origin: Option<&'a str>,
    state: State,
    status: Option<u16>,
    copy: Option<Box<ResponseCopy>>,
}

/// The beginning of a response's body, as it was sent.
#[derive(Clone, Debug, Default)]
pub struct ResponseCopy {
    bytes_max: usize,
    pub content_type: Option<String>,
    pub bytes: Vec<u8>,
    /// The length of the whole body.
    pub length: u64,
}

impl ResponseCopy {
    fn push(&mut self, bytes: &[u8]) {
        let room = self.bytes_max - self.bytes.len();
        self.bytes.extend_from_slice(&bytes[..bytes.len().min(room)]);
        self.length += bytes.len() as u64;
    }
}

impl<'a> ResponseWriter<'a> {
    pub(super) fn new(
        client: &'a Arc<TcpStream>,
        is_stopping: &'a Arc<AtomicBool>,
        body_is_unread: &'a Cell<bool>,
    ) -> Self {
        Self {
            client,
            is_stopping,
            version: 1,
            keep_alive: false,
            body_is_unread,
            without_body: false,
            origin: None,
            state: State::Nothing,
            status: None,
            copy: None,
        }
    }

    /// Sets the request that this response answers.
    pub(super) fn to(self, head: &RequestHead, keep_alive: bool, origin: Option<&'a str>) -> Self {
        Self {
            version: head.version,
            keep_alive,
            without_body: head.method == "HEAD",
            origin,
            ..self
        }
    }

    /// Copies the first bytes of the response's body from now on.
    pub fn copy_up_to(&mut self, bytes_max: usize) {
        self.copy = Some(Box::new(ResponseCopy { bytes_max, ..ResponseCopy::default() }));
    }

    pub fn take_copy(&mut self) -> Option<ResponseCopy> {
        self.copy.take().map(|copy| *copy)
    }

    fn copy(&mut self, is_sent: bool, bytes: &[u8]) -> bool {
        if let Some(copy) = self.copy.as_mut().filter(|_| is_sent) {
            copy.push(bytes);
        }
        is_sent
    }

    /// Sends a whole response. Returns false if it could not be sent.
    pub fn whole(&mut self, status: u16, fields: &[(&str, &str)], body: &[u8]) -> bool {
        let mut bytes = self.head(status, fields);
        bytes.extend_from_slice(format!("content-length: {}\r\n\r\n", body.len()).as_bytes());
        if !self.without_body {
            bytes.extend_from_slice(body);
        }
        let is_sent = self.write(&bytes, State::Complete);
        self.copy(is_sent, body)
    }

    /// Sends an error; `body` is its JSON.
    pub fn refuse(&mut self, error: &ApiError, body: &[u8]) {
        let mut fields = vec![("content-type", "application/json")];
        fields.extend(error.headers.iter().map(|(name, value)| (*name, value.as_str())));
        self.whole(error.status, &fields, body);
    }

    /// Sends the output of `print`: an HTTP/1.1 head with that status and a body of `length` bytes,
    /// or only the head if the request or the status allows no body. Any other length ends the
    /// connection.
    pub fn print(
        &mut self,
        status: u16,
        length: usize,
        print: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> bool {
        self.status = Some(status);
        let has_body = !self.without_body && !matches!(status, 204 | 304);
        let mut printer = Printer {
            response: self,
            buffer: Vec::new(),
            body_bytes: if has_body { length } else { 0 },
            body_bytes_left: None,
        };
        let printed = print(&mut printer).and_then(|()| printer.flush());
        let is_whole = printed.is_ok() && printer.body_bytes_left == Some(0);
        self.state = if is_whole { State::Complete } else { State::Broken };
        is_whole
    }

    /// Starts a response in pieces. Returns false if its head could not be sent.
    pub fn begin(&mut self, status: u16, fields: &[(&str, &str)]) -> bool {
        // Without chunks, closing the connection marks the end of the response.
        self.keep_alive &= self.version > 0;
        let mut bytes = self.head(status, fields);
        // nginx would hold the pieces back until the end:
        // <https://nginx.org/en/docs/http/ngx_http_proxy_module.html#proxy_buffering>.
        bytes.extend_from_slice(b"x-accel-buffering: no\r\n");
        bytes.extend_from_slice(match self.version {
            0 => b"\r\n".as_slice(),
            _ => b"transfer-encoding: chunked\r\n\r\n".as_slice(),
        });
        self.write(&bytes, State::Streaming)
    }

    /// Returns the head of a response whose end is the end of the connection. The caller sends it
    /// and the body.
    pub(super) fn head_until_close(&mut self, fields: &[(&str, &str)]) -> Vec<u8> {
        self.keep_alive = false;
        let mut bytes = self.head(200, fields);
        bytes.extend_from_slice(b"\r\n");
        bytes
    }

    /// Sends the next piece. Returns false if it could not be sent.
    pub fn piece(&mut self, bytes: &[u8]) -> bool {
        if self.state != State::Streaming || self.without_body {
            return self.state != State::Broken;
        }
        if bytes.is_empty() {
            return true;
        }
        if self.version == 0 {
            let is_sent = self.write(bytes, State::Streaming);
            return self.copy(is_sent, bytes);
        }
        let mut chunk = format!("{:x}\r\n", bytes.len()).into_bytes();
        chunk.extend_from_slice(bytes);
        chunk.extend_from_slice(b"\r\n");
        let is_sent = self.write(&chunk, State::Streaming);
        self.copy(is_sent, bytes)
    }

    /// Ends a response in pieces. Without this call the client sees a truncated response.
    pub fn end(&mut self) {
        if self.state != State::Streaming {
            return;
        }
        if self.version > 0 && !self.without_body {
            self.write(b"0\r\n\r\n", State::Complete);
        } else {
            self.state = State::Complete;
        }
    }

    /// Returns a handle for other threads to check that the client is still connected.
    pub fn presence(&self) -> Presence {
        Presence { client: Arc::clone(self.client), is_stopping: Arc::clone(self.is_stopping) }
    }

    pub fn status(&self) -> Option<u16> {
        self.status
    }

    pub fn is_open(&self) -> bool {
        self.state == State::Nothing
    }

    pub(super) fn is_complete(&self) -> bool {
        self.state == State::Complete
    }

    /// Returns true if another request may follow on the connection.
    pub(super) fn keeps_alive(&self) -> bool {
        self.keep_alive && !self.body_is_unread.get()
    }

    fn head(&mut self, status: u16, fields: &[(&str, &str)]) -> Vec<u8> {
        self.status = Some(status);
        if let Some(copy) = &mut self.copy {
            let content_type = fields.iter().find(|(name, _)| *name == "content-type");
            copy.content_type = content_type.map(|(_, value)| (*value).to_owned());
        }
        let mut head = format!("HTTP/1.1 {status} {}\r\n", reason(status));
        let common = [
            ("server", "flowledger"),
            ("x-content-type-options", "nosniff"),
            ("cache-control", "no-store"),
        ];
        for (name, value) in common.iter().chain(fields) {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        let mut head = head.into_bytes();
        self.add_connection_fields(&mut head);
        head
    }

    /// Adds the headers that depend on the connection: the allowed origin, the offered upgrade, and
    /// the end of the connection.
    fn add_connection_fields(&self, head: &mut Vec<u8>) {
        const ORIGIN: &str = "access-control-allow-origin";
        if let Some(origin) = self.origin
            // A browser refuses a response with two of this header.
            && find(head, ORIGIN.as_bytes()).is_none()
        {
            head.extend_from_slice(format!("{ORIGIN}: {origin}\r\nvary: origin\r\n").as_bytes());
        }
        if self.status == Some(426) {
            head.extend_from_slice(b"upgrade: websocket\r\n");
        }
        if !self.keeps_alive() {
            head.extend_from_slice(b"connection: close\r\n");
        }
    }

    fn write(&mut self, bytes: &[u8], then: State) -> bool {
        if self.state == State::Broken {
            return false;
        }
        let written = (&mut &**self.client).write_all(bytes).is_ok();
        self.state = if written { then } else { State::Broken };
        written
    }
}

/// Takes a printed response, completes its head, and counts its body.
struct Printer<'a, 'b> {
    response: &'a mut ResponseWriter<'b>,
    buffer: Vec<u8>,
    body_bytes: usize,
    /// Remaining bytes of the body; none until the head is complete.
    body_bytes_left: Option<usize>,
}

impl Printer<'_, '_> {
    /// Searches for the end of the head from `searched` on, and completes the head there. Returns
    /// the number of body bytes after it.
    fn complete_head(&mut self, searched: usize) -> Option<usize> {
        let end = searched + find(&self.buffer[searched..], b"\r\n\r\n")?;
        let body = self.buffer.split_off(end + 4);
        self.buffer.truncate(end + 2);
        self.response.add_connection_fields(&mut self.buffer);
        self.buffer.extend_from_slice(b"\r\n");
        self.buffer.extend_from_slice(&body);
        self.body_bytes_left = Some(self.body_bytes);
        Some(body.len())
    }
}

impl Write for Printer<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let before = self.buffer.len();
        self.buffer.extend_from_slice(bytes);
        let of_body = match self.body_bytes_left {
            Some(_) => Some(bytes.len()),
            None => self.complete_head(before.saturating_sub(3)),
        };
        if let (Some(count), Some(left)) = (of_body, self.body_bytes_left) {
            let too_long =
                || io::Error::other("the response body is longer than its content-length");
            self.body_bytes_left = Some(left.checked_sub(count).ok_or_else(too_long)?);
        }
        if self.buffer.len() >= PRINT_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let sent = (&mut &**self.response.client).write_all(&self.buffer);
        self.buffer.clear();
        sent
    }
}

fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).position(|window| window == part)
}

fn reason(status: u16) -> &'static str {
    let status = ::http::StatusCode::from_u16(status).ok();
    let reason = status.and_then(|status| status.canonical_reason());
    reason.unwrap_or("Error")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::TcpListener;

    /// Returns the client's view of a printed response of three bytes, and true if it was whole.
    fn printed(
        change: impl for<'a> FnOnce(ResponseWriter<'a>) -> ResponseWriter<'a>,
        pieces: &[&str],
    ) -> (String, bool) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let server = Arc::new(listener.accept().unwrap().0);
        let (is_stopping, is_unread) = (Arc::default(), Cell::new(false));
        let mut writer = change(ResponseWriter::new(&server, &is_stopping, &is_unread));
        let is_whole = writer.print(200, 3, |out| {
            out.write_all(b"HTTP/1.1 200 OK\r\nx: y\r\n\r")?;
            pieces.iter().try_for_each(|piece| out.write_all(piece.as_bytes()))
        });
        assert_eq!(writer.is_complete(), is_whole);
        drop(server);
        let mut got = String::new();
        client.read_to_string(&mut got).unwrap();
        (got, is_whole)
    }

    fn closing(writer: ResponseWriter<'_>) -> ResponseWriter<'_> {
        writer
    }

    fn kept_alive(writer: ResponseWriter<'_>) -> ResponseWriter<'_> {
        ResponseWriter { keep_alive: true, ..writer }
    }

    fn for_origin(writer: ResponseWriter<'_>) -> ResponseWriter<'_> {
        ResponseWriter { origin: Some("https://a.example"), ..kept_alive(writer) }
    }

    fn head_only(writer: ResponseWriter<'_>) -> ResponseWriter<'_> {
        ResponseWriter { without_body: true, ..kept_alive(writer) }
    }

    #[test]
    fn a_prepared_response_gets_its_connection_headers() {
        let head = "HTTP/1.1 200 OK\r\nx: y\r\n";
        let (got, is_whole) = printed(kept_alive, &["\n", "a", "bc"]);
        assert_eq!((got, is_whole), (format!("{head}\r\nabc"), true));
        let (got, is_whole) = printed(closing, &["\nab", "c"]);
        let closes = format!("{head}connection: close\r\n\r\nabc");
        assert_eq!((got, is_whole), (closes, true));
        let (got, _) = printed(for_origin, &["\nabc"]);
        let allowed = "access-control-allow-origin: https://a.example\r\nvary: origin\r\n";
        assert_eq!(got, format!("{head}{allowed}\r\nabc"));
    }

    #[test]
    fn a_body_length_mismatch_ends_the_connection() {
        assert!(!printed(kept_alive, &["\n", "ab"]).1);
        assert!(!printed(kept_alive, &["\n", "abc", "d"]).1);
        assert!(!printed(kept_alive, &["\nabcd"]).1);
        assert!(!printed(kept_alive, &[]).1);
        assert!(printed(head_only, &["\n"]).1);
        assert!(!printed(head_only, &["\nabc"]).1);
    }
}
