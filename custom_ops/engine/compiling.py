"""Runs the compilers: all units of all libraries side by side, with progress on stderr."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from tftoolkit.custom_ops.engine import dependencies, toolchain
from tftoolkit.custom_ops.engine.errors import BuildError


@dataclass(frozen=True)
class Unit:
    """One run of the compiler: its command, less sources and output.

    Several sources are compiled as one, which spares the headers that they share.
    """

    sources: tuple[Path, ...]
    command: tuple[str, ...]


@dataclass(frozen=True)
class Target:
    """A shared library to make: its file, its units, and the command that links them, less objects and output.

    ``path`` tells targets apart, and says in which folder to work.
    """

    name: str
    path: Path
    units: tuple[Unit, ...]
    link: tuple[str, ...]


@dataclass(frozen=True)
class Built:
    """A library that was linked, in a folder that goes with the last one, and what compilers read for it."""

    target: Target
    library: Path
    files: frozenset[Path]


def compile_all(targets: Sequence[Target], *, verbose: bool = False) -> Iterator[Built]:
    """Makes the libraries and yields each one when it is linked.

    Units of all libraries are compiled side by side on all cores, the largest first. Raises BuildError with the
    compiler's first error and its source line; compilers that run by then are waited for, the other units left.
    """
    if not targets:
        return
    jobs = [(target, index, unit) for target in targets for index, unit in enumerate(target.units)]
    jobs.sort(key=lambda job: -sum(_size(source) for source in job[2].sources))
    progress = _Progress(targets)
    _sweep(targets[0].path.parent)
    left = {target.path: len(target.units) for target in targets}
    with (
        tempfile.TemporaryDirectory(prefix=_PREFIX, dir=targets[0].path.parent) as temporary,
        FileLock(Path(temporary) / _ALIVE),
        ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool,  # these threads only wait for compilers
    ):
        folders = {target.path: Path(temporary) / target.path.name for target in targets}
        for folder in folders.values():
            folder.mkdir()

        def compile_unit(target: Target, index: int, unit: Unit) -> None:
            with progress.running(target, unit):
                source = unit.sources[0] if len(unit.sources) == 1 else _together(unit, folders[target.path])
                output = folders[target.path] / f"{index}.o"
                rule = ["-MD", "-MF", str(output.with_suffix(".d"))]
                _run(target.name, [*unit.command, "-c", str(source), "-o", str(output), *rule], verbose)

        pending: dict[Future[None], tuple[Target, int, Unit]] = {pool.submit(compile_unit, *job): job for job in jobs}
        try:
            while pending:
                progress.show()
                for future in wait(pending, timeout=1, return_when=FIRST_COMPLETED).done:
                    target, _, unit = pending.pop(future)
                    future.result()
                    progress.finished(target, unit)
                    left[target.path] -= 1
                    if left[target.path] == 0:
                        yield _link(target, folders[target.path], verbose)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        finally:
            progress.close()


_PREFIX = "build-"
_ALIVE = "alive.lock"
_YOUNG = 60.0  # seconds in which a new folder surely has its lock


def _sweep(cache: Path) -> None:
    """Removes what compilations left that were killed: folders whose lock nobody holds."""
    for folder in cache.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError, Timeout):
            if time.time() - folder.stat().st_mtime > _YOUNG:
                with FileLock(folder / _ALIVE, timeout=0):
                    shutil.rmtree(folder, ignore_errors=True)


def _link(target: Target, folder: Path, verbose: bool) -> Built:
    objects = [str(folder / f"{index}.o") for index in range(len(target.units))]
    linked = folder / "library.so"
    place = target.link.index("-shared")  # libraries come after the objects that need them
    _run(target.name, [*target.link[:place], *objects, *target.link[place:], "-o", str(linked)], verbose)
    read = (path for index in range(len(target.units)) for path in dependencies.read_rule(folder / f"{index}.d"))
    return Built(target, linked, frozenset(path for path in read if folder not in path.parents))


def _together(unit: Unit, folder: Path) -> Path:
    source = folder / "together.cc"
    source.write_text("".join(f'#include "{path}"\n' for path in unit.sources))
    return source


def _size(source: Path) -> int:
    return source.stat().st_size if source.exists() else 0  # the compiler says what is missing


def _run(name: str, command: list[str], verbose: bool) -> None:
    if verbose:
        print(" ".join(command), file=sys.stderr)
    try:
        done = toolchain.run(command)
    except OSError as error:
        raise BuildError(f"{name}: cannot run {command[0]}: {error}") from error
    output = done.stderr + done.stdout
    if verbose and output:
        print(output, file=sys.stderr)
    if done.returncode != 0:
        raise BuildError(f"{name} does not compile:\n{_first_error(output)}\nThe command was: {' '.join(command)}")


def _first_error(output: str) -> str:
    """The compiler's first error with the source excerpt below it, out of what may be hundreds of lines."""
    lines = output.splitlines()
    starts = [i for i, line in enumerate(lines) if re.search(r"\b(fatal )?error\b|fatal\s*:|undefined reference", line)]
    if not starts:
        return output.strip() or "the compiler gave no reason"
    start = starts[0]
    end = start + 1
    while end < len(lines) and end < start + 6 and re.match(r"\s|\d+ *\|", lines[end]):
        end += 1  # GCC draws a bar beside the excerpt, nvcc indents it
    return "\n".join(lines[start:end]).rstrip()


class _Progress:
    """Tells stderr what is compiled: a line that rewrites itself on a terminal, a line per finished unit elsewhere."""

    def __init__(self, targets: Sequence[Target]) -> None:
        self._names = ", ".join(target.name for target in targets)
        self._count = sum(len(target.units) for target in targets)
        self._done = 0
        self._running: list[str] = []
        self._start = time.monotonic()
        self._terminal = sys.stderr.isatty()
        if not self._terminal:
            self._print(f"compiling {self._names} ({self._steps(self._count)}) …")

    @contextlib.contextmanager
    def running(self, target: Target, unit: Unit) -> Iterator[None]:
        """Around the compilation of a unit; any thread may."""
        label = _label(target, unit)
        self._running.append(label)
        try:
            yield
        finally:
            self._running.remove(label)

    def show(self) -> None:
        """Rewrites the line on a terminal."""
        if self._terminal:
            text = f"tftoolkit: compiling, {self._done} of {self._steps(self._count)} done, {self._seconds:.0f} s: "
            text += ", ".join(self._running)
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\033[K{text[:width]}", end="", file=sys.stderr, flush=True)

    def finished(self, target: Target, unit: Unit) -> None:
        """A unit is compiled."""
        self._done += 1
        if not self._terminal:
            self._print(f"{self._done} of {self._count}: {_label(target, unit)}, {self._seconds:.1f} s")

    def close(self) -> None:
        """Ends the line on a terminal."""
        if self._terminal:
            print("\r\033[K", end="", file=sys.stderr)
            verb = "compiled" if self._done == self._count else "failed to compile"
            self._print(f"{verb} {self._names} ({self._steps(self._count)}), {self._seconds:.1f} s")

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._start

    @staticmethod
    def _steps(count: int) -> str:
        return f"{count} step{'s' if count > 1 else ''}"

    @staticmethod
    def _print(text: str) -> None:
        print(f"tftoolkit: {text}", file=sys.stderr, flush=True)


def _label(target: Target, unit: Unit) -> str:
    first = unit.sources[0].name
    return first if len(unit.sources) == 1 else f"{target.name} ({len(unit.sources)} files as one)"
