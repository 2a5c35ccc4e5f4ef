"""A gang of workers that lives and dies together.

TensorFlow's collectives need every worker: when one is lost, the others fail or wait for ever. So all are ended and all
are started again, from the last checkpoint; since a run resumes exactly, the result is that of an undisturbed one.

With parameter servers the workers are not needed one by one: a lost one is started again while the others go on. A lost
chief or parameter server, which has variables that nobody else has, takes all with it as above.
"""

import dataclasses
import functools
import itertools
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tftoolkit.errors import CodedError
from tftoolkit.trainers.distribution import cluster
from tftoolkit.trainers.distribution.cluster import Task
from tftoolkit.trainers.distribution.gang_crew import Crew, Patience
from tftoolkit.trainers.distribution.gang_worker import Worker
from tftoolkit.trainers.interrupts import TERMINATED, StopRequest, stop_requests

ATTEMPT_VARIABLE = "TFTOOLKIT_ATTEMPT"
_TICK = 0.05  # seconds between two looks at a signal
_CLEANUP = 5.0  # seconds that the others get to end when one has failed; what they lose is in the last checkpoint
_LONGEST_WAIT = 60.0
_WRONG_USAGE = 2  # exit code of a program that was called wrongly, by convention


class GangFailedError(CodedError, RuntimeError):
    """The workers failed too often, or in a way that trying again doesn't mend."""

    error_code = "gang-failed"

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclasses.dataclass(frozen=True)
class Gang:
    """What to run, and when to lose patience.

    Args:
        command: program and arguments of each worker.
        workers: how many on this machine (on each host).
        parameter_servers: how many, on this machine; then there is a chief as well. 0: the workers train synchronously.
        hosts: names of all machines, in the same order on each of them; empty: this one's loopback interface.
        host_index: which of them this is; None: as the environment of Kubernetes or Slurm says.
        port: of the first worker on the first host, the others count on from there. Without hosts, free ones are taken.
        max_restarts: how often in a row all are started again without a newer checkpoint in between, or with parameter
            servers one worker. Several hosts: never, that is their scheduler's task.
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
    parameter_servers: int = 0
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
        if self.parameter_servers and self.hosts:
            raise ValueError(
                "parameter_servers are started on this machine only: without hosts. On several machines start each "
                "process yourself, with its TF_CONFIG"
            )
        for name in ("parameter_servers", "max_restarts", "heartbeat_timeout", "start_timeout", "grace", "backoff"):
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
        self._started = itertools.count()
        # One launcher alone can't know when those on other hosts have ended all of theirs.
        self._max_restarts = gang.max_restarts if len(gang.hosts) < 2 else 0

    def run(self) -> int:
        patience = self._patience()
        for attempt in itertools.count():
            with Crew(self._tasks(), functools.partial(self._start, attempt), _say) as crew:
                failure = self._watch(crew)
                if failure and not self._stop.name:
                    _say(f"{failure.text}; ending the others")
                # A second signal, as KeyboardInterrupt, leads past this.
                if self._stop.name:
                    crew.end(signal.Signals[self._stop.name], self._gang.grace)
                else:
                    crew.end(signal.SIGTERM, min(_CLEANUP, self._gang.grace))
            if self._stop.name:
                return self._stopped(crew)
            if failure is None:
                return 0
            seconds = patience.failed(_saved_step(crew))
            if seconds is None or failure.code == _WRONG_USAGE:
                raise GangFailedError(self._report(failure), _WRONG_USAGE if failure.code == _WRONG_USAGE else 1)
            _say(f"restart {patience.failures} of {patience.most} in {seconds:g} s")
            if self._wait(seconds):
                return _exit_code(self._stop.name)
        raise AssertionError("unreachable")

    def _patience(self) -> Patience:
        return Patience(self._max_restarts, self._gang.backoff, _LONGEST_WAIT)

    def _tasks(self) -> list[Task]:
        """Those of this machine, with ports of their own in each attempt if there are no hosts."""
        gang = self._gang
        if gang.parameter_servers:
            return cluster.asynchronous(
                cluster.addresses((), 1 + gang.workers + gang.parameter_servers, gang.port), gang.workers
            )
        addresses = cluster.addresses(gang.hosts, gang.workers, gang.port)
        first = gang.workers * cluster.host_index(gang.hosts, os.environ, gang.host_index)
        mine = range(first, first + gang.workers)
        if gang.hosts:
            for index in mine:
                cluster.check_port_is_free(addresses[index])
        return cluster.synchronous(addresses, mine)

    def _start(self, attempt: int, task: Task) -> Worker:
        gang = self._gang
        with_attempt = {**task.environment, ATTEMPT_VARIABLE: str(attempt)}
        file = "-".join(task.name.split()) + ".log"
        return Worker(
            dataclasses.replace(task, environment=with_attempt),
            gang.command,
            self._folder / str(next(self._started)),
            show=functools.partial(_show, task.label),
            log_file=Path(gang.log_dir) / file if gang.log_dir is not None else None,
        )

    def _watch(self, crew: Crew) -> "_Failure | None":
        """Until all who lead have ended well (None), one has failed, or a signal came (None)."""
        patience = {worker.task.name: self._patience() for worker in crew.workers}
        while not self._stop.name:
            crew.listen()
            for worker in crew.workers:
                if worker.exit_code is None and crew.reap(worker):
                    failure = self._ended(worker, crew, patience[worker.task.name])
                    if failure:
                        return failure
            running = [worker for worker in crew.workers if worker.exit_code is None and worker.task.leads]
            if not running:
                return None
            if hanging := [worker for worker in running if self._hangs(worker)]:
                return _Failure(hanging[0], self._silence(hanging), None)
        return None

    def _ended(self, worker: Worker, crew: Crew, patience: Patience) -> "_Failure | None":
        """What it means to the others that ``worker`` has ended."""
        name, code = worker.task.name, worker.exit_code
        if worker.task.leads and code == 0:
            _say(f"{name} has finished")
            return None
        text = f"{name} {_how_it_ended(worker)}"
        if worker.task.replaceable and code != _WRONG_USAGE:
            seconds = patience.failed(_saved_step(crew))
            if seconds is not None:
                _say(f"{text}; the others go on; start {patience.failures} of {patience.most} in {seconds:g} s")
                crew.replace(worker, seconds)
                return None
        return _Failure(worker, text, code)

    def _hangs(self, worker: Worker) -> bool:
        if not self._gang.heartbeat_timeout:
            return False
        seconds, has_beaten = worker.silent_for()
        limit = self._gang.heartbeat_timeout if has_beaten else self._gang.start_timeout
        return bool(limit) and seconds > limit

    def _silence(self, hanging: list[Worker]) -> str:
        who = ", ".join(worker.task.name for worker in hanging)
        if hanging[0].silent_for()[1]:
            return f"{who}: no heartbeat for {self._gang.heartbeat_timeout:g} s"
        return (
            f"{who}: no heartbeat in the first {self._gang.start_timeout:g} s (a program that doesn't use the Trainer "
            "calls tftoolkit.trainers.distribution.heartbeat.beat(), or runs with --heartbeat_timeout=0)"
        )

    def _stopped(self, crew: Crew) -> int:
        leading = [worker for worker in crew.workers if worker.task.leads]
        if all(worker.exit_code == 0 for worker in leading):
            return 0
        for worker in leading:
            if worker.exit_code not in (0, TERMINATED):
                _say(f"{worker.task.name} {_how_it_ended(worker)} before it had saved; the last checkpoint stands")
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
        return f"{failure.text}, {why}. The last lines of {failure.worker.task.name}:\n{tail or '  (none)'}"


@dataclasses.dataclass(frozen=True)
class _Failure:
    worker: Worker
    text: str
    code: int | None


def _saved_step(crew: Crew) -> int | None:
    return max((worker.saved_step for worker in crew.workers if worker.saved_step is not None), default=None)


def _how_it_ended(worker: Worker) -> str:
    code = worker.exit_code
    assert code is not None
    return f"ended with exit code {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"


def _exit_code(signal_name: str | None) -> int:
    return TERMINATED if signal_name == "SIGTERM" else 130


def _say(text: str) -> None:
    print(f"tftoolkit launch: {text}", file=sys.stderr, flush=True)


def _show(label: str, line: str) -> None:
    encoding = sys.stdout.encoding or "utf-8"
    print(f"[{label}] {line}".encode(encoding, "replace").decode(encoding), flush=True)
