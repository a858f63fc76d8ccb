//! What of each budget is used: counted in memory as calls are opened and settled, and counted anew
//! from the ledger when the server starts, a budget changes or a new period begins.
//!
//! A row counts with its cost, and where that is not known (it is under way, or nobody knows what
//! became of it) with what was reserved for it. So parallel calls cannot overrun a limit together,
//! and a call whose end nobody saw is not taken for free.

use std::sync::Arc;

use rusqlite::types::Value as SqlValue;
use rusqlite::{Connection, params, params_from_iter};

use super::Store;
use super::changes::NewCall;
use crate::budget::{self, BUDGETS_MAX, Budget, Limit, Per, Reserve, Scope};
use crate::error::{Error, Result};
use crate::event::{BudgetWarning, LedgerEntry, Timestamp, UsageSource, Usd};

/// What a row counts in nano-dollars.
const USED_NANOUSD: &str = "coalesce(cost_nanousd, reserved_nanousd, 0)";
/// What a row counts in tokens. One that cost nothing was never sent, or refused.
const USED_TOKENS: &str = "CASE WHEN usage_source != 'none' THEN input_tokens + output_tokens
     WHEN cost_nanousd = 0 THEN 0 ELSE coalesce(reserved_tokens, 0) END";

/// How much of a budget is used in a period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Count {
    start: Timestamp,
    end: Timestamp,
    /// In the budget's unit.
    used: i64,
    /// The share that viewers were told of.
    told_percent: u8,
}

impl Count {
    fn holds(&self, moment: Timestamp) -> bool {
        self.start <= moment && moment < self.end
    }
}

/// See the module.
pub(super) struct Budgets {
    all: Arc<[Budget]>,
    /// For each budget but those of runs, which are counted from the run's few rows each time.
    counts: Vec<Option<Count>>,
}

/// What was counted at some moment, to go back to.
pub(super) struct Before {
    all: Arc<[Budget]>,
    counts: Vec<Option<Count>>,
}

impl Budgets {
    pub(super) fn load(connection: &Connection) -> Result<Self> {
        let all: Arc<[Budget]> = read(connection)?.into();
        let counts = vec![None; all.len()];
        Ok(Self { all, counts })
    }

    /// Puts these budgets in place of those that there are. One that stays as it is stays counted.
    fn set(&mut self, connection: &Connection, all: &[Budget]) -> Result<()> {
        write(connection, all)?;
        let count_of = |budget: &Budget| {
            let before = self.all.iter().position(|other| other == budget)?;
            self.counts[before]
        };
        self.counts = all.iter().map(count_of).collect();
        self.all = all.into();
        Ok(())
    }

    /// Puts these budgets in place of those that there are, unless somebody has changed them since
    /// they had the version that is given.
    ///
    /// # Errors
    /// [`Error::Conflict`].
    pub(super) fn replace(
        &mut self,
        connection: &Connection,
        all: &[Budget],
        version: Option<&str>,
    ) -> Result<()> {
        if version.is_some_and(|version| version != budget::version(self.all.iter())) {
            let message = "the budgets have changed since they were read; read them again";
            return Err(Error::Conflict(message.to_owned()));
        }
        self.set(connection, all)
    }

    /// Adds a budget to those that there are.
    ///
    /// # Errors
    /// [`Error::Conflict`] where there is one of that name; [`Error::Busy`] where there are too many.
    pub(super) fn add(&mut self, connection: &Connection, budget: &Budget) -> Result<()> {
        if self.all.iter().any(|other| other.name == budget.name) {
            let message = format!("there is a budget named `{}` already", budget.name);
            return Err(Error::Conflict(message));
        }
        if self.all.len() >= BUDGETS_MAX {
            return Err(Error::Busy(format!("there may be {BUDGETS_MAX} budgets")));
        }
        let all = [&self.all, std::slice::from_ref(budget)].concat();
        self.set(connection, &all)
    }

    /// Removes the budgets of a key.
    pub(super) fn remove_of_key(&mut self, connection: &Connection, key: &str) -> Result<()> {
        let mut all = self.all.to_vec();
        all.retain(|budget| budget.key.as_deref() != Some(key));
        self.set(connection, &all)
    }

    /// What is counted now. A transaction that is rolled back goes back to it.
    pub(super) fn before(&self) -> Before {
        Before {
            all: Arc::clone(&self.all),
            counts: self.counts.clone(),
        }
    }

    pub(super) fn go_back(&mut self, before: Before) {
        self.all = before.all;
        self.counts = before.counts;
    }

    /// Counts a call that is about to be made.
    ///
    /// # Errors
    /// [`Error::Budget`] where a hard budget does not allow it; then it is not counted.
    pub(super) fn open(&mut self, connection: &Connection, call: &NewCall) -> Result<()> {
        let scope = scope(call);
        let covering: Vec<usize> = (0..self.all.len())
            .filter(|&at| self.all[at].covers(&scope))
            .collect();
        for &at in &covering {
            let used = self.used(connection, at, call.run_id.as_deref(), call.at)?;
            let budget = &self.all[at];
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

    /// Counts what a call has come to in place of what was reserved for it. Gives what viewers are
    /// to be told.
    pub(super) fn settle(
        &mut self,
        connection: &Connection,
        row: &LedgerEntry,
    ) -> Result<Vec<BudgetWarning>> {
        if self.all.is_empty() {
            return Ok(Vec::new());
        }
        let (asked, reserve) = opened(connection, row.id)?;
        let scope = Scope {
            flow_id: row.flow_id,
            provider: &row.provider,
            model: &asked,
            key: row.more.key_name.as_deref(),
        };
        let mut warnings = Vec::new();
        for (budget, count) in self.all.iter().zip(&mut self.counts) {
            if !budget.covers(&scope) {
                continue;
            }
            let reserved = budget.reserved(&reserve).unwrap_or(0);
            let used_by_row = used_by(row, budget.limit, reserved);
            let (used, told) = match (count, &row.run_id) {
                (None, Some(run_id)) if budget.per == Per::Run => {
                    let used = count_run(connection, budget, run_id)?;
                    (used, budget.level(used.saturating_sub(used_by_row)))
                }
                (Some(count), _) if count.holds(row.timestamp) => {
                    let used = count.used.saturating_sub(reserved);
                    count.used = used.saturating_add(used_by_row);
                    let told = count.told_percent;
                    count.told_percent = told.max(budget.level(count.used));
                    (count.used, told)
                }
                // Of another period, or not counted yet: the ledger has it.
                _ => continue,
            };
            let level = budget.level(used);
            if level > told {
                warnings.push(budget.warning(used, level));
            }
        }
        Ok(warnings)
    }

    /// What is used of a budget in the period of `at`, or by the run.
    fn used(
        &mut self,
        connection: &Connection,
        at: usize,
        run_id: Option<&str>,
        moment: Timestamp,
    ) -> Result<i64> {
        let budget = &self.all[at];
        if budget.per == Per::Run {
            return match run_id {
                Some(run_id) => count_run(connection, budget, run_id),
                None => Ok(0),
            };
        }
        match self.counts[at] {
            Some(count) if count.holds(moment) => Ok(count.used),
            _ => {
                let (start, end) = budget.period(moment);
                let used = count_period(connection, budget, start, end)?;
                self.counts[at] = Some(Count {
                    start,
                    end,
                    used,
                    told_percent: budget.level(used),
                });
                Ok(used)
            }
        }
    }
}

impl Store {
    /// Whether hard budgets would allow a call now. It counts nowhere: it does, and this is decided,
    /// when its intent is committed.
    ///
    /// # Errors
    /// [`Error::Budget`] where one does not.
    pub fn check_budgets(&self, call: &NewCall) -> Result<()> {
        self.read(|connection| Budgets::load(connection)?.open(connection, call))
    }
}

/// Which model was asked in a row, and what was reserved for it.
fn opened(connection: &Connection, id: i64) -> Result<(String, Reserve)> {
    let mut statement = connection.prepare_cached(
        "SELECT coalesce(model_asked, model_used), reserved_nanousd, reserved_tokens
         FROM ledger WHERE id = ?1",
    )?;
    Ok(statement.query_row([id], |row| {
        let cost: Option<i64> = row.get(1)?;
        let reserve = Reserve {
            cost: cost.map(Usd::from_nanousd),
            tokens: row.get::<_, Option<u64>>(2)?.unwrap_or(0),
        };
        Ok((row.get(0)?, reserve))
    })?)
}

fn scope(call: &NewCall) -> Scope<'_> {
    Scope {
        flow_id: call.flow_id,
        provider: &call.provider,
        model: &call.model,
        key: call.key_name.as_deref(),
    }
}

/// What a settled row counts; as [`USED_NANOUSD`] and [`USED_TOKENS`] have it.
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

/// The condition that a row is covered, and its parameters.
fn covered(budget: &Budget) -> (String, Vec<SqlValue>) {
    let mut sql = String::new();
    let mut values = Vec::new();
    let mut and = |condition: &str, value: SqlValue| {
        sql.push_str(" AND ");
        sql.push_str(condition);
        values.push(value);
    };
    if let Some(flow_id) = budget.flow_id {
        and("flow_id = ?", SqlValue::from(flow_id));
    }
    if let Some(key) = &budget.key {
        and("key_name = ?", SqlValue::from(key.clone()));
    }
    let asked = "provider || '/' || coalesce(model_asked, model_used)";
    match budget
        .model
        .as_deref()
        .map(|model| (model, model.strip_suffix('*')))
    {
        Some((_, Some(start))) => {
            let length = start.chars().count();
            and(
                &format!("substr({asked}, 1, {length}) = ?"),
                SqlValue::from(start.to_owned()),
            );
        }
        Some((model, None)) => and(&format!("{asked} = ?"), SqlValue::from(model.to_owned())),
        None => {}
    }
    (sql, values)
}

fn column(limit: Limit) -> &'static str {
    match limit {
        Limit::Usd(_) => USED_NANOUSD,
        Limit::Tokens(_) => USED_TOKENS,
    }
}

fn count_period(
    connection: &Connection,
    budget: &Budget,
    start: Timestamp,
    end: Timestamp,
) -> Result<i64> {
    let (sql, mut values) = period_sql(budget);
    values.push(SqlValue::from(start.0));
    values.push(SqlValue::from(end.0));
    Ok(connection
        .prepare_cached(&sql)?
        .query_row(params_from_iter(values), |row| row.get(0))?)
}

/// The statement that counts a period, and its parameters but for the period's.
fn period_sql(budget: &Budget) -> (String, Vec<SqlValue>) {
    let (condition, values) = covered(budget);
    let column = column(budget.limit);
    let sql = format!(
        "SELECT coalesce(sum({column}), 0) FROM ledger
         WHERE 1{condition} AND timestamp_ms >= ? AND timestamp_ms < ?"
    );
    (sql, values)
}

fn count_run(connection: &Connection, budget: &Budget, run_id: &str) -> Result<i64> {
    let (condition, mut values) = covered(budget);
    let column = column(budget.limit);
    values.push(SqlValue::from(run_id.to_owned()));
    let sql =
        format!("SELECT coalesce(sum({column}), 0) FROM ledger WHERE 1{condition} AND run_id = ?");
    Ok(connection
        .prepare_cached(&sql)?
        .query_row(params_from_iter(values), |row| row.get(0))?)
}

fn read(connection: &Connection) -> Result<Vec<Budget>> {
    let mut statement =
        connection.prepare_cached("SELECT budget FROM budgets ORDER BY position")?;
    let texts: Vec<String> = statement
        .query_map([], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    let documents: Vec<serde_json::Value> = texts
        .iter()
        .map(|text| serde_json::from_str(text).unwrap_or_default())
        .collect();
    budget::parse_all(serde_json::json!({"budgets": documents}))
}

fn write(connection: &Connection, budgets: &[Budget]) -> Result<()> {
    connection
        .prepare_cached("DELETE FROM budgets")?
        .execute([])?;
    for (position, budget) in budgets.iter().enumerate() {
        connection
            .prepare_cached("INSERT INTO budgets (position, budget) VALUES (?1, ?2)")?
            .execute(params![position, budget.to_json().to_string()])?;
    }
    Ok(())
}

/// A budget with what is used of it.
#[derive(Clone, Debug)]
pub struct BudgetState {
    /// The budget.
    pub budget: Budget,
    /// What is used or reserved in the present period, in the budget's unit; none of one for runs.
    pub used: Option<i64>,
    /// When the present period began and ends; none of one for runs.
    pub period: Option<(Timestamp, Timestamp)>,
}

impl Store {
    /// All budgets, without what is used of them.
    pub fn bare_budgets(&self) -> Result<Vec<Budget>> {
        self.read(read)
    }

    /// All budgets with what is used of them, as of one moment.
    pub fn budgets(&self, now: Timestamp) -> Result<Vec<BudgetState>> {
        self.read(|connection| {
            let snapshot = connection.unchecked_transaction()?;
            let with_state = |budget: Budget| {
                let period = (budget.per != Per::Run).then(|| budget.period(now));
                let used = period.map(|(start, end)| count_period(&snapshot, &budget, start, end));
                Ok(BudgetState {
                    used: used.transpose()?,
                    period,
                    budget,
                })
            };
            read(&snapshot)?.into_iter().map(with_state).collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::error::Error;
    use crate::event::{CallStatus, Usage};
    use crate::store::{Change, Receipt, Settlement, Writer};

    const MS_PER_DAY: i64 = 24 * 60 * 60 * 1000;
    /// Nano-dollars a day.
    const LIMIT: i64 = 1_000;

    fn budget(more: &str) -> Budget {
        let text = format!(r#"{{"name": "b", "per": "day", "limitUsd": "0.000001"{more}}}"#);
        let document: serde_json::Value = serde_json::from_str(&text).unwrap();
        let all = budget::parse_all(serde_json::json!({"budgets": [document]}));
        all.unwrap().remove(0)
    }

    fn call(at: i64, needed: i64) -> NewCall {
        NewCall {
            at: Timestamp(at),
            flow_id: Some(1),
            run_id: None,
            node_id: None,
            attempt: 1,
            operation_id: "o".into(),
            provider: "p".into(),
            model: "m".into(),
            role: None,
            prompt_hash: String::new(),
            key_name: None,
            tags: None,
            reserve: Reserve {
                cost: Some(Usd::from_nanousd(needed)),
                tokens: 1,
            },
        }
    }

    fn settlement(id: i64, at: i64, cost: i64) -> Settlement {
        Settlement {
            id,
            model: None,
            usage: Usage::default(),
            cost: Some(Usd::from_nanousd(cost)),
            latency_ms: Some(1),
            first_token_ms: None,
            price: None,
            status: CallStatus::Success,
            error: None,
            at: Timestamp(at),
        }
    }

    fn apply(writer: &mut Writer, change: Change) -> Result<Receipt> {
        writer.transaction(|batch| batch.apply(&change))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn a_limit_is_kept_exactly_on_whichever_day_the_clock_says_it_is(
            steps in prop::collection::vec(
                // The day, what is reserved, what it costs, and whether it is settled at once.
                (prop::sample::select(vec![100_i64, 101, 70, 465]), 0..500_i64, 0..300_i64, any::<bool>()),
                1..40,
            ),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let (store, mut writer) = Store::open(dir.path()).unwrap();
            let all = vec![budget(r#", "hard": true, "timezone": "UTC""#)];
            apply(&mut writer, Change::SetBudgets { all, version: None }).unwrap();
            let mut used: std::collections::HashMap<i64, i64> = Default::default();
            let mut open = Vec::new();
            for (day, needed, cost, is_settled) in steps {
                let at = day * MS_PER_DAY + 5;
                let before = *used.entry(day).or_default();
                match apply(&mut writer, Change::OpenCall(call(at, needed))) {
                    Ok(Receipt::Call(row)) => {
                        prop_assert!(needed == 0 || before + needed <= LIMIT);
                        *used.entry(day).or_default() += needed;
                        open.push((row.id, day, needed, cost));
                    }
                    Err(Error::Budget { .. }) => prop_assert!(before + needed > LIMIT),
                    other => panic!("{other:?}"),
                }
                // Often after the clock has jumped.
                while is_settled && let Some((id, day, needed, cost)) = open.pop() {
                    apply(&mut writer, Change::SettleCall(settlement(id, at, cost))).unwrap();
                    *used.entry(day).or_default() += cost - needed;
                }
            }
            for (day, used) in used {
                let state = store.budgets(Timestamp(day * MS_PER_DAY)).unwrap();
                prop_assert_eq!(state[0].used, Some(used));
            }
        }
    }

    #[test]
    fn a_period_is_counted_from_its_own_rows() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _writer) = Store::open(dir.path()).unwrap();
        for more in [
            "",
            r#", "flowId": 1"#,
            r#", "model": "p/*""#,
            r#", "key": "k""#,
        ] {
            let (sql, _) = period_sql(&budget(more));
            let plan: String = store
                .read(|connection| {
                    let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}"))?;
                    let mut lines = statement.raw_query();
                    let line = lines.next()?.expect("a plan");
                    Ok(line.get("detail")?)
                })
                .unwrap();
            let is_by_time = plan.contains("ledger_by_time (timestamp_ms>? AND timestamp_ms<?)");
            assert!(is_by_time, "{more}: {plan}");
        }
    }
}
