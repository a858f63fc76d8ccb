//! The same calls, priced at other models of the user's own providers.
//!
//! What a model is good for is not in the ledger, so two are put forward with some right: one that the
//! user's flows use already, or else the mildest step down at the same provider that saves a good part.
//! Others are there to choose from, and a trial shows what they answer.

use serde_json::{Map, Value, json};

use super::{CALLS_MIN, Draft, Look, SAVING_MIN};
use crate::event::Usd;
use crate::event::suggestion::{Alternative, Kind, Proposal, Saving};
use crate::flow::{Agent, Node};
use crate::optimizer::edit::Edit;
use crate::optimizer::facts::{Amount, Known, Target};
use crate::optimizer::models::Candidate;
use crate::optimizer::saving::per_30_days;

/// A step down is put forward where it saves this part at least, in per cent.
const PART_MIN: i64 = 30;
/// How many others there are to choose from.
const ALTERNATIVES_MAX: usize = 5;

pub fn propose(look: &Look<'_>, node: &Node, agent: &Agent) -> Option<Proposal> {
    let first = agent.targets.first()?;
    let present: Target = (first.provider.clone(), first.model.clone());
    let known = look.first_target(node, agent)?;
    let seen = known.calls.answered();
    if seen.amount.calls < CALLS_MIN {
        return None;
    }
    // The dearest first: the mildest step.
    let mut cheaper: Vec<(&Candidate, Usd)> = look
        .models
        .all()
        .iter()
        .filter(|candidate| candidate.target != present)
        .map(|candidate| (candidate, candidate.cost(&known.calls, &present)))
        .filter(|(_, cost)| is_much_less(*cost, seen.amount.nanousd))
        .collect();
    cheaper.sort_by(|(a, cost_a), (b, cost_b)| cost_b.cmp(cost_a).then(a.target.cmp(&b.target)));
    let used = cheaper
        .iter()
        .rposition(|(candidate, _)| candidate.answered >= CALLS_MIN);
    let same_provider = |(candidate, _): &(&Candidate, Usd)| candidate.target.0 == present.0;
    let chosen = used.or_else(|| cheaper.iter().position(same_provider))?;
    let (to, cost) = cheaper[chosen];
    let saving = saving(&known, seen.amount, cost, look);
    if saving.expected_usd < SAVING_MIN {
        return None;
    }
    let (provider, model) = &to.target;
    let why = match used {
        Some(_) => format!(": your flows use {model} already"),
        None => {
            format!(": it is the mildest step down at {provider} that saves {PART_MIN} % or more")
        }
    };
    let draft = Draft {
        kind: Kind::ModelSwitch,
        title: title(&present, to),
        reason: reason(seen.amount, to, cost, &why),
        calls: seen.amount.calls,
        saving: Some(saving),
        evidence: evidence(&known, &present, to, cost),
        edit: edit(node, to),
    };
    let mut proposal = look.proposal(node, draft)?;
    let others: Vec<&(&Candidate, Usd)> = cheaper
        .iter()
        .enumerate()
        .filter(|(at, _)| *at != chosen)
        .map(|(_, other)| other)
        .collect();
    proposal.alternatives = spread(&others)
        .map(|(other, cost)| Alternative {
            name: format!("{}/{}", other.target.0, other.target.1),
            title: title(&present, other),
            reason: reason(seen.amount, other, *cost, ""),
            saving_per_30_days: self::saving(&known, seen.amount, *cost, look),
            evidence: evidence(&known, &present, other, *cost),
            edit: json!(edit(node, other)),
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

fn is_much_less(cost: Usd, present_nanousd: i64) -> bool {
    let most = i128::from(present_nanousd) * i128::from(100 - PART_MIN) / 100;
    i128::from(cost.nanousd) <= most
}

/// From the mildest to the cheapest, with those between.
fn spread<'a, T>(all: &'a [&'a T]) -> impl Iterator<Item = &'a T> {
    let count = all.len().min(ALTERNATIVES_MAX);
    let last = all.len().saturating_sub(1);
    (0..count).map(move |at| all[at * last / count.saturating_sub(1).max(1)])
}

/// What each call saves is taken to vary as what each costs.
fn saving(known: &Known, seen: Amount, cost: Usd, look: &Look<'_>) -> Saving {
    let nanousd = seen.nanousd.saturating_sub(cost.nanousd);
    let part = nanousd as f64 / (seen.nanousd.max(1)) as f64;
    let saved = Amount {
        calls: seen.calls,
        nanousd,
        squares: seen.squares * part * part,
    };
    per_30_days(saved, known.since, look.now)
}

fn edit(node: &Node, to: &Candidate) -> Edit {
    let (provider, model) = &to.target;
    Edit::SetNode {
        node_id: node.id.clone(),
        values: Map::from_iter([
            ("provider".to_owned(), json!(provider)),
            ("model".to_owned(), json!(model)),
        ]),
    }
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
