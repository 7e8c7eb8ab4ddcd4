// The chat page in a real Chromium, desktop and phone size: each check is a sentence; the last line counts them.

import assert from "node:assert/strict";
import { join } from "node:path";
import { chromium } from "playwright-core";

const { HEARTH_URL, HEARTH_KEY, CHROMIUM = "/usr/bin/chromium", SHOTS } = process.env;
const sizes = { desktop: { width: 1280, height: 800 }, phone: { width: 390, height: 844 } };

const browser = await chromium.launch({
  executablePath: CHROMIUM,
  args: ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});

/** A fresh page that fails the check on any script error or refused resource. */
async function open(viewport, path = "/") {
  const context = await browser.newContext({ viewport, ignoreHTTPSErrors: true, isMobile: viewport.width < 500, hasTouch: viewport.width < 500 });
  const page = await context.newPage();
  page.problems = [];
  page.on("pageerror", (error) => page.problems.push(String(error)));
  page.on("console", (message) => { if (message.type() === "error") page.problems.push(message.text()); });
  await page.goto(HEARTH_URL + path);
  return page;
}

async function signIn(page) {
  await page.fill("#key", HEARTH_KEY);
  await page.click("#key-form button[type=submit]");
  await page.waitForSelector("#chat:not([hidden])");
}

async function ask(page, question) {
  await page.fill("#question", question);
  await page.click("#send");
  await page.waitForSelector("#send:not([hidden])");
  return page.locator(".assistant").last();
}

const checks = {
  async "a wrong key is refused in words and nothing is kept"(page) {
    await page.fill("#key", "hearth_sk_wrong");
    await page.click("#key-form button[type=submit]");
    await page.waitForSelector("#key-error:not([hidden])");
    assert.match(await page.textContent("#key-error"), /key/i);
    assert.equal(await page.evaluate(() => sessionStorage.length + localStorage.length), 0);
    page.problems = page.problems.filter((problem) => !problem.includes("401"));
  },

  async "a question is answered, with tier and tokens per second under it"(page) {
    await signIn(page);
    await page.selectOption("#model", "fast");
    const answer = await ask(page, "What is the capital of France?");
    assert.equal((await answer.locator(".text").textContent()).trim(), "The capital of France is Paris.");
    assert.match(await answer.locator(".who").textContent(), /^fast .*tok\/s$/);
  },

  async "the whole conversation is sent, not only the last message"(page) {
    await signIn(page);
    const bodies = [];
    page.on("request", (request) => { if (request.method() === "POST") bodies.push(request.postDataJSON()); });
    await ask(page, "Hello");
    await ask(page, "Thank you!");
    assert.deepEqual(bodies[1].messages.map(({ role }) => role), ["user", "assistant", "user"]);
  },

  async "stop ends a running answer and the page goes on"(page) {
    await signIn(page);
    await page.route("**/v1/chat/completions", () => {}, { times: 1 }); // an answer that never starts
    await page.fill("#question", "Tell me a short story.");
    await page.click("#send");
    await page.click("#stop");
    await page.waitForSelector("#send:not([hidden])");
    assert.match(await page.locator(".assistant").last().textContent(), /stopped/);
    const next = await ask(page, "Hello");
    assert.ok((await next.locator(".text").textContent()).length > 0);
  },

  async "a model's words never become markup"(page) {
    await signIn(page);
    const event = { choices: [{ index: 0, delta: { content: "<img src=x onerror=alert(1)> **bold** `code`" }, finish_reason: "stop" }] };
    await page.route("**/v1/chat/completions", (route) => route.fulfill({
      contentType: "text/event-stream", body: `data: ${JSON.stringify(event)}\n\ndata: [DONE]\n\n`,
    }), { times: 1 });
    const answer = await ask(page, "Hello");
    assert.equal(await answer.locator("img").count(), 0);
    assert.match(await answer.locator(".text").textContent(), /<img src=x/);
    assert.equal(await answer.locator("strong").textContent(), "bold");
  },

  async "an error is shown with its words, and a retry is offered"(page) {
    await signIn(page);
    await page.route("**/v1/chat/completions", (route) => route.fulfill({
      status: 503, contentType: "application/json", headers: { "x-request-id": "req_0123456789" },
      body: JSON.stringify({ error: { message: "no tier is available", type: "server_error", param: null, code: "no_tier_available" } }),
    }), { times: 1 });
    const answer = await ask(page, "Hello");
    assert.match(await answer.locator(".error").textContent(), /no tier is available \(req_0123456789\)/);
    await answer.locator(".retry").click();
    await page.waitForFunction(() => document.querySelector(".assistant .who")?.textContent.includes("tok/s"));
    page.problems = page.problems.filter((problem) => !problem.includes("503"));
  },

  async "what is left today is told, and goes down with every answer"(page) {
    await signIn(page);
    await page.waitForSelector("#left:not([hidden])");
    const left = async () => Number(/([\d,.\s]+) of [\d,.\s]+ requests/.exec(await page.textContent("#left"))[1].replace(/\D/g, ""));
    const before = await left();
    await page.selectOption("#model", "fast");
    await ask(page, "Hello");
    await page.waitForFunction((text) => document.querySelector("#left").textContent !== text, await page.textContent("#left"), { timeout: 5000 }).catch(() => {});
    assert.equal(await left(), before - 1);
  },

  async "every budget of the day has its words, and nothing else is called one"(page) {
    const limit = (name, unit, most, remaining, window_secs) => ({ name, unit, limit: most, used: most - remaining, remaining, window_secs });
    await page.route("**/api/user", (route) => route.fulfill({ json: { limits: [
      limit("text-min", "requests", 30, 29, 60), limit("text-day", "requests", 100, 93, 86400),
      limit("tokens-day-heavy", "tokens", 900, 300, 86400), limit("group-tokens-day", "tokens", 800, 250, 86400),
      limit("tokens-month", "tokens", 999, 998, 2592000), limit("concurrency", "requests", 16, 15, 0),
    ] } }));
    await signIn(page);
    await page.waitForSelector("#left:not([hidden])");
    assert.equal(await page.textContent("#left"), "Left today: 93 of 100 requests; heavy: 300 of 900 tokens; your group: 250 of 800 tokens");
  },

  async "signing out forgets the key and the conversation"(page) {
    await signIn(page);
    await ask(page, "Hello");
    await page.click("#sign-out");
    await page.waitForSelector("#sign-in:not([hidden])");
    assert.equal(await page.evaluate(() => sessionStorage.length + localStorage.length), 0);
    assert.equal(await page.locator(".user, .assistant").count(), 0);
  },

  async "a picture is offered only to a model that sees"(page) {
    const models = (modalities) => async (route) => {
      const list = await (await route.fetch()).json();
      for (const model of list.data) model.architecture = { ...model.architecture, input_modalities: modalities };
      await route.fulfill({ json: list });
    };
    await page.route("**/v1/models", models(["text"]), { times: 1 });
    await signIn(page);
    assert.ok(await page.isHidden("#attach"));
    await page.click("#sign-out");
    await page.route("**/v1/models", models(["text", "image"]));
    await signIn(page);
    await page.waitForSelector("#attach:not([hidden])");
  },

  async "a picture is made small, shown, sent with its question, and can be taken back"(page) {
    await page.route("**/v1/models", async (route) => {
      const list = await (await route.fetch()).json();
      for (const model of list.data) model.architecture = { ...model.architecture, input_modalities: ["text", "image"] };
      await route.fulfill({ json: list });
    });
    await signIn(page);
    await page.waitForSelector("#attach:not([hidden])");
    const png = await page.evaluate(() => {
      const canvas = Object.assign(document.createElement("canvas"), { width: 3000, height: 20 });
      return canvas.toDataURL("image/png").split(",")[1];
    });
    const file = { name: "holiday.png", mimeType: "image/png", buffer: Buffer.from(png, "base64") };
    await page.setInputFiles("#picture", file);
    await page.waitForSelector("#preview:not([hidden])");
    await page.click("#preview");
    assert.ok(await page.isHidden("#preview"), "taken back");
    await page.setInputFiles("#picture", { name: "no.png", mimeType: "image/png", buffer: Buffer.from("no picture") });
    await page.waitForFunction(() => document.querySelector("#question").placeholder.includes("no picture"));
    await page.setInputFiles("#picture", file);
    await page.waitForSelector("#preview:not([hidden])");
    const event = { choices: [{ index: 0, delta: { content: "A line." }, finish_reason: "stop" }] };
    let sent;
    await page.route("**/v1/chat/completions", (route) => {
      sent = route.request().postDataJSON();
      return route.fulfill({ contentType: "text/event-stream", body: `data: ${JSON.stringify(event)}\n\ndata: [DONE]\n\n` });
    }, { times: 1 });
    await ask(page, "What is this?");
    const [image, words] = sent.messages[0].content;
    assert.match(image.image_url.url, /^data:image\/jpeg;base64,/);
    assert.deepEqual(words, { type: "text", text: "What is this?" });
    const width = await page.locator(".user img").evaluate((shown) => shown.naturalWidth);
    assert.ok(width > 0 && width <= 1280, `${width} pixels`);
    assert.ok(await page.isHidden("#preview"), "the next question has none");
  },

  async "nothing is wider than the window"(page) {
    await signIn(page);
    await ask(page, "Tell me a short story.");
    const [content, width] = await page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
    assert.ok(content <= width, `${content} > ${width}`);
  },
};

let passed = 0;
try {
  for (const [size, viewport] of Object.entries(sizes)) {
    for (const [sentence, run] of Object.entries(checks)) {
      const page = await open(viewport);
      try {
        await run(page);
        assert.deepEqual(page.problems, [], "the console stays clean");
        if (SHOTS) await page.screenshot({ path: join(SHOTS, `${size}-${passed}.png`) });
      } catch (error) {
        console.error(`page, ${size}: FAILED ${sentence}:`, error, page.problems);
        process.exitCode = 1;
      }
      passed += 1;
      await page.context().close();
    }
  }
  const linked = await open(sizes.desktop, `/#key=${HEARTH_KEY}`);
  await linked.waitForSelector("#chat:not([hidden])");
  assert.equal(new URL(linked.url()).hash, "", "the key leaves the address bar");
  passed += 1;
} finally {
  await browser.close();
}
if (!process.exitCode) console.log(`chat page in Chromium ${browser.version()}: ${passed} passed`);
