"""Rejects the requests that OpenAI, Anthropic and Google reject. The interop tests' upstream asks it about every request.

The fields come from the types that the makers generate from their specifications and ship in their SDKs; an
unknown field is a fault. The rules that no type shows follow, each with its source. `Issued` remembers the
signatures that the upstream made, because the makers accept only their own.
"""

import base64
import json
import re
import threading
import typing

import pydantic
import typing_extensions
from anthropic.types import message_create_params
from anthropic.types.beta import message_create_params as beta_message_create_params
from google.genai import types as genai
from openai.types.chat import completion_create_params
from openai.types.responses import response_create_params


class Rejected(Exception):
    """A request that the maker refuses: the message, and for OpenAI the field and the code."""

    def __init__(self, message, param=None, code=None):
        super().__init__(message)
        self.message, self.param, self.code = message, param, code


class Issued:
    """The signatures, encrypted contents and items that the upstream made."""

    def __init__(self):
        self.lock = threading.Lock()
        self.values = set()

    def add(self, value):
        with self.lock:
            self.values.add(value)
        return value

    def __contains__(self, value):
        with self.lock:
            return value in self.values


issued = Issued()


# Types. The SDKs' request types are `TypedDict`s.

def fields(kind, known={}):
    """Returns the fields of a TypedDict as (type, required), and whether it takes other fields as well."""
    if kind not in known:
        result = {}
        for name, hint in typing_extensions.get_type_hints(kind, include_extras=True).items():
            origin = typing_extensions.get_origin(hint)
            required = origin is typing_extensions.Required
            if origin in (typing_extensions.Required, typing_extensions.NotRequired):
                hint = typing_extensions.get_args(hint)[0]
            result[name] = (hint, required)
        is_open = getattr(kind, "__pydantic_config__", {}).get("extra") == "allow"
        known[kind] = (result, is_open)
    return known[kind]


def faults(value, kind, path=""):
    """Returns the faults of a value, each with its path."""
    origin, arguments = typing_extensions.get_origin(kind), typing_extensions.get_args(kind)
    wrong = [f"{path}: {json.dumps(value)[:80]} is not a valid {getattr(kind, '__name__', kind)}"]
    if kind in (typing.Any, object):
        return []
    if origin is typing.Annotated:
        return faults(value, arguments[0], path)
    if origin is typing.Union:
        return union_faults(value, arguments, path)
    if origin is typing.Literal:
        return [] if any(value == a and type(value) is type(a) for a in arguments) else wrong
    if typing_extensions.is_typeddict(kind):
        return dictionary_faults(value, kind, path) if isinstance(value, dict) else wrong
    if origin is dict:
        if not isinstance(value, dict):
            return wrong
        return [f for key, item in value.items() for f in faults(item, arguments[1], f"{path}.{key}")]
    if origin is typing.IO:
        return wrong
    if origin is not None and issubclass(origin, typing.Iterable):
        if not isinstance(value, list):
            return wrong
        return [f for i, item in enumerate(value) for f in faults(item, arguments[0], f"{path}.{i}")]
    accepted = {float: (int, float), type(None): type(None), dict: dict, list: list}.get(kind, kind)
    is_wrong_bool = isinstance(value, bool) and kind is not bool
    return wrong if is_wrong_bool or not isinstance(value, accepted) else []


def union_faults(value, kinds, path):
    results = [(kind, faults(value, kind, path)) for kind in kinds]
    if any(not found for _, found in results):
        return []
    # The faults of the alternative with the same `type` and `role` are the useful ones.
    for kind, found in results:
        if isinstance(value, dict) and typing_extensions.is_typeddict(kind):
            tags = [(value.get(tag), fields(kind)[0][tag][0]) for tag in ("type", "role") if tag in fields(kind)[0]]
            if tags and all(not faults(tag, hint) for tag, hint in tags):
                return found
    deepest = [found for _, found in results if not any(f.startswith(f"{path}: ") for f in found)]
    return min(deepest or [found for _, found in results], key=len)


def dictionary_faults(value, kind, path):
    known, is_open = fields(kind)
    found = []
    for name, item in value.items():
        if name in known:
            found += faults(item, known[name][0], f"{path}.{name}")
        elif not is_open:
            found.append(f"{path}.{name}: Extra inputs are not permitted")
    return found + [f"{path}.{name}: Field required" for name, (_, required) in known.items()
                    if required and name not in value]


def typed(body, kind, more=()):
    """Rejects a body with a field that the type does not have. `more` names further fields with their types."""
    known = dict(more)
    found = [f for name, hint in known.items() if name in body for f in faults(body[name], hint, f".{name}")]
    found += dictionary_faults({k: v for k, v in body.items() if k not in known}, kind, "")
    if found:
        raise Rejected("; ".join(f.lstrip(".") for f in found[:3]), found[0].lstrip(".").split(":")[0])


def require(holds, message, param=None, code=None):
    if not holds:
        raise Rejected(message, param, code)


def standard_base64(data, field):
    """Rejects the alphabet for URLs, which only Google accepts."""
    try:
        base64.b64decode(data, validate=True)
    except ValueError:
        raise Rejected(f"{field}: invalid base64 data", field) from None


def parts(content):
    """Returns the parts of a content that may be a text."""
    return content if isinstance(content, list) else [{"type": "text", "text": content}] if content else []


# OpenAI.

# "Must be a-z, A-Z, 0-9, or contain underscores and dashes, with a maximum length of 64."
# Source: FunctionDefinition and ResponseFormatJSONSchema in the SDK.
OPENAI_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")


def strict_schema(schema, path):
    """Structured outputs: each object lists all of its properties as required and allows no others.

    Source: https://developers.openai.com/api/docs/guides/structured-outputs#supported-schemas
    """
    if isinstance(schema, list):
        for i, item in enumerate(schema):
            strict_schema(item, f"{path}[{i}]")
    if not isinstance(schema, dict):
        return
    if schema.get("type") == "object" or "properties" in schema:
        require(schema.get("additionalProperties") is False,
                f"Invalid schema: In context={path}, 'additionalProperties' is required to be supplied and to be"
                " false.", path, "invalid_function_parameters")
        require(set(schema.get("required", [])) == set(schema.get("properties", {})),
                f"Invalid schema: In context={path}, 'required' is required to be supplied and to be an array"
                " including every key in properties.", path, "invalid_function_parameters")
    for key, item in schema.items():
        if key in ("properties", "$defs", "definitions"):
            for name, inner in item.items():
                strict_schema(inner, f"{path}.{name}")
        elif key not in ("enum", "required", "const", "default", "examples"):
            strict_schema(item, f"{path}.{key}")


def openai_function(function, path, strict):
    require(OPENAI_NAME.fullmatch(function["name"]),
            f"Invalid '{path}.name': string does not match pattern.", f"{path}.name", "invalid_value")
    if strict:
        strict_schema(function.get("parameters") or {}, path)


def json_in_text(kind, body):
    # Source: the description of `response_format` in the SDK: "you must also instruct the model to produce JSON
    # yourself via a system or user message"; the API answers 400 otherwise.
    require(kind != "json_object" or "json" in json.dumps(body).lower(),
            "'messages' must contain the word 'json' in some form, to use 'response_format' of type 'json_object'.",
            "messages")


def chat(body, _=None):
    """Checks a request for `POST /v1/chat/completions`."""
    messages = []
    for message in body.get("messages") or []:
        # DeepSeek's field, which compatible servers read back:
        # https://api-docs.deepseek.com/guides/thinking_mode
        messages.append({k: v for k, v in message.items() if k != "reasoning_content"}
                        if isinstance(message, dict) and message.get("role") == "assistant" else message)
    typed({**body, "messages": messages}, completion_create_params.CompletionCreateParamsBase,
          {"stream": typing.Optional[bool]})
    require(messages, "Invalid 'messages': empty array. Expected an array with minimum length 1.", "messages")
    require("stream_options" not in body or body["stream_options"] is None or body.get("stream"),
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.", "stream_options")
    # Source: the description of `max_tokens` in the SDK: "not compatible with o-series models".
    require(not (re.match(r"o\d", body["model"]) and body.get("max_tokens") is not None),
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens'"
            " instead.", "max_tokens", "unsupported_parameter")
    for name in ("max_tokens", "max_completion_tokens"):
        require((body.get(name) or 1) >= 1, f"Invalid '{name}': integer below minimum value.", name)
    # Source: the descriptions of `temperature` and `stop` in the SDK.
    require(0 <= (body.get("temperature") or 0) <= 2, "Invalid 'temperature': decimal above maximum value.",
            "temperature")
    require(not isinstance(body.get("stop"), list) or len(body["stop"]) <= 4, "Invalid 'stop': array too long.", "stop")
    for i, tool in enumerate(body.get("tools") or []):
        if tool["type"] == "function":
            openai_function(tool["function"], f"tools[{i}].function", tool["function"].get("strict"))
    require(body.get("tools") != [], "Invalid 'tools': empty array. Expected an array with minimum length 1.", "tools")
    require("tool_choice" not in body or body.get("tools") or body["tool_choice"] in (None, "none"),
            "Invalid value for 'tool_choice': 'tool_choice' is only allowed when 'tools' are specified.", "tool_choice")
    require("parallel_tool_calls" not in body or body.get("tools"),
            "Invalid value for 'parallel_tool_calls': 'parallel_tool_calls' is only allowed when 'tools' are"
            " specified.", "parallel_tool_calls")
    form = body.get("response_format") or {}
    json_in_text(form.get("type"), body["messages"])
    if form.get("type") == "json_schema":
        schema = form["json_schema"]
        require(OPENAI_NAME.fullmatch(schema["name"]), "Invalid 'response_format.json_schema.name'.",
                "response_format.json_schema.name")
        if schema.get("strict"):
            strict_schema(schema.get("schema"), "response_format.json_schema.schema")
    chat_calls(messages)
    data_urls(messages, "messages")


def data_urls(value, path):
    """Checks the data of all URLs within a request."""
    if isinstance(value, list):
        for i, item in enumerate(value):
            data_urls(item, f"{path}[{i}]")
    elif isinstance(value, dict):
        for name, item in value.items():
            data_urls(item, f"{path}.{name}")
    elif isinstance(value, str) and value.startswith("data:") and ";base64," in value:
        standard_base64(value.partition(";base64,")[2], path)


def chat_calls(messages):
    """Every call is answered by a tool message that follows its assistant message."""
    open_calls = []
    for i, message in enumerate(messages):
        role = message["role"]
        if role == "tool":
            # Source: https://github.com/miurla/morphic/issues/136
            require(message["tool_call_id"] in open_calls,
                    "Invalid parameter: messages with role 'tool' must be a response to a preceeding message with"
                    " 'tool_calls'.", f"messages.[{i}].role")
            open_calls.remove(message["tool_call_id"])
            continue
        # Source: https://github.com/RamiAwar/dataline/issues/172
        require(not open_calls, "An assistant message with 'tool_calls' must be followed by tool messages responding"
                f" to each 'tool_call_id'. The following tool_call_ids did not have response messages:"
                f" {', '.join(open_calls)}", f"messages.[{i}].role")
        if role == "assistant":
            calls = message.get("tool_calls")
            require(calls != [], f"Invalid 'messages[{i}].tool_calls': empty array.", f"messages[{i}].tool_calls")
            require(message.get("content") is not None or calls or message.get("refusal")
                    or message.get("function_call") or message.get("audio"),
                    f"Invalid value for 'content': expected a string, got null.", f"messages.[{i}].content")
            for j, call in enumerate(calls or []):
                # Source: https://github.com/agno-agi/agno/issues/5382
                require(len(call["id"]) <= 40, f"Invalid 'messages[{i}].tool_calls[{j}].id': string too long. Expected"
                        f" a string with maximum length 40, but got a string with length {len(call['id'])} instead.",
                        f"messages[{i}].tool_calls[{j}].id", "string_above_max_length")
                open_calls.append(call["id"])
    require(not open_calls, "An assistant message with 'tool_calls' must be followed by tool messages responding to"
            f" each 'tool_call_id'. The following tool_call_ids did not have response messages:"
            f" {', '.join(open_calls)}", "messages")


# The first letters of the ids of items. Source: https://github.com/Wei-Shaw/sub2api/issues/3785
ITEM_IDS = {"function_call": "fc", "reasoning": "rs", "custom_tool_call": "ctc"}
CALLS = {"function_call": "function_call_output", "custom_tool_call": "custom_tool_call_output",
         "local_shell_call": "local_shell_call_output", "tool_search_call": "tool_search_output"}


def completed_item(item):
    """Adds the fields that the API does not require but the SDK's types do, and removes those that only the API
    knows: Codex sends the ids of all messages."""
    if not isinstance(item, dict):
        return item
    # Codex sends `"content": null` in reasoning items.
    item = {name: value for name, value in item.items() if value is not None or item.get("type") != "reasoning"}
    if item.get("type") == "reasoning":
        return {"id": "rs_", **item}
    if item.get("type", "message") != "message":
        return item
    if item.get("role") != "assistant" or not isinstance(item.get("content"), list):
        return {name: value for name, value in item.items() if name != "id"}
    content = [{"annotations": [], **part} if part.get("type") == "output_text" else part for part in item["content"]]
    return {"id": "msg_", "status": "completed", "type": "message", **item, "content": content}


def responses(body, _=None):
    """Checks a request for `POST /v1/responses`."""
    items = body.get("input")
    items = [{"role": "user", "content": items}] if isinstance(items, str) else items or []
    tools = body.get("tools")
    if isinstance(tools, list):
        # The API takes a missing `strict` as true and missing parameters as none.
        tools = [{"strict": None, "parameters": None, **tool} if tool.get("type") == "function" else tool
                 for tool in tools]
    typed({**body, "input": [completed_item(item) for item in items], **({"tools": tools} if tools else {})},
          response_create_params.ResponseCreateParamsBase,
          # Codex sends `client_metadata`, which the published types do not have.
          {"stream": typing.Optional[bool], "client_metadata": typing.Dict[str, str]})
    # Source: https://github.com/earendil-works/pi/issues/6265
    limit = body.get("max_output_tokens")
    require(limit is None or limit >= 16, "Invalid 'max_output_tokens': integer below minimum value. Expected a value"
            f" >= 16, but got {limit} instead.", "max_output_tokens", "integer_below_min_value")
    for i, tool in enumerate(body.get("tools") or []):
        if tool["type"] == "function":
            openai_function(tool, f"tools[{i}]", tool.get("strict"))
    form = (body.get("text") or {}).get("format") or {}
    json_in_text(form.get("type"), body["input"])
    if form.get("type") == "json_schema":
        require(OPENAI_NAME.fullmatch(form["name"]), "Invalid 'text.format.name'.", "text.format.name")
        if form.get("strict"):
            strict_schema(form["schema"], "text.format.schema")
    response_items(items, body.get("previous_response_id") or body.get("conversation"))
    data_urls(items, "input")


def response_items(items, continues):
    calls, outputs = set(), set()
    for i, item in enumerate(items):
        kind = item.get("type") or "message"
        prefix = "msg" if kind == "message" and item.get("role") == "assistant" else ITEM_IDS.get(kind)
        if item.get("id") and prefix:
            require(item["id"].startswith(prefix), f"Invalid 'input[{i}].id': '{item['id']}'. Expected an ID that"
                    f" begins with '{prefix}'.", f"input[{i}].id", "invalid_value")
        if kind == "message" and isinstance(item["content"], list):
            # Source: https://github.com/epam/ai-dial-adapter-openai/issues/511
            for part in item["content"]:
                is_output = part["type"] in ("output_text", "refusal")
                require(is_output == (item["role"] == "assistant"), f"Invalid value: '{part['type']}'.",
                        f"input[{i}].content", "invalid_value")
        if kind in CALLS and item.get("call_id"):
            calls.add((CALLS[kind], item["call_id"]))
        if kind in CALLS.values() and item.get("call_id"):
            outputs.add((kind, item["call_id"]))
            require(continues or (kind, item["call_id"]) in calls,
                    f"No tool call found for function call output with call_id {item['call_id']}.", "input")
        if kind == "reasoning":
            reasoning_item(items, i)
    for _, name in sorted(calls - outputs):
        # Source: https://github.com/tjardoo/openai-client/pull/124
        raise Rejected(f"No tool output found for function call {name}.", "input")


def reasoning_item(items, i):
    item = items[i]
    content = item.get("encrypted_content")
    # Source: https://github.com/openai/codex/issues/8145
    require(content is None or content in issued,
            f"The encrypted content {str(content)[:4]}...{str(content)[-4:]} could not be verified.", None,
            "invalid_encrypted_content")
    # Source: the description of `store` in the SDK: items are available later only if the response was stored.
    require(content or item.get("id") in issued, f"Item with id '{item.get('id')}' not found.", "input")
    # Source: https://github.com/openai/openai-node/issues/1567
    following = next((n for n in items[i + 1:] if n.get("type") != "reasoning"), {})
    require(following.get("role", "assistant") == "assistant" and following
            and following.get("type") not in CALLS.values(),
            f"Item '{item.get('id')}' of type 'reasoning' was provided without its required following item.", "input")


# Anthropic.

# Sources: https://github.com/modelcontextprotocol/modelcontextprotocol/issues/1345 and
# https://github.com/maximhq/bifrost/issues/5097
ANTHROPIC_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")
ANTHROPIC_ID = re.compile(r"[a-zA-Z0-9_-]+")
CACHED_MAX = 4


def is_before(model, major, minor):
    """Returns whether a Claude model is older than a version."""
    numbers = [int(n) for n in re.findall(r"(?<![\d])\d{1,2}(?!\d)", model)]
    return tuple((numbers + [0, 0])[:2]) < (major, minor)


def anthropic(body, headers):
    """Checks a request for `POST /v1/messages`."""
    is_beta = "anthropic-beta" in headers
    kind = (beta_message_create_params if is_beta else message_create_params).MessageCreateParamsBase
    # The SDK has removed these fields, but models before 4.7 accept them:
    # https://platform.claude.com/docs/en/build-with-claude/thinking#sampling-parameters
    sampling = {"temperature": float, "top_p": float, "top_k": int}
    typed(body, kind, {"stream": bool, **sampling})
    model, thinking = body["model"], body.get("thinking") or {}
    for name in sampling:
        require(name not in body or is_before(model, 4, 7), f"`{name}` is deprecated for this model.")
    require(0 <= body.get("temperature", 0) <= 1, "temperature: range: 0..1")
    if thinking.get("type") == "enabled":
        # Source: https://platform.claude.com/docs/en/build-with-claude/extended-thinking
        require(is_before(model, 4, 7), '"thinking.type.enabled" is not supported for this model. Use'
                ' "thinking.type.adaptive" and "output_config.effort" to control thinking behavior.')
        require(thinking["budget_tokens"] >= 1024,
                "thinking.enabled.budget_tokens: Input should be greater than or equal to 1024")
        require(thinking["budget_tokens"] < body["max_tokens"] or "interleaved" in headers.get("anthropic-beta", ""),
                "`max_tokens` must be greater than `thinking.budget_tokens`.")
    if thinking.get("type") == "adaptive":
        require(not is_before(model, 4, 6), "adaptive thinking is not supported on this model")
    if thinking.get("type") in ("enabled", "adaptive"):
        require(body.get("temperature", 1) == 1 and "top_k" not in body,
                "`temperature` may only be set to 1 when thinking is enabled.")
        require((body.get("tool_choice") or {}).get("type", "auto") in ("auto", "none"),
                "Thinking may not be enabled when tool_choice forces tool use.")
    anthropic_tools(body)
    anthropic_turns(body["messages"])
    # Source: https://github.com/tghamm/Anthropic.SDK/issues/50
    marks = json.dumps(body).count('"cache_control": {')
    require(marks <= CACHED_MAX, f"A maximum of 4 blocks with cache_control may be provided. Found {marks}.")
    for i, block in enumerate(parts(body.get("system"))):
        require(block["text"], f"system.{i}: text content blocks must be non-empty")
    require(all(text.strip() for text in body.get("stop_sequences") or []),
            "stop_sequences: each stop sequence must contain non-whitespace")


def anthropic_tools(body):
    names = [tool["name"] for tool in body.get("tools") or [] if "name" in tool]
    require(len(names) == len(set(names)), "tools: Tool names must be unique.")
    for i, tool in enumerate(body.get("tools") or []):
        if tool.get("type", "custom") == "custom":
            require(ANTHROPIC_NAME.fullmatch(tool["name"]),
                    f"tools.{i}.custom.name: String should match pattern '^[a-zA-Z0-9_-]{{1,128}}$'")
            require(tool["input_schema"].get("type") == "object",
                    f"tools.{i}.custom.input_schema.type: Input should be 'object'")
    choice = body.get("tool_choice") or {}
    require("tools" in body or not choice, "tool_choice may only be specified while providing tools.")
    require(choice.get("type") != "tool" or choice["name"] in names, f"Tool '{choice.get('name')}' not found in provided tools")


def anthropic_turns(messages):
    """Each `tool_use` has its result at the start of the next user turn, and the reverse.

    Sources: https://platform.claude.com/docs/en/agents-and-tools/tool-use/handle-tool-calls and
    https://github.com/openai/openai-agents-python/issues/1797
    """
    require(messages, "messages: at least one message is required")
    require(messages[0]["role"] != "assistant", 'messages: first message must use the "user" role')
    # Consecutive messages of a role are one turn (the description of `messages` in the SDK).
    turns = []
    for i, message in enumerate(messages):
        content = parts(message["content"])
        is_last = i == len(messages) - 1 and message["role"] == "assistant"
        require(content or is_last, f"messages.{i}: all messages must have non-empty content except for the optional"
                " final assistant message")
        if turns and turns[-1][0] == message["role"]:
            turns[-1][1].extend((i, block) for block in content)
        elif message["role"] != "system":
            turns.append((message["role"], [(i, block) for block in content]))
    open_uses = []
    for role, blocks in turns:
        results = [block["tool_use_id"] for _, block in blocks if block["type"] == "tool_result"]
        place = f"messages.{blocks[0][0]}" if blocks else "messages"
        for name in results:
            require(name in open_uses, f"{place}.content.0: unexpected `tool_use_id` found in `tool_result` blocks:"
                    f" {name}. Each `tool_result` block must have a corresponding `tool_use` block in the previous"
                    " message.")
        require(len(results) == len(set(results)), f"{place}: each tool_use must have a single result.")
        missing = [name for name in open_uses if name not in results]
        require(not missing, f"{place}: `tool_use` ids were found without `tool_result` blocks immediately after:"
                f" {', '.join(missing)}. Each `tool_use` block must have a corresponding `tool_result` block in the"
                " next message.")
        require(all(block["type"] == "tool_result" for _, block in blocks[:len(results)]),
                f"{place}: tool_result blocks must come first in the content of a user message.")
        open_uses = [anthropic_block(role, i, block) for i, block in blocks]
        open_uses = [name for name in open_uses if name]
    require(not open_uses, f"`tool_use` ids were found without `tool_result` blocks immediately after:"
            f" {', '.join(open_uses)}.")


def anthropic_block(role, i, block):
    """Checks a block. Returns the id of a `tool_use`."""
    kind = block["type"]
    require(kind != "text" or block["text"], f"messages.{i}: text content blocks must be non-empty")
    require(kind not in ("tool_use", "thinking", "redacted_thinking") or role == "assistant",
            f"messages.{i}: `{kind}` blocks can only be in `assistant` messages")
    require(kind not in ("tool_result", "image", "document") or role == "user",
            f"messages.{i}: `{kind}` blocks can only be in `user` messages")
    # Source: https://github.com/anthropics/claude-code/issues/10627
    if kind == "thinking":
        require(block["signature"] in issued, f"messages.{i}.content.0: Invalid `signature` in `thinking` block")
    if kind == "redacted_thinking":
        require(block["data"] in issued, f"messages.{i}.content.0: Invalid `data` in `redacted_thinking` block")
    for inner in [block, *(parts(block.get("content")) if kind == "tool_result" else [])]:
        if inner["type"] in ("image", "document") and inner["source"]["type"] == "base64":
            standard_base64(inner["source"]["data"], f"messages.{i}.{inner['type']}.source.base64.data")
    if kind == "tool_use":
        require(ANTHROPIC_ID.fullmatch(block["id"]),
                f"messages.{i}.content.0.tool_use.id: String should match pattern '^[a-zA-Z0-9_-]+$'")
        return block["id"]


# Gemini.

# Source: the FAQ of https://ai.google.dev/gemini-api/docs/thought-signatures
DUMMY_SIGNATURES = {b"context_engineering_is_the_way_to_go", b"skip_thought_signature_validator"}
# Source: the description of FunctionDeclaration.name in the SDK: "Must start with a letter or an underscore. Must be
# a-z, A-Z, 0-9, or contain underscores, dots, colons and dashes, with a maximum length of 128".
GEMINI_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_.:-]{0,127}")


class GenerateContent(pydantic.BaseModel):
    """The body of generateContent: https://ai.google.dev/api/generate-content#method:-models.generatecontent"""

    model_config = pydantic.ConfigDict(
        extra="forbid", alias_generator=pydantic.alias_generators.to_camel, populate_by_name=True)
    contents: list[genai.Content]
    system_instruction: genai.Content | None = None
    tools: list[genai.Tool] | None = None
    tool_config: genai.ToolConfig | None = None
    safety_settings: list[genai.SafetySetting] | None = None
    generation_config: genai.GenerationConfig | None = None
    cached_content: str | None = None
    service_tier: str | None = None
    store: bool | None = None
    labels: dict[str, str] | None = None
    model: str | None = None


# Fields that only Google's enterprise platform has. Source: the `_to_mldev` converters of the SDK's models.py.
ENTERPRISE = {"partialArgs", "willContinue", "streamFunctionCallArguments", "routingConfig", "modelSelectionConfig",
              "audioTimestamp", "enterpriseWebSearch", "retrieval", "method"}


def bytes_of(signature):
    """Decodes bytes as Google's JSON does: both alphabets of Base64, with and without padding."""
    text = signature.replace("-", "+").replace("_", "/")
    return base64.b64decode(text + "=" * (-len(text) % 4))


def gemini(body, model):
    """Checks a request for `:generateContent` and `:streamGenerateContent`."""
    try:
        request = GenerateContent.model_validate(body)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(step) for step in first["loc"])
        raise Rejected(f"Invalid JSON payload received. {place}: {first['msg']}") from error
    for content in request.contents:
        require(content.role in (None, "user", "model", "function"),
                "Please use a valid role: user, model.")
        require(content.parts, "* GenerateContentRequest.contents: parts must not be empty.")
    require(request.contents, "* GenerateContentRequest.contents: contents is not specified")
    names = []
    for tool in request.tools or []:
        for function in tool.function_declarations or []:
            require(GEMINI_NAME.fullmatch(function.name or ""), "* GenerateContentRequest.tools[0]."
                    f"function_declarations[{len(names)}].name: Invalid function name.")
            require(function.parameters is None or function.parameters_json_schema is None,
                    "parameters and parametersJsonSchema are mutually exclusive.")
            names.append(function.name)
    require(len(names) == len(set(names)), "Duplicate function declaration found.")
    config = request.generation_config
    if config and (config.response_schema or config.response_json_schema):
        # Source: the descriptions of the two fields in the SDK.
        require(config.response_mime_type in ("application/json", "text/x.enum"),
                "* GenerateContentRequest.generation_config.response_mime_type: must be application/json with a schema")
        require(not (config.response_schema and config.response_json_schema),
                "responseSchema and responseJsonSchema are mutually exclusive.")
    if config and config.temperature is not None:
        require(0 <= config.temperature <= 2, "* temperature: must be in the range [0.0, 2.0]")
    require(not (set(keys(body)) & ENTERPRISE), "Invalid JSON payload received. Unknown name.")
    gemini_turns(request.contents)
    gemini_signatures(body["contents"], model)


def keys(value):
    """Yields the names of fields, except those within arguments, results and schemas."""
    if isinstance(value, list):
        for item in value:
            yield from keys(item)
    if isinstance(value, dict):
        for name, item in value.items():
            yield name
            if name not in ("args", "response", "parameters", "parametersJsonSchema", "responseSchema",
                            "responseJsonSchema", "metadata", "labels"):
                yield from keys(item)


def gemini_turns(contents):
    """Sources: https://github.com/google-gemini/gemini-cli/issues/4504 and 26486."""
    open_calls = None
    previous = None
    for content in contents:
        calls = [part.function_call for part in content.parts if part.function_call]
        results = [part.function_response for part in content.parts if part.function_response]
        require(not results or open_calls,
                "Please ensure that function response turn comes immediately after a function call turn.")
        require(not open_calls or len(results) == len(open_calls), "Please ensure that the number of function response"
                " parts is equal to the number of function call parts of the function call turn.")
        for call, result in zip(open_calls or [], results):
            require(result.name in [c.name for c in open_calls], f"Unknown function name {result.name}.")
            require(call.id is None or result.id is None or result.id in [c.id for c in open_calls],
                    f"Function response id {result.id} has no function call.")
        require(not calls or content.role == "model" and (previous is None or previous.role != "model")
                and previous is not None, "Please ensure that function call turn comes immediately after a user turn"
                " or after a function response turn.")
        require(not results or content.role != "model", "Function responses must have the role user.")
        for result in results:
            require(result.name, "* GenerateContentRequest.contents.parts.function_response.name: Name cannot be empty.")
        open_calls, previous = calls, content
    require(not open_calls, "Please ensure that the number of function response parts is equal to the number of"
            " function call parts of the function call turn.")


def gemini_signatures(contents, model):
    """Signatures are Gemini's own or a documented dummy; Gemini 3 needs one for the first call of a step.

    Source: https://ai.google.dev/gemini-api/docs/thought-signatures. Only the steps after the last user text count.
    """
    current = 0
    for i, content in enumerate(contents):
        for part in content["parts"]:
            signature = part.get("thoughtSignature") or part.get("thought_signature")
            if signature:
                try:
                    known = bytes_of(signature)
                except ValueError:
                    raise Rejected("Invalid value at thought_signature (TYPE_BYTES), Base64 decoding failed")
                require(known in issued or known in DUMMY_SIGNATURES or signature.encode() in DUMMY_SIGNATURES,
                        "Thought signature is not valid.")
            if content.get("role") != "model" and "text" in part:
                current = i
    if not re.match(r"gemini-[3-9]", model):
        return
    for i, content in enumerate(contents[current:], current):
        first = next((part for part in content["parts"] if "functionCall" in part or "function_call" in part), None)
        require(first is None or first.get("thoughtSignature") or first.get("thought_signature"),
                f"Function call is missing a thought_signature in functionCall parts. Additional data, function call"
                f" in content {i}.")
