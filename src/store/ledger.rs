//! Reads the ledger: pages, sums and single rows.

use std::ops::AddAssign;

use rusqlite::params_from_iter;
use rusqlite::types::Value;
use serde::Serialize;

use super::daily_rollup;
use super::days::{self, Day, Plan};
use super::ledger_filter::LedgerFilter;
use super::reader::Store;
use super::sql::{all, single};
use crate::error::{Error, Result};
use crate::event::{Attribution, CallStatus, LedgerDetails, LedgerEntry, Usage};
use crate::money::Usd;

/// The columns of a row, in the order in which `from_row!` reads them.
pub(super) const ENTRY_COLUMNS: &str =
    "id, timestamp_ms, flow_id, run_id, node_id, attempt, operation_id, provider, model_used,
     agent_role, prompt_hash, input_tokens, cached_input_tokens, cache_write_tokens,
     cache_write_1h_tokens, output_tokens, reasoning_tokens, usage_source, cost_nanousd, latency_ms,
     status, error_message, first_token_ms, price_id, cached, saved_nanousd, key_name, tags, client,
     session, end_user, project, billing, refused, cost_source, cost_note, price_cost_nanousd, provider_cost_nanousd,
     (SELECT corrections.cost_nanousd FROM corrections WHERE ledger_id = ledger.id)";

/// Returns SQL that sets the sums of a node or a run from its ledger rows, over all attempts, so
/// that the two can never differ. The cost is unknown if a call's price is.
pub(super) fn cost_sums(condition: &str) -> String {
    format!(
        "(input_tokens, output_tokens, cost_nanousd) = (
            SELECT coalesce(sum(input_tokens), 0), coalesce(sum(output_tokens), 0),
                CASE WHEN count(*) = count(cost_nanousd) THEN coalesce(sum(cost_nanousd), 0) END
            FROM ledger WHERE {condition})"
    )
}

from_row!(
    LedgerEntry; id, timestamp, flow_id, run_id, node_id, attempt, operation_id, provider,
    model_used, agent_role, prompt_hash, usage, total_cost_usd, latency_ms, status, error_message,
    more
);
from_row!(
    Usage; input_tokens, cached_input_tokens, cache_write_tokens, cache_write_1h_tokens,
    output_tokens, reasoning_tokens, source
);
from_row!(Attribution; client, session, end_user, project);
from_row!(
    LedgerDetails; first_token_ms, price_id, cached, saved_usd, key_name, tags, attribution, billing,
    refused, cost_source, cost_note, price_cost_usd, provider_cost_usd, corrected_cost_usd
);

/// Sums of known tokens and costs over ledger rows, with counts of the unknown ones.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Sums {
    pub calls: u64,
    pub succeeded: u64,
    /// Calls that failed, timed out, were cancelled, or whose result is unknown.
    pub failed: u64,
    pub pending: u64,
    /// Calls with known tokens but an unknown price; `total_cost_usd` leaves them out.
    pub unpriced_calls: u64,
    /// Calls with neither known tokens nor a known cost; `total_cost_usd` leaves them out.
    pub unknown_cost_calls: u64,
    pub estimated_calls: u64,
    pub input_tokens: u64,
    pub cached_input_tokens: u64,
    pub cache_write_tokens: u64,
    pub output_tokens: u64,
    pub reasoning_tokens: u64,
    pub total_cost_usd: Usd,
    /// The notional costs of calls that a subscription covers; `total_cost_usd` leaves them out.
    pub subscription_cost_usd: Usd,
    /// Calls that the response cache answered.
    pub cached_calls: u64,
    /// The known costs that the response cache saved.
    pub saved_usd: Usd,
    /// Calls with both a cost stated by the provider and one by our own price.
    pub compared_calls: u64,
    /// The stated costs of these calls.
    pub compared_provider_cost_usd: Usd,
    /// The costs of these calls by our own prices.
    pub compared_price_cost_usd: Usd,
    /// Calls of unknown price whose cost was computed later.
    pub corrected_calls: u64,
    /// The costs of these calls; `total_cost_usd` leaves them out.
    pub corrected_cost_usd: Usd,
}

macro_rules! sums {
    (Sums; $($field:ident),+) => {
        from_row!(Sums; $($field),+);
        impl AddAssign<&Self> for Sums {
            fn add_assign(&mut self, other: &Self) {
                $(self.$field += other.$field;)+
            }
        }
    };
}
sums!(
    Sums; calls, succeeded, failed, pending, unpriced_calls, unknown_cost_calls, estimated_calls,
    input_tokens, cached_input_tokens, cache_write_tokens, output_tokens, reasoning_tokens,
    total_cost_usd, subscription_cost_usd, cached_calls, saved_usd, compared_calls, compared_provider_cost_usd,
    compared_price_cost_usd, corrected_calls, corrected_cost_usd
);

/// The sums over a table of [`daily_rollup::table`].
const SUM_COLUMNS: &str = "coalesce(sum(calls), 0),
     coalesce(sum(calls) FILTER (WHERE status = 'SUCCESS'), 0),
     coalesce(sum(calls) FILTER (WHERE status NOT IN ('SUCCESS', 'PENDING')), 0),
     coalesce(sum(calls) FILTER (WHERE status = 'PENDING'), 0),
     coalesce(sum(unpriced), 0), coalesce(sum(unknown_cost), 0), coalesce(sum(estimated), 0),
     coalesce(sum(input_tokens), 0), coalesce(sum(cached_input_tokens), 0),
     coalesce(sum(cache_write_tokens), 0), coalesce(sum(output_tokens), 0),
     coalesce(sum(reasoning_tokens), 0), coalesce(sum(cost), 0),
     coalesce(sum(subscription_cost), 0), coalesce(sum(cached), 0),
     coalesce(sum(saved), 0), coalesce(sum(compared), 0), coalesce(sum(compared_provider), 0),
     coalesce(sum(compared_price), 0), coalesce(sum(corrected), 0),
     coalesce(sum(corrected_cost), 0)";

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// The group's key as text: a model, a flow's id, a day in UTC; none for rows without one.
    pub key: Option<String>,
    #[serde(flatten)]
    pub sums: Sums,
}

from_row!(Summary; key, sums);

pub struct Group {
    pub name: &'static str,
    column: &'static str,
    /// A join that can put a row into several groups.
    join: &'static str,
    /// True if daily sums lack this column, so that every row is read.
    needs_rows: bool,
}

const fn group(name: &'static str, column: &'static str) -> Group {
    Group { name, column, join: "", needs_rows: false }
}

const fn of_rows(name: &'static str, column: &'static str) -> Group {
    Group { needs_rows: true, ..group(name, column) }
}

/// All groups. A row with several tags is in the group of each.
pub const GROUPS: &[Group] = &[
    group("model", "model_used"),
    group("provider", "provider"),
    group("flow", "CAST(flow_id AS TEXT)"),
    group("role", "agent_role"),
    group("day", "date(timestamp_ms / 1000, 'unixepoch')"),
    group("status", "status"),
    of_rows("node", "node_id"),
    of_rows("key", "key_name"),
    of_rows("client", "client"),
    of_rows("session", "session"),
    of_rows("end_user", "end_user"),
    of_rows("project", "project"),
    Group {
        join: "LEFT JOIN json_each('[\"' || replace(tags, ',', '\",\"') || '\"]') AS tag",
        ..of_rows("tag", "tag.value")
    },
];

impl Store {
    pub fn ledger_row(&self, id: i64) -> Result<Option<LedgerEntry>> {
        self.one(&format!("SELECT {ENTRY_COLUMNS} FROM ledger WHERE id = ?1"), [id])
    }

    /// Returns rows that are still pending because their process ended, oldest first.
    pub fn pending_calls(&self) -> Result<Vec<LedgerEntry>> {
        let filter =
            LedgerFilter { statuses: vec![CallStatus::Pending], ..LedgerFilter::default() };
        let mut rows = self.ledger(&filter, None, usize::MAX)?;
        rows.reverse();
        Ok(rows)
    }

    /// Returns the sums of each group, most expensive first, and the total.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a group that is not in [`GROUPS`].
    pub fn summary(&self, filter: &LedgerFilter, group_by: &str) -> Result<(Vec<Summary>, Sums)> {
        let group = GROUPS.iter().find(|group| group.name == group_by).ok_or_else(|| {
            let names: Vec<_> = GROUPS.iter().map(|group| group.name).collect();
            Error::invalid(
                "cannot read the query",
                "group_by",
                format!("unknown group `{group_by}`; expected one of {}", names.join(", ")),
            )
        })?;
        self.read(|db| {
            // One read transaction, so that the daily sums and the rows are of the same snapshot.
            let snapshot = db.unchecked_transaction()?;
            let filter = filter.resolved(&snapshot)?;
            let (table, values) = table(&filter, group, days::rolled_up_until(&snapshot)?);
            let sql = summary_sql(group, &table);
            let groups: Vec<Summary> = all(&snapshot, &sql, params_from_iter(&values))?;
            let mut total = Sums::default();
            if group.join.is_empty() {
                for group in &groups {
                    total += &group.sums;
                }
            } else {
                let sql = format!("SELECT {SUM_COLUMNS} FROM {table}");
                total = single(&snapshot, &sql, params_from_iter(&values))?;
            }
            Ok((groups, total))
        })
    }
}

/// Returns a table of all matching rows, or of their daily sums, and its parameters. Daily sums
/// have no runs, keys, tags and attributions.
fn table(filter: &LedgerFilter, group: &Group, rolled_up_until: Day) -> (String, Vec<Value>) {
    let uses_days = !filter.needs_rows() && !group.needs_rows;
    let rolled_up_until = if uses_days { rolled_up_until } else { Day::MIN };
    let plan = Plan::new(filter.from, filter.to, rolled_up_until);
    let (condition, condition_values) = filter.without_times().sql();
    let mut values = Vec::new();
    let (from, to) =
        (filter.from.map_or(i64::MIN, |at| at.0), filter.to.map_or(i64::MAX, |at| at.0));
    let rows = [plan.head, plan.tail, (from, to)].map(|part| (part, true));
    for ((from, to), has_condition) in std::iter::once((plan.days, uses_days)).chain(rows) {
        values.extend([Value::from(from), Value::from(to)]);
        values.extend(condition_values.iter().filter(|_| has_condition).cloned());
    }
    let of_days = if uses_days { condition.as_str() } else { "0" };
    // A run has few rows, which are found by its id.
    let moment = if filter.has_own_index() { "+timestamp_ms" } else { "timestamp_ms" };
    (daily_rollup::table(of_days, &condition, moment), values)
}

fn summary_sql(group: &Group, table: &str) -> String {
    let Group { column, join, .. } = group;
    format!(
        "SELECT {column}, {SUM_COLUMNS} FROM {table} {join} GROUP BY 1
         ORDER BY sum(cost) DESC, 1"
    )
}

#[cfg(test)]
mod tests;
