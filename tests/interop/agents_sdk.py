"""OpenAI's Agents SDK: agents with a tool, on responses and on chat completions, also streamed."""

import asyncio

from agents import Agent, OpenAIChatCompletionsModel, OpenAIResponsesModel, Runner, function_tool
from agents import set_tracing_disabled
from checks import BASE, KEY, TOOL_QUESTION, run, same
from openai import AsyncOpenAI

# Traces would go to OpenAI.
set_tracing_disabled(True)


@function_tool
def get_weather(city: str) -> str:
    """Returns the weather of a city."""
    same(city, "Paris")
    return "sunny"


async def ask(model_class, streamed):
    async with AsyncOpenAI(base_url=f"{BASE}/v1", api_key=KEY, timeout=20, max_retries=0) as client:
        model = model_class(model="gpt-4o-mini", openai_client=client)
        agent = Agent(name="Weather", instructions="Be brief.", tools=[get_weather], model=model)
        if streamed:
            result = Runner.run_streamed(agent, TOOL_QUESTION)
            async for _ in result.stream_events():
                pass
        else:
            result = await Runner.run(agent, TOOL_QUESTION)
        same(result.final_output)


def responses():
    asyncio.run(ask(OpenAIResponsesModel, streamed=False))


def responses_streamed():
    asyncio.run(ask(OpenAIResponsesModel, streamed=True))


def chat():
    asyncio.run(ask(OpenAIChatCompletionsModel, streamed=False))


def chat_streamed():
    asyncio.run(ask(OpenAIChatCompletionsModel, streamed=True))


run(responses, responses_streamed, chat, chat_streamed)
