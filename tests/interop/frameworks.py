"""LangChain, LlamaIndex, LiteLLM, DSPy and llm, each streamed and with a tool if it can."""

import os
import subprocess
import sys

from checks import ANSWER, BASE, KEY, PARAMETERS, QUESTION, TOOL_QUESTION, run, same

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
HEADERS = {"Authorization": f"Bearer {KEY}"}
GPT, CLAUDE, GEMINI, LLAMA = "gpt-4o-mini", "claude-haiku-4-5", "gemini-2.5-flash", "llama3.2"


def langchain():
    from langchain_anthropic import ChatAnthropic
    from langchain_core.messages import HumanMessage, ToolMessage
    from langchain_google_genai import ChatGoogleGenerativeAI
    from langchain_ollama import ChatOllama
    from langchain_openai import ChatOpenAI, OpenAIEmbeddings

    def get_weather(city: str) -> str:
        """Returns the weather of a city."""
        return "sunny"

    for model in (
        ChatOpenAI(model=GPT, base_url=f"{BASE}/v1", api_key=KEY, max_retries=0),
        ChatOpenAI(model=GPT, base_url=f"{BASE}/v1", api_key=KEY, use_responses_api=True),
        ChatAnthropic(model=CLAUDE, base_url=BASE, api_key=KEY, max_retries=0),
        ChatGoogleGenerativeAI(model=GEMINI, base_url=BASE, api_key=KEY),
        ChatOllama(model=LLAMA, base_url=BASE, client_kwargs={"headers": HEADERS}),
    ):
        same(model.invoke(QUESTION).text)
        same("".join(chunk.text for chunk in model.stream(QUESTION)))
        agent = model.bind_tools([get_weather])
        called = agent.invoke([HumanMessage(TOOL_QUESTION)])
        [call] = called.tool_calls
        same(call["args"], {"city": "Paris"})
        result = ToolMessage("sunny", tool_call_id=call["id"], name="get_weather")
        same(agent.invoke([HumanMessage(TOOL_QUESTION), called, result]).text)
    embeddings = OpenAIEmbeddings(
        model="text-embedding-3-small", base_url=f"{BASE}/v1", api_key=KEY,
        check_embedding_ctx_length=False,
    )
    same(embeddings.embed_query("a"), [0.5, -0.25, 0.125])


def llama_index():
    from llama_index.llms.openai import OpenAI
    from llama_index.llms.openai_like import OpenAILike

    like = OpenAILike(
        model=GPT, api_base=f"{BASE}/v1", api_key=KEY, is_chat_model=True, context_window=128_000
    )
    for model in (OpenAI(model=GPT, api_base=f"{BASE}/v1", api_key=KEY, max_retries=0), like):
        same(model.complete(QUESTION).text)
        same("".join(part.delta for part in model.stream_complete(QUESTION)))


def litellm():
    from litellm import completion, embedding, responses

    tools = [{"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS}}]
    for model, base in (
        (f"openai/{GPT}", f"{BASE}/v1"),
        (f"anthropic/{CLAUDE}", BASE),
        (f"gemini/{GEMINI}", f"{BASE}/v1beta"),
        (f"ollama_chat/{LLAMA}", BASE),
    ):
        options = {"model": model, "api_base": base, "api_key": KEY, "num_retries": 0}
        user = [{"role": "user", "content": QUESTION}]
        same(completion(messages=user, **options).choices[0].message.content)
        stream = completion(messages=user, stream=True, **options)
        same("".join(chunk.choices[0].delta.content or "" for chunk in stream))
        user = [{"role": "user", "content": TOOL_QUESTION}]
        called = completion(messages=user, tools=tools, **options).choices[0].message
        same(called.tool_calls[0].function.name, "get_weather")
    options = {"api_base": f"{BASE}/v1", "api_key": KEY}
    same(responses(model=f"openai/{GPT}", input=QUESTION, **options).output[-1].content[0].text)
    embedding(model="openai/text-embedding-3-small", input=["a"], **options)


def dspy():
    import dspy

    model = dspy.LM(f"openai/{GPT}", api_base=f"{BASE}/v1", api_key=KEY, cache=False)
    same(model(QUESTION), [ANSWER])


def llm():
    home = os.environ["HOME"]
    with open(f"{home}/extra-openai-models.yaml", "w") as file:
        file.write(f"""
- model_id: flowledger
  model_name: {GPT}
  api_base: {BASE}/v1
  api_key_name: flowledger
""")
    env = {**os.environ, "LLM_USER_PATH": home}
    for options in ([], ["--no-stream"]):
        command = [f"{os.path.dirname(sys.executable)}/llm", "-m", "flowledger", "--key", KEY, *options]
        same(subprocess.run([*command, QUESTION], env=env, stdin=subprocess.DEVNULL, text=True, check=True,
                            stdout=subprocess.PIPE).stdout.strip())


run(langchain, llama_index, litellm, dspy, llm)
