"""What ``benchmarks/pipelines.py`` compares: the files, and the loaders that read them."""

from collections.abc import Iterator

Batches = Iterator[int]  # records (pictures, tokens, rows) in each batch
