"""The work of a pipeline on other processes, through tf.data service, with the stream that it has without them.

``python -m tftoolkit.pipelines.service dispatcher [PORT]`` and ``… worker DISPATCHER [PORT]`` run the servers, with the
op that reads records loaded. TensorFlow's servers listen on all interfaces and ask nobody who they are: use them in a
closed network only.
"""

import queue
import sys
import threading
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from tftoolkit.custom_ops.engine import tf_host
from tftoolkit.pipelines.arguments import integer
from tftoolkit.pipelines.image import augmenting
from tftoolkit.pipelines.pipeline import Pipeline
from tftoolkit.pipelines.sources.source import Example

_PYTHON_OPS = frozenset({"PyFunc", "PyFuncStateless", "EagerPyFunc"})
_AHEAD = 64  # so many batches wait for one that has not come; then it is taken for lost


def batches(
    pipeline: Pipeline, dispatcher: str, start: int = 0, epochs: int = 1, patience: float = 10.0
) -> Iterator[Example]:
    """The batches of ``pipeline.dataset(start, epochs)`` in the same order, made by the workers of a tf.data service.

    The dispatcher deals out the batches' numbers. What comes back carries its number and is put in order here. A batch
    that a killed worker took with it is made in this process, after ``patience`` seconds in which no batch came, or
    when 64 later ones or all of them are here. Where workers or dispatcher are gone for good, so are all that follow.

    Args:
      pipeline: batched, with ``on_error="raise"``, and without Python code in source or stages: arrays, TFRecord files
        that the workers find under the same path, data sets of TFDS.
      dispatcher: "grpc://HOST:PORT".
      start: number of the first batch.
      epochs: where to stop, counted from batch 0.
      patience: seconds; longer than a worker needs for a batch.

    Raises:
      TypeError, ValueError: not such a pipeline.
      tf.errors.OpError: a batch cannot be made.
    """
    start, end = integer("start", start, 0), integer("epochs", epochs, 1) * pipeline.batches_per_epoch
    load = pipeline.loader()
    python = sorted(_PYTHON_OPS & set(_ops_of(load.get_concrete_function().graph.as_graph_def())))
    if python:
        raise ValueError(
            f"pipeline: its source or a stage runs Python code ({', '.join(python)}), which lives in this process and "
            "cannot be sent to workers; use arrays, TFRecord files or a TFDS data set, and functions of TensorFlow"
        )
    numbers = tf.data.Dataset.range(start, max(start, end))
    data = numbers.map(lambda number: (number, load(number)), num_parallel_calls=tf.data.AUTOTUNE)
    sharing = tf.data.experimental.service.ShardingPolicy.DYNAMIC  # each number goes to one worker
    served = data.apply(tf.data.experimental.service.distribute(sharing, dispatcher))
    arrived: queue.Queue[tuple[int, Example] | Exception | None] = queue.Queue(maxsize=16)
    stopped = threading.Event()
    threading.Thread(target=_receive, args=(served, arrived, stopped), daemon=True).start()
    waiting: dict[int, Example] = {}
    wait = patience
    made_here, due = _made_here(load, end, end), end
    try:
        for number in range(start, end):
            while number not in waiting:
                try:
                    one = arrived.get(timeout=wait) if len(waiting) < _AHEAD else None
                except queue.Empty:
                    one, wait = None, 0.0  # until something comes again: one wait is enough for all that is lost
                if isinstance(one, Exception):
                    raise one
                if one is None:
                    if number != due:
                        made_here = _made_here(load, number, end)
                    waiting[number], due = next(made_here), number + 1
                    continue
                wait = patience
                if one[0] >= number:
                    waiting[one[0]] = one[1]
            yield waiting.pop(number)
    finally:
        stopped.set()


def _made_here(load: Any, start: int, end: int) -> Iterator[Example]:
    """Batches that workers have lost. Not ``load`` itself, as outside of tf.data an operation (a matrix product) may
    use several threads, and then rounds otherwise."""
    yield from tf.data.Dataset.range(start, end).map(load)


def _receive(served: tf.data.Dataset, arrived: queue.Queue, stopped: threading.Event) -> None:
    """Hands on what workers send, then None again and again; waits in vain if one is gone."""
    try:
        for number, batch in served:
            _put(arrived, (int(number), batch), stopped)
            if stopped.is_set():
                return
        while not stopped.is_set():
            _put(arrived, None, stopped)
    except tf.errors.OpError as error:
        _put(arrived, error, stopped)


def _put(arrived: queue.Queue, one: object, stopped: threading.Event) -> None:
    while not stopped.is_set():
        try:
            arrived.put(one, timeout=0.1)
            return
        except queue.Full:
            continue


def _ops_of(graph: tf.compat.v1.GraphDef) -> Iterator[str]:
    yield from (node.op for node in graph.node)
    for function in graph.library.function:
        yield from (node.op for node in function.node_def)


def main(arguments: list[str]) -> None:
    """Runs a server until it is ended, and prints its address."""
    kind, *rest = arguments or [""]
    service = tf.data.experimental.service
    tf_host.plain_ops()  # registers the ops that read records and change pictures, which the servers must know
    augmenting.operation()
    if kind == "dispatcher":
        server = service.DispatchServer(service.DispatcherConfig(port=int(rest[0]) if rest else 0))
        print(server.target, flush=True)
    elif kind == "worker" and rest:
        address = rest[0].removeprefix("grpc://")
        port = int(rest[1]) if len(rest) > 1 else 0
        server = service.WorkerServer(service.WorkerConfig(dispatcher_address=address, port=port))
        print(f"works for {address}", flush=True)
    else:
        sys.exit("usage: python -m tftoolkit.pipelines.service dispatcher [PORT] | worker DISPATCHER [PORT]")
    server.join()


if __name__ == "__main__":
    main(sys.argv[1:])
