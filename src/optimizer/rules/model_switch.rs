//! The same calls, priced at other models of the user's own providers.
//!
//! What a model is good for is not in the ledger, so two are put forward with some right: the mildest that
//! the user's flows use already, or else the mildest at the same provider that is listed there and not older
//! than the present one, each if it saves a good part; where there is neither, none. Others of these are
//! there to choose from, and a trial shows what they answer.

use serde_json::{Map, Value, json};

use super::{CALLS_MIN, Draft, KEPT_PART, RuleContext};
use crate::event::Usd;
use crate::event::suggestion::{Alternative, Kind, Proposal};
use crate::flow::{Agent, Node, Target as FlowTarget};
use crate::optimizer::call_stats::{Amount, Known, Target};
use crate::optimizer::edit::Edit;
use crate::optimizer::models::Candidate;

/// A step down is put forward where it saves this part at least, in per cent.
const PART_MIN: i64 = 30;
/// And stays so where it saves this part.
const PART_KEPT_MIN: i64 = PART_MIN * KEPT_PART as i64 / 100;
/// How many others there are to choose from.
const ALTERNATIVES_MAX: usize = 5;

pub fn propose(look: &RuleContext<'_>, node: &Node, agent: &Agent) -> Option<Proposal> {
    let first = agent.targets.first()?;
    let present: Target = (first.provider.clone(), first.model.clone());
    let known = look.first_target(node, agent)?;
    let seen = known.calls.answered();
    if seen.amount.calls < CALLS_MIN {
        return None;
    }
    let open = look
        .open(Kind::ModelSwitch, node)
        .and_then(|open| target_of(&open.edit));
    let cheaper = cheaper(look, agent, &known, &present, open.as_ref());
    let is_used = |(candidate, _): &(&Candidate, Usd)| candidate.answered >= CALLS_MIN;
    let is_clear = |(_, cost): &(&Candidate, Usd)| saves(*cost, seen.amount.nanousd, PART_MIN);
    let used = cheaper.iter().position(|it| is_used(it) && is_clear(it));
    let mildest = cheaper
        .iter()
        .position(|it| it.0.target.0 == present.0 && is_clear(it));
    // What is open stays while it holds, so that it is not another one from pass to pass.
    let stays = cheaper
        .iter()
        .position(|it| open.as_ref() == Some(&it.0.target) && (is_used(it) || used.is_none()));
    let chosen = stays.or(used).or(mildest)?;
    let (to, cost) = *cheaper.get(chosen)?;
    let saved = |cost: Usd| {
        let nanousd = seen.amount.nanousd.saturating_sub(cost.nanousd);
        // What each call saves is taken to vary as what each costs.
        let paid = known.seen(|calls| calls.answered().amount);
        look.promise(node, &known, &paid.scaled_to(nanousd))
    };
    let saving = saved(cost);
    if !look.is_worth(Kind::ModelSwitch, node, &saving) {
        return None;
    }
    let (provider, model) = &to.target;
    let why = if is_used(&(to, cost)) {
        format!(": your flows use {model} already")
    } else {
        format!(
            ": of what {provider} serves and is not older, it is the mildest step down that saves {PART_MIN} % or more"
        )
    };
    let draft = Draft {
        kind: Kind::ModelSwitch,
        title: title(&present, to),
        reason: reason(seen.amount, to, cost, &why),
        calls: seen.amount.calls,
        saving: Some(saving),
        evidence: evidence(&known, &present, to, cost),
        edit: edit(node, agent, to),
    };
    let mut proposal = look.proposal(node, draft)?;
    let others: Vec<&(&Candidate, Usd)> = cheaper
        .iter()
        .enumerate()
        .filter(|(at, other)| *at != chosen && is_clear(other))
        .map(|(_, other)| other)
        .collect();
    proposal.alternatives = spread(&others)
        .map(|(other, cost)| Alternative {
            name: format!("{}/{}", other.target.0, other.target.1),
            title: title(&present, other),
            reason: reason(seen.amount, other, *cost, ""),
            saving_per_30_days: saved(*cost).saving,
            evidence: evidence(&known, &present, other, *cost),
            edit: json!(edit(node, agent, other)),
        })
        .collect();
    Some(proposal)
}

fn title(present: &Target, to: &Candidate) -> String {
    format!("Ask {} instead of {}", to.target.1, present.1)
}

fn reason(seen: Amount, to: &Candidate, cost: Usd, why: &str) -> String {
    let (provider, model) = &to.target;
    format!(
        "The last {} calls cost {} USD; with the same tokens they would have cost {cost} USD at {provider}/{model}{why}. Try it on stored inputs before you apply it.",
        seen.calls,
        Usd::from_nanousd(seen.nanousd),
    )
}

/// The models that could be asked instead for a good part less, with what the calls would have cost there,
/// the dearest first: the mildest step. Of what is `open` already a little less of a part is enough.
fn cheaper<'a>(
    look: &RuleContext<'a>,
    agent: &Agent,
    known: &Known,
    present: &Target,
    open: Option<&Target>,
) -> Vec<(&'a Candidate, Usd)> {
    let seen = known.calls.answered();
    let answer_tokens = agent.max_tokens.map_or(0, u64::from);
    let answer_tokens = answer_tokens.max(known.calls.output_tokens_max);
    let tokens_max = seen.prompt_tokens_max.saturating_add(answer_tokens);
    let has_thought = seen.usage.reasoning_tokens > 0;
    let all = look.models.instead_of(
        look.providers,
        present,
        CALLS_MIN,
        tokens_max,
        has_thought,
        look.now,
    );
    let mut cheaper: Vec<(&Candidate, Usd)> = all
        .map(|candidate| (candidate, candidate.cost(&known.calls, present)))
        .filter(|(candidate, cost)| {
            let part = if open == Some(&candidate.target) {
                PART_KEPT_MIN
            } else {
                PART_MIN
            };
            saves(*cost, seen.amount.nanousd, part)
        })
        .collect();
    cheaper.sort_by(|(a, cost_a), (b, cost_b)| cost_b.cmp(cost_a).then(a.target.cmp(&b.target)));
    cheaper
}

/// Whether that is less than what was paid by such a part, in per cent.
fn saves(cost: Usd, present_nanousd: i64, part: i64) -> bool {
    let most = i128::from(present_nanousd) * i128::from(100 - part) / 100;
    i128::from(cost.nanousd) <= most
}

/// From the mildest to the cheapest, with those between.
fn spread<'a, T>(all: &'a [&'a T]) -> impl Iterator<Item = &'a T> {
    let count = all.len().min(ALTERNATIVES_MAX);
    let last = all.len().saturating_sub(1);
    (0..count).map(move |at| all[at * last / count.saturating_sub(1).max(1)])
}

/// The switch. Where the node asks that model already when the present one fails, it is the other way
/// round then.
fn edit(node: &Node, agent: &Agent, to: &Candidate) -> Edit {
    let (provider, model) = &to.target;
    let mut values = Map::from_iter([
        ("provider".to_owned(), json!(provider)),
        ("model".to_owned(), json!(model)),
    ]);
    let is_it = |target: &FlowTarget| target.provider == *provider && target.model == *model;
    if let Some((first, others)) = agent.targets.split_first()
        && others.iter().any(is_it)
    {
        let fallback = others
            .iter()
            .map(|other| if is_it(other) { first } else { other });
        let fallback: Vec<Value> = fallback
            .map(|it| json!({"provider": it.provider, "model": it.model}))
            .collect();
        values.insert("fallback".to_owned(), json!(fallback));
    }
    Edit::SetNode {
        node_id: node.id.clone(),
        values,
    }
}

/// The target that a switch is to.
fn target_of(edit: &Value) -> Option<Target> {
    let values = &edit["values"];
    let text = |key: &str| values[key].as_str().map(str::to_owned);
    text("provider").zip(text("model"))
}

fn evidence(known: &Known, present: &Target, to: &Candidate, cost: Usd) -> Value {
    let seen = known.calls.answered();
    json!({
        "since": known.since,
        "calls": seen.amount.calls,
        "provider": present.0,
        "model": present.1,
        "costNanousd": seen.amount.nanousd,
        "toProvider": to.target.0,
        "toModel": to.target.1,
        "toCostNanousd": cost.nanousd,
        "toAnsweredCalls": to.answered,
        "inputTokens": seen.usage.input_tokens,
        "cachedInputTokens": seen.usage.cached_input_tokens,
        "outputTokens": seen.usage.output_tokens,
        "estimatedCalls": seen.estimated,
        "unpricedCalls": known.calls.unpriced,
        "toPrice": to.quote.text().and_then(|text| serde_json::from_str::<Value>(text).ok()),
    })
}
