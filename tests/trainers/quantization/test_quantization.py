"""Quantisation-aware training: what is rounded and how, in every runner, and what becomes of it in the int8 file.

A long file: models of every kind share what trains and exports them.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from ai_edge_litert.interpreter import Interpreter

from tftoolkit import export, trainers

IMAGE = tf.TensorSpec([None, 8, 8, 1], tf.float32, "image")


def random(*shape, seed=0):
    return tf.random.stateless_normal(shape, [seed, len(shape)])


class Products(tf.Module):
    """Every kind of product, merged with what comes after it or not, and a sum of two activations."""

    def __init__(self):
        super().__init__()
        self.conv = tf.Variable(random(3, 3, 1, 8) * np.logspace(-1, 1, 8, dtype=np.float32))
        self.gain = tf.Variable(random(8, seed=1))
        self.shift = tf.Variable(random(8, seed=9))
        self.depthwise = tf.Variable(random(3, 3, 8, 1, seed=2))
        self.upsample = tf.Variable(random(2, 2, 4, 8, seed=3))
        self.heads = tf.Variable(random(2, 4, 3, seed=4))
        self.dense = tf.Variable(random(6, 5, seed=5))
        self.bias = tf.Variable(random(5, seed=6))

    def __call__(self, image):
        x = tf.nn.relu(tf.nn.conv2d(image, self.conv, 1, "SAME") * self.gain + self.shift)
        x = x + tf.nn.depthwise_conv2d(x, self.depthwise, [1, 1, 1, 1], "SAME")
        x = tf.nn.conv2d_transpose(x, self.upsample, [image.shape[0], 16, 16, 4], 2)
        x = tf.einsum("bsi,hio->bsho", tf.reshape(x, [image.shape[0], 256, 4]), self.heads)
        x = tf.tensordot(tf.reshape(x, [image.shape[0], 256, 6]), self.dense, 1) + self.bias
        return tf.matmul(x, x, transpose_a=True)


class Layer(tf.Module):
    def __init__(self):
        super().__init__()
        self.kernel = tf.Variable(random(3, 2))

    def __call__(self, x):
        return x @ self.kernel


def rounded(x, low, high):
    """In float64, as in an int8 file; and what isn't saturated (zero is a step, which moves the ends a little)."""
    scale = (max(high, 0) - min(low, 0)) / 255
    zero = np.round(min(low, 0) / scale)
    steps = np.float64(x) / scale
    return np.clip(np.round(steps), zero, zero + 255) * scale, (zero <= steps) & (steps <= zero + 255)


def rounded_weight(w):
    scale = np.abs(w).max(0) / 127
    return np.round(w / scale) * scale


def values(step):
    return {name: variable.numpy() for name, variable in step.named_variables().items()}


def test_values_and_gradients():
    model = Layer()
    quantized = trainers.FakeQuantization(model, tf.TensorSpec([None, 3]))
    x, kernel = random(7, 3, seed=8), model.kernel.numpy()
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = quantized.train(x)
        loss = tf.reduce_sum(y * y) / 2
    (xq, x_inside), wq = rounded(x, np.min(x), np.max(x)), rounded_weight(kernel)
    exact = xq @ wq
    yq, y_inside = rounded(exact, exact.min(), exact.max())
    np.testing.assert_allclose(y, yq, atol=1e-5)
    # Straight through the rounding of y, x and the weight.
    by_kernel, by_x = tape.gradient(loss, [model.kernel, x])
    np.testing.assert_allclose(by_kernel, xq.T @ (yq * y_inside), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(by_x, (yq * y_inside) @ wq.T * x_inside, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(quantized(x), y)
    # Beyond its range an activation saturates, and has no gradient.
    with tf.GradientTape() as tape:
        far = tape.watch(large := x * 100) or quantized(large)
    assert np.abs(far).max() <= np.abs(y).max() * 1.01
    assert np.mean(tape.gradient(far, large) == 0) > 0.9


def test_ranges_are_moving_averages():
    quantized = trainers.FakeQuantization(Layer(), tf.TensorSpec([None, 3]), decay=0.6)
    low = high = 0.0
    for i, batch in enumerate(random(5, 4, 3).numpy()):
        quantized.train(batch)
        keep = min(0.6, i / (i + 1))
        low, high = (keep * old + (1 - keep) * new for old, new in ((low, batch.min()), (high, batch.max())))
        assert low < 0 < high
        known = quantized.ranges["input"]
        np.testing.assert_allclose([known.minimum.numpy(), known.maximum.numpy()], [low, high], rtol=1e-6)
    before = values(_holder(quantized))
    for bad in (np.inf, np.nan):
        quantized.train(np.full([4, 3], bad, np.float32))
    after = values(_holder(quantized))
    assert {name for name in before if np.any(before[name] != after[name])} == {"held/batches"}


@pytest.mark.parametrize("ranges", ["calibrated", "learned"])
def test_ranges_begin_with_the_first_batch_that_says_something(ranges):
    quantized = trainers.FakeQuantization(Layer(), tf.TensorSpec([None, 3]), ranges=ranges)
    x = random(4, 3).numpy()
    for batch in (x * np.inf, 0 * x, x):
        quantized.train(batch)
    known = quantized.ranges["input"]
    assert (known.minimum.numpy(), known.maximum.numpy()) == (x.min(), x.max())


def _holder(quantized):
    step = trainers.Step()
    step.held = quantized
    return step


def test_learned_ranges_get_the_gradients_of_the_rounding():
    quantized = trainers.FakeQuantization(Layer(), tf.TensorSpec([None, 3]), ranges="learned")
    x = random(50, 3)
    quantized.train(x)
    known = quantized.ranges["input"]
    np.testing.assert_array_equal([known.minimum, known.maximum], [np.min(x), np.max(x)])
    update = trainers.Update(quantized, trainers.optimizers.Sgd(0.1))
    assert {v.ref() for v in (known.minimum, known.maximum)} <= {v.ref() for v in update.weights}
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(quantized.train(3 * x))  # most of it saturates
    gradients = tape.gradient(loss, update.weights)
    assert all(np.any(gradient != 0) for gradient in gradients)
    update.apply(gradients, update.weights)
    assert float(known.maximum) != np.max(x)


def test_what_is_rounded():
    quantized = trainers.FakeQuantization(Products(), tf.TensorSpec([1, 8, 8, 1]))
    assert list(quantized.ranges) == [
        "input", "conv", "depthwise", "AddV2", "upsample", "heads", "dense", "BatchMatMulV2",
    ]  # fmt: skip


class Step(trainers.Step):
    def __init__(self, model, quantized, **arguments):
        super().__init__()
        self.model = model
        self.quantized = quantized
        self.update = trainers.Update(model, trainers.optimizers.AdamW(1e-2), clip_norm=1.0, **arguments)

    def __call__(self, batch, key):
        def losses(batch, key):
            logits = self.quantized.train(batch["image"], key)
            return tf.nn.sparse_softmax_cross_entropy_with_logits(batch["label"], logits)

        gradients = self.update.gradients(losses, batch, key)
        return {**gradients.metrics(), **self.update.apply(gradients)}


@pytest.fixture(scope="module")
def trained(example, tmp_path_factory):
    def train(runner, stops=(24,), **arguments):
        model = example.Mlp(dropout=0.1)
        specs = tf.TensorSpec([None, 64]), tf.TensorSpec([2], tf.int32)
        folder = tmp_path_factory.mktemp(runner)
        for steps in stops:
            step = Step(model, trainers.FakeQuantization(model, *specs), **arguments)
            trainers.Trainer(step, example.pipeline(), folder, runner=runner, steps_per_call=8).run(steps)
            model = example.Mlp(dropout=0.1)
        return values(step)

    return train


@pytest.mark.slow
@pytest.mark.parametrize(
    "runner", [*(pytest.param(kind, marks=pytest.mark.exhaustive) for kind in ("eager", "xla")), "graph", "xla_chunk"]
)
def test_resumes_bit_for_bit(trained, runner):
    whole, resumed = trained(runner), trained(runner, stops=(9, 24))
    assert whole["quantized/batches"] == 24
    assert whole["quantized/ranges/hidden/maximum"] > 1
    for name, value in whole.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)


@pytest.mark.slow
def test_micro_batches(trained):
    assert trained("graph", accumulate=2)["quantized/batches"] == 48


class Looped(tf.Module):
    """A product, then what is repeated as it is: a loop, a branch, a function of its own, and custom gradients."""

    def __init__(self):
        super().__init__()
        self.kernel = tf.Variable(random(3, 3) / 3)
        self.scale = tf.Variable(0.7)
        self.inner = tf.function(lambda x: tf.tanh(x) * self.scale)

    def __call__(self, x):
        x = x @ self.kernel
        x = tf.while_loop(lambda i, _: i < 3, lambda i, x: (i + 1, tf.sin(x) * self.scale), [0, x])[1]
        x = tf.nn.silu(x @ self.kernel)
        return self.inner(tf.cond(tf.reduce_sum(x) > 0, lambda: x * 2.0, lambda: x))


def test_loops_and_functions_in_the_model(monkeypatch):
    """Without rounding, the repeated model has the model's own values and gradients."""
    model = Looped()
    quantized = trainers.FakeQuantization(model, tf.TensorSpec([None, 3]))
    monkeypatch.setattr(quantized, "_observed", lambda name, x: x)
    monkeypatch.setattr("tftoolkit.trainers.quantization.quantization.quantized_weight", lambda weight, _: weight)

    @tf.function
    def gradients(call):
        with tf.GradientTape() as tape:
            y = call(random(4, 3))
        return y, tape.gradient(y, model.trainable_variables)

    for ours, own in zip(*(tf.nest.flatten(gradients(call)) for call in (quantized.train, model)), strict=True):
        np.testing.assert_allclose(ours, own, rtol=1e-6, atol=1e-7)


class Tower(tf.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def __call__(self, x):
        return self.layer(x)


@pytest.mark.parametrize(
    "layer", [Layer, lambda: keras.Sequential([keras.Input([3]), keras.layers.Dense(2)])], ids=["module", "keras"]
)
@pytest.mark.slow
def test_refuses_rematerialised_products(layer):
    tower = Tower(layer())
    trainers.rematerialize(tower, "layer")
    with pytest.raises(ValueError, match="leave out rematerialize"):
        trainers.FakeQuantization(tower, tf.TensorSpec([None, 3])).train(random(4, 3))


def test_named_arguments_and_functions_of_models():
    model = Layer()

    def call(x, scale=1.0, *, offset=0.0, factor=1.0):
        return {"y": factor * (model(x * scale) + offset), "nothing": None}

    quantized = trainers.FakeQuantization(call, tf.TensorSpec([None, 3]))
    x, scale, factor, offset = random(20, 3), tf.constant(1.5), tf.constant(2.0), tf.constant(3.0)
    named = quantized.train(x, scale=scale, offset=offset, factor=factor)
    assert named["nothing"] is None
    np.testing.assert_allclose(named["y"], call(x, scale, offset=offset, factor=factor)["y"], atol=0.2)
    np.testing.assert_array_equal(quantized.train(x, scale, factor=factor, offset=offset)["y"], named["y"])


class Hidden(Layer):
    @tf.function
    def __call__(self, x):
        return super().__call__(x)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((Layer(), tf.TensorSpec([None, 3]), "exact"), ValueError, "ranges must be one of calibrated, learned"),
        ((Layer(), tf.TensorSpec([None, 3]), "learned", 1.0), ValueError, "decay must be at least 0 and below 1"),
        ((Layer(), [None, 3]), TypeError, r"specs must be a tf\.TensorSpec"),
        ((Layer().__call__, tf.TensorSpec([None, 3]), "learned"), ValueError, "needs a model that holds its variables"),
        ((tf.nn.relu, tf.TensorSpec([3])), ValueError, "no convolution or matrix product"),
        ((Hidden(), tf.TensorSpec([None, 3])), ValueError, r"take the @tf\.function away"),
    ],
)
def test_bad_arguments(arguments, error, message):
    names = dict(zip(("ranges", "decay"), arguments[2:], strict=False))
    with pytest.raises(error, match=message):
        trainers.FakeQuantization(*arguments[:2], **names)


def test_a_strategys_scope_is_refused():
    with (
        tf.distribute.MirroredStrategy(["CPU:0"]).scope(),
        pytest.raises(ValueError, match="can't be made within a strategy's scope"),
    ):
        trainers.FakeQuantization(Layer(), tf.TensorSpec([None, 3]))


def test_refuses_what_it_cannot_find_again(example):
    model = example.Mlp()
    quantized = trainers.FakeQuantization(model, tf.TensorSpec([None, 64]), tf.TensorSpec([2], tf.int32))
    image, key = random(4, 64), tf.constant([1, 2])
    with pytest.raises(ValueError, match=r"call train\(…\) on some batches first"):
        quantized(image, key)
    update = trainers.Update(model, trainers.optimizers.Sgd(0.1), precision="bfloat16")
    with pytest.raises(ValueError, match=r"is found 0 times in this call.*in float32"):
        update.gradients(lambda x, key: quantized.train(tf.cast(x, tf.bfloat16), key), image, key)


# --- In the int8 file


def _details(path):
    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    return interpreter.get_tensor_details(), interpreter


def _stored(path):
    """The scales and zero points of the file's activations; its int8 constants by shape, with scales and axis."""
    details, interpreter = _details(path)
    activations, constants = set(), []
    for detail in details:
        quantization = detail["quantization_parameters"]
        if detail["dtype"] != np.int8 or not len(quantization["scales"]):
            continue
        if len(quantization["scales"]) > 1:
            constants.append((interpreter.get_tensor(detail["index"]), quantization))
        activations.add((float(quantization["scales"][0]), int(quantization["zero_points"][0])))
    return activations, constants


def _scales(quantized):
    """What an int8 file has for the trained ranges: scale and zero point."""
    found = {}
    for name, known in quantized.ranges.items():
        low, high = min(known.minimum.numpy(), 0), max(known.maximum.numpy(), 0)
        scale = (np.float64(high) - np.float64(low)) / 255
        found[name] = (scale, -128 - int(np.round(low / scale)))
    return found


def _assert_ranges(path, quantized):
    stored, _ = _stored(path)
    for name, (scale, zero) in _scales(quantized).items():
        assert any(abs(have - scale) <= 1e-6 * scale and at == zero for have, at in stored), name


@pytest.mark.slow
def test_the_file_has_the_trained_ranges_and_weights(tmp_path):
    model = Products()
    quantized = trainers.FakeQuantization(model, tf.TensorSpec([1, 8, 8, 1]))
    for i in range(4):
        quantized.train(random(1, 8, 8, 1, seed=i))
    spec = tf.TensorSpec([1, 8, 8, 1], tf.float32, "image")
    # Calibration would find other ranges on these.
    real = [{"image": 0.3 * random(1, 8, 8, 1, seed=i).numpy()} for i in range(100)]
    path = tmp_path / "m.tflite"
    export.tflite(quantized, path, signatures={"f": (quantized, [spec])}, quantize="int8", representative={"f": real})
    _assert_ranges(path, quantized)
    _, constants = _stored(path)
    # Batch norm and the like are folded into the weights, which changes the scales but not the integers.
    for weight, summed_over, place in (
        (model.conv * model.gain, (0, 1, 2), [3, 0, 1, 2]),
        (model.depthwise.numpy(), (0, 1), [3, 0, 1, 2]),
        (model.upsample.numpy(), (0, 1, 3), [2, 0, 1, 3]),
        (model.dense.numpy(), (0,), [1, 0]),
    ):
        scale = np.abs(weight).max(summed_over, keepdims=True) / 127
        integers = np.round(np.float64(weight) / scale).transpose(place)
        same = [data for data, _ in constants if data.shape == integers.shape and np.array_equal(data, integers)]
        assert len(same) == 1, integers.shape


def test_calibration_alone_finds_other_ranges(tmp_path):
    """That is, the test above can fail."""
    model = Layer()
    quantized = trainers.FakeQuantization(model, tf.TensorSpec([None, 3]))
    quantized.train(random(64, 3))
    spec = tf.TensorSpec([None, 3], tf.float32, "x")
    real = [{"x": 0.3 * random(100, 3).numpy()}]
    for name, call in (("qat", quantized), ("ptq", model)):
        export.tflite(
            call, tmp_path / name, signatures={"f": (call, [spec])}, quantize="int8", representative={"f": real}
        )
    _assert_ranges(tmp_path / "qat", quantized)
    with pytest.raises(AssertionError, match="input"):
        _assert_ranges(tmp_path / "ptq", quantized)


def _residual(package):
    layers = package.layers
    package.utils.set_random_seed(0)
    image = layers.Input([8, 8, 1])
    x = layers.Conv2D(8, 3, padding="same", use_bias=False)(image)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    y = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
    y = layers.ReLU()(layers.BatchNormalization()(y))
    y = layers.Dropout(0.2)(layers.Conv2D(8, 1)(y))
    x = layers.GlobalAveragePooling2D()(layers.Add()([x, y]))
    return package.Model(image, layers.Dense(10, activation="softmax")(x))


@pytest.mark.slow
@pytest.mark.parametrize("package", [keras, tf_keras], ids=["keras", "tf_keras"])
def test_a_model_of_keras(tmp_path, package):
    """Batch norm and dropout in training, moving averages in the file."""
    model = _residual(package)
    quantized = trainers.FakeQuantization(model, IMAGE)
    depthwise = next(name for name in quantized.ranges if name.startswith("depthwise_conv2d/"))
    assert list(quantized.ranges) == [
        "input", "conv2d/kernel", depthwise, "conv2d_1/kernel", "AddV2", "Mean", "dense/kernel",
    ]  # fmt: skip
    update = trainers.Update(model, trainers.optimizers.AdamW(1e-2))
    before = [variable.numpy() for variable in update.weights]

    @tf.function
    def step(images):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(quantized.train(images, training=True)[:, 0])
        update.apply(tape.gradient(loss, update.weights))

    for i in range(20):
        step(tf.abs(random(16, 8, 8, 1, seed=i)))
    assert all(np.any(old != new) for old, new in zip(before, update.weights, strict=True))
    moving = [v for name, v in trainers.Step.named_variables(_holder(model)).items() if "moving" in name]
    assert len(moving) == 4
    assert all(np.abs(variable - variable.numpy().flat[0]).max() > 1e-3 for variable in moving)
    real = [{"image": tf.abs(random(128, 8, 8, 1)).numpy()}]
    arguments = {"signatures": {"f": (quantized, [IMAGE])}, "quantize": "int8", "representative": {"f": real}}
    row = export.tflite(quantized, tmp_path / "m", **arguments).rows[0]
    assert row.format == "TFLite int8"
    _assert_ranges(tmp_path / "m", quantized)


@pytest.mark.parametrize("arguments", [{}, {"quantize": "dynamic"}, {"quantize": "int8", "keep_float": ["dense"]}])
def test_other_formats_are_refused_with_what_to_do(tmp_path, arguments):
    quantized = trainers.FakeQuantization(Layer(), tf.TensorSpec([None, 3]))
    quantized.train(random(4, 3))
    signatures = {"f": (quantized, [tf.TensorSpec([1, 3], tf.float32, "x")])}
    real = {"f": [{"x": random(100, 3).numpy()}]} if "keep_float" in arguments else None
    with pytest.raises(export.ExportError, match=r"FakeQuantization.*quantize='int8'.*without keep_float"):
        export.tflite(quantized, tmp_path / "m", signatures=signatures, representative=real, **arguments)
    assert not list(tmp_path.iterdir())
