//! Identifiers.

/// Identifies a flow: the `id` that `POST /api/flows` returns.
pub type FlowId = i64;
/// Identifies a run: a UUID of version 7, so that ids sort by creation time.
pub type RunId = String;
/// Identifies a connected WebSocket client; never reused within a process.
pub type ClientId = u64;
/// The position of an event in the event log; the first is 1.
pub type Seq = u64;

/// Returns bytes in lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
