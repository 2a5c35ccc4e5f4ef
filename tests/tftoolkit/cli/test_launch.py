"""``tftoolkit launch``: several workers train, one of them exports and reports."""

import json
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_two_workers_train_a_recipe(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    run = tmp_path / "run"
    command = [sys.executable, "-m", "tftoolkit", "launch", "--workers=2", f"--log_dir={tmp_path / 'logs'}", "--"]
    command += ["train", "digits", f"--directory={run}", "--config.steps=220"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "[0] report: " in done.stdout
    assert "[1] report: " not in done.stdout
    assert {"config.json", "metrics.jsonl", "checkpoints", "export", "report.html"} <= {
        one.name for one in run.iterdir()
    }
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 220
    assert last["accuracy"] > 0.95
    assert {file.name for file in (tmp_path / "logs").iterdir()} == {"worker-0.log", "worker-1.log"}
