//! Identifiers.

use std::time::{Duration, SystemTime};

use uuid::{NoContext, Uuid};

/// Limits the time in a UUID: 48 bits of milliseconds.
const UUID_TIME_END: Duration = Duration::from_secs((1 << 48) / 1000 - 1);

/// Identifies a flow: the `id` that `POST /api/flows` returns.
pub type FlowId = i64;
/// Identifies a run: a UUID of version 7, so that ids sort by creation time.
pub type RunId = String;
/// Identifies a connected WebSocket client; never reused within a process.
pub type ClientId = u64;
/// The position of an event in the event log; the first is 1.
pub type Seq = u64;

/// Returns a new UUID of version 7. Unlike `Uuid::now_v7`, accepts any clock.
pub fn time_sorted_uuid() -> Uuid {
    uuid_at(SystemTime::now())
}

fn uuid_at(clock: SystemTime) -> Uuid {
    match clock.duration_since(SystemTime::UNIX_EPOCH) {
        // Rises even within a millisecond.
        Ok(time) if time < UUID_TIME_END => Uuid::now_v7(),
        Ok(_) => Uuid::new_v7(uuid::Timestamp::from_unix(NoContext, UUID_TIME_END.as_secs(), 0)),
        Err(_) => Uuid::new_v7(uuid::Timestamp::from_unix(NoContext, 0, 0)),
    }
}

/// Returns bytes in lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_can_be_made_at_any_time() {
        let start = SystemTime::UNIX_EPOCH;
        let early = uuid_at(start - Duration::from_secs(9));
        let late = uuid_at(start + Duration::from_secs(1 << 60));
        assert_ne!(early, uuid_at(start - Duration::from_secs(9)));
        assert!(early < uuid_at(start + Duration::from_secs(9)) && uuid_at(start) < late);
    }
}
