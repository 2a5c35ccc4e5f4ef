"""The digits data set and the tfds source, on real files: prepared, prepared twice at once, damaged, vanished."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits

from tftoolkit.pipelines import Pipeline, SourceError, source_error, sources
from tftoolkit.pipelines.datasets import digits
from tftoolkit.pipelines.sources import tfds_source

GOLDEN_TEST_INDICES = [1, 2, 7, 8, 9, 10, 13, 14]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tfds")
    digits.prepare(folder)
    return folder


@pytest.fixture
def own_copy(data_dir: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(data_dir, tmp_path / "copy"))


@pytest.fixture(scope="module")
def array_record_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("array_record")
    digits.Digits(data_dir=folder).download_and_prepare(file_format="array_record")
    return folder


def everything(source: sources.Source) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in source.fetch(tf.range(len(source), dtype=tf.int64)).items()}


def test_both_splits_hold_scikit_learns_digits_and_no_digit_twice(data_dir: Path) -> None:
    train, test = (everything(sources.tfds("digits", split, data_dir)) for split in ("train", "test"))
    assert train["image"].shape == (1437, 8, 8, 1)
    assert train["image"].dtype == np.uint8
    assert train["label"].dtype == np.int64
    assert np.bincount(test["label"]).tolist() == [36] * 10
    assert max(train["image"].max(), test["image"].max()) == 16
    original = load_digits()

    def rows(images: np.ndarray, labels: np.ndarray) -> list[tuple[bytes, int]]:
        return sorted(
            (image.astype(np.uint8).tobytes(), int(label)) for image, label in zip(images, labels, strict=True)
        )

    ours = rows(np.concatenate([train["image"], test["image"]]), np.concatenate([train["label"], test["label"]]))
    assert ours == rows(original.images, original.target)


def test_the_split_never_changes() -> None:
    """Accuracies of different runs and versions are comparable only while this holds."""
    mask = digits._stratified_test_mask(load_digits().target)
    assert mask.sum() == 360
    assert np.flatnonzero(mask)[:8].tolist() == GOLDEN_TEST_INDICES


def test_splits_are_those_of_tfds(data_dir: Path) -> None:
    part = everything(sources.tfds("digits", "train[:90%]", data_dir))
    whole = everything(sources.tfds("digits", "train", data_dir))
    np.testing.assert_array_equal(part["image"], whole["image"][: len(part["image"])])
    assert len(part["image"]) == 1293
    assert len(sources.tfds("digits:1.0.0", "train+test", data_dir)) == 1797
    by_tfds = tfds.load("digits", split="train", data_dir=data_dir, shuffle_files=False).batch(1437)
    np.testing.assert_array_equal(next(iter(by_tfds))["image"], whole["image"])


def test_data_dir_comes_from_the_environment(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    assert len(sources.tfds("digits", "test")) == 360


def test_states_name_the_data_set(data_dir: Path) -> None:
    train, test = (Pipeline(sources.tfds("digits", split, data_dir)).batch(64) for split in ("train", "test"))
    with pytest.raises(ValueError, match=r"source.length: saved 1437, .*source.split: saved 'train'"):
        test.restore(train.state())


def start_preparing(folder: Path) -> subprocess.Popen[str]:
    program = (
        "import sys; from tftoolkit.pipelines import sources; print(len(sources.tfds('digits', 'test', sys.argv[1])))"
    )
    return subprocess.Popen([sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, text=True)


def wait_for(process: subprocess.Popen[str], folder: Path, pattern: str) -> None:
    while process.poll() is None and not list(folder.glob(pattern)):
        time.sleep(0.002)


@pytest.mark.slow
def test_two_processes_prepare_at_once(tmp_path: Path) -> None:
    other = start_preparing(tmp_path)
    wait_for(other, tmp_path, "digits/incomplete.*")
    assert len(sources.tfds("digits", "train", tmp_path)) == 1437
    assert other.communicate()[0].split() == ["360"]
    assert [path.name for path in (tmp_path / "digits").iterdir()] == ["1.0.0"]


@pytest.mark.slow
def test_a_preparation_that_was_killed_starts_anew(tmp_path: Path) -> None:
    process = start_preparing(tmp_path)
    wait_for(process, tmp_path, "digits/incomplete.*")
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "digits" / "1.0.0").exists()
    assert len(sources.tfds("digits", "train", tmp_path)) == 1437


def flip_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


RECORDS = "digits-train.tfrecord-00000-of-00001"
DAMAGES: list[tuple[Callable[[Path], Any], str]] = [
    (lambda folder: (folder / RECORDS).unlink(), f"{RECORDS} is missing"),
    (lambda folder: flip_byte(folder / RECORDS), "corrupted record"),
    (lambda folder: os.truncate(folder / RECORDS, 3000), "truncated record"),
    (lambda folder: os.truncate(folder / RECORDS, 0), f"{RECORDS} is empty"),
    (lambda folder: (folder / "dataset_info.json").unlink(), "dataset_info.json is missing"),
    (lambda folder: os.truncate(folder / "dataset_info.json", 100), "JSON"),
]


@pytest.mark.parametrize(("damage", "text"), DAMAGES, ids=[text for _, text in DAMAGES])
def test_a_damaged_folder_is_named(own_copy: Path, damage: Callable[[Path], Any], text: str) -> None:
    damage(own_copy / "digits" / "1.0.0")
    with pytest.raises(SourceError, match=text) as caught:
        sources.tfds("digits", "train", own_copy)
    assert str(own_copy) in str(caught.value)
    assert "prepare the data set again" in str(caught.value)


@pytest.mark.slow
def test_a_vanished_folder_is_prepared_again(own_copy: Path) -> None:
    before = everything(sources.tfds("digits", "train", own_copy))
    shutil.rmtree(own_copy)
    after = everything(sources.tfds("digits", "train", own_copy))
    np.testing.assert_array_equal(before["image"], after["image"])


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SourceError, match=r"^cannot prepare the digits data set in .*TFDS_DATA_DIR "):
        sources.tfds("digits", "train", tmp_path / "file")


@pytest.mark.parametrize(
    ("name", "split", "error", "text"),
    [
        ("digit", "train", ValueError, "nearest names are .*digits"),
        ("qqqqqq", "train", ValueError, "no name is near"),
        ("huggingface:digits", "train", ValueError, "TFDS knows no such data set"),
        ("digits:9.9.9", "train", ValueError, "only: 1.0.0"),
        ("mnist", "train", FileNotFoundError, "'tfds build mnist --data_dir="),
        ("digits", "valid", ValueError, "split='valid': digits has the splits train, test"),
        ("digits", "train[:0%]", ValueError, "no examples"),
        ("digits", "train[", ValueError, r"split='train\['"),
    ],
)
def test_bad_input_is_named(data_dir: Path, name: str, split: str, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        sources.tfds(name, split, data_dir)


@pytest.mark.slow
def test_array_record_gives_the_same_in_memory_and_record_by_record(
    data_dir: Path, array_record_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from_tfrecord = everything(sources.tfds("digits", "test", data_dir))
    in_memory = sources.tfds("digits", "test", array_record_dir)
    monkeypatch.setattr(tfds_source, "MAX_BYTES_IN_MEMORY", 1000)
    by_record = sources.tfds("digits", "test", array_record_dir)
    assert isinstance(by_record, tfds_source.ArrayRecordSplit)
    assert by_record.element_spec == in_memory.element_spec
    for name, values in from_tfrecord.items():
        np.testing.assert_array_equal(everything(in_memory)[name], values)
        np.testing.assert_array_equal(everything(by_record)[name], values)
    p = Pipeline(by_record).shuffle().batch(100)
    q = Pipeline(in_memory).shuffle().batch(100)
    assert p.element_spec == q.element_spec
    for one, other in zip(p.dataset(2, 2), q.dataset(2, 2), strict=True):
        np.testing.assert_array_equal(one["image"], other["image"])


class Varied(tfds.core.GeneratorBasedBuilder):
    """Pictures of several sizes, texts, lists of any length; in three files."""

    VERSION = tfds.core.Version("1.0.0")
    url_infos: ClassVar[dict[str, Any]] = {}  # no downloads, hence no checksums

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=[None, None, 3]),
            "text": tfds.features.Text(),
            "tokens": tfds.features.Sequence(np.int32),
            "boxes": tfds.features.Tensor(shape=[None, 2], dtype=np.float32),
        }
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: Any) -> Any:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Any:
        for i in range(31):
            yield (
                i,
                {
                    "image": np.full([i % 3 + 1, 2, 3], i, np.uint8),
                    "text": f"example {i}",
                    "tokens": np.arange(i % 4),
                    "boxes": np.full([i % 2, 2], i, np.float32),
                },
            )


@pytest.mark.parametrize("file_format", ["array_record", pytest.param("tfrecord", marks=pytest.mark.slow)])
def test_varied_features_are_the_same_in_memory_and_record_by_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file_format: str
) -> None:
    config = tfds.download.DownloadConfig(num_shards=3)
    builder = Varied(data_dir=tmp_path, file_format=file_format)
    builder.download_and_prepare(download_config=config, file_format=file_format)
    by_tfds = (
        tfds.as_numpy(builder.as_dataset("train")) if file_format == "tfrecord" else builder.as_data_source("train")
    )
    expected = {example["text"]: example for example in by_tfds}
    rows = {}
    for limit in (tfds_source.MAX_BYTES_IN_MEMORY, 100):
        monkeypatch.setattr(tfds_source, "MAX_BYTES_IN_MEMORY", limit)
        source = sources.tfds("varied", "train[3:-2]", tmp_path)
        assert len(source) == 26
        assert source.element_spec["image"] == tf.TensorSpec([], tf.string)
        assert source.element_spec["boxes"] == tf.TensorSpec([None, 2], tf.float32)
        rows[limit] = next(iter(Pipeline(source).batch(26, padded=True)))
        texts = rows[limit]["text"].numpy().tolist()
        assert len(set(texts)) == 26
        for i, text in enumerate(texts):
            np.testing.assert_array_equal(tf.io.decode_image(rows[limit]["image"][i]), expected[text]["image"])
            tokens, boxes = (source.fetch(tf.constant([i]))[name][0].numpy() for name in ("tokens", "boxes"))
            np.testing.assert_array_equal(tokens, expected[text]["tokens"])
            np.testing.assert_array_equal(boxes, expected[text]["boxes"])
    first, second = rows.values()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


@pytest.mark.slow
def test_large_tfrecord_is_read_at_random_and_damage_costs_one_example(
    own_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_memory = sources.tfds("digits", "train[100:]", own_copy)
    monkeypatch.setattr(tfds_source, "MAX_BYTES_IN_MEMORY", 1000)
    by_record = sources.tfds("digits", "train[100:]", own_copy)
    assert isinstance(by_record, tfds_source.TFRecordSplit)
    p, q = (Pipeline(source, seed=1).shuffle().batch(100) for source in (in_memory, by_record))
    for one, other in zip(p.dataset(2, 1), q.dataset(2, 1), strict=True):
        np.testing.assert_array_equal(one["image"], other["image"])
    flip_byte(own_copy / "digits" / "1.0.0" / RECORDS)
    damaged = sources.tfds("digits", "train[100:]", own_copy)
    p = Pipeline(damaged, on_error="skip").batch(100)
    assert sum(len(batch["label"]) for batch in itertools.islice(p, p.batches_per_epoch)) == 1336
    [skipped] = p.skipped
    [number] = skipped.examples
    assert skipped.reason.startswith(damaged.describe(number))
    assert "CRC-32C of its data" in skipped.reason


def test_files_that_vanish_in_the_middle_of_a_run_are_named_and_nothing_is_lost(
    array_record_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(array_record_dir, tmp_path / "copy"))
    monkeypatch.setattr(tfds_source, "MAX_BYTES_IN_MEMORY", 1000)
    p = Pipeline(sources.tfds("digits", "train+test", folder)).batch(100)
    folder.rename(tmp_path / "away")
    with pytest.raises(SourceError, match="bring the folder back") as caught:
        next(iter(p))
    assert str(folder / "digits" / "1.0.0") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert p.position == 0
    with pytest.raises(tf.errors.UnknownError) as in_data_set:
        next(iter(p.dataset()))
    assert str(source_error(in_data_set.value)) == str(caught.value)
    (tmp_path / "away").rename(folder)
    p = Pipeline(sources.tfds("digits", "train+test", folder)).batch(100)
    assert next(iter(p))["image"].shape == (100, 8, 8, 1)
