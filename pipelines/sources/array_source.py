"""A source over arrays in memory."""

import functools
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tftoolkit.pipelines.sources.source import Example, Spec


class ArraySource:
    """See ``arrays``; ``identity`` says in states where the arrays come from."""

    def __init__(self, features: Mapping[str, Any], identity: Mapping[str, str]) -> None:
        if not isinstance(features, Mapping):
            raise TypeError(f"features: expected a dict of arrays, got {type(features).__name__}")
        if not features:
            raise ValueError("features: the dict is empty; give at least one array")
        self._tensors = {_checked_name(name): _to_tensor(name, value) for name, value in features.items()}
        lengths = {name: int(tensor.shape[0]) for name, tensor in self._tensors.items()}
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"{name}: {length}" for name, length in lengths.items())
            raise ValueError(f"features: the arrays have different lengths ({listed}); they need one row per example")
        self._length = next(iter(lengths.values()))
        self._identity = dict(identity)

    @property
    def element_spec(self) -> Spec:
        return {name: tf.TensorSpec(t.shape[1:], t.dtype) for name, t in self._tensors.items()}

    def __len__(self) -> int:
        return self._length

    def fetch(self, indices: tf.Tensor) -> Example:
        return {name: tf.gather(tensor, indices) for name, tensor in self._tensors.items()}

    def fingerprint(self) -> dict[str, Any]:
        return {**self._identity, "length": self._length, "sha256": self._digest}

    @functools.cached_property
    def _digest(self) -> str:
        digest = hashlib.sha256()
        for name, tensor in self._tensors.items():
            array = tensor.numpy()
            digest.update(f"{name} {array.dtype} {array.shape} ".encode())
            # Strings lie in memory as pointers, so their serialised form is hashed.
            is_string = tensor.dtype == tf.string
            digest.update(tf.io.serialize_tensor(tensor).numpy() if is_string else array.reshape(-1).view(np.uint8))
        return digest.hexdigest()[:16]


def arrays(features: Mapping[str, Any]) -> ArraySource:
    """A source over equally long arrays: row i of each array makes up example i.

    Args:
      features: name -> array-like with the examples along the first axis; any dtype TensorFlow knows. Copied into
        memory once.

    Raises:
      TypeError, ValueError: not a dict of arrays, empty, no example axis, or different lengths.
    """
    return ArraySource(features, {"kind": "arrays"})


def _checked_name(name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f"features: names must be strings, got {name!r}")
    return name


def _to_tensor(name: str, value: Any) -> tf.Tensor:
    if isinstance(value, list | tuple) and len({np.shape(row) for row in value if np.ndim(row)}) > 1:
        raise ValueError(f"features[{name!r}]: the rows have different shapes; pad them to one shape first")
    try:
        with tf.device("CPU:0"):
            tensor = tf.convert_to_tensor(value)
    except (TypeError, ValueError) as error:
        raise type(error)(f"features[{name!r}]: not an array that TensorFlow can hold: {error}") from error
    if tensor.shape.rank == 0:
        raise ValueError(f"features[{name!r}]: got a single value; arrays need the examples along their first axis")
    return tensor
