//! Counts the use of each budget. Counts are kept in memory as calls are opened and settled, and
//! are read again from the ledger when the server starts, a budget changes or a new period begins.
//!
//! A row counts with its cost. If the cost is unknown (the call is in flight, or its result was
//! lost), the row counts with its reserve. So parallel calls cannot exceed a limit together, and a
//! lost call is not treated as free.
//!
//! Whole days that are summed up (see `days`) are counted from their sums, and a period is read
//! once for all budgets that need it.
//!
//! The last threshold sent to viewers is stored, because the counts do not show it: a budget also
//! counts usage from before its creation.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use rusqlite::{Connection, Row, params};

use super::change::NewCall;
use super::days::{self, Day, MS_PER_DAY, Plan};
use super::reader::Store;
use super::sql::{FromRow, all, execute, one, single};
use crate::budget::{
    self, Amounts, BUDGETS_MAX, Budget, InputBound, Limit, OnLoop, OnShort, Per, Reserve, Scope,
};
use crate::error::{Error, Result};
use crate::event::{
    Attribution, Billing, BudgetWarning, Event, EventContext, LedgerEntry, UsageSource, WarningKind,
};
use crate::ids::FlowId;
use crate::money::Usd;
use crate::time::Timestamp;

/// Limits the remembered warnings, one for each budget and period or run; the oldest are removed.
const WARNED_MAX: i64 = 10_000;
/// Stands for a budget in the remembered warnings about loops. No budget has this name.
const LOOPS: &str = "";
/// Limits the counted sessions of all budgets together. They are copied for each transaction.
const SESSIONS_MAX: usize = 128;

/// The names in ledger rows that budgets filter by, and each row's use in nano-dollars and in
/// tokens, with the part of it that is only reserved. Rows without use were refused or never sent.
const ROWS: &str = "SELECT flow_id, provider, coalesce(model_asked, model_used) AS model, key_name,
        tags, client, end_user, project, billing,
        coalesce(cost_nanousd, reserved_nanousd, 0) AS nanousd,
        CASE WHEN usage_source != 'none' THEN input_tokens + output_tokens
             WHEN cost_nanousd = 0 THEN 0 ELSE coalesce(reserved_tokens, 0) END AS tokens,
        CASE WHEN cost_nanousd IS NULL THEN coalesce(reserved_nanousd, 0) ELSE 0 END AS held_nanousd,
        CASE WHEN usage_source != 'none' OR cost_nanousd = 0 THEN 0
             ELSE coalesce(reserved_tokens, 0) END AS held_tokens
     FROM ledger";
const NAMES: &str = "flow_id, provider, model, key_name, tags, client, end_user, project, billing";
/// The amounts in [`ROWS`], which `budget_days` has too.
const AMOUNTS: &str = "nanousd, tokens, held_nanousd, held_tokens";
const SUMS: &str = "sum(nanousd), sum(tokens), sum(held_nanousd), sum(held_tokens)";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Count {
    start: Timestamp,
    end: Timestamp,
    amounts: Amounts,
}

impl Count {
    fn contains(&self, moment: Timestamp) -> bool {
        self.start <= moment && moment < self.end
    }
}

/// The reservation of a settled call whose cost is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeldAmount {
    Kept,
    Freed,
}

#[derive(Clone)]
pub(super) struct Budgets {
    all: Arc<[Budget]>,
    /// One count for each budget. Per-run budgets have none: the run's few rows are read each time.
    /// Those per session have none either.
    counts: Vec<Option<Count>>,
    sessions: SessionCounts,
}

impl Budgets {
    pub(super) fn load(db: &Connection) -> Result<Self> {
        let all: Arc<[Budget]> = read(db)?.into();
        let counts = vec![None; all.len()];
        Ok(Self { all, counts, sessions: SessionCounts::default() })
    }

    /// Replaces all budgets. Unchanged ones keep their counts.
    fn set(&mut self, db: &Connection, all: &[Budget]) -> Result<()> {
        write(db, all)?;
        for old in self.all.iter().filter(|old| !all.contains(old)) {
            // A changed budget starts with no warnings sent.
            execute(db, "DELETE FROM budget_told WHERE budget = ?1", params![&old.name])?;
        }
        let count_of = |budget: &Budget| {
            let before = self.all.iter().position(|other| other == budget)?;
            self.counts[before]
        };
        self.counts = all.iter().map(count_of).collect();
        self.sessions = SessionCounts::default();
        self.all = all.into();
        Ok(())
    }

    /// Replaces all budgets.
    ///
    /// # Errors
    /// [`Error::Conflict`] for a `version` that is not the one of the stored budgets.
    pub(super) fn replace(
        &mut self,
        db: &Connection,
        all: &[Budget],
        version: Option<&str>,
    ) -> Result<()> {
        if version.is_some_and(|version| version != budget::version(self.all.iter())) {
            let message = "the budgets have changed since they were loaded; reload them and retry";
            return Err(Error::Conflict(message.to_owned()));
        }
        self.set(db, all)
    }

    /// Adds a budget.
    ///
    /// # Errors
    /// [`Error::Conflict`] for a taken name, [`Error::Busy`] for too many budgets.
    pub(super) fn add(&mut self, db: &Connection, budget: &Budget) -> Result<()> {
        if self.all.iter().any(|other| other.name == budget.name) {
            let message = format!("budget `{}` already exists", budget.name);
            return Err(Error::Conflict(message));
        }
        if self.all.len() >= BUDGETS_MAX {
            return Err(Error::Busy(format!(
                "there are already {BUDGETS_MAX} budgets, which is the limit; delete one first"
            )));
        }
        let all = [&self.all, std::slice::from_ref(budget)].concat();
        self.set(db, &all)
    }

    /// Reads the use of all budgets again when it is needed.
    pub(super) fn forget_counts(&mut self) {
        self.counts.fill(None);
        self.sessions = SessionCounts::default();
    }

    pub(super) fn remove_of_key(&mut self, db: &Connection, key: &str) -> Result<()> {
        let mut all = self.all.to_vec();
        all.retain(|budget| budget.key.as_deref() != Some(key));
        self.set(db, &all)
    }

    /// Counts a call that is about to be made, with the reservation that its budgets choose.
    ///
    /// # Errors
    /// [`Error::Budget`] or [`Error::BudgetHeld`] for a call that a hard budget does not allow; it is
    /// not counted.
    pub(super) fn open(&mut self, db: &Connection, call: &NewCall) -> Result<Reservation> {
        let scope = scope(call);
        let session = call.attribution.session.as_deref();
        let covers = |budget: &Budget| {
            // A budget per run or session covers only calls that belong to one.
            let belongs = match budget.per {
                Per::Day | Per::Month => true,
                Per::Run => call.run_id.is_some(),
                Per::Session => session.is_some(),
            };
            belongs && budget.covers(&scope)
        };
        let covering: Vec<usize> =
            (0..self.all.len()).filter(|&at| covers(&self.all[at])).collect();
        for &at in &covering {
            self.count(db, at, call.at)?;
        }
        let of_run = self.rows_of_run(db, &covering, call.run_id.as_deref())?;
        let mut hard = Vec::new();
        for &at in &covering {
            let budget = &self.all[at];
            if budget.on_loop == OnLoop::Stop
                && let Some(sign) = &call.looping
            {
                return Err(budget.loop_refusal(sign));
            }
            let amounts = match (self.counts[at], session) {
                (Some(count), _) => count.amounts,
                (None, Some(session)) if budget.per == Per::Session => {
                    self.sessions.amounts(db, at, budget, session)?
                }
                (None, _) => amounts_of(budget, &of_run),
            };
            if budget.hard {
                hard.push((budget, amounts));
            }
        }
        let reservation = reservation(call, &hard)?;
        for at in covering {
            let needed = self.all[at].reserved(&reservation.reserve).unwrap_or(0);
            if let Some(count) = &mut self.counts[at] {
                count.amounts = count.amounts.plus(Amounts { spent: 0, held: needed });
            }
            self.sessions.add(at, session, Amounts { spent: 0, held: needed });
        }
        Ok(reservation)
    }

    /// Replaces a call's reserve by its result. Returns the warnings for viewers.
    pub(super) fn settle(
        &mut self,
        db: &Connection,
        row: &LedgerEntry,
        held: HeldAmount,
    ) -> Result<Vec<BudgetWarning>> {
        if self.all.is_empty() && held == HeldAmount::Kept {
            return Ok(Vec::new());
        }
        let (requested_model, reserve) = opened(db, row.id)?;
        if held == HeldAmount::Freed {
            let sql = "UPDATE ledger SET reserved_nanousd = 0, reserved_tokens = 0 WHERE id = ?1";
            execute(db, sql, params![row.id])?;
        }
        let scope = scope_of_row(row, &requested_model);
        let covering: Vec<usize> =
            (0..self.all.len()).filter(|&at| self.all[at].covers(&scope)).collect();
        // Counts read from now on include the settled row; only earlier ones must be adjusted.
        let was_counted =
            |count: &Option<Count>| count.is_some_and(|it| it.contains(row.timestamp));
        let was_counted: Vec<bool> = self.counts.iter().map(was_counted).collect();
        let of_run = self.rows_of_run(db, &covering, row.run_id.as_deref())?;
        let mut warnings = Vec::new();
        for at in covering {
            if self.counts[at].is_none() {
                self.count(db, at, row.timestamp)?;
            }
            let budget = &self.all[at];
            let reserved = budget.reserved(&reserve).unwrap_or(0);
            let spent = spent_by(row, budget.limit);
            let change = match (spent, held) {
                // If the result is unknown, the reservation is still held.
                (None, HeldAmount::Kept) => Amounts::default(),
                (spent, _) => Amounts { spent: spent.unwrap_or(0), held: -reserved },
            };
            let session = row.more.attribution.session.as_deref();
            let session = session.filter(|_| budget.per == Per::Session);
            let (amounts, period) = match (&mut self.counts[at], &row.run_id) {
                (Some(count), _) if count.contains(row.timestamp) => {
                    if was_counted[at] {
                        count.amounts = count.amounts.plus(change);
                    }
                    (count.amounts, count.start.0.to_string())
                }
                (None, _) if let Some(session) = session => {
                    // A session that is read now includes the settled row.
                    self.sessions.add(at, Some(session), change);
                    (self.sessions.amounts(db, at, budget, session)?, session.to_owned())
                }
                (None, Some(run_id)) if budget.per == Per::Run => {
                    (amounts_of(budget, &of_run), run_id.clone())
                }
                // The row is outside the counted period, so the ledger has it, or it belongs to
                // no run.
                _ => continue,
            };
            let level = budget.level(amounts.used());
            if level > 0 && level > warned_percent(db, &budget.name, &period)? {
                set_warned_percent(db, &budget.name, &period, level)?;
                let session = session.map(str::to_owned);
                warnings.push(BudgetWarning { session, ..budget.warning(amounts, level) });
            }
        }
        Ok(warnings)
    }

    /// Returns the warning about a session that repeats itself, unless viewers have it.
    pub(super) fn loop_warning(&self, db: &Connection, call: &NewCall) -> Result<Option<Event>> {
        let (Some(sign), Some(session)) = (&call.looping, &call.attribution.session) else {
            return Ok(None);
        };
        let scope = scope(call);
        let is_stop = |it: &&Budget| it.on_loop == OnLoop::Stop && it.covers(&scope);
        let stop = self.all.iter().find(is_stop);
        if warned_percent(db, LOOPS, session)? > 0 {
            return Ok(None);
        }
        set_warned_percent(db, LOOPS, session, 100)?;
        let warning = BudgetWarning {
            budget: stop.map(|budget| budget.name.clone()).unwrap_or_default(),
            per: Per::Session.to_string(),
            percent: 100,
            used: sign.clone(),
            spent: String::new(),
            held: String::new(),
            limit: stop.map(|it| it.limit.show(it.limit.amount())).unwrap_or_default(),
            hard: stop.is_some(),
            kind: WarningKind::Loop,
            session: Some(session.clone()),
        };
        let context =
            EventContext { flow_id: call.flow_id, run_id: None, node_id: None, timestamp: call.at };
        Ok(Some(Event::BudgetWarning { context, warning }))
    }

    /// Returns the rows of the run if one of the budgets is per run.
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

    /// Counts a budget for the period that contains `moment`, unless it is counted or is per run.
    /// Also counts all others that are not counted for this period or a later one.
    fn count(&mut self, db: &Connection, at: usize, moment: Timestamp) -> Result<()> {
        let budget = &self.all[at];
        if !budget.has_period() || self.counts[at].is_some_and(|count| count.contains(moment)) {
            return Ok(());
        }
        let (start, end) = budget.period(moment);
        let rows = used_between(db, start, end)?;
        for (other, (budget, count)) in self.all.iter().zip(&mut self.counts).enumerate() {
            let is_old = count.is_none_or(|count| count.end <= start);
            let is_same = || budget.has_period() && budget.period(moment) == (start, end);
            if other == at || (is_old && is_same()) {
                let amounts = amounts_of(budget, &rows);
                *count = Some(Count { start, end, amounts });
            }
        }
        Ok(())
    }
}

/// Returns the threshold in percent that viewers were last warned of, or 0.
fn warned_percent(db: &Connection, budget: &str, period: &str) -> Result<u8> {
    let sql = "SELECT percent FROM budget_told WHERE budget = ?1 AND whose = ?2";
    let percent = one(db, sql, [budget, period])?;
    Ok(percent.unwrap_or(0))
}

/// Stores that viewers are warned of a threshold, and removes the oldest entries
/// beyond [`WARNED_MAX`].
fn set_warned_percent(db: &Connection, budget: &str, period: &str, percent: u8) -> Result<()> {
    let sql = "INSERT OR REPLACE INTO budget_told (budget, whose, percent) VALUES (?1, ?2, ?3)";
    execute(db, sql, params![budget, period, percent])?;
    let sql = "DELETE FROM budget_told WHERE id <= ?1";
    execute(db, sql, params![db.last_insert_rowid() - WARNED_MAX]).map(drop)
}

impl Store {
    /// Checks whether hard budgets would allow a call now, without counting it. The binding check
    /// is made when the intent of the call is committed.
    ///
    /// # Errors
    /// [`Error::Budget`] or [`Error::BudgetHeld`] for a call that one of them would refuse.
    pub fn check_budgets(&self, call: &NewCall) -> Result<()> {
        self.read(|db| Budgets::load(db)?.open(db, call)).map(drop)
    }
}

/// Returns the requested model of a row and its reserve.
fn opened(db: &Connection, id: i64) -> Result<(String, Reserve)> {
    let sql = "SELECT coalesce(model_asked, model_used), reserved_nanousd,
            coalesce(reserved_tokens, 0) FROM ledger WHERE id = ?1";
    single(db, sql, [id])
}

fn scope_of_row<'a>(row: &'a LedgerEntry, requested_model: &'a str) -> Scope<'a> {
    Scope {
        flow_id: row.flow_id,
        provider: &row.provider,
        model: requested_model,
        key: row.more.key_name.as_deref(),
        tags: row.more.tags.as_deref(),
        attribution: &row.more.attribution,
        billing: row.more.billing,
    }
}

fn scope(call: &NewCall) -> Scope<'_> {
    Scope {
        flow_id: call.flow_id,
        provider: &call.provider,
        model: &call.model,
        key: call.key_name.as_deref(),
        tags: call.tags.as_deref(),
        attribution: &call.attribution,
        billing: call.billing,
    }
}

/// The amount that a call reserves.
pub(super) struct Reservation {
    pub(super) reserve: Reserve,
    /// The output limit of each choice, if the budgets lowered it.
    pub(super) output_limit: Option<u32>,
}

/// Returns the reservation of a call that fits into all of these hard budgets. If one of them has a
/// strict bound, it applies to the reservation, which is one amount for all budgets.
///
/// # Errors
/// [`Error::Budget`] names the first budget that the call does not fit into, or
/// [`Error::BudgetHeld`] if it would fit without the held amounts.
fn reservation(call: &NewCall, hard: &[(&Budget, Amounts)]) -> Result<Reservation> {
    let is_strict = hard.iter().any(|(budget, _)| budget.bound == InputBound::Strict);
    let maximum = call.bounds.map(|bounds| match is_strict {
        true => bounds.strict,
        false => bounds.estimated,
    });
    let output = call.bounds.and_then(|bounds| bounds.output);
    let reserve = maximum.map_or(call.reserve, |maximum| maximum.whole);
    let mut output_limit = None;
    let mut held = None;
    for (budget, amounts) in hard {
        let Some(needed) = budget.reserved(&reserve) else {
            if budget.allow_unpriced {
                continue;
            }
            return Err(budget.unpriced_refusal(&scope(call)));
        };
        let is_unbounded = call.bounds.is_some_and(|bounds| bounds.is_unbounded);
        if is_unbounded && !budget.allow_unpriced {
            return Err(budget.unbounded_refusal(&scope(call)));
        }
        // Returns the limit that fits into an amount; the inner option is none for the whole one.
        let fits_into = |left: i64| {
            // A free call is allowed even if nothing is left.
            if needed == 0 || needed <= left {
                return Some(None);
            }
            let (maximum, output) = maximum.zip(output)?;
            budget.output_that_fits(&maximum, output, left).map(Some)
        };
        let unspent = budget.limit.amount().saturating_sub(amounts.spent);
        match fits_into(unspent.saturating_sub(amounts.held)) {
            Some(None) => {}
            Some(Some(fits)) => {
                output_limit = Some(output_limit.map_or(fits, |other: u32| other.min(fits)));
            }
            // Only the calls of clients wait for others.
            None if maximum.is_some()
                && budget.on_short == OnShort::Lower
                && fits_into(unspent).is_some() =>
            {
                held.get_or_insert_with(|| budget.refusal(*amounts, needed));
            }
            None => return Err(Error::Budget(budget.refusal(*amounts, needed))),
        }
    }
    if let Some(why) = held {
        return Err(Error::BudgetHeld(why));
    }
    let lowered = output_limit.zip(maximum).zip(output);
    let reserve =
        lowered.map_or(reserve, |((limit, maximum), output)| maximum.lowered(output, limit));
    Ok(Reservation { reserve, output_limit })
}

/// Returns the use of a settled row, as [`ROWS`] computes it; none if it is unknown.
fn spent_by(row: &LedgerEntry, limit: Limit) -> Option<i64> {
    let usage = &row.usage;
    match (limit, row.total_cost_usd) {
        (Limit::Usd(_), cost) => cost.map(|cost| cost.nanousd),
        (Limit::Tokens(_), _) if usage.source != UsageSource::None => {
            let tokens = usage.input_tokens.saturating_add(usage.output_tokens);
            Some(i64::try_from(tokens).unwrap_or(i64::MAX))
        }
        (Limit::Tokens(_), Some(Usd::ZERO)) => Some(0),
        _ => None,
    }
}

/// Rows that budgets cannot distinguish, and their total use.
struct Used {
    flow_id: Option<FlowId>,
    provider: String,
    model: String,
    key: Option<String>,
    tags: Option<String>,
    /// Without a session.
    attribution: Attribution,
    billing: Option<Billing>,
    nanousd: i64,
    tokens: i64,
    held_nanousd: i64,
    held_tokens: i64,
}

from_row!(Reserve; cost, tokens);

impl FromRow for Used {
    fn read(row: &Row<'_>, at: &mut usize) -> rusqlite::Result<Self> {
        Ok(Self {
            flow_id: FromRow::read(row, at)?,
            provider: FromRow::read(row, at)?,
            model: FromRow::read(row, at)?,
            key: FromRow::read(row, at)?,
            tags: FromRow::read(row, at)?,
            attribution: Attribution {
                client: FromRow::read(row, at)?,
                end_user: FromRow::read(row, at)?,
                project: FromRow::read(row, at)?,
                session: None,
            },
            billing: FromRow::read(row, at)?,
            nanousd: FromRow::read(row, at)?,
            tokens: FromRow::read(row, at)?,
            held_nanousd: FromRow::read(row, at)?,
            held_tokens: FromRow::read(row, at)?,
        })
    }
}

impl Used {
    fn scope(&self) -> Scope<'_> {
        Scope {
            flow_id: self.flow_id,
            provider: &self.provider,
            model: &self.model,
            key: self.key.as_deref(),
            tags: self.tags.as_deref(),
            attribution: &self.attribution,
            billing: self.billing,
        }
    }
}

fn amounts_of(budget: &Budget, rows: &[Used]) -> Amounts {
    let covered = rows.iter().filter(|row| budget.covers(&row.scope()));
    let amounts = covered.map(|row| match budget.limit {
        Limit::Usd(_) => (row.nanousd, row.held_nanousd),
        Limit::Tokens(_) => (row.tokens, row.held_tokens),
    });
    amounts.fold(Amounts::default(), |sum, (used, held)| Amounts {
        spent: sum.spent.saturating_add(used.saturating_sub(held)),
        held: sum.held.saturating_add(held),
    })
}

fn used_between(db: &Connection, start: Timestamp, end: Timestamp) -> Result<Vec<Used>> {
    let Plan { days, head, tail } = Plan::new(Some(start), Some(end), days::rolled_up_until(db)?);
    let values = params![days.0, days.1, head.0, head.1, tail.0, tail.1];
    all(db, &between_sql(), values)
}

fn between_sql() -> String {
    let of_rows = format!("{ROWS} WHERE timestamp_ms >= ? AND timestamp_ms < ?");
    format!(
        "SELECT {NAMES}, {SUMS}
         FROM (SELECT {NAMES}, {AMOUNTS} FROM budget_days WHERE day >= ? AND day < ?
            UNION ALL {of_rows} UNION ALL {of_rows})
         GROUP BY {NAMES}"
    )
}

fn used_by_run(db: &Connection, run_id: &str) -> Result<Vec<Used>> {
    let sql = format!("SELECT {NAMES}, {SUMS} FROM ({ROWS} WHERE run_id = ?1) GROUP BY {NAMES}");
    all(db, &sql, [run_id])
}

fn used_by_session(db: &Connection, session: &str) -> Result<Vec<Used>> {
    let sql = format!("SELECT {NAMES}, {SUMS} FROM ({ROWS} WHERE session = ?1) GROUP BY {NAMES}");
    all(db, &sql, [session])
}

/// The use of recent sessions by budgets per session. A session may have thousands of rows, so they
/// are not read for each call.
#[derive(Clone, Default)]
struct SessionCounts {
    /// By the position of the budget and the session.
    counts: HashMap<(usize, Arc<str>), SessionCount>,
    /// Numbers the accesses.
    clock: u64,
}

#[derive(Clone, Copy)]
struct SessionCount {
    amounts: Amounts,
    accessed: u64,
}

impl SessionCounts {
    /// Returns the use of a session, which is read from its rows if it is not counted.
    fn amounts(
        &mut self,
        db: &Connection,
        at: usize,
        budget: &Budget,
        session: &str,
    ) -> Result<Amounts> {
        self.clock += 1;
        let accessed = self.clock;
        let key = (at, Arc::from(session));
        if let Some(count) = self.counts.get_mut(&key) {
            count.accessed = accessed;
            return Ok(count.amounts);
        }
        if self.counts.len() >= SESSIONS_MAX
            && let Some(oldest) = self.counts.iter().min_by_key(|(_, count)| count.accessed)
        {
            let oldest = oldest.0.clone();
            self.counts.remove(&oldest);
        }
        let amounts = amounts_of(budget, &used_by_session(db, session)?);
        self.counts.insert(key, SessionCount { amounts, accessed });
        Ok(amounts)
    }

    /// Adds to the use of a session, if it is counted.
    fn add(&mut self, at: usize, session: Option<&str>, change: Amounts) {
        let count = session.and_then(|session| self.counts.get_mut(&(at, Arc::from(session))));
        if let Some(count) = count {
            count.amounts = count.amounts.plus(change);
        }
    }
}

pub(super) fn roll_up(db: &Connection, day: Day, start_ms: i64, end_ms: i64) -> Result<()> {
    let sql = format!(
        "INSERT INTO budget_days (day, {NAMES}, {AMOUNTS}) SELECT ?1, {NAMES}, {SUMS}
         FROM ({ROWS} WHERE timestamp_ms >= ?2 AND timestamp_ms < ?3) GROUP BY {NAMES}"
    );
    execute(db, &sql, params![day, start_ms, end_ms]).map(drop)
}

/// Passes each day that is summed up to `each`, with true if its sums match its rows.
pub(super) fn check(db: &Connection, until: Day, mut each: impl FnMut(Day, bool)) -> Result<()> {
    let day = format!("SELECT timestamp_ms / {MS_PER_DAY} AS day,");
    let rows = ROWS.replacen("SELECT", &day, 1);
    let of_rows = format!(
        "SELECT day, {NAMES}, {SUMS} FROM ({rows} WHERE timestamp_ms < ?1 * {MS_PER_DAY})
         GROUP BY day, {NAMES}"
    );
    let of_days = format!("SELECT day, {NAMES}, {SUMS} FROM budget_days GROUP BY day, {NAMES}");
    let mut statement = db.prepare(&format!(
        "WITH stored AS ({of_days}), computed AS ({of_rows}), wrong AS (
            SELECT day FROM (SELECT * FROM stored EXCEPT SELECT * FROM computed)
            UNION SELECT day FROM (SELECT * FROM computed EXCEPT SELECT * FROM stored))
         SELECT day, day NOT IN (SELECT day FROM wrong)
         FROM (SELECT day FROM stored UNION SELECT day FROM computed) ORDER BY day"
    ))?;
    let mut days = statement.query([until])?;
    while let Some(row) = days.next()? {
        each(row.get(0)?, row.get(1)?);
    }
    Ok(())
}

/// Removes the sums of `day` and all later days.
pub(super) fn delete_from(db: &Connection, day: Day) -> Result<()> {
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
    /// The amounts of the current period; none if the budget is per run or session.
    pub amounts: Option<Amounts>,
    /// Start and end of the current period; none if the budget is per run or session.
    pub period: Option<(Timestamp, Timestamp)>,
}

impl Store {
    pub fn bare_budgets(&self) -> Result<Vec<Budget>> {
        self.read(read)
    }

    /// Returns all budgets with their use, in one read transaction.
    pub fn budgets(&self, now: Timestamp) -> Result<Vec<BudgetState>> {
        self.read(|db| {
            let snapshot = db.unchecked_transaction()?;
            let mut rows_of = HashMap::new();
            let mut states = Vec::new();
            for budget in read(&snapshot)? {
                let period = budget.has_period().then(|| budget.period(now));
                if let Some((start, end)) = period
                    && let Entry::Vacant(vacant) = rows_of.entry((start, end))
                {
                    vacant.insert(used_between(&snapshot, start, end)?);
                }
                let amounts = period.map(|period| amounts_of(&budget, &rows_of[&period]));
                states.push(BudgetState { budget, amounts, period });
            }
            Ok(states)
        })
    }
}

#[cfg(test)]
mod tests;
