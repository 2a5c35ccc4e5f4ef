"""A gang of workers that lives and dies together.

TensorFlow's collectives need every worker: when one is lost, the others fail or wait for ever. So all are ended and all
are started again, from the last checkpoint; since a run resumes exactly, the result is that of an undisturbed one.
"""

import contextlib
import dataclasses
import functools
import itertools
import os
import selectors
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tftoolkit.trainers import cluster
from tftoolkit.trainers.gang_worker import Worker
from tftoolkit.trainers.interrupts import TERMINATED, StopRequest, stop_requests

ATTEMPT_VARIABLE = "TFTOOLKIT_ATTEMPT"
_TICK = 0.05  # seconds between two looks at the workers
_OVERSLEPT = 5.0  # seconds; a longer tick means that this process was stopped itself
_CLEANUP = 5.0  # seconds that the others get to end when one has failed; what they lose is in the last checkpoint
_LONGEST_WAIT = 60.0
_WRONG_USAGE = 2  # exit code of a program that was called wrongly, by convention


class GangFailedError(RuntimeError):
    """The workers failed too often, or in a way that trying again doesn't mend."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclasses.dataclass(frozen=True)
class Gang:
    """What to run, and when to lose patience.

    Args:
        command: program and arguments of each worker.
        workers: how many on this machine (on each host).
        hosts: names of all machines, in the same order on each of them; empty: this one's loopback interface.
        host_index: which of them this is; None: as the environment of Kubernetes or Slurm says.
        port: of the first worker on the first host, the others count on from there. Without hosts, free ones are taken.
        max_restarts: how often in a row all are started again without a newer checkpoint in between. Several hosts:
            never, that is their scheduler's task.
        heartbeat_timeout: seconds without a heartbeat after which a worker counts as hanging; 0: never.
        start_timeout: the same before its first heartbeat, while it imports, waits for the others and compiles.
        grace: seconds to save and leave in after SIGTERM or SIGINT.
        backoff: seconds before the first restart in a row, doubled with each, a minute at most.
        log_dir: folder in which each worker's output is kept, too.

    Raises:
        ValueError: an argument is out of range.
    """

    command: Sequence[str]
    workers: int = 1
    hosts: Sequence[str] = ()
    host_index: int | None = None
    port: int = 20000
    max_restarts: int = 3
    heartbeat_timeout: float = 300.0
    start_timeout: float = 900.0
    grace: float = 60.0
    backoff: float = 1.0
    log_dir: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        if not self.command:
            raise ValueError("command is empty; it must name a program")
        if self.workers < 1:
            raise ValueError(f"workers must be at least 1, but is {self.workers}")
        for name in ("max_restarts", "heartbeat_timeout", "start_timeout", "grace", "backoff"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, but is {getattr(self, name)}")
        cluster.check_hosts(self.hosts)
        last = self.port + max(1, len(self.hosts)) * self.workers - 1
        if not (self.port > 0 and last < 65536):
            raise ValueError(f"port must leave room for ports up to {last} between 1 and 65535, but is {self.port}")
        cluster.host_index(self.hosts, os.environ, self.host_index)

    def run(self) -> int:
        """Run it to its end. Returns the exit code: 0 done, 75 after SIGTERM, 130 after SIGINT.

        Raises:
            GangFailedError: a worker failed or hung, and ``max_restarts`` restarts didn't help, or its exit code was 2.
            KeyboardInterrupt: a second SIGTERM or SIGINT came; the workers were killed.
            OSError: a port is in use, or log_dir can't be written.
        """
        if self.log_dir is not None:
            Path(self.log_dir).mkdir(parents=True, exist_ok=True)
        with stop_requests() as stop, tempfile.TemporaryDirectory(prefix="tftoolkit-launch-") as folder:
            return _Supervisor(self, stop, Path(folder)).run()


class _Supervisor:
    """Runs a gang; ``folder`` is for the heartbeats' files."""

    def __init__(self, gang: Gang, stop: StopRequest, folder: Path) -> None:
        self._gang = gang
        self._stop = stop
        self._folder = folder
        # One launcher alone can't know when those on other hosts have ended all of theirs.
        self._max_restarts = gang.max_restarts if len(gang.hosts) < 2 else 0

    def run(self) -> int:
        failures, newest = 0, -1
        for attempt in itertools.count():
            with self._started(attempt) as workers:
                failure = self._watch(workers)
                if failure and not self._stop.name:
                    _say(f"{failure.text}; ending the others")
            if self._stop.name:
                return self._stopped(workers)
            if failure is None:
                return 0
            saved = max((worker.saved_step for worker in workers if worker.saved_step is not None), default=-1)
            failures, newest = (1 if saved > newest else failures + 1), max(saved, newest)
            if failures > self._max_restarts or failure.code == _WRONG_USAGE:
                raise GangFailedError(self._report(failure), _WRONG_USAGE if failure.code == _WRONG_USAGE else 1)
            seconds = min(self._gang.backoff * 2 ** (failures - 1), _LONGEST_WAIT)
            _say(f"restart {failures} of {self._max_restarts} in {seconds:g} s")
            if self._wait(seconds):
                return _exit_code(self._stop.name)
        raise AssertionError("unreachable")

    @contextlib.contextmanager
    def _started(self, attempt: int) -> Iterator[list[Worker]]:
        """All workers; none of them is left at the end, whatever happens."""
        gang = self._gang
        first = gang.workers * cluster.host_index(gang.hosts, os.environ, gang.host_index)
        addresses = cluster.addresses(gang.hosts, gang.workers, gang.port)
        workers: list[Worker] = []
        try:
            for index in range(first, first + gang.workers):
                if gang.hosts:
                    cluster.check_port_is_free(addresses[index])
                worker = Worker(
                    index,
                    gang.command,
                    {**cluster.environment(addresses, index), ATTEMPT_VARIABLE: str(attempt)},
                    self._folder / f"{attempt}-{index}",
                    show=functools.partial(_show, index),
                    log_file=Path(gang.log_dir) / f"worker-{index}.log" if gang.log_dir is not None else None,
                )
                workers.append(worker)
                _say(f"worker {index} started, process {worker.pid}")
            yield workers
            # A second signal, as KeyboardInterrupt, leads past this.
            if self._stop.name:
                self._end(workers, signal.Signals[self._stop.name], gang.grace)
            else:
                self._end(workers, signal.SIGTERM, min(_CLEANUP, gang.grace))
        finally:
            self._kill(workers)

    def _watch(self, workers: list[Worker]) -> "_Failure | None":
        """Until all have ended well (None), one has failed, or a signal came (None)."""
        with self._listening(workers) as listen:
            while not self._stop.name:
                listen()
                for worker in workers:
                    if worker.exit_code is None and worker.reap():
                        if worker.exit_code != 0:
                            return _Failure(worker, f"worker {worker.index} {_how_it_ended(worker)}", worker.exit_code)
                        _say(f"worker {worker.index} has finished")
                running = [worker for worker in workers if worker.exit_code is None]
                if not running:
                    return None
                if hanging := [worker for worker in running if self._hangs(worker)]:
                    return _Failure(hanging[0], self._silence(hanging), None)
        return None

    def _hangs(self, worker: Worker) -> bool:
        if not self._gang.heartbeat_timeout:
            return False
        seconds, has_beaten = worker.silent_for()
        limit = self._gang.heartbeat_timeout if has_beaten else self._gang.start_timeout
        return bool(limit) and seconds > limit

    def _silence(self, hanging: list[Worker]) -> str:
        who = ", ".join(f"worker {worker.index}" for worker in hanging)
        if hanging[0].silent_for()[1]:
            return f"{who}: no heartbeat for {self._gang.heartbeat_timeout:g} s"
        return (
            f"{who}: no heartbeat in the first {self._gang.start_timeout:g} s (a program that doesn't use the Trainer "
            "calls tftoolkit.trainers.heartbeat.beat(), or runs with --heartbeat_timeout=0)"
        )

    @contextlib.contextmanager
    def _listening(self, workers: list[Worker]) -> Iterator[Callable[[], None]]:
        """A function that passes on what the workers write, for a tick."""
        with selectors.DefaultSelector() as selector:
            for worker in workers:
                if worker.exit_code is None:
                    selector.register(worker.output, selectors.EVENT_READ, worker)
            looked = time.monotonic()

            def listen() -> None:
                nonlocal looked
                for key, _ in selector.select(_TICK):
                    if not key.data.read():
                        selector.unregister(key.fileobj)
                if time.monotonic() - looked > _OVERSLEPT:
                    for worker in workers:
                        worker.excuse()
                looked = time.monotonic()

            yield listen

    def _end(self, workers: list[Worker], number: int, patience: float) -> None:
        """Ask all to end, wait, and kill who doesn't."""
        for worker in workers:
            worker.signal(number)
        deadline = time.monotonic() + patience
        with self._listening([worker for worker in workers if not worker.reap()]) as listen:
            while not all(worker.reap() for worker in workers) and time.monotonic() < deadline:
                listen()
        for worker in workers:
            if worker.exit_code is None:
                _say(f"worker {worker.index} did not end within {patience:g} s: SIGKILL")

    def _kill(self, workers: list[Worker]) -> None:
        for worker in workers:
            worker.kill()
        while not all(worker.reap() for worker in workers):
            time.sleep(_TICK)

    def _stopped(self, workers: list[Worker]) -> int:
        if all(worker.exit_code == 0 for worker in workers):
            return 0
        for worker in workers:
            if worker.exit_code not in (0, TERMINATED):
                _say(f"worker {worker.index} {_how_it_ended(worker)} before it had saved; the last checkpoint stands")
        _say(f"{self._stop.name}: run the same command again to go on")
        return _exit_code(self._stop.name)

    def _wait(self, seconds: float) -> bool:
        """Returns whether a signal came meanwhile."""
        end = time.monotonic() + seconds
        while not self._stop.name and (left := end - time.monotonic()) > 0:
            time.sleep(min(_TICK, left))
        return self._stop.name is not None

    def _report(self, failure: "_Failure") -> str:
        if failure.code == _WRONG_USAGE:
            why = "as if called wrongly, so it isn't tried again"
        elif len(self._gang.hosts) > 1:
            why = "with several hosts their scheduler starts all of them again"
        else:
            why = f"after {self._max_restarts} restarts without a newer checkpoint"
        tail = "\n".join(f"  {line}" for line in failure.worker.tail)
        return f"{failure.text}, {why}. The last lines of worker {failure.worker.index}:\n{tail or '  (none)'}"


@dataclasses.dataclass(frozen=True)
class _Failure:
    worker: Worker
    text: str
    code: int | None


def _how_it_ended(worker: Worker) -> str:
    code = worker.exit_code
    assert code is not None
    return f"ended with exit code {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"


def _exit_code(signal_name: str | None) -> int:
    return TERMINATED if signal_name == "SIGTERM" else 130


def _say(text: str) -> None:
    print(f"tftoolkit launch: {text}", file=sys.stderr, flush=True)


def _show(index: int, line: str) -> None:
    encoding = sys.stdout.encoding or "utf-8"
    print(f"[{index}] {line}".encode(encoding, "replace").decode(encoding), flush=True)
