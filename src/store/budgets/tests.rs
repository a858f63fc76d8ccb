use proptest::prelude::*;

use super::*;
use crate::budget::{CallBounds, Maximum, OutputLimit};
use crate::error::Error;
use crate::event::{Charge, Event, Usage};
use crate::store::testing::{self, apply, new_call, row};
use crate::store::{Applied, Change, Receipt, Settlement, Writer, schema};

/// In nano-dollars per day.
const LIMIT: i64 = 1_000;

fn budget(more: &str) -> Budget {
    let per = if more.contains(r#""per""#) { "" } else { r#""per": "day", "# };
    let text = format!(r#"{{"name": "b", {per}"limitUsd": "0.000001"{more}}}"#);
    let document: serde_json::Value = serde_json::from_str(&text).unwrap();
    let all = budget::parse_all(serde_json::json!({"budgets": [document]}));
    all.unwrap().remove(0)
}

fn call(at: i64, needed: i64) -> NewCall {
    NewCall {
        flow_id: Some(1),
        reserve: Reserve { cost: Some(Usd::from_nanousd(needed)), tokens: 1 },
        ..new_call(at)
    }
}

fn settlement(id: i64, at: i64, cost: i64) -> Settlement {
    let charge = Charge { cost: Some(Usd::from_nanousd(cost)), ..Charge::UNKNOWN };
    Settlement { charge, ..testing::settlement(id, at) }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn a_limit_is_exact_across_clock_steps(
        steps in prop::collection::vec(
            // (the day, the reservation, the cost, settle at once, roll up the days and reload the
            // budgets)
            (prop::sample::select(vec![100_i64, 101, 70, 465]), 0..500_i64, 0..300_i64, any::<bool>(), any::<bool>()),
            1..40,
        ),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let (store, mut writer) = Store::open(dir.path()).unwrap();
        let all = vec![budget(r#", "hard": true, "timezone": "UTC""#)];
        let set = |all: Vec<Budget>| Change::SetBudgets { all, version: None };
        apply(&mut writer, set(all.clone())).unwrap();
        let mut used: std::collections::HashMap<i64, i64> = Default::default();
        let mut open = Vec::new();
        for (day, needed, cost, is_settled, is_anew) in steps {
            let at = day * MS_PER_DAY + 5;
            let before = *used.entry(day).or_default();
            match apply(&mut writer, Change::OpenCall(call(at, needed))) {
                Ok(opened) => {
                    prop_assert!(needed == 0 || before + needed <= LIMIT);
                    *used.entry(day).or_default() += needed;
                    open.push((row(opened).id, day, needed, cost));
                }
                Err(Error::Budget { .. }) => prop_assert!(before + needed > LIMIT),
                other => panic!("{other:?}"),
            }
            // Often after the clock has jumped.
            while is_settled && let Some((id, day, needed, cost)) = open.pop() {
                apply(&mut writer, Change::SettleCall(settlement(id, at, cost))).unwrap();
                *used.entry(day).or_default() += cost - needed;
            }
            if is_anew {
                while writer.roll_up_day(Timestamp(500 * MS_PER_DAY)).unwrap() {}
                apply(&mut writer, set(Vec::new())).unwrap();
                apply(&mut writer, set(all.clone())).unwrap();
            }
        }
        for (day, used) in used {
            let state = store.budgets(Timestamp(day * MS_PER_DAY)).unwrap();
            prop_assert_eq!(state[0].amounts.map(Amounts::used), Some(used));
        }
    }
}

/// A call with an input of `strict` nano-dollars at most, estimated at `estimated`, and an output of
/// `tokens` at 7 nano-dollars each.
fn bounded_call(strict: i64, estimated: i64, tokens: u32, thinking_tokens: u32) -> NewCall {
    let maximum = |input: i64| {
        let reserve = |cost: i64| Reserve {
            cost: Some(Usd::from_nanousd(cost)),
            tokens: cost.unsigned_abs(),
        };
        Maximum { input: reserve(input), whole: reserve(input + i64::from(tokens) * 7) }
    };
    let (strict, estimated) = (maximum(strict), maximum(estimated));
    let output = Some(OutputLimit { tokens, thinking_tokens });
    let bounds = Some(CallBounds { strict, estimated, output, is_unbounded: false });
    NewCall { reserve: strict.whole, bounds, ..new_call(5) }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// If no input exceeds its strict bound, calls together exceed a limit by at most the sum of the
    /// differences between the strict bounds and the estimates of the calls in flight at a time. It
    /// is 0 for strict budgets, and if no input exceeds its estimate.
    #[test]
    fn spending_exceeds_a_limit_by_at_most_the_margin(
        is_strict: bool,
        is_estimate_right: bool,
        limit in 20_000..400_000_i64,
        steps in prop::collection::vec(
            // (the strict input, the estimate in percent of it, tokens, tokens for thinking, the
            // settled share of the input and output in percent, the number of calls to settle)
            (0..30_000_i64, 10..=100_i64, 1..40_000_u32, 0..3_000_u32, 0..=100_i64, 0..3_usize),
            1..60,
        ),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let (store, mut writer) = Store::open(dir.path()).unwrap();
        let bound = if is_strict { "strict" } else { "estimated" };
        let limit_usd = Usd::from_nanousd(limit).to_string();
        let all = serde_json::json!({"budgets": [
            {"name": "b", "per": "day", "limitUsd": limit_usd, "bound": bound},
            {"name": "soft", "per": "day", "limitUsd": "0", "hard": false, "bound": "strict"},
        ]});
        let all = budget::parse_all(all).unwrap();
        apply(&mut writer, Change::SetBudgets { all, version: None }).unwrap();
        let is_bound = is_strict || is_estimate_right;
        let (mut open, mut spent, mut margin) = (Vec::new(), 0, 0);
        for (strict, percent, tokens, thinking_tokens, share, count) in steps {
            let estimated = strict * percent / 100;
            let call = bounded_call(strict, estimated, tokens, thinking_tokens);
            match apply(&mut writer, Change::OpenCall(call)).map(|applied| applied.receipt) {
                Ok(receipt) => {
                    let (row, granted) = match receipt {
                        Receipt::Call(row) => (row, tokens),
                        Receipt::LoweredCall(row, lowered) => {
                            prop_assert!(lowered >= 1_024 && lowered < tokens);
                            prop_assert!(lowered > thinking_tokens);
                            (row, lowered)
                        }
                        other => panic!("{other:?}"),
                    };
                    let input = if is_estimate_right { estimated } else { strict };
                    let actual = (input + i64::from(granted) * 7) * share / 100;
                    open.push((row.id, actual, strict - estimated));
                }
                Err(Error::Budget(_)) => {}
                // It would fit if no other call was in flight.
                Err(Error::BudgetHeld(_)) => prop_assert!(!open.is_empty()),
                Err(other) => panic!("{other:?}"),
            }
            margin = margin.max(open.iter().map(|(.., difference)| *difference).sum::<i64>());
            let state = store.budgets(Timestamp(5)).unwrap()[0].amounts.unwrap();
            prop_assert!(!is_bound || state.used() <= limit);
            for (id, actual, _) in open.split_off(open.len().saturating_sub(count)) {
                apply(&mut writer, Change::SettleCall(settlement(id, 5, actual))).unwrap();
                spent += actual;
            }
            let state = store.budgets(Timestamp(5)).unwrap()[0].amounts.unwrap();
            prop_assert_eq!(state.spent, spent);
        }
        for (id, actual, _) in open {
            apply(&mut writer, Change::SettleCall(settlement(id, 5, actual))).unwrap();
            spent += actual;
        }
        let margin = if is_bound { 0 } else { margin };
        prop_assert!(spent <= limit + margin, "{spent} > {limit} + {margin}");
    }
}

/// Opens a call of the run `run`.
fn open_of(writer: &mut Writer, run: &str, needed: i64) -> i64 {
    let call = NewCall { run_id: Some(run.into()), ..call(5, needed) };
    row(apply(writer, Change::OpenCall(call)).unwrap()).id
}

/// Settles a call and returns the shares that viewers are notified of.
fn settle(writer: &mut Writer, id: i64, cost: i64) -> Vec<u8> {
    let applied = apply(writer, Change::SettleCall(settlement(id, 5, cost))).unwrap();
    let percent = |event: &Event| match event {
        Event::BudgetWarning { warning, .. } => Some(warning.percent),
        _ => None,
    };
    applied.events.iter().filter_map(percent).collect()
}

fn soft(more: &str) -> Change {
    let all = vec![budget(&format!(r#", "hard": false{more}"#))];
    Change::SetBudgets { all, version: None }
}

#[test]
fn parallel_calls_of_a_run_notify_each_share_once() {
    let dir = tempfile::tempdir().unwrap();
    let (_store, mut writer) = Store::open(dir.path()).unwrap();
    let all = budget::parse_all(serde_json::json!({"budgets": [
        {"name": "b", "per": "run", "limitUsd": "0.000001", "hard": false},
    ]}));
    let all = all.unwrap();
    apply(&mut writer, Change::SetBudgets { all, version: None }).unwrap();
    // 16 calls: reservation, cost and notification for each.
    for (run, needed, cost, expected) in [
        ("a", 77, 77, vec![100]),
        ("b", 55, 55, vec![80]),
        ("c", 64, 64, vec![100]),
        ("d", 1, 65, vec![80, 100]),
        ("e", 60, 10, vec![80]),
        ("f", 10, 10, vec![]),
    ] {
        let ids: Vec<i64> = (0..16).map(|_| open_of(&mut writer, run, needed)).collect();
        let notified: Vec<u8> =
            ids.into_iter().flat_map(|id| settle(&mut writer, id, cost)).collect();
        assert_eq!(notified, expected, "{run}");
    }
}

#[test]
fn a_reached_share_is_notified_once_across_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let (store, mut writer) = Store::open(dir.path()).unwrap();
    let in_flight = open_of(&mut writer, "a", 100);
    apply(&mut writer, soft("")).unwrap();
    assert_eq!(settle(&mut writer, in_flight, 980), [80]);
    drop((store, writer));
    let (store, mut writer) = Store::open(dir.path()).unwrap();
    let id = open_of(&mut writer, "a", 5);
    assert!(settle(&mut writer, id, 5).is_empty());
    let in_flight = open_of(&mut writer, "a", 5);
    drop((store, writer));
    let (_store, mut writer) = Store::open(dir.path()).unwrap();
    assert_eq!(settle(&mut writer, in_flight, 25), [100]);
    let id = open_of(&mut writer, "a", 5);
    assert!(settle(&mut writer, id, 5).is_empty());
    // The edited budget is a new one, so its share is notified again.
    apply(&mut writer, soft(r#", "flowId": 1"#)).unwrap();
    let id = open_of(&mut writer, "a", 5);
    assert_eq!(settle(&mut writer, id, 5), [100]);
}

#[test]
fn a_run_budget_does_not_apply_outside_runs() {
    let dir = tempfile::tempdir().unwrap();
    let (_store, mut writer) = Store::open(dir.path()).unwrap();
    let all = budget::parse_all(serde_json::json!({"budgets": [
        {"name": "b", "per": "run", "limitUsd": "0"},
    ]}));
    let all = all.unwrap();
    apply(&mut writer, Change::SetBudgets { all, version: None }).unwrap();
    let of_none = apply(&mut writer, Change::OpenCall(call(5, 10)));
    assert!(of_none.is_ok(), "{of_none:?}");
    let mut unpriced = call(5, 10);
    unpriced.reserve.cost = None;
    let of_none = apply(&mut writer, Change::OpenCall(unpriced));
    assert!(of_none.is_ok(), "{of_none:?}");
    let of_run = NewCall { run_id: Some("a".into()), ..call(5, 10) };
    let of_run = apply(&mut writer, Change::OpenCall(of_run));
    assert!(matches!(of_run, Err(Error::Budget(_))), "{of_run:?}");
}

#[test]
fn a_period_is_summed_once_for_all_budgets() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _writer) = Store::open(dir.path()).unwrap();
    let sql = format!("EXPLAIN QUERY PLAN {}", between_sql());
    let plan: Vec<String> = store
        .read(|connection| {
            let mut statement = connection.prepare(&sql)?;
            let none = rusqlite::params_from_iter([0_i64; 6]);
            let lines = statement.query_map(none, |line| line.get("detail"))?;
            Ok(lines.collect::<rusqlite::Result<_>>()?)
        })
        .unwrap();
    let count = |what: &str| plan.iter().filter(|line| line.contains(what)).count();
    let by_time = count("ledger USING INDEX ledger_by_time (timestamp_ms>? AND timestamp_ms<?)");
    let by_day = count("budget_days USING INDEX budget_days_by_day (day>? AND day<?)");
    assert_eq!((by_time, by_day), (2, 1), "{plan:#?}");
}

/// Budgets of all kinds, for a month.
fn all_kinds() -> Vec<Budget> {
    let mut all = Vec::new();
    for limit in [r#""limitUsd": "1""#, r#""limitTokens": 1"#] {
        for scope in [
            "",
            r#", "flowId": 1"#,
            r#", "model": "p/*""#,
            r#", "model": "p/m2""#,
            r#", "model": "q/m*", "key": "k""#,
            r#", "key": "k""#,
            r#", "flowId": 2, "key": "k""#,
            r#", "timezone": "Asia/Kathmandu""#,
            r#", "tag": "t2""#,
            r#", "client": "c1", "endUser": "u0""#,
            r#", "project": "j", "includeSubscriptions": true"#,
        ] {
            let name = all.len();
            let text = format!(
                r#"{{"budgets": [{{"name": "{name}", "per": "month", "hard": false, {limit}{scope}}}]}}"#
            );
            let document = serde_json::from_str(&text).unwrap();
            all.extend(budget::parse_all(document).unwrap());
        }
    }
    all
}

#[test]
fn usage_is_equal_from_rows_days_and_migrated_databases() {
    let dir = tempfile::tempdir().unwrap();
    let (store, mut writer) = Store::open(dir.path()).unwrap();
    let budgets = all_kinds();
    let (start, end) = budgets[0].period(Timestamp(100 * MS_PER_DAY));
    // Expected use of each budget, by index.
    let mut expected = vec![0; budgets.len()];
    for seed in 0..400_i64 {
        let at = start.0 - MS_PER_DAY + seed * 7_900_000;
        let opened = NewCall {
            flow_id: [None, Some(1), Some(2)][(seed % 3) as usize],
            provider: ["p", "q"][(seed % 2) as usize].into(),
            model: format!("m{}", seed % 4),
            key_name: (seed % 5 < 2).then(|| "k".into()),
            tags: [None, Some("t1"), Some("t1,t2")][(seed % 11 % 3) as usize].map(str::to_owned),
            attribution: Attribution {
                client: Some(format!("c{}", seed % 2)),
                session: Some(format!("s{seed}")),
                end_user: (seed % 5 > 0).then(|| format!("u{}", seed % 3)),
                project: (seed % 13 > 3).then(|| "j".into()),
            },
            billing: (seed % 4 == 0).then_some(Billing::Subscription),
            ..call(at, 50 + seed)
        };
        let row = row(apply(&mut writer, Change::OpenCall(opened.clone())).unwrap());
        let is_known = seed % 7 > 0;
        let settled = Settlement {
            // Sometimes another model answers.
            model: (seed % 6 == 0).then(|| "m1-2026".into()),
            charge: Charge { cost: is_known.then(|| Usd::from_nanousd(seed)), ..Charge::UNKNOWN },
            usage: Usage {
                input_tokens: seed as u64,
                output_tokens: 3,
                source: [UsageSource::None, UsageSource::Provider][usize::from(is_known)],
                ..Usage::default()
            },
            ..settlement(row.id, at, 0)
        };
        apply(&mut writer, Change::SettleCall(settled)).unwrap();
        let (nanousd, tokens) = match is_known {
            true => (seed, seed + 3),
            false => (50 + seed, 1),
        };
        for (budget, used) in budgets.iter().zip(&mut expected) {
            let (start, end) = budget.period(Timestamp(100 * MS_PER_DAY));
            if start.0 <= at && at < end.0 && budget.covers(&scope(&opened)) {
                *used += match budget.limit {
                    Limit::Usd(_) => nanousd,
                    Limit::Tokens(_) => tokens,
                };
            }
        }
    }
    assert!(expected.iter().all(|used| *used > 0), "{expected:?}");
    let all = budgets;
    apply(&mut writer, Change::SetBudgets { all, version: None }).unwrap();
    let used = |store: &Store| -> Vec<i64> {
        let states = store.budgets(Timestamp(100 * MS_PER_DAY)).unwrap();
        states.iter().filter_map(|state| state.amounts).map(Amounts::used).collect()
    };
    assert_eq!(used(&store), expected);
    // The last days of the month are too recent for the rollup.
    let now = Timestamp(end.0 - 3 * MS_PER_DAY);
    while writer.roll_up_day(now).unwrap() {}
    assert_eq!(used(&store), expected);
    drop((store, writer));
    let connection = Connection::open(dir.path().join("flowledger.db")).unwrap();
    connection
        .execute_batch(&format!(
            "DROP TABLE bodies;
             DROP TABLE body_bytes;
             DROP INDEX runs_by_cost;
             DROP INDEX runs_by_duration;
             DROP INDEX ledger_by_key;
             DROP INDEX ledger_costs;
             DROP INDEX ledger_latencies;
             DROP INDEX ledger_inputs;
             DROP INDEX ledger_outputs;
             DROP TABLE prompt_densities;
             CREATE TABLE origins AS
                 SELECT id, client, session, end_user, project, billing FROM ledger;
             DROP TABLE secrets;
             DROP INDEX ledger_by_session;
             DROP INDEX ledger_by_end_user;
             ALTER TABLE ledger DROP COLUMN client;
             ALTER TABLE ledger DROP COLUMN session;
             ALTER TABLE ledger DROP COLUMN end_user;
             ALTER TABLE ledger DROP COLUMN project;
             ALTER TABLE ledger DROP COLUMN billing;
             ALTER TABLE ledger_days DROP COLUMN subscription_cost;
             DROP TABLE stored_objects;
             DROP TABLE run_restarts;
             DROP TABLE epochs;
             DROP TABLE corrections;
             DROP TABLE budget_days;
             DROP TABLE former_keys;
             ALTER TABLE keys DROP COLUMN revision;
             ALTER TABLE keys DROP COLUMN tokens_per_minute;
             ALTER TABLE keys DROP COLUMN requests_per_minute;
             ALTER TABLE keys DROP COLUMN models;
             ALTER TABLE keys DROP COLUMN flows;
             ALTER TABLE ledger DROP COLUMN cost_source;
             ALTER TABLE ledger DROP COLUMN cost_note;
             ALTER TABLE ledger DROP COLUMN price_cost_nanousd;
             ALTER TABLE ledger DROP COLUMN provider_cost_nanousd;
             ALTER TABLE ledger_days DROP COLUMN unknown_cost;
             ALTER TABLE ledger_days DROP COLUMN compared;
             ALTER TABLE ledger_days DROP COLUMN compared_provider;
             ALTER TABLE ledger_days DROP COLUMN compared_price;
             PRAGMA user_version = {}",
            schema::version() - 14
        ))
        .unwrap();
    drop(connection);
    // An earlier version has no origins, so they are put back after the migration.
    drop(Store::open(dir.path()).unwrap());
    let connection = Connection::open(dir.path().join("flowledger.db")).unwrap();
    connection
        .execute_batch(
            "UPDATE ledger SET (client, session, end_user, project, billing) =
                 (SELECT client, session, end_user, project, billing FROM origins
                  WHERE origins.id = ledger.id);
             DROP TABLE origins",
        )
        .unwrap();
    drop(connection);
    let (store, mut writer) = Store::open(dir.path()).unwrap();
    assert_eq!(used(&store), expected);
    // The clock steps back, which invalidates the later rollups.
    apply(&mut writer, Change::OpenCall(call(start.0 + MS_PER_DAY, 5))).unwrap();
    expected[0] += 5;
    assert_eq!(used(&store)[0], expected[0]);
}

/// Opens a call of the session `session`.
fn open_in(writer: &mut Writer, session: &str, needed: i64) -> Result<i64> {
    let attribution = Attribution { session: Some(session.into()), ..Attribution::default() };
    let call = NewCall { attribution, ..call(5, needed) };
    apply(writer, Change::OpenCall(call)).map(|applied| row(applied).id)
}

fn per_session(more: &str) -> Change {
    let all = vec![budget(&format!(r#", "per": "session"{more}"#))];
    Change::SetBudgets { all, version: None }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]
    #[test]
    fn a_session_budget_counts_each_session_apart(
        steps in prop::collection::vec(
            // (the session, the reservation, the cost, settle at once, open the database again)
            (0..200_u8, 0..500_i64, 0..500_i64, any::<bool>(), prop::bool::weighted(0.05)),
            1..300,
        ),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let (mut store, mut writer) = Store::open(dir.path()).unwrap();
        apply(&mut writer, per_session("")).unwrap();
        let mut used: std::collections::HashMap<u8, i64> = Default::default();
        let mut open = Vec::new();
        for (session, needed, cost, is_settled, is_anew) in steps {
            // Half of all calls are of a few sessions; the rest is of more than are counted.
            let session = if session % 2 == 0 { session % 8 } else { session };
            let before = *used.entry(session).or_default();
            match open_in(&mut writer, &session.to_string(), needed) {
                Ok(id) => {
                    prop_assert!(needed == 0 || before + needed <= LIMIT);
                    *used.entry(session).or_default() += needed;
                    open.push((id, session, needed, cost));
                }
                Err(Error::Budget { .. }) => prop_assert!(before + needed > LIMIT),
                other => panic!("{other:?}"),
            }
            while is_settled && let Some((id, session, needed, cost)) = open.pop() {
                apply(&mut writer, Change::SettleCall(settlement(id, 5, cost))).unwrap();
                *used.entry(session).or_default() += cost - needed;
            }
            if is_anew {
                drop((store, writer));
                (store, writer) = Store::open(dir.path()).unwrap();
            }
        }
        prop_assert!(writer_sessions(&writer) <= SESSIONS_MAX);
        drop(store);
    }
}

fn writer_sessions(writer: &Writer) -> usize {
    writer.budgets().sessions.counts.len()
}

#[test]
fn a_session_budget_warns_for_each_session() {
    let dir = tempfile::tempdir().unwrap();
    let (store, mut writer) = Store::open(dir.path()).unwrap();
    apply(&mut writer, per_session(r#", "hard": false"#)).unwrap();
    for (session, cost, expected) in
        [("a", 799, vec![]), ("a", 5, vec![80]), ("b", 800, vec![80]), ("a", 500, vec![100])]
    {
        let id = open_in(&mut writer, session, 1).unwrap();
        assert_eq!(settle(&mut writer, id, cost), expected, "{session}");
    }
    // A call without a session is not covered.
    let id = row(apply(&mut writer, Change::OpenCall(call(5, 1))).unwrap()).id;
    assert!(settle(&mut writer, id, 5_000).is_empty());
    assert_eq!(store.budgets(Timestamp(5)).unwrap()[0].amounts, None);
}

#[test]
fn a_looping_session_is_warned_of_once_and_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let (_store, mut writer) = Store::open(dir.path()).unwrap();
    let looping = |session: &str| {
        let attribution = Attribution { session: Some(session.into()), ..Attribution::default() };
        let looping = Some("it sent the same request 6 times".to_owned());
        NewCall { attribution, looping, ..call(5, 1) }
    };
    let warnings = |applied: Applied| {
        let warning = |event| match event {
            Event::BudgetWarning { warning, .. } => Some(warning),
            _ => None,
        };
        applied.events.into_iter().filter_map(warning).collect::<Vec<_>>()
    };
    // Without a budget it is only a warning.
    let found = warnings(apply(&mut writer, Change::OpenCall(looping("a"))).unwrap());
    assert_eq!((found.len(), found[0].kind, found[0].hard), (1, WarningKind::Loop, false));
    assert_eq!(found[0].session.as_deref(), Some("a"));
    assert!(warnings(apply(&mut writer, Change::OpenCall(looping("a"))).unwrap()).is_empty());
    apply(&mut writer, per_session(r#", "onLoop": "stop""#)).unwrap();
    let refused = apply(&mut writer, Change::OpenCall(looping("b"))).unwrap_err();
    let message = "budget `b` stopped the session, because it repeats itself: it sent the same";
    assert!(refused.to_string().contains(message), "{refused}");
    let refusal = |session| {
        let why = "why".to_owned();
        Change::RefuseCall(looping(session), crate::event::RefusedBy::Budget, why)
    };
    let found = warnings(apply(&mut writer, refusal("b")).unwrap());
    assert_eq!((found[0].budget.as_str(), found[0].hard), ("b", true));
    assert!(warnings(apply(&mut writer, refusal("b")).unwrap()).is_empty());
}
