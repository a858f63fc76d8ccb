//! A long beginning that all prompts of a node share, at a provider that keeps such beginnings only
//! where it is asked to.

use serde_json::{Map, json};

use super::{CALLS_MIN, Draft, Look, SAVING_MIN};
use crate::event::suggestion::{Kind, Proposal};
use crate::event::{Timestamp, Usd};
use crate::flow::{Agent, Node, constant_beginning};
use crate::gateway;
use crate::optimizer::edit::Edit;
use crate::optimizer::facts::Amount;
use crate::optimizer::saving::per_30_days;

/// Shorter beginnings are not kept by any of Anthropic's models.
const PREFIX_TOKENS_MIN: u64 = 1_024;
/// Pico-dollars in a nano-dollar.
const PICO_PER_NANO: i128 = 1_000;

pub fn propose(look: &Look<'_>, node: &Node, agent: &Agent) -> Option<Proposal> {
    let target = agent.targets.first()?;
    if agent.prompt_cache || look.gateway.kind(&target.provider) != Some(gateway::Kind::Anthropic) {
        return None;
    }
    let known = look.first_target(node, agent)?;
    let seen = known.calls.answered();
    let calls = seen.amount.calls;
    let is_kept = seen.usage.cached_input_tokens + seen.usage.cache_write_tokens > 0;
    if calls < CALLS_MIN || is_kept {
        return None;
    }
    let prefix_bytes = prefix_bytes(agent)?;
    let asked_bytes = look
        .asked_bytes(node)
        .filter(|bytes| *bytes >= prefix_bytes)?;
    // Tokens are the provider's, their share that of the text. Lately nothing may have been asked.
    let prompt_tokens = seen.usage.input_tokens.checked_div(calls)?;
    let prefix_tokens = prompt_tokens
        .checked_mul(prefix_bytes)?
        .checked_div(asked_bytes)?;
    if prefix_tokens < PREFIX_TOKENS_MIN {
        return None;
    }
    let quote = look
        .gateway
        .quote(&target.provider, &[&target.model], look.now)?;
    let rates = quote.rates(prompt_tokens);
    let (reads, writes) = (known.calls.soon, calls - known.calls.soon);
    let gain = i128::from(rates.input) - i128::from(rates.cache_read);
    let loss = i128::from(rates.cache_write) - i128::from(rates.input);
    let saved = i128::from(prefix_tokens) * (i128::from(reads) * gain - i128::from(writes) * loss);
    let nanousd = i64::try_from(saved / PICO_PER_NANO).ok()?;
    let each = nanousd as f64 / calls as f64;
    let amount = Amount {
        calls,
        nanousd,
        squares: each * each * calls as f64,
    };
    let saving = per_30_days(amount, known.since, look.now);
    if nanousd <= 0 || saving.expected_usd < SAVING_MIN {
        return None;
    }
    look.proposal(
        node,
        Draft {
            kind: Kind::PromptCache,
            title: "Have its constant beginning cached".to_owned(),
            reason: format!(
                "About {prefix_tokens} of {prompt_tokens} tokens of each prompt are the same, and {reads} of {calls} calls came within five minutes of the one before: {} would have kept that beginning for them. All in all that would have saved {} USD, writes to its cache included.",
                target.provider,
                Usd::from_nanousd(nanousd),
            ),
            calls,
            saving: Some(saving),
            evidence: json!({
                "since": known.since,
                "calls": calls,
                "promptTokens": prompt_tokens,
                "prefixTokens": prefix_tokens,
                "reads": reads,
                "writes": writes,
                "savedNanousd": nanousd,
                "pricedAt": Timestamp::to_string(&look.now),
            }),
            edit: Edit::SetNode {
                node_id: node.id.clone(),
                values: Map::from_iter([("promptCache".to_owned(), json!(true))]),
            },
        },
    )
}

/// How much of what is asked is the same in each call, in bytes; none where the system text is not,
/// which comes before all.
fn prefix_bytes(agent: &Agent) -> Option<u64> {
    let system = match &agent.system {
        None => 0,
        Some(system) => match constant_beginning(system) {
            (text, true) => text.len(),
            (_, false) => return None,
        },
    };
    let (beginning, _) = constant_beginning(&agent.prompt);
    u64::try_from(system + beginning.len()).ok()
}
