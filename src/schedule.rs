//! When a schedule is due: pure, so that clocks and time zones can be made up in tests.
//!
//! A schedule is five cron fields in a time zone. Where that zone's clock is put forward or back:
//! a schedule of one fixed hour and minute (`30 2 * * *`) whose time is left out runs at the first
//! moment after the gap, and one whose time comes twice runs the first time; any other (`*/30 * * * *`,
//! `0 2,3 * * *`) follows the clock: what is left out is left out, what comes twice runs twice.

use croner::Cron;
use croner::errors::CronError;
use croner::parser::{CronParser, Seconds, Year};
use jiff::tz::TimeZone;

use crate::error::Fault;
use crate::event::text_enum;
use crate::time::Timestamp;

pub const CRON_BYTES_MAX: usize = 200;
const ZONE_BYTES_MAX: usize = 100;

/// The fields of a cron text, in order.
const FIELDS: [&str; 5] = ["minute", "hour", "day of month", "month", "day of week"];

text_enum! {
    /// How to treat times that passed while no server ran.
    #[derive(Default)]
    pub enum Missed {
        #[default]
        Skip = "skip",
        /// One run makes up for all of them.
        Once = "once",
    }
}

#[derive(Clone, Debug)]
pub struct Schedule {
    cron: Cron,
    zone: TimeZone,
}

/// What is to be done about a schedule at some moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Wait,
    /// A run is to start for this time, and for all that were due before it.
    Run(Timestamp),
    /// This time, and all that were due before it, are left out.
    Skip(Timestamp),
}

impl Schedule {
    /// Returns a schedule, or all faults of `cron` and `timezone`.
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

    /// The newest time of (`after`, `upto`], by bisection, because a year has half a million minutes.
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
        return Err(vec![format!("must have five fields: {}", FIELDS.join(", "))]);
    }
    let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
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
    let always = Schedule { cron, zone: TimeZone::UTC };
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
mod tests;
