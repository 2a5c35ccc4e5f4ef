"""Writing: every source comes back exactly; nothing half-written is ever left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tftoolkit.pipelines import Pipeline, SourceError, sources, write
from tftoolkit.pipelines.sources.files import INDEX_SUFFIX

OPENED = {"tfrecord": sources.tfrecord, "array_record": sources.array_record}


def everything(source: Any) -> dict[str, Any]:
    rows = source.fetch(tf.range(len(source), dtype=tf.int64))
    return {
        name: (value.dtype, value.to_list() if isinstance(value, tf.RaggedTensor) else value.numpy().tolist())
        for name, value in rows.items()
    }


def every_dtype() -> Any:
    rng = np.random.default_rng(0)
    dtypes = [
        tf.int8,
        tf.uint16,
        tf.int32,
        tf.uint64,
        tf.int64,
        tf.float16,
        tf.bfloat16,
        tf.float32,
        tf.float64,
        tf.complex64,
    ]
    features: dict[str, Any] = {
        dtype.name: tf.cast(rng.integers(0, 100, [7, 2, 3]), dtype) if dtype != tf.uint64 else
        tf.constant(rng.integers(2**63, 2**64 - 1, [7, 2, 3], np.uint64))
        for dtype in dtypes
    }  # fmt: skip
    features["bool"] = rng.integers(0, 2, [7]).astype(bool)
    features["bytes"] = [os.urandom(n) for n in range(7)]
    features["words"] = [["a", "ü"]] * 7
    features["empty"] = np.zeros([7, 0], np.float32)
    features["special"] = np.array([np.nan, np.inf, -np.inf, -0.0, 1e-45, 3e38, 0], np.float32).view(np.int32)
    for dtype in (np.int64, np.float32, np.uint8, np.float64, bool):
        features[f"list {np.dtype(dtype)}"] = [rng.integers(0, 2, n).astype(dtype) for n in (0, 3, 1, 0, 5, 2, 2)]
        features[f"rows {np.dtype(dtype)}"] = [rng.integers(0, 2, [n, 2]).astype(dtype) for n in (0, 3, 1, 0, 5, 2, 2)]
    features["list string"] = [["a"], [], ["b", "c"], [], [], [], ["d"]]
    return sources.arrays(features)


def text_source(folder: Path) -> Any:
    (folder / "in.txt").write_text("one\n\nthrée\n")
    return sources.text(folder / "in.txt")


def csv_source(folder: Path) -> Any:
    (folder / "in.csv").write_text('a,b,c\n1,2.5,"x\ny"\n2,-1,\n')
    return sources.csv(folder / "in.csv")


def mixed(folder: Path) -> Any:
    one = sources.arrays({"x": np.arange(5)})
    return sources.mix({"a": (one, 1), "b": (sources.arrays({"x": -np.arange(3)}), 2)}, component_feature="of")


@pytest.mark.parametrize("format", ["tfrecord", "array_record"])
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda _: every_dtype(), id="arrays"),
        pytest.param(text_source, id="text", marks=pytest.mark.slow),
        pytest.param(csv_source, id="csv", marks=pytest.mark.slow),
        pytest.param(mixed, id="mix", marks=pytest.mark.slow),
    ],
)
def test_every_source_comes_back_exactly(tmp_path: Path, format: str, make: Any) -> None:
    source = make(tmp_path)
    files = write(source, tmp_path / "out", format=format, shards=2)
    assert [os.path.basename(file) for file in files] == [f"out-0000{i}-of-00002.{format}" for i in range(2)]
    back = OPENED[format](tmp_path / f"out-*.{format}", "stored")
    assert back.element_spec == source.element_spec
    assert everything(back) == everything(source)
    (batch,) = Pipeline(back, seed=1).shuffle().batch(len(back)).dataset(epochs=1)
    assert batch.keys() == source.element_spec.keys()


def test_float_bits_survive(tmp_path: Path) -> None:
    bits = np.random.default_rng(0).integers(-(2**31), 2**31, 500).astype(np.int32)
    source = sources.arrays({"x": tf.bitcast(tf.constant(bits), tf.float32)})
    [file] = write(source, tmp_path / "x")
    back = sources.tfrecord(file, "stored").fetch(tf.range(500, dtype=tf.int64))["x"]
    quiet = bits | np.where(np.isnan(bits.view(np.float32)), 1 << 22, 0)  # the payload of signalling NaNs may change
    found = tf.bitcast(back, tf.int32).numpy()
    np.testing.assert_array_equal(found | np.where(np.isnan(found.view(np.float32)), 1 << 22, 0), quiet)


def test_the_index_is_written_with_the_files(tmp_path: Path) -> None:
    [file] = write(sources.arrays({"x": np.arange(10)}), tmp_path / "x")
    index = Path(file + INDEX_SUFFIX)
    made = index.stat().st_mtime_ns
    sources.tfrecord(file)
    assert index.stat().st_mtime_ns == made
    index.unlink()
    sources.tfrecord(file)
    assert index.exists()


def test_what_a_pipeline_makes_of_the_examples_is_written(tmp_path: Path) -> None:
    def double(example: Any) -> Any:
        return {"y": example["x"] * 2}

    p = Pipeline(sources.arrays({"x": np.arange(50)}), seed=3).shuffle().map(double).take(20)
    write(p, tmp_path / "x")
    back = sources.tfrecord(tmp_path / "x-*.tfrecord", "stored")
    expected = next(iter(p.batch(20)))["y"].numpy()
    np.testing.assert_array_equal(back.fetch(tf.range(20, dtype=tf.int64))["y"], expected)
    with pytest.raises(ValueError, match="the pipeline is batched"):
        write(p.batch(2), tmp_path / "y")


def test_missing_shards_and_wrong_paths_are_named(tmp_path: Path) -> None:
    files = write(sources.arrays({"x": np.arange(10)}), tmp_path / "x", shards=4)
    assert len(sources.tfrecord(files)) == 10
    Path(files[2]).unlink()
    for given in (tmp_path / "x-*.tfrecord", [files[0], files[1], files[3]]):
        with pytest.raises(FileNotFoundError, match=r"shard .*x-00002-of-00004.tfrecord is missing: 3 of 4 shards"):
            sources.tfrecord(given)
    with pytest.raises(FileNotFoundError, match=r"nothing matches .*y-\*"):
        sources.tfrecord(tmp_path / "y-*")
    with pytest.raises(IsADirectoryError, match="is a folder; name its files"):
        sources.tfrecord(tmp_path)
    (tmp_path / "x.features.json").unlink()
    Path(files[1]).rename(tmp_path / "part")
    with pytest.raises(FileNotFoundError, match=r"features='stored': there is no .*part.features.json"):
        sources.tfrecord(tmp_path / "part", "stored")


def test_bad_arguments_are_named(tmp_path: Path) -> None:
    source = sources.arrays({"x": np.arange(10)})
    with pytest.raises(ValueError, match="format='csv': expected one of tfrecord, array_record"):
        write(source, tmp_path / "x", format="csv")
    with pytest.raises(ValueError, match="shards=0: expected a positive integer"):
        write(source, tmp_path / "x", shards=0)
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        write(source, tmp_path / "nowhere" / "x")
    files = write(source, tmp_path / "x", shards=99)
    assert len(files) == 10
    with pytest.raises(FileExistsError, match=r"there is already .*x-0000.-of-00010.tfrecord \(11 files in all\)"):
        write(source, tmp_path / "x", format="array_record")


def test_a_bad_example_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("a\n" + "1\n" * 300 + "x\n")
    source = sources.csv(tmp_path / "in.csv", types={"a": tf.int32})
    with pytest.raises(SourceError, match=r"in.csv, line 302, column 'a': 'x' is no int32"):
        write(source, tmp_path / "out")
    assert os.listdir(tmp_path) == ["in.csv"]


FULL_DISK = """
import os, resource, signal, sys
import numpy as np
from tftoolkit.pipelines import sources, write
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))  # a file of more than 1 MiB fails, as on a full disk
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
noise = sources.arrays({"x": np.random.default_rng(0).normal(size=(600, 1000))})
for format in ("tfrecord", "array_record"):
    try:
        write(noise, os.path.join(sys.argv[1], "x"), format=format)
    except OSError as error:
        print(error)
print(os.listdir(sys.argv[1]))
"""


@pytest.mark.slow
def test_a_full_disk_is_told_and_nothing_is_left(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FULL_DISK, tmp_path], capture_output=True, text=True, check=True)
    first, second, left = done.stdout.splitlines()
    for message in (first, second):
        assert f"{tmp_path} cannot take more than the " in message
        assert "File too large" in message
        assert "nothing was left behind. Make room" in message
    assert left == "[]"


KILLED = """
import os, sys
import numpy as np
from tftoolkit.pipelines import sources, write
write(sources.arrays({"x": np.zeros([200_000, 100])}), os.path.join(sys.argv[1], "x"), shards=5)
"""


@pytest.mark.slow
def test_a_writer_that_is_killed_leaves_no_data_set(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", KILLED, tmp_path], stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(tmp_path.glob(".x-*.incomplete/x-00001*.tfrecord")):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL
    assert not [name for name in os.listdir(tmp_path) if not name.startswith(".")]
    write(sources.arrays({"x": np.arange(3)}), tmp_path / "x")
    assert len(sources.tfrecord(tmp_path / "x-*.tfrecord", "stored")) == 3
