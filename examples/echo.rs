//! Echoes every text and binary message through flowledger's own listener, handshake, reader,
//! writer and outbox. Autobahn's fuzzing client (`make conformance`) and tests/conformance.rs
//! connect to it.
//!
//! `cargo run --example echo [PORT]` serves ws://127.0.0.1:PORT/ws, 9001 by default.

#![allow(clippy::expect_used, clippy::panic)]

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flowledger::error::Result;
use flowledger::event::Filter;
use flowledger::hub::{Encoding, Ending, Replay};
use flowledger::ids::{ClientId, Seq};
use flowledger::listener::{Listener, Rules};
use flowledger::websocket::{BucketRate, Goodbye, Handler, Limits, Peer, Pings, Sockets};

/// Autobahn's default.
const PORT: u16 = 9001;
/// The largest messages that Autobahn sends have 16 MiB.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// Sends each message back.
#[derive(Default)]
struct Echo {
    clients: AtomicU64,
}

impl Handler for Echo {
    fn next_id(&self) -> ClientId {
        self.clients.fetch_add(1, Ordering::Relaxed)
    }

    fn epoch(&self) -> &str {
        ""
    }

    fn replay(&self) -> Arc<dyn Replay + Send + Sync> {
        Arc::new(NothingMissed)
    }

    fn opened(&self, client: &Peer) -> Result<()> {
        client.outbox.open(None, 0);
        Ok(())
    }

    fn text(&self, client: &Peer, text: &str) -> std::result::Result<(), Goodbye> {
        client.send_text(text);
        Ok(())
    }

    fn binary(&self, client: &Peer, bytes: &[u8]) -> std::result::Result<(), Goodbye> {
        client.send_binary(bytes);
        Ok(())
    }

    fn ended(&self, client: &Peer, ending: Ending) {
        log::debug!("client {} disconnected: {}", client.id, ending.reason);
    }
}

/// A replay source without a log.
struct NothingMissed;

impl Replay for NothingMissed {
    fn page(
        &self,
        _: Seq,
        upto: Seq,
        _: &Filter,
        _: &dyn Encoding,
        _: &mut Vec<u8>,
    ) -> Result<Seq> {
        Ok(upto)
    }
}

/// Echoes to every client of `listener`. Answers no other requests.
pub fn start(listener: TcpListener) -> Result<Listener> {
    let sockets = Sockets {
        handler: Arc::new(Echo::default()),
        pings: Pings::default(),
        limits: Limits {
            message_bytes: MESSAGE_BYTES_MAX,
            messages: BucketRate::UNLIMITED,
            controls: BucketRate::UNLIMITED,
            bytes: BucketRate::UNLIMITED,
            outbox_bytes: 4 * MESSAGE_BYTES_MAX,
        },
    };
    // No cleanup is needed when a thread ends.
    let on_fatal = Arc::new(|name: &str| eprintln!("the {name} thread panicked"));
    Listener::start(listener, Vec::new(), Rules::default(), sockets, on_fatal)
}

fn main() {
    let port = std::env::args()
        .nth(1)
        .map_or(PORT, |port| port.parse().expect("PORT must be a number from 0 to 65535"));
    let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
        .unwrap_or_else(|error| panic!("cannot listen on port {port}: {error}"));
    let listener = start(listener).expect("cannot start the listener");
    println!("listening on ws://{}/ws", listener.address());
    loop {
        std::thread::park();
    }
}
