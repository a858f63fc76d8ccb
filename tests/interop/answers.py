"""Answers of the interop tests' upstream in the form of each API: whole, as the events of a stream, and failures.

Sources: https://developers.openai.com/api/docs/api-reference (chat, responses, responses-streaming),
https://platform.claude.com/docs/en/build-with-claude/streaming, https://ai.google.dev/api/generate-content,
and for failures https://developers.openai.com/api/docs/guides/error-codes,
https://platform.claude.com/docs/en/api/errors, https://ai.google.dev/gemini-api/docs/troubleshooting.
"""

import json
import re

from makers import issued
from scenarios import sign


class Usage:
    """Token counts in the ledger's form: `input` includes cache reads and writes, `output` reasoning."""

    def __init__(self, number, *, reads=True, writes=False, output=True, reasoning=True):
        self.cached = 100 + number if reads else 0
        self.written = 50 + number if writes else 0
        self.input = 1000 + 10 * number
        self.output = 200 + number if output else 0
        self.reasoning = 20 + number if reasoning and output else 0

    def row(self):
        return {
            "input_tokens": self.input,
            "cached_input_tokens": self.cached,
            "cache_write_tokens": self.written,
            "output_tokens": self.output,
            "reasoning_tokens": self.reasoning,
        }


def words(text):
    return re.findall(r"\S+\s*", text)


def pieces(text, size=5):
    """Cuts arguments within words and escapes."""
    return [text[i:i + size] for i in range(0, len(text), size)]


# Chat completions.

FINISH = {"end": "stop", "calls": "tool_calls", "length": "length", "sequence": "stop", "filter": "content_filter"}


def chat_counts(usage):
    return {
        "prompt_tokens": usage.input,
        "completion_tokens": usage.output,
        "total_tokens": usage.input + usage.output,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    }


def chat_parts(number, answer):
    """Returns the message, and the deltas of a stream."""
    message, deltas, calls = {"role": "assistant", "content": None}, [{"role": "assistant", "content": ""}], []
    for kind, *rest in answer.blocks:
        if kind == "call":
            function = {"name": rest[0], "arguments": json.dumps(rest[1])}
            calls.append({"id": f"call_{number}_{len(calls)}", "type": "function", "function": function})
            started = {"index": len(calls) - 1, **calls[-1], "function": {**function, "arguments": ""}}
            deltas.append({"tool_calls": [started]})
            deltas += [{"tool_calls": [{"index": len(calls) - 1, "function": {"arguments": piece}}]}
                       for piece in pieces(function["arguments"])]
            continue
        if rest[0]:
            # `reasoning_content` is DeepSeek's: https://api-docs.deepseek.com/guides/thinking_mode
            name = {"text": "content", "refusal": "refusal", "thinking": "reasoning_content"}[kind]
            message[name] = (message.get(name) or "") + rest[0]
            deltas += [{name: word} for word in words(rest[0])]
    return {**message, **({"tool_calls": calls} if calls else {})}, deltas


def chat(number, model, answer, usage):
    """Returns the response, and the chunks of a stream with the usage as the last one."""
    base = {"id": f"chatcmpl-{number}", "created": 1764500000, "model": model}
    message, deltas = chat_parts(number, answer)
    finish = FINISH[answer.stop]
    choice = {"index": 0, "message": message, "finish_reason": finish}
    whole = {**base, "object": "chat.completion", "choices": [choice], "usage": chat_counts(usage)}
    chunks = [{**base, "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta,
                                                                       "finish_reason": finish_reason}]}
              for delta, finish_reason in [*((delta, None) for delta in deltas), ({}, finish)]]
    last = {**base, "object": "chat.completion.chunk", "choices": [], "usage": chat_counts(usage)}
    return whole, [*chunks, last]


# Responses.

def response_items(number, answer):
    """Yields each output item with the events between its `added` and its `done`. The first is a reasoning item."""
    thought = "".join(rest[0] for kind, *rest in answer.blocks if kind == "thinking")
    encrypted = sign("responses", number)
    summary = [{"type": "summary_text", "text": thought}] if thought else []
    item = {"type": "reasoning", "id": issued.add(f"rs_{number}"), "summary": summary,
            "encrypted_content": encrypted}
    place = {"item_id": item["id"], "summary_index": 0}
    yield item, {**item, "summary": [], "encrypted_content": ""}, [
        {"type": "response.reasoning_summary_part.added", "part": {"type": "summary_text", "text": ""}, **place},
        *({"type": "response.reasoning_summary_text.delta", "delta": word, **place} for word in words(thought)),
        {"type": "response.reasoning_summary_text.done", "text": thought, **place},
        {"type": "response.reasoning_summary_part.done", "part": summary[0], **place},
    ] if thought else []
    for i, (kind, *rest) in enumerate(answer.blocks):
        if kind == "call":
            item = {"type": "function_call", "id": f"fc_{number}_{i}", "call_id": f"call_{number}_{i}",
                    "name": rest[0], "arguments": json.dumps(rest[1]), "status": "completed"}
            place = {"item_id": item["id"]}
            yield item, {**item, "arguments": "", "status": "in_progress"}, [
                *({"type": "response.function_call_arguments.delta", "delta": piece, **place}
                  for piece in pieces(item["arguments"])),
                {"type": "response.function_call_arguments.done", "arguments": item["arguments"],
                 "name": item["name"], **place},
            ]
        elif kind != "thinking":
            yield message_item(number, i, kind, rest[0], answer.stop)


def message_item(number, i, kind, text, stop):
    is_text = kind == "text"
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []} if is_text else {
        "type": "refusal", "refusal": text}
    name, field = ("output_text", "text") if is_text else ("refusal", "refusal")
    status = "incomplete" if stop in ("length", "filter") and is_text else "completed"
    item = {"type": "message", "id": f"msg_{number}_{i}", "role": "assistant", "status": status, "content": [part]}
    place = {"item_id": item["id"], "content_index": 0}
    more = {"logprobs": []} if is_text else {}
    return item, {**item, "content": [], "status": "in_progress"}, [
        {"type": "response.content_part.added", "part": {**part, field: ""}, **place},
        *({"type": f"response.{name}.delta", "delta": word, **more, **place} for word in words(text)),
        {"type": f"response.{name}.done", field: text, **more, **place},
        {"type": "response.content_part.done", "part": part, **place},
    ]


def responses(number, body, answer, usage):
    """Returns the response, and the events of a stream."""
    items = list(response_items(number, answer))
    # A refusal as a content part is a complete response; a filter ends it early.
    reason = {"length": "max_output_tokens", "filter": "content_filter"}.get(answer.stop)
    if any(kind == "refusal" for kind, *_ in answer.blocks):
        reason = None
    response = {
        "id": f"resp_{number}", "object": "response", "created_at": 1764500000,
        "status": "incomplete" if reason else "completed", "error": None,
        "incomplete_details": {"reason": reason} if reason else None,
        "instructions": body.get("instructions"), "model": body["model"], "output": [item for item, _, _ in items],
        "parallel_tool_calls": True, "temperature": 1.0, "top_p": 1.0, "tool_choice": "auto",
        "tools": [], "metadata": {}, "store": body.get("store", True),
        "previous_response_id": body.get("previous_response_id"),
        "usage": {
            "input_tokens": usage.input,
            "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": usage.written},
            "output_tokens": usage.output,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning},
            "total_tokens": usage.input + usage.output,
        },
    }
    begun = {**response, "status": "in_progress", "incomplete_details": None, "output": [], "usage": None}
    events = [{"type": "response.created", "response": begun}, {"type": "response.in_progress", "response": begun}]
    for index, (item, started, inner) in enumerate(items):
        events += [{"type": "response.output_item.added", "output_index": index, "item": started},
                   *({**event, "output_index": index} for event in inner),
                   {"type": "response.output_item.done", "output_index": index, "item": item}]
    events.append({"type": f"response.{response['status']}", "response": response})
    return response, [{**event, "sequence_number": i} for i, event in enumerate(events)]


# Anthropic's messages.

STOP_REASONS = {"end": "end_turn", "calls": "tool_use", "length": "max_tokens", "sequence": "stop_sequence",
                "filter": "refusal"}


def message_blocks(number, answer):
    """Yields each content block with the block of its start and the deltas."""
    for i, (kind, *rest) in enumerate(answer.blocks):
        if kind == "thinking":
            signature = sign("messages", number)
            yield ({"type": "thinking", "thinking": rest[0], "signature": signature},
                   {"type": "thinking", "thinking": "", "signature": ""},
                   [*({"type": "thinking_delta", "thinking": word} for word in words(rest[0])),
                    {"type": "signature_delta", "signature": signature}])
        elif kind == "call":
            block = {"type": "tool_use", "id": f"toolu_{number}_{i}", "name": rest[0], "input": rest[1]}
            yield block, {**block, "input": {}}, [{"type": "input_json_delta", "partial_json": piece}
                                                  for piece in ["", *pieces(json.dumps(rest[1]))]]
        else:
            yield ({"type": "text", "text": rest[0]}, {"type": "text", "text": ""},
                   [{"type": "text_delta", "text": word} for word in words(rest[0])])


def messages(number, model, answer, usage, stop_sequence):
    """Returns the message, and the events of a stream."""
    counts = {
        "input_tokens": usage.input - usage.cached - usage.written,
        "cache_read_input_tokens": usage.cached,
        "cache_creation_input_tokens": usage.written,
        "cache_creation": {"ephemeral_5m_input_tokens": usage.written, "ephemeral_1h_input_tokens": 0},
        "output_tokens": usage.output,
        "output_tokens_details": {"thinking_tokens": usage.reasoning},
        "service_tier": "standard",
    }
    blocks = list(message_blocks(number, answer))
    end = {"stop_reason": STOP_REASONS[answer.stop],
           "stop_sequence": stop_sequence if answer.stop == "sequence" else None}
    message = {"id": f"msg_{number}", "type": "message", "role": "assistant", "model": model,
               "content": [block for block, _, _ in blocks], **end, "usage": counts}
    first = {**counts, "output_tokens": 1, "output_tokens_details": {"thinking_tokens": 0}}
    begun = {**message, "content": [], "stop_reason": None, "stop_sequence": None, "usage": first}
    events = [{"type": "message_start", "message": begun}]
    for index, (_, start, deltas) in enumerate(blocks):
        events += [{"type": "content_block_start", "index": index, "content_block": start},
                   *([{"type": "ping"}] if index == 0 else []),
                   *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
                   {"type": "content_block_stop", "index": index}]
    events += [{"type": "message_delta", "delta": end,
                "usage": {key: counts[key] for key in ("output_tokens", "output_tokens_details")}},
               {"type": "message_stop"}]
    return message, events


# Gemini.

FINISH_REASONS = {"end": "STOP", "calls": "STOP", "length": "MAX_TOKENS", "sequence": "STOP", "filter": "SAFETY"}


def gemini(number, model, answer, usage):
    """Returns the response, and the chunks of a stream.

    With thinking, the first call has a signature, or else the last part, which is empty if it is streamed.
    Source: https://ai.google.dev/gemini-api/docs/thought-signatures
    """
    # Gemini counts thoughts apart from the candidates.
    counts = {
        "promptTokenCount": usage.input,
        "cachedContentTokenCount": usage.cached,
        "candidatesTokenCount": usage.output - usage.reasoning,
        "thoughtsTokenCount": usage.reasoning,
        "totalTokenCount": usage.input + usage.output,
    }
    whole, streamed = [], []
    thinks = any(kind == "thinking" for kind, *_ in answer.blocks)
    is_third = bool(re.match(r"gemini-[3-9]", model))
    has_calls = any(kind == "call" for kind, *_ in answer.blocks)
    is_signed = False
    for i, (kind, *rest) in enumerate(answer.blocks):
        if kind == "call":
            call = {"name": rest[0], "args": rest[1]}
            # Only Gemini 3 returns ids: https://ai.google.dev/gemini-api/docs/function-calling
            part = {"functionCall": {"id": f"fc{number}x{i}", **call} if is_third else call}
            if (thinks or is_third) and not is_signed:
                part["thoughtSignature"] = sign("gemini", number)
                is_signed = True
            whole.append(part)
            streamed.append(part)
        elif rest[0]:
            more = {"thought": True} if kind == "thinking" else {}
            whole.append({"text": rest[0], **more})
            streamed += [{"text": word, **more} for word in words(rest[0])]
    if thinks and not has_calls:
        whole[-1] = {**whole[-1], "thoughtSignature": sign("gemini", number)}
        streamed.append({"text": "", "thoughtSignature": whole[-1]["thoughtSignature"]})

    def chunk(parts, finish=None):
        candidate = {"content": {"role": "model", "parts": parts}, "index": 0}
        if finish:
            candidate["finishReason"] = finish
        return {"candidates": [candidate], "usageMetadata": counts, "modelVersion": model,
                "responseId": f"r{number}"}

    finish = FINISH_REASONS[answer.stop]
    chunks = [chunk([part]) for part in streamed]
    chunks[-1]["candidates"][0]["finishReason"] = finish
    return chunk(whole, finish), chunks


# Failures.

RETRY_AFTER_S = 7
MESSAGES = {
    "invalid": "The request is invalid.", "key": "The key is invalid.", "model": "The model does not exist.",
    "rate": "The rate limit is reached.", "internal": "The server had an error.",
    "overload": "The engine is currently overloaded, please try again later.",
}
# Sources: https://github.com/earendil-works/pi/issues/6265 and the SDK's error codes for OpenAI,
# https://portkey.ai/error-library/input-length-error-10153, https://github.com/google-gemini/gemini-cli/issues/12098.
TOO_LONG = {
    "chat": "This model's maximum context length is 128000 tokens. However, your messages resulted in 200000 tokens."
            " Please reduce the length of the messages.",
    "responses": "Your input exceeds the context window of this model. Please adjust your input and try again.",
    "messages": "prompt is too long: 210000 tokens > 200000 maximum",
    "gemini": "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).",
}
OPENAI_ERRORS = {
    "invalid": ("invalid_request_error", None), "key": ("invalid_request_error", "invalid_api_key"),
    "model": ("invalid_request_error", "model_not_found"), "rate": ("requests", "rate_limit_exceeded"),
    "internal": ("server_error", None), "overload": ("server_error", None),
    "context": ("invalid_request_error", "context_length_exceeded"),
}
ANTHROPIC_ERRORS = {
    "invalid": "invalid_request_error", "key": "authentication_error", "model": "not_found_error",
    "rate": "rate_limit_error", "internal": "api_error", "overload": "overloaded_error",
    "context": "invalid_request_error",
}
GEMINI_ERRORS = {
    "invalid": "INVALID_ARGUMENT", "key": "UNAUTHENTICATED", "model": "NOT_FOUND", "rate": "RESOURCE_EXHAUSTED",
    "internal": "INTERNAL", "overload": "UNAVAILABLE", "context": "INVALID_ARGUMENT",
}


def failure(api, status, kind, message=None, param=None, code=None):
    """Returns the status, the body and the headers of an error."""
    message = message or (TOO_LONG[api] if kind == "context" else MESSAGES[kind])
    headers = {"retry-after": str(RETRY_AFTER_S)} if kind == "rate" else {}
    if api in ("chat", "responses"):
        error_type, error_code = OPENAI_ERRORS[kind]
        error = {"message": message, "type": error_type, "param": param, "code": code or error_code}
        return status, {"error": error}, {**headers, **openai_limits()}
    if api == "messages":
        error = {"type": ANTHROPIC_ERRORS[kind], "message": message}
        status = 529 if kind == "overload" else status
        return status, {"type": "error", "error": error, "request_id": "req_1"}, {**headers, **anthropic_limits()}
    error = {"code": status, "message": message, "status": GEMINI_ERRORS[kind]}
    if kind == "rate":
        # Gemini has no header for it: https://ai.google.dev/api/rest/Shared.Types/ErrorInfo (RetryInfo)
        headers = {}
        error["details"] = [{"@type": "type.googleapis.com/google.rpc.RetryInfo",
                             "retryDelay": f"{RETRY_AFTER_S}s"}]
    return status, {"error": error}, headers


def openai_limits():
    """Source: https://developers.openai.com/api/docs/guides/rate-limits#rate-limits-in-headers"""
    return {"x-ratelimit-limit-requests": "60", "x-ratelimit-remaining-requests": "59",
            "x-ratelimit-reset-requests": "1s", "x-ratelimit-limit-tokens": "150000",
            "x-ratelimit-remaining-tokens": "149984", "x-ratelimit-reset-tokens": "6m0s"}


def anthropic_limits():
    """Source: https://platform.claude.com/docs/en/api/rate-limits#response-headers"""
    return {"anthropic-ratelimit-requests-limit": "60", "anthropic-ratelimit-requests-remaining": "59",
            "anthropic-ratelimit-requests-reset": "2026-11-30T12:00:01Z",
            "anthropic-ratelimit-tokens-limit": "150000", "anthropic-ratelimit-tokens-remaining": "149984",
            "anthropic-ratelimit-tokens-reset": "2026-11-30T12:06:00Z"}
