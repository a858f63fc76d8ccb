//! The same calls, priced at other models of the user's own providers.
//!
//! The ledger does not show the quality of a model. So only two kinds of steps are recommended: the
//! mildest step down to a model that the user's flows already use, or else to one that the same
//! provider lists and that is not older than the current one, each if it saves a good part. Others
//! are alternatives; a trial shows their answers.

use serde_json::{Value, json};

use super::{CALLS_MIN, KEEP_PERCENT, RuleContext, set};
use crate::event::suggestion::{Alternative, Kind, Proposal};
use crate::flow::{Agent, Node, Target};
use crate::money::Usd;
use crate::optimizer::call_stats::{ANSWERED, CallSums, NodeCalls, Outcome};
use crate::optimizer::models::{Candidate, Requirements, target_in};

/// The minimum saving of a recommended model, in percent.
const SAVING_PERCENT_MIN: i64 = 30;
/// The minimum saving for keeping the recommendation, in percent.
const SAVING_PERCENT_KEEP_MIN: i64 = SAVING_PERCENT_MIN * KEEP_PERCENT as i64 / 100;
const ALTERNATIVES_MAX: usize = 5;

/// A replacement model, and the cost of the same calls there.
struct Step<'a> {
    to: &'a Candidate,
    cost: Usd,
}

impl Step<'_> {
    fn is_used(&self) -> bool {
        self.to.answered >= CALLS_MIN
    }
}

/// The calls of a node to its first target.
struct CurrentCalls<'a> {
    target: &'a Target,
    calls: NodeCalls<'a>,
    answered: CallSums,
}

impl CurrentCalls<'_> {
    fn nanousd(&self) -> i64 {
        self.answered.spend.nanousd
    }

    /// Returns whether a step saves at least this percentage of the current cost.
    fn saves(&self, step: &Step<'_>, percent: i64) -> bool {
        let cost_max = i128::from(self.nanousd()) * i128::from(100 - percent) / 100;
        i128::from(step.cost.nanousd) <= cost_max
    }

    fn title(&self, to: &Candidate) -> String {
        format!("Switch from {} to {}", self.target.model, to.target.model)
    }

    fn reason(&self, Step { to, cost }: &Step<'_>, why: &str) -> String {
        format!(
            "The last {} calls cost {} USD. With the same tokens, they would have cost {cost} USD at {}/{}.{why} Run a trial on stored inputs before you apply it.",
            self.answered.spend.calls,
            Usd::from_nanousd(self.nanousd()),
            to.target.provider,
            to.target.model,
        )
    }

    fn evidence(&self, Step { to, cost }: &Step<'_>) -> Value {
        json!({
            "since": self.calls.since,
            "calls": self.answered.spend.calls,
            "provider": self.target.provider,
            "model": self.target.model,
            "costNanousd": self.nanousd(),
            "toProvider": to.target.provider,
            "toModel": to.target.model,
            "toCostNanousd": cost.nanousd,
            "toAnsweredCalls": to.answered,
            "inputTokens": self.answered.usage.input_tokens,
            "cachedInputTokens": self.answered.usage.cached_input_tokens,
            "outputTokens": self.answered.usage.output_tokens,
            "estimatedCalls": self.answered.estimated,
            "unpricedCalls": self.calls.count(Outcome::Unpriced),
            "toPrice": to.quote.text().and_then(|text| serde_json::from_str::<Value>(text).ok()),
        })
    }
}

pub fn propose(context: &RuleContext<'_>, node: &Node, agent: &Agent) -> Option<Proposal> {
    let target = agent.targets.first()?;
    let calls = context.first_target(node, agent)?;
    let answered = calls.answered();
    if answered.spend.calls < CALLS_MIN {
        return None;
    }
    let current = CurrentCalls { target, calls, answered };
    let open = context.open(Kind::ModelSwitch, node);
    let open = open.and_then(|open| target_in(&open.edit["values"]));
    let mut steps = cheaper(context, agent, &current, open.as_ref());
    let chosen = steps.remove(recommended(&current, &steps, open.as_ref())?);
    let saving = |step: &Step<'_>| {
        let nanousd = current.nanousd().saturating_sub(step.cost.nanousd);
        // The saving of each call is assumed to vary like its cost.
        let saved = current.calls.daily_spend(ANSWERED).scaled_to(nanousd);
        context.projection(node, &current.calls, &saved)
    };
    let projection = saving(&chosen);
    if !context.is_worthwhile(Kind::ModelSwitch, node, &projection) {
        return None;
    }
    let provider = &chosen.to.target.provider;
    let why = if chosen.is_used() {
        " Your flows already use this model.".to_owned()
    } else {
        format!(
            " Of the models of {provider} that are not older, it is the closest in price that saves {SAVING_PERCENT_MIN} % or more."
        )
    };
    steps.retain(|step| current.saves(step, SAVING_PERCENT_MIN));
    let alternatives = spread(&steps).map(|step| Alternative {
        name: format!("{}/{}", step.to.target.provider, step.to.target.model),
        title: current.title(step.to),
        reason: current.reason(step, ""),
        saving_per_30_days: saving(step).saving,
        evidence: current.evidence(step),
        edit: edit(node, agent, step.to),
    });
    let since = Some(current.calls.since);
    let base = context.proposal(Kind::ModelSwitch, node, since, Some(&projection));
    Some(Proposal {
        title: current.title(chosen.to),
        reason: current.reason(&chosen, &why) + &base.reason,
        calls: current.answered.spend.calls,
        evidence: current.evidence(&chosen),
        edit: edit(node, agent, chosen.to),
        alternatives: alternatives.collect(),
        ..base
    })
}

/// Returns the index of the recommended step. An open one stays while it is valid, so that the
/// recommendation does not change from pass to pass.
fn recommended(
    current: &CurrentCalls<'_>,
    steps: &[Step<'_>],
    open: Option<&Target>,
) -> Option<usize> {
    let find = |is_it: &dyn Fn(&Step<'_>) -> bool| steps.iter().position(is_it);
    let used = find(&|it| it.is_used() && current.saves(it, SAVING_PERCENT_MIN));
    let stays = find(&|it| open == Some(&it.to.target) && (it.is_used() || used.is_none()));
    let mildest = || {
        let provider = &current.target.provider;
        find(&|it| it.to.target.provider == *provider && current.saves(it, SAVING_PERCENT_MIN))
    };
    stays.or(used).or_else(mildest)
}

/// Returns the models that save a good part, the mildest step first. An open one may save a little
/// less.
fn cheaper<'a>(
    context: &RuleContext<'a>,
    agent: &Agent,
    current: &CurrentCalls<'_>,
    open: Option<&Target>,
) -> Vec<Step<'a>> {
    let answer_tokens = agent.max_tokens.map_or(0, u64::from);
    let answer_tokens = answer_tokens.max(current.calls.all().answer_tokens_max);
    let requirements = Requirements {
        used_min: CALLS_MIN,
        tokens_max: current.answered.prompt_tokens_max.saturating_add(answer_tokens),
        has_reasoning: current.answered.usage.reasoning_tokens > 0,
    };
    let all = context.models.replacements_for(current.target, requirements);
    let mut steps: Vec<Step<'a>> = all
        .map(|to| Step { to, cost: to.cost(&current.calls, current.target) })
        .filter(|step| {
            let is_open = open == Some(&step.to.target);
            current.saves(step, if is_open { SAVING_PERCENT_KEEP_MIN } else { SAVING_PERCENT_MIN })
        })
        .collect();
    steps.sort_by(|a, b| b.cost.cmp(&a.cost).then(a.to.target.cmp(&b.to.target)));
    steps
}

/// Returns up to [`ALTERNATIVES_MAX`] items, evenly spread from the first to the last.
fn spread<T>(all: &[T]) -> impl Iterator<Item = &T> {
    let count = all.len().min(ALTERNATIVES_MAX);
    let last = all.len().saturating_sub(1);
    (0..count).map(move |at| &all[at * last / count.saturating_sub(1).max(1)])
}

/// Returns the edit. If the new model is already a fallback, both swap places.
fn edit(node: &Node, agent: &Agent, to: &Candidate) -> Value {
    let Target { provider, model } = &to.target;
    let switch = [("provider", json!(provider)), ("model", json!(model))];
    let fallbacks = agent.targets.get(1..).unwrap_or_default();
    if !fallbacks.contains(&to.target) {
        return set(node, switch);
    }
    let replaced = fallbacks.iter().map(|it| {
        let it = if *it == to.target { &agent.targets[0] } else { it };
        json!({"provider": it.provider, "model": it.model})
    });
    let [provider, model] = switch;
    set(node, [provider, model, ("fallback", replaced.collect())])
}
