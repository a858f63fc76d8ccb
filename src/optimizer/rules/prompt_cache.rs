//! A long beginning that all prompts of a node share, at a provider that keeps such beginnings only
//! where it is asked to.

use serde_json::{Map, json};

use super::{CALLS_MIN, Draft, RuleContext};
use crate::event::Usd;
use crate::event::suggestion::{Kind, Proposal};
use crate::flow::{Agent, Node, constant_beginning};
use crate::optimizer::edit::Edit;
use crate::optimizer::models::priced_at;
use crate::providers;

/// Shorter beginnings are not kept, in tokens, by names of models from their beginning: Anthropic's "cache
/// limitations" (<https://platform.claude.com/docs/en/build-with-claude/prompt-caching>), as of November
/// 2026; where what is said of a model differs, the larger one.
const PREFIX_TOKENS_MIN: &[(&str, u64)] = &[
    ("claude-3-opus", 1_024),
    ("claude-3-5-sonnet", 1_024),
    ("claude-3-7-sonnet", 1_024),
    ("claude-opus-4-0", 1_024),
    ("claude-opus-4-2025", 1_024),
    ("claude-opus-4-1", 1_024),
    ("claude-opus-4-8", 1_024),
    ("claude-sonnet-4-0", 1_024),
    ("claude-sonnet-4-2025", 1_024),
    ("claude-sonnet-4-5", 1_024),
    ("claude-sonnet-4-6", 2_048),
    ("claude-3-haiku", 2_048),
    ("claude-3-5-haiku", 2_048),
];
/// And by all others: the largest that there is (Opus 4.5 to 4.7, Haiku 4.5), for those that are not known
/// here.
const PREFIX_TOKENS_MIN_ELSE: u64 = 4_096;
/// Pico-dollars in a nano-dollar.
const PICO_PER_NANO: i128 = 1_000;

pub fn propose(look: &RuleContext<'_>, node: &Node, agent: &Agent) -> Option<Proposal> {
    let target = agent.targets.first()?;
    if agent.prompt_cache
        || look.providers.kind(&target.provider) != Some(providers::Kind::Anthropic)
    {
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
    if prefix_tokens < prefix_tokens_min(&target.model) {
        return None;
    }
    let quote = look
        .providers
        .quote(&target.provider, &[&target.model], priced_at(look.now))?;
    let rates = quote.rates(prompt_tokens);
    let reads = seen.soon.min(calls);
    let writes = calls - reads;
    let gain = i128::from(rates.input) - i128::from(rates.cache_read);
    let loss = i128::from(rates.cache_write) - i128::from(rates.input);
    let saved = i128::from(prefix_tokens) * (i128::from(reads) * gain - i128::from(writes) * loss);
    let nanousd = i64::try_from(saved / PICO_PER_NANO).ok()?;
    if nanousd <= 0 {
        return None;
    }
    let paid = known.seen(|calls| calls.answered().amount);
    let saving = look.promise(node, &known, &paid.scaled_to(nanousd));
    if !look.is_worth(Kind::PromptCache, node, &saving) {
        return None;
    }
    look.proposal(
        node,
        Draft {
            kind: Kind::PromptCache,
            title: "Have its constant beginning cached".to_owned(),
            reason: format!(
                "About {prefix_tokens} of {prompt_tokens} tokens of each prompt are the same, and {reads} of {calls} calls came within five minutes after the answer to another had begun: {} would have kept that beginning for them. All in all that would have saved {} USD, writes to its cache included.",
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
                "pricedAt": priced_at(look.now),
            }),
            edit: Edit::SetNode {
                node_id: node.id.clone(),
                values: Map::from_iter([("promptCache".to_owned(), json!(true))]),
            },
        },
    )
}

fn prefix_tokens_min(model: &str) -> u64 {
    // A router writes `anthropic/claude-sonnet-4.5`.
    let name = model.rsplit('/').next().unwrap_or(model).replace('.', "-");
    let known = PREFIX_TOKENS_MIN.iter();
    let mut known = known.filter(|(start, _)| name.starts_with(start));
    known
        .next()
        .map_or(PREFIX_TOKENS_MIN_ELSE, |(_, tokens)| *tokens)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_model_has_its_own_least_beginning_and_an_unknown_one_the_largest() {
        for (model, tokens) in [
            ("claude-sonnet-4-5-20250929", 1_024),
            ("anthropic/claude-sonnet-4.5", 1_024),
            ("claude-sonnet-4-6", 2_048),
            ("claude-3-5-haiku-latest", 2_048),
            ("claude-opus-4-5", 4_096),
            ("claude-haiku-4-5", 4_096),
            ("claude-of-tomorrow", 4_096),
        ] {
            assert_eq!(prefix_tokens_min(model), tokens, "{model}");
        }
    }
}
