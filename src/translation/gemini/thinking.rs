//! Thinking: <https://ai.google.dev/gemini-api/docs/thinking>.

use serde_json::{Value, json};

use super::fields::{take, take_as, text};
use crate::translation::{Extra, Reasoning, ThinkingMode};

/// Efforts and budgets in tokens: "reasoning_effort" in
/// <https://ai.google.dev/gemini-api/docs/openai>.
const BUDGETS: &[(&str, u64)] =
    &[("minimal", 1_024), ("low", 1_024), ("medium", 8_192), ("high", 24_576)];
/// The budgets that a model takes: <https://ai.google.dev/gemini-api/docs/thinking#set-budget>.
const PRO_BUDGETS: (u64, u64) = (128, 32_768);
const FLASH_LITE_BUDGETS: (u64, u64) = (512, 24_576);
const FLASH_BUDGETS: (u64, u64) = (0, 24_576);

pub(super) fn read_thinking(config: &Value) -> Option<Reasoning> {
    let mut fields = config.as_object()?.clone();
    let mut reasoning = Reasoning {
        is_shown: take_as(&mut fields, "includeThoughts", Value::as_bool),
        effort: take_as(&mut fields, "thinkingLevel", text).map(|it| it.to_ascii_lowercase()),
        ..Reasoning::default()
    };
    // "0 is DISABLED. -1 is AUTOMATIC" in Google's client for Python.
    match take_as(&mut fields, "thinkingBudget", Value::as_i64) {
        None => {}
        Some(0) => reasoning.mode = Some(ThinkingMode::Disabled),
        Some(budget) => match u64::try_from(budget) {
            Ok(budget) => {
                reasoning.mode = Some(ThinkingMode::Enabled);
                reasoning.budget_tokens = Some(budget);
            }
            Err(_) => reasoning.mode = Some(ThinkingMode::Adaptive),
        },
    }
    if reasoning.effort.as_deref() == Some("thinking_level_unspecified") {
        reasoning.effort = None;
    }
    for name in ["includeThoughts", "thinkingLevel", "thinkingBudget"] {
        if let Some(value) = take(&mut fields, name).filter(|value| !value.is_null()) {
            fields.insert(name.to_owned(), value);
        }
    }
    reasoning.extra = fields;
    Some(reasoning)
}

/// Writes the configuration for a model. None if the client leaves everything to the model. A budget
/// leaves a part of the output limit for the answer, because thoughts count towards the limit.
pub(super) fn write_thinking(
    reasoning: &Reasoning,
    model: &str,
    max_tokens: Option<u64>,
) -> Option<Value> {
    let mut config = Extra::new();
    let is_wanted = matches!(reasoning.mode, Some(ThinkingMode::Enabled | ThinkingMode::Adaptive));
    if let Some(is_shown) = reasoning.is_shown.or(is_wanted.then_some(true)) {
        config.insert("includeThoughts".to_owned(), is_shown.into());
    }
    let amount = match takes_levels(model) {
        true => level(reasoning, model).map(|level| ("thinkingLevel", level.into())),
        false => budget(reasoning, model, max_tokens).map(|budget| ("thinkingBudget", budget)),
    };
    config.extend(amount.map(|(name, value)| (name.to_owned(), value)));
    Some(Value::Object(config)).filter(|config| *config != json!({}))
}

/// Gemini 3 and later take levels, and older ones budgets. Names without a version, such as
/// `gemini-flash-latest`, get budgets, which Gemini 3 takes as well.
fn takes_levels(model: &str) -> bool {
    let version = model.rsplit('/').next().and_then(|name| name.strip_prefix("gemini-"));
    let digits = version.unwrap_or_default().chars().take_while(char::is_ascii_digit);
    digits.collect::<String>().parse::<u32>().is_ok_and(|version| version >= 3)
}

fn is_disabled(reasoning: &Reasoning) -> bool {
    reasoning.mode == Some(ThinkingMode::Disabled) || reasoning.effort.as_deref() == Some("none")
}

/// Returns the level. Thinking of Gemini 3 cannot be turned off, and Pro has no minimal level:
/// <https://ai.google.dev/gemini-api/docs/openai>.
fn level(reasoning: &Reasoning, model: &str) -> Option<&'static str> {
    let lowest = if model.contains("flash") { "MINIMAL" } else { "LOW" };
    if is_disabled(reasoning) {
        return Some(lowest);
    }
    let effort = match (reasoning.effort.as_deref(), reasoning.budget_tokens) {
        (Some(effort), _) => effort,
        (None, Some(tokens)) => nearest_effort(tokens),
        (None, None) => return None,
    };
    Some(match effort {
        "minimal" => lowest,
        "low" => "LOW",
        "medium" => "MEDIUM",
        _ => "HIGH",
    })
}

fn nearest_effort(tokens: u64) -> &'static str {
    let efforts = BUDGETS.iter().skip(1);
    efforts.min_by_key(|(_, budget)| budget.abs_diff(tokens)).map_or("high", |(name, _)| name)
}

/// Returns the budget in tokens; -1 if the model decides.
fn budget(reasoning: &Reasoning, model: &str, max_tokens: Option<u64>) -> Option<Value> {
    let (lowest, highest) = match model {
        _ if model.contains("pro") => PRO_BUDGETS,
        _ if model.contains("flash-lite") => FLASH_LITE_BUDGETS,
        _ => FLASH_BUDGETS,
    };
    if is_disabled(reasoning) {
        // Flash-Lite takes no budget between 0 and its lowest.
        let can_disable = !model.contains("pro");
        return Some(if can_disable { 0 } else { lowest }.into());
    }
    let effort = reasoning.effort.as_deref();
    let of_effort = effort.map(|effort| {
        let found = BUDGETS.iter().find(|(name, _)| *name == effort);
        found.map_or(highest, |(_, budget)| *budget)
    });
    match reasoning.budget_tokens.or(of_effort) {
        Some(tokens) => {
            let fitting = max_tokens.map_or(tokens, |limit| tokens.min(limit - limit / 4));
            Some(fitting.clamp(lowest.max(1), highest).into())
        }
        None if reasoning.mode == Some(ThinkingMode::Adaptive) => Some((-1).into()),
        None => None,
    }
}
