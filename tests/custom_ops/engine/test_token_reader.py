"""The op that reads windows of tokens refuses what is not in the file, and what does not fit together."""

import zlib

import numpy as np
import pytest
import tensorflow as tf

from tftoolkit.custom_ops.engine.token_reader import read_tokens

TOKENS = np.arange(100, dtype="<u2")
SETTINGS = {"header_bytes": 3, "block_bytes": 64, "item_bytes": 2, "tokens": 100, "length": 10}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "tokens.bin"
    path.write_bytes(b"abc" + TOKENS.tobytes())
    data = TOKENS.tobytes()
    return str(path), [zlib.crc32(data[i : i + 64]) for i in range(0, 200, 64)]


def test_windows_in_any_order(file):
    found = tf.function(lambda starts: read_tokens(*file, starts, **SETTINGS))(tf.constant([90, 0, 31, 31], tf.int64))
    np.testing.assert_array_equal(found, [np.arange(s, s + 10) for s in (90, 0, 31, 31)])
    assert read_tokens(*file, np.zeros(0, np.int64), **SETTINGS).shape == [0, 10]


def test_the_shape_is_known_while_it_is_traced(file):
    specs = tf.TensorSpec([None], tf.int64)
    traced = tf.function(lambda starts: read_tokens(*file, starts, **SETTINGS)).get_concrete_function(specs)
    assert traced.output_shapes.as_list() == [None, 10]


@pytest.mark.parametrize(("starts", "changes", "message"), [
    ([91], {}, "no 10 tokens from number 91 on"), ([-1], {}, "no 10 tokens from number -1 on"),
    ([0], {"item_bytes": 3}, "item_bytes must be 1, 2 or 4, not 3"), ([0], {"length": 101}, "no window of 101 tokens"),
    ([0], {"tokens": 101, "block_bytes": 50}, "101 tokens lie in 5 blocks, but there are 4 checksums"),
    ([[0]], {}, "Shape must be rank 1|starts vectors"), ([0], {"tokens": 2**62}, "no window of 10 tokens in"),
    ([2**63 - 1], {}, "no 10 tokens from number"),
])  # fmt: skip
def test_what_is_not_there_is_refused(file, starts, changes, message):
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        read_tokens(*file, starts, **{**SETTINGS, **changes})


def test_damage_is_found_in_its_block_alone(file):
    path, checksums = file
    with open(path, "r+b") as one:
        one.seek(3 + 70)
        one.write(b"\xff")
    for start in (0, 64, 22):
        assert read_tokens(path, checksums, [start], **SETTINGS)[0, 0] == start
    with pytest.raises(tf.errors.DataLossError, match="damaged between byte 67 and byte 131: wrong checksum"):
        read_tokens(path, checksums, [23], **SETTINGS)


def test_no_such_file(tmp_path):
    with pytest.raises(tf.errors.NotFoundError, match=r"cannot open .*nothing"):
        read_tokens(str(tmp_path / "nothing"), [0] * 4, [0], **SETTINGS)
