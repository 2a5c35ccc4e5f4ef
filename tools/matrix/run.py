"""Runs the same op library files in several TensorFlow and JAX versions and writes docs/compatibility.md.

    python tools/matrix/run.py                 all environments, then the table
    python tools/matrix/run.py --only 2.20     one row, printed only; what CI does

The libraries are compiled once, against the FFI headers of the oldest TensorFlow wheel that has them. Each row gets an
environment of its own, made by pip under --cache and deleted when its result is there. Results are kept as long as
the sources do not change, so an interrupted run goes on where it stopped. A row that fails keeps its environment.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
GRAMMAR = ROOT / "tests/custom_ops/engine/grammar.cc"
TABLE = ROOT / "docs/compatibility.md"
HEADERS_OF = "tensorflow==2.20.0"  # FFI 0.1; the first wheel with ffi.h
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tftoolkit-matrix"
TENSORFLOW_COLUMNS = ("eager", "tf.function", "jit_compile", "second order", "vectorized_map", "SavedModel")
JAX_COLUMNS = ("JAX", "jax.jit")


@dataclass(frozen=True)
class Row:
    """One environment: its name, its Python version and what pip installs there beside filelock."""

    name: str
    python: str
    packages: tuple[str, ...]

    @property
    def hosts(self) -> list[str]:
        return [host for host in ("tensorflow", "jax") if any(package.startswith(host) for package in self.packages)]


ROWS = (
    Row("2.18", "3.11", ("tensorflow~=2.18.0",)),
    Row("2.19", "3.11", ("tensorflow~=2.19.0",)),
    Row("2.20", "3.11", ("tensorflow~=2.20.0",)),
    Row("2.21", "3.11", ("tensorflow~=2.21.0",)),
    Row("jax", "3.11", ("jax",)),
    Row("2.21-python3.12", "3.12", ("tensorflow~=2.21.0", "jax")),
    Row("2.21-python3.13", "3.13", ("tensorflow~=2.21.0", "jax")),
)


class UnavailableError(Exception):
    """A row cannot be run on this machine, or nowhere; the message says why."""


def interpreter(version: str, given: dict[str, str]) -> str:
    """A Python of this version: the one given, this one, or what is found on PATH or under pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    places = [str(path) for path in sorted(pyenv.glob(f"versions/{version}.*/bin/python"))]
    for path in [given.get(version), sys.executable, shutil.which(f"python{version}"), *places]:
        if path and _output([path, "-c", "import sys, venv; print('%d.%d' % sys.version_info[:2])"]).strip() == version:
            return path
    raise UnavailableError(f"no Python {version} on the machine that made this table")


def _output(command: Sequence[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except OSError:
        return ""


def make_environment(row: Row, folder: Path, given: dict[str, str]) -> Path:
    """The interpreter of the row's environment, which is made if it is not there."""
    python = folder / "bin/python"
    done = folder / "complete"
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([interpreter(row.python, given), "-m", "venv", folder], check=True)
        pip(python, "install", *row.packages, "filelock")
        done.touch()
    return python


def pip(python: Path | str, *arguments: str) -> None:
    """Runs pip. Raises UnavailableError when there is no wheel."""
    command = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    installed = subprocess.run(command, capture_output=True, text=True, check=False)
    if installed.returncode:
        reason = [line for line in installed.stderr.splitlines() if line.startswith("ERROR:")]
        raise UnavailableError(
            f"pip {' '.join(arguments[:2])}: {reason[-1].removeprefix('ERROR: ') if reason else 'failed'}"
        )


@functools.cache
def ffi_headers(cache: Path) -> Path:
    """A folder with the oldest xla/ffi/api/ffi.h, out of TensorFlow's wheel."""
    folder = cache / f"headers-{HEADERS_OF}"
    if not folder.exists():
        download, partial = cache / "download", cache / "headers-partial"
        for stale in (download, partial):
            shutil.rmtree(stale, ignore_errors=True)
        target = ("--only-binary=:all:", "--python-version=3.11", "--implementation=cp")
        pip(sys.executable, "download", HEADERS_OF, "--no-deps", *target, f"--dest={download}")
        with zipfile.ZipFile(next(download.glob("*.whl"))) as wheel:
            for name in wheel.namelist():
                if name.startswith("tensorflow/include/xla/ffi/api/") and name.endswith(".h"):
                    header = partial / name.removeprefix("tensorflow/include/")
                    header.parent.mkdir(parents=True, exist_ok=True)
                    header.write_bytes(wheel.read(name))
        partial.rename(folder)
        shutil.rmtree(download)
    return folder


def call(python: Path, arguments: Sequence[str], cache: Path) -> subprocess.CompletedProcess[str]:
    """Runs the checkout's package in an environment, on the CPU; compiler progress and logs go to this stderr."""
    settings = {
        "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "TFTOOLKIT_CACHE_DIR": str(cache / "build"),
        "TFTOOLKIT_FFI_INCLUDE": str(ffi_headers(cache)), "CUDA_VISIBLE_DEVICES": "-1", "JAX_PLATFORMS": "cpu",
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }  # fmt: skip
    command = [str(python), *arguments]
    return subprocess.run(command, env={**os.environ, **settings}, stdout=subprocess.PIPE, text=True, check=False)


COMPILE = """
import hashlib, json, sys
from tftoolkit.custom_ops.engine import builder, library
recipes = {"TfToolkit": library.builtin_recipe("rms_norm"), "Grammar": builder.library_recipe("Grammar", sys.argv[1:])}
paths = {name: builder.build(recipe) for name, recipe in recipes.items()}
print(json.dumps({name: [str(p), hashlib.sha256(p.read_bytes()).hexdigest()] for name, p in paths.items()}))
"""


def run(row: Row, options: argparse.Namespace) -> dict[str, Any]:
    """The row's versions and the outcome of each check."""
    folder = options.cache / row.name
    result: dict[str, Any] = {"versions": {"python": row.python}, "results": {}, "seconds": {}}
    start = time.monotonic()
    try:
        python = make_environment(row, folder, options.python)
        result["seconds"]["install"] = time.monotonic() - start
    except UnavailableError as reason:
        shutil.rmtree(folder, ignore_errors=True)
        return {**result, "missing": str(reason)}
    compiled = call(python, ["-c", COMPILE, str(GRAMMAR)], options.cache)
    if compiled.returncode:
        raise SystemExit(f"{row.name}: the op libraries do not compile, see above")
    result["libraries"] = json.loads(compiled.stdout)
    for host in row.hosts:
        start = time.monotonic()
        done = call(python, [str(Path(__file__).with_name("check.py")), host, compiled.stdout], options.cache)
        if done.returncode:
            result["results"][host] = f"failed: the process ended with {done.returncode}, see above"
        else:
            found = json.loads(done.stdout.splitlines()[-1])
            result["versions"] |= found["versions"]
            result["results"] |= found["results"]
        result["seconds"][host] = time.monotonic() - start
    if not options.keep and not failures(result):
        shutil.rmtree(folder)
    return result


def failures(result: dict[str, Any]) -> list[str]:
    return [f"{name}: {text}" for name, text in result["results"].items() if text.startswith("failed")]


def sources() -> str:
    """A hash over all that the results depend on, less what pip resolves."""
    folders = ("custom_ops/engine/host", "custom_ops/engine/include", "custom_ops/rms_norm", "tools/matrix")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    files += (ROOT / "custom_ops").glob("*.py")
    digest = hashlib.sha256()
    for path in sorted([*files, GRAMMAR]):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()


def table(results: dict[str, dict[str, Any]]) -> str:
    """The rows as Markdown, and below them why cells are empty."""
    notes: dict[str, int] = {}

    def cell(result: dict[str, Any], row: Row, host: str, column: str) -> str:
        text = result["results"].get(column, "")
        if text == "ok":
            return "yes"
        if "missing" in result:
            text = f"missing: {result['missing']}"
        elif host not in row.hosts:
            return ""
        reason = (text or result["results"][host]).removeprefix("missing: ")
        return f"{'**no**' if reason.startswith('failed') else 'no'} [{notes.setdefault(reason, len(notes) + 1)}]"

    head = ["Python", "TensorFlow", "JAX", "NumPy", *TENSORFLOW_COLUMNS, *JAX_COLUMNS]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in ROWS:
        if row.name not in results:
            continue
        result = results[row.name]
        versions = [result["versions"].get(name, "–") for name in ("python", "tensorflow", "jax", "numpy")]
        cells = [cell(result, row, "tensorflow", column) for column in TENSORFLOW_COLUMNS]
        cells += [cell(result, row, "jax", column) for column in JAX_COLUMNS]
        lines.append(f"| {' | '.join([*versions, *(text or '–' for text in cells)])} |")
    lines += ["", *(f"[{number}] {reason}.  " for reason, number in notes.items())]
    return "\n".join(lines).rstrip() + "\n"


def document(results: dict[str, dict[str, Any]]) -> str:
    """docs/compatibility.md."""
    libraries = next(result["libraries"] for result in results.values() if "libraries" in result)
    hashes = "\n".join(f"* `{Path(path).name}`: SHA-256 `{digest}`" for path, digest in libraries.values())
    template = Path(__file__).with_name("compatibility.md.in").read_text()
    compiler = _output([os.environ.get("CXX", "g++"), "--version"]).partition("\n")[0]
    return template.format(
        table=table(results), hashes=hashes, date=datetime.date.today().isoformat(), headers=HEADERS_OF,
        machine=f"{platform.system()} {platform.machine()}, {compiler}",
    )  # fmt: skip


def main() -> int:
    names = [row.name for row in ROWS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=names, help="this row only (may be repeated); no table")
    parser.add_argument("--python", action="append", default=[], metavar="3.12=PATH", help="where a Python is")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where environments and results are kept")
    parser.add_argument("--keep", action="store_true", help="do not delete the environments, 1 to 3 GB each")
    options = parser.parse_args()
    if any("=" not in item for item in options.python):
        parser.error(f"--python needs VERSION=PATH, got {' '.join(options.python)}")
    options.python = dict(item.split("=", 1) for item in options.python)
    options.cache = options.cache.resolve()
    options.cache.mkdir(parents=True, exist_ok=True, mode=0o700)

    state = sources()
    results: dict[str, dict[str, Any]] = {}
    for row in [row for row in ROWS if row.name in (options.only or names)]:
        kept = options.cache / f"{row.name}.json"
        known = json.loads(kept.read_text()) if kept.exists() else {}
        if known.get("sources") != state:
            print(f"{row.name}: Python {row.python}, {', '.join(row.packages)}", flush=True)
            known = {"sources": state, **run(row, options)}
            if not failures(known):
                kept.write_text(json.dumps(known, indent=1))
        results[row.name] = known
        seconds = ", ".join(f"{name} {value:.0f} s" for name, value in known["seconds"].items())
        print(f"{row.name}: {'; '.join(failures(known)) or known.get('missing', 'passed')} ({seconds})", flush=True)
    print("\n" + table(results))
    digests = {json.dumps(result["libraries"]) for result in results.values() if "libraries" in result}
    if len(digests) > 1:
        raise SystemExit(f"the rows did not use the same library files: {' '.join(sorted(digests))}")
    if any(map(failures, results.values())):
        return 1
    if not options.only:
        TABLE.write_text(document(results))
        print(f"written: {TABLE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
