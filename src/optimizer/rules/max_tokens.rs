//! Limits on answers far above what is used, where budgets are bound by them.
//!
//! A hard budget keeps free what a call may need at most until it is known what it came to. So a limit
//! that no answer comes near makes budgets refuse calls that would have fitted.

use serde_json::{Map, Value, json};

use super::{CALLS_MIN, Draft, RuleContext};
use crate::budget::{Budget, Limit, Reserve, Scope};
use crate::event::suggestion::{Kind, Proposal};
use crate::event::{Usage, Usd};
use crate::flow::{Agent, Node};
use crate::optimizer::edit::Edit;
use crate::optimizer::models::priced_at;
use crate::providers::ANSWER_TOKENS_ASSUMED;

/// The limit is so many times the longest answer at least.
const ABOVE_MIN: u64 = 4;
/// The new one is above so many times the longest answer …
const ROOM: u64 = 2;
/// … and a multiple of this.
const STEP: u64 = 256;
/// A budget is bound where what is reserved for nothing is this part of it at least, in per cent.
const PART_MIN: i64 = 1;

/// A budget that is bound by a node's limit.
struct Bound<'a> {
    budget: &'a Budget,
    /// What each call frees of it.
    freed: Reserve,
}

pub fn propose(look: &RuleContext<'_>, node: &Node, agent: &Agent) -> Option<Proposal> {
    let known = look.facts.sum_of_node(look.flow_id, &node.id)?;
    let calls = known.calls.answers();
    let longest = known.calls.output_tokens_max;
    let limit = u64::from(agent.max_tokens.unwrap_or(ANSWER_TOKENS_ASSUMED));
    let lower = (longest.saturating_mul(ROOM) / STEP + 1) * STEP;
    let is_far_above = longest > 0 && limit >= longest.saturating_mul(ABOVE_MIN) && lower < limit;
    if calls < CALLS_MIN || !is_far_above {
        return None;
    }
    let refused = known.calls.refused;
    let bound = bound(look, node, agent, longest, lower)?;
    let budget = bound.budget;
    let freed = budget.limit.show(budget.reserved(&bound.freed)?);
    let now = match agent.max_tokens {
        Some(_) => format!("may have {limit} tokens"),
        None => format!("has no limit and is taken to need {limit} tokens"),
    };
    let refusals = match refused {
        0 => String::new(),
        _ => format!(" Budgets have refused {refused} calls of it."),
    };
    let values = Map::from_iter([("maxTokens".to_owned(), json!(lower))]);
    look.proposal(
        node,
        Draft {
            kind: Kind::MaxTokens,
            title: format!("Limit its answers to {lower} tokens"),
            reason: format!(
                "The longest of {calls} answers had {longest} tokens, but each {now}, which the budget `{}` keeps free during the call.{refusals} With the lower limit each call keeps {freed} less of it. It saves no money; an answer of more than {lower} tokens would be cut off.",
                budget.name,
            ),
            calls,
            saving: None,
            evidence: json!({
                "since": known.since,
                "calls": calls,
                "longestAnswerTokens": longest,
                "maxTokens": limit,
                "toMaxTokens": lower,
                "refusedCalls": refused,
                "budget": budget.name,
                "budgetPer": budget.per,
                "budgetLimit": limit_of(budget),
                "freedTokens": bound.freed.tokens,
                "freedNanousd": bound.freed.cost.map(|cost| cost.nanousd),
            }),
            edit: Edit::SetNode {
                node_id: node.id.clone(),
                values,
            },
        },
    )
}

/// The first hard budget that calls of the node to one of its targets are bound by.
fn bound<'a>(
    look: &RuleContext<'a>,
    node: &Node,
    agent: &Agent,
    longest: u64,
    lower: u64,
) -> Option<Bound<'a>> {
    let limit = u64::from(agent.max_tokens.unwrap_or(ANSWER_TOKENS_ASSUMED));
    for target in &agent.targets {
        let (provider, model) = (target.provider.as_str(), target.model.as_str());
        let scope = Scope {
            flow_id: Some(look.flow_id),
            provider,
            model,
            key: None,
        };
        let refused = look
            .facts
            .known(look.flow_id, &node.id, provider, model)
            .map_or(0, |known| known.calls.refused);
        let unused = between(look, provider, model, longest, limit);
        let freed = between(look, provider, model, lower, limit);
        let hard = look.budgets.iter().filter(|budget| budget.hard);
        for budget in hard.filter(|budget| budget.covers(&scope)) {
            let Some(unused) = budget.reserved(&unused).filter(|unused| *unused > 0) else {
                continue;
            };
            let part = i128::from(budget.limit.amount()) * i128::from(PART_MIN);
            if refused > 0 || i128::from(unused) * 100 >= part {
                return Some(Bound { budget, freed });
            }
        }
    }
    None
}

/// What is reserved for the tokens of an answer beyond `from`, up to `to`.
fn between(look: &RuleContext<'_>, provider: &str, model: &str, from: u64, to: u64) -> Reserve {
    let quote = look
        .providers
        .quote(provider, &[model], priced_at(look.now));
    let cost = quote.map(|quote| {
        let cost = |output_tokens| {
            quote.cost(&Usage {
                output_tokens,
                ..Usage::default()
            })
        };
        Usd::from_nanousd(cost(to).nanousd.saturating_sub(cost(from).nanousd))
    });
    Reserve {
        cost,
        tokens: to.saturating_sub(from),
    }
}

fn limit_of(budget: &Budget) -> Value {
    match budget.limit {
        Limit::Usd(usd) => json!({"nanousd": usd.nanousd}),
        Limit::Tokens(tokens) => json!({"tokens": tokens}),
    }
}
