"""Workers of a real training are killed and frozen; the result is bit for bit that of the undisturbed gang.

``tftoolkit launch`` runs two workers of distributed.py on the loopback interface. Compared are all variables (weights,
optimizer, average) on both workers, and the metrics file.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow
EXHAUSTIVE = pytest.mark.exhaustive

STEPS = 90


def launch(folder, *options, fault=None, on_worker=0):
    """Trains with two workers; ``fault`` strikes in the first attempt only. Returns the launcher's own messages."""
    program = folder / "worker.py"
    program.parent.mkdir(exist_ok=True)
    program.write_text(
        "import json, os, runpy\n"
        "first = os.environ['TFTOOLKIT_ATTEMPT'] == '0'\n"
        "index = json.loads(os.environ['TF_CONFIG'])['task']['index']\n"
        f"if first and index == {on_worker} and {fault!r}: os.environ['TFTOOLKIT_FAULTS'] = {fault!r}\n"
        f"train = runpy.run_path({str(Path(__file__).with_name('distributed.py'))!r})['train']\n"
        f"train({str(folder / 'run')!r}, 'workers', steps={STEPS})\n"
    )
    command = [sys.executable, "-m", "tftoolkit", "launch", "--workers=2", "--backoff=0.1", *options, "--", program]
    environment = {name: value for name, value in os.environ.items() if name != "TF_CONFIG"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stderr


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    assert "restart" not in launch(folder)
    return folder


@pytest.mark.parametrize(
    ("fault", "on_worker", "said"),
    [
        pytest.param("save:kill:2", 0, "worker 0 was ended by SIGKILL", id="the leader is killed during the save"),
        pytest.param("step:freeze:40", 1, "no heartbeat for 8 s", id="a worker is frozen"),
        pytest.param("step:kill:40", 0, "worker 0 was ended by SIGKILL", id="the leader is killed", marks=EXHAUSTIVE),
        pytest.param("step:kill:40", 1, "worker 1 was ended by SIGKILL", id="a worker is killed", marks=EXHAUSTIVE),
    ],
)
def test_the_result_is_that_of_the_undisturbed_gang(undisturbed, tmp_path, fault, on_worker, said):
    messages = launch(tmp_path / "found", "--heartbeat_timeout=8", fault=fault, on_worker=on_worker)
    # Which of the two is noticed first is a matter of luck: the other one fails as soon as its peer is gone.
    assert said in messages or f"worker {1 - on_worker} ended with exit code" in messages
    assert messages.count("restart 1 of 3") == 1
    for name in ("run.npz", "run-1.npz"):
        with np.load(tmp_path / "found" / name) as found, np.load(undisturbed / name) as expected:
            assert set(found.files) == set(expected.files)
            for variable in expected.files:
                np.testing.assert_array_equal(found[variable], expected[variable], err_msg=variable)
    log = "run/metrics.jsonl"
    assert (tmp_path / "found" / log).read_bytes() == (undisturbed / log).read_bytes()
