"""A source over any Python object with a length and items, such as a data set of PyTorch."""

import hashlib
import json
import threading
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from tftoolkit.pipelines.conversion import exact_array
from tftoolkit.pipelines.errors import SourceError
from tftoolkit.pipelines.sources.source import Example, Spec, fetch_in_python

_LARGEST_IN_STATE = 512  # characters


class Indexable(Protocol):
    """What has examples by number."""

    def __getitem__(self, index: int, /) -> Any:
        """Example ``index``, 0 … len - 1."""

    def __len__(self) -> int:
        """Number of examples."""


class PythonSource:
    """See ``python``."""

    def __init__(self, dataset: Indexable, spec: Spec, fingerprint: Any, parallel: bool) -> None:
        self._dataset = dataset
        self.element_spec = spec
        self._length = len(dataset)
        self._identity = fingerprint
        self._lock = None if parallel else threading.Lock()

    def __len__(self) -> int:
        return self._length

    def fetch(self, indices: tf.Tensor) -> Example:
        return fetch_in_python(self._read, indices, self.element_spec)

    def fingerprint(self) -> dict[str, Any]:
        return {"kind": "python", "dataset": self._identity, "length": len(self)}

    def describe(self, index: int) -> str:
        return f"{type(self._dataset).__name__}, example {index}"

    def _read(self, rows: np.ndarray) -> list[list[Any]]:
        examples = [self._example(int(row)) for row in rows]
        return [[example[place] for example in examples] for place in range(len(self.element_spec))]

    def _example(self, index: int) -> list[np.ndarray]:
        try:
            if self._lock is None:
                item = self._dataset[index]
            else:
                with self._lock:
                    item = self._dataset[index]
        except Exception as error:  # whatever users' code raises
            raise SourceError(
                f"{self.describe(index)}: {type(error).__name__}: {error}", code="source-example"
            ) from error
        try:
            values = self._by_feature(item)
            return [exact_array(repr(name), values[name], spec)[()] for name, spec in self.element_spec.items()]
        except (TypeError, ValueError) as error:
            raise SourceError(f"{self.describe(index)}: {error}", code="source-example") from error

    def _by_feature(self, item: Any) -> Mapping[str, Any]:
        names = list(self.element_spec)
        if isinstance(item, Mapping):
            missing = next((name for name in names if name not in item), None)
            if missing is not None:
                raise ValueError(f"it has no feature {missing!r}, only {', '.join(map(repr, item))}")
            return item
        if not isinstance(item, tuple | list):
            item = (item,)
        if len(item) != len(names):
            raise ValueError(f"it has {len(item)} values, and spec has {len(names)} features: {', '.join(names)}")
        return dict(zip(names, item, strict=True))


def python(
    dataset: Indexable, spec: Mapping[str, tf.TensorSpec], *, fingerprint: Any, parallel: bool = False
) -> PythonSource:
    """A source over a Python object with ``__getitem__`` and ``__len__``: a map-style data set of PyTorch, a reader of
    your own files, a list.

    Examples must be the same whenever they are asked for; what is random belongs into ``map``, with a key.

    Args:
      dataset: ``dataset[i]`` is a dict of the features in ``spec`` (others are left out), or a tuple of them in their
        order, or the value of the only one: anything that NumPy makes an array of, also tensors of PyTorch on the CPU.
      spec: name -> tf.TensorSpec of one example, of which only the first dimension may be None. Values must fit it;
        whole numbers are never cut off or rounded.
      fingerprint: what identifies the contents, and can be written as JSON: a version, a name and a date, …. States
        that were saved with another are refused.
      parallel: whether several threads may read at once; else each waits for the other.

    Raises:
      TypeError: ``dataset`` has no length or no items, ``spec`` is no dict of tf.TensorSpec, or ``fingerprint`` is
        nothing that JSON knows.
      SourceError: while iterating: ``dataset[i]`` raised an exception, or does not fit ``spec``.
    """
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise TypeError(
            f"dataset: expected an object with __getitem__ and __len__, got {type(dataset).__name__}; what can only be "
            "iterated over has no order to shuffle or resume in: put its examples into a list, or into files"
        )
    if not isinstance(spec, Mapping) or not spec:
        raise TypeError(f"spec: expected a dict name -> tf.TensorSpec, got {spec!r}")
    checked = {}
    for name, one in spec.items():
        if not isinstance(name, str) or not isinstance(one, tf.TensorSpec):
            raise TypeError(f"spec[{name!r}]: expected a tf.TensorSpec by name, got {one!r}")
        if one.shape.rank is None or None in one.shape[1:]:
            raise TypeError(f"spec[{name!r}]: only the first dimension may be None, got {one.shape}")
        checked[name] = tf.TensorSpec(one.shape, one.dtype)
    return PythonSource(dataset, checked, _as_json(fingerprint), bool(parallel))


def _as_json(fingerprint: Any) -> Any:
    """As it comes back from a file; a hash if it is long."""
    try:
        text = json.dumps(fingerprint, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TypeError(f"fingerprint: expected what can be written as JSON, got {fingerprint!r}") from error
    if fingerprint is None:
        raise TypeError("fingerprint: expected what identifies the contents, such as a version or a date, got None")
    if len(text) > _LARGEST_IN_STATE:
        return {"sha256": hashlib.sha256(text.encode()).hexdigest()[:16]}
    return json.loads(text)
