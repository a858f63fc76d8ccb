"""Ollama's Python client with Ollama's own protocol."""

import ollama
from checks import BASE, KEY, PARAMETERS, QUESTION, TOOL_QUESTION, run, same

client = ollama.Client(host=BASE, timeout=20, headers={"Authorization": f"Bearer {KEY}"})
MODEL = "llama3.2"


def user(text):
    return {"role": "user", "content": text}


def chat():
    response = client.chat(model=MODEL, messages=[user(QUESTION)])
    same(response.message.content)
    assert response.eval_count > 0, response


def chat_streamed():
    stream = client.chat(model=MODEL, messages=[user(QUESTION)], stream=True)
    same("".join(part.message.content for part in stream))


def chat_with_a_tool():
    tools = [{"type": "function", "function": {
        "name": "get_weather", "description": "Returns the weather", "parameters": PARAMETERS}}]
    for stream in (False, True):
        response = client.chat(model=MODEL, messages=[user(TOOL_QUESTION)], tools=tools, stream=stream)
        messages = [part.message for part in response] if stream else [response.message]
        calls = [call for message in messages for call in message.tool_calls or []]
        same(dict(calls[0].function.arguments), {"city": "Paris"})
        result = {"role": "tool", "tool_name": "get_weather", "content": "sunny"}
        dialogue = [user(TOOL_QUESTION), messages[0], result]
        same(client.chat(model=MODEL, messages=dialogue, tools=tools).message.content)


def generate():
    same(client.generate(model=MODEL, prompt=QUESTION).response)
    same("".join(part.response for part in client.generate(model=MODEL, prompt=QUESTION, stream=True)))


def embed():
    same(client.embed(model=MODEL, input=["a", "b"]).embeddings, [[0.5, -0.25, 0.125]] * 2)


def models():
    names = [model.model for model in client.list().models]
    assert any(MODEL in name for name in names), names
    assert "tools" in client.show(MODEL).capabilities


run(chat, chat_streamed, chat_with_a_tool, generate, embed, models)
