// The chat: a conversation that is kept in the browser, and answers that are shown as they are written.

const KEPT = "interleaf-conversation";
const KEPT_SETTINGS = "interleaf-settings";
const TOP_LOGPROBS = 5;

const element = (id) => document.getElementById(id);
const [messages, notice, prompt, settings, tip] = ["messages", "notice", "prompt", "settings", "tip"].map(element);

let conversation = JSON.parse(localStorage.getItem(KEPT) ?? "[]");
let running = null;

function keep() {
  localStorage.setItem(KEPT, JSON.stringify(conversation));
}

// ---- what is shown ----

function show(message) {
  const item = document.createElement("li");
  item.className = message.role;
  const text = document.createElement("span");
  const meta = document.createElement("span");
  meta.className = "meta";
  meta.textContent = message.meta ?? "";
  item.append(text, meta);
  messages.append(item);
  if (message.tokens?.length) message.tokens.forEach((token) => appendToken(text, token));
  else text.textContent = message.content;
  if (message.role === "assistant") item.tabIndex = 0;
  return { item, text, meta };
}

function appendToken(place, token) {
  const span = document.createElement("span");
  span.className = "token";
  span.textContent = token.text;
  span.dataset.told = token.told;
  place.append(span);
}

function tell(error) {
  notice.textContent = error;
  notice.hidden = !error;
}

// ---- probabilities ----

const percent = (logprob) => `${(Math.exp(logprob) * 100).toFixed(1).padStart(5)} %`;

function describe(entry) {
  const lines = entry.top_logprobs.map((one) => `${percent(one.logprob)}  ${JSON.stringify(one.token)}`);
  return [`${percent(entry.logprob)}  ${JSON.stringify(entry.token)} was written`, "", ...lines].join("\n");
}

// Half a character has no text of its own: then the whole piece is one span.
function tokensOf(text, entries) {
  if (entries.map((entry) => entry.token).join("") === text)
    return entries.map((entry) => ({ text: entry.token, told: describe(entry) }));
  return [{ text, told: entries.map(describe).join("\n\n") }];
}

function showTip(span) {
  document.querySelector(".token.chosen")?.classList.remove("chosen");
  tip.hidden = !span;
  if (!span) return;
  span.classList.add("chosen");
  tip.textContent = span.dataset.told;
  const { left, bottom, top } = span.getBoundingClientRect();
  const { width, height } = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(left, innerWidth - width - 4))}px`;
  tip.style.top = `${bottom + height + 8 < innerHeight ? bottom + 4 : top - height - 4}px`;
}

messages.addEventListener("mouseover", (event) => showTip(event.target.closest(".token")));
messages.addEventListener("mouseleave", () => showTip(null));
messages.addEventListener("focusout", () => showTip(null));
messages.addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  const tokens = [...event.target.querySelectorAll(".token")];
  if (!step || !tokens.length) return;
  event.preventDefault();
  const chosen = tokens.findIndex((token) => token.classList.contains("chosen"));
  const next = chosen < 0 ? (step > 0 ? 0 : tokens.length - 1) : chosen + step;
  showTip(tokens[Math.max(0, Math.min(next, tokens.length - 1))]);
});

// ---- the server ----

function requestBody() {
  const form = new FormData(settings);
  const body = { stream: true, stream_options: { include_usage: true } };
  for (const name of ["temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens", "seed"])
    if (form.get(name)) body[name] = Number(form.get(name));
  if (form.get("logprobs")) Object.assign(body, { logprobs: true, top_logprobs: TOP_LOGPROBS });
  const system = form.get("system").trim();
  const said = conversation.map(({ role, content }) => ({ role, content }));
  body.messages = system ? [{ role: "system", content: system }, ...said] : said;
  return body;
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (waiting + value).split("\n\n");
    waiting = blocks.pop();
    for (const block of blocks) {
      const data = block.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

async function answer() {
  const message = { role: "assistant", content: "", tokens: [] };
  const shown = show(message);
  const start = performance.now();
  let usage = null;
  try {
    const response = await fetch("v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(requestBody()),
      signal: running.signal,
    });
    if (!response.ok) throw new Error((await response.json()).error.message);
    for await (const chunk of events(response)) {
      if (chunk.error) throw new Error(chunk.error.message);
      usage = chunk.usage ?? usage;
      if (chunk.choices.length) add(message, shown, chunk.choices[0]);
    }
  } catch (error) {
    if (error.name !== "AbortError") tell(error.message);
  }
  const seconds = (performance.now() - start) / 1000;
  if (usage)
    message.meta = `${usage.completion_tokens} tokens in ${seconds.toFixed(1)} s, ` +
      `${usage.prompt_tokens_details.cached_tokens} of ${usage.prompt_tokens} prompt tokens from the cache`;
  shown.meta.textContent = message.meta ?? "";
  if (message.content) conversation.push(message);
  else if (!shown.thought) shown.item.remove();
}

function addThought(shown, text) {
  if (!shown.thought) {
    const details = document.createElement("details");
    details.open = true;
    details.append(Object.assign(document.createElement("summary"), { textContent: "Reasoning" }));
    shown.thought = details.appendChild(document.createElement("span"));
    shown.item.prepend(details);
  }
  shown.thought.append(text);
}

function add(message, shown, choice) {
  const text = choice.delta.content ?? "";
  const thought = choice.delta.reasoning ?? "";
  if (!text && !thought) return;
  const atEnd = messages.scrollHeight - messages.scrollTop - messages.clientHeight < 40;
  if (thought) addThought(shown, thought);
  message.content += text;
  const entries = text ? choice.logprobs?.content ?? [] : [];
  const tokens = entries.length ? tokensOf(text, entries) : [{ text, told: "" }];
  for (const token of tokens) {
    if (entries.length) message.tokens.push(token);
    if (entries.length) appendToken(shown.text, token);
    else shown.text.append(token.text);
  }
  if (atEnd) messages.scrollTop = messages.scrollHeight;
}

async function send() {
  const content = prompt.value.trim();
  if (running || !content) return;
  running = new AbortController();
  tell("");
  prompt.value = "";
  conversation.push({ role: "user", content });
  show(conversation.at(-1));
  setBusy(true);
  try {
    await answer();
    keep();
  } finally {
    running = null;
    setBusy(false);
    prompt.focus();
  }
}

function setBusy(busy) {
  element("send").disabled = busy;
  element("stop").disabled = !busy;
  messages.setAttribute("aria-busy", String(busy));
}

// ---- controls ----

element("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
prompt.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
});
element("stop").addEventListener("click", () => running?.abort());
element("clear").addEventListener("click", () => {
  running?.abort();
  conversation = [];
  keep();
  messages.replaceChildren();
  tell("");
  prompt.focus();
});
settings.addEventListener("change", () => {
  const values = Object.fromEntries([...settings.elements].map((one) => [one.name, one.type === "checkbox" ? one.checked : one.value]));
  localStorage.setItem(KEPT_SETTINGS, JSON.stringify(values));
});

const kept = JSON.parse(localStorage.getItem(KEPT_SETTINGS) ?? "{}");
for (const one of settings.elements)
  if (one.name in kept) one.type === "checkbox" ? (one.checked = kept[one.name]) : (one.value = kept[one.name]);
conversation.forEach(show);
messages.scrollTop = messages.scrollHeight;

const models = await fetch("v1/models").then((response) => response.json());
element("model").textContent = models.data?.[0]?.id ?? "";
