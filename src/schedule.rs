//! Computes due times of schedules. Pure, so that tests can choose clocks and time zones.
//!
//! A schedule is five cron fields in a time zone. If the zone's clock is set forward or back, a
//! schedule with one fixed hour and minute (`30 2 * * *`) runs once: at the first moment after a
//! gap that contains its time, and the first time if its time repeats. Any other schedule (`*/30 *
//! * * *`, `0 2,3 * * *`) follows the clock: skipped times do not run, repeated ones run twice.

use croner::Cron;
use croner::errors::CronError;
use croner::parser::{CronParser, Seconds, Year};
use jiff::tz::TimeZone;

use crate::error::Fault;
use crate::event::text_enum;
use crate::time::{Timestamp, unknown_zone};

pub const CRON_BYTES_MAX: usize = 200;
const ZONE_BYTES_MAX: usize = 100;

/// The fields of a cron expression, in order.
const FIELDS: [&str; 5] = ["minute", "hour", "day of month", "month", "day of week"];

text_enum! {
    /// The treatment of times that passed while no server ran.
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

/// The action for a schedule at some moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Wait,
    /// Start one run for this time and all due times before it.
    Run(Timestamp),
    /// Skip this time and all due times before it.
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

    /// Returns the first due time after `after`, if any.
    pub fn next(&self, after: Timestamp) -> Option<Timestamp> {
        let after = jiff::Timestamp::from_millisecond(after.0).ok()?;
        let after = after.to_zoned(self.zone.clone());
        let next = self.cron.find_next_occurrence(&after, false).ok()?;
        Some(Timestamp(next.timestamp().as_millisecond()))
    }

    /// Formats a time as RFC 3339, with the zone's offset at that time.
    pub fn local(&self, moment: Timestamp) -> Option<String> {
        let moment = jiff::Timestamp::from_millisecond(moment.0).ok()?;
        let offset = self.zone.to_offset(moment);
        Some(moment.display_with_offset(offset).to_string())
    }

    /// Returns the action at `now`. Times up to `last` are done, and times up to `since` count as
    /// missed. At most one run starts, for any number of due times.
    pub fn step(&self, missed: Missed, last: Timestamp, since: Timestamp, now: Timestamp) -> Step {
        match self.newest(last, now) {
            None => Step::Wait,
            Some(due) if due > since || missed == Missed::Once => Step::Run(due),
            Some(due) => Step::Skip(due),
        }
    }

    /// Returns the newest due time in (`after`, `upto`], by bisection, because a year has half a
    /// million minutes.
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

/// Parses the five fields. Fails with one message per invalid field.
fn parse_cron(text: &str) -> Result<Cron, Vec<String>> {
    if text.len() > CRON_BYTES_MAX {
        return Err(vec![format!("has {} bytes; the limit is {CRON_BYTES_MAX}", text.len())]);
    }
    let fields: Vec<&str> = text.split_ascii_whitespace().collect();
    if fields.len() != FIELDS.len() {
        return Err(vec![format!("must have five fields: {}", FIELDS.join(", "))]);
    }
    let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
    // Parse the fields one by one, because the parser does not name the invalid one.
    let fault = |(at, field): (usize, &&str)| {
        let mut alone = ["*"; FIELDS.len()];
        alone[at] = field;
        let why = if field.split(',').any(str::is_empty) {
            "a comma needs a value on both sides".to_owned()
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
    // Reject days that no month has (such as February 30). UTC has no clock changes, so the result
    // holds in any zone.
    let epoch = Timestamp(0);
    let always = Schedule { cron, zone: TimeZone::UTC };
    match always.next(epoch) {
        Some(_) => Ok(always.cron),
        None => Err(vec!["is never due, because no month has this day".to_owned()]),
    }
}

fn parse_zone(name: &str) -> Result<TimeZone, String> {
    if name.len() > ZONE_BYTES_MAX {
        return Err(format!("has {} bytes; the limit is {ZONE_BYTES_MAX}", name.len()));
    }
    TimeZone::get(name).map_err(|_| unknown_zone(name))
}

#[cfg(test)]
mod tests;
