"""``tftoolkit data`` as it is called."""

import os
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tftoolkit.cli import main
from tftoolkit.pipelines import sources


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``data inspect`` writes its page into the current one."""
    monkeypatch.chdir(tmp_path)


def test_a_folder_of_pictures_is_inspected_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, name in enumerate(["cat/a.png", "cat/b.png", "dog/c.png", "cat/d.png"]):
        path = tmp_path / "pets" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full([2, 2, 3], number, np.uint8)).save(path)
    assert main(["data", "inspect", str(tmp_path / "pets"), "--examples=1"]) == 0
    printed = capsys.readouterr().out
    assert "4 examples" in printed
    assert "0 cat: 3 (75.0%)" in printed
    assert "path: cat/a.png" in printed
    out = str(tmp_path / "out")
    assert main(["data", "write", str(tmp_path / "pets"), out, "--format=array_record", "--shards=2"]) == 0
    assert capsys.readouterr().out.count(f"{out}-0000") == 2
    back = sources.array_record(f"{out}-*.array_record", "stored")
    assert back.fetch(tf.constant([3], tf.int64))["path"].numpy().tolist() == [b"dog/c.png"]
    assert main(["data", "inspect", f"{out}-*.array_record"]) == 0
    assert "label: int64()" in capsys.readouterr().out
    assert main(["data", "write", str(tmp_path / "pets"), out]) == 1
    assert "nothing is overwritten" in capsys.readouterr().err


def test_an_index_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(tmp_path / "x.tfrecord")
    with tf.io.TFRecordWriter(file) as writer:
        for size in (3, 5000, 1):
            writer.write(b"x" * size)
    assert main(["data", "index", file]) == 0
    assert capsys.readouterr().out.strip() == f"{file}  3 records, 4.9 KiB, the longest 4.9 KiB"
    assert os.path.exists(f"{file}.index.npz")


def test_a_table_with_a_bad_row_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "x.csv"
    file.write_text("label,x\n0,1.5\n1\n1,2\n")
    assert main(["data", "inspect", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "  1: 1 (33.3%)" in printed
    assert "examples that cannot be read: 1 (33.3%)" in printed
    assert f"bad: {file}, line 3, 1 values for 2 columns" in printed


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        ([], 2, "data: needs a COMMAND, got nothing. There are: inspect, index, write"),
        (["show"], 2, "unknown command 'show'. There are: inspect, index, write"),
        (["write", "x"], 2, "required: DESTINATION\nusage: tftoolkit data write SOURCE ... DESTINATION"),
        (["inspect", "x.zip"], 2, "which kind of source is it?"),
        (["inspect", "tfds:digits"], 2, "expected one tfds:NAME/SPLIT"),
        (["inspect", "nothing.csv"], 1, "there is no file"),
        (["inspect", "x.csv", "--rows=3"], 2, "no option --rows. The options are --examples, --label, --by, --page"),
    ],
)
def test_wrong_usage_is_told(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, text: str) -> None:
    assert main(["data", *arguments]) == code
    assert text in capsys.readouterr().err
