"""Random small models through every target: each file that is accepted is right, each refusal has a reason.

tools/random_models does it with hundreds; docs/known_converter_bugs.md tells what came out. The slow tests take ten
models, the exhaustive one a hundred.
"""

import json
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from tftoolkit import export

TOOL = Path(__file__).parents[4] / "tools/random_models"


@pytest.fixture(scope="module")
def tool(load_module):
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(TOOL)  # as for a script
        return load_module(TOOL / "run.py")


def check(tool, seed, folder):
    made = tool.random_model(seed)
    found = tool.through_every_target(made, seed, folder)
    assert set(found) == set(tool.TARGETS)
    assert not [what for what in found.values() if not what.startswith(("accepted: ", "refused: "))], (
        made.parts,
        found,
    )
    return found


@pytest.mark.slow
def test_one(tool, tmp_path):
    assert check(tool, 5, tmp_path)["float32"].startswith("accepted")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000, 1004))
def test_more(tool, tmp_path, seed):
    check(tool, seed, tmp_path)


@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", range(1004, 1100))
def test_a_hundred(tool, tmp_path, seed):
    check(tool, seed, tmp_path)


def test_a_seed_makes_the_same_model_again(tool):
    for seed in range(2):
        first, second = tool.random_model(seed), tool.random_model(seed)
        assert first.parts == second.parts
        outputs = [tool.Oracle(made, seed).outputs["serving_default"]["scores"] for made in (first, second)]
        np.testing.assert_array_equal(*outputs)


def test_a_wrong_file_is_seen(tool, tmp_path):
    made = tool.random_model(5)
    oracle = tool.Oracle(made, 5)
    for name, offset in (("right", 0.0), ("wrong", 0.01)):
        function, specs = made.signatures["serving_default"]
        moved = tf.function(
            lambda *x, f=function, o=offset: {k: v + o for k, v in f(*x).items()}, input_signature=specs
        )
        holder = tf.Module()
        holder.variables_read = moved.get_concrete_function().variables
        tf.saved_model.save(holder, str(tmp_path / name), signatures={"serving_default": moved})
    oracle.outputs = {"serving_default": oracle.outputs["serving_default"]}
    assert tool.wrong(oracle, tmp_path / "right", "saved_model") is None
    assert "serving_default/scores is off by 0.01" in tool.wrong(oracle, tmp_path / "wrong", "saved_model")


def test_infinity_is_right_where_tensorflow_says_so(tool):
    numbers = np.float32([np.inf, -np.inf, np.nan, 1])
    assert tool._distance(numbers, numbers) == 0
    for other in ([1, -np.inf, np.nan, 1], [np.inf, np.inf, np.nan, 1], [np.inf, -np.inf, 0, 1]):
        assert tool._distance(numbers, np.float32(other)) == np.inf


def test_an_interrupted_run_goes_on_and_a_crash_is_counted(tool, tmp_path, monkeypatch, capsys):
    results = tmp_path / "results.jsonl"
    done = dict.fromkeys(tool.TARGETS, "accepted: 0.25 of the bound") | {
        "onnx": "refused: convert: no op 'X7' in 12 models"
    }
    crashed = {"saved_model": "ERROR: ended the process"}
    results.write_text(
        "".join(json.dumps({"seed": i, "results": r}) + "\n" for i, r in enumerate([done, done, crashed]))
    )
    monkeypatch.setattr(sys, "argv", ["run.py", "0", "3", "--results", str(results)])
    tool.main()
    table = capsys.readouterr().out
    assert "| saved_model | 2 | 0.25 of the bound | 0 | 0 | 1 |" in table
    assert "| convert: no op … in … models | 2 | onnx 2 |" in table
    assert "| ERROR: ended the process | 1 | saved_model 1 |" in table


# What random models have found.


def exported(exporter, folder, function, *specs, **settings):
    return exporter(tf.Module(), folder, signatures={"f": (function, specs)}, **settings)


@pytest.mark.parametrize("mode", ["dynamic", pytest.param("int8", marks=pytest.mark.slow)])
def test_integers_saturate_where_tensorflow_overflows(tmp_path, mode):
    rng = np.random.default_rng(0)
    first, second = (tf.Variable(rng.standard_normal(s, np.float32) / 8) for s in ([40, 30], [30, 40]))
    spec = tf.TensorSpec([4, 40], tf.float32, "x")
    real = [{"x": rng.standard_normal([4, 40], np.float32)} for _ in range(25)]
    assert np.isnan(tf.exp(1000 * real[0]["x"] @ first) @ second).any()  # infinity minus infinity
    exported(
        export.tflite, tmp_path / mode, lambda x: tf.exp(x @ first) @ second, spec, quantize=mode, representative=real
    )


def test_compiled_functions_in_onnx(tmp_path):
    """Keras 3 compiles grouped convolutions; tf2onnx takes a compiled function for an unknown op."""
    layer = keras.layers.Conv2D(6, 3, groups=2, activation="relu")
    layer.build([1, 8, 8, 4])
    exported(export.onnx, tmp_path / "m.onnx", layer, tf.TensorSpec([1, 8, 8, 4], tf.float32, "x"))


def test_constants_in_onnx(tmp_path):
    """tf2onnx makes inputs of those that are made outside of the function."""
    vector, matrix = tf.constant([1.0, 2.0, 3.0]), tf.constant(np.eye(3, dtype=np.float32))

    def function(x):
        looped = tf.while_loop(lambda i, _: i < 2, lambda i, v: (i + 1, v * vector), [0, x])[1]
        return tf.cond(tf.reduce_mean(x) > 0, lambda: looped @ matrix, lambda: looped + matrix[:2])

    exported(export.onnx, tmp_path / "m.onnx", function, tf.TensorSpec([2, 3], tf.float32, "x"))


@pytest.mark.parametrize("mode", ["float16", pytest.param("int8", marks=pytest.mark.slow)])
def test_a_model_whose_weights_are_constants(tmp_path, mode):
    """As in many models on disk: the bound must know what rounding them does."""
    rng = np.random.default_rng(0)
    first, second = (tf.constant(rng.standard_normal([60, 60], np.float32)) for _ in range(2))
    real = [{"x": rng.standard_normal([4, 60], np.float32)} for _ in range(25)]
    report = exported(
        export.tflite, tmp_path / mode, lambda x: tf.nn.relu(x @ first) @ second,
        tf.TensorSpec([4, 60], tf.float32, "x"), quantize=mode, representative=real,
    )  # fmt: skip
    for check in report.rows[0].checks:
        if check.bound:
            assert check.error > check.bound / 100, check  # and no more room than it needs


def test_a_single_constant_in_float16(tmp_path):
    """It is rounded, too; but the limits of a range must stay what they are, or there is one element more."""
    matrix = tf.Variable(np.eye(4, dtype=np.float32))
    exported(
        export.tflite, tmp_path / "m", lambda x: {"y": 0.1 * x * tf.range(0.0, 1.0, 0.25), "z": x @ matrix},
        tf.TensorSpec([2, 4], tf.float32, "x"), quantize="float16",
    )  # fmt: skip
