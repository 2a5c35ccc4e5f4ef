"""``tftoolkit data profile``."""

import pytest

from tftoolkit import cli
from tftoolkit.cli import UsageError

PIPELINE = """
import numpy as np
import tensorflow as tf
from tftoolkit.pipelines import Pipeline, sources

def slow(example, key):
    x = tf.random.stateless_normal([200, 200], key)
    return {"x": tf.reduce_sum(x @ x @ x @ x)}

def train():
    return Pipeline(sources.arrays({"x": np.arange(100)})).shuffle().map(slow).batch(10)

ready = train()
other = 3
"""


@pytest.mark.parametrize("name", ["train", pytest.param("ready", marks=pytest.mark.slow)])
def test_names_the_slowest_stage(name, tmp_path, capsys):
    (tmp_path / "mine.py").write_text(PIPELINE)
    assert cli.run(["data", "profile", f"{tmp_path}/mine.py:{name}", "--batches=5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["stage", "ms/batch", "share", "records/s", "MB/batch"]
    assert [line.split("  ")[0] for line in lines[1:-1]] == [
        "order",
        "read arrays",
        "map slow",
        "batch(10)",
        "all stages",
    ]
    assert [line for line in lines if line.startswith("map slow") and line.endswith("<- slowest")]
    assert "batches/s" in lines[-1]


def test_of_a_recipe(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert cli.run(["data", "profile", "digits", "--batches=2"]) == 0
    assert "map random_shift(max_pixels=1)" in capsys.readouterr().out


@pytest.mark.slow
def test_of_a_recipe_that_begins_with_another_training(capfd):
    assert cli.run(["data", "profile", "transfer", "--batches=2"]) == 0
    printed = capfd.readouterr()
    assert "read arrays" in printed.out
    assert "step" not in printed.err, "nothing is trained"


@pytest.mark.parametrize(
    ("word", "text"),
    [("digit", "or a recipe, one of audio"), ("gone.py:x", "there is no file gone.py"), ("{}/mine.py:nix", "'nix'")],
)
def test_bad_input(word, text, tmp_path):
    (tmp_path / "mine.py").write_text("nothing = 1\n")
    with pytest.raises(UsageError, match=text):
        cli.run(["data", "profile", word.format(tmp_path)])


def test_not_a_pipeline(tmp_path):
    (tmp_path / "mine.py").write_text("def nothing(): return 3\n")
    with pytest.raises(UsageError, match="returns one, got int"):
        cli.run(["data", "profile", f"{tmp_path}/mine.py:nothing"])
