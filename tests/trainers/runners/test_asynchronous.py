"""Training with parameter servers: two workers that write the same weights side by side, in processes of their own."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tftoolkit import trainers

_SCRIPT = Path(__file__).with_name("asynchronous.py")


DONE = {"chief": 0, "worker 0": 0, "worker 1": 0, "ps 0": 0}


@pytest.fixture(scope="module")
def trainings(trainings_of):
    with trainings_of(_SCRIPT) as server:
        yield server


def _steps(trainings, name):
    """The numbers of the steps in the metrics file."""
    return [entry["step"] for entry in trainings.metrics(name) if entry["kind"] == "train"]


def _accuracy(trainings, name):
    return [entry["accuracy"] for entry in trainings.metrics(name) if entry["kind"] == "eval"][-1]


@pytest.mark.slow
def test_digits_are_learnt_and_each_batch_is_used_exactly_once(trainings):
    """With clipping, two micro-batches, averages and the guard against spikes."""
    assert trainings.run("all", update="all", steps=224) == DONE, trainings.error("all")
    assert _steps(trainings, "all") == list(range(1, 225))
    assert _accuracy(trainings, "all") > 0.8
    final = trainings.final("all")
    assert final["update/optimizer/iterations"] == final["update/ema/updates"] == 224
    # 4 epochs of 56 batches; the 5 examples left over in each are others every time.
    assert final["seen"].sum() == 224 * 32
    assert set(final["seen"]) <= {0, 1, 2, 3, 4}


@pytest.mark.slow
def test_checkpoints_are_those_of_one_process(trainings):
    """Which goes on after two workers, and two workers with two servers after it."""
    options = {"update": "all"}
    assert trainings.run("changed", steps=112, **options) == DONE, trainings.error("changed")
    assert trainings.run("changed", servers=0, steps=168, runner="graph", **options) == {"chief": 0}
    assert trainings.run("changed", servers=2, steps=336, **options) == {**DONE, "ps 1": 0}, trainings.error("changed")
    assert _steps(trainings, "changed") == list(range(1, 337))
    assert _accuracy(trainings, "changed") > 0.9
    final = trainings.final("changed")
    assert final["update/optimizer/iterations"] == 336
    assert final["seen"].sum() == 336 * 32


@pytest.mark.slow
def test_no_update_is_lost_and_a_skipped_one_adds_nothing(trainings):
    assert trainings.run("counted", model="counter", steps=400, bad=[5, 40]) == DONE, trainings.error("counted")
    skipped = sum(entry["skipped"] for entry in trainings.metrics("counted") if entry["kind"] == "train")
    final = trainings.final("counted")
    assert skipped == final["update/skipped"] == 15  # two batches in each epoch of 56
    np.testing.assert_array_equal(final["weight"], [400 - skipped] * 3)
    assert final["update/optimizer/iterations"] == final["update/ema/updates"] == 400 - skipped


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "named"),
    [
        (
            {"runner": "xla_chunk"},
            "ValueError: runner 'xla_chunk': XLA programs can't reach variables on parameter servers",
        ),
        pytest.param(
            {"runner": "eager"}, "ValueError: runner 'eager' can't run on other machines", marks=pytest.mark.exhaustive
        ),
        ({"model": "keras", "optimizer": "keras"}, "TypeError: parameter servers: an optimizer of Keras overwrites"),
    ],
)
def test_what_cannot_be_done_is_refused(trainings, options, named):
    name = "-".join(options.values())
    codes = trainings.run(name, **options)
    assert codes == {**DONE, "chief": 1}, "the others end with their chief"
    assert named in trainings.error(name)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"cluster": {"chief": ["a:1"], "ps": ["a:2"]}}, "exactly 1 chief, workers and ps, and nothing else, but this"),
        ({"cluster": {"worker": ["a:1"], "ps": ["a:2"]}}, "this one has 1 worker, 1 ps"),
        ({"cluster": {"chief": ["a:1"], "worker": "b:1", "ps": ["a:2"]}}, "cluster must map kinds of tasks to lists"),
        (
            {"cluster": {"chief": ["a:1"], "worker": ["a:3"], "ps": ["a:2"]}, "task": {"type": "ps", "index": 1}},
            "task must be",
        ),
        ({"cluster": {"chief": ["a:1"], "worker": ["a:3"], "ps": ["a:2"]}}, "but is None"),
    ],
)
def test_bad_clusters(monkeypatch, config, named):
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    with pytest.raises(ValueError, match=re.escape(named)):
        trainers.distributed_strategy()


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"model": "tf_keras"},
        {"update": "float16", "drop_remainder": False},
        pytest.param({"model": "keras"}, marks=pytest.mark.exhaustive),
        pytest.param({"update": "bfloat16"}, marks=pytest.mark.exhaustive),
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_other_steps(trainings, options):
    name = "-".join(map(str, options.values()))
    assert trainings.run(name, steps=170, **options) == DONE, trainings.error(name)
    assert _steps(trainings, name) == list(range(1, 171))
    assert _accuracy(trainings, name) > 0.75


@pytest.mark.slow
def test_sigterm_saves_and_the_next_run_goes_on(trainings):
    disturb = [60, "chief", signal.SIGTERM]
    codes = trainings.run("terminated", steps=2000, disturb=disturb)
    assert codes == {**DONE, "chief": 75}
    last = _steps(trainings, "terminated")[-1]
    assert 60 <= last < 2000
    assert (trainings.folder / "terminated" / "checkpoints" / f"step-{last:08d}").is_dir()
    assert trainings.run("terminated", steps=last + 50) == DONE
    assert _steps(trainings, "terminated") == list(range(1, last + 51))
    assert trainings.final("terminated")["seen"].sum() == (last + 50) * 32


@pytest.mark.slow
def test_a_killed_worker_loses_no_batch(trainings):
    assert trainings.run("killed", steps=560, disturb=[60, "worker 1", signal.SIGKILL]) == DONE
    assert _steps(trainings, "killed") == list(range(1, 561))
    final = trainings.final("killed")
    repeated = int(final["update/optimizer/iterations"]) - 560
    assert 0 <= repeated < 100
    assert final["seen"].sum() == (560 + repeated) * 32
    assert trainings.run("undisturbed", servers=0, runner="graph", steps=560) == {"chief": 0}
    assert np.all(final["seen"] >= trainings.final("undisturbed")["seen"])
    assert _accuracy(trainings, "killed") > 0.9


@pytest.mark.slow
def test_many_updates_skipped_in_a_row_roll_back(trainings):
    """Batches 45 to 55, the last of the epoch, are full of NaN; the last good checkpoint before is that of step 40."""
    # In 70 steps the second epoch doesn't come that far: how often to go back would depend on the machine's speed.
    codes = trainings.run("rolled-back", bad=list(range(45, 56)), steps=70)
    assert codes == DONE, trainings.error("rolled-back")
    rollbacks = [entry for entry in trainings.metrics("rolled-back") if entry["kind"] == "rollback"]
    assert rollbacks[0]["first_batch"] == 40
    assert _steps(trainings, "rolled-back") == list(range(1, 71))
    assert np.all(np.isfinite(trainings.final("rolled-back")["model/hidden"]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("worker 1", "worker 1 was ended by SIGKILL; the others go on; start 1 of 3 in 0.1 s"),
        pytest.param("ps 0", "restart 1 of 3", marks=pytest.mark.exhaustive),
        pytest.param("chief", "chief was ended by SIGKILL; ending the others", marks=pytest.mark.exhaustive),
    ],
)
def test_the_launcher_starts_again_what_is_lost(tmp_path, task, said):
    job = {"directory": str(tmp_path / "run"), "steps": 400}
    command = [sys.executable, "-m", "tftoolkit", "launch", "--workers=2", "--parameter_servers=1", "--backoff=0.1"]
    with subprocess.Popen(
        [*command, "--", _SCRIPT, json.dumps(job)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as launcher:
        lines, pids = [], {}
        for line in launcher.stdout:
            lines.append(line)
            if found := re.match(r"tftoolkit launch: (.*) started, process (\d+)", line):
                pids[found[1]] = int(found[2])
            logged = re.match(r"\[chief\] logged step (\d+)", line)
            if task and logged and int(logged[1]) >= 60:
                os.kill(pids[task], signal.SIGKILL)  # which is alive: it is what the step needed
                task = None
    text = "".join(lines)
    assert launcher.returncode == 0, text[-5000:]
    assert said in text
    assert "[worker 0] worker 0: serving the chief at" in text
    log = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log if entry["kind"] == "train"] == list(range(1, 401))
    for pid in pids.values():
        assert not Path(f"/proc/{pid}").exists()
