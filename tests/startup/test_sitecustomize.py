"""The tests' own processes leave out of TensorFlow's import what the command line leaves out."""

import os
import subprocess
import sys
from pathlib import Path

from tftoolkit import startup

CHILD = """
import sys, sitecustomize
import tensorflow
print(*sitecustomize._OPTIONAL, *(name for name in sitecustomize._OPTIONAL if name in sys.modules))
import jax, sklearn
"""


def test_they_are_the_same_and_can_be_imported_afterwards():
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run([sys.executable, "-c", CHILD], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert tuple(done.stdout.split()) == startup.OPTIONAL
