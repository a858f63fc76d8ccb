//! The answers of `echo` in the format of each protocol. Pure.

use std::cell::Cell;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::event::Usage;
use crate::providers::{Answer, ApiFormat};

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
            | ApiFormat::OllamaShow => Value::Null,
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
            ApiFormat::ChatCompletions => self.chunk(&json!({"content": text}), &Value::Null),
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
            ApiFormat::ChatCompletions => {
                let mut bytes = self.chunk(&json!({}), &"stop".into());
                if self.wants_usage {
                    let chunk = json!({
                        "id": self.id, "object": "chat.completion.chunk", "created": 0,
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

    fn chunk(&self, delta: &Value, finish_reason: &Value) -> Vec<u8> {
        let chunk = json!({
            "id": self.id, "object": "chat.completion.chunk", "created": 0, "model": self.model,
            "choices": [{"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish_reason}],
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
