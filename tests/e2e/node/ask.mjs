// Asks one question as a stream and as a whole, and an unknown model; prints what the client made of it as JSON.
// usage: node ask.mjs BASE_URL QUESTION
import OpenAI, { NotFoundError } from "openai";

const [baseURL, question] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const request = { model: "sluice-demo", temperature: 0, messages: [{ role: "user", content: question }] };

const whole = await client.chat.completions.create(request);

let streamed = "";
let chunks = 0;
let usage = null;
const stream = await client.chat.completions.create({
  ...request,
  stream: true,
  stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  chunks += 1;
  streamed += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}

let refusal = null;
try {
  await client.chat.completions.create({ ...request, model: "nope" });
} catch (error) {
  refusal = { known: error instanceof NotFoundError, status: error.status, code: error.code, param: error.param };
}

console.log(JSON.stringify({ whole: whole.choices[0].message.content, streamed, chunks, usage, refusal }));
