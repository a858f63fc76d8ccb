//! Limits on answers that are far above the actual answers and block budget.
//!
//! A hard budget reserves the maximum cost of a call until the call ends. So a limit that no answer
//! reaches makes budgets refuse calls that would have fitted.

use serde_json::json;

use super::{CALLS_MIN, RuleContext, set};
use crate::budget::{Budget, Limit, Reserve, Scope};
use crate::event::suggestion::{Kind, Proposal};
use crate::event::{Attribution, Usage};
use crate::flow::{Agent, Node, Target};
use crate::money::Usd;
use crate::optimizer::call_stats::{ANSWERED, Outcome};
use crate::providers::ANSWER_TOKENS_ASSUMED;

/// The limit must be at least this many times the longest answer.
const ABOVE_MIN: u64 = 4;
/// The new limit exceeds this many times the longest answer.
const HEADROOM_FACTOR: u64 = 2;
/// The new limit is a multiple of this.
const STEP: u64 = 256;
/// A budget is restricted if the unused part of a reservation is at least this percentage of it.
const RESERVED_PERCENT_MIN: i64 = 1;

/// A budget that a node's limit restricts.
struct Restricted<'a> {
    budget: &'a Budget,
    /// The part of each call's reservation that a lower limit frees.
    freed: Reserve,
}

struct Lengths {
    longest: u64,
    limit: u64,
    lower_limit: u64,
}

pub fn propose(context: &RuleContext<'_>, node: &Node, agent: &Agent) -> Option<Proposal> {
    let known = context.calls_of(node)?;
    let calls = known.sum(ANSWERED).spend.calls + known.count(Outcome::Unpriced);
    let longest = known.all().answer_tokens_max;
    let limit = u64::from(agent.max_tokens.unwrap_or(ANSWER_TOKENS_ASSUMED));
    let lower_limit = (longest.saturating_mul(HEADROOM_FACTOR) / STEP + 1) * STEP;
    let is_far_above =
        longest > 0 && limit >= longest.saturating_mul(ABOVE_MIN) && lower_limit < limit;
    if calls < CALLS_MIN || !is_far_above {
        return None;
    }
    let refused = known.count(Outcome::Refused);
    let lengths = Lengths { longest, limit, lower_limit };
    let targets = agent.targets.iter();
    let mut restricted = targets.filter_map(|target| restricted(context, node, target, &lengths));
    let Restricted { budget, freed } = restricted.next()?;
    let shown = budget.limit.show(budget.reserved(&freed)?);
    let now = match agent.max_tokens {
        Some(_) => format!("the limit is {limit} tokens"),
        None => format!("without a limit, {limit} tokens are assumed"),
    };
    let refusals = match refused {
        0 => String::new(),
        _ => format!(" Budgets have refused {refused} of its calls."),
    };
    Some(Proposal {
        title: format!("Limit responses of “{}” to {lower_limit} tokens", node.label),
        reason: format!(
            "The longest of {calls} responses had {longest} tokens, but {now}. During each call, the budget “{}” reserves enough for this limit.{refusals} The lower limit reserves {shown} less per call. It saves no money, and it cuts off responses of more than {lower_limit} tokens.",
            budget.name,
        ),
        calls,
        evidence: json!({
            "since": known.since,
            "calls": calls,
            "longestAnswerTokens": longest,
            "maxTokens": limit,
            "toMaxTokens": lower_limit,
            "refusedCalls": refused,
            "budget": budget.name,
            "budgetPer": budget.per,
            "budgetLimit": match budget.limit {
                Limit::Usd(usd) => json!({"nanousd": usd.nanousd}),
                Limit::Tokens(tokens) => json!({"tokens": tokens}),
            },
            "freedTokens": freed.tokens,
            "freedNanousd": freed.cost.map(|cost| cost.nanousd),
        }),
        edit: set(node, [("maxTokens", json!(lower_limit))]),
        ..context.proposal(Kind::MaxTokens, node, Some(known.since), None)
    })
}

/// Returns the first hard budget that restricts the node's calls to this target.
fn restricted<'a>(
    context: &RuleContext<'a>,
    node: &Node,
    target: &Target,
    lengths: &Lengths,
) -> Option<Restricted<'a>> {
    let scope = Scope {
        flow_id: Some(context.flow_id),
        provider: &target.provider,
        model: &target.model,
        key: None,
        tags: None,
        attribution: &Attribution::NONE,
        billing: None,
    };
    let known = context.calls.calls_to(context.flow_id, &node.id, target);
    let refused = known.map_or(0, |calls| calls.count(Outcome::Refused));
    let unused = reserved(context, target, lengths.longest, lengths.limit);
    let hard = context.budgets.iter().filter(|budget| budget.hard);
    let mut covering = hard.filter(|budget| budget.covers(&scope));
    let budget = covering.find(|budget| {
        let unused = budget.reserved(&unused).unwrap_or(0);
        let part = i128::from(budget.limit.amount()) * i128::from(RESERVED_PERCENT_MIN);
        unused > 0 && (refused > 0 || i128::from(unused) * 100 >= part)
    })?;
    let freed = reserved(context, target, lengths.lower_limit, lengths.limit);
    Some(Restricted { budget, freed })
}

/// Returns the reservation for the answer tokens from `from` to `to`.
fn reserved(context: &RuleContext<'_>, target: &Target, from: u64, to: u64) -> Reserve {
    let cost = context.models.quote(target).map(|quote| {
        let cost = |output_tokens| quote.cost(&Usage { output_tokens, ..Usage::default() });
        Usd::from_nanousd(cost(to).nanousd.saturating_sub(cost(from).nanousd))
    });
    Reserve { cost, tokens: to.saturating_sub(from) }
}
