use super::*;

use crate::event::{CallStatus, Charge, Usage, UsageSource};
use crate::money::Usd;
use crate::store::testing::{self, apply, new_call, settlement};
use crate::store::{Change, Correction, GROUPS, LedgerFilter, NewCall, Settlement, Store, Writer};

fn charge(seed: u64) -> Charge {
    let amount = |seed: u64| Usd::from_nanousd((seed % 100_000) as i64);
    Charge {
        cost: (!seed.is_multiple_of(6)).then(|| amount(seed)),
        price_cost: seed.is_multiple_of(4).then(|| amount(seed + 1)),
        provider_cost: seed.is_multiple_of(8).then(|| amount(seed + 2)),
        ..Charge::UNKNOWN
    }
}

/// Writes a settled row at this time; its numbers are derived from `seed`.
fn row(writer: &mut Writer, at: i64, seed: u64) {
    let call = NewCall {
        flow_id: (!seed.is_multiple_of(3)).then_some((seed % 3) as i64),
        run_id: Some(format!("run {}", seed % 5)),
        provider: format!("p{}", seed % 2),
        model: format!("m{}", seed % 4),
        role: (seed % 7 > 2).then(|| format!("r{}", seed % 2)),
        ..new_call(at)
    };
    let opened = apply(writer, Change::OpenCall(call)).unwrap();
    let settled = Settlement {
        usage: Usage {
            input_tokens: seed % 1_000,
            output_tokens: seed % 77,
            source: [UsageSource::Provider, UsageSource::Estimated, UsageSource::None]
                [(seed % 3) as usize],
            ..Usage::default()
        },
        charge: charge(seed),
        status: [CallStatus::Success, CallStatus::Failed][usize::from(seed.is_multiple_of(5))],
        ..settlement(testing::row(opened).id, at)
    };
    apply(writer, Change::SettleCall(settled)).unwrap();
}

/// All sums, by every group and with filters.
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
        LedgerFilter { run_id: Some("run 2".into()), ..LedgerFilter::default() },
        LedgerFilter {
            model: Some("m1".into()),
            provider: Some("p1".into()),
            statuses: vec![CallStatus::Success],
            to: at(3 * MS_PER_DAY),
            ..LedgerFilter::default()
        },
    ];
    let of = |(filter, group): (&LedgerFilter, &str)| {
        format!("{group}: {:?}", store.summary(filter, group).unwrap())
    };
    let groups = || GROUPS.iter().map(|group| group.name);
    let all = filters.iter().flat_map(|filter| groups().map(move |group| (filter, group)));
    all.map(of).collect()
}

#[test]
fn sums_are_equal_with_and_without_rollup_and_clock_steps() {
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
    // The last day is too recent for the rollup.
    let now = Timestamp(5 * MS_PER_DAY);
    let mut days = 0;
    while writer.roll_up_day(now).unwrap() {
        days += 1;
    }
    assert_eq!(days, 4);
    assert_eq!(sums(&store), before);
    row(&mut writer, 2 * MS_PER_DAY + 7, 99);
    let with_late = sums(&store);
    assert_ne!(with_late, before);
    while writer.roll_up_day(now).unwrap() {}
    assert_eq!(sums(&store), with_late);
}

#[test]
fn sums_stay_correct_after_large_clock_steps() {
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
        while writer.roll_up_day(Timestamp((200 + ahead) * MS_PER_DAY)).unwrap() {}
        // None of these is rolled up before the next.
        write(&mut writer, 105 + back..112 + back);
        while writer.roll_up_day(Timestamp(200 * MS_PER_DAY)).unwrap() {}
        write(&mut writer, 104..107);
    }
}

#[test]
fn corrections_count_on_days_that_are_summed_up() {
    let dir = tempfile::tempdir().unwrap();
    let (store, mut writer) = Store::open(dir.path()).unwrap();
    for seed in 0..60 {
        row(&mut writer, (seed as i64 % 5) * MS_PER_DAY + 5, seed);
    }
    let rows = store.unpriced_rows(Timestamp(MS_PER_DAY), 0, 100).unwrap();
    assert_eq!(rows.len(), 8);
    assert_eq!(store.unpriced_rows(Timestamp(0), rows[5].id, 1).unwrap()[0].id, rows[6].id);
    let correct = |writer: &mut Writer, id: i64| {
        let (price, cost) = ("price".into(), Usd::from_nanousd(7));
        let correction = Correction { ledger_id: id, price, cost, at: Timestamp(id) };
        apply(writer, Change::CorrectCall(correction)).unwrap();
    };
    rows[..4].iter().for_each(|row| correct(&mut writer, row.id));
    let before = sums(&store);
    while writer.roll_up_day(Timestamp(9 * MS_PER_DAY)).unwrap() {}
    assert_eq!(sums(&store), before);
    rows.iter().for_each(|row| correct(&mut writer, row.id));
    // A row with a cost has no correction.
    correct(&mut writer, 2);
    for group in ["day", "key"] {
        let (groups, total) = store.summary(&LedgerFilter::default(), group).unwrap();
        assert_eq!((total.corrected_calls, total.corrected_cost_usd), (8, Usd::from_nanousd(56)));
        assert_eq!(groups.iter().map(|group| group.sums.corrected_calls).sum::<u64>(), 8);
        assert_eq!(total.calls, 60);
    }
    let first_days =
        LedgerFilter { to: Some(Timestamp(2 * MS_PER_DAY)), ..LedgerFilter::default() };
    assert_eq!(store.summary(&first_days, "day").unwrap().1.corrected_calls, 2);
    assert!(store.unpriced_rows(Timestamp(MS_PER_DAY), 0, 100).unwrap().is_empty());
    let corrected = store.ledger(&LedgerFilter::default(), Some(rows[0].id + 1), 1).unwrap();
    assert_eq!(corrected[0].more.corrected_cost_usd, Some(Usd::from_nanousd(7)));
}

#[test]
fn a_day_with_an_open_call_is_not_rolled_up() {
    let dir = tempfile::tempdir().unwrap();
    let (_store, mut writer) = Store::open(dir.path()).unwrap();
    row(&mut writer, 5, 1);
    let call = new_call(MS_PER_DAY + 5);
    writer.transaction(|batch| batch.apply(&Change::OpenCall(call))).unwrap();
    let now = Timestamp(9 * MS_PER_DAY);
    assert!(writer.roll_up_day(now).unwrap());
    assert!(!writer.roll_up_day(now).unwrap());
}
