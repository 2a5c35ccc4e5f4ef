"""Token files and their sources: what is written is read, damage is found, a killed writer leaves no part."""

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
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tftoolkit.pipelines import Pipeline, SourceError, sources
from tftoolkit.pipelines.sources import token_source
from tftoolkit.pipelines.sources.token_file import BLOCK_BYTES, HEADER_BYTES, TokenFile, write_token_file

DOCUMENTS = [
    np.arange(start, start + length) % 900 for start, length in [(0, 5), (700, 0), (20, 300), (3, 1), (50, 44)]
]


def write(path: Path, documents: list[np.ndarray] = DOCUMENTS, vocabulary_size: int = 1000) -> Path:
    write_token_file(path, documents, vocabulary_size, "0123456789abcdef")
    return path


def read_all(path: Path) -> None:
    file = TokenFile(path)
    file.check(file.offsets[:-1], file.offsets[1:])


def large(path: Path) -> tuple[Path, np.ndarray]:
    """A file of 20 documents in six blocks, and its tokens."""
    tokens = np.random.default_rng(0).integers(0, 60_000, 6 * BLOCK_BYTES // 2 - 100).astype(np.uint16)
    return write(path, np.array_split(tokens, 20), 60_000), tokens


@pytest.mark.parametrize(
    ("vocabulary_size", "dtype"), [(1, "u1"), (256, "u1"), (257, "u2"), (65536, "u2"), (65537, "u4"), (1 << 32, "u4")]
)
def test_the_smallest_dtype_that_fits(tmp_path: Path, vocabulary_size: int, dtype: str) -> None:
    file = write_token_file(tmp_path / "x.tokens", [np.array([vocabulary_size - 1, 0])], vocabulary_size, "")
    assert file.tokens.dtype == np.dtype(dtype)
    assert file.tokens.tolist() == [vocabulary_size - 1, 0]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(documents=st.lists(st.lists(st.integers(0, 299), max_size=9), max_size=9))
def test_what_is_written_is_read(tmp_path: Path, documents: list[list[int]]) -> None:
    file = write_token_file(tmp_path / "x.tokens", map(np.array, documents), 300, "fingerprint")
    assert (file.vocabulary_size, file.tokenizer) == (300, "fingerprint")
    assert file.offsets.tolist() == np.cumsum([0, *map(len, documents)]).tolist()
    assert file.tokens.tolist() == [token for document in documents for token in document]


def test_documents(tmp_path: Path) -> None:
    source = sources.tokens(write(tmp_path / "x.tokens"))
    assert source.element_spec == {"tokens": tf.TensorSpec([None], tf.int32)}
    assert source.lengths("tokens").tolist() == [5, 0, 300, 1, 44]
    assert source.lengths("tokens").dtype == np.int64
    for indices in ([2, 0, 1, 2], [1], []):
        rows = source.fetch(tf.constant(indices, tf.int64))["tokens"]
        assert rows.ragged_rank == 1
        assert rows.dtype == tf.int32
        assert rows.to_list() == [DOCUMENTS[index].tolist() for index in indices]
    assert source.describe(2) == "x.tokens, document 2 (tokens 5 to 304)"
    with pytest.raises(ValueError, match=r"feature='text': the source has only \['tokens'\]"):
        source.lengths("text")


@pytest.fixture(params=["op", "Python"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows are read by the compiled op, or as where nothing can be compiled."""
    monkeypatch.setattr(token_source, "_is_compiled", lambda: request.param == "op")


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize(
    ("length", "stride", "targets"), [(7, None, False), (7, 3, True), (350, None, False), (1, 9, True)]
)
def test_windows(tmp_path: Path, length: int, stride: int | None, targets: bool) -> None:
    source = sources.token_windows(write(tmp_path / "x.tokens"), length, stride, targets)
    corpus = np.concatenate(DOCUMENTS)
    starts = np.arange(0, len(corpus) - length - targets + 1, stride or length)
    assert len(source) == len(starts)
    assert source.lengths("tokens").tolist() == [length] * len(starts)
    order = np.random.default_rng(0).permutation(len(starts))
    rows = source.fetch(tf.constant(order))
    assert rows.keys() == ({"tokens", "targets"} if targets else {"tokens"}) == source.element_spec.keys()
    for shift, name in enumerate(rows):
        assert rows[name].dtype == tf.int32
        assert rows[name].numpy().tolist() == [corpus[s + shift : s + shift + length].tolist() for s in starts[order]]
    assert source.fetch(tf.zeros([0], tf.int64))["tokens"].shape == [0, length]
    assert source.describe(0) == f"x.tokens, window 0 (tokens 0 to {length + targets - 1})"


def test_in_a_pipeline(tmp_path: Path) -> None:
    path, tokens = large(tmp_path / "x.tokens")
    p = Pipeline(sources.token_windows(path, 128, targets=True), seed=1).shuffle().batch(64)
    seen = []
    for batch in p.dataset(epochs=1):
        np.testing.assert_array_equal(batch["tokens"][:, 1:], batch["targets"][:, :-1])
        seen += batch["tokens"].numpy().tolist()
    count = (len(tokens) - 1) // 128
    assert sorted(seen) == sorted(tokens[: count * 128].reshape(-1, 128).tolist())


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize("vocabulary_size", [200, 1 << 16, 1 << 32])
def test_tokens_of_any_width(tmp_path: Path, vocabulary_size: int) -> None:
    tokens = np.random.default_rng(0).integers(0, vocabulary_size, 40_000, np.int64)
    source = sources.token_windows(write_token_file(tmp_path / "x.tokens", [tokens], vocabulary_size, "").path, 1000)
    rows = source.fetch(tf.range(len(source), dtype=tf.int64))["tokens"].numpy()
    np.testing.assert_array_equal(rows.reshape(-1), tokens.astype(np.uint32).astype(np.int32))  # beyond 2^31 they wrap


def test_a_file_that_becomes_shorter_is_an_error_and_no_crash(tmp_path: Path) -> None:
    path, _ = large(tmp_path / "x.tokens")
    batches = iter(Pipeline(sources.token_windows(path, 64)).batch(8))
    next(batches)
    os.truncate(path, HEADER_BYTES + 9000)
    with pytest.raises(SourceError, match=r"x.tokens has become shorter: it ends at byte 13096"):
        list(batches)


def test_a_file_that_is_replaced_is_read_and_checked_anew(tmp_path: Path) -> None:
    for value in (1, 2):
        write_token_file(tmp_path / "x.tokens", [np.full(100, value)], 10, "")
        source = sources.token_windows(tmp_path / "x.tokens", 50)
        np.testing.assert_array_equal(source.fetch(tf.constant([1], tf.int64))["tokens"], np.full([1, 50], value))


@pytest.mark.slow
def test_the_corpus_is_not_copied_into_memory(tmp_path: Path) -> None:
    # 128 MB of tokens; what is mapped counts as shared memory of a file, a copy would be private.
    path = tmp_path / "x.tokens"
    block = np.random.default_rng(0).integers(0, 1 << 16, 1 << 20)
    write_token_file(path, (block for _ in range(64)), 1 << 16, "")
    program = f"""
from tftoolkit.pipelines import Pipeline, sources
def private():
    return int(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1]) >> 10
tiny = iter(Pipeline(sources.token_windows({str(path)!r}, 256)).shuffle().batch(8))
next(tiny)
before = private()
p = Pipeline(sources.token_windows({str(path)!r}, 256)).shuffle().batch(1024)
for batch in p.dataset(epochs=1): pass
print(private() - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 60  # MB


def test_fingerprint_follows_the_contents(tmp_path: Path) -> None:
    def fingerprint(documents: list[np.ndarray], tokenizer: str = "a", **windows: Any) -> dict[str, Any]:
        write_token_file(tmp_path / "x.tokens", documents, 1000, tokenizer)
        if windows:
            return sources.token_windows(tmp_path / "x.tokens", **windows).fingerprint()
        return sources.tokens(tmp_path / "x.tokens").fingerprint()

    changed = [*DOCUMENTS[:-1], DOCUMENTS[-1][::-1]]
    regrouped = [*DOCUMENTS[:-2], np.concatenate(DOCUMENTS[-2:]), np.array([], int)]
    different = [
        fingerprint(DOCUMENTS),
        fingerprint(changed),
        fingerprint(regrouped),
        fingerprint(DOCUMENTS, "b"),
        fingerprint(DOCUMENTS, length=5),
        fingerprint(DOCUMENTS, length=5, stride=4),
        fingerprint(DOCUMENTS, length=5, targets=True),
    ]
    assert all(one != other for i, one in enumerate(different) for other in different[:i])
    assert fingerprint(DOCUMENTS) == different[0]


@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_every_flipped_byte_is_found(tmp_path: Path, step: int) -> None:
    # The zeros that fill up the header carry nothing: a change there may stay unseen.
    path = write(tmp_path / "x.tokens")
    good = path.read_bytes()
    header_end = len(good[:HEADER_BYTES].rstrip(b"\0"))
    padding = HEADER_BYTES + 350 * 2
    positions = [*range(header_end), *range(HEADER_BYTES, padding), *range(padding + -padding % 8, len(good))]
    for position in positions[::step]:
        path.write_bytes(good[:position] + bytes([good[position] ^ 0x40]) + good[position + 1 :])
        with pytest.raises(SourceError, match=r"damaged|no token file"):
            read_all(path)


def test_damage_costs_the_documents_in_its_block_only(tmp_path: Path) -> None:
    path, tokens = large(tmp_path / "x.tokens")
    bad = 2
    with path.open("r+b") as file:
        file.seek(HEADER_BYTES + bad * BLOCK_BYTES + 99)
        file.write(b"\xff\xfe")
    source = sources.tokens(path)
    ends = source.lengths("tokens").cumsum() * 2
    for index in range(len(source)):
        begin, end = ends[index] - source.lengths("tokens")[index] * 2, ends[index]
        if begin < (bad + 1) * BLOCK_BYTES and end > bad * BLOCK_BYTES:
            place = f"{HEADER_BYTES + bad * BLOCK_BYTES} and byte {HEADER_BYTES + (bad + 1) * BLOCK_BYTES}"
            with pytest.raises(
                (SourceError, tf.errors.UnknownError), match=f"x.tokens is damaged between byte {place}"
            ):
                source.fetch(tf.constant([index], tf.int64))
        else:
            rows = source.fetch(tf.constant([index], tf.int64))["tokens"]
            np.testing.assert_array_equal(rows[0], tokens[begin // 2 : end // 2])


@pytest.mark.usefixtures("reader")
def test_damage_is_skipped_if_asked_for(tmp_path: Path) -> None:
    path, tokens = large(tmp_path / "x.tokens")
    with path.open("r+b") as file:
        file.seek(HEADER_BYTES + 2 * BLOCK_BYTES + 99)
        file.write(b"\xff\xfe")
    p = Pipeline(sources.token_windows(path, 1024), on_error="skip", max_skipped=0.5).batch(50)
    rows = np.concatenate([batch["tokens"].numpy() for batch in p.dataset(epochs=1)])
    windows = tokens[: len(tokens) // 1024 * 1024].reshape(-1, 1024)
    per_block = BLOCK_BYTES // 2 // 1024
    np.testing.assert_array_equal(rows, np.delete(windows, range(2 * per_block, 3 * per_block), axis=0))


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda data: b"", "is no token file: it begins with b''"),
        (lambda data: b"PK\3\4" + bytes(9000), r"is no token file: it begins with b'PK"),
        (lambda data: data[:2000], "is damaged: it has 2000 bytes, but 4852 according to its header"),
        (lambda data: data[:-1], "is damaged: it has 4851 bytes"),
        (lambda data: data + b"x", "is damaged: it has 4853 bytes"),
        (lambda data: data[:40], "the checksum of its header is wrong"),
    ],
)
def test_foreign_and_truncated_files_are_refused(tmp_path: Path, damage: Any, text: str) -> None:
    path = write(tmp_path / "x.tokens")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(SourceError, match=text):
        sources.tokens(path)


@pytest.mark.slow
def test_a_writer_that_is_killed_leaves_the_old_file(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tokens")
    before = path.read_bytes()
    program = f"""
import numpy as np
from tftoolkit.pipelines.sources import token_source
from tftoolkit.pipelines.sources.token_file import write_token_file
def documents():
    for number in range(10**9):
        if number == 1000: print("writing", flush=True)
        yield np.arange(1000)
write_token_file({str(path)!r}, documents(), 1000, "")
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        time.sleep(0.2)
        os.kill(process.pid, signal.SIGKILL)
    assert path.read_bytes() == before
    assert len(sources.tokens(path)) == 5


def test_a_failing_corpus_leaves_nothing(tmp_path: Path) -> None:
    def documents() -> Any:
        yield np.arange(9)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_token_file(tmp_path / "x.tokens", documents(), 1000, "")
    with pytest.raises(ValueError, match=r"number 1 holds the tokens 3 to 1000; they must be in \[0, 1000\)"):
        write(tmp_path / "x.tokens", [np.arange(3), np.array([1000, 3])])
    with pytest.raises(ValueError, match="number 0 holds the tokens -1 to 3"):
        write(tmp_path / "x.tokens", [np.array([3, -1])])
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"missing/x.tokens cannot be written: No such file or directory"):
        write(tmp_path / "missing" / "x.tokens")
    with pytest.raises(FileNotFoundError, match=r"no token file .*x.tokens; text.write_tokens makes one"):
        sources.tokens(tmp_path / "x.tokens")
    with pytest.raises(SourceError, match="cannot be read: Is a directory"):
        sources.tokens(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"length": 0}, ValueError, "length=0: must be at least 1"),
        ({"length": 2.0}, TypeError, "length: expected an integer"),
        ({"length": 5, "stride": 0}, ValueError, "stride=0"),
        (
            {"length": 350, "targets": True},
            ValueError,
            "x.tokens has only 350 tokens, one window needs 351",
        ),
    ],
)
def test_bad_windows_are_named(tmp_path: Path, arguments: Any, error: type[Exception], text: str) -> None:
    path = write(tmp_path / "x.tokens")
    with pytest.raises(error, match=text):
        sources.token_windows(path, **arguments)
