//! Bounds and estimates the tokens of a client's prompt: text counts by its bytes; images and
//! references count at their worst case. Pure.

use serde_json::value::RawValue;

use super::json::{each_element, each_field};
use crate::providers::ApiFormat;

/// The maximum tokens of an image for chat completions: gpt-4o-mini counts 2,833 and 5,667 for each
/// of up to 2 × 4 tiles ("Calculating costs" in
/// <https://platform.openai.com/docs/guides/images-vision>). Newer models stop at 10,000, Gemini
/// and Mistral below that.
const CHAT_IMAGE_TOKENS_MAX: u64 = 2_833 + 8 * 5_667;
/// The maximum tokens of an image for messages: 4,784 since Claude Opus 4.7, 1,568 before
/// (<https://platform.claude.com/docs/en/build-with-claude/vision>).
const MESSAGE_IMAGE_TOKENS_MAX: u64 = 4_784;
/// The maximum tokens of a URL or an uploaded file: the largest context window of the models that
/// accept these.
const REFERENCE_TOKENS_MAX: u64 = 1_000_000;
/// For rate limits an image counts as about 1,000 tokens, which is typical.
const IMAGE_BYTES_TYPICAL: u64 = 4 << 10;
/// Inputs of the Responses API that are one image.
const IMAGE_KINDS: [&str; 2] = ["\"input_image\"", "\"computer_screenshot\""];
/// Limits the nesting of contents: a document in a tool result in a message, and one more level.
const CONTENTS_MAX: usize = 4;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prompt {
    /// The length of the request without the data of images.
    text_bytes: u64,
    /// Number of images and documents. Each page of a document is read as text, which is compressed
    /// in a PDF and counts by its bytes, and also as an image
    /// (<https://platform.claude.com/docs/en/build-with-claude/pdf-support>).
    images: u64,
    references: u64,
    /// References to items of earlier turns. All of them fit into one context window.
    item_references: u64,
    /// Tokens of earlier turns that the provider adds.
    earlier_tokens: u64,
    has_sound: bool,
    /// True if a part may have another length the next time: a URL or a conversation.
    is_changing: bool,
}

impl Prompt {
    /// Counts images and references in these parts of `body`. Everything else counts as text.
    pub fn read<'a>(body: &str, contents: impl IntoIterator<Item = &'a RawValue>) -> Self {
        let mut prompt = Self { text_bytes: body.len() as u64, ..Self::default() };
        for content in contents {
            prompt.content(content, 0);
        }
        prompt
    }

    /// Adds a part of unknown length that the provider stores, and may change.
    pub fn add_reference(&mut self, may_change: bool) {
        self.references += 1;
        self.is_changing |= may_change;
    }

    pub fn is_changing(&self) -> bool {
        self.is_changing
    }

    /// Adds the tokens of earlier turns that the provider stores.
    pub fn add_tokens(&mut self, tokens: u64) {
        self.earlier_tokens = self.earlier_tokens.saturating_add(tokens);
    }

    /// A body that has files, whose tokens have no known bound.
    pub fn of_bytes(length: usize) -> Self {
        Self { text_bytes: length as u64, has_sound: false, ..Self::default() }
    }

    pub fn text_bytes(&self) -> u64 {
        self.text_bytes
    }

    /// Returns the maximum tokens of images, documents and references, in addition to the text.
    pub fn media_tokens(&self, format: ApiFormat) -> u64 {
        let tokens_per_image = match format {
            ApiFormat::Messages | ApiFormat::TokenCount => MESSAGE_IMAGE_TOKENS_MAX,
            _ => CHAT_IMAGE_TOKENS_MAX,
        };
        let references = self.references + self.item_references.min(1);
        let tokens = self.images * tokens_per_image + references * REFERENCE_TOKENS_MAX;
        tokens.saturating_add(self.earlier_tokens)
    }

    /// Returns both together.
    pub fn and(self, other: Self) -> Self {
        Self {
            text_bytes: self.text_bytes + other.text_bytes,
            images: self.images + other.images,
            references: self.references + other.references,
            item_references: self.item_references + other.item_references,
            earlier_tokens: self.earlier_tokens.saturating_add(other.earlier_tokens),
            has_sound: self.has_sound || other.has_sound,
            is_changing: self.is_changing || other.is_changing,
        }
    }

    /// Returns the length in bytes of a text with about the same number of tokens.
    pub fn bytes_estimate(&self) -> u64 {
        // About four bytes are a token.
        let earlier_bytes = self.earlier_tokens.saturating_mul(4);
        (self.text_bytes + self.images * IMAGE_BYTES_TYPICAL).saturating_add(earlier_bytes)
    }

    /// Returns whether any part is audio or video, which have other prices than text.
    pub fn has_sound(&self) -> bool {
        self.has_sound
    }

    /// Reads messages, a message, its content, or a part of it; parts may nest.
    fn content(&mut self, content: &RawValue, depth: usize) {
        if each_element(content.get(), |part| self.part(part, depth)).is_err() {
            self.part(content, depth);
        }
    }

    /// Duplicate keys are ambiguous, so both count, and nothing is subtracted.
    fn part(&mut self, part: &RawValue, depth: usize) {
        let (mut kind, mut source) = (SingleField::default(), SingleField::default());
        let mut has_file_id = false;
        each_non_null(part, |name, value| match name {
            "type" => drop(kind.take(value)),
            "source" => {
                if let Some(another) = source.take(value) {
                    self.source(another, false, depth);
                }
            }
            // A list in `output` is the result of a tool in the Responses API.
            "content" | "output" | "parts" | "functionResponse" | "function_response"
                if depth < CONTENTS_MAX =>
            {
                self.content(value, depth + 1);
            }
            "image_url" => self.image_url(value),
            // Ollama's images have no type.
            "images" => drop(each_element(value.get(), |_| self.images += 1)),
            "file" => self.file(value),
            _ if name.ends_with("_url") => {
                self.has_sound |= ["audio_url", "video_url"].contains(&name);
                self.url(value);
            }
            "input_audio" | "input_video" => self.has_sound = true,
            "file_id" => has_file_id = true,
            "file_data" if value.get().starts_with('"') => {
                self.images += 1;
                self.has_sound |= is_sound(value);
            }
            "inlineData" | "inline_data" => self.inline_data(value),
            "fileData" | "file_data" => {
                self.references += 1;
                self.note_sound(value);
            }
            _ => {}
        });
        self.stored(&kind, has_file_id);
        if let Some(first) = source.first {
            self.source(first, kind.is("\"image\"") && !source.is_duplicate, depth);
        }
    }

    /// Counts an input of the Responses API that the provider stores.
    fn stored(&mut self, kind: &SingleField<'_>, has_file_id: bool) {
        if kind.is("\"item_reference\"") {
            self.item_references += 1;
        } else if has_file_id && IMAGE_KINDS.iter().any(|it| kind.is(it)) {
            self.images += 1;
        } else if has_file_id && kind.is("\"input_file\"") {
            self.references += 1;
        }
    }

    fn image_url(&mut self, value: &RawValue) {
        self.images += 1;
        let mut url = SingleField::default();
        if value.get().starts_with('{') {
            each_non_null(value, |name, value| {
                if name == "url" {
                    url.take(value);
                }
            });
        } else {
            url.take(value);
        }
        if let Some(url) = url.only().filter(|url| starts_with(url, "data:image/")) {
            self.text_bytes -= url.get().len() as u64;
        }
        self.has_sound |= url.first.is_some_and(is_sound);
    }

    /// Reads data in a part of Gemini's own API. A video may have more tokens than bytes.
    fn inline_data(&mut self, part: &RawValue) {
        self.note_sound(part);
        let (mut kind, mut data) = (SingleField::default(), SingleField::default());
        each_non_null(part, |name, value| match name {
            "mimeType" | "mime_type" => drop(kind.take(value)),
            "data" => drop(data.take(value)),
            _ => {}
        });
        let (kind, data) = (kind.only(), data.only());
        if kind.is_none_or(|kind| starts_with(kind, "video/")) {
            self.references += 1;
            return;
        }
        self.images += 1;
        if let (Some(data), Some(_)) = (data, kind.filter(|kind| starts_with(kind, "image/"))) {
            self.text_bytes -= data.get().len() as u64;
        }
    }

    fn note_sound(&mut self, part: &RawValue) {
        each_non_null(part, |name, value| {
            let is_type = ["mimeType", "mime_type"].contains(&name);
            self.has_sound |= is_type && is_sound(value);
        });
    }

    /// Reads a video, a sound or a document.
    fn url(&mut self, value: &RawValue) {
        if !value.get().starts_with('{') {
            return self.reference(value);
        }
        each_non_null(value, |name, value| {
            if name == "url" {
                self.reference(value);
            }
        });
    }

    /// Counts a reference. Some URLs contain their data.
    fn reference(&mut self, url: &RawValue) {
        if starts_with(url, "data:") {
            self.images += 1;
        } else {
            self.add_reference(true);
        }
    }

    fn file(&mut self, file: &RawValue) {
        each_non_null(file, |name, value| match name {
            "file_data" => {
                self.images += 1;
                self.has_sound |= is_sound(value);
            }
            "file_id" => self.references += 1,
            _ => {}
        });
    }

    /// Reads the source of an image or a document in a message.
    fn source(&mut self, source: &RawValue, is_image: bool, depth: usize) {
        let (mut kind, mut media_type) = (SingleField::default(), SingleField::default());
        let mut data = SingleField::default();
        let mut has_reference = false;
        each_non_null(source, |name, value| match name {
            "type" => drop(kind.take(value)),
            "media_type" => drop(media_type.take(value)),
            "data" => self.images += u64::from(data.take(value).is_some()),
            "url" => {
                has_reference = true;
                self.is_changing |= !is_image;
            }
            "file_id" => has_reference = true,
            "content" if depth < CONTENTS_MAX => self.content(value, depth + 1),
            _ => {}
        });
        if is_image {
            self.images += 1;
            let media_type = media_type.only().filter(|it| starts_with(it, "image/"));
            if let (Some(data), Some(_), true) = (data.only(), media_type, kind.is("\"base64\"")) {
                self.text_bytes -= data.get().len() as u64;
            }
            return;
        }
        if has_reference {
            self.references += 1;
        }
        if data.first.is_some() && !kind.is("\"text\"") {
            self.images += 1;
        }
    }
}

/// Returns whether a media type or a URL with its data is audio or video.
fn is_sound(value: &RawValue) -> bool {
    let kinds = ["audio/", "video/", "data:audio/", "data:video/"];
    kinds.iter().any(|kind| starts_with(value, kind))
}

/// Visits the non-null fields of an object.
fn each_non_null<'a>(object: &'a RawValue, mut visit: impl FnMut(&str, &'a RawValue)) {
    // Fails if it is not an object; then there are no fields to visit.
    let _ = each_field(object.get(), |name, value| {
        if value.get() != "null" {
            visit(name, value);
        }
    });
}

/// Returns whether a text begins with `with`. Some clients write `/` as `\/`.
fn starts_with(text: &RawValue, with: &str) -> bool {
    let Some(mut rest) = text.get().strip_prefix('"') else {
        return false;
    };
    with.chars().all(|expected| {
        rest = match rest.strip_prefix('\\') {
            Some(escaped) if expected == '/' => escaped,
            _ => rest,
        };
        let found = rest.strip_prefix(expected);
        rest = found.unwrap_or_default();
        found.is_some()
    })
}

/// A field that should occur once.
#[derive(Default)]
struct SingleField<'a> {
    first: Option<&'a RawValue>,
    is_duplicate: bool,
}

impl<'a> SingleField<'a> {
    /// Stores the first value, and returns any further one.
    fn take(&mut self, value: &'a RawValue) -> Option<&'a RawValue> {
        self.is_duplicate = self.first.is_some();
        if self.is_duplicate {
            return Some(value);
        }
        self.first = Some(value);
        None
    }

    fn only(&self) -> Option<&'a RawValue> {
        self.first.filter(|_| !self.is_duplicate)
    }

    fn is(&self, text: &str) -> bool {
        self.only().is_some_and(|value| value.get() == text)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn read(content: &str) -> Prompt {
        let messages = format!(r#"[{{"role":"user","content":{content}}}]"#);
        let messages: &RawValue = serde_json::from_str(&messages).unwrap();
        Prompt::read(messages.get(), [messages])
    }

    /// Returns the counts beyond the plain text.
    fn beside_text(content: &str) -> (u64, u64) {
        let prompt = read(content);
        let written = read("0").text_bytes + content.len() as u64 - 1;
        assert_eq!(prompt.text_bytes, written, "{content}");
        (prompt.images, prompt.references)
    }

    #[test]
    fn inputs_of_the_responses_api_are_counted() {
        let image =
            format!(r#"{{"type":"input_image","image_url":"data:image/png;base64,{DATA}"}}"#);
        for content in [
            format!("[{image}]"),
            format!(r#"[{{"type":"function_call_output","output":[{image}]}}]"#),
        ] {
            let prompt = read(&content);
            assert_eq!((prompt.images, prompt.references), (1, 0), "{content}");
            let written = read("0").text_bytes + content.len() as u64;
            assert!(prompt.text_bytes < written - DATA.len() as u64, "{content}");
        }
        for (part, expected) in [
            (r#"{"type":"input_image","file_id":"f"}"#.to_owned(), (1, 0)),
            (r#"{"file_id":"f","type":"input_file"}"#.into(), (0, 1)),
            (r#"{"type":"input_file","file_url":"https://a/b.pdf"}"#.into(), (0, 1)),
            (format!(r#"{{"type":"input_file","filename":"a","file_data":"{DATA}"}}"#), (1, 0)),
            (r#"{"type":"computer_call_output","output":{"type":"computer_screenshot","file_id":"f"}}"#.into(), (1, 0)),
            (r#"{"type":"function_call_output","output":"file_id"}"#.into(), (0, 0)),
        ] {
            assert_eq!(beside_text(&format!("[{part}]")), expected, "{part}");
        }
        let bound = |content: &str| {
            let prompt = read(content);
            prompt.media_tokens(ApiFormat::Responses)
        };
        let item = r#"{"type":"item_reference","id":"rs_1"}"#;
        assert_eq!(bound(&format!("[{item},{item}]")), REFERENCE_TOKENS_MAX);
        let mut prompt = read("0");
        let before = prompt.media_tokens(ApiFormat::Responses);
        prompt.add_tokens(700);
        prompt.add_reference(true);
        assert_eq!(prompt.media_tokens(ApiFormat::Responses), before + 700 + REFERENCE_TOKENS_MAX);
    }

    const DATA: &str = "iVBORw0KGgoAAAANSUhEUgAA";

    #[test]
    fn audio_and_video_are_found_in_every_form() {
        for (part, has_sound) in [
            (r#"{"type":"input_audio","input_audio":{"data":"AA","format":"wav"}}"#, true),
            (r#"{"type":"video_url","video_url":{"url":"https://a/b.mp4"}}"#, true),
            (r#"{"type":"audio_url","audio_url":"https://a/b.mp3"}"#, true),
            (r#"{"type":"image_url","image_url":{"url":"data:audio\/wav;base64,AA"}}"#, true),
            (r#"{"type":"file","file":{"file_data":"data:video/mp4;base64,AA"}}"#, true),
            (r#"{"inlineData":{"mimeType":"audio/wav","data":"AA"}}"#, true),
            (r#"{"file_data":{"mime_type":"video/mp4","file_uri":"u"}}"#, true),
            (r#"{"inlineData":{"mimeType":"image/png","data":"AA"}}"#, false),
            (r#"{"type":"image_url","image_url":{"url":"data:image/png;base64,AA"}}"#, false),
            (r#"{"type":"file","file":{"file_data":"data:application/pdf;base64,AA"}}"#, false),
            (r#"{"type":"text","text":"input_audio data:audio/wav"}"#, false),
            (r#"{"type":"input_audio","input_audio":null}"#, false),
        ] {
            assert_eq!(read(&format!("[{part}]")).has_sound(), has_sound, "{part}");
        }
    }

    #[test]
    fn only_the_data_of_certain_images_is_not_text() {
        let source = format!(r#"{{"type":"base64","media_type":"image/png","data":"{DATA}"}}"#);
        for content in [
            format!(
                r#"[{{"type":"image_url","image_url":{{"url":"data:image/png;base64,{DATA}"}}}}]"#
            ),
            format!(
                r#"[{{"type":"image_url","image_url":{{"url":"data:image\/png;base64,{DATA}"}}}}]"#
            ),
            format!(r#"[{{"type":"image_url","image_url":"data:image/png;base64,{DATA}"}}]"#),
            format!(r#"[{{"source":{source},"type":"image"}}]"#),
            format!(
                r#"[{{"type":"tool_result","content":[{{"type":"image","source":{source}}}]}}]"#
            ),
            format!(
                r#"[{{"type":"document","source":{{"type":"content","content":[{{"type":"image","source":{source}}}]}}}}]"#
            ),
        ] {
            let prompt = read(&content);
            assert_eq!(prompt.images, 1, "{content}");
            assert_eq!(prompt.references, 0);
            let written = read("0").text_bytes + content.len() as u64;
            let left = written - DATA.len() as u64;
            assert!(prompt.text_bytes < left, "{content}");
        }
        for content in [
            format!(r#""{DATA}""#),
            format!(r#"[{{"type":"text","text":"data:image/png;base64,{DATA}"}}]"#),
            format!(r#"[{{"type":"input_audio","input_audio":{{"data":"{DATA}"}}}}]"#),
        ] {
            assert_eq!(beside_text(&content), (0, 0), "{content}");
        }
        for content in [
            format!(r#"[{{"type":"image_url","image_url":{{"url":"data:text/plain,{DATA}"}}}}]"#),
            format!(
                r#"[{{"image_url":{{"url":"data:image/png;base64,{DATA}","url":"https://a"}}}}]"#
            ),
            r#"[{"type":"image_url","image_url":{"url":"https://a/b.png"}}]"#.into(),
            r#"[{"type":"image","source":{"type":"url","url":"https://a/b.png"}}]"#.into(),
            r#"[{"type":"image","source":{"type":"file","file_id":"f"}}]"#.into(),
            format!(
                r#"[{{"type":"image","source":{{"type":"text","media_type":"image/png","data":"{DATA}"}}}}]"#
            ),
            format!(
                r#"[{{"type":"image","source":{{"type":"base64","media_type":"text/plain","data":"{DATA}"}}}}]"#
            ),
        ] {
            assert_eq!(beside_text(&content), (1, 0), "{content}");
        }
    }

    #[test]
    fn documents_count_by_bytes_and_references_by_their_maximum() {
        let pdf = format!(r#"{{"type":"base64","media_type":"application/pdf","data":"{DATA}"}}"#);
        for (content, expected) in [
            (
                format!(r#"[{{"type":"document","source":{pdf}}}]"#),
                (1, 0),
            ),
            // Duplicate keys are ambiguous.
            (
                format!(r#"[{{"type":"image","type":"document","source":{pdf}}}]"#),
                (1, 0),
            ),
            (
                format!(r#"[{{"type":"document","source":{pdf},"source":{pdf}}}]"#),
                (2, 0),
            ),
            (
                format!(r#"[{{"type":"file","file":{{"file_data":"{DATA}","file_id":null}}}}]"#),
                (1, 0),
            ),
            (
                format!(
                    r#"[{{"type":"document","source":{{"type":"text","media_type":"text/plain","data":"{DATA}"}}}}]"#
                ),
                (0, 0),
            ),
            (
                r#"[{"type":"document","source":{"type":"url","url":"https://a/b.pdf"}}]"#.into(),
                (0, 1),
            ),
            (
                r#"[{"type":"file","file":{"file_id":"f"}}]"#.into(),
                (0, 1),
            ),
            (
                r#"[{"type":"document_url","document_url":"https://a/b.pdf"}]"#.into(),
                (0, 1),
            ),
            (
                r#"[{"type":"video_url","video_url":{"url":"https://a/b.mp4"}},{"image_url":null}]"#
                    .into(),
                (0, 1),
            ),
            (
                r#"[{"type":"search_result","source":"https://a","content":[{"type":"text","text":"b"}]}]"#
                    .into(),
                (0, 0),
            ),
        ] {
            assert_eq!(beside_text(&content), expected, "{content}");
        }
        let prompt = read(&format!(r#"[{{"type":"document","source":{pdf}}}]"#));
        assert_eq!(prompt.media_tokens(ApiFormat::Messages), MESSAGE_IMAGE_TOKENS_MAX);
        assert!(prompt.text_bytes > DATA.len() as u64);
    }

    #[test]
    fn parts_of_gemini_count_by_their_type() {
        let read = |part: &str| {
            let contents = format!(r#"[{{"role":"user","parts":[{{"text":"a"}},{part}]}}]"#);
            let contents: &RawValue = serde_json::from_str(&contents).unwrap();
            Prompt::read(contents.get(), [contents])
        };
        let inline = |kind: &str| format!(r#"{{"mimeType":"{kind}","data":"{DATA}"}}"#);
        for (part, images, references, has_sound) in [
            (format!(r#"{{"inlineData":{}}}"#, inline("image/png")), 1, 0, false),
            (format!(r#"{{"inline_data":{}}}"#, inline(r"image\/png")), 1, 0, false),
            (format!(r#"{{"inlineData":{}}}"#, inline("application/pdf")), 1, 0, false),
            (format!(r#"{{"inlineData":{}}}"#, inline("audio/mp3")), 1, 0, true),
            (format!(r#"{{"inlineData":{}}}"#, inline("video/mp4")), 0, 1, true),
            (format!(r#"{{"inlineData":{{"data":"{DATA}"}}}}"#), 0, 1, false),
            (r#"{"fileData":{"fileUri":"https://a","mimeType":"image/png"}}"#.into(), 0, 1, false),
            (
                format!(
                    r#"{{"functionResponse":{{"name":"f","response":{{}},"parts":[{{"inlineData":{}}}]}}}}"#,
                    inline("image/png")
                ),
                1,
                0,
                false,
            ),
        ] {
            let prompt = read(&part);
            let found = (prompt.images, prompt.references, prompt.has_sound);
            assert_eq!(found, (images, references, has_sound), "{part}");
            let is_image = part.contains("image/") || part.contains("image\\/");
            let has_data = part.contains(DATA);
            let bytes = read("0").text_bytes - 1 + part.len() as u64;
            let expected = if is_image && has_data { bytes - DATA.len() as u64 - 2 } else { bytes };
            assert_eq!(prompt.text_bytes, expected, "{part}");
        }
    }

    proptest! {
        #[test]
        fn images_are_counted_in_any_content_without_losing_text(
            text in "[\\PC]{0,40}", key in "[a-z_]{1,12}", count in 0u64..5,
        ) {
            let image = json!({"type": "image_url", "image_url": {"url": "https://a"}});
            let mut parts = vec![json!({"type": "text", "text": text, key: [text]}); 3];
            parts.extend((0..count).map(|_| image.clone()));
            let prompt = read(&serde_json::to_string(&parts).unwrap());
            prop_assert!(prompt.images >= count);
            let tokens = prompt.media_tokens(ApiFormat::ChatCompletions);
            prop_assert!(tokens >= count * CHAT_IMAGE_TOKENS_MAX);
            prop_assert!(prompt.text_bytes > 3 * text.len() as u64);
        }
    }
}
