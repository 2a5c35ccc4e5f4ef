"""The code on the pages about training runs, as a reader would run it: in an empty folder, and in order."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_page_on_training_runs(tmp_path, blocks, run):
    programs = blocks("training", "python")
    (script,) = (code for code in programs if code.startswith("# train.py"))
    (tmp_path / "train.py").write_text(script)
    (tmp_path / "page.py").write_text("".join(code for code in programs if code is not script))
    output = run("import page", tmp_path)
    assert len(re.findall(r"^(?:keras|tf_keras): \d\d\.\d%$", output, re.MULTILINE)) == 2
    assert "but the optimizer Adam of Keras 3" in output

    (shell,) = blocks("training", "sh")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # where "python" is this one
    done = subprocess.run(
        ["bash", "-e", "-c", shell], cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["exit code 137", "the same"]


@pytest.mark.slow
def test_the_page_on_several_devices_runs(tmp_path, blocks, run):
    (code,) = blocks("distributed", "python")
    assert "step 200/200" in run(code, tmp_path)
