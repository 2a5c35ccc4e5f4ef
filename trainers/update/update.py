"""From losses to new weights: differentiate, accumulate, guard, clip, optimize, average."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import tensorflow as tf

from tftoolkit.trainers import naming
from tftoolkit.trainers.autograph import as_written
from tftoolkit.trainers.distribution.replicas import Replica, own, total
from tftoolkit.trainers.update import choosing, slices
from tftoolkit.trainers.update.ema import Ema
from tftoolkit.trainers.update.gradients import Gradients, LossFunction, accumulated, summed, wide
from tftoolkit.trainers.update.guards import SpikeGuard
from tftoolkit.trainers.update.keras_adapter import as_optimizer
from tftoolkit.trainers.update.optimizers import Optimizer
from tftoolkit.trainers.update.precision import DTYPES, LossScale, check_model, reading, weights_in
from tftoolkit.trainers.update.slices import Gradient

_Result = TypeVar("_Result")


class Update(tf.Module):
    """Turns gradients into new weights, the same way eagerly, in a graph and inside XLA.

    Either the step differentiates by itself (``weights`` are what a tape's ``gradient`` takes)::

        with tf.GradientTape() as tape:
            loss = …
        metrics = self.update.apply(tape.gradient(loss, self.update.weights))

    or it leaves that to the update, which ``accumulate``, ``precision`` and ``skip_spikes`` need::

        def losses(batch, key):
            logits = self.model(batch["x"])
            return trainers.Losses(cross_entropy(batch["y"], logits), weights=batch["mask"])
        gradients = self.update.gradients(losses, batch, key)
        metrics = gradients.metrics() | self.update.apply(gradients)

    One ``apply`` is one step of everything: learning rate, moments, average, counters.

    Under a ``tf.distribute`` strategy (see :class:`tftoolkit.trainers.Trainer`) ``gradients`` adds up those of all
    replicas, which therefore all apply the same ones. A tape's own gradients are refused there: its mean is that of one
    replica's rows, which need not be as many, nor weigh as much, as another's.

    Args:
        model: a model with ``trainable_variables`` (tf.Module, tf_keras, Keras 3), or the variables themselves. It must
            be built: variables can't be made inside a compiled step.
        optimizer: one of ``trainers.optimizers``, ``keras.optimizers`` or ``tf_keras.optimizers``, not
            used elsewhere. An optimizer of Keras can't train a model of the other generation.
        clip_norm: largest global norm of all gradients together (Pascanu et al. 2013), or None.
        clip_value: largest absolute value of each number in the gradients, or None; not together with ``clip_norm``.
        accumulate: into how many micro-batches to split a batch. The mean is over all examples or tokens of the batch.
        ema: decay of the moving average of the weights (see :meth:`ema_weights`), or None.
        precision: "float32", "bfloat16" or "float16" (with dynamic loss scale). The weights stay float32. A model of
            Keras must have been made under the policy of that name. In a ``tf.Module`` the float32 variables read as
            that type within ``gradients``, but for those that its class names in ``KEPT_FLOAT32``: what a call assigns
            to, such as moving statistics. The step casts what it feeds in (to ``compute_dtype``) and, before a softmax
            or a sum over many numbers, what comes out.
        learning_rate_factors: pattern of weight names -> number by which their learning rate is multiplied.
        no_weight_decay: patterns of weight names to which weight decay doesn't apply.
        only: patterns of the weight names to train, e.g. of one of several heads; None: all.
        frozen: patterns of weight names not to train; not together with ``only``.
        skip_spikes: skip a step whose loss exceeds this many times the median of the 63 losses before it, or None.

    Weight names are those below the model, e.g. "blocks/0/kernel"; ``*`` in a pattern stands for anything.

    A step whose gradients hold a NaN or an infinity (or whose global norm overflows float32, or whose examples all
    have weight 0) is skipped, as is a spike: all weights, optimizer slots, averages and the optimizer's step counter
    keep their values bit for bit. This is data flow, not an assertion, because TensorFlow's assertions are silent under
    XLA. In a ``Trainer`` whatever else the step assigned goes back, too: moving statistics, counters, carried states.

    Attributes:
        weights: the trained variables, as TensorFlow sees them (for Keras 3: ``variable.value``).
        skipped: int64 variable, how many steps were skipped so far.
        skipped_in_a_row: int64 variable, how many of the latest steps were. A step that overflowed only for a loss
            scale that could still be halved neither counts here nor ends the row.
        compute_dtype: the type of ``precision``.
        compile_parts: compile the two halves of an update that don't communicate, ``gradients`` on a replica's own rows
            and ``apply``, with XLA. Set by the runner under a strategy, where the whole step can't be compiled.

    Raises:
        ValueError: an argument out of range, arguments that exclude each other, a pattern that matches no weight, a
            model without weights to train, or one of Keras with another ``precision`` or generation than asked for.
        TypeError: the optimizer is none of these, or patterns are one string in place of a sequence.
    """

    _TF_MODULE_IGNORED_PROPERTIES = frozenset({"weights", "_model", *tf.Module._TF_MODULE_IGNORED_PROPERTIES})

    def __init__(
        self,
        model: Any,
        optimizer: Optimizer | Any,
        *,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        accumulate: int = 1,
        ema: float | None = None,
        precision: str = "float32",
        learning_rate_factors: Mapping[str, float] | None = None,
        no_weight_decay: Sequence[str] = (),
        only: Sequence[str] | None = None,
        frozen: Sequence[str] = (),
        skip_spikes: float | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("clip_norm", clip_norm), ("clip_value", clip_value)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a finite number above 0 or None, but is {value}")
        if clip_norm is not None and clip_value is not None:
            raise ValueError("give clip_norm or clip_value, not both")
        if accumulate < 1:
            raise ValueError(f"accumulate must be at least 1, but is {accumulate}")
        if precision not in DTYPES:
            raise ValueError(f"precision must be one of {', '.join(DTYPES)}, but is {precision!r}")
        if accumulate > 1 and getattr(optimizer, "sparse", False):
            raise ValueError(f"accumulate={accumulate} makes dense gradients, for which {_lazy(optimizer)}")
        _check_generations(model, optimizer)
        check_model(model, precision)
        self._model = model
        self.clip_norm = clip_norm
        self.clip_value = clip_value
        self.accumulate = accumulate
        self.precision = precision
        self.compute_dtype = DTYPES[precision]
        self.optimizer = as_optimizer(optimizer)
        self._only, self._frozen = only, frozen
        weights = self._chosen_weights()
        names = list(weights)
        factors = choosing.rate_factors(names, learning_rate_factors or {})
        decays = choosing.decays(names, no_weight_decay, self.optimizer)
        self.optimizer.build(list(weights.values()), factors, decays, names)
        self.weights = self.optimizer.weights
        self.skipped = tf.Variable(0, dtype=tf.int64, trainable=False, name="skipped")
        self.skipped_in_a_row = tf.Variable(0, dtype=tf.int64, trainable=False, name="skipped_in_a_row")
        self.ema = Ema(ema, self.weights) if ema is not None else None
        self.loss_scale = LossScale() if precision == "float16" else None
        self.spike_guard = SpikeGuard(skip_spikes) if skip_spikes is not None else None
        self.compile_parts = False

    def check_weights(self, step: tf.Module) -> None:
        """Refuse layers that were frozen or unfrozen since this was made.

        Args:
            step: what holds the model: where this was given variables alone, the layers that they belong to are there.

        Raises:
            ValueError: the model's trainable variables aren't those that are trained.
        """
        now = {naming.tf_variable(weight).ref(): name for name, weight in self._chosen_weights().items()}
        trained = {weight.ref() for weight in self.weights}
        added = sorted(name for ref, name in now.items() if ref not in trained)
        frozen = naming.frozen_variables(step) & trained | (trained - now.keys())
        if added or frozen:
            gone = sorted(name for name, variable in naming.named_variables(step).items() if variable.ref() in frozen)
            raise ValueError(
                f"layers were frozen or unfrozen since the Update was made: trained, but frozen: {gone or 'none'}; "
                f"trainable, but not trained: {added or 'none'}. Set `trainable` first, then make Update and Trainer; "
                "or freeze weights with Update(frozen=[patterns])"
            )

    def _chosen_weights(self) -> dict[str, Any]:
        """Name -> trainable variable of the model, without those that ``only`` and ``frozen`` leave out."""
        weights = naming.trained_variables(self._model)
        if self._only is not None and self._frozen:
            raise ValueError("give only or frozen, not both")
        if self._only is not None:
            chosen = choosing.matched(self._only, weights, "only")
        else:
            chosen = weights.keys() - choosing.matched(self._frozen, weights, "frozen")
        return {name: weight for name, weight in weights.items() if name in chosen}

    def gradients(self, losses: LossFunction, batch: Any, key: tf.Tensor) -> Gradients:
        """Differentiate the weighted mean of ``losses(micro_batch, key)`` over the whole batch, that of all replicas.

        Args:
            losses: plain TensorFlow; returns :class:`Losses`, or just the losses: a tensor with one number per example
                or token, unaveraged. A scalar is taken as it is, but not with ``accumulate``.
            batch: what the step was given; tensors with one leading dimension.
            key: int32[2], what the step was given; each micro-batch gets one of its own derived from it.

        Raises:
            ValueError: the batch doesn't divide into ``accumulate`` parts; weights or metrics of another shape than the
                losses; a scalar with ``accumulate``.
            TypeError: losses that aren't floating-point numbers.
        """

        replica, losses = Replica.current(), as_written(losses)
        if replica.count > 1 and self.optimizer.sparse:
            raise ValueError(f"{replica.count} replicas make dense gradients, for which {_lazy(self.optimizer)}")
        weights = [own(weight) for weight in self.weights]

        def one(part: Any, key: tf.Tensor) -> Gradients:
            with contextlib.ExitStack() as reduced:  # also while rematerialised layers are differentiated
                with tf.GradientTape(watch_accessed_variables=False) as tape:
                    tape.watch(weights)
                    reduced.enter_context(self._reduced_precision())
                    sums = summed(losses(part, key), self.accumulate * replica.count)
                    # As for a mean, so that a good scale doesn't depend on the size of the batch.
                    scale = (
                        None
                        if self.loss_scale is None
                        else tf.cast(self.loss_scale.scale, sums.loss.dtype) / sums.count
                    )
                    scaled = sums.loss if scale is None else sums.loss * scale
                found = tape.gradient(scaled, weights)
            ordered = [tf.cast(gradient, wide(gradient.dtype)) for gradient in self._in_order(found, self.weights)]
            if scale is not None:
                ordered = [slices.divided(gradient, scale) for gradient in ordered]
            return Gradients(ordered, sums.weight, sums.metrics)

        def mine(batch: Any, key: tf.Tensor) -> Gradients:
            return accumulated(one, batch, key, self.accumulate, self.weights, replica)

        return total(self._compiled(mine)(batch, key))

    def _compiled(self, function: Callable[..., _Result]) -> Callable[..., _Result]:
        return tf.function(function, jit_compile=True) if self.compile_parts else function

    def _reduced_precision(self) -> contextlib.AbstractContextManager[None]:
        if self.precision == "float32":
            return contextlib.nullcontext()
        return reading(self._model, weights_in(self._model, self.compute_dtype))

    def apply(
        self, gradients: Gradients | Sequence[tf.Tensor], weights: Sequence[tf.Variable] | None = None
    ) -> dict[str, tf.Tensor]:
        """Apply one optimizer step.

        Args:
            gradients: what :meth:`gradients` returned; or one tensor (or ``tf.IndexedSlices``) per weight, as
                ``tape.gradient`` returns them, if neither ``accumulate``, ``precision`` nor ``skip_spikes`` is used and
                there is one replica.
            weights: the variables that the tape's gradients belong to: those of the model, in any order. None stands
                for the attribute ``weights``.

        Returns:
            Scalars: ``grad_norm`` (float32, before clipping), ``learning_rate`` (float32), ``skipped`` (int32, 1 if
            this step was skipped) and, with float16, ``loss_scale`` (float32, that of this step).

        Raises:
            ValueError: weights and gradients don't match, or a weight has no gradient; a tape's gradients though
                :meth:`gradients` is needed.
        """
        if isinstance(gradients, Gradients):
            return self._compiled(self._apply)(gradients)
        self._check_tape_suffices()
        return self._apply(self._in_order(gradients, self.weights if weights is None else weights))

    def _apply(self, gradients: Gradients | list[Gradient]) -> dict[str, tf.Tensor]:
        if isinstance(gradients, Gradients):
            means = [slices.divided(total, gradients.weight) for total in gradients.sums]
            loss = gradients.metric_sums["loss"] / gradients.weight
        else:
            means, loss = gradients, None
        norm = self.optimizer.global_norm(means)
        finite = tf.math.is_finite(norm)
        ok = finite
        if self.spike_guard is not None:
            ok = tf.logical_and(finite, tf.logical_not(self.spike_guard.update(loss)))
        metrics = {"grad_norm": norm, "learning_rate": self.optimizer.learning_rate}
        retried = tf.constant(False)
        if self.loss_scale is not None:
            metrics["loss_scale"] = self.loss_scale.scale.read_value()
            retried = self.loss_scale.update(finite)

        as_written(self.optimizer.step)(self._clipped(means, norm), ok)
        if self.ema is not None:
            self.ema.update(ok)

        flag = tf.cast(tf.logical_not(ok), tf.int64)
        own(self.skipped).assign_add(flag)
        in_a_row = (self.skipped_in_a_row + 1) * flag
        own(self.skipped_in_a_row).assign(tf.where(retried, self.skipped_in_a_row, in_a_row))
        return metrics | {"skipped": tf.cast(flag, tf.int32)}

    @contextlib.contextmanager
    def ema_weights(self) -> Iterator[None]:
        """Evaluate with the averaged weights: ``with step.update.ema_weights(): …``; the weights come back bit for bit.

        Raises:
            ValueError: made without ``ema``.
            RuntimeError: used inside a ``tf.function``, or twice at a time.
        """
        if self.ema is None:
            raise ValueError("there are no averaged weights: make the Update with ema=…, e.g. 0.999")
        with self.ema.in_place():
            yield

    def _check_tape_suffices(self) -> None:
        replicas = Replica.current().count
        used = {
            f"accumulate={self.accumulate}": self.accumulate > 1,
            f"precision={self.precision!r}": self.precision != "float32",
            "skip_spikes": self.spike_guard is not None,
            f"a strategy with {replicas} replicas": replicas > 1,
        }
        asked = [name for name, is_used in used.items() if is_used]
        if asked:
            raise ValueError(f"{' and '.join(asked)}: get the gradients from update.gradients(losses, batch, key)")

    def _clipped(self, gradients: list[Gradient], norm: tf.Tensor) -> list[Gradient]:
        most = self.clip_value
        if self.clip_norm is not None:
            scale = self.clip_norm / tf.maximum(norm, self.clip_norm)
            return [slices.shrunk(gradient, scale) for gradient in gradients]
        if most is not None:
            return [slices.mapped(lambda one: tf.clip_by_value(one, -most, most), each) for each in gradients]
        return gradients

    def _in_order(self, gradients: Sequence[Any], weights: Sequence[Any]) -> list[Gradient]:
        """The gradients in the order of ``self.weights``: dense, or added up slices where the optimizer takes them."""
        if len(gradients) != len(weights):
            raise ValueError(f"there are {len(gradients)} gradients for {len(weights)} weights")
        by_weight = {
            naming.tf_variable(weight).ref(): gradient for weight, gradient in zip(weights, gradients, strict=True)
        }
        mine = {weight.ref() for weight in self.weights}
        if by_weight.keys() != mine:
            unknown = [ref.deref().name for ref in by_weight.keys() - mine]
            absent = [ref.deref().name for ref in mine - by_weight.keys()]
            raise ValueError(
                "gradients must be given for exactly the weights of this Update; "
                f"not its weights: {sorted(unknown) or 'none'}, missing: {sorted(absent) or 'none'}"
            )
        without = [ref.deref().name for ref, gradient in by_weight.items() if gradient is None]
        if without:
            raise ValueError(f"no gradient reaches {sorted(without)}: use them in the loss or leave them out of Update")
        ordered = [by_weight[weight.ref()] for weight in self.weights]
        if self.optimizer.sparse:
            return [self.optimizer.summed(one) if isinstance(one, tf.IndexedSlices) else one for one in ordered]
        return [tf.convert_to_tensor(one) for one in ordered]


def _lazy(optimizer: Any) -> str:
    return f"{type(optimizer).__name__} isn't meant: take AdamW"


def _check_generations(model: Any, optimizer: Any) -> None:
    generations = {naming.keras_generation(value) for value in naming.keras_objects(model)}
    if len(generations) > 1:
        raise ValueError(f"the model mixes layers of {' and '.join(sorted(map(str, generations)))}: use one of them")
    own = naming.keras_generation(optimizer)
    for generation in generations:
        if own not in (None, generation):
            raise ValueError(
                f"the model is of {generation}, but the optimizer {type(optimizer).__name__} of {own}: "
                "take an optimizer of the model's package, or one of tftoolkit.trainers.update.optimizers"
            )
