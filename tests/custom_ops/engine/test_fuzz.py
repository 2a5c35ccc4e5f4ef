"""More than 10,000 random calls of the built-in ops, right and wrong; see fuzz.py. Each op in a process of its own."""

import concurrent.futures
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tftoolkit.custom_ops.engine import library

FUZZ = Path(__file__).parent / "fuzz.py"
SEED = int(os.environ.get("FUZZ_SEED", "0"))
CASES = 400  # of each op; many more in make test-all
LEAKED_BYTES = 8 << 20  # over 2,000 calls; caches move by some hundred kB, and attention's threads keep a MB each
ENVIRONMENT = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}


def failure(subject: str, folder: Path, cases: int = CASES, seed: int = SEED) -> str | None:
    """Why the op failed, or None."""
    progress = folder / subject
    command = [sys.executable, str(FUZZ), subject, f"--seed={seed}"]
    try:
        done = subprocess.run(
            [*command, f"--cases={cases}", "--leaks", f"--progress={progress}"],
            capture_output=True, text=True, errors="replace", timeout=60 + cases, env=ENVIRONMENT, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"hangs; again: {' '.join(command)} --case={progress.read_text().strip()}"
    if done.returncode < 0:
        return f"died of signal {-done.returncode}; again: {' '.join(command)} --case={progress.read_text().strip()}"
    if done.returncode:
        return done.stderr[-3000:]
    leaked = int(done.stdout.split()[-1])
    return None if leaked < LEAKED_BYTES else f"{subject} leaks {leaked} bytes in 2,000 calls"


@pytest.mark.slow
@pytest.mark.parametrize("folder", [*library.builtin_folders(), "record_reader"])
def test_right_answer_or_clear_error_and_nothing_else(folder: str, tmp_path: Path) -> None:
    names = ["ReadRecords"] if folder == "record_reader" else list(library.load_builtin(folder).schemas)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        failures = [text for text in pool.map(lambda name: failure(name, tmp_path), names) if text]
    assert not failures, "\n".join(failures)


@pytest.mark.exhaustive
@pytest.mark.parametrize("folder", library.builtin_folders())
def test_many_more_calls(folder: str, tmp_path: Path, random_seed: int) -> None:
    for name in library.load_builtin(folder).schemas:
        assert not failure(name, tmp_path, 3000, random_seed)


@pytest.mark.slow
def test_calls_from_many_threads_give_what_they_give_alone() -> None:
    subprocess.run([sys.executable, str(FUZZ), "threads", f"--seed={SEED}"], env=ENVIRONMENT, timeout=300, check=True)
