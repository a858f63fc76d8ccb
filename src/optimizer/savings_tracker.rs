//! Measures the savings of applied suggestions: the cost of the calls since the application,
//! compared with the cost that the same calls would have had before.
//!
//! Sums are kept in memory and grow with new rows; a restart rebuilds them from the rows since the
//! application. The journal counts runs as they end, because runs can be deleted. Calls use the
//! prices in force when they were made.

use std::collections::BTreeMap;

use serde_json::Value;

use super::call_stats::WINDOW_DAYS;
use super::models::{target_in, uncached_usage, usage_at_provider};
use super::read_document;
use super::saving::MS_PER_DAY;
use crate::error::Result;
use crate::event::suggestion::{Kind, Realised, Suggestion};
use crate::event::{CallStatus, Usage};
use crate::flow::{Target, name_of};
use crate::ids::FlowId;
use crate::money::Usd;
use crate::store::{AppliedEdit, CallRow, MEASURED_MS, Store};
use crate::time::Timestamp;

/// The maximum duration of a run that was active at a given time.
const RUN_MS_MAX: i64 = MS_PER_DAY;

/// Returns the cost of a usage at a provider's model at a given time.
pub type Price<'a> = &'a dyn Fn(&str, &str, &Usage, Timestamp) -> Option<Usd>;

/// The applied suggestions, by id; none if a suggestion is no longer measured.
#[derive(Default)]
pub struct SavingsTracker {
    applied: BTreeMap<i64, Option<Tracked>>,
}

struct Tracked {
    flow_id: FlowId,
    node_id: String,
    baseline: Baseline,
    until: Timestamp,
    /// Rows up to this one are from before the application.
    last_call: i64,
    /// The sums over the calls so far.
    sums: Realised,
    stored: Option<Realised>,
}

/// The cost before, for comparison with the calls since.
enum Baseline {
    /// The same tokens at the previous model. Failures of the new model, and the calls of its
    /// fallbacks, count against the switch.
    ModelSwitch { from: Target, to: Vec<Target> },
    /// The cost of the calls that the response cache saved.
    Cache,
    /// The same tokens without the provider's cache.
    PromptCache,
    /// The cost of billed failures before, per answered call; without answers, per call.
    RetryWaste { nanousd: i64, calls: u64, were_answered: bool },
    /// The node's cost per run before.
    DeadNode { per_run: Usd },
    /// A run's duration before.
    Parallel { ms_before: u64 },
    /// Saves neither money nor time.
    MaxTokens,
}

impl SavingsTracker {
    /// Starts to measure newly applied suggestions, and removes those that are no longer applied. A
    /// suggestion that cannot be parsed is not measured.
    pub fn update(&mut self, store: &Store, now: Timestamp) -> Result<()> {
        let ids = store.applied_ids()?;
        self.applied.retain(|id, _| ids.contains(id));
        for id in ids {
            self.applied.entry(id).or_insert_with(|| {
                Tracked::new(store, id, now).unwrap_or_else(|error| {
                    log::warn!("cannot measure the savings of suggestion {id}: {error}");
                    None
                })
            });
        }
        Ok(())
    }

    /// Returns the newest row from before the first application, if any suggestion is measured.
    pub fn first_call(&self) -> Option<i64> {
        let all = self.applied.values().flatten();
        all.map(|tracked| tracked.last_call).min()
    }

    pub fn take(&mut self, row: &CallRow<'_>, price: Price<'_>) {
        let Some((flow_id, node_id)) = row.node else {
            return;
        };
        let of_flow = self.applied.values_mut().flatten();
        for tracked in of_flow.filter(|it| it.flow_id == flow_id) {
            let is_since = row.id > tracked.last_call && row.at <= tracked.until;
            if !is_since || tracked.node_id != node_id || row.status == CallStatus::Pending {
                continue;
            }
            if let Some((is_counted, before, cost)) = tracked.baseline.compare(row, price) {
                let sums = &mut tracked.sums;
                sums.calls += u64::from(is_counted);
                sums.would_have_cost_usd = sums.would_have_cost_usd.plus(before);
                sums.cost_usd = sums.cost_usd.plus(cost);
            }
        }
    }

    /// Returns measurements that are not stored yet.
    pub fn unsaved(&self, store: &Store) -> Result<Vec<(i64, Realised)>> {
        let mut unsaved = Vec::new();
        for (id, tracked) in &self.applied {
            let Some(tracked) = tracked else {
                continue;
            };
            let runs = match tracked.baseline {
                Baseline::DeadNode { .. } | Baseline::Parallel { .. } => store.runs_since(*id)?,
                _ => (0, 0),
            };
            let realised = tracked.realised(runs);
            let new = realised.filter(|it| tracked.stored != Some(*it));
            unsaved.extend(new.map(|it| (*id, it)));
        }
        Ok(unsaved)
    }

    /// Records that a measurement is stored.
    pub fn mark_saved(&mut self, id: i64, realised: Realised) {
        if let Some(Some(tracked)) = self.applied.get_mut(&id) {
            tracked.stored = Some(realised);
        }
    }
}

impl Tracked {
    /// Returns none if there is nothing to measure, or if the time for measuring is over.
    fn new(store: &Store, id: i64, now: Timestamp) -> Result<Option<Self>> {
        let suggestion = store.suggestion(id)?;
        let edit = store.applied_edit(id)?;
        let stored = suggestion.realised;
        let Some(since) = suggestion.applied_at else {
            return Ok(None);
        };
        let until = Timestamp(since.0.saturating_add(MEASURED_MS));
        if now > until && stored.is_some() {
            return Ok(None);
        }
        let baseline = Baseline::new(store, &suggestion, &edit, since)?;
        Ok(baseline.map(|baseline| Self {
            flow_id: suggestion.flow_id,
            node_id: suggestion.proposal.node_id,
            baseline,
            until,
            last_call: edit.last_call,
            sums: empty_measurement(since),
            stored,
        }))
    }

    /// Returns none if there is nothing to report yet. `runs` are the completed runs since the
    /// application, and their total duration in milliseconds.
    fn realised(&self, (runs, runs_ms): (u64, u64)) -> Option<Realised> {
        let mut realised = self.sums;
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

fn empty_measurement(since: Timestamp) -> Realised {
    Realised {
        since,
        calls: 0,
        would_have_cost_usd: Usd::ZERO,
        cost_usd: Usd::ZERO,
        saved_usd: Usd::ZERO,
        saved_ms: None,
        run_ms_before: None,
        run_cost_usd_before: None,
    }
}

impl Baseline {
    /// Returns none if there is no data from before.
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

    /// Returns whether a call counts, its cost before, and its actual cost; none if it is not
    /// compared.
    fn compare(&self, row: &CallRow<'_>, price: Price<'_>) -> Option<(bool, Usd, Usd)> {
        let is_answered = row.status == CallStatus::Success && !row.cached;
        let has_failed = matches!(row.status, CallStatus::Failed | CallStatus::Timeout);
        let (cost, zero) = (row.cost, Usd::ZERO);
        let (provider, model) = (row.provider, row.model);
        Some(match self {
            Self::ModelSwitch { from, to } => {
                let is_new = |it: &Target| it.provider == provider && it.model == model;
                let cost = cost.filter(|_| to.iter().any(is_new))?;
                if has_failed {
                    return Some((false, zero, cost));
                }
                let usage = usage_at_provider(&row.usage, provider, &from.provider);
                let before = price(&from.provider, &from.model, &usage, row.at);
                (true, before.filter(|_| is_answered)?, cost)
            }
            Self::Cache => (true, row.saved.filter(|_| row.cached)?, zero),
            Self::PromptCache => {
                let cost = cost.filter(|_| is_answered)?;
                let without = price(provider, model, &uncached_usage(&row.usage), row.at)?;
                let with = price(provider, model, &row.usage, row.at)?;
                (true, cost.plus(minus(without, with)), cost)
            }
            Self::RetryWaste { were_answered, .. } => {
                let is_counted = is_answered || (has_failed && !were_answered);
                (is_counted, zero, cost.filter(|_| has_failed).unwrap_or(zero))
            }
            // Zero, unless the user put the node back.
            Self::DeadNode { .. } => (false, zero, cost.unwrap_or(zero)),
            Self::Parallel { .. } => return None,
            Self::MaxTokens => (is_answered, zero, zero),
        })
    }
}

/// Returns the targets of a node of a stored flow, in the order in which they are tried.
fn targets(document: &str, node_id: &str) -> Result<Vec<Target>> {
    let document = read_document(document)?;
    let mut nodes = document["data"]["nodes"].as_array().into_iter().flatten();
    let node = nodes.find(|node| name_of(&node["id"]).as_deref() == Some(node_id));
    let data = node.map_or(&Value::Null, |node| &node["data"]);
    let fallbacks = data["fallback"].as_array().into_iter().flatten();
    let all = [data].into_iter().chain(fallbacks);
    Ok(all.filter_map(target_in).collect())
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
