//! Thinking, as a model accepts it.

use serde_json::Value;

use super::super::conversation::{
    Conversation, PartKind, Reasoning, Role, ThinkingMode, ToolChoice,
};
use super::models::{Model, Off};

/// The lowest budget, in tokens.
const BUDGET_MIN: u64 = 1_024;
/// The part of the output limit that thinking leaves for the answer, in tokens.
const ANSWER_MIN: u64 = 1_024;
/// The budgets of the efforts, in tokens: <https://ai.google.dev/gemini-api/docs/openai>.
const BUDGETS: [(&str, u64); 3] = [("low", 1_024), ("medium", 8_192), ("high", 24_576)];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The request does not switch thinking on.
    Off,
    On,
    /// The model cannot think, or not think, as requested.
    Dropped,
}

/// Writes the requested thinking into `it`, which has its turns, tools and limit already.
pub(super) fn adapt(from: &Reasoning, model: Option<Model>, it: &mut Conversation) -> Outcome {
    let effort = from.effort.as_deref();
    let is_off = from.mode == Some(ThinkingMode::Disabled)
        || effort == Some("none")
        || effort.is_none() && from.budget_tokens == Some(0);
    if is_off {
        return switch_off(model, it);
    }
    let mode = match model {
        Some(model) => model.thinking(),
        None => Some(ThinkingMode::Enabled),
    };
    let is_asked = from.mode.is_some() || effort.is_some() || from.budget_tokens.is_some();
    match (mode, model) {
        (Some(ThinkingMode::Adaptive), Some(model)) if is_asked || from.is_shown == Some(true) => {
            let effort = effort.or_else(|| from.budget_tokens.map(nearest_effort));
            it.reasoning.mode = Some(ThinkingMode::Adaptive);
            it.reasoning.is_shown = from.is_shown;
            it.reasoning.effort = effort.map(|effort| model.effort(effort).to_owned());
            Outcome::On
        }
        (Some(ThinkingMode::Enabled), _) if is_asked => enable(from, model, it),
        (None, _) if is_asked => Outcome::Dropped,
        _ => Outcome::Off,
    }
}

fn switch_off(model: Option<Model>, it: &mut Conversation) -> Outcome {
    match model.map_or(Off::Disabled, Model::off) {
        Off::Omitted => {}
        Off::Disabled => it.reasoning.mode = Some(ThinkingMode::Disabled),
        Off::BetweenTools => {
            it.reasoning.extra.insert("type".into(), Value::from("between_tools"));
        }
        Off::Impossible => {
            it.reasoning.effort = Some("low".into());
            return Outcome::Dropped;
        }
    }
    Outcome::Off
}

/// With a budget, thinking is refused if a tool is forced
/// (<https://platform.claude.com/docs/build-with-claude/thinking-tool-workflows>), or if the model
/// called tools without a thought that it signed: "a final `assistant` message must start with a
/// thinking block" (<https://github.com/anomalyco/opencode/issues/3077>). Adaptive thinking accepts
/// both (<https://platform.claude.com/docs/en/build-with-claude/adaptive-thinking>).
fn enable(from: &Reasoning, model: Option<Model>, it: &mut Conversation) -> Outcome {
    let is_forced = matches!(it.tool_choice, Some(ToolChoice::Required | ToolChoice::Named(_)));
    if is_forced || model.is_some() && has_unsigned_calls(it) {
        return Outcome::Dropped;
    }
    let effort = match from.effort.as_deref() {
        Some("minimal") => "low",
        Some("xhigh" | "max") => "high",
        other => other.unwrap_or("medium"),
    };
    let of_effort = BUDGETS.iter().find(|(name, _)| *name == effort).unwrap_or(&BUDGETS[1]).1;
    // The budget is part of the limit, and must be lower. The limit stays: a budget
    // in dollars may have lowered it.
    let highest = it.max_tokens.unwrap_or(0).saturating_sub(ANSWER_MIN);
    if highest < BUDGET_MIN {
        return Outcome::Dropped;
    }
    let budget = from.budget_tokens.unwrap_or(of_effort).clamp(BUDGET_MIN, highest);
    it.reasoning.mode = Some(ThinkingMode::Enabled);
    it.reasoning.budget_tokens = Some(budget);
    it.reasoning.is_shown = from.is_shown;
    Outcome::On
}

fn has_unsigned_calls(it: &Conversation) -> bool {
    let last = it.turns.iter().rev().find(|turn| turn.role == Role::Assistant);
    last.is_some_and(|turn| {
        let has_calls = turn.parts.iter().any(|it| matches!(it.kind, PartKind::ToolCall { .. }));
        let is_thought = |kind: &PartKind| matches!(kind, PartKind::Thinking(_));
        has_calls && !turn.parts.first().is_some_and(|first| is_thought(&first.kind))
    })
}

fn nearest_effort(budget: u64) -> &'static str {
    let distance = |(_, tokens): &(&str, u64)| tokens.abs_diff(budget);
    BUDGETS.into_iter().min_by_key(distance).map_or("medium", |(name, _)| name)
}
