//! Filters of ledger rows.

use rusqlite::types::Value;

use crate::event::CallStatus;
use crate::ids::{FlowId, RunId};
use crate::time::Timestamp;

/// Conditions for ledger rows; a row must meet all that are set.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LedgerFilter {
    pub flow_id: Option<FlowId>,
    pub run_id: Option<RunId>,
    pub model: Option<String>,
    pub provider: Option<String>,
    pub status: Option<CallStatus>,
    pub role: Option<String>,
    /// The name of a client's key.
    pub key: Option<String>,
    pub tag: Option<String>,
    pub client: Option<String>,
    pub session: Option<String>,
    pub end_user: Option<String>,
    pub project: Option<String>,
    /// Only rows at or after this time.
    pub from: Option<Timestamp>,
    /// Only rows before this time.
    pub to: Option<Timestamp>,
}

impl LedgerFilter {
    pub(super) fn without_times(&self) -> Self {
        Self { from: None, to: None, ..self.clone() }
    }

    /// Returns the filter reduced to the names that the index of blocks contains.
    pub(super) fn names_only(&self) -> Self {
        Self {
            flow_id: self.flow_id,
            model: self.model.clone(),
            provider: self.provider.clone(),
            status: self.status,
            ..Self::default()
        }
    }

    /// Returns whether the filter has a condition for a column that daily sums lack.
    pub(super) fn needs_rows(&self) -> bool {
        self.has_own_index()
            || self.key.is_some()
            || self.tag.is_some()
            || self.client.is_some()
            || self.project.is_some()
    }

    /// Returns whether an index finds the few rows of a run, a session or an end user.
    pub(super) fn has_own_index(&self) -> bool {
        self.run_id.is_some() || self.session.is_some() || self.end_user.is_some()
    }

    /// Returns whether matching rows may be so far apart that the index of blocks helps. Rows of a
    /// run, a session or an end user and pending rows have indexes of their own.
    pub(super) fn uses_block_index(&self) -> bool {
        let is_indexed = self.has_own_index() || self.status == Some(CallStatus::Pending);
        !is_indexed && *self != Self::default()
    }

    /// Returns the SQL condition and its parameters. Unary `+` keeps SQLite from using the index of
    /// times, so that rows are read in the order of their ids.
    pub(super) fn sql(&self) -> (String, Vec<Value>) {
        let conditions: [(&str, Option<Value>); 13] = [
            ("flow_id = ?", self.flow_id.map(Value::from)),
            ("run_id = ?", self.run_id.clone().map(Value::from)),
            ("model_used = ?", self.model.clone().map(Value::from)),
            ("provider = ?", self.provider.clone().map(Value::from)),
            ("agent_role = ?", self.role.clone().map(Value::from)),
            ("key_name = ?", self.key.clone().map(Value::from)),
            ("instr(',' || tags || ',', ',' || ? || ',') > 0", self.tag.clone().map(Value::from)),
            ("client = ?", self.client.clone().map(Value::from)),
            ("session = ?", self.session.clone().map(Value::from)),
            ("end_user = ?", self.end_user.clone().map(Value::from)),
            ("project = ?", self.project.clone().map(Value::from)),
            ("+timestamp_ms >= ?", self.from.map(|moment| Value::from(moment.0))),
            ("+timestamp_ms < ?", self.to.map(|moment| Value::from(moment.0))),
        ];
        let mut sql = String::from("1");
        // Not a parameter, so that SQLite's planner can use the index of pending rows.
        if let Some(status) = self.status {
            sql.push_str(&format!(" AND status = '{status}'"));
        }
        let mut values = Vec::new();
        for (condition, value) in conditions {
            if let Some(value) = value {
                sql.push_str(" AND ");
                sql.push_str(condition);
                values.push(value);
            }
        }
        (sql, values)
    }
}
