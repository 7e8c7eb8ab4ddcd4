// The OpenAI Node SDK against a running Hearth: each check is a sentence; the last line counts them.
// Usage: node check.mjs PACKAGE, e.g. `openai` or `openai-older` (see package.json). NODE_EXTRA_CA_CERTS trusts the proxy.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";

const name = process.argv[2] ?? "openai";
const { default: OpenAI } = await import(name);
const { version } = JSON.parse(readFileSync(new URL(`./node_modules/${name}/package.json`, import.meta.url), "utf8"));
const { HEARTH_URL, HEARTH_KEY } = process.env;
const paris = [{ role: "user", content: "What is the capital of France?" }];

function client(apiKey = HEARTH_KEY, options = {}) {
  const attempts = [];
  const counted = (...call) => { attempts.push(call); return fetch(...call); };
  return Object.assign(new OpenAI({ baseURL: `${HEARTH_URL}/v1`, apiKey, fetch: counted, ...options }), { attempts });
}

const checks = {
  async "a question is answered with usage and routing"() {
    const answer = await client().chat.completions.create({ model: "fast", messages: paris, temperature: 0 });
    assert.equal(answer.choices[0].message.content, "The capital of France is Paris.");
    assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens);
    assert.equal(answer._routing.tier, "fast");
  },

  async "a stream carries the same text and ends with a finish reason"() {
    const stream = await client().chat.completions.create({ model: "fast", messages: paris, temperature: 0, stream: true });
    const chunks = [];
    for await (const chunk of stream) chunks.push(chunk);
    assert.equal(chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join(""), "The capital of France is Paris.");
    assert.equal(chunks.at(-1).choices[0].finish_reason, "stop");
    assert.equal(chunks.at(-1)._routing.tier, "fast");
  },

  async "a stream reports usage when asked"() {
    const stream = await client().chat.completions.create({
      model: "fast", messages: paris, stream: true, stream_options: { include_usage: true },
    });
    const chunks = [];
    for await (const chunk of stream) chunks.push(chunk);
    assert.deepEqual(chunks.at(-1).choices, []);
    assert.ok(chunks.at(-1).usage.completion_tokens > 0);
  },

  async "models are listed"() {
    const ids = (await client().models.list()).data.map(({ id }) => id);
    for (const id of ["auto", "fast", "primary", "heavy"]) assert.ok(ids.includes(id), ids);
  },

  async "a wrong key raises AuthenticationError after one attempt"() {
    const stranger = client("hearth_sk_wrong");
    await assert.rejects(stranger.chat.completions.create({ model: "fast", messages: paris }), (error) => {
      assert.ok(error instanceof OpenAI.AuthenticationError);
      assert.equal(error.code, "invalid_api_key");
      return true;
    });
    assert.equal(stranger.attempts.length, 1);
  },

  async "a bad value raises BadRequestError and names the parameter"() {
    await assert.rejects(client().chat.completions.create({ model: "fast", messages: paris, temperature: 7 }), (error) => {
      assert.ok(error instanceof OpenAI.BadRequestError);
      assert.equal(error.param, "temperature");
      return true;
    });
  },

  async "an unknown model raises NotFoundError"() {
    await assert.rejects(client().chat.completions.create({ model: "fasst", messages: paris }), OpenAI.NotFoundError);
  },

  async "an aborted stream stops and the next question is answered"() {
    const one = client();
    const stream = await one.chat.completions.create({
      model: "fast", messages: [{ role: "user", content: "Tell me a short story." }], stream: true,
    });
    for await (const _ of stream) { stream.controller.abort(); break; }
    const answer = await one.chat.completions.create({ model: "fast", messages: paris, temperature: 0 });
    assert.ok(answer.choices[0].message.content);
  },
};

for (const [sentence, run] of Object.entries(checks)) {
  try {
    await run();
  } catch (error) {
    console.error(`openai-node ${version}: FAILED ${sentence}:`, error);
    process.exit(1);
  }
}
console.log(`openai-node ${version}: ${Object.keys(checks).length} passed`);
