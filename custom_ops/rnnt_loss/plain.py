"""rnnt_loss in TensorFlow's operations: logarithms of sums over the lattice, diagonal by diagonal."""

from __future__ import annotations

import tensorflow as tf

NOTHING = -1e30  # the logarithm of 0, but finite, so that its gradient is


class Cells:
    """The lattice of each sequence.

    Attributes:
      frames, counts: int32 [batch].
      labels: int32 [batch, labels], 0 behind each sequence's last.
      exist: [batch, time, labels + 1].
      may_move: [batch, time, labels + 1]: another label follows.
    """

    def __init__(
        self, labels: tf.Tensor, frames: tf.Tensor, counts: tf.Tensor, logits: tf.Tensor, blank: int, fastemit: float
    ) -> None:
        self.blank, self.fastemit = blank, fastemit
        self.frames, self.counts = tf.cast(frames, tf.int32), tf.cast(counts, tf.int32)
        place = tf.range(tf.shape(labels)[1] + 1)
        counted = place[:-1] < self.counts[:, tf.newaxis]
        self.labels = tf.where(counted, tf.cast(labels, tf.int32), 0)
        is_frame = tf.range(tf.shape(logits)[1]) < self.frames[:, tf.newaxis]
        self.exist = is_frame[..., tf.newaxis] & (place <= self.counts[:, tf.newaxis])[:, tf.newaxis]
        self.may_move = is_frame[..., tf.newaxis] & (place < self.counts[:, tf.newaxis])[:, tf.newaxis]

    def of_labels(self, x: tf.Tensor) -> tf.Tensor:
        """[batch, time, positions, classes] at the label that follows; [batch, time, positions]."""
        classes = tf.pad(self.labels, [[0, 0], [0, 1]])[:, tf.newaxis]
        classes = tf.broadcast_to(classes, tf.shape(x)[:3])
        return tf.gather(x, classes, axis=3, batch_dims=3)

    def one_hot(self, x: tf.Tensor, blanks: tf.Tensor, moves: tf.Tensor) -> tf.Tensor:
        """[..., classes]: what blanks and labels get."""
        classes = tf.shape(x)[-1]
        following = tf.pad(self.labels, [[0, 0], [0, 1]])[:, tf.newaxis, :, tf.newaxis] == tf.range(classes)
        zero = tf.zeros_like(x)
        at_blank = tf.where(tf.range(classes) == self.blank, blanks[..., tf.newaxis] + zero, zero)
        return at_blank + tf.where(following & self.may_move[..., tf.newaxis], moves[..., tf.newaxis] + zero, zero)


def _ways(cells: Cells, blanks: tf.Tensor, moves: tf.Tensor) -> tf.Tensor:
    """The logarithm of the sum over all ways; of logarithms of probabilities [batch, time, positions]."""
    nothing = tf.constant(NOTHING, blanks.dtype)
    batch, time, positions = tf.unstack(tf.shape(blanks))
    diagonals = time + positions - 1
    frame = tf.range(diagonals)[:, tf.newaxis] - tf.range(positions)
    inside = (frame >= 0) & (frame < time)
    places = tf.where(inside, frame * positions + tf.range(positions), 0)

    def by_diagonal(x: tf.Tensor, exist: tf.Tensor) -> tf.Tensor:
        x = tf.where(exist & ~(x < NOTHING), x, nothing)
        padded = tf.concat([tf.reshape(x, [batch, time * positions]), tf.fill([batch, 1], nothing)], axis=1)
        return tf.where(inside, tf.gather(padded, places, axis=1), nothing)

    blanks, moves = by_diagonal(blanks, cells.exist), by_diagonal(moves, cells.may_move)
    last = cells.frames + cells.counts - 1

    def step(d: tf.Tensor, alpha: tf.Tensor, found: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        stayed = alpha + blanks[:, d]
        ends = tf.gather(stayed, cells.counts, batch_dims=1)
        moved = tf.concat([tf.fill([batch, 1], nothing), (alpha + moves[:, d])[:, :-1]], axis=1)
        largest = tf.stop_gradient(tf.maximum(stayed, moved))
        following = largest + tf.math.log(tf.exp(stayed - largest) + tf.exp(moved - largest))
        return d + 1, following, tf.where(d == last, ends, found)

    start = tf.where(tf.range(positions) == 0, tf.zeros([], blanks.dtype), nothing)
    _, _, found = tf.while_loop(
        lambda d, *_: d < diagonals, step, (0, tf.tile(start[tf.newaxis], [batch, 1]), tf.fill([batch], nothing)),
        shape_invariants=(tf.TensorShape([]), tf.TensorShape([None, None]), tf.TensorShape([None])),
        maximum_iterations=diagonals,
    )  # fmt: skip
    return tf.where((cells.frames == 0) & (cells.counts == 0), tf.zeros_like(found), found)


def _is_nan(cells: Cells, log_sums: tf.Tensor) -> tf.Tensor:
    """Sequences with a cell that has no softmax."""
    return tf.reduce_any(cells.exist & ~tf.math.is_finite(log_sums), axis=[1, 2])


def _loss(cells: Cells, blanks: tf.Tensor, moves: tf.Tensor, log_sums: tf.Tensor) -> tf.Tensor:
    if cells.fastemit:
        moves += cells.fastemit * (moves - tf.stop_gradient(moves))
    ways = _ways(cells, blanks, moves)
    impossible = ways < NOTHING / 2
    infinite = tf.fill(tf.shape(ways), tf.constant(float("inf"), ways.dtype))
    loss = tf.where(impossible, infinite, -tf.where(impossible, tf.zeros_like(ways), ways))
    return tf.where(_is_nan(cells, log_sums), infinite - infinite, loss)


def _expected(
    cells: Cells, blanks: tf.Tensor, moves: tf.Tensor, log_sums: tf.Tensor, d_loss: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """How likely a way uses each blank and each label, those times 1 + fastemit; and d_loss [batch, 1, 1]."""
    with tf.GradientTape() as tape:
        tape.watch([blanks, moves])
        ways = _ways(cells, blanks, moves)
    of_blanks, of_moves = tape.gradient(ways, [blanks, moves], unconnected_gradients="zero")
    d_loss = tf.where(ways < NOTHING / 2, tf.zeros_like(d_loss), d_loss)
    not_a_number = tf.fill(tf.shape(d_loss), tf.constant(float("nan"), d_loss.dtype))
    d_loss = tf.where(_is_nan(cells, log_sums), not_a_number, d_loss)
    return of_blanks, of_moves * (1 + cells.fastemit), d_loss[:, tf.newaxis, tf.newaxis]


def losses(cells: Cells, logits: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Losses, each cell's largest logit, and its sum of e^(logit - largest)."""
    x = _wide(cells, logits)
    largest = _finite(tf.stop_gradient(tf.reduce_max(x, axis=-1)))
    total = tf.reduce_sum(tf.exp(x - largest[..., tf.newaxis]), axis=-1)
    total = tf.where(cells.exist, total, tf.ones_like(total))
    log_sums = tf.math.log(total)
    blanks = x[..., cells.blank] - largest - log_sums
    return _loss(cells, blanks, cells.of_labels(x) - largest - log_sums, log_sums), largest, total


def gradient(
    cells: Cells, logits: tf.Tensor, d_loss: tf.Tensor, d_sum: tf.Tensor, largest: tf.Tensor, total: tf.Tensor
) -> tf.Tensor:
    """By the logits."""
    x = _wide(cells, logits)
    total = tf.where(cells.exist, total, tf.ones_like(total))
    log_sums = tf.math.log(total)
    blanks, moves = x[..., cells.blank] - largest - log_sums, cells.of_labels(x) - largest - log_sums
    of_blanks, of_moves, d_loss = _expected(cells, blanks, moves, log_sums, d_loss)
    scale = d_loss * (of_blanks + of_moves) / total + d_sum
    dx = tf.exp(x - largest[..., tf.newaxis]) * scale[..., tf.newaxis]
    dx -= d_loss[..., tf.newaxis] * cells.one_hot(x, of_blanks, of_moves)
    return tf.cast(tf.where(cells.exist[..., tf.newaxis], dx, tf.zeros_like(dx)), logits.dtype)


def additive_losses(cells: Cells, encoder: tf.Tensor, predictor: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Losses, and the logarithms of the cells' sums of e^(logit - the largest of both rows)."""
    x = _centred(cells, encoder, predictor)
    largest = _finite(tf.stop_gradient(tf.reduce_max(x, axis=-1)))
    log_sums = largest + tf.math.log(tf.reduce_sum(tf.exp(x - largest[..., tf.newaxis]), axis=-1))
    log_sums = tf.where(cells.exist, log_sums, tf.zeros_like(log_sums))
    return _loss(cells, x[..., cells.blank] - log_sums, cells.of_labels(x) - log_sums, log_sums), log_sums


def additive_gradients(
    cells: Cells, encoder: tf.Tensor, predictor: tf.Tensor, d_loss: tf.Tensor, d_log_sum: tf.Tensor, log_sums: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """By encoder and predictor."""
    x = _centred(cells, encoder, predictor)
    blanks, moves = x[..., cells.blank] - log_sums, cells.of_labels(x) - log_sums
    of_blanks, of_moves, d_loss = _expected(cells, blanks, moves, log_sums, d_loss)
    share = d_loss * (of_blanks + of_moves) + d_log_sum
    dx = tf.exp(x - log_sums[..., tf.newaxis]) * share[..., tf.newaxis]
    dx -= d_loss[..., tf.newaxis] * cells.one_hot(x, of_blanks, of_moves)
    dx = tf.where(cells.exist[..., tf.newaxis], dx, tf.zeros_like(dx))
    return tf.cast(tf.reduce_sum(dx, axis=2), encoder.dtype), tf.cast(tf.reduce_sum(dx, axis=1), encoder.dtype)


def _finite(x: tf.Tensor) -> tf.Tensor:
    return tf.where(tf.math.is_finite(x), x, tf.zeros_like(x))


def _wide(cells: Cells, logits: tf.Tensor) -> tf.Tensor:
    """In float32, and zeros where there is no cell."""
    wide = tf.cast(logits, tf.float32)
    return tf.where(cells.exist[..., tf.newaxis], wide, tf.zeros_like(wide))


def _centred(cells: Cells, encoder: tf.Tensor, predictor: tf.Tensor) -> tf.Tensor:
    """The joint tensor, less the largest of each row."""
    encoder, predictor = (
        x - _finite(tf.stop_gradient(tf.reduce_max(x, axis=-1, keepdims=True)))
        for x in (tf.cast(encoder, tf.float32), tf.cast(predictor, tf.float32))
    )
    return _wide(cells, encoder[:, :, tf.newaxis] + predictor[:, tf.newaxis])
