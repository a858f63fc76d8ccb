/** Set-ups of common clients, to copy. The facts are those of docs/clients.md. Pure. */

/** Base URLs by protocol: id, name, path after the address of the server, note. */
export const PROTOCOLS = [
  ["openai", "OpenAI", "/v1", ""],
  ["anthropic", "Anthropic and Ollama", "", ""],
  ["gemini", "Gemini", "", "With /v1beta if the client adds no version."],
];

/**
 * `blocks({ base, key })` returns pairs of a title (a language or a file) and a text; `base` is the address of the
 * server without a slash at its end.
 */
export const SETUPS = [
  {
    id: "openai-python", group: "SDKs", name: "OpenAI SDK, Python",
    blocks: ({ base, key }) => [["Python", `from openai import OpenAI
client = OpenAI(base_url="${base}/v1", api_key="${key}")
answer = client.responses.create(model="gpt-4o-mini", input="Why do bees dance?")
print(answer.output_text)`]],
  },
  {
    id: "openai-node", group: "SDKs", name: "OpenAI SDK, Node.js",
    blocks: ({ base, key }) => [["JavaScript", `import OpenAI from "openai";
const client = new OpenAI({ baseURL: "${base}/v1", apiKey: "${key}" });
const answer = await client.responses.create({ model: "gpt-4o-mini", input: "Why do bees dance?" });
console.log(answer.output_text);`]],
  },
  {
    id: "anthropic", group: "SDKs", name: "Anthropic SDK",
    blocks: ({ base, key }) => [["Python", `from anthropic import Anthropic
client = Anthropic(base_url="${base}", api_key="${key}")`], ["JavaScript", `import Anthropic from "@anthropic-ai/sdk";
const client = new Anthropic({ baseURL: "${base}", apiKey: "${key}" });`]],
  },
  {
    id: "gemini", group: "SDKs", name: "Google Gen AI SDK",
    blocks: ({ base, key }) => [["Python", `from google import genai
client = genai.Client(api_key="${key}", http_options={"base_url": "${base}"})`], ["JavaScript", `import { GoogleGenAI } from "@google/genai";
const client = new GoogleGenAI({ apiKey: "${key}", httpOptions: { baseUrl: "${base}" } });`]],
  },
  {
    id: "ollama", group: "SDKs", name: "Ollama",
    note: "Programs that read OLLAMA_HOST need only this variable. Ollama's own clients send no key, so the server must run without a token.",
    blocks: ({ base }) => [["Shell", `export OLLAMA_HOST=${base}`], ["Python", `from ollama import Client
client = Client(host="${base}")`], ["JavaScript", `import { Ollama } from "ollama";
const client = new Ollama({ host: "${base}" });`]],
  },
  {
    id: "vercel", group: "SDKs", name: "Vercel AI SDK",
    blocks: ({ base, key }) => [["JavaScript", `import { createOpenAI } from "@ai-sdk/openai";
import { createAnthropic } from "@ai-sdk/anthropic";
import { createGoogleGenerativeAI } from "@ai-sdk/google";
const openai = createOpenAI({ baseURL: "${base}/v1", apiKey: "${key}" });
const anthropic = createAnthropic({ baseURL: "${base}/v1", apiKey: "${key}" });
const google = createGoogleGenerativeAI({ baseURL: "${base}/v1beta", apiKey: "${key}" });`]],
  },
  {
    id: "langchain", group: "SDKs", name: "LangChain",
    note: "OpenAIEmbeddings with a model that tiktoken does not know needs check_embedding_ctx_length=False.",
    blocks: ({ base, key }) => [["Python", `from langchain_anthropic import ChatAnthropic
from langchain_google_genai import ChatGoogleGenerativeAI
from langchain_ollama import ChatOllama
from langchain_openai import ChatOpenAI
ChatOpenAI(model="gpt-4o-mini", base_url="${base}/v1", api_key="${key}")
ChatAnthropic(model="claude-haiku-4-5", base_url="${base}", api_key="${key}")
ChatGoogleGenerativeAI(model="gemini-2.5-flash", base_url="${base}", api_key="${key}")
ChatOllama(model="llama3.2", base_url="${base}")`]],
  },
  {
    id: "claude-code", group: "Coding agents", name: "Claude Code",
    note: "With your own subscription, omit ANTHROPIC_AUTH_TOKEN and send the key beside the login.",
    blocks: ({ base, key }) => [["Shell", `export ANTHROPIC_BASE_URL=${base}
export ANTHROPIC_AUTH_TOKEN=${key}
export CLAUDE_CODE_ENABLE_GATEWAY_MODEL_DISCOVERY=1   # optional: the models of flowledger in /model
claude`], ["Shell, with a subscription", `export ANTHROPIC_BASE_URL=${base}
export ANTHROPIC_CUSTOM_HEADERS='x-flowledger-key: ${key}'
claude`]],
  },
  {
    id: "codex", group: "Coding agents", name: "Codex",
    blocks: ({ base, key }) => [["~/.codex/config.toml", `model = "gpt-5"
model_provider = "flowledger"

[model_providers.flowledger]
name = "flowledger"
base_url = "${base}/v1"
env_key = "FLOWLEDGER_KEY"
wire_api = "responses"`], ["Shell", `export FLOWLEDGER_KEY=${key}
codex`]],
  },
  {
    id: "gemini-cli", group: "Coding agents", name: "Gemini CLI",
    note: "Select “Use Gemini API Key” at the first start, or set it in the file.",
    blocks: ({ base, key }) => [["Shell", `export GOOGLE_GEMINI_BASE_URL=${base}
export GEMINI_API_KEY=${key}
gemini`], ["~/.gemini/settings.json", `{"security": {"auth": {"selectedType": "gemini-api-key"}}}`]],
  },
  {
    id: "opencode", group: "Coding agents", name: "opencode",
    note: "“npm” selects the protocol: @ai-sdk/openai for responses, @ai-sdk/anthropic for Anthropic's messages, and @ai-sdk/google with /v1beta in place of /v1 for Gemini.",
    blocks: ({ base, key }) => [["opencode.json", `{
  "provider": {
    "flowledger": {
      "npm": "@ai-sdk/openai-compatible",
      "options": {"baseURL": "${base}/v1", "apiKey": "${key}"},
      "models": {"gpt-4o-mini": {}, "groq/llama-3.1-8b-instant": {}}
    }
  },
  "model": "flowledger/gpt-4o-mini"
}`]],
  },
  {
    id: "cline", group: "Coding agents", name: "Cline",
    note: "In the extension for VS Code, select the API provider “OpenAI Compatible” and enter the same base URL.",
    blocks: ({ base, key }) => [["Shell", `cline auth openai -k ${key} -m gpt-4o-mini -b ${base}/v1
cline`]],
  },
  {
    id: "copilot", group: "Coding agents", name: "Copilot CLI",
    note: "For Anthropic's messages, set COPILOT_PROVIDER_TYPE=anthropic and omit /v1.",
    blocks: ({ base, key }) => [["Shell", `export COPILOT_PROVIDER_BASE_URL=${base}/v1
export COPILOT_PROVIDER_API_KEY=${key}
export COPILOT_PROVIDER_WIRE_API=responses             # or completions
export COPILOT_MODEL=gpt-5
copilot`]],
  },
  {
    id: "curl", group: "Other", name: "curl",
    note: "The provider “echo” works offline, is free and answers with the prompt.",
    blocks: ({ base, key }) => [["Shell", curl({ base, key })]],
  },
];

/** A first call that works without a provider's key. */
export const curl = ({ base, key }) => `curl '${base}/v1/chat/completions' \\
  -H 'Authorization: Bearer ${key}' \\
  -d '{"model": "echo/echo-1", "messages": [{"role": "user", "content": "Hi"}]}'`;
