//! A client's outbox: the frames on their way to one client, and the thread that writes them.
//!
//! While the queue is empty, [`Outbox::push`] writes to the socket without blocking, in the
//! caller's thread: waking the writer thread for each delivery would cost several times the
//! delivery. If the socket does not take all bytes, the rest is queued and the writer thread wakes.
//! Until the queue is empty again, everything goes through it and is merged into large writes. Only
//! one side writes at a time: the pushing thread while the writer is idle, the writer otherwise.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Encoding, Ending, Eviction, close};
use crate::error::Result;
use crate::event::Filter;
use crate::ids::Seq;

/// Limits a client's queue, in bytes. A client over the limit is disconnected and reconnects with
/// `since`. With the kernel's buffer this holds seconds of a busy server's events.
pub const QUEUE_BYTES_MAX: usize = 1 << 20;
/// Limits the bytes that the writer takes from the queue at a time.
const WRITE_BYTES_MAX: usize = 256 << 10;
/// Reserved for the bytes of a frame around its text.
const FRAME_EXTRA_BYTES: usize = 10;
/// Limits the wait for the client's close frame.
const CLOSE_WAIT: Duration = Duration::from_secs(2);

pub trait Sink: Send + Sync {
    /// Writes as much as fits without waiting. Fails with `WouldBlock` if nothing fits.
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize>;
    /// Writes everything and waits for the client, within the sink's own limits.
    fn write_all(&self, bytes: &[u8]) -> io::Result<()>;
    /// Ends the writing half of the connection.
    fn finish(&self);
    /// Ends both halves of the connection, which also wakes its reader.
    fn shutdown(&self);
}

/// Reads the events that a client missed from the log, page by page.
pub trait Replay {
    /// Appends a page of the messages in (`after`, `upto`] that pass `filter` to `out`, in this
    /// encoding. Returns the position of the last event read, or `upto` if there are no more.
    fn page(
        &self,
        after: Seq,
        upto: Seq,
        filter: &Filter,
        encoding: &dyn Encoding,
        out: &mut Vec<u8>,
    ) -> Result<Seq>;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    Taken,
    /// Over the limit: the client is being disconnected.
    Evicted,
    /// Not taken: the client is catching up or closing.
    Nothing,
}

pub struct Outbox {
    sink: Box<dyn Sink>,
    encoding: Arc<dyn Encoding>,
    queue_bytes_max: usize,
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    phase: Phase,
    /// True if new events are passed on at once: after [`Outbox::open`], unless the client is
    /// catching up.
    live: bool,
    /// The last event replayed to a client that is catching up.
    replayed: Option<Seq>,
    /// The newest event that the hub has published.
    newest: Seq,
    filter: Arc<Filter>,
    queue: VecDeque<Chunk>,
    queued_bytes: usize,
    /// True if the writer thread is writing, so that no other thread may.
    writing: bool,
    /// End of the writer thread's last write.
    wrote_at: Option<Instant>,
    reader_done: bool,
    ending: Option<Ending>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Open,
    /// A close frame is queued or written; no more frames are accepted.
    Closing,
    Closed,
}

/// Whole frames; the first `sent` bytes are written.
struct Chunk {
    bytes: Arc<[u8]>,
    sent: usize,
}

/// The writer thread's next step.
enum Work {
    Write(Vec<u8>),
    Replay { after: Seq, upto: Seq, filter: Arc<Filter> },
    Ping,
    SayGoodbye,
    End,
}

impl Outbox {
    /// Creates an outbox for the client behind `sink`; its writer thread calls [`Outbox::run`].
    pub fn new(sink: Box<dyn Sink>, encoding: Arc<dyn Encoding>, queue_bytes_max: usize) -> Self {
        Self { sink, encoding, queue_bytes_max, state: Mutex::default(), wake: Condvar::new() }
    }

    pub fn encoding(&self) -> &dyn Encoding {
        &*self.encoding
    }

    /// Formats one message for this client; see [`Encoding::text`].
    pub fn frame(&self, position: Option<Seq>, text: &str) -> Arc<[u8]> {
        let mut frame = Vec::with_capacity(text.len() + FRAME_EXTRA_BYTES);
        self.encoding.text(position, text, &mut frame);
        frame.into()
    }

    /// Passes events on from now on. With `since`, the client first receives those in
    /// (`since`, `newest`].
    pub fn open(&self, since: Option<Seq>, newest: Seq) {
        let mut state = self.lock();
        state.newest = newest;
        state.replayed = since.filter(|since| *since < newest);
        state.live = state.replayed.is_none();
        self.wake.notify_one();
    }

    /// Sets the filter for the replay; the hub filters new events.
    pub fn set_filter(&self, filter: Arc<Filter>) {
        self.lock().filter = filter;
    }

    /// Takes the frames of a fan-out whose newest event is `newest`. Never waits.
    pub fn push(&self, frames: &Arc<[u8]>, newest: Seq) -> Pushed {
        let mut state = self.lock();
        state.newest = newest;
        // A client that is catching up reads the event from the log instead.
        if state.phase != Phase::Open || !state.live || frames.is_empty() {
            return Pushed::Nothing;
        }
        let pushed = self.take(&mut state, frames);
        if pushed == Pushed::Evicted
            && let Some(ending) = &mut state.ending
        {
            ending.is_counted = true;
        }
        pushed
    }

    /// Takes a frame for this client alone, even while it is catching up.
    pub fn push_reply(&self, frame: &Arc<[u8]>) -> Pushed {
        let mut state = self.lock();
        if state.phase != Phase::Open {
            return Pushed::Nothing;
        }
        self.take(&mut state, frame)
    }

    /// Takes control frames from the reader's protocol machine. A close frame is the last one.
    pub fn push_controls(&self, frames: &[u8]) {
        let mut state = self.lock();
        // A close that the server sent is not answered twice.
        if state.phase != Phase::Open {
            return;
        }
        self.take(&mut state, &frames.into());
        if has_close(frames) && state.phase == Phase::Open {
            state.phase = Phase::Closing;
            self.wake.notify_one();
        }
    }

    /// Closes with one of the codes of [`close`], after the queued frames.
    pub fn close(&self, code: u16, reason: &str) {
        let mut state = self.lock();
        self.start_closing(&mut state, code, reason);
    }

    /// Reports that the reader has ended: the client sends no more.
    pub fn reader_done(&self) {
        let mut state = self.lock();
        state.reader_done = true;
        if state.phase == Phase::Open {
            // The client left without a close frame, so no write can reach it.
            self.end(&mut state, None);
        }
        self.wake.notify_one();
    }

    /// Returns the reason if the outbox itself ended the connection.
    pub fn ending(&self) -> Option<Ending> {
        self.lock().ending.clone()
    }

    /// Returns true if the writer thread wrote within `time`, which proves that the client reads.
    pub fn has_written_within(&self, time: Duration) -> bool {
        let state = self.lock();
        state.writing || state.wrote_at.is_some_and(|at| at.elapsed() < time)
    }

    /// Runs the writer thread.
    pub fn run(&self, replay: &dyn Replay, ping_interval: Duration) {
        let _in_panic = PanicGuard(self);
        let mut next_ping = Instant::now() + ping_interval;
        loop {
            let done = match self.next_work(next_ping) {
                Work::Write(bytes) => self.sink.write_all(&bytes),
                Work::Replay { after, upto, filter } => self.catch_up(replay, after, upto, &filter),
                Work::Ping => {
                    next_ping = Instant::now() + ping_interval;
                    self.push_reply(&self.encoding.ping().into());
                    continue;
                }
                Work::SayGoodbye => return self.say_goodbye(),
                Work::End => return,
            };
            let mut state = self.lock();
            state.writing = false;
            state.wrote_at = Some(Instant::now());
            if let Err(error) = done {
                self.end(&mut state, Some(cannot_write(&error)));
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the lock; if one does, the state is still consistent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, state: &mut State, frames: &Arc<[u8]>) -> Pushed {
        let mut sent = 0;
        if state.queue.is_empty() && !state.writing {
            match self.sink.try_write(frames) {
                Ok(count) if count == frames.len() => return Pushed::Taken,
                Ok(count) => sent = count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    self.end(state, Some(cannot_write(&error)));
                    return Pushed::Nothing;
                }
            }
        }
        state.queue.push_back(Chunk { bytes: Arc::clone(frames), sent });
        state.queued_bytes += frames.len() - sent;
        if state.queued_bytes > self.queue_bytes_max {
            self.evict(state);
            return Pushed::Evicted;
        }
        self.wake.notify_one();
        Pushed::Taken
    }

    /// Disconnects a client that is too slow. Drops frames that are entirely unsent: the client
    /// reads them again with `since`.
    fn evict(&self, state: &mut State) {
        state.queue.retain(|chunk| chunk.sent > 0);
        state.queued_bytes = state.queue.iter().map(|chunk| chunk.bytes.len() - chunk.sent).sum();
        let reason = format!("too slow: over {} bytes queued", self.queue_bytes_max);
        state.ending = Some(Ending::evicted(Eviction::OutboxFull, reason));
        self.start_closing(state, close::TRY_AGAIN, "too slow; reconnect with ?since=SEQ");
    }

    fn start_closing(&self, state: &mut State, code: u16, reason: &str) {
        if state.phase != Phase::Open {
            return;
        }
        let frame: Arc<[u8]> = self.encoding.close(code, reason).into();
        state.phase = Phase::Closing;
        state.queued_bytes += frame.len();
        state.queue.push_back(Chunk { bytes: frame, sent: 0 });
        self.wake.notify_one();
    }

    fn end(&self, state: &mut State, ending: Option<Ending>) {
        if state.phase != Phase::Closed {
            state.phase = Phase::Closed;
            state.queue = VecDeque::new();
            state.queued_bytes = 0;
            if state.ending.is_none() {
                state.ending = ending;
            }
            self.sink.shutdown();
        }
        self.wake.notify_one();
    }

    fn next_work(&self, next_ping: Instant) -> Work {
        let mut state = self.lock();
        loop {
            if state.phase == Phase::Closed {
                return Work::End;
            }
            // Ping first: a client that catches up, or is always a little behind, may send nothing
            // but pongs for a long time.
            let now = Instant::now();
            // Until `open`, the handshake may be unanswered, so a ping would be too early.
            let is_open = state.live || state.replayed.is_some();
            if now >= next_ping && state.phase == Phase::Open && is_open {
                return Work::Ping;
            }
            if !state.queue.is_empty() {
                state.writing = true;
                return Work::Write(take_chunks(&mut state));
            }
            if state.phase == Phase::Closing {
                return Work::SayGoodbye;
            }
            if let Some(after) = state.replayed {
                state.writing = true;
                let (upto, filter) = (state.newest, Arc::clone(&state.filter));
                return Work::Replay { after, upto, filter };
            }
            state = if is_open {
                let waited = self.wake.wait_timeout(state, next_ping - now);
                waited.unwrap_or_else(PoisonError::into_inner).0
            } else {
                let waited = self.wake.wait(state);
                waited.unwrap_or_else(PoisonError::into_inner)
            };
        }
    }

    fn catch_up(
        &self,
        replay: &dyn Replay,
        after: Seq,
        upto: Seq,
        filter: &Filter,
    ) -> io::Result<()> {
        let mut frames = Vec::new();
        let reached = match replay.page(after, upto, filter, self.encoding(), &mut frames) {
            Ok(reached) => reached,
            Err(error) => {
                log::error!("cannot replay events to a client: {error}");
                let mut state = self.lock();
                state.replayed = None;
                if state.phase == Phase::Open {
                    let reason = format!("cannot replay events: {error}");
                    state.ending = Some(Ending::evicted(Eviction::LogUnreadable, reason));
                }
                self.start_closing(&mut state, close::INTERNAL, "cannot read the event log");
                return Ok(());
            }
        };
        if !frames.is_empty() {
            self.sink.write_all(&frames)?;
        }
        let mut state = self.lock();
        // The hub raises `newest` under this lock, so no event is lost between the last page and
        // the first live event.
        if reached >= state.newest {
            state.replayed = None;
            state.live = true;
        } else {
            state.replayed = Some(reached);
        }
        Ok(())
    }

    /// Waits for the client's close frame, for at most `CLOSE_WAIT`.
    fn say_goodbye(&self) {
        self.sink.finish();
        let is_waiting = |state: &mut State| !state.reader_done && state.phase != Phase::Closed;
        let waited = self.wake.wait_timeout_while(self.lock(), CLOSE_WAIT, is_waiting);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        self.end(&mut state, None);
    }
}

/// Returns true if one of these control frames is a close frame. The server's control frames have
/// no mask and a length of one byte (RFC 6455, sections 5.2 and 5.5).
fn has_close(mut frames: &[u8]) -> bool {
    const OPCODE: u8 = 0x0f;
    const OPCODE_CLOSE: u8 = 0x8;
    while let [first, length, rest @ ..] = frames {
        if first & OPCODE == OPCODE_CLOSE {
            return true;
        }
        frames = rest.get(usize::from(*length)..).unwrap_or_default();
    }
    false
}

/// Ends a client and wakes its reader if the writer panics.
struct PanicGuard<'a>(&'a Outbox);

impl Drop for PanicGuard<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let ending = Ending::left("internal error in the writer thread");
            self.0.end(&mut self.0.lock(), Some(ending));
        }
    }
}

fn cannot_write(error: &io::Error) -> Ending {
    let reason = format!("cannot write: {error}");
    if error.kind() == io::ErrorKind::TimedOut {
        Ending::evicted(Eviction::WriteTimeout, reason)
    } else {
        Ending::left(reason)
    }
}

/// Takes chunks from the queue: as many as fit into one write, and at least one.
fn take_chunks(state: &mut State) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Some(chunk) = state.queue.front() {
        let rest = &chunk.bytes[chunk.sent..];
        if !bytes.is_empty() && bytes.len() + rest.len() > WRITE_BYTES_MAX {
            break;
        }
        bytes.extend_from_slice(rest);
        state.queued_bytes -= rest.len();
        state.queue.pop_front();
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::Format;
    use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

    /// Frames in these tests are texts in angle brackets.
    struct Plain;

    impl Encoding for Plain {
        fn format(&self) -> Format {
            Format::WebSocket
        }
        fn text(&self, _: Option<Seq>, text: &str, out: &mut Vec<u8>) {
            out.extend_from_slice(format!("<{text}>").as_bytes());
        }
        fn ping(&self) -> Vec<u8> {
            b"<ping>".to_vec()
        }
        fn close(&self, code: u16, _: &str) -> Vec<u8> {
            format!("<close {code}>").into_bytes()
        }
    }

    /// A client with `room` bytes in its kernel buffer; the test allows its reads one by one.
    struct Client {
        room: Mutex<usize>,
        direct: Sender<Vec<u8>>,
        written: Sender<Vec<u8>>,
        allow: Receiver<()>,
        ended: Sender<()>,
    }

    impl Sink for Client {
        fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
            let mut room = self.room.lock().unwrap();
            let count = bytes.len().min(*room);
            *room -= count;
            if count == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            self.direct.send(bytes[..count].to_vec()).unwrap();
            Ok(count)
        }
        fn write_all(&self, bytes: &[u8]) -> io::Result<()> {
            self.allow.recv().map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
            self.written.send(bytes.to_vec()).unwrap();
            Ok(())
        }
        fn finish(&self) {}
        fn shutdown(&self) {
            let _ = self.ended.send(());
        }
    }

    struct Log(Vec<Seq>);

    impl Replay for Log {
        fn page(
            &self,
            after: Seq,
            upto: Seq,
            _: &Filter,
            encoding: &dyn Encoding,
            out: &mut Vec<u8>,
        ) -> Result<Seq> {
            let next = self.0.iter().find(|seq| **seq > after && **seq <= upto);
            if let Some(seq) = next {
                encoding.text(Some(*seq), &seq.to_string(), out);
            }
            Ok(next.copied().unwrap_or(upto))
        }
    }

    struct Rig {
        outbox: Arc<Outbox>,
        direct: Receiver<Vec<u8>>,
        written: Receiver<Vec<u8>>,
        allow: Sender<()>,
        ended: Receiver<()>,
    }

    const SOON: Duration = Duration::from_secs(5);

    impl Rig {
        fn new(room: usize) -> Self {
            let (direct_in, direct) = unbounded();
            let (written_in, written) = unbounded();
            let (allow, allowed) = unbounded();
            let (ended_in, ended) = bounded(8);
            let client = Client {
                room: Mutex::new(room),
                direct: direct_in,
                written: written_in,
                allow: allowed,
                ended: ended_in,
            };
            let outbox = Arc::new(Outbox::new(Box::new(client), Arc::new(Plain), QUEUE_BYTES_MAX));
            Self { outbox, direct, written, allow, ended }
        }

        fn start(&self, log: Vec<Seq>) {
            let outbox = Arc::clone(&self.outbox);
            std::thread::spawn(move || outbox.run(&Log(log), SOON));
        }

        fn wrote(&self) -> String {
            self.allow.send(()).unwrap();
            String::from_utf8(self.written.recv_timeout(SOON).unwrap()).unwrap()
        }
    }

    fn frame(text: &str) -> Arc<[u8]> {
        let mut bytes = Vec::new();
        Plain.text(None, text, &mut bytes);
        bytes.into()
    }

    #[test]
    fn frames_are_written_directly_to_a_ready_client() {
        let rig = Rig::new(100);
        rig.outbox.open(None, 0);
        assert_eq!(rig.outbox.push(&frame("a"), 1), Pushed::Taken);
        assert_eq!(rig.direct.recv_timeout(SOON).unwrap(), b"<a>");
    }

    #[test]
    fn excess_frames_are_queued_in_order_and_written_at_once() {
        let rig = Rig::new(2);
        rig.outbox.open(None, 0);
        for (seq, text) in ["abc", "d", "e"].iter().enumerate() {
            assert_eq!(rig.outbox.push(&frame(text), seq as Seq + 1), Pushed::Taken);
        }
        assert_eq!(rig.direct.recv_timeout(SOON).unwrap(), b"<a");
        rig.start(vec![]);
        assert_eq!(rig.wrote(), "bc><d><e>");
    }

    #[test]
    fn a_client_over_the_limit_is_closed_after_the_current_frame() {
        let rig = Rig::new(3);
        rig.outbox.open(None, 0);
        rig.outbox.push(&frame("abc"), 1);
        let large = frame(&"x".repeat(QUEUE_BYTES_MAX));
        assert_eq!(rig.outbox.push(&large, 2), Pushed::Evicted);
        assert_eq!(rig.outbox.push(&frame("later"), 3), Pushed::Nothing);
        rig.start(vec![]);
        assert_eq!(rig.wrote(), "c><close 1013>");
        assert!(rig.outbox.ending().unwrap().reason.contains("too slow"));
        rig.outbox.reader_done();
        rig.ended.recv_timeout(SOON).unwrap();
    }

    #[test]
    fn a_client_that_catches_up_gets_each_event_once_and_in_order() {
        let rig = Rig::new(100);
        rig.outbox.open(Some(4), 6);
        rig.start(vec![3, 4, 5, 6, 7]);
        assert_eq!(rig.wrote(), "<5>");
        // Published while the client catches up: the log delivers it, once.
        assert_eq!(rig.outbox.push(&frame("7"), 7), Pushed::Nothing);
        assert_eq!(rig.wrote(), "<6>");
        assert_eq!(rig.wrote(), "<7>");
        while rig.outbox.push(&frame("8"), 8) == Pushed::Nothing {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_client_is_pinged_during_catch_up() {
        let rig = Rig::new(0);
        rig.outbox.open(Some(0), 9);
        rig.outbox.push_reply(&frame("waits"));
        let due = Instant::now();
        assert!(matches!(rig.outbox.next_work(due), Work::Ping));
        let later = due + SOON;
        assert!(matches!(rig.outbox.next_work(later), Work::Write(_)));
        assert!(matches!(rig.outbox.next_work(later), Work::Replay { .. }));
        assert!(rig.outbox.has_written_within(Duration::ZERO));
    }

    #[test]
    fn the_server_sends_only_one_close_frame() {
        let rig = Rig::new(100);
        rig.outbox.open(None, 0);
        rig.outbox.close(close::GOING_AWAY, "");
        rig.outbox.push_controls(&[0x88, 0]);
        rig.start(vec![]);
        assert_eq!(rig.wrote(), "<close 1001>");
        rig.outbox.reader_done();
        rig.ended.recv_timeout(SOON).unwrap();
        assert!(rig.written.try_recv().is_err());
    }

    #[test]
    fn no_frame_follows_the_reply_to_a_close() {
        let rig = Rig::new(100);
        rig.outbox.open(None, 0);
        // The close frame follows two pongs; the first one's payload looks like a close frame.
        let frames = [0x8a, 2, 0x88, 0, 0x8a, 0, 0x88, 0];
        rig.outbox.push_controls(&frames[..6]);
        assert_eq!(rig.outbox.push(&frame("in time"), 1), Pushed::Taken);
        rig.outbox.push_controls(&frames);
        assert_eq!(rig.outbox.push(&frame("late"), 1), Pushed::Nothing);
    }

    #[test]
    fn a_write_error_ends_the_client() {
        let rig = Rig::new(0);
        rig.outbox.open(None, 0);
        rig.outbox.push(&frame("a"), 1);
        drop(rig.allow);
        let outbox = Arc::clone(&rig.outbox);
        std::thread::spawn(move || outbox.run(&Log(vec![]), SOON));
        rig.ended.recv_timeout(SOON).unwrap();
        assert!(rig.outbox.ending().unwrap().reason.contains("cannot write"));
    }
}
