"""The images source: real pictures of every format in folders per class."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tftoolkit.pipelines import Pipeline, SourceError, sources


def picture(path: Path, value: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full([3, 4, 3], value, np.uint8)).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """dogs: 3, cats: 2 of which one lies deeper; every known format."""
    for number, name in enumerate(["dogs/b.png", "dogs/a.JPG", "dogs/c.gif", "cats/x.bmp", "cats/sub/y.jpeg"]):
        picture(tmp_path / name, 40 * number)
    (tmp_path / ".DS_Store").write_bytes(b"x")
    (tmp_path / "cats" / ".hidden").write_bytes(b"x")
    return tmp_path


def test_every_format_comes_encoded_and_sorted(folder: Path) -> None:
    source = sources.images(folder)
    assert source.classes == ("cats", "dogs")
    rows = source.fetch(tf.range(5, dtype=tf.int64))
    assert rows["path"].numpy().tolist() == [
        b"cats/sub/y.jpeg",
        b"cats/x.bmp",
        b"dogs/a.JPG",
        b"dogs/b.png",
        b"dogs/c.gif",
    ]
    assert rows["label"].numpy().tolist() == [0, 0, 1, 1, 1]
    for i, (path, content) in enumerate(zip(rows["path"].numpy(), rows["image"].numpy(), strict=True)):
        assert content == (folder / path.decode()).read_bytes()
        pixels = np.array(Image.open(io.BytesIO(content)).convert("RGB"))
        decoded = tf.io.decode_image(content, expand_animations=False).numpy()
        np.testing.assert_allclose(decoded, pixels, atol=2)
        assert source.describe(i) == str(folder / path.decode())


def test_a_shuffled_pipeline_resumes(folder: Path) -> None:
    p = Pipeline(sources.images(folder), seed=2).shuffle().batch(2)
    whole = [batch["path"].numpy().tolist() for batch in p.dataset(epochs=3)]
    assert [batch["path"].numpy().tolist() for batch in p.dataset(4, epochs=3)] == whole[4:]
    assert len({path for batch in whole[:3] for path in batch}) == 5


def test_a_picture_that_is_gone_empty_or_shorter_costs_one_example(folder: Path) -> None:
    (folder / "dogs" / "a.JPG").write_bytes(b"")
    source = sources.images(folder)
    os.truncate(folder / "dogs" / "b.png", 20)
    (folder / "dogs" / "c.gif").unlink()
    reasons = {
        2: "a.JPG is empty",
        3: "b.png ends at byte 20, .* it has changed",
        4: "c.gif cannot be read: No such file",
    }
    for index, reason in reasons.items():
        with pytest.raises(SourceError, match=reason):
            source.fetch(tf.constant([index], tf.int64))
    p = Pipeline(source, on_error="skip", max_skipped=0.7).batch(5)
    assert next(iter(p))["label"].numpy().tolist() == [0, 0]


def test_states_name_what_changed(folder: Path) -> None:
    saved = Pipeline(sources.images(folder)).batch(2).state()
    picture(folder / "dogs" / "b.png", 7)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, [9, 9, 3], np.uint8)).save(folder / "dogs" / "b.png")
    with pytest.raises(ValueError, match=r"source.files.dogs/b.png: saved \d+, this pipeline \d+"):
        Pipeline(sources.images(folder)).batch(2).restore(saved)


def test_bad_folders_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        sources.images(folder / "nowhere")
    with pytest.raises(NotADirectoryError, match=r"b.png is a file"):
        sources.images(folder / "dogs" / "b.png")
    (folder / "birds").mkdir()
    with pytest.raises(ValueError, match=r"the class .*birds is empty"):
        sources.images(folder)
    (folder / "birds" / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match=r"birds/notes.txt is none of \.bmp, \.gif, \.jpeg, \.jpg, \.png"):
        sources.images(folder)
    (folder / "birds" / "notes.txt").rename(folder / "notes.txt")
    with pytest.raises(ValueError, match=r"notes.txt lies beside the classes"):
        sources.images(folder)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="empty is empty; it needs a folder per class"):
        sources.images(empty)
