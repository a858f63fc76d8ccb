"""Requests that the makers reject, and `makers.py` must as well. tests/interop.rs runs it."""

import makers

USER = [{"role": "user", "content": "x"}]
CHAT = {"model": "gpt-4o", "messages": USER}
RESPONSES = {"model": "gpt-5"}
MESSAGES = {"model": "claude-sonnet-4-5", "max_tokens": 100, "messages": USER}
USE = {"type": "tool_use", "id": "a", "name": "f", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "a", "content": "x"}
THOUGHT = {"type": "thinking", "thinking": "x", "signature": "x"}
CACHED = {"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "-_-_"}}
CALL_ITEM = {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"}
OUTPUT_ITEM = {"type": "function_call_output", "call_id": "a", "output": "x"}
QUESTION = {"role": "user", "parts": [{"text": "x"}]}
FUNCTION_CALL = {"role": "model", "parts": [{"functionCall": {"name": "f", "args": {}}}]}
FUNCTION_RESPONSE = {"role": "user", "parts": [{"functionResponse": {"name": "f", "response": {}}}]}


def call(name="a"):
    return {"role": "assistant", "tool_calls": [
        {"id": name, "type": "function", "function": {"name": "f", "arguments": "{}"}}]}


def result(name="a"):
    return {"role": "tool", "tool_call_id": name, "content": "x"}


def tools(**function):
    return {"tools": [{"type": "function", "function": function}]}


OPEN_SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
REJECTED_CHAT = [
    {"stream_options": {"include_usage": True}},
    {"messages": [*USER, call(), result("b")]},
    {"messages": [*USER, call(), *USER]},
    {"messages": [*USER, result()]},
    {"messages": [*USER, call("x" * 41), result("x" * 41)]},
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,-_-_"}}]}]},
    tools(name="a.b"),
    tools(name="x" * 65),
    tools(name="a", strict=True, parameters=OPEN_SCHEMA),
    {"tool_choice": "required"},
    {"top_k": 1},
    {"model": "o4-mini", "max_tokens": 1},
    {"response_format": {"type": "json_object"}},
]
REJECTED_RESPONSES = [
    {"input": "x", "max_output_tokens": 15},
    {"input": [OUTPUT_ITEM]},
    {"input": [CALL_ITEM]},
    {"input": [{**CALL_ITEM, "id": "call_1"}, OUTPUT_ITEM]},
    {"input": [{"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "z"}, *USER]},
    {"input": [{"role": "assistant", "content": [{"type": "input_text", "text": "x"}]}]},
    {"input": "x", "stop": ["a"]},
]
REJECTED_MESSAGES = [
    {"temperature": 1.5},
    {"messages": [*USER, {"role": "assistant", "content": [USE]}, *USER]},
    {"messages": [*USER, {"role": "assistant", "content": [USE]}, {"role": "user", "content": [CACHED, RESULT]}]},
    {"messages": [*USER, {"role": "user", "content": [RESULT]}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": ""}]}]},
    {"messages": [{"role": "user", "content": [IMAGE]}]},
    {"messages": [*USER, {"role": "assistant", "content": [THOUGHT]}, *USER]},
    {"messages": [*USER, {"role": "assistant", "content": [{**USE, "id": "a.b"}]},
                  {"role": "user", "content": [{**RESULT, "tool_use_id": "a.b"}]}]},
    {"thinking": {"type": "enabled", "budget_tokens": 1023}},
    {"max_tokens": 2000, "thinking": {"type": "enabled", "budget_tokens": 2000}},
    {"system": [CACHED] * 5},
    {"tools": [{"name": "a.b", "input_schema": {"type": "object"}}]},
    {"tools": [{"name": "a", "input_schema": {"properties": {}}}]},
    {"model": "claude-opus-5", "temperature": 1},
    {"model": "claude-opus-5", "max_tokens": 2000, "thinking": {"type": "enabled", "budget_tokens": 1024}},
]
REJECTED_GEMINI = [
    {"contents": [QUESTION, FUNCTION_CALL, QUESTION]},
    {"contents": [QUESTION, FUNCTION_RESPONSE]},
    {"contents": [QUESTION, {**FUNCTION_CALL, "parts": FUNCTION_CALL["parts"] * 2}, FUNCTION_RESPONSE]},
    {"contents": [FUNCTION_CALL, FUNCTION_RESPONSE]},
    {"contents": [QUESTION, FUNCTION_CALL, FUNCTION_RESPONSE], "model": "gemini-3-flash"},
    {"contents": [{"role": "assistant", "parts": [{"text": "x"}]}]},
    {"contents": [{"role": "model", "parts": [{"text": "x", "thoughtSignature": "AAAA"}]}, QUESTION]},
    {"contents": [QUESTION], "tools": [{"functionDeclarations": [{"name": "1 a"}]}]},
    {"contents": [QUESTION], "generationConfig": {"responseJsonSchema": {"type": "object"}}},
    {"contents": [QUESTION], "tool_choice": "auto"},
]


def rejects(check, request):
    try:
        check(request)
    except makers.Rejected:
        return
    raise AssertionError(f"accepted: {request}")


for fields in REJECTED_CHAT:
    rejects(makers.chat, {**CHAT, **fields})
for fields in REJECTED_RESPONSES:
    rejects(makers.responses, {**RESPONSES, **fields})
for fields in REJECTED_MESSAGES:
    rejects(lambda request: makers.anthropic(request, {}), {**MESSAGES, **fields})
for body in REJECTED_GEMINI:
    rejects(lambda request: makers.gemini(request, request.get("model", "gemini-2.5-flash")), body)
makers.chat(CHAT)
makers.responses({**RESPONSES, "input": "x"})
makers.anthropic(MESSAGES, {})
makers.gemini({"contents": [QUESTION]}, "gemini-3-flash")
