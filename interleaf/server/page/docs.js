// The API's description, read from openapi.json, and a form to try each endpoint.

const METHODS = ["get", "post", "put", "patch", "delete"];
// What a first request says in fields of these names, so that it gets an answer.
const SAMPLES = {
  role: "user",
  content: "Say hello.",
  prompt: "Once upon a time",
  input: "Say hello.",
  max_tokens: 32,
  max_output_tokens: 32,
};

const element = (id) => document.getElementById(id);
const [endpoints, key, notice, version] = ["endpoints", "key", "notice", "version"].map(element);
let described = {};

function make(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children.filter((child) => child !== null));
  return made;
}

// ---- schemas ----

function resolve(schema) {
  if (!schema?.$ref) return schema ?? {};
  return schema.$ref.slice(2).split("/").reduce((place, name) => place[name], described);
}

const nameOf = (schema) => schema.$ref?.split("/").pop() ?? schema.title;
const choices = (schema) => schema.anyOf ?? schema.oneOf ?? schema.allOf ?? null;

function kindOf(schema) {
  if (schema.$ref) return nameOf(schema);
  if (choices(schema)) return [...new Set(choices(schema).map(kindOf))].join(" | ");
  if ("const" in schema) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" | ");
  if (schema.type === "array") return `list of ${kindOf(schema.items ?? {})}`;
  return [schema.type ?? "any"].flat().join(" | ");
}

function limitsOf(schema) {
  const own = [
    ["minimum", "≥"],
    ["maximum", "≤"],
    ["exclusiveMinimum", ">"],
    ["exclusiveMaximum", "<"],
    ["minLength", "length ≥"],
    ["maxLength", "length ≤"],
    ["minItems", "items ≥"],
    ["maxItems", "items ≤"],
  ];
  const told = own.filter(([name]) => name in schema).map(([name, sign]) => `${sign} ${schema[name]}`);
  return [...told, ...(choices(schema) ?? []).flatMap(limitsOf)];
}

// The schemas of objects in a schema, whose fields are worth a list.
function objectsIn(schema) {
  const resolved = resolve(schema);
  if (choices(resolved)) return choices(resolved).flatMap(objectsIn);
  if (resolved.type === "array") return objectsIn(resolved.items ?? {});
  return resolved.properties ? [schema] : [];
}

function fieldsOf(schema) {
  const resolved = resolve(schema);
  const required = new Set(resolved.required ?? []);
  const items = Object.entries(resolved.properties ?? {}).map(([name, field]) => fieldItem(name, field, required.has(name)));
  return make("ul", { className: "fields" }, ...items);
}

function fieldItem(name, field, required) {
  const facts = limitsOf(field);
  if (field.default !== undefined && field.default !== null) facts.push(`default ${JSON.stringify(field.default)}`);
  return make(
    "li",
    {},
    make("code", { textContent: name }),
    " ",
    make("span", { className: "kind", textContent: [kindOf(field), ...facts].join(", ") }),
    required ? make("span", { className: "required", textContent: " required" }) : null,
    field.description ? make("div", { className: "meaning", textContent: field.description }) : null,
    ...objectsIn(field).map(foldedFields),
  );
}

// Fields that are listed when they are asked for: schemas may contain themselves.
function foldedFields(schema) {
  const details = make("details", {}, make("summary", { textContent: nameOf(schema) ?? "fields" }));
  details.addEventListener("toggle", () => details.append(fieldsOf(schema)), { once: true });
  return details;
}

function sampleOf(schema) {
  const resolved = resolve(schema);
  if ("default" in resolved && resolved.default !== null) return resolved.default;
  if ("const" in resolved) return resolved.const;
  if (resolved.enum) return resolved.enum[0];
  if (choices(resolved)) return sampleOf(choices(resolved)[0]);
  if (resolved.type === "array") return [sampleOf(resolved.items ?? {})];
  if (resolved.type === "object") return sampleObject(resolved);
  return { string: "", integer: 0, number: 0, boolean: false }[resolved.type] ?? null;
}

function sampleObject(schema) {
  const required = new Set(schema.required ?? []);
  const chosen = Object.entries(schema.properties ?? {}).filter(([name]) => required.has(name) || name in SAMPLES);
  return Object.fromEntries(chosen.map(([name, field]) => [name, SAMPLES[name] ?? sampleOf(field)]));
}

// ---- endpoints ----

function endpointOf(path, method, operation) {
  const [type, media] = Object.entries(operation.requestBody?.content ?? {})[0] ?? [null, null];
  const answer = Object.values(operation.responses?.[200]?.content ?? {})[0]?.schema ?? {};
  const inside = make("div");
  const details = make(
    "details",
    { className: "endpoint" },
    make(
      "summary",
      {},
      make("span", { className: "method", textContent: method }),
      make("code", { textContent: path }),
      make("span", { className: "summary", textContent: operation.summary ?? "" }),
    ),
    inside,
  );
  details.addEventListener(
    "toggle",
    () => {
      if (operation.description) inside.append(make("p", { textContent: operation.description }));
      if (operation.parameters?.length) inside.append(make("h3", { textContent: "Parameters" }), parametersOf(operation));
      if (media) inside.append(make("h3", { textContent: `Body: ${type}` }), fieldsOf(media.schema));
      if (objectsIn(answer).length) inside.append(make("h3", { textContent: "Answer" }), ...objectsIn(answer).map(foldedFields));
      inside.append(make("h3", { textContent: "Try it" }), ...tryIt(path, method, operation, type, media));
    },
    { once: true },
  );
  return details;
}

function parametersOf(operation) {
  const items = operation.parameters.map((one) => {
    const described = { description: one.description, ...one.schema };
    return fieldItem(`${one.name} (${one.in})`, described, one.required);
  });
  return make("ul", { className: "fields" }, ...items);
}

// ---- trying ----

function tryIt(path, method, operation, type, media) {
  const inputs = (operation.parameters ?? []).map((one) => ({
    ...one,
    input: make("input", { required: Boolean(one.required), placeholder: String(one.schema?.default ?? "") }),
  }));
  const body = type ? bodyInputs(type, media) : { rows: [], value: () => undefined };
  const send = make("button", { type: "submit", textContent: "Send" });
  const stop = make("button", { type: "button", textContent: "Stop", disabled: true });
  const hint = make("span", { className: "hint", textContent: "Ctrl+Enter sends" });
  const form = make(
    "form",
    { className: "try" },
    ...inputs.map((one) => make("label", {}, one.name, one.input)),
    ...body.rows,
    make("div", { className: "row" }, send, stop, hint),
  );
  const status = make("p", { className: "status", hidden: true });
  status.setAttribute("role", "status");
  const answer = make("pre", { className: "answer", tabIndex: 0, hidden: true });
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.ctrlKey) form.requestSubmit();
  });
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (send.disabled) return;
    const controller = new AbortController();
    [send.disabled, stop.disabled, stop.onclick] = [true, false, () => controller.abort()];
    try {
      const options = { method: method.toUpperCase(), body: body.value(), headers: headersOf(type, inputs) };
      await ask(urlOf(path, inputs), { ...options, signal: controller.signal }, status, answer);
    } catch (error) {
      show(status, error.name === "AbortError" ? "Stopped." : `No answer: ${error.message}`, true);
    } finally {
      [send.disabled, stop.disabled] = [false, true];
    }
  });
  return [form, status, answer];
}

function bodyInputs(type, media) {
  if (type !== "multipart/form-data") {
    const text = make("textarea", { rows: 8, spellcheck: false });
    text.value = JSON.stringify(sampleOf(media.schema), null, 2);
    return { rows: [make("label", {}, "Body (JSON)", text)], value: () => text.value };
  }
  const inputs = Object.entries(resolve(media.schema).properties).map(([name, field]) => {
    const isFile = field.format === "binary" || "contentMediaType" in field;
    return [name, make("input", { type: isFile ? "file" : "text", value: isFile ? "" : (field.default ?? "") })];
  });
  const value = () => {
    const form = new FormData();
    for (const [name, input] of inputs) {
      const given = input.type === "file" ? input.files[0] : input.value;
      if (given) form.append(name, given);
    }
    return form;
  };
  return { rows: inputs.map(([name, input]) => make("label", {}, name, input)), value };
}

function headersOf(type, inputs) {
  const headers = {};
  // The browser itself says where a form's parts begin.
  if (type && type !== "multipart/form-data") headers["Content-Type"] = type;
  if (key.value) headers.Authorization = `Bearer ${key.value}`;
  for (const one of inputs) if (one.in === "header" && one.input.value) headers[one.name] = one.input.value;
  return headers;
}

// Relative, for the server may lie below a prefix.
function urlOf(path, inputs) {
  const query = new URLSearchParams();
  for (const one of inputs) {
    if (one.in === "path") path = path.replace(`{${one.name}}`, encodeURIComponent(one.input.value));
    if (one.in === "query" && one.input.value) query.append(one.name, one.input.value);
  }
  return `.${path}${query.size ? `?${query}` : ""}`;
}

async function ask(url, options, status, answer) {
  const begin = performance.now();
  show(status, "Waiting for an answer.", false);
  [answer.textContent, answer.hidden] = ["", true];
  const response = await fetch(url, options);
  const type = response.headers.get("Content-Type") ?? "";
  const tell = () => show(status, `${response.status}, ${Math.round(performance.now() - begin)} ms`, !response.ok);
  tell();
  if (type.startsWith("application/json")) {
    answer.textContent = JSON.stringify(await response.json(), null, 2);
  } else if (response.body) {
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let piece = await reader.read(); !piece.done; piece = await reader.read()) {
      answer.append(piece.value);
      answer.hidden = false;
    }
  }
  answer.hidden = !answer.textContent;
  tell();
}

function show(status, text, bad) {
  status.textContent = text;
  status.hidden = false;
  status.classList.toggle("bad", bad);
}

// ---- the whole ----

function listAll() {
  const tags = new Map();
  for (const [path, operations] of Object.entries(described.paths))
    for (const method of METHODS.filter((name) => name in operations)) {
      const tag = operations[method].tags?.[0] ?? "Other";
      if (!tags.has(tag)) tags.set(tag, []);
      tags.get(tag).push(endpointOf(path, method, operations[method]));
    }
  for (const [tag, listed] of tags) {
    const title = make("h2", { textContent: tag, id: `tag-${tag}` });
    const section = make("section", {}, title, ...listed);
    section.setAttribute("aria-labelledby", title.id);
    endpoints.append(section);
  }
}

async function load() {
  const headers = key.value ? { Authorization: `Bearer ${key.value}` } : {};
  try {
    const response = await fetch("openapi.json", { headers });
    if (!response.ok) throw new Error(`status ${response.status}`);
    described = await response.json();
    notice.hidden = true;
    version.textContent = `API, version ${described.info.version}`;
    endpoints.replaceChildren();
    listAll();
  } catch (error) {
    [notice.textContent, notice.hidden] = [`The API's description cannot be had (${error.message}).`, false];
  }
  endpoints.setAttribute("aria-busy", "false");
}

key.addEventListener("change", () => {
  if (!endpoints.children.length) load();
});
load();
