// The chat page: signs in with an API key, streams, stops, and says who answered. No build step, no third party.
// Everything a model writes becomes text nodes: nothing it says can become markup.

import { readEvents } from "/sse.js";
import { renderMarkdown } from "/markdown.js";

const KEY = "hearth.key";
const byId = (id) => document.getElementById(id);
const page = {
  signIn: byId("sign-in"), keyForm: byId("key-form"), key: byId("key"), remember: byId("remember"), keyError: byId("key-error"),
  tools: byId("tools"), model: byId("model"), newChat: byId("new-chat"), signOut: byId("sign-out"),
  chat: byId("chat"), messages: byId("messages"), empty: byId("empty"),
  attach: byId("attach"), picture: byId("picture"), preview: byId("preview"),
  left: byId("left"), ask: byId("ask"), question: byId("question"), send: byId("send"), stop: byId("stop"),
};

/** The conversation as the API wants it; sent whole each time. */
let conversation = [];
/** A picture for the next question as a data: URL; null when there is none. */
let picture = null;
/** Longest side of a picture that is sent: models look at no more, and it must pass a home connection. */
const PICTURE_SIDE = 512;
/** Aborts the running answer; null when none runs. */
let running = null;

// --- the key ---------------------------------------------------------------------------------------------------------

const storedKey = () => sessionStorage.getItem(KEY) ?? localStorage.getItem(KEY);

function keepKey(key, forLong) {
  sessionStorage.setItem(KEY, key);
  if (forLong) localStorage.setItem(KEY, key);
}

function forgetKey() {
  sessionStorage.removeItem(KEY);
  localStorage.removeItem(KEY);
}

/** A link may carry the key behind `#key=`: that part never reaches a server, and leaves the address bar at once. */
function keyFromLink() {
  const match = location.hash.match(/^#key=([A-Za-z0-9_]+)$/);
  if (!match) return null;
  history.replaceState(null, "", location.pathname);
  return match[1];
}

// --- talking to the proxy --------------------------------------------------------------------------------------------

/** An error with the proxy's own words: what, why, what next. */
class Refused extends Error {
  constructor(message, status, requestId) {
    super(message);
    this.status = status;
    this.requestId = requestId;
  }
}

async function call(path, options = {}) {
  const headers = { ...options.headers, Authorization: `Bearer ${storedKey()}` };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The proxy cannot be reached. Check your connection and try again.", 0, null);
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  const message = body?.error?.message ?? `The proxy answered with status ${response.status}.`;
  throw new Refused(message, response.status, response.headers.get("x-request-id"));
}

async function loadModels() {
  const list = await (await call("/v1/models")).json();
  const chosen = page.model.value || "auto";
  page.model.replaceChildren(...list.data.map(({ id }) => new Option(id, id)));
  if (list.data.some(({ id }) => id === chosen)) page.model.value = chosen;
  const sees = ({ architecture }) => architecture?.input_modalities?.includes("image") ?? false;
  page.attach.hidden = !list.data.some(sees);
}

/** Budgets of a day by their names: whose (the person's own without a word), of what, and of which tier (of all without a word). */
const DAILY = /^(?:(key|group|org)-)?(text|tokens)-day(?:-(fast|primary|heavy))?$/;

/** One budget in words, such as `heavy: 300 of 1,000 tokens`; null for what is no budget of a day, such as requests at once. */
function inWords({ name, limit, remaining }) {
  const [, whose, what, tier] = DAILY.exec(name) ?? [];
  if (!what) return null;
  const of = [{ key: "this key", group: "your group", org: "your organisation" }[whose], tier].filter(Boolean).join(", ");
  const count = `${remaining.toLocaleString()} of ${limit.toLocaleString()} ${what === "text" ? "requests" : "tokens"}`;
  return of ? `${of}: ${count}` : count;
}

/** What the account may still spend today, of what it may spend; nothing where nothing is limited by the day. */
async function loadLeft() {
  try {
    const { limits } = await (await call("/api/user")).json();
    const parts = limits.map(inWords).filter(Boolean);
    page.left.textContent = `Left today: ${parts.join("; ")}`;
    page.left.hidden = parts.length === 0;
  } catch {
    // An answer is worth more than this line: without it the page works all the same.
    page.left.hidden = true;
  }
}

// --- what the page shows ---------------------------------------------------------------------------------------------

function show(signedIn) {
  page.signIn.hidden = signedIn;
  page.chat.hidden = !signedIn;
  page.tools.hidden = !signedIn;
  (signedIn ? page.question : page.key).focus();
}

function element(tag, className, text = "") {
  const node = document.createElement(tag);
  node.className = className;
  node.textContent = text;
  return node;
}

function addQuestion(text, shown) {
  page.empty.hidden = true;
  const item = element("li", "user", text);
  if (shown) {
    const image = element("img", "");
    image.src = shown;
    image.alt = "The picture that was sent";
    item.prepend(image);
  }
  page.messages.append(item);
}

function showPicture(url) {
  picture = url;
  page.preview.hidden = url === null;
  if (url) page.preview.src = url;
  else page.preview.removeAttribute("src");
}

/** The picture no larger than is of use, as a data: URL. Drawing it again also leaves out where and when it was taken. */
async function shrunk(file) {
  const bitmap = await createImageBitmap(file);
  const scale = Math.min(1, PICTURE_SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const pen = canvas.getContext("2d");
  pen.fillStyle = "#fff";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return canvas.toDataURL("image/jpeg", 0.9);
}

function addAnswer() {
  const item = element("li", "assistant");
  const answer = {
    item,
    thinking: element("div", "thinking"),
    text: element("div", "text waiting"),
    meta: element("div", "meta"),
  };
  answer.thinking.hidden = true;
  item.append(answer.thinking, answer.text, answer.meta);
  page.messages.append(item);
  return answer;
}

const atBottom = () => page.messages.scrollHeight - page.messages.scrollTop - page.messages.clientHeight < 80;
const toBottom = () => { page.messages.scrollTop = page.messages.scrollHeight; };

/** Draws at most once a frame, however many chunks arrive. */
function painter(answer, state) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      const follow = atBottom();
      answer.thinking.hidden = state.thinking === "";
      answer.thinking.textContent = state.thinking;
      answer.text.replaceChildren(...renderMarkdown(state.text));
      if (follow) toBottom();
    });
  };
}

function describe(state) {
  const parts = [];
  const { routing, usage, timings } = state;
  if (routing) {
    parts.push(routing.fallback ? `${routing.tier} (${routing.fallback})` : routing.tier, routing.model, routing.node);
  }
  const tokens = usage?.completion_tokens ?? routing?.tokens;
  const seconds = (state.endedAt - state.firstAt) / 1000;
  const rate = timings?.predicted_per_second ?? (tokens > 1 && seconds > 0 ? (tokens - 1) / seconds : null);
  if (tokens !== undefined) parts.push(`${tokens} tokens`);
  if (rate) parts.push(`${rate < 100 ? rate.toFixed(1) : Math.round(rate)} tok/s`);
  return parts.filter(Boolean).join(" · ");
}

function finish(answer, state, failure) {
  answer.text.classList.remove("waiting");
  answer.text.replaceChildren(...renderMarkdown(state.text));
  answer.meta.append(element("span", "who", describe(state)));
  if (state.finish === "length") answer.meta.append(element("span", "", "cut at the token limit"));
  if (state.stopped) answer.meta.append(element("span", "", "stopped"));
  if (failure) {
    const note = failure.requestId ? `${failure.message} (${failure.requestId})` : failure.message;
    answer.item.insertBefore(element("p", "error", note), answer.meta);
    const retry = element("button", "retry", "Try again");
    retry.type = "button";
    retry.addEventListener("click", () => { answer.item.remove(); answerConversation(); });
    answer.meta.append(retry);
  } else if (state.text) {
    const copy = element("button", "copy", "Copy");
    copy.type = "button";
    copy.addEventListener("click", () => navigator.clipboard?.writeText(state.text));
    answer.meta.append(copy);
  }
  toBottom();
}

// --- one answer ------------------------------------------------------------------------------------------------------

function take(chunk, state) {
  if (chunk.error) throw new Refused(chunk.error.message, 200, chunk.error.request_id ?? null);
  if (chunk._routing) state.routing = chunk._routing;
  if (chunk.usage) state.usage = chunk.usage;
  if (chunk.timings) state.timings = chunk.timings;
  const choice = chunk.choices?.[0];
  if (!choice) return;
  const { content, reasoning_content: thinking } = choice.delta ?? {};
  if (content || thinking) {
    state.firstAt ??= performance.now();
    state.endedAt = performance.now();
  }
  state.text += content ?? "";
  state.thinking += thinking ?? "";
  if (choice.finish_reason) state.finish = choice.finish_reason;
}

async function stream(state, paint, signal) {
  const response = await call("/v1/chat/completions", {
    method: "POST",
    signal,
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({
      model: page.model.value || "auto",
      messages: conversation,
      stream: true,
      stream_options: { include_usage: true },
    }),
  });
  for await (const data of readEvents(response.body)) {
    if (data === "[DONE]") return;
    take(JSON.parse(data), state);
    paint();
  }
  if (!state.finish) throw new Refused("The answer broke off before its end.", 200, response.headers.get("x-request-id"));
}

async function answerConversation() {
  const turns = conversation; // "New chat" swaps the list: a late answer must not land in the next one
  const answer = addAnswer();
  const state = { text: "", thinking: "", routing: null, usage: null, timings: null, finish: null, firstAt: null, endedAt: null, stopped: false };
  const paint = painter(answer, state);
  running = new AbortController();
  busy(true);
  toBottom();
  let failure = null;
  try {
    await stream(state, paint, running.signal);
  } catch (error) {
    if (error.name === "AbortError") state.stopped = true;
    else failure = error;
  }
  running = null;
  busy(false);
  finish(answer, state, failure);
  if (!failure && state.text) turns.push({ role: "assistant", content: state.text });
  if (failure?.status === 401) signOut(failure.message);
  else loadLeft();
}

function busy(is) {
  page.send.hidden = is;
  page.stop.hidden = !is;
  if (!is) page.question.focus();
}

// --- what people do --------------------------------------------------------------------------------------------------

async function signIn() {
  page.keyError.hidden = true;
  try {
    await loadModels();
    show(true);
    loadLeft();
  } catch (error) {
    signOut(error.message);
  }
}

function signOut(message = "") {
  forgetKey();
  startAnew();
  page.keyError.textContent = message;
  page.keyError.hidden = message === "";
  show(false);
}

function startAnew() {
  running?.abort();
  conversation = [];
  showPicture(null);
  page.messages.replaceChildren();
  page.empty.hidden = false;
}

function grow() {
  page.question.style.height = "auto";
  page.question.style.height = `${page.question.scrollHeight + 2}px`;
}

page.keyForm.addEventListener("submit", (event) => {
  event.preventDefault();
  keepKey(page.key.value.trim(), page.remember.checked);
  page.key.value = "";
  signIn();
});

page.ask.addEventListener("submit", (event) => {
  event.preventDefault();
  const text = page.question.value.trim();
  if (!text || running) return;
  page.question.value = "";
  grow();
  const content = picture ? [{ type: "image_url", image_url: { url: picture } }, { type: "text", text }] : text;
  conversation.push({ role: "user", content });
  addQuestion(text, picture);
  showPicture(null);
  answerConversation();
});

page.question.addEventListener("keydown", (event) => {
  const phone = matchMedia("(pointer: coarse)").matches;
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing && !phone) {
    event.preventDefault();
    page.ask.requestSubmit();
  }
});
page.picture.addEventListener("change", async () => {
  const [file] = page.picture.files;
  page.picture.value = "";
  if (!file) return;
  try {
    showPicture(await shrunk(file));
  } catch {
    showPicture(null);
    page.question.placeholder = "This file is no picture that can be read";
  }
  page.question.focus();
});
page.preview.addEventListener("click", () => showPicture(null));
page.question.addEventListener("input", grow);
page.stop.addEventListener("click", () => running?.abort());
page.newChat.addEventListener("click", () => { startAnew(); page.question.focus(); });
page.signOut.addEventListener("click", () => signOut());

const linked = keyFromLink();
if (linked) keepKey(linked, false);
if (storedKey()) signIn();
else show(false);
