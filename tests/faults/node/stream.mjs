// Reads one stream and prints what the client made of it as JSON: text, chunks, finish reason, error.
// usage: node stream.mjs openai BASE_URL BODY HEADERS | node stream.mjs eventsource STREAM_URL
import { EventSource } from "eventsource";
import OpenAI from "openai";

const [client, url, body, headers] = process.argv.slice(2);
const made = { text: "", tools: "", chunks: 0, finish: null, done: false, error: null, ids: [], opened: 0 };

function take(chunk) {
  made.chunks += 1;
  for (const choice of chunk.choices) {
    made.text += choice.delta?.content ?? choice.text ?? "";
    for (const call of choice.delta?.tool_calls ?? []) made.tools += call.function?.arguments ?? "";
    made.finish = choice.finish_reason ?? made.finish;
  }
}

async function byOpenAI() {
  const openai = new OpenAI({ baseURL: url, apiKey: "none", maxRetries: 0, timeout: 60_000 });
  try {
    const stream = await openai.chat.completions.create(JSON.parse(body), { headers: JSON.parse(headers) });
    for await (const chunk of stream) take(chunk);
    made.done = true;
  } catch (error) {
    made.error = { name: error.constructor.name, message: String(error.message), code: error.code ?? null };
  }
}

function byEventSource() {
  return new Promise((resolve) => {
    const source = new EventSource(url);
    source.onopen = () => (made.opened += 1);
    source.onmessage = ({ data, lastEventId }) => {
      made.ids.push(Number(lastEventId));
      if (data === "[DONE]") {
        // It stays, so that it comes back once more and is told that there is nothing left.
        made.done = true;
        return;
      }
      const chunk = JSON.parse(data);
      if (chunk.error) made.error = { name: "in-band", message: chunk.error.message, code: chunk.error.code };
      else take(chunk);
    };
    source.onerror = ({ code }) => {
      if (source.readyState !== EventSource.CLOSED) return;
      made.closed = code ?? null;
      resolve();
    };
  });
}

await (client === "openai" ? byOpenAI() : byEventSource());
console.log(JSON.stringify(made));
