"""Random small models through every target of ``tftoolkit.export``: is each accepted file right, what is refused?

    python tools/random_models/run.py 0 300 --results /tmp/random_models.jsonl

A line per model is appended to --results, so that an interrupted run goes on where it stopped (a model that ended the
process counts as a crash). Prints the table at the end.
"""

import argparse
import collections
import contextlib
import faulthandler
import functools
import io
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from ai_edge_quantizer import recipe
from draw import FREE, VOCABULARY, RandomModel
from models import random_model

from tftoolkit import export
from tftoolkit.export.proof import memory

QUANTIZE: dict[str, Any] = {
    "float32": None, "float16": "float16", "dynamic": "dynamic", "int8": "int8", "int16x8": "int16x8",
    "recipe": recipe.static_wi8_ai8(),
}  # fmt: skip
TARGETS = ["saved_model", *QUANTIZE, "onnx"]
# What rounds a number, relative to the largest of its tensor; and what a file may be off, relative to the largest
# output, beside what such a rounding of the inputs does to the model. Generous, since the gate's own bound is derived
# and much tighter: this looks for gross errors that the gate lets through.
ROUNDING = {"float16": 2.0**-11, "dynamic": 1 / 127, "int8": 1 / 127, "int16x8": 1 / 127, "recipe": 1 / 127}
SINGLE = 2.0**-22
TOLERANCE = {"float16": 0.02, "dynamic": 0.5, "int8": 0.5, "int16x8": 0.5, "recipe": 0.5}
CALIBRATED = {"int8", "int16x8", "recipe"}
EXAMPLES = 104  # calibration wants 100


def inputs(made: RandomModel, specs: Iterable[tf.TensorSpec], rng: np.random.Generator) -> dict[str, np.ndarray]:
    found = {}
    for spec in specs:
        shape = [FREE if size is None else size for size in spec.shape]
        if spec.name in made.values:
            found[spec.name] = made.values[spec.name](rng, shape)
        elif spec.dtype.is_integer:
            found[spec.name] = rng.integers(0, VOCABULARY, shape, np.int32)
        else:
            found[spec.name] = rng.standard_normal(shape).astype(np.float32)
    return found


def examples(made: RandomModel, seed: int) -> dict[str, list[dict[str, np.ndarray]]]:
    """Real inputs for each signature."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, (_, specs) in made.signatures.items():
        found[name] = [inputs(made, specs, rng) for _ in range(EXAMPLES // (specs[0].shape[0] or FREE))]
    return found


class Oracle:
    """The model in TensorFlow on fresh inputs, and how far its outputs move when the inputs are rounded."""

    def __init__(self, made: RandomModel, seed: int, real: Mapping[str, Sequence[dict[str, np.ndarray]]] | None = None):
        self._rng = np.random.default_rng([seed, 1])
        self._functions = {
            name: (tf.function(function, autograph=False), specs) for name, (function, specs) in made.signatures.items()
        }
        self.inputs = {name: inputs(made, specs, self._rng) for name, (_, specs) in made.signatures.items()}
        self.outputs = {name: self._run(name, values) for name, values in self.inputs.items()}
        self._real = real or {}

    @functools.cache  # noqa: B019 - lives as long as its model
    def moved(self, signature: str, rounding: float) -> dict[str, float]:
        right = self.outputs[signature]
        found = dict.fromkeys(right, 0.0)
        for _ in range(4):
            nearby = {name: _rounded(value, rounding, self._rng) for name, value in self.inputs[signature].items()}
            for name, value in self._run(signature, nearby).items():
                found[name] = max(found[name], _distance(value, right[name]))
        return found

    @functools.cache  # noqa: B019 - lives as long as its model
    def magnitude(self, signature: str, name: str, calibrated: bool) -> float:
        """Of the output; in a calibrated file one scale serves all that was seen in calibration."""
        values = [self.outputs[signature][name]]
        if values[0].dtype.kind in "Ob":
            return 0.0
        if calibrated:
            values += [self._run(signature, item)[name] for item in self._real.get(signature, ())]
        return max(float(np.abs(value).max(where=np.isfinite(value), initial=1e-3)) for value in values)

    def _run(self, signature: str, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        function, specs = self._functions[signature]
        outputs = function(*(tf.constant(values[spec.name]) for spec in specs))
        return {name: np.asarray(value) for name, value in outputs.items()}


def actual(path: Path, target: str, signature: str, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """In a runtime of its own."""
    if target == "saved_model":
        outputs = tf.saved_model.load(str(path)).signatures[signature](**{k: tf.constant(v) for k, v in values.items()})
        return {name: np.asarray(value) for name, value in outputs.items()}
    if target == "onnx":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        texts = {
            name: np.vectorize(bytes.decode, otypes="O")(v) if v.dtype == object else v for name, v in values.items()
        }
        return dict(zip(names, session.run(names, texts), strict=True))
    runtime = Interpreter(str(path)).get_signature_runner(signature)
    runtime(**values)
    return dict(runtime(**values))  # the second call: state must not outlive one


def wrong(oracle: Oracle, path: Path, target: str) -> str | None:
    """The first output on fresh inputs that is off by more than the format explains."""
    for signature in ["serving_default"] if target == "onnx" else oracle.outputs:
        found = actual(path, target, signature, oracle.inputs[signature])
        moved = oracle.moved(signature, ROUNDING.get(target, SINGLE))
        for name, value in oracle.outputs[signature].items():
            if value.dtype.kind in "iu" and target in ROUNDING:
                continue  # the index of the largest of nearly equal numbers
            lost = _lost(found[name], value) if value.dtype.kind == "f" else None
            if lost is not None:
                return f"{signature}/{name}[..., {lost}] does not follow TensorFlow's values"
            error = _distance(found[name], value)
            magnitude = oracle.magnitude(signature, name, target in CALIBRATED)
            allowed = TOLERANCE.get(target, 1e-3) * magnitude + 4 * moved[name]
            if not error <= allowed:
                return f"{signature}/{name} is off by {error:.3g}, allowed {allowed:.3g}"
    return None


def _rounded(value: np.ndarray, rounding: float, rng: np.random.Generator) -> np.ndarray:
    if value.dtype.kind != "f":
        return value
    return (value + rounding * np.abs(value).max() * rng.uniform(-1, 1, value.shape)).astype(np.float32)


def _lost(found: np.ndarray, right: np.ndarray) -> int | None:
    """The first channel that a constant would give as well; parts of a distribution are no channels."""
    if right.ndim < 2 or right.size < 8 * right.shape[-1] or np.allclose(right.sum(-1), 1.0, atol=1e-2):
        return None
    one, other = (array.reshape(-1, array.shape[-1]).astype(np.float64) for array in (found, right))
    error, varies = np.sqrt(np.mean(np.square(one - other), 0)), other.std(0)
    lost = np.flatnonzero((error > 0.9 * varies) & (error > 0.05 * np.abs(other).max(0)))
    return int(lost[0]) if lost.size else None


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    """The largest difference; infinite where only one of two numbers is finite, or a string is another."""
    if other.dtype == object:
        texts = [[x.encode() if isinstance(x, str) else x for x in array.ravel()] for array in (one, other)]
        return 0.0 if texts[0] == texts[1] else np.inf
    one, other = one.astype(np.float64), other.astype(np.float64)
    with np.errstate(invalid="ignore"):
        gap = np.where((one == other) | (np.isnan(one) & np.isnan(other)), 0.0, np.abs(one - other))
    return float(np.nan_to_num(gap, nan=np.inf, posinf=np.inf).max(initial=0.0))


def through_every_target(made: RandomModel, seed: int, folder: Path) -> dict[str, str]:
    """What became of the model in each target: "accepted: ...", "refused: reason", "WRONG: ..." or "ERROR: ..."."""
    real = examples(made, seed)
    oracle = Oracle(made, seed, real)
    found = {}
    for target in TARGETS:
        path = folder / f"{seed}.{target}"
        try:
            report = _export(made, target, path, real)
        except export.ExportError as error:
            found[target] = f"refused: {error.stage}: {error.reason}"
        except Exception as error:  # a refusal without a reason is what this looks for, too
            found[target] = f"ERROR: {type(error).__name__}: {str(error)[:500]}"
        else:
            problem = wrong(oracle, path, target)
            share = max((c.error / c.bound for c in report.rows[0].checks if c.bound), default=0.0)
            found[target] = f"WRONG: {problem}" if problem else f"accepted: {share:.3f} of the bound"
            continue
        if path.exists():
            found[target] = f"ERROR: left a file behind; {found[target]}"
        if target == "saved_model":  # of which the others are made
            break
    return found


def _export(made: RandomModel, target: str, path: Path, real: Any) -> export.ExportReport:
    saved = path.with_suffix(".saved_model")
    if target == "saved_model":
        return export.saved_model(made.model, path, signatures=made.signatures)
    if target == "onnx":
        return export.onnx(saved, path, signature="serving_default", representative=real["serving_default"])
    return export.tflite(saved, path, quantize=QUANTIZE[target], representative=real)


def kind_of(result: str) -> str:
    """The first sentence without what differs from model to model: names, paths, numbers, the converter's log."""
    text = re.sub(r" \(tf2onnx: .*\)(?=;)", "", result)
    text = re.sub(r"(?<!\w)'[^']*'", "…", text)
    text = re.sub(r"[^\s(]*(?:[/_]|\b\d)[^\s:;,]*?(?=\.?(?:[\s:;,]|$))", "…", text)
    return re.split(r"\.\s|\.$|: TFLOperationName", re.sub(r"…(,? …)+", "…", text))[0][:200]


def tabulate(results: Iterable[Mapping[str, str]]) -> str:
    """Counts by target, then every kind of refusal with the targets it concerns."""
    results = list(results)
    lines = ["| target | accepted | needing at most | refused | wrong | error |", "|---|---|---|---|---|---|"]
    for target in TARGETS:
        found = [result[target].split(": ") for result in results if target in result]
        share = max((float(rest[0].split()[0]) for what, *rest in found if what == "accepted"), default=0.0)
        counts = [sum(what == wanted for what, *_ in found) for wanted in ("accepted", "refused", "WRONG", "ERROR")]
        lines.append(f"| {target} | {counts[0]} | {share:.2f} of the bound | {' | '.join(map(str, counts[1:]))} |")
    reasons: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for result in results:
        for target, what in result.items():
            if not what.startswith("accepted"):
                reasons[kind_of(what)][target] += 1
    lines += ["", "| not accepted, and why | files | targets |", "|---|---|---|"]
    for reason, targets in sorted(reasons.items(), key=lambda item: -item[1].total()):
        text = reason.removeprefix("refused: ").replace("|", "\\|")
        lines.append(f"| {text} | {targets.total()} | {', '.join(f'{t} {n}' for t, n in sorted(targets.items()))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=int, help="the first seed")
    parser.add_argument("end", type=int, help="the seed after the last")
    parser.add_argument("--results", type=Path, required=True, help="JSON lines, appended to")
    arguments = parser.parse_args()
    memory.peak = lambda *_: None  # a process for each file, of no interest here
    faulthandler.enable(os.dup(2))  # a copy: the export redirects standard error at times
    done: dict[int, dict[str, str]] = {}
    if arguments.results.exists():
        for line in arguments.results.read_text().splitlines():
            entry = json.loads(line)
            done[entry["seed"]] = entry["results"]
    with arguments.results.open("a") as file:
        for seed in range(arguments.first, arguments.end):
            if seed in done:
                continue
            # Written before: a model that ends the process is not tried again.
            print(
                json.dumps({"seed": seed, "results": {"saved_model": "ERROR: ended the process"}}),
                file=file,
                flush=True,
            )
            made = random_model(seed)
            with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
                done[seed] = through_every_target(made, seed, Path(folder))
            print(json.dumps({"seed": seed, "parts": made.parts, "results": done[seed]}), file=file, flush=True)
            print(
                f"{seed}: {', '.join(what.split(':')[0] for what in done[seed].values())}", file=sys.stderr, flush=True
            )
    print(tabulate(done[seed] for seed in sorted(done) if arguments.first <= seed < arguments.end))


if __name__ == "__main__":
    main()
