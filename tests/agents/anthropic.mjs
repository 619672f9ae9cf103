// SPDX-License-Identifier: GPL-3.0-or-later
// Anthropic's own package, of a major version: node anthropic.mjs ENDPOINT PACKAGE. Prints what it saw as JSON; test_javascript.py says what that must be.
const { default: Anthropic } = await import(process.argv[3]);
const client = new Anthropic({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
const told = {};
const ask = (model, fields) => ({
  model, max_tokens: 100, messages: [{ role: "user", content: "one two three" }], ...fields,
});
const input_schema = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const tools = [{ name: "get_weather", input_schema }];

const plain = await client.messages.create(ask("echo/plain"));
told.plain = plain.content[0].text;

const stream = client.messages.stream(ask("echo/thinks?reasoning=1", { thinking: { type: "enabled", budget_tokens: 1024 } }));
const streamed = await stream.finalMessage();
told.streamed = streamed.content.map((block) => block.type);
told.usage = streamed.usage.output_tokens;

const called = await client.messages.stream(ask("echo/calls?tools=1", { tools })).finalMessage();
const call = called.content.find((block) => block.type === "tool_use");
told.call = [called.stop_reason, call.name];
const result = { type: "tool_result", tool_use_id: call.id, content: "18, sunny" };
const messages = [
  ...ask().messages,
  { role: "assistant", content: called.content },
  { role: "user", content: [result] },
];
told.tool = (await client.messages.create(ask("echo/calls?tools=1", { tools, messages }))).content[0].text;

const runner = client.beta.messages.toolRunner({
  ...ask("echo/calls?tools=1"),
  tools: [{ ...tools[0], run: async () => "18, sunny" }],
});
told.runner = (await runner).content[0].text;

const pixel = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";
const image = { type: "image", source: { type: "base64", media_type: "image/png", data: pixel } };
const seen = [{ role: "user", content: [image, { type: "text", text: "one two three" }] }];
told.image = (await client.messages.create(ask("echo/plain", { messages: seen }))).content[0].text;

const schema = { ...input_schema, additionalProperties: false };
const formed = await client.messages.create(ask("echo/plain", {
  messages: [{ role: "user", content: '{"city": "Paris"}' }],
  output_config: { format: { type: "json_schema", schema } },
}));
told.structured = JSON.parse(formed.content[0].text).city;

const failed = [...messages.slice(0, 2), { role: "user", content: [{ ...result, content: "no network", is_error: true }] }];
told.failed = (await client.messages.create(ask("echo/calls?tools=1", { tools, messages: failed }))).content[0].text;

told.coldCount = (await client.messages.countTokens({ model: "echo/cold?load_s=2", messages: ask().messages })).input_tokens;
const coldly = client.messages.stream(ask("echo/cold?load_s=2"));
told.cold = (await coldly.finalMessage()).content[0].text;

told.broken = await (async () => {
  const stream = client.messages.stream(ask("echo/breaks?fail=stream&tokens=50"));
  let text = "";
  try {
    for await (const event of stream) if (event.type === "content_block_delta") text += event.delta.text;
  } catch (error) {
    return [error.error?.error?.code, error.error?.error?.type, text.startsWith("one")];
  }
})();

const counted = { model: "echo/plain", messages: ask().messages };
told.count = (await client.messages.countTokens(counted)).input_tokens;

const slow = client.messages.stream(ask("echo/slow?tokens=1000&token_s=0.05", { max_tokens: 1000 }));
let pieces = 0;
for await (const event of slow) {
  if (event.type === "content_block_delta" && ++pieces === 3) break;
}
told.pieces = pieces;

const refused = async (model) => client.messages.create(ask(model)).catch((error) => error);
const unknown = await refused("nobody/knows");
told.unknown = [unknown.constructor.name, unknown.error.error.type];
const busy = await refused("echo/busy?fail=status:503");
told.busy = [busy.status, busy.error.error.type];
told.models = [];
for await (const model of client.models.list()) told.models.push(model.id);
console.log(JSON.stringify(told));
