//! Checks a database for consistency: rows, costs, sums, runs, events. `flowledger verify` prints
//! the results.

mod calls;
mod corrections;
mod events;
mod runs;

use std::fmt::Display;

use crate::error::Result;
use crate::money::Usd;
use crate::store::{Audit, AuditSums};
use crate::time::Timestamp;

/// Limits how many faults of one check are kept; further ones are only counted.
const FAULTS_MAX: u64 = 50;
const MS_PER_DAY: i64 = 24 * 60 * 60 * 1000;

#[derive(Default)]
pub struct Check {
    pub subject: &'static str,
    pub checked: u64,
    pub fault_count: u64,
    /// The first faults; `fault_count` counts all of them.
    pub faults: Vec<String>,
    /// Counts that are not faults, each with its description.
    pub notes: Vec<(u64, &'static str)>,
}

impl Check {
    fn of(subject: &'static str) -> Self {
        Self { subject, ..Self::default() }
    }

    fn add(&mut self, fault: impl Display) {
        self.fault_count += 1;
        if self.fault_count <= FAULTS_MAX {
            self.faults.push(fault.to_string());
        }
    }

    /// Records a gap in numbers that must be consecutive.
    fn add_gap(&mut self, name: &str, before: i64, after: i64) {
        self.add(match after - before {
            2 => format!("{name} {} is missing", before + 1),
            _ => format!("{name}s {} to {} are missing", before + 1, after - 1),
        });
    }
}

/// Reads the whole database, and passes each check's result to `report`.
///
/// `may_be_free` returns whether calls of that provider may cost nothing without a price. `on_row`
/// is called for each ledger row, run and event.
///
/// # Errors
/// Read errors of the database.
pub fn verify(
    audit: &Audit,
    may_be_free: &dyn Fn(&str) -> bool,
    on_row: &dyn Fn(),
    report: &mut dyn FnMut(Check),
) -> Result<()> {
    report(file(audit)?);
    calls::check(audit, may_be_free, on_row, report)?;
    report(corrections::check(audit)?);
    report(blocks(audit)?);
    report(days(audit)?);
    report(budget_days(audit)?);
    runs::check(audit, on_row, report)?;
    events::check(audit, on_row, report)
}

fn file(audit: &Audit) -> Result<Check> {
    let mut check = Check::of("database files");
    check.checked = 1;
    audit.quick_check()?.iter().for_each(|fault| check.add(fault));
    Ok(check)
}

/// Checks the index of ledger blocks that filters use.
fn blocks(audit: &Audit) -> Result<Check> {
    let mut check = Check::of("ledger block index");
    audit.blocks(|first, last, is_correct| {
        check.checked += 1;
        if !is_correct {
            check.add(format_args!(
                "the index entry of ledger rows {first} to {last} is wrong: filters may miss them"
            ));
        }
    })?;
    Ok(check)
}

fn days(audit: &Audit) -> Result<Check> {
    let mut check = Check::of("daily totals");
    audit.days(|sums| {
        check.checked += 1;
        if sums.stored != sums.of_rows {
            let list = |list: Option<String>| list.unwrap_or_else(|| "none".to_owned());
            check.add(format_args!(
                "totals of {}, {}: stored {}, computed from the ledger rows {}",
                date(sums.day),
                sums.names,
                list(sums.stored),
                list(sums.of_rows)
            ));
        }
    })?;
    Ok(check)
}

fn budget_days(audit: &Audit) -> Result<Check> {
    let mut check = Check::of("daily totals of budgets");
    audit.budget_days(|day, is_correct| {
        check.checked += 1;
        if !is_correct {
            check.add(format_args!("budget totals of {} differ from its ledger rows", date(day)));
        }
    })?;
    Ok(check)
}

fn date(day: i64) -> String {
    let mut date = Timestamp(day.saturating_mul(MS_PER_DAY)).to_string();
    date.truncate(date.find('T').unwrap_or(date.len()));
    date
}

fn money(cost: Option<i64>) -> String {
    cost.map_or_else(|| "unknown".to_owned(), |cost| format!("{} USD", Usd::from_nanousd(cost)))
}

fn sums(sums: &AuditSums) -> String {
    format!("{} tokens in, {} out, {}", sums.input_tokens, sums.output_tokens, money(sums.cost))
}
