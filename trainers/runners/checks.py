"""What a checkpoint would lose, or training leave out, without a word: found while a step is traced or first run."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from tftoolkit.trainers.distribution.replicas import copies_of
from tftoolkit.trainers.step import Step
from tftoolkit.trainers.update.divergence import DivergenceWatch
from tftoolkit.trainers.update.update import Update


def check_trace(traced: Any, step: Step, watch: DivergenceWatch | None) -> None:
    """Refuse what a checkpoint would lose silently, and warn of what it can't repeat.

    Raises:
        ValueError: ``traced``, a concrete function of ``step``, uses variables that the step doesn't hold.
    """
    mine = [*step.named_variables().values(), *(watch.variables if watch else ())]
    held = {copy.ref() for variable in mine for copy in (variable, *copies_of(variable))}
    used = {variable.ref() for variable in traced.graph.variables}
    strangers = sorted(ref.deref().name for ref in used - held)
    if strangers:
        raise ValueError(
            f"the step uses variables that it doesn't hold, so no checkpoint would: {', '.join(strangers)}. "
            "Keep what owns them as an attribute of the step, and create them before training"
        )
    stateful = sorted({node.op for node in nodes(traced) if _is_stateful_random(node.op)})
    if stateful:
        warnings.warn(
            f"the step draws from stateful random operations ({', '.join(stateful)}): a resumed run won't repeat "
            "them. Use stateless ones with the step's key, e.g. tf.nn.experimental.stateless_dropout(…, seed=key)",
            stacklevel=4,
        )


def check_trained(step: Step) -> None:
    """Refuse a step whose layers were frozen or unfrozen since its updates were made.

    Raises:
        ValueError: see :meth:`Update.check_weights`.
    """
    for module in step.submodules:
        if isinstance(module, Update):
            module.check_weights(step)


@contextlib.contextmanager
def same_variables(step: Step) -> Iterator[None]:
    """The step is traced or run within, for the first time: refuse variables that are born meanwhile.

    Raises:
        ValueError: there were some, or the trainable ones aren't those of the step's updates any more.
    """
    before = step.named_variables()
    born: list[tf.Variable] = []

    def create(create_next: Any, **kwargs: Any) -> tf.Variable:
        born.append(create_next(**kwargs))
        return born[-1]

    failure: ValueError | None = None
    try:
        with tf.variable_creator_scope(create):
            yield
    except ValueError as error:  # TensorFlow's own, which forbids variables in a function's second trace
        failure = error
    held = step.named_variables()
    names = {variable.ref(): name for name, variable in held.items()}
    new = sorted({*(held.keys() - before.keys()), *(names.get(v.ref(), v.name.removesuffix(":0")) for v in born)})
    if new:
        raise ValueError(
            f"the step made variables while it ran: {', '.join(new)}. They would be neither trained nor saved: build "
            "the model first (call it once on a batch) and then make its Update"
        ) from failure
    if failure:
        raise failure
    check_trained(step)


@contextlib.contextmanager
def own_error_first() -> Iterator[None]:
    """A step is traced within: what it raises keeps its type and text, and TensorFlow's account of where is a note.

    AutoGraph would put the account first, and turn types that it doesn't know into its ``StagingError``.
    """
    try:
        yield
    except Exception as error:
        original: BaseException = error
        while str(original).startswith("in user code:") and original.__context__ is not None:
            original = original.__context__
        if original is error:
            raise
        original.add_note(str(error))
        raise original from None


def nodes(traced: Any) -> Iterator[Any]:
    """The nodes of a concrete function's graph and of all functions that it calls."""
    definition = traced.graph.as_graph_def()
    yield from definition.node
    for function in definition.library.function:
        yield from function.node_def


def _is_stateful_random(op: str) -> bool:
    return op in ("RandomUniform", "RandomUniformInt", "RandomStandardNormal", "TruncatedNormal", "RandomShuffle") or (
        op.startswith(("Stateful", "Rng")) and not op.startswith("StatefulPartitionedCall")
    )
