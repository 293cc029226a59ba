// Asks what the other clients ask, with the openai package for node; prints one JSON object.
import OpenAI from "openai";

const [baseURL, model, tools] = [process.argv[2], process.argv[3], JSON.parse(process.argv[4])];
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const asked = { model, messages: [{ role: "user", content: "hi" }], max_tokens: 9, temperature: 0 };
const models = (await client.models.list()).data.map((one) => one.id);
const whole = (await client.chat.completions.create(asked)).choices[0].message.content;
let streamed = "";
let usage = null;
const stream = await client.chat.completions.create({
  ...asked, stream: true, stream_options: { include_usage: true },
});
for await (const part of stream) {
  streamed += part.choices[0]?.delta?.content ?? "";
  usage = part.usage ?? usage;
}
const called = await client.chat.completions.stream({
  ...asked, tools, tool_choice: "required", parallel_tool_calls: false, max_tokens: 200,
}).finalChatCompletion();
const { name, arguments: given } = called.choices[0].message.tool_calls[0].function;
let refused = "";
try {
  await client.chat.completions.create({ ...asked, n: 99 });
} catch (error) {
  refused = error.param;
}
console.log(JSON.stringify({ models, whole, streamed, usage, name, given, refused }));
