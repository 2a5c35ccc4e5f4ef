"""What every kind of training shares: begin or go on, train, export once, report."""

from __future__ import annotations

import abc
import contextlib
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from tftoolkit import export, models, pipelines, report, trainers
from tftoolkit.jobs import exports, run_folder, settings
from tftoolkit.trainers.console import phase
from tftoolkit.trainers.distribution.replicas import Workers


class Job(abc.ABC):
    """A kind of training: what is trained, on what, how it is judged, exported and shown.

    ``run`` calls the methods in the order in which they stand here. What a method needs of an earlier one it finds in
    the attributes that the earlier one set.

    Attributes:
      config: of the recipe. ``run`` reads ``steps``, ``runner``, ``steps_per_call``, ``log_every``, ``evaluate_every``,
        ``checkpoint_every``, ``seed``, ``at_least`` and ``at_most``; the rest is the job's. The first bound is of the
        metric by which exported files are judged, too.
      charts: the metrics that the report draws, of the training batches and of the evaluations.
      directory: the run folder; ``run`` sets it.
    """

    charts: Sequence[str] = ("loss",)
    directory: Path

    def __init__(self, config: ConfigDict) -> None:
        self.config = config

    def check(self) -> None:
        """Refuses settings that otherwise fail when all is trained. Raises ValueError that names one.

        A subclass that has more of them calls this one, too.
        """
        for name, least in (("steps", 1), ("batch_size", 1), ("seed", 0), ("learning_rate", 0)):
            if name in self.config:
                settings.between(self.config, name, least)
        exports.check(self.config.get("exports", ()))
        if "name" in self.config.get("model", {}):
            name = self.config.model.name
            settings.one_of("model.name", name, self.model_names())
            make = getattr(self._models(), name)
            settings.arguments_of("model", make, [one for one in self.config.model if one != "name"])
        if not 0 <= (dropout := self.config.get("model", {}).get("dropout", 0)) < 1:
            raise ValueError(f"config.model.dropout={dropout!r} must be at least 0 and less than 1")

    def model_names(self) -> list[str]:
        """What ``model.name`` may be; in a package of one's own its models, too."""
        own = {} if self._models() is models else vars(self._models())
        return sorted({*models.__all__, *(name for name, value in own.items() if callable(value))})

    def _models(self) -> Any:
        """tftoolkit's, or those of the package that the job lies in."""
        return getattr(sys.modules[type(self).__module__], "models", models)

    @abc.abstractmethod
    def read(self) -> None:
        """Reads what the other methods need: the examples of the evaluation, a vocabulary."""

    def prepare(self) -> None:  # noqa: B027 - most begin with nothing
        """Makes what the step begins with, where that takes a training of its own; nothing of the pipeline needs it."""

    @abc.abstractmethod
    def pipeline(self) -> pipelines.Pipeline:
        """The batches to train on."""

    @abc.abstractmethod
    def step(self) -> trainers.Step:
        """Makes the model and the step that trains it; called in the scope of the strategy, if there is one."""

    def optimizer(self, kind: Any = trainers.optimizers.AdamW, **options: Any) -> Any:
        """AdamW, or another that decays weights, with the recipe's rates: a cosine behind a warm-up; for ``step``."""
        config = self.config
        schedule = trainers.schedules.cosine(config.learning_rate, config.steps, warmup_steps=config.warmup_steps)
        return kind(schedule, weight_decay=config.weight_decay, **options)

    @abc.abstractmethod
    def evaluate(self) -> dict[str, float]:
        """The metrics of the model as it is now."""

    @abc.abstractmethod
    def export(self, folder: Path) -> export.ExportReport:
        """Writes the model's files into a folder."""

    @abc.abstractmethod
    def sections(self) -> Sequence[report.Section]:
        """What the report shows of the trained model."""


def find(name: str) -> type[Job]:
    """The job of a module of this package. Raises ValueError where there is none."""
    modules = Path(__file__).parent.glob("*.py")
    settings.one_of("job", name, [module.stem for module in modules if "\nJOB = " in module.read_text("utf-8")])
    job: type[Job] = importlib.import_module(f"tftoolkit.jobs.{name}").JOB
    return job


def run(job: Job, directory: Path, recipe: str | None = None) -> None:
    """Trains (or goes on training), exports and reports; what is finished already is not done again.

    A format that was left out because something was not installed is made by a run after it is.

    Args:
      recipe: the name of the recipe that the configuration began as, for ``tftoolkit runs``.

    Writes ``config.json``, ``metrics.jsonl``, ``status.json``, ``tensorboard/``, ``checkpoints/``, ``export/`` and
    ``report.html``.
    Of several workers (``tftoolkit launch``) all train, and the first writes.

    Raises ValueError where settings can't work, RunFolderError, and what Trainer.run and the exporters raise.
    """
    job.check()
    strategy = trainers.distributed_strategy()  # before any operation runs
    is_chief = Workers(strategy).is_chief
    job.directory = directory
    if is_chief:
        run_folder.claim(directory, job.config.to_dict(), recipe)
    said = phase if is_chief else contextlib.nullcontext
    with said("reading the data"):
        job.read()
    job.prepare()
    with said("tracing the training step"):
        with strategy.scope() if strategy else contextlib.nullcontext():
            step = job.step()
        trainer = _trainer(job, step, directory)
    summary = trainer.run(job.config.steps)
    if is_chief:
        _finish(job, directory, trainer, summary)


def _trainer(job: Job, step: trainers.Step, directory: Path) -> trainers.Trainer:
    config = job.config
    return trainers.Trainer(
        step,
        job.pipeline(),
        directory,
        runner=config.runner,
        steps_per_call=config.steps_per_call,
        evaluate=job.evaluate,
        evaluate_every=config.evaluate_every,
        checkpoint_every=config.checkpoint_every,
        log_every=config.log_every,
        seed=config.seed,
    )


def _finish(job: Job, directory: Path, trainer: trainers.Trainer, summary: trainers.Summary) -> None:
    """What comes after training, as far as it isn't there yet."""
    table_file = directory / "export" / "report.txt"
    page = directory / "report.html"
    results = judged(job.config, summary.evaluation)
    later = exports.left_out(directory / "export", job.config.get("exports", ())) if table_file.exists() else []
    if later or not table_file.exists():
        page.unlink(missing_ok=True)
        why = f" all formats again, since {', '.join(later)} can be made by now" if later else ""
        print(f"Exporting{why}; each file is run in its own runtime and compared before it is written.")
        run_folder.emptied(directory / "export")
        proof = job.export(directory / "export")
        run_folder.write_text(directory / "export" / "report.json", proof.to_json() + "\n")
        with phase("report.html"):
            _write_page(job, page, results, trainer.finished_steps, proof)
        run_folder.write_text(table_file, f"{proof}\n")  # last: it says that export and page are complete
    print(f"\n{table_file.read_text()}")
    for result in results:
        print(result)
    print(f"{summary.seconds:.1f} s of training\nreport: {page.resolve()}")


def judged(config: ConfigDict, evaluation: dict[str, float]) -> list[report.Result]:
    """The metrics that the recipe expects something of, in the order in which it names them."""
    expected: list[tuple[str, float, bool]] = [
        (name, bound, at_least)
        for group, at_least in (("at_least", True), ("at_most", False))
        for name, bound in config.get(group, {}).items()
    ]
    return [report.Result(name, evaluation[name], bound, at_least) for name, bound, at_least in expected]


def _write_page(
    job: Job, page: Path, results: Sequence[report.Result], finished_steps: int, proof: export.ExportReport
) -> None:
    text = report.render(
        title=f"{page.parent.name}: {finished_steps} steps",
        results=results,
        metrics=report.read_metrics(page.parent / "metrics.jsonl"),
        charts=job.charts,
        sections=job.sections(),
        proof=proof,
        config=job.config.to_dict(),
    )
    run_folder.write_text(page, text)
