//! Google's Gemini API: <https://ai.google.dev/api/generate-content>. Pure: no network, no clock.

use serde_json::Value;

use super::billing::{Billing, TOOL_FEE};
use super::config::ProviderConfig;
use super::excerpt::one_line;
use super::failure::Fault;
use super::framer::{Event, Framing};
use super::openai;
use super::wire::{
    BadCount, Counts, Flow, Header, Reader, ResponseAccumulator, check_part, check_reported, count,
    counts_anything, event_json, finish_reason, is_counted,
};
use crate::event::{Usage, UsageSource};
use crate::secret::Secret;

/// The API version for a URL without one: <https://ai.google.dev/gemini-api/docs/api-versions>.
const VERSION: &str = "v1beta";

const MODALITY_CHARS_MAX: usize = 20;

const PROMPT_DETAILS: &[&str] = &["promptTokensDetails", "toolUsePromptTokensDetails"];
const TEXT: &[&str] = &["TEXT", "MODALITY_UNSPECIFIED"];
/// In a prompt, images, videos and documents have the price of text, and audio has not:
/// "(text / image / video)" in <https://ai.google.dev/gemini-api/docs/pricing>.
const PRICED_AS_TEXT: &[&str] = &["TEXT", "MODALITY_UNSPECIFIED", "IMAGE", "VIDEO", "DOCUMENT"];

/// Returns the URL of an operation on a model.
pub(super) fn action_url(provider: &ProviderConfig, model: &str, action: &str) -> String {
    format!("{}/{}:{action}", versioned(provider.base_url()), resource(model))
}

pub(super) fn api_key(key: &Secret) -> (&'static str, Header) {
    ("x-goog-api-key", Header::Secret(key.expose().to_owned()))
}

/// Returns the URL of the OpenAI-compatible API, which takes the key as a bearer token:
/// <https://ai.google.dev/gemini-api/docs/openai>.
pub(super) fn chat_url(provider: &ProviderConfig) -> String {
    let base_url = versioned(provider.base_url());
    format!("{base_url}/openai/chat/completions")
}

/// Returns the counts of a chat completion in normal form. `completion_tokens` excludes thoughts,
/// which only `total_tokens` includes: in <https://discuss.ai.google.dev/t/127400>, 9 for the
/// prompt and 1 for the answer make 103 in total. Thoughts are billed like the answer.
pub(super) fn chat_usage(usage: &Value) -> Result<Usage, BadCount> {
    let counted = openai::normal_usage(usage)?;
    let total = count(usage, "total_tokens")?.unwrap_or(0);
    let output = total.saturating_sub(counted.input_tokens);
    // The total alone does not show the billed parts.
    if counted.source == UsageSource::None || output <= counted.output_tokens {
        return Ok(counted);
    }
    let thoughts = output - counted.output_tokens;
    Ok(Usage {
        output_tokens: output,
        reasoning_tokens: counted.reasoning_tokens + thoughts,
        ..counted
    })
}

/// Returns the URL without `/openai` of the compatible API, and with a version at its end
/// (`/v1beta`, `/v1`).
pub(super) fn versioned(base_url: &str) -> String {
    let base_url = base_url.strip_suffix("/openai").unwrap_or(base_url);
    let last = base_url.rsplit('/').next().unwrap_or_default();
    let version = last.strip_prefix('v').unwrap_or_default();
    match version.starts_with(|c: char| c.is_ascii_digit()) {
        true => base_url.to_owned(),
        false => format!("{base_url}/{VERSION}"),
    }
}

/// Returns the model's escaped path: `models/NAME`, unless the name contains a collection
/// (`tunedModels/NAME`). A name with an empty segment or one of dots, which servers would resolve,
/// is escaped as a whole, so that it cannot lead to another path.
fn resource(model: &str) -> String {
    let is_dots = |segment: &str| segment.bytes().all(|byte| byte == b'.');
    let is_path = !model.split('/').any(is_dots);
    let plain: &[u8] = if is_path { b"-._~/@" } else { b"-_~@" };
    let has_collection = is_path && model.contains('/');
    let mut path = String::from(if has_collection { "" } else { "models/" });
    for byte in model.bytes() {
        if byte.is_ascii_alphanumeric() || plain.contains(&byte) {
            path.push(char::from(byte));
        } else {
            path.push_str(&format!("%{byte:02X}"));
        }
    }
    path
}

/// Reads answers. A stream is a sequence of documents of the same form, and ends with its
/// connection.
#[derive(Debug, Default)]
pub(super) struct ContentReader {
    /// Prompt ("When `cachedContent` is set, this is still the total effective prompt size");
    /// cached part; tool results, in addition to the prompt; candidates; thoughts, in addition to
    /// the candidates ("Total token count for the generation request (prompt + thoughts + response
    /// candidates)", in the description of `totalTokenCount`). Each event of a stream has the
    /// totals so far, so each overwrites the previous; proto3 omits a zero, and no zero follows a
    /// greater count. <https://ai.google.dev/api/generate-content#UsageMetadata>
    counts: Counts<5>,
    /// The total alone does not show the billed parts.
    total: Counts<1>,
    /// The form of a client's stream; none for a call of flowledger, which asks for events and needs
    /// a text.
    forwarded: Option<Framing>,
}

impl Reader for ContentReader {
    fn framing(&self) -> Framing {
        self.forwarded.unwrap_or(Framing::Sse)
    }

    fn event(&mut self, event: &Event, partial: &mut ResponseAccumulator) -> Result<Flow, Fault> {
        self.read_part(&event_json(event)?, partial)?;
        Ok(Flow::More)
    }

    fn document(&mut self, body: &Value, partial: &mut ResponseAccumulator) -> Result<(), Fault> {
        self.read_part(body, partial)?;
        let is_answer = body["candidates"][0].is_object() || partial.is_complete;
        if !is_answer {
            return Err(Fault::bad_answer("the response has no `candidates[0]`"));
        }
        // Complete even if a compatible server sends no finish reason.
        partial.is_complete = true;
        Ok(())
    }
}

impl ContentReader {
    /// Reads an answer for a client, which understands one that was blocked or has no text.
    pub(super) fn forwarding(framing: Framing) -> Self {
        Self { forwarded: Some(framing), ..Self::default() }
    }

    fn read_part(&mut self, body: &Value, partial: &mut ResponseAccumulator) -> Result<(), Fault> {
        partial.note_model(&body["modelVersion"]);
        let candidates = body["candidates"].as_array().map_or(&[][..], Vec::as_slice);
        let read_count = if self.forwarded.is_some() { candidates.len() } else { 1 };
        let taken =
            candidates.iter().take(read_count).try_for_each(|it| take_candidate(it, partial));
        // Noted after the text, because the totals include this piece.
        self.note_usage(&body["usageMetadata"], partial);
        taken?;
        check_reported(body)?;
        check_part(&body["candidates"][0], &["finishReason"])?;
        // Set for a blocked prompt; then there are no candidates:
        // <https://ai.google.dev/api/generate-content#PromptFeedback>.
        let block_reason = &body["promptFeedback"]["blockReason"];
        if self.forwarded.is_some() {
            partial.note_finish(block_reason);
            partial.is_complete |= block_reason.is_string();
            return Ok(());
        }
        if let Some(reason) = block_reason.as_str() {
            return Err(Fault::bad_answer(format!("the provider blocked the prompt: {reason}")));
        }
        check_finish(partial)
    }

    fn note_usage(&mut self, usage: &Value, partial: &mut ResponseAccumulator) {
        note_modalities(usage, PROMPT_DETAILS, PRICED_AS_TEXT, partial);
        note_modalities(usage, &["candidatesTokensDetails"], TEXT, partial);
        if !counts_anything(usage) {
            return;
        }
        self.counts.overwrite([
            (usage, "promptTokenCount"),
            (usage, "cachedContentTokenCount"),
            (usage, "toolUsePromptTokenCount"),
            (usage, "candidatesTokenCount"),
            (usage, "thoughtsTokenCount"),
        ]);
        self.total.overwrite([(usage, "totalTokenCount")]);
        let total = match self.total.are_missing() {
            true => Some([0]),
            false => self.total.tokens(),
        };
        let counts = self.counts.tokens().zip(total);
        let counts = counts.map(|(counts, [total])| normal_usage(counts, total));
        let counts_answer = is_counted(usage, "candidatesTokenCount");
        partial.note_usage(counts.unwrap_or_default(), counts_answer);
        if let (Some(counted), true) =
            (&mut partial.counted, is_counted(usage, "thoughtsTokenCount"))
        {
            counted.thinking = partial.thinking.len();
        }
    }
}

/// Reads embeddings. Older versions of the API do not count their tokens.
pub(super) struct EmbeddingReader;

impl Reader for EmbeddingReader {
    fn event(&mut self, _: &Event, _: &mut ResponseAccumulator) -> Result<Flow, Fault> {
        Err(Fault::bad_answer("expected embeddings, received a stream"))
    }

    fn document(&mut self, body: &Value, partial: &mut ResponseAccumulator) -> Result<(), Fault> {
        let usage = &body["usageMetadata"];
        // Each has a price of its own.
        note_modalities(usage, &["promptTokensDetails", "promptTokenDetails"], TEXT, partial);
        ContentReader::default().note_usage(usage, partial);
        check_reported(body)?;
        if !body["embedding"].is_object() && !body["embeddings"].is_array() {
            return Err(Fault::bad_answer("the response has no `embedding` or `embeddings`"));
        }
        partial.is_complete = true;
        Ok(())
    }
}

/// Notes tokens of images, audio, video and documents, which may have other prices than text:
/// <https://ai.google.dev/api/generate-content#ModalityTokenCount>.
fn note_modalities(
    usage: &Value,
    names: &[&str],
    known: &[&str],
    partial: &mut ResponseAccumulator,
) {
    for details in names.iter().filter_map(|name| usage[*name].as_array()) {
        partial.has_modalities = true;
        for counted in details.iter().filter(|counted| is_counted(counted, "tokenCount")) {
            let modality = counted["modality"].as_str().unwrap_or("TEXT");
            if !known.contains(&modality) {
                let modality = one_line(&modality.to_lowercase(), MODALITY_CHARS_MAX);
                partial.billing.note_unpriced(format!("{modality} tokens"));
            }
        }
    }
}

/// Notes output that has other prices than text, and searches. The response lists the searches, but
/// not which of them exceed the free ones of the day or the month:
/// <https://ai.google.dev/gemini-api/docs/pricing>.
fn note_special_output(candidate: &Value, billing: &mut Billing) {
    let parts = candidate["content"]["parts"].as_array();
    for part in parts.into_iter().flatten() {
        if let Some(media_type) = part["inlineData"]["mimeType"].as_str() {
            let kind = media_type.split('/').next().unwrap_or_default();
            billing.note_unpriced(format!("{} tokens", one_line(kind, MODALITY_CHARS_MAX)));
        }
    }
    let grounding = candidate["groundingMetadata"].as_object();
    let mut lists = grounding.into_iter().flatten().filter_map(|(_, list)| list.as_array());
    if lists.any(|list| list.iter().any(|item| item != "")) {
        billing.note_unpriced(TOOL_FEE);
    }
}

fn take_candidate(candidate: &Value, partial: &mut ResponseAccumulator) -> Result<(), Fault> {
    note_special_output(candidate, &mut partial.billing);
    let parts = candidate["content"]["parts"].as_array();
    for part in parts.into_iter().flatten() {
        // "Indicates if the part is thought from the model": <https://ai.google.dev/api/caching#Part>.
        if part["thought"] == true {
            partial.note_thinking(&part["text"]);
        } else {
            partial.push(part["text"].as_str().unwrap_or_default())?;
        }
        partial.note_other_output(&part["functionCall"]);
        partial.note_other_output(&part["executableCode"]);
    }
    partial.note_finish(&candidate["finishReason"]);
    // The default value of the enumeration is "unused", so it is no end.
    let reason = finish_reason(&candidate["finishReason"]);
    partial.is_complete |= reason.is_some_and(|reason| reason != "FINISH_REASON_UNSPECIFIED");
    Ok(())
}

/// Checks the finish reason. An answer that was cut short for such a reason is an answer, as with
/// `MAX_TOKENS`. The reasons: <https://ai.google.dev/api/generate-content#FinishReason>.
///
/// # Errors
/// Fails for a withheld answer (`SAFETY`, `RECITATION`, `PROHIBITED_CONTENT`, …).
fn check_finish(partial: &ResponseAccumulator) -> Result<(), Fault> {
    match partial.finish_reason.as_deref() {
        None | Some("STOP" | "MAX_TOKENS" | "FINISH_REASON_UNSPECIFIED") => Ok(()),
        Some(reason) if partial.text.is_empty() => {
            Err(Fault::bad_answer(format!("the provider returned no text: {reason}")))
        }
        Some(_) => Ok(()),
    }
}

/// Converts the counts to normal form.
fn normal_usage(
    [prompt, cached, tool_prompt, candidates, thoughts]: [u64; 5],
    total: u64,
) -> Usage {
    let input = prompt + tool_prompt;
    // Some servers with this API for other models include thoughts in the candidates, which the
    // total shows.
    let are_within = total == input + candidates;
    let output = candidates + if are_within { 0 } else { thoughts };
    Usage {
        input_tokens: input,
        cached_input_tokens: cached.min(input),
        output_tokens: output,
        reasoning_tokens: thoughts.min(output),
        source: UsageSource::Provider,
        ..Usage::default()
    }
}

#[cfg(test)]
mod tests;
