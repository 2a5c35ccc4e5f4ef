"""``name.features.json``: what ``pipelines.write`` tells about the files ``name-00000-of-00004.tfrecord`` beside it."""

import json
import os
import re
from typing import Any

import tensorflow as tf

from tftoolkit.pipelines.errors import SourceError
from tftoolkit.pipelines.sources.source import Spec

SUFFIX = ".features.json"

_SHARD = re.compile(r"-\d{5}-of-\d{5}\.\w+$")


def manifest_path(file: str) -> str:
    """The manifest that belongs to a shard."""
    return f"{_SHARD.sub('', file)}{SUFFIX}"


def manifest(element_spec: Spec, files: dict[str, int], length: int, origin: dict[str, Any]) -> dict[str, Any]:
    """``files``: name -> number of records; ``origin``: the fingerprint of the source."""
    features = {name: {"dtype": spec.dtype.name, "shape": spec.shape.as_list()} for name, spec in element_spec.items()}
    return {"features": features, "length": length, "files": files, "origin": origin}


def stored_features(file: str) -> Spec:
    """The features of the data set that ``file`` belongs to.

    Raises:
      FileNotFoundError: it was not written by ``pipelines.write``.
      SourceError: the manifest is damaged.
    """
    path = manifest_path(file)
    if not tf.io.gfile.exists(path):
        raise FileNotFoundError(f"features='stored': there is no {path}; give the features of {os.path.basename(file)}")
    try:
        with tf.io.gfile.GFile(path) as stored:
            features = json.load(stored)["features"]
        return {name: tf.TensorSpec(one["shape"], tf.as_dtype(one["dtype"])) for name, one in features.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(
            f"{path} is damaged: {error}; write the data set again, or give its features", code="source-damaged"
        ) from error
