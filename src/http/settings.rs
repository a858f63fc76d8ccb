//! `GET /api/settings`: the settings that a user may know, without secrets and paths.

use serde_json::json;

use super::Context;
use super::reply::{self, Answer};
use crate::journal::{EVENT_AGE_MAX, EVENTS_MAX, Retention};
use crate::store::{ANSWER_BYTES_MAX, ANSWERS_AGE_MAX_MS, ANSWERS_BYTES_MAX};

const DAY_S: u64 = 24 * 60 * 60;
const DAY_MS: i64 = 1000 * DAY_S as i64;

pub struct Settings {
    pub retention: Retention,
    pub is_token_required: bool,
    pub hashes_end_users: bool,
    /// The providers and models of aliases.
    pub alias_models: Vec<(String, String)>,
}

pub fn get(context: &Context) -> Answer {
    let Settings { retention, is_token_required, hashes_end_users, .. } = &context.settings;
    let uptime_ms = u64::try_from(context.started.elapsed().as_millis()).unwrap_or(u64::MAX);
    let view = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_ms": uptime_ms,
        "database_bytes": context.store.bytes_on_disk(),
        "token_required": is_token_required,
        "end_users_hashed": hashes_end_users,
        "retention": {
            "runs": retention.runs,
            "run_days": retention.run_age.as_secs_f64() / DAY_S as f64,
            "events": EVENTS_MAX,
            "event_days": EVENT_AGE_MAX.as_secs() / DAY_S,
            "bodies_days": retention.bodies.map(|limits| limits.age.as_secs() / DAY_S),
            "bodies_mb": retention.bodies.map(|limits| limits.bytes_max >> 20),
        },
        "cache": {
            "bytes_max": ANSWERS_BYTES_MAX,
            "response_bytes_max": ANSWER_BYTES_MAX,
            "days_max": ANSWERS_AGE_MAX_MS / DAY_MS,
        },
    });
    Ok(reply::json(200, &view))
}
