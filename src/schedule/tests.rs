use super::*;
use proptest::prelude::*;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn berlin(cron: &str) -> Schedule {
    Schedule::parse(cron, "Europe/Berlin").unwrap()
}

/// The next `count` times after `after`, in the schedule's zone.
fn times(schedule: &Schedule, after: &str, count: usize) -> Vec<String> {
    let mut moment = at(after);
    let mut times = Vec::new();
    for _ in 0..count {
        moment = schedule.next(moment).unwrap();
        times.push(schedule.local(moment).unwrap());
    }
    times
}

#[test]
fn fields_take_ranges_steps_lists_and_names() {
    let working_days = berlin("0 9 * * 1-5");
    let expected =
        ["2026-11-27T09:00:00+01:00", "2026-11-30T09:00:00+01:00", "2026-12-01T09:00:00+01:00"];
    assert_eq!(times(&working_days, "2026-11-26T12:00:00Z", 3), expected);
    let by_name = berlin("0 9 * * Mon-fri");
    assert_eq!(times(&by_name, "2026-11-26T12:00:00Z", 3), expected);
    assert_eq!(
        times(&berlin("10-40/15,50 0 1 jan,JUL *"), "2026-11-26T12:00:00Z", 5),
        [
            "2027-01-01T00:10:00+01:00",
            "2027-01-01T00:25:00+01:00",
            "2027-01-01T00:40:00+01:00",
            "2027-01-01T00:50:00+01:00",
            "2027-07-01T00:10:00+02:00",
        ]
    );
    // Both numbers are Sunday.
    for sunday in ["0 0 * * 0", "0 0 * * 7", "0 0 * * Sun"] {
        let schedule = Schedule::parse(sunday, "UTC").unwrap();
        assert_eq!(times(&schedule, "2026-11-23T00:00:00Z", 1), ["2026-11-29T00:00:00+00:00"]);
    }
}

#[test]
fn day_of_month_and_day_of_week_combine_with_or() {
    let either = Schedule::parse("0 0 13 * FRI", "UTC").unwrap();
    assert_eq!(
        times(&either, "2026-12-05T00:00:00Z", 3),
        ["2026-12-11T00:00:00+00:00", "2026-12-13T00:00:00+00:00", "2026-12-18T00:00:00+00:00"]
    );
    // A day of the week alone does not restrict the day of the month.
    let fridays = Schedule::parse("0 0 * * FRI", "UTC").unwrap();
    assert_eq!(times(&fridays, "2026-12-11T00:00:00Z", 1), ["2026-12-18T00:00:00+00:00"]);
}

#[test]
fn a_fixed_time_within_a_dst_gap_runs_right_after_it() {
    assert_eq!(
        times(&berlin("30 2 * * *"), "2026-03-28T12:00:00Z", 2),
        ["2026-03-29T03:00:00+02:00", "2026-03-30T02:30:00+02:00"]
    );
    assert_eq!(
        times(&berlin("*/30 * * * *"), "2026-03-29T00:00:00Z", 3),
        ["2026-03-29T01:30:00+01:00", "2026-03-29T03:00:00+02:00", "2026-03-29T03:30:00+02:00"]
    );
    assert_eq!(
        times(&berlin("0,30 2 * * *"), "2026-03-29T00:00:00Z", 1),
        ["2026-03-30T02:00:00+02:00"]
    );
}

#[test]
fn a_fixed_time_repeated_by_dst_runs_once() {
    assert_eq!(
        times(&berlin("30 2 * * *"), "2026-10-24T12:00:00Z", 2),
        ["2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00"]
    );
    assert_eq!(
        times(&berlin("30 * * * *"), "2026-10-25T00:00:00Z", 3),
        ["2026-10-25T02:30:00+02:00", "2026-10-25T02:30:00+01:00", "2026-10-25T03:30:00+01:00"]
    );
    assert_eq!(
        times(&berlin("0 2,3 * * *"), "2026-10-24T12:00:00Z", 3),
        ["2026-10-25T02:00:00+02:00", "2026-10-25T02:00:00+01:00", "2026-10-25T03:00:00+01:00"]
    );
}

#[test]
fn invalid_schedules_are_refused_with_their_field() {
    for wrong in [
        "",
        "* * * *",
        "* * * * * *",
        "@daily",
        "60 * * * *",
        "* 24 * * *",
        "* * 0 * *",
        "* * * 13 *",
        "* * * * 8",
        "5-1 * * * *",
        "*/0 * * * *",
        "1,,2 * * * *",
        ",1 * * * *",
        "a * * * *",
        "0 0 30 2 *",
        "0 0 31 4,6 *",
    ] {
        let faults = Schedule::parse(wrong, "UTC").unwrap_err();
        assert_eq!(faults.len(), 1, "{wrong}: {faults:?}");
        assert_eq!(faults[0].field, "cron", "{wrong}");
    }
    let faults = Schedule::parse("1 24 x,2 * ,", "UTC").unwrap_err();
    let messages: Vec<&str> = faults.iter().map(|f| f.message.as_str()).collect();
    assert_eq!(messages.len(), 3);
    assert!(messages[0].starts_with("hour `24`: "), "{messages:?}");
    assert!(messages[1].starts_with("day of month `x,2`: "));
    assert!(messages[2].starts_with("day of week `,`: "));
    let long = format!("{} * * * *", ["1"; CRON_BYTES_MAX].join(","));
    assert!(Schedule::parse(&long, "UTC").is_err());
    for wrong in ["", "Europe/Atlantis", "../../etc/passwd", "+01:00"] {
        let faults = Schedule::parse("* * * * *", wrong).unwrap_err();
        assert_eq!(faults[0].field, "timezone", "{wrong}");
    }
    assert_eq!(Schedule::parse("x", "y").unwrap_err().len(), 2);
}

#[test]
fn a_due_time_runs_only_once() {
    let hourly = berlin("0 * * * *");
    let (last, since) = (at("2026-11-23T08:00:00Z"), at("2026-11-23T08:30:00Z"));
    let step = |last, now: &str| hourly.step(Missed::Skip, last, since, at(now));
    assert_eq!(step(last, "2026-11-23T08:59:59.999Z"), Step::Wait);
    let nine = at("2026-11-23T09:00:00Z");
    assert_eq!(step(last, "2026-11-23T09:00:00Z"), Step::Run(nine));
    assert_eq!(step(last, "2026-11-23T09:00:03Z"), Step::Run(nine));
    assert_eq!(step(nine, "2026-11-23T09:00:03Z"), Step::Wait);
    // The clock stepped back.
    assert_eq!(step(nine, "2026-11-23T08:59:00Z"), Step::Wait);
    assert_eq!(step(nine, "2026-11-23T09:00:00Z"), Step::Wait);
    // The clock stepped forward: one run for all missed times.
    let noon = at("2026-11-23T12:00:00Z");
    assert_eq!(step(nine, "2026-11-23T12:59:00Z"), Step::Run(noon));
}

#[test]
fn missed_times_are_skipped_or_run_once() {
    let hourly = berlin("0 * * * *");
    let last = at("2020-01-01T00:00:00Z");
    let started = at("2026-11-23T08:30:00Z");
    let eight = at("2026-11-23T08:00:00Z");
    let step = |missed, now: &str| hourly.step(missed, last, started, at(now));
    let now = "2026-11-23T08:30:01Z";
    assert_eq!(step(Missed::Skip, now), Step::Skip(eight));
    assert_eq!(step(Missed::Once, now), Step::Run(eight));
    // A time within a restart counts as missed.
    let since = at("2026-11-23T08:00:20Z");
    assert_eq!(hourly.step(Missed::Skip, last, since, since), Step::Skip(eight));
}

#[test]
fn the_newest_time_is_found_across_dst_changes() {
    for cron in ["* * * * *", "30 2 * * *", "*/7 1-3 * * *", "0 0 29 2 *"] {
        let schedule = berlin(cron);
        for moment in [
            "2026-03-29T00:59:00Z",
            "2026-03-29T01:00:00Z",
            "2026-03-29T01:30:00Z",
            "2026-10-25T00:30:00Z",
            "2026-10-25T01:29:59Z",
            "2026-10-25T01:30:00Z",
            "2026-10-25T04:00:00Z",
        ] {
            let now = at(moment);
            let newest = schedule.newest(at("2014-01-01T00:00:00Z"), now).unwrap();
            assert!(newest <= now, "{cron} {now} {newest}");
            assert!(schedule.next(newest).unwrap() > now, "{cron} {now} {newest}");
            let before = Timestamp(newest.0 - 1);
            assert_eq!(schedule.next(before), Some(newest), "{cron} {now}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn times_ascend_in_whole_minutes(
        start in 1_700_000_000_000i64..1_900_000_000_000,
        minute in 0..60u8, hour in 0..24u8, step in 1..60u8,
        zone in prop::sample::select(vec![
            "UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Africa/Cairo",
            "America/Santiago", "Asia/Kathmandu",
        ]),
    ) {
        for cron in [
            format!("{minute} {hour} * * *"),
            format!("*/{step} * * * *"),
            format!("{minute} {hour}-23/2 * * *"),
            format!("{minute} {hour} 1-7 * 1"),
        ] {
            let schedule = Schedule::parse(&cron, zone).unwrap();
            let mut moment = schedule.next(Timestamp(start)).unwrap();
            prop_assert!(moment.0 > start);
            for _ in 0..50 {
                let next = schedule.next(moment).unwrap();
                prop_assert!(next.0 - moment.0 >= 60_000, "{cron} {zone} {moment} {next}");
                prop_assert_eq!(next.0 % 60_000, 0);
                moment = next;
            }
        }
    }

    #[test]
    fn arbitrary_cron_text_never_panics(cron in "\\PC{0,40}", fields in "([0-9*,/LW#?a-z+-]{1,6} ){5}") {
        let _ = Schedule::parse(&cron, "UTC");
        let _ = Schedule::parse(&fields, "UTC");
    }
}
