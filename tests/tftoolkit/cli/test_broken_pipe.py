"""A command whose reader has gone, as in ``tftoolkit runs | head``, ends without a word."""

import os
import subprocess
import sys

import pytest

from tftoolkit import cli


@pytest.mark.parametrize("both", [False, True], ids=["stdout", "stdout and stderr"])
@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["at the end", "while it runs"])
@pytest.mark.parametrize("arguments", [["--help"], ["runs"], ["tran"]], ids=" ".join)
def test_a_reader_that_has_gone(arguments, unbuffered, both, tmp_path):
    """`tftoolkit runs | head` is no error; one of usage stays one where its message can be read."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/config.json").write_text("{}")
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "tftoolkit", *arguments],
        cwd=tmp_path, env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        stdout=writing, stderr=writing if both else subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    os.close(writing)
    usage = arguments == ["tran"] and not both
    assert done.returncode == (2 if usage else 141)
    assert both or ("unknown command" in done.stderr if usage else done.stderr == "")


def test_other_broken_pipes_are_errors(capsys, monkeypatch):
    def fail(arguments):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(cli, "run", fail)
    assert cli.main(["runs"]) == 1
    assert "BrokenPipeError: [Errno 32] Broken pipe" in capsys.readouterr().err
