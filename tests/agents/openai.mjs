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
