//! Misbehaving clients, all at once, in their own process: well-behaved clients must not notice
//! them.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use socket2::SockRef;

use crate::load::REQUEST;

/// Number of clients of each kind; one thread drives each kind.
const NEVER_READ: usize = 100;
const FLOOD_PINGS: usize = 100;
const SEND_GARBAGE: usize = 100;
const HALF_HEADS: usize = 200;
const RESETS: usize = 50;
/// Interval between a client's steps. The clients are not synchronized.
const PERIOD: Duration = Duration::from_secs(1);
/// Pings per client and step: several times the rate limit, so the server soon closes the client.
const PINGS: usize = 800;
const NEVER_READ_BUFFER: usize = 4 << 10;
/// Ends this process even if its parent dies, so that it never keeps the machine busy.
const TIME_MAX: Duration = Duration::from_secs(60);

/// Runs all kinds until the process is killed.
pub fn run(address: SocketAddr) {
    for work in [never_read, flood_pings, send_garbage, half_heads, resets] {
        thread::spawn(move || work(address));
    }
    thread::sleep(TIME_MAX);
}

/// Runs `step` on each of `count` connections in turn, forever. Reconnects if the connection is
/// missing or `step` returns `None`.
fn forever(
    count: usize,
    connect: impl Fn() -> Option<TcpStream>,
    step: impl Fn(TcpStream) -> Option<TcpStream>,
) {
    let mut streams: Vec<Option<TcpStream>> = (0..count).map(|_| None).collect();
    let began = Instant::now();
    for turn in 1.. {
        let slot = &mut streams[turn as usize % count];
        *slot = slot.take().or_else(&connect).and_then(&step);
        let next = PERIOD * turn / count as u32;
        thread::sleep(next.saturating_sub(began.elapsed()));
    }
}

fn plain(address: SocketAddr) -> Option<TcpStream> {
    let stream = TcpStream::connect(address).ok()?;
    stream.set_nonblocking(true).ok()?;
    Some(stream)
}

fn web_socket(address: SocketAddr) -> Option<TcpStream> {
    let mut stream = plain(address)?;
    stream.write_all(REQUEST.as_bytes()).ok()?;
    Some(stream)
}

/// Reads and discards pending data; returns `None` at the end.
fn drained(mut stream: TcpStream) -> Option<TcpStream> {
    let mut buffer = [0; 16 << 10];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return None,
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Some(stream),
            Err(_) => return None,
        }
    }
}

fn never_read(address: SocketAddr) {
    let connect = || {
        let stream = web_socket(address)?;
        let small = SockRef::from(&stream).set_recv_buffer_size(NEVER_READ_BUFFER);
        small.ok().map(|()| stream)
    };
    // Detects a cut connection by its error without reading; the buffers are large enough.
    forever(NEVER_READ, connect, |stream| stream.take_error().ok()?.is_none().then_some(stream));
}

fn flood_pings(address: SocketAddr) {
    let ping = [0x89, 0x84, 0, 0, 0, 0, b'p', b'i', b'n', b'g'].repeat(PINGS);
    let step = |stream| {
        let mut stream = drained(stream)?;
        match stream.write(&ping) {
            // A partial ping would turn the rest into garbage.
            Ok(count) if count == ping.len() => Some(stream),
            _ => None,
        }
    };
    forever(FLOOD_PINGS, || web_socket(address), step);
}

fn send_garbage(address: SocketAddr) {
    let garbage: Vec<u8> = (0..2_000_u32).map(|at| (at * 7 + 0xf3) as u8).collect();
    let step = |stream| {
        let mut stream = drained(stream)?;
        stream.write_all(&garbage).ok().map(|()| stream)
    };
    forever(SEND_GARBAGE, || web_socket(address), step);
}

fn half_heads(address: SocketAddr) {
    let connect = || {
        let mut stream = plain(address)?;
        let half = &REQUEST.as_bytes()[..REQUEST.len() / 2];
        stream.write_all(half).ok().map(|()| stream)
    };
    forever(HALF_HEADS, connect, drained);
}

fn resets(address: SocketAddr) {
    let reset = |stream: TcpStream| {
        let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
        None
    };
    forever(RESETS, || plain(address), reset);
}
