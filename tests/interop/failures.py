"""OpenAI's and Anthropic's SDKs with fallbacks, keys and failing providers; aimock is the provider.

tests/interop.rs starts both servers.
Arguments: flowledger's address (http://HOST:PORT).
"""

import sys
import time

import anthropic
import openai

BASE = sys.argv[1]
TIMEOUT_S = 20

# Ignores the environment: the SDKs talk only to this server.
gpt = openai.OpenAI(base_url=f"{BASE}/v1", api_key="anything", timeout=TIMEOUT_S, max_retries=0)
claude = anthropic.Anthropic(base_url=BASE, api_key="anything", timeout=TIMEOUT_S, max_retries=0)

PARIS = "Paris is the capital of France. It lies on the Seine."
TOOL = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def user(text):
    return [{"role": "user", "content": text}]


def ledger(**wanted):
    """The newest row with these values, once it is settled."""
    until = time.monotonic() + TIMEOUT_S
    while True:
        page = gpt.get("/../api/ledger", cast_to=object)
        for row in page["items"]:
            if row["status"] != "PENDING" and all(row.get(k) == v for k, v in wanted.items()):
                return row
        assert time.monotonic() < until, f"no row with {wanted}: {page}"
        time.sleep(0.02)


def refuses(expected, work):
    try:
        work()
    except expected as error:
        return error
    raise AssertionError(f"{expected.__name__} was not raised")


def openai_whole():
    answer = gpt.chat.completions.create(
        model="openai/gpt-4o-mini",
        messages=user("say [answer]"),
        extra_headers={"X-Flowledger-Role": "interop", "X-Flowledger-Tags": "whole"},
    )
    assert answer.choices[0].message.content == PARIS
    assert answer.usage.prompt_tokens == 1234
    row = ledger(tags="whole")
    assert row["status"] == "SUCCESS" and row["agent_role"] == "interop", row
    assert (row["input_tokens"], row["output_tokens"]) == (1234, 56), row
    assert row["total_cost_usd"] > 0, row


def openai_streamed():
    for asks in (False, True):
        options = {"stream_options": {"include_usage": True}} if asks else {}
        stream = gpt.chat.completions.create(
            model="fast",
            messages=user("say [answer]"),
            stream=True,
            extra_headers={"X-Flowledger-Tags": f"streamed-{asks}"},
            **options,
        )
        chunks = list(stream)
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert text == PARIS, text
        shown = [c.usage for c in chunks if c.usage]
        assert bool(shown) == asks, shown
        row = ledger(tags=f"streamed-{asks}", status="SUCCESS")
        assert (row["input_tokens"], row["output_tokens"]) == (1234, 56), row
        assert row["first_token_ms"] <= row["latency_ms"], row


def openai_tools():
    answer = gpt.chat.completions.create(
        model="gpt-4o-mini",
        messages=user("say [tool]"),
        tools=[{"type": "function", "function": {"name": "get_weather", "parameters": TOOL}}],
    )
    call = answer.choices[0].message.tool_calls[0]
    assert (call.function.name, call.function.arguments) == ("get_weather", '{"city":"Paris"}'), call
    stream = gpt.chat.completions.create(
        model="gpt-4o-mini", messages=user("say [tool]"), stream=True,
        tools=[{"type": "function", "function": {"name": "get_weather", "parameters": TOOL}}],
    )
    arguments = ""
    for chunk in stream:
        for part in (chunk.choices[0].delta.tool_calls or []) if chunk.choices else []:
            arguments += part.function.arguments or ""
    assert arguments == '{"city":"Paris"}', arguments


def openai_errors():
    ask = lambda text: lambda: gpt.chat.completions.create(model="gpt-4o-mini", messages=user(text))
    assert refuses(openai.BadRequestError, ask("say [400]")).status_code == 400
    refuses(openai.AuthenticationError, ask("say [401]"))
    refuses(openai.RateLimitError, ask("say [429]"))
    refuses(openai.InternalServerError, ask("say [500]"))
    # Only calls that generate text are translated.
    wrong = lambda: gpt.embeddings.create(model="anthropic/claude-haiku-4-5", input="x")
    error = refuses(openai.BadRequestError, wrong)
    assert error.code == "wrong_protocol", error


def openai_broken():
    stream = gpt.chat.completions.create(
        model="gpt-4o-mini", messages=user("say [cut]"), stream=True,
        extra_headers={"X-Flowledger-Tags": "cut"},
    )
    seen = []

    def read():
        for chunk in stream:
            seen.extend(c.delta.content or "" for c in chunk.choices)

    error = refuses(openai.APIError, read)
    assert "".join(seen) and "connection lost" in error.message, (seen, error)
    row = ledger(tags="cut")
    assert row["status"] == "FAILED" and row["usage_source"] == "estimated", row
    assert row["output_tokens"] > 0 and row["total_cost_usd"] > 0, row


def openai_images():
    pixel = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    answer = gpt.chat.completions.create(
        model="gpt-4o-mini",
        messages=[{"role": "user", "content": [
            {"type": "text", "text": "say [answer]"},
            {"type": "image_url", "image_url": {"url": pixel}},
        ]}],
    )
    assert answer.choices[0].message.content == PARIS


def keys():
    made = gpt.post("/../api/keys", cast_to=object, body={
        "name": "laptop", "budget": {"per": "day", "limitTokens": 100_000, "onShort": "refuse"}})
    own = gpt.with_options(api_key=made["key"])
    own.chat.completions.create(model="gpt-4o-mini", messages=user("say [answer]"))
    assert ledger(key_name="laptop")["input_tokens"] == 1234
    theirs = claude.with_options(api_key=made["key"])
    ask = lambda: theirs.messages.create(
        model="claude-haiku-4-5", max_tokens=200_000, messages=user("say [answer]"))
    assert "laptop" in refuses(anthropic.APIStatusError, ask).message
    assert ledger(key_name="laptop", refused="budget")["total_cost_usd"] == 0


def openai_retries():
    patient = gpt.with_options(max_retries=2)
    answer = patient.chat.completions.create(
        model="gpt-4o-mini", messages=user("say [flaky]"),
        extra_headers={"X-Flowledger-Tags": "flaky"},
    )
    assert answer.choices[0].message.content
    ledger(tags="flaky", status="FAILED")
    ledger(tags="flaky", status="SUCCESS")


def anthropic_whole():
    message = claude.messages.create(
        model="claude-haiku-4-5", max_tokens=100, messages=user("say [answer]"),
        system="Be brief.", extra_headers={"X-Flowledger-Tags": "message"},
    )
    assert message.content[0].text == PARIS
    row = ledger(tags="message")
    assert (row["provider"], row["input_tokens"], row["output_tokens"]) == ("anthropic", 1234, 56), row


def anthropic_streamed():
    with claude.messages.stream(
        model="anthropic/claude-haiku-4-5", max_tokens=100, messages=user("say [answer]"),
        extra_headers={"X-Flowledger-Tags": "message-streamed"},
    ) as stream:
        assert "".join(stream.text_stream) == PARIS
        assert stream.get_final_message().usage.output_tokens == 56
    row = ledger(tags="message-streamed")
    assert (row["input_tokens"], row["output_tokens"]) == (1234, 56), row


def anthropic_tools():
    with claude.messages.stream(
        model="claude-haiku-4-5", max_tokens=100, messages=user("say [tool]"),
        tools=[{"name": "get_weather", "input_schema": TOOL}],
    ) as stream:
        message = stream.get_final_message()
    uses = [block for block in message.content if block.type == "tool_use"]
    assert uses[0].name == "get_weather" and uses[0].input == {"city": "Paris"}, message


def anthropic_broken():
    def read():
        with claude.messages.stream(
            model="claude-haiku-4-5", max_tokens=100, messages=user("say [cut]"),
            extra_headers={"X-Flowledger-Tags": "message-cut"},
        ) as stream:
            list(stream)

    error = refuses(anthropic.APIError, read)
    assert "connection lost" in error.message, error
    row = ledger(tags="message-cut")
    assert row["status"] == "FAILED" and row["usage_source"] == "estimated", row


def anthropic_errors():
    ask = lambda text, model="claude-haiku-4-5": lambda: claude.messages.create(
        model=model, max_tokens=9, messages=user(text)
    )
    refuses(anthropic.BadRequestError, ask("say [400]"))
    refuses(anthropic.RateLimitError, ask("say [429]"))
    assert refuses(anthropic.APIStatusError, ask("say [529]")).status_code == 529
    error = refuses(anthropic.BadRequestError, ask("say [400]", "openai/gpt-4o-mini"))
    assert error.body["error"]["type"] == "invalid_request_error", error.body


def other_apis():
    answer = gpt.chat.completions.create(model="anthropic/claude-haiku-4-5", messages=user("say [answer]"))
    assert answer.choices[0].message.content == PARIS
    message = claude.messages.create(model="openai/gpt-4o-mini", max_tokens=99, messages=user("say [answer]"))
    assert message.content[0].text == PARIS


def echo():
    answer = gpt.chat.completions.create(model="echo/echo-1", messages=user("Hi"))
    assert answer.choices[0].message.content == "[echo of echo-1] Hi"
    with claude.messages.stream(model="echo/echo-1", max_tokens=9, messages=user("Hi")) as stream:
        assert stream.get_final_text() == "[echo of echo-1] Hi"
        assert stream.get_final_message().usage.output_tokens == 4
    stream = gpt.chat.completions.create(model="echo/echo-1", messages=user("Hi"), stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in stream) == "[echo of echo-1] Hi"


def models():
    names = [model.id for model in gpt.models.list()]
    assert "fast" in names and "echo/echo-1" in names, names
    # Anthropic's clients can use the models of all providers.
    theirs = [model.id for model in claude.models.list()]
    assert "echo/echo-1" in theirs and any(name.startswith("openai/") for name in theirs), theirs


for check in (
    openai_whole, openai_streamed, openai_tools, openai_errors, openai_broken, openai_images, openai_retries,
    anthropic_whole, anthropic_streamed, anthropic_tools, anthropic_errors, anthropic_broken, keys, echo, models,
    other_apis,
):
    check()
    print(f"{check.__name__}: ok", flush=True)
