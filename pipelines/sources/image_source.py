"""A source over a folder of pictures per class."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tftoolkit.pipelines.errors import SourceError
from tftoolkit.pipelines.sources.files import identity, read_part
from tftoolkit.pipelines.sources.folder import ClassFolder
from tftoolkit.pipelines.sources.source import Example, Spec, fetch_in_python

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp"})


class ImageSource:
    """See ``images``.

    Attributes:
      classes: the classes' names; the label is the place in it.
    """

    def __init__(self, folder: ClassFolder) -> None:
        self._folder = folder
        self.classes = folder.classes

    @property
    def element_spec(self) -> Spec:
        text, number = tf.TensorSpec([], tf.string), tf.TensorSpec([], tf.int64)
        return {"image": text, "label": number, "path": text}

    def __len__(self) -> int:
        return len(self._folder.files)

    def fetch(self, indices: tf.Tensor) -> Example:
        return fetch_in_python(self._read, indices, self.element_spec)

    def fingerprint(self) -> dict[str, Any]:
        names = [os.fsdecode(name) for name in self._folder.files]
        sizes = dict(zip(names, self._folder.sizes.tolist(), strict=True))
        return {"kind": "images", **self._folder.identity(), **identity(sizes), "length": len(self)}

    def describe(self, index: int) -> str:
        return self._folder.path(index)

    def _read(self, rows: np.ndarray) -> list[Any]:
        contents = [self._content(int(row)) for row in rows]
        return [contents, self._folder.labels[rows], self._folder.files[rows].tolist()]

    def _content(self, index: int) -> bytes:
        path, size = self._folder.path(index), int(self._folder.sizes[index])
        if not size:
            raise SourceError(f"{path} is empty; bring the picture back, or delete the file", code="source-damaged")
        return read_part(path, 0, size)


def images(folder: str | os.PathLike[str], *, classes: Sequence[str] | None = None) -> ImageSource:
    """A source over pictures in ``folder/<class>/…``, as {"image": string, "label": int64, "path": string}.

    The image is the encoded file (``pipelines.image.decode`` makes pixels of it), the label the number of its class in
    the order of their names, the path relative to ``folder``. Examples are sorted by path. Names that begin with a dot,
    and what operating systems leave in folders (Thumbs.db, desktop.ini, …), do not count.

    Args:
      folder: holds a folder per class with .jpg, .jpeg, .png, .gif, .bmp or .webp files, also in folders below.
      classes: the classes' names in the order of their numbers: for the other splits of a data set, where a class may
        be missing, ``classes=train.classes``. Default: the names of all folders, sorted.

    Raises:
      FileNotFoundError, NotADirectoryError, PermissionError: a folder cannot be read.
      TypeError, ValueError: no class, a class without pictures (unless ``classes`` has it), a folder that is none of
        ``classes``, or a file that is no picture; names it.
      SourceError: while iterating: a picture is gone, empty or cannot be read.
    """
    return ImageSource(ClassFolder.scan(folder, EXTENSIONS, classes))
