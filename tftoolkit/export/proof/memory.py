"""Peak memory of a file in its runtime, in a process of its own: ``python -m tftoolkit.export.proof.memory``."""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tftoolkit.export.runtimes.runtime import Arrays


def peak(path: Path, signature: str, inputs: Arrays) -> int | None:
    """Bytes that opening the file and three calls need beyond the runtime itself; None where Linux's /proc is missing.

    For .tflite and .onnx: a process with TensorFlow would cost many seconds per file.
    """
    if not Path("/proc/self/status").is_file():
        return None
    # Text as bytes of one width: pickled objects could run code.
    arrays: dict[str, Any] = {name: np.asarray(a, "S") if a.dtype == object else a for name, a in inputs.items()}
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "inputs.npz", **arrays)
        command = [sys.executable, "-m", "tftoolkit.export.proof.memory", str(path), signature, f"{folder}/inputs.npz"]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"measuring memory failed: {done.stderr.strip()[-500:]}")
    return int(done.stdout)


def _kilobytes(field: str) -> int:
    # Not getrusage: its maximum includes that of the process that started this one.
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{field}:")).split()[1])


def _measure(path: str, signature: str, input_file: str) -> int:
    from tftoolkit.export.runtimes.runtime import open_lite

    if path.endswith(".onnx"):
        import onnxruntime  # noqa: F401
    else:
        import ai_edge_litert.interpreter  # noqa: F401
    with np.load(input_file) as arrays:
        inputs = dict(arrays)
    before = _kilobytes("VmRSS")
    runtime = open_lite(Path(path), 1)
    for _ in range(3):
        runtime.run(signature, inputs)
    return 1024 * max(0, _kilobytes("VmHWM") - before)


if __name__ == "__main__":
    print(_measure(*sys.argv[1:]))
