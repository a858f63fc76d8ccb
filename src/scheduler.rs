//! Runs flows when their schedules are due.
//!
//! One thread reads all schedules when one may have changed, decides about each (see
//! [`crate::schedule`]), and sleeps until the next is due. That a time was run is committed with the
//! run itself, so that it is never run twice: not after a crash, and not when the clock is put back.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use serde_json::Value;

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::event::{FlowId, Timestamp};
use crate::journal::Journal;
use crate::schedule::{Schedule, Step};
use crate::store::{Change, ScheduleRecord, Store};
use crate::threads::{OnFatal, vital};

/// How long it sleeps at most before it looks at the clock again, which somebody may have put
/// forward or back.
const SLEEP_MAX: Duration = Duration::from_secs(10);
/// How late a time may be looked at and not count as missed, in milliseconds: while the machine
/// sleeps, say, nothing runs either.
const LATE_MAX_MS: i64 = 60_000;
/// After how long a time is tried again whose run could not be started, in milliseconds.
const RETRY_MS: i64 = 60_000;
/// How far ahead of the clock the last run of a schedule may be before the log says so, in
/// milliseconds.
const AHEAD_MAX_MS: i64 = 60 * 60 * 1000;

/// What the runs that it starts say of where they came from.
const TRIGGER: &str = "schedule";

/// The scheduler, for those who change schedules and who stop it.
#[derive(Clone)]
pub struct Scheduler {
    /// Holds one word at most: several changes are one reason to look.
    wake: Sender<()>,
    stopping: Arc<AtomicBool>,
}

impl Scheduler {
    /// Starts the scheduler's thread. Times before now count as missed.
    ///
    /// # Errors
    /// When the system cannot start another thread.
    pub fn start(
        store: Arc<Store>,
        journal: Journal,
        engine: Engine,
        on_fatal: OnFatal,
    ) -> Result<(Self, JoinHandle<()>)> {
        let (wake, woken) = bounded(1);
        let stopping = Arc::new(AtomicBool::new(false));
        let state = State::new(store, journal, engine, Timestamp::now());
        let thread = {
            let stopping = Arc::clone(&stopping);
            vital("scheduler", on_fatal, move || state.run(&woken, &stopping))?
        };
        Ok((Self { wake, stopping }, thread))
    }

    /// Makes it look at all schedules again, since one may have changed. Does not wait for it.
    pub fn look(&self) {
        let _ = self.wake.try_send(());
    }

    /// Ends it. Runs that it started go on.
    pub fn shutdown(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.look();
    }
}

/// A schedule that is switched on.
struct Planned {
    record: ScheduleRecord,
    schedule: Schedule,
    /// When there is something to do about it; none where there never is.
    next: Option<Timestamp>,
}

/// A time whose run could not be started.
struct Held {
    due: Timestamp,
    /// When it is tried again.
    until: Timestamp,
}

/// Owned by the scheduler's thread.
struct State {
    store: Arc<Store>,
    journal: Journal,
    engine: Engine,
    /// Times up to this one passed while no server ran.
    started: Timestamp,
    planned: Vec<Planned>,
    held: HashMap<FlowId, Held>,
    /// Whether `planned` may be out of date.
    is_stale: bool,
}

impl State {
    fn new(store: Arc<Store>, journal: Journal, engine: Engine, started: Timestamp) -> Self {
        Self {
            store,
            journal,
            engine,
            started,
            planned: Vec::new(),
            held: HashMap::new(),
            is_stale: true,
        }
    }

    fn run(mut self, woken: &Receiver<()>, stopping: &AtomicBool) {
        while !stopping.load(Ordering::SeqCst) {
            let next = self.look(Timestamp::now());
            match woken.recv_timeout(sleep(next, Timestamp::now())) {
                Ok(()) => self.is_stale = true,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Does what is due at `now`, and gives when there is something to do next.
    fn look(&mut self, now: Timestamp) -> Option<Timestamp> {
        // Where the clock was put back, a server runs at those times by now.
        self.started = self.started.min(now);
        if self.is_stale {
            match self.read(now) {
                Ok(()) => self.is_stale = false,
                // With what was known before.
                Err(error) => log::error!("the schedules cannot be read: {error}"),
            }
        }
        for at in 0..self.planned.len() {
            if self.planned[at].next.is_some_and(|next| next <= now) {
                self.act(at, now);
            }
        }
        self.planned.iter().filter_map(|planned| planned.next).min()
    }

    fn read(&mut self, now: Timestamp) -> Result<()> {
        let records = self.store.schedules()?;
        self.planned.clear();
        for record in records {
            match Schedule::parse(&record.cron, &record.timezone) {
                Ok(schedule) => {
                    let next = self.next(&record, &schedule);
                    self.planned.push(Planned {
                        record,
                        schedule,
                        next,
                    });
                }
                // Right when it was set: a time zone that is gone from the system since.
                Err(faults) => log::error!(
                    "flow {} does not run by its schedule: {}",
                    record.flow_id,
                    Error::Invalid {
                        message: "it cannot be read any more".into(),
                        faults
                    }
                ),
            }
        }
        for Planned { record, next, .. } in &self.planned {
            if record.last.0 > now.0.saturating_add(AHEAD_MAX_MS) {
                log::warn!(
                    "the clock was put back behind the last run of flow {}, at {}; its schedule goes on {}; to have it go on now, delete it and set it again",
                    record.flow_id,
                    record.last,
                    next.map_or_else(|| "never".to_owned(), |next| format!("at {next}"))
                );
            }
        }
        let planned = &self.planned;
        self.held.retain(|flow_id, held| {
            planned
                .iter()
                .any(|planned| planned.record.flow_id == *flow_id && planned.record.last < held.due)
        });
        Ok(())
    }

    fn next(&self, record: &ScheduleRecord, schedule: &Schedule) -> Option<Timestamp> {
        let next = schedule.next(record.last)?;
        let held = self.held.get(&record.flow_id);
        Some(held.map_or(next, |held| held.until.max(next)))
    }

    /// Does what is due of one schedule.
    fn act(&mut self, at: usize, now: Timestamp) {
        let Planned {
            record, schedule, ..
        } = &self.planned[at];
        let flow_id = record.flow_id;
        let mut since = self
            .started
            .max(Timestamp(now.0.saturating_sub(LATE_MAX_MS)));
        if let Some(held) = self.held.get(&flow_id) {
            // Not missed: it was there in time.
            since = since.min(Timestamp(held.due.0 - 1));
        }
        let step = schedule.step(record.missed, record.last, since, now);
        let done = match step {
            Step::Wait => Ok(None),
            Step::Run(due) => self.start(record, due).map(|()| Some(due)),
            Step::Skip(due) => {
                log::info!("flow {flow_id} is not run for {due}, which was missed");
                self.take(flow_id, due).map(|()| Some(due))
            }
        };
        match (done, step) {
            (Ok(taken), _) => {
                self.held.remove(&flow_id);
                if let Some(due) = taken {
                    self.planned[at].record.last = due;
                }
            }
            // Changed or removed a moment ago; whoever did that has told, or is about to.
            (Err(Error::Conflict(_) | Error::NotFound(_)), _) => {
                self.planned[at].next = None;
                self.is_stale = true;
                return;
            }
            (Err(error), Step::Run(due) | Step::Skip(due)) => {
                log::warn!(
                    "flow {flow_id} cannot be run for {due} by its schedule, trying again in a minute: {error}"
                );
                let until = Timestamp(now.0.saturating_add(RETRY_MS));
                self.held.insert(flow_id, Held { due, until });
            }
            (Err(_), Step::Wait) => {}
        }
        let Planned {
            record, schedule, ..
        } = &self.planned[at];
        self.planned[at].next = self.next(record, schedule);
    }

    /// Starts the run for a time, and commits with it that the time is dealt with.
    fn start(&self, record: &ScheduleRecord, due: Timestamp) -> Result<()> {
        let flow_id = record.flow_id;
        let flow = self.store.flow(flow_id)?;
        let input: Value = serde_json::from_str(&record.input).unwrap_or_default();
        let take = |_: &_| vec![Change::TakeDue { flow_id, due }];
        match self.engine.execute_with(&flow, input, TRIGGER, take) {
            Ok(accepted) => {
                log::info!("flow {flow_id} runs for {due} as {}", accepted.run_id);
                Ok(())
            }
            // It would be no other in a minute: the flow has to be mended.
            Err(error @ Error::Invalid { .. }) => {
                log::error!("flow {flow_id} is not run for {due}: {error}");
                self.take(flow_id, due)
            }
            Err(error) => Err(error),
        }
    }

    fn take(&self, flow_id: FlowId, due: Timestamp) -> Result<()> {
        let change = Change::TakeDue { flow_id, due };
        self.journal.commit_one(change).map(drop)
    }
}

/// How long to sleep until `next`.
fn sleep(next: Option<Timestamp>, now: Timestamp) -> Duration {
    let ms = next.map_or(i64::MAX, |next| next.0.saturating_sub(now.0));
    Duration::from_millis(ms.max(0).unsigned_abs()).min(SLEEP_MAX)
}
