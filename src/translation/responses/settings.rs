//! Writes the settings of a request: limits, sampling, reasoning, and the format of the answer.

use serde_json::{Map, Value, json};

use super::super::dropped::Dropped;
use super::item;
use super::models::Model;
use crate::translation::{
    Api, Conversation, OutputFormat, PartKind, Reasoning, Refusal, ThinkingMode, ToolNames,
};

/// OpenAI rejects lower limits: <https://github.com/vectorize-io/hindsight/issues/58>.
const OUTPUT_TOKENS_MIN: u64 = 16;
const TEMPERATURE_MAX: f64 = 2.0;
/// Efforts and the budgets that stand for them:
/// <https://ai.google.dev/gemini-api/docs/openai#thinking>.
const BUDGETS: [(&str, u64); 3] = [("low", 1024), ("medium", 8192), ("high", 24576)];
/// Fields of chat completions that mean the same here.
const SHARED_WITH_CHAT: [&str; 6] = [
    "metadata",
    "service_tier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "user",
];

/// Writes the settings of a client of this API.
pub(super) fn write_own(conversation: &Conversation, body: &mut Map<String, Value>) {
    let mut text = Map::new();
    if let Some(format) = item::write_format(&conversation.format) {
        text.insert("format".to_owned(), Value::Object(format));
    }
    for (key, value) in &conversation.extra {
        let Some(key) = key.strip_prefix("text.") else {
            body.insert(key.clone(), value.clone());
            continue;
        };
        match (text.get_mut(key), value) {
            (Some(Value::Object(fields)), Value::Object(extra)) => fields.extend(extra.clone()),
            _ => {
                text.insert(key.to_owned(), value.clone());
            }
        }
    }
    if !text.is_empty() {
        body.insert("text".to_owned(), Value::Object(text));
    }
    let Reasoning { effort, is_shown, extra, .. } = &conversation.reasoning;
    let mut reasoning = Map::new();
    reasoning.extend(effort.iter().map(|effort| ("effort".to_owned(), json!(effort))));
    if *is_shown == Some(true) {
        reasoning.insert("summary".to_owned(), "auto".into());
    }
    reasoning.extend(extra.clone());
    if !reasoning.is_empty() {
        body.insert("reasoning".to_owned(), Value::Object(reasoning));
    }
    let numbers = [
        ("max_output_tokens", conversation.max_tokens.map(Value::from)),
        ("temperature", conversation.temperature.map(Value::from)),
        ("top_p", conversation.top_p.map(Value::from)),
    ];
    body.extend(numbers.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))));
}

/// Writes the settings of a client of another API.
pub(super) fn write_foreign(
    conversation: &Conversation,
    body: &mut Map<String, Value>,
    dropped: &mut Dropped,
) -> Result<(), Refusal> {
    let api = conversation.api;
    if !conversation.stop.is_empty() {
        return Err(Refusal::not_expressible(field(api, "stop"), Api::Responses));
    }
    // The provider stores answers otherwise.
    body.insert("store".to_owned(), Value::Bool(false));
    let is_reasoning = write_reasoning(conversation, body, dropped);
    write_sampling(conversation, is_reasoning, body, dropped);
    let mut text = Map::new();
    write_format(conversation, body, &mut text);
    for (key, value) in &conversation.extra {
        if value.is_null() {
            continue;
        }
        match (api, key.as_str()) {
            (Api::Chat, "stream_options") => {}
            (Api::Chat, "verbosity") => text.extend([(key.clone(), value.clone())]),
            (Api::Chat, shared) if SHARED_WITH_CHAT.contains(&shared) => {
                body.insert(key.clone(), value.clone());
            }
            _ => dropped.add(key.as_str()),
        }
    }
    if !text.is_empty() {
        body.insert("text".to_owned(), Value::Object(text));
    }
    Ok(())
}

/// Returns the name of a field in the client's API.
fn field(api: Api, name: &'static str) -> &'static str {
    match (api, name) {
        (Api::Gemini, "stop") => "generationConfig.stopSequences",
        (Api::Gemini, "top_k") => "generationConfig.topK",
        (Api::Gemini, "top_p") => "generationConfig.topP",
        (Api::Gemini, "seed") => "generationConfig.seed",
        (Api::Gemini, "temperature") => "generationConfig.temperature",
        (Api::Gemini, "frequency_penalty") => "generationConfig.frequencyPenalty",
        (Api::Gemini, "presence_penalty") => "generationConfig.presencePenalty",
        (Api::Gemini, "max_tokens") => "generationConfig.maxOutputTokens",
        (Api::Gemini, "reasoning") => "generationConfig.thinkingConfig",
        (Api::Messages, "stop") => "stop_sequences",
        (Api::Messages, "reasoning") => "thinking",
        (Api::Chat, "reasoning") => "reasoning_effort",
        (_, name) => name,
    }
}

/// Writes the reasoning. Returns true if the model will reason.
fn write_reasoning(
    conversation: &Conversation,
    body: &mut Map<String, Value>,
    dropped: &mut Dropped,
) -> bool {
    let Reasoning { mode, effort, budget_tokens, is_shown, extra } = &conversation.reasoning;
    let model = Model::read(&conversation.model);
    let prefix = field(conversation.api, "reasoning");
    // Chat completions keep the fields from which the reasoning was read.
    if conversation.api != Api::Chat {
        dropped.add_all(prefix, extra);
    }
    let is_off = *mode == Some(ThinkingMode::Disabled) || *budget_tokens == Some(0);
    let of_budget = budget_tokens.filter(|_| !is_off).map(nearest_effort);
    let effort = effort.as_deref().or(of_budget);
    let is_asked = effort.is_some_and(|effort| effort != "none")
        || effort.is_none() && matches!(mode, Some(ThinkingMode::Enabled | ThinkingMode::Adaptive));
    if is_off && effort.is_none() {
        // Most models reject the effort `none`, and those without reasoning any effort.
        dropped.add(prefix);
    }
    if model.is_some_and(|model| !model.can_reason()) {
        if is_asked {
            dropped.add(prefix);
        }
        return false;
    }
    let accepted = effort.map(|effort| match model {
        // A client of chat completions knows the efforts of OpenAI's models.
        Some(model) if conversation.api != Api::Chat => model.effort(effort),
        _ => effort,
    });
    if let Some(accepted) = accepted.filter(|accepted| Some(*accepted) != effort) {
        dropped.add(format!("{prefix} (changed to {accepted})"));
    }
    // Anthropic's older models show their thoughts if asked for them at all.
    let is_shown = is_shown.unwrap_or(is_asked && conversation.api == Api::Messages);
    let mut reasoning = Map::new();
    reasoning.extend(accepted.map(|effort| ("effort".to_owned(), json!(effort))));
    if is_shown {
        reasoning.insert("summary".to_owned(), "auto".into());
    }
    if !reasoning.is_empty() {
        body.insert("reasoning".to_owned(), Value::Object(reasoning));
    }
    let reasons_anyway = model.is_some_and(Model::always_reasons);
    let is_known = model.is_some() && effort != Some("none");
    if is_asked || is_known || has_own_reasoning(conversation) {
        body.insert("include".to_owned(), json!(["reasoning.encrypted_content"]));
    }
    is_asked || reasons_anyway
}

/// Returns whether the model reasoned earlier in the conversation.
fn has_own_reasoning(conversation: &Conversation) -> bool {
    let mut parts = conversation.turns.iter().flat_map(|turn| &turn.parts);
    parts.any(|part| {
        let is_own = part.signature.as_ref().is_some_and(|it| it.api == Api::Responses);
        is_own && matches!(part.kind, PartKind::Thinking(_))
    })
}

fn nearest_effort(budget_tokens: u64) -> &'static str {
    let distance = |(_, tokens): &(&str, u64)| tokens.abs_diff(budget_tokens);
    BUDGETS.into_iter().min_by_key(distance).map_or("medium", |(effort, _)| effort)
}

fn write_sampling(
    conversation: &Conversation,
    is_reasoning: bool,
    body: &mut Map<String, Value>,
    dropped: &mut Dropped,
) {
    let name = |name| field(conversation.api, name);
    if let Some(limit) = conversation.max_tokens {
        if limit < OUTPUT_TOKENS_MIN {
            dropped.add(format!("{} (raised to {OUTPUT_TOKENS_MIN})", name("max_tokens")));
        }
        body.insert("max_output_tokens".to_owned(), json!(limit.max(OUTPUT_TOKENS_MIN)));
    }
    let settings = [("temperature", conversation.temperature), ("top_p", conversation.top_p)];
    for (key, value) in settings {
        // 1 is the default, which reasoning models reject if it is written:
        // <https://github.com/vercel/ai/issues/10932>.
        let Some(value) = value.filter(|value| *value != 1.0) else {
            continue;
        };
        if is_reasoning {
            dropped.add(name(key));
            continue;
        }
        if value > TEMPERATURE_MAX {
            dropped.add(format!("{} (lowered to {TEMPERATURE_MAX})", name(key)));
        }
        body.insert(key.to_owned(), json!(value.min(TEMPERATURE_MAX)));
    }
    let is_set = |penalty: Option<f64>| penalty.is_some_and(|penalty| penalty != 0.0);
    let hints = [
        ("top_k", conversation.top_k.is_some()),
        ("seed", conversation.seed.is_some()),
        ("frequency_penalty", is_set(conversation.frequency_penalty)),
        ("presence_penalty", is_set(conversation.presence_penalty)),
    ];
    for (key, _) in hints.into_iter().filter(|(_, is_set)| *is_set) {
        dropped.add(name(key));
    }
}

fn write_format(
    conversation: &Conversation,
    body: &mut Map<String, Value>,
    text: &mut Map<String, Value>,
) {
    let Some(mut format) = item::write_format(&conversation.format) else {
        return;
    };
    match &conversation.format {
        OutputFormat::Schema { name, strict, .. } => {
            let name = name.as_deref().unwrap_or("answer");
            let name = ToolNames::default().at_provider(name);
            format.insert("name".to_owned(), json!(name));
            format.insert("strict".to_owned(), Value::Bool(*strict == Some(true)));
        }
        // OpenAI rejects a request for JSON without the word in its messages:
        // <https://github.com/miracodeai/mira/pull/267>.
        OutputFormat::Json if !mentions_json(conversation) => {
            if let Some(input) = body.get_mut("input").and_then(Value::as_array_mut) {
                input.push(json!({
                    "type": "message",
                    "role": "developer",
                    "content": [{"type": "input_text", "text": "Respond with JSON."}],
                }));
            }
        }
        _ => {}
    }
    text.insert("format".to_owned(), Value::Object(format));
}

/// Returns whether the word "json" is in the messages of a request.
fn mentions_json(conversation: &Conversation) -> bool {
    let parts = conversation.turns.iter().flat_map(|turn| &turn.parts);
    let mut texts = parts.filter_map(|part| match &part.kind {
        PartKind::Text(text) => Some(text),
        _ => None,
    });
    texts.any(|text| text.to_ascii_lowercase().contains("json"))
}
