"""Files that write: exports of a language model with the signatures "prefill" and "decode", and what they prove."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict

from tftoolkit import export, models
from tftoolkit.jobs.exports import TARGETS, export_all
from tftoolkit.pipelines import text
from tftoolkit.trainers.console import phase

Predict = Callable[[Mapping[str, Any], str], Mapping[str, np.ndarray]]
_JUDGED_TOKENS = 256  # of held-out text, one after the other: a file's bits per character
# Formats whose files must write what the model writes.
_EXACT = ("SavedModel", "SavedModel, native", "TFLite float32", "ONNX")


class Reader:
    """Gives tokens to a file's signatures, and keeps the cache between the calls.

    Args:
      predict: from inputs and the name of a signature to outputs.
      cache: of zeros.
      prefill: how many tokens "prefill" reads at once; None: there is none.
    """

    def __init__(self, predict: Predict, cache: Mapping[str, np.ndarray], prefill: int | None) -> None:
        self._predict, self._cache, self._prefill, self._position = predict, dict(cache), prefill or 1, 0

    def read(self, tokens: Sequence[int]) -> np.ndarray:
        """The logits of what follows the last of these tokens."""
        logits = np.zeros(0)
        while len(tokens):
            count = self._prefill if len(tokens) >= self._prefill else 1
            inputs = {"tokens": np.array([tokens[:count]], np.int32), "start": np.array([self._position], np.int32)}
            found = dict(self._predict({**inputs, **self._cache}, "decode" if count == 1 else "prefill"))
            logits = found.pop("logits")[0]
            self._cache = {name.removesuffix("_out"): rows for name, rows in found.items()}
            self._position += count
            tokens = tokens[count:]
        return logits

    def write(self, prompt: Sequence[int], count: int) -> list[int]:
        """The likeliest token behind the prompt, and so on."""
        written = [int(np.argmax(self.read(prompt)))]
        while len(written) < count:
            written.append(int(np.argmax(self.read(written[-1:]))))
        return written


class Writing:
    """What is asked of a language model's files.

    Args:
      model: as it was trained.
      held_out: tokens that it was not trained on.
      bytes_of: int[vocabulary], how many bytes each token stands for.
      tokenizer: whose tokens they are; its ``tokenizer.json`` lies in the folder of the files already.
      config: ``exports``, ``max_drop``, ``max_drop_int4``, ``prefill``, ``capacity``, ``web_page`` …
    """

    def __init__(
        self, model: Any, held_out: np.ndarray, bytes_of: np.ndarray, tokenizer: text.Tokenizer, config: ConfigDict
    ) -> None:
        self._model, self._held_out, self._bytes, self._config = model, held_out, bytes_of, config
        self._tokenizer = tokenizer
        # Through both signatures; encoded again, since a text's tokens may end otherwise where the text is cut off.
        self._prompt = tokenizer.encode(tokenizer.decode(held_out[: config.prefill + 3])).tolist()
        self.table: list[tuple[str, ...]] = []

    def write_files(self, folder: Path) -> export.ExportReport:
        """Writes the files, each proven call by call, and by its bits per character on held-out text (``max_drop``).

        Then each writes ``compared_tokens`` greedily. A float32 file must write what the model writes. ``table`` says
        how many tokens are the same, and how many each wrote per second.

        Raises ExportError where a float32 file writes something else, and what ``export_all`` raises.
        """
        config, last = self._config, self._model.vocabulary - 1
        ranges = {"tokens": (0, last), "start": (0, config.capacity - config.prefill), **self._cache_ranges()}
        traced = functools.cache(self._traced)
        exported = export.ExportReport(())
        for target in config.exports:
            exported += export_all(
                self._model,
                folder,
                [target],
                signatures=traced(self._prefill(TARGETS[target][0])),
                input_ranges=ranges,
                metric=self._metric,
                max_drop=config.max_drop_int4 if target == "tflite_int4" else config.max_drop,
            )
        with phase("writing with each file"):
            expected = self._compare(folder, exported)
        return exported + self._page(folder, expected)

    def _traced(self, prefill: int | None) -> dict[str, Any]:
        signatures = models.generation_signatures(self._model, prefill, self._config.capacity)
        functions = {name: (tf.function(call, autograph=False), specs) for name, (call, specs) in signatures.items()}
        return {name: function.get_concrete_function(*specs) for name, (function, specs) in functions.items()}

    def _cache_ranges(self) -> dict[str, tuple[float, float]]:
        """Caches come from the model itself: to twice what is in one after held-out text."""
        capacity = self._config.capacity
        _, cache = self._model.decode(
            tf.constant(self._held_out[:capacity])[tf.newaxis], self._model.empty_cache(1, capacity), 0
        )
        largest = {name: 2 * float(tf.reduce_max(tf.abs(rows))) for name, rows in cache.items()}
        return {name: (-value, value) for name, value in largest.items()}

    def _prefill(self, file: str) -> int | None:
        return self._config.prefill if runtime_of(file).has_prefill else None

    def _reader(self, predict: Predict, prefill: int | None = None) -> Reader:
        cache = {name: row.numpy() for name, row in self._model.empty_cache(1, self._config.capacity).items()}
        return Reader(predict, cache, prefill)

    def _metric(self, predict: Any) -> float:
        """Minus the bits per character: larger is better."""
        reader = self._reader(lambda inputs, signature: predict(inputs, signature=signature))
        tokens = self._held_out[: min(_JUDGED_TOKENS, self._config.capacity) + 1]
        nats = 0.0
        for token, following in itertools.pairwise(tokens):
            logits = reader.read([token]).astype(np.float64)
            nats += np.log(np.sum(np.exp(logits - logits.max()))) + logits.max() - logits[following]
        return float(-nats / np.log(2) / np.sum(self._bytes[tokens[1:]]))

    def _written(self, file: Path, count: int) -> tuple[list[int], float]:
        """What a file writes in its runtime, and tokens per second."""
        reader = functools.partial(self._reader, runtime_of(file.name).open(file), self._prefill(file.name))
        reader().write(self._prompt, 2)  # the first calls are slower
        return timed(lambda: reader().write(self._prompt, count), count)

    def _compare(self, folder: Path, exported: export.ExportReport) -> list[int]:
        """What the model writes, and all files should."""
        count = self._config.compared_tokens
        write = functools.partial(models.generate, self._model, self._prompt, count, temperature=0)
        write()  # traces
        expected, rate = timed(lambda: write().tolist(), count)
        head = ("file", "written in", "tokens/s", "as the model writes")
        self.table = [head, ("models.generate", "TensorFlow, in one call", f"{rate:,.0f}", "")]
        for row in exported.rows:
            found, rate = self._written(folder / row.file, count)
            same = next((i for i, pair in enumerate(zip(found, expected, strict=True)) if len(set(pair)) > 1), count)
            said = f"the first {same} of {count}"
            self.table.append((row.file, runtime_of(row.file).name, f"{rate:,.0f}", said))
            if row.format in _EXACT and same < count:
                raise export.ExportError(
                    "writing", f"{row.file}: token {same} is {found[same]}, the model's is {expected[same]}"
                )
        return expected

    def _page(self, folder: Path, expected: list[int]) -> export.ExportReport:
        """The web page of the float32 file, where there is one and a browser to prove it in."""
        file = folder / "model.tflite"
        if not self._config.web_page or not file.exists():
            return export.ExportReport(())
        sample = export.Sample(self._tokenizer.decode(self._prompt), self._prompt, expected)
        try:
            page = export.web(file, folder / "page", sample=sample)
        except FileNotFoundError as error:
            print(f"No web page: {error}")
            return export.ExportReport(())
        rate = 1000 / page.rows[0].latency[1].median
        said = f"the first {len(expected)} of {len(expected)}"
        self.table.append(("page", "Chromium", f"{rate:,.0f}", said))
        return page


class _Runtime(NamedTuple):
    """What runs a kind of file: its name, what opens one, and whether such a file has the signature "prefill"."""

    name: str
    open: Callable[[Path], Predict]
    has_prefill: bool = True


def runtime_of(file: str) -> _Runtime:
    """By how the file's name ends."""
    return RUNTIMES[Path(file).suffix]


def _tensorflow(folder: Path) -> Predict:
    loaded = tf.saved_model.load(str(folder))  # kept: its variables live as long as it does

    def predict(inputs: Mapping[str, Any], signature: str) -> Mapping[str, np.ndarray]:
        outputs = loaded.signatures[signature](**{name: tf.constant(value) for name, value in inputs.items()})
        return {name: value.numpy() for name, value in outputs.items()}

    return predict


def _litert(file: Path) -> Predict:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(file), num_threads=1)
    runners = {name: interpreter.get_signature_runner(name) for name in interpreter.get_signature_list()}

    def predict(inputs: Mapping[str, Any], signature: str) -> Mapping[str, np.ndarray]:
        outputs: Mapping[str, np.ndarray] = runners[signature](**inputs)
        return outputs

    return predict


def _onnxruntime(file: Path) -> Predict:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def predict(inputs: Mapping[str, Any], signature: str) -> Mapping[str, np.ndarray]:
        return dict(zip(names, session.run(names, dict(inputs)), strict=True))

    return predict


# By how a file's name ends; a SavedModel is a folder.
RUNTIMES = {
    "": _Runtime("TensorFlow, a call each", _tensorflow),
    ".tflite": _Runtime("ai-edge-litert", _litert),
    ".onnx": _Runtime("onnxruntime", _onnxruntime, has_prefill=False),
}


def timed(write: Callable[[], list[int]], count: int) -> tuple[list[int], float]:
    """What is written, and how many tokens per second."""
    start = time.perf_counter()
    return write(), count / (time.perf_counter() - start)
