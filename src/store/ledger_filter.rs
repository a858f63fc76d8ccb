//! Which rows of the ledger a question is about.

use rusqlite::types::Value;

use crate::event::CallStatus;
use crate::ids::{FlowId, RunId};
use crate::time::Timestamp;

/// Which rows; all that is given must fit.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LedgerFilter {
    pub flow_id: Option<FlowId>,
    pub run_id: Option<RunId>,
    pub model: Option<String>,
    pub provider: Option<String>,
    pub status: Option<CallStatus>,
    pub role: Option<String>,
    /// Rows of the key of this name.
    pub key: Option<String>,
    pub tag: Option<String>,
    /// Rows at or after this moment.
    pub from: Option<Timestamp>,
    /// Rows before this moment.
    pub to: Option<Timestamp>,
}

impl LedgerFilter {
    pub(super) fn of_any_moment(&self) -> Self {
        Self { from: None, to: None, ..self.clone() }
    }

    /// Of the same only what blocks of rows know the names of.
    pub(super) fn of_names(&self) -> Self {
        Self { run_id: None, role: None, key: None, tag: None, ..self.of_any_moment() }
    }

    /// Whether its rows may lie so far apart that blocks tell where they are. Those of a run, and
    /// those under way, have an index.
    pub(super) fn is_by_blocks(&self) -> bool {
        let is_indexed = self.run_id.is_some() || self.status == Some(CallStatus::Pending);
        !is_indexed && *self != Self::default()
    }

    /// The condition and its parameters. Times are no reason to leave the order of numbers.
    pub(super) fn sql(&self) -> (String, Vec<Value>) {
        let conditions: [(&str, Option<Value>); 9] = [
            ("flow_id = ?", self.flow_id.map(Value::from)),
            ("run_id = ?", self.run_id.clone().map(Value::from)),
            ("model_used = ?", self.model.clone().map(Value::from)),
            ("provider = ?", self.provider.clone().map(Value::from)),
            ("agent_role = ?", self.role.clone().map(Value::from)),
            ("key_name = ?", self.key.clone().map(Value::from)),
            ("instr(',' || tags || ',', ',' || ? || ',') > 0", self.tag.clone().map(Value::from)),
            ("+timestamp_ms >= ?", self.from.map(|moment| Value::from(moment.0))),
            ("+timestamp_ms < ?", self.to.map(|moment| Value::from(moment.0))),
        ];
        let mut sql = String::from("1");
        // Not a parameter, so that the planner sees that an index of pending rows fits.
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
