"""Pipelines on several machines: under tf.distribute and tf.data service comes the one stream, whoever is killed."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tftoolkit.pipelines import Pipeline, image, service, sources

DISTRIBUTED = """
import numpy as np
import tensorflow as tf
from tftoolkit.pipelines import Pipeline, sources

cpus = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpus[0], [tf.config.LogicalDeviceConfiguration()] * 3)

def noisy(example, key):
    return {**example, "noise": tf.random.stateless_normal([2], key)}

p = Pipeline(sources.arrays({"x": np.arange(23)}), seed=3).shuffle().map(noisy).batch(7)  # the last batch has 2 rows
for replicas in (1, 2, 3):
    strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(replicas)])
    for start in (0, 3, 5):
        batches = zip(iter(p.distributed(strategy, start)), p.dataset(start).take(5))
        for shares, whole in batches:
            parts = {name: strategy.experimental_local_results(value) for name, value in shares.items()}
            for name, feature in whole.items():
                assert len(parts[name]) == replicas
                for replica, part in enumerate(parts[name]):
                    assert np.array_equal(part.numpy(), feature.numpy()[replica::replicas]), (replicas, start, name)
print("all the same")
"""


@pytest.mark.slow
def test_replicas_together_see_the_batches(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(DISTRIBUTED)
    done = subprocess.run([sys.executable, tmp_path / "program.py"], capture_output=True, text=True)
    assert "all the same" in done.stdout, done.stderr[-3000:]


ON_A_DEVICE = """
import numpy as np
import tensorflow as tf
from tftoolkit.pipelines import Pipeline, SourceError, sources

cpus = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpus[0], [tf.config.LogicalDeviceConfiguration()] * 2)

def checked(example):
    return {**example, "x": tf.debugging.check_numerics(example["x"], "no number")}

def make(**bad):
    x = np.arange(30, dtype=np.float32)
    x[bad.get("row", 0)] = bad.get("value", 0)
    rows = tf.ragged.constant([[1] * (i % 3) for i in range(30)])
    return Pipeline(sources.arrays({"x": x, "rows": rows}), seed=3).shuffle().map(checked).batch(4)

plain = list(make().dataset(2).take(9))
for device in ("/device:CPU:1", "cpu:1"):
    make().prefetch(device=device)
p = make().prefetch(2, "/CPU:1")
moved = [batch for _, batch in zip(range(9), p.dataset(2))]
for one, other in zip(plain, moved, strict=True):
    assert one["x"].device.endswith("CPU:0"), one
    assert other["x"].device.endswith("CPU:1"), other
    assert np.array_equal(one["x"], other["x"]) and one["rows"].to_list() == other["rows"].to_list()
p = make(row=5, value=np.nan).prefetch(device="/CPU:1")
try:
    for _, batch in zip(range(8), p):
        pass
except SourceError as error:
    assert "arrays, row 5: no number" in str(error), error
else:
    raise AssertionError("the bad row was not found")
print("all there")
"""


@pytest.mark.slow
def test_batches_lie_on_the_device_that_was_named(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(ON_A_DEVICE)
    done = subprocess.run([sys.executable, tmp_path / "program.py"], capture_output=True, text=True)
    assert "all there" in done.stdout, done.stderr[-3000:]


@pytest.mark.parametrize("device", ["/GPU:7", "CPU:9", "TPU", "", "/job:worker/CPU:0"])
def test_a_device_that_does_not_exist_is_named(device: str) -> None:
    p = Pipeline(sources.arrays({"x": np.arange(4)})).batch(2)
    with pytest.raises(ValueError, match=f"device='{device}': there is no such device, only CPU:0"):
        p.prefetch(device=device)
    with pytest.raises(TypeError, match="device: expected a name such as '/GPU:0', got 0"):
        p.prefetch(device=0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("replicas", "workers"),
    [(4, 2), *(pytest.param(*one, marks=pytest.mark.slow) for one in [(1, 1), (2, 2), (3, 3), (8, 4)])],
)
@pytest.mark.slow
def test_workers_together_see_the_batches(replicas: int, workers: int) -> None:
    """Each worker's data set, as a strategy of several processes asks for it."""

    class Strategy:
        def __init__(self, worker: int) -> None:
            self.context = tf.distribute.InputContext(workers, worker, replicas)

        def distribute_datasets_from_function(self, function: Any) -> tf.data.Dataset:
            return function(self.context)

    p = Pipeline(sources.arrays({"x": np.arange(40)})).shuffle().batch(9)
    here = replicas // workers
    streams = [list(p.distributed(Strategy(worker), 2).take(3 * here)) for worker in range(workers)]
    for number, whole in enumerate(p.dataset(2).take(3)):
        shares = [batch["x"].numpy() for one in streams for batch in one[number * here : (number + 1) * here]]
        for replica, share in enumerate(shares):
            assert share.tolist() == whole["x"].numpy()[replica::replicas].tolist()


def test_a_pipeline_that_cannot_be_shared_out_among_replicas_is_refused() -> None:
    """At once, whatever the number of replicas: with one of them, nothing else would tell."""
    strategy = tf.distribute.get_strategy()
    p = Pipeline(sources.arrays({"x": np.arange(12)}))
    for wrong, message in (
        (p, r"call .batch\(batch_size\)"),
        (p.batch(4).shard(0, 2), "distributed: the pipeline is sharded already"),
        (p.batch(4).stack(3), "distributed: the pipeline is stacked"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong.distributed(strategy)


def _server(*arguments: str) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-m", "tftoolkit.pipelines.service", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


@pytest.fixture(name="servers")
def _servers() -> Iterator[tuple[str, list[subprocess.Popen[str]]]]:
    """The dispatcher's address, the dispatcher and two workers; what is added to the list is ended as well."""
    dispatcher, address = _server("dispatcher")
    processes = [dispatcher, *(_server("worker", address)[0] for _ in range(2))]
    yield address, processes
    for process in reversed(processes):
        process.kill()
        process.wait()


@pytest.fixture
def made_here(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The batches that were made in this process."""
    batches: list[Any] = []
    make = service._made_here

    def noted(*arguments: Any) -> Iterator[Any]:
        for batch in make(*arguments):
            batches.append(batch)
            yield batch

    monkeypatch.setattr(service, "_made_here", noted)
    return batches


def product(example: Any, key: tf.Tensor) -> Any:
    factor = tf.random.stateless_normal([200, 200], key)
    return {**example, "product": factor @ factor}  # rounds otherwise with another number of threads


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.slow
def test_what_a_service_loses_is_made_here(monkeypatch: pytest.MonkeyPatch, made_here: list[Any], lost: bool) -> None:
    """In the place of servers a data set that comes in another order, and without every third batch.

    Servers in this process would not do: stopping them waits, at times for ever, for the thread that asks them."""

    def served(data: tf.data.Dataset) -> tf.data.Dataset:
        return data.filter(lambda number, _: not lost or number % 3 > 0).shuffle(8, seed=1)

    monkeypatch.setattr(tf.data.experimental.service, "distribute", lambda *_: served)
    p = Pipeline(sources.arrays({"x": np.arange(50)}), seed=1).shuffle().map(product).batch(4)
    expected = list(p.dataset(3, epochs=2))
    found = list(service.batches(p, "grpc://nowhere:1", start=3, epochs=2, patience=60.0))
    for one, other in zip(found, expected, strict=True):
        assert one["x"].numpy().tolist() == other["x"].numpy().tolist()
        assert one["product"].numpy().tobytes() == other["product"].numpy().tobytes()
    assert len(made_here) == (8 if lost else 0)


@pytest.mark.parametrize(
    "lost",
    [
        *(pytest.param(one, marks=pytest.mark.slow) for one in ("a worker that comes back", "the dispatcher")),
        *(pytest.param(one, marks=pytest.mark.exhaustive) for one in ("a worker", "all workers")),
    ],
)
def test_a_service_delivers_the_stream_whoever_is_killed(
    servers: Any, tmp_path: Path, made_here: list[Any], lost: str
) -> None:
    address, processes = servers
    file = str(tmp_path / "x.tfrecord")
    with tf.io.TFRecordWriter(file) as writer:
        for number in range(1000):
            writer.write(b"%d" % number)

    augment = image.rand_augment()

    def noisy(example: Any, key: tf.Tensor) -> Any:
        work = tf.random.stateless_normal([200, 200], key)
        picture = tf.random.stateless_uniform([20, 20, 1], key, 0, 256, tf.int32)
        picture = augment({"image": tf.cast(picture, tf.uint8)}, key)["image"]  # a compiled op
        return {**example, "noise": tf.linalg.trace(work @ work), "picture": picture}

    p = Pipeline(sources.tfrecord(file), seed=1).shuffle().map(noisy).batch(9)
    expected = list(p.dataset(epochs=2))
    served = []
    for batch in service.batches(p, address, start=3, epochs=2, patience=2.0):
        served.append(batch)
        if len(served) == 40:
            for process in {"all workers": processes[1:], "the dispatcher": processes[:1]}.get(lost, processes[1:2]):
                process.kill()
            if lost == "a worker that comes back":
                processes.append(_server("worker", address)[0])
    assert len(served) == len(expected) - 3
    if lost.startswith("a worker"):
        assert len(made_here) < len(served) / 4, "the workers made too few"
    for one, other in zip(served, expected[3:], strict=True):
        assert one["record"].numpy().tolist() == other["record"].numpy().tolist()
        for feature in ("noise", "picture"):
            assert one[feature].numpy().tobytes() == other[feature].numpy().tobytes()


def in_python(example: Any) -> Any:
    return {"x": tf.ensure_shape(tf.numpy_function(lambda x: x, [example["x"]], tf.int64), [])}


def test_what_cannot_be_sent_to_workers_is_named() -> None:
    p = Pipeline(sources.arrays({"x": np.arange(4)}))
    python = p.map(in_python)
    for wrong, message in ((python, "runs Python code"), (p, "batch")):
        with pytest.raises((ValueError, TypeError), match=message):
            next(service.batches(wrong.batch(2) if wrong is not p else p, "grpc://localhost:1"))
    skipping = Pipeline(sources.arrays({"x": np.arange(4)}), on_error="skip").batch(2)
    with pytest.raises(ValueError, match="on_error"):
        next(service.batches(skipping, "grpc://localhost:1"))


@pytest.mark.parametrize(
    "source", [sources.images, sources.audio, sources.tokens, sources.array_record, lambda file: sources.audio([file])]
)
def test_sources_that_need_local_files_say_so(source: Any) -> None:
    with pytest.raises(ValueError, match="'gs://bucket/x': this source reads local files only"):
        source("gs://bucket/x")
