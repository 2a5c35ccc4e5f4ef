"""Random small models through every target: each file that is accepted is right, each refusal has a reason.

What was accepted is run again in a runtime of its own on fresh inputs. The refusals are printed as a table (``-s``).
"""

import collections
import re

import keras
import numpy as np
import onnxruntime
from ai_edge_litert.interpreter import Interpreter

from tftoolkit import export

TARGETS = ["float32", "float16", "dynamic", "int8", "int16x8", "onnx"]
# What a file may be off on inputs like those that it was proven on, of the largest output: generous, since the gate's
# own bound is derived and much tighter; this looks for gross errors that the gate let through.
TOLERANCE = {"float32": 1e-3, "onnx": 1e-3, "float16": 0.02, "dynamic": 0.5, "int8": 0.5, "int16x8": 0.5}


def random_model(seed: int) -> keras.Model:
    """Convolutions, dense and recurrent layers, attention, shared weights, two inputs, two outputs."""
    rng = np.random.default_rng(seed)
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    activation = str(rng.choice(["relu", "tanh", "gelu", "sigmoid", "elu", "relu6", "leaky_relu", "silu", "softplus"]))
    width = int(rng.integers(4, 40))
    kind = rng.choice(["images", "sequence", "features"])
    shape = {"images": [8, 8, 3], "sequence": [6, 8], "features": [12]}[str(kind)]
    x = keras.Input(shape, batch_size=2, name="x")
    inputs, hidden = {"x": x}, x
    for _ in range(int(rng.integers(1, 4))):
        if kind == "images":
            make = rng.choice(
                [
                    lambda h: layers.Conv2D(width, 3, padding="same", activation=activation)(h),
                    lambda h: layers.DepthwiseConv2D(3, padding="same", activation=activation)(h),
                    lambda h: layers.SeparableConv2D(width, 3, padding="same")(h),
                    lambda h: layers.Conv2DTranspose(width, 2, padding="same")(h),
                    lambda h: layers.Activation(activation)(layers.BatchNormalization()(h)),
                    lambda h: layers.AveragePooling2D(2, 1)(h),
                    lambda h: layers.MaxPooling2D(2, 1)(h),
                ]
            )
        elif kind == "sequence":
            make = rng.choice(
                [
                    lambda h: layers.LSTM(width, return_sequences=True)(h),
                    lambda h: layers.GRU(width, return_sequences=True, unroll=True)(h),
                    lambda h: layers.MultiHeadAttention(2, 4)(h, h),
                    lambda h: layers.LayerNormalization()(layers.Dense(width, activation=activation)(h)),
                    lambda h: layers.Conv1D(width, 2, padding="causal", activation=activation)(h),
                ]
            )
        else:
            make = rng.choice(
                [
                    lambda h: layers.Dense(width, activation=activation)(h),
                    lambda h: layers.Concatenate()([h, layers.Dense(3)(h)]),
                    lambda h: layers.LayerNormalization()(h),
                ]
            )
        hidden = make(hidden)
        if rng.random() < 0.3:  # a residual branch
            hidden = layers.Add()([hidden, layers.Activation("tanh")(hidden)])
    hidden = layers.Flatten()(hidden)
    if rng.random() < 0.4:
        inputs["y"] = keras.Input([5], batch_size=2, name="y")
        hidden = layers.Concatenate()([hidden, inputs["y"]])
    outputs = {"scores": layers.Dense(4, activation=str(rng.choice(["linear", "softmax"])))(hidden)}
    if rng.random() < 0.4:
        shared = layers.Dense(8)
        outputs["second"] = layers.Dense(2)(shared(layers.Dense(8)(shared(layers.Dense(8)(hidden)))))
    return keras.Model(inputs, outputs)


def examples(model: keras.Model, count: int, seed: int) -> list[dict]:
    rng = np.random.default_rng(seed)
    shapes = {name: tensor.shape for name, tensor in model.input.items()}
    return [{n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()} for _ in range(count)]


def outputs_of(path, target: str, inputs: dict) -> dict:
    if target == "onnx":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, inputs), strict=True))
    runtime = Interpreter(str(path)).get_signature_runner()
    runtime(**inputs)
    return runtime(**inputs)  # the second call: state must not outlive one


def through_every_target(seed: int, folder) -> dict[str, str]:
    """Accepted, or the kind of refusal for each target; raises AssertionError for an accepted file that is wrong."""
    model = random_model(seed)
    real, fresh = examples(model, 60, seed), examples(model, 1, seed + 10**6)[0]
    expected = {name: np.asarray(value) for name, value in model(fresh, training=False).items()}
    found = {}
    export.saved_model(model, folder / "saved", overwrite=True)
    for target in TARGETS:
        path = folder / f"{seed}.{target}"
        try:
            if target == "onnx":
                export.onnx(folder / "saved", path, representative=real)
            else:
                mode = None if target == "float32" else target
                export.tflite(folder / "saved", path, quantize=mode, representative=real)
        except export.ExportError as error:
            found[target] = f"{error.stage}: " + re.sub(r"[\d.e+-]*\d|'[^']*'", "…", error.reason)[:110]
            assert not path.exists()
            continue
        found[target] = "accepted"
        actual = outputs_of(path, target, fresh)
        for name, value in expected.items():
            error = np.abs(actual[name] - value).max() / max(np.abs(value).max(), 1e-3)
            assert error <= TOLERANCE[target], (seed, target, name, error)
    return found


def tabulate(results: list[dict[str, str]]) -> str:
    counts = collections.Counter((target, what) for result in results for target, what in result.items())
    return "\n".join(f"{count:4}  {target:8}  {what}" for (target, what), count in sorted(counts.items()))


def test_a_few(tmp_path):
    results = [through_every_target(seed, tmp_path) for seed in range(2)]
    assert all(result["float32"] == "accepted" for result in results), tabulate(results)
