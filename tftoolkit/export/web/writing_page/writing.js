// The page: the model reads how a text begins, and writes on.

import {check, excess, openModel} from "./runtime.js";
import {openTokenizer} from "./tokenizer.js";

const element = (id) => document.getElementById(id);
const config = await (await fetch("page.json")).json();
const tokenizer = openTokenizer(await (await fetch("tokenizer.json")).json());
const model = await openModel(config.file);

/** Reads tokens; keeps the cache from call to call. */
function openReader() {
  let position = 0;
  let cache = Object.fromEntries(config.cache.map(({name, size}) => [name, new Float32Array(size)]));

  /** Resolves to the logits of what follows the last of the tokens. */
  async function read(tokens) {
    let logits;
    while (tokens.length) {
      const count = tokens.length >= config.prefill ? config.prefill : 1;
      const inputs = {tokens: tokens.slice(0, count), start: [position], ...cache};
      ({logits, ...cache} = await model.run(count === 1 ? "decode" : "prefill", inputs));
      position += count;
      tokens = tokens.slice(count);
    }
    return logits;
  }

  return {read, room: () => config.capacity - position};
}

function likeliest(logits) {
  return logits.reduce((best, value, token) => (value > logits[best] ? token : best), 0);
}

function drawn(logits, temperature) {
  if (temperature === 0) return likeliest(logits);
  const top = logits[likeliest(logits)];
  const weights = Array.from(logits, (value) => Math.exp((value - top) / temperature));
  let rest = Math.random() * weights.reduce((a, b) => a + b);
  return Math.max(0, weights.findIndex((weight) => (rest -= weight) < 0));
}

let writing = null;  // what is being written; another one, or null, ends it

async function write() {
  const text = element("prompt").value;
  const prompt = tokenizer.encode(text);
  if (prompt.length === 0) {
    element("speed").textContent = "Type how the text begins.";
    return;
  }
  if (prompt.length >= config.capacity) {
    element("speed").textContent = `That is ${prompt.length} tokens; there is room for ${config.capacity - 1}.`;
    return;
  }
  const own = (writing = {});
  element("write").textContent = "Stop";
  const given = Object.assign(document.createElement("span"), {className: "given", textContent: text});
  const added = document.createElement("span");
  element("text").replaceChildren(given, added);
  const reader = openReader(), tokens = [];
  let logits = await reader.read(prompt);
  const start = performance.now();
  while (writing === own && reader.room() > 0) {
    const token = drawn(logits, Number(element("temperature").value));
    if (tokenizer.isSpecial(token)) break;
    tokens.push(token);
    added.textContent = tokenizer.decode(tokens);
    logits = await reader.read([token]);
    if (tokens.length % 4 === 0) await new Promise(requestAnimationFrame);
    element("speed").textContent =
      `${tokens.length} tokens, ${Math.round(1000 * tokens.length / (performance.now() - start))} per second`;
  }
  if (writing === own) writing = null;
  element("write").textContent = "Write on";
}

element("write").addEventListener("click", () => {
  if (writing) writing = null;
  else write();
});
element("temperature").addEventListener("input", (event) => {
  element("chosen").textContent = Number(event.target.value).toFixed(1);
});

/** How the page reads a text. */
window.tokenize = (text) => {
  const tokens = tokenizer.encode(text);
  return {tokens, text: tokenizer.decode(tokens)};
};

// The proof

/** Resolves to what was compared; the export and the button below call it. */
window.checkModel = async (progress) => {
  const cases = await (await fetch("golden.json")).json();
  return check(config.file, cases, progress);
};

/** The prompt as tokens, and what the model writes behind it, the likeliest token each time. */
window.writeSample = async ({text, count}) => {
  const reader = openReader(), prompt = tokenizer.encode(text), tokens = [];
  let logits = await reader.read(prompt);
  for (;;) {
    tokens.push(likeliest(logits));
    if (tokens.length === count) return {prompt, tokens, text: tokenizer.decode(tokens)};
    logits = await reader.read(tokens.slice(-1));
  }
};

/** Milliseconds for each of some tokens, for the export's report. */
window.timeModel = async (calls) => {
  const times = [];
  let reader = openReader();
  for (let call = 0; call < calls; call++) {
    if (reader.room() === 0) reader = openReader();
    const start = performance.now();
    await reader.read([0]);
    times.push(performance.now() - start);
  }
  return times;
};

element("check").addEventListener("click", async () => {
  const output = element("checked");
  output.className = "";
  const found = await window.checkModel((part) => { output.textContent = `${Math.round(100 * part)} %`; });
  const worst = found.reduce((a, b) => (excess(a) >= excess(b) ? a : b));
  const passed = excess(worst) <= 1;
  output.className = passed ? "" : "failed";
  output.textContent = passed
    ? `✓ All outputs equal TensorFlow's within their bounds; nearest to its bound: ${worst.signature}/${worst.tensor}, ` +
      `off by ${worst.error.toExponential(1)} of ${worst.bound?.toExponential(1)}.`
    : `✗ ${worst.signature}/${worst.tensor} is off by ${worst.error}, allowed is ${worst.bound}.`;
});

document.title = element("title").textContent = config.title;
element("model").textContent = `${config.file}, ${Math.round(config.size / 1000)} kB.`;
element("prompt").value = config.prompt;
window.ready = true;
