//! Reads and writes triggers of flows: webhooks, the keys of their deliveries, schedules.

use rusqlite::{Connection, params};

use super::change::{Applied, Delivery, NewHook, NewSchedule, Receipt, done};
use super::flow_events::with_change;
use super::reader::Store;
use super::sql::{execute, no_conflict, one, require_row, single};
use crate::error::{Error, Result};
use crate::event::FlowChange;
use crate::ids::{FlowId, RunId};
use crate::schedule::Missed;
use crate::time::Timestamp;

/// Deliveries with the same key within this time are the same delivery, in milliseconds: 24 hours.
pub const HOOK_KEY_AGE_MAX_MS: i64 = 24 * 60 * 60 * 1000;

#[derive(Clone, Debug)]
pub struct HookRecord {
    pub flow_id: FlowId,
    pub slug: String,
    pub secret_hash: String,
    pub created_at: Timestamp,
    pub secret_at: Timestamp,
}

#[derive(Clone, Debug)]
pub struct ScheduleRecord {
    pub flow_id: FlowId,
    pub cron: String,
    pub timezone: String,
    pub missed: Missed,
    /// The input of its runs, as JSON; empty in lists.
    pub input: String,
    pub enabled: bool,
    pub updated_at: Timestamp,
    /// Only later times can be due. This is the last time that was run or skipped, or else the time
    /// when the schedule was set.
    pub last: Timestamp,
}

const HOOK_COLUMNS: &str = "flow_id, slug, secret_hash, created_ms, secret_ms";
const SCHEDULE_COLUMNS: &str = "flow_id, cron, timezone, missed, enabled, updated_ms, last_ms";

from_row!(HookRecord; flow_id, slug, secret_hash, created_at, secret_at);
from_row!(ScheduleRecord; flow_id, cron, timezone, missed, enabled, updated_at, last, input);

impl Store {
    /// # Errors
    /// [`Error::NotFound`] for a flow without a webhook.
    pub fn hook(&self, flow_id: FlowId) -> Result<HookRecord> {
        self.one(&format!("SELECT {HOOK_COLUMNS} FROM hooks WHERE flow_id = ?1"), [flow_id])?
            .ok_or_else(|| Error::NotFound(format!("webhook of flow {flow_id}")))
    }

    pub fn hook_by_slug(&self, slug: &str) -> Result<Option<HookRecord>> {
        self.one(&format!("SELECT {HOOK_COLUMNS} FROM hooks WHERE slug = ?1"), [slug])
    }

    /// Returns the run that a delivery with that key started within [`HOOK_KEY_AGE_MAX_MS`] before
    /// `now`, if any.
    pub fn delivered(&self, slug: &str, key: &str, now: Timestamp) -> Result<Option<RunId>> {
        let sql = "SELECT run_id FROM hook_keys
                     WHERE slug = ?1 AND key = ?2 AND created_ms > ?3";
        self.one(sql, params![slug, key, too_old(now)])
    }

    /// # Errors
    /// [`Error::NotFound`] for a flow without a schedule.
    pub fn schedule(&self, flow_id: FlowId) -> Result<ScheduleRecord> {
        let sql = format!("SELECT {SCHEDULE_COLUMNS}, input FROM schedules WHERE flow_id = ?1");
        self.one(&sql, [flow_id])?
            .ok_or_else(|| Error::NotFound(format!("schedule of flow {flow_id}")))
    }

    /// Returns all enabled schedules by flow id, without their inputs, which together may
    /// take gigabytes.
    pub fn schedules(&self) -> Result<Vec<ScheduleRecord>> {
        let sql =
            format!("SELECT {SCHEDULE_COLUMNS}, '' FROM schedules WHERE enabled ORDER BY flow_id");
        self.all(&sql, [])
    }
}

/// Returns the latest time in milliseconds whose keys may be used again.
fn too_old(now: Timestamp) -> i64 {
    now.0.saturating_sub(HOOK_KEY_AGE_MAX_MS)
}

pub(super) fn set_hook(db: &Connection, hook: &NewHook) -> Result<Applied> {
    // Inserts only if the flow exists, because it may have just been removed.
    let sql = "INSERT INTO hooks (flow_id, slug, secret_hash, created_ms, secret_ms)
             SELECT id, ?2, ?3, ?4, ?4 FROM flows WHERE id = ?1
             ON CONFLICT (flow_id) DO UPDATE SET secret_hash = ?3, secret_ms = ?4
             RETURNING slug";
    let slug = one(db, sql, params![hook.flow_id, hook.slug, hook.secret_hash, hook.at])?
        .ok_or_else(|| Error::NotFound(format!("flow {}", hook.flow_id)))?;
    with_change(db, Receipt::Hook(slug).into(), hook.flow_id, FlowChange::Triggers, hook.at)
}

pub(super) fn delete_hook(db: &Connection, flow_id: FlowId) -> Result<Applied> {
    delete_hook_keys(db, flow_id)?;
    let changed = execute(db, "DELETE FROM hooks WHERE flow_id = ?1", params![flow_id])?;
    require_row(changed, || format!("webhook of flow {flow_id}"))?;
    with_change(db, done(()), flow_id, FlowChange::Triggers, Timestamp::now())
}

fn delete_hook_keys(db: &Connection, flow_id: FlowId) -> Result<usize> {
    let sql = "DELETE FROM hook_keys WHERE slug = (SELECT slug FROM hooks WHERE flow_id = ?1)";
    execute(db, sql, params![flow_id])
}

pub(super) fn take_delivery(db: &Connection, delivery: &Delivery) -> Result<Applied> {
    let sql = "SELECT EXISTS (SELECT 1 FROM hooks WHERE slug = ?1 AND secret_hash = ?2)";
    let is_known: bool = single(db, sql, params![delivery.slug, delivery.secret_hash])?;
    require_row(usize::from(is_known), || format!("webhook `{}`", delivery.slug))?;
    let Some(key) = &delivery.key else {
        return Ok(Receipt::Done.into());
    };
    let sql = "INSERT INTO hook_keys (slug, key, run_id, created_ms) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT DO UPDATE SET run_id = ?3, created_ms = ?4 WHERE created_ms <= ?5";
    let changed = execute(
        db,
        sql,
        params![delivery.slug, key, delivery.run_id, delivery.at, too_old(delivery.at)],
    )?;
    no_conflict(changed, || "the webhook has already received this delivery".into()).map(done)
}

pub(super) fn set_schedule(db: &Connection, schedule: &NewSchedule) -> Result<Applied> {
    let sql = "INSERT INTO schedules (flow_id, cron, timezone, missed, input, enabled, updated_ms, last_ms)
         SELECT id, ?2, ?3, ?4, ?5, ?6, ?7, ?7 FROM flows WHERE id = ?1
         ON CONFLICT (flow_id) DO UPDATE SET cron = ?2, timezone = ?3, missed = ?4, input = ?5,
            enabled = ?6, updated_ms = ?7, last_ms = max(last_ms, ?7)";
    let changed = execute(
        db,
        sql,
        params![
            schedule.flow_id,
            schedule.cron,
            schedule.timezone,
            schedule.missed,
            schedule.input,
            schedule.enabled,
            schedule.at
        ],
    )?;
    require_row(changed, || format!("flow {}", schedule.flow_id))?;
    with_change(db, done(()), schedule.flow_id, FlowChange::Triggers, schedule.at)
}

pub(super) fn delete_schedule(db: &Connection, flow_id: FlowId) -> Result<Applied> {
    let changed = execute(db, "DELETE FROM schedules WHERE flow_id = ?1", params![flow_id])?;
    require_row(changed, || format!("schedule of flow {flow_id}"))?;
    with_change(db, done(()), flow_id, FlowChange::Triggers, Timestamp::now())
}

pub(super) fn take_due(db: &Connection, flow_id: FlowId, due: Timestamp) -> Result<Applied> {
    // This is the last check against running a time twice.
    let sql = "UPDATE schedules SET last_ms = ?2 WHERE flow_id = ?1 AND last_ms < ?2 AND enabled";
    let changed = execute(db, sql, params![flow_id, due])?;
    let message = || format!("the scheduled run of flow {flow_id} at {due} is no longer due");
    no_conflict(changed, message).map(done)
}

/// Removes the triggers of a flow that is removed.
pub(super) fn delete_of_flow(db: &Connection, flow_id: FlowId) -> Result<()> {
    delete_hook_keys(db, flow_id)?;
    let of_flow = params![flow_id];
    execute(db, "DELETE FROM hooks WHERE flow_id = ?1", of_flow)?;
    execute(db, "DELETE FROM schedules WHERE flow_id = ?1", of_flow)?;
    Ok(())
}

pub(super) fn prune_hook_keys(db: &Connection, now: Timestamp, step: usize) -> Result<usize> {
    let sql = "DELETE FROM hook_keys WHERE (slug, key) IN (
            SELECT slug, key FROM hook_keys WHERE created_ms <= ?1 ORDER BY created_ms LIMIT ?2)";
    execute(db, sql, params![too_old(now), step])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn database() -> Connection {
        let mut db = Connection::open_in_memory().unwrap();
        super::super::schema::migrate(&mut db).unwrap();
        let flow = "INSERT INTO flows VALUES (1, 'a', '{}', NULL, 0, 0)";
        db.execute_batch(flow).unwrap();
        db
    }

    #[test]
    fn a_key_is_reusable_after_a_day() {
        let db = database();
        let hook =
            NewHook { flow_id: 1, slug: "s".into(), secret_hash: "h".into(), at: Timestamp(0) };
        set_hook(&db, &hook).unwrap();
        let take = |at: i64, secret_hash: &str| {
            let delivery = Delivery {
                slug: "s".into(),
                secret_hash: secret_hash.into(),
                key: Some("k".into()),
                run_id: at.to_string(),
                at: Timestamp(at),
            };
            take_delivery(&db, &delivery)
        };
        take(5, "h").unwrap();
        for at in [5, 6, 4 + HOOK_KEY_AGE_MAX_MS] {
            assert!(matches!(take(at, "h"), Err(Error::Conflict(_))), "{at}");
        }
        // The secret was replaced while the delivery was in flight.
        assert!(matches!(take(7, "old"), Err(Error::NotFound(_))));
        take(5 + HOOK_KEY_AGE_MAX_MS, "h").unwrap();
        let prune = |now| prune_hook_keys(&db, Timestamp(now), 10).unwrap();
        assert_eq!(prune(4 + 2 * HOOK_KEY_AGE_MAX_MS), 0);
        assert_eq!(prune(5 + 2 * HOOK_KEY_AGE_MAX_MS), 1);
    }

    #[test]
    fn a_scheduled_time_is_claimed_once() {
        let db = database();
        let mut new = NewSchedule {
            flow_id: 1,
            cron: "* * * * *".into(),
            timezone: "UTC".into(),
            missed: Missed::Skip,
            input: "{}".into(),
            enabled: true,
            at: Timestamp(100),
        };
        let take = |due| take_due(&db, 1, Timestamp(due));
        assert!(take(101).is_err(), "there is none");
        set_schedule(&db, &new).unwrap();
        assert!(take(100).is_err(), "it was set after that");
        take(200).unwrap();
        assert!(take(200).is_err());
        assert!(take(150).is_err());
        // Setting it again with a clock that was set back makes nothing due again.
        new.at = Timestamp(150);
        set_schedule(&db, &new).unwrap();
        assert!(take(200).is_err());
        take(300).unwrap();
        new.enabled = false;
        set_schedule(&db, &new).unwrap();
        assert!(take(400).is_err());
    }
}
