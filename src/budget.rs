//! Budgets: spending limits per period for selected calls. Pure; `store` counts and refuses.

use jiff::tz::TimeZone;
use jiff::{Span, Zoned};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::error::{Error, Fault, Result};
use crate::event::{Attribution, Billing, BudgetWarning, WarningKind, text_form};
use crate::ids::{FlowId, hex};
use crate::money::Usd;
use crate::prices::selects;
use crate::time::{Timestamp, unknown_zone};

pub const BUDGETS_MAX: usize = 100;
const NAME_BYTES_MAX: usize = 100;
/// Limits a tag or a name of the origin of a call; longer ones are never stored.
const FILTER_BYTES_MAX: usize = 200;
/// Length of the hash that identifies a list of budgets.
const VERSION_BYTES: usize = 16;
/// Percentages of a limit at which viewers are warned.
pub const WARN_AT_PERCENT: [u8; 2] = [80, 100];
/// The default of [`Budget::min_output_tokens`]. Shorter answers of coding agents are rarely useful.
const OUTPUT_TOKENS_MIN: u32 = 1_024;
/// Covers the rounding of the costs that the reservation of a lowered limit is calculated from.
const ROUNDING_NANOUSD: i64 = 2;

/// Days and months follow the budget's time zone. A session is one of a client at the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Per {
    Day,
    Month,
    Run,
    Session,
}

text_form!(Per { Day = "day", Month = "month", Run = "run", Session = "session" });

/// The handling of calls of a session that repeats itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnLoop {
    #[default]
    Warn,
    /// A hard budget refuses them.
    Stop,
}

impl OnLoop {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
    fn is_warn(&self) -> bool {
        *self == Self::Warn
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    Usd(Usd),
    Tokens(u64),
}

impl Limit {
    /// Returns the limit in nano-dollars or tokens.
    pub fn amount(self) -> i64 {
        match self {
            Self::Usd(usd) => usd.nanousd,
            Self::Tokens(tokens) => i64::try_from(tokens).unwrap_or(i64::MAX),
        }
    }

    /// Formats an amount in the limit's unit.
    pub fn show(self, amount: i64) -> String {
        match self {
            Self::Usd(_) => format!("{} USD", Usd::from_nanousd(amount)),
            Self::Tokens(_) => format!("{amount} tokens"),
        }
    }
}

/// The bound of a prompt's tokens by which a budget reserves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InputBound {
    /// Counted, or measured on earlier calls, with a margin.
    #[default]
    Estimated,
    /// One token for each byte.
    Strict,
}

/// The reaction of a hard budget that has too little left for the whole output limit of a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnShort {
    /// Lowers the output limit to the remaining amount.
    #[default]
    Lower,
    Refuse,
}

/// A call counts for every budget that covers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Unique among the budgets.
    pub name: String,
    pub per: Per,
    pub flow_id: Option<FlowId>,
    /// `PROVIDER/MODEL` as requested, in any spelling; a trailing `*` matches any rest.
    pub model: Option<String>,
    /// The name of a gateway key.
    pub key: Option<String>,
    pub tag: Option<String>,
    pub client: Option<String>,
    /// As in ledger rows: the name, or its hash.
    pub end_user: Option<String>,
    pub project: Option<String>,
    /// Counts the notional cost of calls that a subscription covers.
    pub include_subscriptions: bool,
    pub on_loop: OnLoop,
    pub limit: Limit,
    /// Refuses calls that might exceed the limit; otherwise viewers are only warned.
    pub hard: bool,
    /// Lets a hard budget allow calls without a known price or maximum.
    pub allow_unpriced: bool,
    pub bound: InputBound,
    pub on_short: OnShort,
    /// The lowest output limit to lower a call to; none for [`OUTPUT_TOKENS_MIN`].
    pub min_output_tokens: Option<u32>,
    pub timezone: String,
    zone: TimeZone,
}

/// The properties of a call by which budgets select.
#[derive(Clone, Copy, Debug)]
pub struct Scope<'a> {
    pub flow_id: Option<FlowId>,
    pub provider: &'a str,
    pub model: &'a str,
    pub key: Option<&'a str>,
    /// Separated by commas.
    pub tags: Option<&'a str>,
    pub attribution: &'a Attribution,
    pub billing: Option<Billing>,
}

/// The maximum usage of a call, known before it is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reserve {
    /// None if the price is unknown.
    pub cost: Option<Usd>,
    pub tokens: u64,
}

/// The maximum usage of a call by one bound of its prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Maximum {
    /// Without output.
    pub input: Reserve,
    /// With the whole output limit.
    pub whole: Reserve,
}

/// The output limit of a request, which budgets may lower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutputLimit {
    /// Tokens of each choice.
    pub tokens: u32,
    /// A lowered limit must be above this number of tokens, which are reserved for thinking.
    pub thinking_tokens: u32,
}

/// The bounds of a call between which the budgets that cover it choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallBounds {
    pub strict: Maximum,
    pub estimated: Maximum,
    /// None if the limit must stay as it is.
    pub output: Option<OutputLimit>,
    /// True if neither bound holds, as for images.
    pub is_unbounded: bool,
}

/// The amounts in a budget's unit that count in a period or run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    /// Used by settled calls.
    pub spent: i64,
    /// Reserved by calls in flight and by calls whose cost is unknown.
    pub held: i64,
}

impl Amounts {
    pub fn used(self) -> i64 {
        self.spent.saturating_add(self.held)
    }

    pub fn plus(self, change: Self) -> Self {
        Self {
            spent: self.spent.saturating_add(change.spent),
            held: self.held.saturating_add(change.held),
        }
    }
}

impl Maximum {
    /// Returns the maximum usage with a lowered limit; a bound of the exact one.
    pub fn lowered(&self, output: OutputLimit, limit: u32) -> Reserve {
        let part = |input: i64, whole: i64| {
            let all = u128::from(whole.saturating_sub(input).max(0).unsigned_abs());
            let share = (all * u128::from(limit)).div_ceil(u128::from(output.tokens.max(1)));
            input.saturating_add(i64::try_from(share).unwrap_or(i64::MAX))
        };
        let cost = self.input.cost.zip(self.whole.cost).map(|(input, whole)| {
            let cost = part(input.nanousd, whole.nanousd).saturating_add(ROUNDING_NANOUSD);
            Usd::from_nanousd(cost.min(whole.nanousd))
        });
        let tokens = part(saturating(self.input.tokens), saturating(self.whole.tokens));
        Reserve { cost, tokens: tokens.unsigned_abs() }
    }
}

fn saturating(tokens: u64) -> i64 {
    i64::try_from(tokens).unwrap_or(i64::MAX)
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Document {
    name: String,
    per: Per,
    #[serde(skip_serializing_if = "Option::is_none")]
    flow_id: Option<FlowId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tag: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    end_user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    project: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit_usd: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit_tokens: Option<u64>,
    #[serde(default = "yes")]
    hard: bool,
    #[serde(default)]
    allow_unpriced: bool,
    #[serde(default, skip_serializing_if = "is_default")]
    bound: InputBound,
    #[serde(default, skip_serializing_if = "is_default")]
    on_short: OnShort,
    #[serde(skip_serializing_if = "Option::is_none")]
    min_output_tokens: Option<u32>,
    #[serde(default, skip_serializing_if = "is_false")]
    include_subscriptions: bool,
    #[serde(default, skip_serializing_if = "OnLoop::is_warn")]
    on_loop: OnLoop,
    #[serde(default = "utc")]
    timezone: String,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn yes() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_false(flag: &bool) -> bool {
    !flag
}

fn utc() -> String {
    "UTC".to_owned()
}

impl Budget {
    /// Returns the JSON that [`parse_all`] reads. Amounts of money are strings, to stay exact.
    pub fn to_json(&self) -> Value {
        let (limit_usd, limit_tokens) = match self.limit {
            Limit::Usd(usd) => (Some(Value::from(usd.to_string())), None),
            Limit::Tokens(tokens) => (None, Some(tokens)),
        };
        let document = Document {
            name: self.name.clone(),
            per: self.per,
            flow_id: self.flow_id,
            model: self.model.clone(),
            key: self.key.clone(),
            tag: self.tag.clone(),
            client: self.client.clone(),
            end_user: self.end_user.clone(),
            project: self.project.clone(),
            limit_usd,
            limit_tokens,
            hard: self.hard,
            allow_unpriced: self.allow_unpriced,
            bound: self.bound,
            on_short: self.on_short,
            min_output_tokens: self.min_output_tokens,
            include_subscriptions: self.include_subscriptions,
            on_loop: self.on_loop,
            timezone: self.timezone.clone(),
        };
        serde_json::to_value(document).unwrap_or_default()
    }

    pub fn covers(&self, call: &Scope<'_>) -> bool {
        let is_flow = self.flow_id.is_none() || self.flow_id == call.flow_id;
        let is_key = self.key.is_none() || self.key.as_deref() == call.key;
        let has_tag = |tag: &str| call.tags.is_some_and(|tags| tags.split(',').any(|it| it == tag));
        let is_tag = self.tag.as_deref().is_none_or(has_tag);
        let is_name = |own: &Option<String>, name: &Option<String>| own.is_none() || own == name;
        let is_origin = is_name(&self.client, &call.attribution.client)
            && is_name(&self.end_user, &call.attribution.end_user)
            && is_name(&self.project, &call.attribution.project);
        // Subscriptions use tokens, but no money.
        let is_paid = self.include_subscriptions
            || call.billing.is_none()
            || matches!(self.limit, Limit::Tokens(_));
        let is_model = |pattern: &str| is_model(pattern, call.provider, call.model);
        is_flow
            && is_key
            && is_tag
            && is_origin
            && is_paid
            && self.model.as_deref().is_none_or(is_model)
    }

    /// Returns whether the budget counts days or months, instead of runs or sessions.
    pub fn has_period(&self) -> bool {
        matches!(self.per, Per::Day | Per::Month)
    }

    /// Converts `reserve` to the budget's unit. Returns none if the price is unknown.
    pub fn reserved(&self, reserve: &Reserve) -> Option<i64> {
        match self.limit {
            Limit::Usd(_) => reserve.cost.map(|cost| cost.nanousd),
            Limit::Tokens(_) => Some(saturating(reserve.tokens)),
        }
    }

    /// Returns the highest output limit of each choice that fits into `left`; none if that is too
    /// low, or if this budget does not lower limits.
    pub fn output_that_fits(
        &self,
        maximum: &Maximum,
        output: OutputLimit,
        left: i64,
    ) -> Option<u32> {
        if self.on_short == OnShort::Refuse {
            return None;
        }
        let (input, whole) = (self.reserved(&maximum.input)?, self.reserved(&maximum.whole)?);
        let rounding = if matches!(self.limit, Limit::Usd(_)) { ROUNDING_NANOUSD } else { 0 };
        let left = left.saturating_sub(input).saturating_sub(rounding);
        let per_limit = whole.saturating_sub(input);
        if left <= 0 || per_limit <= 0 {
            return None;
        }
        let fits = i128::from(left) * i128::from(output.tokens) / i128::from(per_limit);
        let fits = u32::try_from(fits).unwrap_or(u32::MAX).min(output.tokens.saturating_sub(1));
        let least = self.min_output_tokens.unwrap_or(OUTPUT_TOKENS_MIN);
        (fits >= least && fits > output.thinking_tokens).then_some(fits)
    }

    /// Returns the start of the period that contains `at`, and the start of the next one. A budget
    /// per run or session has one period for all time, and so has one beyond the calendar's range.
    pub fn period(&self, at: Timestamp) -> (Timestamp, Timestamp) {
        self.calendar_period(at).unwrap_or((Timestamp(i64::MIN), Timestamp(i64::MAX)))
    }

    fn calendar_period(&self, at: Timestamp) -> Option<(Timestamp, Timestamp)> {
        let at = jiff::Timestamp::from_millisecond(at.0).ok()?;
        let at = at.to_zoned(self.zone.clone());
        let (start, length) = match self.per {
            Per::Day => (at.start_of_day().ok()?, Span::new().days(1)),
            Per::Month => (at.first_of_month().ok()?.start_of_day().ok()?, Span::new().months(1)),
            Per::Run | Per::Session => return None,
        };
        let end = start.date().checked_add(length).ok()?;
        let end = end.to_zoned(self.zone.clone()).ok()?.start_of_day().ok()?;
        let moment = |zoned: &Zoned| Timestamp(zoned.timestamp().as_millisecond());
        Some((moment(&start), moment(&end)))
    }

    /// Returns the highest of [`WARN_AT_PERCENT`] that `used` reaches, else 0. A limit of 0 is
    /// reached by any use.
    pub fn level(&self, used: i64) -> u8 {
        let limit = i128::from(self.limit.amount());
        let reaches =
            |percent: &u8| used > 0 && i128::from(used) * 100 >= limit * i128::from(*percent);
        let reached = WARN_AT_PERCENT.into_iter().filter(reaches);
        reached.max().unwrap_or(0)
    }

    pub fn warning(&self, amounts: Amounts, percent: u8) -> BudgetWarning {
        BudgetWarning {
            budget: self.name.clone(),
            per: self.per.to_string(),
            percent,
            used: self.limit.show(amounts.used()),
            spent: self.limit.show(amounts.spent),
            held: self.limit.show(amounts.held),
            limit: self.limit.show(self.limit.amount()),
            hard: self.hard,
            kind: WarningKind::Limit,
            session: None,
        }
    }

    /// Returns the reason for refusing a call that needs `reserve` in addition to the present
    /// amounts.
    pub fn refusal(&self, amounts: Amounts, reserve: i64) -> String {
        let limit = self.limit;
        format!(
            "budget `{}` refused the call: limit {} per {}, spent {}, held {}, this call up to {}",
            self.name,
            limit.show(limit.amount()),
            self.per,
            limit.show(amounts.spent),
            limit.show(amounts.held),
            limit.show(reserve),
        )
    }

    /// Returns the error for a call of a session that repeats itself.
    pub fn loop_refusal(&self, sign: &str) -> Error {
        Error::Budget(format!(
            "budget `{}` stopped the session, because it repeats itself: {sign}. Change the \
             request, or start a new session",
            self.name
        ))
    }

    /// Returns the error for a call whose tokens have no known maximum.
    pub fn unbounded_refusal(&self, call: &Scope<'_>) -> Error {
        Error::Budget(format!(
            "budget `{}` refused the call: the tokens of this call of {}/{} have no known maximum. \
             Set `allowUnpriced` for the budget",
            self.name, call.provider, call.model
        ))
    }

    /// Returns the error for a call without a known price.
    pub fn unpriced_refusal(&self, call: &Scope<'_>) -> Error {
        Error::Budget(format!(
            "budget `{}` refused the call: unknown price of {}/{}. Set a price for the model, or \
             `allowUnpriced` for the budget",
            self.name, call.provider, call.model
        ))
    }
}

/// Returns whether a pattern `PROVIDER/MODEL` selects the model. As tolerant as the price table, so
/// that no spelling of a priced model evades a budget.
pub fn is_model(pattern: &str, provider: &str, model: &str) -> bool {
    let (wanted_provider, wanted_model) = pattern.split_once('/').unwrap_or((pattern, ""));
    wanted_provider.trim().to_lowercase() == provider.trim().to_lowercase()
        && selects(wanted_model, model)
}

/// Returns a hash of the budgets in their order.
pub fn version<'a>(all: impl IntoIterator<Item = &'a Budget>) -> String {
    let mut hash = Sha256::new();
    for budget in all {
        hash.update(budget.to_json().to_string());
        // Line breaks separate the budgets, because compact JSON contains none.
        hash.update(b"\n");
    }
    hex(&hash.finalize()[..VERSION_BYTES])
}

/// Returns the reason why no call can match a budget's model, if any. `knows` checks that a
/// provider exists.
pub fn model_fault(pattern: &str, knows: impl Fn(&str) -> bool) -> Option<String> {
    let (provider, model) = pattern.split_once('/').unwrap_or((pattern, ""));
    let start = model.strip_suffix('*').unwrap_or(model);
    if provider.contains('*') || start.contains('*') {
        return Some("a `*` is allowed only at the end of the model name".into());
    }
    if !knows(provider) {
        return Some(format!("unknown provider `{provider}`"));
    }
    model.is_empty().then(|| "has no model after the `/`".into())
}

/// Parses `{"budgets": […]}`.
///
/// # Errors
/// [`Error::Invalid`] lists all faults, each with its field.
pub fn parse_all(document: Value) -> Result<Vec<Budget>> {
    let message = "cannot set the budgets";
    let list = match document {
        Value::Object(mut document) => match (document.remove("budgets"), document.is_empty()) {
            (Some(Value::Array(list)), true) => list,
            _ => {
                return Err(Error::invalid(message, "budgets", "must be the only field, an array"));
            }
        },
        _ => return Err(Error::invalid(message, "", "must be an object")),
    };
    if list.len() > BUDGETS_MAX {
        let fault = format!("has {} items; the limit is {BUDGETS_MAX}", list.len());
        return Err(Error::invalid(message, "budgets", fault));
    }
    let mut faults = Vec::new();
    let mut budgets: Vec<Budget> = Vec::new();
    for (at, value) in list.iter().enumerate() {
        let path = format!("budgets[{at}]");
        let Some(budget) = parse(value, &path, &mut faults) else {
            continue;
        };
        if budgets.iter().any(|other| other.name == budget.name) {
            let why = format!("duplicate budget `{}`", budget.name);
            faults.push(Fault::new(format!("{path}.name"), why));
        }
        budgets.push(budget);
    }
    if faults.is_empty() {
        return Ok(budgets);
    }
    let message = message.to_owned();
    Err(Error::Invalid { message, faults })
}

pub fn parse(value: &Value, path: &str, faults: &mut Vec<Fault>) -> Option<Budget> {
    if !value.is_object() {
        faults.push(Fault::new(path, "must be an object"));
        return None;
    }
    let document: Document = match serde_path_to_error::deserialize(value) {
        Ok(document) => document,
        Err(error) => {
            let field = match error.path().to_string().as_str() {
                "." => path.to_owned(),
                inner => format!("{path}.{inner}"),
            };
            faults.push(Fault::new(field, error.inner().to_string()));
            return None;
        }
    };
    let before = faults.len();
    let mut fault = |key: &str, why: String| faults.push(Fault::new(format!("{path}.{key}"), why));
    if document.name.trim().is_empty() || document.name.len() > NAME_BYTES_MAX {
        let why = format!("must be a string of 1 to {NAME_BYTES_MAX} bytes");
        fault("name", why);
    }
    let limit = document.limit().unwrap_or_else(|why| {
        fault("limitUsd", why);
        Limit::Tokens(0)
    });
    for (key, name) in document.filters() {
        if name.is_empty() || name.len() > FILTER_BYTES_MAX {
            fault(key, format!("must be a string of 1 to {FILTER_BYTES_MAX} bytes"));
        }
    }
    if document
        .tag
        .as_ref()
        .is_some_and(|tag| tag.contains(|c: char| c == ',' || c.is_whitespace()))
    {
        fault("tag", "must be one tag, without commas and spaces".into());
    }
    if let Some(model) = &document.model
        && (!model.contains('/') || model.len() > 2 * NAME_BYTES_MAX)
    {
        let why = "must be `PROVIDER/MODEL`; a `*` at the end matches any rest";
        fault("model", why.into());
    }
    if document.min_output_tokens == Some(0) {
        fault("minOutputTokens", "must be at least 1".into());
    }
    if document.on_loop == OnLoop::Stop && !(document.per == Per::Session && document.hard) {
        fault("onLoop", "`stop` needs a hard budget per session".into());
    }
    let zone = TimeZone::get(&document.timezone).unwrap_or_else(|_| {
        fault("timezone", unknown_zone(&document.timezone));
        TimeZone::UTC
    });
    (faults.len() == before).then_some(Budget {
        name: document.name,
        per: document.per,
        flow_id: document.flow_id,
        model: document.model,
        key: document.key,
        tag: document.tag,
        client: document.client,
        end_user: document.end_user,
        project: document.project,
        include_subscriptions: document.include_subscriptions,
        on_loop: document.on_loop,
        limit,
        hard: document.hard,
        allow_unpriced: document.allow_unpriced,
        bound: document.bound,
        on_short: document.on_short,
        min_output_tokens: document.min_output_tokens,
        timezone: document.timezone,
        zone,
    })
}

impl Document {
    fn limit(&self) -> Result<Limit, String> {
        match (&self.limit_usd, self.limit_tokens) {
            (Some(usd), None) => amount(usd).map(Limit::Usd),
            (None, Some(tokens)) => Ok(Limit::Tokens(tokens)),
            _ => Err("set either `limitUsd` or `limitTokens`".into()),
        }
    }

    /// Returns the names that restrict the budget, with their fields.
    fn filters(&self) -> impl Iterator<Item = (&'static str, &String)> {
        let all = [
            ("tag", &self.tag),
            ("client", &self.client),
            ("endUser", &self.end_user),
            ("project", &self.project),
        ];
        all.into_iter().filter_map(|(key, name)| Some((key, name.as_ref()?)))
    }
}

/// Parses money from a string (exact) or a number.
fn amount(value: &Value) -> Result<Usd, String> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => String::new(),
    };
    let usd: Usd = text.parse()?;
    if usd < Usd::ZERO {
        return Err("must not be negative".into());
    }
    Ok(usd)
}

#[cfg(test)]
mod tests;
