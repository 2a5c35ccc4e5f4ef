// The page: strokes become a picture like those of the training data, and the model says what it shows.

import {check, decode, excess, openModel} from "./runtime.js";

const STEPS = 10;  // of training for one correction
const INK = "#f5f7fa";
const FINE = 16;  // by how much finer strokes are drawn than the pixels they are averaged to

const element = (id) => document.getElementById(id);
const config = await (await fetch("page.json")).json();
const model = await openModel(config.file);
const [, height, width] = config.shape;
let strokes = [];  // lists of [x, y], from 0 to 1
let corrections = [];  // {pixels, label}
let losses = [];
let busy = Promise.resolve();  // one call of the model after the other

// Drawing

const drawing = element("drawing");
const surface = drawing.getContext("2d");

function position(event) {
  const box = drawing.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
}

drawing.addEventListener("pointerdown", (event) => {
  drawing.setPointerCapture(event.pointerId);
  strokes.push([position(event)]);
  changed();
});
drawing.addEventListener("pointermove", (event) => {
  if (!drawing.hasPointerCapture(event.pointerId)) return;
  // Between two frames a pointer moves more than once.
  for (const point of event.getCoalescedEvents?.() ?? [event]) strokes.at(-1).push(position(point));
  changed();
});
element("clear").addEventListener("click", () => {
  strokes = [];
  changed();
});

function paint(context, lines, thickness) {
  context.lineCap = context.lineJoin = "round";
  context.strokeStyle = INK;
  context.lineWidth = thickness;
  for (const line of lines) {
    context.beginPath();
    context.moveTo(...line[0]);
    for (const point of line) context.lineTo(...point);
    context.stroke();
  }
}

/** The strokes as the model's picture: as large, as thick and as bright as in the training data, centred. */
function picture() {
  const points = strokes.flat();
  const [left, top] = [0, 1].map((axis) => Math.min(...points.map((point) => point[axis])));
  const [right, bottom] = [0, 1].map((axis) => Math.max(...points.map((point) => point[axis])));
  const thickness = config.stroke * height * FINE;
  const room = config.fit * height * FINE - thickness;
  // A dot must not become as large as a digit.
  const scale = room / Math.max(bottom - top, right - left, 0.2);
  const place = ([x, y]) => [
    (x - (left + right) / 2) * scale + width * FINE / 2, (y - (top + bottom) / 2) * scale + height * FINE / 2,
  ];
  const fine = new OffscreenCanvas(width * FINE, height * FINE).getContext("2d", {willReadFrequently: true});
  paint(fine, strokes.map((line) => line.map(place)), thickness);
  const alpha = fine.getImageData(0, 0, width * FINE, height * FINE).data;
  const covered = new Float32Array(height * width);
  for (let row = 0; row < height * FINE; row++) {
    for (let column = 0; column < width * FINE; column++) {
      const pixel = Math.floor(row / FINE) * width + Math.floor(column / FINE);
      covered[pixel] += alpha[(row * width * FINE + column) * 4 + 3] / 255 / FINE ** 2;
    }
  }
  return covered.map((part) => config.background + part * (config.ink - config.background));
}

// Answers

function listLabels() {
  for (const label of config.labels) {
    const item = document.createElement("li");
    item.innerHTML = '<span></span><div class="track"><div class="bar"></div></div><span class="value"></span>';
    item.firstChild.textContent = label;
    element("bars").append(item);
  }
}

/** Scores that are probabilities already stay what they are. */
function probabilities(scores) {
  const sum = scores.reduce((total, score) => total + score, 0);
  if (Math.abs(sum - 1) < 0.02 && scores.every((score) => score >= 0)) return [...scores];
  const top = Math.max(...scores);
  const powers = [...scores].map((score) => Math.exp(score - top));
  const total = powers.reduce((a, b) => a + b);
  return powers.map((power) => power / total);
}

function show(shares) {
  const best = shares === null ? -1 : shares.indexOf(Math.max(...shares));
  element("best").textContent = shares === null ? "?" : config.labels[best];
  element("sure").textContent = shares === null ? "Nothing drawn yet." : `${percent(shares[best])} sure`;
  for (const [index, item] of [...element("bars").children].entries()) {
    item.classList.toggle("best", index === best);
    item.querySelector(".bar").style.width = shares === null ? "0" : `${100 * shares[index]}%`;
    item.querySelector(".value").textContent = shares === null ? "" : percent(shares[index]);
  }
}

const percent = (share) => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`;

function showSeen(pixels) {
  const seen = element("seen");
  [seen.width, seen.height] = [width, height];
  const image = new ImageData(width, height);
  pixels?.forEach((value, index) => {
    const grey = 255 * (value - config.background) / (config.ink - config.background);
    image.data.set([grey, grey, grey, 255], 4 * index);
  });
  seen.getContext("2d").putImageData(image, 0, 0);
}

function changed() {
  surface.clearRect(0, 0, drawing.width, drawing.height);
  if (strokes.length === 0) {
    surface.font = "28px system-ui, sans-serif";
    surface.textAlign = "center";
    surface.fillStyle = "#8b97a5";
    surface.fillText("draw here", drawing.width / 2, drawing.height / 2);
  }
  const lines = strokes.map((line) => line.map(([x, y]) => [x * drawing.width, y * drawing.height]));
  paint(surface, lines, config.stroke * 0.8 * drawing.height);
  busy = busy.then(classify);
}

async function classify() {
  if (strokes.length === 0) {
    show(null);
    showSeen(null);
    return;
  }
  const pixels = picture();
  showSeen(pixels);
  const outputs = await model.run(config.signature, {[config.input]: pixels});
  show(probabilities(outputs[config.output]));
}

// Training

async function prepareTraining() {
  const {batch, image, label} = config.train;
  const stored = (await (await fetch("golden.json")).json()).filter((call) => call.signature === "train");
  const known = stored.map((call) => [decode(call.inputs[image]), decode(call.inputs[label])]);
  const start = await model.run("get_weights", {});

  /** Up to half of it are the corrections, over and over; the rest are pictures of the training data. */
  function nextBatch(step) {
    const [images, labels] = known[step % known.length].map((array) => array.slice());
    const own = batch === 1 ? 1 : Math.min(Math.floor(batch / 2), 4 * corrections.length);
    for (let place = 0; place < own; place++) {
      const example = corrections[(corrections.length - 1 + place + step) % corrections.length];
      images.set(example.pixels, place * height * width);
      labels[place] = example.label;
    }
    return {[image]: images, [label]: labels};
  }

  async function teach(answer) {
    if (strokes.length === 0) {
      element("progress").textContent = "Draw something first.";
      return;
    }
    corrections.push({pixels: picture(), label: answer});
    for (let step = 0; step < STEPS; step++) {
      const metrics = await model.run("train", nextBatch(losses.length));
      losses.push(metrics.loss[0]);
      plot();
      await new Promise(requestAnimationFrame);
    }
    element("forget").disabled = false;
    await classify();
  }

  async function forget() {
    await model.run("set_weights", start);
    [corrections, losses] = [[], []];
    element("forget").disabled = true;
    plot();
    await classify();
  }

  element("steps").textContent = STEPS;
  config.labels.forEach((text, index) => {
    const button = document.createElement("button");
    button.textContent = text;
    button.addEventListener("click", () => { busy = busy.then(() => teach(index)); });
    element("labels").append(button);
  });
  element("forget").addEventListener("click", () => { busy = busy.then(forget); });
  plot();
  element("training").hidden = false;
}

function plot() {
  const canvas = element("losses");
  const context = canvas.getContext("2d");
  const style = getComputedStyle(document.body);
  const [left, bottom, right, top] = [70, canvas.height - 30, canvas.width - 10, 20];
  context.clearRect(0, 0, canvas.width, canvas.height);
  element("progress").textContent =
    losses.length ? `Step ${losses.length}: loss ${losses.at(-1).toPrecision(3)}` : "The loss of each step appears here.";
  if (losses.length === 0) return;
  const unit = 10 ** Math.floor(Math.log10(Math.max(...losses, 1e-6)));
  const largest = unit * Math.ceil(Math.max(...losses, 1e-6) / unit);  // a round number: 0.3, 2, 40
  context.font = "22px system-ui, sans-serif";
  for (const part of [0, 0.5, 1]) {
    const y = bottom - part * (bottom - top);
    context.fillStyle = style.getPropertyValue("--line");
    context.fillRect(left, y, right - left, 2);
    context.fillStyle = style.getPropertyValue("--quiet");
    context.fillText(String(Number((part * largest).toPrecision(2))), 0, y + 8);
  }
  context.strokeStyle = style.getPropertyValue("--accent");
  context.lineWidth = 4;
  context.beginPath();
  losses.forEach((loss, step) => {
    const along = losses.length > 1 ? step / (losses.length - 1) : 0;
    context.lineTo(left + along * (right - left), bottom - (loss / largest) * (bottom - top));
  });
  context.stroke();
}

// The proof

/** Resolves to what was compared; the export and the button below call it. */
window.checkModel = async (progress) => {
  const cases = await (await fetch("golden.json")).json();
  return check(config.file, cases, progress);
};

/** Milliseconds of each of some calls, for the export's report. */
window.timeModel = async (calls) => {
  const inputs = {[config.input]: new Float32Array(height * width).fill(config.background)};
  const times = [];
  for (let call = 0; call < calls; call++) {
    const start = performance.now();
    await model.run(config.signature, inputs);
    times.push(performance.now() - start);
  }
  return times;
};

element("check").addEventListener("click", async () => {
  const output = element("checked");
  output.className = "";
  const found = await window.checkModel((part) => { output.textContent = `${Math.round(100 * part)} %`; });
  const worst = found.reduce((a, b) => (excess(a) >= excess(b) ? a : b));
  const steps = config.train ? ` and ${config.train.proven} training steps` : "";
  const passed = excess(worst) <= 1;
  output.className = passed ? "" : "failed";
  output.textContent = passed
    ? `✓ All outputs${steps} equal TensorFlow's within their bounds; nearest to its bound: ${worst.signature}/` +
      `${worst.tensor}, off by ${worst.error.toExponential(1)} of ${worst.bound?.toExponential(1)}.`
    : `✗ ${worst.signature}/${worst.tensor} is off by ${worst.error}, allowed is ${worst.bound}.`;
});

document.title = element("title").textContent = config.title;
element("model").textContent = `${config.file}, ${Math.round(config.size / 1000)} kB.`;
listLabels();
changed();
if (config.train) await prepareTraining();
await busy;
window.ready = true;
