"""The folder of a run: which settings it was begun with, and which of its parts are finished."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tftoolkit.errors import CodedError


class RunFolderError(CodedError, RuntimeError):
    """The folder cannot be used for this run; nothing in it was changed."""

    error_code = "run-folder"


def claim(directory: Path, settings: Mapping[str, Any], recipe: str | None = None) -> None:
    """Makes the folder and writes ``config.json``, or checks that it was begun with the same settings.

    Where there is nothing else in the folder yet, others may take their place.
    The recipe's name is written, too, for people; only settings must be the same.

    Raises RunFolderError when it was not (naming each difference), or when it cannot be written.
    """
    path = directory / "config.json"
    # What JSON gives back, so that tuples and lists compare equal.
    wanted = json.loads(json.dumps(settings))
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            named = {"recipe": recipe} if recipe else {}
            write_text(path, json.dumps(named | wanted, indent=1) + "\n")
            return
        begun = json.loads(path.read_text())
    except OSError as error:
        raise RunFolderError(
            f"cannot use the run folder {directory}: {error}. Name another with --directory."
        ) from error
    except ValueError as error:
        raise RunFolderError(f"{path} cannot be read ({error}). Name another folder with --directory.") from error
    differences = [
        f"{name}: {begun.get(name, 'nothing')!r} there, {wanted.get(name, 'nothing')!r} now"
        for name in sorted((begun.keys() | wanted.keys()) - {"recipe"})
        if begun.get(name) != wanted.get(name)
    ]
    if differences and {file.name for file in directory.iterdir()} == {path.name}:
        path.unlink()  # nothing was trained: those settings ended the run before
        claim(directory, settings, recipe)
    elif differences:
        raise RunFolderError(
            f"the run folder {directory} was begun with other settings ({'; '.join(differences)}). "
            "Use the same ones, or name another folder with --directory.",
            code="run-folder-settings",
        )


def write_text(path: Path, text: str) -> None:
    """Writes a file in one piece: a kill leaves the old one or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def emptied(folder: Path) -> None:
    """Makes the folder; what a killed run left in it is gone."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
