//! Runs flows when their schedules are due.
//!
//! One thread reads all schedules when one may have changed, decides about each (see
//! [`crate::schedule`]), and sleeps until the next is due. A time is marked as run in the same
//! commit as the run, so it never runs twice, even after a crash or if the clock is set back.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use serde_json::Value;

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::ids::FlowId;
use crate::journal::Journal;
use crate::schedule::{Schedule, Step};
use crate::store::{Change, ScheduleRecord, Store};
use crate::threads::{OnFatal, vital};
use crate::time::Timestamp;

/// Bounds the sleep, because the clock may be set forward or back.
const SLEEP_MAX: Duration = Duration::from_millis(SLEEP_MAX_MS.unsigned_abs());
const SLEEP_MAX_MS: i64 = 10_000;
/// The tolerated delay of a check, in milliseconds. After a longer one, the machine was suspended
/// or the clock was set forward, so times due before then count as missed.
const LATE_MAX_MS: i64 = 60_000;
/// The delay before a run that could not be started is tried again.
const RETRY_MS: i64 = 60_000;
/// A last run further ahead of the clock than this is logged.
const AHEAD_MAX_MS: i64 = 60 * 60 * 1000;

/// The trigger recorded in runs that the scheduler starts.
const TRIGGER: &str = "schedule";

/// A handle that wakes and stops the scheduler.
#[derive(Clone)]
pub struct Scheduler {
    /// Holds one message at most: several changes need only one check.
    wake: Sender<()>,
    stopping: Arc<AtomicBool>,
}

impl Scheduler {
    /// Starts the scheduler's thread. Times before now count as missed.
    pub fn start(
        store: Arc<Store>,
        journal: Journal,
        engine: Engine,
        on_fatal: OnFatal,
    ) -> Result<(Self, JoinHandle<()>)> {
        let (wake, woken) = bounded(1);
        let stopping = Arc::new(AtomicBool::new(false));
        let state = State {
            stopping: Arc::clone(&stopping),
            ..State::new(store, journal, engine, Timestamp::now())
        };
        let thread = vital("scheduler", on_fatal, move || state.run(&woken))?;
        Ok((Self { wake, stopping }, thread))
    }

    /// Makes the thread read all schedules again, because one may have changed. Does not wait.
    pub fn reload(&self) {
        let _ = self.wake.try_send(());
    }

    /// Ends the thread. Runs that it started continue.
    pub fn shutdown(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.reload();
    }
}

/// An enabled schedule.
struct Planned {
    record: ScheduleRecord,
    schedule: Schedule,
    /// Time of the next action; none if there never is one.
    next: Option<Timestamp>,
}

/// A schedule to retry later, because its run could not start or a skip could not be saved.
struct Retry {
    /// The due time of a run that could not start; none for a skip.
    due: Option<Timestamp>,
    until: Timestamp,
}

/// Owned by the scheduler's thread.
struct State {
    store: Arc<Store>,
    journal: Journal,
    engine: Engine,
    /// Times up to this one count as missed.
    missed_upto: Timestamp,
    awake_at: Timestamp,
    planned: Vec<Planned>,
    retries: HashMap<FlowId, Retry>,
    /// True if `planned` may be out of date.
    is_stale: bool,
    stopping: Arc<AtomicBool>,
}

impl State {
    fn new(store: Arc<Store>, journal: Journal, engine: Engine, started: Timestamp) -> Self {
        Self {
            store,
            journal,
            engine,
            missed_upto: started,
            awake_at: started,
            planned: Vec::new(),
            retries: HashMap::new(),
            is_stale: true,
            stopping: Arc::default(),
        }
    }

    fn run(mut self, woken: &Receiver<()>) {
        while !self.stopping.load(Ordering::SeqCst) {
            let next = self.run_due(Timestamp::now());
            // Starting many runs takes a while, and must not count as sleep.
            self.awake_at = Timestamp::now();
            match woken.recv_timeout(sleep(next, Timestamp::now())) {
                Ok(()) => self.is_stale = true,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Runs or skips everything due at `now`. Returns the time of the next action, if any.
    fn run_due(&mut self, now: Timestamp) -> Option<Timestamp> {
        let asleep_ms = now.0.saturating_sub(self.awake_at.0);
        if asleep_ms > LATE_MAX_MS + SLEEP_MAX_MS {
            self.missed_upto = Timestamp(now.0 - LATE_MAX_MS);
        } else if asleep_ms < -LATE_MAX_MS {
            // Reading them warns of those that now wait for long.
            self.is_stale = true;
        }
        self.awake_at = now;
        // If the clock was set back, the times after `now` are watched again.
        self.missed_upto = self.missed_upto.min(now);
        if self.is_stale {
            match self.read(now) {
                Ok(()) => self.is_stale = false,
                // Continue with the schedules read earlier.
                Err(error) => log::error!("cannot read the schedules: {error}"),
            }
        }
        for at in 0..self.planned.len() {
            // Thousands may be due at once, and a shutdown must not wait for them.
            if self.stopping.load(Ordering::SeqCst) {
                return None;
            }
            if self.planned[at].next.is_some_and(|next| next <= now) {
                self.run_or_skip(at, now);
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
                    self.planned.push(Planned { record, schedule, next });
                }
                // It was valid when it was saved; the system may have lost its time zone since.
                Err(faults) => log::error!(
                    "cannot run flow {} by its schedule: {}",
                    record.flow_id,
                    Error::Invalid {
                        message: "the stored schedule is no longer valid".into(),
                        faults
                    }
                ),
            }
        }
        for Planned { record, next, .. } in &self.planned {
            if record.last.0 > now.0.saturating_add(AHEAD_MAX_MS) {
                log::warn!(
                    "the system clock is behind the last scheduled run of flow {} at {}; its next run is {}. To resume now, delete the schedule and set it again",
                    record.flow_id,
                    record.last,
                    next.map_or_else(|| "never".to_owned(), |next| format!("at {next}"))
                );
            }
        }
        let records = self.planned.iter().map(|planned| &planned.record);
        let last: HashMap<FlowId, Timestamp> = records.map(|r| (r.flow_id, r.last)).collect();
        self.retries.retain(|flow_id, retry| {
            last.get(flow_id).is_some_and(|last| retry.due.is_none_or(|due| *last < due))
        });
        Ok(())
    }

    fn next(&self, record: &ScheduleRecord, schedule: &Schedule) -> Option<Timestamp> {
        let next = schedule.next(record.last)?;
        let retry = self.retries.get(&record.flow_id);
        Some(retry.map_or(next, |retry| retry.until.max(next)))
    }

    /// Runs or skips the due time of one schedule.
    fn run_or_skip(&mut self, at: usize, now: Timestamp) {
        let Planned { record, schedule, .. } = &self.planned[at];
        let flow_id = record.flow_id;
        let mut since = self.missed_upto;
        if let Some(Retry { due: Some(due), .. }) = self.retries.get(&flow_id) {
            // A retried run is not missed: the scheduler saw its time when it was due.
            since = since.min(Timestamp(due.0 - 1));
        }
        let step = schedule.step(record.missed, record.last, since, now);
        let done = match step {
            Step::Wait => Ok(None),
            Step::Run(due) => self.start(flow_id, due).map(|()| Some(due)),
            Step::Skip(due) => {
                log::info!("skipped the missed run of flow {flow_id} at {due}");
                self.take(flow_id, due).map(|()| Some(due))
            }
        };
        match (done, step) {
            (Ok(taken), _) => {
                self.retries.remove(&flow_id);
                if let Some(due) = taken {
                    self.planned[at].record.last = due;
                }
            }
            // The schedule was just changed or removed; that change also wakes this thread.
            (Err(Error::Conflict(_) | Error::NotFound(_)), _) => {
                self.planned[at].next = None;
                self.is_stale = true;
                return;
            }
            (Err(error), step) => {
                let due = match step {
                    Step::Run(due) => Some(due),
                    Step::Skip(_) | Step::Wait => None,
                };
                log::warn!(
                    "cannot start the scheduled run of flow {flow_id}, retrying in a minute: {error}"
                );
                let until = Timestamp(now.0.saturating_add(RETRY_MS));
                self.retries.insert(flow_id, Retry { due, until });
            }
        }
        let Planned { record, schedule, .. } = &self.planned[at];
        self.planned[at].next = self.next(record, schedule);
    }

    /// Starts the run for a due time, and marks the time as done in the same commit.
    fn start(&self, flow_id: FlowId, due: Timestamp) -> Result<()> {
        let record = self.store.schedule(flow_id)?;
        let flow = self.store.flow(flow_id)?;
        let input: Value = serde_json::from_str(&record.input).unwrap_or_default();
        let take = |_: &_| vec![Change::TakeDue { flow_id, due }];
        match self.engine.execute_with(&flow, input, TRIGGER, take) {
            Ok(accepted) => {
                log::info!(
                    "started the scheduled run of flow {flow_id} at {due}: {}",
                    accepted.run_id
                );
                Ok(())
            }
            // A retry would fail too: the flow has to be fixed.
            Err(error @ Error::Invalid { .. }) => {
                log::error!("cannot start the scheduled run of flow {flow_id} at {due}: {error}");
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

/// Returns the time to sleep until `next`, at most `SLEEP_MAX`.
fn sleep(next: Option<Timestamp>, now: Timestamp) -> Duration {
    let ms = next.map_or(i64::MAX, |next| next.0.saturating_sub(now.0));
    Duration::from_millis(ms.max(0).unsigned_abs()).min(SLEEP_MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tempfile::TempDir;

    use super::*;
    use crate::config::{Config, Overrides};
    use crate::schedule::Missed;
    use crate::server::Core;
    use crate::store::{NewSchedule, RunFilter, alter};

    /// All parts except the network, and a scheduler without a thread; the test sets its clock.
    struct Bench {
        core: Option<Core>,
        state: State,
        dir: TempDir,
    }

    fn at(text: &str) -> Timestamp {
        format!("2026-11-23T{text}Z").parse().unwrap()
    }

    impl Bench {
        fn started(now: &str) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let mut config = Config::load(Overrides::default()).unwrap();
            config.data = dir.path().join("data");
            let on_fatal: OnFatal = Arc::new(|name: &str| panic!("{name} ended"));
            let core = Core::start(&config, None, true, &on_fatal).unwrap();
            let (store, journal) = (Arc::clone(&core.store), core.journal.clone());
            let state = State::new(store, journal, core.engine.clone(), at(now));
            Self { core: Some(core), state, dir }
        }

        fn core(&self) -> &Core {
            self.core.as_ref().unwrap()
        }

        /// Sets the schedule of the first example flow.
        fn set(&mut self, cron: &str, missed: Missed, now: &str) {
            let schedule = NewSchedule {
                flow_id: 1,
                cron: cron.into(),
                timezone: "UTC".into(),
                missed,
                input: json!({"topic": "bees"}).to_string(),
                enabled: true,
                at: at(now),
            };
            let change = Change::SetSchedule(schedule);
            self.core().journal.commit_one(change).unwrap();
            self.state.is_stale = true;
        }

        /// Checks the schedules at `now`. Returns the time of the next action.
        fn run_due(&mut self, now: &str) -> Timestamp {
            self.state.run_due(at(now)).unwrap()
        }

        fn runs(&self) -> usize {
            let runs = self.core().store.runs(&RunFilter::default(), 1_000);
            runs.unwrap().0.len()
        }

        fn last(&self) -> Timestamp {
            self.core().store.schedule(1).unwrap().last
        }

        /// Changes the database behind the server's back.
        fn alter(&self, sql: &str) {
            alter(&self.dir.path().join("data"), sql);
        }
    }

    impl Drop for Bench {
        fn drop(&mut self) {
            if let Some(core) = self.core.take() {
                core.shutdown();
            }
        }
    }

    #[test]
    fn due_schedules_run_on_time() {
        let mut bench = Bench::started("08:00:00");
        bench.set("*/10 * * * *", Missed::Skip, "08:00:00");
        assert_eq!(bench.run_due("08:00:00"), at("08:10:00"));
        assert_eq!(bench.run_due("08:09:59.999"), at("08:10:00"));
        assert_eq!(bench.runs(), 0);
        assert_eq!(bench.run_due("08:10:00.004"), at("08:20:00"));
        assert_eq!((bench.runs(), bench.last()), (1, at("08:10:00")));
        assert_eq!(bench.run_due("08:10:00.005"), at("08:20:00"));
        assert_eq!(bench.runs(), 1);
        // Late but within the tolerance, as on a busy machine.
        assert_eq!(bench.run_due("08:20:59"), at("08:30:00"));
        assert_eq!(bench.runs(), 2);
    }

    #[test]
    fn a_clock_step_back_neither_repeats_nor_skips_runs() {
        let mut bench = Bench::started("12:00:00");
        bench.set("0 * * * *", Missed::Skip, "08:30:00");
        // Saved by an earlier clock: times before the start were missed.
        assert_eq!(bench.run_due("12:00:00"), at("13:00:00"));
        assert_eq!((bench.runs(), bench.last()), (0, at("12:00:00")));
        assert_eq!(bench.run_due("13:00:00"), at("14:00:00"));
        assert_eq!(bench.runs(), 1);
        assert_eq!(bench.run_due("10:00:00"), at("14:00:00"));
        assert_eq!(bench.run_due("13:00:00"), at("14:00:00"));
        assert_eq!(bench.runs(), 1);
        // A replaced schedule does not repeat past runs; a deleted and new one starts over.
        bench.set("0 * * * *", Missed::Skip, "09:30:00");
        assert_eq!(bench.run_due("09:30:00"), at("14:00:00"));
        bench.core().journal.commit_one(Change::DeleteSchedule(1)).unwrap();
        bench.set("0 * * * *", Missed::Skip, "09:30:00");
        assert_eq!(bench.run_due("09:30:00"), at("10:00:00"));
        assert_eq!(bench.run_due("10:00:00"), at("11:00:00"));
        assert_eq!(bench.runs(), 2);
    }

    std::thread_local! {
        static WARNINGS: std::cell::RefCell<Vec<String>> = const { std::cell::RefCell::new(Vec::new()) };
    }

    /// Keeps the warnings of each thread.
    struct Warnings;

    impl log::Log for Warnings {
        fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
            metadata.level() <= log::Level::Warn
        }
        fn log(&self, record: &log::Record<'_>) {
            WARNINGS.with_borrow_mut(|all| all.push(record.args().to_string()));
        }
        fn flush(&self) {}
    }

    #[test]
    fn a_clock_step_back_while_running_is_logged() {
        log::set_logger(&Warnings).unwrap();
        log::set_max_level(log::LevelFilter::Warn);
        let mut bench = Bench::started("12:00:00");
        bench.set("0 * * * *", Missed::Skip, "12:00:00");
        bench.run_due("12:00:00");
        bench.run_due("13:00:00");
        let warnings = || WARNINGS.with_borrow_mut(std::mem::take);
        assert_eq!(warnings(), Vec::<String>::new());
        assert_eq!(bench.run_due("10:00:00"), at("14:00:00"));
        let [warning] = &warnings()[..] else { panic!("not one warning") };
        assert!(warning.contains("behind the last scheduled run of flow 1"), "{warning}");
        // Once for each step.
        bench.run_due("10:00:10");
        assert_eq!(warnings(), Vec::<String>::new());
    }

    #[test]
    fn times_missed_during_sleep_are_skipped_or_run_once() {
        for (missed, count) in [(Missed::Skip, 0), (Missed::Once, 1)] {
            let mut bench = Bench::started("08:00:00");
            bench.set("0 * * * *", missed, "08:00:00");
            bench.run_due("08:00:00");
            assert_eq!(bench.run_due("17:30:00"), at("18:00:00"), "{missed}");
            assert_eq!((bench.runs(), bench.last()), (count, at("17:00:00")));
            // The newest time was not missed, and its run covers the earlier ones.
            assert_eq!(bench.run_due("21:00:30"), at("22:00:00"), "{missed}");
            assert_eq!(bench.runs(), count + 1, "{missed}");
        }
    }

    #[test]
    fn a_failed_start_is_retried_in_a_minute() {
        let mut bench = Bench::started("08:00:00");
        bench.set("0 * * * *", Missed::Skip, "08:00:00");
        bench.run_due("08:00:00");
        let full =
            "CREATE TRIGGER full BEFORE INSERT ON runs BEGIN SELECT raise(ABORT, 'full'); END";
        bench.alter(full);
        assert_eq!(bench.run_due("09:00:00.1"), at("09:01:00.1"));
        // Neither the run nor the mark is saved.
        assert_eq!((bench.runs(), bench.last()), (0, at("08:00:00")));
        assert_eq!(bench.run_due("09:01:00.2"), at("09:02:00.2"));
        bench.alter("DROP TRIGGER full");
        // The retry time survives a change of schedules.
        bench.state.is_stale = true;
        assert_eq!(bench.run_due("09:02:00.1"), at("09:02:00.2"));
        assert_eq!(bench.runs(), 0);
        assert_eq!(bench.run_due("09:02:00.2"), at("10:00:00"));
        assert_eq!((bench.runs(), bench.last()), (1, at("09:00:00")));
    }

    #[test]
    fn a_skip_is_retried_after_a_write_error() {
        let mut bench = Bench::started("09:30:00");
        bench.set("0 * * * *", Missed::Skip, "08:00:00");
        let full =
            "CREATE TRIGGER full BEFORE UPDATE ON schedules BEGIN SELECT raise(ABORT, 'full'); END";
        bench.alter(full);
        assert_eq!(bench.run_due("09:30:00"), at("09:31:00"));
        bench.alter("DROP TRIGGER full");
        assert_eq!(bench.run_due("09:31:00"), at("10:00:00"));
        assert_eq!((bench.runs(), bench.last()), (0, at("09:00:00")));
    }

    #[test]
    fn times_due_during_a_long_check_are_not_missed() {
        let mut bench = Bench::started("08:00:00");
        bench.set("* * * * *", Missed::Skip, "08:00:00");
        bench.run_due("08:00:00");
        // As after a check that took three minutes.
        bench.state.awake_at = at("08:03:10");
        assert_eq!(bench.run_due("08:03:10"), at("08:04:00"));
        assert_eq!((bench.runs(), bench.last()), (1, at("08:03:00")));
    }

    #[test]
    fn a_removed_or_replaced_schedule_starts_no_run() {
        let mut bench = Bench::started("08:00:00");
        bench.set("0 * * * *", Missed::Once, "08:00:00");
        bench.run_due("08:00:00");
        bench.set("0 * * * *", Missed::Once, "09:00:00.5");
        bench.state.is_stale = false;
        assert_eq!(bench.state.run_due(at("09:00:01")), None);
        assert_eq!(bench.runs(), 0);
        assert_eq!(bench.run_due("09:00:01"), at("10:00:00"));
        bench.core().journal.commit_one(Change::DeleteFlow(1)).unwrap();
        assert_eq!(bench.state.run_due(at("10:00:01")), None);
        assert_eq!(bench.state.run_due(at("10:00:01")), None);
        assert_eq!(bench.runs(), 0);
    }

    #[test]
    fn sleep_ends_at_the_next_time_or_the_maximum() {
        let now = at("08:00:00");
        let until = |text: &str| sleep(Some(at(text)), now);
        assert_eq!(until("08:00:00.250"), Duration::from_millis(250));
        assert_eq!(until("07:00:00"), Duration::ZERO);
        assert_eq!(until("09:00:00"), SLEEP_MAX);
        assert_eq!(sleep(None, now), SLEEP_MAX);
        assert_eq!(sleep(Some(Timestamp(i64::MAX)), Timestamp(-1)), SLEEP_MAX);
    }
}
