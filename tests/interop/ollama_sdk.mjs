// Ollama's JavaScript client with Ollama's own protocol.
import assert from "node:assert";
import { Ollama } from "ollama";
import { BASE, KEY, PARAMETERS, QUESTION, TOOL_QUESTION, VECTOR, run, same } from "./checks.mjs";

const client = new Ollama({ host: BASE, headers: { Authorization: `Bearer ${KEY}` } });
const model = "llama3.2";
const user = (content) => ({ role: "user", content });

async function chat() {
  same((await client.chat({ model, messages: [user(QUESTION)] })).message.content);
}

async function chat_streamed() {
  let text = "";
  for await (const part of await client.chat({ model, messages: [user(QUESTION)], stream: true })) {
    text += part.message.content;
  }
  same(text);
}

async function chat_with_a_tool() {
  const tools = [{ type: "function", function: {
    name: "get_weather", description: "Returns the weather", parameters: PARAMETERS } }];
  const messages = [user(TOOL_QUESTION)];
  const { message } = await client.chat({ model, messages, tools });
  same(message.tool_calls[0].function.arguments, { city: "Paris" });
  messages.push(message, { role: "tool", tool_name: "get_weather", content: "sunny" });
  same((await client.chat({ model, messages, tools })).message.content);
}

async function generate() {
  same((await client.generate({ model, prompt: QUESTION })).response);
}

async function embed() {
  same((await client.embed({ model, input: "a" })).embeddings, [VECTOR]);
}

async function models() {
  const names = (await client.list()).models.map(({ name }) => name);
  assert(names.some((name) => name.includes(model)), names);
  assert((await client.show({ model })).capabilities.includes("tools"));
}

await run(chat, chat_streamed, chat_with_a_tool, generate, embed, models);
