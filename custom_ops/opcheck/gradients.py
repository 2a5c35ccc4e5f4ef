"""Checks of gradients: against finite differences and the reference's, in every dtype, rank and order."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tftoolkit.custom_ops.opcheck import cases, compare
from tftoolkit.custom_ops.opcheck.cases import Case
from tftoolkit.custom_ops.opcheck.graphs import Array, Program, is_inexact
from tftoolkit.custom_ops.opcheck.memory import over
from tftoolkit.custom_ops.opcheck.report import Failed, Skipped
from tftoolkit.custom_ops.opcheck.subject import Subject, evaluate

_FORMULA = "compare the gradient's formula and its kernel with the reference's"


def gradient(subject: Subject) -> str:
    """The gradient is missing, raises, or is not the derivative of the op."""
    op, case = subject.op, subject.given
    if not subject.differentiable(case):
        raise Skipped("there is nothing to differentiate")
    if op.gradient_function is None:
        raise Failed(
            f"{op.name} has no gradient",
            f"write one under @{op.__name__}.gradient, or call {op.__name__}.differentiate_reference(); raise "
            "NotImplementedError there if the op cannot have one",
        )
    if not subject.has_gradient:
        error = subject.gradient_error
        if isinstance(error, LookupError | NotImplementedError):
            return f"refused: {error}"
        raise Failed(
            f"raises {type(error).__name__}: {str(error)[:300]}",
            "mend it; it must run for inputs of unknown sizes, too",
        )
    found = [over(subject, [case], lambda case: _shapes(subject, case), "reduce over dimensions that were broadcast")]
    if op.reference_function is not None:
        over(subject, [case], lambda case: against_reference(subject, case), _FORMULA)
        found.append("agrees with the reference's gradient" + _note(subject, case))
    double = [one for one in [case, *subject.dtypes] if any(array.dtype == np.float64 for array in one.flat)]
    if double:
        over(subject, double[:1], lambda case: _against_differences(subject, case), _FORMULA)
        found.append("agrees with finite differences in float64")
    if len(found) == 1:
        raise Skipped(f"no float64 kernel and no reference: write one under @{op.__name__}.reference")
    return ", ".join(found[1:])


def gradient_dtypes(subject: Subject) -> str:
    """The gradient is wrong in another dtype than that of the given inputs."""
    _require_gradient(subject)
    chosen = [case for case in subject.dtypes if subject.differentiable(case)]
    if not chosen:
        raise Skipped("the schema allows one floating dtype only")
    return over(subject, chosen, lambda case: against_reference(subject, case), _FORMULA)


def gradient_broadcast(subject: Subject) -> str:
    """The gradient is wrong for other ranks of ``...``, or when output gradients come broadcast, sliced or sparse."""
    _require_gradient(subject)
    advice = "reduce over all dimensions that were broadcast; take the output gradient for a dense tensor of any values"
    ranks = [case for case in subject.ranks if subject.differentiable(case) and not subject.probe(case).error]
    seen = ""
    if ranks:
        found = over(subject, ranks, lambda case: against_reference(subject, case), advice)
        seen = f"{found} of other ranks; "
    over(subject, [subject.given], lambda case: _upstreams(subject, case), advice)
    return f"{seen}output gradients from {', '.join(_UPSTREAMS)}, eagerly and under XLA"


def second_order(subject: Subject) -> str:
    """The gradient's gradient is wrong, or fails in another way than LookupError or NotImplementedError."""
    _require_gradient(subject)
    try:
        subject.trace(subject.given, 2)
    except (LookupError, NotImplementedError) as error:
        return f"refused: {str(error)[:200]}"
    except Exception as error:
        raise Failed(
            f"raises {type(error).__name__}: {str(error)[:300]}",
            "make the gradient of ops with gradients, or raise NotImplementedError in the gradient's gradient",
        ) from None
    over(
        subject,
        [subject.given],
        lambda case: against_reference(subject, case, 2),
        "check the gradient of the gradient op",
    )
    return "right"


def against_reference(subject: Subject, case: Case, order: int = 1) -> list[str]:
    """Texts about derivatives that are further off than the reference's own error allows."""
    probe = subject.probe(case, order)
    if probe.error:
        return [f"{'the gradient' if order == 1 else 'the second derivative'} raises or crashes: {probe.error[:300]}"]
    labels = subject.result_names(case, 1)
    if order == 2:
        outputs = [name for name, dtype in cases.output_dtypes(subject.op, case) if is_inexact(dtype)]
        labels = [f"the second derivative by {name}" for name in [*subject.floating_inputs(case), *outputs]]
    return compare.against(labels, probe.results["output"][0], subject.right(case, order))


def _require_gradient(subject: Subject) -> None:
    if not subject.has_gradient or not subject.differentiable(subject.given):
        raise Skipped("there is no gradient: see gradient")


def _note(subject: Subject, case: Case) -> str:
    note = subject.right(case, 1).note
    return f" ({note})" if note else ""


def _shapes(subject: Subject, case: Case) -> list[str]:
    """Nobody else compares the shape of a gradient with that of its input."""
    probe = subject.probe(case, 1)
    if probe.error:
        return [f"the gradient raises or crashes: {probe.error[:300]}"]
    inputs = [array for array in case.flat if is_inexact(array.dtype)]
    return [
        f"{name} has shape {list(one.shape)}, the input has {list(array.shape)}"
        for name, one, array in zip(subject.result_names(case, 1), probe.results["output"][0], inputs, strict=True)
        if one is not None and one.shape != array.shape
    ]


# Finite differences

_STEP = 1e-4
_DIRECTIONS = 16


def _against_differences(subject: Subject, case: Case) -> list[str]:
    arrays = subject.arrays(case, 1)
    count = len(case.flat)
    values = subject.function(case)
    gradients = iter(subject.probe(case, 1).results["output"][0])
    dtypes = cases.output_dtypes(subject.op, case)

    def total(inputs: list[Array]) -> tuple[float, float]:
        outputs = [y for y, (_, dtype) in zip(evaluate(values, inputs), dtypes, strict=True) if is_inexact(dtype)]
        products = [np.real(np.conj(dy) * y) for dy, y in zip(arrays[count:], outputs, strict=True)]
        return sum(float(p.sum()) for p in products), sum(float(np.abs(p).sum()) for p in products)

    for place, (name, array) in enumerate(zip(cases.input_names(subject.op, case), case.flat, strict=True)):
        found = next(gradients) if is_inexact(array.dtype) else None
        if array.dtype != np.float64:
            continue
        slope = np.zeros_like(array) if found is None else found
        for direction in _directions(array):
            text = _difference(total, case.flat, place, direction, float((slope * direction).sum()))
            if text:
                return [f"the gradient of {name} {text}"]
    return []


def _directions(array: Array) -> list[Array]:
    """Each element by itself where there are few, else random directions, which a wrong element shows in too."""
    if array.size <= _DIRECTIONS:
        return [unit.reshape(array.shape) for unit in np.eye(array.size)]
    return list(np.random.default_rng(2).standard_normal((_DIRECTIONS, *array.shape)))


def _difference(
    total: Callable[[list[Array]], tuple[float, float]], flat: list[Array], place: int, direction: Array, slope: float
) -> str:
    """Central differences at two steps: their distance tells how far the better one can be off."""
    x = flat[place]
    scale = _STEP * max(1.0, float(np.abs(x).max(initial=0.0)))
    estimates, size = [], 0.0
    for step in (scale, scale / 2):
        ends = []
        for sign in (1, -1):
            value, size = total([*flat[:place], x + sign * step * direction, *flat[place + 1 :]])
            ends.append(value)
        estimates.append((ends[0] - ends[1]) / (2 * step))
    rounding = 64 * np.finfo(np.float64).eps * size / scale
    allowed = abs(estimates[0] - estimates[1]) + rounding
    if abs(slope - estimates[1]) <= allowed:
        return ""
    return f"gives {slope:.8g} along a direction where finite differences give {estimates[1]:.8g} ± {allowed:.1g}"


# How output gradients arrive. In TensorFlow they are dense, but their values, their layout under XLA and even their
# type depend on what comes after the op.

_Upstream = Callable[[tf.Tensor], tf.Tensor]
_UPSTREAMS: dict[str, _Upstream] = {
    "a sum (one value broadcast)": tf.reduce_sum,
    "a mean over rows": lambda y: tf.reduce_sum(_waves(tf.reduce_mean(y, axis=0)) if y.shape.rank else y),
    "a transpose": lambda y: tf.reduce_sum(_waves(tf.transpose(y))),
    "a slice": lambda y: tf.reduce_sum(_waves(y[1:] if y.shape.rank else y)),
    "a gather (IndexedSlices)": lambda y: tf.reduce_sum(_waves(tf.gather(y, [0, 0]) if y.shape.rank else y)),
}


def _waves(y: tf.Tensor) -> tf.Tensor:
    """y with weights of its own for each place."""
    count = tf.range(tf.size(y), dtype=tf.float64)
    return y * tf.reshape(tf.cast(tf.cos(0.3 * count), y.dtype), tf.shape(y))


def _upstreams(subject: Subject, case: Case) -> list[str]:
    outputs = [(i, name) for i, (name, dtype) in enumerate(cases.output_dtypes(subject.op, case)) if is_inexact(dtype)]
    ways = [(label, outputs) for label in _UPSTREAMS]
    if len(outputs) > 1:  # one at a time, too: the gradient of the others is missing or zero
        ways += [(label, [output]) for label, output in zip(itertools.cycle(_UPSTREAMS), outputs)]
    names = [f"from {label} of {' and '.join(name for _, name in chosen)}" for label, chosen in ways]
    labels = [f"{name}: the gradient of {one}" for name in names for one in subject.floating_inputs(case)]

    def program(function: Program) -> Program:
        def run(*flat: tf.Tensor) -> list[tf.Tensor | None]:
            inputs = [tensor for tensor in flat if is_inexact(tensor.dtype)]
            with tf.GradientTape(persistent=True) as tape:
                tape.watch(inputs)
                results = function(*flat)
                terms = [[_UPSTREAMS[label](results[place]) for place, _ in chosen] for label, chosen in ways]
                losses = [tf.add_n([tf.cast(one, term[0].dtype) for one in term]) for term in terms]
            return [one for loss in losses for one in tape.gradient(loss, inputs)]

        return run

    plain = program(case.function(subject.op, subject.op.run_reference))
    ours = program(subject.function(case))
    if subject.probe(case, 1, jit=True).died:
        return [f"under XLA the kernel {subject.probe(case, 1, jit=True).error}"]
    found = []
    right = subject.judge(plain, case.flat, ("upstreams", case), 1)
    for mode in ("eagerly", "under XLA"):
        try:
            values = evaluate(ours, case.flat, mode)
            texts = compare.against(labels, values, right)
            if texts and mode != "eagerly":  # the naive computation rounds in other places there
                texts = compare.against(labels, values, subject.judge(plain, case.flat, ("upstreams", case), 1, mode))
            found += [f"{mode}, {text}" for text in texts]
        except Exception as error:
            found.append(f"{mode}: raises {type(error).__name__}: {str(error)[:300]}")
    return found
