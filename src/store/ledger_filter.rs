//! Filters of ledger rows.

use rusqlite::types::Value;

use crate::event::CallStatus;
use crate::ids::{FlowId, RunId};
use crate::money::Usd;
use crate::time::Timestamp;

/// Conditions for ledger rows; a row must meet all that are set.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LedgerFilter {
    pub flow_id: Option<FlowId>,
    pub run_id: Option<RunId>,
    pub model: Option<String>,
    pub provider: Option<String>,
    /// Any of these; empty for all.
    pub statuses: Vec<CallStatus>,
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
    pub node: Option<String>,
    pub cost_min: Option<Usd>,
    pub cost_max: Option<Usd>,
    /// Bounds of the latency in milliseconds.
    pub ms_min: Option<i64>,
    pub ms_max: Option<i64>,
    pub cached: Option<bool>,
    /// Only settled rows without a cost.
    pub is_cost_unknown: bool,
    /// A part of a name, a label, an id or the error, in any case of ASCII letters.
    pub text: Option<String>,
    /// The flows whose name contains `text`; the store sets them.
    pub text_flows: Vec<FlowId>,
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
            statuses: self.statuses.clone(),
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
            || self.node.is_some()
            || self.cost_min.is_some()
            || self.cost_max.is_some()
            || self.ms_min.is_some()
            || self.ms_max.is_some()
            || self.cached.is_some()
            || self.is_cost_unknown
            || self.text.is_some()
    }

    /// Returns whether an index finds the few rows of a run, a session or an end user.
    pub(super) fn has_own_index(&self) -> bool {
        self.run_id.is_some() || self.session.is_some() || self.end_user.is_some()
    }

    /// Returns whether the filter has a condition that the index of blocks contains.
    pub(super) fn uses_block_index(&self) -> bool {
        self.from.is_some() || self.to.is_some() || self.names_only() != Self::default()
    }

    /// Returns the SQL condition and its parameters. Unary `+` keeps SQLite from using the index of
    /// times, so that rows are read in the order of their ids.
    pub(super) fn sql(&self) -> (String, Vec<Value>) {
        let usd = |usd: Option<Usd>| usd.map(|usd| Value::from(usd.nanousd));
        let conditions: [(&str, Option<Value>); 19] = [
            ("flow_id = ?", self.flow_id.map(Value::from)),
            ("run_id = ?", self.run_id.clone().map(Value::from)),
            ("node_id = ?", self.node.clone().map(Value::from)),
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
            // With the name of the table, because corrections have a cost as well.
            ("ledger.cost_nanousd >= ?", usd(self.cost_min)),
            ("ledger.cost_nanousd <= ?", usd(self.cost_max)),
            ("latency_ms >= ?", self.ms_min.map(Value::from)),
            ("latency_ms <= ?", self.ms_max.map(Value::from)),
            ("cached = ?", self.cached.map(Value::from)),
        ];
        // Not parameters, so that SQLite's planner can use the index of pending rows.
        let mut sql = match self.statuses.as_slice() {
            [] => String::from("1"),
            [status] => format!("1 AND status = '{status}'"),
            several => {
                let list: Vec<_> = several.iter().map(|status| format!("'{status}'")).collect();
                format!("1 AND status IN ({})", list.join(", "))
            }
        };
        if self.is_cost_unknown {
            sql.push_str(" AND ledger.cost_nanousd IS NULL AND status != 'PENDING'");
        }
        let mut values = Vec::new();
        for (condition, value) in conditions {
            if let Some(value) = value {
                sql.push_str(" AND ");
                sql.push_str(condition);
                values.push(value);
            }
        }
        if let Some(text) = &self.text {
            let flows: Vec<_> = self.text_flows.iter().map(FlowId::to_string).collect();
            let flows = flows.join(", ");
            sql.push_str(&format!(" AND (instr(lower({TEXTS}), ?) > 0 OR flow_id IN ({flows}))"));
            values.push(Value::from(text.to_ascii_lowercase()));
        }
        (sql, values)
    }
}

/// The columns that a text is looked for in.
const TEXTS: &str = "concat_ws(char(10), node_id, provider, model_used, key_name, tags, session,
    client, end_user, project, run_id, error_message)";
