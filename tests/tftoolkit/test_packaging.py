"""The wheel and the sdist hold real files, and the wheel works from another folder."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NEEDED = [
    "tftoolkit/custom_ops/engine/host/xla_kernel.cc", "tftoolkit/custom_ops/engine/include/tftoolkit/op.h",
    "tftoolkit/custom_ops/rms_norm/rms_norm.cc", "tftoolkit/custom_ops/rms_norm/rms_norm.cu",
    "tftoolkit/custom_ops/adamw/adamw.cc", "tftoolkit/custom_ops/global_norm/global_norm.cc",
    "tftoolkit/custom_ops/rand_augment/rand_augment.cc", "tftoolkit/custom_ops/rms_norm/add_rms_norm.cc",
    "tftoolkit/custom_ops/flash_attention/flash_attention.cc", "tftoolkit/custom_ops/flash_attention/kernels.h",
    "tftoolkit/custom_ops/engine/include/tftoolkit/norm.h", "tftoolkit/custom_ops/layer_norm/layer_norm.cc",
    "tftoolkit/custom_ops/emulation/runtime/machine.cc", "tftoolkit/custom_ops/emulation/include/cuda_runtime.h",
    "tftoolkit/custom_ops/emulation/include/tftoolkit/emulation/device.h",
    "tftoolkit/custom_ops/tflite_delegate/delegate.cc", "tftoolkit/custom_ops/tflite_delegate/tflite.h",
    "tftoolkit/pipelines/pipeline.py", "tftoolkit/trainers/recipes/digits.py", "tftoolkit/export/__init__.py",
    "tftoolkit/report/report.html", "tftoolkit/data_tools/contact_sheet.html", "tftoolkit/py.typed",
    "tftoolkit/export/web/page/page.js", "tftoolkit/migration/answers.toml", "tftoolkit/migration/symbols.txt",
]  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(wheel, sdist): the sdist from a copy of the checkout, which stays clean, and the wheel from the sdist."""
    folder = tmp_path_factory.mktemp("package")
    leave_out = shutil.ignore_patterns(".*", "runs", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, folder / "source", symlinks=True, ignore=leave_out)
    build = [sys.executable, "-m", "build", "--no-isolation"]  # with the setuptools that is installed here
    subprocess.run([*build, "--outdir", folder, folder / "source"], check=True)
    return next(folder.glob("*.whl")), next(folder.glob("*.tar.gz"))


def test_the_wheel_holds_real_files(built):
    with zipfile.ZipFile(built[0]) as wheel:
        sizes = {info.filename: info.file_size for info in wheel.infolist()}
    assert all(sizes.get(name, -1) >= (0 if name.endswith("typed") else 1) for name in NEEDED), sizes
    top = {name.partition("/")[0] for name in sizes}
    assert {name for name in top if not name.endswith(".dist-info")} == {"tftoolkit"}


def test_the_sdist_holds_real_files(built):
    with tarfile.open(built[1]) as sdist:
        members = {member.name.partition("/")[2]: member for member in sdist.getmembers()}
    for name in NEEDED:
        assert members[name].isfile(), name


@pytest.mark.slow
def test_the_wheel_works_from_another_folder(built, tmp_path):
    target = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--target", target, built[0]], check=True)
    code = f"""
import importlib.util
import tensorflow as tf
import tftoolkit
from tftoolkit import custom_ops
assert tftoolkit.__file__.startswith({str(target)!r}), tftoolkit.__file__
y = tf.function(custom_ops.rms_norm, jit_compile=True)(tf.ones([2, 4]), tf.ones(4))
assert abs(float(tf.reduce_sum(y)) - 8) < 1e-4
for name in ("custom_ops", "pipelines", "trainers"):
    assert importlib.util.find_spec(name) is None, name
"""
    environment = {**os.environ, "PYTHONPATH": str(target)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    doctor = [sys.executable, "-m", "tftoolkit", "doctor"]
    done = subprocess.run(doctor, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
