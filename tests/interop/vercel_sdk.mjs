// Vercel's AI SDK with the providers of OpenAI (responses and chat), Anthropic and Google.
import { createAnthropic } from "@ai-sdk/anthropic";
import { createGoogleGenerativeAI } from "@ai-sdk/google";
import { createOpenAI } from "@ai-sdk/openai";
import { embed, generateText, stepCountIs, jsonSchema, streamText, tool } from "ai";
import { BASE, KEY, PARAMETERS, QUESTION, TOOL_QUESTION, VECTOR, run, same } from "./checks.mjs";

const openai = createOpenAI({ baseURL: `${BASE}/v1`, apiKey: KEY });
const anthropic = createAnthropic({ baseURL: `${BASE}/v1`, apiKey: KEY });
const google = createGoogleGenerativeAI({ baseURL: `${BASE}/v1beta`, apiKey: KEY });

const tools = {
  get_weather: tool({
    description: "Returns the weather of a city",
    inputSchema: jsonSchema(PARAMETERS),
    execute: async ({ city }) => (same(city, "Paris"), "sunny"),
  }),
};

async function ask(model) {
  const abortSignal = AbortSignal.timeout(20_000);
  const options = { model, abortSignal, maxRetries: 0 };
  same((await generateText({ ...options, prompt: QUESTION })).text);
  const onError = ({ error }) => {
    throw error;
  };
  const steps = { tools, stopWhen: stepCountIs(3), onError };
  const stream = streamText({ ...options, ...steps, prompt: TOOL_QUESTION });
  let text = "";
  for await (const part of stream.textStream) text += part;
  same(text);
}

const openai_responses = () => ask(openai("gpt-4o-mini"));
const openai_chat = () => ask(openai.chat("gpt-4o-mini"));
const anthropic_messages = () => ask(anthropic("claude-haiku-4-5"));
const google_gemini = () => ask(google("gemini-2.5-flash"));

async function embeddings() {
  for (const model of [openai.embedding("text-embedding-3-small"), google.embedding("gemini-embedding-001")]) {
    same((await embed({ model, value: "a", maxRetries: 0 })).embedding, VECTOR);
  }
}

await run(openai_responses, openai_chat, anthropic_messages, google_gemini, embeddings);
