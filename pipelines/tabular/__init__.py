"""Tabular stages: statistics fitted on the training split, and the columns made ready with them.

A column is a feature of any fixed shape, mostly a scalar; a vector is treated element by element. Missing are NaN in
floating-point columns and "" in strings.
"""

from tftoolkit.pipelines.tabular.stages import fill_missing, hash_buckets, one_hot, standardize
from tftoolkit.pipelines.tabular.statistics import Column, Statistics, fit, fit_vocabulary

__all__ = [
    "Column",
    "Statistics",
    "fill_missing",
    "fit",
    "fit_vocabulary",
    "hash_buckets",
    "one_hot",
    "standardize",
]
