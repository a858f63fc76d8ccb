//! The WebSocket protocol (RFC 6455), frame by frame: groups 1 to 7, 9 and 10 of Autobahn's test
//! suite with handmade frames, against the echo of `examples/echo.rs` in this process. `make
//! conformance` runs the suite itself.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use flowledger::listener::Listener;

use crate::harness::DEADLINE;

#[allow(dead_code)]
#[path = "../examples/echo.rs"]
mod echo;

const CONTINUATION: u8 = 0x0;
const TEXT: u8 = 0x1;
const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xa;
const FIN: u8 = 0x80;
const MASK: [u8; 4] = [0x3a, 0x91, 0x0f, 0xe4];

struct Server {
    listener: Option<Listener>,
    address: SocketAddr,
}

impl Server {
    fn start() -> Self {
        let listener = echo::start(TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
        let address = listener.address();
        let listener = Some(listener);
        Self { listener, address }
    }

    fn connect(&self) -> Peer {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        stream.set_nodelay(true).unwrap();
        let head = format!(
            "GET /ws HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            self.address
        );
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            answer.push(byte[0]);
        }
        let answer = String::from_utf8(answer).unwrap().to_ascii_lowercase();
        assert!(answer.starts_with("http/1.1 101 "), "{answer}");
        let key = "sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=\r\n";
        assert!(answer.contains(key), "{answer}");
        Peer { stream }
    }

    /// Sends frames on a new connection and expects a close with this code.
    fn fails(&self, what: &str, frames: &[u8], code: u16) {
        let mut peer = self.connect();
        peer.send(frames);
        let (answers, close) = peer.read_to_end();
        assert_eq!(close, Some(code), "{what}: {answers:x?}");
    }

    /// Sends frames on a new connection and expects one message back.
    fn echoes(&self, what: &str, frames: &[u8], opcode: u8, payload: &[u8]) {
        let mut peer = self.connect();
        peer.send(frames);
        peer.expect(what, opcode, payload);
        peer.says_goodbye();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(listener) = self.listener.take() {
            listener.stop_accepting();
            listener.join(Instant::now() + Duration::from_secs(1));
        }
    }
}

struct Peer {
    stream: TcpStream,
}

/// A frame of the server: the first byte, with FIN and reserved bits, and the payload.
type Frame = (u8, Vec<u8>);

impl Peer {
    fn send(&mut self, bytes: &[u8]) {
        // The server may fail the connection before it has read everything.
        let _ = self.stream.write_all(bytes);
    }

    fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 2];
        self.stream.read_exact(&mut head).ok()?;
        assert_eq!(head[1] & 0x80, 0, "a server's frames have no mask");
        let length = match head[1] {
            126 => {
                let mut long = [0; 2];
                self.stream.read_exact(&mut long).unwrap();
                let length = u16::from_be_bytes(long);
                assert!(length > 125, "the shortest form of a length is to be used");
                usize::from(length)
            }
            127 => {
                let mut long = [0; 8];
                self.stream.read_exact(&mut long).unwrap();
                let length = u64::from_be_bytes(long);
                assert!(length > 0xffff, "the shortest form of a length is to be used");
                usize::try_from(length).unwrap()
            }
            length => usize::from(length),
        };
        let mut payload = vec![0; length];
        self.stream.read_exact(&mut payload).unwrap();
        Some((head[0], payload))
    }

    fn expect(&mut self, what: &str, opcode: u8, payload: &[u8]) {
        let (first, came) = self.next().unwrap_or_else(|| panic!("{what}: nothing came"));
        assert_eq!(first, FIN | opcode, "{what}: {:x?}", &came[..came.len().min(130)]);
        assert!(came == payload, "{what}: {} bytes of {}", came.len(), payload.len());
    }

    /// Returns all frames up to the end of the connection, and the close code. The close must be
    /// the last frame and is not in the list.
    fn read_to_end(&mut self) -> (Vec<Frame>, Option<u16>) {
        let mut frames = Vec::new();
        while let Some((first, payload)) = self.next() {
            if first != FIN | CLOSE {
                frames.push((first, payload));
                continue;
            }
            assert_ne!(payload.len(), 1);
            let code = payload.first_chunk().map(|code| u16::from_be_bytes(*code));
            assert!(std::str::from_utf8(payload.get(2..).unwrap_or_default()).is_ok());
            assert_eq!(self.next(), None, "nothing follows a close");
            return (frames, code);
        }
        (frames, None)
    }

    /// Closes, and expects only the answer to it.
    fn says_goodbye(mut self) {
        self.send(&close(1000, ""));
        assert_eq!(self.read_to_end(), (Vec::new(), Some(1000)));
    }
}

/// A client frame; `first` is the opcode with FIN and reserved bits.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    match payload.len() {
        length @ 0..=125 => bytes.push(0x80 | length as u8),
        length @ 126..=0xffff => {
            bytes.push(0x80 | 126);
            bytes.extend((length as u16).to_be_bytes());
        }
        length => {
            bytes.push(0x80 | 127);
            bytes.extend((length as u64).to_be_bytes());
        }
    }
    bytes.extend(MASK);
    bytes.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

/// A message in fragments of this size; `between` goes in after each but the last.
fn pieces(opcode: u8, payload: &[u8], size: usize, between: &[u8]) -> Vec<u8> {
    let count = payload.chunks(size).len();
    let mut bytes = Vec::new();
    for (number, piece) in payload.chunks(size).enumerate() {
        let is_last = number + 1 == count;
        let opcode = if number == 0 { opcode } else { CONTINUATION };
        bytes.extend(frame(opcode | if is_last { FIN } else { 0 }, piece));
        if !is_last {
            bytes.extend(between);
        }
    }
    bytes
}

fn close(code: u16, reason: &str) -> Vec<u8> {
    frame(FIN | CLOSE, &[&code.to_be_bytes(), reason.as_bytes()].concat())
}

/// Group 1: every form of a length.
#[test]
fn messages_of_every_length_encoding_are_echoed() {
    let server = Server::start();
    for length in [0, 1, 125, 126, 127, 128, 65_535, 65_536, 65_537] {
        let text = "*".repeat(length);
        let bytes: Vec<u8> = (0..length).map(|number| (number * 7) as u8).collect();
        let mut peer = server.connect();
        peer.send(&frame(FIN | TEXT, text.as_bytes()));
        peer.expect("a text", TEXT, text.as_bytes());
        peer.send(&frame(FIN | BINARY, &bytes));
        peer.expect("a binary message", BINARY, &bytes);
        // In odd pieces of the stream.
        for piece in frame(FIN | BINARY, &bytes).chunks((length / 3).max(1)) {
            peer.send(piece);
        }
        peer.expect("a chopped one", BINARY, &bytes);
        peer.says_goodbye();
    }
}

/// Group 2.
#[test]
fn a_ping_gets_a_pong_with_its_payload_and_a_pong_no_reply() {
    let server = Server::start();
    for payload in [&b""[..], b"Hello", &[0x00, 0xff, 0xfe, 0xfd, 0x55], &[0xfe; 125]] {
        server.echoes("a ping", &frame(FIN | PING, payload), PONG, payload);
    }
    let mut peer = server.connect();
    let pings: Vec<u8> = (0..10u8).flat_map(|number| frame(FIN | PING, &[number])).collect();
    peer.send(&pings);
    for number in 0..10 {
        peer.expect("a ping of ten", PONG, &[number]);
    }
    for byte in frame(FIN | PING, b"byte by byte") {
        peer.send(&[byte]);
    }
    peer.expect("a chopped ping", PONG, b"byte by byte");
    peer.send(&frame(FIN | PONG, b"unasked"));
    peer.send(&frame(FIN | PING, b"after it"));
    peer.expect("after an unsolicited pong", PONG, b"after it");
    peer.says_goodbye();
    server.fails("a ping that is too long", &frame(FIN | PING, &[0xfe; 126]), 1002);
    server.fails("a pong that is too long", &frame(FIN | PONG, &[0xfe; 126]), 1002);
}

/// Group 3.
#[test]
fn reserved_bits_fail_the_connection() {
    let server = Server::start();
    for bits in 1..8 {
        for opcode in [TEXT, BINARY, PING, CLOSE] {
            let what = format!("bits {bits} of opcode {opcode}");
            server.fails(&what, &frame(FIN | bits << 4 | opcode, b""), 1002);
        }
    }
    let mut peer = server.connect();
    peer.send(&[frame(FIN | TEXT, b"good"), frame(FIN | 0x40 | TEXT, b"bad")].concat());
    peer.expect("the good one", TEXT, b"good");
    assert_eq!(peer.read_to_end(), (Vec::new(), Some(1002)));
}

/// Group 4.
#[test]
fn reserved_opcodes_fail_the_connection() {
    let server = Server::start();
    for opcode in (3..=7).chain(11..=15) {
        for payload in [&b""[..], b"payload"] {
            let what = format!("opcode {opcode}");
            server.fails(&what, &frame(FIN | opcode, payload), 1002);
            let behind_a_text = [frame(FIN | TEXT, b"good"), frame(FIN | opcode, payload)].concat();
            server.fails(&what, &behind_a_text, 1002);
        }
    }
}

/// Cases of sections 5.1 and 5.2 of the RFC that groups 3 and 4 lack.
#[test]
fn an_unmasked_or_oversized_frame_fails_the_connection() {
    let server = Server::start();
    server.fails("no mask", &[FIN | TEXT, 1, b'x'], 1002);
    let endless = [&[FIN | BINARY, 0xff][..], &u64::MAX.to_be_bytes(), &MASK].concat();
    server.fails("2^64 - 1 bytes", &endless, 1009);
    let too_large = (echo::MESSAGE_BYTES_MAX as u64 + 1).to_be_bytes();
    let too_large = [&[FIN | BINARY, 0xff][..], &too_large, &MASK].concat();
    server.fails("over the limit", &too_large, 1009);
}

/// Group 5.
#[test]
fn fragments_are_joined_around_control_frames() {
    let server = Server::start();
    for opcode in [TEXT, BINARY] {
        for size in [1, 3, 5, 8] {
            let mut peer = server.connect();
            peer.send(&pieces(opcode, b"fragments", size, b""));
            peer.expect("in fragments", opcode, b"fragments");
            peer.send(&pieces(opcode, b"fragments", size, &frame(FIN | PING, b"ping")));
            for _ in 1..b"fragments".chunks(size).len() {
                peer.expect("a ping in between", PONG, b"ping");
            }
            peer.expect("in fragments with pings", opcode, b"fragments");
            peer.says_goodbye();
        }
    }
    let empty = [frame(TEXT, b""), frame(CONTINUATION, b""), frame(FIN, b"")].concat();
    server.echoes("three empty fragments", &empty, TEXT, b"");
    let padded = [frame(TEXT, b""), frame(CONTINUATION, b"x"), frame(FIN, b"")].concat();
    server.echoes("between empty fragments", &padded, TEXT, b"x");
    for (what, frames) in [
        ("a ping in fragments", [frame(PING, b"a"), frame(FIN, b"b")].concat()),
        ("a pong in fragments", [frame(PONG, b"a"), frame(FIN, b"b")].concat()),
        ("a close in fragments", [frame(CLOSE, &[3, 232]), frame(FIN, b"b")].concat()),
        ("the end of nothing", frame(FIN, b"x")),
        ("the middle of nothing", frame(CONTINUATION, b"x")),
        ("the end of what has ended", [pieces(TEXT, b"whole", 2, b""), frame(FIN, b"x")].concat()),
        ("a text within one", [frame(TEXT, b"a"), frame(FIN | TEXT, b"b")].concat()),
        ("a binary within a text", [frame(TEXT, b"a"), frame(BINARY, b"b")].concat()),
    ] {
        server.fails(what, &frames, 1002);
    }
}

/// Group 6: valid UTF-8 and lookalikes.
#[test]
fn invalid_utf_8_fails_the_connection() {
    let server = Server::start();
    let valid = [
        "Hello-µ@ßöäüàá-UTF-8!!",
        "κόσμε",
        "\0",
        "\u{7f}\u{80}\u{7ff}\u{800}\u{ffff}",
        "\u{d7ff}\u{e000}\u{fffd}",
        "\u{fffe}\u{1fffe}\u{10fffe}",
        "\u{10000}\u{10ffff}",
        "\u{feff}a mark of byte order",
    ];
    for text in valid {
        let bytes = text.as_bytes();
        let mut peer = server.connect();
        peer.send(&frame(FIN | TEXT, bytes));
        peer.expect(text, TEXT, bytes);
        // A character may be split between two fragments at any byte.
        for size in 1..=4.min(bytes.len()) {
            peer.send(&pieces(TEXT, bytes, size, b""));
            peer.expect(text, TEXT, bytes);
        }
        peer.says_goodbye();
    }
    let invalid: [&[u8]; 24] = [
        b"\x80",
        b"\xbf",
        b"\x80\xbf\x80\xbf",
        b"\xc0 ",
        b"\xc0\x80",
        b"\xc1\xbf",
        b"\xc2",
        b"\xdf",
        b"\xe0\x80\xaf",
        b"\xe0\x9f\xbf",
        b"\xe0\xa0",
        b"\xed\xa0\x80",
        b"\xed\xaf\xbf",
        b"\xed\xbf\xbf",
        b"\xed\xa0\x80\xed\xb0\x80",
        b"\xef\xbf",
        b"\xf0\x80\x80\xaf",
        b"\xf0\x8f\xbf\xbf",
        b"\xf4\x90\x80\x80",
        b"\xf5\x80\x80\x80",
        b"\xf8\x88\x80\x80\x80",
        b"\xfc\x84\x80\x80\x80\x80",
        b"\xfe",
        b"\xff",
    ];
    for bytes in invalid {
        let what = format!("{bytes:x?}");
        let text = ["κόσμε".as_bytes(), bytes].concat();
        server.fails(&what, &frame(FIN | TEXT, &text), 1007);
        server.fails(&what, &pieces(TEXT, &text, 1, b""), 1007);
        server.echoes(&what, &frame(FIN | BINARY, &text), BINARY, &text);
    }
    // An invalid message fails before its last fragment.
    server.fails("fails fast", &frame(TEXT, b"\xce\xba\xf4\x90\x80\x80"), 1007);
}

/// Group 7.
#[test]
fn a_close_is_echoed_and_an_invalid_one_gets_an_error_code() {
    let server = Server::start();
    let answer = |frames: &[u8]| {
        let mut peer = server.connect();
        peer.send(frames);
        let (answers, code) = peer.read_to_end();
        assert!(answers.is_empty(), "{answers:x?}");
        code
    };
    assert_eq!(answer(&frame(FIN | CLOSE, b"")), None);
    for code in (1000..=1003).chain(1007..=1011).chain([3000, 3999, 4000, 4999]) {
        assert_eq!(answer(&close(code, "")), Some(code));
        assert_eq!(answer(&close(code, "for a reason, µ")), Some(code));
    }
    for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535] {
        assert_eq!(answer(&close(code, "")), Some(1002), "{code}");
    }
    assert_eq!(answer(&close(1000, &"x".repeat(123))), Some(1000));
    server.fails("a reason that is too long", &close(1000, &"x".repeat(124)), 1002);
    server.fails("half a code", &frame(FIN | CLOSE, &[3]), 1002);
    server.fails("a reason not in UTF-8", &frame(FIN | CLOSE, b"\x03\xe8\xce\xff"), 1007);
    // Frames after a close have no effect.
    for late in [frame(FIN | TEXT, b"late"), frame(FIN | PING, b"late"), close(1001, "late")] {
        assert_eq!(answer(&[close(1000, ""), late].concat()), Some(1000));
    }
    let unfinished = [frame(TEXT, b"unfinished"), close(1000, ""), frame(FIN, b"late")];
    assert_eq!(answer(&unfinished.concat()), Some(1000));
    // Frames before it do.
    let mut peer = server.connect();
    let large = vec![b'x'; 256 << 10];
    peer.send(&[frame(FIN | TEXT, &large), close(1000, "")].concat());
    peer.expect("the text before a close", TEXT, &large);
    assert_eq!(peer.read_to_end(), (Vec::new(), Some(1000)));
}

/// Group 9: up to 16 MiB in one frame, in many frames, and in pieces of the stream.
#[test]
fn large_messages_are_echoed() {
    const LARGEST: usize = 16 << 20;
    let server = Server::start();
    let payload: Vec<u8> = b"0123456789abcde\n".repeat(LARGEST / 16);
    for opcode in [TEXT, BINARY] {
        let mut peer = server.connect();
        for length in [64 << 10, 1 << 20, LARGEST] {
            peer.send(&frame(FIN | opcode, &payload[..length]));
            peer.expect("in one frame", opcode, &payload[..length]);
        }
        for size in [64, 1_024, 256 << 10] {
            peer.send(&pieces(opcode, &payload[..1 << 20], size, b""));
            peer.expect("1 MiB in fragments", opcode, &payload[..1 << 20]);
        }
        peer.send(&pieces(opcode, &payload, 4 << 20, b""));
        peer.expect("16 MiB in fragments", opcode, &payload);
        peer.says_goodbye();
    }
}

/// The rest of group 9: many messages, one after another and all at once.
#[test]
fn many_small_messages_are_echoed_in_order() {
    let server = Server::start();
    let mut peer = server.connect();
    let text = |number: usize| format!("{number}:{}", "x".repeat(number % 300)).into_bytes();
    for number in 0..1_000 {
        peer.send(&frame(FIN | TEXT, &text(number)));
        peer.expect("one after another", TEXT, &text(number));
    }
    let all: Vec<u8> = (0..1_000).flat_map(|number| frame(FIN | TEXT, &text(number))).collect();
    peer.send(&all);
    for number in 0..1_000 {
        peer.expect("all at once", TEXT, &text(number));
    }
    peer.says_goodbye();
}

/// Group 10: 65,536 bytes in frames of 1,300.
#[test]
fn a_message_split_by_the_network_is_echoed() {
    let server = Server::start();
    let text = vec![b'*'; 65_536];
    server.echoes("in frames of 1,300", &pieces(TEXT, &text, 1_300, b""), TEXT, &text);
}
