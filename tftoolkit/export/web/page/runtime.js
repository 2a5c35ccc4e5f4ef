// The exported model in LiteRT.js, and the proof that was stored with it, repeated in this browser.

import {loadLiteRt, loadAndCompile, Tensor} from "@litertjs/core";

const ARRAYS = {float32: Float32Array, int32: Int32Array, uint8: Uint8Array};

let runtime;

/** A model whose run(signature, {name: numbers}) resolves to {name: typed array}. */
export async function openModel(file) {
  runtime ??= loadLiteRt("litert/");
  await runtime;
  const model = await loadAndCompile(file, {accelerator: "wasm"});
  const shapes = {};
  for (const [name, signature] of Object.entries(model.signatures)) {
    shapes[name] = Object.fromEntries(signature.getInputDetails().map((detail) => [detail.name, detail]));
  }

  async function run(signature, inputs) {
    const tensors = {};
    for (const [name, {dtype, shape}] of Object.entries(shapes[signature])) {
      tensors[name] = new Tensor(new ARRAYS[dtype](inputs[name]), [...shape]);
    }
    const outputs = await model.run(signature, tensors);
    const found = {};
    for (const [name, tensor] of Object.entries(outputs)) found[name] = (await tensor.data()).slice();
    // The memory behind tensors is not garbage collected.
    for (const tensor of [...Object.values(tensors), ...Object.values(outputs)]) tensor.delete();
    return found;
  }

  return {run, close: () => model.delete()};
}

/** Numbers that were stored as base64. */
export function decode({dtype, data}) {
  const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
  return new ARRAYS[dtype](bytes.buffer);
}

/** Runs every stored call, in order, in a model of its own; resolves to one entry for each output and kind of input. */
export async function check(file, cases, progress = () => {}) {
  const model = await openModel(file);
  const worst = new Map();
  for (const [number, {signature, kind, inputs, outputs, bounds}] of cases.entries()) {
    const given = Object.fromEntries(Object.entries(inputs).map(([name, value]) => [name, decode(value)]));
    const found = await model.run(signature, given);
    for (const [tensor, value] of Object.entries(outputs)) {
      const expected = decode(value), bound = bounds[tensor], size = expected.length;
      const error = difference(found[tensor], expected, bound), key = [signature, tensor, kind].join("\n");
      const entry = {signature, tensor, kind, error, bound, size}, known = worst.get(key);
      if (!known) worst.set(key, entry);
      else if (isFraction(expected, bound)) worst.set(key, pooled(known, entry));
      else if (excess(known) < excess(entry)) worst.set(key, entry);
    }
    progress((number + 1) / cases.length);
    if (number % 8 === 7) await new Promise((resolve) => setTimeout(resolve));  // the page stays alive
  }
  model.close();
  return [...worst.values()];
}

/** Above 1: more than is allowed. */
export function excess({error, bound}) {
  if (bound === null) return Number.isFinite(error) ? 0 : Infinity;
  return error === 0 ? 0 : error / bound;
}

/** Whether an output is judged by how many of its elements differ: see Check in the package's report.py. */
function isFraction(expected, bound) {
  return !(expected instanceof Float32Array) && !(bound > 1);
}

/** Fractions of the elements of two calls together; counts are whole numbers. */
function pooled(a, b) {
  const both = (x, y) => (Math.round(x * a.size) + Math.round(y * b.size)) / Math.max(1, a.size + b.size);
  const bound = a.bound === null || b.bound === null ? null : both(a.bound, b.bound);
  return {...a, error: both(a.error, b.error), bound, size: a.size + b.size};
}

/** The largest difference, or the fraction of elements that differs. */
function difference(actual, expected, bound) {
  if (actual === undefined || actual.length !== expected.length) return Infinity;
  let largest = 0, unequal = 0;
  for (let i = 0; i < expected.length; i++) {
    if (Object.is(actual[i], expected[i]) || actual[i] === expected[i]) continue;
    unequal += 1;
    const gap = Math.abs(actual[i] - expected[i]);
    largest = Math.max(largest, Number.isNaN(gap) ? Infinity : gap);
  }
  return isFraction(expected, bound) ? unequal / Math.max(1, expected.length) : largest;
}
