"""PyTorch's DataLoader, Grain, and pyarrow alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from loaders import Batches
from loaders.data import BATCH, DIGITS_BATCH, PICTURE_BATCH, TEXT, WINDOW, WINDOW_BATCH
from loaders.random_access import Digits, Pictures, Table, TFRecordFile, TokenWindows, csv_table, parquet_table

SOURCES: dict[str, tuple[Callable[[Path], Any], int, int]] = {  # by number; batch size; what an example counts
    "records": (TFRecordFile, BATCH, 1),
    "images": (Pictures, PICTURE_BATCH, 1),
    "tokens": (TokenWindows, WINDOW_BATCH, WINDOW),
    "parquet": (lambda folder: Table(parquet_table(folder)), BATCH, 1),
    "csv": (lambda folder: Table(csv_table(folder)), BATCH, 1),
    "arrays": (Digits, DIGITS_BATCH, 1),
    "shifted": (lambda folder: Digits(folder, shifted=True), DIGITS_BATCH, 1),
}


def dataloader(work: str, folder: Path, workers: int) -> Batches:
    make, size, unit = SOURCES[work]
    return _dataloader(make(folder), size, unit, workers)


def dataloader_unchecked(work: str, folder: Path, workers: int) -> Batches:
    return _dataloader(TFRecordFile(folder, check=False), BATCH, 1, workers)


def _dataloader(examples: Any, size: int, unit: int, workers: int) -> Batches:
    import torch

    def collate(rows: list[Any]) -> Any:
        if isinstance(rows[0], dict):
            return torch.utils.data.default_collate(rows)
        if isinstance(rows[0], bytes):
            return torch.frombuffer(bytearray(b"".join(rows)), dtype=torch.uint8).view(len(rows), -1)
        return torch.from_numpy(np.stack(rows))

    settings = {"drop_last": True, "collate_fn": collate, "persistent_workers": workers > 0}
    loader = torch.utils.data.DataLoader(examples, size, shuffle=True, num_workers=workers, **settings)
    while True:
        for _ in loader:
            yield size * unit


def dataloader_by_batch(work: str, folder: Path, workers: int) -> Batches:
    """The sampler hands a whole batch of numbers to the table, as one may where it can take them."""
    import torch
    from torch.utils.data import BatchSampler, RandomSampler

    def tensors(columns: dict[str, Any]) -> dict[str, Any]:
        return {name: value if name == TEXT else torch.from_numpy(value) for name, value in columns.items()}

    table = SOURCES[work][0](folder)
    sampler = BatchSampler(RandomSampler(table), BATCH, drop_last=True)
    settings = {"collate_fn": tensors, "persistent_workers": workers > 0}
    loader = torch.utils.data.DataLoader(table, None, sampler=sampler, num_workers=workers, **settings)
    while True:
        for _ in loader:
            yield BATCH


def grain(work: str, folder: Path, workers: int) -> Batches:
    import grain as grain_lib
    from absl import flags

    flags.FLAGS.mark_as_parsed()  # its workers need that
    make, size, unit = SOURCES[work]
    source = (
        grain_lib.sources.ArrayRecordDataSource(str(folder / "records.array_record"))
        if work == "records"
        else make(folder)
    )
    data = grain_lib.MapDataset.source(source).seed(0).shuffle().repeat()
    stack = {"batch_fn": list} if work == "records" else {}
    loaded = data.batch(size, drop_remainder=True, **stack).to_iter_dataset()
    if workers:
        loaded = loaded.mp_prefetch(grain_lib.MultiprocessingOptions(num_workers=workers))
    for _ in loaded:
        yield size * unit


def pyarrow_taken(work: str, folder: Path, workers: int) -> Batches:
    """Rows of a table in memory, taken by number."""
    table = (parquet_table if work == "parquet" else csv_table)(folder)
    random = np.random.default_rng(0)
    while True:
        order = random.permutation(len(table))
        for start in range(0, len(order) - BATCH + 1, BATCH):
            batch = table.take(order[start : start + BATCH])
            _ = {name: batch.column(name).to_numpy() for name in batch.column_names}
            yield BATCH


def pyarrow_in_order(work: str, folder: Path, workers: int) -> Batches:
    """Rows in the order of the file, not shuffled, so that each is decoded once and dropped."""
    from pyarrow import csv, parquet

    while True:
        parts = (
            parquet.ParquetFile(folder / "table.parquet").iter_batches(BATCH)
            if work == "parquet"
            else (part for block in csv.open_csv(folder / "table.csv") for part in _cut(block))
        )
        for part in parts:
            _ = {name: part.column(name).to_numpy(zero_copy_only=False) for name in part.schema.names}
            yield part.num_rows


def _cut(block: Any) -> Any:
    return (block.slice(start, BATCH) for start in range(0, block.num_rows, BATCH))
