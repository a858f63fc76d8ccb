//! Reading the ledger: pages, sums, everything that filters allow.

use std::ops::AddAssign;

use rusqlite::types::{ToSql, Value, ValueRef};
use rusqlite::{Connection, Row, params_from_iter};
use serde::Serialize;

use super::days::{self, Day, Plan};
use super::ledger_filter::LedgerFilter;
use super::reader::Store;
use super::sql::parsed;
use super::{block_index, daily_rollup};
use crate::error::{Error, Result};
use crate::event::{CallStatus, LedgerDetails, LedgerEntry, Usage};
use crate::money::Usd;
use crate::time::Timestamp;

/// The columns of a row, in the order in which [`entry`] reads them.
pub(super) const ENTRY_COLUMNS: &str =
    "id, timestamp_ms, flow_id, run_id, node_id, attempt, operation_id, provider, model_used,
     agent_role, prompt_hash, input_tokens, cached_input_tokens, cache_write_tokens, output_tokens,
     reasoning_tokens, usage_source, cost_nanousd, latency_ms, status, error_message,
     cache_write_1h_tokens, first_token_ms, price_id, cached, saved_nanousd, key_name, tags,
     refused";

/// Sets the sums of a node or a run to those of its ledger rows, over all attempts, so that the two
/// can never differ. The cost is unknown if a call's price is.
pub(super) fn cost_sums(condition: &str) -> String {
    format!(
        "(input_tokens, output_tokens, cost_nanousd) = (
            SELECT coalesce(sum(input_tokens), 0), coalesce(sum(output_tokens), 0),
                CASE WHEN count(*) = count(cost_nanousd) THEN coalesce(sum(cost_nanousd), 0) END
            FROM ledger WHERE {condition})"
    )
}

pub(super) fn entry(row: &Row<'_>) -> rusqlite::Result<LedgerEntry> {
    Ok(LedgerEntry {
        id: row.get(0)?,
        timestamp: Timestamp(row.get(1)?),
        flow_id: row.get(2)?,
        run_id: row.get(3)?,
        node_id: row.get(4)?,
        attempt: row.get(5)?,
        operation_id: row.get(6)?,
        provider: row.get(7)?,
        model_used: row.get(8)?,
        agent_role: row.get(9)?,
        prompt_hash: row.get(10)?,
        usage: Usage {
            input_tokens: row.get(11)?,
            cached_input_tokens: row.get(12)?,
            cache_write_tokens: row.get(13)?,
            cache_write_1h_tokens: row.get(21)?,
            output_tokens: row.get(14)?,
            reasoning_tokens: row.get(15)?,
            source: parsed(row, 16)?,
        },
        total_cost_usd: row.get::<_, Option<i64>>(17)?.map(Usd::from_nanousd),
        latency_ms: row.get(18)?,
        status: parsed(row, 19)?,
        error_message: row.get(20)?,
        more: LedgerDetails {
            first_token_ms: row.get(22)?,
            price_id: row.get(23)?,
            cached: row.get(24)?,
            saved_usd: row.get::<_, Option<i64>>(25)?.map(Usd::from_nanousd),
            key_name: row.get(26)?,
            tags: row.get(27)?,
            refused: match row.get_ref(28)? {
                ValueRef::Null => None,
                _ => Some(parsed(row, 28)?),
            },
        },
    })
}

/// Sums over ledger rows. Tokens and money are those that are known; the counts beside them say
/// how much is not.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Sums {
    pub calls: u64,
    pub succeeded: u64,
    /// Those that failed, timed out, were cancelled or are unknown.
    pub failed: u64,
    pub pending: u64,
    /// Settled rows whose cost is not known; they are not in `total_cost_usd`.
    pub unpriced_calls: u64,
    pub estimated_calls: u64,
    pub input_tokens: u64,
    pub cached_input_tokens: u64,
    pub cache_write_tokens: u64,
    pub output_tokens: u64,
    pub reasoning_tokens: u64,
    pub total_cost_usd: Usd,
    /// Calls that were not made, because the answer was bought before.
    pub cached_calls: u64,
    /// What those would have cost, as far as it is known.
    pub saved_usd: Usd,
}

impl AddAssign<&Self> for Sums {
    fn add_assign(&mut self, other: &Self) {
        let Self {
            calls,
            succeeded,
            failed,
            pending,
            unpriced_calls,
            estimated_calls,
            input_tokens,
            cached_input_tokens,
            cache_write_tokens,
            output_tokens,
            reasoning_tokens,
            total_cost_usd,
            cached_calls,
            saved_usd,
        } = other;
        self.calls += calls;
        self.succeeded += succeeded;
        self.failed += failed;
        self.pending += pending;
        self.unpriced_calls += unpriced_calls;
        self.estimated_calls += estimated_calls;
        self.input_tokens += input_tokens;
        self.cached_input_tokens += cached_input_tokens;
        self.cache_write_tokens += cache_write_tokens;
        self.output_tokens += output_tokens;
        self.reasoning_tokens += reasoning_tokens;
        self.total_cost_usd = self.total_cost_usd.plus(*total_cost_usd);
        self.cached_calls += cached_calls;
        self.saved_usd = self.saved_usd.plus(*saved_usd);
    }
}

/// Over a table of `days::table`.
const SUM_COLUMNS: &str = "coalesce(sum(calls), 0),
     coalesce(sum(calls) FILTER (WHERE status = 'SUCCESS'), 0),
     coalesce(sum(calls) FILTER (WHERE status NOT IN ('SUCCESS', 'PENDING')), 0),
     coalesce(sum(calls) FILTER (WHERE status = 'PENDING'), 0),
     coalesce(sum(unpriced), 0), coalesce(sum(estimated), 0),
     coalesce(sum(input_tokens), 0), coalesce(sum(cached_input_tokens), 0),
     coalesce(sum(cache_write_tokens), 0), coalesce(sum(output_tokens), 0),
     coalesce(sum(reasoning_tokens), 0), coalesce(sum(cost), 0), coalesce(sum(cached), 0),
     coalesce(sum(saved), 0)";

fn sums(row: &Row<'_>, at: usize) -> rusqlite::Result<Sums> {
    Ok(Sums {
        calls: row.get(at)?,
        succeeded: row.get(at + 1)?,
        failed: row.get(at + 2)?,
        pending: row.get(at + 3)?,
        unpriced_calls: row.get(at + 4)?,
        estimated_calls: row.get(at + 5)?,
        input_tokens: row.get(at + 6)?,
        cached_input_tokens: row.get(at + 7)?,
        cache_write_tokens: row.get(at + 8)?,
        output_tokens: row.get(at + 9)?,
        reasoning_tokens: row.get(at + 10)?,
        total_cost_usd: Usd::from_nanousd(row.get(at + 11)?),
        cached_calls: row.get(at + 12)?,
        saved_usd: Usd::from_nanousd(row.get(at + 13)?),
    })
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// The group's key, as text: a model, a flow's number, a day in UTC; none for rows without.
    pub key: Option<String>,
    #[serde(flatten)]
    pub sums: Sums,
}

pub struct Group {
    pub name: &'static str,
    column: &'static str,
    /// What is joined to the rows for that, so that a row may be in several groups.
    join: &'static str,
    /// Whether days that are summed up do not know it, so that every row is read.
    is_of_rows: bool,
}

const fn group(name: &'static str, column: &'static str) -> Group {
    Group { name, column, join: "", is_of_rows: false }
}

/// All there are. A row with several tags is in the group of each.
pub const GROUPS: &[Group] = &[
    group("model", "model_used"),
    group("provider", "provider"),
    group("flow", "CAST(flow_id AS TEXT)"),
    group("role", "agent_role"),
    group("day", "date(timestamp_ms / 1000, 'unixepoch')"),
    group("status", "status"),
    Group { is_of_rows: true, ..group("key", "key_name") },
    Group {
        join: "LEFT JOIN json_each('[\"' || replace(tags, ',', '\",\"') || '\"]') AS tag",
        is_of_rows: true,
        ..group("tag", "tag.value")
    },
];

impl Store {
    /// Up to `limit` rows of numbers below `before`, newest first.
    pub fn ledger(
        &self,
        filter: &LedgerFilter,
        before: Option<i64>,
        limit: usize,
    ) -> Result<Vec<LedgerEntry>> {
        let before = before.unwrap_or(i64::MAX);
        self.read(|db| {
            // One read transaction, so that what is noted of blocks and their rows are of one moment.
            let snapshot = db.unchecked_transaction()?;
            let mut rows = Vec::new();
            let mut read = |from, end| {
                rows.extend(page(&snapshot, filter, from, end, limit - rows.len())?);
                Ok(rows.len() >= limit)
            };
            if filter.is_by_blocks() {
                block_index::spans(&snapshot, filter, before, read)?;
            } else {
                read(0, before)?;
            }
            Ok(rows)
        })
    }

    /// Rows that were left pending, oldest first: their process ended before they did.
    pub fn pending_calls(&self) -> Result<Vec<LedgerEntry>> {
        let filter = LedgerFilter { status: Some(CallStatus::Pending), ..LedgerFilter::default() };
        let mut rows = self.ledger(&filter, None, usize::MAX)?;
        rows.reverse();
        Ok(rows)
    }

    /// Sums of each group, the most expensive first, and of all together.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a group that is not in [`GROUPS`].
    pub fn summary(&self, filter: &LedgerFilter, group_by: &str) -> Result<(Vec<Summary>, Sums)> {
        let group = GROUPS.iter().find(|group| group.name == group_by).ok_or_else(|| {
            let names: Vec<_> = GROUPS.iter().map(|group| group.name).collect();
            Error::invalid(
                "the query cannot be read",
                "group_by",
                format!("`{group_by}` is none of {}", names.join(", ")),
            )
        })?;
        self.read(|db| {
            // One read transaction, so that the days and the rows behind them are of one moment.
            let snapshot = db.unchecked_transaction()?;
            let (table, values) = table(filter, group, days::summed_until(&snapshot)?);
            let groups: Vec<Summary> = snapshot
                .prepare_cached(&summary_sql(group, &table))?
                .query_map(params(&values).as_slice(), |row| {
                    Ok(Summary { key: row.get(0)?, sums: sums(row, 1)? })
                })?
                .collect::<rusqlite::Result<_>>()?;
            let mut total = Sums::default();
            if group.join.is_empty() {
                for group in &groups {
                    total += &group.sums;
                }
            } else {
                total = snapshot
                    .prepare_cached(&format!("SELECT {SUM_COLUMNS} FROM {table}"))?
                    .query_row(params(&values).as_slice(), |row| sums(row, 0))?;
            }
            Ok((groups, total))
        })
    }
}

/// All rows that fit, or days of them that are summed up, as a table for sums, and its parameters.
/// Days do not know the runs, keys and tags of their rows.
fn table(filter: &LedgerFilter, group: &Group, summed_until: Day) -> (String, Vec<Value>) {
    let is_of_days = filter.run_id.is_none() && filter.key.is_none() && filter.tag.is_none();
    let has_days = is_of_days && !group.is_of_rows;
    let summed_until = if has_days { summed_until } else { Day::MIN };
    let plan = Plan::new(filter.from, filter.to, summed_until);
    let (condition, of_condition) = filter.of_any_moment().sql();
    let mut values = Vec::new();
    for ((from, to), has_condition) in [(plan.days, has_days), (plan.head, true), (plan.tail, true)]
    {
        values.extend([Value::from(from), Value::from(to)]);
        values.extend(of_condition.iter().filter(|_| has_condition).cloned());
    }
    let of_days = if has_days { condition.as_str() } else { "0" };
    // A run has few rows, and they are found by its id.
    let moment = match filter.run_id {
        None => "timestamp_ms",
        Some(_) => "+timestamp_ms",
    };
    (daily_rollup::table(of_days, &condition, moment), values)
}

fn page_sql(condition: &str) -> String {
    format!(
        "SELECT {ENTRY_COLUMNS} FROM ledger WHERE {condition} AND id >= ? AND id < ?
         ORDER BY id DESC LIMIT ?"
    )
}

/// Up to `limit` rows of numbers from `from` up to `end`, newest first.
fn page(
    db: &Connection,
    filter: &LedgerFilter,
    from: i64,
    end: i64,
    limit: usize,
) -> Result<Vec<LedgerEntry>> {
    let (condition, mut values) = filter.sql();
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    values.extend([from, end, limit].map(Value::from));
    let mut statement = db.prepare_cached(&page_sql(&condition))?;
    let rows = statement.query_map(params_from_iter(values), entry)?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

fn summary_sql(group: &Group, table: &str) -> String {
    let Group { column, join, .. } = group;
    format!("SELECT {column}, {SUM_COLUMNS} FROM {table} {join} GROUP BY 1 ORDER BY 13 DESC, 1")
}

fn params(values: &[Value]) -> Vec<&dyn ToSql> {
    values.iter().map(|value| value as &dyn ToSql).collect()
}

#[cfg(test)]
mod tests;
