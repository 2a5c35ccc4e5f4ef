"""The README's code blocks run, in order, as one program."""

import os
import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"


def test_the_code_in_the_readme_runs(tmp_path):
    blocks = re.findall(r"```(\w+)\n(.*?)```", README.read_text(), re.DOTALL)
    (tmp_path / "scale.cc").write_text("".join(code for language, code in blocks if language == "cpp"))
    program = "".join(code for language, code in blocks if language == "python")
    environment = {**os.environ, "TFDS_DATA_DIR": str(tmp_path / "data")}
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "digits.tflite").exists()
