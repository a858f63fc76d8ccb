//! `GET /api/overview`: everything that the overview shows, in one response.

use std::collections::{BTreeMap, HashMap};

use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde::Serialize;
use serde_json::Value;

use super::Context;
use super::budget;
use super::reply::{self, Answer};
use super::request::Query;
use super::runs::{RunView, summary};
use crate::error::{Error, Result};
use crate::event::suggestion::{Kind, Saving, Status, Suggestion};
use crate::event::{CallStatus, LedgerEntry};
use crate::listener::Presence;
use crate::money::Usd;
use crate::store::{LedgerFilter, QuarterSums, Run, Store, Summary, Sums};
use crate::time::{Timestamp, unknown_zone};

/// Limits the days in a response. The sums cover the whole period.
const DAYS_MAX: i64 = 400;
const GROUP_MAX: usize = 5;
const FAILURES: usize = 5;
const RUNNING_MAX: usize = 20;
const SAVINGS: usize = 3;
/// Limits the open suggestions that are counted.
const OPEN_MAX: usize = 1_000;

/// What is read for a period, in one turn of the heavy reads.
struct Period {
    from: Timestamp,
    to: Timestamp,
    total: Sums,
    previous: Option<Sums>,
    latencies: Vec<u64>,
    quarters: Vec<QuarterSums>,
    models: Vec<Summary>,
    flows: Vec<Summary>,
    keys: Vec<Summary>,
    sessions: Vec<Summary>,
    failures: Vec<LedgerEntry>,
}

#[derive(Serialize)]
struct Overview<'a> {
    from: Timestamp,
    to: Timestamp,
    tz: &'a str,
    total: Total<'a>,
    /// The sums of the period of the same length before; none for all time.
    previous: Option<Sums>,
    days: Vec<DayView>,
    models: &'a [Summary],
    flows: Vec<FlowSummary<'a>>,
    keys: &'a [Summary],
    sessions: &'a [Summary],
    failures: Vec<Failure<'a>>,
    running: Vec<RunView<'a>>,
    running_calls: u64,
    budgets: Vec<Value>,
    savings: Savings<'a>,
}

#[derive(Serialize)]
struct Total<'a> {
    #[serde(flatten)]
    sums: &'a Sums,
    latency_p50_ms: Option<u64>,
    latency_p95_ms: Option<u64>,
}

#[derive(Serialize)]
struct DayView {
    day: String,
    models: Vec<ModelOfDay>,
}

#[derive(Serialize)]
struct ModelOfDay {
    model: String,
    calls: u64,
    failed: u64,
    cost: Usd,
}

#[derive(Serialize)]
struct FlowSummary<'a> {
    #[serde(flatten)]
    summary: &'a Summary,
    /// None for a deleted flow, and for the calls without one.
    name: Option<&'a str>,
}

#[derive(Serialize)]
struct Failure<'a> {
    #[serde(flatten)]
    row: &'a LedgerEntry,
    flow_name: Option<&'a str>,
}

/// The open suggestions.
#[derive(Serialize)]
struct Savings<'a> {
    count: usize,
    /// The sum over all, where it is known.
    expected_usd: Usd,
    best: Vec<SavingView<'a>>,
}

/// A suggestion without its evidence.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SavingView<'a> {
    id: i64,
    kind: Kind,
    title: &'a str,
    flow_name: &'a str,
    saving_per_30_days: Option<Saving>,
    saving_ms: Option<u64>,
}

fn savings(open: &[Suggestion]) -> Savings<'_> {
    let expected =
        |it: &Suggestion| it.proposal.saving_per_30_days.map(|saving| saving.expected_usd);
    let mut best: Vec<&Suggestion> = open.iter().collect();
    best.sort_by_key(|suggestion| std::cmp::Reverse(expected(suggestion)));
    let mut expected_usd = Usd::ZERO;
    open.iter().filter_map(expected).for_each(|usd| expected_usd += usd);
    let views = best.into_iter().take(SAVINGS).map(|suggestion| SavingView {
        id: suggestion.id,
        kind: suggestion.proposal.kind,
        title: &suggestion.proposal.title,
        flow_name: &suggestion.flow_name,
        saving_per_30_days: suggestion.proposal.saving_per_30_days,
        saving_ms: suggestion.proposal.saving_ms,
    });
    Savings { count: open.len(), expected_usd, best: views.collect() }
}

pub fn get(context: &Context, mut query: Query, client: &Presence) -> Answer {
    let from: Option<Timestamp> = query.take("from");
    let to: Option<Timestamp> = query.take("to");
    let tz: String = query.take("tz").unwrap_or_else(|| "UTC".into());
    query.finish()?;
    let zone = TimeZone::get(&tz)
        .map_err(|_| Error::invalid("cannot read the query", "tz", unknown_zone(&tz)))?;
    if from.zip(to).is_some_and(|(from, to)| from >= to) {
        return Err(Error::invalid("cannot read the query", "to", "must be after `from`").into());
    }
    let read = |store: &Store| read(store, from, to);
    let mut period = context.heavy_reads.run(&context.store, client, read)?;
    let flows = context.store.flow_entries()?;
    let names: HashMap<i64, &str> =
        flows.iter().map(|flow| (flow.id, flow.name.as_str())).collect();
    let open = context.store.suggestions(Some(Status::Open), None, OPEN_MAX)?;
    let running: Vec<Run> = context.store.unfinished_runs(RUNNING_MAX)?;
    let view = Overview {
        from: period.from,
        to: period.to,
        tz: &tz,
        total: Total {
            latency_p50_ms: percentile(&mut period.latencies, 50),
            latency_p95_ms: percentile(&mut period.latencies, 95),
            sums: &period.total,
        },
        previous: period.previous,
        days: days(&period.quarters, (period.from, period.to), &zone)?,
        models: &period.models,
        flows: period
            .flows
            .iter()
            .map(|summary| {
                let id = summary.key.as_ref().and_then(|key| key.parse().ok());
                FlowSummary { summary, name: id.and_then(|id| names.get(&id).copied()) }
            })
            .collect(),
        keys: &period.keys,
        sessions: &period.sessions,
        failures: period
            .failures
            .iter()
            .map(|row| {
                let flow_name = row.flow_id.and_then(|id| names.get(&id).copied());
                Failure { row, flow_name }
            })
            .collect(),
        running: running.iter().map(summary).collect(),
        running_calls: context.store.pending_call_count()?,
        budgets: budget::views(context)?,
        savings: savings(&open),
    };
    Ok(reply::json(200, &view))
}

fn read(store: &Store, from: Option<Timestamp>, to: Option<Timestamp>) -> Result<Period> {
    let now = Timestamp::now();
    let to = to.unwrap_or(Timestamp(now.0.saturating_add(1)));
    let first = match from {
        Some(from) => from,
        None => store.oldest_call()?.unwrap_or(now).min(to),
    };
    let filter = LedgerFilter { from: Some(first), to: Some(to), ..LedgerFilter::default() };
    let previous = match from {
        None => None,
        Some(from) => {
            let start = Timestamp(from.0.saturating_sub(to.0.saturating_sub(from.0)));
            let filter = LedgerFilter { from: Some(start), to: Some(from), ..filter.clone() };
            Some(store.summary(&filter, "model")?.1)
        }
    };
    let top = |group: &str| -> Result<Vec<Summary>> {
        let mut groups = store.summary(&filter, group)?.0;
        groups.retain(|group| group.key.is_some());
        groups.truncate(GROUP_MAX);
        Ok(groups)
    };
    let (models, total) = store.summary(&filter, "model")?;
    let statuses = vec![CallStatus::Failed, CallStatus::Timeout, CallStatus::Unknown];
    let failed = LedgerFilter { statuses, ..filter.clone() };
    let failures = store.ledger(&failed, None, FAILURES)?;
    let shown_from = Timestamp(first.0.max(to.0.saturating_sub(DAYS_MAX * DAY_MS)));
    Ok(Period {
        from: first,
        to,
        total,
        previous,
        latencies: store.latencies(first, to)?,
        quarters: store.costs_by_time(shown_from, to)?,
        models,
        flows: top("flow")?,
        keys: top("key")?,
        sessions: top("session")?,
        failures,
    })
}

const DAY_MS: i64 = 24 * 60 * 60 * 1000;

/// Returns the smallest value that at least this share of all values does not exceed.
fn percentile(values: &mut [u64], percent: usize) -> Option<u64> {
    let rank = (values.len() * percent).div_ceil(100).checked_sub(1)?;
    Some(*values.select_nth_unstable(rank).1)
}

/// Returns each day of the period in the zone, at most the last [`DAYS_MAX`].
fn days(
    quarters: &[QuarterSums],
    (from, to): (Timestamp, Timestamp),
    zone: &TimeZone,
) -> Result<Vec<DayView>> {
    let mut by_day: BTreeMap<Date, HashMap<&str, ModelOfDay>> = BTreeMap::new();
    let last = date(Timestamp(to.0.saturating_sub(1)), zone)?;
    let mut day = date(from, zone)?.max(last.saturating_sub(jiff::Span::new().days(DAYS_MAX - 1)));
    while day <= last {
        by_day.entry(day).or_default();
        match day.tomorrow() {
            Ok(next) => day = next,
            Err(_) => break,
        }
    }
    for quarter in quarters {
        // A quarter of an hour can begin before the period.
        let at = quarter.at.max(from);
        let Some(of_day) = by_day.get_mut(&date(at, zone)?) else {
            continue;
        };
        let sums = of_day.entry(&quarter.model).or_insert_with(|| ModelOfDay {
            model: quarter.model.clone(),
            calls: 0,
            failed: 0,
            cost: Usd::ZERO,
        });
        sums.calls += quarter.calls;
        sums.failed += quarter.failed;
        sums.cost += quarter.cost;
    }
    Ok(by_day
        .into_iter()
        .map(|(day, models)| {
            let mut models: Vec<ModelOfDay> = models.into_values().collect();
            models.sort_by(|a, b| b.cost.cmp(&a.cost).then_with(|| a.model.cmp(&b.model)));
            DayView { day: day.to_string(), models }
        })
        .collect())
}

fn date(at: Timestamp, zone: &TimeZone) -> Result<Date> {
    let instant = jiff::Timestamp::from_millisecond(at.0)
        .map_err(|error| Error::invalid("cannot read the query", "from", error.to_string()))?;
    Ok(zone.to_datetime(instant).date())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quarter(at: &str, model: &str, cost: i64) -> QuarterSums {
        let at = at.parse().unwrap();
        QuarterSums { at, model: model.into(), calls: 1, failed: 0, cost: Usd::from_nanousd(cost) }
    }

    #[test]
    fn days_follow_the_zone_and_its_clock_changes() {
        let zone = TimeZone::get("Europe/Berlin").unwrap();
        let period = |from: &str, to: &str| (from.parse().unwrap(), to.parse().unwrap());
        let (from, to) = period("2026-03-27T23:00:00Z", "2026-03-30T22:00:00Z");
        let quarters = [
            quarter("2026-03-28T22:45:00Z", "a", 1),
            quarter("2026-03-28T23:00:00Z", "a", 2),
            // The clock is put forward, so the 29th has 23 hours.
            quarter("2026-03-29T21:45:00Z", "b", 4),
            quarter("2026-03-29T22:00:00Z", "a", 8),
        ];
        let days = days(&quarters, (from, to), &zone).unwrap();
        let found: Vec<_> = days
            .iter()
            .map(|day| {
                let models = day.models.iter().map(|of| (of.model.as_str(), of.cost.nanousd));
                (day.day.as_str(), models.collect::<Vec<_>>())
            })
            .collect();
        assert_eq!(
            found,
            [
                ("2026-03-28", vec![("a", 1)]),
                ("2026-03-29", vec![("b", 4), ("a", 2)]),
                ("2026-03-30", vec![("a", 8)]),
            ]
        );
    }

    #[test]
    fn long_periods_show_their_last_days() {
        let (from, to) = ("2020-01-01".parse().unwrap(), "2026-01-01".parse().unwrap());
        let days = days(&[], (from, to), &TimeZone::UTC).unwrap();
        assert_eq!(days.len(), usize::try_from(DAYS_MAX).unwrap());
        assert_eq!(days.last().unwrap().day, "2025-12-31");
    }

    #[test]
    fn percentiles_are_values_of_the_list() {
        assert_eq!(percentile(&mut [], 50), None);
        assert_eq!(percentile(&mut [7], 95), Some(7));
        let mut values: Vec<u64> = (1..=100).rev().collect();
        assert_eq!(
            (percentile(&mut values, 50), percentile(&mut values, 95)),
            (Some(50), Some(95))
        );
    }
}
