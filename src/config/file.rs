//! The format of the configuration file, and the checks of its sections.

use std::collections::BTreeMap;
use std::fs;
use std::num::{NonZeroU32, NonZeroUsize};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::config_error;
use crate::engine;
use crate::error::{Error, Result};
use crate::gateway::LoopLimits;
use crate::journal::{BodyLimits, Retention};
use crate::providers::{FailedCallCosts, HealthRules, Kind, Pause, Timeouts};
use crate::secret::Secret;
use crate::translation::Api;
use crate::websocket::Pings;

/// Limits memory and threads of runs: about a gigabyte.
const ACTIVE_RUNS_MAX: usize = 10_000;
/// Limits memory of queued runs: about a hundred megabytes of names.
const QUEUED_RUNS_MAX: usize = 1_000_000;
/// Limits how long bodies are stored: prompts are personal data.
const BODIES_DAYS_MAX: u32 = 365;
/// The default of `bodies_mb`, in MiB.
const BODIES_MB: u32 = 1_024;
/// The descriptors of calls are among the 256 that the listener reserves.
const CALLS_MAX: usize = 100;

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct ConfigFile {
    pub listen: Option<String>,
    pub data: Option<PathBuf>,
    pub prices: Option<PathBuf>,
    pub token: Option<String>,
    pub proxy: Option<Secret>,
    pub ca_file: Option<PathBuf>,
    pub allow_hosts: Vec<String>,
    pub allow_origins: Vec<String>,
    pub limits: FileLimits,
    pub retention: FileRetention,
    pub http: FileHttp,
    pub timeouts: FileTimeouts,
    pub websocket: FileWebsocket,
    pub failed_call_cost: FailedCallCosts,
    pub gateway: FileGateway,
    pub aliases: BTreeMap<String, toml::Value>,
    pub health: FileHealth,
    pub providers: BTreeMap<String, FileProvider>,
}

/// A model of an alias that is not a string.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileTarget {
    pub model: String,
    pub weight: Option<u32>,
    pub hours: Option<String>,
    pub zone: Option<String>,
}

/// A key of a provider's pool.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct FileKey {
    pub env: Option<String>,
    pub file: Option<PathBuf>,
    pub key: Option<Secret>,
    pub weight: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct FileHealth {
    failures: Option<NonZeroU32>,
    open_s: Option<f64>,
    open_max_s: Option<f64>,
    bench_s: Option<f64>,
    bench_max_s: Option<f64>,
    cool_s: Option<f64>,
    cool_max_s: Option<f64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct FileLimits {
    pub connections_per_address: Option<NonZeroUsize>,
    active_runs: Option<usize>,
    queued_runs: Option<usize>,
    calls: Option<usize>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct FileGateway {
    pub hash_end_users: bool,
    loop_repeats: Option<NonZeroU32>,
    loop_turns: Option<NonZeroU32>,
}

impl FileGateway {
    pub fn loop_limits(&self) -> LoopLimits {
        let LoopLimits { repeats, turns } = LoopLimits::default();
        LoopLimits {
            repeats: self.loop_repeats.map_or(repeats, NonZeroU32::get),
            turns: self.loop_turns.map_or(turns, NonZeroU32::get),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct FileHttp {
    pub hosts: Vec<String>,
    pub private: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct FileRetention {
    runs: Option<u64>,
    run_days: Option<f64>,
    bodies_days: Option<u32>,
    bodies_mb: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct FileTimeouts {
    connect_s: Option<f64>,
    first_byte_s: Option<f64>,
    total_s: Option<f64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct FileWebsocket {
    ping_interval_s: Option<f64>,
    pong_timeout_s: Option<f64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct FileProvider {
    pub kind: Option<Kind>,
    pub base_url: Option<String>,
    pub api_key: Option<Secret>,
    pub api_key_env: Option<String>,
    pub api_key_file: Option<PathBuf>,
    pub api_keys: Option<Vec<FileKey>>,
    pub requests_per_minute: Option<u32>,
    pub tokens_per_minute: Option<u64>,
    pub on_disconnect: OnDisconnect,
    pub pass_through_key: bool,
    pub stream_usage: Option<bool>,
    pub trust_stated_cost: Option<bool>,
    pub apis: Vec<Api>,
    pub proxy: Option<Secret>,
    pub ca_file: Option<PathBuf>,
}

/// The handling of a call after its client disconnects.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum OnDisconnect {
    #[default]
    Drain,
    Abort,
}

impl ConfigFile {
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path)
            .map_err(Error::io(format!("cannot read the configuration {}", path.display())))?;
        // A TOML error shows the line as text, and the line may contain a key.
        toml::from_str(&text).map_err(|error: toml::de::Error| {
            let before = error.span().and_then(|span| text.get(..span.start));
            let line = before.unwrap_or_default().matches('\n').count() + 1;
            let message = error.message();
            let path = path.display();
            config_error(format!("cannot read the configuration {path}: line {line}: {message}"))
        })
    }
}

impl FileLimits {
    pub fn engine(&self) -> Result<engine::Limits> {
        let default = engine::Limits::default();
        let active_runs = self.active_runs.unwrap_or(default.active_runs);
        let queued_runs = self.queued_runs.unwrap_or(default.queued_runs);
        let calls = self.calls.unwrap_or(default.calls);
        Ok(engine::Limits {
            active_runs: within("active_runs", active_runs, 1..=ACTIVE_RUNS_MAX)?,
            queued_runs: within("queued_runs", queued_runs, 0..=QUEUED_RUNS_MAX)?,
            calls: within("calls", calls, 1..=CALLS_MAX)?,
        })
    }
}

fn within(name: &str, value: usize, range: RangeInclusive<usize>) -> Result<usize> {
    if range.contains(&value) {
        return Ok(value);
    }
    let (min, max) = range.into_inner();
    Err(config_error(format!(
        "limits.{name}: must be a whole number from {min} to {max}, not {value}"
    )))
}

impl FileRetention {
    pub fn checked(&self) -> Result<Retention> {
        const DAY_S: f64 = 24.0 * 60.0 * 60.0;
        let default = Retention::default();
        let age = self.run_days.map(|days| days * DAY_S);
        Ok(Retention {
            runs: self.runs.unwrap_or(default.runs),
            run_age: seconds("retention.run_days", age, default.run_age)?,
            bodies: self.bodies()?,
        })
    }

    fn bodies(&self) -> Result<Option<BodyLimits>> {
        const DAY: Duration = Duration::from_secs(24 * 60 * 60);
        let days = self.bodies_days.unwrap_or(0);
        if days > BODIES_DAYS_MAX {
            return Err(config_error(format!(
                "retention.bodies_days: must be a whole number from 0 to {BODIES_DAYS_MAX}, not {days}"
            )));
        }
        let megabytes = self.bodies_mb.unwrap_or(BODIES_MB);
        if megabytes == 0 {
            return Err(config_error(
                "retention.bodies_mb: must be a whole number above 0; to store no bodies, remove \
                 `bodies_days`"
                    .into(),
            ));
        }
        let limits = BodyLimits { age: DAY * days, bytes_max: u64::from(megabytes) << 20 };
        Ok((days > 0).then_some(limits))
    }
}

impl FileTimeouts {
    pub fn checked(&self) -> Result<Timeouts> {
        let default = Timeouts::default();
        let first_byte = default.first_byte;
        Ok(Timeouts {
            connect: seconds("timeouts.connect_s", self.connect_s, default.connect)?,
            first_byte: seconds("timeouts.first_byte_s", self.first_byte_s, first_byte)?,
            total: seconds("timeouts.total_s", self.total_s, default.total)?,
        })
    }
}

impl FileHealth {
    pub fn checked(&self) -> Result<HealthRules> {
        let HealthRules { failures, open, bench, cool } = HealthRules::default();
        let pause = |name: &str, first, max, default: Pause| -> Result<Pause> {
            let first = seconds(&format!("health.{name}_s"), first, default.first)?;
            let max = seconds(&format!("health.{name}_max_s"), max, default.max.max(first))?;
            Ok(Pause { first, max })
        };
        Ok(HealthRules {
            failures: self.failures.map_or(failures, NonZeroU32::get),
            open: pause("open", self.open_s, self.open_max_s, open)?,
            bench: pause("bench", self.bench_s, self.bench_max_s, bench)?,
            cool: pause("cool", self.cool_s, self.cool_max_s, cool)?,
        })
    }
}

impl FileWebsocket {
    pub fn checked(&self) -> Result<Pings> {
        let Pings { interval, timeout } = Pings::default();
        Ok(Pings {
            interval: seconds("websocket.ping_interval_s", self.ping_interval_s, interval)?,
            timeout: seconds("websocket.pong_timeout_s", self.pong_timeout_s, timeout)?,
        })
    }
}

/// Parses a number of seconds above 0.
fn seconds(name: &str, value: Option<f64>, default: Duration) -> Result<Duration> {
    let Some(value) = value else {
        return Ok(default);
    };
    let duration = Duration::try_from_secs_f64(value).ok();
    duration
        .filter(|it| !it.is_zero())
        .ok_or_else(|| config_error(format!("{name}: must be a finite number above 0")))
}
