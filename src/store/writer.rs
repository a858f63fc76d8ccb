//! The one connection that writes, and its transactions.

use std::path::PathBuf;

use rusqlite::{Connection, TransactionBehavior, params};

use super::call_changes::CallWriter;
use super::change::{Applied, Change, done};
use super::checkpoint::Checkpointer;
use super::sql::{all, execute, one, single};
use super::{
    block_index, daily_rollup, days, flows, keys, node_changes, response_cache, run_changes,
    suggestions, triggers,
};
use crate::error::{Error, Result};
use crate::ids::{FlowId, RunId, Seq};
use crate::time::Timestamp;

/// The one connection that writes. Owned by the journal's thread.
pub struct Writer {
    path: PathBuf,
    db: Connection,
    newest: Seq,
    calls: CallWriter,
}

impl Writer {
    pub(super) fn new(path: PathBuf, db: Connection) -> Result<Self> {
        let sql = "SELECT seq FROM sqlite_sequence WHERE name = 'events'";
        let newest = one(&db, sql, [])?.unwrap_or(0);
        let calls = CallWriter::load(&db)?;
        Ok(Self { path, db, newest, calls })
    }

    /// What copies commits into the database from now on; see [`Checkpointer`]. Until then the writer does.
    ///
    /// # Errors
    /// When the database cannot be opened once more.
    pub fn checkpointer(&mut self) -> Result<Checkpointer> {
        Checkpointer::new(&mut self.db, &self.path)
    }

    /// The newest event's place in the log; 0 where there never was one.
    pub fn newest_seq(&self) -> Seq {
        self.newest
    }

    /// The oldest event still in the log; newest + 1 where there is none.
    pub fn oldest_seq(&self) -> Result<Seq> {
        let sql = "SELECT coalesce(min(seq), ?1) FROM events";
        single(&self.db, sql, [self.newest + 1])
    }

    /// The moment of the newest event, ledger row or run; none where there are none.
    pub fn newest_moment(&self) -> Result<Option<Timestamp>> {
        let sql = "SELECT max(at) FROM (
                SELECT (SELECT timestamp_ms FROM events ORDER BY seq DESC LIMIT 1) AS at
                UNION ALL SELECT (SELECT timestamp_ms FROM ledger ORDER BY id DESC LIMIT 1)
                UNION ALL SELECT (SELECT created_ms FROM runs ORDER BY id DESC LIMIT 1))";
        single(&self.db, sql, [])
    }

    /// Runs `work` in one transaction and commits it. When `work` or the commit fails, nothing of
    /// it stays, and the numbers that it gave to events are given again.
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
        committed
    }

    /// The newest run beyond the newest `keep`, if there are so many.
    pub fn run_beyond(&self, keep: u64) -> Result<Option<RunId>> {
        let sql = "SELECT id FROM runs ORDER BY id DESC LIMIT 1 OFFSET ?1";
        one(&self.db, sql, [keep])
    }

    /// Removes those of the `step` oldest runs that are over and were accepted before `before`, or
    /// not after the run `upto`. Their ledger rows stay. Gives how many.
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

    /// Removes up to `step` of the keys of deliveries that may be used again. Gives how many.
    pub fn prune_hook_keys(&mut self, now: Timestamp, step: usize) -> Result<usize> {
        triggers::prune_hook_keys(&self.db, now, step)
    }

    /// Notes what up to `step` blocks of ledger rows hold that are not noted yet. Gives how many.
    pub fn note_blocks(&mut self, step: usize) -> Result<usize> {
        if !block_index::is_behind(&self.db, step)? {
            return Ok(0);
        }
        self.transaction(|batch| block_index::note(batch.db, step))
    }

    /// Sums up the next day of the ledger, if there is one that can be. Gives whether there was.
    pub fn sum_up_a_day(&mut self, now: Timestamp) -> Result<bool> {
        // Some days may have been forgotten since.
        self.calls.summed_until = days::summed_until(&self.db)?;
        let Some(day) = daily_rollup::next(&self.db, now)? else {
            return Ok(false);
        };
        self.transaction(|batch| daily_rollup::sum_up(batch.db, day))?;
        self.calls.summed_until = days::summed_until(&self.db)?;
        Ok(true)
    }

    /// How many bytes of answers there are beyond what there is room for.
    pub fn answer_bytes_too_many(&self) -> Result<i64> {
        response_cache::bytes_too_many(&self.db)
    }

    /// As [`response_cache::prune`].
    pub fn prune_answers(
        &mut self,
        too_many: bool,
        now: Timestamp,
        step: usize,
    ) -> Result<(usize, i64)> {
        self.transaction(|batch| response_cache::prune(batch.db, too_many, now, step))
    }

    /// Removes up to `step` of the oldest events where they are older than `before` or beyond the
    /// newest `keep`, and only those before which none stays: times are not quite in the order of the
    /// log, and whoever catches up must not find a gap in it. Gives how many.
    pub fn prune_events(&mut self, keep: u64, before: Timestamp, step: usize) -> Result<usize> {
        // Only the oldest `step` rows are looked at, so that a pass with nothing to do costs little.
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
    /// Runs `work` so that, when it fails, nothing of it stays while the rest of the batch does.
    pub fn isolated<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        // After some errors (a full disk) SQLite rolls the whole transaction back by itself; what
        // came now would be committed on its own, and nobody would be told of it.
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

    /// Appends an event's body to the log and returns its place.
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

    /// Writes one change. Every kind of change has its events here, so that the database and the
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
            Change::KeepAnswer(bought) => response_cache::keep(db, bought),
            Change::SetBudgets { all, version } => {
                calls.budgets.replace(db, all, version.as_deref()).map(done)
            }
            Change::AddBudget(budget) => calls.budgets.add(db, budget).map(done),
            Change::CreateKey(key) => keys::create(db, key),
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
