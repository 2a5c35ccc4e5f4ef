"""Every source that reads files, with a file that is empty, gone, not to be read, or cut off: what it says.

Also as root, whom no permission keeps from reading: then the files are opened as another user.
"""

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import tensorflow as tf

from tftoolkit.pipelines import Pipeline, SourceError, source_error, sources

NOBODY = 65534

FILES = {
    "tfrecord": "b.tfrecord",
    "tfrecord, only one": "b.tfrecord",
    "array_record": "a.array_record",
    "images": "images/d/1.png",
    "text": "lines.txt",
    "paragraphs": "lines.txt",
    "whole files": "lines.txt",
    "csv": "table.csv",
    "parquet": "table.parquet",
    "audio": "2.wav",
    "audio, only one": "2.wav",
    "tokens": "corpus.tokens",
    "token_windows": "corpus.tokens",
    "tfds": "tfds/digits/1.0.0/digits-train.tfrecord-00000-of-00001",
    "mix": "table.csv",
}


@contextlib.contextmanager
def without_privileges() -> Iterator[None]:
    """Root may read everything, so it becomes nobody for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


@pytest.fixture(name="folder")
def _folder(source_files: Path) -> Iterator[Path]:
    """A copy of the files, in a place where everybody may go."""
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o755)
        folder = Path(shutil.copytree(source_files, Path(made) / "files"))
        folder.chmod(0o755)
        yield folder


def _open(lib: ModuleType, name: str, folder: Path) -> sources.Source:
    def csv() -> sources.Source:
        return sources.csv(folder / "table.csv")

    special: dict[str, Callable[[], sources.Source]] = {
        "tfrecord": lambda: sources.tfrecord([folder / "a.tfrecord", folder / "b.tfrecord"], lib.FEATURES),
        "tfrecord, only one": lambda: sources.tfrecord(folder / "b.tfrecord", lib.FEATURES),
        "paragraphs": lambda: sources.text(folder / "lines.txt", by="paragraph"),
        "whole files": lambda: sources.text(folder / "lines.txt", by="file"),
        "audio": lambda: sources.audio([folder / f"{i}.wav" for i in range(6)]),
        "audio, only one": lambda: sources.audio(folder / "2.wav"),
        "mix": lambda: sources.mix({"a": (csv(), 1), "b": (csv(), 1)}),
    }
    return special[name]() if name in special else lib.SOURCES[name](folder)


def _read(lib: ModuleType, name: str, folder: Path) -> int:
    """How many examples there are, after reading them all."""
    source = _open(lib, name, folder)
    try:
        source.fetch(tf.range(len(source), dtype=tf.int64))
    except tf.errors.OpError as error:
        raise source_error(error) or error from error
    return len(source)


def _cut_off(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: min(len(content) * 6 // 10, 1000)])


def _replace_by_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


DAMAGE: dict[str, Callable[[Path], None]] = {
    "empty": lambda file: file.write_bytes(b"") and None,
    "missing": lambda file: file.unlink(),
    "unreadable": lambda file: file.chmod(0),
    "hidden": lambda file: file.parent.chmod(0),
    "cut off": _cut_off,
    "a folder": _replace_by_folder,
}


# What opening and reading everything raises; or the number of examples that are left, where that is right.
Expected = tuple[type[Exception], str] | int
OF_ALL: dict[str, Expected] = {
    "missing": (FileNotFoundError, "files: there is no file {}"),
    "unreadable": (PermissionError, "files: {} must not be read by this user"),
    "hidden": (PermissionError, "files: the folder of {} must not be read by this user"),
    "a folder": (IsADirectoryError, "files: {} is a folder; name its files"),
}
NO_TOKENS: dict[str, Expected] = {
    "empty": (SourceError, "{} is no token file"),
    "missing": (FileNotFoundError, "file: there is no token file {}"),
    "unreadable": (SourceError, "{} cannot be read: Permission denied"),
    "hidden": (SourceError, "{} cannot be read: Permission denied"),
    "cut off": (SourceError, "{} is damaged: it has 1000 bytes, but"),
    "a folder": (SourceError, "{} cannot be read: Is a directory"),
}
SHORT_TABLE = (SourceError, "{}, line 10: unexpected end of data; the row that begins there has a quote too many")
SHORT_RECORD = (SourceError, "{}, record 4 at offset 204: it goes beyond the file's end at 214")
NO_TABLE = (ValueError, "files: {} is empty; it needs a header")
NO_SOUND = (SourceError, "{} cannot be read as a sound file")
SHORT_SOUND = (SourceError, "{} is truncated: it has 67 bytes of 112")
OF_ONE: dict[str, dict[str, Expected]] = {
    # A TFRecord file of 0 bytes is a right one without records, and writers of shards do leave such files.
    "tfrecord": {"empty": 10, "cut off": SHORT_RECORD},
    "tfrecord, only one": {"empty": (ValueError, "files: there is no record in {}"), "cut off": SHORT_RECORD},
    "array_record": {
        "empty": (SourceError, "{} is no ArrayRecord file, or a damaged one"),
        "cut off": (SourceError, "{} is no ArrayRecord file, or a damaged one"),
    },
    "images": {
        "empty": (SourceError, "{} is empty; bring the picture back"),
        "missing": 8,  # the folder says which there are
        "unreadable": (SourceError, "{} cannot be read: Permission denied"),
        "hidden": (PermissionError, "images/d must not be read by this user"),
        "cut off": 9,  # only decoding tells: see test_a_truncated_jpeg
        "a folder": 8,
    },
    # Text has no checksum: less of it is another text.
    "text": {"empty": (ValueError, "files: there is no line in {}"), "cut off": 8},
    "paragraphs": {"empty": (ValueError, "files: there is no paragraph in {}"), "cut off": 1},
    "whole files": {"empty": 1, "cut off": 1},
    "csv": {"empty": NO_TABLE, "cut off": SHORT_TABLE},
    "parquet": {
        "empty": (SourceError, "{} is no Parquet file, or a damaged one"),
        "cut off": (SourceError, "{} is no Parquet file, or a damaged one"),
    },
    "audio": {"empty": NO_SOUND, "cut off": SHORT_SOUND},
    "audio, only one": {"empty": NO_SOUND, "cut off": SHORT_SOUND, "a folder": (ValueError, "folder: {} is empty")},
    "tokens": NO_TOKENS,
    "token_windows": NO_TOKENS,
    "tfds": {
        "empty": (SourceError, "{} is empty"),
        "missing": (SourceError, "cannot be read: {} is missing"),
        "unreadable": (SourceError, "cannot be read: {}; Permission denied"),
        "hidden": (SourceError, "digits/1.0.0 cannot be read"),
        "cut off": (SourceError, "digits/1.0.0 cannot be read: truncated record"),
        "a folder": (SourceError, "cannot be read: {}; Is a directory"),
    },
    "mix": {"empty": NO_TABLE, "cut off": SHORT_TABLE},
}


@pytest.mark.parametrize("name", FILES)
def test_every_source_names_its_bad_file(
    random_pipelines: ModuleType, source_files: Path, folder: Path, name: str
) -> None:
    file = folder / FILES[name]
    _read(random_pipelines, name, folder)  # whatever is loaded or compiled on first use is loaded as the user one is
    for damage in DAMAGE:
        shutil.rmtree(folder)
        shutil.copytree(source_files, folder)
        folder.chmod(0o755)
        DAMAGE[damage](file)
        expected = {**OF_ALL, **OF_ONE[name]}[damage]
        privileges = without_privileges() if damage in ("unreadable", "hidden") else contextlib.nullcontext()
        if isinstance(expected, int):
            assert _read(random_pipelines, name, folder) == expected, damage
            continue
        error, text = expected
        # Of a hidden folder the first of its files is named.
        path = f"{folder}/[^ ]*" if damage == "hidden" else re.escape(str(file))
        with privileges, pytest.raises(error, match=text.replace("{}", path)) as caught:
            _read(random_pipelines, name, folder)
        assert "\n" not in str(caught.value), damage
        file.parent.chmod(0o755)


def test_every_source_with_files_is_in_the_table(random_pipelines: ModuleType) -> None:
    assert random_pipelines.SOURCES.keys() - {"arrays"} <= FILES.keys() == OF_ONE.keys()


def test_names_in_a_folder_that_must_not_be_listed(folder: Path) -> None:
    sources.text(folder / "*.txt")
    folder.chmod(0o711)
    with without_privileges(), pytest.raises(PermissionError, match=f"the folder {folder} must not be read"):
        sources.text(folder / "*.txt")


def test_a_file_in_the_place_of_a_folder(folder: Path) -> None:
    for name in ("lines.txt/x.txt", "lines.txt/*.txt"):
        with pytest.raises(FileNotFoundError, match=r"lines.txt/.*\.txt"):
            sources.text(folder / name)
    with pytest.raises(NotADirectoryError, match=r"lines.txt is a file"):
        sources.images(folder / "lines.txt")


def test_a_disk_that_gives_no_more(tmp_path: Path) -> None:
    """Reading the start of a process's own memory is an input/output error, as of a broken disk."""
    (tmp_path / "class").mkdir()
    (tmp_path / "class" / "a.png").write_bytes(b"x" * 10)
    source = sources.images(tmp_path)
    (tmp_path / "class" / "a.png").unlink()
    (tmp_path / "class" / "a.png").symlink_to("/proc/self/mem")
    with pytest.raises(SourceError, match=r"class/a.png cannot be read: Input/output error"):
        next(iter(Pipeline(source).batch(1)))
