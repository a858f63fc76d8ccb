//! The hub: one thread that owns the clients' outboxes and passes events on to them.
//!
//! It takes [`Command`]s from a channel and never blocks on a client: an outbox takes a message at
//! once or disconnects its client. The hub knows neither sockets nor SQL: an [`Encoding`] formats
//! messages for the wire, and a [`Sink`] writes to a client.

mod outbox;
mod stats;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use self::outbox::Pushed;
pub use self::outbox::{Outbox, QUEUE_BYTES_MAX, Replay, Sink};
pub use self::stats::{Ending, Eviction, Stats};

use crate::error::{Error, Result};
use crate::event::{Event, Filter, encode};
use crate::ids::{ClientId, FlowId, Seq};
use crate::store::Epochs;
use crate::threads::{OnFatal, vital};

/// Limits the queued commands. A full queue blocks the sender, which slows the engine to the hub's
/// pace.
const COMMANDS_MAX: usize = 4_096;
/// Limits a fan-out, in bytes; the next one sends the rest. Well below an outbox's limit, so that
/// one fan-out alone never disconnects a client that keeps up.
const BATCH_BYTES_MAX: usize = 256 << 10;

/// The smallest number of clients that a shutdown closes at once.
const GOODBYE_BATCH: usize = 100;
/// Limits the batches of a shutdown; with the pauses between them they take one second at most.
const GOODBYE_BATCHES_MAX: usize = 20;
const GOODBYE_PAUSE: Duration = Duration::from_millis(50);
const GOODBYE: &str = "the server is shutting down";

/// Close codes of RFC 6455 and the IANA registry. A client should not reconnect by itself after
/// [`close::POLICY`], [`close::TOO_BIG`], [`close::PROTOCOL`], [`close::INVALID_DATA`] or
/// [`close::UNSUPPORTED`]. After any other code it should reconnect with `since`.
pub mod close {
    /// The client closed the connection, and the server confirms it.
    pub const NORMAL: u16 = 1000;
    /// The server is shutting down: reconnect later.
    pub const GOING_AWAY: u16 = 1001;
    /// Malformed frames: do not reconnect.
    pub const PROTOCOL: u16 = 1002;
    /// An unsupported kind of message: do not reconnect.
    pub const UNSUPPORTED: u16 = 1003;
    /// A text that is not UTF-8: do not reconnect.
    pub const INVALID_DATA: u16 = 1007;
    /// The client exceeded a limit or broke a rule: do not reconnect.
    pub const POLICY: u16 = 1008;
    /// A message over the size limit: do not reconnect.
    pub const TOO_BIG: u16 = 1009;
    pub const INTERNAL: u16 = 1011;
    /// The client is too slow or does not respond: reconnect with `since`, nothing is lost.
    pub const TRY_AGAIN: u16 = 1013;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    WebSocket,
    EventStream,
}

/// Formats messages for the wire.
pub trait Encoding: Send + Sync {
    /// Encodings of one format write the same bytes: the hub encodes messages only once for all
    /// clients with the same filter and format.
    fn format(&self) -> Format;
    /// Appends one message with this text to `out`. A client that has read it has seen all events
    /// up to `position`, if that is known.
    fn text(&self, position: Option<Seq>, text: &str, out: &mut Vec<u8>);
    fn ping(&self) -> Vec<u8>;
    /// Returns the last bytes for a client; `code` is one of [`close`].
    fn close(&self, code: u16, reason: &str) -> Vec<u8>;
}

/// A message on its way to clients.
#[derive(Clone, Debug)]
pub struct Message {
    /// Position in the event log; none if the message is not logged.
    pub seq: Option<Seq>,
    pub flow_id: Option<FlowId>,
    pub type_name: &'static str,
    pub text: String,
}

impl Message {
    /// Returns the message of an event; `seq` is its position in the log, if it is logged.
    pub fn new(seq: Option<Seq>, event: &Event) -> Self {
        let body = event.body();
        Self {
            seq,
            flow_id: event.context().and_then(|context| context.flow_id),
            type_name: event.type_name(),
            text: seq.map_or_else(|| body.clone(), |seq| encode(seq, &body)),
        }
    }
}

/// The last event that a client has seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    pub seq: Seq,
    /// The epoch of the client's last `HELLO`. Without it, the client's history counts as this one.
    pub epoch: Option<String>,
}

enum Command {
    Register {
        id: ClientId,
        address: SocketAddr,
        outbox: Arc<Outbox>,
        since: Option<Position>,
        filter: Filter,
    },
    Unregister {
        id: ClientId,
        ending: Ending,
    },
    Subscribe {
        id: ClientId,
        filter: Filter,
    },
    Broadcast(Vec<Message>),
    Send {
        id: ClientId,
        message: Message,
    },
    OldestSeq(Seq),
    /// The hub drops the sender once it has handled all earlier commands.
    Flush(Sender<()>),
    Shutdown,
}

/// A handle that sends commands to the hub.
#[derive(Clone)]
pub struct Hub {
    commands: Sender<Command>,
    shared: Arc<Shared>,
}

struct Shared {
    stats: Stats,
    epochs: Epochs,
    newest_id: AtomicU64,
    audience: Mutex<Audience>,
    /// True if the hub has closed its clients and accepts no more.
    ended: AtomicBool,
}

/// Counts the clients. Without any, messages do not wake the hub: a wake-up would cost more than
/// the call's row.
#[derive(Default)]
struct Audience {
    /// Registered clients. A client counts before the hub adds it and until the hub removes it.
    clients: usize,
    /// The newest logged message that was not sent to the hub, because it had no clients.
    undelivered: Seq,
}

/// Receives published messages.
pub trait Publish: Send {
    /// Passes logged messages on, in order. `oldest` is the oldest event still in the log, if that
    /// has changed.
    fn publish(&self, messages: Vec<Message>, oldest: Option<Seq>);
}

impl Publish for Hub {
    fn publish(&self, messages: Vec<Message>, oldest: Option<Seq>) {
        // Sending fails only after the hub has ended, and then it has no clients.
        if let Some(oldest) = oldest {
            let _ = self.commands.send(Command::OldestSeq(oldest));
        }
        if !messages.is_empty() && self.has_audience(&messages) {
            let _ = self.commands.send(Command::Broadcast(messages));
        }
    }
}

impl Hub {
    /// Starts the hub's thread. `newest`, `oldest` and `epochs` describe the event log.
    pub fn start(
        newest: Seq,
        oldest: Seq,
        epochs: Epochs,
        on_fatal: OnFatal,
    ) -> Result<(Self, JoinHandle<()>)> {
        let (commands, received) = bounded(COMMANDS_MAX);
        let shared = Arc::new(Shared {
            stats: Stats::default(),
            epochs,
            newest_id: AtomicU64::default(),
            audience: Mutex::default(),
            ended: AtomicBool::default(),
        });
        let hub = Self { commands, shared: Arc::clone(&shared) };
        let (clients, groups) = (HashMap::new(), HashMap::new());
        let state = State { shared, newest, oldest, clients, groups };
        let thread = vital("hub", on_fatal, move || state.run(&received))?;
        Ok((hub, thread))
    }

    /// Returns the present epoch of the event log.
    pub fn epoch(&self) -> &str {
        self.shared.epochs.current()
    }

    /// Returns an unused number for a new client.
    pub fn next_client_id(&self) -> ClientId {
        self.shared.newest_id.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Adds a client. It receives `HELLO`, then the events after `since` and every later message, as
    /// far as they pass its filter.
    pub fn register(
        &self,
        id: ClientId,
        address: SocketAddr,
        outbox: Arc<Outbox>,
        since: Option<Position>,
        filter: Filter,
    ) -> Result<()> {
        // From here on messages go through the channel, so that the client misses none.
        lock(&self.shared.audience).clients += 1;
        let sent = self.send_command(Command::Register {
            id,
            address,
            outbox: Arc::clone(&outbox),
            since,
            filter,
        });
        // The command may have arrived after the hub last read its channel. Then the hub will not
        // close the client.
        if sent.is_err() || self.shared.ended.load(Ordering::SeqCst) {
            say_goodbye(&outbox);
        }
        sent
    }

    /// Removes a client and logs the reason. Counts an eviction if the server ended the connection.
    pub fn unregister(&self, id: ClientId, ending: Ending) -> Result<()> {
        self.send_command(Command::Unregister { id, ending })
    }

    pub fn subscribe(&self, id: ClientId, filter: Filter) -> Result<()> {
        self.send_command(Command::Subscribe { id, filter })
    }

    /// Sends an event that is not logged to every client whose filter passes it.
    pub fn broadcast(&self, event: &Event) -> Result<()> {
        let messages = vec![Message::new(None, event)];
        if !self.has_audience(&messages) {
            return Ok(());
        }
        self.send_command(Command::Broadcast(messages))
    }

    /// Returns true if any client is connected. If not, records the newest position in the log.
    fn has_audience(&self, messages: &[Message]) -> bool {
        let mut audience = lock(&self.shared.audience);
        if audience.clients > 0 {
            return true;
        }
        if let Some(seq) = newest(messages) {
            audience.undelivered = seq;
        }
        false
    }

    /// Sends an event that is not logged to one client.
    pub fn send_to_client(&self, id: ClientId, event: &Event) -> Result<()> {
        self.send_command(Command::Send { id, message: Message::new(None, event) })
    }

    /// Closes every client with [`close::GOING_AWAY`] and ends the hub.
    pub fn shutdown(&self) {
        let _ = self.send_command(Command::Shutdown);
    }

    /// Waits until the outboxes have all messages that were sent to the hub before.
    pub fn flush(&self) {
        let (done, flushed) = bounded(0);
        if self.send_command(Command::Flush(done)).is_ok() {
            // The hub drops the sender instead of sending.
            let _: std::result::Result<(), _> = flushed.recv();
        }
    }

    /// Returns the number of queued commands.
    pub fn queue_depth(&self) -> usize {
        self.commands.len()
    }

    pub fn stats(&self) -> &Stats {
        &self.shared.stats
    }

    fn send_command(&self, command: Command) -> Result<()> {
        self.commands.send(command).map_err(|_| Error::Stopping)
    }
}

fn lock(audience: &Mutex<Audience>) -> MutexGuard<'_, Audience> {
    audience.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the newest position in the log.
fn newest(messages: &[Message]) -> Option<Seq> {
    messages.iter().rev().find_map(|message| message.seq)
}

struct Client {
    address: SocketAddr,
    outbox: Arc<Outbox>,
    filter: Arc<Filter>,
}

impl Client {
    fn group(&self) -> Group {
        Group { format: self.outbox.encoding().format(), filter: Arc::clone(&self.filter) }
    }
}

/// Clients that receive the same bytes.
#[derive(PartialEq, Eq, Hash)]
struct Group {
    format: Format,
    filter: Arc<Filter>,
}

#[derive(Default)]
struct Waiting {
    messages: Vec<Message>,
    bytes: usize,
}

/// Owned by the hub's thread.
struct State {
    shared: Arc<Shared>,
    newest: Seq,
    oldest: Seq,
    clients: HashMap<ClientId, Client>,
    /// Clients by filter and format, so that a filter costs once, not once per client.
    groups: HashMap<Group, HashMap<ClientId, Arc<Outbox>>>,
}

impl State {
    fn run(mut self, received: &Receiver<Command>) {
        let mut waiting = Waiting::default();
        while let Ok(command) = received.recv() {
            // Draining the channel merges consecutive broadcasts into one fan-out.
            for command in std::iter::once(command).chain(received.try_iter()) {
                if let Command::Broadcast(messages) = command {
                    for message in messages {
                        waiting.bytes += message.text.len();
                        waiting.messages.push(message);
                        if waiting.bytes >= BATCH_BYTES_MAX {
                            self.fan_out(&mut waiting);
                        }
                    }
                    continue;
                }
                // Keep the order: earlier messages go out before a client registers or subscribes.
                self.fan_out(&mut waiting);
                match command {
                    Command::Register { id, address, outbox, since, filter } => {
                        let filter = Arc::new(filter);
                        self.register(id, Client { address, outbox, filter }, since);
                    }
                    Command::Unregister { id, ending } => self.unregister(id, ending),
                    Command::Subscribe { id, filter } => self.subscribe(id, filter),
                    Command::Send { id, message } => self.send(id, &message),
                    Command::OldestSeq(oldest) => self.oldest = oldest,
                    Command::Flush(done) => drop(done),
                    Command::Shutdown => return self.shutdown(received),
                    Command::Broadcast(_) => {}
                }
            }
            self.fan_out(&mut waiting);
        }
    }

    fn register(&mut self, id: ClientId, client: Client, since: Option<Position>) {
        log::info!("client connected id={id} address={}", client.address);
        self.shared.stats.registered.fetch_add(1, Ordering::Relaxed);
        // Messages without an audience were logged before this client came.
        self.newest = self.newest.max(lock(&self.shared.audience).undelivered);
        let recovered = since.as_ref().is_none_or(|since| self.can_replay(since));
        let hello = Event::Hello {
            client_id: id,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            seq: self.newest,
            oldest_seq: self.oldest,
            epoch: self.shared.epochs.current().to_owned(),
            recovered,
        };
        // A client that cannot catch up receives only new events; `HELLO` says so.
        let since = since.filter(|_| recovered).map(|since| since.seq);
        if let Some(since) = since {
            self.shared.stats.replay_events.record(self.newest - since);
        }
        let outbox = &client.outbox;
        outbox.push_reply(&outbox.frame(Some(since.unwrap_or(self.newest)), &hello.body()));
        outbox.set_filter(Arc::clone(&client.filter));
        outbox.open(since, self.newest);
        self.join_group(id, &client);
        self.clients.insert(id, client);
        self.shared.stats.clients.store(self.clients.len(), Ordering::Relaxed);
    }

    /// Returns true if the log has all events after that position, and the client saw those before.
    fn can_replay(&self, since: &Position) -> bool {
        let epochs = &self.shared.epochs;
        let epoch = since.epoch.as_deref().unwrap_or(epochs.current());
        epochs.contain(epoch, since.seq, self.newest) && since.seq + 1 >= self.oldest
    }

    fn unregister(&mut self, id: ClientId, ending: Ending) {
        let Some(client) = self.clients.remove(&id) else {
            return;
        };
        self.leave_group(id, &client.group());
        lock(&self.shared.audience).clients -= 1;
        self.shared.stats.clients.store(self.clients.len(), Ordering::Relaxed);
        // The outbox's own reason is more precise, unless it ended only because the reader evicted
        // the client.
        let ending = match client.outbox.ending() {
            Some(own) if own.eviction.is_some() || ending.eviction.is_none() => own,
            _ => ending,
        };
        if let Some(eviction) = ending.eviction
            && !ending.is_counted
        {
            self.shared.stats.count_evicted(eviction, 1);
        }
        log::info!(
            "client disconnected id={id} address={} reason={}",
            client.address,
            ending.reason
        );
    }

    fn subscribe(&mut self, id: ClientId, filter: Filter) {
        let Some(mut client) = self.clients.remove(&id) else {
            return;
        };
        self.leave_group(id, &client.group());
        client.filter = Arc::new(filter);
        client.outbox.set_filter(Arc::clone(&client.filter));
        self.join_group(id, &client);
        self.clients.insert(id, client);
    }

    fn join_group(&mut self, id: ClientId, client: &Client) {
        let members = self.groups.entry(client.group()).or_default();
        members.insert(id, Arc::clone(&client.outbox));
    }

    fn leave_group(&mut self, id: ClientId, group: &Group) {
        if let Some(members) = self.groups.get_mut(group) {
            members.remove(&id);
            if members.is_empty() {
                self.groups.remove(group);
            }
        }
    }

    fn send(&mut self, id: ClientId, message: &Message) {
        if let Some(client) = self.clients.get(&id) {
            let frame = client.outbox.frame(None, &message.text);
            // `unregister` counts an eviction.
            if client.outbox.push_reply(&frame) == Pushed::Taken {
                self.count(std::iter::once(Pushed::Taken), 1, frame.len());
            }
        }
    }

    /// Encodes the waiting messages once per distinct filter and format and passes them to every
    /// client.
    fn fan_out(&mut self, waiting: &mut Waiting) {
        let messages = std::mem::take(&mut waiting.messages);
        waiting.bytes = 0;
        if messages.is_empty() {
            return;
        }
        let began = Instant::now();
        if let Some(seq) = newest(&messages) {
            self.newest = seq;
        }
        for (group, members) in &self.groups {
            let Some(encoding) = members.values().next().map(|outbox| outbox.encoding()) else {
                continue;
            };
            let mut bytes = Vec::new();
            let mut count = 0;
            for message in &messages {
                if group.filter.passes(message.flow_id, message.type_name) {
                    encoding.text(message.seq, &message.text, &mut bytes);
                    count += 1;
                }
            }
            let bytes: Arc<[u8]> = bytes.into();
            // Push even if no message passes the filter: a client that catches up needs the newest
            // position.
            let pushed = members.values().map(|outbox| outbox.push(&bytes, self.newest));
            self.count(pushed, count, bytes.len());
        }
        self.shared.stats.count_fan_out(began.elapsed());
    }

    /// Counts the results of pushes. Each push carried `messages` messages in `bytes` bytes.
    fn count(&self, pushed: impl Iterator<Item = Pushed>, messages: u64, bytes: usize) {
        let (mut taken, mut evicted) = (0, 0);
        for pushed in pushed {
            match pushed {
                Pushed::Taken => taken += 1,
                Pushed::Evicted => evicted += 1,
                Pushed::Nothing => {}
            }
        }
        let stats = &self.shared.stats;
        stats.deliveries.fetch_add(taken * messages, Ordering::Relaxed);
        stats.delivered_bytes.fetch_add(taken * bytes as u64, Ordering::Relaxed);
        stats.merged.fetch_add(taken * messages.saturating_sub(1), Ordering::Relaxed);
        stats.count_evicted(Eviction::OutboxFull, evicted);
    }

    /// Closes all clients in batches, so that they do not all reconnect in the same instant.
    fn shutdown(mut self, received: &Receiver<Command>) {
        let mut clients = std::mem::take(&mut self.clients).into_iter();
        let batch = clients.len().div_ceil(GOODBYE_BATCHES_MAX);
        let batch = batch.max(GOODBYE_BATCH);
        loop {
            for (id, client) in clients.by_ref().take(batch) {
                say_goodbye(&client.outbox);
                log::info!(
                    "client disconnected id={id} address={} reason={GOODBYE}",
                    client.address
                );
            }
            self.shared.stats.clients.store(clients.len(), Ordering::Relaxed);
            if clients.len() == 0 {
                break;
            }
            let next = Instant::now() + GOODBYE_PAUSE;
            while let Ok(command) = received.recv_deadline(next) {
                turn_away(command);
            }
        }
        // Clients in the channel are closed here; later ones see `ended` and close themselves.
        self.shared.ended.store(true, Ordering::SeqCst);
        received.try_iter().for_each(turn_away);
    }
}

fn say_goodbye(outbox: &Outbox) {
    outbox.close(close::GOING_AWAY, GOODBYE);
}

/// Drops a command after the end; a client that registers is closed.
fn turn_away(command: Command) {
    if let Command::Register { outbox, .. } = command {
        say_goodbye(&outbox);
    }
}
