//! Everything that can be written, as one closed list, and the one connection that writes it.

use std::path::PathBuf;
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};
use sha2::{Digest, Sha256};

use super::block_index;
use super::budgets::Budgets;
use super::checkpoint::Checkpointer;
use super::daily_rollup::{self, Day};
use super::keys::{self, NewKey};
use super::ledger::{ENTRY_COLUMNS, entry};
use super::prices::Prices;
use super::response_cache::{self, Bought};
use super::suggestions;
use super::triggers;
use crate::budget::{Budget, Reserve};
use crate::error::{Error, Result};
use crate::event::suggestion::{Proposal, Realised, Status, Suggestion, Trial};
use crate::event::{
    BudgetWarning, CallStatus, FlowId, LedgerEntry, RefusedBy, RunId, RunStatus, Seq, Timestamp,
    Usage, Usd,
};
use crate::schedule::Missed;

/// A node of a run.
#[derive(Clone, Debug)]
pub struct NodeRef {
    /// The flow.
    pub flow_id: FlowId,
    /// The run.
    pub run_id: RunId,
    /// The node.
    pub node_id: String,
    /// Of a map: which of its items is meant, from 0; none where it is the node itself.
    pub item: Option<usize>,
    /// What people call the node.
    pub label: String,
    /// The number of the attempt; the first is 1.
    pub attempt: u32,
}

/// What is asked, with templates filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// The user's text.
    pub prompt: String,
    /// The system text.
    pub system: Option<String>,
}

/// A run that is accepted.
#[derive(Clone, Debug)]
pub struct NewRun {
    /// Its id.
    pub id: RunId,
    /// Its flow.
    pub flow_id: FlowId,
    /// The flow's name as it is now.
    pub flow_name: String,
    /// What started it.
    pub trigger: String,
    /// Its input, JSON.
    pub input: String,
    /// The flow's graph as it is now, JSON.
    pub graph: Arc<str>,
    /// When it was accepted.
    pub at: Timestamp,
}

/// A webhook as it is set.
#[derive(Clone, Debug)]
pub struct NewHook {
    /// The flow that it runs.
    pub flow_id: FlowId,
    /// Its name in the URL; one that the flow has already stays instead.
    pub slug: String,
    /// SHA-256 of its secret in hexadecimal.
    pub secret_hash: String,
    /// When.
    pub at: Timestamp,
}

/// What a webhook was delivered, beside the run that it starts.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The webhook.
    pub slug: String,
    /// SHA-256 of the secret that came with it, in hexadecimal.
    pub secret_hash: String,
    /// What the sender calls it, if it shall not be run again.
    pub key: Option<String>,
    /// The run that it starts.
    pub run_id: RunId,
    /// When.
    pub at: Timestamp,
}

/// A schedule as it is set.
#[derive(Clone, Debug)]
pub struct NewSchedule {
    /// The flow that it runs.
    pub flow_id: FlowId,
    /// When it is due, in five fields.
    pub cron: String,
    /// The IANA time zone that `cron` is about.
    pub timezone: String,
    /// What becomes of times at which no server ran.
    pub missed: Missed,
    /// The input of its runs, a JSON object.
    pub input: String,
    /// Whether it runs at all.
    pub enabled: bool,
    /// When; nothing before is due.
    pub at: Timestamp,
}

/// A call that is about to be made.
#[derive(Clone, Debug)]
pub struct NewCall {
    /// When.
    pub at: Timestamp,
    /// The flow, run and node, where there is one.
    pub flow_id: Option<FlowId>,
    /// The run.
    pub run_id: Option<RunId>,
    /// The node.
    pub node_id: Option<String>,
    /// The number of the attempt; the first is 1.
    pub attempt: u32,
    /// Joins the attempts of one operation.
    pub operation_id: String,
    /// The provider's name in the configuration.
    pub provider: String,
    /// The model asked for.
    pub model: String,
    /// What the ledger groups it under.
    pub role: Option<String>,
    /// SHA-256 of the prompt in hexadecimal.
    pub prompt_hash: String,
    /// The name of the key that a client of the gateway came with.
    pub key_name: Option<String>,
    /// What that client wants its calls to be grouped by.
    pub tags: Option<String>,
    /// What it may need at most.
    pub reserve: Reserve,
}

/// How a call ended.
#[derive(Clone, Debug)]
pub struct Settlement {
    /// The ledger row.
    pub id: i64,
    /// The model that answered, where one did.
    pub model: Option<String>,
    /// Tokens.
    pub usage: Usage,
    /// What it cost; none where that is not known.
    pub cost: Option<Usd>,
    /// The price that the cost was computed with, JSON, where there is one.
    pub price: Option<Arc<str>>,
    /// Milliseconds; none where it is not known.
    pub latency_ms: Option<u64>,
    /// Milliseconds; none where it was not streamed or is not known.
    pub first_token_ms: Option<u64>,
    /// What became of it; not `PENDING`.
    pub status: CallStatus,
    /// Why it did not succeed.
    pub error: Option<String>,
    /// When.
    pub at: Timestamp,
}

/// One thing to write. What viewers are told follows from it (see `journal`).
#[derive(Clone, Debug)]
pub enum Change {
    /// A new flow.
    CreateFlow {
        /// Its name.
        name: String,
        /// The document as posted, JSON.
        document: String,
        /// The file that it came from.
        origin: Option<String>,
        /// When.
        at: Timestamp,
    },
    /// A flow is replaced.
    UpdateFlow {
        /// Which.
        id: FlowId,
        /// Its name.
        name: String,
        /// The document as posted, JSON.
        document: String,
        /// When.
        at: Timestamp,
    },
    /// A flow is removed, with its webhook and its schedule; its runs and ledger rows stay.
    DeleteFlow(FlowId),
    /// A flow gets a webhook, or the one it has gets a new secret.
    SetHook(NewHook),
    /// A flow's webhook is removed.
    DeleteHook(FlowId),
    /// A webhook was used. Refused where it is gone or has another secret by now, and where the key
    /// was used within [`HOOK_KEY_AGE_MAX_MS`](super::HOOK_KEY_AGE_MAX_MS); then nothing beside it is written either.
    TakeDelivery(Delivery),
    /// A flow gets a schedule, in place of the one it has.
    SetSchedule(NewSchedule),
    /// A flow's schedule is removed.
    DeleteSchedule(FlowId),
    /// A time of a schedule is dealt with, whether it is run or left out. Refused where it was dealt
    /// with before, and where the schedule is gone, was replaced or switched off by now; then
    /// nothing beside it is written either.
    TakeDue {
        /// The schedule's flow.
        flow_id: FlowId,
        /// The time.
        due: Timestamp,
    },
    /// A run is accepted.
    QueueRun(NewRun),
    /// A run begins, or goes on after a restart.
    StartRun {
        /// Its flow.
        flow_id: FlowId,
        /// Which.
        run_id: RunId,
        /// The flow's name.
        name: String,
        /// How many nodes it has.
        node_count: usize,
        /// What started it.
        trigger: String,
        /// When.
        at: Timestamp,
    },
    /// A run that failed or was cancelled goes on.
    ResumeRun {
        /// Its flow.
        flow_id: FlowId,
        /// Which.
        run_id: RunId,
        /// The flow's name.
        name: String,
        /// How many nodes it has.
        node_count: usize,
        /// What started it at first.
        trigger: String,
        /// When.
        at: Timestamp,
    },
    /// Somebody wants a run stopped, also by a server that starts again. Nothing where it is over.
    CancelRun {
        /// Which.
        run_id: RunId,
        /// When.
        at: Timestamp,
    },
    /// A run that is over is removed; its ledger rows stay.
    DeleteRun(RunId),
    /// A node is about to execute.
    StartNode {
        /// Which.
        node: NodeRef,
        /// What is asked; none of a node that asks nobody.
        prompt: Option<Prompt>,
        /// When.
        at: Timestamp,
    },
    /// A call is about to be made: the intent. Refused where a hard budget does not allow it.
    OpenCall(NewCall),
    /// A call was refused before it was made, by what, and why: a row of its own that costs nothing.
    RefuseCall(NewCall, RefusedBy, String),
    /// A call need not be made, because its answer was bought before: a row that costs nothing and
    /// says what it saved.
    BookCached {
        /// The call.
        call: NewCall,
        /// The model that had answered.
        model: String,
        /// What the answer had cost; none where that is not known.
        saved: Option<Usd>,
    },
    /// An answer is kept for those who ask the same.
    KeepAnswer(Arc<Bought>),
    /// All budgets are replaced by others.
    SetBudgets {
        /// By these.
        all: Vec<Budget>,
        /// What [`crate::budget::version`] gives of those that are to be replaced, where no others may be.
        version: Option<String>,
    },
    /// A budget is added to those that there are. Refused where there is one of that name.
    AddBudget(Budget),
    /// A key for a client of the gateway. Refused where there is one of that name.
    CreateKey(NewKey),
    /// A key is removed.
    DeleteKey {
        /// Which.
        id: i64,
        /// Whether its budgets are, too.
        with_budgets: bool,
    },
    /// A key is used.
    TouchKey {
        /// Which.
        id: i64,
        /// When.
        at: Timestamp,
    },
    /// A call ended.
    SettleCall(Settlement),
    /// A node finished well, or the run goes on as if it had.
    FinishNode {
        /// Which.
        node: NodeRef,
        /// Its output.
        output: String,
        /// Of the attempt that gave it, milliseconds.
        latency_ms: u64,
        /// Why it failed, where the run goes on all the same.
        error: Option<String>,
        /// Whether the output was bought before.
        cached: bool,
        /// When.
        at: Timestamp,
    },
    /// A node is on no branch that was taken.
    SkipNode {
        /// Which.
        node: NodeRef,
        /// When.
        at: Timestamp,
    },
    /// An attempt at a node failed, and another follows.
    RetryNode {
        /// Which.
        node: NodeRef,
        /// Why.
        error: String,
        /// When.
        at: Timestamp,
    },
    /// A node failed or was stopped.
    FailNode {
        /// Which.
        node: NodeRef,
        /// Why.
        error: String,
        /// Whether somebody stopped it.
        cancelled: bool,
        /// When.
        at: Timestamp,
    },
    /// The optimizer proposes something about a flow, or says anew what it proposed before.
    Propose {
        /// Which.
        flow_id: FlowId,
        /// The flow's name.
        flow_name: String,
        /// What.
        proposal: Box<Proposal>,
        /// When.
        at: Timestamp,
    },
    /// An open suggestion is dismissed or withdrawn.
    CloseSuggestion {
        /// Which.
        id: i64,
        /// What becomes of it.
        status: Status,
        /// When.
        at: Timestamp,
    },
    /// A flow is changed as a suggestion says. Refused where its document is not `before`.
    ApplySuggestion {
        /// Which.
        id: i64,
        /// What it proposes, with the change put forward that is made.
        proposal: Box<Proposal>,
        /// The flow's document, for which the change was made.
        before: String,
        /// The changed one.
        after: String,
        /// When.
        at: Timestamp,
    },
    /// What a suggestion changed is taken back. Refused where the flow was changed since.
    RevertSuggestion {
        /// Which.
        id: i64,
        /// When.
        at: Timestamp,
    },
    /// What a suggestion has saved since it was applied.
    SetRealised {
        /// Which.
        id: i64,
        /// What.
        realised: Realised,
    },
    /// What a trial of a suggestion gave.
    SetTrial {
        /// Which.
        id: i64,
        /// What.
        trial: Box<Trial>,
    },
    /// A run is over.
    FinishRun {
        /// Its flow.
        flow_id: FlowId,
        /// Which.
        run_id: RunId,
        /// How it ended.
        status: RunStatus,
        /// Why it failed.
        error: Option<String>,
        /// The node at fault.
        error_node: Option<String>,
        /// When.
        at: Timestamp,
    },
}

/// What a change left behind, for those who need it to go on or to tell others.
#[derive(Clone, Debug)]
pub enum Receipt {
    /// The flow's number.
    Flow(FlowId),
    /// The webhook's name in the URL.
    Hook(String),
    /// The key's number.
    Key(i64),
    /// The ledger row as it is now.
    Call(Box<LedgerEntry>),
    /// The ledger row as it is now, and what of budgets is used up with it.
    Settled(Box<LedgerEntry>, Vec<BudgetWarning>),
    /// The sums of a node that is over, of all its attempts.
    NodeOver {
        /// Tokens of all prompts.
        input_tokens: u64,
        /// Tokens of all answers.
        output_tokens: u64,
        /// Its cost; none where the price of a call is not known.
        cost: Option<Usd>,
    },
    /// The sums of a run that is over.
    RunOver {
        /// From its start, milliseconds.
        execution_time_ms: u64,
        /// Tokens of all prompts.
        input_tokens: u64,
        /// Tokens of all answers.
        output_tokens: u64,
        /// Its cost; none where the price of a call is not known.
        cost: Option<Usd>,
    },
    /// A suggestion that people are to be told of.
    Suggested(Box<Suggestion>),
    /// A suggestion, as it is now.
    SuggestionChanged(Box<Suggestion>),
    /// Nothing to tell.
    Done,
}

/// Sets the sums of a node (`?2`) of a run (`?1`). They are those of the ledger, over all attempts,
/// so that the two can never differ. A call whose price is not known makes the node's cost unknown.
const NODE_SUMS: &str = "(input_tokens, output_tokens, cost_nanousd) = (
    SELECT coalesce(sum(input_tokens), 0), coalesce(sum(output_tokens), 0),
        CASE WHEN count(*) = count(cost_nanousd) THEN coalesce(sum(cost_nanousd), 0) END
    FROM ledger WHERE run_id = ?1 AND node_id = ?2)";

/// The one connection that writes. Owned by the journal's thread.
pub struct Writer {
    path: PathBuf,
    connection: Connection,
    newest: Seq,
    budgets: Budgets,
    /// The days before this one are summed up.
    summed_until: Day,
    prices: Prices,
}

impl Writer {
    /// Over a connection to the database at `path`.
    pub(super) fn new(path: PathBuf, connection: Connection) -> Result<Self> {
        let newest = connection
            .query_row(
                "SELECT seq FROM sqlite_sequence WHERE name = 'events'",
                [],
                |row| row.get(0),
            )
            .optional()?
            .unwrap_or(0);
        let budgets = Budgets::load(&connection)?;
        let summed_until = daily_rollup::summed_until(&connection)?;
        Ok(Self {
            path,
            connection,
            newest,
            budgets,
            summed_until,
            prices: Prices::default(),
        })
    }

    /// What copies commits into the database from now on; see [`Checkpointer`]. Until then the writer does.
    ///
    /// # Errors
    /// When the database cannot be opened once more.
    pub fn checkpointer(&mut self) -> Result<Checkpointer> {
        Checkpointer::new(&mut self.connection, &self.path)
    }

    /// The newest event's place in the log; 0 where there never was one.
    pub fn newest_seq(&self) -> Seq {
        self.newest
    }

    /// The oldest event still in the log; newest + 1 where there is none.
    pub fn oldest_seq(&self) -> Result<Seq> {
        let oldest: Option<Seq> =
            self.connection
                .query_row("SELECT min(seq) FROM events", [], |row| row.get(0))?;
        Ok(oldest.unwrap_or(self.newest + 1))
    }

    /// The moment of the newest event, ledger row or run; none where there are none.
    pub fn newest_moment(&self) -> Result<Option<Timestamp>> {
        let newest: Option<i64> = self.connection.query_row(
            "SELECT max(at) FROM (
                SELECT (SELECT timestamp_ms FROM events ORDER BY seq DESC LIMIT 1) AS at
                UNION ALL SELECT (SELECT timestamp_ms FROM ledger ORDER BY id DESC LIMIT 1)
                UNION ALL SELECT (SELECT created_ms FROM runs ORDER BY id DESC LIMIT 1))",
            [],
            |row| row.get(0),
        )?;
        Ok(newest.map(Timestamp))
    }

    /// Runs `work` in one transaction and commits it. When `work` or the commit fails, nothing of
    /// it stays, and the numbers that it gave to events are given again.
    pub fn transaction<T>(&mut self, work: impl FnOnce(&mut Batch<'_>) -> Result<T>) -> Result<T> {
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        let before = self.budgets.before();
        let mut batch = Batch {
            connection: &transaction,
            newest: self.newest,
            budgets: &mut self.budgets,
            summed_until: self.summed_until,
            prices: &mut self.prices,
        };
        let done = work(&mut batch);
        let newest = batch.newest;
        let committed = done.and_then(|done| {
            transaction.commit()?;
            Ok(done)
        });
        match &committed {
            Ok(_) => {
                self.newest = newest;
                self.prices.committed();
            }
            Err(_) => {
                self.budgets.go_back(before);
                self.prices.go_back(0);
            }
        }
        committed
    }

    /// The newest run beyond the newest `keep`, if there are so many.
    pub fn run_beyond(&self, keep: u64) -> Result<Option<RunId>> {
        let found = self
            .connection
            .prepare_cached("SELECT id FROM runs ORDER BY id DESC LIMIT 1 OFFSET ?1")?
            .query_row([keep], |row| row.get(0));
        Ok(found.optional()?)
    }

    /// Removes those of the `step` oldest runs that are over and were accepted before `before`, or
    /// not after the run `upto`. Their ledger rows stay. Gives how many.
    pub fn prune_runs(
        &mut self,
        upto: Option<&str>,
        before: Timestamp,
        step: usize,
    ) -> Result<usize> {
        let old: Vec<RunId> = self
            .connection
            .prepare_cached(
                "SELECT id FROM (SELECT id, created_ms, status FROM runs ORDER BY id LIMIT ?3)
                 WHERE (id <= ?1 OR created_ms < ?2) AND status NOT IN ('QUEUED', 'RUNNING')",
            )?
            .query_map(params![upto, before.0, step], |row| row.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        if !old.is_empty() {
            self.transaction(|batch| old.iter().try_for_each(|id| batch.delete_run(id)))?;
        }
        Ok(old.len())
    }

    /// Removes up to `step` of the keys of deliveries that may be used again. Gives how many.
    pub fn prune_hook_keys(&mut self, now: Timestamp, step: usize) -> Result<usize> {
        triggers::prune_hook_keys(&self.connection, now, step)
    }

    /// Notes what up to `step` blocks of ledger rows hold that are not noted yet. Gives how many.
    pub fn note_blocks(&mut self, step: usize) -> Result<usize> {
        if !block_index::is_behind(&self.connection, step)? {
            return Ok(0);
        }
        self.transaction(|batch| block_index::note(batch.connection, step))
    }

    /// Sums up the next day of the ledger, if there is one that can be. Gives whether there was.
    pub fn sum_up_a_day(&mut self, now: Timestamp) -> Result<bool> {
        // Some days may have been forgotten since.
        self.summed_until = daily_rollup::summed_until(&self.connection)?;
        let Some(day) = daily_rollup::next(&self.connection, now)? else {
            return Ok(false);
        };
        self.transaction(|batch| daily_rollup::sum_up(batch.connection, day))?;
        self.summed_until = daily_rollup::summed_until(&self.connection)?;
        Ok(true)
    }

    /// How many bytes of answers there are beyond what there is room for.
    pub fn answer_bytes_too_many(&self) -> Result<i64> {
        response_cache::bytes_too_many(&self.connection)
    }

    /// Removes those of the `step` oldest answers that are too old; all of them where `too_many`.
    /// Gives how many these were, and how many bytes.
    pub fn prune_answers(
        &mut self,
        too_many: bool,
        now: Timestamp,
        step: usize,
    ) -> Result<(usize, i64)> {
        self.transaction(|batch| response_cache::prune(batch.connection, too_many, now, step))
    }

    /// Removes up to `step` of the oldest events where they are older than `before` or beyond the
    /// newest `keep`, and only those before which none stays: times are not quite in the order of the
    /// log, and whoever catches up must not find a gap in it. Gives how many.
    pub fn prune_events(&mut self, keep: u64, before: Timestamp, step: usize) -> Result<usize> {
        // Only the oldest `step` rows are looked at, so that a pass with nothing to do costs little.
        let removed = self
            .connection
            .prepare_cached(
                "DELETE FROM events WHERE seq < (
                    SELECT coalesce(
                        min(seq) FILTER (WHERE seq > ?1 AND timestamp_ms >= ?2), max(seq) + 1)
                    FROM (SELECT seq, timestamp_ms FROM events ORDER BY seq LIMIT ?3))",
            )?
            .execute(params![self.newest.saturating_sub(keep), before.0, step])?;
        Ok(removed)
    }
}

/// An open transaction.
pub struct Batch<'a> {
    connection: &'a Connection,
    newest: Seq,
    budgets: &'a mut Budgets,
    summed_until: Day,
    prices: &'a mut Prices,
}

impl Batch<'_> {
    /// Runs `work` so that, when it fails, nothing of it stays while the rest of the batch does.
    pub fn isolated<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        // After some errors (a full disk) SQLite rolls the whole transaction back by itself; what
        // came now would be committed on its own, and nobody would be told of it.
        if self.connection.is_autocommit() {
            return Err(Error::internal("the transaction was rolled back"));
        }
        let newest = self.newest;
        let budgets = self.budgets.before();
        let prices = self.prices.before();
        self.execute("SAVEPOINT one", &[])?;
        match work(self) {
            Ok(done) => {
                self.execute("RELEASE one", &[])?;
                Ok(done)
            }
            Err(error) => {
                self.newest = newest;
                self.budgets.go_back(budgets);
                self.prices.go_back(prices);
                self.execute("ROLLBACK TO one", &[])?;
                self.execute("RELEASE one", &[])?;
                Err(error)
            }
        }
    }

    /// Appends an event's body to the log and gives its place.
    pub fn append_event(
        &mut self,
        at: Timestamp,
        flow_id: Option<FlowId>,
        type_name: &str,
        body: &str,
    ) -> Result<Seq> {
        let seq = self.newest + 1;
        self.execute(
            "INSERT INTO events (seq, timestamp_ms, flow_id, type, body) VALUES (?1, ?2, ?3, ?4, ?5)",
            params![seq, at.0, flow_id, type_name, body],
        )?;
        self.newest = seq;
        Ok(seq)
    }

    /// Writes one change.
    pub fn apply(&mut self, change: &Change) -> Result<Receipt> {
        match change {
            Change::CreateFlow {
                name,
                document,
                origin,
                at,
            } => self.create_flow(name, document, origin.as_deref(), *at),
            Change::UpdateFlow {
                id,
                name,
                document,
                at,
            } => self.update_flow(*id, name, document, *at),
            Change::DeleteFlow(id) => self.delete_flow(*id),
            Change::SetHook(hook) => triggers::set_hook(self.connection, hook),
            Change::DeleteHook(flow_id) => triggers::delete_hook(self.connection, *flow_id),
            Change::TakeDelivery(delivery) => triggers::take_delivery(self.connection, delivery),
            Change::SetSchedule(schedule) => triggers::set_schedule(self.connection, schedule),
            Change::DeleteSchedule(flow_id) => triggers::delete_schedule(self.connection, *flow_id),
            Change::TakeDue { flow_id, due } => triggers::take_due(self.connection, *flow_id, *due),
            Change::QueueRun(run) => self.queue_run(run),
            Change::StartRun { run_id, at, .. } => self.start_run(run_id, *at),
            Change::ResumeRun { run_id, at, .. } => self.resume_run(run_id, *at),
            Change::CancelRun { run_id, at } => {
                self.execute(
                    "UPDATE runs SET cancel_ms = ?2 WHERE id = ?1 AND status IN ('QUEUED', 'RUNNING')",
                    params![run_id, at.0],
                )?;
                Ok(Receipt::Done)
            }
            Change::DeleteRun(id) => self.delete_run(id).map(|()| Receipt::Done),
            Change::StartNode { node, prompt, at } => match node.item {
                Some(item) => self.start_item(node, item, prompt.as_ref(), *at),
                None => self.start_node(node, prompt.as_ref(), *at),
            },
            Change::OpenCall(call) => self.open_call(call),
            Change::RefuseCall(call, by, why) => self.refuse_call(call, *by, why),
            Change::BookCached { call, model, saved } => self.book_cached(call, model, *saved),
            Change::KeepAnswer(bought) => {
                response_cache::keep(self.connection, bought)?;
                Ok(Receipt::Done)
            }
            Change::SetBudgets { all, version } => {
                self.budgets
                    .replace(self.connection, all, version.as_deref())?;
                Ok(Receipt::Done)
            }
            Change::AddBudget(budget) => {
                self.budgets.add(self.connection, budget)?;
                Ok(Receipt::Done)
            }
            Change::CreateKey(key) => keys::create(self.connection, key),
            Change::DeleteKey { id, with_budgets } => {
                let name = keys::delete(self.connection, *id)?;
                if *with_budgets {
                    self.budgets.remove_of_key(self.connection, &name)?;
                }
                Ok(Receipt::Done)
            }
            Change::TouchKey { id, at } => keys::touch(self.connection, *id, *at),
            Change::SettleCall(settlement) => self.settle_call(settlement),
            Change::FinishNode {
                node,
                output,
                latency_ms,
                error,
                at,
                ..
            } => match node.item {
                Some(item) => {
                    let error = error.as_deref();
                    self.finish_item(node, item, output, *latency_ms, error, *at)
                }
                None => self.finish_node(node, output, *latency_ms, error.as_deref(), *at),
            },
            Change::SkipNode { node, at } => self.skip_node(node, *at),
            Change::RetryNode { node, error, at } => match node.item {
                Some(item) => self.end_item(node, item, "WAITING", error, *at),
                None => self.retry_node(node, error, *at),
            },
            Change::FailNode {
                node,
                error,
                cancelled,
                at,
            } => match (node.item, cancelled) {
                (Some(item), false) => self.end_item(node, item, "FAILED", error, *at),
                (Some(item), true) => self.end_item(node, item, "CANCELLED", error, *at),
                (None, _) => self.fail_node(node, error, *cancelled, *at),
            },
            Change::Propose {
                flow_id,
                flow_name,
                proposal,
                at,
            } => suggestions::propose(self.connection, *flow_id, flow_name, proposal, *at),
            Change::CloseSuggestion { id, status, at } => {
                suggestions::close(self.connection, *id, *status, *at)
            }
            Change::ApplySuggestion {
                id,
                proposal,
                before,
                after,
                at,
            } => suggestions::apply(self.connection, *id, proposal, before, after, *at),
            Change::RevertSuggestion { id, at } => suggestions::revert(self.connection, *id, *at),
            Change::SetRealised { id, realised } => {
                suggestions::set_realised(self.connection, *id, realised)
            }
            Change::SetTrial { id, trial } => suggestions::set_trial(self.connection, *id, trial),
            Change::FinishRun {
                run_id,
                status,
                error,
                error_node,
                at,
                ..
            } => self.finish_run(
                run_id,
                *status,
                error.as_deref(),
                error_node.as_deref(),
                *at,
            ),
        }
    }

    fn execute(&self, sql: &str, params: &[&dyn rusqlite::ToSql]) -> Result<usize> {
        Ok(self.connection.prepare_cached(sql)?.execute(params)?)
    }

    fn create_flow(
        &self,
        name: &str,
        document: &str,
        origin: Option<&str>,
        at: Timestamp,
    ) -> Result<Receipt> {
        self.execute(
            "INSERT INTO flows (name, document, origin, created_ms, updated_ms)
             VALUES (?1, ?2, ?3, ?4, ?4)",
            params![name, document, origin, at.0],
        )?;
        Ok(Receipt::Flow(self.connection.last_insert_rowid()))
    }

    fn update_flow(
        &self,
        id: FlowId,
        name: &str,
        document: &str,
        at: Timestamp,
    ) -> Result<Receipt> {
        let before: Option<String> = self
            .connection
            .prepare_cached("SELECT document FROM flows WHERE id = ?1")?
            .query_row([id], |row| row.get(0))
            .optional()?;
        let before = before.ok_or_else(|| Error::NotFound(format!("flow {id}")))?;
        self.execute(
            "UPDATE flows SET name = ?2, document = ?3, updated_ms = ?4 WHERE id = ?1",
            params![id, name, document, at.0],
        )?;
        suggestions::note_changed_nodes(self.connection, id, &before, document, at)?;
        Ok(Receipt::Flow(id))
    }

    fn delete_flow(&self, id: FlowId) -> Result<Receipt> {
        let changed = self.execute("DELETE FROM flows WHERE id = ?1", params![id])?;
        found(changed, || format!("flow {id}"))?;
        triggers::delete_of_flow(self.connection, id)?;
        self.execute("DELETE FROM node_changes WHERE flow_id = ?1", params![id])?;
        Ok(Receipt::Done)
    }

    fn queue_run(&self, run: &NewRun) -> Result<Receipt> {
        let hash = sha256_hex(run.graph.as_bytes());
        self.execute(
            "INSERT OR IGNORE INTO graphs (hash, data) VALUES (?1, ?2)",
            params![hash, run.graph],
        )?;
        self.execute(
            "INSERT INTO runs (id, flow_id, flow_name, graph_hash, trigger, input, status, created_ms)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, 'QUEUED', ?7)",
            params![run.id, run.flow_id, run.flow_name, hash, run.trigger, run.input, run.at.0],
        )?;
        Ok(Receipt::Done)
    }

    fn start_run(&self, run_id: &str, at: Timestamp) -> Result<Receipt> {
        let changed = self.execute(
            "UPDATE runs SET status = 'RUNNING', started_ms = coalesce(started_ms, ?2)
             WHERE id = ?1 AND status IN ('QUEUED', 'RUNNING')",
            params![run_id, at.0],
        )?;
        found(changed, || format!("open run {run_id}"))?;
        Ok(Receipt::Done)
    }

    /// Of a run that is over; where it is not, or there is none, an error.
    fn resume_run(&self, run_id: &str, at: Timestamp) -> Result<Receipt> {
        let changed = self.execute(
            "UPDATE runs SET status = 'RUNNING', started_ms = ?2, finished_ms = NULL,
                cancel_ms = NULL, error = NULL, error_node = NULL
             WHERE id = ?1 AND status IN ('FAILED', 'CANCELLED')",
            params![run_id, at.0],
        )?;
        if changed == 0 {
            let message = format!("run {run_id} has neither failed nor was it cancelled");
            return Err(Error::Conflict(message));
        }
        self.execute(
            "UPDATE run_nodes SET status = 'WAITING', error = NULL
             WHERE run_id = ?1 AND status IN ('FAILED', 'CANCELLED')",
            params![run_id],
        )?;
        self.execute(
            "UPDATE run_items SET status = 'WAITING', error = NULL
             WHERE run_id = ?1 AND status IN ('FAILED', 'CANCELLED')",
            params![run_id],
        )?;
        Ok(Receipt::Done)
    }

    fn delete_run(&self, run_id: &str) -> Result<()> {
        let graph: Option<String> = self
            .connection
            .prepare_cached(
                "DELETE FROM runs WHERE id = ?1 AND status NOT IN ('QUEUED', 'RUNNING')
                 RETURNING graph_hash",
            )?
            .query_row([run_id], |row| row.get(0))
            .optional()?;
        let Some(graph) = graph else {
            let message = format!("run {run_id} is not over; cancel it first");
            return Err(Error::Conflict(message));
        };
        self.execute("DELETE FROM run_nodes WHERE run_id = ?1", params![run_id])?;
        self.execute("DELETE FROM run_items WHERE run_id = ?1", params![run_id])?;
        self.execute(
            "DELETE FROM graphs WHERE hash = ?1
             AND NOT EXISTS (SELECT 1 FROM runs WHERE graph_hash = ?1)",
            params![graph],
        )?;
        Ok(())
    }

    fn start_node(
        &self,
        node: &NodeRef,
        prompt: Option<&Prompt>,
        at: Timestamp,
    ) -> Result<Receipt> {
        let changed = self.execute(
            "INSERT INTO run_nodes (run_id, node_id, status, attempt, started_ms, prompt, system)
             VALUES (?1, ?2, 'RUNNING', ?3, ?4, ?5, ?6)
             ON CONFLICT DO UPDATE SET status = 'RUNNING', attempt = ?3, started_ms = ?4,
                error = NULL, finished_ms = NULL, prompt = ?5, system = ?6
             WHERE status != 'COMPLETED'",
            params![
                node.run_id,
                node.node_id,
                node.attempt,
                at.0,
                prompt.map(|prompt| &prompt.prompt),
                prompt.and_then(|prompt| prompt.system.as_ref())
            ],
        )?;
        // The last fence against buying a node twice.
        found(changed, || {
            format!("unfinished node {} in run {}", node.node_id, node.run_id)
        })?;
        Ok(Receipt::Done)
    }

    fn open_call(&mut self, call: &NewCall) -> Result<Receipt> {
        self.budgets.open(self.connection, call)?;
        self.insert_call(call, CallStatus::Pending, None)
    }

    fn refuse_call(&self, call: &NewCall, by: RefusedBy, why: &str) -> Result<Receipt> {
        self.insert_call(call, CallStatus::Failed, Some((by, why)))
    }

    /// Writes a row; one that was refused is settled already and has cost nothing.
    fn insert_call(
        &self,
        call: &NewCall,
        status: CallStatus,
        refused: Option<(RefusedBy, &str)>,
    ) -> Result<Receipt> {
        self.execute(
            "INSERT INTO ledger (timestamp_ms, flow_id, run_id, node_id, attempt, operation_id,
                provider, model_used, agent_role, prompt_hash, status, key_name, tags,
                reserved_nanousd, reserved_tokens, refused, error_message, cost_nanousd)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17,
                CASE WHEN ?16 IS NOT NULL THEN 0 END)",
            params![
                call.at.0,
                call.flow_id,
                call.run_id,
                call.node_id,
                call.attempt,
                call.operation_id,
                call.provider,
                call.model,
                call.role,
                call.prompt_hash,
                status.as_str(),
                call.key_name,
                call.tags,
                call.reserve.cost.map(|cost| cost.nanousd),
                call.reserve.tokens,
                refused.map(|(by, _)| by.as_str()),
                refused.map(|(_, why)| why)
            ],
        )?;
        self.written_row(call.at)
    }

    fn book_cached(&self, call: &NewCall, model: &str, saved: Option<Usd>) -> Result<Receipt> {
        self.execute(
            "INSERT INTO ledger (timestamp_ms, flow_id, run_id, node_id, attempt, operation_id,
                provider, model_used, agent_role, prompt_hash, status, key_name, tags,
                cost_nanousd, latency_ms, cached, saved_nanousd, model_asked)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, 'SUCCESS', ?11, ?12,
                0, 0, 1, ?13, CASE WHEN ?14 != ?8 THEN ?14 END)",
            params![
                call.at.0,
                call.flow_id,
                call.run_id,
                call.node_id,
                call.attempt,
                call.operation_id,
                call.provider,
                model,
                call.role,
                call.prompt_hash,
                call.key_name,
                call.tags,
                saved.map(|saved| saved.nanousd),
                call.model
            ],
        )?;
        self.written_row(call.at)
    }

    fn settle_call(&mut self, settlement: &Settlement) -> Result<Receipt> {
        let usage = &settlement.usage;
        let price_id = match &settlement.price {
            Some(price) => Some(self.prices.id(self.connection, price)?),
            None => None,
        };
        let changed = self.execute(
            "UPDATE ledger SET model_used = coalesce(?2, model_used), input_tokens = ?3,
                cached_input_tokens = ?4, cache_write_tokens = ?5, output_tokens = ?6,
                reasoning_tokens = ?7, usage_source = ?8, cost_nanousd = ?9, latency_ms = ?10,
                status = ?11, error_message = ?12, cache_write_1h_tokens = ?13,
                first_token_ms = ?14, price_id = ?15,
                model_asked = CASE WHEN ?2 != model_used THEN model_used END
             WHERE id = ?1 AND status = 'PENDING'",
            params![
                settlement.id,
                settlement.model,
                usage.input_tokens,
                usage.cached_input_tokens,
                usage.cache_write_tokens,
                usage.output_tokens,
                usage.reasoning_tokens,
                usage.source.as_str(),
                settlement.cost.map(|cost| cost.nanousd),
                settlement.latency_ms,
                settlement.status.as_str(),
                settlement.error,
                usage.cache_write_1h_tokens,
                settlement.first_token_ms,
                price_id
            ],
        )?;
        found(changed, || format!("pending ledger row {}", settlement.id))?;
        let row = self.ledger_row(settlement.id)?;
        let warnings = self.budgets.settle(self.connection, &row)?;
        Ok(Receipt::Settled(Box::new(row), warnings))
    }

    /// The row that was just written.
    fn written_row(&self, at: Timestamp) -> Result<Receipt> {
        let id = self.connection.last_insert_rowid();
        let day = daily_rollup::day_of(at);
        if day < self.summed_until {
            // The clock was put back. It may be that these days are forgotten already.
            daily_rollup::forget_from(self.connection, day)?;
        }
        Ok(Receipt::Call(Box::new(self.ledger_row(id)?)))
    }

    /// The row as it is now. Read by a statement of its own, here as elsewhere, because `RETURNING`
    /// makes a table in memory for what it gives, which costs more than all the rest.
    fn ledger_row(&self, id: i64) -> Result<LedgerEntry> {
        Ok(self
            .connection
            .prepare_cached(&format!("SELECT {ENTRY_COLUMNS} FROM ledger WHERE id = ?1"))?
            .query_row([id], entry)?)
    }

    fn finish_node(
        &self,
        node: &NodeRef,
        output: &str,
        latency_ms: u64,
        error: Option<&str>,
        at: Timestamp,
    ) -> Result<Receipt> {
        let sql = format!(
            "UPDATE run_nodes SET status = 'COMPLETED', output = ?3, latency_ms = ?4, error = ?5,
                finished_ms = ?6, {NODE_SUMS}
             WHERE run_id = ?1 AND node_id = ?2"
        );
        let changed = self.execute(
            &sql,
            params![node.run_id, node.node_id, output, latency_ms, error, at.0],
        )?;
        if changed == 0 {
            return Err(begun_node_not_found(node));
        }
        let over = self
            .connection
            .prepare_cached(
                "SELECT input_tokens, output_tokens, cost_nanousd FROM run_nodes
                 WHERE run_id = ?1 AND node_id = ?2",
            )?
            .query_row([&node.run_id, &node.node_id], |row| {
                Ok(Receipt::NodeOver {
                    input_tokens: row.get(0)?,
                    output_tokens: row.get(1)?,
                    cost: row.get::<_, Option<i64>>(2)?.map(Usd::from_nanousd),
                })
            })?;
        Ok(over)
    }

    fn skip_node(&self, node: &NodeRef, at: Timestamp) -> Result<Receipt> {
        self.execute(
            "INSERT INTO run_nodes (run_id, node_id, status, attempt, started_ms, finished_ms)
             VALUES (?1, ?2, 'SKIPPED', 0, ?3, ?3) ON CONFLICT DO NOTHING",
            params![node.run_id, node.node_id, at.0],
        )?;
        Ok(Receipt::Done)
    }

    fn retry_node(&self, node: &NodeRef, error: &str, at: Timestamp) -> Result<Receipt> {
        let changed = self.execute(
            "UPDATE run_nodes SET status = 'WAITING', error = ?3, finished_ms = ?4
             WHERE run_id = ?1 AND node_id = ?2 AND status = 'RUNNING'",
            params![node.run_id, node.node_id, error, at.0],
        )?;
        if changed == 0 {
            return Err(begun_node_not_found(node));
        }
        Ok(Receipt::Done)
    }

    fn fail_node(
        &self,
        node: &NodeRef,
        error: &str,
        cancelled: bool,
        at: Timestamp,
    ) -> Result<Receipt> {
        let status = if cancelled { "CANCELLED" } else { "FAILED" };
        let sql = format!(
            "UPDATE run_nodes SET status = ?3, error = ?4, finished_ms = ?5, {NODE_SUMS}
             WHERE run_id = ?1 AND node_id = ?2"
        );
        let changed = self.execute(
            &sql,
            params![node.run_id, node.node_id, status, error, at.0],
        )?;
        if changed == 0 {
            return Err(begun_node_not_found(node));
        }
        Ok(Receipt::Done)
    }

    fn start_item(
        &self,
        node: &NodeRef,
        item: usize,
        prompt: Option<&Prompt>,
        at: Timestamp,
    ) -> Result<Receipt> {
        let changed = self.execute(
            "INSERT INTO run_items (run_id, node_id, item, status, attempt, started_ms, prompt, system)
             VALUES (?1, ?2, ?3, 'RUNNING', ?4, ?5, ?6, ?7)
             ON CONFLICT DO UPDATE SET status = 'RUNNING', attempt = ?4, started_ms = ?5,
                error = NULL, finished_ms = NULL, prompt = ?6, system = ?7
             WHERE status != 'COMPLETED'",
            params![
                node.run_id,
                node.node_id,
                item,
                node.attempt,
                at.0,
                prompt.map(|prompt| &prompt.prompt),
                prompt.and_then(|prompt| prompt.system.as_ref())
            ],
        )?;
        // As for a node, the last fence against buying it twice.
        found(changed, || {
            let NodeRef {
                run_id, node_id, ..
            } = node;
            format!("unfinished item {item} of node {node_id} in run {run_id}")
        })?;
        Ok(Receipt::Done)
    }

    fn finish_item(
        &self,
        node: &NodeRef,
        item: usize,
        output: &str,
        latency_ms: u64,
        error: Option<&str>,
        at: Timestamp,
    ) -> Result<Receipt> {
        let changed = self.execute(
            "UPDATE run_items SET status = 'COMPLETED', output = ?4, latency_ms = ?5, error = ?6,
                finished_ms = ?7
             WHERE run_id = ?1 AND node_id = ?2 AND item = ?3",
            params![
                node.run_id,
                node.node_id,
                item,
                output,
                latency_ms,
                error,
                at.0
            ],
        )?;
        if changed == 0 {
            return Err(begun_node_not_found(node));
        }
        Ok(Receipt::Done)
    }

    fn end_item(
        &self,
        node: &NodeRef,
        item: usize,
        status: &str,
        error: &str,
        at: Timestamp,
    ) -> Result<Receipt> {
        let changed = self.execute(
            "UPDATE run_items SET status = ?4, error = ?5, finished_ms = ?6
             WHERE run_id = ?1 AND node_id = ?2 AND item = ?3",
            params![node.run_id, node.node_id, item, status, error, at.0],
        )?;
        if changed == 0 {
            return Err(begun_node_not_found(node));
        }
        Ok(Receipt::Done)
    }

    /// Of a run that ends: what had begun and never ended, such as what a restart interrupted, is
    /// stopped with it.
    fn end_open_nodes(&self, run_id: &str, at: Timestamp) -> Result<()> {
        for table in ["run_nodes", "run_items"] {
            self.execute(
                &format!(
                    "UPDATE {table} SET status = 'CANCELLED', finished_ms = ?2,
                        error = coalesce(error, 'the run ended before it')
                     WHERE run_id = ?1 AND status IN ('RUNNING', 'WAITING')"
                ),
                params![run_id, at.0],
            )?;
        }
        // Some of them had calls, which nobody has added up yet.
        self.execute(
            "UPDATE run_nodes SET (input_tokens, output_tokens, cost_nanousd) = (
                SELECT coalesce(sum(input_tokens), 0), coalesce(sum(output_tokens), 0),
                    CASE WHEN count(*) = count(cost_nanousd) THEN coalesce(sum(cost_nanousd), 0) END
                FROM ledger
                WHERE ledger.run_id = run_nodes.run_id AND ledger.node_id = run_nodes.node_id)
             WHERE run_id = ?1 AND status = 'CANCELLED'",
            params![run_id],
        )?;
        Ok(())
    }

    fn finish_run(
        &self,
        run_id: &str,
        status: RunStatus,
        error: Option<&str>,
        error_node: Option<&str>,
        at: Timestamp,
    ) -> Result<Receipt> {
        if status != RunStatus::Completed {
            self.end_open_nodes(run_id, at)?;
        }
        // The sums are those of the ledger, so that the two can never differ. A call whose price
        // is not known makes the run's cost unknown; one that failed before it could cost
        // anything has a cost of 0.
        let changed = self.execute(
            "UPDATE runs SET status = ?2, error = ?3, error_node = ?4, finished_ms = ?5,
                (input_tokens, output_tokens, cost_nanousd) = (
                    SELECT coalesce(sum(input_tokens), 0), coalesce(sum(output_tokens), 0),
                        CASE WHEN count(*) = count(cost_nanousd)
                            THEN coalesce(sum(cost_nanousd), 0) END
                    FROM ledger WHERE run_id = ?1)
             WHERE id = ?1 AND status IN ('QUEUED', 'RUNNING')",
            params![run_id, status.as_str(), error, error_node, at.0],
        )?;
        found(changed, || format!("open run {run_id}"))?;
        let over = self
            .connection
            .prepare_cached(
                "SELECT coalesce(started_ms, created_ms), input_tokens, output_tokens, cost_nanousd
                 FROM runs WHERE id = ?1",
            )?
            .query_row([run_id], |row| {
                let started_ms: i64 = row.get(0)?;
                Ok(Receipt::RunOver {
                    execution_time_ms: at.0.saturating_sub(started_ms).max(0).unsigned_abs(),
                    input_tokens: row.get(1)?,
                    output_tokens: row.get(2)?,
                    cost: row.get::<_, Option<i64>>(3)?.map(Usd::from_nanousd),
                })
            })?;
        if status == RunStatus::Completed {
            suggestions::count_run(self.connection, run_id)?;
        }
        Ok(over)
    }
}

fn begun_node_not_found(node: &NodeRef) -> Error {
    Error::NotFound(format!("node {} in run {}", node.node_id, node.run_id))
}

pub(super) fn found(changed: usize, what: impl FnOnce() -> String) -> Result<()> {
    if changed == 0 {
        Err(Error::NotFound(what()))
    } else {
        Ok(())
    }
}

/// SHA-256 in hexadecimal.
fn sha256_hex(bytes: &[u8]) -> String {
    crate::event::hex(&Sha256::digest(bytes))
}
