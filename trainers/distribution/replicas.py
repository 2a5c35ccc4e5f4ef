"""The replicas of a ``tf.distribute`` strategy: which one this is, its variables, sums over all; and the workers.

A replica is a device that runs the step, a worker is a process. All replicas compute the same new weights from the
same sums, so each writes its own copies of the variables, and no copy travels.
"""

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from tftoolkit.trainers.distribution import parameter_servers


@dataclasses.dataclass(frozen=True)
class Replica:
    """Replica ``index`` of ``count``."""

    index: int = 0
    count: int = 1

    @classmethod
    def current(cls) -> "Replica":
        """The one whose step is running; 0 of 1 without a strategy.

        Raises:
            RuntimeError: called within ``strategy.scope()``, but outside of ``strategy.run``.
        """
        if not tf.distribute.has_strategy() or is_asynchronous():
            return cls()
        context = tf.distribute.get_replica_context()
        if context is None:
            raise RuntimeError("under a strategy a step runs in strategy.run, once per replica; the Trainer does that")
        return cls(int(tf.get_static_value(context.replica_id_in_sync_group)), context.num_replicas_in_sync)


def is_asynchronous(strategy: tf.distribute.Strategy | None = None) -> bool:
    """Whether ``strategy``, by default the one in whose scope this runs, is that of parameter servers."""
    return isinstance(strategy or tf.distribute.get_strategy(), tf.distribute.ParameterServerStrategy)


def own(variable: tf.Variable) -> tf.Variable:
    """This replica's copy of ``variable``, which can be assigned to; without a strategy the variable itself."""
    if not tf.distribute.has_strategy():
        return variable
    copies = copies_of(variable)
    return copies[Replica.current().index % len(copies)]


def move(variable: tf.Variable, before: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
    """Write ``value``, which was computed from what ``variable`` held, ``before``. Returns ``value``.

    Workers of parameter servers write the same variables while others compute: they add the difference, or the moves
    that others made meanwhile would be lost, and what is returned is ready when that has been done. Every variable in
    which moves add up must be written by this. What merely remembers something latest is assigned: differences from the
    same value, added up, would be a value that nobody meant.
    """
    if not is_asynchronous():
        own(variable).assign(value)
        return value
    with after(own(variable).assign_add(value - before, read_value=False)):
        return tf.identity(value)


def after(*events: Any) -> contextlib.AbstractContextManager[None]:
    """Within, operations run after ``events`` where that matters: where other workers could come in between."""
    return tf.control_dependencies(events) if is_asynchronous() else contextlib.nullcontext()


def copies_of(variable: tf.Variable) -> tuple[tf.Variable, ...]:
    """Those of all replicas of this process."""
    strategy = getattr(variable, "distribute_strategy", None)
    if strategy is not None:
        return strategy.experimental_local_results(variable)
    # On a parameter server: what TensorFlow wraps, which is what graphs know.
    return (variable.get() if parameter_servers.is_on_server(variable) else variable,)


def total(values: Any) -> Any:
    """The sums over all replicas of a nest of tensors. It communicates: not for code inside XLA."""
    if Replica.current().count == 1:
        return values
    flat = [tf.identity(value) for value in tf.nest.flatten(values)]  # on the replica's device, by which it is found
    sums = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, flat)
    return tf.nest.pack_sequence_as(values, sums)


def strategy_of(variables: Mapping[str, tf.Variable]) -> tf.distribute.Strategy | None:
    """The strategy in whose scope the variables were made; None if they were made in none.

    Raises:
        ValueError: some were made elsewhere than others.
    """
    homes = {name: _home(variable) for name, variable in variables.items()}
    found = {id(home): home for home in homes.values() if home is not None}
    if not found:
        return None
    strategy = next(iter(found.values()))
    strangers = [name for name, home in homes.items() if home is not strategy]
    if strangers:
        raise ValueError(
            f"these variables of the step weren't made within the strategy's scope: {', '.join(strangers)}. Make "
            "model, optimizer, Update and step in one `with strategy.scope():`"
        )
    return strategy


def _home(variable: tf.Variable) -> tf.distribute.Strategy | None:
    if not parameter_servers.is_on_server(variable):
        return getattr(variable, "distribute_strategy", None)
    strategy = parameter_servers.strategy_of_variables()
    if strategy is None:
        raise ValueError("make the strategy of parameter servers by trainers.distributed_strategy(), not by yourself")
    return strategy


def distributed_strategy(devices: Sequence[str] | None = None) -> tf.distribute.Strategy | None:
    """The strategy for this process; None where there is one worker with one device.

    Parameter servers in the environment variable ``TF_CONFIG`` (``{"cluster": {"chief": ["host:port"], "worker":
    ["host:port", …], "ps": ["host:port", …]}, "task": {"type": "chief", "index": 0}}``): the asynchronous
    ``ParameterServerStrategy`` on the chief; on workers and parameter servers this doesn't return, but serves until the
    chief is gone and ends the process. Several workers and no parameter servers: ``MultiWorkerMirroredStrategy``. Both
    must be made before any operation runs. Else ``MirroredStrategy`` if there are several ``devices`` (by default: all
    GPUs).

    The processes' servers are TensorFlow's: they listen on all network interfaces, and whoever reaches them can run
    operations in the process. Use them in a private network only.

    Raises:
        ValueError: ``TF_CONFIG`` isn't of that form.
    """
    config = _config_in_environment()
    if "ps" in config["cluster"]:
        return parameter_servers.join(config)
    if _worker_count(config["cluster"]) > 1:
        implementation = tf.distribute.experimental.CommunicationImplementation
        on_gpu = bool(tf.config.list_physical_devices("GPU"))
        return tf.distribute.MultiWorkerMirroredStrategy(
            communication_options=tf.distribute.experimental.CommunicationOptions(
                implementation=implementation.NCCL if on_gpu else implementation.RING
            )
        )
    devices = devices or [device.name for device in tf.config.list_logical_devices("GPU")]
    return tf.distribute.MirroredStrategy(devices) if len(devices) > 1 else None


def _config_in_environment() -> dict[str, Any]:
    """``TF_CONFIG``; one worker if it isn't set."""
    text = os.environ.get("TF_CONFIG", "")
    if not text:
        return {"cluster": {"worker": [""]}}
    try:
        config = json.loads(text)
        if "ps" not in config["cluster"] and _worker_count(config["cluster"]) > 1:
            config["task"]["index"] + 0
        return config
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f'TF_CONFIG must look like {{"cluster": {{"worker": ["host:port", …]}}, "task": {{"type": "worker", '
            f'"index": 0}}}}, but is {text!r} ({error!r})'
        ) from None


def _worker_count(cluster: Mapping[str, Any]) -> int:
    return len(cluster.get("chief", [])) + len(cluster["worker"])


class Workers:
    """The processes that train together, and how they agree.

    What depends on a clock, a signal or a file must be agreed on before anything follows from it, or some workers would
    wait in an all-reduce for others that do something else. All workers must call the methods in the same order.

    Args:
        strategy: None for a process on its own.

    Attributes:
        strategy: what it was made with.
        asynchronous: whether the strategy is that of parameter servers.
        index: which of them this is; 0 is the chief, the only one that writes files.
        count: how many there are.
        replicas: the numbers of this worker's replicas among all of them.
        replica_count: how many replicas all workers have.
    """

    def __init__(self, strategy: tf.distribute.Strategy | None) -> None:
        self.strategy = strategy
        self.asynchronous = strategy is not None and is_asynchronous(strategy)
        # With parameter servers the chief alone runs the program.
        resolver = strategy.cluster_resolver if strategy and not self.asynchronous else None
        tasks = resolver.cluster_spec().as_dict() if resolver else {}
        chiefs, workers = (len(tasks.get(kind, ())) for kind in ("chief", "worker"))
        self.count = max(1, chiefs + workers)
        self.index = 0
        if resolver and self.count > 1:
            self.index = int(resolver.task_id) + (chiefs if resolver.task_type == "worker" else 0)
        self.replica_count = strategy.num_replicas_in_sync if strategy else 1
        self._local = self.replica_count // self.count
        self.replicas = range(self.index * self._local, (self.index + 1) * self._local)
        self._sum = tf.function(self._summed)

    @property
    def is_chief(self) -> bool:
        return self.index == 0

    def any(self, flags: Sequence[bool]) -> list[bool]:
        """For each flag whether it is set on some worker."""
        if self.count == 1:
            return list(flags)
        return [number > 0 for number in self._total([float(flag) for flag in flags])]

    def from_chief(self, value: Any) -> Any:
        """What the chief calls this with, on all workers; anything that JSON can hold. Others' values are ignored."""
        if self.count == 1:
            return value
        text = json.dumps(value).encode() if self.is_chief else b""
        (length,) = self._total([float(len(text))])
        padded = 256 * math.ceil(length / 256)  # so that few programs are made
        numbers = self._total([float(byte) for byte in text.ljust(padded, b" ")] if self.is_chief else [0.0] * padded)
        return json.loads(bytes(int(number) for number in numbers))

    def _total(self, numbers: list[float]) -> list[float]:
        return (self._sum(tf.constant(numbers)) / self._local).numpy().tolist()

    def _summed(self, numbers: tf.Tensor) -> tf.Tensor:
        strategy = self.strategy
        assert strategy is not None

        return strategy.experimental_local_results(strategy.run(total, args=(numbers,)))[0]
