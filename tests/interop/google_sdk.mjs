// Google's JavaScript SDK (@google/genai) with Gemini's own protocol.
import assert from "node:assert";
import { GoogleGenAI } from "@google/genai";
import { BASE, KEY, PARAMETERS, QUESTION, TOOL_QUESTION, VECTOR, run, same } from "./checks.mjs";

const client = new GoogleGenAI({ apiKey: KEY, vertexai: false, httpOptions: { baseUrl: BASE, timeout: 20_000 } });
const model = "gemini-2.5-flash";

async function collect(stream) {
  let text = "";
  for await (const chunk of await stream) text += chunk.text ?? "";
  return text;
}

async function generate() {
  same((await client.models.generateContent({ model, contents: QUESTION })).text);
}

async function generate_streamed() {
  same(await collect(client.models.generateContentStream({ model, contents: QUESTION })));
}

async function generate_with_a_tool() {
  const { additionalProperties, ...parametersJsonSchema } = PARAMETERS;
  const tools = [{ functionDeclarations: [{ name: "get_weather", parametersJsonSchema }] }];
  const contents = [{ role: "user", parts: [{ text: TOOL_QUESTION }] }];
  const called = await client.models.generateContent({ model, contents, config: { tools } });
  const [call] = called.functionCalls;
  same(call.args, { city: "Paris" });
  const response = { name: call.name, response: { output: "sunny" } };
  contents.push(called.candidates[0].content, { role: "user", parts: [{ functionResponse: response }] });
  same(await collect(client.models.generateContentStream({ model, contents, config: { tools } })));
}

async function count_tokens() {
  same((await client.models.countTokens({ model, contents: QUESTION })).totalTokens, 17);
}

async function embed() {
  const response = await client.models.embedContent({ model: "gemini-embedding-001", contents: "a" });
  same(response.embeddings[0].values, VECTOR);
}

async function models() {
  const names = [];
  for await (const { name } of await client.models.list()) names.push(name);
  assert(names.some((name) => name.endsWith(model)), names);
}

await run(generate, generate_streamed, generate_with_a_tool, count_tokens, embed, models);
