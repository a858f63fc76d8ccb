//! Clients that behave badly, all at once, in a process of their own: what they do must not be felt
//! by those that behave well.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use socket2::SockRef;

use crate::load::REQUEST;

/// So many of each kind; a thread does the work of one kind.
const NEVER_READ: usize = 100;
const FLOOD_PINGS: usize = 100;
const SEND_GARBAGE: usize = 100;
const HALF_HEADS: usize = 200;
const RESETS: usize = 50;
/// How often each of them does it again; they are no more in step than strangers would be.
const PERIOD: Duration = Duration::from_secs(1);
/// Pings of one client each time: several times of what it may send, so that it is closed soon.
const PINGS: usize = 800;
const NEVER_READ_BUFFER: usize = 4 << 10;
/// Nobody is to find a machine busy with this for ever, whatever becomes of the parent.
const TIME_MAX: Duration = Duration::from_secs(60);

/// Does it all until the process is killed.
pub fn run(address: SocketAddr) {
    for work in [never_read, flood_pings, send_garbage, half_heads, resets] {
        thread::spawn(move || work(address));
    }
    thread::sleep(TIME_MAX);
}

/// Does `step` with each of `count` connections in turn, again and again. Where it gives none, or
/// there is none yet, it is made anew.
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

/// Reads and forgets what has come; none at the end.
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
    // An error would tell without reading that it was cut; there is room for what comes here.
    forever(NEVER_READ, connect, |stream| stream.take_error().ok()?.is_none().then_some(stream));
}

fn flood_pings(address: SocketAddr) {
    let ping = [0x89, 0x84, 0, 0, 0, 0, b'p', b'i', b'n', b'g'].repeat(PINGS);
    let step = |stream| {
        let mut stream = drained(stream)?;
        match stream.write(&ping) {
            // Half a ping would make the rest garbage.
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
