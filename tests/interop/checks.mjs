// Shared by the JavaScript scripts: the address to test, and the loop over the checks of a script.
import assert from "node:assert";

// flowledger's address (http://HOST:PORT) or the upstream's own, and a key for it.
export const [BASE, KEY] = process.argv.slice(2);
export const ANSWER = "Paris is the capital of France.";
export const QUESTION = "What is the capital of France?";
// The upstream calls an offered tool for this, and answers once it has the result.
export const TOOL_QUESTION = "What is the weather there? [tool]";
export const PARAMETERS = {
  type: "object",
  properties: { city: { type: "string" } },
  required: ["city"],
  additionalProperties: false,
};
export const VECTOR = [0.5, -0.25, 0.125];

export const same = (actual, expected = ANSWER) => assert.deepStrictEqual(actual, expected);

export async function run(...checks) {
  for (const check of checks) {
    await check();
    console.log(`${check.name}: ok`);
  }
}
