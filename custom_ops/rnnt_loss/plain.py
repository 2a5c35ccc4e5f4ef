"""rnnt_loss in TensorFlow's operations: logarithms of sums over the lattice, diagonal by diagonal."""

from __future__ import annotations

import tensorflow as tf

from tftoolkit.custom_ops.engine import loops, refusing

NOTHING = -1e30  # the logarithm of 0, but finite, so that its gradient is


class Cells:
    """The lattice of each sequence.

    Attributes:
      bad: [batch]: has a length or a label that does not fit, which kernels refuse; all of the sequence is NaN.
      frames, counts: int32 [batch].
      labels: int32 [batch, labels], 0 behind each sequence's last.
      exist: [batch, time, labels + 1].
      may_move: [batch, time, labels + 1]: another label follows.
    """

    def __init__(
        self, labels: tf.Tensor, frames: tf.Tensor, counts: tf.Tensor, logits: tf.Tensor, blank: int, fastemit: float
    ) -> None:
        self.blank, self.fastemit = blank, fastemit
        frames, bad_frames = refusing.fitting(frames, tf.shape(logits)[1])
        counts, bad_counts = refusing.fitting(counts, tf.shape(labels)[1])
        classes, bad_labels = refusing.fitting(labels, tf.shape(logits)[-1] - 1)
        self.frames, self.counts = tf.cast(frames, tf.int32), tf.cast(counts, tf.int32)
        place = tf.range(tf.shape(labels)[1] + 1)
        counted = place[:-1] < self.counts[:, tf.newaxis]
        bad_labels = counted & (bad_labels | (classes == blank))
        self.bad = bad_frames | bad_counts | tf.reduce_any(bad_labels, axis=1)
        self.labels = tf.where(counted, tf.cast(classes, tf.int32), 0)
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


class Diagonals:
    """Logarithms of probabilities of blanks and labels, [diagonals, batch, positions], and what follows from them.

    Attributes:
      last: int32 [batch]: the diagonal of each sequence's last cell.
    """

    def __init__(self, cells: Cells, blanks: tf.Tensor, moves: tf.Tensor) -> None:
        self.cells = cells
        self.nothing = tf.constant(NOTHING, blanks.dtype)
        self.batch, self.time, self.positions = tf.unstack(tf.shape(blanks))
        self.count = self.time + self.positions  # one more, so that there is one
        frame = tf.range(self.count)[:, tf.newaxis] - tf.range(self.positions)
        self._inside = (frame >= 0) & (frame < self.time)
        self._places = tf.where(self._inside, frame * self.positions + tf.range(self.positions), 0)
        self.blanks, self.moves = self._cut(blanks, cells.exist), self._cut(moves, cells.may_move)
        self.last = cells.frames + cells.counts - 1

    def _cut(self, x: tf.Tensor, exist: tf.Tensor) -> tf.Tensor:
        """NaN counts as no way: sums over classes tell of it."""
        x = tf.where(exist & (x > NOTHING), x, self.nothing)
        padded = tf.pad(tf.reshape(x, [self.batch, self.time * self.positions]), [[0, 0], [0, 1]])
        found = tf.where(self._inside, tf.gather(padded, self._places, axis=1), self.nothing)
        return tf.transpose(found, [1, 0, 2])

    def uncut(self, x: tf.Tensor) -> tf.Tensor:
        """[batch, time, positions]."""
        position = tf.range(self.positions)
        places = (tf.range(self.time)[:, tf.newaxis] + position) * self.positions + position
        flat = tf.reshape(tf.transpose(x, [1, 0, 2]), [self.batch, self.count * self.positions])
        return tf.gather(flat, places, axis=1)

    def moved(self, x: tf.Tensor, by: int) -> tf.Tensor:
        """To the next positions, or those before."""
        place = tf.range(self.positions) - by
        return tf.where((place >= 0) & (place < self.positions), tf.roll(x, by, -1), self.nothing)

    def alphas(self) -> tf.Tensor:
        """Sums over all ways to cells; behind the first diagonal."""

        def step(alpha: tf.Tensor, here: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
            blanks, moves = here
            return _sum(alpha + blanks, self.moved(alpha + moves, 1))

        first = tf.where(tf.range(self.positions) == 0, tf.zeros([], self.blanks.dtype), self.nothing)
        first = tf.tile(first[tf.newaxis], [self.batch, 1])
        return tf.concat([first[tf.newaxis], loops.scan(step, (self.blanks, self.moves), first)], 0)

    def betas(self) -> tf.Tensor:
        """Sums over all ways on from where a step leads to; those that end behind the last cell are one."""
        end = tf.where(
            tf.range(self.positions) == self.cells.counts[:, tf.newaxis], tf.zeros([], self.blanks.dtype), self.nothing
        )

        def behind(d: tf.Tensor, beta: tf.Tensor) -> tf.Tensor:
            return tf.where((d == self.last)[..., tf.newaxis], end, beta)

        def step(beta: tf.Tensor, here: tuple[tf.Tensor, tf.Tensor, tf.Tensor]) -> tf.Tensor:
            d, blanks, moves = here
            beta = behind(d, beta)
            return _sum(beta + blanks, self.moved(beta, -1) + moves)

        places, nothing = tf.range(self.count), tf.fill([self.batch, self.positions], self.nothing)
        found = loops.scan(step, (places, self.blanks, self.moves), nothing, reverse=True)
        return behind(places[:, tf.newaxis], tf.concat([found[1:], nothing[tf.newaxis]], 0))

    def ways(self, alphas: tf.Tensor) -> tf.Tensor:
        """The logarithm of the sum over all ways; [batch]."""
        places = tf.stack([tf.maximum(self.last, 0), tf.range(self.batch), self.cells.counts], 1)
        found = tf.gather_nd(alphas[:-1] + self.blanks, places)
        is_empty = (self.cells.frames == 0) & (self.cells.counts == 0)
        return tf.where(self.cells.frames > 0, found, tf.where(is_empty, tf.zeros_like(found), self.nothing))


def _sum(one: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
    """The logarithm of the sum of exponentials."""
    largest = tf.stop_gradient(tf.maximum(one, other))
    return largest + tf.math.log(tf.exp(one - largest) + tf.exp(other - largest))


def _is_nan(cells: Cells, log_sums: tf.Tensor) -> tf.Tensor:
    """Sequences with a cell that has no softmax, and bad ones."""
    return cells.bad | tf.reduce_any(cells.exist & ~tf.math.is_finite(log_sums), axis=[1, 2])


def _loss(cells: Cells, blanks: tf.Tensor, moves: tf.Tensor, log_sums: tf.Tensor) -> tf.Tensor:
    if cells.fastemit:
        moves += cells.fastemit * (moves - tf.stop_gradient(moves))
    lattice = Diagonals(cells, blanks, moves)
    ways = lattice.ways(lattice.alphas())
    impossible = ways < NOTHING / 2
    infinite = tf.fill(tf.shape(ways), tf.constant(float("inf"), ways.dtype))
    loss = tf.where(impossible, infinite, -tf.where(impossible, tf.zeros_like(ways), ways))
    return tf.where(_is_nan(cells, log_sums), infinite - infinite, loss)


def _expected(
    cells: Cells, blanks: tf.Tensor, moves: tf.Tensor, log_sums: tf.Tensor, d_loss: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """How likely a way uses each blank and each label, those times 1 + fastemit; and d_loss [batch, 1, 1]."""
    lattice = Diagonals(cells, blanks, moves)
    alphas, betas = lattice.alphas(), lattice.betas()
    ways = lattice.ways(alphas)
    possible = ways > NOTHING / 2

    def likely(steps: tf.Tensor, on: tf.Tensor, exist: tf.Tensor) -> tf.Tensor:
        found = lattice.uncut(tf.exp(tf.minimum(alphas[:-1] + steps + on - ways[:, tf.newaxis], 1)))
        return tf.where(exist & possible[:, tf.newaxis, tf.newaxis], found, tf.zeros_like(found))

    of_blanks = likely(lattice.blanks, betas, cells.exist)
    of_moves = likely(lattice.moves, lattice.moved(betas, -1), cells.may_move)
    d_loss = tf.where(possible, d_loss, tf.zeros_like(d_loss))
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
    return tf.cast(
        refusing.spoilt(tf.where(cells.exist[..., tf.newaxis], dx, tf.zeros_like(dx)), cells.bad), logits.dtype
    )


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
    dx = refusing.spoilt(tf.where(cells.exist[..., tf.newaxis], dx, tf.zeros_like(dx)), cells.bad)
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
