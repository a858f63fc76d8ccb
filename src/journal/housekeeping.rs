//! The journal's background work, in small steps: it removes rows that are too old or too many,
//! sums up days of the ledger, and indexes blocks of its rows.

use std::time::{Duration, Instant};

use super::retention_clock::RetentionClock;
use crate::error::Result;
use crate::ids::{RunId, Seq};
use crate::store::Writer;
use crate::time::Timestamp;

/// Limits the number of events in the log.
pub const EVENTS_MAX: u64 = 1_000_000;
/// Limits the age of events in the log.
pub const EVENT_AGE_MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// Limits how many old events and delivery keys one step removes.
const PRUNE_STEP: usize = 500;
/// Limits how many runs, answers and bodies one step removes.
const PRUNE_RUNS_STEP: usize = 100;
/// The time between steps, so that writes are delayed rarely and briefly.
const INTERVAL: Duration = Duration::from_millis(500);
/// The time between steps while there is a backlog: 25,000 events or 5,000 runs a second, more than
/// a busy server writes.
const INTERVAL_BEHIND: Duration = Duration::from_millis(20);
/// Limits how many blocks of 128 ledger rows one step indexes: as many as a busy server fills in
/// [`INTERVAL`], and five milliseconds of work.
const INDEX_STEP: usize = 16;
/// The time between counts of runs and answers, and between checks for a day that can be summed up.
const COUNT_INTERVAL: Duration = Duration::from_secs(60);

/// Limits how long runs that are over, and bodies, are kept. Ledger rows are kept forever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// The number of runs; 100,000 by default.
    pub runs: u64,
    /// The age of runs; 90 days by default.
    pub run_age: Duration,
    /// None if no bodies are stored, which is the default; earlier ones are removed.
    pub bodies: Option<BodyLimits>,
}

/// Limits the bodies of calls of the gateway's clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BodyLimits {
    pub age: Duration,
    /// All bodies together; beyond it the oldest are removed.
    pub bytes_max: u64,
}

impl Default for Retention {
    fn default() -> Self {
        let run_age = Duration::from_secs(90 * 24 * 60 * 60);
        Self { runs: 100_000, run_age, bodies: None }
    }
}

pub(super) struct Housekeeping {
    retention: Retention,
    clock: RetentionClock,
    last: Instant,
    /// The time from `last` to the next step.
    interval: Duration,
    counted_at: Option<Instant>,
    /// The newest run beyond the limit, as of the last count.
    newest_excess_run: Option<RunId>,
    /// Bytes of answers beyond the limit, as of the last count.
    cached_bytes_over_limit: i64,
    /// The last time that no day of the ledger was ready to be summed up.
    nothing_to_sum_at: Option<Instant>,
}

impl Housekeeping {
    /// `newest` is the time of the newest row in the database.
    pub(super) fn new(retention: Retention, newest: Option<Timestamp>) -> Self {
        let now = Instant::now();
        Self {
            retention,
            clock: RetentionClock::new(newest, Timestamp::now(), now),
            last: now,
            interval: INTERVAL,
            counted_at: None,
            newest_excess_run: None,
            cached_bytes_over_limit: 0,
            nothing_to_sum_at: None,
        }
    }

    /// Returns the time until [`Housekeeping::run`] may have work to do.
    pub(super) fn interval(&self) -> Duration {
        self.interval
    }

    pub(super) fn is_due(&self) -> bool {
        self.last.elapsed() >= self.interval
    }

    /// Does one step if it is due. Returns the oldest event's `seq` if it changed.
    pub(super) fn run(&mut self, writer: &mut Writer) -> Option<Seq> {
        if !self.is_due() {
            return None;
        }
        self.last = Instant::now();
        self.interval = INTERVAL;
        let now = self.clock.now(Timestamp::now(), self.last);
        let oldest = self.prune_events(writer, now);
        let oldest = logged("cannot delete old events", oldest).flatten();
        type Step = fn(&mut Housekeeping, &mut Writer, Timestamp) -> Result<bool>;
        let steps: [(&str, Step); 8] = [
            ("cannot count runs and cached responses", Self::count),
            ("cannot compute the daily totals of the ledger", Self::roll_up),
            ("cannot index blocks of ledger rows", |_, writer, _| {
                Ok(writer.index_blocks(INDEX_STEP)? == INDEX_STEP)
            }),
            ("cannot delete old runs", Self::prune_runs),
            ("cannot delete old cached responses", Self::prune_responses),
            ("cannot delete old bodies of calls", Self::prune_bodies),
            ("cannot delete old delivery keys of webhooks", |_, writer, now| {
                Ok(writer.prune_hook_keys(now, PRUNE_STEP)? == PRUNE_STEP)
            }),
            ("cannot delete old objects of clients", |_, writer, now| {
                Ok(writer.prune_objects(now, PRUNE_STEP)? == PRUNE_STEP)
            }),
        ];
        for (fault, step) in steps {
            let is_behind = step(self, writer, now);
            if logged(fault, is_behind) == Some(true) {
                self.interval = INTERVAL_BEHIND;
            }
        }
        oldest
    }

    fn prune_events(&mut self, writer: &mut Writer, now: Timestamp) -> Result<Option<Seq>> {
        let count = writer.prune_events(EVENTS_MAX, before(now, EVENT_AGE_MAX), PRUNE_STEP)?;
        if count == PRUNE_STEP {
            self.interval = INTERVAL_BEHIND;
        }
        (count > 0).then(|| writer.oldest_seq()).transpose()
    }

    fn count(&mut self, writer: &mut Writer, _: Timestamp) -> Result<bool> {
        if is_early(self.counted_at) {
            return Ok(false);
        }
        self.counted_at = Some(Instant::now());
        self.newest_excess_run = writer.newest_excess_run(self.retention.runs)?;
        self.cached_bytes_over_limit = writer.cached_bytes_over_limit()?;
        Ok(false)
    }

    fn roll_up(&mut self, writer: &mut Writer, _: Timestamp) -> Result<bool> {
        if is_early(self.nothing_to_sum_at) {
            return Ok(false);
        }
        let is_rolled_up = writer.roll_up_day(Timestamp::now())?;
        if !is_rolled_up {
            self.nothing_to_sum_at = Some(Instant::now());
        }
        Ok(is_rolled_up)
    }

    fn prune_runs(&mut self, writer: &mut Writer, now: Timestamp) -> Result<bool> {
        let before = before(now, self.retention.run_age);
        let upto = self.newest_excess_run.as_deref();
        Ok(writer.prune_runs(upto, before, PRUNE_RUNS_STEP)? == PRUNE_RUNS_STEP)
    }

    fn prune_bodies(&mut self, writer: &mut Writer, now: Timestamp) -> Result<bool> {
        let (age, bytes_max) = match self.retention.bodies {
            Some(limits) => (limits.age, limits.bytes_max),
            None => (Duration::ZERO, u64::MAX),
        };
        let count = writer.prune_bodies(before(now, age), bytes_max, PRUNE_RUNS_STEP)?;
        Ok(count == PRUNE_RUNS_STEP)
    }

    fn prune_responses(&mut self, writer: &mut Writer, now: Timestamp) -> Result<bool> {
        let too_many = self.cached_bytes_over_limit > 0;
        let (count, bytes) = writer.prune_responses(too_many, now, PRUNE_RUNS_STEP)?;
        self.cached_bytes_over_limit -= bytes;
        Ok(count == PRUNE_RUNS_STEP)
    }
}

/// Logs an error; the next step tries again.
fn logged<T>(fault: &str, result: Result<T>) -> Option<T> {
    result.inspect_err(|error| log::warn!("{fault}: {error}")).ok()
}

fn is_early(last: Option<Instant>) -> bool {
    last.is_some_and(|at| at.elapsed() < COUNT_INTERVAL)
}

fn before(now: Timestamp, age: Duration) -> Timestamp {
    let age_ms = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
    Timestamp(now.0.saturating_sub(age_ms))
}
