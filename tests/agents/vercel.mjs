// SPDX-License-Identifier: GPL-3.0-or-later
// The AI SDK, in both dialects: node vercel.mjs ENDPOINT. Prints what it saw as JSON; test_javascript.py says what that must be.
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, jsonSchema, stepCountIs, streamText, tool } from "ai";

globalThis.AI_SDK_LOG_WARNINGS = false;
const baseURL = `${process.argv[2]}/v1`;
const providers = {
  openai: createOpenAICompatible({ name: "cortex", baseURL, apiKey: "none", includeUsage: true }),
  anthropic: createAnthropic({ baseURL, apiKey: "none" }),
};
const prompt = "one two three";
const inputSchema = jsonSchema({ type: "object", additionalProperties: false, properties: { city: { type: "string" } }, required: ["city"] });
const tools = { get_weather: tool({ inputSchema, execute: async () => "18, sunny" }) };

const pixel = new Uint8Array(Buffer.from(
  "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==", "base64",
));
const seen = [{ role: "user", content: [{ type: "text", text: prompt }, { type: "image", image: pixel, mediaType: "image/png" }] }];

async function tell(name, provider) {
  const told = {};
  told.image = (await generateText({ model: provider("echo/plain"), messages: seen })).text;
  const formed = { model: provider("echo/plain"), schema: inputSchema, prompt: '{"city": "Paris"}' };
  told.structured = (await generateObject(formed)).object.city;

  const fails = { get_weather: tool({ inputSchema, execute: async () => { throw new Error("no network"); } }) };
  const failing = { model: provider("echo/calls?tools=1"), prompt, tools: fails, stopWhen: stepCountIs(3) };
  told.failed = (await generateText(failing)).text;

  const coldly = streamText({ model: provider(`echo/cold-${name}?load_s=2`), prompt });
  told.cold = await coldly.text;

  const broken = streamText({ model: provider(`echo/breaks-${name}?fail=stream&tokens=50`), prompt, maxRetries: 0, onError() {} });
  const ends = [];
  let said = "";
  for await (const part of broken.fullStream) {
    if (part.type === "text-delta") said += part.text;
    if (part.type === "error") ends.push(part.type);
  }
  told.broken = [ends, said.startsWith("one")];

  told.plain = (await generateText({ model: provider("echo/plain"), prompt })).text;

  const streamed = streamText({ model: provider("echo/thinks?reasoning=1"), prompt });
  const kinds = new Set();
  for await (const part of streamed.fullStream) kinds.add(part.type);
  told.streamed = await streamed.text;
  told.usage = (await streamed.usage).outputTokens;
  told.thought = kinds.has("reasoning-delta");

  const stopWhen = stepCountIs(3);
  const turn = streamText({ model: provider("echo/calls?tools=1"), prompt, tools, stopWhen });
  told.tool = await turn.text;
  told.steps = (await turn.steps).length;

  const abort = new AbortController();
  const slow = streamText({ model: provider("echo/slow?tokens=1000&token_s=0.05"), prompt, abortSignal: abort.signal });
  let pieces = 0;
  for await (const part of slow.fullStream) {
    if (part.type === "text-delta" && ++pieces === 3) abort.abort();
  }
  told.aborted = pieces < 1000;

  const refused = (model) => generateText({ model: provider(model), prompt, maxRetries: 0 }).catch((error) => error);
  const unknown = await refused("nobody/knows");
  told.unknown = [unknown.name, unknown.statusCode];
  told.says = unknown.message;
  told.busy = (await refused("echo/busy?fail=status:503")).isRetryable;
  return told;
}

const told = {};
for (const [name, provider] of Object.entries(providers)) told[name] = await tell(name, provider);
console.log(JSON.stringify(told));
