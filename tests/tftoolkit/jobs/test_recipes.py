"""Every recipe reaches what it promises; those with tests of their own (digits, the texts) are not here."""

from pathlib import Path

import pytest
from ml_collections import ConfigDict
from recipe_results import SEEDS, check

from tftoolkit import jobs
from tftoolkit.trainers import recipes

ELSEWHERE = {"digits", "text_rnn", "text_gpt"}
NAMES = [name for name in recipes.names() if name not in ELSEWHERE]


def reaches_what_it_promises(config: ConfigDict, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = jobs.find(config.job)(config)
    jobs.run(job, directory)
    check(directory, job)
    assert "NOT REACHED" not in capsys.readouterr().out


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", NAMES)
def test_reaches_what_it_promises(name: str, seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = recipes.load(name)
    config.seed = seed
    reaches_what_it_promises(config, tmp_path / name, capsys)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_variant_of_tutorials_reaches_it_too(seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = recipes.load("digits_mlp")
    config.seed = seed
    config.model.update({"dropout": 0.3, "batch_norm": True, "leaky": True})
    config.exports = ("saved_model", "tflite_int8")
    reaches_what_it_promises(config, tmp_path / "digits_mlp", capsys)
