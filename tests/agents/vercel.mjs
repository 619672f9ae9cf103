// SPDX-License-Identifier: GPL-3.0-or-later
// The AI SDK, in both dialects, and on Responses as its own OpenAI provider asks: node vercel.mjs ENDPOINT. Prints what it saw as JSON; test_javascript.py says what that must be.
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, jsonSchema, stepCountIs, streamText, tool } from "ai";

globalThis.AI_SDK_LOG_WARNINGS = false;
const baseURL = `${process.argv[2]}/v1`;
const providers = {
  openai: createOpenAICompatible({ name: "cortex", baseURL, apiKey: "none", includeUsage: true, supportsStructuredOutputs: true }),
  responses: createOpenAI({ baseURL, apiKey: "none" }),
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

  const first = await generateText({ model: provider("echo/plain"), prompt });
  told.plain = first.text;
  const history = [{ role: "user", content: prompt }, ...first.response.messages, { role: "user", content: "and four" }];
  const going = { model: provider("echo/plain"), messages: history, maxRetries: 0 };
  // What its OpenAI provider believes to be kept on the server, it would name there by an id.
  told.further = (await generateText({ ...going, providerOptions: { openai: { store: false } } })).text;
  told.kept = await generateText(going).then((said) => said.text, (error) => error.data.error.code);

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

const telling = Object.entries(providers).map(async ([name, provider]) => [name, await tell(name, provider)]);
console.log(JSON.stringify(Object.fromEntries(await Promise.all(telling))));
