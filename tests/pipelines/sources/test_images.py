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


def test_t8_labels_are_those_of_the_other_split(tmp_path: Path) -> None:
    for name in ("train/cat/1.png", "train/cow/1.png", "train/dog/1.png", "val/cat/1.png", "val/dog/1.png"):
        picture(tmp_path / name, 1)
    train = sources.images(tmp_path / "train")
    for prepare in (lambda: None, (tmp_path / "val" / "cow").mkdir):  # missing, then empty
        prepare()
        val = sources.images(tmp_path / "val", classes=train.classes)
        assert val.classes == ("cat", "cow", "dog")
        assert val.fetch(tf.range(2, dtype=tf.int64))["label"].numpy().tolist() == [0, 2]
    with pytest.raises(ValueError, match=r"cow is empty; .* give all classes' names: classes=train\.classes"):
        sources.images(tmp_path / "val")
    picture(tmp_path / "val" / "elk" / "1.png", 1)
    with pytest.raises(ValueError, match=r"classes: the folder .*elk is none of them; add its name .*cat, cow, dog"):
        sources.images(tmp_path / "val", classes=train.classes)


def test_t8_the_numbering_belongs_to_the_state(folder: Path) -> None:
    saved = Pipeline(sources.images(folder)).batch(2).state()
    Pipeline(sources.images(folder, classes=["cats", "dogs"])).batch(2).restore(saved)
    for classes in (["dogs", "cats"], ["cats", "cows", "dogs"], [f"class {i}" for i in range(90)] + ["cats", "dogs"]):
        with pytest.raises(ValueError, match=r"source\.classes.*: saved .*(cats|dogs)"):
            Pipeline(sources.images(folder, classes=classes)).batch(2).restore(saved)
    refused = [("cats", TypeError), ([], ValueError), (["cats", "cats"], ValueError), ([1], TypeError)]
    for classes, error in refused:
        with pytest.raises(error, match="classes: expected"):
            sources.images(folder, classes=classes)  # type: ignore[arg-type]
    (folder / "none" / "cats").mkdir(parents=True)
    with pytest.raises(ValueError, match="no file in any of its classes"):
        sources.images(folder / "none", classes=["cats"])


def test_t4_webp_and_what_systems_leave_in_folders(folder: Path) -> None:
    picture(folder / "cats" / "z.webp", 9)
    for litter in ("Thumbs.db", "cats/desktop.ini", "dogs/THUMBS.DB", "__MACOSX/cats/._x.jpeg", "dogs/@eaDir/x.jpg"):
        (folder / litter).parent.mkdir(parents=True, exist_ok=True)
        (folder / litter).write_bytes(b"x")
    source = sources.images(folder)
    assert source.classes == ("cats", "dogs")
    assert len(source) == 6
    assert source.fetch(tf.constant([2], tf.int64))["path"].numpy().tolist() == [b"cats/z.webp"]
