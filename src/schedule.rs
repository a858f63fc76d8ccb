//! When a schedule is due: pure, so that clocks and time zones can be made up in tests.
//!
//! A schedule is five cron fields in a time zone. Where that zone's clock is put forward or back:
//! a schedule of one fixed hour and minute (`30 2 * * *`) whose time is left out runs at the first
//! moment after the gap, and one whose time comes twice runs the first time; any other (`*/30 * * * *`,
//! `0 2,3 * * *`) follows the clock: what is left out is left out, what comes twice runs twice.

use std::fmt;
use std::str::FromStr;

use croner::Cron;
use croner::errors::CronError;
use croner::parser::{CronParser, Seconds, Year};
use jiff::tz::TimeZone;

use crate::error::Fault;
use crate::time::Timestamp;

/// How long a cron text may be, in bytes.
pub const CRON_BYTES_MAX: usize = 200;
/// How long a time zone's name may be, in bytes.
const ZONE_BYTES_MAX: usize = 100;

/// The fields of a cron text, in order.
const FIELDS: [&str; 5] = ["minute", "hour", "day of month", "month", "day of week"];

/// What becomes of times that passed while no server ran.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Missed {
    /// They are left out.
    #[default]
    Skip,
    /// One run makes up for all of them.
    Once,
}

impl Missed {
    /// The form used in JSON and in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Skip => "skip",
            Self::Once => "once",
        }
    }
}

impl fmt::Display for Missed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Missed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "skip" => Ok(Self::Skip),
            "once" => Ok(Self::Once),
            _ => Err("must be `skip` or `once`".into()),
        }
    }
}

/// When something is due.
#[derive(Clone, Debug)]
pub struct Schedule {
    cron: Cron,
    zone: TimeZone,
}

/// What is to be done about a schedule at some moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing is due.
    Wait,
    /// A run is to start for this time, and for all that were due before it.
    Run(Timestamp),
    /// This time, and all that were due before it, are left out.
    Skip(Timestamp),
}

impl Schedule {
    /// Reads a schedule, or says all that is wrong with it, by the fields `cron` and `timezone`.
    ///
    /// # Errors
    /// Faults of what is no cron text or no time zone.
    pub fn parse(cron: &str, timezone: &str) -> Result<Self, Vec<Fault>> {
        let mut faults = Vec::new();
        let cron = parse_cron(cron).map_err(|of_cron| {
            faults.extend(of_cron.into_iter().map(|fault| Fault::new("cron", fault)));
        });
        let zone = parse_zone(timezone).map_err(|fault| faults.push(Fault::new("timezone", fault)));
        match (cron, zone) {
            (Ok(cron), Ok(zone)) => Ok(Self { cron, zone }),
            _ => Err(faults),
        }
    }

    /// The first time after `after`; none where there never is one.
    pub fn next(&self, after: Timestamp) -> Option<Timestamp> {
        let after = jiff::Timestamp::from_millisecond(after.0).ok()?;
        let after = after.to_zoned(self.zone.clone());
        let next = self.cron.find_next_occurrence(&after, false).ok()?;
        Some(Timestamp(next.timestamp().as_millisecond()))
    }

    /// A moment as RFC 3339 with the offset that the schedule's zone has then.
    pub fn local(&self, moment: Timestamp) -> Option<String> {
        let moment = jiff::Timestamp::from_millisecond(moment.0).ok()?;
        let offset = self.zone.to_offset(moment);
        Some(moment.display_with_offset(offset).to_string())
    }

    /// What is to be done at `now`, where nothing up to `last` is due any more and times up to
    /// `since` count as missed. However many times have passed, one run is started at most.
    pub fn step(&self, missed: Missed, last: Timestamp, since: Timestamp, now: Timestamp) -> Step {
        match self.newest(last, now) {
            None => Step::Wait,
            Some(due) if due > since || missed == Missed::Once => Step::Run(due),
            Some(due) => Step::Skip(due),
        }
    }

    /// The newest time of (`after`, `upto`]. It is found by halves, since a year has half a million
    /// minutes.
    fn newest(&self, after: Timestamp, upto: Timestamp) -> Option<Timestamp> {
        let due_after = |moment: i64| self.next(Timestamp(moment)).filter(|due| *due <= upto);
        let mut newest = due_after(after.0)?;
        let (mut low, mut high) = (newest.0, upto.0);
        while low < high {
            let middle = low + (high - low) / 2;
            match due_after(middle) {
                Some(due) => {
                    newest = due;
                    low = due.0;
                }
                None => high = middle,
            }
        }
        Some(newest)
    }
}

/// The five fields, or what is wrong with each of them.
fn parse_cron(text: &str) -> Result<Cron, Vec<String>> {
    if text.len() > CRON_BYTES_MAX {
        return Err(vec![format!("is longer than {CRON_BYTES_MAX} bytes")]);
    }
    let fields: Vec<&str> = text.split_ascii_whitespace().collect();
    if fields.len() != FIELDS.len() {
        return Err(vec![format!(
            "must have five fields: {}",
            FIELDS.join(", ")
        )]);
    }
    let parser = CronParser::builder()
        .seconds(Seconds::Disallowed)
        .year(Year::Disallowed)
        .build();
    // One by one, since the parser does not say which it is about.
    let fault = |(at, field): (usize, &&str)| {
        let mut alone = ["*"; FIELDS.len()];
        alone[at] = field;
        let why = if field.split(',').any(str::is_empty) {
            "a comma needs something before and behind it".to_owned()
        } else {
            match parser.parse(&alone.join(" ")).err()? {
                CronError::ComponentError(why) => why,
                error => error.to_string(),
            }
        };
        Some(format!("{} `{field}`: {why}", FIELDS[at]))
    };
    let faults: Vec<String> = fields.iter().enumerate().filter_map(fault).collect();
    if !faults.is_empty() {
        return Err(faults);
    }
    let cron = parser.parse(&fields.join(" "));
    let cron = cron.map_err(|error| vec![error.to_string()])?;
    // A day that no month has is found out in a zone without changes, once and for all.
    let epoch = Timestamp(0);
    let always = Schedule {
        cron,
        zone: TimeZone::UTC,
    };
    match always.next(epoch) {
        Some(_) => Ok(always.cron),
        None => Err(vec!["is never due: there is no such day".to_owned()]),
    }
}

fn parse_zone(name: &str) -> Result<TimeZone, String> {
    let unknown = || format!("there is no time zone `{name}`; it must be like `Europe/Berlin`");
    if name.len() > ZONE_BYTES_MAX {
        return Err(format!("is longer than {ZONE_BYTES_MAX} bytes"));
    }
    TimeZone::get(name).map_err(|_| unknown())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn berlin(cron: &str) -> Schedule {
        Schedule::parse(cron, "Europe/Berlin").unwrap()
    }

    /// The next `count` times after `after`, in the zone.
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
        let expected = [
            "2026-11-27T09:00:00+01:00",
            "2026-11-30T09:00:00+01:00",
            "2026-12-01T09:00:00+01:00",
        ];
        assert_eq!(times(&working_days, "2026-11-26T12:00:00Z", 3), expected);
        let by_name = berlin("0 9 * * Mon-fri");
        assert_eq!(times(&by_name, "2026-11-26T12:00:00Z", 3), expected);
        assert_eq!(
            times(
                &berlin("10-40/15,50 0 1 jan,JUL *"),
                "2026-11-26T12:00:00Z",
                5
            ),
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
            assert_eq!(
                times(&schedule, "2026-11-23T00:00:00Z", 1),
                ["2026-11-29T00:00:00+00:00"]
            );
        }
    }

    #[test]
    fn where_both_kinds_of_days_are_given_either_will_do() {
        let either = Schedule::parse("0 0 13 * FRI", "UTC").unwrap();
        assert_eq!(
            times(&either, "2026-12-05T00:00:00Z", 3),
            [
                "2026-12-11T00:00:00+00:00",
                "2026-12-13T00:00:00+00:00",
                "2026-12-18T00:00:00+00:00"
            ]
        );
        // A day of the week alone is no day of the month as well.
        let fridays = Schedule::parse("0 0 * * FRI", "UTC").unwrap();
        assert_eq!(
            times(&fridays, "2026-12-11T00:00:00Z", 1),
            ["2026-12-18T00:00:00+00:00"]
        );
    }

    #[test]
    fn a_fixed_time_that_does_not_exist_comes_right_after_the_gap() {
        assert_eq!(
            times(&berlin("30 2 * * *"), "2026-03-28T12:00:00Z", 2),
            ["2026-03-29T03:00:00+02:00", "2026-03-30T02:30:00+02:00"]
        );
        assert_eq!(
            times(&berlin("*/30 * * * *"), "2026-03-29T00:00:00Z", 3),
            [
                "2026-03-29T01:30:00+01:00",
                "2026-03-29T03:00:00+02:00",
                "2026-03-29T03:30:00+02:00"
            ]
        );
        assert_eq!(
            times(&berlin("0,30 2 * * *"), "2026-03-29T00:00:00Z", 1),
            ["2026-03-30T02:00:00+02:00"]
        );
    }

    #[test]
    fn a_fixed_time_that_comes_twice_runs_the_first_time_alone() {
        assert_eq!(
            times(&berlin("30 2 * * *"), "2026-10-24T12:00:00Z", 2),
            ["2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00"]
        );
        assert_eq!(
            times(&berlin("30 * * * *"), "2026-10-25T00:00:00Z", 3),
            [
                "2026-10-25T02:30:00+02:00",
                "2026-10-25T02:30:00+01:00",
                "2026-10-25T03:30:00+01:00"
            ]
        );
        assert_eq!(
            times(&berlin("0 2,3 * * *"), "2026-10-24T12:00:00Z", 3),
            [
                "2026-10-25T02:00:00+02:00",
                "2026-10-25T02:00:00+01:00",
                "2026-10-25T03:00:00+01:00"
            ]
        );
    }

    #[test]
    fn what_is_no_schedule_is_refused_with_its_field() {
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
    fn what_is_due_is_run_once_and_never_again() {
        let hourly = berlin("0 * * * *");
        let (last, since) = (at("2026-11-23T08:00:00Z"), at("2026-11-23T08:30:00Z"));
        let step = |last, now: &str| hourly.step(Missed::Skip, last, since, at(now));
        assert_eq!(step(last, "2026-11-23T08:59:59.999Z"), Step::Wait);
        let nine = at("2026-11-23T09:00:00Z");
        assert_eq!(step(last, "2026-11-23T09:00:00Z"), Step::Run(nine));
        assert_eq!(step(last, "2026-11-23T09:00:03Z"), Step::Run(nine));
        assert_eq!(step(nine, "2026-11-23T09:00:03Z"), Step::Wait);
        // The clock was put back.
        assert_eq!(step(nine, "2026-11-23T08:59:00Z"), Step::Wait);
        assert_eq!(step(nine, "2026-11-23T09:00:00Z"), Step::Wait);
        // The clock was put forward: one run for all that was passed over.
        let noon = at("2026-11-23T12:00:00Z");
        assert_eq!(step(nine, "2026-11-23T12:59:00Z"), Step::Run(noon));
    }

    #[test]
    fn times_that_were_missed_are_left_out_or_made_up_for_once() {
        let hourly = berlin("0 * * * *");
        let last = at("2020-01-01T00:00:00Z");
        let started = at("2026-11-23T08:30:00Z");
        let eight = at("2026-11-23T08:00:00Z");
        let step = |missed, now: &str| hourly.step(missed, last, started, at(now));
        let now = "2026-11-23T08:30:01Z";
        assert_eq!(step(Missed::Skip, now), Step::Skip(eight));
        assert_eq!(step(Missed::Once, now), Step::Run(eight));
        // A time that the server stopped and started within is missed as well.
        let since = at("2026-11-23T08:00:20Z");
        assert_eq!(
            hourly.step(Missed::Skip, last, since, since),
            Step::Skip(eight)
        );
    }

    #[test]
    fn the_newest_of_many_times_is_found_over_changes_of_the_clock() {
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
                assert!(
                    schedule.next(newest).unwrap() > now,
                    "{cron} {now} {newest}"
                );
                let before = Timestamp(newest.0 - 1);
                assert_eq!(schedule.next(before), Some(newest), "{cron} {now}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn times_grow_and_are_whole_minutes_at_least_one_apart(
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
        fn no_text_is_too_strange_to_be_read_or_refused(cron in "\\PC{0,40}", fields in "([0-9*,/LW#?a-z+-]{1,6} ){5}") {
            let _ = Schedule::parse(&cron, "UTC");
            let _ = Schedule::parse(&fields, "UTC");
        }
    }
}
