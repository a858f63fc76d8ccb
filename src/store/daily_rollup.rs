//! The ledger summed up by days, so that sums over months need not read every row.
//!
//! Days (of UTC) are summed up in order, once all of a day's rows are settled; settled rows never
//! change. What is asked beyond the days that are summed up, or for a part of a day, is read from the
//! rows themselves, so that sums are the same with and without. What budgets count of a day is summed
//! up with it, by what they tell rows apart by.

use rusqlite::{Connection, params};

use super::budgets;
use super::days::{Day, MS_PER_DAY, day_of, summed_until};
use crate::error::Result;
use crate::event::Timestamp;

/// A day is summed up this long after its end at the earliest: most calls of it are settled then.
const PAUSE_MS: i64 = 60 * 60 * 1000;

/// What a row, or a day's rows that have the same names, counts: the columns of `ledger_days`.
const ROW_COUNTS: &str = "1 AS calls, cost_nanousd IS NULL AND status != 'PENDING' AS unpriced,
     usage_source = 'estimated' AS estimated, input_tokens, cached_input_tokens,
     cache_write_tokens, output_tokens, reasoning_tokens, coalesce(cost_nanousd, 0) AS cost,
     cached, coalesce(saved_nanousd, 0) AS saved";
const NAMES: &str = "flow_id, provider, model_used, agent_role, status";

/// The next day that can be summed up, if there is one: all days before it are, or have no rows.
pub(super) fn next(connection: &Connection, now: Timestamp) -> Result<Option<Day>> {
    let until = summed_until(connection)?;
    let oldest: Option<i64> = connection
        .prepare_cached("SELECT min(timestamp_ms) FROM ledger WHERE timestamp_ms >= ?1")?
        .query_row([until.saturating_mul(MS_PER_DAY)], |row| row.get(0))?;
    let Some(oldest) = oldest else {
        return Ok(None);
    };
    let day = day_of(Timestamp(oldest));
    let end = (day + 1) * MS_PER_DAY;
    if now.0 < end + PAUSE_MS {
        return Ok(None);
    }
    let is_pending: bool = connection
        .prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM ledger WHERE status = 'PENDING' AND +timestamp_ms < ?1)",
        )?
        .query_row([end], |row| row.get(0))?;
    Ok((!is_pending).then_some(day))
}

/// Sums up a day, and says that all up to it are.
pub(super) fn sum_up(connection: &Connection, day: Day) -> Result<()> {
    let sql = format!(
        "INSERT INTO ledger_days
         SELECT ?1, {NAMES}, sum(calls), sum(unpriced), sum(estimated), sum(input_tokens),
            sum(cached_input_tokens), sum(cache_write_tokens), sum(output_tokens),
            sum(reasoning_tokens), sum(cost), sum(cached), sum(saved)
         FROM (SELECT {NAMES}, {ROW_COUNTS} FROM ledger WHERE timestamp_ms >= ?2 AND timestamp_ms < ?3)
         GROUP BY {NAMES}"
    );
    let (start, end) = (day * MS_PER_DAY, (day + 1) * MS_PER_DAY);
    connection
        .prepare_cached(&sql)?
        .execute(params![day, start, end])?;
    budgets::sum_up(connection, day, start, end)?;
    set_until(connection, day + 1)
}

/// Forgets the sums of `day` and all after it, where there are some: a clock that was put back makes
/// rows in the past. Of the days before it only those that are summed up stay so.
pub(super) fn forget_from(connection: &Connection, day: Day) -> Result<()> {
    if day >= summed_until(connection)? {
        return Ok(());
    }
    connection
        .prepare_cached("DELETE FROM ledger_days WHERE day >= ?1")?
        .execute([day])?;
    budgets::forget_from(connection, day)?;
    set_until(connection, day)
}

fn set_until(connection: &Connection, day: Day) -> Result<()> {
    connection
        .prepare_cached("INSERT OR REPLACE INTO ledger_summed (one, until_day) VALUES (1, ?1)")?
        .execute([day])?;
    Ok(())
}

/// All that a plan means, as a table of names and counts with a `timestamp_ms` within its day; keys and
/// tags are known of rows alone. Its
/// parameters are the two of each part, each followed by those of its condition: `of_days`, which is
/// about [`NAMES`], and `of_rows`, twice. `moment` is `timestamp_ms`, or `+timestamp_ms` where the
/// index of times is not to be used.
pub(super) fn table(of_days: &str, of_rows: &str, moment: &str) -> String {
    format!(
        "(SELECT day * {MS_PER_DAY} AS timestamp_ms, {NAMES}, NULL AS key_name, NULL AS tags,
            calls, unpriced, estimated,
            input_tokens, cached_input_tokens, cache_write_tokens, output_tokens, reasoning_tokens,
            cost, cached, saved
          FROM ledger_days WHERE day >= ? AND day < ? AND {of_days}
          UNION ALL
          SELECT timestamp_ms, {NAMES}, key_name, tags, {ROW_COUNTS}
          FROM ledger WHERE {moment} >= ? AND {moment} < ? AND {of_rows}
          UNION ALL
          SELECT timestamp_ms, {NAMES}, key_name, tags, {ROW_COUNTS}
          FROM ledger WHERE {moment} >= ? AND {moment} < ? AND {of_rows})"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::budget::Reserve;
    use crate::event::{CallStatus, Usage, UsageSource, Usd};
    use crate::store::{Change, GROUPS, LedgerFilter, NewCall, Receipt, Settlement, Store, Writer};

    /// Writes a settled row of that moment; its numbers follow from `seed`.
    fn row(writer: &mut Writer, at: i64, seed: u64) {
        let call = NewCall {
            at: Timestamp(at),
            flow_id: (!seed.is_multiple_of(3)).then_some((seed % 3) as i64),
            run_id: Some(format!("run {}", seed % 5)),
            node_id: None,
            attempt: 1,
            operation_id: "o".into(),
            provider: format!("p{}", seed % 2),
            model: format!("m{}", seed % 4),
            role: (seed % 7 > 2).then(|| format!("r{}", seed % 2)),
            prompt_hash: String::new(),
            key_name: None,
            tags: None,
            reserve: Reserve::default(),
        };
        let settle = |id| Settlement {
            id,
            model: None,
            usage: Usage {
                input_tokens: seed % 1_000,
                output_tokens: seed % 77,
                source: [UsageSource::Provider, UsageSource::Estimated][(seed % 2) as usize],
                ..Usage::default()
            },
            cost: (!seed.is_multiple_of(6)).then(|| Usd::from_nanousd((seed % 100_000) as i64)),
            latency_ms: Some(1),
            first_token_ms: None,
            price: None,
            status: [CallStatus::Success, CallStatus::Failed][usize::from(seed.is_multiple_of(5))],
            error: None,
            at: Timestamp(at),
        };
        let opened = writer.transaction(|batch| batch.apply(&Change::OpenCall(call)));
        let Receipt::Call(opened) = opened.unwrap().receipt else {
            panic!("no row");
        };
        let settled = Change::SettleCall(settle(opened.id));
        writer.transaction(|batch| batch.apply(&settled)).unwrap();
    }

    /// All sums by everything, with filters.
    fn sums(store: &Store) -> Vec<String> {
        let at = |moment| Some(Timestamp(moment));
        let filters = [
            LedgerFilter::default(),
            LedgerFilter {
                flow_id: Some(1),
                from: at(MS_PER_DAY + 5),
                to: at(4 * MS_PER_DAY - 5),
                ..LedgerFilter::default()
            },
            LedgerFilter {
                run_id: Some("run 2".into()),
                ..LedgerFilter::default()
            },
            LedgerFilter {
                model: Some("m1".into()),
                provider: Some("p1".into()),
                status: Some(CallStatus::Success),
                to: at(3 * MS_PER_DAY),
                ..LedgerFilter::default()
            },
        ];
        let of = |(filter, group): (&LedgerFilter, &str)| {
            format!("{group}: {:?}", store.summary(filter, group).unwrap())
        };
        let groups = || GROUPS.iter().map(|group| group.name);
        let all = filters
            .iter()
            .flat_map(|filter| groups().map(move |group| (filter, group)));
        all.map(of).collect()
    }

    #[test]
    fn sums_are_the_same_whether_days_are_summed_up_or_not_and_after_the_clock_was_put_back() {
        let dir = tempfile::tempdir().unwrap();
        let (store, mut writer) = Store::open(dir.path()).unwrap();
        let mut seed = 1_u64;
        let mut random = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            seed >> 33
        };
        for _ in 0..200 {
            let at = (random() % (5 * MS_PER_DAY as u64)) as i64;
            row(&mut writer, at, random());
        }
        let before = sums(&store);
        // The last day is not over for long enough.
        let now = Timestamp(5 * MS_PER_DAY);
        let mut days = 0;
        while writer.sum_up_a_day(now).unwrap() {
            days += 1;
        }
        assert_eq!(days, 4);
        assert_eq!(sums(&store), before);
        row(&mut writer, 2 * MS_PER_DAY + 7, 99);
        let with_late = sums(&store);
        assert_ne!(with_late, before);
        while writer.sum_up_a_day(now).unwrap() {}
        assert_eq!(sums(&store), with_late);
    }

    #[test]
    fn sums_stay_right_while_a_clock_that_was_put_back_goes_on_or_was_a_year_ahead() {
        for (ahead, back) in [(0, -30), (365, 0)] {
            let dir = tempfile::tempdir().unwrap();
            let (store, mut writer) = Store::open(dir.path()).unwrap();
            let mut all = 0;
            let mut write = |writer: &mut Writer, days: std::ops::Range<i64>| {
                for day in days {
                    row(writer, day * MS_PER_DAY + 5, 7);
                    row(writer, day * MS_PER_DAY + 6, 8);
                    all += 2;
                    let (_, total) = store.summary(&LedgerFilter::default(), "day").unwrap();
                    assert_eq!(total.calls, all, "day {day}");
                }
            };
            write(&mut writer, 100..105);
            write(&mut writer, 105 + ahead..106 + ahead);
            while writer
                .sum_up_a_day(Timestamp((200 + ahead) * MS_PER_DAY))
                .unwrap()
            {}
            // None of these is summed up before the next.
            write(&mut writer, 105 + back..112 + back);
            while writer.sum_up_a_day(Timestamp(200 * MS_PER_DAY)).unwrap() {}
            write(&mut writer, 104..107);
        }
    }

    #[test]
    fn a_day_with_a_call_under_way_is_not_summed_up() {
        let dir = tempfile::tempdir().unwrap();
        let (_store, mut writer) = Store::open(dir.path()).unwrap();
        row(&mut writer, 5, 1);
        let call = NewCall {
            at: Timestamp(MS_PER_DAY + 5),
            flow_id: None,
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
            reserve: Reserve::default(),
        };
        writer
            .transaction(|batch| batch.apply(&Change::OpenCall(call)))
            .unwrap();
        let now = Timestamp(9 * MS_PER_DAY);
        assert!(writer.sum_up_a_day(now).unwrap());
        assert!(!writer.sum_up_a_day(now).unwrap());
    }
}
