//! The answers of `echo` in the format of either protocol. Pure.

use serde_json::{Value, json};

use crate::event::Usage;
use crate::providers::{Answer, ApiFormat};

/// The form of an `echo` answer.
pub struct EchoFormat<'a> {
    pub format: ApiFormat,
    pub id: &'a str,
    pub model: &'a str,
    /// True if a streamed chat completion ends with its usage.
    pub wants_usage: bool,
}

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
            ApiFormat::Messages | ApiFormat::TokenCount => json!({
                "id": id, "type": "message", "role": "assistant", "model": model,
                "content": [{"type": "text", "text": text}],
                "stop_reason": "end_turn", "stop_sequence": null,
                "usage": anthropic_usage(&answer.usage),
            }),
        };
        document.to_string().into_bytes()
    }

    pub fn begin(&self) -> Vec<u8> {
        match self.format {
            ApiFormat::ChatCompletions => {
                self.chunk(&json!({"role": "assistant", "content": ""}), &Value::Null)
            }
            ApiFormat::Messages | ApiFormat::TokenCount => {
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
        }
    }

    pub fn piece(&self, text: &str) -> Vec<u8> {
        match self.format {
            ApiFormat::ChatCompletions => self.chunk(&json!({"content": text}), &Value::Null),
            ApiFormat::Messages | ApiFormat::TokenCount => {
                let delta = json!({"type": "text_delta", "text": text});
                event("content_block_delta", &[("index", 0.into()), ("delta", delta)])
            }
        }
    }

    pub fn end(&self, usage: &Usage) -> Vec<u8> {
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
            ApiFormat::Messages | ApiFormat::TokenCount => {
                let mut bytes = event("content_block_stop", &[("index", 0.into())]);
                let delta = json!({"stop_reason": "end_turn", "stop_sequence": null});
                bytes.extend(event(
                    "message_delta",
                    &[("delta", delta), ("usage", anthropic_usage(usage))],
                ));
                bytes.extend(event("message_stop", &[]));
                bytes
            }
        }
    }

    fn chunk(&self, delta: &Value, finish_reason: &Value) -> Vec<u8> {
        let chunk = json!({
            "id": self.id, "object": "chat.completion.chunk", "created": 0, "model": self.model,
            "choices": [{"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish_reason}],
        });
        format!("data: {chunk}\n\n").into_bytes()
    }
}

fn event(name: &str, fields: &[(&str, Value)]) -> Vec<u8> {
    let mut data = json!({"type": name});
    for (field, value) in fields {
        data[*field] = value.clone();
    }
    format!("event: {name}\ndata: {data}\n\n").into_bytes()
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
