"""Runs the README's code as a reader would: in an empty folder, with what is installed for this interpreter.

    python tour.py README.md        # in an empty folder; needs nothing but tftoolkit[export] and the README

C++ goes to the file that its first line names; the Python blocks are one program. Fails where the README's files are
not there afterwards, or where tftoolkit is not the installed one.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

LEFT = ("digits.tflite", "digits/saved_model.pb")  # files that the tour writes


def parts(readme: str) -> tuple[dict[str, str], str]:
    """(C++ files, the Python program) of a README."""
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)
    files = {code.split("\n", 1)[0].removeprefix("// "): code for language, code in blocks if language == "cpp"}
    return files, "".join(code for language, code in blocks if language == "python")


def main(readme: Path) -> None:
    files, program = parts(readme.read_text())
    if any(Path().iterdir()):
        raise SystemExit("the tour is run in an empty folder")
    for name, code in files.items():
        Path(name).write_text(code)
    environment = {**os.environ, "TFDS_DATA_DIR": str(Path("data").absolute())}
    environment.pop("PYTHONPATH", None)
    where = "import importlib.util; print(importlib.util.find_spec('tftoolkit').origin)"
    origin = subprocess.run(
        [sys.executable, "-c", where], env=environment, check=True, capture_output=True, text=True
    ).stdout
    if "site-packages" not in origin:
        raise SystemExit(f"tftoolkit is {origin.strip()}, not what was installed")
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
    if missing := [name for name in LEFT if not Path(name).exists()]:
        raise SystemExit(f"the tour did not write {', '.join(missing)}")
    command = [sys.executable, "-m", "tftoolkit", "verify", "digits.tflite"]  # in a process that has only the file
    subprocess.run(command, env=environment, check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
