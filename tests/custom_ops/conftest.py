"""What the tests of several ops share."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def same_for_any_threads(tmp_path: Path) -> Callable[[str], None]:
    """Runs a script with 1 and with 5 as its first argument; it saves arrays to the file that is its second."""

    def check(script: str) -> None:
        for threads in (1, 5):
            subprocess.run([sys.executable, "-c", script, str(threads), tmp_path / f"{threads}.npz"], check=True)
        one, five = (np.load(tmp_path / f"{threads}.npz") for threads in (1, 5))
        for key in one:
            np.testing.assert_array_equal(one[key], five[key])

    return check
