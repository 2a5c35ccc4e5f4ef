"""The command line as a user meets it: real processes, their output and their exit codes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def tftoolkit(*arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tftoolkit", *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tran"], "unknown command 'tran': did you mean train"),
        ([], "usage: tftoolkit COMMAND"),
        (["train"], "train needs one recipe, got none. There are: digits"),
        (["train", "digits", "mnist"], "train needs one recipe, got ['digits', 'mnist']"),
        (["train", "digits", "--config.stepps=5"], "recipe digits has no option 'stepps'; did you mean steps"),
        (["train", "digits", "--config.expected.x=5"], "no option 'x'; There are: test_accuracy"),
        (["train", "digits", "--config.steps=many"], "--config.steps=many"),
        (["train", "digits", "--directry=x"], "Did you mean: directory"),
        (["ops"], "ops needs 'list', 'build' or 'check', got nothing"),
        (["doctor", "please"], "doctor takes no arguments"),
        (["verify"], "verify needs one file"),
        (["launch", "--workers", "2"], "launch needs a command after --"),
        (["launch", "--workers", "2", "train", "digits", "--"], "launch needs a command after --"),
        (["launch", "train", "--", "digits"], "launch: train stands before --"),
        (["launch", "--wrokers=2", "--", "train"], "Did you mean: workers"),
        (["launch", "--workers=0", "--", "train"], "launch: workers must be at least 1, but is 0"),
        (["launch", "--hosts=a,a:1", "--", "train"], "host names or IPv4 addresses without a port, but one is 'a:1'"),
        (["launch", "--", "trian", "digits"], "launch: 'trian' is no program; did you mean train?"),
        (["launch", "--", "train"], "train needs one recipe, got none"),
        (["launch", "--", "verify", "--help"], "launch: 'verify' is no program. After -- comes"),
    ],
)
def test_wrong_usage(arguments, message, tmp_path):
    done = tftoolkit(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_unknown_recipe(tmp_path):
    done = tftoolkit("train", "digitz", cwd=tmp_path)
    assert done.returncode == 1
    assert "unknown recipe 'digitz': did you mean digits? There are: digits" in done.stderr


def test_help(tmp_path):
    assert "train RECIPE" in tftoolkit("--help", cwd=tmp_path).stdout
    assert "--directory=DIR" in tftoolkit("train", "--help", cwd=tmp_path).stdout


def test_ops_list(tmp_path):
    done = tftoolkit("ops", "list", cwd=tmp_path)
    assert done.returncode == 0
    assert "TfToolkit>RmsNorm<T: f32 | bf16 | f16>(x: T[... d], gamma: T[d]" in done.stdout


def test_compilation_database(tmp_path):
    assert tftoolkit("ops", "build", "--compile_commands=commands.json", cwd=tmp_path).returncode == 0
    assert "xla_kernel.cc" in (tmp_path / "commands.json").read_text()


def test_doctor_finds_everything_here(tmp_path):
    done = tftoolkit("doctor", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "ok      op host" in done.stdout
    assert "RmsNorm, RmsNormGrad for CPU" in done.stdout


def test_doctor_says_what_is_missing_and_how_to_mend_it(tmp_path):
    done = tftoolkit("doctor", cwd=tmp_path, PATH="/nonexistent", CUDA_HOME="", CXX="")
    assert done.returncode == 1
    assert "MISSING C++ compiler" in done.stdout
    assert "apt install g++" in done.stdout


def test_no_compiler_and_nothing_built_yet(tmp_path):
    """One message, before any training, and no run folder half begun."""
    cache = str(tmp_path / "cache")
    done = tftoolkit("train", "digits", cwd=tmp_path, PATH="/nonexistent", CXX="", TFTOOLKIT_CACHE_DIR=cache)
    assert done.returncode == 1
    assert "BuildError: no C++ compiler found" in done.stderr
    assert "Traceback" not in done.stderr


def test_verify_a_file_that_is_not_there(tmp_path):
    done = tftoolkit("verify", "gone.tflite", cwd=tmp_path)
    assert done.returncode == 1
    assert "FileNotFoundError: no such file: gone.tflite" in done.stderr
