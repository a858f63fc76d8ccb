"""OpenAI's Python SDK: chat completions, responses, completions, embeddings and models."""

import json

import openai
from checks import BASE, KEY, PARAMETERS, QUESTION, TOOL_QUESTION, run, same

client = openai.OpenAI(base_url=f"{BASE}/v1", api_key=KEY, timeout=20, max_retries=0)
MODEL = "gpt-4o-mini"


def chat():
    answer = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": QUESTION}])
    same(answer.choices[0].message.content)


def chat_streamed():
    stream = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": QUESTION}], stream=True
    )
    same("".join(c.choices[0].delta.content or "" for c in stream if c.choices))


def chat_streamed_with_usage():
    chunks = list(client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": QUESTION}], stream=True,
        stream_options={"include_usage": True},
    ))
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens > 0, chunks[-1]


def chat_with_a_tool():
    messages = [{"role": "user", "content": TOOL_QUESTION}]
    tools = [{"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS}}]
    for stream in (False, True):
        if stream:
            with client.chat.completions.stream(model=MODEL, messages=messages, tools=tools) as events:
                for _ in events:
                    pass
                message = events.get_final_completion().choices[0].message
        else:
            answer = client.chat.completions.create(model=MODEL, messages=messages, tools=tools)
            message = answer.choices[0].message
        call = message.tool_calls[0]
        same(json.loads(call.function.arguments), {"city": "Paris"})
        result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
        # Without `parsed_arguments`, which only the SDK knows.
        fields = {"id": True, "type": True, "function": {"name", "arguments"}}
        called = {"role": "assistant", "tool_calls": [call.model_dump(include=fields)]}
        answer = client.chat.completions.create(
            model=MODEL, messages=[*messages, called, result], tools=tools
        )
        same(answer.choices[0].message.content)


def completions():
    same(client.completions.create(model="gpt-3.5-turbo-instruct", prompt=QUESTION).choices[0].text)


def responses():
    response = client.responses.create(model=MODEL, input=QUESTION)
    same(response.output_text)
    same(client.responses.retrieve(response.id).output_text)
    client.responses.input_items.list(response.id)
    client.responses.delete(response.id)
    try:
        client.responses.retrieve(response.id)
    except openai.NotFoundError:
        return
    raise AssertionError("a deleted response was found")


def responses_streamed():
    with client.responses.stream(model=MODEL, input=QUESTION) as stream:
        text = "".join(e.delta for e in stream if e.type == "response.output_text.delta")
        final = stream.get_final_response()
    same(text)
    same(final.output_text)
    assert final.usage.output_tokens_details.reasoning_tokens > 0, final.usage


def responses_with_a_tool():
    question = [{"role": "user", "content": TOOL_QUESTION}]
    tools = [{"type": "function", "name": "get_weather", "parameters": PARAMETERS, "strict": True}]
    response = client.responses.create(
        model=MODEL, input=question, tools=tools, store=False, include=["reasoning.encrypted_content"]
    )
    thought, call = response.output
    assert thought.encrypted_content and json.loads(call.arguments) == {"city": "Paris"}, response.output
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    items = [item.model_dump(exclude_none=True) for item in response.output]
    same(client.responses.create(model=MODEL, input=[*question, *items, result], tools=tools).output_text)


def embeddings():
    answer = client.embeddings.create(model="text-embedding-3-small", input=["a", "b"])
    same([item.embedding for item in answer.data], [[0.5, -0.25, 0.125]] * 2)


def models():
    names = [model.id for model in client.models.list()]
    assert any(name.endswith(MODEL) for name in names), names


run(chat, chat_streamed, chat_streamed_with_usage, chat_with_a_tool, completions, responses,
    responses_streamed, responses_with_a_tool, embeddings, models)
