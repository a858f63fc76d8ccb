"""What the upstream of the interop tests says. A mark in the prompt such as `[[parallel]]` selects it; the last one counts.

`View` reads a request of any of the four APIs, and `answer` returns an `Answer` without the form of an API.
Answers repeat what arrived, so that a test sees whether the request kept its meaning.
"""

import base64
import hashlib
import json
import re

from makers import DUMMY_SIGNATURES, bytes_of, issued, parts

ANSWER = "Paris is the capital of France."
THOUGHT = "The user asks for a capital. I know it."
BEFORE_CALLS = "I will look."
REFUSAL = "I cannot help with that."
# The second one has characters that JSON escapes, and the tool is the same: only ids or the order tell them apart.
CALLS = [("get_weather", {"city": "Paris"}), ("get_weather", {"city": 'Zürich "ZH"'})]
DOCUMENT = {"city": "Paris", "population": 2102650}
STOP = "END"

# A call of each known tool. The coding agents run a harmless command.
COMMAND = "echo interop-tool-result"
TOOLS = {
    "get_weather": {"city": "Paris"},
    "Bash": {"command": COMMAND, "description": "Print a word"},
    "bash": {"command": COMMAND, "description": "Print a word"},
    "exec_command": {"cmd": COMMAND},
    "shell_command": {"command": COMMAND},
    "shell": {"command": ["echo", "interop-tool-result"]},
    "run_shell_command": {"command": COMMAND, "description": "Print a word", "is_background": False},
    "run_commands": {"commands": [COMMAND]},
}


class Answer:
    """Blocks of ("thinking" | "text" | "refusal", text) and ("call", name, arguments), and why it ended: `end`,
    `calls`, `length`, `sequence`, `filter`. `is_cut`: the connection breaks within the stream."""

    def __init__(self, *blocks, stop="end", is_cut=False):
        self.blocks, self.stop, self.is_cut = blocks, stop, is_cut


class Failure:
    def __init__(self, status, kind):
        self.status, self.kind = status, kind


# Marks of failures; `cut-before` ends the connection without a response.
FAILURES = {
    "400": Failure(400, "invalid"), "401": Failure(401, "key"), "404": Failure(404, "model"),
    "429": Failure(429, "rate"), "500": Failure(500, "internal"), "overload": Failure(503, "overload"),
    "context": Failure(400, "context"), "cut-before": Failure(0, "cut"),
}
APIS = ["chat", "responses", "messages", "gemini"]


def has(body, *names):
    """Returns whether any object within `body` has one of the values as its type or one of the keys."""
    if isinstance(body, dict):
        return any(
            key in names or (key in ("type", "role") and value in names) or has(value, *names)
            for key, value in body.items()
        )
    return isinstance(body, list) and any(has(value, *names) for value in body)


# The marks of a tool's result in all protocols.
RESULTS = ("tool", "tool_result", "function_call_output", "custom_tool_call_output", "functionResponse",
           "function_response")


def offered(tools):
    """Yields the names of the offered tools in all protocols."""
    for tool in tools or []:
        if isinstance(tool, dict):
            name = tool.get("name") or tool.get("function", {}).get("name")
            if name:
                yield name
            # LiteLLM writes snake_case, which Gemini accepts as well.
            yield from offered(tool.get("functionDeclarations") or tool.get("function_declarations"))


def tool_call(body, dialogue):
    """Returns the name and the arguments of the tool to call, if any."""
    if "[tool]" not in json.dumps(dialogue) or has(dialogue, *RESULTS):
        return None
    for name in offered(body.get("tools")):
        if name in TOOLS:
            return name, TOOLS[name]
    return None


def text_of(content):
    """Returns the text of a content in any API."""
    return "".join(part.get("text", "") for part in parts(content) if isinstance(part, dict))


def data_url(url):
    head, _, data = url.partition(";base64,")
    return (head.removeprefix("data:"), base64.b64decode(data)) if data else (url, b"")


class View:
    """The meaning of a request: `calls` by id as (name, arguments), `results` as (id or none, name, text),
    `images` and documents as (media type, bytes), `schema`, `thinks`, `shows` (thoughts), `stop`, `signatures`, `system`, `limit`, `temperature`,
    `choice`."""

    def __init__(self, api, body):
        self.api, self.calls, self.results, self.images, self.signatures = api, [], [], [], []
        self.schema, self.thinks, self.shows, self.stop, self.system = None, False, True, [], ""
        self.limit, self.temperature, self.choice = None, body.get("temperature"), "auto"
        self.is_json = False
        self.tools = list(offered(body.get("tools")))
        self.top_p = body.get("top_p")
        getattr(self, api)(body)

    def chat(self, body):
        for message in body["messages"]:
            if message["role"] in ("system", "developer"):
                self.system += text_of(message["content"])
            for call in message.get("tool_calls") or []:
                self.calls.append((call["id"], call["function"]["name"], json.loads(call["function"]["arguments"])))
            if message["role"] == "tool":
                self.results.append((message["tool_call_id"], None, text_of(message["content"])))
            for part in parts(message.get("content")):
                if part["type"] == "image_url":
                    self.images.append(data_url(part["image_url"]["url"]))
                if part["type"] == "file":
                    self.images.append(data_url(part["file"]["file_data"]))
        form = body.get("response_format") or {}
        self.schema = form.get("json_schema", {}).get("schema")
        self.is_json = form.get("type") == "json_object"
        # OpenAI's o-series always thinks.
        self.thinks = body.get("reasoning_effort") not in (None, "none") or bool(re.match(r"o\d", body["model"]))
        self.stop = [body["stop"]] if isinstance(body.get("stop"), str) else body.get("stop") or []
        self.limit = body.get("max_completion_tokens") or body.get("max_tokens")
        choice = body.get("tool_choice") or "auto"
        self.choice = choice if isinstance(choice, str) else choice["function"]["name"]

    def responses(self, body):
        self.system = body.get("instructions") or ""
        for item in body["input"] if isinstance(body["input"], list) else []:
            kind = item.get("type", "message")
            if kind == "message":
                if item["role"] in ("system", "developer"):
                    self.system += text_of(item["content"])
                for part in parts(item["content"]):
                    self.file(part)
            elif kind == "function_call":
                self.calls.append((item["call_id"], item["name"], json.loads(item["arguments"])))
            elif kind == "function_call_output":
                self.results.append((item["call_id"], None, text_of(item["output"])))
                for part in parts(item["output"]):
                    self.file(part)
            elif kind == "reasoning" and item.get("encrypted_content"):
                self.signatures.append(item["encrypted_content"])
        form = (body.get("text") or {}).get("format") or {}
        self.schema, self.is_json = form.get("schema"), form.get("type") == "json_object"
        reasoning = body.get("reasoning") or {}
        self.thinks = (reasoning.get("effort") or "none") != "none" or bool(reasoning.get("summary"))
        self.shows = bool(reasoning.get("summary"))
        self.limit = body.get("max_output_tokens")
        choice = body.get("tool_choice") or "auto"
        self.choice = choice if isinstance(choice, str) else choice.get("name")

    def file(self, part):
        if part["type"] == "input_image":
            self.images.append(data_url(part["image_url"]))
        if part["type"] == "input_file":
            self.images.append(data_url(part["file_data"]))

    def messages(self, body):
        self.system = text_of(body.get("system"))
        for message in body["messages"]:
            if message["role"] == "system":
                self.system += text_of(message["content"])
            for block in parts(message["content"]):
                if block["type"] == "tool_use":
                    self.calls.append((block["id"], block["name"], block["input"]))
                elif block["type"] == "tool_result":
                    self.results.append((block["tool_use_id"], None, text_of(block.get("content"))))
                    for part in parts(block.get("content")):
                        self.source(part)
                elif block["type"] == "thinking":
                    self.signatures.append(block["signature"])
                self.source(block)
        self.schema = ((body.get("output_config") or {}).get("format") or {}).get("schema")
        thinking = body.get("thinking") or {}
        self.thinks = thinking.get("type") in ("enabled", "adaptive")
        self.shows = thinking.get("display") != "omitted"
        self.stop = body.get("stop_sequences") or []
        self.limit = body["max_tokens"]
        choice = body.get("tool_choice") or {"type": "auto"}
        self.choice = choice.get("name") or choice["type"].replace("any", "required")

    def source(self, block):
        source = block.get("source") or {}
        if block["type"] in ("image", "document") and source["type"] == "base64":
            self.images.append((source["media_type"], base64.b64decode(source["data"])))

    def gemini(self, body):
        self.system = text_of((body.get("systemInstruction") or body.get("system_instruction") or {}).get("parts"))
        for part in (part for content in body["contents"] for part in content["parts"]):
            call = part.get("functionCall") or part.get("function_call")
            result = part.get("functionResponse") or part.get("function_response")
            data = part.get("inlineData") or part.get("inline_data")
            signature = part.get("thoughtSignature") or part.get("thought_signature")
            if call:
                self.calls.append((call.get("id"), call["name"], call.get("args")))
            for inner in (result or {}).get("parts") or []:
                data = inner.get("inlineData") or inner.get("inline_data")
            if result:
                self.results.append((result.get("id"), result["name"], response_text(result.get("response"))))
            if data:
                media_type = data.get("mimeType") or data.get("mime_type")
                self.images.append((media_type, bytes_of(data["data"])))
            if signature and bytes_of(signature) not in DUMMY_SIGNATURES \
                    and signature.encode() not in DUMMY_SIGNATURES:
                self.signatures.append(signature)
        config = body.get("generationConfig") or body.get("generation_config") or {}
        self.schema = config.get("responseJsonSchema") or config.get("responseSchema")
        self.is_json = config.get("responseMimeType") == "application/json"
        # Google's Python SDK writes the fields within `thinkingConfig` in snake_case.
        thinking = {name.replace("_", "").lower(): value for name, value in config.get("thinkingConfig", {}).items()}
        self.shows = bool(thinking.get("includethoughts"))
        self.thinks = self.shows or bool(thinking.get("thinkingbudget") or thinking.get("thinkinglevel"))
        self.stop = config.get("stopSequences") or []
        self.limit, self.temperature = config.get("maxOutputTokens"), config.get("temperature")
        self.top_p = config.get("topP")
        calling = (body.get("toolConfig") or {}).get("functionCallingConfig") or {}
        mode = calling.get("mode", "AUTO").lower().replace("any", "required")
        self.choice = (calling.get("allowedFunctionNames") or [mode])[0]

    def answered(self):
        """Returns "city: result" of each call, in the order of the calls."""
        by_id = {name: text for name, _, text in self.results if name}
        in_order = [text for _, _, text in self.results]
        return "; ".join(f"{arguments['city']}: {by_id.get(name) or in_order[i]}"
                         for i, (name, _, arguments) in enumerate(self.calls))


def response_text(response):
    """Source: FunctionResponse.response in Google's SDK: the key `output`, or else all of it."""
    for key in ("output", "result", "error"):
        if isinstance((response or {}).get(key), str):
            return response[key]
    return json.dumps(response)


def properties(schema):
    """Returns the properties that a schema requires."""
    return sorted(schema.get("required") or []) if isinstance(schema, dict) and schema.get("properties") else []


def answer(api, body, dialogue):
    """Returns the `Answer` or the `Failure` for a request."""
    # The instructions of Claude Code contain `[[name]]`.
    marks = [mark for mark in re.findall(r"\[\[([a-z0-9-]+)\]\]", json.dumps(dialogue))
             if mark in FAILURES or mark in SCENARIOS]
    if not marks:
        call = tool_call(body, dialogue)
        return Answer(("call", *call), stop="calls") if call else Answer(("text", ANSWER))
    mark = marks[-1]
    if mark in FAILURES:
        return FAILURES[mark]
    return SCENARIOS[mark](View(api, body))


def parallel(view):
    if view.results:
        return Answer(("text", view.answered()))
    return Answer(("text", BEFORE_CALLS), *(("call", *call) for call in CALLS), stop="calls")


def think(view):
    if not view.thinks:
        return Answer(("text", "no thinking"))
    return Answer(("thinking", THOUGHT if view.shows else ""), ("text", ANSWER))


def think_tool(view):
    if view.results:
        return Answer(("text", f"{view.answered()}, {len(view.signatures)} signatures"))
    if not view.thinks:
        return Answer(("text", "no thinking"))
    return Answer(("thinking", THOUGHT if view.shows else ""), ("call", *CALLS[0]), stop="calls")


def image(view):
    seen = [f"{kind} {hashlib.sha256(data).hexdigest()[:16]}" for kind, data in view.images]
    return Answer(("text", "; ".join(seen) or "no image"))


def first_tool(view):
    """Calls the first tool under the name that the request has, or repeats its result."""
    if view.results:
        return Answer(("text", f"{view.results[0][2]}, {view.calls[0][1] == view.tools[0]}"))
    return Answer(("call", view.tools[0], CALLS[0][1]), stop="calls")


def tool_image(view):
    return image(view) if view.results else Answer(("call", *CALLS[0]), stop="calls")


def schema(view):
    is_complete = properties(view.schema) == sorted(DOCUMENT)
    return Answer(("text", json.dumps(DOCUMENT) if is_complete else f"not the schema: {view.schema}"))


def settings(view):
    return Answer(("text", json.dumps({
        "system": view.system, "limit": view.limit, "temperature": view.temperature, "top_p": view.top_p,
        "choice": view.choice})))


SCENARIOS = {
    "plain": lambda _: Answer(("text", ANSWER)),
    "parallel": parallel,
    "think": think,
    "think-tool": think_tool,
    "recall": lambda view: Answer(("text", f"{len(view.signatures)} signatures")),
    "image": image,
    "schema": schema,
    "json": lambda view: Answer(("text", json.dumps(DOCUMENT) if view.is_json else "JSON was not requested")),
    "first-tool": first_tool,
    "tool-image": tool_image,
    "settings": settings,
    "length": lambda _: Answer(("text", ANSWER[:9]), stop="length"),
    "stop": lambda view: Answer(("text", ANSWER if STOP in view.stop else "no stop sequence"), stop="sequence"),
    "filter": lambda _: Answer(("text", ANSWER[:9]), stop="filter"),
    "refuse": lambda _: Answer(("refusal", REFUSAL), stop="filter"),
    # One API fails, and the others answer.
    **{f"down-{api}": lambda view, api=api: FAILURES["500"] if view.api == api else Answer(("text", ANSWER))
       for api in APIS},
    "cut": lambda _: Answer(("text", ANSWER), is_cut=True),
}


def sign(api, number):
    """Returns a new signature. Gemini's are bytes in Base64."""
    value = f"{api}-signature-{number}".encode()
    text = base64.b64encode(value).decode()
    issued.add(value if api == "gemini" else text)
    return text
