"""What ``tftoolkit train`` does for a recipe: one module per kind of training, each with a ``Job`` called ``JOB``."""

from tftoolkit.jobs.job import Job, find, run

__all__ = ["Job", "find", "run"]
