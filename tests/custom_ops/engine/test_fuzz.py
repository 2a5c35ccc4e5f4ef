"""Thousands of random calls of the built-in ops, right and wrong; see fuzz.py. A few processes, each for many ops."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tftoolkit.custom_ops.engine import library

FUZZ = Path(__file__).parent / "fuzz.py"
SEED = int(os.environ.get("FUZZ_SEED", "0"))
CASES, REPEATED = 80, 200  # of each op; many more in make test-all
LEAKED_BYTES = 8 << 20  # caches move by some hundred kB, and attention's threads keep a MB each
ENVIRONMENT = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
PROCESSES = 4  # each takes longer to start than a folder's 200 calls


def check(names: Sequence[str], folder: Path, cases: int, repeated: int, seed: int = SEED) -> None:
    progress = folder / "progress"
    command = [sys.executable, str(FUZZ), *names, f"--seed={seed}"]
    seconds = 60 + len(names) * (60 + cases)
    try:
        done = subprocess.run(
            [*command, f"--cases={cases}", f"--leaks={repeated}", f"--progress={progress}"],
            capture_output=True, text=True, errors="replace", timeout=seconds, env=ENVIRONMENT, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        pytest.fail(f"hangs; again: {sys.executable} {FUZZ} --seed={seed} {progress.read_text().strip()}")
    if done.returncode < 0:
        again = f"{sys.executable} {FUZZ} --seed={seed} {progress.read_text().strip()}"
        pytest.fail(f"died of signal {-done.returncode}; again: {again}")
    assert done.returncode == 0, done.stderr[-3000:]
    leaked = dict(line.split() for line in done.stdout.splitlines())
    assert list(leaked) == list(names)
    for name, size in leaked.items():
        assert int(size) < LEAKED_BYTES, f"{name} leaks {size} bytes in {repeated} calls"


def names_of(folder: str) -> list[str]:
    return list(library.load_builtin(folder).schemas)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(PROCESSES))
def test_right_answer_or_clear_error_and_nothing_else(first: int, tmp_path: Path) -> None:
    names = ["ReadRecords", *(name for folder in library.builtin_folders() for name in names_of(folder))]
    check(names[first::PROCESSES], tmp_path, CASES, REPEATED)


@pytest.mark.exhaustive
@pytest.mark.parametrize("folder", library.builtin_folders())
def test_many_more_calls(folder: str, tmp_path: Path, random_seed: int) -> None:
    check(names_of(folder), tmp_path, 10_000, 2000, random_seed)


@pytest.mark.slow
def test_calls_from_many_threads_give_what_they_give_alone() -> None:
    subprocess.run([sys.executable, str(FUZZ), "threads", f"--seed={SEED}"], env=ENVIRONMENT, timeout=300, check=True)
