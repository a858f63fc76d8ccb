//! Checks the event log: it has no gaps, and its newest message about each ledger row matches
//! the row.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use serde::Deserialize;
use serde_json::value::RawValue;

use super::Check;
use crate::error::Result;
use crate::event::LedgerEntry;
use crate::store::Audit;

pub(super) fn check(audit: &Audit, on_row: &dyn Fn(), report: &mut dyn FnMut(Check)) -> Result<()> {
    let mut events = Check::of("events");
    let mut updates = Check::of("ledger rows in the event log");
    let mut seen = HashSet::new();
    let mut newer_seq = None;
    let assigned = audit.last_number("events")?;
    audit.events_backwards(|event| {
        on_row();
        events.checked += 1;
        let seq = i64::try_from(event.seq).unwrap_or(i64::MAX);
        match newer_seq {
            None if seq != assigned => events.add(format_args!(
                "the newest event is {seq}, but {assigned} was assigned: later events are missing"
            )),
            Some(newer_seq) if seq + 1 != newer_seq => events.add_gap("event", seq, newer_seq),
            _ => {}
        }
        newer_seq = Some(seq);
        let Some(body) = event.update else {
            return Ok(());
        };
        let Some((id, logged)) = entry(&body) else {
            events.add(format_args!("event {seq} has no valid ledger row: {body}"));
            return Ok(());
        };
        if seen.insert(id) {
            updates.checked += 1;
            if let Some(fault) = update_fault(audit, seq, id, logged) {
                updates.add(format_args!("ledger row {id}{fault}"));
            }
        }
        Ok(())
    })?;
    // If the beginning of the log was removed, some rows need not be mentioned.
    let calls = audit.extent()?.calls;
    if newer_seq == Some(1) && updates.checked < calls {
        updates.add(format_args!(
            "{} ledger rows have no event, although the log is complete",
            calls - updates.checked
        ));
    }
    report(events);
    report(updates);
    Ok(())
}

/// Returns the id of the ledger row in a message, and the row as JSON.
fn entry(body: &str) -> Option<(i64, &str)> {
    #[derive(Deserialize)]
    struct Update<'a> {
        #[serde(borrow)]
        payload: Payload<'a>,
    }
    #[derive(Deserialize)]
    struct Payload<'a> {
        #[serde(borrow)]
        entry: &'a RawValue,
    }
    #[derive(Deserialize)]
    struct EntryId {
        id: i64,
    }
    let update: Update<'_> = serde_json::from_str(body).ok()?;
    let entry = update.payload.entry.get();
    let EntryId { id } = serde_json::from_str(entry).ok()?;
    Some((id, entry))
}

/// Compares the row in its newest message with the stored row.
fn update_fault(audit: &Audit, seq: i64, id: i64, logged: &str) -> Option<String> {
    let entry = match audit.entry(id) {
        Ok(Some(entry)) => entry,
        Ok(None) => return Some(format!(" is missing, but event {seq} has it")),
        Err(error) => return Some(format!(" cannot be compared with event {seq}: {error}")),
    };
    let stored = serde_json::to_string(&entry).unwrap_or_default();
    // Another version may have serialized the same row differently.
    let is_same = logged == stored
        || serde_json::from_str::<LedgerEntry>(logged).is_ok_and(|logged| logged == entry);
    (!is_same).then(|| {
        let difference = first_difference(logged, &stored);
        let (logged, stored) = difference.unwrap_or_else(|| (logged.to_owned(), stored));
        format!(": its newest event {seq} has {logged}, but the row has {stored}")
    })
}

/// Returns the first field, as JSON, that differs between two objects.
fn first_difference(logged: &str, stored: &str) -> Option<(String, String)> {
    let logged: BTreeMap<&str, &RawValue> = serde_json::from_str(logged).ok()?;
    let stored: BTreeMap<&str, &RawValue> = serde_json::from_str(stored).ok()?;
    let names: BTreeSet<&str> = logged.keys().chain(stored.keys()).copied().collect();
    names.into_iter().find_map(|name| {
        let value = |of: &BTreeMap<&str, &RawValue>| {
            let value = of.get(name).map_or("missing", |value| value.get());
            format!("{name}: {value}")
        };
        let (logged, stored) = (value(&logged), value(&stored));
        (logged != stored).then_some((logged, stored))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ledger_row_of_a_message_is_found_in_any_key_order() {
        let usual = r#"{"type":"LEDGER_UPDATE","payload":{"flowId":1,"entry":{"id":17,"x":1}}}"#;
        assert_eq!(entry(usual), Some((17, r#"{"id":17,"x":1}"#)));
        let other = r#"{"payload": {"entry": {"x": {"id": 3}, "id": 18}}}"#;
        assert_eq!(entry(other).map(|(id, _)| id), Some(18));
        assert_eq!(entry("{}"), None);
    }
}
