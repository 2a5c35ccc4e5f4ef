"""How fast pipelines deliver, next to plain tf.data, Grain and PyTorch's DataLoader doing the same work.

    python benchmarks/pipelines.py [--work records images tokens] [--turns 5] [--seconds 4]

records  TFRecords of 784 bytes, 1,000,000 of them, shuffled, in batches of 256 strings. Ours is a permutation of all
         records, checks both checksums of each and can be resumed anywhere; tf.data reads in order (and checks, too)
         and shuffles within a buffer of 10,000. Grain reads ArrayRecord files, its own format, with checksums as well;
         DataLoader reads the TFRecord file with os.pread at known offsets, with its checksums and without.
images   JPEG files of 320 x 320 pixels -> decode, RandAugment(2, 9), float32, batches of 32. tf.data does that with
         TensorFlow's operations in a parallel map, and once more with the compiled op that ours uses; Grain and
         DataLoader do the same with Pillow.
tokens   windows of 1024 tokens out of a file of 20 million 16-bit tokens, at random, in batches of 32. tf.data reads
         records of that length in order and shuffles within a buffer of 1,000; the others take them from a memory map.

Each loader runs in a process of its own, in turns, so that a busy machine slows all alike, from files in the page
cache; ratios are taken within each turn. DataLoader and Grain run without workers and with two, and the faster one
stands in the table. *memory* is the peak of the process with its workers, above what it needed after importing its
framework and before making the loader; pages of mapped files are not counted.
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

RECORD_BYTES, BATCH = 784, 256
PICTURES, PICTURE_SIZE, PICTURE_BATCH = 1000, 320, 32
TOKENS, WINDOW, WINDOW_BATCH = 20_480_000, 1024, 32

Batches = Iterator[int]  # records (pictures, tokens) in each batch


# --- data -------------------------------------------------------------------------------------------------------------


def make_records(folder: Path, count: int) -> None:
    import tensorflow as tf
    from array_record.python.array_record_module import ArrayRecordWriter

    data = np.random.default_rng(0).bytes(RECORD_BYTES + count)
    other = ArrayRecordWriter(str(folder / "records.array_record"), "group_size:1,uncompressed")
    with tf.io.TFRecordWriter(str(folder / "records.tfrecord")) as writer:
        for i in range(count):
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


# --- ours and tf.data -------------------------------------------------------------------------------------------------


def _sizes(dataset: Any, feature: str, unit: int = 1) -> Batches:
    for batch in dataset:
        yield int(batch[feature].shape[0]) * unit


def ours_records(folder: Path, workers: int) -> Batches:
    from tftoolkit.pipelines import Pipeline, sources

    source = sources.tfrecord(folder / "records.tfrecord")
    return _sizes(Pipeline(source).shuffle().batch(BATCH, drop_remainder=True).dataset(), "record")


def ours_images(folder: Path, workers: int) -> Batches:
    from tftoolkit.pipelines import Pipeline, image, sources

    p = Pipeline(sources.images(folder / "pictures")).shuffle().map(image.decode(channels=3))
    p = p.map(_with_shape).map(image.rand_augment(2, 9)).map(image.normalize(255.0))
    return _sizes(p.batch(PICTURE_BATCH, drop_remainder=True).dataset(), "image")


def ours_tokens(folder: Path, workers: int) -> Batches:
    from tftoolkit.pipelines import Pipeline, sources

    source = sources.token_windows(folder / "corpus.tokens", WINDOW)
    return _sizes(Pipeline(source).shuffle().batch(WINDOW_BATCH, drop_remainder=True).dataset(), "tokens", WINDOW)


def tfdata_records(folder: Path, workers: int) -> Batches:
    import tensorflow as tf

    data = tf.data.TFRecordDataset(str(folder / "records.tfrecord")).repeat().shuffle(10_000)
    data = data.batch(BATCH, drop_remainder=True).map(lambda record: {"record": record})
    return _sizes(data.prefetch(tf.data.AUTOTUNE), "record")


def tfdata_images(folder: Path, workers: int, compiled: bool = False) -> Batches:
    import tensorflow as tf

    from tftoolkit.custom_ops import pixels
    from tftoolkit.pipelines import image
    from tftoolkit.pipelines.image import augmenting

    if not compiled:
        augmenting.operation = lambda: pixels.in_tensorflow
    augment, normalize, decode = image.rand_augment(2, 9), image.normalize(255.0), image.decode(channels=3)

    def load(number: Any, path: Any) -> Any:
        example = _with_shape(decode({"image": tf.io.read_file(path)}))
        return normalize(augment(example, tf.stack([0, tf.cast(number, tf.int32)])))

    files = sorted(map(str, (folder / "pictures").rglob("*.jpg")))
    data = tf.data.Dataset.from_tensor_slices(files).shuffle(len(files)).repeat().enumerate()
    data = data.map(load, num_parallel_calls=tf.data.AUTOTUNE).batch(PICTURE_BATCH, drop_remainder=True)
    return _sizes(data.prefetch(tf.data.AUTOTUNE), "image")


def _with_shape(example: Any) -> Any:
    import tensorflow as tf

    return {**example, "image": tf.ensure_shape(example["image"], [PICTURE_SIZE, PICTURE_SIZE, 3])}


def tfdata_tokens(folder: Path, workers: int) -> Batches:
    import tensorflow as tf

    data = tf.data.FixedLengthRecordDataset(str(folder / "tokens.bin"), 2 * WINDOW).repeat().shuffle(1_000)
    data = data.batch(WINDOW_BATCH, drop_remainder=True)
    data = data.map(lambda raw: {"tokens": tf.cast(tf.io.decode_raw(raw, tf.uint16), tf.int32)})
    return _sizes(data.prefetch(tf.data.AUTOTUNE), "tokens", WINDOW)


# --- random access in Python, for Grain and DataLoader ----------------------------------------------------------------


class TFRecordFile:
    """Records by number, as bytes; ``check`` compares both checksums of each."""

    def __init__(self, folder: Path, check: bool = False) -> None:
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


def checked_records(folder: Path) -> TFRecordFile:
    return TFRecordFile(folder, check=True)


SOURCES: dict[str, tuple[Callable[[Path], Any], int, int]] = {
    "records": (checked_records, BATCH, 1),
    "records, unchecked": (TFRecordFile, BATCH, 1),
    "images": (Pictures, PICTURE_BATCH, 1),
    "tokens": (TokenWindows, WINDOW_BATCH, WINDOW),
}


def dataloader(work: str, folder: Path, workers: int) -> Batches:
    import torch

    make, size, unit = SOURCES[work]

    def collate(rows: list[Any]) -> Any:
        if isinstance(rows[0], bytes):
            return torch.frombuffer(bytearray(b"".join(rows)), dtype=torch.uint8).view(len(rows), -1)
        return torch.from_numpy(np.stack(rows))

    loader = torch.utils.data.DataLoader(
        make(folder), size, shuffle=True, drop_last=True, num_workers=workers, collate_fn=collate
    )
    while True:
        for batch in loader:
            yield len(batch) * unit


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
    stack = list if work == "records" else np.stack
    data = grain_lib.MapDataset.source(source).seed(0).shuffle().repeat()
    loaded = data.batch(size, drop_remainder=True, batch_fn=stack).to_iter_dataset()
    if workers:
        loaded = loaded.mp_prefetch(grain_lib.MultiprocessingOptions(num_workers=workers))
    for batch in loaded:
        yield len(batch) * unit


LOADERS: dict[str, tuple[Callable[[str], Callable[[Path, int], Batches]], tuple[int, ...]]] = {
    "tftoolkit": (lambda work: globals()[f"ours_{work}"], (0,)),
    "tf.data": (lambda work: globals()[f"tfdata_{work}"], (0,)),
    "tf.data, compiled op": (lambda work: lambda folder, workers: tfdata_images(folder, workers, compiled=True), (0,)),
    "Grain": (lambda work: lambda folder, workers: grain(work, folder, workers), (0, 2)),
    "DataLoader": (lambda work: lambda folder, workers: dataloader(work, folder, workers), (0, 2)),
    "DataLoader, no checksums": (
        lambda work: lambda folder, workers: dataloader(f"{work}, unchecked", folder, workers),
        (0, 2),
    ),
}
ONLY = {"tf.data, compiled op": "images", "DataLoader, no checksums": "records"}  # else: all work
WORK = ("records", "images", "tokens")


# --- measuring --------------------------------------------------------------------------------------------------------


def child(loader: str, work: str, folder: Path, workers: int, seconds: float) -> dict[str, float]:
    framework = "torch" if "DataLoader" in loader else "grain" if loader == "Grain" else "tensorflow"
    __import__(framework)
    if framework == "tensorflow":
        import tensorflow as tf

        list(tf.data.Dataset.range(2).map(lambda x: x + 1))  # so that its own memory is there
    before = _private_memory()
    peak = [before]
    threading.Thread(target=_watch, args=(peak,), daemon=True).start()
    batches = LOADERS[loader][0](work)(folder, workers)
    for _ in range(5):
        next(batches)
    count, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        count += next(batches)
    return {"speed": count / elapsed, "memory": (peak[0] - before) / 1e6}


def _watch(peak: list[float]) -> None:
    while True:
        peak[0] = max(peak[0], _private_memory())
        time.sleep(0.1)


def _private_memory() -> float:
    """Bytes of this process and its children, without pages of files."""
    import psutil

    process, total = psutil.Process(), 0
    for one in (process, *process.children(recursive=True)):
        try:
            info = one.memory_info()
        except psutil.NoSuchProcess:
            continue
        total += info.rss - info.shared
    return float(total)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", nargs="*", default=list(WORK), choices=WORK)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        loader, work, folder, workers = options.child
        print(json.dumps(child(loader, work, Path(folder), int(workers), options.seconds)), flush=True)
        os._exit(0)  # threads and workers of the loaders are of no interest any more

    import results

    where = results.machine()
    figures: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="tftoolkit-benchmark-") as name:
        folder = Path(name)
        for work in options.work:
            {"records": lambda: make_records(folder, options.records), "images": lambda: make_pictures(folder),
             "tokens": lambda: make_tokens(folder)}[work]()  # fmt: skip
            figures |= measure(work, folder, options)
    versions = {module: __import__("importlib.metadata").metadata.version(module) for module in ("grain", "torch")}
    units = {f"{work} {metric}": unit for work in WORK for metric, unit in UNITS[work].items()}
    results.save("pipelines", figures, units, where, **versions)


UNITS = {
    "records": {"speed": "records/s", "ratio to tf.data": "times", "memory": "MB"},
    "images": {"speed": "pictures/s", "ratio to tf.data": "times", "memory": "MB"},
    "tokens": {"speed": "tokens/s", "ratio to tf.data": "times", "memory": "MB"},
}


def measure(work: str, folder: Path, options: argparse.Namespace) -> dict[tuple[str, str], list[float]]:
    loaders = {name: counts for name, (_, counts) in LOADERS.items() if ONLY.get(name, work) == work}
    candidates = [(loader, workers) for loader, counts in loaders.items() for workers in counts]
    measured: dict[tuple[str, int], list[dict[str, float]]] = {candidate: [] for candidate in candidates}
    for turn in range(options.turns):
        for loader, workers in candidates:
            command = [sys.executable, __file__, "--seconds", str(options.seconds)]
            command += ["--child", loader, work, str(folder), str(workers)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{loader}, {work}, {workers} workers failed:\n{done.stderr[-3000:]}")
            figures = json.loads(done.stdout.splitlines()[-1])
            measured[loader, workers].append(figures)
            print(f"{work}, turn {turn + 1}: {loader:10s} {workers} workers {figures['speed']:14,.0f}/s "
                  f"{figures['memory']:8.0f} MB", flush=True)  # fmt: skip
    figures_of: dict[tuple[str, str], list[float]] = {}
    reference = [one["speed"] for one in measured["tf.data", 0]]
    for loader, counts in loaders.items():
        best = max(counts, key=lambda workers: statistics.median(one["speed"] for one in measured[loader, workers]))
        runs = measured[loader, best]
        ratios = [one["speed"] / other for one, other in zip(runs, reference, strict=True)]
        figures_of[loader, f"{work} speed"] = [one["speed"] for one in runs]
        figures_of[loader, f"{work} ratio to tf.data"] = ratios
        figures_of[loader, f"{work} memory"] = [one["memory"] for one in runs]
        print(f"{work}: {loader:10s} {statistics.median(one['speed'] for one in runs):14,.0f}/s, "
              f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f}) of tf.data")  # fmt: skip
    return figures_of


if __name__ == "__main__":
    main()
