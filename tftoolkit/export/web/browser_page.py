"""A web page around a .tflite file: one draws a digit and the model, in the browser, says which; or it writes."""

import base64
import dataclasses
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tftoolkit.export.convert.formats import FLOAT32
from tftoolkit.export.proof import golden
from tftoolkit.export.proof.parity import GoldenCase, judge
from tftoolkit.export.report import Check, ExportError, ExportReport, Latency, Row
from tftoolkit.export.runtimes import litert_js
from tftoolkit.export.runtimes.browser import Browser, BrowserError
from tftoolkit.export.runtimes.made_up import NOT_FINITE
from tftoolkit.export.runtimes.runtime import default_signature
from tftoolkit.export.staging import commit, stage, workspace
from tftoolkit.export.web import writing
from tftoolkit.export.web.serving import served

TEMPLATE = Path(__file__).parent / "page"
TYPES = ("float32", "int32", "uint8")  # that LiteRT.js can pass
CALLS = 50  # that the latency is measured with
SECONDS = 300  # for the proof in the browser

Described = Mapping[str, Any]  # a tensor as golden.described writes it


def web(
    file: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    title: str | None = None,
    labels: Sequence[str] | None = None,
    sample: writing.Sample | None = None,
    overwrite: bool = False,
) -> ExportReport:
    """Makes a folder with a page that runs the file in any browser, offline; it was proven in headless Chromium.

    On the page one draws with the mouse or a finger; the strokes become a picture as large, as thick and as bright as
    the real pictures that the file was proven on, and bars show the probability of each class (a softmax is applied to
    scores that are none). With a file of ``trainable_tflite`` one can also correct a wrong answer and train on it. The
    folder holds all it needs, among it LiteRT.js (fetched with npm once, https://www.npmjs.com/package/@litertjs/core),
    the file and its proof, which a button on the page repeats.

    A file with the signatures "prefill" and "decode" (``models.generation_signatures``) gets a page on which it writes
    behind what one types; ``tokenizer.json`` (``Tokenizer.save``) must lie beside the file. The latency is that of a
    token. Serve it with ``tftoolkit web FOLDER`` or any server.

    Args:
      file: a float or quantised .tflite file with its proof beside it: ``tflite(..., representative=real pictures)`` or
        ``trainable_tflite``. Shapes are fixed; inputs and outputs float32, int32 or uint8. Its signature
        ``serving_default`` or ``infer`` (or its only one) takes one picture, [1, height, width, 1], and returns one
        row of scores, [1, classes].
      folder: the folder to make.
      title: the page's heading; None: "Draw a digit", "A model that writes".
      labels: the names of the classes; None: their numbers.
      sample: what the file wrote elsewhere. The page must read the prompt as the same tokens and, where the file is
        float32, write the same; it begins with that prompt.
      overwrite: replace what exists at ``folder``.

    Raises ExportError when a stage fails: where the page in Chromium differs from TensorFlow by more than the file's
    own bounds, or asks for anything from outside. FileNotFoundError where Chromium or npm is missing (a page that was
    not run is not written), RuntimeError where npm fails, FileExistsError and ValueError for unusable arguments.
    """
    source, name = Path(file), Path(folder).name
    if source.suffix != ".tflite":
        raise ValueError(f"file must be a .tflite file, got {source}; export the model with export.tflite first")
    if not source.is_file():
        raise FileNotFoundError(f"no such file: {source}")
    known = golden.load(source)
    if known is None:
        raise ValueError(f"{source} has no proof beside it: write it with export.tflite or export.trainable_tflite")
    cases, proof = known
    writes = set(proof["signatures"]) == writing.SIGNATURES
    heading = title or ("A model that writes" if writes else "Draw a digit")
    page = {"title": heading, "file": source.name, "size": source.stat().st_size}
    tokenizer = source.with_name("tokenizer.json")
    if writes:
        _check_types(proof["signatures"])
        page |= writing.page_of(proof["signatures"], tokenizer, sample)
    else:
        page |= _page(proof["signatures"], cases, labels)
    with workspace(folder, overwrite) as temporary:
        built = temporary / "result"
        with stage("page", name):
            shutil.copytree(TEMPLATE, built)
            if writes:
                (built / "page.js").unlink()
                shutil.copytree(writing.TEMPLATE, built, dirs_exist_ok=True)
            litert_js.copy(built / "litert")
            for item in (source, *([tokenizer] if writes else golden.beside(source))):
                shutil.copyfile(item, built / item.name)
            (built / "page.json").write_text(json.dumps(page, indent=1) + "\n")
            calls = [_case(item) for item in cases if item.case.kind not in NOT_FINITE]
            (built / "golden.json").write_text(json.dumps(calls))
        with stage("browser", name):
            checks, latency = _run(built, sample, proof["measured"]["format"] == "TFLite float32")
        if writes:
            (built / "golden.json").write_text(json.dumps(_few(calls)))
        commit(built, folder, overwrite, {})
    size = sum(item.stat().st_size for item in Path(folder).rglob("*") if item.is_file())
    row = Row(name, f"web page, {proof['measured']['format']}", size, {1: latency}, checks, None, None)
    return ExportReport((row,))


def _page(signatures: Mapping[str, Any], cases: Sequence[GoldenCase], labels: Sequence[str] | None) -> dict[str, Any]:
    """What the page's script must know. Raises ValueError where the file does not fit the page."""
    _check_types(signatures)
    chosen = default_signature(signatures)
    picture, scores = _only(signatures[chosen], "inputs"), _only(signatures[chosen], "outputs")
    shape, classes = picture["shape"] or [], scores["shape"] or []
    if len(shape) != 4 or shape[0] != 1 or shape[3] != 1:
        raise ValueError(
            f"the page draws one picture, [1, height, width, 1]; {chosen} takes {picture['name']}: {shape}"
        )
    if len(classes) != 2 or classes[0] != 1 or classes[1] < 2:
        raise ValueError(f"the page shows scores, [1, classes]; {chosen} returns {scores['name']}: {classes}")
    names = [str(number) for number in range(classes[1])] if labels is None else list(labels)
    if len(names) != classes[1]:
        raise ValueError(f"labels has {len(names)} names, the model {classes[1]} classes")
    train = _train(signatures, cases, shape, picture["name"])
    real = [item.case.inputs[picture["name"]] for item in cases if _has_pictures(item, picture["name"], shape)]
    if not real:
        raise ValueError(
            "the proof beside the file holds no real pictures, so the page cannot draw like them: export the file with "
            "representative=real pictures"
        )
    return {
        "signature": chosen, "input": picture["name"], "output": scores["name"], "shape": shape, "labels": names,
        "train": train, **_drawing(np.concatenate(real)[..., 0].astype(np.float64)),
    }  # fmt: skip


def _check_types(signatures: Mapping[str, Any]) -> None:
    for name, signature in signatures.items():
        for tensor in (*signature["inputs"], *signature["outputs"]):
            if tensor["dtype"] not in TYPES or tensor["stored"]:
                what = tensor["stored"] or tensor["dtype"]
                raise ValueError(
                    f"{tensor['name']} of signature {name!r} is {what}; LiteRT.js passes {', '.join(TYPES)}: export "
                    f"without integer_io"
                )
            if None in (tensor["shape"] or []):
                raise ValueError(
                    f"{tensor['name']} of signature {name!r} is {tensor['shape']}; LiteRT.js needs fixed shapes: "
                    f"export with signatures={{{name!r}: (model, [tf.TensorSpec([1, ...])])}}"
                )


def _only(signature: Mapping[str, Any], side: str) -> Described:
    if len(signature[side]) != 1:
        names = [tensor["name"] for tensor in signature[side]]
        raise ValueError(f"the page has one picture and one row of scores; the model's {side} are {names}")
    return signature[side][0]


def _has_pictures(item: GoldenCase, name: str, shape: Sequence[int]) -> bool:
    array = item.case.inputs.get(name)
    return item.case.kind == "real" and array is not None and list(array.shape[1:]) == list(shape[1:])


def _train(
    signatures: Mapping[str, Any], cases: Sequence[GoldenCase], shape: Sequence[int], image: str
) -> dict[str, Any] | None:
    """How the page trains; None where the file has no training step on pictures with labels."""
    if not {"train", "get_weights", "set_weights"} <= set(signatures):
        return None
    inputs = {tensor["name"]: tensor for tensor in signatures["train"]["inputs"]}
    labels = [name for name, tensor in inputs.items() if tensor["dtype"] == "int32" and len(tensor["shape"] or []) == 1]
    if len(inputs) != 2 or len(labels) != 1 or (inputs.get(image) or {"shape": []})["shape"][1:] != shape[1:]:
        return None
    steps = sum(item.case.signature == "train" for item in cases)
    return {"image": image, "label": labels[0], "batch": inputs[image]["shape"][0], "proven": steps}


def _drawing(pictures: np.ndarray) -> dict[str, float]:
    """How real pictures ([n, height, width]) look: their background, their ink, and the size and thickness of strokes.

    ``fit`` (the larger side of what is drawn) and ``stroke`` are parts of the height. Along a stroke of thickness t the
    brightness rises and falls once across it, so area divided by half of the total variation is about t.
    """
    edge = np.concatenate([pictures[:, 0].ravel(), pictures[:, -1].ravel(), pictures[:, :, 0].ravel()])
    background = float(np.median(edge))
    ink = float(max(pictures.min(), pictures.max(), key=lambda value: abs(value - background)))
    covered = (pictures - background) / ((ink - background) or 1.0)
    height = pictures.shape[1]
    sides, strokes = [], []
    for picture in covered:
        rows, columns = np.nonzero(picture > 0.2)
        if rows.size:
            sides.append(max(np.ptp(rows), np.ptp(columns)) + 1)
            padded = np.pad(picture, 1)
            variation = np.hypot(np.diff(padded, axis=0)[:, 1:], np.diff(padded, axis=1)[1:]).sum()
            strokes.append(2 * picture.sum() / variation)
    fit = float(np.median(sides)) / height if sides else 1.0
    stroke = float(np.median(strokes)) / height if strokes else 0.1
    return {"background": background, "ink": ink, "fit": fit, "stroke": stroke}


def _case(item: GoldenCase) -> dict[str, Any]:
    """For golden.json."""
    sides = {"inputs": item.case.inputs, "outputs": item.outputs}
    arrays = {side: {name: _base64(array) for name, array in values.items()} for side, values in sides.items()}
    return {"kind": item.case.kind, "signature": item.case.signature, **arrays, "bounds": item.bounds}


def _few(calls: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first of each signature and kind: with their caches, a language model's calls are a hundred MB."""
    first: dict[tuple[str, str], dict[str, Any]] = {}
    for call in calls:
        first.setdefault((call["signature"], call["kind"]), call)
    return list(first.values())


def _base64(array: np.ndarray) -> dict[str, Any]:
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return {"dtype": array.dtype.name, "data": base64.b64encode(little.tobytes()).decode()}


def _run(folder: Path, sample: writing.Sample | None, is_exact: bool) -> tuple[tuple[Check, ...], Latency]:
    """The page in headless Chromium. Raises ExportError where it fails, differs, or asks for anything from outside."""
    try:
        with served(folder) as address, Browser() as browser:
            browser.open(address)
            browser.wait_for("window.ready")
            # Numbers as text: JSON has no infinity.
            script = "checkModel().then(list => list.map(check => ({...check, error: String(check.error)})))"
            found = browser.evaluate(script, timeout=SECONDS)
            times = browser.evaluate(f"timeModel({CALLS})", timeout=SECONDS)
            if sample is not None:
                asked = json.dumps({"text": sample.text, "count": len(sample.tokens)})
                written = browser.evaluate(f"writeSample({asked})", timeout=SECONDS)
            outside = sorted({url for url in browser.requests if not url.startswith((address, "data:", "blob:"))})
            errors = browser.errors
    except BrowserError as error:
        raise ExportError("browser", str(error)) from error
    if outside:
        raise ExportError("browser", f"the page asks for {', '.join(outside)}: it must not need anything from outside")
    if errors:
        raise ExportError("browser", f"the page reports {'; '.join(errors)}")
    checks = tuple(
        Check(item["signature"], item["tensor"], item["kind"], float(item["error"]), item["bound"]) for item in found
    )
    for check in checks:
        judge(check, dataclasses.replace(FLOAT32, name="the proof beside the file"))
    if sample is not None:
        writing.check_sample(sample, written, is_exact)
    median, p95 = np.percentile(times, [50, 95])
    return checks, Latency(float(median), float(p95))
