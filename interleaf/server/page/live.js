// The live view: a map of the KV cache's blocks, and what the engine does, once a second while the page is seen.

const INTERVAL = 1000;
const CELL = 9;
const GAP = 1;
const MOST_ROWS = 60;

const element = (id) => document.getElementById(id);
const canvas = element("blocks");
let last = null;

function colours() {
  const swatch = (item) => getComputedStyle(item, "::before").backgroundColor;
  return [...document.querySelectorAll("#legend li")].map(swatch);
}

// Many blocks share a cell where there is no room for each: the cell shows the busiest of them.
function draw(states) {
  const scale = devicePixelRatio;
  const columns = Math.max(1, Math.floor(canvas.clientWidth / (CELL + GAP)));
  const perCell = Math.max(1, Math.ceil(states.length / (columns * MOST_ROWS)));
  const cells = Math.ceil(states.length / perCell);
  const height = Math.ceil(cells / columns) * (CELL + GAP) + GAP;
  canvas.style.height = `${height}px`;
  canvas.width = canvas.clientWidth * scale;
  canvas.height = height * scale;
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  const fill = colours();
  for (let cell = 0; cell < cells; cell++) {
    context.fillStyle = fill[Math.max(...states.subarray(cell * perCell, (cell + 1) * perCell))];
    const x = GAP + (cell % columns) * (CELL + GAP);
    context.fillRect(x, GAP + Math.floor(cell / columns) * (CELL + GAP), CELL, CELL);
  }
}

function count(states) {
  const counts = [0, 0, 0, 0];
  for (const state of states) counts[state]++;
  document.querySelectorAll("#legend li span").forEach((span, state) => (span.textContent = counts[state]));
  return counts;
}

function show({ blocks, stats }) {
  const states = Uint8Array.from(atob(blocks), (character) => character.charCodeAt(0));
  const counts = count(states);
  draw(states);
  const now = { time: performance.now(), ...stats };
  const seconds = last ? (now.time - last.time) / 1000 : 0;
  const rate = (name) => (seconds ? Math.max(0, (now[name] - last[name]) / seconds).toFixed(0) : "–");
  const used = counts[2] + counts[3];
  const share = stats.prefix_cache_queries ? (100 * stats.prefix_cache_hits) / stats.prefix_cache_queries : 0;
  const figures = {
    running: stats.num_running,
    waiting: stats.num_waiting,
    written: rate("num_generation_tokens"),
    read: rate("num_prompt_tokens"),
    hits: `${share.toFixed(0)} %`,
    used: `${used} of ${states.length}`,
  };
  for (const [id, value] of Object.entries(figures)) element(id).textContent = value;
  canvas.setAttribute("aria-label", `KV cache: ${counts[0]} blocks free, ${counts[1]} cached, ${counts[2]} used, ${counts[3]} shared`);
  last = now;
}

async function refresh() {
  if (document.hidden) return;
  try {
    const response = await fetch("live");
    const told = await response.json();
    if (!response.ok) throw new Error(told.error.message);
    show(told);
    element("engine-notice").textContent = "";
  } catch (error) {
    last = null;
    element("engine-notice").textContent = error.message;
  }
}

document.addEventListener("visibilitychange", refresh);
for (;;) {
  await refresh();
  await new Promise((resolve) => setTimeout(resolve, INTERVAL));
}
