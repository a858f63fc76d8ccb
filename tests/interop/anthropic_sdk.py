"""Anthropic's Python SDK: messages, token counts and models."""

import anthropic
from checks import BASE, KEY, PARAMETERS, QUESTION, TOOL_QUESTION, run, same

client = anthropic.Anthropic(base_url=BASE, api_key=KEY, timeout=20, max_retries=0)
MODEL = "claude-haiku-4-5"
TOOLS = [{"name": "get_weather", "input_schema": PARAMETERS}]


def user(text):
    return [{"role": "user", "content": text}]


def messages():
    message = client.messages.create(model=MODEL, max_tokens=500, messages=user(QUESTION))
    same(message.content[0].text)
    assert message.usage.cache_creation_input_tokens > 0, message.usage


def messages_streamed():
    with client.messages.stream(model=MODEL, max_tokens=500, messages=user(QUESTION)) as stream:
        same("".join(stream.text_stream))


def beta_messages_streamed():
    stream = client.beta.messages.create(
        model=MODEL, max_tokens=500, messages=user(QUESTION), stream=True,
        betas=["context-management-2025-06-27"],
    )
    deltas = (event.delta for event in stream if event.type == "content_block_delta")
    same("".join(delta.text for delta in deltas))


def messages_with_a_tool():
    for stream in (False, True):
        request = {"model": MODEL, "max_tokens": 500, "tools": TOOLS}
        if stream:
            with client.messages.stream(messages=user(TOOL_QUESTION), **request) as events:
                message = events.get_final_message()
        else:
            message = client.messages.create(messages=user(TOOL_QUESTION), **request)
        use = message.content[0]
        same(use.input, {"city": "Paris"})
        result = {"type": "tool_result", "tool_use_id": use.id, "content": "sunny"}
        dialogue = [*user(TOOL_QUESTION), {"role": "assistant", "content": message.content}, *user([result])]
        same(client.messages.create(messages=dialogue, **request).content[0].text)


def count_tokens():
    same(client.messages.count_tokens(model=MODEL, messages=user(QUESTION)).input_tokens, 17)


def models():
    names = [model.id for model in client.models.list()]
    assert any(name.endswith(MODEL) for name in names), names


run(messages, messages_streamed, beta_messages_streamed, messages_with_a_tool, count_tokens, models)
