"""Gradients of builtin ops against TensorFlow's own in float64, and training in ai-edge-litert."""

import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from sklearn.datasets import load_digits

from tftoolkit import export, trainers
from tftoolkit.export import builtin_gradients, decompose
from tftoolkit.export.trace import trace
from tftoolkit.models.digits_cnn import DigitsCnn

RNG = np.random.default_rng(0)
X = RNG.standard_normal([2, 7, 6, 4])
TIES = RNG.integers(-1, 2, [2, 7, 6, 4]).astype(float)  # equal largest values in most windows; on the edges of relu
SMALL, LARGE = RNG.standard_normal([3, 2, 4, 6]), RNG.standard_normal([3, 3, 4, 6])
DEPTHWISE = RNG.standard_normal([3, 2, 4, 2])
WINDOWS = {
    "same": ("SAME", 1), "strided": ("SAME", 2), "valid": ("VALID", 1), "gaps": ("VALID", 4),
    "margins": ([[0, 0], [1, 2], [0, 1], [0, 0]], 2),
}  # fmt: skip


def pointwise():
    functions = {
        "relu": tf.nn.relu,
        "relu6": lambda x: tf.nn.relu6(6 * x),
        "elu": tf.nn.elu,
        "leaky_relu": lambda x: tf.nn.leaky_relu(x, 0.1),
        "softplus": tf.nn.softplus,
        "softsign": tf.nn.softsign,
        "reciprocal": lambda x: tf.math.reciprocal(x + 10),
        "expm1": lambda x: tf.math.expm1(3 * x) + tf.math.expm1(1e-6 * x) * 1e6,
        "slice": lambda x: tf.square(x[1, ..., 4:0:-2, None, 1:]),
        "other_slice": lambda x: tf.square(x[0, ..., 4:0:-2, None, 1:]),  # the same shapes and attributes
    }
    return {name: (function, [TIES + X * (name in ("softplus", "expm1"))]) for name, function in functions.items()}


def windows():
    found = {}
    for name, (padding, stride) in WINDOWS.items():

        def convolution(x, kernel, p=padding, s=stride):
            return tf.nn.conv2d(x, kernel, s, p)

        found |= {f"conv_{name}": (convolution, [X, SMALL]), f"wide_conv_{name}": (convolution, [X, LARGE])}
        found[f"max_{name}"] = (lambda x, p=padding, s=stride: tf.nn.max_pool2d(x, 3, s, p), [TIES])
        if isinstance(padding, str):
            found[f"average_{name}"] = (lambda x, p=padding, s=stride: tf.nn.avg_pool2d(x, [3, 2], s, p), [X])
            depthwise = (
                lambda x, k, p=padding, s=stride: tf.nn.depthwise_conv2d(x, k, [1, s, s, 1], p),
                [X, DEPTHWISE],
            )
            found[f"depthwise_{name}"] = depthwise
    return found


def gradients(function, *shapes):
    """Of a weighted sum of the outputs, as a signature."""

    def differentiated(*inputs):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            y = function(*inputs)
            loss = tf.reduce_sum(y * tf.constant(np.random.default_rng(1).standard_normal(y.shape)))
        return {f"d{i}": gradient for i, gradient in enumerate(tape.gradient(loss, inputs))} | {"y": y}

    return differentiated, [tf.TensorSpec(shape, tf.float64, f"x{i}") for i, shape in enumerate(shapes)]


@pytest.mark.parametrize("cases", [pointwise(), windows()], ids=["pointwise", "windows"])
def test_each_substitute_equals_tensorflows_gradient_in_float64(tmp_path, cases):
    signatures = {name: gradients(function, *(a.shape for a in arrays)) for name, (function, arrays) in cases.items()}
    trace(tf.Module(), signatures, tmp_path / "own")
    shutil.copytree(tmp_path / "own", tmp_path / "builtin")
    replaced = decompose.substitute(tmp_path / "builtin", builtin_gradients.substitute)
    assert len(replaced) >= 5
    assert not set(replaced) & decompose.op_types(tmp_path / "builtin")
    own, builtin = (tf.saved_model.load(str(tmp_path / name)).signatures for name in ("own", "builtin"))
    for name, (_, arrays) in cases.items():
        inputs = {f"x{i}": tf.constant(array) for i, array in enumerate(arrays)}
        expected, found = own[name](**inputs), builtin[name](**inputs)
        for key, value in expected.items():
            np.testing.assert_allclose(found[key], value, rtol=1e-12, atol=1e-12, err_msg=f"{name}, {key}")


class Training(trainers.Step):
    """Cross-entropy of ``model(*inputs)`` with the label."""

    def __init__(self, model, optimizer, infer=None, **update):
        super().__init__()
        self.model = model
        self.update = trainers.Update(model, optimizer, **update)

    def __call__(self, batch, key):
        def losses(part, key):
            inputs = [value for name, value in part.items() if name != "label"]
            logits = self.model(inputs[0] if len(inputs) == 1 else inputs, **self.training)
            return tf.nn.sparse_softmax_cross_entropy_with_logits(part["label"], logits)

        gradients = self.update.gradients(losses, batch, key)
        return gradients.metrics() | self.update.apply(gradients)

    @property
    def training(self):
        return {"training": True} if isinstance(self.model, keras.Model) else {}


def digits(size=32):
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    starts = range(0, len(images) - size, size)
    return [{"image": images[i : i + size], "label": labels[i : i + size]} for i in starts]


def infer_digits(step):
    return (lambda image: {"logits": step.model(image)}, [tf.TensorSpec([1, 8, 8, 1], tf.float32, "image")])


@pytest.fixture(scope="module")
def digits_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("digits") / "digits.tflite"
    step = Training(DigitsCnn(8), trainers.optimizers.AdamW(2e-3), clip_norm=1.0)
    report = export.trainable_tflite(step, path, batches=digits(), infer=infer_digits(step))
    return step, path, report


def test_fifty_steps_follow_tensorflow(digits_file):
    _, path, report = digits_file
    file = Interpreter(str(path))
    train, infer = file.get_signature_runner("train"), file.get_signature_runner("infer")
    twin = Training(DigitsCnn(8), trainers.optimizers.AdamW(2e-3), clip_norm=1.0)
    compiled = tf.function(twin)
    losses = []
    for batch in digits()[:50]:
        ours = train(image=batch["image"], label=batch["label"].astype(np.int32))["loss"]
        losses.append((ours, compiled(batch, tf.zeros([2], tf.int32))["loss"].numpy()))
    ours, theirs = np.array(losses).T
    assert np.abs(ours - theirs).max() <= 1e-5
    assert ours[-5:].mean() < 0.5 * ours[:5].mean()  # it learns
    weights = file.get_signature_runner("get_weights")()
    for name, variable in twin.named_variables().items():
        np.testing.assert_allclose(weights[name.replace("/", "_")], variable.numpy(), atol=1e-5)
    image = digits()[50]["image"][:1]
    np.testing.assert_allclose(infer(image=image)["logits"], twin.model(image), atol=1e-4)
    check = next(check for check in report.rows[0].checks if (check.signature, check.tensor) == ("train", "loss"))
    assert check.error <= 1e-5


def test_only_builtin_ops_and_the_models_own_weights_at_the_start(digits_file):
    step, path, _ = digits_file
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    assert not [code for code in model.operatorCodes if code.builtinCode == schema.BuiltinOperator.CUSTOM]
    weights = Interpreter(str(path)).get_signature_runner("get_weights")()
    assert set(weights) == {name.replace("/", "_") for name in step.named_variables()}
    for name, variable in step.named_variables().items():
        np.testing.assert_array_equal(weights[name.replace("/", "_")], variable.numpy())


def test_training_goes_on_exactly_in_another_process_of_the_device(digits_file):
    _, path, _ = digits_file
    batches = [{**batch, "label": batch["label"].astype(np.int32)} for batch in digits()[:6]]

    def run(file, batches):
        return [file.get_signature_runner("train")(**batch)["loss"] for batch in batches]

    first, second, whole = (Interpreter(str(path)) for _ in range(3))
    losses = run(first, batches[:3])
    state = first.get_signature_runner("get_weights")()
    second.get_signature_runner("set_weights")(**state)
    assert losses + run(second, batches[3:]) == run(whole, batches)
    for name, value in second.get_signature_runner("get_weights")().items():
        np.testing.assert_array_equal(value, whole.get_signature_runner("get_weights")()[name])


def test_the_stored_proof_is_repeated(digits_file):
    _, path, _ = digits_file
    row = export.verify(path).rows[0]
    assert {check.signature for check in row.checks} == {"train", "infer", "get_weights", "set_weights"}
    assert next(c.bound for c in row.checks if (c.signature, c.tensor) == ("train", "loss")) < 1e-4
