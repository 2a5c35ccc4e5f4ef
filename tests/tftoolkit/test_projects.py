"""``tftoolkit new``: packages that stand by themselves, for every recipe; their own tests pass, and they train."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tftoolkit import cli, projects
from tftoolkit.trainers import recipes


@pytest.mark.parametrize("recipe", recipes.names())
def test_every_recipe_makes_a_package(recipe: str, tmp_path: Path) -> None:
    files = projects.make("mine", recipe, tmp_path)
    for file in files:
        if file.suffix == ".py":
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "mine":
                    parts = node.module.split(".")
                    place = tmp_path.joinpath("mine", *parts)
                    assert place.is_dir() or place.with_suffix(".py").exists(), f"{file}: {node.module}"
    config = recipes.load(recipe)
    assert tmp_path / f"mine/mine/{config.job}.py" in files
    assert list((tmp_path / "mine/mine/models").glob("[!_]*.py")), "the model comes along"
    readme = (tmp_path / "mine/README.md").read_text()
    assert f"mine/recipes/{recipe}.py" in readme
    more = {"audio": "audio,", "text_gpt": "text,", "text_rnn": "text,", "transfer": "safetensors,"}
    extras = sorted(f"{more.get(recipe, '')}export,onnx".split(","))
    assert f"pip install 'tftoolkit[{','.join(extras)}]' pytest" in readme
    assert f'"tftoolkit[{",".join(extras)}]"' in (tmp_path / "mine/pyproject.toml").read_text()


@pytest.mark.parametrize("name", ["a-b", "class", "1st", "", "tftoolkit"])
def test_what_is_no_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(projects.ProjectError, match="cannot be a package's name"):
        projects.make(name, "digits", tmp_path)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["new", "mine", "--from=tabular_wine", f"--directory={tmp_path}"]) == 0
    assert "python -m mine" in capsys.readouterr().out
    readme = tmp_path / "mine/README.md"
    readme.write_text("changed")
    assert cli.main(["new", "mine", "--from=digits", f"--directory={tmp_path}"]) == 1
    assert "is there already" in capsys.readouterr().err
    assert readme.read_text() == "changed"
    assert cli.main(["new", "other", "--from=digitz", f"--directory={tmp_path}"]) == 1
    assert "did you mean digits" in capsys.readouterr().err


def run(project: Path, *command: str) -> None:
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=project, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(one, marks=pytest.mark.slow if one == "tabular_wine" else pytest.mark.exhaustive)
        for one in recipes.names()
    ],
)
def test_its_own_test_passes(recipe: str, tmp_path: Path) -> None:
    projects.make("mine", recipe, tmp_path)
    run(tmp_path / "mine", "-m", "pytest", "-q")


@pytest.mark.slow
def test_it_trains_what_was_changed(tmp_path: Path) -> None:
    projects.make("mine", "tabular_wine", tmp_path)
    model = tmp_path / "mine/mine/models/tabular_network.py"
    model.write_text(model.read_text().replace("tf.nn.relu(", "tf.nn.gelu("))
    options = ["--config.steps=60", "--config.exports=('tflite',)", "--config.max_drop=1.0"]
    run(tmp_path / "mine", "-m", "mine", "--directory=run", *options)
    assert (tmp_path / "mine/run/export/model.tflite").exists()
    assert (tmp_path / "mine/run/report.html").exists()
    wrong = [sys.executable, "-m", "mine", "--directory=other", "--config.exports=('tflit',)"]
    done = subprocess.run(wrong, cwd=tmp_path / "mine", capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "exports='tflit': did you mean tflite" in done.stderr
    done = subprocess.run([*wrong, "--debug"], cwd=tmp_path / "mine", capture_output=True, text=True, check=False)
    assert "Traceback" in done.stderr


@pytest.mark.slow
def test_a_model_of_its_own_is_known(tmp_path: Path) -> None:
    projects.make("mine", "text_rnn", tmp_path)
    with (tmp_path / "mine/mine/models/__init__.py").open("a") as file:
        file.write("class Own(Recurrent):\n    pass\n")
    changed = "config.model.name = 'Own'; LanguageModelling(config).check()"
    begin = "from mine.language_modelling import LanguageModelling; from mine.recipes.text_rnn import get_config"
    run(tmp_path / "mine", "-c", f"{begin}; config = get_config(); {changed}")
