"""Where a file is made before it is proven: a private folder beside the destination, and the final rename."""

import contextlib
import errno
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from tftoolkit.export.report import ExportError
from tftoolkit.trainers.console import phase

# Disk, quota and the process's own limit on the size of files.
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextlib.contextmanager
def workspace(path: str | os.PathLike[str], overwrite: bool) -> Iterator[Path]:
    """A temporary folder on the destination's file system, removed whatever happens.

    Raises FileExistsError where the destination exists and ``overwrite`` is False, ExportError where the disk is full.
    """
    destination = Path(path)
    if not overwrite and (destination.exists() or destination.is_symlink()):
        raise FileExistsError(f"{destination} exists; pass overwrite=True to replace it, or give another path")
    destination.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", suffix=".tmp", dir=destination.parent))
    try:
        yield folder
    except OSError as error:
        full = _full(error)
        if full is None:
            raise
        raise ExportError("write", f"no room for {destination}: {os.strerror(full)}; free some space there") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _full(error: OSError) -> int | None:
    """The number of an error that says there is no room; None for another error."""
    if isinstance(error, shutil.Error):  # copytree's: a list of errors as text, without a number of its own
        return next((number for number in FULL if f"[Errno {number}]" in str(error)), None)
    return error.errno if error.errno in FULL else None


def commit(built: Path, path: str | os.PathLike[str], overwrite: bool, beside: Mapping[Path, Path]) -> None:
    """Moves what was built and proven to its destination; what stood there stays until the last moment.

    ``beside``: from made file to its place, for the proof. It goes first: a proof without its file is noticed, a file
    without its proof would not be.
    """
    destination = Path(path)
    if os.path.lexists(destination) and not overwrite:
        raise FileExistsError(f"{destination} was made by somebody else during the export; pass overwrite=True")
    for made, place in beside.items():
        if place.is_dir():
            shutil.rmtree(place)
        os.replace(made, place)
    if not os.path.lexists(destination):
        os.rename(built, destination)
        return
    if destination.is_dir() == built.is_dir() and not built.is_dir():
        os.replace(built, destination)
        return
    # A folder cannot be replaced in one step: set the old one aside inside the workspace, which removes it.
    aside = built.parent / "replaced"
    os.rename(destination, aside)
    try:
        os.rename(built, destination)
    except OSError:
        os.rename(aside, destination)
        raise


def stage(name: str, path: str | os.PathLike[str]) -> AbstractContextManager[None]:
    """Tells that the stage runs, and how long it took."""
    return phase(f"export {Path(path).name}: {name}")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Sends the log noise of TensorFlow's converter (C++: file descriptor 2) nowhere; errors come as exceptions."""
    sys.stderr.flush()
    saved = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.stderr.flush()
        os.dup2(saved, 2)
        os.close(saved)
