//! Reads for the overview: costs by day and model, latencies, and what is in flight.

use rusqlite::params;

use super::reader::Store;
use super::runs::{COLUMNS, Run};
use crate::error::Result;
use crate::money::Usd;
use crate::time::Timestamp;

/// The unit of [`Store::costs_by_time`]. All time zones have offsets of whole quarters of an hour
/// since 1972.
pub const QUARTER_MS: i64 = 15 * 60 * 1000;

/// The calls of a model in a quarter of an hour.
#[derive(Clone, Debug)]
pub struct QuarterSums {
    /// Its start.
    pub at: Timestamp,
    pub model: String,
    pub calls: u64,
    pub failed: u64,
    /// The known costs, without those that a subscription covers.
    pub cost: Usd,
}

from_row!(QuarterSums; at, model, calls, failed, cost);

impl Store {
    /// Returns the sums of each model and quarter of an hour, in no order.
    pub fn costs_by_time(&self, from: Timestamp, to: Timestamp) -> Result<Vec<QuarterSums>> {
        let sql = format!(
            "SELECT timestamp_ms / {QUARTER_MS} * {QUARTER_MS}, model_used, count(*),
                count(*) FILTER (WHERE status NOT IN ('SUCCESS', 'PENDING')),
                coalesce(sum(cost_nanousd) FILTER (WHERE billing IS NULL), 0)
             FROM ledger WHERE timestamp_ms >= ?1 AND timestamp_ms < ?2 GROUP BY 1, 2"
        );
        self.all(&sql, [from, to])
    }

    /// Returns the latencies of successful calls that the response cache did not answer, in
    /// milliseconds, in no order.
    pub fn latencies(&self, from: Timestamp, to: Timestamp) -> Result<Vec<u64>> {
        let sql = "SELECT latency_ms FROM ledger
             WHERE timestamp_ms >= ?1 AND timestamp_ms < ?2 AND status = 'SUCCESS' AND NOT cached
                AND latency_ms IS NOT NULL";
        self.all(sql, [from, to])
    }

    /// Returns the time of the oldest row.
    pub fn oldest_call(&self) -> Result<Option<Timestamp>> {
        Ok(self.one("SELECT min(timestamp_ms) FROM ledger", [])?.flatten())
    }

    pub fn pending_call_count(&self) -> Result<u64> {
        let sql = "SELECT count(*) FROM ledger WHERE status = 'PENDING'";
        Ok(self.one(sql, [])?.unwrap_or_default())
    }

    /// Returns the newest runs that are not over, without their graphs.
    pub fn unfinished_runs(&self, limit: usize) -> Result<Vec<Run>> {
        let sql = format!(
            "SELECT {COLUMNS}, '' FROM runs WHERE status IN ('QUEUED', 'RUNNING')
             ORDER BY id DESC LIMIT ?1"
        );
        self.all(&sql, params![limit])
    }
}
