"""The README: its code runs, in order, as one program; every name of ours in it exists; its table is the results'."""

import ast
import importlib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

README = Path(__file__).parents[2] / "README.md"
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README.read_text(), re.DOTALL)
PROGRAM = "".join(code for language, code in BLOCKS if language == "python")


def test_the_table_is_that_of_the_results():
    path = README.parent / "benchmarks/results.py"
    spec = importlib.util.spec_from_file_location("benchmark_results", path)
    results = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = results  # dataclasses look there
    spec.loader.exec_module(results)
    for page, table in ((README, results.headlines), (results.PAGE, results.table)):
        assert results.inserted(page, table) == page.read_text(), "run benchmarks/results.py"


def dotted(node: ast.expr) -> str | None:
    """``a.b.c`` as it stands there; None for what is not only names."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        base = dotted(node.value)
        return base and f"{base}.{node.attr}"
    return None


def test_every_name_in_the_readme_exists():
    tree = ast.parse(PROGRAM)
    imported = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            imported |= {alias.asname or alias.name: getattr(module, alias.name) for alias in node.names}
    assert "trainers" in imported
    chains = [name.split(".") for node in ast.walk(tree) if isinstance(node, ast.Attribute) and (name := dotted(node))]
    looked_up = 0
    for first, *names in chains:
        value = imported.get(first)
        for name in names:
            if not isinstance(value, ModuleType):
                break
            value = getattr(value, name)
            looked_up += 1
    assert looked_up >= 5


@pytest.mark.slow
def test_the_code_in_the_readme_runs(tmp_path):
    (tmp_path / "squared_relu.cc").write_text("".join(code for language, code in BLOCKS if language == "cpp"))
    environment = {**os.environ, "TFDS_DATA_DIR": str(tmp_path / "data")}
    subprocess.run([sys.executable, "-c", PROGRAM], cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "digits.tflite").exists()
