// The forms in which Hearth fills silence, held against both majors of the OpenAI SDK without a Hearth: comments before and between
// chunks, with progress after the word; and why a whole answer is never begun with blanks. The last line counts the checks.
import assert from "node:assert/strict";
import { createServer } from "node:http";
import Newer from "openai";
import Older from "openai-older";

const COMMENTS = [": keep-alive\n\n", ": keep-alive queue 3\n\n", ": keep-alive load 40\n\n", ": keep-alive prefill 1200/4096\n\n"];
const chunk = (delta, finish_reason = null) =>
  `data: ${JSON.stringify({
    id: "chatcmpl-1", object: "chat.completion.chunk", created: 1, model: "tiny",
    choices: [{ index: 0, delta, finish_reason }],
  })}\n\n`;
const STREAM = [
  ...COMMENTS, chunk({ role: "assistant", content: "" }), ...COMMENTS, chunk({ content: "hi" }), ...COMMENTS,
  chunk({ content: " there" }), chunk({}, "stop"), "data: [DONE]\n\n",
];
const ERROR = JSON.stringify({ error: { message: "queue full", type: "server_error", param: null, code: "overloaded" } });

const server = createServer(async (request, response) => {
  let body = "";
  for await (const piece of request) body += piece;
  const { stream, model } = JSON.parse(body);
  if (stream) {
    response.writeHead(200, { "content-type": "text/event-stream; charset=utf-8" });
    for (const part of STREAM) {
      response.write(part);
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    return response.end();
  }
  if (model === "blanks") {
    // The status is out before it is known whether there will be an answer.
    response.writeHead(200, { "content-type": "application/json" });
    response.write(" \n");
    return response.end(ERROR);
  }
  response.writeHead(503, { "content-type": "application/json", "retry-after": "1" });
  response.end(ERROR);
});
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
const baseURL = `http://127.0.0.1:${server.address().port}/v1`;
const messages = [{ role: "user", content: "x" }];
let checks = 0;

for (const OpenAI of [Newer, Older]) {
  const client = new OpenAI({ baseURL, apiKey: "k", maxRetries: 0 });
  let text = "";
  for await (const part of await client.chat.completions.create({ model: "m", messages, stream: true })) {
    text += part.choices[0].delta.content ?? "";
  }
  assert.equal(text, "hi there", "comments are no content and no end");
  checks += 1;

  // A status that waits is an error that every program handles...
  await assert.rejects(client.chat.completions.create({ model: "m", messages }), { status: 503 });
  checks += 1;
  // ... and one that was sent with the first blank is an answer without choices that none does: so nothing is sent before it is known.
  const answered = await client.chat.completions.create({ model: "blanks", messages });
  assert.equal(answered.choices, undefined);
  checks += 1;
}
server.close();
console.log(`${checks} checks passed`);
