"""Runs tests of the TensorFlow host within TensorFlow, with host and ops under AddressSanitizer.

    python tools/sanitize/host.py [TEST ...]

What ``run.py`` cannot reach: kernels that are TensorFlow's own (variables, records, tokens, memory that is kept), and
what the host does with TensorFlow's tensors, whose memory the sanitizer knows too, since it stands in for malloc. Not
with UBSan: the constant expressions of TensorFlow's headers do not compile under it. Takes minutes, half of them
compiling.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENGINE = "tests/custom_ops/engine"
TESTS = [
    *(f"{ENGINE}/test_{name}.py" for name in ("variable_memory", "kept_memory", "record_reader", "token_reader")),
    f"{ENGINE}/test_tf_eager.py",
    "tests/trainers/update/test_fused.py",
    "tests/trainers/update/test_lazy_adam.py",
]


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="tftoolkit-sanitize-") as folder:
        environment = os.environ | {
            "CXX": "g++ -fsanitize=address -fno-omit-frame-pointer -g1",
            "TFTOOLKIT_CACHE_DIR": f"{folder}/cache",
            # Python and TensorFlow keep much until their end. A report ends the process, and pytest loses what it said.
            "ASAN_OPTIONS": f"detect_leaks=0:log_path={folder}/report",
            # Before Python's own libraries; libstdc++ with it, or the sanitizer would not find what throws exceptions.
            "LD_PRELOAD": f"{_library('libasan.so')} {_library('libstdc++.so.6')}",
        }
        command = [sys.executable, "-m", "pytest", "-q", "--all", "-p", "no:xdist", *(sys.argv[1:] or TESTS)]
        code = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
        for report in sorted(Path(folder).glob("report*")):
            print(report.read_text("utf-8", "replace"), file=sys.stderr)
        return code


def _library(name: str) -> str:
    found = subprocess.run(["g++", f"-print-file-name={name}"], check=True, text=True, stdout=subprocess.PIPE)
    return found.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
