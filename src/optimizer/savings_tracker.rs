//! Measures the savings of applied suggestions: the cost of the calls since, against the cost that the same
//! calls would have had before.
//!
//! Sums live in memory and grow with new rows; a restart rebuilds them from the rows since the application.
//! The journal counts runs as they end, because runs can be deleted. Calls are priced by the prices of their
//! own time, as they were charged.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::Value;

use super::call_stats::WINDOW_DAYS;
use super::models::{at_another, without_cache};
use super::saving::MS_PER_DAY;
use crate::error::{Error, Result};
use crate::event::suggestion::{Kind, Realised, Status, Suggestion};
use crate::event::{CallStatus, FlowId, Timestamp, Usage, Usd};
use crate::flow::{Target, name_of};
use crate::store::{AppliedEdit, CallRow, MEASURED_MS, Store};

/// A run from before a moment may have started this long before it and ended after it.
const RUN_MS_MAX: i64 = MS_PER_DAY;

/// Prices a usage at a provider's model at a moment.
pub type Price<'a> = &'a dyn Fn(&str, &str, &Usage, Timestamp) -> Option<Usd>;

/// All measured suggestions, by flow and id.
#[derive(Default)]
pub struct SavingsTracker {
    flows: HashMap<FlowId, BTreeMap<i64, Tracked>>,
}

/// An applied suggestion.
struct Tracked {
    node_id: String,
    baseline: Baseline,
    since: Timestamp,
    until: Timestamp,
    /// Rows up to this one are from before.
    last_call: i64,
    sums: Sums,
    stored: Option<Realised>,
}

#[derive(Clone, Copy, Default)]
struct Sums {
    calls: u64,
    would_have_cost: Usd,
    cost: Usd,
}

/// What the calls since are compared with.
enum Baseline {
    /// The same tokens at the model before. Failures of the new model, and the calls of its fallbacks, count
    /// against the switch.
    ModelSwitch { from: Target, to: Vec<Target> },
    /// The cost of the calls that the response cache saved.
    Cache,
    /// The same tokens without the provider's cache.
    PromptCache,
    /// The cost of billed failures before, per answered call; without answers, per call.
    RetryWaste {
        nanousd: i64,
        calls: u64,
        were_answered: bool,
    },
    /// The node's cost in a run before.
    DeadNode { per_run: Usd },
    /// A run's duration before.
    Parallel { ms_before: u64 },
    /// It saves neither money nor time.
    MaxTokens,
}

impl SavingsTracker {
    /// Drops the suggestions of a flow that are no longer applied. Adds those that are new to `new`, with
    /// nothing measured yet.
    pub fn update(
        &mut self,
        new: &mut Self,
        store: &Store,
        flow_id: FlowId,
        now: Timestamp,
    ) -> Result<()> {
        let mut applied = store.suggestions_of(flow_id)?;
        applied.retain(|it| it.status == Status::Applied);
        let ids: BTreeSet<i64> = applied.iter().map(|it| it.id).collect();
        let mut known = self.flows.remove(&flow_id).unwrap_or_default();
        known.retain(|id, _| ids.contains(id));
        applied.retain(|it| !known.contains_key(&it.id));
        if !known.is_empty() {
            self.flows.insert(flow_id, known);
        }
        for suggestion in applied {
            let edit = store.applied_edit(suggestion.id)?;
            if let Some(tracked) = Tracked::new(store, &suggestion, edit, now)? {
                let flow = new.flows.entry(flow_id).or_default();
                flow.insert(suggestion.id, tracked);
            }
        }
        Ok(())
    }

    /// Returns the newest row from before the first application, if anything is measured.
    pub fn first_call(&self) -> Option<i64> {
        let all = self.flows.values().flat_map(BTreeMap::values);
        all.map(|tracked| tracked.last_call).min()
    }

    pub fn merge(&mut self, new: Self) {
        for (flow_id, mut tracked) in new.flows {
            self.flows.entry(flow_id).or_default().append(&mut tracked);
        }
    }

    /// Adds a row.
    pub fn take(&mut self, row: &CallRow<'_>, price: Price<'_>) {
        let Some((flow_id, node_id)) = row.node else {
            return;
        };
        let flow = self.flows.get_mut(&flow_id);
        for tracked in flow.into_iter().flat_map(BTreeMap::values_mut) {
            let is_since = row.id > tracked.last_call && row.at <= tracked.until;
            if !is_since || tracked.node_id != node_id || row.status == CallStatus::Pending {
                continue;
            }
            if let Some(more) = tracked.baseline.compare(row, price) {
                let sums = &mut tracked.sums;
                sums.calls += more.calls;
                sums.would_have_cost = sums.would_have_cost.plus(more.would_have_cost);
                sums.cost = sums.cost.plus(more.cost);
            }
        }
    }

    /// Returns measurements that are not stored yet.
    pub fn news(&self, store: &Store) -> Result<Vec<(i64, Realised)>> {
        let mut news = Vec::new();
        for (id, tracked) in self.flows.values().flatten() {
            let runs = match tracked.baseline {
                Baseline::DeadNode { .. } | Baseline::Parallel { .. } => store.runs_since(*id)?,
                _ => (0, 0),
            };
            let realised = tracked.realised(runs);
            news.extend(
                realised
                    .filter(|it| tracked.stored != Some(*it))
                    .map(|it| (*id, it)),
            );
        }
        Ok(news)
    }

    /// Notes that a measurement is stored.
    pub fn stored(&mut self, id: i64, realised: Realised) {
        let mut flows = self.flows.values_mut();
        if let Some(tracked) = flows.find_map(|flow| flow.get_mut(&id)) {
            tracked.stored = Some(realised);
        }
    }
}

impl Tracked {
    /// Returns none if there is nothing to measure, or the time for it is over.
    fn new(
        store: &Store,
        suggestion: &Suggestion,
        edit: AppliedEdit,
        now: Timestamp,
    ) -> Result<Option<Self>> {
        let Some(since) = suggestion.applied_at else {
            return Ok(None);
        };
        let until = Timestamp(since.0.saturating_add(MEASURED_MS));
        if now > until && suggestion.realised.is_some() {
            return Ok(None);
        }
        let baseline = Baseline::new(store, suggestion, &edit, since)?;
        Ok(baseline.map(|baseline| Self {
            node_id: suggestion.proposal.node_id.clone(),
            baseline,
            since,
            until,
            last_call: edit.last_call,
            sums: Sums::default(),
            stored: suggestion.realised,
        }))
    }

    /// Returns none as long as there is nothing to report. `runs` are the completed runs since, and their
    /// total duration in milliseconds.
    fn realised(&self, (runs, runs_ms): (u64, u64)) -> Option<Realised> {
        let mut realised = Realised {
            since: self.since,
            calls: self.sums.calls,
            would_have_cost_usd: self.sums.would_have_cost,
            cost_usd: self.sums.cost,
            saved_usd: Usd::ZERO,
            saved_ms: None,
            run_ms_before: None,
            run_cost_usd_before: None,
        };
        match &self.baseline {
            Baseline::RetryWaste { nanousd, calls, .. } => {
                realised.would_have_cost_usd = share(*nanousd, realised.calls, *calls);
            }
            Baseline::DeadNode { per_run } => {
                realised.calls = runs;
                realised.would_have_cost_usd = share(per_run.nanousd, runs, 1);
                realised.run_cost_usd_before = Some(*per_run);
            }
            Baseline::Parallel { ms_before } => {
                let signed = |ms| i64::try_from(ms).unwrap_or(i64::MAX);
                realised.calls = runs;
                realised.saved_ms = Some(signed(*ms_before) - signed(runs_ms.checked_div(runs)?));
                realised.run_ms_before = Some(*ms_before);
            }
            _ => {}
        }
        realised.saved_usd = minus(realised.would_have_cost_usd, realised.cost_usd);
        (realised.calls > 0 || realised.cost_usd > Usd::ZERO).then_some(realised)
    }
}

impl Baseline {
    /// Returns none if nothing is known from before.
    fn new(
        store: &Store,
        suggestion: &Suggestion,
        edit: &AppliedEdit,
        applied: Timestamp,
    ) -> Result<Option<Self>> {
        let (flow_id, proposal) = (suggestion.flow_id, &suggestion.proposal);
        let evidence = &proposal.evidence;
        let stored = suggestion.realised;
        let runs = |since: Timestamp| {
            let began = Timestamp(since.0.saturating_sub(RUN_MS_MAX));
            store.run_totals(flow_id, began, since, applied)
        };
        Ok(match proposal.kind {
            Kind::ModelSwitch => {
                let from = targets(&edit.before, &proposal.node_id)?.into_iter().next();
                let to = targets(&edit.after, &proposal.node_id)?;
                from.map(|from| Self::ModelSwitch { from, to })
            }
            Kind::Cache => Some(Self::Cache),
            Kind::PromptCache => Some(Self::PromptCache),
            Kind::RetryWaste => {
                let number = |key: &str| evidence[key].as_u64().unwrap_or(0);
                let answered = number("answeredCalls");
                let wasted = number("failedCalls") + number("timedOutCalls");
                let nanousd = evidence["wastedCostNanousd"].as_i64();
                nanousd.map(|nanousd| Self::RetryWaste {
                    nanousd,
                    calls: if answered > 0 { answered } else { wasted },
                    were_answered: answered > 0,
                })
            }
            Kind::DeadNode => {
                let mut per_run = stored.and_then(|stored| stored.run_cost_usd_before);
                let since = serde_json::from_value(evidence["since"].clone()).ok();
                let cost = since.zip(evidence["costNanousd"].as_i64());
                if let (None, Some((since, nanousd))) = (per_run, cost) {
                    let (count, _) = runs(since)?;
                    per_run = (count > 0).then(|| share(nanousd, 1, count));
                }
                per_run.map(|per_run| Self::DeadNode { per_run })
            }
            Kind::Parallel => {
                let mut ms_before = stored.and_then(|stored| stored.run_ms_before);
                if ms_before.is_none() {
                    let since = applied.0.saturating_sub(WINDOW_DAYS * MS_PER_DAY);
                    let (count, ms) = runs(Timestamp(since))?;
                    ms_before = ms.checked_div(count);
                }
                ms_before.map(|ms_before| Self::Parallel { ms_before })
            }
            Kind::MaxTokens => Some(Self::MaxTokens),
        })
    }

    /// Compares a call with the cost that it would have had. Returns none if it does not count.
    fn compare(&self, row: &CallRow<'_>, price: Price<'_>) -> Option<Sums> {
        let is_answered = row.status == CallStatus::Success && !row.cached;
        let was_wasted = matches!(row.status, CallStatus::Failed | CallStatus::Timeout);
        let sums = |is_counted: bool, would_have_cost, cost| Sums {
            calls: u64::from(is_counted),
            would_have_cost,
            cost,
        };
        let (cost, zero) = (row.cost, Usd::ZERO);
        let (provider, model) = (row.provider, row.model);
        Some(match self {
            Self::ModelSwitch { from, to } => {
                let is_new =
                    |it: &Target| (it.provider.as_str(), it.model.as_str()) == (provider, model);
                let cost = cost.filter(|_| to.iter().any(is_new))?;
                if was_wasted {
                    return Some(sums(false, zero, cost));
                }
                let usage = at_another(&row.usage, provider, &from.provider);
                let before = price(&from.provider, &from.model, &usage, row.at);
                sums(true, before.filter(|_| is_answered)?, cost)
            }
            Self::Cache => sums(true, row.saved.filter(|_| row.cached)?, zero),
            Self::PromptCache => {
                let cost = cost.filter(|_| is_answered)?;
                let without = price(provider, model, &without_cache(&row.usage), row.at)?;
                let with = price(provider, model, &row.usage, row.at)?;
                sums(true, cost.plus(minus(without, with)), cost)
            }
            Self::RetryWaste { were_answered, .. } => {
                let is_counted = is_answered || (was_wasted && !were_answered);
                sums(
                    is_counted,
                    zero,
                    cost.filter(|_| was_wasted).unwrap_or(zero),
                )
            }
            // Zero, unless the node was put back by hand.
            Self::DeadNode { .. } => sums(false, zero, cost.unwrap_or(zero)),
            Self::Parallel { .. } => return None,
            Self::MaxTokens => sums(is_answered, zero, zero),
        })
    }
}

/// Returns the targets of a node of a stored flow, in the order in which they are asked.
fn targets(document: &str, node_id: &str) -> Result<Vec<Target>> {
    let document: Value = serde_json::from_str(document)
        .map_err(|error| Error::internal(format!("a stored flow cannot be read: {error}")))?;
    let mut nodes = document["data"]["nodes"].as_array().into_iter().flatten();
    let node = nodes.find(|node| name_of(&node["id"]).as_deref() == Some(node_id));
    let data = node.map_or(&Value::Null, |node| &node["data"]);
    let fallbacks = data["fallback"].as_array().into_iter().flatten();
    let target = |of: &Value| {
        let text = |key: &str| of[key].as_str().map(str::to_owned);
        Some(Target {
            provider: text("provider")?,
            model: text("model")?,
        })
    };
    Ok([data]
        .into_iter()
        .chain(fallbacks)
        .filter_map(target)
        .collect())
}

/// Returns `nanousd` × `times` ÷ `by`, rounded down.
fn share(nanousd: i64, times: u64, by: u64) -> Usd {
    let nanousd = i128::from(nanousd) * i128::from(times) / i128::from(by.max(1));
    Usd::from_nanousd(i64::try_from(nanousd).unwrap_or(i64::MAX))
}

fn minus(a: Usd, b: Usd) -> Usd {
    Usd::from_nanousd(a.nanousd.saturating_sub(b.nanousd))
}

#[cfg(test)]
mod tests;
