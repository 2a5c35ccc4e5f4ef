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
from tftoolkit.export import saved_models
from tftoolkit.export.convert import builtin_gradients
from tftoolkit.export.convert.trace import trace
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


def windows(*names):
    found = {}
    for name in names:
        padding, stride = WINDOWS[name]

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


@pytest.mark.parametrize(
    ("cases", "least"),
    [
        (pointwise(), 5),
        (windows("strided", "margins"), 4),
        pytest.param(windows("same", "valid", "gaps"), 5, marks=pytest.mark.slow),
    ],
    ids=["pointwise", "windows", "other windows"],
)
def test_each_substitute_equals_tensorflows_gradient_in_float64(tmp_path, cases, least):
    signatures = {name: gradients(function, *(a.shape for a in arrays)) for name, (function, arrays) in cases.items()}
    trace(tf.Module(), signatures, tmp_path / "own")
    shutil.copytree(tmp_path / "own", tmp_path / "builtin")
    replaced = saved_models.substitute(tmp_path / "builtin", builtin_gradients.substitute)
    assert len(replaced) >= least
    assert not set(replaced) & saved_models.op_types(tmp_path / "builtin")
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


def refused(tmp_path, step, match, batches=None, error=export.ExportError, **arguments):
    with pytest.raises(error, match=match):
        export.trainable_tflite(
            step, tmp_path / "file.tflite", batches=digits() if batches is None else batches,
            **{"infer": infer_digits(step) if isinstance(step, Training) else None, **arguments},
        )  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_refusals_leave_nothing_behind(tmp_path):
    step = Training(DigitsCnn(4), trainers.optimizers.Sgd(0.1))
    refused(tmp_path, step.model, "must be a trainers.Step, got DigitsCnn", error=TypeError)
    refused(tmp_path, step, "batches is empty", [], ValueError)
    refused(tmp_path, step, "item 1 is .* one shape", [digits(8)[0], digits(16)[0]], ValueError)
    refused(tmp_path, step, "item 0 is list", [[1, 2]], ValueError)
    words = {"image": digits(4)[0]["image"], "label": np.array(["a", "b", "c", "d"])}
    refused(tmp_path, step, "item 0: 'label' is <U1; expected numbers", [words], ValueError)
    large = {"image": digits(4)[0]["image"], "label": np.full(4, 2**40)}
    refused(tmp_path, step, "beyond int32", [large], ValueError)


class Dropping(Training):
    def __call__(self, batch, key):
        noise = tf.random.stateless_uniform([8, 8, 1], key)
        return super().__call__({**batch, "image": batch["image"] * noise}, key)


class Idle(Training):
    def __call__(self, batch, key):
        return {"loss": tf.reduce_mean(self.model(batch["image"]))}


class Sorting(Training):
    def __call__(self, batch, key):
        return {**super().__call__(batch, key), "angle": tf.reduce_sum(tf.math.atan(batch["image"]))}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "match"),
    [(Dropping, "StatelessRandom"), (Idle, "changes nothing"), (Sorting, "Atan")],
    ids=["random", "no update", "no substitute"],
)
def test_steps_that_cannot_be_exported_are_refused_by_reason(tmp_path, kind, match):
    refused(tmp_path, kind(DigitsCnn(4), trainers.optimizers.Sgd(0.1)), match)


def test_a_wrong_gradient_is_refused(tmp_path, monkeypatch):
    def backwards(operation, inputs):
        return [1.001 * gradient for gradient in right(operation, inputs)]

    right = builtin_gradients._TABLE["MaxPoolGrad"]
    monkeypatch.setitem(builtin_gradients._TABLE, "MaxPoolGrad", backwards)
    refused(tmp_path, Training(DigitsCnn(4), trainers.optimizers.Sgd(0.1)), "differs from TensorFlow", digits(8))


LAYERS = keras.layers
MODELS = {
    "convolutions": [
        LAYERS.Conv2D(8, 3, strides=2, padding="same", activation="relu6"),
        LAYERS.DepthwiseConv2D(3, padding="same"),
        LAYERS.BatchNormalization(),
        LAYERS.LeakyReLU(0.1),
        LAYERS.SeparableConv2D(8, 3, padding="same", activation="elu"),
        LAYERS.Conv2D(8, 3, dilation_rate=2, padding="same", activation="selu"),
        LAYERS.AveragePooling2D(3, 2, padding="same"),
        LAYERS.Conv2DTranspose(8, 3, strides=2, padding="same", activation="softplus"),
        LAYERS.MaxPooling2D(3, 2, padding="same"),
        LAYERS.GlobalAveragePooling2D(),
        LAYERS.Dense(10),
    ],
    "sequence": [
        LAYERS.Reshape([8, 8]),
        LAYERS.Conv1D(8, 3, padding="causal", activation="softsign"),
        LAYERS.LayerNormalization(),
        LAYERS.LSTM(8, unroll=True, return_sequences=True),
        LAYERS.MaxPooling1D(2),
        LAYERS.Flatten(),
        LAYERS.Dense(16, activation="gelu"),
        LAYERS.Dense(16, activation="tanh"),
        LAYERS.Dense(10),
    ],
}


class Attention(tf.Module):
    """An embedding of brightnesses, self-attention in two heads, and layer norm by hand."""

    def __init__(self):
        super().__init__()
        made = tf.random.Generator.from_seed(0)
        self.embedding, self.projection = tf.Variable(made.normal([17, 16])), tf.Variable(made.normal([16, 48]) / 4)
        self.gamma, self.classes = tf.Variable(tf.ones(16)), tf.Variable(made.normal([16, 10]) / 4)

    def __call__(self, images):
        x = tf.gather(self.embedding, tf.cast(tf.reshape(images, [-1, 64]) * 16, tf.int32))
        heads = tf.reshape(x @ self.projection, [-1, 64, 2, 24])
        q, k, v = tf.split(tf.transpose(heads, [0, 2, 1, 3]), 3, axis=3)
        x = x + tf.reshape(
            tf.transpose(tf.nn.softmax(tf.matmul(q, k, transpose_b=True)) @ v, [0, 2, 1, 3]), [-1, 64, 16]
        )
        mean, variance = tf.nn.moments(x, axes=[2], keepdims=True)
        x = (x - mean) * tf.math.rsqrt(variance + 1e-6) * self.gamma
        return tf.reduce_mean(tf.nn.gelu(x[:, 1:]), axis=1) @ self.classes


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        # Each kind of model, and each optimizer, once; the cross is exhaustive.
        pytest.param(name, optimizer, marks=pytest.mark.slow if is_first else pytest.mark.exhaustive)
        for place, name in enumerate([*MODELS, "attention"])
        for number, optimizer in enumerate(["AdamW", "fused", "Sgd"])
        for is_first in [number == place % 3]
    ],
)
def test_models_of_all_kinds_train(tmp_path, name, optimizer):
    keras.utils.set_random_seed(0)
    layers = [keras.Input([8, 8, 1])]
    layers += [type(layer).from_config(layer.get_config()) for layer in MODELS.get(name, [])]
    model = keras.Sequential(layers) if name in MODELS else Attention()
    made = {
        "AdamW": trainers.optimizers.AdamW(1e-3),
        "fused": trainers.optimizers.AdamW(1e-3, fused=True),
        "Sgd": trainers.optimizers.Sgd(0.01, momentum=0.9, nesterov=True),
    }
    step = Training(model, made[optimizer])
    report = export.trainable_tflite(
        step, tmp_path / "file.tflite", batches=digits(8)[:10], infer=infer_digits(step), overwrite=True
    )
    loss = next(check for check in report.rows[0].checks if (check.signature, check.tensor) == ("train", "loss"))
    assert loss.error <= 1e-5
