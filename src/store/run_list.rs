//! Lists runs: filters, orders, and cursors that continue a list.

use std::fmt;
use std::str::FromStr;

use rusqlite::types::Value;
use rusqlite::{Connection, params_from_iter};

use super::reader::Store;
use super::runs::{COLUMNS, Run};
use super::sql::{all, one};
use crate::error::Result;
use crate::event::{RunStatus, text_enum};
use crate::ids::{FlowId, RunId};
use crate::money::Usd;
use crate::time::Timestamp;

/// Limits the runs that a page examines; a page with rare matches may be short, and its cursor
/// continues. As many as are kept by default.
const SCAN_ROWS_MAX: usize = 100_000;

text_enum! {
    /// The order of a list, largest first.
    #[derive(Default)]
    pub enum RunSort {
        #[default]
        Time = "time",
        /// Without runs of unknown cost.
        Cost = "cost",
        /// Without runs that are not over.
        Duration = "duration",
    }
}

impl RunSort {
    /// Returns the SQL expression of the order, which an index has; none for the order of ids.
    fn column(self) -> Option<&'static str> {
        match self {
            Self::Time => None,
            Self::Cost => Some("cost_nanousd"),
            Self::Duration => Some("finished_ms - coalesce(started_ms, created_ms)"),
        }
    }
}

/// A position in a list: after this run.
#[derive(Clone, Debug, PartialEq)]
pub struct RunCursor {
    /// The run's value in the order of the list.
    value: Option<i64>,
    id: RunId,
}

impl fmt::Display for RunCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.value {
            None => f.write_str(&self.id),
            Some(value) => write!(f, "{value}:{}", self.id),
        }
    }
}

impl FromStr for RunCursor {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let invalid = || format!("invalid cursor `{text}`; use `next` of the page before");
        let (value, id) = match text.split_once(':') {
            Some((value, id)) => (Some(value.parse().map_err(|_| invalid())?), id),
            None => (None, text),
        };
        let id = uuid::Uuid::parse_str(id).map_err(|_| invalid())?;
        Ok(Self { value, id: id.to_string() })
    }
}

/// Conditions for runs; a run must meet all that are set.
#[derive(Clone, Debug, Default)]
pub struct RunFilter {
    pub flow_id: Option<FlowId>,
    /// Any of these.
    pub statuses: Vec<RunStatus>,
    /// Any of these.
    pub triggers: Vec<String>,
    /// Created at or after this time.
    pub from: Option<Timestamp>,
    /// Created before this time.
    pub to: Option<Timestamp>,
    pub cost_min: Option<Usd>,
    pub cost_max: Option<Usd>,
    pub ms_min: Option<i64>,
    pub ms_max: Option<i64>,
    /// A part of the flow's name, of the id or of the error, in any case.
    pub text: Option<String>,
    pub sort: RunSort,
    pub before: Option<RunCursor>,
}

impl RunFilter {
    /// Returns the SQL condition for single runs and its parameters.
    fn sql(&self) -> (String, Vec<Value>) {
        let (mut sql, mut values) = (String::from("1"), Vec::new());
        let mut add = |condition: &str, value: Option<Value>| {
            if let Some(value) = value {
                sql.push_str(" AND ");
                sql.push_str(condition);
                values.push(value);
            }
        };
        let ms = "finished_ms - coalesce(started_ms, created_ms)";
        add("created_ms >= ?", self.from.map(|at| Value::from(at.0)));
        add("created_ms < ?", self.to.map(|at| Value::from(at.0)));
        add("cost_nanousd >= ?", self.cost_min.map(|cost| Value::from(cost.nanousd)));
        add("cost_nanousd <= ?", self.cost_max.map(|cost| Value::from(cost.nanousd)));
        add(&format!("{ms} >= ?"), self.ms_min.map(Value::from));
        add(&format!("{ms} <= ?"), self.ms_max.map(Value::from));
        add(
            "instr(lower(flow_name || char(10) || id || char(10) || coalesce(error, '')), lower(?)) > 0",
            self.text.clone().map(Value::from),
        );
        let statuses = self.statuses.iter().map(|status| Value::from(status.as_str().to_owned()));
        let triggers = self.triggers.iter().cloned().map(Value::from);
        for (column, list) in
            [("status", statuses.collect::<Vec<_>>()), ("trigger", triggers.collect())]
        {
            if !list.is_empty() {
                let marks = vec!["?"; list.len()].join(", ");
                sql.push_str(&format!(" AND {column} IN ({marks})"));
                values.extend(list);
            }
        }
        (sql, values)
    }

    /// Returns the SQL of the runs to examine, in the order of the list, and its parameters.
    fn source(&self, columns: &str) -> (String, Vec<Value>) {
        let (mut condition, mut values) = (String::from("1"), Vec::new());
        if let Some(flow_id) = self.flow_id {
            condition.push_str(" AND flow_id = ?");
            values.push(Value::from(flow_id));
        }
        let order = match self.sort.column() {
            None => "id DESC".to_owned(),
            Some(column) => {
                condition.push_str(&format!(" AND {column} IS NOT NULL"));
                format!("{column} DESC, id DESC")
            }
        };
        if let Some(before) = &self.before {
            match (self.sort.column(), before.value) {
                (Some(column), Some(value)) => {
                    condition.push_str(&format!(" AND ({column}, id) < (?, ?)"));
                    values.extend([Value::from(value), Value::from(before.id.clone())]);
                }
                _ => {
                    condition.push_str(" AND id < ?");
                    values.push(Value::from(before.id.clone()));
                }
            }
        }
        let sql = format!(
            "SELECT {columns} FROM runs WHERE {condition} ORDER BY {order} LIMIT {SCAN_ROWS_MAX}"
        );
        (sql, values)
    }
}

impl Store {
    /// Returns up to `limit` runs in the order of the filter, without their graphs, and the cursor
    /// that continues the list, if there may be more.
    pub fn runs(&self, filter: &RunFilter, limit: usize) -> Result<(Vec<Run>, Option<RunCursor>)> {
        self.read(|db| {
            let snapshot = db.unchecked_transaction()?;
            let (condition, conditions) = filter.sql();
            let (source, mut values) = filter.source("*");
            values.extend(conditions);
            let sql = format!(
                "SELECT {COLUMNS}, '' FROM ({source}) WHERE {condition} LIMIT {}",
                limit.saturating_add(1)
            );
            let mut runs: Vec<Run> = all(&snapshot, &sql, params_from_iter(values))?;
            if runs.len() > limit {
                runs.truncate(limit);
                let next = runs.last().map(|run| cursor(filter.sort, run));
                return Ok((runs, next));
            }
            let next = examined(&snapshot, filter)?;
            Ok((runs, next))
        })
    }
}

/// Returns the position after the last examined run, if others follow.
fn examined(db: &Connection, filter: &RunFilter) -> Result<Option<RunCursor>> {
    let value = filter.sort.column().unwrap_or("NULL");
    let (source, values) = filter.source(&format!("{value} AS value, id"));
    let sql = format!("SELECT value, id FROM ({source}) LIMIT 1 OFFSET {}", SCAN_ROWS_MAX - 1);
    let last: Option<(Option<i64>, RunId)> = one(db, &sql, params_from_iter(values))?;
    Ok(last.map(|(value, id)| RunCursor { value, id }))
}

fn cursor(sort: RunSort, run: &Run) -> RunCursor {
    let value = match sort {
        RunSort::Time => None,
        RunSort::Cost => run.cost.map(|cost| cost.nanousd),
        RunSort::Duration => {
            run.finished_at.map(|finished| finished.0 - run.started_at.unwrap_or(run.created_at).0)
        }
    };
    RunCursor { value, id: run.id.clone() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::store::connection::alter;

    /// Cost and duration of each run; none for runs that are not over.
    fn lists() -> impl Strategy<Value = Vec<(Option<i64>, Option<i64>)>> {
        let value = || proptest::option::of(0..4_i64);
        proptest::collection::vec((value(), value()), 0..30)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]
        #[test]
        fn pages_contain_each_run_once_in_order(list in lists(), size in 1..7_usize) {
            let dir = tempfile::tempdir().unwrap();
            let (store, _writer) = Store::open(dir.path()).unwrap();
            let mut sql = String::new();
            for (at, (cost, ms)) in list.iter().enumerate() {
                let number = |value: &Option<i64>| value.map_or("NULL".into(), |value| value.to_string());
                sql.push_str(&format!(
                    "INSERT INTO runs (id, flow_id, flow_name, graph_hash, trigger, input, status,
                        created_ms, started_ms, finished_ms, cost_nanousd)
                     VALUES ('00000000-0000-7000-8000-{at:012}', {}, 'Flow', '', 'api', '{{}}',
                        '{}', 5, 5, 5 + {}, {});",
                    at % 2,
                    if ms.is_some() { "COMPLETED" } else { "RUNNING" },
                    number(ms),
                    number(cost),
                ));
            }
            alter(dir.path(), &sql);
            for sort in [RunSort::Time, RunSort::Cost, RunSort::Duration] {
                let mut filter = RunFilter { sort, flow_id: Some(1), ..RunFilter::default() };
                let mut found = Vec::new();
                loop {
                    let (runs, next) = store.runs(&filter, size).unwrap();
                    prop_assert!(runs.len() <= size);
                    found.extend(runs.iter().map(|run| run.id.clone()));
                    let Some(next) = next else { break };
                    filter.before = Some(next.to_string().parse().unwrap());
                }
                let mut expected: Vec<(i64, String)> = list.iter().enumerate()
                    .filter(|(at, _)| at % 2 == 1)
                    .filter_map(|(at, (cost, ms))| {
                        let value = match sort {
                            RunSort::Time => Some(0),
                            RunSort::Cost => *cost,
                            RunSort::Duration => *ms,
                        };
                        Some((value?, format!("00000000-0000-7000-8000-{at:012}")))
                    })
                    .collect();
                expected.sort();
                expected.reverse();
                let expected: Vec<String> = expected.into_iter().map(|(_, id)| id).collect();
                prop_assert_eq!(found, expected);
            }
        }
    }

    #[test]
    fn a_cursor_is_read_back_or_refused() {
        let id = "00000000-0000-7000-8000-000000000001";
        for text in [id.to_owned(), format!("17:{id}"), format!("-1:{id}")] {
            assert_eq!(text.parse::<RunCursor>().unwrap().to_string(), text);
        }
        for text in ["", "x", ":", "x:1", "1:x"] {
            assert!(text.parse::<RunCursor>().is_err(), "{text}");
        }
    }
}
