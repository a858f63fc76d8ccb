//! The writing connection and its transactions.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::{Connection, TransactionBehavior, params};

use super::call_changes::CallWriter;
use super::change::{Applied, Change, Receipt, done};
use super::checkpoint::Checkpointer;
use super::connection::named;
use super::epochs::{self, Epochs};
use super::files::DatabaseFiles;
use super::sql::{all, execute, one, single};
use super::{
    block_index, bodies, corrections, daily_rollup, days, end_users, flows, keys, node_changes,
    prompt_densities, response_cache, run_changes, stored_objects, suggestions, triggers,
};
use crate::error::{Error, Result};
use crate::ids::{FlowId, RunId, Seq};
use crate::time::Timestamp;

/// The only connection that writes. The journal's thread owns it.
pub struct Writer {
    path: PathBuf,
    db: Connection,
    files: Arc<DatabaseFiles>,
    newest: Seq,
    epochs: Epochs,
    calls: CallWriter,
}

impl Writer {
    pub(super) fn new(path: PathBuf, db: Connection, files: Arc<DatabaseFiles>) -> Result<Self> {
        let sql = "SELECT seq FROM sqlite_sequence WHERE name = 'events'";
        let newest = one(&db, sql, [])?.unwrap_or(0);
        end_users::create_key(&db)?;
        let epochs = epochs::begin(&db, newest)?;
        let calls = CallWriter::load(&db)?;
        Ok(Self { path, db, files, newest, epochs, calls })
    }

    /// Returns the [`Checkpointer`] that copies commits into the database from now on, in place of
    /// the writer.
    ///
    /// # Errors
    /// Fails when the database cannot be opened a second time.
    pub fn checkpointer(&mut self) -> Result<Checkpointer> {
        Checkpointer::new(&mut self.db, &self.path)
    }

    /// Returns the file of the database that was deleted or replaced since it was opened, if any.
    pub fn lost_file(&self) -> Option<&Path> {
        self.files.lost()
    }

    #[cfg(test)]
    pub(super) fn budgets(&self) -> &super::budgets::Budgets {
        &self.calls.budgets
    }

    pub fn epochs(&self) -> &Epochs {
        &self.epochs
    }

    /// Returns the newest event's `seq`, or 0 if there never was one.
    pub fn newest_seq(&self) -> Seq {
        self.newest
    }

    /// Returns the oldest `seq` that is still in the log, or newest + 1 if the log is empty.
    pub fn oldest_seq(&self) -> Result<Seq> {
        let sql = "SELECT coalesce(min(seq), ?1) FROM events";
        single(&self.db, sql, [self.newest + 1])
    }

    /// Returns the time of the newest event, ledger row or run, if any.
    pub fn newest_moment(&self) -> Result<Option<Timestamp>> {
        let sql = "SELECT max(at) FROM (
                SELECT (SELECT timestamp_ms FROM events ORDER BY seq DESC LIMIT 1) AS at
                UNION ALL SELECT (SELECT timestamp_ms FROM ledger ORDER BY id DESC LIMIT 1)
                UNION ALL SELECT (SELECT created_ms FROM runs ORDER BY id DESC LIMIT 1))";
        single(&self.db, sql, [])
    }

    /// Runs `work` in one transaction and commits it. If `work` or the commit fails, everything is
    /// rolled back, and the event numbers that it used are used again.
    pub fn transaction<T>(&mut self, work: impl FnOnce(&mut Batch<'_>) -> Result<T>) -> Result<T> {
        let transaction = self.db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let before = self.calls.clone();
        let mut batch = Batch { db: &transaction, newest: self.newest, calls: &mut self.calls };
        let done = work(&mut batch);
        let newest = batch.newest;
        let committed = done.and_then(|done| {
            transaction.commit()?;
            Ok(done)
        });
        match &committed {
            Ok(_) => self.newest = newest,
            Err(_) => self.calls = before,
        }
        committed.map_err(|error| named(error, &self.path))
    }

    /// Returns the newest run beyond the newest `keep` runs, if any.
    pub fn newest_excess_run(&self, keep: u64) -> Result<Option<RunId>> {
        let sql = "SELECT id FROM runs ORDER BY id DESC LIMIT 1 OFFSET ?1";
        one(&self.db, sql, [keep])
    }

    /// Removes those of the `step` oldest runs that are over and either were accepted before
    /// `before` or are not newer than the run `upto`. Their ledger rows stay. Returns their number.
    pub fn prune_runs(
        &mut self,
        upto: Option<&str>,
        before: Timestamp,
        step: usize,
    ) -> Result<usize> {
        let sql = "SELECT id FROM (SELECT id, created_ms, status FROM runs ORDER BY id LIMIT ?3)
             WHERE (id <= ?1 OR created_ms < ?2) AND status NOT IN ('QUEUED', 'RUNNING')";
        let old: Vec<RunId> = all(&self.db, sql, params![upto, before, step])?;
        if !old.is_empty() {
            self.transaction(|batch| {
                let delete = |id: &RunId| run_changes::delete(batch.db, id).map(drop);
                old.iter().try_for_each(delete)
            })?;
        }
        Ok(old.len())
    }

    /// Removes up to `step` expired delivery keys. Returns their number.
    pub fn prune_hook_keys(&mut self, now: Timestamp, step: usize) -> Result<usize> {
        triggers::prune_hook_keys(&self.db, now, step)
    }

    /// Removes up to `step` old objects of clients. Returns their number.
    pub fn prune_objects(&mut self, now: Timestamp, step: usize) -> Result<usize> {
        stored_objects::prune(&self.db, now, step)
    }

    /// Indexes up to `step` blocks of ledger rows. Returns how many entries were written.
    pub fn index_blocks(&mut self, step: usize) -> Result<usize> {
        if !block_index::is_behind(&self.db, step)? {
            return Ok(0);
        }
        self.transaction(|batch| block_index::index(batch.db, step))
    }

    /// Sums up the next day of the ledger, if one is ready. Returns whether it did.
    pub fn roll_up_day(&mut self, now: Timestamp) -> Result<bool> {
        // Some sums may have been removed since.
        self.calls.rolled_up_until = days::rolled_up_until(&self.db)?;
        let Some(day) = daily_rollup::next(&self.db, now)? else {
            return Ok(false);
        };
        self.transaction(|batch| daily_rollup::roll_up(batch.db, day))?;
        self.calls.rolled_up_until = days::rolled_up_until(&self.db)?;
        Ok(true)
    }

    /// Returns by how many bytes the stored answers exceed their limit.
    pub fn cached_bytes_over_limit(&self) -> Result<i64> {
        response_cache::bytes_over_limit(&self.db)
    }

    /// Removes old answers; see [`response_cache::prune`].
    pub fn prune_responses(
        &mut self,
        too_many: bool,
        now: Timestamp,
        step: usize,
    ) -> Result<(usize, i64)> {
        self.transaction(|batch| response_cache::prune(batch.db, too_many, now, step))
    }

    /// Removes up to `step` old bodies; see [`bodies::prune`].
    pub fn prune_bodies(
        &mut self,
        before: Timestamp,
        bytes_max: u64,
        step: usize,
    ) -> Result<usize> {
        bodies::prune(&self.db, before, bytes_max, step)
    }

    /// Removes up to `step` of the oldest events that are older than `before` or beyond the newest
    /// `keep`. Stops at the first event to keep: times are not quite in the order of the log, and a
    /// client that catches up must not find a gap. Returns their number.
    pub fn prune_events(&mut self, keep: u64, before: Timestamp, step: usize) -> Result<usize> {
        // Only the oldest `step` rows are read, so that a pass with nothing to do costs little.
        let sql = "DELETE FROM events WHERE seq < (
                    SELECT coalesce(
                        min(seq) FILTER (WHERE seq > ?1 AND timestamp_ms >= ?2), max(seq) + 1)
                    FROM (SELECT seq, timestamp_ms FROM events ORDER BY seq LIMIT ?3))";
        execute(&self.db, sql, params![self.newest.saturating_sub(keep), before, step])
    }
}

pub struct Batch<'a> {
    db: &'a Connection,
    newest: Seq,
    calls: &'a mut CallWriter,
}

impl Batch<'_> {
    /// Runs `work` in a savepoint: if it fails, only its own writes are rolled back.
    pub fn isolated<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        // After some errors (a full disk) SQLite rolls back the whole transaction by itself. Later
        // writes would then be committed on their own, without their events.
        if self.db.is_autocommit() {
            return Err(Error::internal("the transaction was rolled back"));
        }
        let newest = self.newest;
        let calls = self.calls.clone();
        execute(self.db, "SAVEPOINT one", &[])?;
        match work(self) {
            Ok(done) => {
                execute(self.db, "RELEASE one", &[])?;
                Ok(done)
            }
            Err(error) => {
                self.newest = newest;
                *self.calls = calls;
                execute(self.db, "ROLLBACK TO one", &[])?;
                execute(self.db, "RELEASE one", &[])?;
                Err(error)
            }
        }
    }

    /// Appends an event's body to the log and returns its `seq`.
    pub fn append_event(
        &mut self,
        at: Timestamp,
        flow_id: Option<FlowId>,
        type_name: &str,
        body: &str,
    ) -> Result<Seq> {
        let seq = self.newest + 1;
        let sql = "INSERT INTO events (seq, timestamp_ms, flow_id, type, body) VALUES (?1, ?2, ?3, ?4, ?5)";
        execute(self.db, sql, params![seq, at, flow_id, type_name, body])?;
        self.newest = seq;
        Ok(seq)
    }

    /// Writes one change. All events are derived from changes here, so that the database and the
    /// events can never differ.
    pub fn apply(&mut self, change: &Change) -> Result<Applied> {
        let db = self.db;
        let calls = &mut *self.calls;
        match change {
            Change::CreateFlow(flow) => flows::create(db, flow),
            Change::UpdateFlow { id, flow } => flows::update(db, *id, flow),
            Change::DeleteFlow(id) => flows::delete(db, *id),
            Change::SetHook(hook) => triggers::set_hook(db, hook),
            Change::DeleteHook(flow_id) => triggers::delete_hook(db, *flow_id),
            Change::TakeDelivery(delivery) => triggers::take_delivery(db, delivery),
            Change::SetSchedule(schedule) => triggers::set_schedule(db, schedule),
            Change::DeleteSchedule(flow_id) => triggers::delete_schedule(db, *flow_id),
            Change::TakeDue { flow_id, due } => triggers::take_due(db, *flow_id, *due),
            Change::QueueRun(run) => run_changes::queue(db, run),
            Change::StartRun(start) => run_changes::start(db, start),
            Change::ResumeRun(start) => run_changes::resume(db, start),
            Change::CancelRun { run_id, at } => run_changes::cancel(db, run_id, *at),
            Change::CountRestarts => run_changes::count_restarts(db),
            Change::ForgetRestarts => run_changes::forget_restarts(db),
            Change::DeleteRun(id) => run_changes::delete(db, id),
            Change::FinishRun(end) => run_changes::finish(db, end),
            Change::StartNode { node, prompt, at } => {
                node_changes::start(db, node, prompt.as_ref(), *at)
            }
            Change::FinishNode(finished) => node_changes::finish(db, finished),
            Change::SkipNode { node, at } => node_changes::skip(db, node, *at),
            Change::RetryNode { node, error, at } => node_changes::retry(db, node, error, *at),
            Change::FailNode(failed) => node_changes::fail(db, failed),
            Change::OpenCall(call) => calls.open(db, call),
            Change::RefuseCall(call, by, why) => calls.insert(db, call, Some((*by, why)), None),
            Change::BookCached { call, model, saved } => {
                calls.insert(db, call, None, Some((model, *saved)))
            }
            Change::SettleCall(settlement) => calls.settle(db, settlement),
            Change::RaiseDensity { provider, model, density } => {
                prompt_densities::raise(db, provider, model, *density).map(done)
            }
            Change::EraseEndUser { names } => calls.erase_end_user(db, names),
            Change::Remember(object) => stored_objects::remember(db, object),
            Change::CloseObject(name) => stored_objects::close(db, name),
            Change::ExpireObject(name, settlement) => calls.expire(db, name, settlement.as_ref()),
            Change::ForgetObject(name) => stored_objects::forget(db, name),
            Change::CorrectCall(correction) => corrections::write(db, correction).map(done),
            Change::KeepAnswer(response) => response_cache::insert(db, response),
            Change::KeepBody(body) => bodies::insert(db, body),
            Change::DeleteBodies(which, step) => bodies::delete(db, which, *step),
            Change::SetBudgets { all, version } => {
                calls.budgets.replace(db, all, version.as_deref()).map(done)
            }
            Change::AddBudget(budget) => calls.budgets.add(db, budget).map(done),
            Change::CreateKey(key) => keys::create(db, key),
            Change::EditKey { id, edit } => keys::edit(db, *id, edit),
            Change::RotateKey { id, hash, valid_until, at } => {
                keys::rotate(db, *id, hash, *valid_until, *at)
            }
            Change::DeleteKey { id, with_budgets } => calls.delete_key(db, *id, *with_budgets),
            Change::TouchKey { id, at } => keys::touch(db, *id, *at),
            Change::Propose { flow_id, flow_name, proposal, at } => {
                suggestions::propose(db, *flow_id, flow_name, proposal, *at)
            }
            Change::CloseSuggestion { id, status, at } => suggestions::close(db, *id, *status, *at),
            Change::ApplySuggestion { id, proposal, before, after, at } => {
                suggestions::apply(db, *id, proposal, before, after, *at)
            }
            Change::RevertSuggestion { id, at } => suggestions::revert(db, *id, *at),
            Change::SetRealised { id, realised } => suggestions::set_realised(db, *id, realised),
            Change::SetTrial { id, trial } => suggestions::set_trial(db, *id, trial),
        }
    }
}
