// SPDX-License-Identifier: GPL-3.0-or-later
// OpenAI's own package: node openai.mjs ENDPOINT. Prints what it saw as JSON; test_javascript.py says what that must be.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "none", maxRetries: 0 });
const told = {};
const messages = [{ role: "user", content: "one two three" }];
const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const tools = [{ type: "function", function: { name: "get_weather", parameters } }];

const plain = await client.chat.completions.create({ model: "echo/plain", messages });
told.plain = plain.choices[0].message.content;

const stream = client.chat.completions.stream({
  model: "echo/plain", messages, stream_options: { include_usage: true },
});
told.streamed = await stream.finalContent();
told.usage = (await stream.totalUsage()).completion_tokens;

const runner = client.chat.completions.runTools({
  model: "echo/calls?tools=1", messages, stream: true,
  tools: [{ type: "function", function: { ...tools[0].function, parse: JSON.parse, function: () => "18, sunny" } }],
});
told.tool = await runner.finalContent();

const pixel = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";
const seen = [{ role: "user", content: [{ type: "text", text: "one two three" }, { type: "image_url", image_url: { url: pixel } }] }];
told.image = (await client.chat.completions.create({ model: "echo/plain", messages: seen })).choices[0].message.content;
const input = [{ role: "user", content: [{ type: "input_text", text: "one two three" }, { type: "input_image", image_url: pixel, detail: "auto" }] }];
told.seenInResponse = (await client.responses.create({ model: "echo/plain", input })).output_text;

const schema = { ...parameters, additionalProperties: false };
const wanted = [{ role: "user", content: '{"city": "Paris"}' }];
const response_format = { type: "json_schema", json_schema: { name: "place", strict: true, schema } };
const formed = await client.chat.completions.parse({ model: "echo/plain", messages: wanted, response_format });
told.structured = formed.choices[0].message.parsed.city;

const thinks = await client.chat.completions.create({ model: "echo/thinks?reasoning=1", messages, stream: true });
told.thought = "";
for await (const piece of thinks) told.thought += piece.choices[0]?.delta.reasoning_content ?? "";

const call = { id: "call_1", type: "function", function: { name: "get_weather", arguments: '{"city":"Paris"}' } };
const failed = [...messages, { role: "assistant", content: null, tool_calls: [call] }, { role: "tool", tool_call_id: "call_1", content: "Error: no network" }];
told.failed = (await client.chat.completions.create({ model: "echo/calls?tools=1", messages: failed, tools })).choices[0].message.content;

const coldly = await client.chat.completions.create({ model: "echo/cold?load_s=2", messages, stream: true });
told.cold = "";
for await (const piece of coldly) told.cold += piece.choices[0]?.delta.content ?? "";

told.broken = await (async () => {
  const stream = await client.chat.completions.create({ model: "echo/breaks?fail=stream&tokens=50", messages, stream: true });
  let text = "";
  try {
    for await (const piece of stream) text += piece.choices[0]?.delta.content ?? "";
  } catch (error) {
    return [error.constructor.name, error.code, text.startsWith("one")];
  }
})();

const response = await client.responses.stream({ model: "echo/plain", input: "one two three" }).finalResponse();
told.response = response.output_text;

const slow = await client.chat.completions.create({ model: "echo/slow?tokens=1000&token_s=0.05", messages, stream: true });
let pieces = 0;
for await (const piece of slow) {
  if (piece.choices[0]?.delta.content && ++pieces === 3) break;
}
told.pieces = pieces;

const refused = async (model) => client.chat.completions.create({ model, messages }).catch((error) => error);
const unknown = await refused("nobody/knows");
told.unknown = [unknown.constructor.name, unknown.code];
const busy = await refused("echo/busy?fail=status:503");
told.busy = [busy.constructor.name, busy.status];
console.log(JSON.stringify(told));
