"""read_records and index_records: in every mode, from many threads, and every kind of error."""

import concurrent.futures
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tftoolkit import custom_ops
from tftoolkit.custom_ops.engine.record_reader import FRAME_BYTES

RECORDS = [bytes([i % 256]) * (i * 37 % 900) for i in range(300)]
LENGTHS = np.array([len(record) for record in RECORDS])
OFFSETS = np.cumsum(LENGTHS + 16) - LENGTHS - 16


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = str(tmp_path_factory.mktemp("records") / "a.tfrecord")
    with tf.io.TFRecordWriter(file) as writer:
        for record in RECORDS:
            writer.write(record)
    return file


def test_the_index_holds_all_lengths(path: str, tmp_path: Path) -> None:
    np.testing.assert_array_equal(custom_ops.index_records(path), LENGTHS)
    (tmp_path / "empty").touch()
    assert custom_ops.index_records(str(tmp_path / "empty")).shape == [0]
    begin = int(np.sum(LENGTHS[:2])) + 2 * FRAME_BYTES
    np.testing.assert_array_equal(custom_ops.index_records(path, begin, 2), LENGTHS[2:])
    np.testing.assert_array_equal(custom_ops.index_records(path, begin, 2, 1), LENGTHS[2:3])
    assert custom_ops.index_records(path, Path(path).stat().st_size, len(LENGTHS)).shape == [0]
    with pytest.raises(tf.errors.DataLossError, match=f"record 2 at offset {begin + 1}"):
        custom_ops.index_records(path, begin + 1, 2)
    for wrong in ((-1,), (0, -1), (0, 0, -1)):
        with pytest.raises(tf.errors.InvalidArgumentError, match="not negative"):
            custom_ops.index_records(path, *wrong)


@settings(deadline=None, max_examples=10)
@given(order=st.lists(st.integers(0, len(RECORDS) - 1), max_size=50))
def test_any_order_gives_the_records(path: str, order: list[int]) -> None:
    chosen = np.array(order, np.int64)
    records = custom_ops.read_records(path, OFFSETS[chosen], LENGTHS[chosen])
    assert records.numpy().tolist() == [RECORDS[i] for i in order]


def test_each_record_from_a_file_of_its_own(path: str, tmp_path: Path) -> None:
    files = [path]
    for i in range(3):
        files.append(str(tmp_path / str(i)))
        with tf.io.TFRecordWriter(files[-1]) as writer:
            writer.write(str(i).encode())
    order = [0, 2, 1, 0, 3]
    offsets = [0, 0, 0, int(OFFSETS[7]), 0]
    lengths = [int(LENGTHS[0]), 1, 1, int(LENGTHS[7]), 1]
    records = custom_ops.read_records([files[i] for i in order], offsets, lengths)
    assert records.numpy().tolist() == [RECORDS[0], b"1", b"0", RECORDS[7], b"2"]


def test_in_graphs_and_data_sets(path: str) -> None:
    function = tf.function(custom_ops.read_records)
    assert function(path, OFFSETS, LENGTHS).numpy().tolist() == RECORDS
    places = tf.data.Dataset.from_tensor_slices((OFFSETS, LENGTHS)).batch(7)
    batches = places.map(lambda offsets, lengths: custom_ops.read_records(path, offsets, lengths), tf.data.AUTOTUNE)
    assert batches.element_spec == tf.TensorSpec([None], tf.string)
    assert [record for batch in batches.as_numpy_iterator() for record in batch] == RECORDS
    static = tf.function(custom_ops.read_records).get_concrete_function(
        tf.TensorSpec(None, tf.string), tf.TensorSpec([None], tf.int64), tf.TensorSpec([5], tf.int64)
    )
    assert static.output_shapes == [5]


def test_xla_says_that_it_has_no_such_kernel(path: str) -> None:
    with pytest.raises(tf.errors.InvalidArgumentError, match="No registered 'TfToolkit>ReadRecords' OpKernel for XLA"):
        tf.function(custom_ops.read_records, jit_compile=True)(path, OFFSETS, LENGTHS)


@pytest.mark.slow
def test_from_many_threads(path: str) -> None:
    graph = tf.function(custom_ops.read_records)

    def read(seed: int) -> bool:
        rng = np.random.default_rng(seed)
        function = (custom_ops.read_records, graph)[seed % 2]
        for _ in range(20):
            chosen = rng.integers(0, len(RECORDS), rng.integers(0, 64))
            if function(path, OFFSETS[chosen], LENGTHS[chosen]).numpy().tolist() != [RECORDS[i] for i in chosen]:
                return False
        return True

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(32)))


END = int(OFFSETS[-1] + LENGTHS[-1] + 16)
WRONG = [
    ({"path": "{}.nothing"}, tf.errors.NotFoundError, r"cannot open .*\.nothing: "),
    ({"offsets": [END]}, tf.errors.OutOfRangeError, f"record 0 at offset {END}: .* behind the file's end at {END}"),
    ({"lengths": [2**63 - 1]}, tf.errors.OutOfRangeError, "behind the file's end"),
    ({"offsets": [2**63 - 1], "lengths": [2**63 - 1]}, tf.errors.OutOfRangeError, "behind the file's end"),
    ({"offsets": [1]}, tf.errors.DataLossError, "record 0 at offset 1: it is damaged, or no record begins there"),
    ({"lengths": [1]}, tf.errors.InvalidArgumentError, "at offset 0: it has 0 bytes of data, not 1"),
    ({"offsets": [-1]}, tf.errors.InvalidArgumentError, "offset -1 and length 0 must not be negative"),
    ({"lengths": [-1]}, tf.errors.InvalidArgumentError, "offset 0 and length -1 must not be negative"),
    ({"offsets": 0, "lengths": 0}, tf.errors.InvalidArgumentError, r"offsets has shape \[\], but must be a vector"),
    ({"lengths": [0, 0]}, tf.errors.InvalidArgumentError, r"lengths has shape \[2\], but must be of the same shape"),
    ({"numbers": []}, tf.errors.InvalidArgumentError, r"numbers has shape \[0\], but must be of the same shape"),
    ({"path": ["{}", "{}"]}, tf.errors.InvalidArgumentError, r"path has shape \[2\], but must be a scalar, or"),
    ({"numbers": [77], "offsets": [3]}, tf.errors.DataLossError, "record 77 at offset 3"),
]


@pytest.mark.parametrize(("change", "error", "text"), WRONG, ids=[str(change) for change, _, _ in WRONG])
def test_what_is_wrong_is_told(path: str, change: dict, error: type[Exception], text: str) -> None:
    arguments = {"path": "{}", "offsets": [0], "lengths": [0], "numbers": [0]} | change
    paths = arguments.pop("path")
    paths = paths.format(path) if isinstance(paths, str) else [one.format(path) for one in paths]
    arguments = {name: tf.constant(value, tf.int64) for name, value in arguments.items()}
    with pytest.raises(error, match=re.compile(text, re.DOTALL)) as caught:
        custom_ops.read_records(paths, **arguments)
    if "record" in text:
        assert path in str(caught.value)


def test_a_long_length_in_a_damaged_file_takes_no_memory(tmp_path: Path) -> None:
    """A sparse file: the record could be that long, but its header is read first."""
    file = tmp_path / "sparse"
    with file.open("wb") as stream:
        stream.truncate(2**43)
    with pytest.raises(tf.errors.DataLossError):
        custom_ops.read_records(str(file), [0], [2**42])


def test_small_and_large_records_in_one_call(tmp_path: Path) -> None:
    lengths = np.random.default_rng(0).choice([0, 5, 900, (1 << 14) - 1, 1 << 14, (1 << 14) + 1, 100_000], 1000)
    records = [bytes([i % 251]) * length for i, length in enumerate(lengths)]
    with tf.io.TFRecordWriter(str(tmp_path / "a")) as writer:
        for record in records:
            writer.write(record)
    offsets = np.cumsum(lengths + 16) - lengths - 16
    order = np.random.default_rng(1).permutation(len(records))
    read = custom_ops.read_records(str(tmp_path / "a"), offsets[order], lengths[order]).numpy()
    assert all(read[i] == records[k] for i, k in enumerate(order))


SHRINKING = """
import os, sys, threading, time
import numpy as np, tensorflow as tf
from tftoolkit import custom_ops
from tftoolkit.custom_ops.engine.record_reader import FRAME_BYTES

path, record, count = sys.argv[1], b"x" * 500, 2000
with tf.io.TFRecordWriter(path) as writer:
    for _ in range(count):
        writer.write(record)
content = open(path, "rb").read()
file, stopped = os.open(path, os.O_RDWR), threading.Event()

def shrink():
    while not stopped.is_set():
        os.ftruncate(file, 4096)
        os.pwrite(file, content, 0)

thread = threading.Thread(target=shrink)
thread.start()
offsets, outcomes, end = np.arange(count) * 516, {True: 0, False: 0}, time.monotonic() + 4
while time.monotonic() < end:
    try:
        records = custom_ops.read_records(path, offsets, np.full(count, 500))
        assert set(records.numpy()) == {record}
        outcomes[True] += 1
    except (tf.errors.DataLossError, tf.errors.OutOfRangeError):
        outcomes[False] += 1
stopped.set()
thread.join()
assert min(outcomes.values()), outcomes
"""


@pytest.mark.slow
def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    """Its pages are mapped, and touching those behind its end would end the process."""
    subprocess.run([sys.executable, "-c", SHRINKING, str(tmp_path / "a")], check=True, timeout=120)


def test_every_flipped_bit_of_a_large_record_is_found(tmp_path: Path) -> None:
    file = tmp_path / "large"
    with tf.io.TFRecordWriter(str(file)) as writer:
        writer.write(random.Random(0).randbytes(3 << 20))
    content = bytearray(file.read_bytes())
    assert custom_ops.read_records(str(file), [0], [3 << 20]).numpy()[0] == content[12:-4]
    for position in random.Random(1).sample(range(len(content)), 20):
        content[position] ^= 1 << position % 8
        file.write_bytes(content)
        with pytest.raises(tf.errors.DataLossError, match="record 0 at offset 0: it is damaged"):
            custom_ops.read_records(str(file), [0], [3 << 20])
        content[position] ^= 1 << position % 8
