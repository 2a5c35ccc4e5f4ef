"""The processes of one attempt of a gang: started, listened to, replaced, ended."""

import contextlib
import selectors
import time
from collections.abc import Callable, Sequence

from tftoolkit.trainers.distribution.cluster import Task
from tftoolkit.trainers.distribution.gang_worker import Worker

_TICK = 0.05  # seconds between two looks at the workers
_OVERSLEPT = 5.0  # seconds; a longer tick means that this process was stopped itself


class Crew:
    """Its processes run within ``with crew:``; none of them is left at the end, whatever happens.

    Args:
        tasks: whom to start, in this order.
        start: starts one of them.
        say: gets messages.

    Attributes:
        workers: one per task, those that have ended included.
    """

    def __init__(self, tasks: Sequence[Task], start: Callable[[Task], Worker], say: Callable[[str], None]) -> None:
        self.workers: list[Worker] = []
        self._tasks = tasks
        self._start_worker = start
        self._say = say
        self._selector = selectors.DefaultSelector()
        self._due: list[tuple[float, Worker]] = []
        self._looked = time.monotonic()

    def __enter__(self) -> "Crew":
        try:
            for task in self._tasks:
                self.workers.append(self._started(task))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            worker.kill()
        while not all(self.reap(worker) for worker in self.workers):
            time.sleep(_TICK)
        self._selector.close()

    def listen(self) -> None:
        """Pass on what the workers write, for a tick, and start those whose time has come."""
        for key, _ in self._selector.select(_TICK):
            if not key.data.read():
                self._selector.unregister(key.fileobj)
        if not self._selector.get_map():  # which selects without waiting
            time.sleep(_TICK)
        if time.monotonic() - self._looked > _OVERSLEPT:
            for worker in self.workers:
                worker.excuse()
        self._looked = time.monotonic()
        for moment, worker in list(self._due):
            if moment <= self._looked:
                self._due.remove((moment, worker))
                self.workers[self.workers.index(worker)] = self._started(worker.task)

    def reap(self, worker: Worker) -> bool:
        """Whether it has ended."""
        if worker.exit_code is not None:
            return True
        if not worker.reap():
            return False
        with contextlib.suppress(KeyError, ValueError):  # at the end of its output it was taken out already
            self._selector.unregister(worker.output)
        return True

    def replace(self, worker: Worker, seconds: float) -> None:
        """Start the task of a worker that has ended again, in a while."""
        self._due.append((time.monotonic() + seconds, worker))

    def end(self, number: int, patience: float) -> None:
        """Ask all to end by the signal ``number``, first those who lead; wait, and kill who doesn't."""
        self._due.clear()
        for leads in (True, False):
            group = [worker for worker in self.workers if worker.task.leads is leads and not self.reap(worker)]
            for worker in group:
                worker.signal(number)
            deadline = time.monotonic() + patience
            while not all(self.reap(worker) for worker in group) and time.monotonic() < deadline:
                self.listen()
            for worker in group:
                if worker.exit_code is None:
                    self._say(f"{worker.task.name} did not end within {patience:g} s: SIGKILL")
                    worker.kill()

    def _started(self, task: Task) -> Worker:
        worker = self._start_worker(task)
        self._selector.register(worker.output, selectors.EVENT_READ, worker)
        self._say(f"{task.name} started, process {worker.pid}")
        return worker


class Patience:
    """How often something may fail in a row without a newer checkpoint in between, and how long to wait each time.

    Args:
        most: how often.
        backoff: seconds to wait the first time, doubled each time.
        longest: seconds to wait at most.
    """

    def __init__(self, most: int, backoff: float, longest: float) -> None:
        self.most = most
        self.failures = 0
        self._backoff = backoff
        self._longest = longest
        self._newest = -1

    def failed(self, saved_step: int | None) -> float | None:
        """Note a failure; ``saved_step`` is the newest checkpoint's. Returns seconds to wait; None: give up."""
        saved = -1 if saved_step is None else saved_step
        self.failures = 1 if saved > self._newest else self.failures + 1
        self._newest = max(saved, self._newest)
        if self.failures > self.most:
            return None
        return min(self._backoff * 2 ** (self.failures - 1), self._longest)
