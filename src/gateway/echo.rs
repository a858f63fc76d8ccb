//! The answers of `echo` in each format. Pure.

use std::cell::Cell;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::chat_request::ChatRequest;
use crate::event::{Usage, UsageSource};
use crate::providers::{Answer, ApiFormat, Billing};

/// The default length of an embedding.
const DIMENSIONS: u64 = 256;
const DIMENSIONS_MAX: u64 = 4_096;

/// Returns whether `echo` answers in this format.
pub fn has_form(format: ApiFormat) -> bool {
    match format {
        ApiFormat::ChatCompletions
        | ApiFormat::Messages
        | ApiFormat::TokenCount
        | ApiFormat::Responses
        | ApiFormat::ResponseTokenCount
        | ApiFormat::Completions
        | ApiFormat::Embeddings
        | ApiFormat::GenerateContent
        | ApiFormat::ContentStream
        | ApiFormat::ContentArray
        | ApiFormat::ContentTokenCount
        | ApiFormat::EmbedContent
        | ApiFormat::BatchEmbedContents
        | ApiFormat::OllamaChat
        | ApiFormat::OllamaGenerate
        | ApiFormat::OllamaEmbed
        | ApiFormat::OllamaEmbeddings
        | ApiFormat::OllamaShow => true,
        ApiFormat::Compaction
        | ApiFormat::Object
        | ApiFormat::Moderations
        | ApiFormat::Rerank
        | ApiFormat::RerankV2
        | ApiFormat::Images
        | ApiFormat::ImageEdits
        | ApiFormat::ImageVariations
        | ApiFormat::Speech
        | ApiFormat::Transcriptions
        | ApiFormat::Translations => false,
    }
}

/// Returns the embeddings of a request: unit vectors made from the SHA-256 of each input. Tokens are
/// words.
pub fn embeddings(model: &str, request: &ChatRequest<'_>) -> (Answer, Vec<u8>) {
    let options = request.document();
    let dimensions = options["dimensions"].as_u64().unwrap_or(DIMENSIONS).min(DIMENSIONS_MAX);
    let is_base64 = options["encoding_format"] == "base64";
    let input = &options["input"];
    let inputs = match input {
        // A list of tokens is one input.
        Value::Array(items) if !items.iter().any(Value::is_number) => items.iter().collect(),
        input => vec![input],
    };
    let mut words = 0;
    let data: Vec<Value> = inputs
        .into_iter()
        .enumerate()
        .map(|(index, input)| {
            let text = input.as_str().map_or_else(|| input.to_string(), str::to_owned);
            words += text.split_whitespace().count() as u64;
            let vector = vector(&text, dimensions);
            let embedding = match is_base64 {
                true => {
                    let bytes: Vec<u8> = vector.iter().flat_map(|it| it.to_le_bytes()).collect();
                    base64(&bytes).into()
                }
                false => json!(vector),
            };
            json!({"object": "embedding", "index": index, "embedding": embedding})
        })
        .collect();
    let usage = Usage { input_tokens: words, source: UsageSource::Provider, ..Usage::default() };
    let document = json!({
        "object": "list", "data": data, "model": model,
        "usage": {"prompt_tokens": words, "total_tokens": words},
    });
    let answer = Answer {
        text: String::new(),
        usage,
        billing: Billing::default(),
        model: model.to_owned(),
        finish_reason: None,
        latency_ms: 0,
        first_token_ms: None,
    };
    (answer, document.to_string().into_bytes())
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |index| group.get(index).copied().map_or(0, u32::from);
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for index in 0..4 {
            let digit = char::from(DIGITS[(bits >> (18 - 6 * index)) as usize & 63]);
            text.push(if index <= group.len() { digit } else { '=' });
        }
    }
    text
}

/// Returns a vector of length 1.
fn vector(text: &str, dimensions: u64) -> Vec<f32> {
    let numbers = (0..dimensions.div_ceil(8)).flat_map(|block| {
        let hash = Sha256::digest(format!("{block} {text}"));
        let words: Vec<[u8; 4]> =
            hash.chunks_exact(4).filter_map(|it| it.try_into().ok()).collect();
        words.into_iter().map(|it| f64::from(u32::from_be_bytes(it)) / f64::from(u32::MAX) - 0.5)
    });
    let numbers: Vec<f64> = numbers.take(dimensions as usize).collect();
    let length = numbers.iter().map(|it| it * it).sum::<f64>().sqrt();
    #[expect(clippy::cast_possible_truncation, reason = "embeddings have this precision")]
    let shortened = |number: f64| (number / length) as f32;
    numbers.into_iter().map(shortened).collect()
}

/// The form of an `echo` answer.
pub struct EchoFormat<'a> {
    pub format: ApiFormat,
    pub id: &'a str,
    pub model: &'a str,
    /// True if a streamed chat completion ends with its usage.
    pub wants_usage: bool,
    /// The number of the next event of a response.
    pub next_event: Cell<u64>,
    /// The texts to embed.
    pub inputs: &'a [String],
}

/// The date of an answer, which does not depend on the clock.
const DATE: &str = "1970-01-01T00:00:00Z";
/// Begins the further elements of an array.
const NEXT_ELEMENT: &str = ",\r\n";
/// The length of an embedding.
const EMBEDDING_NUMBERS: usize = 8;

impl EchoFormat<'_> {
    pub fn document(&self, answer: &Answer) -> Vec<u8> {
        let (id, model, text) = (self.id, self.model, &answer.text);
        let document = match self.format {
            ApiFormat::ChatCompletions => json!({
                "id": id, "object": "chat.completion", "created": 0, "model": model,
                "choices": [{
                    "index": 0, "message": {"role": "assistant", "content": text, "refusal": null},
                    "logprobs": null, "finish_reason": "stop",
                }],
                "usage": openai_usage(&answer.usage),
            }),
            ApiFormat::Responses => self.response("completed", Some(answer)),
            ApiFormat::Completions => json!({
                "id": id, "object": "text_completion", "created": 0, "model": model,
                "choices": [{"index": 0, "text": text, "logprobs": null, "finish_reason": "stop"}],
                "usage": openai_usage(&answer.usage),
            }),
            ApiFormat::Messages => json!({
                "id": id, "type": "message", "role": "assistant", "model": model,
                "content": [{"type": "text", "text": text}],
                "stop_reason": "end_turn", "stop_sequence": null,
                "usage": anthropic_usage(&answer.usage),
            }),
            ApiFormat::GenerateContent | ApiFormat::ContentStream | ApiFormat::ContentArray => {
                self.content(text, Some(&answer.usage))
            }
            // No calls of `echo`.
            ApiFormat::TokenCount
            | ApiFormat::ResponseTokenCount
            | ApiFormat::Compaction
            | ApiFormat::Object
            | ApiFormat::ContentTokenCount
            | ApiFormat::OllamaShow
            | ApiFormat::Embeddings
            | ApiFormat::Moderations
            | ApiFormat::Rerank
            | ApiFormat::RerankV2
            | ApiFormat::Images
            | ApiFormat::ImageEdits
            | ApiFormat::ImageVariations
            | ApiFormat::Speech
            | ApiFormat::Transcriptions
            | ApiFormat::Translations => Value::Null,
            ApiFormat::EmbedContent => json!({
                "embedding": {"values": self.inputs.first().map(|it| embedding(it))},
                "usageMetadata": {"promptTokenCount": answer.usage.input_tokens},
            }),
            ApiFormat::BatchEmbedContents => json!({
                "embeddings": self.inputs.iter().map(|it| json!({"values": embedding(it)})).collect::<Vec<_>>(),
                "usageMetadata": {"promptTokenCount": answer.usage.input_tokens},
            }),
            ApiFormat::OllamaChat | ApiFormat::OllamaGenerate => {
                self.ollama(text, Some(&answer.usage))
            }
            ApiFormat::OllamaEmbed => json!({
                "model": model,
                "embeddings": self.inputs.iter().map(|it| embedding(it)).collect::<Vec<_>>(),
                "total_duration": 0, "load_duration": 0,
                "prompt_eval_count": answer.usage.input_tokens,
            }),
            ApiFormat::OllamaEmbeddings => {
                json!({"embedding": self.inputs.first().map(|it| embedding(it))})
            }
        };
        document.to_string().into_bytes()
    }

    pub fn begin(&self) -> Vec<u8> {
        match self.format {
            ApiFormat::ChatCompletions => {
                self.chunk(&json!({"role": "assistant", "content": ""}), &Value::Null)
            }
            ApiFormat::Responses => {
                let part = response_text("");
                [
                    self.event(
                        "response.created",
                        json!({"response": self.response("in_progress", None)}),
                    ),
                    self.event(
                        "response.in_progress",
                        json!({"response": self.response("in_progress", None)}),
                    ),
                    self.event(
                        "response.output_item.added",
                        json!({"output_index": 0, "item": self.message("in_progress", &[])}),
                    ),
                    self.event("response.content_part.added", self.of_part(json!({"part": part}))),
                ]
                .concat()
            }
            ApiFormat::Completions => Vec::new(),
            ApiFormat::ContentArray => format!("[{}", self.content("", None)).into_bytes(),
            ApiFormat::Messages => {
                let start = json!({
                    "id": self.id, "type": "message", "role": "assistant", "model": self.model,
                    "content": [], "stop_reason": null, "stop_sequence": null,
                    "usage": {"input_tokens": 0, "output_tokens": 0},
                });
                let block = json!({"type": "text", "text": ""});
                let mut bytes = event("message_start", &[("message", start)]);
                bytes.extend(event(
                    "content_block_start",
                    &[("index", 0.into()), ("content_block", block)],
                ));
                bytes
            }
            _ => Vec::new(),
        }
    }

    /// Returns the type of a streamed answer.
    pub fn stream_type(&self) -> &'static str {
        match self.format {
            ApiFormat::ContentArray => "application/json",
            ApiFormat::OllamaChat | ApiFormat::OllamaGenerate => "application/x-ndjson",
            _ => "text/event-stream",
        }
    }

    pub fn piece(&self, text: &str) -> Vec<u8> {
        match self.format {
            ApiFormat::ChatCompletions | ApiFormat::Completions => {
                self.chunk(&json!({"content": text}), &Value::Null)
            }
            ApiFormat::Responses => self.event(
                "response.output_text.delta",
                self.of_part(json!({"delta": text, "logprobs": []})),
            ),
            ApiFormat::Messages => {
                let delta = json!({"type": "text_delta", "text": text});
                event("content_block_delta", &[("index", 0.into()), ("delta", delta)])
            }
            _ => self.part(text, None),
        }
    }

    pub fn end(&self, answer: &Answer) -> Vec<u8> {
        let usage = &answer.usage;
        match self.format {
            ApiFormat::ChatCompletions | ApiFormat::Completions => {
                let mut bytes = self.chunk(&json!({}), &"stop".into());
                if self.wants_usage {
                    let chunk = json!({
                        "id": self.id, "object": self.chunk_name(), "created": 0,
                        "model": self.model, "choices": [], "usage": openai_usage(usage),
                    });
                    bytes.extend(format!("data: {chunk}\n\n").into_bytes());
                }
                bytes.extend(b"data: [DONE]\n\n");
                bytes
            }
            ApiFormat::Responses => {
                let part = response_text(&answer.text);
                [
                    self.event(
                        "response.output_text.done",
                        self.of_part(json!({"text": answer.text, "logprobs": []})),
                    ),
                    self.event(
                        "response.content_part.done",
                        self.of_part(json!({"part": part.clone()})),
                    ),
                    self.event(
                        "response.output_item.done",
                        json!({"output_index": 0, "item": self.message("completed", &[part])}),
                    ),
                    self.event(
                        "response.completed",
                        json!({"response": self.response("completed", Some(answer))}),
                    ),
                ]
                .concat()
            }
            ApiFormat::Messages => {
                let mut bytes = event("content_block_stop", &[("index", 0.into())]);
                let delta = json!({"stop_reason": "end_turn", "stop_sequence": null});
                bytes.extend(event(
                    "message_delta",
                    &[("delta", delta), ("usage", anthropic_usage(usage))],
                ));
                bytes.extend(event("message_stop", &[]));
                bytes
            }
            _ => self.part("", Some(&answer.usage)),
        }
    }

    /// Returns a response; `answer` is missing while it is in progress.
    fn response(&self, status: &str, answer: Option<&Answer>) -> Value {
        let items = answer.map(|it| self.message("completed", &[response_text(&it.text)]));
        let items: Vec<Value> = items.into_iter().collect();
        json!({
            "id": format!("resp_{}", self.id), "object": "response", "created_at": 0,
            "status": status, "error": null, "incomplete_details": null, "instructions": null,
            "max_output_tokens": null, "model": self.model, "output": items,
            "parallel_tool_calls": true, "previous_response_id": null,
            "reasoning": {"effort": null, "summary": null}, "store": false, "temperature": 1.0,
            "text": {"format": {"type": "text"}}, "tool_choice": "auto", "tools": [],
            "top_p": 1.0, "truncation": "disabled",
            "usage": answer.map(|it| response_usage(&it.usage)), "user": null, "metadata": {},
        })
    }

    fn message(&self, status: &str, content: &[Value]) -> Value {
        json!({
            "id": format!("msg_{}", self.id), "type": "message", "status": status,
            "role": "assistant", "content": content,
        })
    }

    /// Adds the place of the only part.
    fn of_part(&self, mut fields: Value) -> Value {
        fields["item_id"] = format!("msg_{}", self.id).into();
        fields["output_index"] = 0.into();
        fields["content_index"] = 0.into();
        fields
    }

    /// Returns an event of a response.
    fn event(&self, name: &str, mut fields: Value) -> Vec<u8> {
        let number = self.next_event.get();
        self.next_event.set(number + 1);
        fields["type"] = name.into();
        fields["sequence_number"] = number.into();
        format!("event: {name}\ndata: {fields}\n\n").into_bytes()
    }

    /// Returns a part of a stream of Gemini's or Ollama's API; the last one has the usage.
    fn part(&self, text: &str, usage: Option<&Usage>) -> Vec<u8> {
        let part = match self.format {
            ApiFormat::ContentStream => format!("data: {}\n\n", self.content(text, usage)),
            ApiFormat::ContentArray => {
                let end = if usage.is_some() { "\n]\n" } else { "" };
                format!("{NEXT_ELEMENT}{}{end}", self.content(text, usage))
            }
            ApiFormat::OllamaChat | ApiFormat::OllamaGenerate => {
                format!("{}\n", self.ollama(text, usage))
            }
            _ => String::new(),
        };
        part.into_bytes()
    }

    /// Returns an answer of Gemini's API, or a part of one without usage.
    fn content(&self, text: &str, usage: Option<&Usage>) -> Value {
        let content = json!({"parts": [{"text": text}], "role": "model"});
        let mut document = json!({
            "candidates": [{"content": content, "index": 0}],
            "modelVersion": self.model, "responseId": self.id,
        });
        if let Some(usage) = usage {
            document["candidates"][0]["finishReason"] = "STOP".into();
            document["usageMetadata"] = json!({
                "promptTokenCount": usage.input_tokens,
                "candidatesTokenCount": usage.output_tokens,
                "totalTokenCount": usage.input_tokens + usage.output_tokens,
            });
        }
        document
    }

    /// The same for Ollama's API.
    fn ollama(&self, text: &str, usage: Option<&Usage>) -> Value {
        let mut document =
            json!({"model": self.model, "created_at": DATE, "done": usage.is_some()});
        match self.format {
            ApiFormat::OllamaChat => {
                document["message"] = json!({"role": "assistant", "content": text});
            }
            _ => document["response"] = text.into(),
        }
        if let Some(usage) = usage {
            document["done_reason"] = "stop".into();
            document["prompt_eval_count"] = usage.input_tokens.into();
            document["eval_count"] = usage.output_tokens.into();
            for name in ["total", "load", "prompt_eval", "eval"] {
                document[format!("{name}_duration")] = 0.into();
            }
        }
        document
    }

    fn chunk_name(&self) -> &'static str {
        match self.format {
            ApiFormat::Completions => "text_completion",
            _ => "chat.completion.chunk",
        }
    }

    fn chunk(&self, delta: &Value, finish_reason: &Value) -> Vec<u8> {
        let mut choice =
            json!({"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish_reason});
        if self.format == ApiFormat::Completions {
            let text = delta["content"].as_str().unwrap_or_default();
            choice =
                json!({"index": 0, "text": text, "logprobs": null, "finish_reason": finish_reason});
        }
        let chunk = json!({
            "id": self.id, "object": self.chunk_name(), "created": 0, "model": self.model,
            "choices": [choice],
        });
        format!("data: {chunk}\n\n").into_bytes()
    }
}

/// Returns numbers from -1 to 1 that depend on the text only.
fn embedding(text: &str) -> Vec<f64> {
    let hash = Sha256::digest(text);
    let numbers = hash.iter().take(EMBEDDING_NUMBERS);
    numbers.map(|byte| f64::from(*byte) / 127.5 - 1.0).collect()
}

fn event(name: &str, fields: &[(&str, Value)]) -> Vec<u8> {
    let mut data = json!({"type": name});
    for (field, value) in fields {
        data[*field] = value.clone();
    }
    format!("event: {name}\ndata: {data}\n\n").into_bytes()
}

fn response_text(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

fn response_usage(usage: &Usage) -> Value {
    json!({
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.input_tokens + usage.output_tokens,
    })
}

fn openai_usage(usage: &Usage) -> Value {
    json!({
        "prompt_tokens": usage.input_tokens, "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
    })
}

fn anthropic_usage(usage: &Usage) -> Value {
    json!({"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens})
}
