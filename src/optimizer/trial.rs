//! Trials: stored inputs of a node are sent to another model before the flow changes, so that users
//! can compare both answers.
//!
//! The calls are paid, and the ledger lists them with the flow, but without a run and a node: they
//! are no evidence for suggestions, and no part of a run's sums. A trial continues after its client
//! disconnects, because its calls are paid for and its answers are kept.

use std::collections::BTreeSet;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::Serialize;

use super::chosen;
use super::models::{target_in, usage_at_provider};
use super::read_document;
use super::rules::agent;
use crate::budget::Reserve;
use crate::calls::{self, CallOutcome, CallRequest, Calls, Ended, PromptSize, Waiter, prompt_hash};
use crate::error::{Error, Result};
use crate::event::suggestion::{
    Kind, Proposal, Status, Trial, TrialAnswer, TrialItem, TrialOutcome,
};
use crate::event::{Attribution, UsageSource, preview};
use crate::flow::{Agent, Graph, TEMPLATE_STACK_BYTES_MIN, Target};
use crate::ids::{FlowId, RunId, time_sorted_uuid};
use crate::money::Usd;
use crate::providers::{ANSWER_TOKENS_ASSUMED, CacheMarks, Call, Cancel, FailureKind};
use crate::store::{Change, NewCall, Store, StoredInput};
use crate::threads::map_parallel;
use crate::time::Timestamp;

const TRIALS_MAX: usize = 2;
const PARALLEL_CALLS_MAX: usize = 4;
/// Longer texts are cut; the run has the full prompt.
const TEXT_BYTES_MAX: usize = 64 << 10;
/// The same as in the engine, which makes the same calls.
const STACK_BYTES: usize = TEMPLATE_STACK_BYTES_MIN;
/// Finish reasons of answers that reached the limit: OpenAI and Ollama, Anthropic, Gemini.
const CUT_REASONS: &[&str] = &["length", "max_tokens", "MAX_TOKENS"];
/// The role of the calls in the ledger.
const ROLE: &str = "trial";

pub struct Trials {
    store: Arc<Store>,
    calls: Calls,
    in_flight: Mutex<BTreeSet<i64>>,
    changed: Condvar,
    /// Ends the calls of all trials.
    stopping: Cancel,
}

struct InFlightGuard<'a> {
    trials: &'a Trials,
    suggestion_id: i64,
}

/// A trial that can be made.
pub struct Plan {
    suggestion_id: i64,
    flow_id: FlowId,
    current: Target,
    target: Target,
    answer_tokens_max: u32,
    calls: Vec<(StoredInput, Call)>,
}

/// The calls of a trial and their cost.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Estimate<'a> {
    /// `provider/model`.
    pub target: String,
    pub calls: usize,
    /// The cost of the stored calls at this target, if known.
    pub expected_cost_usd: Option<Usd>,
    pub answer_tokens_max: u32,
    /// The amount that budgets must have left, if known.
    pub worst_cost_usd: Option<Usd>,
    /// Newest first.
    pub inputs: Vec<EstimatedInput<'a>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EstimatedInput<'a> {
    /// The run that stored it.
    pub run_id: &'a RunId,
    /// The index of a map's item.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub item: Option<usize>,
    pub at: Timestamp,
    pub prompt_preview: &'a str,
}

impl Trials {
    pub fn new(store: Arc<Store>, calls: Calls) -> Self {
        Self {
            store,
            calls,
            in_flight: Mutex::default(),
            changed: Condvar::new(),
            stopping: Cancel::new(),
        }
    }

    /// Plans a trial of up to `count` of the newest stored inputs, with the recommended model or
    /// the named alternative.
    ///
    /// # Errors
    /// [`Error::Conflict`] when there is nothing to try, [`Error::Invalid`] for an unknown
    /// alternative.
    pub fn plan(&self, id: i64, count: usize, alternative: Option<&str>) -> Result<Plan> {
        let suggestion = self.store.suggestion(id)?;
        let proposal = chosen(&suggestion.proposal, alternative)?;
        if proposal.kind != Kind::ModelSwitch {
            return Err(Error::Conflict(format!(
                "suggestion {id} is of kind {}; only {} supports trials",
                proposal.kind,
                Kind::ModelSwitch
            )));
        }
        // Only these can still be applied.
        if !matches!(suggestion.status, Status::Open | Status::Dismissed) {
            return Err(Error::Conflict(format!(
                "suggestion {id} is {}; only open and dismissed suggestions support trials",
                suggestion.status
            )));
        }
        let targets = target_in(&proposal.evidence).zip(target_in(&proposal.edit["values"]));
        let (current, target) =
            targets.ok_or_else(|| Error::internal(format!("suggestion {id} has no models")))?;
        let agent = self.agent(suggestion.flow_id, &proposal)?;
        self.calls.providers().check(&target.provider).map_err(Error::Conflict)?;
        let (flow_id, node_id) = (suggestion.flow_id, &proposal.node_id);
        let inputs = self.store.newest_inputs(flow_id, node_id, &current, count)?;
        if inputs.is_empty() {
            return Err(Error::Conflict(format!(
                "no stored input of a successful call to {}: the runs were deleted or are too old; run the flow and retry",
                name(&current)
            )));
        }
        let calls = inputs.into_iter().map(|input| {
            let call = call(&agent, &target, &input);
            (input, call)
        });
        Ok(Plan {
            suggestion_id: id,
            flow_id,
            current,
            calls: calls.collect(),
            answer_tokens_max: answer_tokens_max(&agent),
            target,
        })
    }

    /// Returns the LLM call of the node in the current flow.
    fn agent(&self, flow_id: FlowId, proposal: &Proposal) -> Result<Agent> {
        let flow = self.store.flow(flow_id).map_err(|error| match error {
            Error::NotFound(_) => Error::Conflict(format!("flow {flow_id} was deleted")),
            other => other,
        })?;
        let document = read_document(&flow.document)?;
        let knows = |provider: &str| self.calls.providers().knows(provider);
        let graph = Graph::parse(&document["data"], &knows).map_err(|_| {
            Error::Conflict(format!("flow {flow_id} is not valid; fix it and retry"))
        })?;
        let node_id = &proposal.node_id;
        let node = graph.nodes().iter().find(|node| node.id == *node_id);
        node.and_then(agent).cloned().ok_or_else(|| {
            Error::Conflict(format!("node `{node_id}` of flow {flow_id} no longer calls a model"))
        })
    }

    /// Estimates the cost of a trial, without a call.
    pub fn estimate<'a>(&self, plan: &'a Plan) -> Estimate<'a> {
        let now = Timestamp::now();
        let providers = self.calls.providers();
        let expected = |(input, call): &(StoredInput, Call)| {
            let usage = usage_at_provider(&input.usage, &plan.current.provider, &call.provider);
            let is_known = usage.source != UsageSource::None;
            let cost = providers.cost_of(&call.provider, &call.model, &usage, now);
            cost.filter(|_| is_known)
        };
        let worst = |(_, call): &(StoredInput, Call)| providers.reserve(call, now).cost;
        let shown = |(input, _): &'a (StoredInput, Call)| EstimatedInput {
            run_id: &input.run_id,
            item: input.item,
            at: input.at,
            prompt_preview: preview(&input.prompt.prompt),
        };
        Estimate {
            target: name(&plan.target),
            calls: plan.calls.len(),
            answer_tokens_max: plan.answer_tokens_max,
            expected_cost_usd: sum(plan.calls.iter().map(expected)),
            worst_cost_usd: sum(plan.calls.iter().map(worst)),
            inputs: plan.calls.iter().map(shown).collect(),
        }
    }

    /// Makes the calls, waits for them, and stores the answers with the suggestion. A failed call
    /// has its error in place of the answer.
    ///
    /// # Errors
    /// [`Error::Busy`] when too many trials are in flight, [`Error::Conflict`] when this one is,
    /// [`Error::Stopping`] during shutdown.
    pub fn make(&self, plan: &Plan) -> Result<()> {
        let _guard = self.enter(plan.suggestion_id)?;
        let at = Timestamp::now();
        let trial_id = time_sorted_uuid();
        let make_call = |number: usize, (_, call): &(StoredInput, Call)| {
            let operation_id = format!("{ROLE}:{trial_id}[{number}]");
            self.make_call(plan.flow_id, call, operation_id, &self.stopping)
        };
        let outcomes = map_parallel(ROLE, PARALLEL_CALLS_MAX, STACK_BYTES, &plan.calls, make_call);
        let both = plan.calls.iter().zip(outcomes);
        let items: Vec<TrialItem> = both.map(|((input, _), after)| item(input, after)).collect();
        // An empty trial does not replace an earlier one.
        if self.stopping.is_cancelled() && answered(&items).next().is_none() {
            return Err(Error::Stopping);
        }
        let trial = Trial {
            at,
            target: name(&plan.target),
            before_cost_usd: sum(answered(&items).map(|(before, _)| before.cost_usd)),
            after_cost_usd: sum(answered(&items).map(|(_, after)| after.cost_usd)),
            items,
        };
        let change = Change::SetTrial { id: plan.suggestion_id, trial: Box::new(trial) };
        self.calls.commit(vec![change])
    }

    /// Makes one call of a trial.
    fn make_call(
        &self,
        flow_id: FlowId,
        call: &Call,
        operation_id: String,
        cancel: &Cancel,
    ) -> TrialOutcome {
        let request = CallRequest {
            call,
            row: NewCall {
                at: Timestamp::now(),
                flow_id: Some(flow_id),
                run_id: None,
                node_id: None,
                attempt: 1,
                operation_id,
                provider: call.provider.clone(),
                model: call.model.clone(),
                role: Some(ROLE.to_owned()),
                prompt_hash: prompt_hash(call),
                key_name: None,
                tags: None,
                attribution: Attribution::default(),
                billing: None,
                looping: None,
                reserve: Reserve::default(),
                bounds: None,
            },
            prompt: PromptSize::OfCall,
            cache: None,
            has_own_key: false,
        };
        let waiter = Waiter { cancel, has_left: &|| cancel.is_cancelled() };
        let ended = self.calls.wait(&request, &waiter).map_or_else(
            |ended| *ended,
            |resources| {
                let providers = self.calls.providers();
                let exchange = |_| {
                    let answer = providers.call(call, cancel, &mut |_| {});
                    (answer.map_err(Box::new), None)
                };
                self.calls.make(&request, resources, Vec::new(), exchange)
            },
        );
        let (outcome, changes) = outcome(call, ended);
        if !changes.is_empty()
            && let Err(error) = self.calls.settle_and_wait(changes)
        {
            log::error!("cannot settle a call of a trial: {error}");
        }
        outcome
    }

    fn in_flight(&self) -> MutexGuard<'_, BTreeSet<i64>> {
        self.in_flight.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, suggestion_id: i64) -> Result<InFlightGuard<'_>> {
        let mut in_flight = self.in_flight();
        if self.stopping.is_cancelled() {
            return Err(Error::Stopping);
        }
        if in_flight.contains(&suggestion_id) {
            return Err(Error::Conflict(format!(
                "a trial of suggestion {suggestion_id} is already running"
            )));
        }
        if in_flight.len() >= TRIALS_MAX {
            return Err(Error::Busy(format!(
                "too many trials at once; the limit is {TRIALS_MAX}; try again later"
            )));
        }
        in_flight.insert(suggestion_id);
        Ok(InFlightGuard { trials: self, suggestion_id })
    }

    /// Cancels all trials and refuses new ones. Does not wait.
    pub fn stop(&self) {
        self.stopping.cancel();
    }

    /// Waits until all trials have ended, up to the deadline. Returns the number of remaining
    /// trials.
    pub fn wait_for_all(&self, deadline: Instant) -> usize {
        let time = deadline.saturating_duration_since(Instant::now());
        let (in_flight, _) = self
            .changed
            .wait_timeout_while(self.in_flight(), time, |it| !it.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        in_flight.len()
    }
}

impl Drop for InFlightGuard<'_> {
    fn drop(&mut self) {
        self.trials.in_flight().remove(&self.suggestion_id);
        self.trials.changed.notify_all();
    }
}

/// Returns the result of a trial's call, and the changes to commit.
fn outcome(call: &Call, ended: Ended) -> (TrialOutcome, Vec<Change>) {
    let mut changes = ended.changes;
    let outcome = match ended.outcome {
        CallOutcome::Answered(answer) => {
            let cost_usd = changes.iter().find_map(|change| match change {
                Change::SettleCall(settlement) => settlement.charge.cost,
                _ => None,
            });
            let reason = answer.finish_reason.unwrap_or_default();
            TrialOutcome::Answered(TrialAnswer {
                model: answer.model,
                output: truncated(&answer.text),
                input_tokens: answer.usage.input_tokens,
                output_tokens: answer.usage.output_tokens,
                cost_usd,
                latency_ms: Some(answer.latency_ms),
                is_cut: CUT_REASONS.contains(&reason.as_str()),
            })
        }
        // Only a shutdown cancels a trial.
        CallOutcome::Failed(failure) if failure.kind == FailureKind::Cancelled => {
            changes = calls::interrupted(changes);
            failed(Error::Stopping.to_string())
        }
        CallOutcome::Failed(failure) => failed(failure.message),
        CallOutcome::Cancelled => failed(Error::Stopping.to_string()),
        CallOutcome::RateLimited(wait) => failed(format!(
            "rate limit of provider {} reached; retry in {} s",
            call.provider,
            wait.as_secs()
        )),
        CallOutcome::NotCommitted(error) => failed(format!(
            "the call was not sent, because it was not written to the ledger: {error}"
        )),
        CallOutcome::OverBudget(error)
        | CallOutcome::HeldBudget(error)
        | CallOutcome::NotConfigured(error)
        | CallOutcome::Panicked(error) => failed(error),
        // Trials use no cache.
        CallOutcome::Cached(_) | CallOutcome::SameCallTimeout => failed("the call was not sent"),
    };
    (outcome, changes)
}

/// Returns the node's call for another target, not streamed. It uses no prompt cache, which does
/// not pay off for a few calls, and always limits the answer, so that the estimate has an upper
/// bound.
fn call(agent: &Agent, target: &Target, input: &StoredInput) -> Call {
    Call {
        provider: target.provider.clone(),
        model: target.model.clone(),
        system: input.prompt.system.clone(),
        prompt: input.prompt.prompt.clone(),
        max_tokens: Some(answer_tokens_max(agent)),
        temperature: agent.temperature,
        stream: false,
        first_byte_timeout: agent.first_token_timeout,
        total_timeout: agent.total_timeout,
        cache_marks: CacheMarks::default(),
        key: None,
    }
}

fn answer_tokens_max(agent: &Agent) -> u32 {
    agent.max_tokens.unwrap_or(ANSWER_TOKENS_ASSUMED)
}

fn name(target: &Target) -> String {
    format!("{}/{}", target.provider, target.model)
}

/// Returns none if any cost is unknown.
fn sum(mut costs: impl Iterator<Item = Option<Usd>>) -> Option<Usd> {
    costs.try_fold(Usd::ZERO, |sum, cost| Some(sum.plus(cost?)))
}

fn failed(error: impl Into<String>) -> TrialOutcome {
    TrialOutcome::Failed { error: error.into() }
}

fn item(input: &StoredInput, after: TrialOutcome) -> TrialItem {
    TrialItem {
        run_id: input.run_id.clone(),
        item: input.item,
        prompt: truncated(&input.prompt.prompt),
        before: TrialAnswer {
            model: input.model.clone(),
            output: truncated(&input.output),
            input_tokens: input.usage.input_tokens,
            output_tokens: input.usage.output_tokens,
            cost_usd: input.cost,
            latency_ms: input.latency_ms,
            is_cut: false,
        },
        after,
    }
}

/// Returns both answers of each answered input.
fn answered(items: &[TrialItem]) -> impl Iterator<Item = (&TrialAnswer, &TrialAnswer)> {
    items.iter().filter_map(|item| match &item.after {
        TrialOutcome::Answered(after) => Some((&item.before, after)),
        TrialOutcome::Failed { .. } => None,
    })
}

fn truncated(text: &str) -> String {
    if text.len() <= TEXT_BYTES_MAX {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(TEXT_BYTES_MAX);
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_with_an_unknown_part_is_unknown() {
        let cent = Some(Usd::from_nanousd(10_000_000));
        assert_eq!(sum([cent, cent].into_iter()), Some(Usd::from_nanousd(20_000_000)));
        assert_eq!(sum([cent, None, cent].into_iter()), None);
    }

    #[test]
    fn a_long_text_is_truncated_at_a_character_boundary() {
        let text = "ä".repeat(TEXT_BYTES_MAX);
        let truncated = truncated(&text);
        assert!(truncated.ends_with("ä…") && truncated.len() <= TEXT_BYTES_MAX + "…".len());
        assert_eq!(super::truncated("short"), "short");
    }
}
