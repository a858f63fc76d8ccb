//! The hub: one thread that owns the clients' outboxes and passes events on to them.
//!
//! It takes [`Command`]s from a channel and never waits for a client: an outbox takes what it is
//! given at once or cuts its client. It knows neither sockets nor SQL; what a message looks like
//! on the wire comes from an [`Encoding`], the way to a client is a [`Sink`].

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
use crate::threads::{OnFatal, vital};

/// How many commands may wait. Who sends more waits, which slows the engine to the hub's pace.
const COMMANDS_MAX: usize = 4_096;
/// How much one fan-out may hold; more is sent in the next. Well below an outbox's limit, so that
/// one fan-out alone never cuts a client that keeps up.
const BATCH_BYTES_MAX: usize = 256 << 10;

/// At the end so many clients are closed at once, or more, so that there are no more than …
const GOODBYE_BATCH: usize = 100;
/// … so many batches, with a pause between them: together at most a second.
const GOODBYE_BATCHES_MAX: usize = 20;
const GOODBYE_PAUSE: Duration = Duration::from_millis(50);
const GOODBYE: &str = "the server is shutting down";

/// Close codes, as RFC 6455 and the IANA registry name them. After [`close::POLICY`],
/// [`close::TOO_BIG`], [`close::PROTOCOL`], [`close::INVALID_DATA`] and [`close::UNSUPPORTED`] a
/// client should not simply come back; after the others it should, with `since`.
pub mod close {
    /// The client said goodbye, and so does the server.
    pub const NORMAL: u16 = 1000;
    /// The server is shutting down: reconnect later.
    pub const GOING_AWAY: u16 = 1001;
    /// Broken frames: do not come back.
    pub const PROTOCOL: u16 = 1002;
    /// A kind of message that the server does not take: do not come back.
    pub const UNSUPPORTED: u16 = 1003;
    /// A text that is not UTF-8: do not come back.
    pub const INVALID_DATA: u16 = 1007;
    /// Against a limit or rule: do not come back.
    pub const POLICY: u16 = 1008;
    /// A message over the limit: do not come back.
    pub const TOO_BIG: u16 = 1009;
    pub const INTERNAL: u16 = 1011;
    /// Too slow for the events, or without a sign of life: reconnect with `since`, nothing is lost.
    pub const TRY_AGAIN: u16 = 1013;
}

/// How messages look on the wire.
pub trait Encoding: Send + Sync {
    /// Appends one message with this text to `out`.
    fn text(&self, text: &str, out: &mut Vec<u8>);
    fn ping(&self) -> Vec<u8>;
    /// A close with one of the codes of [`close`].
    fn close(&self, code: u16, reason: &str) -> Vec<u8>;
}

/// A message on its way to clients.
#[derive(Clone, Debug)]
pub struct Message {
    /// Its place in the log; none for what is not logged.
    pub seq: Option<Seq>,
    pub flow_id: Option<FlowId>,
    pub type_name: &'static str,
    pub text: String,
}

impl Message {
    /// The message of an event; `seq` is its place in the log, if it is logged.
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

/// Everything that can happen to the hub.
enum Command {
    Register {
        id: ClientId,
        address: SocketAddr,
        outbox: Arc<Outbox>,
        since: Option<Seq>,
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
    /// Dropped once everything before it is done.
    Flush(Sender<()>),
    Shutdown,
}

/// The hub, for those who send to it.
#[derive(Clone)]
pub struct Hub {
    commands: Sender<Command>,
    shared: Arc<Shared>,
}

struct Shared {
    stats: Stats,
    encoding: Arc<dyn Encoding>,
    newest_id: AtomicU64,
    audience: Mutex<Audience>,
    /// Whether the hub closes its clients and takes no more.
    ended: AtomicBool,
}

/// Whether there is anybody to tell. To wake the hub for nobody would cost a call more than its row does.
#[derive(Default)]
struct Audience {
    /// Clients that have registered, from before the hub knows until it has removed them.
    clients: usize,
    /// The newest message in the log that the hub was not told of, while there were none.
    untold: Seq,
}

/// Where published messages go: the hub, or whoever else listens.
pub trait Publish: Send {
    /// Passes logged messages on, in order. `oldest` is the oldest event still in the log, where
    /// that has changed.
    fn publish(&self, messages: Vec<Message>, oldest: Option<Seq>);
}

impl Publish for Hub {
    fn publish(&self, messages: Vec<Message>, oldest: Option<Seq>) {
        // A hub that has ended has no clients left to tell.
        if let Some(oldest) = oldest {
            let _ = self.commands.send(Command::OldestSeq(oldest));
        }
        if !messages.is_empty() && self.has_audience(&messages) {
            let _ = self.commands.send(Command::Broadcast(messages));
        }
    }
}

impl Hub {
    /// Starts the hub's thread. `newest` and `oldest` are those of the log.
    pub fn start(
        encoding: Arc<dyn Encoding>,
        newest: Seq,
        oldest: Seq,
        on_fatal: OnFatal,
    ) -> Result<(Self, JoinHandle<()>)> {
        let (commands, received) = bounded(COMMANDS_MAX);
        let shared = Arc::new(Shared {
            stats: Stats::default(),
            encoding,
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

    /// A number for a new client.
    pub fn next_client_id(&self) -> ClientId {
        self.shared.newest_id.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Adds a client; it gets `HELLO`, what it missed after `since`, and everything from now on.
    pub fn register(
        &self,
        id: ClientId,
        address: SocketAddr,
        outbox: Arc<Outbox>,
        since: Option<Seq>,
    ) -> Result<()> {
        // From here on all messages go through the channel, so that the client misses none of them.
        lock(&self.shared.audience).clients += 1;
        let told = self.tell(Command::Register { id, address, outbox: Arc::clone(&outbox), since });
        // Sent behind the hub's last look into its channel, perhaps: nobody else would close it.
        if told.is_err() || self.shared.ended.load(Ordering::SeqCst) {
            say_goodbye(&outbox);
        }
        told
    }

    /// Removes a client, logs why it is gone, and counts it where the server was the one to end it.
    pub fn unregister(&self, id: ClientId, ending: Ending) -> Result<()> {
        self.tell(Command::Unregister { id, ending })
    }

    pub fn subscribe(&self, id: ClientId, filter: Filter) -> Result<()> {
        self.tell(Command::Subscribe { id, filter })
    }

    /// Sends an event that is not logged to every client that wants it.
    pub fn broadcast(&self, event: &Event) -> Result<()> {
        let messages = vec![Message::new(None, event)];
        if !self.has_audience(&messages) {
            return Ok(());
        }
        self.tell(Command::Broadcast(messages))
    }

    /// Whether anybody is to be told; where nobody is, it is kept how far the log is.
    fn has_audience(&self, messages: &[Message]) -> bool {
        let mut audience = lock(&self.shared.audience);
        if audience.clients > 0 {
            return true;
        }
        if let Some(seq) = newest(messages) {
            audience.untold = seq;
        }
        false
    }

    /// Sends an event that is not logged to one client.
    pub fn send_to_client(&self, id: ClientId, event: &Event) -> Result<()> {
        self.tell(Command::Send { id, message: Message::new(None, event) })
    }

    /// Closes every client with [`close::GOING_AWAY`] and ends the hub.
    pub fn shutdown(&self) {
        let _ = self.tell(Command::Shutdown);
    }

    /// Waits until everything that was sent to the hub before has been handed to the outboxes.
    pub fn flush(&self) {
        let (done, flushed) = bounded(0);
        if self.tell(Command::Flush(done)).is_ok() {
            // Its end is the answer.
            let _: std::result::Result<(), _> = flushed.recv();
        }
    }

    /// How many commands wait for the hub.
    pub fn queue_depth(&self) -> usize {
        self.commands.len()
    }

    pub fn stats(&self) -> &Stats {
        &self.shared.stats
    }

    /// How messages look on the wire.
    pub fn encoding(&self) -> &Arc<dyn Encoding> {
        &self.shared.encoding
    }

    fn tell(&self, command: Command) -> Result<()> {
        self.commands.send(command).map_err(|_| Error::Stopping)
    }
}

fn lock(audience: &Mutex<Audience>) -> MutexGuard<'_, Audience> {
    audience.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The newest place in the log.
fn newest(messages: &[Message]) -> Option<Seq> {
    messages.iter().rev().find_map(|message| message.seq)
}

struct Client {
    address: SocketAddr,
    outbox: Arc<Outbox>,
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
    /// Clients by what they want, so that a filter costs once, not once per client.
    groups: HashMap<Arc<Filter>, HashMap<ClientId, Arc<Outbox>>>,
}

impl State {
    fn run(mut self, received: &Receiver<Command>) {
        let mut waiting = Waiting::default();
        while let Ok(command) = received.recv() {
            // What has piled up is taken at once, so that consecutive broadcasts are one fan-out.
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
                // Order is kept: who registers or subscribes now does so after these messages.
                self.fan_out(&mut waiting);
                match command {
                    Command::Register { id, address, outbox, since } => {
                        self.register(id, address, outbox, since);
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

    fn register(
        &mut self,
        id: ClientId,
        address: SocketAddr,
        outbox: Arc<Outbox>,
        since: Option<Seq>,
    ) {
        log::info!("client connected id={id} address={address}");
        self.shared.stats.registered.fetch_add(1, Ordering::Relaxed);
        // What nobody was told of was in the log before this client came.
        self.newest = self.newest.max(lock(&self.shared.audience).untold);
        let recovered = since.is_none_or(|since| since <= self.newest && since + 1 >= self.oldest);
        let hello = Event::Hello {
            client_id: id,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            seq: self.newest,
            oldest_seq: self.oldest,
            recovered,
        };
        outbox.push_reply(&self.frame(&hello.body()));
        // A client that cannot be brought up to date gets what there is from now on: it was told.
        let since = since.filter(|_| recovered);
        if let Some(since) = since {
            self.shared.stats.replay_events.record(self.newest - since);
        }
        outbox.open(since, self.newest);
        let filter = Arc::new(Filter::default());
        self.groups.entry(Arc::clone(&filter)).or_default().insert(id, Arc::clone(&outbox));
        self.clients.insert(id, Client { address, outbox, filter });
        self.shared.stats.clients.store(self.clients.len(), Ordering::Relaxed);
    }

    fn unregister(&mut self, id: ClientId, ending: Ending) {
        let Some(client) = self.clients.remove(&id) else {
            return;
        };
        self.leave_group(id, &client.filter);
        lock(&self.shared.audience).clients -= 1;
        self.shared.stats.clients.store(self.clients.len(), Ordering::Relaxed);
        // The outbox knows best why it ended, if it was the one to end it.
        // Unless that is only how it noticed what the reader did.
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
        let Some(client) = self.clients.get(&id) else {
            return;
        };
        let (outbox, old) = (Arc::clone(&client.outbox), Arc::clone(&client.filter));
        self.leave_group(id, &old);
        let filter = Arc::new(filter);
        outbox.set_filter(Arc::clone(&filter));
        self.groups.entry(Arc::clone(&filter)).or_default().insert(id, outbox);
        if let Some(client) = self.clients.get_mut(&id) {
            client.filter = filter;
        }
    }

    fn leave_group(&mut self, id: ClientId, filter: &Arc<Filter>) {
        if let Some(members) = self.groups.get_mut(filter) {
            members.remove(&id);
            if members.is_empty() {
                self.groups.remove(filter);
            }
        }
    }

    fn send(&mut self, id: ClientId, message: &Message) {
        if let Some(client) = self.clients.get(&id) {
            let frame = self.frame(&message.text);
            // An eviction is counted when the client is gone.
            if client.outbox.push_reply(&frame) == Pushed::Taken {
                self.count(std::iter::once(Pushed::Taken), 1, frame.len());
            }
        }
    }

    fn frame(&self, text: &str) -> Arc<[u8]> {
        let mut bytes = Vec::with_capacity(text.len() + 10);
        self.shared.encoding.text(text, &mut bytes);
        bytes.into()
    }

    /// Encodes what waits once for each distinct filter and hands it to every client.
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
        for (filter, members) in &self.groups {
            let mut bytes = Vec::new();
            let mut count = 0;
            for message in &messages {
                if filter.passes(message.flow_id, message.type_name) {
                    self.shared.encoding.text(&message.text, &mut bytes);
                    count += 1;
                }
            }
            let bytes: Arc<[u8]> = bytes.into();
            // Also where nothing is for them: who catches up learns how far the log is.
            let pushed = members.values().map(|outbox| outbox.push(&bytes, self.newest));
            self.count(pushed, count, bytes.len());
        }
        self.shared.stats.count_fan_out(began.elapsed());
    }

    /// Counts what became of `pushed`, each of so many messages and bytes.
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

    /// Closes all clients, some at a time, so that they do not all come back in the same instant.
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
        // Who came behind the end is told so as well; who comes from now on sees it.
        self.shared.ended.store(true, Ordering::SeqCst);
        received.try_iter().for_each(turn_away);
    }
}

fn say_goodbye(outbox: &Outbox) {
    outbox.close(close::GOING_AWAY, GOODBYE);
}

/// Nothing is done for anybody any more.
fn turn_away(command: Command) {
    if let Command::Register { outbox, .. } = command {
        say_goodbye(&outbox);
    }
}
