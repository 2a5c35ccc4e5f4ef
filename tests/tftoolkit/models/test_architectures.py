"""Each architecture runs eagerly, as a graph and compiled, trains by Update and Step, and is exported with proof."""

import numpy as np
import pytest
import tensorflow as tf

from tftoolkit import export, models, trainers
from tftoolkit.trainers.naming import named_variables

RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal([4, 16, 16, 3]).astype(np.float32)
TOKENS = RNG.integers(0, 20, [4, 8]).astype(np.int32)
SIZES = {"width": 16, "layers": 2, "heads": 2}
MAKE = {
    "resnet": lambda dropout=0: models.ResNet((1, 1, 1, 1), classes=3, width=4),
    "bottlenecks": lambda dropout=0: models.ResNet((1, 1, 1, 1), bottleneck=True, classes=3, width=4),
    "vit": lambda **options: models.ViT(**SIZES, patch=8, image=16, classes=3, **options),
    "bert": lambda **options: models.Bert(20, **SIZES, context=8, head="classes", classes=3, **options),
    "gpt2": lambda **options: models.Gpt2(20, **SIZES, context=8, **options),
    "llama": lambda **options: models.Llama(20, **SIZES, kv_heads=1, **options),
}


def inputs(name):
    return tf.constant(IMAGES if name in ("resnet", "bottlenecks", "vit") else TOKENS)


class Fit(trainers.Step):
    """The first class for every example or token."""

    def __init__(self, name, **options):
        super().__init__()
        self.model = MAKE[name](dropout=0.1)
        self.update = trainers.Update(self.model, trainers.optimizers.AdamW(1e-2), **options)

    def losses(self, x, key):
        training = {"training": True} if isinstance(self.model, models.ResNet) else {"key": key}
        return -tf.nn.log_softmax(tf.cast(self.model(x, **training), tf.float32))[..., 0]

    def __call__(self, x, key):
        gradients = self.update.gradients(self.losses, x, key)
        return gradients.metrics() | self.update.apply(gradients)


COMPILED = [pytest.param(name, True, marks=pytest.mark.slow) for name in ("resnet", "vit", "bert", "gpt2", "llama")]


@pytest.mark.parametrize(("name", "jit"), [*((name, None) for name in MAKE), *COMPILED])
def test_graphs_and_xla_give_what_eager_mode_gives(name, jit):
    model = MAKE[name]()
    compiled = tf.function(model, autograph=False, jit_compile=jit)
    expected = model(inputs(name))
    np.testing.assert_allclose(compiled(inputs(name)), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "precision", "jit"),
    [
        *(("resnet", "bfloat16", None), ("vit", "bfloat16", None)),
        *(
            ("bert", "float32", None),
            ("gpt2", "bfloat16", None),
            ("llama", "bfloat16", True),
            ("resnet", "float32", True),
        ),
    ],
)
def test_they_train(name, precision, jit):
    step = Fit(name, precision=precision)
    compiled = tf.function(step, autograph=False, jit_compile=jit)
    losses = [float(compiled(inputs(name), tf.constant([0, number]))["loss"]) for number in range(8)]
    assert losses[-1] < 0.7 * losses[0]
    assert {value.dtype for value in named_variables(step.model).values()} == {tf.float32}


def test_moving_statistics_stay_float32_under_reduced_precision():
    step = Fit("resnet", precision="bfloat16")
    step(inputs("resnet"), tf.constant([0, 1]))
    assert np.abs(step.model.layer4[0].bn2.mean).max() > 0
    step.update.gradients(step.losses, inputs("resnet"), tf.constant([0, 1]))


@pytest.mark.parametrize("name", ["vit", "bert", "gpt2", "llama"])
def test_weights_of_low_precision(name):
    """Of the same seed, so that logits differ by rounding alone."""
    wide, narrow = MAKE[name](), MAKE[name](dtype="bfloat16")
    assert {value.dtype for value in narrow.variables} == {tf.bfloat16}
    logits = narrow(inputs(name))
    assert logits.dtype == tf.bfloat16
    expected = wide(inputs(name))
    assert np.abs(tf.cast(logits, tf.float32) - expected).max() < 0.05 * np.abs(expected).max()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet", "vit", "bert"])
def test_exports(tmp_path, name):
    spec = tf.TensorSpec([1, *inputs(name).shape[1:]], inputs(name).dtype, "x")
    ranges = {} if spec.dtype.is_floating else {"input_ranges": {"x": (0, 19)}}
    model = MAKE[name]()
    report = export.tflite(model, tmp_path / "model.tflite", signatures={"logits": (model, [spec])}, **ranges)
    assert [row.unproven for row in report.rows] == [()]


def test_rematerialised_blocks_give_the_same_gradients():
    found = []
    for patterns in ((), ("blocks/*",)):
        model = MAKE["llama"]()
        if patterns:
            assert trainers.rematerialize(model, *patterns) == ["blocks/0", "blocks/1"]
        with tf.GradientTape() as tape:
            loss = model.loss(TOKENS, TOKENS)
        found.append(tape.gradient(loss, model.trainable_variables))
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(tf.convert_to_tensor(one), tf.convert_to_tensor(other), rtol=0, atol=1e-6)


def test_muon_takes_no_table_for_a_hidden_matrix():
    for name in ("bert", "gpt2", "llama"):
        model = MAKE[name]()
        optimizer = trainers.optimizers.Muon(1e-2)
        trainers.Update(model, optimizer)
        hidden = {one for one, is_hidden in zip(optimizer.names, optimizer.hidden, strict=True) if is_hidden}
        assert not [one for one in hidden if "table" in one or "classifier" in one]
        assert "blocks/0/attention/query/kernel" in hidden
