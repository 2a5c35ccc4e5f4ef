"""The 1,797 handwritten digits that scikit-learn carries, as a TFDS data set that is prepared without a network."""

import contextlib
import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import filelock
import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from tftoolkit.pipelines.errors import SourceError

_TEST_PER_DIGIT = 36  # of 174 … 183


class Digits(tfds.core.GeneratorBasedBuilder):
    """8×8 images of handwritten digits: 1,437 for training, 360 (36 per digit) for testing.

    image: uint8 [8, 8, 1], values 0 … 16 (not 255!); label: int64, 0 … 9.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "First release."}
    # No downloads, hence no checksums. TFDS 4.9.10 would look for their file beside this module, and for that imports
    # importlib_resources, a package that it does not declare.
    url_infos: ClassVar[dict[str, Any]] = {}

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=(
                "1,797 images of handwritten digits, 8×8 pixels with 17 levels: each value, 0 … 16, counts the ink "
                "pixels in a 4×4 block of a 32×32 bitmap. It is the copy in scikit-learn of the test part of UCI's "
                '"Optical Recognition of Handwritten Digits", by 13 writers. The split into train and test is '
                "tftoolkit's own: fixed, 36 of each digit for testing; both parts share the writers, so "
                "test accuracy says nothing about new writers. Licence of the data: CC BY 4.0."
            ),
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), dtype=np.uint8, encoding_format="png"),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits",
            citation=(
                "@misc{optical_recognition_of_handwritten_digits_80,\n"
                "  author = {Alpaydin, E. and Kaynak, C.},\n"
                "  title = {Optical Recognition of Handwritten Digits},\n"
                "  year = {1998},\n"
                "  howpublished = {UCI Machine Learning Repository},\n"
                "  doi = {10.24432/C50P49}\n"
                "}"
            ),
            license="CC BY 4.0",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[tuple[int, Any]]]:
        del dl_manager  # nothing to download
        from sklearn.datasets import load_digits  # slow to import, and needed only here

        data = load_digits()
        is_test = _stratified_test_mask(data.target)
        return {
            "train": _examples(data, np.flatnonzero(~is_test)),
            "test": _examples(data, np.flatnonzero(is_test)),
        }

    def _generate_examples(self) -> None:
        raise NotImplementedError  # abstract in TFDS; the splits have their generators already


def prepare(data_dir: Path) -> None:
    """Writes the data set below ``data_dir`` unless it is there; several processes may call it at once.

    Raises:
      SourceError: ``data_dir`` cannot be written to.
    """
    builder = Digits(data_dir=data_dir)
    if builder.data_path.exists():
        return
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(data_dir / ".tftoolkit-digits.lock"):
            logging.info("Preparing the digits data set in %s", builder.data_path)
            # TFDS would announce a download, and that nothing has a known size.
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    except OSError as error:
        raise SourceError(
            f"cannot prepare the digits data set in {data_dir}: {error}; name a folder that can be written to with "
            "data_dir=… or the environment variable TFDS_DATA_DIR",
            code="source-unwritable",
        ) from error


def _examples(data: Any, indices: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
    for index in indices:
        image = data.images[index].astype(np.uint8)[..., np.newaxis]
        yield int(index), {"image": image, "label": int(data.target[index])}


def _stratified_test_mask(labels: np.ndarray) -> np.ndarray:
    """bool[n]: the test examples, equally many of each class and the same ones for ever.

    Ranked by a hash of the index and not by a random generator, whose stream another NumPy version may change.
    """
    rank = np.array([hashlib.sha256(f"digits-{index}".encode()).hexdigest() for index in range(len(labels))])
    mask = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        mask[members[np.argsort(rank[members])][:_TEST_PER_DIGIT]] = True
    return mask
