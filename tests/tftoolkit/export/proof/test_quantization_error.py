"""Which layer costs the accuracy: the table of errors, worst first, and the search for layers to keep in float."""

import itertools
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from tftoolkit import export, trainers
from tftoolkit.export.proof.quantization_error import _Search


@pytest.fixture(scope="module")
def model(convolutional):
    """The bad layer is "hidden": one weight per channel is so large that the others are less than a step."""
    model = convolutional([keras.layers.Reshape([8, 8]), keras.layers.Flatten()])
    kernel, bias = model.get_layer("hidden").get_weights()
    kernel[0] *= 300
    model.get_layer("hidden").set_weights([kernel, bias])
    # The function stays as it was.
    kernel, bias = model.get_layer("second").get_weights()
    kernel[..., 0] /= 300
    model.get_layer("second").set_weights([kernel, bias])
    return model


@pytest.fixture(scope="module")
def errors(model, representative):
    return export.quantization_errors(model, representative)


def relative_error(path, model, images):
    found = Interpreter(str(path)).get_signature_runner("serving_default")(image=images)["output_0"]
    exact = model(images).numpy()
    return np.sqrt(np.mean((found - exact) ** 2) / np.mean(exact**2))


def test_the_bad_layer_comes_first(errors):
    first, *others = errors.rows
    assert "hidden" in first.pattern
    assert first.op == "FULLY_CONNECTED"
    assert first.output > 1
    assert all(row.output < first.output / 2 for row in others)
    assert [row.output for row in errors.rows] == sorted((row.output for row in errors.rows), reverse=True)
    lines = str(errors).splitlines()
    assert lines[0].split()[:4] == ["error", "at", "the", "output"]
    assert first.pattern in lines[1]
    assert len(lines) == len(errors.rows) + 1


def test_what_only_passes_on_costs_nothing(errors):
    assert [(row.output, row.own) for row in errors.rows if row.op == "RESHAPE"] == [(0.0, 0.0)] * 2


@pytest.mark.slow
def test_the_bad_layer_is_proposed(tmp_path, model, images, representative):
    proposal = export.propose_keep_float(model, representative, max_error=0.4)
    (pattern,) = proposal.keep_float
    assert "hidden" in pattern
    assert str(proposal).endswith(f"keep_float={[pattern]!r}")
    for name, kept in (("all", []), ("proposed", proposal.keep_float)):
        # The metric takes whatever comes: quantised as a whole the model is refused, as nothing is proven then.
        export.tflite(
            model, tmp_path / name, quantize=export_mode(kept), keep_float=kept, representative=representative,
            metric=lambda predict: 1.0, max_drop=0.0,
        )  # fmt: skip
    # Only so many examples were looked at.
    assert relative_error(tmp_path / "proposed", model, images[:64]) == pytest.approx(
        proposal.trials[-1].value, rel=1e-3
    )
    assert relative_error(tmp_path / "all", model, images) > 0.9


def export_mode(kept):
    """The recipe of ai-edge-quantizer also where nothing is kept."""
    from ai_edge_quantizer import recipe

    return "int8" if kept else recipe.static_wi8_ai8()


def test_values(tmp_path):
    """One product, against float64."""
    rng = np.random.default_rng(1)
    weight, x = rng.standard_normal([16, 4]).astype(np.float32), rng.standard_normal([128, 16]).astype(np.float32)
    holder = tf.Module()
    holder.weight = tf.Variable(weight)
    signatures = {"f": (lambda x: {"y": x @ holder.weight}, [tf.TensorSpec([None, 16], tf.float32, "x")])}
    (row,) = export.quantization_errors(holder, {"f": [{"x": x}]}, signatures=signatures).rows

    def rounded(values):
        scale = (values.max() - values.min()) / 255
        return np.round(np.float64(values) / scale) * scale

    inputs = rounded(x)[:128]
    steps = np.abs(weight).max(0) / 127
    exact = inputs @ weight
    found = rounded(inputs @ (np.round(weight / steps) * steps))
    expected = np.sqrt(np.mean((found - exact) ** 2) / np.mean(exact**2))
    assert row.own == row.output == pytest.approx(expected, rel=0.02)


@pytest.mark.slow
def test_a_pattern_finds_its_op_alone():
    """Names that begin alike, and another signature before the one looked at."""
    holder = tf.Module()
    holder.weights = [tf.Variable(tf.random.stateless_normal([8, 8], [1, i])) for i in range(4)]

    def chain(x):
        for weight in holder.weights:
            x = tf.nn.tanh(tf.matmul(x, weight, name="product"))
        return {"y": x}

    specs = [tf.TensorSpec([None, 8], tf.float32, "x")]
    x = [{"x": np.random.default_rng(0).standard_normal([128, 8]).astype(np.float32)}]
    signatures = {"before": (lambda x: {"y": x + 1.0}, specs), "serving_default": (chain, specs)}
    rows = export.quantization_errors(holder, dict.fromkeys(signatures, x), signatures=signatures).rows
    products = [row.pattern for row in rows if row.op == "FULLY_CONNECTED"]
    assert len(products) == 4
    proposal = export.propose_keep_float(
        holder,
        dict.fromkeys(signatures, x),
        signatures=signatures,
        max_error=0.9 * max(row.output for row in rows),
    )
    # Each trial is a file of its own, with as many products in integers as were asked for.
    assert len({trial.value for trial in proposal.trials}) == len(proposal.trials)


@pytest.mark.parametrize("count", range(7))
def test_the_search_finds_exactly_what_is_needed(count):
    layers = tuple("abcdefg")
    for needed in itertools.combinations(layers, count):
        search = _Search(lambda kept, needed=needed: len(set(needed) - set(kept)), lambda missing: missing == 0)
        assert search.smallest(layers) == needed
        assert len(search.trials) <= 12
        assert len(set(search.trials)) == len(search.trials)


@pytest.mark.slow
def test_when_only_float_is_good_enough(model, representative):
    with pytest.raises(export.ExportError, match="no quantised file is good enough, not even with one"):
        export.propose_keep_float(model, representative, max_error=0.0)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["int16x8", "dynamic"])
def test_other_modes(model, representative, mode):
    rows = export.quantization_errors(model, representative, quantize=mode).rows
    assert "hidden" in rows[0].pattern
    assert rows[1].output < 0.02


@pytest.mark.slow
def test_a_metric(model, images, representative):
    labels = np.argmax(model(images), -1)

    def accuracy(predict):
        return float(np.mean(np.argmax(predict({"image": images})["output_0"], -1) == labels))

    proposal = export.propose_keep_float(model, representative, metric=accuracy, max_drop=0.1)
    assert proposal.trials[0].keep_float == ()
    assert proposal.trials[0].value < 0.6
    assert any("hidden" in pattern for pattern in proposal.keep_float)
    accepted = [trial for trial in proposal.trials if trial.keep_float == proposal.keep_float]
    assert accepted[0].value >= 0.9


def test_unusable_arguments(model, images, representative):
    with pytest.raises(ValueError, match="give max_error, or metric and max_drop"):
        export.propose_keep_float(model, representative)
    with pytest.raises(ValueError, match="give max_error, or metric and max_drop"):
        export.propose_keep_float(model, representative, max_error=1.0, metric=lambda predict: 0.0, max_drop=0.0)
    with pytest.raises(ValueError, match="max_drop needs a metric"):
        export.propose_keep_float(model, representative, max_drop=0.0)
    with pytest.raises(ValueError, match="quantize must be one of int8, int16x8, dynamic, got 'float16'"):
        export.quantization_errors(model, representative, quantize="float16")
    with pytest.raises(ValueError, match="representative has 3 examples"):
        export.quantization_errors(model, [{"image": images[:3]}])
    with pytest.raises(ValueError, match="representative holds no inputs"):
        export.quantization_errors(model, [], quantize="dynamic")


@pytest.mark.slow
def test_a_model_that_rounds_already(images):
    model = keras.Sequential([keras.Input([8]), keras.layers.Dense(4)])
    quantized = trainers.FakeQuantization(model, tf.TensorSpec([None, 8]))
    x = images.reshape(-1, 8)[:128]
    quantized.train(x)
    signatures = {"f": (lambda x: {"y": quantized(x)}, [tf.TensorSpec([None, 8], tf.float32, "x")])}
    with pytest.raises(export.ExportError, match="mixes uint8"):
        export.quantization_errors(quantized, {"f": [{"x": x}]}, signatures=signatures)
