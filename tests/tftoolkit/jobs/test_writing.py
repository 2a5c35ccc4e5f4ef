"""How a file's two signatures read a prompt and write, and that a file which writes something else is refused."""

import functools
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from ml_collections import ConfigDict

from tftoolkit import export, models
from tftoolkit.jobs import writing
from tftoolkit.jobs.exports import TARGETS
from tftoolkit.jobs.writing import Reader, Writing
from tftoolkit.pipelines import text


def in_tensorflow(model, capacity):
    """Runs the signatures without a file, and the calls that were made."""
    signatures, calls = models.generation_signatures(model, 4, capacity), []

    def predict(inputs, signature):
        function, specs = signatures[signature]
        calls.append((signature, inputs["tokens"].shape[1], int(inputs["start"][0])))
        found = function(*(inputs[spec.name] for spec in specs))
        return {name: value.numpy() for name, value in found.items()}

    cache = {name: rows.numpy() for name, rows in model.empty_cache(1, capacity).items()}
    return Reader(predict, cache, 4), calls


@pytest.mark.parametrize(
    "model",
    [
        *(models.Recurrent(50, width=24, cell=cell, seed=1) for cell in ("lstm", "gru", "simple")),
        models.Llama(50, width=32, layers=1, heads=4, kv_heads=2, seed=1),
    ],
    ids=["lstm", "gru", "simple", "llama"],
)
def test_a_prompt_is_read_in_whole_parts_and_the_rest_token_by_token(model):
    prompt = np.random.default_rng(0).integers(0, 50, 10).tolist()
    reader, calls = in_tensorflow(model, 32)
    assert reader.write(prompt, 12) == models.generate(model, prompt, 12, temperature=0).tolist()
    assert calls[:4] == [("prefill", 4, 0), ("prefill", 4, 4), ("decode", 1, 8), ("decode", 1, 9)]
    assert calls[4:] == [("decode", 1, position) for position in range(10, 21)]


def test_signatures_that_cannot_be_are_refused():
    model = models.Gpt2(50, width=32, layers=1, heads=2, context=64)
    with pytest.raises(ValueError, match="capacity=65 is more than the model's context of 64"):
        models.generation_signatures(model, 4, 65)
    with pytest.raises(ValueError, match="prefill must be from 1 to capacity=8, got 9"):
        models.generation_signatures(model, 9, 8)


@pytest.mark.parametrize("cell", ["lstm", "llama"])
def test_decode_alone_has_other_names_for_what_comes_out(cell):
    make = models.Llama if cell == "llama" else models.Recurrent
    model = make(50, width=32, **({"layers": 1, "heads": 4} if cell == "llama" else {"cell": cell}))
    ((name, (function, specs)),) = models.generation_signatures(model, None, 16).items()
    found = function(*(tf.zeros(spec.shape, spec.dtype) for spec in specs))
    cache = set(model.empty_cache(1, 16))
    assert name == "decode"
    assert {spec.name for spec in specs} == {"tokens", "start", *cache}
    assert set(found) == {"logits", *(f"{one}_out" for one in cache)}


@pytest.mark.slow
def test_a_decoder_becomes_files_of_all_kinds_and_another_text_is_refused(tmp_path, monkeypatch):
    tokenizer = text.byte_tokenizer(["<end>"])
    model = models.Llama(tokenizer.vocabulary_size, width=64, layers=1, heads=4, kv_heads=2, seed=1)
    held_out = tokenizer.encode("some text that nobody has read, and a little more of it, up to the end")
    settings = {"prefill": 8, "capacity": 256, "compared_tokens": 200, "web_page": False}
    exports = [target for target in TARGETS if target != "tflite_int8"]
    config = ConfigDict({**settings, "exports": exports, "max_drop": 1.0, "max_drop_int4": 1.0})
    asked = Writing(model, held_out, np.ones(tokenizer.vocabulary_size), tokenizer, config)
    report = asked.write_files(tmp_path / "files")
    assert [row.format for row in report.rows] == [
        "SavedModel", "SavedModel, native", "TFLite float32", "TFLite float16", "TFLite dynamic",
        "TFLite int4 weights", "ONNX",
    ]  # fmt: skip
    whole, half, *integers = (row.size for row in report.rows if row.format.startswith("TFLite"))
    assert whole > half > max(integers)
    assert report.rows[-1].metric == pytest.approx(report.rows[0].golden_metric, rel=1e-5)
    assert [line[0] for line in asked.table] == ["file", "models.generate", *(row.file for row in report.rows)]
    for file, runtime, _, same in asked.table[2:]:
        assert runtime == writing.runtime_of(file).name
        if file in ("saved_model", "saved_model_native", "model.tflite", "model.onnx"):
            assert same == "the first 200 of 200"

    def wrong(file, right):
        def predict(inputs, signature):
            found = dict(right(file)(inputs, signature))
            name = next(name for name in found if name.startswith("keys"))
            return {**found, name: found[name] * 0.9}

        return predict

    for row in (report.rows[0], report.rows[2], report.rows[-1]):
        runtime = writing.runtime_of(row.file)
        with monkeypatch.context() as patch:
            other = runtime._replace(open=functools.partial(wrong, right=functools.cache(runtime.open)))
            patch.setitem(writing.RUNTIMES, Path(row.file).suffix, other)
            with pytest.raises(export.ExportError, match=rf"{row.file}: token \d+ is \d+, the model's is"):
                asked._compare(tmp_path / "files", export.ExportReport((row,)))
