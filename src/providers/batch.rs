//! Batches of OpenAI and Anthropic: their status, and the counts of their results. Pure.
//!
//! - OpenAI: <https://platform.openai.com/docs/api-reference/batch/object>. `usage` is "only populated
//!   on batches created after September 7, 2025". Each line of the output file has the response of one
//!   request.
//! - Anthropic: <https://platform.claude.com/docs/en/api/messages/batches/retrieve>. Only succeeded
//!   requests are billed
//!   (<https://platform.claude.com/docs/en/build-with-claude/batch-processing#pricing>).

use serde_json::Value;

use super::anthropic::MessageReader;
use super::billing::Billing;
use super::call::Answer;
use super::config::Kind;
use super::json;
use super::openai::{self, ChatReader};
use super::responses::ResponseReader;
use super::wire::{BadCount, Reader, ResponseAccumulator, count};
use crate::event::{Usage, UsageSource};

/// The price of all requests of a batch is known to be the batch price, so it is no reason.
const BATCH_TIER: &str = "service tier batch";

/// The state of a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchStatus {
    pub id: String,
    pub is_over: bool,
    /// True if no request was processed.
    pub is_empty: bool,
    /// The files of results and errors.
    pub files: Vec<String>,
    /// The file of results.
    pub output_file: Option<String>,
    /// The counts that the batch states.
    pub answer: Option<Answer>,
}

impl BatchStatus {
    /// Reads a batch; none if the document is none.
    pub fn read(kind: Kind, batch: &Value) -> Option<Self> {
        let id = batch["id"].as_str()?.to_owned();
        match kind {
            Kind::OpenAi => Some(Self::of_openai(id, batch)),
            Kind::Anthropic => {
                let counts = &batch["request_counts"];
                Some(Self {
                    id,
                    is_over: batch["processing_status"] == "ended",
                    is_empty: counts["succeeded"] == 0,
                    files: Vec::new(),
                    output_file: None,
                    answer: None,
                })
            }
            Kind::Gemini | Kind::Ollama | Kind::Echo => None,
        }
    }

    fn of_openai(id: String, batch: &Value) -> Self {
        let status = batch["status"].as_str().unwrap_or_default();
        let file = |name: &str| batch[name].as_str().filter(|id| !id.is_empty()).map(str::to_owned);
        let output_file = file("output_file_id");
        let mut answer = None;
        // The fees of tools are only in the results.
        if batch["endpoint"] != "/v1/responses"
            && let (Ok(usage), Some(model)) =
                (response_usage(&batch["usage"]), batch["model"].as_str())
            && usage.input_tokens > 0
        {
            let mut tally = BatchTally::new(Kind::OpenAi);
            // The length of each prompt is not stated.
            tally.lengths = Some((0, usage.input_tokens));
            tally.add(usage, Some(model), Billing::default());
            answer = Some(tally.finish());
        }
        Self {
            id,
            is_over: ["completed", "failed", "expired", "cancelled"].contains(&status),
            is_empty: output_file.is_none() && batch["request_counts"]["completed"] == 0
                || status == "failed",
            files: [output_file.clone(), file("error_file_id")].into_iter().flatten().collect(),
            output_file,
            answer,
        }
    }
}

/// Sums the counts of a batch.
#[derive(Debug)]
pub struct BatchTally {
    kind: Kind,
    usage: Usage,
    billing: Billing,
    model: Option<String>,
    lengths: Option<(u64, u64)>,
}

impl BatchTally {
    pub fn new(kind: Kind) -> Self {
        Self {
            kind,
            usage: Usage::default(),
            billing: Billing::default(),
            model: None,
            lengths: None,
        }
    }

    /// Reads a line of results.
    pub fn line(&mut self, line: &[u8]) {
        if line.trim_ascii().is_empty() {
            return;
        }
        let Ok(result) = json::read(line) else {
            self.billing.note_unpriced("unreadable results");
            return;
        };
        match self.kind {
            Kind::Anthropic if result["result"]["type"] == "succeeded" => {
                let message = &result["result"]["message"];
                self.read(&mut MessageReader::default(), message);
            }
            Kind::Anthropic => {}
            _ => self.openai_line(&result["response"]),
        }
    }

    fn openai_line(&mut self, response: &Value) {
        let body = &response["body"];
        if response["status_code"] != 200 {
            return;
        }
        match body["object"].as_str() {
            Some("chat.completion") => return self.read(&mut ChatReader::default(), body),
            // Its tools may have a fee.
            Some("response") => return self.read(&mut ResponseReader::default(), body),
            _ => {}
        }
        let usage = match body["usage"]["prompt_tokens"].is_null() {
            true => response_usage(&body["usage"]),
            false => openai::normal_usage(&body["usage"]),
        };
        let mut partial = ResponseAccumulator::default();
        partial.note_tier(&body["service_tier"]);
        self.add(usage.unwrap_or_default(), body["model"].as_str(), partial.billing);
    }

    fn read(&mut self, reader: &mut dyn Reader, answer: &Value) {
        let mut partial = ResponseAccumulator { beyond: Some(0), ..ResponseAccumulator::default() };
        // An answer that its reader refuses still has its counts.
        let _ = reader.document(answer, &mut partial);
        self.add(partial.usage, partial.model.as_deref(), partial.billing);
    }

    fn add(&mut self, usage: Usage, model: Option<&str>, billing: Billing) {
        if usage.source == UsageSource::None {
            self.billing.note_unpriced("results without usage");
            return;
        }
        for reason in billing.unpriced.into_iter().filter(|reason| reason != BATCH_TIER) {
            self.billing.note_unpriced(reason);
        }
        for surcharge in billing.surcharges {
            self.billing.note_unpriced(surcharge.note);
        }
        match (&self.model, model) {
            (None, Some(model)) => self.model = Some(model.to_owned()),
            (Some(first), Some(model)) if first == model => {}
            (Some(_), Some(_)) => self.billing.note_unpriced("several models"),
            (_, None) => self.billing.note_unpriced("results without a model"),
        }
        let (shortest, longest) = self.lengths.unwrap_or((usage.input_tokens, usage.input_tokens));
        let lengths = billing.prompt_lengths.unwrap_or((usage.input_tokens, usage.input_tokens));
        self.lengths = Some((shortest.min(lengths.0), longest.max(lengths.1)));
        let sum = &mut self.usage;
        for (sum, count) in [
            (&mut sum.input_tokens, usage.input_tokens),
            (&mut sum.cached_input_tokens, usage.cached_input_tokens),
            (&mut sum.cache_write_tokens, usage.cache_write_tokens),
            (&mut sum.cache_write_1h_tokens, usage.cache_write_1h_tokens),
            (&mut sum.output_tokens, usage.output_tokens),
            (&mut sum.reasoning_tokens, usage.reasoning_tokens),
        ] {
            *sum = sum.saturating_add(count);
        }
        sum.source = UsageSource::Provider;
    }

    /// Returns the sums as the answer of one call.
    pub fn finish(self) -> Answer {
        let billing = Billing { prompt_lengths: self.lengths, ..self.billing };
        Answer {
            text: String::new(),
            usage: self.usage,
            billing,
            model: self.model.unwrap_or_default(),
            finish_reason: None,
            latency_ms: 0,
            first_token_ms: None,
        }
    }
}

/// Returns the counts of OpenAI's responses and batches in normal form.
fn response_usage(usage: &Value) -> Result<Usage, BadCount> {
    let (input, output) = (count(usage, "input_tokens")?, count(usage, "output_tokens")?);
    if input.is_none() && output.is_none() {
        return Ok(Usage::default());
    }
    let (input, output) = (input.unwrap_or(0), output.unwrap_or(0));
    let read = count(&usage["input_tokens_details"], "cached_tokens")?.unwrap_or(0);
    let reasoning = count(&usage["output_tokens_details"], "reasoning_tokens")?.unwrap_or(0);
    Ok(Usage {
        input_tokens: input,
        cached_input_tokens: read.min(input),
        output_tokens: output,
        reasoning_tokens: reasoning.min(output),
        source: UsageSource::Provider,
        ..Usage::default()
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::super::billing::TOOL_FEE;
    use super::super::testing::{any_counts, holds_sum_rules};
    use super::*;

    proptest! {
        #[test]
        fn arbitrary_results_never_panic(line in "[ -~]{0,200}") {
            for kind in [Kind::OpenAi, Kind::Anthropic] {
                BatchTally::new(kind).line(line.as_bytes());
            }
        }

        #[test]
        fn counts_are_consistent_for_any_usage(
            mut usage in any_counts(&["input_tokens", "output_tokens", "prompt_tokens"]),
            read in any_counts(&["cached_tokens"]),
            reasoning in any_counts(&["reasoning_tokens"]),
        ) {
            usage["input_tokens_details"] = read;
            usage["output_tokens_details"] = reasoning;
            let body = json!({"model": "m", "usage": usage});
            let mut tally = BatchTally::new(Kind::OpenAi);
            tally.openai_line(&json!({"status_code": 200, "body": body}));
            prop_assert!(holds_sum_rules(&tally.finish().usage));
        }
    }

    #[test]
    fn the_status_of_a_batch_is_read() {
        let batch = json!({"id": "batch_1", "status": "completed", "output_file_id": "file-o",
            "error_file_id": null, "request_counts": {"completed": 2}});
        let status = BatchStatus::read(Kind::OpenAi, &batch).unwrap();
        assert_eq!((status.is_over, status.is_empty, status.answer), (true, false, None));
        assert_eq!(status.files, ["file-o"]);
        let mut stated = batch.clone();
        stated["model"] = "gpt-4o-mini-2024-07-18".into();
        stated["usage"] = json!({"input_tokens": 10, "output_tokens": 5,
            "input_tokens_details": {"cached_tokens": 2}});
        let answer = BatchStatus::read(Kind::OpenAi, &stated).unwrap().answer.unwrap();
        assert_eq!((answer.usage.input_tokens, answer.usage.cached_input_tokens), (10, 2));
        assert_eq!(answer.billing.prompt_lengths, Some((0, 10)));
        for (status, is_over) in [("in_progress", false), ("finalizing", false), ("expired", true)]
        {
            let batch = json!({"id": "b", "status": status});
            assert_eq!(BatchStatus::read(Kind::OpenAi, &batch).unwrap().is_over, is_over);
        }
        let batch = json!({"id": "msgbatch_1", "processing_status": "ended",
            "request_counts": {"succeeded": 1}});
        let status = BatchStatus::read(Kind::Anthropic, &batch).unwrap();
        assert_eq!((status.is_over, status.is_empty), (true, false));
        assert!(BatchStatus::read(Kind::OpenAi, &json!({"error": {}})).is_none());
    }

    #[test]
    fn results_are_summed() {
        let line = |id: &str, input: u64| {
            json!({"custom_id": id, "response": {"status_code": 200, "body": {
                "object": "chat.completion", "model": "gpt-4o-mini", "service_tier": "batch",
                "choices": [{"index": 0, "message": {"content": "a"}, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": input, "completion_tokens": 5}}}})
        };
        let mut tally = BatchTally::new(Kind::OpenAi);
        for result in [
            line("a", 10),
            line("b", 20),
            json!({"response": {"status_code": 400, "body": {}}}),
            json!({"response": {"status_code": 200, "body": {"object": "response", "model": "gpt-4o-mini",
                "usage": {"input_tokens": 7, "output_tokens": 3}}}}),
        ] {
            tally.line(result.to_string().as_bytes());
        }
        tally.line(b"");
        let answer = tally.finish();
        assert_eq!((answer.usage.input_tokens, answer.usage.output_tokens), (37, 13));
        assert_eq!(answer.billing.prompt_lengths, Some((7, 20)));
        assert_eq!((answer.billing.note(), &*answer.model), (None, "gpt-4o-mini"));
        let mut tally = BatchTally::new(Kind::Anthropic);
        for result in [
            json!({"result": {"type": "succeeded", "message": {"type": "message", "role": "assistant",
                "model": "claude-haiku-4-5", "content": [{"type": "text", "text": "a"}],
                "stop_reason": "end_turn",
                "usage": {"input_tokens": 4, "output_tokens": 6, "service_tier": "batch"}}}}),
            json!({"result": {"type": "errored", "error": {}}}),
        ] {
            tally.line(result.to_string().as_bytes());
        }
        let answer = tally.finish();
        assert_eq!((answer.usage.input_tokens, answer.usage.output_tokens), (4, 6));
        assert_eq!(answer.billing.note(), None);
    }

    #[test]
    fn fees_of_tools_in_a_batch_of_responses_are_unknown() {
        let usage = json!({"input_tokens": 7, "output_tokens": 3,
            "input_tokens_details": {"cached_tokens": 2}});
        let mut batch = json!({"id": "batch_1", "status": "completed", "output_file_id": "file-o",
            "endpoint": "/v1/chat/completions", "model": "gpt-4o-mini", "usage": usage});
        assert!(BatchStatus::read(Kind::OpenAi, &batch).unwrap().answer.is_some());
        batch["endpoint"] = "/v1/responses".into();
        assert_eq!(BatchStatus::read(Kind::OpenAi, &batch).unwrap().answer, None);
        let result = json!({"response": {"status_code": 200, "body": {"object": "response",
            "model": "gpt-4o-mini", "status": "completed", "usage": usage,
            "output": [{"type": "web_search_call"}]}}});
        let mut tally = BatchTally::new(Kind::OpenAi);
        tally.line(result.to_string().as_bytes());
        let answer = tally.finish();
        assert_eq!((answer.usage.input_tokens, answer.usage.cached_input_tokens), (7, 2));
        assert_eq!(answer.billing.note().as_deref(), Some(TOOL_FEE));
    }

    #[test]
    fn unreadable_results_have_no_price() {
        let mut tally = BatchTally::new(Kind::OpenAi);
        tally.line(b"{broken");
        assert_eq!(tally.finish().billing.note().as_deref(), Some("unreadable results"));
    }
}
