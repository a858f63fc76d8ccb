//! Anthropic's messages: <https://docs.anthropic.com/en/api/messages>, streamed as in
//! <https://docs.anthropic.com/en/api/messages-streaming>. Pure: no network, no clock.

use serde_json::Value;

use super::billing::{Billing, PricedOptions, TOOL_FEE};
use super::config::ProviderConfig;
use super::excerpt::one_line;
use super::failure::{FailureKind, Fault};
use super::framer::Event;
use super::wire::{
    Counts, FINISH_CHARS_MAX, Flow, Header, Reader, ResponseAccumulator, check_part,
    check_reported, count, counts_anything, event_json, is_counted, spelled,
};
use crate::event::{Usage, UsageSource};
use crate::prices::Surcharge;
use crate::secret::Secret;

/// The API version of this module; the header is required.
const VERSION: &str = "2023-06-01";

/// The number of counts in a usage; see [`parts`].
const PARTS: usize = 7;

/// The note of inference in the United States.
const US: &str = "inference_geo us";
const US_PER_MILLE: u64 = 1_100;
/// The provider in the price table whose fees are known.
pub(super) const MAKER: &str = "anthropic";

/// "Web search is available on the Claude API for $10 per 1,000 searches":
/// <https://platform.claude.com/docs/en/agents-and-tools/tool-use/web-search-tool>, 2026-11-30.
const PICOUSD_PER_SEARCH: u64 = 10_000_000_000;

pub(super) fn url(provider: &ProviderConfig) -> String {
    let base_url = provider.base_url();
    // Users often write the URLs of compatible servers and of OpenAI with `/v1`.
    let base_url = base_url.strip_suffix("/v1").unwrap_or(base_url);
    format!("{base_url}/v1/messages")
}

pub(super) fn api_key(key: &Secret) -> (&'static str, Header) {
    ("x-api-key", Header::Secret(key.expose().to_owned()))
}

pub(super) fn version() -> (&'static str, Header) {
    ("anthropic-version", Header::Plain(VERSION.into()))
}

#[derive(Debug, Default)]
pub(super) struct MessageReader {
    /// Counts in `message_delta` are cumulative ("The token counts shown in the usage field of the
    /// message_delta event are cumulative"), so each one overwrites the previous.
    counts: Counts<PARTS>,
    iterations: Iterations,
    /// True if the provider executed code.
    has_run_code: bool,
    /// True if the stream has a part of a message.
    has_begun: bool,
}

/// The counts of a message that had several parts: the API lists the "usage for each sampling
/// iteration", such as a compaction of the prompt before the message. The other counts exclude
/// compactions: "To calculate total tokens consumed and billed for a request, sum across all
/// entries" (<https://platform.claude.com/docs/en/build-with-claude/compaction>).
#[derive(Debug)]
struct Iterations {
    /// The sum of the compactions; none if a count is impossible.
    compactions: Option<[u64; PARTS]>,
    /// The sum of the messages, which the other counts include.
    messages: [u64; PARTS],
}

impl Default for Iterations {
    fn default() -> Self {
        Self { compactions: Some([0; PARTS]), messages: [0; PARTS] }
    }
}

impl Iterations {
    /// Reads the list of a usage, if it has one.
    fn read(usage: &Value, billing: &mut Billing) -> Option<Self> {
        let list = usage["iterations"].as_array().filter(|list| !list.is_empty())?;
        let mut read = Self::default();
        // Then the messages include attempts that were declined, which are not billed:
        // <https://platform.claude.com/docs/en/build-with-claude/refusals-and-fallback>.
        let is_fallback = list.iter().any(|it| it["type"] == "fallback_message");
        let mut lengths = Vec::new();
        for iteration in list {
            let mut counts = Counts::default();
            counts.overwrite(parts(iteration));
            let counts = counts.tokens();
            match iteration["type"].as_str() {
                Some("compaction") => {
                    let sum = read.compactions.zip(counts);
                    read.compactions = sum.map(|(sum, more)| added(sum, more));
                }
                Some("message") | None if !is_fallback => {
                    read.messages = added(read.messages, counts.unwrap_or_default());
                }
                Some("message" | "fallback_message") | None => {}
                // Billed at the prices of another model, in addition to the other counts:
                // <https://platform.claude.com/docs/en/agents-and-tools/tool-use/advisor-tool>.
                Some("advisor_message") => billing.note_unpriced("advisor tokens"),
                Some(other) => {
                    let other = one_line(other, FINISH_CHARS_MAX);
                    billing.note_unpriced(format!("iteration {other}"));
                }
            }
            lengths.extend(counts.map(|counts| normal_usage(counts).input_tokens));
        }
        if read.messages == [0; PARTS] {
            let mut counts = Counts::default();
            counts.overwrite(parts(usage));
            lengths.extend(counts.tokens().map(|counts| normal_usage(counts).input_tokens));
        }
        let shortest_and_longest = lengths.iter().min().zip(lengths.iter().max());
        if let Some((shortest, longest)) = shortest_and_longest.filter(|_| lengths.len() > 1) {
            billing.prompt_lengths = Some((*shortest, *longest));
        }
        Some(read)
    }

    /// Returns all counts of the message, from those that exclude compactions.
    fn complete(&self, mut counts: [u64; PARTS]) -> Option<[u64; PARTS]> {
        for (count, message) in counts.iter_mut().zip(self.messages) {
            *count = (*count).max(message);
        }
        self.compactions.map(|compactions| added(counts, compactions))
    }
}

fn added(mut sum: [u64; PARTS], more: [u64; PARTS]) -> [u64; PARTS] {
    for (sum, more) in sum.iter_mut().zip(more) {
        *sum = sum.saturating_add(more);
    }
    sum
}

impl Reader for MessageReader {
    fn event(&mut self, event: &Event, partial: &mut ResponseAccumulator) -> Result<Flow, Fault> {
        let data = event_json(event)?;
        // The event's name is also in its data; some proxies keep only one of them.
        let name = data["type"].as_str().unwrap_or(&event.name);
        self.has_begun |= name.starts_with("message_") && name != "message_stop";
        self.has_begun |= name.starts_with("content_block_");
        match name {
            "message_start" => {
                let message = &data["message"];
                partial.note_model(&message["model"]);
                // Its output count of 1 is meaningless: there is no output yet.
                self.note_usage(&message["usage"], false, partial);
                check_reported(message)?;
            }
            "content_block_start" => self.note_block(&data["content_block"], partial)?,
            "content_block_delta" => self.note_block(&data["delta"], partial)?,
            "message_delta" => {
                partial.note_finish(&data["delta"]["stop_reason"]);
                self.note_usage(&data["usage"], true, partial);
                check_part(&data["delta"], &["stop_reason"])?;
            }
            "message_stop" => {
                check_reported(&data)?;
                partial.is_complete = self.has_begun;
                return Ok(Flow::End);
            }
            "error" => return Err(fault_of(&data)),
            // The API requires clients to ignore `ping`, `content_block_stop` and unknown events.
            _ => {}
        }
        check_reported(&data)?;
        Ok(Flow::More)
    }

    fn document(&mut self, body: &Value, partial: &mut ResponseAccumulator) -> Result<(), Fault> {
        partial.note_model(&body["model"]);
        self.note_usage(&body["usage"], true, partial);
        if body["type"] == "error" {
            return Err(fault_of(body));
        }
        check_reported(body)?;
        let Some(blocks) = body["content"].as_array() else {
            return Err(Fault::bad_answer("the response has no `content`"));
        };
        for block in blocks {
            self.note_block(block, partial)?;
        }
        self.note_usage(&body["usage"], true, partial);
        partial.note_finish(&body["stop_reason"]);
        check_part(body, &["stop_reason"])?;
        partial.is_complete = true;
        Ok(())
    }
}

impl MessageReader {
    fn note_usage(&mut self, usage: &Value, is_behind: bool, partial: &mut ResponseAccumulator) {
        // Fast mode costs more: <https://platform.claude.com/docs/en/build-with-claude/fast-mode>.
        for tier in ["service_tier", "speed"] {
            partial.note_tier(&usage[tier]);
        }
        note_region(&usage["inference_geo"], &mut partial.billing);
        partial.billing.note_stated_cost(usage);
        self.note_tools(&usage["server_tool_use"], &mut partial.billing);
        if !counts_anything(usage) {
            return;
        }
        if let Some(iterations) = Iterations::read(usage, &mut partial.billing) {
            self.iterations = iterations;
        }
        self.counts.overwrite(parts(usage));
        let counts = self.counts.tokens().and_then(|counts| self.iterations.complete(counts));
        let counts = counts.map_or_else(Usage::default, normal_usage);
        // A count of 0 counts an answer only if it has no text.
        let counts_answer = is_counted(usage, "output_tokens");
        if is_behind && (counts_answer || usage["output_tokens"] == 0 && !partial.has_any()) {
            partial.note_usage(counts, counts_answer);
        } else {
            partial.usage = counts;
        }
    }

    fn note_block(
        &mut self,
        block: &Value,
        partial: &mut ResponseAccumulator,
    ) -> Result<(), Fault> {
        if block["type"] == "server_tool_use" {
            let name = block["name"].as_str().unwrap_or_default();
            self.has_run_code |= name.contains("code_execution");
        }
        note_block(block, partial)
    }

    /// Notes the fees of server tools. Fetching web pages is free, and so is code that runs for a
    /// search; other code is billed by its duration, which the response does not have
    /// (<https://platform.claude.com/docs/en/about-claude/pricing>, 2026-11-30).
    fn note_tools(&self, uses: &Value, billing: &mut Billing) {
        if let Ok(Some(searches @ 1..)) = count(uses, "web_search_requests") {
            billing.note_fee("web searches", searches, PICOUSD_PER_SEARCH);
        }
        let is_known = |name: &str| ["web_search_requests", "web_fetch_requests"].contains(&name);
        let mut others = uses.as_object().into_iter().flatten();
        let has_other = others.any(|(name, _)| !is_known(name) && is_counted(uses, name));
        if has_other || self.has_run_code && !counts_anything(uses) {
            billing.note_unpriced(TOOL_FEE);
        }
    }
}

/// Returns the counts of a usage: uncached input, cache reads, cache writes, those for five minutes
/// and those for an hour, output, and thinking within the output. Compatible servers have other
/// names for writes for an hour.
fn parts(usage: &Value) -> [(&Value, &str); PARTS] {
    let written = &usage["cache_creation"];
    [
        (usage, "input_tokens"),
        (usage, "cache_read_input_tokens"),
        (usage, "cache_creation_input_tokens"),
        spelled(&[
            (written, "ephemeral_5m_input_tokens"),
            (usage, "ephemeral_5m_input_tokens"),
            (usage, "cache_creation_5m_input_tokens"),
            (usage, "claude_cache_creation_5_m_tokens"),
        ]),
        spelled(&[
            (written, "ephemeral_1h_input_tokens"),
            (usage, "ephemeral_1h_input_tokens"),
            (usage, "cache_creation_1h_input_tokens"),
            (usage, "claude_cache_creation_1_h_tokens"),
        ]),
        (usage, "output_tokens"),
        (&usage["output_tokens_details"], "thinking_tokens"),
    ]
}

/// Notes the region that processed the call; models before 4.6 report `not_available`
/// (<https://platform.claude.com/docs/en/manage-claude/data-residency>).
fn note_region(region: &Value, billing: &mut Billing) {
    let region = region.as_str().unwrap_or_default();
    if !["", "global", "not_available"].contains(&region) {
        let region = one_line(region, FINISH_CHARS_MAX);
        billing.note_unpriced(format!("inference_geo {region}"));
    }
}

/// Replaces a noted region by its surcharge for the model that answered: for "Claude Opus 4.6, Claude
/// Sonnet 4.6, and later models", "a 1.1x pricing multiplier applies" to all tokens in the US
/// (<https://docs.aws.amazon.com/claude-platform/latest/userguide/data-residency.html>,
/// 2026-11-30).
pub(super) fn price_region(model: &str, billing: &mut Billing) {
    let is_us = |reason: &String| reason == US;
    if billing.unpriced.iter().any(is_us) && model_version(model) >= Some((4, 6)) {
        billing.unpriced.retain(|reason| !is_us(reason));
        billing.note_surcharge(Surcharge::factor(US, US_PER_MILLE));
    }
}

/// Returns the most that these options can add to the price.
pub(super) fn surcharges(options: PricedOptions) -> Vec<Surcharge> {
    let region = options.has_region.then(|| Surcharge::factor(US, US_PER_MILLE));
    let has_searches = options.searches > 0;
    let searches =
        has_searches.then(|| Surcharge::fee("web searches", options.searches, PICOUSD_PER_SEARCH));
    region.into_iter().chain(searches).collect()
}

/// Returns the version in the name of a Claude model: 4.6 of `claude-opus-4-6-20260205`.
fn model_version(model: &str) -> Option<(u64, u64)> {
    let (_, name) = model.split_once("claude")?;
    // Dates have more digits.
    let number = |part: &str| part.parse().ok().filter(|_| part.len() <= 2);
    let mut parts = name.split(['-', '.', '@', ':']);
    let major = parts.find_map(number)?;
    Some((major, parts.next().and_then(number).unwrap_or(0)))
}

/// Reads a count of tokens: <https://platform.claude.com/docs/en/api/messages-count-tokens>.
#[derive(Debug)]
pub(super) struct CountReader;

impl Reader for CountReader {
    fn event(&mut self, _: &Event, _: &mut ResponseAccumulator) -> Result<Flow, Fault> {
        Err(Fault::bad_answer("expected a token count, received a stream"))
    }

    fn document(&mut self, body: &Value, partial: &mut ResponseAccumulator) -> Result<(), Fault> {
        if !matches!(count(body, "input_tokens"), Ok(Some(_))) {
            return Err(Fault::bad_answer("the response has no `input_tokens`"));
        }
        partial.is_complete = true;
        Ok(())
    }
}

/// Notes a block or its delta. Thinking and tool use are billed as parts of the answer, but are not
/// in its text.
fn note_block(block: &Value, partial: &mut ResponseAccumulator) -> Result<(), Fault> {
    match block["type"].as_str() {
        Some("text" | "text_delta") => partial.push(block["text"].as_str().unwrap_or_default())?,
        Some("thinking" | "thinking_delta") => partial.note_thinking(&block["thinking"]),
        Some("tool_use" | "server_tool_use" | "mcp_tool_use") => {
            partial.note_other_output(&block["name"]);
            // In a stream the input is empty here, and follows in pieces.
            if block["input"].as_object().is_some_and(|it| !it.is_empty()) {
                partial.note_other_output(&block["input"]);
            }
        }
        Some("input_json_delta") => partial.note_other_output(&block["partial_json"]),
        _ => {}
    }
    Ok(())
}

fn fault_of(document: &Value) -> Fault {
    let unknown = "reported an unknown error";
    let reported = check_reported(document).err();
    reported.unwrap_or_else(|| Fault::new(FailureKind::Status, unknown))
}

/// Converts the counts to normal form. The three kinds of input exclude each other: "Total input
/// tokens in a request is the summation of `input_tokens`, `cache_creation_input_tokens`, and
/// `cache_read_input_tokens`". `output_tokens` includes thinking.
fn normal_usage(
    [input, read, written, for_minutes, for_an_hour, output, thinking]: [u64; PARTS],
) -> Usage {
    // Some servers have only the parts.
    let written = written.max(for_minutes.saturating_add(for_an_hour));
    Usage {
        input_tokens: input.saturating_add(read).saturating_add(written),
        cached_input_tokens: read,
        cache_write_tokens: written,
        cache_write_1h_tokens: for_an_hour,
        output_tokens: output,
        reasoning_tokens: thinking.min(output),
        source: UsageSource::Provider,
    }
}

#[cfg(test)]
mod tests;
