"""The wheel and the sdist hold the files that they should, and the wheel works from another folder."""

import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

import tftoolkit
from tftoolkit import projects

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def release(load_module):
    return load_module(ROOT / "tools/release/run.py")


@pytest.fixture(scope="module")
def built(release, tmp_path_factory):
    """(wheel, sdist), the wheel from the sdist."""
    return release.build(tmp_path_factory.mktemp("package"))


def test_the_wheel_holds_the_listed_files_and_says_what_it_is(release, built):
    found = release.faults(built[0])
    assert not found, "\n".join([*found, "where that is meant: python tools/release/run.py --write-list"])
    top = {name.partition("/")[0] for name in release.names(built[0])}
    assert top == {"tftoolkit", "DIST-INFO"}


def test_what_is_wrong_with_a_wheel_is_said(release, built, tmp_path):
    """A file too many, one missing, another version, no README; in a file of another name."""
    spoilt = tmp_path / "tftoolkit-0.0.1-py3-none-any.whl"
    with zipfile.ZipFile(built[0]) as wheel, zipfile.ZipFile(spoilt, "w") as copy:
        for name in wheel.namelist():
            if name.endswith("METADATA"):
                copy.writestr(name, "Name: tftoolkit\nVersion: 0.0.1\n\nSee [the page](docs/gpu.md#top).\n")
            elif not name.endswith("op.h"):
                copy.writestr(name, wheel.read(name))
        copy.writestr("tftoolkit/data.bin", "")
    said = "\n".join(release.faults(spoilt))
    for fault in (
        "missing: tftoolkit/custom_ops/engine/include/tftoolkit/op.h",
        "wheel_files.txt: tftoolkit/data.bin",
        "bytes are more than",  # it is not compressed
        "Version is 0.0.1, not ",
        "Requires-Python is None, not >=3.11",
        "the description is not the README",
        "the description leads to docs/gpu.md#top",
        "it is called tftoolkit-0.0.1-py3-none-any.whl",
    ):
        assert fault in said


def test_the_description_leads_to_files_of_this_version(release, built):
    said = release.metadata(built[0]).get_payload()
    base = f"tftoolkit/tftoolkit/{{}}v{tftoolkit.__version__}/docs"
    assert f"[read first](https://github.com/{base.format('blob/')}/gpu.md)" in said
    assert f'<img src="https://raw.githubusercontent.com/{base.format("")}/report.png"' in said
    assert f"proof](https://raw.githubusercontent.com/{base.format('')}/overview.svg)" in said
    for path in re.findall(rf"v{re.escape(tftoolkit.__version__)}/([^)\"#]+)", said):
        assert (ROOT / path).exists(), path


def test_the_sdist_holds_real_files(release, built):
    with tarfile.open(built[1]) as sdist:
        members = {member.name.partition("/")[2]: member for member in sdist.getmembers()}
    for name in release.FILES.read_text().splitlines():
        assert name.startswith("DIST-INFO") or members[name].isfile(), name


def test_what_a_projects_readme_asks_for_is_tried(release, tmp_path):
    projects.make("mine", "tabular", tmp_path)
    installed, commands = release.asked(tmp_path / "mine/README.md")
    assert installed == ["tftoolkit[export,onnx]", "pytest"]
    assert commands == [["python", "-m", "mine"], ["python", "-m", "pytest"]]
    (tmp_path / "mine/README.md").write_text("# mine\n")
    with pytest.raises(release.ReleaseError, match="says no pip install, or no commands"):
        release.asked(tmp_path / "mine/README.md")


def test_a_python_is_found_by_its_version(release):
    here = "{}.{}".format(*sys.version_info)
    found = release.find(here)
    assert found is not None
    asked = subprocess.run([found, "--version"], capture_output=True, text=True, check=True)
    assert asked.stdout.startswith(f"Python {here}.")
    assert release.find("3.2") is None


def test_changelog_and_citation_are_of_this_version():
    latest = re.search(r"^## (\S+) – (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert latest.groups() == (tftoolkit.__version__, citation["date-released"])
    assert citation["version"] == tftoolkit.__version__


def test_what_forges_and_editors_read_is_well_formed():
    for form in (ROOT / ".github/ISSUE_TEMPLATE").glob("[!c]*.yml"):
        read = yaml.safe_load(form.read_text())
        assert {"name", "description", "body"} <= read.keys()
        names = [field["id"] for field in read["body"]]
        assert len(set(names)) == len(names)
        for field in read["body"]:
            assert field["type"] == "textarea" or all(isinstance(one, str) for one in field["attributes"]["options"])
    container = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text())
    assert (ROOT / ".devcontainer" / container["build"]["dockerfile"]).exists()
    needed = re.findall(r"need\+=\((.*?)\)", (ROOT / ".ci/run").read_text())
    installed = (ROOT / ".devcontainer/Dockerfile").read_text().split()
    assert not set(" ".join(needed).split()) - set(installed), "what CI installs"


def test_make_help_names_every_target():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split())
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"^  make (\S+) +\S", shown, re.MULTILINE)) == targets


@pytest.mark.slow
def test_the_wheel_works_from_another_folder(built, tmp_path):
    target = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--target", target, built[0]], check=True)
    code = f"""
import importlib.util
import tensorflow as tf
import tftoolkit
from tftoolkit import projects
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
    explain = [sys.executable, "-m", "tftoolkit", "explain", "op-input"]
    done = subprocess.run(explain, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("An input or an attribute")
