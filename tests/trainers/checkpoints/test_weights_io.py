"""Weights in and out of files."""

import builtins
import contextlib
import sys

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tftoolkit import trainers
from tftoolkit.trainers import naming
from tftoolkit.trainers.checkpoints import weights_io

ENDINGS = ["npz", "safetensors"]


class Net(tf.Module):
    def __init__(self, seed=0, classes=3, part="encoder"):
        super().__init__()
        rng = np.random.default_rng(seed)
        block = tf.Module()
        block.layers = [tf.Variable(rng.normal(size=[4, 4]), dtype=tf.float32) for _ in range(2)]
        setattr(self, part, block)
        self.head = tf.Variable(rng.normal(size=[4, classes]), dtype=tf.float32)
        self.file = tf.Variable(rng.normal(), dtype=tf.float32)
        self.count = tf.Variable(rng.integers(100), dtype=tf.int64, trainable=False)


def _values(model):
    return {name: variable.numpy() for name, variable in naming.named_variables(model).items()}


@pytest.mark.parametrize("ending", ENDINGS)
def test_round_trip(tmp_path, ending):
    path = tmp_path / f"net.{ending}"
    model, other = Net(0), Net(1)
    trainers.save_weights(model, path)
    report = trainers.load_weights(other, path)
    assert set(report.loaded) == {"encoder/layers/0", "encoder/layers/1", "head", "file", "count"}
    assert (report.differing, report.missing, report.unused) == ({}, (), ())
    for name, value in _values(model).items():
        np.testing.assert_array_equal(_values(other)[name], value)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_the_files_are_what_others_read(tmp_path):
    from safetensors.numpy import load_file

    model = Net()
    trainers.save_weights(model, tmp_path / "net.npz")
    trainers.save_weights(model, tmp_path / "net.safetensors")
    with np.load(tmp_path / "net.npz") as npz:
        for name, value in _values(model).items():
            np.testing.assert_array_equal(npz[name], value)
            np.testing.assert_array_equal(load_file(tmp_path / "net.safetensors")[name], value)


@pytest.mark.parametrize("ending", ENDINGS)
def test_transfer_learning_reports_what_fitted(tmp_path, ending):
    path = tmp_path / f"net.{ending}"
    old, new = Net(0, classes=3), Net(1, classes=5, part="backbone")
    trainers.save_weights(old, path)
    before = _values(new)
    with pytest.raises(ValueError, match=r"partial=True") as error:
        trainers.load_weights(new, path, rename={"encoder/*": "backbone/*"})
    assert "differs: head: float32[4, 3] in the file, float32[4, 5] here" in str(error.value)
    for name, value in _values(new).items():
        np.testing.assert_array_equal(value, before[name])

    report = trainers.load_weights(new, path, rename={"encoder/*": "backbone/*"}, partial=True)
    assert report.loaded == ("backbone/layers/0", "backbone/layers/1", "count", "file")
    assert list(report.differing) == ["head"]
    np.testing.assert_array_equal(new.backbone.layers[1], old.encoder.layers[1])
    np.testing.assert_array_equal(new.head, before["head"])

    report = trainers.load_weights(new, path, partial=True)
    assert report.missing == ("backbone/layers/0", "backbone/layers/1")
    assert report.unused == ("encoder/layers/0", "encoder/layers/1")
    assert "not in the model: encoder/layers/0" in str(report)


def test_renaming_keeps_what_the_stars_stood_for(tmp_path):
    path = tmp_path / "net.npz"
    np.savez(path, **{"h.0.attn.w": np.zeros(2), "h.1.attn.w": np.ones(2), "plain": np.full(2, 2.0)})
    model = tf.Module()
    model.blocks = [tf.Variable(np.zeros(2)), tf.Variable(np.zeros(2))]
    model.plain = tf.Variable(np.zeros(2))
    trainers.load_weights(model, path, rename={"h.*.attn.w": "blocks/*"})
    np.testing.assert_array_equal([v.numpy() for v in [*model.blocks, model.plain]], [[0, 0], [1, 1], [2, 2]])
    with pytest.raises(ValueError, match=r"rename: the pattern 'x\*' matches none"):
        trainers.load_weights(model, path, rename={"x*": "*"})
    with pytest.raises(ValueError, match="become same"):
        trainers.load_weights(model, path, rename={"h.*": "same"})
    with pytest.raises(ValueError, match="more than one pattern"):
        trainers.load_weights(model, path, rename={"h.*": "a*", "*.w": "b*"})


def test_numbers_are_never_narrowed_silently(tmp_path):
    path = tmp_path / "net.npz"
    np.savez(path, wide=np.float64([0.1]), narrow=np.float32([0.1]))
    model = tf.Module()
    model.wide, model.narrow = tf.Variable([0.0]), tf.Variable(np.float64([0.0]))
    report = trainers.load_weights(model, path, partial=True)
    assert report.differing == {"wide": "float64[1] in the file, float32[1] here"}
    assert model.narrow.numpy() == np.float64(np.float32(0.1))


def test_bfloat16_needs_safetensors(tmp_path):
    model = tf.Module()
    model.weight = tf.Variable(np.float32([1.5, -3.25]).astype(ml_dtypes.bfloat16))
    with pytest.raises(ValueError, match=r"npz can't hold: use a \.safetensors"):
        trainers.save_weights(model, tmp_path / "net.npz")
    assert not list(tmp_path.iterdir())
    trainers.save_weights(model, tmp_path / "net.safetensors")
    model.weight.assign(tf.zeros([2], tf.bfloat16))
    trainers.load_weights(model, tmp_path / "net.safetensors")
    np.testing.assert_array_equal(tf.cast(model.weight, tf.float32), [1.5, -3.25])


@pytest.mark.parametrize("package", ["keras", "tf_keras"])
def test_models_of_keras(tmp_path, package):
    package = pytest.importorskip(package)
    models = []
    for _ in range(2):
        models.append(package.Sequential([package.layers.Dense(3), package.layers.BatchNormalization()]))
        models[-1].build([None, 4])
    trainers.save_weights(models[0], tmp_path / "net.safetensors")
    report = trainers.load_weights(models[1], tmp_path / "net.safetensors")
    assert "batch_normalization/moving_mean" in report.loaded
    for one, other in zip(models[0].weights, models[1].weights, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


@pytest.mark.parametrize("ending", ENDINGS)
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_damaged_files_are_errors_that_change_nothing_wrongly(tmp_path_factory, ending, data):
    """A cut or altered file raises, or (where the format has no checksum) loads numbers of the right shapes."""
    folder = tmp_path_factory.mktemp("damaged")
    path = folder / f"net.{ending}"
    trainers.save_weights(Net(), path)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bytes(content))
    with contextlib.suppress(ValueError):
        trainers.load_weights(Net(1), path)


def test_half_a_file_is_one_message(tmp_path):
    path = tmp_path / "net.safetensors"
    trainers.save_weights(Net(), path)
    whole = path.read_bytes()
    for half in (whole[: len(whole) // 2], whole[:4], b""):
        path.write_bytes(half)
        with pytest.raises(ValueError, match=r"/net\.safetensors can't be read: .*not whole: fetch or write it anew"):
            trainers.load_weights(Net(), path)


def test_numbers_that_numpy_does_not_have(tmp_path):
    header = b'{"head":{"dtype":"F8_E4M3","shape":[4,3],"data_offsets":[0,12]}}'
    (tmp_path / "net.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(12))
    with pytest.raises(ValueError, match=r"net\.safetensors holds a type of numbers that NumPy doesn't have: .*float8"):
        trainers.load_weights(Net(), tmp_path / "net.safetensors")


def test_refusals(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"nothing\.npz"):
        trainers.load_weights(Net(), tmp_path / "nothing.npz")
    with pytest.raises(ValueError, match=r"\.npz or \.safetensors"):
        trainers.save_weights(Net(), tmp_path / "net.h5")
    np.savez(tmp_path / "other.npz", other=np.ones(2))
    with pytest.raises(ValueError, match="nothing in"):
        trainers.load_weights(Net(), tmp_path / "other.npz", partial=True)
    np.savez(tmp_path / "pickled.npz", head=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match=r"pickled\.npz can't be read"):
        trainers.load_weights(Net(), tmp_path / "pickled.npz")

    real_import = builtins.__import__
    monkeypatch.setattr(
        builtins,
        "__import__",
        lambda name, *args: real_import("no_such_module" if name.startswith("safetensors") else name, *args),
    )
    for name in [name for name in sys.modules if name.startswith("safetensors")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match=r"tftoolkit\[safetensors\]"):
        weights_io.save_weights(Net(), tmp_path / "net.safetensors")
