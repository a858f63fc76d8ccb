mod adapt;
mod own;
mod replies;
mod streams;

use serde_json::Value;

use super::super::conversation::Conversation;
use super::super::{Context, Target, Written};
use super::write_request;

fn target() -> Target {
    Target { chat_limit: "max_tokens", takes_stream_options: true, output_tokens_assumed: 4_096 }
}

fn context() -> Context {
    Context {
        id: "1".into(),
        created: 0,
        model: "requested".into(),
        wants_usage: true,
        is_array: false,
        request: Value::Null,
    }
}

fn written(conversation: &Conversation) -> Written {
    write_request(conversation, &target()).unwrap()
}
