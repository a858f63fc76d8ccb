"""Google's Python SDK (google-genai) with Gemini's own protocol."""

from checks import BASE, KEY, QUESTION, TOOL_QUESTION, run, same
from google import genai
from google.genai import types

client = genai.Client(
    api_key=KEY, vertexai=False, http_options=types.HttpOptions(base_url=BASE, timeout=20_000)
)
MODEL = "gemini-2.5-flash"


def generate():
    response = client.models.generate_content(model=MODEL, contents=QUESTION)
    same(response.text)
    assert response.usage_metadata.thoughts_token_count > 0, response.usage_metadata


def generate_streamed():
    stream = client.models.generate_content_stream(model=MODEL, contents=QUESTION)
    same("".join(chunk.text for chunk in stream))


def generate_with_a_tool():
    def get_weather(city: str) -> str:
        """Returns the weather of a city."""
        same(city, "Paris")
        return "sunny"

    config = types.GenerateContentConfig(tools=[get_weather])
    same(client.chats.create(model=MODEL, config=config).send_message(TOOL_QUESTION).text)
    chunks = client.chats.create(model=MODEL, config=config).send_message_stream(TOOL_QUESTION)
    parts = (part for chunk in chunks for part in chunk.candidates[0].content.parts)
    same("".join(part.text or "" for part in parts))


def count_tokens():
    same(client.models.count_tokens(model=MODEL, contents=QUESTION).total_tokens, 17)


def embed():
    response = client.models.embed_content(model="gemini-embedding-001", contents="a")
    same(response.embeddings[0].values, [0.5, -0.25, 0.125])


def models():
    names = [model.name for model in client.models.list()]
    assert any(name.endswith(MODEL) for name in names), names
    assert client.models.get(model=MODEL).name.endswith(MODEL)


run(generate, generate_streamed, generate_with_a_tool, count_tokens, embed, models)
