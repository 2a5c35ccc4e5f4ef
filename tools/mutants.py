"""Do the tests notice a mistake? Makes random one-line mutants of Python code and runs the tests that mirror each file.

    python tools/mutants.py pipelines trainers --mutants 40 --seed 1          fast tests
    python tools/mutants.py pipelines trainers --mutants 40 --seed 1 --slow   survivors get the slow tests too
    python tools/mutants.py pipelines --mutants 10 --list                     prints the mutants only

Each folder gets an equal number of mutants; the same seed gives the same mutants of the same code. What is mutated,
and why no library does it: mutations.py. C++ and CUDA are out of scope: opcheck, the fuzzers and tools/sanitize test
them.

A mutant lives in a private copy of the tree, with a temporary folder and a build cache of its own. The tests that
mirror a/b/c.py are tests/a/b/test_c.py, then the rest of tests/a/b, then the rest of tests/a; within a folder, files
that speak of more of the module's names come first. The first failure ends the run. It counts as a catch only where the
same test file passes without the mutant; otherwise it is an error, and the exit status is 1. Tests that say nothing for
--timeout seconds are a catch, too, counted apart. Survivors do not change the exit status: this is a measurement.
"""

import argparse
import ast
import compileall
import contextlib
import dataclasses
import os
import py_compile
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Literal

from mutations import Mutant, sample

ROOT = Path(__file__).resolve().parents[1]
NOT_COPIED = (
    ".git", ".venv", "__pycache__", ".*_cache", ".hypothesis", "*.egg-info", "build", "dist", "runs", "bazel-*",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Run:
    """What pytest said: passed (or nothing to run), failed, or hung; ``test`` is the test it ended in."""

    end: Literal["passed", "failed", "hung"]
    test: str
    output: str


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What became of a mutant; ``slow`` where the slow tests had the last word."""

    end: Literal["caught", "timeout", "survived", "error"]
    slow: bool = False
    test: str = ""


def mirror(root: Path, path: Path) -> list[Path]:
    """The test files of a source file, nearest first. Raises SystemExit where there are none."""
    stem = path.parent.name if path.stem == "__init__" else path.stem
    body = ast.parse((root / path).read_bytes()).body
    defined = [node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    words = {stem, *(name for name in defined if not name.startswith("_"))}

    def distance(file: Path) -> tuple[bool, int, Path]:
        return file.name != f"test_{stem}.py", -len(words & set(re.findall(r"\w+", file.read_text()))), file

    found: dict[Path, None] = {}
    for folder in [*path.parents][:-1]:
        found |= dict.fromkeys(sorted((root / "tests" / folder).rglob("test_*.py"), key=distance))
    if not found:
        raise SystemExit(f"no tests mirror {path}: tests/{path.parts[0]} has no test_*.py")
    return [file.relative_to(root) for file in found]


class Laboratory:
    """Runs tests on private copies of the tree below ``root``, made in ``folder``."""

    def __init__(self, root: Path, folder: Path, timeout: float) -> None:
        self.folder, self.timeout = folder, timeout
        self.stop = threading.Event()
        self._pristine = folder / "pristine"
        self._baselines: dict[tuple[str, bool], Run] = {}
        self._lock = threading.Lock()
        shutil.copytree(root, self._pristine / "tree", symlinks=True, ignore=shutil.ignore_patterns(*NOT_COPIED))
        # Bytecode that is valid as long as the source has the same content: times say too little about a mutant.
        checked = py_compile.PycInvalidationMode.CHECKED_HASH
        compileall.compile_dir(self._pristine / "tree", quiet=2, invalidation_mode=checked)
        # Built ops spare minutes; a mutant of the builder must not write to the user's.
        cache = os.environ.get("TFTOOLKIT_CACHE_DIR") or Path.home() / ".cache/tftoolkit"
        if Path(cache).is_dir():
            shutil.copytree(cache, self._pristine / "cache")

    def judge(self, mutant: Mutant, files: Sequence[Path], slow: bool) -> Verdict:
        """Runs the fast tests of these files on a mutant and, with ``slow``, the slow ones where it survives."""
        for phase in (False, True)[: 1 + slow]:
            run = self.run(mutant, files, phase)
            if run.end == "passed":
                continue
            file = run.test.split("::")[0]
            baseline = self._baseline(file, phase)
            if baseline.end != "passed":
                return Verdict("error", phase, f"{file} fails without the mutant, too:\n{baseline.output[-2000:]}")
            return Verdict("caught" if run.end == "failed" else "timeout", phase, run.test)
        return Verdict("survived", slow)

    def run(self, mutant: Mutant | None, files: Sequence[Path], slow: bool) -> Run:
        """Runs the fast or the slow tests of these files, with or without a mutant, until one fails."""
        with tempfile.TemporaryDirectory(dir=self.folder, ignore_cleanup_errors=True) as place:
            copy = Path(place, "copy")
            shutil.copytree(self._pristine, copy, symlinks=True)
            tree, temporary, log = copy / "tree", Path(place, "tmp"), Path(place, "log")
            temporary.mkdir()
            for path, mode in {self.folder: 0o755, Path(place): 0o755, temporary: 0o1777}.items():
                path.chmod(mode)  # some tests step down to another user
            if mutant:
                (tree / mutant.path).write_bytes(mutant.apply((tree / mutant.path).read_bytes()))
            environment = {
                "PYTHONPATH": str(tree), "PYTHONUNBUFFERED": "1", "TMPDIR": str(temporary),
                "TFTOOLKIT_CACHE_DIR": str(copy / "cache"),
            }  # fmt: skip
            command = [sys.executable, "-m", "pytest", "-x", "-v", "--tb=short", "-p", "no:cacheprovider"]
            command += ["--slow", "-m", "slow"] if slow else []
            with log.open("wb") as output:
                process = subprocess.Popen(
                    [*command, *map(str, files)], cwd=tree, env=os.environ | environment, stdout=output,
                    stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
                )  # fmt: skip
                status = self._wait(process, log)
            text = log.read_text(errors="replace")
        if status in (0, 5):  # 5: no tests, e.g. no slow ones
            return Run("passed", "", text)
        # The short summary names the test that failed; a crash or a hanging test leaves the line that announced it.
        names = re.findall(r"^(?:FAILED|ERROR) (\S+\.py\S*)", text, re.M) + re.findall(r"^(\S+\.py)::", text, re.M)[-1:]
        return Run("hung" if status is None else "failed", [*names, str(files[0])][0], text)

    def _wait(self, process: subprocess.Popen[bytes], log: Path) -> int | None:
        """The exit status, or None after too long a silence; no process of the group outlives this."""
        size, heard = 0, time.monotonic()
        try:
            while process.poll() is None and time.monotonic() - heard < self.timeout and not self.stop.is_set():
                time.sleep(0.1)
                if log.stat().st_size != size:
                    size, heard = log.stat().st_size, time.monotonic()
            return process.returncode
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _baseline(self, file: str, slow: bool) -> Run:
        with self._lock:
            if (file, slow) not in self._baselines:
                self._baselines[file, slow] = self.run(None, [Path(file)], slow)
            return self._baselines[file, slow]


def table(folders: Sequence[Path], verdicts: dict[Mutant, tuple[Path, Verdict]]) -> str:
    """Counts and shares of each folder and of all."""
    lines = ["folder                    mutants  fast  slow  timeouts  survivors  errors  share fast  share"]
    for folder in [*folders, None] if len(folders) > 1 else folders:
        mine = [verdict for of, verdict in verdicts.values() if folder in (of, None)]
        noticed = [v for v in mine if v.end in ("caught", "timeout")]
        fast, timeouts = sum(not v.slow for v in noticed), sum(v.end == "timeout" for v in noticed)
        survivors, errors = (sum(v.end == end for v in mine) for end in ("survived", "error"))
        valid = max(len(mine) - errors, 1)
        lines.append(
            f"{folder or 'all'!s:24}  {len(mine):7}  {fast:4}  {len(noticed) - fast:4}  {timeouts:8}  {survivors:9}  "
            f"{errors:6}  {fast / valid:10.0%}  {len(noticed) / valid:5.0%}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Runs the command line given above on the tree below ``root``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", metavar="FOLDER", type=Path, help="a folder of code, or one file")
    parser.add_argument("--mutants", type=int, default=40, help="how many, over all folders (default: 40)")
    parser.add_argument("--seed", type=int, default=1, help="another seed gives other mutants (default: 1)")
    parser.add_argument("--slow", action="store_true", help="run the slow tests on survivors")
    parser.add_argument("--jobs", type=int, default=2, help="mutants tested side by side (default: 2)")
    parser.add_argument("--timeout", type=float, default=300, help="seconds of silence that are a catch (default: 300)")
    parser.add_argument("--list", action="store_true", help="print the mutants, run nothing")
    options = parser.parse_args(arguments)
    paths = [(root / folder).resolve() for folder in options.folders]
    for path in paths:
        if not path.exists() or not path.is_relative_to(root):
            parser.error(f"there is no {path} below {root}")
    folders = [path.relative_to(root) for path in paths]
    share, rest = divmod(options.mutants, len(folders))
    chosen = {m: f for i, f in enumerate(folders) for m in sample(root, f, share + (i < rest), options.seed)}
    texts = {mutant: mutant.diff((root / mutant.path).read_bytes()) for mutant in chosen}
    print(f"{len(chosen)} mutants, seed {options.seed}")
    if options.list:
        print(*texts.values(), sep="\n")
        return 0

    files = {mutant: mirror(root, mutant.path) for mutant in chosen}
    verdicts: dict[Mutant, tuple[Path, Verdict]] = {}
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutants-") as temporary, ThreadPoolExecutor(options.jobs) as pool:
        laboratory = Laboratory(root, Path(temporary), options.timeout)
        try:
            runs = {pool.submit(laboratory.judge, m, files[m], options.slow): m for m in chosen}
            for done, run in enumerate(as_completed(runs), 1):
                mutant, verdict = runs[run], run.result()
                verdicts[mutant] = chosen[mutant], verdict
                minutes = (time.monotonic() - began) / 60
                left = minutes / done * (len(chosen) - done)
                place = texts[mutant].partition("\n")[0]
                by = f" by {verdict.test}" if verdict.test else ""
                print(
                    f"{done}/{len(chosen)}  {minutes:.1f} min, about {left:.0f} left  {place} {verdict.end}{by}",
                    flush=True,
                )
        except KeyboardInterrupt:
            print(f"\nstopped: {len(verdicts)} of {len(chosen)} are judged", flush=True)
        finally:
            laboratory.stop.set()
            pool.shutdown(cancel_futures=True)
    print("\n" + table(folders, verdicts))
    survivors = sorted(mutant for mutant, (_, verdict) in verdicts.items() if verdict.end == "survived")
    print("\nsurvivors:", *(texts[mutant] for mutant in survivors), sep="\n")
    errors = any(verdict.end == "error" for _, verdict in verdicts.values())
    return int(errors or len(verdicts) < len(chosen))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # leave neither processes nor copies behind
    sys.exit(main())
