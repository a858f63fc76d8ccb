//! The engine's thread. It owns all active runs and decides the next step; it never waits for a
//! call or a commit.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use super::queue::{Queue, Waiting};
use super::run::{ActiveRun, Free};
use super::unit::Unit;
use super::work::{Job, Outcome, Worker};
use super::{Engine, RESTARTS_MAX};
use crate::error::{Error, Result};
use crate::flow::TEMPLATE_STACK_BYTES_MIN;
use crate::ids::RunId;
use crate::store::{Change, OpenRun};
use crate::threads::Pool;

const SLEEP_MAX: Duration = Duration::from_secs(3600);
/// Stack of a worker: TLS handshakes and template rendering are its deepest work.
const WORKER_STACK_BYTES: usize = TEMPLATE_STACK_BYTES_MIN;
/// Limits the nodes without calls in progress over all runs. Their work is computing, so more of them
/// would only slow each other down.
const LOCAL_MAX: usize = 8;
/// Limits how long workers may take to end after their calls.
const WORKERS_END_MAX: Duration = Duration::from_secs(1);

pub(super) enum EngineEvent {
    /// A run was accepted and is committed.
    Accepted(Box<ActiveRun>),
    /// A run of an earlier process can continue.
    OpenRun(OpenRun),
    Cancel {
        run_id: RunId,
        answer: Sender<Result<()>>,
    },
    UnitEnded {
        run_id: RunId,
        unit: Unit,
        makes_calls: bool,
        outcome: Box<Outcome>,
    },
    /// The end of a run is committed or was refused.
    Saved {
        run_id: RunId,
    },
    /// Some calls of an earlier process are settled, or their settlements were refused.
    LostCalls,
    Shutdown,
}

pub(super) struct EventLoop {
    engine: Engine,
    worker: Worker,
    pool: Pool,
    active: HashMap<RunId, ActiveRun>,
    queue: Queue,
    /// Active runs with nodes that may start. Runs take turns, so that none starves the others.
    ready: VecDeque<RunId>,
    /// Nodes that pause before their next attempt, earliest first. Entries of a run that is over
    /// stay until they are due.
    pauses: BinaryHeap<Reverse<(Instant, RunId, Unit)>>,
    calls: usize,
    /// Nodes in progress that make no calls. They have threads of their own, so that they do not wait
    /// for calls.
    local: usize,
    /// Settlements of an earlier process's calls that the disk refuses so far. No run starts before
    /// they are written.
    lost_calls: usize,
    /// Runs of that process, which wait for those settlements.
    deferred_runs: Vec<OpenRun>,
    /// Whether runs of earlier processes continue here, and so their restarts are counted.
    counts_restarts: bool,
    stopping: bool,
}

impl EventLoop {
    pub(super) fn new(
        engine: Engine,
        worker: Worker,
        lost_calls: usize,
        deferred_runs: Vec<OpenRun>,
        counts_restarts: bool,
    ) -> Self {
        Self {
            pool: Pool::new("call", engine.limits.calls + LOCAL_MAX, WORKER_STACK_BYTES),
            engine,
            worker,
            active: HashMap::new(),
            queue: Queue::default(),
            ready: VecDeque::new(),
            pauses: BinaryHeap::new(),
            calls: 0,
            local: 0,
            lost_calls,
            deferred_runs,
            counts_restarts,
            stopping: false,
        }
    }

    pub(super) fn run(mut self, received: &Receiver<EngineEvent>) {
        loop {
            match received.recv_timeout(self.receive_timeout()) {
                Ok(EngineEvent::Accepted(run)) => self.accept(*run),
                Ok(EngineEvent::OpenRun(run)) => self.resume_run(run),
                Ok(EngineEvent::Cancel { run_id, answer }) => {
                    drop(answer.send(self.cancel(&run_id)))
                }
                Ok(EngineEvent::UnitEnded { run_id, unit, makes_calls, outcome }) => {
                    *self.in_progress(makes_calls) -= 1;
                    self.unit_ended(&run_id, unit, *outcome);
                }
                Ok(EngineEvent::Saved { run_id }) => self.saved(&run_id),
                Ok(EngineEvent::LostCalls) => self.lost_calls_settled(),
                Ok(EngineEvent::Shutdown) => self.stop(),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.fill_active();
            self.end_pauses();
            self.dispatch();
            if self.stopping && self.calls == 0 && self.local == 0 {
                self.forget_restarts();
                self.pool.join(Instant::now() + WORKERS_END_MAX);
                return;
            }
        }
    }

    fn receive_timeout(&self) -> Duration {
        match self.pauses.peek() {
            Some(Reverse((due, _, _))) if !self.stopping => {
                SLEEP_MAX.min(due.saturating_duration_since(Instant::now()))
            }
            _ => SLEEP_MAX,
        }
    }

    fn accept(&mut self, run: ActiveRun) {
        if self.active.len() < self.engine.limits.active_runs && self.queue.is_empty() {
            self.activate(run);
        } else {
            self.queue.push(run.flow_id(), run.into_waiting());
        }
    }

    /// A run that had begun is placed before all waiting runs.
    fn resume_run(&mut self, run: OpenRun) {
        if run.restarts >= RESTARTS_MAX {
            let why = "the server repeatedly ended unexpectedly during this run, and no node was completed in between";
            let error = Error::Conflict(why.to_owned());
            log::error!("run {} fails: {error}", run.run_id);
            self.engine.end_unrunnable(&run.run_id, &error);
            self.engine.open.fetch_sub(1, Ordering::SeqCst);
            return;
        }
        let waiting = Waiting { run_id: run.run_id, waiter: None };
        if !run.has_begun {
            self.queue.push(run.flow_id, waiting);
        } else if let Some(run) = self.read(waiting) {
            self.activate(run);
        }
    }

    fn fill_active(&mut self) {
        while self.active.len() < self.engine.limits.active_runs
            && !self.stopping
            && let Some(waiting) = self.queue.pop()
        {
            if let Some(run) = self.read(waiting) {
                self.activate(run);
            }
        }
    }

    /// Reads a waiting run from the database. Returns none if it was removed or cannot continue.
    fn read(&mut self, waiting: Waiting) -> Option<ActiveRun> {
        let Waiting { run_id, waiter } = waiting;
        match self.engine.restore(&run_id) {
            Ok(run) => Some(run.with_waiter(waiter)),
            Err(error) => {
                log::error!("cannot resume run {run_id}: {error}");
                self.engine.open.fetch_sub(1, Ordering::SeqCst);
                None
            }
        }
    }

    fn activate(&mut self, mut run: ActiveRun) {
        run.begin();
        let run_id = run.id.clone();
        let is_over = run.progress.is_over();
        self.active.insert(run_id.clone(), run);
        if is_over {
            // All nodes had finished before a restart.
            self.finish(&run_id);
        } else {
            self.make_ready(&run_id);
        }
    }

    /// Hands nodes to workers, one from each run in turn, up to the limits of calls and of nodes
    /// without calls.
    fn dispatch(&mut self) {
        // Runs that could start a node only if there was a free place for it.
        let mut blocked = VecDeque::new();
        while let Some(free) = self.free() {
            let Some(run_id) = self.ready.pop_front() else {
                break;
            };
            let Some(run) = self.active.get_mut(&run_id) else {
                continue;
            };
            let Some(unit) = run.take(free) else {
                if run.has_more() {
                    blocked.push_back(run_id);
                } else {
                    run.is_listed = false;
                }
                continue;
            };
            let has_more = run.has_more();
            run.is_listed = has_more;
            if has_more {
                self.ready.push_back(run_id.clone());
            }
            // If this is the run's only node in progress, its pending changes are committed with
            // its intent, and no other node can start before. Otherwise another node could be
            // committed first, without the changes that it depends on.
            let mut before = Vec::new();
            if has_more || !run.has_one_worker() {
                before = std::mem::take(&mut run.pending);
            }
            let job = run.job(unit);
            let makes_calls = run.makes_calls(unit);
            self.submit(&run_id, before);
            *self.in_progress(makes_calls) += 1;
            self.run_on_pool(run_id, job, makes_calls);
        }
        blocked.append(&mut self.ready);
        self.ready = blocked;
        // Writes the changes that no worker has taken along.
        for run_id in &self.ready {
            if let Some(run) = self.active.get_mut(run_id) {
                let pending = std::mem::take(&mut run.pending);
                self.submit(run_id, pending);
            }
        }
    }

    /// Returns the kinds of nodes that may start now, if any.
    fn free(&self) -> Option<Free> {
        let free =
            Free { calls: self.calls < self.engine.limits.calls, local: self.local < LOCAL_MAX };
        let may_start = !self.stopping && self.lost_calls == 0;
        (may_start && (free.calls || free.local)).then_some(free)
    }

    fn in_progress(&mut self, makes_calls: bool) -> &mut usize {
        if makes_calls { &mut self.calls } else { &mut self.local }
    }

    /// Adds a run to those with nodes that may start.
    fn make_ready(&mut self, run_id: &RunId) {
        if let Some(run) = self.active.get_mut(run_id)
            && !std::mem::replace(&mut run.is_listed, true)
        {
            self.ready.push_back(run_id.clone());
        }
    }

    fn run_on_pool(&self, run_id: RunId, job: Job, makes_calls: bool) {
        let unit = job.unit;
        let (worker, events) = (self.worker.clone(), self.engine.events.clone());
        let on_busy = job.cannot_run();
        let (id, back) = (run_id.clone(), events.clone());
        let started = self.pool.run(Box::new(move || {
            let outcome = Box::new(worker.run(job));
            let _ = events.send(EngineEvent::UnitEnded { run_id, unit, makes_calls, outcome });
        }));
        if let Err(error) = started {
            let outcome = Box::new(on_busy(format!("cannot start the node: {error}")));
            let _ = back.send(EngineEvent::UnitEnded { run_id: id, unit, makes_calls, outcome });
        }
    }

    fn unit_ended(&mut self, run_id: &RunId, unit: Unit, outcome: Outcome) {
        let Some(run) = self.active.get_mut(run_id) else {
            return;
        };
        if self.stopping && outcome.was_cancelled() && !run.is_decided() {
            // The node did not fail: its run continues at the next start.
            self.submit(run_id, outcome.interrupted());
            return;
        }
        if let Some(due) = run.ended(unit, outcome) {
            self.pauses.push(Reverse((due, run_id.clone(), unit)));
        }
        self.advance(run_id);
    }

    /// Ends the run or makes more of it ready, after one of its events.
    fn advance(&mut self, run_id: &RunId) {
        let Some(run) = self.active.get_mut(run_id) else {
            return;
        };
        if run.progress.is_over() {
            self.finish(run_id);
        } else if run.has_more() {
            self.make_ready(run_id);
        } else {
            let pending = std::mem::take(&mut run.pending);
            self.submit(run_id, pending);
        }
    }

    fn end_pauses(&mut self) {
        while let Some(Reverse((due, _, _))) = self.pauses.peek()
            && *due <= Instant::now()
            && let Some(Reverse((due, run_id, unit))) = self.pauses.pop()
        {
            let run = self.active.get_mut(&run_id);
            if run.is_some_and(|run| run.pause_over(unit, due)) {
                self.advance(&run_id);
            }
        }
    }

    fn cancel(&mut self, run_id: &RunId) -> Result<()> {
        if let Some(waiting) = self.queue.remove(run_id)
            && let Some(run) = self.read(waiting)
        {
            self.active.insert(run_id.clone(), run);
        }
        let run = self
            .active
            .get_mut(run_id)
            .filter(|run| !run.is_finishing())
            .ok_or_else(|| Error::NotFound(format!("open run {run_id}")))?;
        run.cancel();
        if run.progress.is_over() {
            self.finish(run_id);
        }
        Ok(())
    }

    fn finish(&mut self, run_id: &RunId) {
        if let Some(run) = self.active.get_mut(run_id)
            && let Some(changes) = run.finish()
        {
            self.save(run_id.clone(), changes);
        }
    }

    fn save(&self, run_id: RunId, changes: Vec<Change>) {
        let events = self.engine.events.clone();
        let done = Box::new(move |result: Result<_>| {
            match result {
                Ok(_) => {}
                // The run continues at the next start.
                Err(Error::Stopping) => return,
                Err(error) => log::error!("cannot write the end of run {run_id}: {error}"),
            }
            let _ = events.send(EngineEvent::Saved { run_id });
        });
        // If the journal has ended, the run stays as it is and continues at the next start.
        let _ = self.engine.journal.submit_retried(changes, done);
    }

    fn saved(&mut self, run_id: &RunId) {
        if let Some(run) = self.active.remove(run_id) {
            self.engine.open.fetch_sub(1, Ordering::SeqCst);
            run.notify_waiters();
        }
    }

    fn lost_calls_settled(&mut self) {
        self.lost_calls -= 1;
        if self.lost_calls == 0 {
            log::warn!("calls of the previous process are settled; resuming its runs");
            for run in std::mem::take(&mut self.deferred_runs) {
                self.resume_run(run);
            }
        }
    }

    fn submit(&self, run_id: &RunId, changes: Vec<Change>) {
        if changes.is_empty() {
            return;
        }
        let run_id = run_id.clone();
        let done = Box::new(move |result: Result<_>| {
            if let Err(error) = result {
                log::error!("cannot write a step of run {run_id}: {error}");
            }
        });
        // If the journal has ended, the run stays as it is and continues at the next start.
        let _ = self.engine.journal.submit_retried(changes, done);
    }

    fn forget_restarts(&self) {
        if self.counts_restarts
            && let Err(error) = self.engine.journal.commit_one(Change::ForgetRestarts)
        {
            log::warn!("cannot note the regular stop: {error}");
        }
    }

    fn stop(&mut self) {
        self.stopping = true;
        for run in self.active.values() {
            run.cancel_calls();
        }
    }
}
