//! `/api/flows/{id}/schedule`: scheduled runs of a flow.

use serde_json::{Value, json};

use super::Context;
use super::reply::{self, Answer};
use super::request::read_json;
use crate::engine::checked_input;
use crate::error::{Error, Fault, Result};
use crate::ids::FlowId;
use crate::schedule::{Missed, Schedule};
use crate::store::{Change, NewSchedule, ScheduleRecord};
use crate::time::Timestamp;

/// The default time zone of a schedule.
const ZONE_DEFAULT: &str = "UTC";
/// Number of upcoming times in a response.
const UPCOMING: usize = 5;
const KEYS: &str = "`cron`, `timezone`, `missed`, `input`, `enabled`";

/// `PUT /api/flows/{id}/schedule`: sets the schedule; times before now are not due.
pub fn set(context: &Context, flow_id: FlowId, body: &[u8]) -> Answer {
    let schedule = check(flow_id, read_json(body)?)?;
    context.journal.commit_one(Change::SetSchedule(schedule))?;
    context.scheduler.reload();
    get(context, flow_id)
}

pub fn get(context: &Context, flow_id: FlowId) -> Answer {
    let record = context.store.schedule(flow_id)?;
    Ok(reply::json(200, &view(&record)))
}

pub fn delete(context: &Context, flow_id: FlowId) -> Answer {
    context.journal.commit_one(Change::DeleteSchedule(flow_id))?;
    context.scheduler.reload();
    Ok(reply::empty())
}

fn view(record: &ScheduleRecord) -> Value {
    let schedule = Schedule::parse(&record.cron, &record.timezone).ok();
    // A time that is due and about to run is no longer upcoming.
    let after = record.last.max(Timestamp::now());
    let next =
        schedule.as_ref().filter(|_| record.enabled).and_then(|schedule| schedule.next(after));
    let upcoming: Vec<String> = schedule
        .iter()
        .flat_map(|schedule| {
            std::iter::successors(next, |last| schedule.next(*last))
                .take(UPCOMING)
                .filter_map(|time| schedule.local(time))
        })
        .collect();
    let input: Value = serde_json::from_str(&record.input).unwrap_or_default();
    json!({
        "cron": record.cron,
        "timezone": record.timezone,
        "missed": record.missed.as_str(),
        "input": input,
        "enabled": record.enabled,
        "next": next,
        "nextLocal": upcoming.first(),
        "upcoming": upcoming,
        "updatedAt": record.updated_at,
    })
}

/// Returns the posted schedule, or all its faults.
fn check(flow_id: FlowId, body: Value) -> Result<NewSchedule> {
    let message = "cannot set the schedule";
    let Value::Object(mut body) = body else {
        return Err(Error::invalid(message, "", "must be an object with `cron`"));
    };
    let mut faults = Vec::new();
    let mut text = |key: &str, default: Option<&str>, faults: &mut Vec<Fault>| {
        let fault = match (body.remove(key), default) {
            (Some(Value::String(text)), _) => return Some(text.trim().to_owned()),
            (None, Some(default)) => return Some(default.to_owned()),
            (None, None) => "is missing",
            (Some(_), _) => "must be a string",
        };
        faults.push(Fault::new(key, fault));
        None
    };
    let cron = text("cron", None, &mut faults);
    let timezone = text("timezone", Some(ZONE_DEFAULT), &mut faults);
    let missed = text("missed", Some(Missed::default().as_str()), &mut faults);
    // Replaces faulty values with valid ones, so that the others are checked as well.
    let checked = Schedule::parse(
        cron.as_deref().unwrap_or("* * * * *"),
        timezone.as_deref().unwrap_or(ZONE_DEFAULT),
    );
    faults.extend(checked.err().into_iter().flatten());
    let missed = missed.and_then(|text| {
        let missed = text.parse::<Missed>();
        missed.map_err(|why| faults.push(Fault::new("missed", why))).ok()
    });
    let input = match checked_input(body.remove("input").unwrap_or_default()) {
        Ok(input) => input.to_string(),
        Err(Error::Invalid { faults: more, .. }) => {
            faults.extend(more);
            String::new()
        }
        Err(error) => return Err(error),
    };
    let enabled = match body.remove("enabled") {
        None => true,
        Some(Value::Bool(enabled)) => enabled,
        Some(_) => {
            faults.push(Fault::new("enabled", "must be true or false"));
            true
        }
    };
    let unknown = format!("unknown field; expected one of {KEYS}");
    faults.extend(body.keys().map(|key| Fault::new(key, unknown.as_str())));
    match (cron, timezone, missed) {
        (Some(cron), Some(timezone), Some(missed)) if faults.is_empty() => Ok(NewSchedule {
            flow_id,
            cron,
            timezone,
            missed,
            input,
            enabled,
            at: Timestamp::now(),
        }),
        _ => Err(Error::Invalid { message: message.into(), faults }),
    }
}
