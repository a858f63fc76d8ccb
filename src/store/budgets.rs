//! What of each budget is used: counted in memory as calls are opened and settled, and counted anew
//! from the ledger when the server starts, a budget changes or a new period begins.
//!
//! A row counts with its cost, and where that is not known (it is under way, or nobody knows what
//! became of it) with what was reserved for it. So parallel calls cannot overrun a limit together,
//! and a call whose end nobody saw is not taken for free.
//!
//! Whole days that are summed up (see `days`) are counted from their sums, and a period is read once for
//! all budgets that want it counted.
//!
//! Which shares viewers were told of is stored, since no count says it: what is used may have been
//! so before the budget was there.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use rusqlite::{Connection, params};

use super::change::NewCall;
use super::days::{self, Day, MS_PER_DAY, Plan};
use super::reader::Store;
use super::sql::{all, execute, one, single};
use crate::budget::{self, BUDGETS_MAX, Budget, Limit, Per, Reserve, Scope};
use crate::error::{Error, Result};
use crate::event::{BudgetWarning, LedgerEntry, UsageSource};
use crate::ids::FlowId;
use crate::money::Usd;
use crate::time::Timestamp;

/// How many periods and runs are remembered of which viewers were told something: the newest.
const TOLD_MAX: i64 = 10_000;

/// Of ledger rows, what budgets tell them apart by, and what each counts in nano-dollars and in tokens.
/// One that cost nothing was never sent, or refused.
const ROWS: &str = "SELECT flow_id, provider, coalesce(model_asked, model_used) AS model, key_name,
        coalesce(cost_nanousd, reserved_nanousd, 0) AS nanousd,
        CASE WHEN usage_source != 'none' THEN input_tokens + output_tokens
             WHEN cost_nanousd = 0 THEN 0 ELSE coalesce(reserved_tokens, 0) END AS tokens
     FROM ledger";
/// The same of days that are summed up.
const DAYS: &str = "SELECT flow_id, provider, model, key_name, nanousd, tokens FROM budget_days";
const SUMS: &str = "flow_id, provider, model, key_name, sum(nanousd), sum(tokens)";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Count {
    start: Timestamp,
    end: Timestamp,
    used: i64,
}

impl Count {
    fn holds(&self, moment: Timestamp) -> bool {
        self.start <= moment && moment < self.end
    }
}

#[derive(Clone)]
pub(super) struct Budgets {
    all: Arc<[Budget]>,
    /// For each budget but those of runs, which are counted from the run's few rows each time.
    counts: Vec<Option<Count>>,
}

impl Budgets {
    pub(super) fn load(db: &Connection) -> Result<Self> {
        let all: Arc<[Budget]> = read(db)?.into();
        let counts = vec![None; all.len()];
        Ok(Self { all, counts })
    }

    /// Puts these budgets in place of those that there are. One that stays as it is stays counted.
    fn set(&mut self, db: &Connection, all: &[Budget]) -> Result<()> {
        write(db, all)?;
        for old in self.all.iter().filter(|old| !all.contains(old)) {
            // Of what it is now, nothing was told.
            execute(db, "DELETE FROM budget_told WHERE budget = ?1", params![&old.name])?;
        }
        let count_of = |budget: &Budget| {
            let before = self.all.iter().position(|other| other == budget)?;
            self.counts[before]
        };
        self.counts = all.iter().map(count_of).collect();
        self.all = all.into();
        Ok(())
    }

    /// Replaces all budgets, unless they have another version by now.
    ///
    /// # Errors
    /// [`Error::Conflict`].
    pub(super) fn replace(
        &mut self,
        db: &Connection,
        all: &[Budget],
        version: Option<&str>,
    ) -> Result<()> {
        if version.is_some_and(|version| version != budget::version(self.all.iter())) {
            let message = "the budgets have changed since they were read; read them again";
            return Err(Error::Conflict(message.to_owned()));
        }
        self.set(db, all)
    }

    /// Adds a budget to those that there are.
    ///
    /// # Errors
    /// [`Error::Conflict`] where there is one of that name; [`Error::Busy`] where there are too many.
    pub(super) fn add(&mut self, db: &Connection, budget: &Budget) -> Result<()> {
        if self.all.iter().any(|other| other.name == budget.name) {
            let message = format!("there is a budget named `{}` already", budget.name);
            return Err(Error::Conflict(message));
        }
        if self.all.len() >= BUDGETS_MAX {
            return Err(Error::Busy(format!("there may be {BUDGETS_MAX} budgets")));
        }
        let all = [&self.all, std::slice::from_ref(budget)].concat();
        self.set(db, &all)
    }

    pub(super) fn remove_of_key(&mut self, db: &Connection, key: &str) -> Result<()> {
        let mut all = self.all.to_vec();
        all.retain(|budget| budget.key.as_deref() != Some(key));
        self.set(db, &all)
    }

    /// Counts a call that is about to be made.
    ///
    /// # Errors
    /// [`Error::Budget`] where a hard budget does not allow it; then it is not counted.
    pub(super) fn open(&mut self, db: &Connection, call: &NewCall) -> Result<()> {
        let scope = scope(call);
        let covers = |budget: &Budget| {
            // What is of no run is nothing that a run may spend.
            budget.covers(&scope) && (budget.per != Per::Run || call.run_id.is_some())
        };
        let covering: Vec<usize> =
            (0..self.all.len()).filter(|&at| covers(&self.all[at])).collect();
        for &at in &covering {
            self.count(db, at, call.at)?;
        }
        let of_run = self.rows_of_run(db, &covering, call.run_id.as_deref())?;
        for &at in &covering {
            let budget = &self.all[at];
            let used = match self.counts[at] {
                Some(count) => count.used,
                None => used_of(budget, &of_run),
            };
            match budget.reserved(&call.reserve) {
                None if budget.hard && !budget.allow_unpriced => {
                    return Err(budget.unpriced_refusal(&scope));
                }
                // What costs nothing is made even where nothing is left.
                Some(needed)
                    if budget.hard
                        && needed > 0
                        && used.saturating_add(needed) > budget.limit.amount() =>
                {
                    return Err(budget.refusal(used, needed));
                }
                _ => {}
            }
        }
        for at in covering {
            let needed = self.all[at].reserved(&call.reserve).unwrap_or(0);
            if let Some(count) = &mut self.counts[at] {
                count.used = count.used.saturating_add(needed);
            }
        }
        Ok(())
    }

    /// Replaces a call's reserve by its result. Returns the warnings for viewers.
    pub(super) fn settle(
        &mut self,
        db: &Connection,
        row: &LedgerEntry,
    ) -> Result<Vec<BudgetWarning>> {
        if self.all.is_empty() {
            return Ok(Vec::new());
        }
        let (asked, reserve) = opened(db, row.id)?;
        let scope = Scope {
            flow_id: row.flow_id,
            provider: &row.provider,
            model: &asked,
            key: row.more.key_name.as_deref(),
        };
        let covering: Vec<usize> =
            (0..self.all.len()).filter(|&at| self.all[at].covers(&scope)).collect();
        // The ledger has the row already: only what was counted before is without it.
        let was_counted = |count: &Option<Count>| count.is_some_and(|it| it.holds(row.timestamp));
        let was_counted: Vec<bool> = self.counts.iter().map(was_counted).collect();
        let of_run = self.rows_of_run(db, &covering, row.run_id.as_deref())?;
        let mut warnings = Vec::new();
        for at in covering {
            if self.counts[at].is_none() {
                self.count(db, at, row.timestamp)?;
            }
            let budget = &self.all[at];
            let (used, whose) = match (&mut self.counts[at], &row.run_id) {
                (Some(count), _) if count.holds(row.timestamp) => {
                    if was_counted[at] {
                        let reserved = budget.reserved(&reserve).unwrap_or(0);
                        let used = count.used.saturating_sub(reserved);
                        count.used = used.saturating_add(used_by(row, budget.limit, reserved));
                    }
                    (count.used, count.start.0.to_string())
                }
                (None, Some(run_id)) => (used_of(budget, &of_run), run_id.clone()),
                // Of another period, which the ledger has, or of no run.
                _ => continue,
            };
            let level = budget.level(used);
            if level > 0 && level > told(db, budget, &whose)? {
                tell(db, budget, &whose, level)?;
                warnings.push(budget.warning(used, level));
            }
        }
        Ok(warnings)
    }

    /// The rows of the run, where one of the budgets is for each run.
    fn rows_of_run(
        &self,
        db: &Connection,
        budgets: &[usize],
        run_id: Option<&str>,
    ) -> Result<Vec<Used>> {
        match run_id {
            Some(run_id) if budgets.iter().any(|&at| self.all[at].per == Per::Run) => {
                used_by_run(db, run_id)
            }
            _ => Ok(Vec::new()),
        }
    }

    /// Counts a budget for the period that `moment` lies in, unless it is or is one of runs, and with
    /// it all others that are not counted for this or a later period yet.
    fn count(&mut self, db: &Connection, at: usize, moment: Timestamp) -> Result<()> {
        let budget = &self.all[at];
        if budget.per == Per::Run || self.counts[at].is_some_and(|count| count.holds(moment)) {
            return Ok(());
        }
        let (start, end) = budget.period(moment);
        let rows = used_between(db, start, end)?;
        for (other, (budget, count)) in self.all.iter().zip(&mut self.counts).enumerate() {
            let is_old = count.is_none_or(|count| count.end <= start);
            let is_same = || budget.per != Per::Run && budget.period(moment) == (start, end);
            if other == at || (is_old && is_same()) {
                let used = used_of(budget, &rows);
                *count = Some(Count { start, end, used });
            }
        }
        Ok(())
    }
}

/// The share that viewers were told of; 0 where of none.
fn told(db: &Connection, budget: &Budget, whose: &str) -> Result<u8> {
    let sql = "SELECT percent FROM budget_told WHERE budget = ?1 AND whose = ?2";
    let percent = one(db, sql, [budget.name.as_str(), whose])?;
    Ok(percent.unwrap_or(0))
}

/// Notes that viewers are told of a share, and forgets the oldest of too many.
fn tell(db: &Connection, budget: &Budget, whose: &str, percent: u8) -> Result<()> {
    let sql = "INSERT OR REPLACE INTO budget_told (budget, whose, percent) VALUES (?1, ?2, ?3)";
    execute(db, sql, params![budget.name, whose, percent])?;
    let sql = "DELETE FROM budget_told WHERE id <= ?1";
    execute(db, sql, params![db.last_insert_rowid() - TOLD_MAX]).map(drop)
}

impl Store {
    /// Whether hard budgets would allow a call now. It counts nowhere: it does, and this is decided,
    /// when its intent is committed.
    ///
    /// # Errors
    /// [`Error::Budget`] where one does not.
    pub fn check_budgets(&self, call: &NewCall) -> Result<()> {
        self.read(|db| Budgets::load(db)?.open(db, call))
    }
}

/// Which model was asked in a row, and what was reserved for it.
fn opened(db: &Connection, id: i64) -> Result<(String, Reserve)> {
    let sql = "SELECT coalesce(model_asked, model_used), reserved_nanousd,
            coalesce(reserved_tokens, 0) FROM ledger WHERE id = ?1";
    single(db, sql, [id])
}

fn scope(call: &NewCall) -> Scope<'_> {
    Scope {
        flow_id: call.flow_id,
        provider: &call.provider,
        model: &call.model,
        key: call.key_name.as_deref(),
    }
}

/// What a settled row counts; as [`ROWS`] has it.
fn used_by(row: &LedgerEntry, limit: Limit, reserved: i64) -> i64 {
    let usage = &row.usage;
    match (limit, row.total_cost_usd) {
        (Limit::Usd(_), Some(cost)) => cost.nanousd,
        (Limit::Tokens(_), _) if usage.source != UsageSource::None => {
            i64::try_from(usage.input_tokens.saturating_add(usage.output_tokens))
                .unwrap_or(i64::MAX)
        }
        (Limit::Tokens(_), Some(Usd::ZERO)) => 0,
        _ => reserved,
    }
}

/// Rows that budgets cannot tell apart, and what they count together.
struct Used {
    flow_id: Option<FlowId>,
    provider: String,
    model: String,
    key: Option<String>,
    nanousd: i64,
    tokens: i64,
}

from_row!(Used; flow_id, provider, model, key, nanousd, tokens);
from_row!(Reserve; cost, tokens);

impl Used {
    fn scope(&self) -> Scope<'_> {
        Scope {
            flow_id: self.flow_id,
            provider: &self.provider,
            model: &self.model,
            key: self.key.as_deref(),
        }
    }
}

fn used_of(budget: &Budget, rows: &[Used]) -> i64 {
    let covered = rows.iter().filter(|row| budget.covers(&row.scope()));
    let amounts = covered.map(|row| match budget.limit {
        Limit::Usd(_) => row.nanousd,
        Limit::Tokens(_) => row.tokens,
    });
    amounts.fold(0, i64::saturating_add)
}

fn used_between(db: &Connection, start: Timestamp, end: Timestamp) -> Result<Vec<Used>> {
    let Plan { days, head, tail } = Plan::new(Some(start), Some(end), days::summed_until(db)?);
    let values = params![days.0, days.1, head.0, head.1, tail.0, tail.1];
    all(db, &between_sql(), values)
}

fn between_sql() -> String {
    let of_rows = format!("{ROWS} WHERE timestamp_ms >= ? AND timestamp_ms < ?");
    format!(
        "SELECT {SUMS} FROM ({DAYS} WHERE day >= ? AND day < ? UNION ALL {of_rows} UNION ALL {of_rows})
         GROUP BY 1, 2, 3, 4"
    )
}

fn used_by_run(db: &Connection, run_id: &str) -> Result<Vec<Used>> {
    let sql = format!("SELECT {SUMS} FROM ({ROWS} WHERE run_id = ?1) GROUP BY 1, 2, 3, 4");
    all(db, &sql, [run_id])
}

pub(super) fn sum_up(db: &Connection, day: Day, start_ms: i64, end_ms: i64) -> Result<()> {
    let sql = format!(
        "INSERT INTO budget_days SELECT ?1, {SUMS}
         FROM ({ROWS} WHERE timestamp_ms >= ?2 AND timestamp_ms < ?3) GROUP BY 2, 3, 4, 5"
    );
    execute(db, &sql, params![day, start_ms, end_ms]).map(drop)
}

/// Calls `each` with each day that is summed up, and whether its sums are what its rows come to.
pub(super) fn check(db: &Connection, until: Day, mut each: impl FnMut(Day, bool)) -> Result<()> {
    let day = format!("SELECT timestamp_ms / {MS_PER_DAY} AS day,");
    let rows = ROWS.replacen("SELECT", &day, 1);
    let of_rows = format!(
        "SELECT day, {SUMS} FROM ({rows} WHERE timestamp_ms < ?1 * {MS_PER_DAY})
         GROUP BY 1, 2, 3, 4, 5"
    );
    let of_days = format!("SELECT day, {SUMS} FROM budget_days GROUP BY 1, 2, 3, 4, 5");
    let mut statement = db.prepare(&format!(
        "WITH says AS ({of_days}), holds AS ({of_rows}), wrong AS (
            SELECT day FROM (SELECT * FROM says EXCEPT SELECT * FROM holds)
            UNION SELECT day FROM (SELECT * FROM holds EXCEPT SELECT * FROM says))
         SELECT day, day NOT IN (SELECT day FROM wrong)
         FROM (SELECT day FROM says UNION SELECT day FROM holds) ORDER BY day"
    ))?;
    let mut days = statement.query([until])?;
    while let Some(row) = days.next()? {
        each(row.get(0)?, row.get(1)?);
    }
    Ok(())
}

/// Forgets the sums of `day` and all after it.
pub(super) fn forget_from(db: &Connection, day: Day) -> Result<()> {
    execute(db, "DELETE FROM budget_days WHERE day >= ?1", params![day]).map(drop)
}

fn read(db: &Connection) -> Result<Vec<Budget>> {
    let sql = "SELECT budget FROM budgets ORDER BY position";
    let texts: Vec<String> = all(db, sql, [])?;
    let documents: Vec<serde_json::Value> =
        texts.iter().map(|text| serde_json::from_str(text).unwrap_or_default()).collect();
    budget::parse_all(serde_json::json!({"budgets": documents}))
}

fn write(db: &Connection, budgets: &[Budget]) -> Result<()> {
    execute(db, "DELETE FROM budgets", params![])?;
    for (position, budget) in budgets.iter().enumerate() {
        let sql = "INSERT INTO budgets (position, budget) VALUES (?1, ?2)";
        execute(db, sql, params![position, budget.to_json().to_string()])?;
    }
    Ok(())
}

#[derive(Clone, Debug)]
pub struct BudgetState {
    pub budget: Budget,
    /// What is used or reserved in the present period, in the budget's unit; none of one for runs.
    pub used: Option<i64>,
    /// When the present period began and ends; none of one for runs.
    pub period: Option<(Timestamp, Timestamp)>,
}

impl Store {
    pub fn bare_budgets(&self) -> Result<Vec<Budget>> {
        self.read(read)
    }

    /// All budgets with what is used of them, as of one moment.
    pub fn budgets(&self, now: Timestamp) -> Result<Vec<BudgetState>> {
        self.read(|db| {
            let snapshot = db.unchecked_transaction()?;
            let mut rows_of = HashMap::new();
            let mut states = Vec::new();
            for budget in read(&snapshot)? {
                let period = (budget.per != Per::Run).then(|| budget.period(now));
                if let Some((start, end)) = period
                    && let Entry::Vacant(none) = rows_of.entry((start, end))
                {
                    none.insert(used_between(&snapshot, start, end)?);
                }
                let used = period.map(|period| used_of(&budget, &rows_of[&period]));
                states.push(BudgetState { budget, used, period });
            }
            Ok(states)
        })
    }
}

#[cfg(test)]
mod tests;
