//! Identifiers.

/// Identifies a flow: the number that `POST /api/flows` answers with.
pub type FlowId = i64;
/// Identifies a run: a UUID of version 7, so that ids sort by time of creation.
pub type RunId = String;
/// Identifies a WebSocket client for as long as it is connected; never used twice by a process.
pub type ClientId = u64;
/// The place of an event in the durable log; the first is 1.
pub type Seq = u64;

/// Bytes in hexadecimal, as hashes are printed.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
