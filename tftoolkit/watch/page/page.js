// The page: which runs there are, which of them and which metrics are shown, and asking for what is new.

import {Chart, make, number} from "./chart.js";

const PAUSE = 1000;  // ms between two questions
const CHOSEN = 4;  // runs and metrics that are shown at first
const COLOURS = 8;
const MOST = 20000;  // lines of a run that are kept; with more it is read anew, thinned

const element = (id) => document.getElementById(id);
const known = new Map();  // run name → what /runs says
const chosen = new Map();  // run name → {colour, lines, offset, mark, every}
const metrics = new Map();  // name → shown or not
const charts = new Map();
let begun = false;
let live = true;

// Asking

async function answer(address) {
  const response = await fetch(address);
  if (!response.ok) throw new Error(await response.text());
  return response.json();
}

async function ask() {
  const {folder, runs} = await answer("runs");
  element("folder").textContent = folder;
  document.title = `Runs in ${folder}`;
  note(runs);
  if (!begun) {
    for (const name of newest(runs)) choose(name);
    begun = true;
  }
  const changed = await Promise.all([...chosen].map(([name, run]) => more(name, run)));
  listRuns();
  if (changed.some(Boolean)) showMetrics();
  element("updated").textContent = new Date().toLocaleTimeString();
}

function newest(runs) {
  const rank = (run) => (run.state === "running" ? 0 : 1e12) + (run.age ?? 1e11);
  return [...runs].sort((a, b) => rank(a) - rank(b)).slice(0, CHOSEN).map((run) => run.name).sort();
}

/** Reads what a run has written since; tells whether it has. */
async function more(name, run) {
  if (run.lines.length > MOST) Object.assign(run, {offset: 0, mark: 0, lines: []});
  const query = new URLSearchParams({run: name, offset: run.offset, mark: run.mark});
  let part;
  try {
    part = await answer(`metrics?${query}`);
  } catch (error) {
    if (error instanceof TypeError) throw error;  // nobody answers
    return false;  // it has no metrics yet, or is gone
  }
  if (chosen.get(name) !== run) return false;
  const beginning = part.again || run.offset === 0;
  run.lines = beginning ? part.lines : run.lines.concat(part.lines);
  run.every = beginning ? part.every : run.every;
  [run.offset, run.mark] = [part.offset, part.mark];
  return part.again || part.lines.length > 0;
}

/** Says aloud what became of runs, and nothing else. */
function note(runs) {
  const said = [];
  for (const run of runs) {
    const before = known.get(run.name);
    if (before && before.state !== run.state) said.push(`${run.name}: ${run.state} at step ${run.step ?? 0}`);
    if (!before && begun) said.push(`${run.name}: new`);
  }
  known.clear();
  for (const run of runs) known.set(run.name, run);
  for (const name of chosen.keys()) if (!known.has(name)) drop(name);
  if (said.length) say(said.join("; "));
}

function say(text) {
  if (element("said").textContent !== text) element("said").textContent = text;
}

// Choosing

function choose(name) {
  const used = new Set([...chosen.values()].map((run) => run.colour));
  const free = [...Array(COLOURS).keys()].find((colour) => !used.has(colour)) ?? chosen.size % COLOURS;
  chosen.set(name, {colour: free, lines: [], offset: 0, mark: 0, every: 1});
}

function drop(name) {
  chosen.delete(name);
}

const items = new Map();  // run name → its list item: kept, so that the focus stays where it is

function listRuns() {
  for (const [name, item] of items) if (!known.has(name)) { item.remove(); items.delete(name); }
  const wanted = element("filter").value.trim().toLowerCase();
  for (const [name, run] of known) {
    const item = items.get(name) ?? newItem(name);
    item.hidden = !name.toLowerCase().includes(wanted);
    item.querySelector("input").checked = chosen.has(name);
    item.querySelector(".swatch").className = chosen.has(name) ? `swatch c${chosen.get(name).colour}` : "swatch none";
    const facts = item.querySelector(".facts");
    const state = make("span", ["diverged", "failed", "died"].includes(run.state) ? {class: "bad"} : {}, run.state);
    facts.replaceChildren(state, described(run));
    if (run.note) facts.title = run.note;
  }
  element("hint").hidden = known.size > 0 && chosen.size > 0;
  element("hint").textContent = known.size ? "No run is chosen." : "There are no runs here yet. They appear when one begins.";
}

function newItem(name) {
  const box = make("input", {type: "checkbox"});
  box.addEventListener("change", () => {
    if (box.checked) choose(name); else drop(name);
    showMetrics();
    soon();
  });
  const item = make("li", {}, make("label", {}, box, make("span", {class: "swatch"}), make("span", {class: "name"}, name)),
    make("div", {class: "facts"}));
  items.set(name, item);
  const after = [...items.keys()].sort().find((other) => other > name);
  element("runs").insertBefore(item, after ? items.get(after) : null);
  return item;
}

function described(run) {
  const parts = [run.steps ? `step ${run.step ?? 0} of ${run.steps}` : run.step === null ? "" : `step ${run.step}`];
  if (run.loss !== null) parts.push(`loss ${number(run.loss)}`);
  if (run.best !== null) parts.push(`best ${run.metric} ${number(run.best)}`);
  if (run.eta !== null) parts.push(`${duration(run.eta)} left`);
  else if (run.age !== null) parts.push(`${duration(run.age)} ago`);
  const every = chosen.get(run.name)?.every ?? 1;
  if (every > 1) parts.push(`every ${every}th line is shown`);
  return ["", ...parts.filter(Boolean)].join(", ");
}

function duration(seconds) {
  const [size, unit] = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]].find(([size]) => seconds >= size) ?? [1, "s"];
  return `${Math.round(seconds / size)} ${unit}`;
}

// Drawing

function seriesOf(metric) {
  const found = [];
  for (const [name, run] of [...chosen].sort(([a], [b]) => (a < b ? -1 : 1))) {
    for (const kind of ["train", "eval"]) {
      const lines = run.lines.filter((line) => line.kind === kind && metric in line);
      if (!lines.length) continue;
      found.push({run: name, kind, colour: `c${run.colour}`,
        steps: lines.map((line) => line.step), values: lines.map((line) => line[metric])});
    }
  }
  return found;
}

function showMetrics() {
  const names = new Set();
  for (const run of chosen.values()) {
    for (const line of run.lines) {
      if (line.kind !== "rollback") for (const name in line) if (name !== "kind" && name !== "step") names.add(name);
    }
  }
  const ordered = [...names].sort((a, b) => rankOf(a) - rankOf(b) || (a < b ? -1 : 1));
  for (const name of ordered) {
    if (metrics.has(name)) continue;
    metrics.set(name, [...metrics.values()].filter(Boolean).length < CHOSEN);
  }
  const boxes = new Map([...element("metrics").children].map((label) => [label.dataset.metric, label]));
  for (const [name, label] of boxes) if (!names.has(name)) label.remove();
  for (const name of ordered) if (!boxes.has(name)) element("metrics").append(newMetric(name));
  showCharts(ordered);
}

const rankOf = (name) => (name === "loss" ? 0 : name.includes("loss") ? 1 : name.includes("accuracy") ? 2 : 3);

function newMetric(name) {
  const box = make("input", {type: "checkbox"});
  box.checked = metrics.get(name);
  box.addEventListener("change", () => {
    metrics.set(name, box.checked);
    showMetrics();
  });
  return make("label", {"data-metric": name}, box, name);
}

function showCharts(ordered) {
  const options = {smoothing: element("smoothing").value / 100, log: element("log").checked};
  for (const [name, chart] of charts) {
    if (ordered.includes(name) && metrics.get(name)) continue;
    chart.element.remove();
    charts.delete(name);
  }
  for (const name of ordered.filter((name) => metrics.get(name))) {
    if (!charts.has(name)) {
      charts.set(name, new Chart(name));
      const after = ordered.slice(ordered.indexOf(name) + 1).map((other) => charts.get(other)).find(Boolean);
      element("charts").insertBefore(charts.get(name).element, after?.element ?? null);
    }
    charts.get(name).show(seriesOf(name), options);
  }
}

for (const id of ["smoothing", "log"]) {
  element(id).addEventListener("input", () => {
    element("smoothed").textContent = (element("smoothing").value / 100).toFixed(2);
    showMetrics();
  });
}
element("filter").addEventListener("input", listRuns);
element("none").addEventListener("click", () => {
  chosen.clear();
  listRuns();
  showMetrics();
});
element("live").addEventListener("click", () => {
  live = !live;
  element("live").setAttribute("aria-pressed", live);
  element("live").textContent = live ? "Live" : "Paused";
  if (live) soon();
});

// Going on

let timer = null;
let asking = false;

async function turn() {
  clearTimeout(timer);
  if (asking) { timer = setTimeout(turn, 50); return; }
  asking = true;
  try {
    await ask();
    if (element("said").dataset.lost) { say(""); delete element("said").dataset.lost; }
  } catch (error) {
    if (!(error instanceof TypeError)) throw error;
    element("said").dataset.lost = "yes";
    say("tftoolkit serve does not answer; this page asks again.");
  } finally {
    asking = false;
    window.ready = true;
    if (live && !document.hidden) timer = setTimeout(turn, PAUSE);
  }
}

function soon() {
  clearTimeout(timer);
  timer = setTimeout(turn, 0);
}

document.addEventListener("visibilitychange", () => { if (live && !document.hidden) soon(); });
turn();
