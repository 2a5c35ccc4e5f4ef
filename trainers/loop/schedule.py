"""What is due after a step: logging, evaluating, saving, hooks, and stopping for a signal."""

import dataclasses
from collections.abc import Iterable

from tftoolkit.trainers.distribution.replicas import Workers
from tftoolkit.trainers.interrupts import StopRequest
from tftoolkit.trainers.loop.events import EVENTS, Alarm, Every, Hook, every

_SIGNALS = ("SIGTERM", "SIGINT")


@dataclasses.dataclass(frozen=True)
class Due:
    """What is to be done after a step, the same on all workers."""

    signal: str | None
    """The signal that came, if any."""
    log: bool
    alarms: frozenset[Alarm]
    evaluate: bool
    save: bool
    save_repeatable: bool
    """An undisturbed run saves here, too."""
    hooks: tuple[Hook, ...]

    @property
    def anything(self) -> bool:
        return bool(self.signal or self.log or self.alarms)


class Schedule:
    """Holds a trainer's alarms and hooks.

    Args:
        workers: who must agree on what is due.
        batches_per_epoch: of the pipeline.
        log_every: see :class:`tftoolkit.trainers.Trainer`, as for the others.
    """

    def __init__(
        self,
        workers: Workers,
        batches_per_epoch: int,
        *,
        log_every: Every | int,
        evaluate_every: Every | int | None,
        checkpoint_every: Every | int,
        hooks: Iterable[tuple[Every | str, Hook]],
    ) -> None:
        self._workers = workers
        self._log = Alarm(_period_of("log_every", log_every, repeatable=True), batches_per_epoch)
        self._evaluate = Alarm(_period_of("evaluate_every", evaluate_every, repeatable=True), batches_per_epoch)
        checkpoints = _period_of("checkpoint_every", checkpoint_every)
        self._saves_repeatable = checkpoints is not None and checkpoints.repeatable
        self._save = Alarm(checkpoints, batches_per_epoch)
        self._event_hooks, self._hook_alarms = _sorted_hooks(hooks, batches_per_epoch)
        # Without that for logging: its lines are taken from a call afterwards, which needn't end there.
        self._alarms = [self._evaluate, self._save, *(alarm for alarm, _ in self._hook_alarms)]

    def hooks(self, event: str) -> list[Hook]:
        """Those of one of the ``EVENTS``."""
        return self._event_hooks[event]

    def set(self, step: int, position: int) -> None:
        """Look for the next times after ``step`` finished steps, with the pipeline at batch ``position``."""
        for alarm in (self._log, *self._alarms):
            alarm.set(step, position)

    def set_again(self, due: Due, step: int, position: int) -> None:
        """Likewise, but only for the alarms that were due, and not for logging (see :meth:`take_lines`)."""
        for alarm in due.alarms:
            alarm.set(step, position)

    def steps_until_due(self, step: int, stop: int) -> int:
        """How many steps may follow on ``step`` at once: none past ``stop`` or where something is due."""
        return int(min(stop, *(alarm.next_step for alarm in self._alarms))) - step

    def due(self, step: int, stop: StopRequest) -> Due:
        """What is due after ``step`` steps here or, with several workers, on any of them; they must all ask."""
        flags = [alarm.due(step) for alarm in self._alarms]
        agreed = self._workers.any([*(stop.name == name for name in _SIGNALS), *flags])
        came = [name for name, flag in zip(_SIGNALS, agreed, strict=False) if flag]
        alarms = {alarm for alarm, flag in zip(self._alarms, agreed[len(_SIGNALS) :], strict=True) if flag}
        return Due(
            signal=came[0] if came else None,
            log=step >= self._log.next_step,
            alarms=frozenset(alarms),
            evaluate=self._evaluate in alarms,
            save=self._save in alarms,
            save_repeatable=self._save in alarms and self._saves_repeatable,
            hooks=tuple(hook for alarm, hook in self._hook_alarms if alarm in alarms),
        )

    def take_lines(self, step: int, position: int, *, last: bool) -> list[int]:
        """The steps up to ``step`` whose metrics are to be logged, the ``last`` of a run always; once each."""
        lines: list[int] = []
        while self._log.next_step <= step:
            lines.append(int(self._log.next_step))
            self._log.set(lines[-1], position - (step - lines[-1]))
        if last and lines[-1:] != [step]:
            lines.append(step)
        return lines

    def evaluating_was_due(self, step: int, position: int) -> bool:
        """Whether a run evaluates after ``step`` steps, for one that continues there."""
        return self._evaluate.was_due(step, position)

    def saving_was_due(self, step: int, position: int) -> bool:
        """Whether an undisturbed run saves after ``step`` steps, for one that continues there."""
        return self._saves_repeatable and self._save.was_due(step, position)


def _period_of(name: str, value: Every | int | None, *, repeatable: bool = False) -> Every | None:
    """The trainer's argument ``name``: a period, or a number of steps; ``repeatable``: not in seconds."""
    if value is None or isinstance(value, Every):
        period = value
    else:
        try:
            period = every(steps=value)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from None
    if repeatable and period is not None and not period.repeatable:
        raise ValueError(
            f"{name}={period}: what goes into metrics.jsonl must not depend on the clock; use steps or epochs"
        )
    return period


def _sorted_hooks(
    hooks: Iterable[tuple[Every | str, Hook]], batches_per_epoch: int
) -> tuple[dict[str, list[Hook]], list[tuple[Alarm, Hook]]]:
    """The trainer's ``hooks``, by event, and those on a schedule with their alarms."""
    events: dict[str, list[Hook]] = {event: [] for event in EVENTS}
    alarms = []
    for pair in hooks:
        if not (isinstance(pair, tuple) and len(pair) == 2 and callable(pair[1])):
            raise TypeError(f"hooks: expected pairs of when and a function of the trainer, but got {pair!r}")
        when, hook = pair
        if isinstance(when, Every):
            alarms.append((Alarm(when, batches_per_epoch), hook))
        elif when in events:
            events[when].append(hook)
        else:
            raise ValueError(f"hooks: when must be every(…) or one of {', '.join(EVENTS)}, but is {when!r}")
    return events, alarms
