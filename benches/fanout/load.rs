//! The clients: many sockets in one thread, which counts frames and reads their send times.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream as BlockingStream};
use std::ops::AddAssign;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hdrhistogram::Histogram;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::server::Kind;

/// Latency samples per read: the frames of one read have similar latencies.
const SAMPLES_PER_READ: usize = 4;
/// Time without data after which the clients stop waiting for late events.
const QUIET: Duration = Duration::from_millis(150);
/// A client's handshake.
pub const REQUEST: &str = "GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

pub struct Measured {
    pub deliveries: u64,
    pub elapsed: Duration,
    pub latency: Histogram<u64>,
    pub cpu: Duration,
    /// Clients that were cut.
    pub lost: usize,
}

impl Default for Measured {
    fn default() -> Self {
        Self {
            deliveries: 0,
            elapsed: Duration::ZERO,
            latency: Histogram::new_with_bounds(1, 60_000_000_000, 3).unwrap(),
            cpu: Duration::ZERO,
            lost: 0,
        }
    }
}

impl AddAssign for Measured {
    fn add_assign(&mut self, other: Self) {
        self.deliveries += other.deliveries;
        self.elapsed += other.elapsed;
        self.latency += other.latency;
        self.cpu += other.cpu;
        self.lost += other.lost;
    }
}

impl Measured {
    pub fn per_second(&self) -> f64 {
        self.deliveries as f64 / self.elapsed.as_secs_f64()
    }

    /// CPU time per delivery.
    pub fn cpu_us(&self) -> f64 {
        self.cpu.as_nanos() as f64 / 1e3 / self.deliveries.max(1) as f64
    }
}

struct Client {
    stream: TcpStream,
    /// The start of an incomplete frame.
    rest: Vec<u8>,
    is_gone: bool,
}

pub struct Clients {
    poll: Poll,
    events: Events,
    clients: Vec<Client>,
    buffer: Vec<u8>,
}

impl Clients {
    pub fn connect(kind: Kind, address: SocketAddr, count: usize) -> Self {
        let mut all = Self {
            poll: Poll::new().unwrap(),
            events: Events::with_capacity(1_024),
            clients: Vec::new(),
            buffer: vec![0; 256 << 10],
        };
        let threads = 8;
        let streams: Vec<BlockingStream> = std::thread::scope(|scope| {
            let handles: Vec<_> = (0..threads)
                .map(|at| {
                    scope.spawn(move || {
                        (at..count)
                            .step_by(threads)
                            .map(|_| connect(kind, address))
                            .collect::<Vec<_>>()
                    })
                })
                .collect();
            handles.into_iter().flat_map(|handle| handle.join().unwrap()).collect()
        });
        for stream in streams {
            all.add(stream);
        }
        all
    }

    pub fn len(&self) -> usize {
        self.clients.iter().filter(|client| !client.is_gone).count()
    }

    fn add(&mut self, stream: BlockingStream) {
        stream.set_nonblocking(true).unwrap();
        let mut stream = TcpStream::from_std(stream);
        let token = Token(self.clients.len());
        self.poll.registry().register(&mut stream, token, Interest::READABLE).unwrap();
        self.clients.push(Client { stream, rest: Vec::new(), is_gone: false });
    }

    /// Reads the data that arrives right after connecting.
    pub fn settle(&mut self) {
        let mut ignored = Measured::default();
        self.receive_rest(&mut ignored);
    }

    /// Reads while events are published.
    pub fn receive(&mut self, begun: Instant, window: Duration) -> Measured {
        let mut measured = Measured::default();
        while begun.elapsed() < window {
            self.poll(&mut measured, window.saturating_sub(begun.elapsed()));
        }
        measured.elapsed = begun.elapsed();
        measured
    }

    /// Reads until no data has come for a while.
    pub fn receive_rest(&mut self, measured: &mut Measured) {
        let mut last = Instant::now();
        while last.elapsed() < QUIET {
            let began = Instant::now();
            if self.poll(measured, QUIET) {
                measured.elapsed += began.elapsed();
                last = Instant::now();
            }
        }
    }

    /// Reconnects the clients that were cut and returns their number.
    pub fn replace_lost(&mut self, kind: Kind, address: SocketAddr) -> usize {
        let lost = self.clients.iter().filter(|client| client.is_gone).count();
        if lost > 0 {
            for at in 0..self.clients.len() {
                if self.clients[at].is_gone {
                    let stream = connect(kind, address);
                    stream.set_nonblocking(true).unwrap();
                    let mut stream = TcpStream::from_std(stream);
                    self.poll
                        .registry()
                        .register(&mut stream, Token(at), Interest::READABLE)
                        .unwrap();
                    self.clients[at] = Client { stream, rest: Vec::new(), is_gone: false };
                }
            }
            self.settle();
        }
        lost
    }

    fn poll(&mut self, measured: &mut Measured, timeout: Duration) -> bool {
        self.poll.poll(&mut self.events, Some(timeout)).unwrap();
        let ready: Vec<usize> = self.events.iter().map(|event| event.token().0).collect();
        ready.into_iter().fold(false, |any, key| self.read(key, measured) | any)
    }

    /// Reads all available data. An event announces data only once.
    fn read(&mut self, key: usize, measured: &mut Measured) -> bool {
        let client = &mut self.clients[key];
        let mut any = false;
        while !client.is_gone {
            let kept = client.rest.len();
            self.buffer[..kept].copy_from_slice(&client.rest);
            match client.stream.read(&mut self.buffer[kept..]) {
                Ok(0) => client.is_gone = true,
                Ok(count) => {
                    any = true;
                    let used = count_frames(&self.buffer[..kept + count], measured);
                    client.rest.clear();
                    client.rest.extend_from_slice(&self.buffer[used..kept + count]);
                    if kept + count < self.buffer.len() {
                        break;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => client.is_gone = true,
            }
        }
        any
    }
}

fn connect(kind: Kind, address: SocketAddr) -> BlockingStream {
    let mut stream = BlockingStream::connect(address).unwrap();
    if kind != Kind::Bare {
        stream.write_all(REQUEST.as_bytes()).unwrap();
        let mut head = Vec::new();
        // Byte by byte, so that no byte after the head is consumed.
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
    }
    stream
}

/// Counts complete frames and returns their length in bytes.
fn count_frames(bytes: &[u8], measured: &mut Measured) -> usize {
    let mut at = 0;
    let mut samples = 0;
    while let Some(&length) = bytes.get(at + 1) {
        let (head, length) = match length {
            126 => match bytes.get(at + 2..at + 4) {
                Some(two) => (4, usize::from(u16::from_be_bytes([two[0], two[1]]))),
                None => break,
            },
            127 => panic!("no event of this bench is so long"),
            short => (2, usize::from(short)),
        };
        let Some(payload) = bytes.get(at + head..at + head + length) else {
            break;
        };
        let is_text = bytes[at] == 0x81;
        at += head + length;
        // HELLO has no time and is no delivery.
        if !is_text || !payload.starts_with(br#"{"type":"NODE_OUTPUT""#) {
            continue;
        }
        measured.deliveries += 1;
        if samples < SAMPLES_PER_READ {
            samples += 1;
            let sent = sent_at(payload);
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
            measured.latency.saturating_record(now.saturating_sub(sent));
        }
    }
    at
}

fn sent_at(payload: &[u8]) -> u64 {
    let at = payload.windows(4).position(|four| four == br#""t":"#).expect("a time") + 4;
    payload[at..]
        .iter()
        .take_while(|byte| byte.is_ascii_digit())
        .fold(0, |sum, byte| sum * 10 + u64::from(byte - b'0'))
}
