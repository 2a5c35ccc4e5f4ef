"""The cluster of an asynchronous training: chief, workers and parameter servers, and what each of them does.

The chief runs the program. Workers and parameter servers run the same program up to ``distributed_strategy()``, where
they begin to serve: what the program imported and registered until then, such as operations, they know as well.
"""

import os
import socket
import sys
import time
from collections.abc import Mapping
from typing import Any, NoReturn

import tensorflow as tf

from tftoolkit.trainers.interrupts import stop_requests

KINDS = ("chief", "worker", "ps")
_POLL = 0.5  # seconds between two looks at whether the chief is there
_MISSES = 4  # looks in a row at which it must be gone
_STAY = 20.0  # seconds after a signal; the chief, which has perhaps got it as well, needs everybody in order to save

_strategy: tf.distribute.Strategy | None = None


def strategy_of_variables() -> tf.distribute.Strategy | None:
    """What :func:`join` returned; TensorFlow's variables on parameter servers don't know it."""
    return _strategy


def is_on_server(variable: tf.Variable) -> bool:
    return "/job:ps/" in variable.device


def join(config: Mapping[str, Any]) -> tf.distribute.Strategy:
    """Take this process's place in the cluster of ``config``, a parsed ``TF_CONFIG`` with "ps" tasks.

    On the chief it returns the strategy once all others can be reached. On the others it doesn't return: they serve
    until the chief has gone, then the process ends with exit code 0.

    Raises:
        ValueError: the cluster isn't one chief, workers and parameter servers; or this is none of them.
    """
    global _strategy
    _check(config)
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    if resolver.task_type != "chief":
        _serve(resolver, config["cluster"]["chief"][0])
    if _strategy is None:  # a second connection would cut the first
        _strategy = tf.distribute.ParameterServerStrategy(resolver)
    return _strategy


def _check(config: Mapping[str, Any]) -> None:
    cluster, task = config["cluster"], config.get("task")
    if not isinstance(cluster, Mapping) or not all(isinstance(addresses, list) for addresses in cluster.values()):
        raise ValueError(f"TF_CONFIG: cluster must map kinds of tasks to lists of addresses, but is {cluster!r}")
    counts = {kind: len(cluster.get(kind, ())) for kind in KINDS}
    if counts["chief"] != 1 or not counts["worker"] or not counts["ps"] or set(cluster) - set(KINDS):
        found = ", ".join(f"{len(addresses)} {kind}" for kind, addresses in cluster.items())
        raise ValueError(
            "TF_CONFIG: a cluster with parameter servers has exactly 1 chief, workers and ps, and nothing else, but "
            f"this one has {found}"
        )
    kind, index = (task.get("type"), task.get("index")) if isinstance(task, Mapping) else (None, None)
    if kind not in KINDS or not isinstance(index, int) or not 0 <= index < counts[kind]:
        raise ValueError(
            f'TF_CONFIG: task must be {{"type": one of {", ".join(KINDS)}, "index": a number from 0}} and occur in '
            f"the cluster, but is {task!r}"
        )


def _serve(resolver: Any, chief: str) -> NoReturn:
    # Otherwise calls to a server that is gone would wait for it instead of telling the chief.
    os.environ["GRPC_FAIL_FAST"] = "use_caller"
    name = f"{resolver.task_type} {resolver.task_id}"
    _server = tf.distribute.Server(  # serves as long as it is referred to
        resolver.cluster_spec(), job_name=resolver.task_type, task_index=resolver.task_id, protocol="grpc", start=True
    )
    print(f"{name}: serving the chief at {chief}", flush=True)
    with stop_requests() as stop:  # after the server, which sets handlers of its own
        seen, misses, deadline = False, 0, float("inf")
        while misses < _MISSES and time.monotonic() < deadline:
            if _listens(chief):
                seen, misses = True, 0
            elif seen:
                misses += _MISSES if stop.name else 1
            if stop.name:
                deadline = min(deadline, time.monotonic() + _STAY) if seen else 0.0
            time.sleep(_POLL)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # tearing TensorFlow's server down has hung where the chief had left calls open


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=2.0).close()
    except OSError:
        return False
    return True
