"""Examples by number in Python, as Grain and PyTorch's DataLoader want them."""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from loaders.data import RECORD_BYTES, TEXT, WINDOW, read_digits


class TFRecordFile:
    """Records, as bytes; ``check`` compares both checksums of each."""

    def __init__(self, folder: Path, check: bool = True) -> None:
        self._check = check
        self._file = os.open(folder / "records.tfrecord", os.O_RDONLY)
        self._count = os.fstat(self._file).st_size // (RECORD_BYTES + 16)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, i: int) -> bytes:
        frame = os.pread(self._file, RECORD_BYTES + 16, i * (RECORD_BYTES + 16))
        record = frame[12:-4]
        if self._check and (_masked_crc(frame[:8]) != frame[8:12] or _masked_crc(record) != frame[-4:]):
            raise OSError(f"record {i} is damaged")
        return record


def _masked_crc(data: bytes) -> bytes:
    import google_crc32c

    crc = google_crc32c.value(data)
    return ((((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "little")


class Pictures:
    """JPEG files, decoded and augmented with Pillow."""

    def __init__(self, folder: Path) -> None:
        self._files = sorted((folder / "pictures").rglob("*.jpg"))

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, i: int) -> np.ndarray:
        from PIL import Image

        picture = Image.open(io.BytesIO(self._files[i].read_bytes())).convert("RGB")
        return np.asarray(rand_augment_with_pillow(picture, np.random.default_rng(i)), np.float32) / 255


def rand_augment_with_pillow(picture: Any, random: np.random.Generator, layers: int = 2, magnitude: int = 9) -> Any:
    """RandAugment (Cubuk et al. 2020) at magnitude 9 of 10, with bilinear warps as in ours."""
    from PIL import Image, ImageEnhance, ImageOps

    level, fill = magnitude / 10, (128, 128, 128)
    size = picture.size

    def warp(*matrix: float) -> Callable[[Any], Any]:
        return lambda p: p.transform(size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=fill)

    for _ in range(layers):
        sign = 1 if random.random() < 0.5 else -1
        factor = 1 + 0.9 * level * sign
        operations: list[Callable[[Any], Any]] = [
            lambda p: p,
            ImageOps.autocontrast,
            ImageOps.equalize,
            lambda p, s=sign: p.rotate(30 * level * s, Image.Resampling.BILINEAR, fillcolor=fill),
            lambda p: ImageOps.solarize(p, int(256 * (1 - level))),
            lambda p: ImageOps.posterize(p, 8 - int(4 * level)),
            *(
                lambda p, e=enhance, f=factor: e(p).enhance(f)
                for enhance in (
                    ImageEnhance.Color, ImageEnhance.Contrast, ImageEnhance.Brightness, ImageEnhance.Sharpness
                )
            ),
            warp(1, 0.3 * level * sign, 0, 0, 1, 0),
            warp(1, 0, 0, 0.3 * level * sign, 1, 0),
            warp(1, 0, size[0] * 0.45 * level * sign, 0, 1, 0),
            warp(1, 0, 0, 0, 1, size[1] * 0.45 * level * sign),
        ]  # fmt: skip
        picture = operations[random.integers(len(operations))](picture)
    return picture


class TokenWindows:
    """Windows of a memory-mapped file."""

    def __init__(self, folder: Path) -> None:
        self._tokens = np.memmap(folder / "tokens.bin", np.uint16, "r")

    def __len__(self) -> int:
        return len(self._tokens) // WINDOW

    def __getitem__(self, i: int) -> np.ndarray:
        return self._tokens[i * WINDOW : (i + 1) * WINDOW].astype(np.int32)


class Table:
    """The rows of a table that pyarrow has read into memory; ``[i]`` is one of them, ``[[i, j, …]]`` are many."""

    def __init__(self, table: Any) -> None:
        self._columns = {name: table.column(name).to_numpy() for name in table.column_names}

    def __len__(self) -> int:
        return len(self._columns[TEXT])

    def __getitem__(self, i: Any) -> dict[str, Any]:
        return {name: column[i] for name, column in self._columns.items()}


def parquet_table(folder: Path) -> Any:
    from pyarrow import parquet

    return parquet.read_table(folder / "table.parquet")


def csv_table(folder: Path) -> Any:
    from pyarrow import csv

    return csv.read_csv(folder / "table.csv")


class Digits:
    """Pictures and labels; ``shifted`` by up to one pixel and scaled."""

    def __init__(self, folder: Path, shifted: bool = False) -> None:
        self._digits, self._shifted = read_digits(folder), shifted
        self._padded = np.pad(self._digits["image"], [(0, 0), (1, 1), (1, 1), (0, 0)])
        self._random = np.random.default_rng(0)

    def __len__(self) -> int:
        return len(self._padded)

    def __getitem__(self, i: int) -> dict[str, Any]:
        if not self._shifted:
            return {name: column[i] for name, column in self._digits.items()}
        top, left = self._random.integers(0, 3, 2)
        picture = self._padded[i, top : top + 8, left : left + 8].astype(np.float32) / 16
        return {"image": picture, "label": self._digits["label"][i]}
