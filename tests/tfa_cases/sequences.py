"""Optimizers, schedules, recurrent cells, sequences, text."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfa_cases import case, ops, recipe

_RANDOM = np.random.default_rng(1)


def _normal(*shape: int) -> np.ndarray:
    return _RANDOM.normal(size=shape).astype(np.float32)


# Optimizers, over 12 steps with a matrix and a vector.
WEIGHTS = [_normal(3, 4), _normal(4)]
GRADIENTS = [[_normal(3, 4) * 10.0 ** (i % 3 - 1), _normal(4)] for i in range(12)]


def _flat(variables: list[Any]) -> np.ndarray:
    return np.concatenate([np.ravel(variable) for variable in variables])


def _theirs(optimizer: Any) -> np.ndarray:
    variables = [tf.Variable(weight) for weight in WEIGHTS]
    for gradients in GRADIENTS:
        optimizer.apply_gradients([(tf.constant(g), v) for g, v in zip(gradients, variables, strict=True)])
    return _flat(variables)


def _ours(optimizer: Any) -> np.ndarray:
    variables = [tf.Variable(weight) for weight in WEIGHTS]
    optimizer.build(variables)
    for gradients in GRADIENTS:
        optimizer.step([tf.constant(g) for g in gradients], tf.constant(True))
    return _flat(variables)


def optimizers() -> Any:
    from tftoolkit.trainers import optimizers

    return optimizers


def _optimizer(name: str, there: Callable[[Any], Any], here: Callable[[], Any], tolerance: float = 2e-5) -> None:
    case(f"optimizers.{name}", lambda a: _theirs(there(a.optimizers)), lambda: _ours(here()), tolerance)


_optimizer(
    "ConditionalGradient",
    lambda o: o.ConditionalGradient(0.9, 0.5),
    lambda: recipe("optimizers").ConditionalGradient(0.9, 0.5),
)
for averaging in (False, True):
    _optimizer(
        f"NovoGrad {averaging}",
        lambda o, x=averaging: o.NovoGrad(0.1, weight_decay=0.1, grad_averaging=x),
        lambda x=averaging: recipe("optimizers").NovoGrad(0.1, l2=0.1, grad_averaging=x),
    )
_optimizer(
    "ProximalAdagrad",
    lambda o: o.ProximalAdagrad(0.1, l1_regularization_strength=0.1, l2_regularization_strength=0.2),
    lambda: recipe("optimizers").ProximalAdagrad(0.1, l1=0.1, l2=0.2),
)
_optimizer(
    "RectifiedAdam",
    lambda o: o.RectifiedAdam(0.1, beta_2=0.9, weight_decay=0.1, epsilon=1e-3),
    lambda: recipe("optimizers").RectifiedAdam(0.1, beta_2=0.9, weight_decay=0.1, epsilon=1e-3),
)
_optimizer("AdaBelief", lambda o: o.AdaBelief(0.1, beta_2=0.9), lambda: recipe("optimizers").AdaBelief(0.1, beta_2=0.9))
_optimizer("Yogi", lambda o: o.Yogi(0.1), lambda: recipe("optimizers").Yogi(0.1))
_optimizer("COCOB", lambda o: o.COCOB(), lambda: recipe("optimizers").COCOB())
_optimizer("LAMB", lambda o: o.LAMB(0.1, weight_decay=0.1), lambda: optimizers().Lamb(0.1, weight_decay=0.1), 1e-4)
# There the decay isn't multiplied by the learning rate, here it is.
_optimizer(
    "AdamW",
    lambda o: o.AdamW(0.02, 0.1, epsilon=1e-12),
    lambda: optimizers().AdamW(0.1, weight_decay=0.2, epsilon=1e-12),
    1e-4,
)
_optimizer(
    "Lookahead",
    lambda o: o.Lookahead(_sgd(o), sync_period=5, slow_step_size=0.4),
    lambda: optimizers().Lookahead(optimizers().Sgd(0.1), sync_period=5, slow_step_size=0.4),
)


def _sgd(module: Any) -> Any:
    import tf_keras

    return tf_keras.optimizers.legacy.SGD(0.1)


def _their_swa(module: Any) -> np.ndarray:
    variables, optimizer = [tf.Variable(weight) for weight in WEIGHTS], module.SWA(_sgd(module), 3, 4)
    for gradients in GRADIENTS:
        optimizer.apply_gradients([(tf.constant(g), v) for g, v in zip(gradients, variables, strict=True)])
    optimizer.assign_average_vars(variables)
    return _flat(variables)


def _our_swa() -> np.ndarray:
    variables, optimizer = (
        [tf.Variable(weight) for weight in WEIGHTS],
        optimizers().SWA(optimizers().Sgd(0.1), start=4, period=4),
    )
    optimizer.build(variables)
    for gradients in GRADIENTS:
        optimizer.step([tf.constant(g) for g in gradients], tf.constant(True))
    with optimizer.swa_weights():
        return _flat(variables)


case("optimizers.SWA", lambda a: _their_swa(a.optimizers), _our_swa)

STEPS = range(0, 25)
for name, options in (
    ("TriangularCyclicalLearningRate", {}),
    ("Triangular2CyclicalLearningRate", {"scale_fn": lambda cycle: 2.0 ** (1 - cycle)}),
    ("ExponentialCyclicalLearningRate", {"scale_fn": lambda step: 0.9**step, "scale_mode": "iterations"}),
):
    gamma = {"gamma": 0.9} if "Exponential" in name else {}

    def _their_rates(a: Any, name: str = name, gamma: dict[str, float] = gamma) -> np.ndarray:
        schedule = getattr(a.optimizers, name)(0.1, 1.0, 5, **gamma)
        return np.array([schedule(tf.constant(step, tf.float32)) for step in STEPS])

    def _our_rates(options: dict[str, Any] = options) -> np.ndarray:
        schedule = recipe("optimizers").cyclical_learning_rate(0.1, 1.0, 5, **options)
        return np.array([schedule(tf.constant(step, tf.int64)) for step in STEPS])

    case(f"optimizers.{name}", _their_rates, _our_rates)

# Recurrent cells, two steps each; weights drawn by size, since the orders differ.
INPUT = _normal(3, 5)


def _stepped(cell: Any, states: int, order: list[int] | None = None) -> np.ndarray:
    cell.build((3, 5)) if not cell.built else None
    random = np.random.default_rng(2)
    variables = [cell.weights[i] for i in order or range(len(cell.weights))]
    for variable in variables:
        variable.assign(random.normal(size=variable.shape).astype(np.float32) / 2 + 0.3)
    state = [tf.zeros([3, 4])] * states
    for _ in range(2):
        output, state = cell(tf.constant(INPUT), state)
        state = state if isinstance(state, list | tuple) else [state]
    return np.asarray(output)


for name, states in (("LayerNormSimpleRNNCell", 1), ("LayerNormLSTMCell", 2), ("PeepholeLSTMCell", 2)):
    case(
        f"rnn.{name}",
        lambda a, n=name, s=states: _stepped(getattr(a.rnn, n)(4), s),
        lambda n=name, s=states: _stepped(getattr(recipe("rnn"), n)(4), s),
    )
case(
    "rnn.ESNCell",
    lambda a: _stepped(a.rnn.ESNCell(4, leaky=0.7), 1, [1, 0, 2]),
    lambda: _stepped(recipe("rnn").ESNCell(4, leaky=0.7), 1),
)

# Sequences.
LOGITS = _normal(4, 6)
CHANCES = (1 / (1 + np.exp(-LOGITS))).astype(np.float32)
BEFORE = np.exp(_normal(4, 6))
BEFORE /= BEFORE.sum(1, keepdims=True)
case("seq2seq.hardmax", lambda a: a.seq2seq.hardmax(LOGITS), lambda: recipe("seq2seq").hardmax(LOGITS))
case(
    "seq2seq.safe_cumprod",
    lambda a: a.seq2seq.safe_cumprod(CHANCES, axis=1, exclusive=True),
    lambda: recipe("seq2seq").safe_cumprod(tf.constant(CHANCES), axis=1, exclusive=True),
)
for mode in ("parallel", "recursive", "hard"):
    case(
        f"seq2seq.monotonic_attention {mode}",
        lambda a, m=mode: a.seq2seq.monotonic_attention(CHANCES, BEFORE, m),
        lambda m=mode: recipe("seq2seq").monotonic_attention(tf.constant(CHANCES), BEFORE, m),
    )
IDS, PARENTS = (_RANDOM.integers(0, high, (5, 2, 3)).astype(np.int32) for high in (6, 3))
LENGTHS = np.array([5, 3], np.int32)
case(
    "seq2seq.gather_tree",
    lambda a: a.seq2seq.gather_tree(IDS, PARENTS, LENGTHS, 5),
    lambda: recipe("seq2seq").gather_tree(tf.constant(IDS), PARENTS, LENGTHS, 5),
)
case("seq2seq.tile_batch", lambda a: a.seq2seq.tile_batch(LOGITS, 3), lambda: tf.repeat(LOGITS, 3, axis=0))
THREE, TARGETS, COUNTED = (
    _normal(2, 5, 6),
    _RANDOM.integers(0, 6, (2, 5)),
    np.array([[1, 1, 0.5, 0, 1], [2, 1, 0, 0, 0]], np.float32),
)
case(
    "seq2seq.sequence_loss",
    lambda a: a.seq2seq.sequence_loss(tf.constant(THREE), tf.constant(TARGETS), tf.constant(COUNTED)),
    lambda: recipe("seq2seq").sequence_loss(THREE, TARGETS, COUNTED),
)

# Conditional random fields.
SCORES, TAGS, MOVES = _normal(4, 6, 3), _RANDOM.integers(0, 3, (4, 6)).astype(np.int32), _normal(3, 3)
ENDS = np.array([6, 4, 1, 0], np.int32)
BITMAP = _RANDOM.random((4, 6, 3)) < 0.7
BITMAP[..., 0] = True
FIELD = {
    "crf_unary_score": (TAGS, ENDS, SCORES),
    "crf_binary_score": (TAGS, ENDS, MOVES),
    "crf_sequence_score": (SCORES, TAGS, ENDS, MOVES),
    "crf_log_norm": (SCORES, ENDS, MOVES),
    "crf_forward": (SCORES[:, 1:], SCORES[:, 0], MOVES, ENDS),
    "crf_filtered_inputs": (SCORES, BITMAP),
    "crf_multitag_sequence_score": (SCORES, BITMAP, ENDS, MOVES),
}
for name, arguments in FIELD.items():
    case(
        f"text.{name}",
        lambda a, n=name, x=arguments: getattr(a.text, n)(*x),
        lambda n=name, x=arguments: getattr(recipe("text"), n)(*x),
    )
case(
    "text.crf_log_likelihood",
    lambda a: a.text.crf_log_likelihood(SCORES, TAGS, ENDS, MOVES)[0],
    lambda: ops().crf_log_likelihood(SCORES, TAGS, ENDS, MOVES),
)
WHOLE = np.array([6, 4, 1, 2], np.int32)  # Addons' own gives an empty sequence the score of its first place
INSIDE = np.arange(6) < WHOLE[:, None]
for part in (0, 1):
    kept = INSIDE if part == 0 else np.ones([4], bool)
    case(
        f"text.crf_decode {part}",
        lambda a, p=part, k=kept: np.where(k, a.text.crf_decode(SCORES, MOVES, WHOLE)[p], 0),
        lambda p=part, k=kept: np.where(k, ops().crf_decode(SCORES, WHOLE, MOVES)[p], 0),
    )
