"""sources.tfds: nested features by name, some of many, and pictures of other dtypes, in every kind of file."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from tftoolkit.pipelines import Pipeline, image, sources
from tftoolkit.pipelines.sources import tfds_source

COUNT = 7


def depth(i: int) -> np.ndarray:
    return np.array([[0.5], [1.5], [100.0 * i]], np.float32)[..., np.newaxis]


class Nested(tfds.core.GeneratorBasedBuilder):
    """Boxes and words within others, pictures of three dtypes, and a feature that no source can have."""

    VERSION = tfds.core.Version("1.0.0")
    url_infos: ClassVar[dict[str, Any]] = {}  # no downloads, hence no checksums

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "depth": tfds.features.Image(shape=(None, None, 1), dtype=np.float32),
            "fixed_depth": tfds.features.Image(shape=(3, 1, 1), dtype=np.float32),
            "deep": tfds.features.Image(shape=(None, None, 1), dtype=np.uint16),
            "objects": tfds.features.Sequence(
                {"bbox": tfds.features.BBoxFeature(), "label": tfds.features.ClassLabel(num_classes=5)}
            ),
            "meta": {
                "id": np.int64,
                "inner": {"text": tfds.features.Text(), "grid": tfds.features.Tensor(shape=(2, 2), dtype=np.int32)},
            },
            "ragged": tfds.features.Tensor(shape=(None, None), dtype=np.int32, encoding="zlib"),
        }
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: Any) -> Any:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Any:
        for i in range(COUNT):
            objects = [{"bbox": tfds.features.BBox(0, 0, 1, k / 4), "label": k} for k in range(i % 3)]
            yield (
                i,
                {
                    "image": np.full([2 + i, 3, 3], i, np.uint8),
                    "depth": depth(i),
                    "fixed_depth": depth(i),
                    "deep": np.full([1, 2, 1], 1000 * i, np.uint16),
                    "objects": objects,
                    "meta": {"id": i, "inner": {"text": f"t{i}", "grid": np.full([2, 2], i, np.int32)}},
                    "ragged": np.zeros([i, 2], np.int32),
                },
            )


@pytest.fixture(scope="module", params=["tfrecord", "array_record"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("nested")
    Nested(data_dir=path).download_and_prepare(file_format=request.param)
    return path


@pytest.fixture(params=["in memory", "in files"])
def in_files(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "in files":
        monkeypatch.setattr(tfds_source, "MAX_BYTES_IN_MEMORY", 0)


def as_lists(value: Any) -> Any:
    return value.to_list() if isinstance(value, tf.RaggedTensor) else value.numpy().tolist()


@pytest.mark.usefixtures("in_files")
def test_t10_nested_features_have_names(folder: Path) -> None:
    names = ["objects", "meta/id", "meta/inner", "fixed_depth"]
    source = sources.tfds("nested", "train", folder, features=names)
    assert source.element_spec == {
        "objects/bbox": tf.TensorSpec([None, 4], tf.float32),
        "objects/label": tf.TensorSpec([None], tf.int64),
        "meta/id": tf.TensorSpec([], tf.int64),
        "meta/inner/grid": tf.TensorSpec([2, 2], tf.int32),
        "meta/inner/text": tf.TensorSpec([], tf.string),
        "fixed_depth": tf.TensorSpec([3, 1, 1], tf.float32),
    }
    rows = source.fetch(tf.range(COUNT, dtype=tf.int64))
    ids = rows["meta/id"].numpy().tolist()
    assert sorted(ids) == list(range(COUNT))
    assert as_lists(rows["objects/label"]) == [list(range(i % 3)) for i in ids]
    assert as_lists(rows["objects/bbox"]) == [[[0, 0, 1, k / 4] for k in range(i % 3)] for i in ids]
    assert as_lists(rows["meta/inner/text"]) == [f"t{i}".encode() for i in ids]
    assert as_lists(rows["meta/inner/grid"]) == [[[i, i], [i, i]] for i in ids]
    np.testing.assert_array_equal(rows["fixed_depth"], [depth(i) for i in ids])


@pytest.mark.usefixtures("in_files")
def test_t10_one_feature_of_many(folder: Path) -> None:
    source = sources.tfds("nested", "train", folder, features=["objects/label", "image", "deep"])
    assert list(source.element_spec) == ["objects/label", "image", "deep"]
    rows = source.fetch(tf.range(COUNT, dtype=tf.int64))
    pictures = [tf.io.decode_image(one).numpy() for one in rows["image"]]
    assert sorted(picture.shape[0] for picture in pictures) == [2 + i for i in range(COUNT)]
    for picture, deep in zip(pictures, rows["deep"], strict=True):
        decoded = image.decode(1, tf.uint16)({"image": deep})["image"]
        np.testing.assert_array_equal(decoded, np.full([1, 2, 1], 1000 * int(picture[0, 0, 0])))


def test_t4_pictures_of_float32_are_refused_where_bytes_would_come(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"feature 'depth' is a picture of float32 without a fixed size .*features=\["):
        sources.tfds("nested", "train", folder, features=["depth", "image"])


def test_t10_what_cannot_be_read_is_named_with_the_way_out(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"feature '(depth|ragged)' is .*Leave it out: features=\['deep'"):
        sources.tfds("nested", "train", folder)
    with pytest.raises(ValueError, match=r"feature 'ragged' is TensorSpec.*at most the first dimension varies"):
        sources.tfds("nested", "train", folder, features=["ragged", "image"])
    with pytest.raises(ValueError, match=r"features: there is no feature 'objects/box'; the nearest are objects/bbox"):
        sources.tfds("nested", "train", folder, features=["objects/box"])
    for features in ("image", [], [1]):
        with pytest.raises(TypeError, match="features: expected a list of names"):
            sources.tfds("nested", "train", folder, features=features)  # type: ignore[arg-type]


def test_t10_the_choice_belongs_to_the_state(folder: Path) -> None:
    def make(*names: str) -> Pipeline:
        return Pipeline(sources.tfds("nested", "train", folder, features=names)).batch(2)

    with pytest.raises(ValueError, match=r"source\.features"):
        make("meta/id").restore(make("fixed_depth").state())
