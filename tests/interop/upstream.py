"""A provider for the interop tests: OpenAI's, Anthropic's, Gemini's and Ollama's protocols.

It answers every prompt with ANSWER. If the request contains "[tool]", offers a tool of TOOLS and has no
tool result yet, it calls that tool instead. Marks such as `[[parallel]]` select other answers (`scenarios.py`).
It rejects what the makers reject (`makers.py`). The token counts of every response differ, so that each row
of the ledger matches exactly one response. `GET /journal` returns all requests with their counts.
Below `/only/API` (`chat`, `responses`, `messages`, `gemini`), the other APIs do not exist.
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

import answers
import makers
import scenarios
from answers import Usage, words
from scenarios import ANSWER, Failure, tool_call

MODELS = ["gpt-4o-mini", "gpt-5", "claude-haiku-4-5", "claude-sonnet-4-5", "text-embedding-3-small"]
GEMINI_MODELS = ["gemini-2.5-flash", "gemini-2.5-pro", "gemini-embedding-001"]
OLLAMA_MODELS = ["llama3.2:latest"]

lock = threading.Lock()
journal = []
stored = {}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # A response is several writes, which would wait for delayed acknowledgements.
    disable_nagle_algorithm = True

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
        only = re.fullmatch(r"/only/(\w+)(/.*)", path)
        if only:
            path = only[2]
            own = {"chat": "/chat/completions", "responses": "/responses", "messages": "/messages",
                   "gemini": "/models/"}[only[1]]
            is_own = own in path or path.endswith("/models")
            if not is_own:
                return self.json({"error": {"message": f"no route {path}", "type": "not_found"}}, 404)
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
            "POST /v1/responses/input_tokens": lambda _: self.json(
                {"object": "response.input_tokens", "input_tokens": 17}),
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

    def json(self, value, status=200, headers=None):
        data = json.dumps(value).encode()
        if self.path != "/journal":
            self.entry["status"] = status
        self.send_response(status)
        self.send_header("content-type", "application/json")
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def stream(self, parts, content_type="text/event-stream", headers=None, is_cut=False):
        """Sends the parts as chunks. Breaks the connection after half of them if `is_cut`."""
        self.send_response(200)
        self.send_header("content-type", content_type)
        self.send_header("transfer-encoding", "chunked")
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.end_headers()
        parts = list(parts)
        for part in parts[:len(parts) // 2] if is_cut else parts:
            data = part.encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            self.wfile.flush()
        if is_cut:
            self.entry["usage"] = None
            self.close_connection = True
            return
        self.wfile.write(b"0\r\n\r\n")

    def generate(self, api, body, dialogue, check):
        """Returns the answer to a request that the maker accepts. Otherwise responds, and returns none."""
        try:
            check()
        except makers.Rejected as rejected:
            self.entry["rejected"] = rejected.message
            status, error, headers = answers.failure(
                api, 400, "invalid", rejected.message, rejected.param, rejected.code)
            return self.json(error, status, headers)
        answer = scenarios.answer(api, body, dialogue)
        if isinstance(answer, Failure):
            if answer.kind == "cut":
                self.close_connection = True
                return None
            status, error, headers = answers.failure(api, answer.status, answer.kind)
            return self.json(error, status, headers)
        if answer.is_cut and not (body.get("stream") or "stream" in self.path):
            # Half of a body whose length is known.
            self.entry["status"] = 0
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", "1000")
            self.end_headers()
            self.wfile.write(b'{"id": ')
            self.close_connection = True
            return None
        return answer

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
        answer = self.generate("chat", body, body.get("messages"), lambda: makers.chat(body))
        if answer is None:
            return
        whole, chunks = answers.chat(self.number, body["model"], answer, self.book(Usage(self.number)))
        if not body.get("stream"):
            return self.json(whole, headers=answers.openai_limits())
        if not (body.get("stream_options") or {}).get("include_usage"):
            chunks.pop()
        parts = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks] + ["data: [DONE]\n\n"]
        return self.stream(parts, headers=answers.openai_limits(), is_cut=answer.is_cut)

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
        answer = self.generate("responses", body, body.get("input"), lambda: makers.responses(body))
        if answer is None:
            return
        response, events = answers.responses(self.number, body, answer, self.book(Usage(self.number)))
        if response["store"]:
            stored[response["id"]] = response
        if not body.get("stream"):
            return self.json(response, headers=answers.openai_limits())
        return self.named(events, answer, answers.openai_limits())

    def named(self, events, answer, headers):
        parts = [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events]
        return self.stream(parts, headers=headers, is_cut=answer.is_cut)

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
        headers = self.entry["headers"]
        answer = self.generate("messages", body, body.get("messages"), lambda: makers.anthropic(body, headers))
        if answer is None:
            return
        stop_sequence = (body.get("stop_sequences") or [None])[0]
        usage = self.book(Usage(self.number, writes=True))
        message, events = answers.messages(self.number, body["model"], answer, usage, stop_sequence)
        if not body.get("stream"):
            return self.json(message, headers=answers.anthropic_limits())
        return self.named(events, answer, answers.anthropic_limits())

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
        if action not in ("generateContent", "streamGenerateContent"):
            error = {"code": 404, "message": f"no action {action}", "status": "NOT_FOUND"}
            return self.json({"error": error}, 404)
        answer = self.generate("gemini", body, body.get("contents"), lambda: makers.gemini(body, model))
        if answer is None:
            return
        whole, chunks = answers.gemini(self.number, model, answer, self.book(Usage(self.number)))
        if action == "generateContent":
            return self.json(whole)
        if self.query.get("alt") == ["sse"]:
            return self.stream([f"data: {json.dumps(c)}\r\n\r\n" for c in chunks], is_cut=answer.is_cut)
        parts = [("[" if i == 0 else ",\r\n") + json.dumps(c) for i, c in enumerate(chunks)]
        return self.stream([*parts, "]"], "application/json", is_cut=answer.is_cut)

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
