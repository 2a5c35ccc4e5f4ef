"""Files in one folder per class."""

import os
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tftoolkit.pipelines.sources.files import need_local


class ClassFolder(NamedTuple):
    """Files by class, in the order of their names."""

    folder: Path
    classes: tuple[str, ...]
    files: np.ndarray  # bytes[n], relative to the folder, with /
    labels: np.ndarray  # int64[n]
    sizes: np.ndarray  # int64[n]

    @classmethod
    def scan(cls, folder: str | os.PathLike[str], extensions: Collection[str]) -> "ClassFolder":
        """Finds all files below each class's folder; names that begin with a dot do not count.

        Raises:
          FileNotFoundError, NotADirectoryError, PermissionError: the folder, or one in it, cannot be read.
          ValueError: no class, a class without files, files outside the classes, or another extension.
        """
        need_local("folder", folder)
        root = Path(folder).expanduser().absolute()
        if not root.exists():
            raise FileNotFoundError(f"folder: there is no folder {root}")
        if not root.is_dir():
            raise NotADirectoryError(f"folder: {root} is a file; name the folder that holds a folder per class")
        entries = sorted(entry for entry in _listed(root) if not entry.name.startswith("."))
        loose = next((entry for entry in entries if not entry.is_dir()), None)
        if loose is not None:
            raise ValueError(f"folder: {loose} lies beside the classes; move it into the folder of its class, or away")
        if not entries:
            raise ValueError(f"folder: {root} is empty; it needs a folder per class")
        files: list[bytes] = []
        labels, sizes = [], []
        for label, entry in enumerate(entries):
            found = _files(entry, extensions)
            if not found:
                raise ValueError(f"folder: the class {entry} is empty; it needs at least one file")
            files += [os.fsencode(path.relative_to(root).as_posix()) for path in found]
            labels += [label] * len(found)
            sizes += [path.stat().st_size for path in found]
        names = tuple(entry.name for entry in entries)
        return cls(root, names, np.array(files), np.array(labels, np.int64), np.array(sizes, np.int64))

    def path(self, index: int) -> str:
        return str(self.folder / os.fsdecode(self.files[index]))


def _files(folder: Path, extensions: Collection[str]) -> list[Path]:
    found = []
    for entry in sorted(_listed(folder)):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            found += _files(entry, extensions)
        elif entry.suffix.lower() in extensions:
            found.append(entry)
        else:
            known = ", ".join(sorted(extensions))
            raise ValueError(f"folder: {entry} is none of {known}; convert it, or move it away")
    return found


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except PermissionError as error:
        raise PermissionError(f"folder: {folder} must not be read by this user; mend its permissions") from error
