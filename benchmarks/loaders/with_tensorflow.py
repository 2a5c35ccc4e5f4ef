"""Our pipelines, and plain tf.data doing the same work."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from loaders import Batches
from loaders.data import (
    BATCH,
    DIGITS_BATCH,
    FLOATS,
    INTEGERS,
    PICTURE_BATCH,
    PICTURE_SIZE,
    TEXT,
    WINDOW,
    WINDOW_BATCH,
    read_digits,
)  # fmt: skip


def _sizes(batches: Any, feature: str, unit: int = 1) -> Batches:
    for batch in batches:
        yield int(batch[feature].shape[0]) * unit


# --- ours -------------------------------------------------------------------------------------------------------------


def _ours(source: Any, batch_size: int, feature: str, unit: int = 1) -> Batches:
    from tftoolkit.pipelines import Pipeline

    return _sizes(Pipeline(source).shuffle().batch(batch_size, drop_remainder=True), feature, unit)


def ours_records(folder: Path) -> Batches:
    from tftoolkit.pipelines import sources

    return _ours(sources.tfrecord(folder / "records.tfrecord"), BATCH, "record")


def ours_images(folder: Path) -> Batches:
    from tftoolkit.pipelines import Pipeline, image, sources

    p = Pipeline(sources.images(folder / "pictures")).shuffle().map(image.decode(channels=3))
    p = p.map(_with_shape).map(image.rand_augment(2, 9)).map(image.normalize(255.0))
    return _sizes(p.batch(PICTURE_BATCH, drop_remainder=True), "image")


def ours_tokens(folder: Path) -> Batches:
    from tftoolkit.pipelines import sources

    return _ours(sources.token_windows(folder / "corpus.tokens", WINDOW), WINDOW_BATCH, "tokens", WINDOW)


def ours_parquet(folder: Path) -> Batches:
    from tftoolkit.pipelines import sources

    return _ours(sources.parquet(folder / "table.parquet"), BATCH, TEXT)


def ours_csv(folder: Path) -> Batches:
    from tftoolkit.pipelines import sources

    return _ours(sources.csv(folder / "table.csv"), BATCH, TEXT)


def ours_arrays(folder: Path) -> Batches:
    from tftoolkit.pipelines import sources

    return _ours(sources.arrays(read_digits(folder)), DIGITS_BATCH, "image")


def ours_shifted(folder: Path) -> Batches:
    from tftoolkit.pipelines import Pipeline, image, sources

    p = Pipeline(sources.arrays(read_digits(folder))).shuffle().map(image.random_shift(1)).map(image.normalize(16))
    return _sizes(p.batch(DIGITS_BATCH, drop_remainder=True), "image")


# --- tf.data ----------------------------------------------------------------------------------------------------------


def tfdata_records(folder: Path) -> Batches:
    import tensorflow as tf

    data = tf.data.TFRecordDataset(str(folder / "records.tfrecord")).repeat().shuffle(10_000)
    data = data.batch(BATCH, drop_remainder=True).map(lambda record: {"record": record})
    return _sizes(data.prefetch(tf.data.AUTOTUNE), "record")


def tfdata_images(folder: Path, compiled: bool = False) -> Batches:
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


def tfdata_images_compiled(folder: Path) -> Batches:
    return tfdata_images(folder, compiled=True)


def _with_shape(example: Any) -> Any:
    import tensorflow as tf

    return {**example, "image": tf.ensure_shape(example["image"], [PICTURE_SIZE, PICTURE_SIZE, 3])}


def tfdata_tokens(folder: Path) -> Batches:
    import tensorflow as tf

    data = tf.data.FixedLengthRecordDataset(str(folder / "tokens.bin"), 2 * WINDOW).repeat().shuffle(1_000)
    data = data.batch(WINDOW_BATCH, drop_remainder=True)
    data = data.map(lambda raw: {"tokens": tf.cast(tf.io.decode_raw(raw, tf.uint16), tf.int32)})
    return _sizes(data.prefetch(tf.data.AUTOTUNE), "tokens", WINDOW)


def tfdata_parquet(folder: Path) -> Batches:
    """tf.data has no reader of Parquet files, so pyarrow's batches go through a generator."""
    import tensorflow as tf
    from pyarrow import parquet

    def parts() -> Any:
        for part in parquet.ParquetFile(folder / "table.parquet").iter_batches(8192):
            yield {name: part.column(name).to_numpy(zero_copy_only=False) for name in part.schema.names}

    one = {name: tf.TensorSpec([None], tf.float32) for name in FLOATS}
    one |= {name: tf.TensorSpec([None], tf.int64) for name in INTEGERS} | {TEXT: tf.TensorSpec([None], tf.string)}
    data = tf.data.Dataset.from_generator(parts, output_signature=one).unbatch().repeat().shuffle(10_000)
    return _sizes(data.batch(BATCH, drop_remainder=True).prefetch(tf.data.AUTOTUNE), TEXT)


def tfdata_csv(folder: Path) -> Batches:
    import tensorflow as tf

    data = tf.data.experimental.make_csv_dataset(
        str(folder / "table.csv"), BATCH, shuffle_buffer_size=10_000, num_parallel_reads=2, sloppy=True
    )
    return _sizes(data, TEXT)


def tfdata_arrays(folder: Path, function: Callable[[Any], Any] | None = None) -> Batches:
    import tensorflow as tf

    digits = read_digits(folder)
    data = tf.data.Dataset.from_tensor_slices(digits).shuffle(len(digits["label"])).repeat()
    if function is not None:
        data = data.map(function, num_parallel_calls=tf.data.AUTOTUNE)
    return _sizes(data.batch(DIGITS_BATCH, drop_remainder=True).prefetch(tf.data.AUTOTUNE), "image")


def tfdata_shifted(folder: Path) -> Batches:
    import tensorflow as tf

    def shift_and_scale(example: Any) -> Any:
        padded = tf.pad(example["image"], [[1, 1], [1, 1], [0, 0]])
        corner = tf.concat([tf.random.uniform([2], maxval=3, dtype=tf.int32), [0]], 0)
        return {**example, "image": tf.cast(tf.slice(padded, corner, [8, 8, 1]), tf.float32) / 16.0}

    return tfdata_arrays(folder, shift_and_scale)
