"""Ops that tf2onnx gets wrong are right in our ONNX files, for every type, sign and rank; compared with TensorFlow."""

import numpy as np
import onnxruntime
import pytest
import tensorflow as tf

from tftoolkit import export

INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32")


def compared(tmp_path, function, **arrays):
    """Exports the function of these inputs and runs the file on them."""
    specs = [tf.TensorSpec([None, *a.shape[1:]] if a.ndim else [], a.dtype, name) for name, a in arrays.items()]
    export.onnx(tf.Module(), tmp_path / "m.onnx", signatures={"serving_default": (function, specs)})
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    found = dict(zip([o.name for o in session.get_outputs()], session.run(None, arrays), strict=True))
    for name, value in function(*map(tf.constant, arrays.values())).items():
        assert found[name].dtype == np.asarray(value).dtype
        np.testing.assert_array_equal(found[name], value, name)


def numbers(dtype):
    """Around zero and at the ends of the type."""
    info = np.iinfo(dtype)
    small = [n for n in (-9, -5, -4, -3, -1, 0, 1, 2, 3, 4, 11) if n >= info.min]
    return np.array([info.min, info.min + 1, *small, info.max - 1, info.max], dtype)


def test_e1_floor_division_and_modulo_of_integers(tmp_path):
    """Of every type: -1 // 4 is -1, not 0."""

    def function(*values):
        return {f"{op}_{n.dtype.name}": n // 4 if op == "q" else n % 4 for n in values for op in "qr"}

    compared(tmp_path, function, **{f"n_{dtype}": np.resize(numbers(dtype), 15) for dtype in INTEGERS})


@pytest.mark.parametrize("dtype", ["int32", pytest.param("int64", marks=pytest.mark.slow)])
def test_e1_divisors_of_either_sign(tmp_path, dtype):
    n, d = (grid.ravel() for grid in np.meshgrid(np.arange(-9, 10), [-7, -4, -1, 1, 3, 4, 100]))
    compared(tmp_path, lambda n, d: {"q": n // d, "r": n % d}, n=n.astype(dtype), d=d.astype(dtype))


def test_e1_modulo_of_floats_is_exact(tmp_path):
    x = np.array([-9, -5.25, -0.7, 0, 0.3, 7.1, 1e7, -1e7], np.float32)
    y = np.array([4, -0.7, 0.7, 3, -4, 0.1, 0.3, 0.3], np.float32)
    compared(tmp_path, lambda x, y: {"q": x // y, "r": x % y}, x=x, y=y)


@pytest.mark.parametrize("axis", [-1, pytest.param(0, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.slow)])
def test_e1_one_hot_of_what_is_out_of_range(tmp_path, axis):
    """Nothing is hot; -1 pads labels. For each type of output, which tf2onnx converts in two ways."""
    ids = np.array([[-1, 0], [2, 3], [-3, 7], [-2147483648, 2147483647]], np.int32)

    def function(ids):
        values = dict.fromkeys(("float32", "float64", "float16", "int32", "int64", "uint8"), (1, 0))
        values |= {"bool": (True, False)}
        found = {d: tf.one_hot(ids, 3, on, off, axis, getattr(tf, d)) for d, (on, off) in values.items()}
        return found | {"shifted": tf.one_hot(ids, 3, 0.9, 0.05, axis), "vector": tf.one_hot(ids[:, 0], 3, axis=-1)}

    compared(tmp_path, function, ids=ids)


@pytest.mark.slow  # TensorFlow waits ten seconds for memory before it gives up
def test_e1_one_hot_of_a_scalar_and_of_a_depth_that_is_an_input(tmp_path):
    def function(label, depth):
        return {"fixed": tf.one_hot(label, 4), "free": tf.one_hot(label, depth)}

    compared(tmp_path, function, label=np.array(-1, np.int64), depth=np.array(3, np.int32))
