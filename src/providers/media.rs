//! Answers of OpenAI's protocol with images or sound, and transcripts:
//! <https://platform.openai.com/docs/api-reference/images> and
//! <https://platform.openai.com/docs/api-reference/audio>. Their counts are never estimated. Pure: no
//! network, no clock.

use serde_json::Value;

use super::billing::Billing;
use super::failure::Fault;
use super::framer::Event;
use super::json;
use super::openai::check_error_event;
use super::wire::{
    DONE, Flow, Reader, ResponseAccumulator, check_reported, count, event_json, is_counted,
};
use crate::event::{Usage, UsageSource};

/// The reason of a call whose response has no counts.
const NO_USAGE: &str = "no usage in the response";

/// Reads images, sound and transcripts.
#[derive(Debug)]
pub(super) struct MediaReader {
    /// True if an answer can be other than JSON: sound, subtitles or plain text.
    has_bytes: bool,
    /// Number of final events with counts.
    counted: u32,
}

impl MediaReader {
    pub(super) fn images() -> Self {
        Self { has_bytes: false, counted: 0 }
    }

    pub(super) fn audio() -> Self {
        Self { has_bytes: true, counted: 0 }
    }

    /// Notes the counts of a document or a final event.
    fn note_usage(&mut self, document: &Value, partial: &mut ResponseAccumulator) {
        partial.has_no_estimate = true;
        let usage = &document["usage"];
        partial.billing.note_stated_cost(usage);
        note_parts(usage, &mut partial.billing);
        // A drawing program is counted apart, by another model.
        if document["svg_usage"].is_object() {
            partial.billing.note_unpriced("drawing tokens");
        }
        let Some(usage) = tokens(usage) else {
            return;
        };
        self.counted += 1;
        if self.counted > 1 {
            // The reference does not say whether each counts the images before it.
            partial.billing.note_unpriced("several images");
        }
        partial.note_usage(usage, true);
    }

    fn note_missing(partial: &mut ResponseAccumulator) {
        partial.has_no_estimate = true;
        if partial.usage.source == UsageSource::None && partial.billing.unpriced.is_empty() {
            partial.billing.note_unpriced(NO_USAGE);
        }
    }
}

impl Reader for MediaReader {
    fn event(&mut self, event: &Event, partial: &mut ResponseAccumulator) -> Result<Flow, Fault> {
        if event.data.trim() == DONE {
            return Ok(Flow::End);
        }
        let part = event_json(event)?;
        check_reported(&part)?;
        check_error_event(event, &part)?;
        partial.note_model(&part["model"]);
        let kind = part["type"].as_str().unwrap_or(&event.name);
        if kind == "transcript.text.delta" {
            partial.push(part["delta"].as_str().unwrap_or_default())?;
        }
        partial.has_no_estimate = true;
        // `image_generation.completed`, `image_edit.completed`, `speech.audio.done`,
        // `transcript.text.done`.
        if kind.ends_with(".completed") || kind.ends_with(".done") {
            self.note_usage(&part, partial);
            Self::note_missing(partial);
            partial.is_complete = true;
        }
        Ok(Flow::More)
    }

    fn parse(&self, bytes: &[u8]) -> serde_json::Result<Value> {
        // Images are long; transcripts may be an array.
        match self.has_bytes {
            false => json::read_without(bytes, "data"),
            true => json::read(bytes),
        }
    }

    fn document(&mut self, body: &Value, partial: &mut ResponseAccumulator) -> Result<(), Fault> {
        partial.note_model(&body["model"]);
        self.note_usage(body, partial);
        check_reported(body)?;
        Self::note_missing(partial);
        if !self.has_bytes && body["data"].is_null() {
            return Err(Fault::bad_answer("the response has no `data`"));
        }
        partial.is_complete = true;
        Ok(())
    }

    fn begin_bytes(&mut self, partial: &mut ResponseAccumulator) -> bool {
        if self.has_bytes {
            Self::note_missing(partial);
        }
        self.has_bytes
    }
}

/// Notes the parts of a count that have other prices than the table's: images and sound of the
/// prompt, text beside an image, and seconds. The table's price of input is that of text; that of
/// output is the one of images, sound or a transcript, whichever the model writes.
fn note_parts(usage: &Value, billing: &mut Billing) {
    for details in ["input_tokens_details", "input_token_details"] {
        for kind in ["audio", "image"] {
            if is_counted(&usage[details], &format!("{kind}_tokens")) {
                billing.note_unpriced(format!("{kind} tokens"));
            }
        }
    }
    if is_counted(&usage["output_tokens_details"], "text_tokens") {
        billing.note_unpriced("text tokens of an image");
    }
    // https://platform.openai.com/docs/api-reference/audio/json-object
    if let Some(seconds) = usage["seconds"].as_f64().filter(|seconds| *seconds > 0.0) {
        billing.note_unpriced(format!("{seconds} seconds of audio"));
    }
}

fn tokens(usage: &Value) -> Option<Usage> {
    let input = count(usage, "input_tokens").ok()?;
    let output = count(usage, "output_tokens").ok()?;
    if input.is_none() && output.is_none() {
        return None;
    }
    let input_tokens = input.unwrap_or(0);
    let read = count(&usage["input_tokens_details"], "cached_tokens").ok()?.unwrap_or(0);
    Some(Usage {
        input_tokens,
        cached_input_tokens: read.min(input_tokens),
        output_tokens: output.unwrap_or(0),
        source: UsageSource::Provider,
        ..Usage::default()
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use proptest::prelude::*;

    use super::super::testing::{any_counts, holds_sum_rules, read_document};
    use super::*;

    proptest! {
        #[test]
        fn counts_are_consistent_for_any_usage(
            mut usage in any_counts(&["input_tokens", "output_tokens", "total_tokens", "seconds"]),
            details in any_counts(&["cached_tokens", "text_tokens", "image_tokens"]),
        ) {
            usage["input_tokens_details"] = details;
            let document = json!({"data": [], "usage": usage}).to_string();
            let (partial, _) = read_document(&mut MediaReader::images(), &document);
            prop_assert!(holds_sum_rules(&partial.usage));
        }
    }

    #[test]
    fn only_tokens_with_a_known_price_are_priced() {
        for (usage, tokens, note) in [
            (
                json!({"input_tokens": 9, "output_tokens": 1056, "total_tokens": 1065,
                    "input_tokens_details": {"text_tokens": 9, "image_tokens": 0}}),
                Some((9, 1056)),
                None,
            ),
            (
                json!({"input_tokens": 209, "output_tokens": 272,
                    "input_tokens_details": {"text_tokens": 9, "image_tokens": 200}}),
                Some((209, 272)),
                Some("image tokens"),
            ),
            (
                json!({"type": "tokens", "input_tokens": 14, "output_tokens": 45,
                    "input_token_details": {"text_tokens": 0, "audio_tokens": 14}}),
                Some((14, 45)),
                Some("audio tokens"),
            ),
            (json!({"type": "duration", "seconds": 12}), None, Some("12 seconds of audio")),
            (json!(null), None, Some(NO_USAGE)),
        ] {
            let document = json!({"data": [{"b64_json": "AA"}], "usage": usage}).to_string();
            let (partial, read) = read_document(&mut MediaReader::images(), &document);
            assert_eq!(read, Ok(()), "{usage}");
            let counts = partial.usage;
            let known = counts.known(counts.input_tokens).zip(counts.known(counts.output_tokens));
            assert_eq!(known, tokens, "{usage}");
            assert_eq!(partial.billing.note().as_deref(), note, "{usage}");
            assert!(partial.has_no_estimate);
        }
    }

    #[test]
    fn a_stream_is_complete_with_its_last_event() {
        let mut partial = ResponseAccumulator::default();
        let mut reader = MediaReader::audio();
        let mut event = |data: Value| {
            let event = Event { name: String::new(), data: data.to_string() };
            reader.event(&event, &mut partial).map(|_| partial.is_complete)
        };
        assert_eq!(event(json!({"type": "transcript.text.delta", "delta": "Hi"})), Ok(false));
        let done = json!({"type": "transcript.text.done", "text": "Hi",
            "usage": {"type": "tokens", "input_tokens": 3, "output_tokens": 2}});
        assert_eq!(event(done), Ok(true));
        assert!(event(json!({"type": "error", "error": {"message": "no"}})).is_err());
        assert_eq!((partial.usage.input_tokens, partial.usage.output_tokens), (3, 2));
        assert_eq!(partial.text, "Hi");
    }
}
