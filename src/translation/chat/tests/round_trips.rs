//! A conversation of a client of another API with a server of chat completions.

use super::*;
use crate::translation;

/// Returns the assistant's message that the server gets back after a client of `api` has received
/// the answer and appended it, with the result of a tool, to its conversation.
fn message_sent_back(api: Api, message: &Value) -> Value {
    let answer = json!({"id": "x", "model": "m", "choices": [
        {"index": 0, "message": message, "finish_reason": "tool_calls"}]});
    let reply = read_reply(&answer);
    let shown = translation::write_reply(api, &reply, &Usage::default(), &context());
    let body = match api {
        Api::Messages => {
            let content = &shown["content"];
            let calls = content.as_array().unwrap().iter().filter(|it| it["type"] == "tool_use");
            let results: Vec<Value> = calls
                .map(|call| json!({"type": "tool_result", "tool_use_id": call["id"], "content": "1"}))
                .collect();
            json!({"model": "m", "max_tokens": 10, "messages": [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": content},
                {"role": "user", "content": results}]})
        }
        _ => {
            let mut input = vec![json!({"role": "user", "content": "Hi"})];
            let output = shown["output"].as_array().unwrap();
            input.extend(output.clone());
            let calls = output.iter().filter(|it| it["type"] == "function_call");
            input.extend(calls.map(|call| {
                json!({"type": "function_call_output", "call_id": call["call_id"], "output": "1"})
            }));
            json!({"model": "m", "input": input})
        }
    };
    let conversation = translation::read_for_other(api, &body).unwrap();
    let sent = write_request(&conversation, &target()).unwrap().body;
    let messages = sent["messages"].as_array().unwrap();
    let [_, answer, result] = &**messages else { panic!("{sent}") };
    assert_eq!(result["tool_call_id"], "call_1");
    answer.clone()
}

#[test]
fn servers_get_their_thoughts_and_signatures_back() {
    let call =
        json!({"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}});
    let mut signed = call.clone();
    signed["extra_content"] = json!({"google": {"thought_signature": "Cp/+="}});
    let deepseek = json!({"role": "assistant", "content": "a", "reasoning_content": "Hm", "tool_calls": [call]});
    let silent = json!({"role": "assistant", "content": null, "reasoning_content": "", "tool_calls": [call]});
    let openrouter = json!({"role": "assistant", "content": null, "tool_calls": [call], "reasoning_details": [
        {"type": "reasoning.text", "text": "Hm", "signature": "Eq", "format": "anthropic-claude-v1", "index": 0},
        {"type": "reasoning.encrypted", "data": "gAAA", "id": "rs_1", "format": "openai-responses-v1", "index": 1}]});
    let gemini = json!({"role": "assistant", "content": null, "tool_calls": [signed]});
    for message in [deepseek, silent, openrouter, gemini] {
        for api in [Api::Messages, Api::Responses] {
            assert_eq!(message_sent_back(api, &message), message, "{api:?}");
        }
    }
}
