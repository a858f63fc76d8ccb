//! What suggestions have saved since they were applied: what the same calls would have cost before,
//! against what they cost.
//!
//! Summed up in memory for each applied suggestion, as rows come in; rebuilt from the rows after its
//! application when the server starts, which stay; runs may be deleted, and are counted by SQL as they end.
//! Calls are priced with what was in force when they were made,
//! as they were charged themselves.

use std::collections::{BTreeMap, HashMap};

use serde_json::Value;

use super::call_stats::{MS_PER_DAY, Target, WINDOW_DAYS};
use super::models::at_another;
use crate::error::{Error, Result};
use crate::event::suggestion::{Kind, Realised, Status, Suggestion};
use crate::event::{CallStatus, FlowId, RunStatus, Timestamp, Usage, Usd};
use crate::flow::name_of;
use crate::store::{AppliedEdit, CallRow, MEASURED_MS, RunRow, Store, run_ids_from};

/// How long before a moment a run may have begun that ended after it, in days, to be counted as one
/// from before.
const RUN_DAYS: i64 = 1;
/// How many runs are read at a time.
const RUNS_STEP: usize = 1_000;

/// What tokens cost at a provider's model at a moment.
pub type PriceOf<'a> = &'a dyn Fn(&str, &str, &Usage, Timestamp) -> Option<Usd>;

/// All that is measured.
#[derive(Default)]
pub struct Measures {
    flows: HashMap<FlowId, BTreeMap<i64, Measure>>,
}

/// One suggestion that was applied.
struct Measure {
    node_id: String,
    basis: Basis,
    since: Timestamp,
    /// The last moment that counts.
    until: Timestamp,
    /// Rows up to this one were before it was applied.
    last_call: i64,
    /// Whether the rows since then were not shown to it yet.
    is_new: bool,
    calls: u64,
    would_have_cost: Usd,
    cost: Usd,
    /// Completed runs since, and how long they took together, milliseconds.
    runs: u64,
    runs_ms: u64,
    stored: Option<Realised>,
}

/// What it is measured by.
enum Basis {
    /// The same tokens at the model before. What the new one failed to answer, and who was asked then, is
    /// its doing.
    ModelSwitch { from: Target, to: Vec<Target> },
    /// What answers that were kept would have cost.
    Cache,
    /// The same tokens without the provider's cache.
    PromptCache,
    /// What billed failures cost before for so many calls: answered ones; where there were none, any.
    RetryWaste {
        cost: i64,
        calls: u64,
        were_answered: bool,
    },
    /// What the node cost in a run before.
    DeadNode { per_run: Usd },
    /// How long a run took before.
    Parallel { ms_before: u64 },
    /// It saves neither money nor time.
    MaxTokens,
}

impl Measures {
    /// Measures those suggestions of a flow that are applied, and no others of it.
    pub fn follow(
        &mut self,
        store: &Store,
        flow_id: FlowId,
        suggestions: &[(Suggestion, AppliedEdit)],
        now: Timestamp,
    ) -> Result<()> {
        let flow = self.flows.entry(flow_id).or_default();
        let applied = |id: &i64| {
            let mut all = suggestions.iter().map(|(suggestion, _)| suggestion);
            all.any(|it| it.id == *id && it.status == Status::Applied)
        };
        flow.retain(|id, _| applied(id));
        for (suggestion, edit) in suggestions {
            if applied(&suggestion.id) && !flow.contains_key(&suggestion.id) {
                let measure = Measure::of(store, suggestion, edit, now)?;
                flow.extend(measure.map(|measure| (suggestion.id, measure)));
            }
        }
        if flow.is_empty() {
            self.flows.remove(&flow_id);
        }
        Ok(())
    }

    /// Takes in a row that is settled.
    pub fn take(&mut self, row: &CallRow<'_>, price: PriceOf<'_>) {
        self.show(row, price, false);
    }

    /// After which row those begin that have not been shown to all; none where they have.
    pub fn missing_after(&self) -> Option<i64> {
        let all = self.flows.values().flat_map(BTreeMap::values);
        let new = all.filter(|measure| measure.is_new);
        new.map(|measure| measure.last_call).min()
    }

    /// Those that have not been shown all begin with nothing, also where they were shown a part before.
    pub fn begin_to_catch_up(&mut self) {
        let all = self.flows.values_mut().flat_map(BTreeMap::values_mut);
        for measure in all.filter(|measure| measure.is_new) {
            measure.calls = 0;
            (measure.would_have_cost, measure.cost) = (Usd::ZERO, Usd::ZERO);
        }
    }

    /// Takes in a row that was not shown to all, and is settled.
    pub fn catch_up(&mut self, row: &CallRow<'_>, price: PriceOf<'_>) {
        self.show(row, price, true);
    }

    /// All rows were shown to all.
    pub fn caught_up(&mut self) {
        let all = self.flows.values_mut().flat_map(BTreeMap::values_mut);
        all.for_each(|measure| measure.is_new = false);
    }

    fn show(&mut self, row: &CallRow<'_>, price: PriceOf<'_>, to_new: bool) {
        let Some((flow_id, node_id)) = row.node else {
            return;
        };
        let Some(flow) = self.flows.get_mut(&flow_id) else {
            return;
        };
        for measure in flow.values_mut() {
            let counts = row.id > measure.last_call && row.at <= measure.until;
            if measure.is_new == to_new && counts && measure.node_id == node_id {
                measure.add(row, price);
            }
        }
    }

    /// What is measured of suggestions and not stored yet.
    pub fn news(&mut self, store: &Store) -> Result<Vec<(i64, Realised)>> {
        let mut news = Vec::new();
        for (id, measure) in self.flows.values_mut().flatten() {
            if measure.basis.is_about_runs() {
                (measure.runs, measure.runs_ms) = store.runs_since(*id)?;
            }
            if let Some(realised) = measure.realised()
                && !measure.is_new
                && measure.stored != Some(realised)
            {
                news.push((*id, realised));
            }
        }
        Ok(news)
    }

    /// That is stored now.
    pub fn stored(&mut self, id: i64, realised: Realised) {
        let mut all = self.flows.values_mut();
        if let Some(measure) = all.find_map(|flow| flow.get_mut(&id)) {
            measure.stored = Some(realised);
        }
    }
}

impl Measure {
    /// None where nothing is to be measured, or not any more.
    fn of(
        store: &Store,
        suggestion: &Suggestion,
        edit: &AppliedEdit,
        now: Timestamp,
    ) -> Result<Option<Self>> {
        let Some(since) = suggestion.applied_at else {
            return Ok(None);
        };
        let until = Timestamp(since.0.saturating_add(MEASURED_MS));
        if now > until && suggestion.realised.is_some() {
            return Ok(None);
        }
        let Some(basis) = Basis::of(store, suggestion, edit, since)? else {
            return Ok(None);
        };
        Ok(Some(Self {
            node_id: suggestion.proposal.node_id.clone(),
            basis,
            since,
            until,
            last_call: edit.last_call,
            is_new: true,
            calls: 0,
            would_have_cost: Usd::ZERO,
            cost: Usd::ZERO,
            runs: 0,
            runs_ms: 0,
            stored: suggestion.realised,
        }))
    }

    fn add(&mut self, row: &CallRow<'_>, price: PriceOf<'_>) {
        let is_answered = row.status == CallStatus::Success && !row.cached;
        let was_wasted = matches!(row.status, CallStatus::Failed | CallStatus::Timeout);
        match &self.basis {
            Basis::ModelSwitch { from, to } => {
                let is_it = |target: &Target| row.provider == target.0 && row.model == target.1;
                let Some(cost) = row.cost.filter(|_| to.iter().any(is_it)) else {
                    return;
                };
                if was_wasted {
                    self.cost = self.cost.plus(cost);
                }
                if !is_answered {
                    return;
                }
                let usage = at_another(&row.usage, row.provider, &from.0);
                if let Some(before) = price(&from.0, &from.1, &usage, row.at) {
                    self.count(before, cost);
                }
            }
            Basis::Cache => {
                if let Some(saved) = row.saved.filter(|_| row.cached) {
                    self.count(saved, Usd::ZERO);
                }
            }
            Basis::PromptCache => {
                let Some(cost) = row.cost.filter(|_| is_answered) else {
                    return;
                };
                let plain = Usage {
                    cached_input_tokens: 0,
                    cache_write_tokens: 0,
                    cache_write_1h_tokens: 0,
                    ..row.usage
                };
                let price = |usage| price(row.provider, row.model, usage, row.at);
                if let (Some(without), Some(with)) = (price(&plain), price(&row.usage)) {
                    self.count(cost.plus(minus(without, with)), cost);
                }
            }
            Basis::RetryWaste { were_answered, .. } => {
                self.calls += u64::from(is_answered || (was_wasted && !were_answered));
                let wasted = row.cost.filter(|_| was_wasted);
                self.cost = self.cost.plus(wasted.unwrap_or(Usd::ZERO));
            }
            Basis::DeadNode { .. } => {
                // Nothing, unless somebody has put the node back.
                self.cost = self.cost.plus(row.cost.unwrap_or(Usd::ZERO));
            }
            Basis::Parallel { .. } => {}
            Basis::MaxTokens => self.calls += u64::from(is_answered),
        }
    }

    fn count(&mut self, would_have_cost: Usd, cost: Usd) {
        self.calls += 1;
        self.would_have_cost = self.would_have_cost.plus(would_have_cost);
        self.cost = self.cost.plus(cost);
    }

    /// None before there is something to measure.
    fn realised(&self) -> Option<Realised> {
        let mut realised = Realised {
            since: self.since,
            calls: self.calls,
            would_have_cost_usd: self.would_have_cost,
            cost_usd: self.cost,
            saved_usd: Usd::ZERO,
            saved_ms: None,
            run_ms_before: None,
            run_cost_usd_before: None,
        };
        match &self.basis {
            Basis::RetryWaste { cost, calls, .. } => {
                realised.would_have_cost_usd = part(*cost, self.calls, *calls);
            }
            Basis::DeadNode { per_run } => {
                realised.calls = self.runs;
                realised.would_have_cost_usd = part(per_run.nanousd, self.runs, 1);
                realised.run_cost_usd_before = Some(*per_run);
            }
            Basis::Parallel { ms_before } => {
                let ms = self.runs_ms.checked_div(self.runs)?;
                let signed = |ms| i64::try_from(ms).unwrap_or(i64::MAX);
                realised.calls = self.runs;
                realised.saved_ms = Some(signed(*ms_before) - signed(ms));
                realised.run_ms_before = Some(*ms_before);
            }
            _ => {}
        }
        realised.saved_usd = minus(realised.would_have_cost_usd, realised.cost_usd);
        (realised.calls > 0 || realised.cost_usd > Usd::ZERO).then_some(realised)
    }
}

impl Basis {
    /// None where nothing is known from before.
    fn of(
        store: &Store,
        suggestion: &Suggestion,
        edit: &AppliedEdit,
        since: Timestamp,
    ) -> Result<Option<Self>> {
        let flow_id = suggestion.flow_id;
        let evidence = &suggestion.proposal.evidence;
        let stored = suggestion.realised;
        Ok(match suggestion.proposal.kind {
            Kind::ModelSwitch => {
                let node_id = &suggestion.proposal.node_id;
                let from = targets(&edit.before, node_id)?.into_iter().next();
                let to = targets(&edit.after, node_id)?;
                from.map(|from| Self::ModelSwitch { from, to })
            }
            Kind::Cache => Some(Self::Cache),
            Kind::PromptCache => Some(Self::PromptCache),
            Kind::RetryWaste => {
                let number = |key: &str| evidence[key].as_u64().unwrap_or(0);
                let answered = number("answeredCalls");
                let wasted = number("failedCalls") + number("timedOutCalls");
                let cost = evidence["wastedCostNanousd"].as_i64();
                cost.map(|cost| Self::RetryWaste {
                    cost,
                    calls: if answered > 0 { answered } else { wasted },
                    were_answered: answered > 0,
                })
            }
            Kind::DeadNode => {
                let per_run = match stored.and_then(|stored| stored.run_cost_usd_before) {
                    Some(per_run) => Some(per_run),
                    None => cost_per_run(store, flow_id, evidence, since)?,
                };
                per_run.map(|per_run| Self::DeadNode { per_run })
            }
            Kind::Parallel => {
                let ms_before = match stored.and_then(|stored| stored.run_ms_before) {
                    Some(ms) => Some(ms),
                    None => {
                        let from = since.0.saturating_sub(WINDOW_DAYS * MS_PER_DAY);
                        Runs::ended(store, flow_id, Timestamp(from), since)?.average_ms()
                    }
                };
                ms_before.map(|ms_before| Self::Parallel { ms_before })
            }
            Kind::MaxTokens => Some(Self::MaxTokens),
        })
    }

    fn is_about_runs(&self) -> bool {
        matches!(self, Self::DeadNode { .. } | Self::Parallel { .. })
    }
}

/// The targets that a node of a stored flow asks, in turn.
fn targets(document: &str, node_id: &str) -> Result<Vec<Target>> {
    let document: Value = serde_json::from_str(document)
        .map_err(|error| Error::internal(format!("a stored flow cannot be read: {error}")))?;
    let nodes = document["data"]["nodes"].as_array();
    let node = nodes.into_iter().flatten().find(|node| {
        let id = name_of(&node["id"]);
        id.as_deref() == Some(node_id)
    });
    let data = node.map_or(&Value::Null, |node| &node["data"]);
    let others = data["fallback"].as_array().into_iter().flatten();
    let target = |of: &Value| {
        let text = |key: &str| of[key].as_str().map(str::to_owned);
        text("provider").zip(text("model"))
    };
    Ok(std::iter::once(data)
        .chain(others)
        .filter_map(target)
        .collect())
}

/// What the calls in the evidence cost, shared by the runs of that time.
fn cost_per_run(
    store: &Store,
    flow_id: FlowId,
    evidence: &Value,
    applied: Timestamp,
) -> Result<Option<Usd>> {
    let first: Option<Timestamp> = serde_json::from_value(evidence["since"].clone()).ok();
    let Some((first, cost)) = first.zip(evidence["costNanousd"].as_i64()) else {
        return Ok(None);
    };
    let runs = Runs::ended(store, flow_id, first, applied)?;
    Ok((runs.completed > 0).then(|| part(cost, 1, runs.completed)))
}

/// `nanousd` × `times` ÷ `by`, rounded down.
fn part(nanousd: i64, times: u64, by: u64) -> Usd {
    let nanousd = i128::from(nanousd) * i128::from(times) / i128::from(by.max(1));
    Usd::from_nanousd(i64::try_from(nanousd).unwrap_or(i64::MAX))
}

fn minus(a: Usd, b: Usd) -> Usd {
    Usd::from_nanousd(a.nanousd.saturating_sub(b.nanousd))
}

/// The completed runs of a flow of some time.
#[derive(Default)]
struct Runs {
    completed: u64,
    ms: u64,
}

impl Runs {
    /// Those that ended since a moment, and were asked for before another.
    fn ended(store: &Store, flow_id: FlowId, since: Timestamp, until: Timestamp) -> Result<Self> {
        let from = Timestamp(since.0.saturating_sub(RUN_DAYS * MS_PER_DAY));
        let (mut cursor, end) = (run_ids_from(from), run_ids_from(until));
        let mut runs = Self::default();
        while cursor < end {
            let last = store.run_facts_after(flow_id, &cursor, RUNS_STEP, |run| {
                let has_ended = run.finished_at.is_some_and(|at| at >= since);
                if has_ended && run.id < end.as_str() {
                    runs.add(run);
                }
            })?;
            match last {
                Some(last) => cursor = last,
                None => break,
            }
        }
        Ok(runs)
    }

    fn add(&mut self, run: &RunRow<'_>) {
        if run.status == RunStatus::Completed {
            self.completed += 1;
            self.ms = self.ms.saturating_add(run.took_ms.unwrap_or(0));
        }
    }

    fn average_ms(&self) -> Option<u64> {
        self.ms.checked_div(self.completed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::UsageSource;

    /// A nano-dollar for each token, a tenth of it for those that were kept.
    fn price(_: &str, _: &str, usage: &Usage, _: Timestamp) -> Option<Usd> {
        let tokens = usage.input_tokens + usage.output_tokens;
        let nanousd = tokens * 10 - usage.cached_input_tokens * 9;
        Some(Usd::from_nanousd(i64::try_from(nanousd).unwrap()))
    }

    fn measure(basis: Basis) -> Measures {
        let measure = Measure {
            node_id: "n".to_owned(),
            basis,
            since: Timestamp(1_000),
            until: Timestamp(9_000),
            last_call: 10,
            is_new: false,
            calls: 0,
            would_have_cost: Usd::ZERO,
            cost: Usd::ZERO,
            runs: 0,
            runs_ms: 0,
            stored: None,
        };
        let flow = BTreeMap::from([(7, measure)]);
        Measures {
            flows: HashMap::from([(1, flow)]),
        }
    }

    fn answered(id: i64, cached_input_tokens: u64, nanousd: i64) -> CallRow<'static> {
        CallRow {
            id,
            at: Timestamp(2_000),
            node: Some((1, "n")),
            provider: "p",
            model: "m",
            status: CallStatus::Success,
            usage: Usage {
                input_tokens: 100,
                cached_input_tokens,
                output_tokens: 10,
                source: UsageSource::Provider,
                ..Usage::default()
            },
            cost: Some(Usd::from_nanousd(nanousd)),
            latency_ms: Some(5),
            begun_ms: Some(5),
            prompt_hash: "h",
            cached: false,
            saved: None,
            refused: false,
        }
    }

    fn realised(measures: &Measures) -> Option<Realised> {
        measures.flows[&1][&7].realised()
    }

    #[test]
    fn what_a_provider_kept_of_prompts_is_compared_with_the_same_prompts_paid_in_full() {
        let mut measures = measure(Basis::PromptCache);
        assert_eq!(realised(&measures), None);
        measures.take(&answered(11, 0, 1_100), &price);
        // 90 tokens for a tenth.
        measures.take(&answered(12, 90, 290), &price);
        let realised = realised(&measures).unwrap();
        assert_eq!(realised.calls, 2);
        assert_eq!(realised.would_have_cost_usd.nanousd, 2_200);
        assert_eq!(realised.saved_usd.nanousd, 810);
    }

    #[test]
    fn only_what_came_after_it_was_applied_counts_and_not_for_ever() {
        let mut measures = measure(Basis::MaxTokens);
        measures.take(&answered(10, 0, 1), &price);
        let late = CallRow {
            at: Timestamp(9_001),
            ..answered(11, 0, 1)
        };
        measures.take(&late, &price);
        let elsewhere = CallRow {
            node: Some((1, "other")),
            ..answered(12, 0, 1)
        };
        measures.take(&elsewhere, &price);
        assert_eq!(realised(&measures), None);
        measures.take(&answered(13, 0, 1), &price);
        assert_eq!(realised(&measures).map(|it| it.calls), Some(1));
    }

    #[test]
    fn what_costs_more_than_before_has_saved_less_than_nothing() {
        let target = |model: &str| ("p".to_owned(), model.to_owned());
        let (from, to) = (target("before"), target("m"));
        let mut measures = measure(Basis::ModelSwitch { from, to: vec![to] });
        measures.take(&answered(11, 0, 1_500), &price);
        let realised = realised(&measures).unwrap();
        assert_eq!(realised.would_have_cost_usd.nanousd, 1_100);
        assert_eq!(realised.saved_usd.nanousd, -400);
    }

    #[test]
    fn what_a_new_model_failed_to_answer_and_who_was_asked_then_is_its_doing() {
        let target = |model: &str| ("p".to_owned(), model.to_owned());
        let to = vec![target("m"), target("other")];
        let from = target("before");
        let mut measures = measure(Basis::ModelSwitch { from, to });
        let failed = CallRow {
            status: CallStatus::Failed,
            ..answered(11, 0, 300)
        };
        measures.take(&failed, &price);
        let instead = CallRow {
            model: "other",
            ..answered(12, 0, 500)
        };
        measures.take(&instead, &price);
        let elsewhere = CallRow {
            model: "by hand",
            ..answered(13, 0, 700)
        };
        measures.take(&elsewhere, &price);
        let realised = realised(&measures).unwrap();
        assert_eq!((realised.calls, realised.cost_usd.nanousd), (1, 800));
        assert_eq!(realised.would_have_cost_usd.nanousd, 1_100);
    }

    #[test]
    fn failures_are_measured_also_where_nothing_was_answered_before() {
        let mut measures = measure(Basis::RetryWaste {
            cost: 900,
            calls: 3,
            were_answered: false,
        });
        measures.take(&answered(11, 0, 50), &price);
        let failed = CallRow {
            status: CallStatus::Timeout,
            ..answered(12, 0, 300)
        };
        measures.take(&failed, &price);
        let realised = realised(&measures).unwrap();
        assert_eq!((realised.calls, realised.cost_usd.nanousd), (2, 300));
        assert_eq!(realised.would_have_cost_usd.nanousd, 600);
    }

    #[test]
    fn one_that_was_just_applied_counts_what_it_missed_once_also_where_it_is_shown_again() {
        let mut measures = measure(Basis::MaxTokens);
        let flow = measures.flows.get_mut(&1).unwrap();
        flow.get_mut(&7).unwrap().is_new = true;
        measures.take(&answered(11, 0, 1), &price);
        assert_eq!(realised(&measures), None);
        assert_eq!(measures.missing_after(), Some(10));
        // The rows after the first could not be read, so that all are shown again.
        for _ in 0..2 {
            measures.begin_to_catch_up();
            measures.catch_up(&answered(11, 0, 1), &price);
        }
        measures.caught_up();
        assert_eq!(measures.missing_after(), None);
        measures.take(&answered(12, 0, 1), &price);
        assert_eq!(realised(&measures).map(|it| it.calls), Some(2));
    }
}
