"""A recipe as a package of one's own. Reads sources only: needs no TensorFlow."""

from __future__ import annotations

import ast
import importlib.util
import keyword
import re
from pathlib import Path

from tftoolkit.errors import CodedError
from tftoolkit.trainers import recipes

# Extra → what sources that need it say.
_SIGNS = {"audio": "sources.audio(", "safetensors": ".safetensors", "text": "text.Tokenizer"}
_RECIPES, _JOBS, _MODELS = "tftoolkit.trainers.recipes", "tftoolkit.jobs", "tftoolkit.models"


class ProjectError(CodedError, ValueError):
    """The project cannot be made; nothing was written."""

    error_code = "project"


def make(name: str, recipe: str, folder: Path) -> list[Path]:
    """Writes the project into ``folder / name``: recipe, job and model, a program, a test, a README.

    Args:
      name: of the package: a Python identifier that is no keyword.
      recipe: one of ``recipes.names()``.

    Returns the files. What the recipe begins with comes along; everything else still comes from tftoolkit.

    Raises:
      ProjectError: the name is not one, or something is there already.
      UnknownRecipeError: there is no such recipe.
      OSError: the folder cannot be written to.
    """
    if not name.isidentifier() or keyword.iskeyword(name) or name == "tftoolkit":
        raise ProjectError(f"{name!r} cannot be a package's name: use letters, digits and _, and begin with a letter")
    destination = folder / name
    if destination.exists():
        raise ProjectError(f"{destination} is there already: name another project, or move that one away")
    config = recipes.load(recipe)
    texts = {
        **{f"{name}/recipes/{module}.py": _source(f"{_RECIPES}.{module}") for module in _bases(recipe)},
        f"{name}/recipes/__init__.py": '"""Settings that are known to work, each with the result it must reach."""\n',
        **{f"{name}/{module}.py": _source(f"{_JOBS}.{module}") for module in _job_modules(config.job)},
    }
    used = _used_models("\n".join(texts.values()), str(config.get("model", {}).get("name", "")))
    texts |= {f"{name}/models/{module}.py": _source(f"{_MODELS}.{module}") for module in used}
    texts = {path: _moved(text, name, config.job, used) for path, text in texts.items()}
    words = {"name": name, "recipe": recipe, "job": config.job, "extras": _extras("\n".join(texts.values()))}
    exported = "".join(f"from {name}.models.{module} import {', '.join(names)}\n" for module, names in used.items())
    texts |= {
        f"{name}/__init__.py": f'"""What tftoolkit\'s recipe {recipe} trains, to be changed."""\n',
        f"{name}/models/__init__.py": _MODELS_TEMPLATE.format(imports=exported),
        f"{name}/__main__.py": _MAIN_TEMPLATE.format(**words),
        f"tests/test_{name}.py": _TEST_TEMPLATE.format(**words),
        "README.md": _README_TEMPLATE.format(**words, models=", ".join(f"`{name}/models/{one}.py`" for one in used)),
        "pyproject.toml": _PYPROJECT_TEMPLATE.format(**words),
        ".gitignore": "runs/\n__pycache__/\n.pytest_cache/\n*.egg-info/\n",
    }
    for path, text in texts.items():
        (destination / path).parent.mkdir(parents=True, exist_ok=True)
        (destination / path).write_text(text)
    return [destination / path for path in sorted(texts)]


def _source(module: str) -> str:
    found = importlib.util.find_spec(module)
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).read_text()


def _bases(recipe: str) -> list[str]:
    """The recipe and those that it begins with."""
    imported = re.search(r"^from tftoolkit\.trainers\.recipes import (\w+)$", _source(f"{_RECIPES}.{recipe}"), re.M)
    return [recipe, *(_bases(imported[1]) if imported else [])]


def _job_modules(job: str) -> list[str]:
    """The job's module and those beside it that only some jobs need."""
    source = _source(f"{_JOBS}.{job}")
    needed = re.findall(r"^from tftoolkit\.jobs\.(\w+) import", source, re.M)
    shared = {"job", "exports", "run_folder", job}
    return [job, *(found for one in needed if one not in shared for found in _job_modules(one))]


def _used_models(text: str, configured: str) -> dict[str, list[str]]:
    """By module of tftoolkit.models the public names that a text uses."""
    home: dict[str, str] = {}
    for node in ast.parse(_source(_MODELS)).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "_HOME":
            home = ast.literal_eval(node.value)
    used = {configured, *re.findall(r"\bmodels\.(\w+)", text)}
    found: dict[str, list[str]] = {}
    for name in sorted(used & home.keys()):
        found.setdefault(home[name], []).append(name)
    return found


def _extras(text: str) -> str:
    """What of tftoolkit's extras the sources need, separated by commas."""
    needed = {"export", "onnx"} | {extra for extra, sign in _SIGNS.items() if sign in text}
    return ",".join(sorted(needed))


def _moved(text: str, name: str, job: str, used: dict[str, list[str]]) -> str:
    """Imports of what was copied are those of the copies."""
    text = text.replace(f"from {_RECIPES} import", f"from {name}.recipes import")
    for module in _job_modules(job):
        text = text.replace(f"from {_JOBS}.{module} import", f"from {name}.{module} import")
    for module in used:
        text = text.replace(f"from {_MODELS}.{module} import", f"from {name}.models.{module} import")
    lines = []
    for line in text.splitlines(keepends=True):
        beside = re.fullmatch(r"from tftoolkit import (.*)\n", line)
        names = beside[1].split(", ") if beside else []
        if "models" in names:
            names.remove("models")
            lines.append(f"from {name} import models\n")
            line = f"from tftoolkit import {', '.join(names)}\n" if names else ""
        lines.append(line)
    return "".join(lines)


_MODELS_TEMPLATE = '''"""tftoolkit's models; those that lie in this folder take the place of tftoolkit's."""

from tftoolkit.models import *  # noqa: F403

{imports}'''

_MAIN_TEMPLATE = '''"""``python -m {name}``: trains, exports and reports; run again, it goes on where it was."""

from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from {name}.{job} import JOB
from {name}.recipes import {recipe}
from tftoolkit import cli, jobs

CONFIG = config_flags.DEFINE_config_dict("config", {recipe}.get_config(), "the settings, each as --config.NAME=VALUE")
DIRECTORY = flags.DEFINE_string("directory", "runs/{name}", "the run folder")
DEBUG = flags.DEFINE_bool("debug", False, "show where in the program an error comes from")


def main(arguments: list[str]) -> int:
    if len(arguments) > 1:
        raise app.UsageError(f"too many arguments: {{' '.join(arguments[1:])}}")
    logging.set_verbosity(logging.WARNING)  # absl's app shows TensorFlow's notices otherwise
    return cli.explained(lambda: jobs.run(JOB(CONFIG.value), Path(DIRECTORY.value)), DEBUG.value)


if __name__ == "__main__":
    app.run(main)
'''

_TEST_TEMPLATE = '''"""A few steps leave a checkpoint, an exported file and a report, and can be repeated."""

import json
from pathlib import Path

from ml_collections import ConfigDict

from {name}.{job} import JOB
from {name}.recipes import {recipe}
from tftoolkit import jobs

STEPS = 4


def shorten(config: ConfigDict) -> None:
    """Also what is trained on the way: its settings lie within."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            shorten(value)
        elif name == "steps":
            config.steps = STEPS


def short(directory: Path) -> list[dict]:
    config = {recipe}.get_config()
    shorten(config)
    config.steps_per_call = config.log_every = config.evaluate_every = config.checkpoint_every = STEPS // 2
    config.exports = ("saved_model",)
    if "max_drop" in config:
        config.max_drop = 1.0  # what has learned nothing yet is easily put off
    if "warmup_steps" in config:
        config.warmup_steps = 1
    jobs.run(JOB(config), directory)
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_a_few_steps(tmp_path: Path) -> None:
    lines = short(tmp_path / "run")
    assert [line["step"] for line in lines if line["kind"] == "eval"][-1] == STEPS
    assert (tmp_path / "run/report.html").stat().st_size > 10_000
    assert list((tmp_path / "run/checkpoints").glob("step-*"))
    assert short(tmp_path / "again") == lines
'''

_README_TEMPLATE = """# {name}

What tftoolkit's recipe `{recipe}` trains, as a package of its own.

```
python -m {name}
python -m pytest
```

The first trains, exports, proves the files, and leaves `runs/{name}/report.html`. Interrupted or killed, it goes on
where it was when it is run again. The second runs the test. Run both in this folder; they need
`pip install 'tftoolkit[{extras}]' pytest`.
The first time of all, tftoolkit's op host is compiled, which takes half a minute.

Settings are changed with `--config.NAME=VALUE`, or in:

* `{name}/recipes/{recipe}.py`: the settings, and the result that they must reach,
* `{name}/{job}.py`: data, step, evaluation, exports, and what the report shows,
* {models}: the model.

Everything else comes from tftoolkit, which works without these files and is not changed by them.
"""

_PYPROJECT_TEMPLATE = """[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "{name}"
version = "0.1.0"
description = "What tftoolkit's recipe {recipe} trains, to be changed."
requires-python = ">=3.11"
dependencies = ["tftoolkit[{extras}]"]

[project.optional-dependencies]
dev = ["pytest"]

[tool.setuptools.packages.find]
include = ["{name}*"]
"""
