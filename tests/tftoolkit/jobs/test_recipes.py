"""Every recipe reaches what it promises; those with tests of their own (digits, the texts) are not here."""

import json
import re
from pathlib import Path

import pytest

from tftoolkit import jobs
from tftoolkit.trainers import recipes

ELSEWHERE = {"digits", "text_rnn", "text_gpt"}
NAMES = [name for name in recipes.names() if name not in ELSEWHERE]
SEEDS = [
    pytest.param(0, marks=pytest.mark.slow),
    *(pytest.param(seed, marks=pytest.mark.exhaustive) for seed in (1, 2)),
]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", NAMES)
def test_reaches_what_it_promises(name: str, seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = recipes.load(name)
    config.seed = seed
    exports = config.exports
    if seed:
        config.exports = exports[:1]
    jobs.run(jobs.find(config.job)(config), tmp_path / name)
    last = json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["kind"] == "eval"
    assert last["step"] == config.steps
    bounds = [(key, value, 1) for key, value in config.get("at_least", {}).items()]
    bounds += [(key, value, -1) for key, value in config.get("at_most", {}).items()]
    assert bounds
    for key, value, sign in bounds:
        assert sign * last[key] >= sign * value, f"{key} is {last[key]}"
    assert "NOT REACHED" not in capsys.readouterr().out
    rows = json.loads((tmp_path / name / "export/report.json").read_text())["rows"]
    assert len(rows) == len(config.exports)
    page = (tmp_path / name / "report.html").read_text()
    assert "<svg" in page
    assert not re.search(r"(src|href)=.https?:", page), "it opens without a network"
