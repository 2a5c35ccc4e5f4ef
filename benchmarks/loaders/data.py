"""The files that all loaders read."""

from pathlib import Path

import numpy as np

RECORDS, RECORD_BYTES, BATCH = 1_000_000, 784, 256
PICTURES, PICTURE_SIZE, PICTURE_BATCH = 1000, 320, 32
TOKENS, WINDOW, WINDOW_BATCH = 20_480_000, 1024, 32
PARQUET_ROWS, CSV_ROWS, ROW_GROUP = 1_000_000, 200_000, 1 << 16
FLOATS, INTEGERS, TEXT = [f"f{i}" for i in range(5)], ["id", "count"], "city"
DIGITS_BATCH = 128


def make_records(folder: Path) -> None:
    import tensorflow as tf
    from array_record.python.array_record_module import ArrayRecordWriter

    data = np.random.default_rng(0).bytes(RECORD_BYTES + RECORDS)
    other = ArrayRecordWriter(str(folder / "records.array_record"), "group_size:1,uncompressed")
    with tf.io.TFRecordWriter(str(folder / "records.tfrecord")) as writer:
        for i in range(RECORDS):
            writer.write(data[i : i + RECORD_BYTES])
            other.write(data[i : i + RECORD_BYTES])
    other.close()


def make_pictures(folder: Path) -> None:
    from PIL import Image
    from sklearn.datasets import load_sample_images

    photographs, random = load_sample_images().images, np.random.default_rng(0)
    for i in range(PICTURES):
        photograph = photographs[i % 2]
        top, left = (random.integers(0, size - PICTURE_SIZE) for size in photograph.shape[:2])
        crop = photograph[top : top + PICTURE_SIZE, left : left + PICTURE_SIZE]
        place = folder / "pictures" / f"class_{i % 10}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(crop).save(place / f"{i:04}.jpg", quality=90)


def make_tokens(folder: Path) -> None:
    from tftoolkit.pipelines.sources.token_file import write_token_file

    random = np.random.default_rng(0)
    documents = (random.integers(0, 30_000, TOKENS // 100) for _ in range(100))
    write_token_file(folder / "corpus.tokens", documents, 30_000, "benchmark")
    np.memmap(folder / "tokens.bin", np.uint16, "w+", shape=TOKENS)[:] = random.integers(0, 30_000, TOKENS, np.uint16)


def make_parquet(folder: Path) -> None:
    from pyarrow import parquet

    parquet.write_table(_table(PARQUET_ROWS), folder / "table.parquet", row_group_size=ROW_GROUP)


def make_csv(folder: Path) -> None:
    from pyarrow import csv

    csv.write_csv(_table(CSV_ROWS), folder / "table.csv", csv.WriteOptions(quoting_style="none"))


def _table(rows: int) -> object:
    import pyarrow

    random = np.random.default_rng(0)
    columns: dict[str, object] = {name: random.standard_normal(rows, np.float32) for name in FLOATS}
    columns |= {name: random.integers(0, 1_000_000, rows) for name in INTEGERS}
    columns[TEXT] = np.array([f"city {i:04}" for i in range(1000)])[random.integers(0, 1000, rows)]
    return pyarrow.table(columns)


def make_digits(folder: Path) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    np.savez(folder / "digits.npz", image=digits.images[..., np.newaxis].astype(np.uint8), label=digits.target)


def read_digits(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "digits.npz") as stored:
        return dict(stored)
