//! Daily sums of the ledger, so that sums over months need not read every row.
//!
//! Days (in UTC) are summed up in order, once all of a day's rows are settled; settled rows never
//! change. Later days and parts of days are read from the rows, so that results are the same with
//! and without the sums. The use of budgets is summed up at the same time, by the names that
//! budgets filter by.

use rusqlite::{Connection, params};

use super::budgets;
use super::days::{Day, MS_PER_DAY, day_of, rolled_up_until};
use super::sql::{FromRow, execute, single};
use crate::error::Result;
use crate::time::Timestamp;

/// Days are summed up at least this long, in milliseconds, after their end, because most calls are
/// settled by then.
const DELAY_MS: i64 = 60 * 60 * 1000;

/// The counts of a row, in the order of the columns of `ledger_days`.
const ROW_COUNTS: &str = "1 AS calls,
     billing IS NULL AND cost_nanousd IS NULL AND status != 'PENDING' AND usage_source != 'none'
        AS unpriced,
     usage_source = 'estimated' AS estimated, input_tokens, cached_input_tokens,
     cache_write_tokens, output_tokens, reasoning_tokens, 
     CASE WHEN billing IS NULL THEN coalesce(cost_nanousd, 0) ELSE 0 END AS cost,
     cached, CASE WHEN billing IS NULL THEN coalesce(saved_nanousd, 0) ELSE 0 END AS saved,
     billing IS NULL AND cost_nanousd IS NULL AND status != 'PENDING' AND usage_source = 'none' AS unknown_cost,
     price_cost_nanousd + provider_cost_nanousd IS NOT NULL AS compared,
     CASE WHEN price_cost_nanousd IS NULL THEN 0 ELSE coalesce(provider_cost_nanousd, 0) END
        AS compared_provider,
     CASE WHEN provider_cost_nanousd IS NULL THEN 0 ELSE coalesce(price_cost_nanousd, 0) END
        AS compared_price,
     CASE WHEN billing IS NULL THEN 0 ELSE coalesce(cost_nanousd, 0) END AS subscription_cost";
/// The names of [`ROW_COUNTS`] in `ledger_days`.
const COUNTS: &str = "calls, unpriced, estimated, input_tokens, cached_input_tokens,
     cache_write_tokens, output_tokens, reasoning_tokens, cost, cached, saved, unknown_cost,
     compared, compared_provider, compared_price, subscription_cost";
const SUMS: &str = "sum(calls), sum(unpriced), sum(estimated), sum(input_tokens),
     sum(cached_input_tokens), sum(cache_write_tokens), sum(output_tokens), sum(reasoning_tokens),
     sum(cost), sum(cached), sum(saved), sum(unknown_cost), sum(compared), sum(compared_provider),
     sum(compared_price), sum(subscription_cost)";
const NAMES: &str = "flow_id, provider, model_used, agent_role, status";
/// The names that only rows have.
const ROW_NAMES: &str = "node_id, key_name, tags, client, session, end_user, project";

/// Returns the next day that can be summed up, if any. All earlier days are summed up or have
/// no rows.
pub(super) fn next(db: &Connection, now: Timestamp) -> Result<Option<Day>> {
    let until = rolled_up_until(db)?;
    let sql = "SELECT min(timestamp_ms) FROM ledger WHERE timestamp_ms >= ?1";
    let Some(oldest) = single(db, sql, [until.saturating_mul(MS_PER_DAY)])? else {
        return Ok(None);
    };
    let day = day_of(oldest);
    let end = (day + 1) * MS_PER_DAY;
    if now.0 < end + DELAY_MS {
        return Ok(None);
    }
    let sql =
        "SELECT NOT EXISTS (SELECT 1 FROM ledger WHERE status = 'PENDING' AND +timestamp_ms < ?1)";
    Ok(single::<bool>(db, sql, [end])?.then_some(day))
}

/// Sums up a day, and stores that all days up to it are summed up.
pub(super) fn roll_up(db: &Connection, day: Day) -> Result<()> {
    let sql = format!(
        "INSERT INTO ledger_days
         SELECT ?1, {NAMES}, {SUMS}
         FROM (SELECT {NAMES}, {ROW_COUNTS} FROM ledger WHERE timestamp_ms >= ?2 AND timestamp_ms < ?3)
         GROUP BY {NAMES}"
    );
    let (start, end) = (day * MS_PER_DAY, (day + 1) * MS_PER_DAY);
    execute(db, &sql, params![day, start, end])?;
    budgets::roll_up(db, day, start, end)?;
    set_until(db, day + 1)
}

/// Removes the sums of `day` and all later days, if there are any: a clock that was set back adds
/// rows in the past.
pub(super) fn delete_from(db: &Connection, day: Day) -> Result<()> {
    if day >= rolled_up_until(db)? {
        return Ok(());
    }
    execute(db, "DELETE FROM ledger_days WHERE day >= ?1", params![day])?;
    budgets::delete_from(db, day)?;
    set_until(db, day)
}

/// The sums of a day's rows with the same names.
pub struct DaySums {
    pub day: Day,
    /// `SUCCESS of openai/gpt-4o in flow 1 as writer`.
    pub names: String,
    /// The columns of `ledger_days` as a list, if there are stored sums.
    pub stored: Option<String>,
    /// The same computed from the rows, if there are any.
    pub of_rows: Option<String>,
}

from_row!(DaySums; day, names, stored, of_rows);

/// Passes the sums of all days that are summed up to `each`.
pub(super) fn check(db: &Connection, mut each: impl FnMut(DaySums)) -> Result<()> {
    let list = format!("replace(json_array({SUMS}), ',', ', ')");
    let mut statement = db.prepare(&format!(
        "WITH sums AS (
            SELECT day, {NAMES}, {list} AS stored, NULL AS of_rows
            FROM ledger_days GROUP BY day, {NAMES}
            UNION ALL
            SELECT day, {NAMES}, NULL, {list}
            FROM (SELECT timestamp_ms / {MS_PER_DAY} AS day, {NAMES}, {ROW_COUNTS}
                FROM ledger WHERE timestamp_ms < ?1 * {MS_PER_DAY})
            GROUP BY day, {NAMES})
         SELECT day, format('%s of %s/%s', status, provider, model_used)
            || coalesce(' in flow ' || flow_id, '') || coalesce(' as ' || agent_role, ''),
            max(stored), max(of_rows)
         FROM sums GROUP BY day, {NAMES} ORDER BY day, {NAMES}"
    ))?;
    let mut rows = statement.query([rolled_up_until(db)?])?;
    while let Some(row) = rows.next()? {
        each(DaySums::read(row, &mut 0)?);
    }
    Ok(())
}

fn set_until(db: &Connection, day: Day) -> Result<()> {
    let sql = "INSERT OR REPLACE INTO ledger_summed (one, until_day) VALUES (1, ?1)";
    execute(db, sql, params![day]).map(drop)
}

/// Returns a table expression over all rows of a plan: names and counts, with a `timestamp_ms`
/// within the day. The names in [`ROW_NAMES`] are known for rows only. Corrections are not part of daily sums,
/// because they are added later; the last part has them, without other counts.
///
/// The parameters are, for each of the four parts, its two bounds and then those of its condition:
/// `of_days`, which may refer to [`NAMES`] only, and `of_rows`, three times. `moment` is `timestamp_ms`,
/// or `+timestamp_ms` to keep SQLite from using the index of times.
pub(super) fn table(of_days: &str, of_rows: &str, moment: &str) -> String {
    let none = COUNTS.split(',').map(|_| "0").collect::<Vec<_>>().join(", ");
    let no_names = ROW_NAMES.split(", ").map(|name| format!("NULL AS {name}"));
    let no_names = no_names.collect::<Vec<_>>().join(", ");
    format!(
        "(SELECT day * {MS_PER_DAY} AS timestamp_ms, {NAMES}, {no_names}, {COUNTS}, 0 AS corrected, 0 AS corrected_cost
          FROM ledger_days WHERE day >= ? AND day < ? AND {of_days}
          UNION ALL
          SELECT timestamp_ms, {NAMES}, {ROW_NAMES}, {ROW_COUNTS}, 0, 0
          FROM ledger WHERE {moment} >= ? AND {moment} < ? AND {of_rows}
          UNION ALL
          SELECT timestamp_ms, {NAMES}, {ROW_NAMES}, {ROW_COUNTS}, 0, 0
          FROM ledger WHERE {moment} >= ? AND {moment} < ? AND {of_rows}
          UNION ALL
          SELECT timestamp_ms, {NAMES}, {ROW_NAMES}, {none}, 1, corrections.cost_nanousd
          FROM corrections CROSS JOIN ledger ON ledger.id = ledger_id
          WHERE +timestamp_ms >= ? AND +timestamp_ms < ? AND {of_rows})"
    )
}

#[cfg(test)]
mod tests;
