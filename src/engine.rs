//! The engine: runs flows.
//!
//! One thread owns the state of all runs and decides the next step; it never waits for a call or a
//! commit. Workers render prompts, commit the intent of a call, make it, and report back. All input
//! to the thread is an [`EngineEvent`]. Each lasting effect is a [`Change`], which counts once the
//! journal has committed it.

mod estimate;
mod event_loop;
mod flow_cache;
mod items;
mod queue;
mod run;
mod unit;
mod work;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Sender, bounded, unbounded};
use serde_json::Value;

pub use self::estimate::{Amount, Estimate};
use self::event_loop::{EngineEvent, EventLoop};
use self::flow_cache::{FlowCache, Runnable};
use self::run::ActiveRun;
use self::work::Worker;
use crate::calls::{Calls, lost_call};
use crate::error::{Error, Result};
use crate::event::{LedgerEntry, RunStatus};
use crate::flow::Graph;
use crate::hub::Hub;
use crate::ids::{RunId, time_sorted_uuid};
use crate::journal::Journal;
use crate::providers::Providers;
use crate::store::{Change, FlowRecord, NewRun, RESTART_WITHOUT_CALL, RunEnd, RunStart, Store};
use crate::threads::{OnFatal, vital};
use crate::time::Timestamp;

/// Limits how many calls of an earlier process are settled in one transaction.
const LOST_CALLS_STEP: usize = 100;
/// A run fails after 20 unexpected ends of the server, without a completed node in between, because it
/// may be their cause. Ends during its calls count less. A run that only waited for its turn counts
/// too, so a lower limit would fail innocent runs on a machine that is often killed.
const RESTARTS_MAX: u32 = 20 * RESTART_WITHOUT_CALL;
/// The largest input of a run, in bytes of JSON.
const INPUT_BYTES_MAX: usize = 1 << 20;

/// Limits of the engine's load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Runs in progress; more wait. 256 by default; each takes about 100 kB.
    pub active_runs: usize,
    /// Runs that wait. They are in the database; each takes about a hundred bytes of memory. 10,000
    /// by default.
    pub queued_runs: usize,
    /// Nodes in progress over all runs; each takes a thread and up to two descriptors. 64
    /// by default.
    pub calls: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { active_runs: 256, queued_runs: 10_000, calls: 64 }
    }
}

/// A handle of the engine, which starts and stops runs. Clones share the engine.
#[derive(Clone)]
pub struct Engine {
    events: Sender<EngineEvent>,
    journal: Journal,
    store: Arc<Store>,
    providers: Arc<Providers>,
    flow_cache: Arc<FlowCache>,
    /// The count of accepted runs that are not over.
    open: Arc<AtomicUsize>,
    limits: Limits,
}

/// An accepted run, which a caller can wait for.
pub struct Accepted {
    pub run_id: RunId,
    over: oneshot::Receiver<()>,
}

impl Accepted {
    /// Waits until the run is over and its end is committed.
    ///
    /// # Errors
    /// [`Error::Stopping`] when the server stops first; the run continues at the next start.
    pub fn wait(&self) -> Result<()> {
        self.over.recv_ref().map_err(|_| Error::Stopping)
    }

    /// Waits for at most `time`. Returns whether the run is over and its end is committed.
    ///
    /// # Errors
    /// Same as [`Accepted::wait`].
    pub fn wait_for(&self, time: Duration) -> Result<bool> {
        match self.over.recv_timeout(time) {
            Ok(()) => Ok(true),
            Err(oneshot::RecvTimeoutError::Timeout) => Ok(false),
            Err(oneshot::RecvTimeoutError::Disconnected) => Err(Error::Stopping),
        }
    }
}

impl Engine {
    /// Starts the engine's thread and settles the calls of an earlier process. If a disk error
    /// prevents that, it is retried, and no run starts before the settlements are written.
    /// `resume_runs` also continues the runs of that process.
    pub fn start(
        store: Arc<Store>,
        journal: Journal,
        hub: Hub,
        calls: Calls,
        limits: Limits,
        resume_runs: bool,
        on_fatal: OnFatal,
    ) -> Result<(Self, JoinHandle<()>)> {
        // Unbounded: calls and commits in flight limit its length. With a bound, the journal, which
        // answers here, could wait for the engine, which waits for the journal.
        let (events, received) = unbounded();
        let providers = Arc::clone(calls.providers());
        let worker = Worker { journal: journal.clone(), hub, calls };
        let open = Arc::new(AtomicUsize::new(0));
        let engine = Self {
            events,
            journal,
            store,
            providers,
            flow_cache: Arc::default(),
            open: Arc::clone(&open),
            limits,
        };
        if resume_runs {
            engine.count_restarts()?;
        }
        let lost_calls = engine.settle_lost_calls()?;
        let open_runs = if resume_runs { engine.store.open_runs()? } else { Vec::new() };
        if !open_runs.is_empty() {
            log::warn!("resuming {} runs of the previous process", open_runs.len());
        }
        open.store(open_runs.len(), Ordering::SeqCst);
        let (open_runs, deferred_runs) =
            if lost_calls == 0 { (open_runs, Vec::new()) } else { (Vec::new(), open_runs) };
        let event_loop =
            EventLoop::new(engine.clone(), worker, lost_calls, deferred_runs, resume_runs);
        let thread = vital("engine", on_fatal, move || event_loop.run(&received))?;
        for run in open_runs {
            engine.send(EngineEvent::OpenRun(run))?;
        }
        Ok((engine, thread))
    }

    /// Starts a run of the flow's present document. The run is committed when this returns.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a graph that cannot run (any more) and an input that is not an object;
    /// [`Error::Busy`] when too many runs wait.
    pub fn execute(&self, flow: &FlowRecord, input: Value, trigger: &str) -> Result<Accepted> {
        self.execute_with(flow, input, trigger, |_| Vec::new())
    }

    /// Starts a run, and commits the changes of `beside` before it in the same transaction, so that
    /// all are written or none is.
    ///
    /// # Errors
    /// Same as [`Engine::execute`]; also the error of a refused change in `beside`.
    pub fn execute_with(
        &self,
        flow: &FlowRecord,
        input: Value,
        trigger: &str,
        beside: impl FnOnce(&RunId) -> Vec<Change>,
    ) -> Result<Accepted> {
        let input = checked_input(input)?;
        let Runnable { graph, data } = self.runnable(flow)?;
        let input = completed_input(&graph, input)?;
        let run_id = time_sorted_uuid().to_string();
        let (done, over) = oneshot::channel();
        let new = NewRun {
            id: run_id.clone(),
            flow_id: flow.id,
            flow_name: flow.name.clone(),
            trigger: trigger.to_owned(),
            input: input.to_string(),
            graph: data,
            at: Timestamp::now(),
        };
        let run = ActiveRun::new(&new, graph, input, done);
        self.reserve_run()?;
        let mut changes = beside(&run_id);
        changes.push(Change::QueueRun(new));
        if let Err(error) = self.journal.commit(changes) {
            self.open.fetch_sub(1, Ordering::SeqCst);
            return Err(error);
        }
        self.send(EngineEvent::Accepted(Box::new(run)))?;
        Ok(Accepted { run_id, over })
    }

    /// Estimates the cost of a run of the flow with that input.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an invalid graph or input; also read errors of the database.
    pub fn estimate(&self, flow: &FlowRecord, input: Value) -> Result<Estimate> {
        let graph = self.runnable(flow)?.graph;
        let input = completed_input(&graph, checked_input(input)?)?;
        estimate::estimate(&self.store, &self.providers, Some(flow.id), &graph, &input)
    }

    /// Cancels a run: no node starts, and calls in flight are cancelled. Returns once this has
    /// begun; the run is over when its calls are settled.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an unknown run, [`Error::Conflict`] for one that is over.
    pub fn cancel(&self, run_id: &str) -> Result<()> {
        // Committed before the caller gets its answer, so that a restart does not continue the run.
        self.journal
            .commit_one(Change::CancelRun { run_id: run_id.to_owned(), at: Timestamp::now() })?;
        let (answer, answered) = bounded(1);
        self.send(EngineEvent::Cancel { run_id: run_id.to_owned(), answer })?;
        match answered.recv().map_err(|_| Error::Stopping)? {
            Err(Error::NotFound(_)) => {
                let (run, _) = self.store.run(run_id)?;
                let is_over = if run.status.is_over() { "is over" } else { "is ending" };
                Err(Error::Conflict(format!("run {run_id} {is_over}: {}", run.status)))
            }
            result => result,
        }
    }

    /// Resumes a run that failed or was cancelled, with its original graph and input. Finished
    /// nodes are not run again.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an unknown run, [`Error::Conflict`] for one in progress or completed,
    /// [`Error::Invalid`] for a graph that cannot run any more, and [`Error::Busy`] when too many
    /// runs wait.
    pub fn resume(&self, run_id: &str) -> Result<()> {
        let (run, _) = self.store.run(run_id)?;
        if !self.store.has_flow(run.flow_id)? {
            let message = format!("cannot resume run {run_id}: flow {} was deleted", run.flow_id);
            return Err(Error::Conflict(message));
        }
        let data: Value = serde_json::from_str(&run.graph).unwrap_or_default();
        let graph = self.parse(&data)?;
        self.reserve_run()?;
        let resume = Change::ResumeRun(RunStart {
            flow_id: run.flow_id,
            run_id: run.id.clone(),
            flow_name: run.flow_name.clone(),
            node_count: graph.nodes().len(),
            trigger: run.trigger.clone(),
            at: Timestamp::now(),
        });
        let resumed = self.journal.commit_one(resume);
        // Read again, because the change reset the failed nodes. Only one caller can resume
        // the run.
        let open = resumed.and_then(|_| self.store.run(run_id));
        match open {
            Ok(open) => {
                let run = ActiveRun::restored(open, graph);
                self.send(EngineEvent::Accepted(Box::new(run)))
            }
            Err(error) => {
                self.open.fetch_sub(1, Ordering::SeqCst);
                Err(error)
            }
        }
    }

    /// Returns the flow's parsed graph, from the cache if the document is unchanged.
    fn runnable(&self, flow: &FlowRecord) -> Result<Runnable> {
        if let Some(known) = self.flow_cache.get(flow) {
            return Ok(known);
        }
        let document: Value = serde_json::from_str(&flow.document).map_err(|error| {
            Error::internal(format!("flow {} is not valid JSON: {error}", flow.id))
        })?;
        let data = document.get("data").unwrap_or(&Value::Null);
        let runnable =
            Runnable { graph: Arc::new(self.parse(data)?), data: data.to_string().into() };
        self.flow_cache.put(flow, &runnable);
        Ok(runnable)
    }

    /// Counts this restart for the runs of an earlier process, before one of them can end this process
    /// too.
    fn count_restarts(&self) -> Result<()> {
        match self.journal.commit_one(Change::CountRestarts) {
            Err(error @ Error::Disk(_)) => log::error!("cannot count the restart: {error}"),
            result => drop(result?),
        }
        Ok(())
    }

    fn reserve_run(&self) -> Result<()> {
        let Limits { active_runs, queued_runs, .. } = self.limits;
        if self.open.fetch_add(1, Ordering::SeqCst) < active_runs + queued_runs {
            return Ok(());
        }
        self.open.fetch_sub(1, Ordering::SeqCst);
        Err(Error::Busy(format!("the run queue is full ({queued_runs} runs); try again later")))
    }

    /// Parses a flow's graph and checks it against the configured providers.
    ///
    /// # Errors
    /// [`Error::Invalid`] lists every fault of the graph.
    pub fn parse(&self, data: &Value) -> Result<Graph> {
        Graph::parse(data, &|provider| self.providers.knows(provider))
            .map_err(|faults| Error::Invalid { message: "cannot run the flow".into(), faults })
    }

    /// Stops the engine and the calls in flight; their runs continue at the next start.
    pub fn shutdown(&self) {
        let _ = self.send(EngineEvent::Shutdown);
    }

    fn send(&self, event: EngineEvent) -> Result<()> {
        self.events.send(event).map_err(|_| Error::Stopping)
    }

    /// Settles the calls of an earlier process. Returns how many transactions the disk refuses for
    /// now; each is followed by an [`EngineEvent::LostCalls`].
    fn settle_lost_calls(&self) -> Result<usize> {
        let lost = self.store.lost_calls()?;
        if lost.is_empty() {
            return Ok(0);
        }
        log::warn!(
            "the previous process stopped during {} calls; their status is now UNKNOWN",
            lost.len()
        );
        let mut refused = 0;
        for rows in lost.chunks(LOST_CALLS_STEP) {
            let at = Timestamp::now();
            let settle = |row: &LedgerEntry| Change::SettleCall(lost_call(row.id, at));
            let changes: Vec<Change> = rows.iter().map(settle).collect();
            if refused == 0 {
                match self.journal.commit(changes.clone()) {
                    Ok(_) => continue,
                    Err(error @ Error::Disk(_)) => log::error!(
                        "cannot write these statuses; no run starts until they are written, and \
                         reads still work: {error}"
                    ),
                    Err(error) => return Err(error),
                }
            }
            refused += 1;
            let events = self.events.clone();
            let done = Box::new(move |result: Result<_>| {
                if let Err(error) = result {
                    log::error!("cannot settle calls of the previous process: {error}");
                }
                let _ = events.send(EngineEvent::LostCalls);
            });
            self.journal.submit_retried(changes, done)?;
        }
        Ok(refused)
    }

    /// Reads an open run from the database. If its graph cannot run any more (for example, its
    /// provider was removed), the run ends here.
    fn restore(&self, run_id: &str) -> Result<ActiveRun> {
        let open = self.store.run(run_id)?;
        let data: Value = serde_json::from_str(&open.0.graph).unwrap_or_default();
        self.parse(&data)
            .map(|graph| ActiveRun::restored(open, graph))
            .inspect_err(|error| self.end_unrunnable(run_id, error))
    }

    fn end_unrunnable(&self, run_id: &str, error: &Error) {
        let Ok((run, _)) = self.store.run(run_id) else {
            return;
        };
        let end = Change::FinishRun(RunEnd {
            flow_id: run.flow_id,
            run_id: run.id,
            status: RunStatus::Failed,
            error: Some(format!("cannot resume the run: {error}")),
            error_node: None,
            at: Timestamp::now(),
        });
        let id = run_id.to_owned();
        let done = Box::new(move |result: Result<_>| {
            if let Err(error) = result {
                log::error!("cannot write the end of run {id}: {error}");
            }
        });
        // If the journal has ended, the run stays as it is, and the next start tries again.
        let _ = self.journal.submit_retried(vec![end], done);
    }
}

const BAD_INPUT: &str = "cannot use the input";

/// Adds the flow's declared defaults to the input, and checks it against the declaration.
fn completed_input(graph: &Graph, input: Value) -> Result<Value> {
    let Value::Object(input) = input else {
        return Ok(input);
    };
    let completed = graph
        .complete_input(input)
        .map_err(|faults| Error::Invalid { message: BAD_INPUT.into(), faults })?;
    Ok(Value::Object(completed))
}

/// Checks that the input of a run is an object; null counts as an empty one.
///
/// # Errors
/// [`Error::Invalid`] for other types and for an input that is too large.
pub fn checked_input(input: Value) -> Result<Value> {
    let input = if input.is_null() { Value::Object(serde_json::Map::new()) } else { input };
    if !input.is_object() {
        return Err(Error::invalid(BAD_INPUT, "input", "must be an object"));
    }
    let bytes = input.to_string().len();
    if bytes > INPUT_BYTES_MAX {
        let fault = format!("has {bytes} bytes; the limit is {INPUT_BYTES_MAX}");
        return Err(Error::invalid(BAD_INPUT, "input", fault));
    }
    Ok(input)
}
