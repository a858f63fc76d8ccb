"""A provider for the interop tests: OpenAI's, Anthropic's, Gemini's and Ollama's protocols.

It answers every prompt with ANSWER. If the request contains "[tool]", offers a tool of TOOLS and has no
tool result yet, it calls that tool instead. The token counts of every response differ, so that each row
of the ledger matches exactly one response. `GET /journal` returns all requests with their counts.
Prints its address (http://HOST:PORT). The only argument is the port; the default is a free one.
"""

import base64
import gzip
import json
import re
import struct
import sys
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ANSWER = "Paris is the capital of France."

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

MODELS = ["gpt-4o-mini", "gpt-5", "claude-haiku-4-5", "claude-sonnet-4-5", "text-embedding-3-small"]
GEMINI_MODELS = ["gemini-2.5-flash", "gemini-2.5-pro", "gemini-embedding-001"]
OLLAMA_MODELS = ["llama3.2:latest"]

lock = threading.Lock()
journal = []
stored = {}


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


def words(text):
    return re.findall(r"\S+\s*", text)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.answer()

    def do_POST(self):
        self.answer()

    def do_DELETE(self):
        self.answer()

    def do_HEAD(self):
        self.answer()

    def do_PUT(self):
        self.answer()

    def do_PATCH(self):
        self.answer()

    def answer(self):
        path, _, query = self.path.partition("?")
        if path == "/journal":
            with lock:
                return self.json({"items": journal})
        data = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.headers.get("transfer-encoding") == "chunked":
            data = self.chunked()
        if self.headers.get("content-encoding") == "gzip":
            data = gzip.decompress(data)
        try:
            body = json.loads(data) if data else {}
        except ValueError:
            body = {"_raw": repr(data[:2000])}
        self.query = urllib.parse.parse_qs(query)
        self.entry = {
            "method": self.command,
            "path": self.path,
            "headers": {name.lower(): value for name, value in self.headers.items()},
            "body": body,
            "usage": None,
            "status": 200,
        }
        with lock:
            journal.append(self.entry)
            self.number = len(journal)
        self.route(path, body)

    def chunked(self):
        data = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def route(self, path, body):
        gemini = re.fullmatch(r"/v1(?:beta)?/models/([^/:]+):(\w+)", path)
        response = re.fullmatch(r"/v1/responses/(resp_\d+)(/\w+)?", path)
        model = re.fullmatch(r"/v1(?:beta)?/models/([^/:]+)", path)
        if gemini and self.command == "POST":
            return self.gemini(gemini[1], gemini[2], body)
        if response:
            return self.stored_response(response[1], response[2])
        if model and self.command == "GET":
            return self.model(model[1])
        routes = {
            "POST /v1/chat/completions": self.chat,
            "POST /v1/responses": self.create_response,
            "POST /v1/embeddings": self.embeddings,
            "POST /v1/completions": self.completions,
            "POST /v1/moderations": self.moderations,
            "POST /v1/messages": self.messages,
            "POST /v1/messages/count_tokens": lambda _: self.json({"input_tokens": 17}),
            "POST /api/chat": self.ollama_chat,
            "POST /api/generate": self.ollama_generate,
            "POST /api/embed": self.ollama_embed,
            "POST /api/show": lambda _: self.json({
                "details": {"family": "llama"}, "model_info": {"llama.context_length": 131072},
                "capabilities": ["completion", "tools"]}),
            "GET /api/tags": lambda _: self.json(
                {"models": [{"name": name, "model": name} for name in OLLAMA_MODELS]}),
            "GET /api/version": lambda _: self.json({"version": "0.13.0"}),
            # The WebSocket transport of Codex, which falls back to POST after a 426.
            "GET /v1/responses": lambda _: self.json({"error": {"message": "no WebSocket"}}, 426),
            "GET /v1/models": lambda _: self.models(),
            "GET /v1beta/models": lambda _: self.models(),
        }
        handler = routes.get(f"{self.command} {path}")
        if handler:
            return handler(body)
        return self.json({"error": {"message": f"no route {self.command} {path}", "type": "not_found"}}, 404)

    # Responses.

    def book(self, usage):
        """Records the counts of this response."""
        self.entry["usage"] = usage.row()
        return usage

    def json(self, value, status=200):
        data = json.dumps(value).encode()
        if self.path != "/journal":
            self.entry["status"] = status
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def stream(self, parts, content_type="text/event-stream"):
        self.send_response(200)
        self.send_header("content-type", content_type)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for part in parts:
            data = part.encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")

    def events(self, events, named=False):
        self.stream(
            (f"event: {event['type']}\n" if named else "") + f"data: {json.dumps(event)}\n\n"
            for event in events
        )

    # Models.

    def models(self):
        if "x-goog-api-key" in self.headers:
            return self.json({"models": [gemini_model(name) for name in GEMINI_MODELS]})
        if "anthropic-version" in self.headers:
            models = [anthropic_model(name) for name in MODELS]
            return self.json({"data": models, "has_more": False, "first_id": MODELS[0], "last_id": MODELS[-1]})
        return self.json({"object": "list", "data": [openai_model(name) for name in MODELS + OLLAMA_MODELS]})

    def model(self, name):
        if "x-goog-api-key" in self.headers:
            return self.json(gemini_model(name))
        return self.json(anthropic_model(name) if "anthropic-version" in self.headers else openai_model(name))

    # OpenAI's chat completions.

    def chat(self, body):
        usage = self.book(Usage(self.number))
        counts = {
            "prompt_tokens": usage.input,
            "completion_tokens": usage.output,
            "total_tokens": usage.input + usage.output,
            "prompt_tokens_details": {"cached_tokens": usage.cached},
            "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
        }
        base = {"id": f"chatcmpl-{self.number}", "created": 1764500000, "model": body["model"]}
        call = tool_call(body, body["messages"])
        if call:
            function = {"name": call[0], "arguments": json.dumps(call[1])}
            calls = [{"id": f"call_{self.number}", "type": "function", "function": function}]
        finish = "tool_calls" if call else "stop"
        if not body.get("stream"):
            message = {"role": "assistant", "content": None, "tool_calls": calls} if call else {
                "role": "assistant", "content": ANSWER}
            choice = {"index": 0, "message": message, "finish_reason": finish}
            return self.json({**base, "object": "chat.completion", "choices": [choice], "usage": counts})

        def chunk(delta, finish=None):
            choice = {"index": 0, "delta": delta, "finish_reason": finish}
            return {**base, "object": "chat.completion.chunk", "choices": [choice]}

        if call:
            parts = [{"role": "assistant", "content": None, "tool_calls": [{"index": 0, **calls[0]}]}]
        else:
            parts = [{"role": "assistant", "content": ""}] + [{"content": word} for word in words(ANSWER)]
        chunks = [chunk(part) for part in parts] + [chunk({}, finish)]
        if (body.get("stream_options") or {}).get("include_usage"):
            chunks.append({**base, "object": "chat.completion.chunk", "choices": [], "usage": counts})
        return self.stream([f"data: {json.dumps(c)}\n\n" for c in chunks] + ["data: [DONE]\n\n"])

    def completions(self, body):
        usage = self.book(Usage(self.number, reads=False, reasoning=False))
        counts = {"prompt_tokens": usage.input, "completion_tokens": usage.output,
                  "total_tokens": usage.input + usage.output}
        base = {"id": f"cmpl-{self.number}", "object": "text_completion", "created": 1764500000,
                "model": body["model"]}
        choice = {"index": 0, "text": ANSWER, "finish_reason": "stop", "logprobs": None}
        if not body.get("stream"):
            return self.json({**base, "choices": [choice], "usage": counts})
        chunks = [{**base, "choices": [choice]}]
        if (body.get("stream_options") or {}).get("include_usage"):
            chunks.append({**base, "choices": [], "usage": counts})
        return self.stream([f"data: {json.dumps(c)}\n\n" for c in chunks] + ["data: [DONE]\n\n"])

    def embeddings(self, body):
        usage = self.book(Usage(self.number, reads=False, output=False))
        texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
        if texts and isinstance(texts[0], int):
            texts = [texts]
        vector = [0.5, -0.25, 0.125]
        if body.get("encoding_format") == "base64":
            vector = base64.b64encode(struct.pack("<3f", *vector)).decode()
        data = [{"object": "embedding", "index": i, "embedding": vector} for i, _ in enumerate(texts)]
        self.json({"object": "list", "data": data, "model": body["model"],
                   "usage": {"prompt_tokens": usage.input, "total_tokens": usage.input}})

    def moderations(self, body):
        self.json({"id": f"modr-{self.number}", "model": body.get("model", "omni-moderation-latest"),
                   "results": [{"flagged": False, "categories": {}, "category_scores": {},
                                "category_applied_input_types": {}}]})

    # OpenAI's responses.

    def create_response(self, body):
        usage = self.book(Usage(self.number))
        call = tool_call(body, body["input"])
        if call:
            item = {"type": "function_call", "id": f"fc_{self.number}", "call_id": f"call_{self.number}",
                    "name": call[0], "arguments": json.dumps(call[1]), "status": "completed"}
        else:
            part = {"type": "output_text", "text": ANSWER, "annotations": [], "logprobs": []}
            item = {"type": "message", "id": f"msg_{self.number}", "role": "assistant",
                    "status": "completed", "content": [part]}
        thought = {"type": "reasoning", "id": f"rs_{self.number}", "summary": [],
                   "encrypted_content": "b3BhcXVl"}
        response = {
            "id": f"resp_{self.number}", "object": "response", "created_at": 1764500000,
            "status": "completed", "error": None, "incomplete_details": None,
            "instructions": body.get("instructions"), "model": body["model"], "output": [thought, item],
            "parallel_tool_calls": True, "temperature": 1.0, "top_p": 1.0, "tool_choice": "auto",
            "tools": [], "metadata": {}, "store": body.get("store", True),
            "previous_response_id": body.get("previous_response_id"),
            "usage": {
                "input_tokens": usage.input, "input_tokens_details": {"cached_tokens": usage.cached},
                "output_tokens": usage.output,
                "output_tokens_details": {"reasoning_tokens": usage.reasoning},
                "total_tokens": usage.input + usage.output,
            },
        }
        if response["store"]:
            stored[response["id"]] = response
        if not body.get("stream"):
            return self.json(response)
        begun = {**response, "status": "in_progress", "output": [], "usage": None}
        place = {"item_id": item["id"], "output_index": 1}
        events = [
            {"type": "response.created", "response": begun},
            {"type": "response.in_progress", "response": begun},
            {"type": "response.output_item.added", "output_index": 0, "item": thought},
            {"type": "response.output_item.done", "output_index": 0, "item": thought},
        ]
        added = {"type": "response.output_item.added", "output_index": 1}
        if call:
            events += [
                {**added, "item": {**item, "arguments": "", "status": "in_progress"}},
                {"type": "response.function_call_arguments.delta", "delta": item["arguments"], **place},
                {"type": "response.function_call_arguments.done", "arguments": item["arguments"],
                 "name": item["name"], **place},
            ]
        else:
            place = {**place, "content_index": 0}
            empty = {**part, "text": ""}
            events += [{**added, "item": {**item, "content": [], "status": "in_progress"}},
                       {"type": "response.content_part.added", "part": empty, **place}]
            events += [{"type": "response.output_text.delta", "delta": word, "logprobs": [], **place}
                       for word in words(ANSWER)]
            events += [{"type": "response.output_text.done", "text": ANSWER, "logprobs": [], **place},
                       {"type": "response.content_part.done", "part": part, **place}]
        events += [{"type": "response.output_item.done", "output_index": 1, "item": item},
                   {"type": "response.completed", "response": response}]
        self.events([{**event, "sequence_number": i} for i, event in enumerate(events)], named=True)

    def stored_response(self, name, action):
        response = stored.get(name)
        if response is None:
            return self.json({"error": {"message": f"Response with id '{name}' not found.",
                                        "type": "invalid_request_error", "param": None, "code": None}}, 404)
        if action == "/input_items":
            return self.json({"object": "list", "data": [], "first_id": None, "last_id": None,
                              "has_more": False})
        if self.command == "DELETE":
            del stored[name]
            return self.json({"id": name, "object": "response", "deleted": True})
        return self.json(response)

    # Anthropic's messages.

    def messages(self, body):
        usage = self.book(Usage(self.number, writes=True))
        counts = {
            "input_tokens": usage.input - usage.cached - usage.written,
            "cache_read_input_tokens": usage.cached,
            "cache_creation_input_tokens": usage.written,
            "cache_creation": {"ephemeral_5m_input_tokens": usage.written, "ephemeral_1h_input_tokens": 0},
            "output_tokens": usage.output,
            "output_tokens_details": {"thinking_tokens": usage.reasoning},
            "service_tier": "standard",
        }
        call = tool_call(body, body["messages"])
        if call:
            block = {"type": "tool_use", "id": f"toolu_{self.number}", "name": call[0], "input": call[1]}
        else:
            block = {"type": "text", "text": ANSWER}
        message = {"id": f"msg_{self.number}", "type": "message", "role": "assistant",
                   "model": body["model"], "content": [block],
                   "stop_reason": "tool_use" if call else "end_turn", "stop_sequence": None,
                   "usage": counts}
        if not body.get("stream"):
            return self.json(message)
        first = {**counts, "output_tokens": 1, "output_tokens_details": {"thinking_tokens": 0}}
        begun = {**message, "content": [], "stop_reason": None, "usage": first}
        if call:
            start = {**block, "input": {}}
            deltas = [{"type": "input_json_delta", "partial_json": json.dumps(call[1])}]
        else:
            start = {"type": "text", "text": ""}
            deltas = [{"type": "text_delta", "text": word} for word in words(ANSWER)]
        self.events([
            {"type": "message_start", "message": begun},
            {"type": "content_block_start", "index": 0, "content_block": start},
            {"type": "ping"},
            *({"type": "content_block_delta", "index": 0, "delta": delta} for delta in deltas),
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta",
             "delta": {"stop_reason": message["stop_reason"], "stop_sequence": None},
             "usage": {key: counts[key] for key in ("output_tokens", "output_tokens_details")}},
            {"type": "message_stop"},
        ], named=True)

    # Gemini's own protocol.

    def gemini(self, model, action, body):
        if action == "countTokens":
            return self.json({"totalTokens": 17})
        if action in ("embedContent", "batchEmbedContents"):
            usage = self.book(Usage(self.number, reads=False, output=False))
            counts = {"promptTokenCount": usage.input, "totalTokenCount": usage.input}
            vector = {"values": [0.5, -0.25, 0.125]}
            if action == "embedContent":
                return self.json({"embedding": vector, "usageMetadata": counts})
            return self.json({"embeddings": [vector for _ in body["requests"]], "usageMetadata": counts})
        usage = self.book(Usage(self.number))
        # Gemini counts thoughts apart from the candidates.
        counts = {
            "promptTokenCount": usage.input,
            "cachedContentTokenCount": usage.cached,
            "candidatesTokenCount": usage.output - usage.reasoning,
            "thoughtsTokenCount": usage.reasoning,
            "totalTokenCount": usage.input + usage.output,
        }
        call = tool_call(body, body["contents"])

        def chunk(part, finish=None):
            candidate = {"content": {"role": "model", "parts": [part]}, "index": 0}
            if finish:
                candidate["finishReason"] = finish
            return {"candidates": [candidate], "usageMetadata": counts, "modelVersion": model,
                    "responseId": f"r{self.number}"}

        if call:
            chunks = [chunk({"functionCall": {"name": call[0], "args": call[1]}}, "STOP")]
        elif action == "generateContent":
            chunks = [chunk({"text": ANSWER}, "STOP")]
        else:
            chunks = [chunk({"text": word}) for word in words(ANSWER)]
            chunks[-1]["candidates"][0]["finishReason"] = "STOP"
        if action == "generateContent":
            return self.json(chunks[0])
        if action == "streamGenerateContent" and self.query.get("alt") == ["sse"]:
            return self.stream(f"data: {json.dumps(c)}\r\n\r\n" for c in chunks)
        if action == "streamGenerateContent":
            parts = [("[" if i == 0 else ",\r\n") + json.dumps(c) for i, c in enumerate(chunks)]
            return self.stream([*parts, "]"], "application/json")
        return self.json({"error": {"code": 404, "message": f"no action {action}", "status": "NOT_FOUND"}}, 404)

    # Ollama's own protocol.

    def ollama(self, body, parts):
        """Sends the parts of an answer; the last one has the counts."""
        usage = self.book(Usage(self.number, reads=False, reasoning=False))
        base = {"model": body["model"], "created_at": "2026-11-30T12:00:00Z"}
        done = {"done": True, "done_reason": "stop", "total_duration": 5, "load_duration": 1,
                "prompt_eval_count": usage.input, "prompt_eval_duration": 2, "eval_count": usage.output,
                "eval_duration": 2}
        if body.get("stream") is False:
            return self.json({**base, **parts[0], **done})
        lines = [{**base, **part, "done": False} for part in parts[1:]]
        self.stream((json.dumps(line) + "\n" for line in [*lines, {**base, **parts[-1], **done}]),
                    "application/x-ndjson")

    def ollama_chat(self, body):
        call = tool_call(body, body["messages"])
        say = lambda text: {"message": {"role": "assistant", "content": text}}
        if call:
            calls = [{"function": {"name": call[0], "arguments": call[1]}}]
            part = {"message": {"role": "assistant", "content": "", "tool_calls": calls}}
            return self.ollama(body, [part, part, say("")])
        return self.ollama(body, [say(ANSWER), *map(say, words(ANSWER)), say("")])

    def ollama_generate(self, body):
        parts = [{"response": text} for text in [ANSWER, *words(ANSWER), ""]]
        return self.ollama(body, parts)

    def ollama_embed(self, body):
        usage = self.book(Usage(self.number, reads=False, output=False))
        texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
        self.json({"model": body["model"], "embeddings": [[0.5, -0.25, 0.125] for _ in texts],
                   "total_duration": 5, "load_duration": 1, "prompt_eval_count": usage.input})


def openai_model(name):
    return {"id": name, "object": "model", "created": 1764500000, "owned_by": "interop"}


def anthropic_model(name):
    return {"id": name, "type": "model", "display_name": name, "created_at": "2026-01-01T00:00:00Z"}


def gemini_model(name):
    return {"name": f"models/{name}", "version": "001", "displayName": name, "inputTokenLimit": 1048576,
            "outputTokenLimit": 65536,
            "supportedGenerationMethods": ["generateContent", "countTokens", "embedContent"]}


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 0), Handler)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()
