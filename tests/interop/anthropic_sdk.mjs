// Anthropic's TypeScript SDK: messages, token counts and models.
import assert from "node:assert";
import Anthropic from "@anthropic-ai/sdk";
import { BASE, KEY, PARAMETERS, QUESTION, TOOL_QUESTION, run, same } from "./checks.mjs";

const client = new Anthropic({ baseURL: BASE, apiKey: KEY, timeout: 20_000, maxRetries: 0 });
const model = "claude-haiku-4-5";
const max_tokens = 500;
const user = (content) => ({ role: "user", content });

async function messages() {
  const message = await client.messages.create({ model, max_tokens, messages: [user(QUESTION)] });
  same(message.content[0].text);
}

async function messages_streamed() {
  const stream = client.messages.stream({ model, max_tokens, messages: [user(QUESTION)] });
  same(await stream.finalText());
}

async function messages_streamed_with_a_tool() {
  const tools = [{ name: "get_weather", input_schema: PARAMETERS }];
  const messages = [user(TOOL_QUESTION)];
  const called = await client.messages.stream({ model, max_tokens, messages, tools }).finalMessage();
  const [use] = called.content;
  same(use.input, { city: "Paris" });
  const result = { type: "tool_result", tool_use_id: use.id, content: "sunny" };
  messages.push({ role: "assistant", content: called.content }, user([result]));
  same(await client.messages.stream({ model, max_tokens, messages, tools }).finalText());
}

async function count_tokens() {
  same((await client.messages.countTokens({ model, messages: [user(QUESTION)] })).input_tokens, 17);
}

async function models() {
  const names = (await client.models.list()).data.map(({ id }) => id);
  assert(names.some((name) => name.endsWith(model)), names);
}

await run(messages, messages_streamed, messages_streamed_with_a_tool, count_tokens, models);
