"""All pairs of a client's API and a provider's API, with the official SDKs as judges.

Each scenario (`scenarios.py`) runs once whole and once streamed for each pair. What the SDK parses must be what the
upstream said, in the terms of the client's API, and each row of the ledger must have the counts of the upstream.
Prints a table, and then the differences. Arguments: the upstream's address, flowledger's address, a key of
flowledger, the token of the server; further arguments select pairs (`chat-gemini`) or scenarios. Without a key, the
clients call the upstream directly, which tests the judges. tests/interop.rs starts both servers.
"""

import base64
import hashlib
import json
import sys
import time
import urllib.request

import anthropic
import openai
from google import genai
from google.genai import errors, types
from scenarios import ANSWER, APIS, BEFORE_CALLS, CALLS, DOCUMENT, REFUSAL, STOP, THOUGHT

UPSTREAM, BASE, *REST = sys.argv[1:]
KEY, TOKEN = (REST + ["", ""])[:2]
CHOSEN = REST[2:]
TIMEOUT_S = 20
MODELS = {"chat": "deepseek-reasoner", "responses": "gpt-5", "messages": "claude-sonnet-4-5", "gemini": "gemini-2.5-flash"}
# Models with other rules: no sampling and adaptive thinking (messages), ids and signatures of calls (gemini).
NEWER = {"chat": "o4-mini", "responses": "gpt-5", "messages": "claude-opus-5", "gemini": "gemini-3-flash"}
# Models with sampling parameters.
SAMPLED = MODELS | {"chat": "gpt-4o-mini", "responses": "gpt-4o-mini"}
PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")
PDF = b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF\xff\xfe"
SYSTEM = "You are brief."
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string", "description": "A city"}},
              "required": ["city"], "additionalProperties": False}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}, "population": {"type": "integer"}},
          "required": ["city", "population"], "additionalProperties": False}
DESCRIPTION = "Returns the weather of a city."


def url(data, media_type):
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


class Got:
    """What the SDK parsed, in common terms: `calls` as (id, name, arguments), `stop` in the client's own term,
    `usage` as (input with cache, cache reads, cache writes or none, output, reasoning or none)."""

    def __init__(self):
        self.text, self.thought, self.refusal, self.calls = "", "", "", []
        self.stop = self.usage = self.history = None
        self.headers = {}


# The clients. `ask` takes a prompt, the history so far, and options that each API names in its own way; `history` of
# the result continues the conversation as the SDK's users do: the parsed answer is sent back.

class Chat:
    stops = {"end": "stop", "calls": "tool_calls", "length": "length", "sequence": "stop", "filter": "content_filter"}

    def __init__(self):
        self.sdk = openai.OpenAI(base_url=f"{BASE}/v1", api_key=KEY or "x", timeout=TIMEOUT_S, max_retries=0,
                                 _strict_response_validation=True)

    def turn(self, prompt, image=None, document=None):
        content = [{"type": "text", "text": prompt}]
        if image:
            content.append({"type": "image_url", "image_url": {"url": url(image, "image/png")}})
        if document:
            file = {"filename": "a.pdf", "file_data": url(document, "application/pdf")}
            content.append({"type": "file", "file": file})
        return [{"role": "user", "content": content if image or document else prompt}]

    def results(self, answers):
        return [{"role": "tool", "tool_call_id": call[0], "content": text} for call, text in answers]

    def options(self, tools=False, name="get_weather", schema=False, thinks=False, stop=False, choice=None, settings=False,
                newer=False):
        tool = {"type": "function", "function": {
            "name": name, "description": DESCRIPTION, "parameters": PARAMETERS}}
        form = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA, "strict": True}}
        return {
            **({"tools": [tool]} if tools else {}),
            **({"response_format": form} if schema else {}),
            **({"reasoning_effort": "medium"} if thinks else {}),
            **({"stop": [STOP]} if stop else {}),
            **({"tool_choice": choice if choice == "required" else {"type": "function", "function": {"name": choice}}}
               if choice else {}),
            **({"max_completion_tokens": 4321} if settings else {}),
            **({"temperature": 0.5} if settings and not newer else {}),
        }

    def ask(self, model, history, streamed, system=None, headers=None, more=None, **options):
        system = [{"role": "system", "content": system}] if system else []
        request = dict(model=model, messages=[*system, *history], extra_headers=headers or {}, **(more or {}),
                       **self.options(newer=model.endswith(NEWER["messages"]), **options))
        got = Got()
        if streamed:
            request |= {"stream": True, "stream_options": {"include_usage": True}}
        raw = self.sdk.chat.completions.with_raw_response.create(**request)
        got.headers = raw.headers
        if streamed:
            message = self.joined(raw.parse(), got)
        else:
            parsed = raw.parse()
            choice, usage = parsed.choices[0], parsed.usage
            message, got.stop = choice.message, choice.finish_reason
            self.count(got, usage)
            message = message.model_dump(exclude_none=True)
        got.text, got.refusal = message.get("content") or "", message.get("refusal") or ""
        got.thought = message.get("reasoning_content") or ""
        got.calls = [(call["id"], call["function"]["name"], json.loads(call["function"]["arguments"]))
                     for call in message.get("tool_calls") or []]
        got.history = [*history, message]
        return got

    def joined(self, stream, got):
        message, calls = {"role": "assistant"}, {}
        for chunk in stream:
            if chunk.usage:
                self.count(got, chunk.usage)
            for choice in chunk.choices:
                got.stop = choice.finish_reason or got.stop
                delta = choice.delta.model_dump(exclude_none=True)
                for name in ("content", "refusal", "reasoning_content"):
                    if delta.get(name):
                        message[name] = message.get(name, "") + delta[name]
                        got.text += delta[name] if name == "content" else ""
                for detail in delta.get("reasoning_details") or []:
                    self.add_detail(message.setdefault("reasoning_details", []), detail)
                for part in delta.get("tool_calls") or []:
                    call = calls.setdefault(part["index"], {"type": "function", "function": {"arguments": ""}})
                    call["id"] = part.get("id") or call["id"]
                    function = part.get("function") or {}
                    call["function"]["name"] = function.get("name") or call["function"]["name"]
                    call["function"]["arguments"] += function.get("arguments") or ""
        if calls:
            message["tool_calls"] = [calls[index] for index in sorted(calls)]
        return message

    def add_detail(self, details, detail):
        """Joins the thoughts of a stream with their signatures, as clients of OpenRouter do:
        https://openrouter.ai/docs/guides/best-practices/reasoning-tokens"""
        last = details[-1] if details else None
        if last is None or last.get("index") != detail.get("index"):
            return details.append(dict(detail))
        for name, value in detail.items():
            is_text = name in ("text", "summary", "data", "signature")
            last[name] = last.get(name, "") + value if is_text else value

    def count(self, got, usage):
        same(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens, "total tokens")
        got.usage = (usage.prompt_tokens, usage.prompt_tokens_details.cached_tokens, None,
                     usage.completion_tokens, usage.completion_tokens_details.reasoning_tokens)


class Responses(Chat):
    stops = {"end": "completed", "calls": "completed", "length": "max_output_tokens", "sequence": "completed",
             "filter": "content_filter"}

    def turn(self, prompt, image=None, document=None):
        content = [{"type": "input_text", "text": prompt}]
        if image:
            content.append({"type": "input_image", "detail": "auto", "image_url": url(image, "image/png")})
        if document:
            content.append({"type": "input_file", "filename": "a.pdf",
                            "file_data": url(document, "application/pdf")})
        return [{"role": "user", "content": content}]

    def results(self, answers):
        return [{"type": "function_call_output", "call_id": call[0], "output": text} for call, text in answers]

    def options(self, tools=False, name="get_weather", schema=False, thinks=False, stop=False, choice=None, settings=False,
                newer=False):
        tool = {"type": "function", "name": name, "description": DESCRIPTION, "parameters": PARAMETERS,
                "strict": True}
        return {
            **({"tools": [tool]} if tools else {}),
            **({"text": {"format": {"type": "json_schema", "name": "city", "schema": SCHEMA, "strict": True}}}
               if schema else {}),
            **({"reasoning": {"effort": "medium", "summary": "auto"}} if thinks else {}),
            **({"tool_choice": choice if choice == "required" else {"type": "function", "name": choice}}
               if choice else {}),
            **({"max_output_tokens": 4321} if settings else {}),
            **({"temperature": 0.5} if settings and not newer else {}),
        }

    def ask(self, model, history, streamed, system=None, headers=None, more=None, **options):
        request = dict(model=model, input=history, store=False, include=["reasoning.encrypted_content"],
                       extra_headers=headers or {}, **(more or {}), **({"instructions": system} if system else {}),
                       **self.options(newer=model.endswith(NEWER["messages"]), **options))
        got = Got()
        streamed_text = ""
        if streamed:
            raw = self.sdk.responses.with_raw_response.create(stream=True, **request)
            got.headers = raw.headers
            items, numbers = [], []
            for event in raw.parse():
                numbers.append(event.sequence_number)
                if event.type == "response.output_text.delta":
                    got.text += event.delta
                elif event.type == "response.output_item.done":
                    items.append(event.item)
                elif event.type in ("response.completed", "response.incomplete"):
                    response = event.response
            streamed_text = got.text
            same(numbers, list(range(len(numbers))), "sequence numbers")
            same([item.model_dump() for item in items], [item.model_dump() for item in response.output],
                 "items of the stream and of the response")
        else:
            raw = self.sdk.responses.with_raw_response.create(**request)
            got.headers, response = raw.headers, raw.parse()
        self.read(response, got)
        if streamed:
            same(streamed_text, got.text, "text of the stream and of the response")
        got.history = [*history, *(item.model_dump(exclude_none=True) for item in response.output)]
        return got

    def read(self, response, got):
        got.text = response.output_text
        for item in response.output:
            if item.type == "reasoning":
                got.thought += "".join(part.text for part in item.summary)
            elif item.type == "function_call":
                got.calls.append((item.call_id, item.name, json.loads(item.arguments)))
            elif item.type == "message":
                got.refusal += "".join(part.refusal for part in item.content if part.type == "refusal")
        got.stop = response.incomplete_details.reason if response.incomplete_details else response.status
        usage = response.usage
        same(usage.total_tokens, usage.input_tokens + usage.output_tokens, "total tokens")
        got.usage = (usage.input_tokens, usage.input_tokens_details.cached_tokens, None, usage.output_tokens,
                     usage.output_tokens_details.reasoning_tokens)


class Messages:
    stops = {"end": "end_turn", "calls": "tool_use", "length": "max_tokens", "sequence": "stop_sequence",
             "filter": "refusal"}

    def __init__(self):
        self.sdk = anthropic.Anthropic(base_url=BASE, api_key=KEY or "x", timeout=TIMEOUT_S, max_retries=0,
                                       _strict_response_validation=True)

    def turn(self, prompt, image=None, document=None):
        content = [{"type": "text", "text": prompt}]
        if image:
            content.insert(0, self.block("image", "image/png", image))
        if document:
            content.insert(0, self.block("document", "application/pdf", document))
        return [{"role": "user", "content": content}]

    def block(self, kind, media_type, data):
        source = {"type": "base64", "media_type": media_type, "data": base64.b64encode(data).decode()}
        return {"type": kind, "source": source}

    def results(self, answers):
        return [{"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": call[0], "content": text} for call, text in answers]}]

    def options(self, tools=False, name="get_weather", schema=False, thinks=False, stop=False, choice=None, settings=False,
                newer=False):
        tool = {"name": name, "description": DESCRIPTION, "input_schema": PARAMETERS}
        return {
            **({"tools": [tool]} if tools else {}),
            **({"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}} if schema else {}),
            **({"thinking": {"type": "adaptive", "display": "summarized"} if newer else
                {"type": "enabled", "budget_tokens": 2000}} if thinks else {}),
            **({"stop_sequences": [STOP]} if stop else {}),
            **({"tool_choice": {"type": "any"} if choice == "required" else {"type": "tool", "name": choice}}
               if choice else {}),
            **({"extra_body": {"temperature": 0.5}} if settings and not newer else {}),
        }

    def ask(self, model, history, streamed, system=None, headers=None, more=None, **options):
        request = dict(model=model, messages=history, max_tokens=4321, extra_headers=headers or {}, **(more or {}),
                       **({"system": system} if system else {}),
                       **self.options(newer=model.endswith(NEWER["messages"]), **options))
        got = Got()
        if streamed:
            with self.sdk.messages.stream(**request) as stream:
                got.headers = stream.response.headers
                for text in stream.text_stream:
                    got.text += text
                message = stream.get_final_message()
            got.text = ""
        else:
            raw = self.sdk.messages.with_raw_response.create(**request)
            got.headers, message = raw.headers, raw.parse()
        for block in message.content:
            if block.type == "text":
                got.text += block.text
            elif block.type == "thinking":
                got.thought += block.thinking
            elif block.type == "tool_use":
                got.calls.append((block.id, block.name, block.input))
        got.stop, usage = message.stop_reason, message.usage
        reads, writes = usage.cache_read_input_tokens or 0, usage.cache_creation_input_tokens or 0
        details = getattr(usage, "output_tokens_details", None)
        got.usage = (usage.input_tokens + reads + writes, reads, writes, usage.output_tokens,
                     details.thinking_tokens if details else None)
        got.history = [*history, {"role": "assistant", "content": message.content}]
        return got


class Gemini:
    stops = {"end": "STOP", "calls": "STOP", "length": "MAX_TOKENS", "sequence": "STOP", "filter": "SAFETY"}

    def __init__(self):
        options = types.HttpOptions(base_url=BASE, timeout=TIMEOUT_S * 1000)
        self.sdk = genai.Client(api_key=KEY or "x", vertexai=False, http_options=options)

    def turn(self, prompt, image=None, document=None):
        made = [types.Part(text=prompt)]
        if image:
            made.append(types.Part.from_bytes(data=image, mime_type="image/png"))
        if document:
            made.append(types.Part.from_bytes(data=document, mime_type="application/pdf"))
        return [types.Content(role="user", parts=made)]

    def results(self, answers):
        return [types.Content(role="user", parts=[types.Part(function_response=types.FunctionResponse(
            id=call[0], name=call[1], response={"output": text})) for call, text in answers])]

    def options(self, tools=False, name="get_weather", schema=False, thinks=False, stop=False, choice=None, settings=False,
                newer=False):
        function = types.FunctionDeclaration(
            name=name, description=DESCRIPTION, parameters_json_schema=PARAMETERS)
        named = {"allowed_function_names": [choice]} if choice != "required" else {}
        calling = types.FunctionCallingConfig(mode="ANY", **named) if choice else None
        return {
            **({"tools": [types.Tool(function_declarations=[function])]} if tools else {}),
            **({"response_mime_type": "application/json", "response_json_schema": SCHEMA} if schema else {}),
            **({"thinking_config": types.ThinkingConfig(include_thoughts=True, thinking_budget=2000)}
               if thinks else {}),
            **({"stop_sequences": [STOP]} if stop else {}),
            **({"tool_config": types.ToolConfig(function_calling_config=calling)} if choice else {}),
            **({"max_output_tokens": 4321} if settings else {}),
            **({"temperature": 0.5} if settings and not newer else {}),
        }

    def ask(self, model, history, streamed, system=None, headers=None, more=None, **options):
        config = types.GenerateContentConfig(
            system_instruction=system, http_options=types.HttpOptions(headers=headers or {}),
            automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
            **self.options(newer=model.endswith(NEWER["messages"]), **options))
        got = Got()
        request = dict(model=model, contents=history, config=config)
        if streamed:
            chunks = []
            for chunk in self.sdk.models.generate_content_stream(**request):
                chunks.append(chunk)
                got.text += "".join(p.text or "" for c in chunk.candidates or [] for p in c.content.parts or [])
            got.text = ""
        else:
            chunks = [self.sdk.models.generate_content(**request)]
        got.headers = chunks[0].sdk_http_response.headers or {}
        parts = []
        for chunk in chunks:
            candidate = chunk.candidates[0]
            parts += (candidate.content and candidate.content.parts) or []
            got.stop = candidate.finish_reason.value if candidate.finish_reason else got.stop
        for part in parts:
            if part.function_call:
                got.calls.append((part.function_call.id, part.function_call.name, part.function_call.args))
            elif part.thought:
                got.thought += part.text
            else:
                got.text += part.text or ""
        usage = chunks[-1].usage_metadata
        thoughts = usage.thoughts_token_count or 0
        output = (usage.candidates_token_count or 0) + thoughts
        same(usage.total_token_count, usage.prompt_token_count + output, "total tokens")
        got.usage = (usage.prompt_token_count, usage.cached_content_token_count or 0, None, output, thoughts)
        got.history = [*history, types.Content(role="model", parts=parts)]
        return got


CLIENTS = {"chat": Chat, "responses": Responses, "messages": Messages, "gemini": Gemini}


class Difference(Exception):
    pass


def same(actual, expected, what):
    if actual != expected:
        raise Difference(f"{what}: {actual!r} is not {expected!r}")


def get(url, token=""):
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
        return json.load(response)


class Pair:
    """A client and a provider, in one mode."""

    def __init__(self, client_api, provider, streamed):
        self.client_api, self.provider, self.streamed = client_api, provider, streamed
        self.client = CLIENTS[client_api]()
        self.names = MODELS
        self.tag = ""

    def ask(self, history, prompt=None, image=None, document=None, **options):
        if prompt:
            history = [*history, *self.client.turn(prompt, image, document)]
        return self.client.ask(self.model(), history, self.streamed, headers={"X-Flowledger-Tags": self.tag}, **options)

    def model(self):
        name = self.names[self.provider]
        return f"only-{self.provider}/{name}" if KEY else name

    def finish(self, got, stop):
        expected = self.client.stops[stop]
        same(got.stop, expected, "stop reason")

    def count(self, got):
        """Compares the usage that the SDK shows with the row, which `rows` compares with the upstream."""
        row = self.row()
        if row is None:
            return
        shown = dict(zip(("input_tokens", "cached_input_tokens", "cache_write_tokens", "output_tokens",
                          "reasoning_tokens"), got.usage))
        for name, value in shown.items():
            if value is not None:
                same(value, row[name], f"usage {name}")

    def row(self):
        """The newest row of this scenario, once it is settled."""
        if not KEY:
            return None
        until = time.monotonic() + TIMEOUT_S
        while True:
            items = get(f"{BASE}/api/ledger?tag={self.tag}&limit=1", TOKEN)["items"]
            if items and items[0]["status"] != "PENDING":
                return items[0]
            if time.monotonic() > until:
                raise Difference(f"no settled row with the tag {self.tag}: {items}")
            time.sleep(0.01)


# The scenarios.

def plain(pair):
    got = pair.ask([], "[[plain]]", system=SYSTEM)
    same(got.text, ANSWER, "text")
    pair.finish(got, "end")
    pair.count(got)


def parallel(pair):
    got = pair.ask([], "[[parallel]]", tools=True)
    same(got.text, BEFORE_CALLS, "text before the calls")
    same([(name, arguments) for _, name, arguments in got.calls], CALLS, "calls")
    ids = [name for name, _, _ in got.calls]
    if pair.client_api != "gemini":
        same(len(set(ids)), len(CALLS), "number of different ids")
    pair.finish(got, "calls")
    pair.count(got)
    # The results arrive in another order where ids tell them apart.
    answers = [(got.calls[0], "sunny"), (got.calls[1], "rain")]
    if all(ids):
        answers.reverse()
    got = pair.ask([*got.history, *pair.client.results(answers)], tools=True)
    same(got.text, f'{CALLS[0][1]["city"]}: sunny; {CALLS[1][1]["city"]}: rain', "text of the results")


def parallel_newer(pair):
    pair.names = NEWER
    parallel(pair)


def image(pair):
    got = pair.ask([], "[[image]]", image=PIXEL)
    same(got.text, f"image/png {hashlib.sha256(PIXEL).hexdigest()[:16]}", "image")


def document(pair):
    # Compatible servers of chat completions differ; the upstream accepts OpenAI's form.
    got = pair.ask([], "[[image]]", document=PDF)
    same(got.text, f"application/pdf {hashlib.sha256(PDF).hexdigest()[:16]}", "document")


def tool_image(pair):
    """An image as the result of a tool; a request of chat completions cannot have one."""
    if pair.client_api == "chat":
        return
    got = pair.ask([], "[[tool-image]]", tools=True)
    name, tool, _ = got.calls[0]
    data = base64.b64encode(PIXEL).decode()
    results = {
        "responses": lambda: [{"type": "function_call_output", "call_id": name, "output": [
            {"type": "input_image", "image_url": url(PIXEL, "image/png"), "detail": "auto"}]}],
        "messages": lambda: [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": name, "content": [
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}]}]}],
        "gemini": lambda: [types.Content(role="user", parts=[types.Part(function_response=types.FunctionResponse(
            id=name, name=tool, response={"output": "see the image"}, parts=[types.FunctionResponsePart(
                inline_data=types.FunctionResponseBlob(mime_type="image/png", data=PIXEL))]))])],
    }[pair.client_api]()
    got = pair.ask([*got.history, *results], tools=True)
    same(got.text, f"image/png {hashlib.sha256(PIXEL).hexdigest()[:16]}", "image of the result")


def tool_name(pair):
    """A name that other APIs reject: too long for OpenAI, or with dots."""
    name = {"messages": "mcp__server__" + "x" * 100, "gemini": "server.tools:" + "x" * 100}.get(
        pair.client_api, "x" * 64)
    got = pair.ask([], "[[first-tool]]", tools=True, name=name)
    same([tool for _, tool, _ in got.calls], [name], "name of the called tool")
    results = pair.client.results([(got.calls[0], "sunny")])
    same(pair.ask([*got.history, *results], tools=True, name=name).text, "sunny, True", "name in the history")


def schema(pair):
    got = pair.ask([], "[[schema]]", schema=True)
    try:
        same(json.loads(got.text), DOCUMENT, "document")
    except ValueError:
        raise Difference(f"not JSON: {got.text}")


def thinking(pair, seen):
    # Chat completions cannot request thoughts, so a provider that shows them only on request may show none.
    if pair.client_api != "chat" or seen:
        same(seen, THOUGHT, "thought")


def think(pair):
    got = pair.ask([], "[[think]]", thinks=True)
    same(got.text, ANSWER, "text")
    thinking(pair, got.thought)
    pair.count(got)
    second = pair.ask(got.history, "[[recall]]", thinks=True)
    # A provider of chat completions has no signatures, and Gemini's on texts are not required.
    if pair.provider not in ("chat", "gemini"):
        same(second.text, "1 signatures", "signatures that came back")


def think_newer(pair):
    pair.names = NEWER
    think(pair)


def think_tool(pair):
    got = pair.ask([], "[[think-tool]]", tools=True, thinks=True)
    same([(name, arguments) for _, name, arguments in got.calls], CALLS[:1], "calls")
    thinking(pair, got.thought)
    pair.finish(got, "calls")
    results = pair.client.results([(got.calls[0], "sunny")])
    second = pair.ask([*got.history, *results], tools=True, thinks=True)
    signatures = second.text.partition(", ")[2]
    same(second.text.partition(", ")[0], "Paris: sunny", "text of the result")
    if pair.provider != "chat":
        same(signatures, "1 signatures", "signatures that came back")


def think_tool_newer(pair):
    pair.names = NEWER
    think_tool(pair)


def settings(pair):
    pair.names = SAMPLED
    got = pair.ask([], "[[settings]]", tools=True, settings=True, choice="required", system=SYSTEM)
    seen = json.loads(got.text)
    expected = {"system": SYSTEM, "limit": 4321, "temperature": 0.5, "top_p": None, "choice": "required"}
    same(seen, expected, "settings")
    got = pair.ask([], "[[settings]]", tools=True, choice="get_weather")
    same(json.loads(got.text)["choice"], "get_weather", "chosen tool")


def settings_newer(pair):
    pair.names = NEWER
    got = pair.ask([], "[[settings]]", settings=True, system=SYSTEM)
    seen = json.loads(got.text)
    same((seen["system"], seen["limit"]), (SYSTEM, 4321), "settings")


def json_mode(pair):
    """Any JSON object, which Anthropic has no field for."""
    form = {"chat": {"response_format": {"type": "json_object"}},
            "responses": {"text": {"format": {"type": "json_object"}}}}.get(pair.client_api)
    if form is None or pair.provider == "messages":
        return
    got = pair.ask([], "[[json]] Answer in JSON.", more=form)
    same(json.loads(got.text), DOCUMENT, "document")


def tool_error(pair):
    got = pair.ask([], "[[parallel]]", tools=True)
    results = pair.client.results([(call, "unknown city") for call in got.calls])
    if pair.client_api == "messages":
        for block in results[0]["content"]:
            block["is_error"] = True
    got = pair.ask([*got.history, *results], tools=True)
    same(got.text.count("unknown city"), 2, "errors of the tool")


def dropped(pair):
    """Anthropic's clients learn which hints an API without them does not get."""
    if pair.client_api != "messages" or pair.provider not in ("chat", "responses") or not KEY:
        return
    got = pair.ask([], "[[plain]]", more={"extra_body": {"top_k": 5}})
    same("top_k" in got.headers.get("x-flowledger-dropped", ""), True, "x-flowledger-dropped")


def tokens(pair):
    """The count of a request, which is an estimate if the provider does not count for this client."""
    if pair.client_api == "chat" or pair.streamed:
        return
    model = pair.model()
    sdk = pair.client.sdk
    prompt = "What is the capital of France?"
    if pair.client_api == "messages":
        count = sdk.messages.count_tokens(model=model, messages=pair.client.turn(prompt)).input_tokens
    elif pair.client_api == "responses":
        count = sdk.responses.input_tokens.count(model=model, input=prompt).input_tokens
    else:
        count = sdk.models.count_tokens(model=model, contents=prompt).total_tokens
    same(5 <= count <= 30, True, f"count of {count} tokens")


def length(pair):
    got = pair.ask([], "[[length]]")
    same(got.text, ANSWER[:9], "text")
    pair.finish(got, "length")


def stop(pair):
    if pair.client_api == "responses":
        return
    if pair.provider == "responses":
        error = refused(pair, "[[stop]]", stop=True)
        same((error.status, "stop" in error.message), (400, True), f"refusal that names the field ({error.message})")
        return
    got = pair.ask([], "[[stop]]", stop=True)
    same(got.text, ANSWER, "text")
    # Only Anthropic says that a sequence ended the answer.
    pair.finish(got, "sequence" if pair.provider == "messages" or pair.client_api != "messages" else "end")


def filtered(pair):
    got = pair.ask([], "[[filter]]")
    same(got.text, ANSWER[:9], "text")
    pair.finish(got, "filter")


def refuse(pair):
    """The text of a refusal, which only OpenAI's APIs tell from other texts."""
    if pair.provider not in ("chat", "responses"):
        return
    got = pair.ask([], "[[refuse]]")
    same((got.refusal if pair.client_api in ("chat", "responses") else got.text), REFUSAL, "refusal")


class Error:
    """An error in common terms: the class of the SDK, the status, the message, the maker's kind, the headers."""

    def __init__(self, error):
        self.name = type(error).__name__
        self.message = str(error)
        if isinstance(error, errors.APIError):
            self.status, self.kind, self.headers = error.code, error.status, getattr(error.response, "headers", {})
        else:
            self.status = getattr(error, "status_code", None)
            body = error.body if isinstance(error.body, dict) else {}
            inner = body.get("error") if isinstance(body.get("error"), dict) else body
            self.kind = inner.get("code") or inner.get("type")
            if isinstance(error, anthropic.APIError):
                self.kind = inner.get("type")
            self.headers = error.response.headers if hasattr(error, "response") else {}


def refused(pair, prompt, **options):
    try:
        got = pair.ask([], prompt, **options)
    except (openai.APIError, anthropic.APIError, errors.APIError) as error:
        return Error(error)
    raise Difference(f"no error, but {got.text!r}")


# The class of each SDK and the kind of error, by status.
OPENAI_KINDS = {400: ("BadRequestError", None), 401: ("AuthenticationError", None), 404: ("NotFoundError", None),
                429: ("RateLimitError", "rate_limit_exceeded"), 500: ("InternalServerError", None),
                503: ("InternalServerError", None)}
KINDS = {
    "chat": OPENAI_KINDS,
    "responses": OPENAI_KINDS,
    "messages": {400: ("BadRequestError", "invalid_request_error"), 401: ("AuthenticationError", "authentication_error"),
                 404: ("NotFoundError", "not_found_error"), 429: ("RateLimitError", "rate_limit_error"),
                 500: ("InternalServerError", "api_error"), 503: (None, "overloaded_error")},
    "gemini": {400: ("ClientError", "INVALID_ARGUMENT"), 401: ("ClientError", "UNAUTHENTICATED"),
               404: ("ClientError", "NOT_FOUND"), 429: ("ClientError", "RESOURCE_EXHAUSTED"),
               500: ("ServerError", "INTERNAL"), 503: ("ServerError", "UNAVAILABLE")},
}


def fails(mark, status):
    def scenario(pair):
        error = refused(pair, f"[[{mark}]]")
        name, kind = KINDS[pair.client_api][status]
        # Anthropic's own status of an overload is 529.
        allowed = (503, 529) if status == 503 else (status,)
        same(error.status in allowed, True, f"status {error.status}")
        if name:
            same(error.name, name, "class of the error")
        if kind:
            same(error.kind, kind, f"kind of the error ({error.message[:200]})")
        if status == 429 and not (pair.provider == "gemini" and pair.client_api == "gemini"):
            if pair.client_api == "gemini":
                same("7s" in error.message or error.headers.get("retry-after") == "7", True, "delay of a retry")
            else:
                same(error.headers.get("retry-after"), "7", "retry-after")
    scenario.__name__ = f"error-{mark}"
    return scenario


def context(pair):
    error = refused(pair, "[[context]]")
    same(error.status, 400, "status")
    if pair.client_api in ("chat", "responses"):
        same(error.kind, "context_length_exceeded", "code")
    else:
        # Clients look for these words.
        words = {"messages": "prompt is too long", "gemini": "exceeds the maximum number of tokens"}
        same(words[pair.client_api] in error.message, True, f"words of the message: {error.message[:200]}")


def cut_before(pair):
    try:
        got = pair.ask([], "[[cut-before]]")
    except (openai.APIError, anthropic.APIError, errors.APIError) as error:
        if KEY:
            same(Error(error).status in (500, 502, 503, 504, 529), True, f"status {Error(error).status}")
        return
    except Exception as error:
        if KEY:
            raise Difference(f"{type(error).__name__} is not an error of the API: {error}")
        return
    raise Difference(f"no error, but {got.text!r}")


def cut(pair):
    try:
        got = pair.ask([], "[[cut]]")
    except (openai.APIError, anthropic.APIError, errors.APIError):
        pass
    except Exception as error:
        if KEY:
            raise Difference(f"{type(error).__name__} is not an error of the API: {error}")
        return
    else:
        raise Difference(f"no error, but {got.text!r}")
    row = pair.row()
    if row:
        same(row["status"], "FAILED", "status of the row")


def fallback(pair):
    """An alias whose first provider is down; the second one has the next API."""
    if not KEY:
        return
    second = APIS[(APIS.index(pair.provider) + 1) % len(APIS)]
    history = pair.client.turn(f"[[down-{pair.provider}]]")
    got = pair.client.ask(f"from-{pair.provider}", history, pair.streamed, headers={"X-Flowledger-Tags": pair.tag})
    same(got.text, ANSWER, "text")
    pair.count(got)
    rows = get(f"{BASE}/api/ledger?tag={pair.tag}", TOKEN)["items"]
    # Earlier failures may have paused the first provider.
    seen = [(row["provider"], row["status"]) for row in rows]
    first, answered = (f"only-{pair.provider}", "FAILED"), (f"only-{second}", "SUCCESS")
    same(seen if seen == [answered] else [answered, first], seen, "rows")


def limits(pair):
    """The limits of the provider in the headers that the client knows."""
    got = pair.ask([], "[[plain]]")
    name = {"chat": "x-ratelimit-remaining-requests", "responses": "x-ratelimit-remaining-requests",
            "messages": "anthropic-ratelimit-requests-remaining"}
    if pair.client_api != "gemini" and pair.provider != "gemini":
        same(got.headers.get(name[pair.client_api]), "59", name[pair.client_api])


SCENARIOS = [
    plain, parallel, parallel_newer, image, document, tool_image, tool_name, tool_error, json_mode,
    schema, dropped, tokens, think, think_newer, think_tool, think_tool_newer, settings,
    settings_newer, length, stop, filtered, refuse, context, cut_before, cut, limits, fallback,
    *(fails(mark, status) for mark, status in (
        ("400", 400), ("401", 401), ("404", 404), ("429", 429), ("500", 500), ("overload", 503))),
]


def run(pair, scenario):
    """Returns the difference, if any."""
    mode = "streamed" if pair.streamed else "whole"
    pair.tag = f"{pair.client_api}-{pair.provider}-{scenario.__name__.replace('_', '-')}-{mode}"
    pair.names = MODELS
    try:
        scenario(pair)
    except Difference as difference:
        return str(difference)
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:400]}"
    return None


def counts():
    """Returns the differences between the rows and the counts of the upstream."""
    columns = ["input_tokens", "cached_input_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens"]
    rows, before = [], None
    while True:
        page = get(f"{BASE}/api/ledger?limit=1000" + (f"&before={before}" if before else ""), TOKEN)
        rows += page["items"]
        before = page.get("next")
        if not page["items"] or before is None:
            break
    actual = sorted([row[c] for c in columns] for row in rows
                    if row["usage_source"] == "provider" and row["status"] == "SUCCESS")
    journal = get(f"{UPSTREAM}/journal")["items"]
    sent = sorted([entry["usage"][c] for c in columns] for entry in journal if entry["usage"] and entry["status"] == 200)
    return [f"row without a response: {row}" for row in actual if row not in sent] + [
        f"response without a row: {row}" for row in sent if row not in actual]


def main():
    differences, table = [], {}
    pairs = [(client, provider) for client in APIS for provider in APIS if KEY or client == provider]
    names = [f"{client}-{provider}" for client, provider in pairs]
    chosen_pairs = [name for name in CHOSEN if name in names]
    for client, provider in pairs:
        name = f"{client}-{provider}"
        if chosen_pairs and name not in chosen_pairs:
            continue
        for streamed in (False, True):
            pair = Pair(client, provider, streamed)
            for scenario in SCENARIOS:
                title = scenario.__name__.replace("_", "-")
                if set(CHOSEN) - set(names) and title not in CHOSEN:
                    continue
                difference = run(pair, scenario)
                table.setdefault(title, {}).setdefault(name, []).append("-" if difference else "+")
                if difference:
                    differences.append(f"{pair.tag}: {difference}")
    if KEY and not CHOSEN:
        differences += counts()
    print("client-provider: whole, streamed")
    print(" " * 18 + " ".join(name[:14].ljust(14) for name in names))
    for title, cells in table.items():
        print(title.ljust(18) + " ".join("".join(cells.get(name, [])).ljust(14) for name in names))
    rejected = [entry for entry in get(f"{UPSTREAM}/journal")["items"] if "rejected" in entry]
    for text in sorted({f"rejected by the provider: {entry['path']}: {entry['rejected']}" for entry in rejected}):
        print(text)
    for difference in differences:
        print(difference)
    calls = sum(len(cell) for cells in table.values() for cell in cells.values())
    print(f"{calls} scenarios, {len(differences)} differences")
    sys.exit(1 if differences or rejected else 0)


if __name__ == "__main__":
    main()
