//! Answers of OpenAI's protocol without text: embeddings, moderations and reranked documents. Only
//! their counts are read. Pure: no network, no clock.

use serde_json::Value;

use super::failure::Fault;
use super::framer::Event;
use super::json;
use super::openai;
use super::wire::{
    DONE, Flow, Reader, ResponseAccumulator, check_reported, count, counts_anything, event_json,
};
use crate::event::{Usage, UsageSource};

/// Reads an answer in one piece.
#[derive(Debug)]
pub(super) struct CountedReader {
    /// The field with the result. Embeddings have many numbers, which need not be parsed.
    result: &'static str,
    /// Other names of this field.
    other_results: &'static [&'static str],
    note_usage: fn(&Value, &mut ResponseAccumulator),
}

impl CountedReader {
    /// <https://platform.openai.com/docs/api-reference/embeddings/create>.
    pub(super) fn embeddings() -> Self {
        Self { result: "data", other_results: &["embeddings"], note_usage: note_tokens }
    }

    /// <https://platform.openai.com/docs/api-reference/moderations/create>. OpenAI states no tokens.
    pub(super) fn moderations() -> Self {
        Self { result: "results", other_results: &[], note_usage: note_tokens }
    }

    /// Cohere (<https://docs.cohere.com/reference/rerank>), Jina (<https://api.jina.ai/docs>) and
    /// servers that follow either of them; Voyage has `data`.
    pub(super) fn rerank() -> Self {
        Self { result: "results", other_results: &["data"], note_usage: note_rerank }
    }
}

impl Reader for CountedReader {
    fn event(&mut self, event: &Event, partial: &mut ResponseAccumulator) -> Result<Flow, Fault> {
        if event.data.trim() == DONE {
            return Ok(Flow::End);
        }
        let document = event_json(event)?;
        if !document.is_null() {
            self.document(&document, partial)?;
        }
        Ok(Flow::More)
    }

    fn parse(&self, bytes: &[u8]) -> serde_json::Result<Value> {
        match self.result {
            "data" => json::read_without(bytes, self.result),
            _ => json::read(bytes),
        }
    }

    fn document(&mut self, body: &Value, partial: &mut ResponseAccumulator) -> Result<(), Fault> {
        partial.note_model(&body["model"]);
        (self.note_usage)(body, partial);
        check_reported(body)?;
        let mut results = self.other_results.iter().chain([&self.result]);
        if results.all(|name| body[*name].is_null()) {
            let message = format!("the response has no `{}`", self.result);
            return Err(Fault::bad_answer(message));
        }
        partial.is_complete = true;
        Ok(())
    }
}

/// Notes the tokens of the prompt; there are no others.
fn note_tokens(body: &Value, partial: &mut ResponseAccumulator) {
    let usage = &body["usage"];
    partial.billing.note_stated_cost(usage);
    let counted = openai::normal_usage(usage).ok().filter(|usage| usage.input_tokens > 0);
    // Voyage states the total alone: <https://docs.voyageai.com/reference/embeddings-api>.
    let counted = counted.or_else(|| {
        let total = count(usage, "total_tokens").ok().flatten().filter(|total| *total > 0)?;
        Some(input_only(total))
    });
    if let Some(usage) = counted {
        partial.note_usage(usage, true);
    }
}

fn input_only(input_tokens: u64) -> Usage {
    Usage { input_tokens, source: UsageSource::Provider, ..Usage::default() }
}

/// Notes the tokens of a reranking. Cohere bills searches instead, whose price is not in the table.
fn note_rerank(body: &Value, partial: &mut ResponseAccumulator) {
    partial.has_no_estimate = true;
    let usage = &body["usage"];
    partial.billing.note_stated_cost(usage);
    let units = &body["meta"]["billed_units"];
    let searches = [&units["search_units"], &usage["search_units"]].into_iter();
    if let Some(searches) = searches.filter_map(Value::as_f64).find(|searches| *searches > 0.0) {
        let plural = if searches == 1.0 { "" } else { "s" };
        partial.billing.note_unpriced(format!("{searches} search unit{plural}"));
    }
    let tokens = [
        (usage, "prompt_tokens"),
        (usage, "total_tokens"),
        (units, "input_tokens"),
        (units, "total_tokens"),
    ];
    let tokens = tokens.into_iter().find_map(|(counts, name)| count(counts, name).ok().flatten());
    match tokens.filter(|tokens| *tokens > 0) {
        Some(tokens) => partial.note_usage(input_only(tokens), true),
        None if !counts_anything(units) && partial.billing.unpriced.is_empty() => {
            partial.billing.note_unpriced("no usage in the response");
        }
        None => {}
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::read_document;
    use super::*;

    #[test]
    fn embeddings_have_input_tokens_only() {
        let document = r#"{"object":"list","data":[{"embedding":[0.1]}],"model":"m-2",
            "usage":{"prompt_tokens":7,"total_tokens":7}}"#;
        let (partial, read) = read_document(&mut CountedReader::embeddings(), document);
        assert_eq!(read, Ok(()));
        let expected = Usage { input_tokens: 7, source: UsageSource::Provider, ..Usage::default() };
        assert_eq!((partial.usage, partial.model.as_deref()), (expected, Some("m-2")));
        let total_alone = r#"{"data":[{"embedding":[0.1]}],"usage":{"total_tokens":7}}"#;
        let (partial, _) = read_document(&mut CountedReader::embeddings(), total_alone);
        assert_eq!(partial.usage, expected);
        let parsed = CountedReader::embeddings().parse(document.as_bytes()).unwrap();
        assert_eq!(parsed["data"], true);
        let (_, read) = read_document(&mut CountedReader::embeddings(), r#"{"usage":{}}"#);
        assert!(read.unwrap_err().message.contains("no `data`"));
        let error = r#"{"data":null,"error":{"message":"no"}}"#;
        assert!(read_document(&mut CountedReader::embeddings(), error).1.is_err());
    }

    #[test]
    fn reranking_is_counted_in_tokens_or_searches() {
        for (fields, tokens, note) in [
            (r#""usage":{"total_tokens":15}"#, Some(15), None),
            (r#""usage":{"prompt_tokens":9,"total_tokens":9}"#, Some(9), None),
            (r#""meta":{"billed_units":{"search_units":1}}"#, None, Some("1 search unit")),
            (r#""meta":{"billed_units":{"search_units":3}}"#, None, Some("3 search units")),
            (r#""meta":{}"#, None, Some("no usage in the response")),
        ] {
            let document = format!(r#"{{"results":[{{"index":0}}],{fields}}}"#);
            let (partial, read) = read_document(&mut CountedReader::rerank(), &document);
            assert_eq!(read, Ok(()), "{fields}");
            assert_eq!(partial.usage.known(partial.usage.input_tokens), tokens, "{fields}");
            assert_eq!(partial.billing.note().as_deref(), note, "{fields}");
            assert!(partial.has_no_estimate);
        }
    }
}
