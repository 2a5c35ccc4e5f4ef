"""Which features of a TFDS data set a source has: nested ones by names such as ``a/b``, or some of them."""

import difflib
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf
import tensorflow_datasets

from tftoolkit.pipelines.sources.source import Example, Spec

_LISTED = 300  # characters of names that stand in a fingerprint
_Path = tuple[str, ...]


class Selection:
    """Features by name.

    Attributes:
      element_spec: of one example.
      decoders: what TFDS shall decode, for ``as_dataset`` and ``as_data_source``.
    """

    def __init__(self, builder: Any, features: Sequence[str] | None) -> None:
        specs = builder.info.features.get_tensor_spec()
        name_of_set = builder.info.full_name
        if not isinstance(specs, dict):
            raise ValueError(f"{name_of_set}: its examples are {specs} and not dicts of features")
        all_paths = dict(_leaves(specs))
        paths = {"/".join(path): path for path in all_paths}
        chosen = list(paths) if features is None else _chosen(features, list(paths))
        self._paths = {name: paths[name] for name in chosen}
        self._chosen = None if features is None else chosen
        self.element_spec: Spec = {}
        encoded: dict[str, Any] = {}
        for name, path in self._paths.items():
            feature, spec = _at(builder.info.features, path), all_paths[path]
            if isinstance(feature, tensorflow_datasets.features.Image) and not _is_dense(spec):
                _check_encoded(name_of_set, name, spec, list(paths))
                self.element_spec[name] = tf.TensorSpec([], tf.string)
                _put(encoded, path, tensorflow_datasets.decode.SkipDecoding())
            elif isinstance(spec, tf.TensorSpec) and (_is_dense(spec) or _is_dense_but_first(spec)):
                self.element_spec[name] = tf.TensorSpec(spec.shape, spec.dtype)
            else:
                raise ValueError(
                    f"{name_of_set}: feature {name!r} is {spec}; only features of which at most the first dimension "
                    f"varies can be read. {_without(name, list(paths))}"
                )
        self._encoded = encoded
        tops = dict.fromkeys((path[0] for path in self._paths.values()), True)
        partial = tensorflow_datasets.decode.PartialDecoding(tops, decoders=encoded or None)
        self.decoders = encoded if features is None else partial
        self._stored = builder.info.features if features is None else partial.extract_features(builder.info.features)

    def identity(self) -> dict[str, Any]:
        """For fingerprints: which features were asked for."""
        if self._chosen is None:
            return {}
        text = ", ".join(self._chosen)
        if len(text) > _LISTED:
            return {"features": {"sha256": hashlib.sha256(text.encode()).hexdigest()[:16]}}
        return {"features": self._chosen}

    def flat(self, example: Any) -> Example:
        """The features of an example as TFDS has it, nested."""
        found = {}
        for name, path in self._paths.items():
            value = example
            for key in path:
                value = value[key]
            found[name] = value
        return found

    def decode(self, record: tf.Tensor) -> Example:
        """The features of a serialized example."""
        return self.flat(self._stored.deserialize_example(record, decoders=self._encoded))


def _leaves(specs: dict[str, Any], above: _Path = ()) -> Iterator[tuple[_Path, Any]]:
    for name, spec in specs.items():
        if isinstance(spec, dict):
            yield from _leaves(spec, (*above, name))
        else:
            yield (*above, name), spec


def _at(feature: Any, path: _Path) -> Any:
    for name in path:
        while not hasattr(feature, "__getitem__") or isinstance(feature, tensorflow_datasets.features.Sequence):
            feature = feature.feature
        feature = feature[name]
    return feature


def _chosen(features: Sequence[str], known: list[str]) -> list[str]:
    """The names in ``features``; that of a feature with others in it stands for all of those."""
    if isinstance(features, str) or not all(isinstance(name, str) for name in features) or not len(features):
        raise TypeError(f"features: expected a list of names, got {features!r}")
    chosen: dict[str, None] = {}
    for name in features:
        found = [one for one in known if one == name or one.startswith(f"{name}/")]
        if not found:
            near = difflib.get_close_matches(name, known)
            hint = f"the nearest are {', '.join(near)}" if near else f"there are {', '.join(known)}"
            raise ValueError(f"features: there is no feature {name!r}; {hint}")
        chosen.update(dict.fromkeys(found))
    return list(chosen)


def _check_encoded(name_of_set: str, name: str, spec: tf.TensorSpec, known: list[str]) -> None:
    """A picture without a fixed size comes as it is stored, which image.decode must be able to read."""
    if spec.dtype not in (tf.uint8, tf.uint16):
        raise ValueError(
            f"{name_of_set}: feature {name!r} is a picture of {spec.dtype.name} without a fixed size {spec.shape}, "
            f"which TFDS stores as the bytes of a PNG of other colours. {_without(name, known)} Or give it a fixed "
            "shape in its builder"
        )


def _without(name: str, known: list[str]) -> str:
    others = [one for one in known if one != name]
    return f"Leave it out: features={others!r}." if others else "It is the only one."


def _is_dense(spec: Any) -> bool:
    return isinstance(spec, tf.TensorSpec) and bool(spec.shape.is_fully_defined())


def _is_dense_but_first(spec: tf.TensorSpec) -> bool:
    return bool(spec.shape.rank) and bool(spec.shape[1:].is_fully_defined())


def _put(tree: dict[str, Any], path: _Path, value: Any) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value
