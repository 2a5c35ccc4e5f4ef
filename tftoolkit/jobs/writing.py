"""Files that write: exports of a language model with the signatures "prefill" and "decode", and what they prove."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict

from tftoolkit import export, models
from tftoolkit.jobs.exports import export_all
from tftoolkit.pipelines import text
from tftoolkit.trainers.console import phase

Predict = Callable[[Mapping[str, Any], str], Mapping[str, np.ndarray]]
_JUDGED_TOKENS = 256  # of held-out text, one after the other: a file's bits per character


class Reader:
    """Gives tokens to a file's signatures, and keeps the cache between the calls.

    Args:
      predict: from inputs and the name of a signature to outputs.
      cache: of zeros.
      prefill: how many tokens "prefill" reads at once.
    """

    def __init__(self, predict: Predict, cache: Mapping[str, np.ndarray], prefill: int) -> None:
        self._predict, self._cache, self._prefill, self._position = predict, dict(cache), prefill, 0

    def read(self, tokens: Sequence[int]) -> np.ndarray:
        """The logits of what follows the last of these tokens."""
        logits = np.zeros(0)
        while len(tokens):
            count = self._prefill if len(tokens) >= self._prefill else 1
            inputs = {"tokens": np.array([tokens[:count]], np.int32), "start": np.array([self._position], np.int32)}
            found = dict(self._predict({**inputs, **self._cache}, "decode" if count == 1 else "prefill"))
            logits, self._cache = found.pop("logits")[0], found
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
        self.lines: list[str] = []

    def write_files(self, folder: Path) -> export.ExportReport:
        """Writes the files, each proven call by call, and by its bits per character on held-out text (``max_drop``).

        Then each writes ``compared_tokens`` greedily. A float32 file must write what TensorFlow writes. ``lines`` say
        how many tokens are the same, and how many each wrote per second.

        Raises ExportError where the float32 file writes something else, and what ``export_all`` raises.
        """
        config, last = self._config, self._model.vocabulary - 1
        ranges = {"tokens": (0, last), "start": (0, config.capacity - config.prefill), **self._cache_ranges()}
        exported = export.ExportReport(())
        for target in config.exports:
            exported += export_all(
                self._model,
                folder,
                [target],
                signatures=models.generation_signatures(self._model, config.prefill, config.capacity),
                input_ranges=ranges,
                metric=self._metric,
                max_drop=config.max_drop_int4 if target == "tflite_int4" else config.max_drop,
            )
        with phase("writing with each file"):
            expected = self._compare(folder, exported)
        return exported + self._page(folder, expected)

    def _cache_ranges(self) -> dict[str, tuple[float, float]]:
        """Caches come from the model itself: to twice what is in one after held-out text."""
        capacity = self._config.capacity
        _, cache = self._model.decode(
            tf.constant(self._held_out[:capacity])[tf.newaxis], self._model.empty_cache(1, capacity), 0
        )
        largest = {name: 2 * float(tf.reduce_max(tf.abs(rows))) for name, rows in cache.items()}
        return {name: (-value, value) for name, value in largest.items()}

    def _reader(self, predict: Predict) -> Reader:
        cache = {name: row.numpy() for name, row in self._model.empty_cache(1, self._config.capacity).items()}
        return Reader(predict, cache, self._config.prefill)

    def _written(self, predict: Predict, count: int) -> list[int]:
        return self._reader(predict).write(self._prompt, count)

    def _metric(self, predict: Any) -> float:
        """Minus the bits per character: larger is better."""
        reader = self._reader(lambda inputs, signature: predict(inputs, signature=signature))
        tokens = self._held_out[: min(_JUDGED_TOKENS, self._config.capacity) + 1]
        nats = 0.0
        for token, following in itertools.pairwise(tokens):
            logits = reader.read([token]).astype(np.float64)
            nats += np.log(np.sum(np.exp(logits - logits.max()))) + logits.max() - logits[following]
        return float(-nats / np.log(2) / np.sum(self._bytes[tokens[1:]]))

    def _compare(self, folder: Path, exported: export.ExportReport) -> list[int]:
        """What TensorFlow writes, and all files should."""
        count = self._config.compared_tokens
        expected: list[int]
        expected, seconds = timed(lambda: models.generate(self._model, self._prompt, count, temperature=0).tolist())
        self.lines = [f"{'TensorFlow':<24} {count / seconds:8,.0f} tokens/s"]
        for row in exported.rows:
            if not row.file.endswith(".tflite"):
                continue
            found, seconds = timed(functools.partial(self._written, lite(folder / row.file), count))
            same = next((i for i, pair in enumerate(zip(found, expected, strict=True)) if len(set(pair)) > 1), count)
            self.lines.append(
                f"{row.file:<24} {count / seconds:8,.0f} tokens/s in ai-edge-litert, "
                f"the first {same} of {count} as in TensorFlow"
            )
            if row.format == "TFLite float32" and same < count:
                raise export.ExportError(
                    "writing", f"{row.file}: token {same} is {found[same]}, TensorFlow's is {expected[same]}"
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
        self.lines.append(f"{'page':<24} {rate:8,.0f} tokens/s in Chromium, all {len(expected)} as in TensorFlow")
        return page


def lite(file: Path) -> Predict:
    """Runs a .tflite file's signatures in ai-edge-litert."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(file), num_threads=1)
    runners = {name: interpreter.get_signature_runner(name) for name in interpreter.get_signature_list()}

    def predict(inputs: Mapping[str, Any], signature: str) -> Mapping[str, np.ndarray]:
        outputs: Mapping[str, np.ndarray] = runners[signature](**inputs)
        return outputs

    return predict


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """The result, and how long a second call takes: the first one may trace."""
    function()
    start = time.perf_counter()
    return function(), time.perf_counter() - start
