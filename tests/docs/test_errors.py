"""docs/errors.md has a paragraph for each code that an error of the package can have, and no others."""

import ast
import re
from pathlib import Path

import pytest

from tftoolkit import custom_ops
from tftoolkit.pipelines.errors import SourceError, source_error

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/errors.md").read_text()
FOLDERS = ("custom_ops", "pipelines", "trainers", "tftoolkit")
# What no user sees as an error, and why.
WITHOUT = {
    "CodedError": "the base of the others",
    "UsageError": "says how the command is written",
    "TrainingTerminated": "is no error: everything is saved, and exit code 75 says so",
    "RetracingWarning": "is a warning",
    "Failed": "ends a check inside opcheck, whose table shows it",
    "Skipped": "likewise",
    "Died": "likewise",
    "RaisedError": "likewise",
    "DamagedError": "is caught by the checkpointer, whose message quotes it",
}


def _trees():
    for folder in FOLDERS:
        for file in (ROOT / folder).rglob("*.py"):  # follows no links
            yield ast.parse(file.read_text())


@pytest.fixture(scope="module")
def code():
    """Classes of errors → their bases, and all codes in the sources."""
    classes, codes = {}, set()
    for node in (node for tree in _trees() for node in ast.walk(tree)):
        if isinstance(node, ast.ClassDef):
            classes[node.name] = [ast.unparse(base) for base in node.bases]
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "error_code":
            codes.add(ast.literal_eval(node.value))
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name == "ExportError" and isinstance(node.args[0], ast.Constant):
                codes.add(f"export-{node.args[0].value}")
            elif name == "with_code" and isinstance(node.args[1], ast.Constant):
                codes.add(node.args[1].value)
            elif name.endswith("Error"):
                values = [one.value for one in node.keywords if one.arg == "code"]
                codes |= {value.value for value in values if isinstance(value, ast.Constant)}
    native = (ROOT / "custom_ops").rglob("*.*")
    for file in (file for file in native if file.suffix in (".cc", ".cu", ".h")):  # of kernels and the op host
        codes |= set(re.findall(r"\[tftoolkit: docs/errors\.md#([a-z-]+)\]", file.read_text()))
    return classes, codes


def _is_error(name, classes):
    builtin = isinstance(__builtins__.get(name), type) and issubclass(__builtins__[name], BaseException)
    return builtin or any(_is_error(base, classes) for base in classes.get(name, ()))


def test_every_type_of_error_has_a_code(code):
    classes, _ = code
    errors = {name for name in classes if _is_error(name, classes)}
    assert len(errors) > 25
    assert errors >= WITHOUT.keys()

    def coded(name):
        return name == "CodedError" or any(coded(base) for base in classes.get(name, ()))

    assert {name for name in errors if not coded(name)} == WITHOUT.keys() - {"CodedError"}


def test_every_code_has_a_paragraph_and_every_paragraph_a_code(code):
    titles = re.findall(r"^### (.*)$", PAGE, re.MULTILINE)
    assert len(titles) == len(set(titles))
    assert set(titles) == code[1]
    for paragraph in re.split(r"^#+ .*\n", PAGE, flags=re.MULTILINE)[1:]:
        assert paragraph.startswith("\n")
    for title in titles:
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", title)  # an anchor as it is
        text = PAGE.partition(f"### {title}\n")[2].partition("\n#")[0]
        assert len(text.split()) > 12, title


def test_how_a_message_ends():
    inner = SourceError("a.wav is truncated", code="source-damaged")
    assert str(inner) == "a.wav is truncated [tftoolkit: docs/errors.md#source-damaged]"
    assert str(SourceError("b")).endswith("[tftoolkit: docs/errors.md#source-unreadable]")
    outer = custom_ops.LoadError(f"cannot load: {inner}")  # what is handed on keeps its own
    assert (str(outer), outer.error_code) == (f"cannot load: {inner}", "source-damaged")
    assert inner.args == ("a.wav is truncated",)


def test_a_code_survives_tensorflow():
    import tensorflow as tf

    def fail():
        raise SourceError("a.wav is truncated", code="source-damaged")

    data = tf.data.Dataset.range(1).map(lambda _: tf.py_function(fail, [], tf.int64))
    with pytest.raises(tf.errors.UnknownError) as caught:
        next(iter(data))
    found = source_error(caught.value)
    assert (found.plain, found.error_code) == ("a.wav is truncated", "source-damaged")
