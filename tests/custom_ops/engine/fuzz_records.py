"""Fuzzing of the record reader."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from fuzz_ops import CLEAR, WrongError

from tftoolkit import custom_ops
from tftoolkit.custom_ops.engine import tf_host


class RecordsSubject:
    """ReadRecords and IndexRecords: places in a file, right, near to right and wild; files whole and damaged."""

    ERRORS = (
        *CLEAR, tf.errors.NotFoundError, tf.errors.OutOfRangeError, tf.errors.DataLossError,
        tf.errors.FailedPreconditionError,
    )  # fmt: skip

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="tftoolkit-fuzz-")
        self.path = str(Path(self.folder.name) / "records")
        self.damaged = str(Path(self.folder.name) / "damaged")
        rng = random.Random(0)
        self.records = [rng.randbytes(rng.choice([0, 1, 3, 7, 22, 23, 24, 300])) for _ in range(40)]
        with tf.io.TFRecordWriter(self.path) as writer:
            for record in self.records:
                writer.write(record)
        self.content = Path(self.path).read_bytes()
        self.lengths = np.array([len(record) for record in self.records])
        self.offsets = np.cumsum(self.lengths + 16) - self.lengths - 16

    def case(self, rng: random.Random) -> None:
        rng.choices([self.valid, self.wild, self.ill_typed, self.damage], [3, 4, 2, 1])[0](rng)

    def valid(self, rng: random.Random) -> None:
        order = [rng.randrange(len(self.records)) for _ in range(rng.randrange(6))]
        path = self.path if rng.random() < 0.5 else tf.constant([self.path] * len(order), tf.string)
        found = custom_ops.read_records(path, self.offsets[order], self.lengths[order])
        if found.numpy().tolist() != [self.records[i] for i in order]:
            raise WrongError(f"records {order} are wrong")

    def wild(self, rng: random.Random) -> None:
        numbers = (0, 1, -1, 12, 16, len(self.content) - 16, len(self.content), 2**31, 2**63 - 1, -(2**63))

        def choose(right: np.ndarray) -> int:
            return rng.choice([int(rng.choice(right)), int(rng.choice(right)), rng.choice(numbers)])

        offsets = [choose(self.offsets) for _ in range(rng.randrange(1, 4))]
        lengths = [choose(self.lengths) for _ in offsets]
        path = rng.choice([self.path, self.path, self.path, "", self.folder.name, "\0", "nothing://x", "/dev/null"])
        try:
            found = custom_ops.read_records(path, offsets, lengths).numpy().tolist()
        except (*self.ERRORS, tf.errors.UnimplementedError):
            return
        places = {(int(o), int(n)): r for o, n, r in zip(self.offsets, self.lengths, self.records, strict=True)}
        if path != self.path or found != [places.get(place) for place in zip(offsets, lengths, strict=True)]:
            raise WrongError(f"{path!r}, {offsets}, {lengths} gave {found}")

    def ill_typed(self, rng: random.Random) -> None:
        def argument(right: Any) -> Any:
            wrong = (
                None,
                1.5,
                "text",
                [[0]],
                [],
                tf.zeros([1], tf.int32),
                tf.zeros([2, 0], tf.int64),
                object(),
                [2**70],
            )
            return right if rng.random() < 0.6 else rng.choice(wrong)

        arguments = [argument(value) for value in (self.path, [0], [len(self.records[0])], [0])]
        arguments = arguments[: rng.choice([4, 4, 4, 1, 2])]
        run = rng.choice([custom_ops.read_records, tf_host.plain_ops().tf_toolkit_read_records])
        try:
            found = run(*arguments).numpy().tolist()
        except (*self.ERRORS, OverflowError):
            return
        if found not in ([], [self.records[0]]):
            raise WrongError(f"{arguments} gave {found}")

    def damage(self, rng: random.Random) -> None:
        content = bytearray(self.content[: rng.randrange(len(self.content) + 1)])
        if content and rng.random() < 0.5:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        Path(self.damaged).write_bytes(content)
        try:
            lengths = custom_ops.index_records(self.damaged).numpy()
            found = custom_ops.read_records(self.damaged, np.cumsum(lengths + 16) - lengths - 16, lengths)
        except tf.errors.DataLossError:
            return
        if found.numpy().tolist() != self.records[: len(lengths)]:
            raise WrongError("a damaged file gave other records")
