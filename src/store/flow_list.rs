//! Lists flows without their documents, with their triggers and newest runs.

use std::collections::HashMap;

use rusqlite::params;

use super::reader::Store;
use super::sql::FromRow;
use crate::error::Result;
use crate::event::RunStatus;
use crate::ids::{FlowId, RunId};
use crate::money::Usd;
use crate::time::Timestamp;

/// Characters of an error in a list.
const ERROR_CHARS: usize = 500;

#[derive(Clone, Debug)]
pub struct FlowEntry {
    pub id: FlowId,
    pub name: String,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    pub has_hook: bool,
    pub schedule: Option<FlowSchedule>,
}

#[derive(Clone, Debug)]
pub struct FlowSchedule {
    pub cron: String,
    pub timezone: String,
    pub enabled: bool,
    /// Only later times can be due.
    pub last: Timestamp,
}

/// A run in a list of flows.
#[derive(Clone, Debug)]
pub struct RecentRun {
    pub flow_id: FlowId,
    pub id: RunId,
    pub status: RunStatus,
    pub trigger: String,
    pub created_at: Timestamp,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
    pub cost: Option<Usd>,
    /// Its beginning.
    pub error: Option<String>,
}

from_row!(
    RecentRun; flow_id, id, status, trigger, created_at, started_at, finished_at, cost, error
);

impl FromRow for FlowEntry {
    fn read(row: &rusqlite::Row<'_>, at: &mut usize) -> rusqlite::Result<Self> {
        let (id, name, created_at, updated_at) = FromRow::read(row, at)?;
        let (has_hook, cron, timezone) = FromRow::read(row, at)?;
        let rest: (Option<bool>, Option<Timestamp>) = FromRow::read(row, at)?;
        let schedule = match (cron, timezone, rest) {
            (Some(cron), Some(timezone), (Some(enabled), Some(last))) => {
                Some(FlowSchedule { cron, timezone, enabled, last })
            }
            _ => None,
        };
        Ok(Self { id, name, created_at, updated_at, has_hook, schedule })
    }
}

impl Store {
    /// Returns all flows, newest first.
    pub fn flow_entries(&self) -> Result<Vec<FlowEntry>> {
        let sql = "SELECT flows.id, name, flows.created_ms, flows.updated_ms,
                hooks.flow_id IS NOT NULL, cron, timezone, enabled, last_ms
             FROM flows LEFT JOIN hooks ON hooks.flow_id = flows.id
                LEFT JOIN schedules ON schedules.flow_id = flows.id
             ORDER BY flows.id DESC";
        self.all(sql, [])
    }

    /// Returns the newest runs of each of these flows, newest first.
    pub fn recent_runs(
        &self,
        flow_ids: &[FlowId],
        of_each: usize,
    ) -> Result<HashMap<FlowId, Vec<RecentRun>>> {
        let ids = flow_ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let sql = format!(
            "SELECT flow_id, runs.id, status, trigger, created_ms, started_ms, finished_ms, cost_nanousd,
                substr(error, 1, {ERROR_CHARS})
             FROM json_each(?1) AS wanted JOIN runs ON runs.id IN
                (SELECT own.id FROM runs AS own WHERE own.flow_id = wanted.value
                    ORDER BY own.id DESC LIMIT ?2)
             ORDER BY runs.id DESC"
        );
        let mut by_flow: HashMap<FlowId, Vec<RecentRun>> = HashMap::new();
        for run in self.all::<RecentRun, Vec<_>>(&sql, params![format!("[{ids}]"), of_each])? {
            by_flow.entry(run.flow_id).or_default().push(run);
        }
        Ok(by_flow)
    }

    /// Returns the number of runs of each flow that were created at or after `from`.
    pub fn run_counts(&self, from: Timestamp) -> Result<HashMap<FlowId, u64>> {
        let sql = "SELECT flow_id, count(*) FROM runs WHERE created_ms >= ?1 GROUP BY flow_id";
        self.all(sql, [from])
    }
}
