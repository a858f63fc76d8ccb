"""Pydantic AI with the providers of OpenAI (chat and responses), Anthropic and Google."""

from checks import BASE, KEY, TOOL_QUESTION, run, same
from pydantic_ai import Agent
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.google import GoogleModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.google import GoogleProvider
from pydantic_ai.providers.openai import OpenAIProvider


def get_weather(city: str) -> str:
    """Returns the weather of a city."""
    return "sunny"


def ask(model):
    agent = Agent(model, tools=[get_weather])
    same(agent.run_sync(TOOL_QUESTION).output)
    same(agent.run_stream_sync(TOOL_QUESTION).get_output())


def openai_chat():
    ask(OpenAIChatModel("gpt-4o-mini", provider=OpenAIProvider(base_url=f"{BASE}/v1", api_key=KEY)))


def openai_responses():
    ask(OpenAIResponsesModel("gpt-4o-mini", provider=OpenAIProvider(base_url=f"{BASE}/v1", api_key=KEY)))


def anthropic():
    ask(AnthropicModel("claude-haiku-4-5", provider=AnthropicProvider(base_url=BASE, api_key=KEY)))


def google():
    ask(GoogleModel("gemini-2.5-flash", provider=GoogleProvider(base_url=BASE, api_key=KEY)))


run(openai_chat, openai_responses, anthropic, google)
