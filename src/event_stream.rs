//! Server-sent events: the messages of the WebSocket as a plain HTTP response, for scripts and for
//! proxies that pass no WebSockets.
//!
//! The response has no length and ends with its connection. As for a WebSocket, the connection's
//! thread reads, because only a read notices at once that the client has left, and a second thread
//! writes.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, Fault, Result};
use crate::event::Filter;
use crate::hub::{Encoding, Ending, Eviction, Format, Position, close};
use crate::ids::Seq;
use crate::websocket::{FILTER_ITEMS_MAX, PanicGuard, Peer, Sockets, drain};

/// Limits the bytes that a client sends after its request; they are dropped.
const INPUT_BYTES_MAX: usize = 64 << 10;
/// After the end, further input is dropped for this long.
const DRAIN_TIME: Duration = Duration::from_secs(2);

/// The messages that a client asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subscription {
    /// The last event that the client has seen.
    pub since: Option<Position>,
    pub filter: Filter,
}

impl Subscription {
    /// Reads the query of a request. `last_event_id` is the header that a client sends when it
    /// reconnects; it replaces `since` and `epoch`.
    ///
    /// # Errors
    /// All faults, also of unknown parameters: a misspelled filter would let everything pass.
    pub fn read(query: &str, last_event_id: Option<&str>) -> Result<Self, Vec<Fault>> {
        let (mut since, mut epoch, mut filter) = (None, None, Filter::default());
        let mut faults = Vec::new();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let read = match &*name {
                "since" | "epoch" | "flow_ids" | "types" if value.is_empty() => Ok(()),
                "since" => read_seq(&value).map(|seq| since = Some(seq)),
                "epoch" => {
                    epoch = Some(value.into_owned());
                    Ok(())
                }
                "flow_ids" => read_list(&value).map(|ids| filter.flow_ids = Some(ids)),
                "types" => read_list(&value).map(|types| filter.types = Some(types)),
                _ => Err("unknown parameter".to_owned()),
            };
            if let Err(fault) = read {
                faults.push(Fault::new(&*name, fault));
            }
        }
        let mut since = since.map(|seq| Position { seq, epoch });
        if let Some(id) = last_event_id.filter(|id| !id.is_empty()) {
            match read_id(id) {
                Some(position) => since = Some(position),
                None => faults.push(Fault::new("Last-Event-ID", "must be the `id` of an event")),
            }
        }
        if faults.is_empty() { Ok(Self { since, filter }) } else { Err(faults) }
    }
}

fn read_seq(text: &str) -> Result<Seq, String> {
    text.parse().map_err(|_| "must be the `seq` of an event".to_owned())
}

fn read_list<T: FromStr<Err: std::fmt::Display>>(text: &str) -> Result<Vec<T>, String> {
    let items =
        text.split(',').map(|item| item.trim().parse().map_err(|error: T::Err| error.to_string()));
    let items = items.collect::<Result<Vec<T>, String>>()?;
    if items.len() > FILTER_ITEMS_MAX {
        return Err(format!("too many items; the limit is {FILTER_ITEMS_MAX}"));
    }
    Ok(items)
}

/// Reads the id of an event; see [`Events`].
fn read_id(id: &str) -> Option<Position> {
    let (epoch, seq) = id.rsplit_once('-')?;
    Some(Position { seq: seq.parse().ok()?, epoch: Some(epoch.to_owned()) })
}

/// Formats messages as events. The id of an event is `EPOCH-SEQ`, so that `Last-Event-ID` is a
/// whole position. An event without an id leaves the client's last one as it is.
struct Events {
    epoch: String,
}

impl Encoding for Events {
    fn format(&self) -> Format {
        Format::EventStream
    }

    fn text(&self, position: Option<Seq>, text: &str, out: &mut Vec<u8>) {
        if let Some(seq) = position {
            out.extend_from_slice(format!("id: {}-{seq}\n", self.epoch).as_bytes());
        }
        // JSON contains no line breaks.
        for part in [b"data: ", text.as_bytes(), b"\n\n"] {
            out.extend_from_slice(part);
        }
    }

    fn ping(&self) -> Vec<u8> {
        b": keep-alive\n\n".to_vec()
    }

    fn close(&self, code: u16, reason: &str) -> Vec<u8> {
        format!(": closed with {code}: {reason}\n\n").into_bytes()
    }
}

/// An accepted request for events.
pub struct Opening {
    pub stream: Arc<TcpStream>,
    /// The head of the response; not written yet.
    pub answer: Vec<u8>,
    pub address: SocketAddr,
    pub subscription: Subscription,
}

/// Sends events until the client is gone.
///
/// # Errors
/// [`Error::Busy`], before anything is written, if the writer's thread cannot be started.
pub fn serve(sockets: &Sockets, opening: Box<Opening>) -> Result<()> {
    let Opening { stream, answer, address, subscription } = *opening;
    let Subscription { since, filter } = subscription;
    let handler = &sockets.handler;
    let outbox = sockets.outbox(&stream, Arc::new(Events { epoch: handler.epoch().to_owned() }));
    let client = Peer { id: handler.next_id(), address, since, filter, outbox };
    let writer = sockets.start_writer(&client)?;
    let _in_panic = PanicGuard { sockets, client: &client };
    // Safe to write here: the outbox is empty until the handler knows it.
    let opened = end_lost_connections(&stream, sockets.pings.silence_max())
        .and_then(|()| (&*stream).write_all(&answer))
        .map_err(Error::io("cannot send the response head"))
        .and_then(|()| handler.opened(&client));
    // A client that leaves before the response begins is not an error.
    let mut served = Ok(());
    match opened {
        Ok(()) => handler.ended(&client, wait_for_end(&client, &stream)),
        Err(Error::Io { .. }) => {}
        Err(error) => served = Err(error),
    }
    client.outbox.reader_done();
    if writer.join().is_err() {
        log::error!("the writer thread of client {} panicked", client.id);
    }
    served
}

/// A client sends nothing, so a lost one is noticed by bytes that it does not acknowledge.
fn end_lost_connections(stream: &TcpStream, time_max: Duration) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    socket2::SockRef::from(stream).set_tcp_user_timeout(Some(time_max))?;
    #[cfg(not(target_os = "linux"))]
    let _ = time_max;
    stream.set_read_timeout(None)
}

/// Drops input until the client is gone, and returns the reason.
fn wait_for_end(client: &Peer, mut stream: &TcpStream) -> Ending {
    let (mut buffer, mut bytes) = ([0; 256], 0);
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Ending::left("closed by the client"),
            Ok(count) => bytes += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Ending::left(format!("connection lost: {error}")),
        }
        if bytes > INPUT_BYTES_MAX {
            let reason = format!("too much input; the limit is {INPUT_BYTES_MAX} bytes");
            client.outbox.close(close::POLICY, &reason);
            drain(stream, DRAIN_TIME);
            return Ending::evicted(Eviction::TooMuch, reason);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_of_an_event_is_a_position() {
        let events = Events { epoch: "e1".into() };
        let mut out = Vec::new();
        events.text(Some(7), r#"{"seq":7}"#, &mut out);
        events.text(None, "{}", &mut out);
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text, "id: e1-7\ndata: {\"seq\":7}\n\ndata: {}\n\n");
        let position = Position { seq: 7, epoch: Some("e1".into()) };
        let read = Subscription::read("since=3&epoch=e0", Some("e1-7")).unwrap();
        assert_eq!(read.since, Some(position));
    }

    #[test]
    fn a_query_selects_flows_and_types() {
        let read = Subscription::read("flow_ids=1%2C2&types=A,B&since=3&epoch=", Some("")).unwrap();
        let filter =
            Filter { flow_ids: Some(vec![1, 2]), types: Some(vec!["A".into(), "B".into()]) };
        assert_eq!(read, Subscription { since: Some(Position { seq: 3, epoch: None }), filter });
        assert_eq!(Subscription::read("", None).unwrap(), Subscription::default());
    }

    #[test]
    fn all_faults_of_a_request_are_listed() {
        let many = "1,".repeat(FILTER_ITEMS_MAX) + "1";
        let query = format!("since=x&flow_ids=1,b&flow_ids={many}&flows=1");
        let faults = Subscription::read(&query, Some("7")).unwrap_err();
        let fields: Vec<&str> = faults.iter().map(|fault| fault.field.as_str()).collect();
        assert_eq!(fields, ["since", "flow_ids", "flow_ids", "flows", "Last-Event-ID"]);
    }
}
