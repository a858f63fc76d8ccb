// OpenAI's JavaScript SDK: chat completions, responses, embeddings and models.
import assert from "node:assert";
import OpenAI from "openai";
import { BASE, KEY, PARAMETERS, QUESTION, TOOL_QUESTION, VECTOR, run, same } from "./checks.mjs";

const client = new OpenAI({ baseURL: `${BASE}/v1`, apiKey: KEY, timeout: 20_000, maxRetries: 0 });
const model = "gpt-4o-mini";
const user = (content) => [{ role: "user", content }];

async function chat() {
  const answer = await client.chat.completions.create({ model, messages: user(QUESTION) });
  same(answer.choices[0].message.content);
}

async function chat_streamed() {
  let text = "";
  for await (const chunk of await client.chat.completions.create({ model, messages: user(QUESTION), stream: true })) {
    text += chunk.choices[0]?.delta.content ?? "";
  }
  same(text);
}

async function chat_streamed_with_a_tool() {
  const parse = JSON.parse;
  const call = ({ city }) => (same(city, "Paris"), "sunny");
  const runner = client.chat.completions.runTools({
    model, messages: user(TOOL_QUESTION), stream: true,
    tools: [{ type: "function", function: {
      name: "get_weather", description: "Weather", parameters: PARAMETERS, function: call, parse } }],
  });
  same(await runner.finalContent());
}

async function responses() {
  const response = await client.responses.create({ model, input: QUESTION });
  same(response.output_text);
  same((await client.responses.retrieve(response.id)).output_text);
  await client.responses.delete(response.id);
}

async function responses_streamed_with_a_tool() {
  const tools = [{ type: "function", name: "get_weather", parameters: PARAMETERS, strict: true }];
  const input = user(TOOL_QUESTION);
  const called = await client.responses.stream({ model, input, tools }).finalResponse();
  const call = called.output.find((item) => item.type === "function_call");
  same(JSON.parse(call.arguments), { city: "Paris" });
  const result = { type: "function_call_output", call_id: call.call_id, output: "sunny" };
  const items = called.output.map(({ parsed_arguments, ...item }) => item);
  const stream = client.responses.stream({ model, input: [...input, ...items, result], tools });
  const response = await stream.finalResponse();
  same(response.output_text);
  assert(response.usage.output_tokens_details.reasoning_tokens > 0);
}

async function embeddings() {
  // The SDK asks for base64 and decodes it.
  const answer = await client.embeddings.create({ model: "text-embedding-3-small", input: "a" });
  same(answer.data[0].embedding, VECTOR);
}

async function models() {
  const names = (await client.models.list()).data.map(({ id }) => id);
  assert(names.some((name) => name.endsWith(model)), names);
}

await run(chat, chat_streamed, chat_streamed_with_a_tool, responses, responses_streamed_with_a_tool,
  embeddings, models);
