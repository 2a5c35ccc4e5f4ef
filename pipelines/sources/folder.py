"""Files in one folder per class."""

import hashlib
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tftoolkit.pipelines.sources.files import need_local

_LISTED = 300  # characters of classes' names that stand in a fingerprint

# What operating systems and archivers leave in folders, in lower case. Names that begin with a dot are no data either.
_LITTER = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin", "icon\r"})


class ClassFolder(NamedTuple):
    """Files by class, in the order of their names."""

    folder: Path
    classes: tuple[str, ...]
    files: np.ndarray  # bytes[n], relative to the folder, with /
    labels: np.ndarray  # int64[n]
    sizes: np.ndarray  # int64[n]

    @classmethod
    def scan(
        cls, folder: str | os.PathLike[str], extensions: Collection[str], classes: Sequence[str] | None = None
    ) -> "ClassFolder":
        """Finds all files below each class's folder; names that begin with a dot, and what operating systems leave
        (Thumbs.db, desktop.ini, …), do not count.

        Args:
          classes: their names in the order of their numbers, of which some may have no files or no folder here.
            Default: all folders by name, each with files in it.

        Raises:
          FileNotFoundError, NotADirectoryError, PermissionError: the folder, or one in it, cannot be read.
          TypeError, ValueError: no class, a class without files, files outside the classes, another extension, a
            folder that is none of ``classes``, or no such names.
        """
        need_local("folder", folder)
        root = Path(folder).expanduser().absolute()
        if not root.exists():
            raise FileNotFoundError(f"folder: there is no folder {root}")
        if not root.is_dir():
            raise NotADirectoryError(f"folder: {root} is a file; name the folder that holds a folder per class")
        entries = _listed(root)
        loose = next((entry for entry in entries if not entry.is_dir()), None)
        if loose is not None:
            raise ValueError(f"folder: {loose} lies beside the classes; move it into the folder of its class, or away")
        if not entries:
            raise ValueError(f"folder: {root} is empty; it needs a folder per class")
        found = {entry.name: _files(entry, extensions) for entry in entries}
        names = _checked_classes(root, found, classes)
        files: list[bytes] = []
        labels, sizes = [], []
        for name in sorted(found):
            files += [os.fsencode(path.relative_to(root).as_posix()) for path in found[name]]
            labels += [names.index(name)] * len(found[name])
            sizes += [path.stat().st_size for path in found[name]]
        return cls(root, names, np.array(files), np.array(labels, np.int64), np.array(sizes, np.int64))

    def identity(self) -> dict[str, Any]:
        """What identifies the numbering of the classes in a fingerprint."""
        if sum(map(len, self.classes)) <= _LISTED:
            return {"classes": list(self.classes)}
        digest = hashlib.sha256(repr(self.classes).encode("utf-8", "surrogateescape")).hexdigest()[:16]
        return {"classes": {"count": len(self.classes), "names, sha256": digest}}

    def path(self, index: int) -> str:
        return str(self.folder / os.fsdecode(self.files[index]))


def _checked_classes(root: Path, found: dict[str, list[Path]], classes: Sequence[str] | None) -> tuple[str, ...]:
    if classes is None:
        empty = next((name for name in sorted(found) if not found[name]), None)
        if empty is not None:
            raise ValueError(
                f"folder: the class {root / empty} is empty; it needs at least one file, or give all classes' names: "
                "classes=train.classes"
            )
        return tuple(sorted(found))
    if isinstance(classes, str) or not all(isinstance(name, str) for name in classes):
        raise TypeError(f"classes: expected the names of folders, got {classes!r}")
    names = tuple(classes)
    if not names or len(set(names)) < len(names):
        raise ValueError(f"classes: expected at least one name, and each once, got {list(names)}")
    unknown = next((name for name in sorted(found) if name not in names), None)
    if unknown is not None:
        raise ValueError(
            f"classes: the folder {root / unknown} is none of them; add its name to classes, or move it away. There "
            f"are {', '.join(names[:20])}{', …' if len(names) > 20 else ''}"
        )
    if not any(found.values()):
        raise ValueError(f"folder: {root} has no file in any of its classes")
    return names


def _files(folder: Path, extensions: Collection[str]) -> list[Path]:
    found = []
    for entry in _listed(folder):
        if entry.is_dir():
            found += _files(entry, extensions)
        elif entry.suffix.lower() in extensions:
            found.append(entry)
        else:
            known = ", ".join(sorted(extensions))
            raise ValueError(f"folder: {entry} is none of {known}; convert it, or move it away")
    return found


def _listed(folder: Path) -> list[Path]:
    """What is in it, by name, without litter."""
    try:
        entries = sorted(folder.iterdir())
        return [one for one in entries if not one.name.startswith(".") and one.name.lower() not in _LITTER]
    except PermissionError as error:
        raise PermissionError(f"folder: {folder} must not be read by this user; mend its permissions") from error
