//! A long common prefix of all prompts of a node, at a provider that caches prefixes only on
//! request.

use serde_json::json;

use super::{CALLS_MIN, RUNS_MAX, RuleContext, or_default, set};
use crate::event::suggestion::{Kind, Proposal};
use crate::flow::{Agent, Node, Target, constant_beginning};
use crate::money::Usd;
use crate::optimizer::call_stats::{ANSWERED, CallSums};
use crate::providers;

/// The minimum prefix lengths for caching, in tokens, by model name prefix: Anthropic's "cache
/// limitations" (<https://platform.claude.com/docs/en/build-with-claude/prompt-caching>), as of
/// November 2026. If sources differ, the larger one is used.
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
/// The largest minimum (Opus 4.5 to 4.7, Haiku 4.5), for unknown models.
const PREFIX_TOKENS_MIN_ELSE: u64 = 4_096;
const PICO_PER_NANO: i128 = 1_000;

/// The effect of the provider's cache on past calls.
struct CacheEffect {
    prompt_tokens: u64,
    prefix_tokens: u64,
    reads: u64,
    writes: u64,
    saved_nanousd: i64,
}

pub fn propose(context: &RuleContext<'_>, node: &Node, agent: &Agent) -> Option<Proposal> {
    let target = agent.targets.first()?;
    let kind = context.providers.kind(&target.provider);
    if agent.prompt_cache || kind != Some(providers::Kind::Anthropic) {
        return None;
    }
    let known = context.first_target(node, agent)?;
    let answered = known.answered();
    let calls = answered.spend.calls;
    let is_kept = answered.usage.cached_input_tokens + answered.usage.cache_write_tokens > 0;
    if calls < CALLS_MIN || is_kept {
        return None;
    }
    let effect = cache_effect(context, node, agent, target, &answered)?;
    let CacheEffect { prompt_tokens, prefix_tokens, reads, writes, saved_nanousd } = effect;
    let saved = known.daily_spend(ANSWERED).scaled_to(saved_nanousd);
    let saving = context.projection(node, &known, &saved);
    if saved_nanousd <= 0 || !context.is_worthwhile(Kind::PromptCache, node, &saving) {
        return None;
    }
    let base = context.proposal(Kind::PromptCache, node, Some(known.since), Some(&saving));
    Some(Proposal {
        title: "Cache the constant start of the prompt".to_owned(),
        reason: format!(
            "About {prefix_tokens} of the {prompt_tokens} tokens of each prompt are the same. {reads} of {calls} calls came within 5 minutes of another call, so {} could have read these tokens from its cache. This would have saved {} USD, including cache writes.{}",
            target.provider,
            Usd::from_nanousd(saved_nanousd),
            base.reason,
        ),
        calls,
        evidence: json!({
            "since": known.since,
            "calls": calls,
            "promptTokens": prompt_tokens,
            "prefixTokens": prefix_tokens,
            "reads": reads,
            "writes": writes,
            "savedNanousd": saved_nanousd,
            "pricedAt": context.models.priced_at,
        }),
        edit: set(node, [("promptCache", json!(true))]),
        ..base
    })
}

/// Returns none if the prefix is too short, or its length or price is unknown.
fn cache_effect(
    context: &RuleContext<'_>,
    node: &Node,
    agent: &Agent,
    target: &Target,
    answered: &CallSums,
) -> Option<CacheEffect> {
    let calls = answered.spend.calls;
    let prefix_bytes = prefix_bytes(agent)?;
    let prompt_bytes = context.store.prompt_bytes(context.flow_id, &node.id, RUNS_MAX);
    let prompt_bytes = or_default(node, prompt_bytes).filter(|bytes| *bytes >= prefix_bytes)?;
    // The provider counts tokens of prompts; the prefix's share is that of its text. The divisor is
    // 0 if recent prompts were empty.
    let prompt_tokens = answered.usage.input_tokens.checked_div(calls)?;
    let prefix_tokens = prompt_tokens.checked_mul(prefix_bytes)?.checked_div(prompt_bytes)?;
    if prefix_tokens < prefix_tokens_min(&target.model) {
        return None;
    }
    let quote = context.models.quote(target)?;
    let rates = quote.rates(prompt_tokens);
    let reads = answered.prefix_hits.min(calls);
    let writes = calls - reads;
    let gain = i128::from(rates.input) - i128::from(rates.cache_read);
    let loss = i128::from(rates.cache_write) - i128::from(rates.input);
    let saved = i128::from(prefix_tokens) * (i128::from(reads) * gain - i128::from(writes) * loss);
    Some(CacheEffect {
        prompt_tokens,
        prefix_tokens,
        reads,
        writes,
        saved_nanousd: i64::try_from(saved / PICO_PER_NANO).ok()?,
    })
}

fn prefix_tokens_min(model: &str) -> u64 {
    // Routers write names such as `anthropic/claude-sonnet-4.5`.
    let name = model.rsplit('/').next().unwrap_or(model).replace('.', "-");
    let mut known = PREFIX_TOKENS_MIN.iter();
    let known = known.find(|(start, _)| name.starts_with(start));
    known.map_or(PREFIX_TOKENS_MIN_ELSE, |(_, tokens)| *tokens)
}

/// Returns the length of the common prompt prefix in bytes; none if the system text, which comes
/// first, varies.
fn prefix_bytes(agent: &Agent) -> Option<u64> {
    let system = match agent.system.as_deref().map(constant_beginning) {
        None => 0,
        Some((text, true)) => text.len(),
        Some((_, false)) => return None,
    };
    let (beginning, _) = constant_beginning(&agent.prompt);
    u64::try_from(system + beginning.len()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_models_have_the_largest_minimum_prefix() {
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
