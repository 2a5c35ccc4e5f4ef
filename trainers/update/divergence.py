"""Notices when updates are skipped one after the other, without reading anything from the device each step."""

from collections.abc import Sequence

import tensorflow as tf

from tftoolkit.errors import CodedError
from tftoolkit.trainers.distribution.replicas import own
from tftoolkit.trainers.update.update import Update


class TrainingDivergedError(CodedError, ArithmeticError):
    """The gradients weren't finite for many steps in a row, and rolling back didn't help or wasn't possible."""

    error_code = "training-diverged"


class DivergenceWatch(tf.Module):
    """Remembers the first step after which an update had been skipped ``patience`` times in a row.

    It is a variable that each step writes as part of its program, so the answer doesn't depend on when it is read.
    """

    def __init__(self, updates: Sequence[Update], patience: int) -> None:
        super().__init__()
        self._updates = list(updates)
        self._patience = patience
        self._step = tf.Variable(-1, dtype=tf.int64, trainable=False, name="diverged_at")

    def note(self, number: tf.Tensor) -> None:
        """To be run after step ``number`` (int64 scalar, counted from 0)."""
        if not self._updates:
            return
        in_a_row = tf.reduce_max(tf.stack([update.skipped_in_a_row.read_value() for update in self._updates]))
        now = tf.logical_and(in_a_row >= self._patience, self._step < 0)
        own(self._step).assign(tf.where(now, number, self._step))

    @property
    def step(self) -> int | None:
        """How many steps were finished when it happened, or None. Waits for the device."""
        number = int(self._step.numpy())
        return None if number < 0 else number + 1

    @property
    def calm(self) -> bool:
        """Whether no update skipped the latest step. Waits for the device."""
        return all(int(update.skipped_in_a_row.numpy()) == 0 for update in self._updates)

    @property
    def skipped(self) -> int:
        """How many updates were skipped so far. Waits for the device."""
        return sum(int(update.skipped.numpy()) for update in self._updates)

    def reset(self) -> None:
        self._step.assign(-1)
