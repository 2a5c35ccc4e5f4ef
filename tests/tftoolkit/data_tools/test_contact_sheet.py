"""The figures and the page of ``tftoolkit data inspect``."""

import html.parser
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tensorflow as tf
from PIL import Image

from tftoolkit.cli import main
from tftoolkit.data_tools import contact_sheet, inspection
from tftoolkit.data_tools.contact_sheet import render
from tftoolkit.data_tools.inspection import Feature, survey
from tftoolkit.pipelines import Pipeline, image, sources
from tftoolkit.pipelines.text import byte_tokenizer, write_tokens


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _is_one_file(page: str) -> bool:
    """Whether nothing is fetched, and every tag is closed."""
    parser = html.parser.HTMLParser()
    parser.feed(page)
    parser.close()
    addresses = re.findall(r"""(?:src|href)=["']([^"']*)""", page)
    return all(address.startswith(("data:", "#")) for address in addresses) and page.rstrip().endswith("</html>")


def test_texts_are_escaped_and_their_lengths_counted(capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.txt").write_text("<script>alert(1)</script>\n" + "x\n" * 3 + "y" * 9 + "\n")
    assert main(["data", "inspect", "a.txt"]) == 0
    printed = capsys.readouterr().out
    assert "bytes in files: 42 B" in printed
    assert "bytes as tensors: 37 B" in printed
    assert "length of text: 1 to 25, median 1, mean 7.4" in printed
    assert re.search(r"from  1  █{40} 3$", printed, re.MULTILINE)
    page = Path("inspect.html").read_text()
    assert _is_one_file(page)
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_pictures_of_files_and_what_a_pipeline_makes_of_them() -> None:
    for number in range(4):
        path = Path("pets") / ("cat & dog" if number % 2 else "<b>") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full([20 + number, 30, 3], 50 * number, np.uint8)).save(path)
    (Path("pets") / "<b>" / "z.jpg").write_bytes(b"\xff\xd8\xff damaged")
    files = survey(sources.images("pets"), 9)
    assert [(name, count) for _, name, count in files.labels] == [("<b>", 3), ("cat & dog", 2)]
    assert files.lengths["image"].tolist() == [path.stat().st_size for path in sorted(Path("pets").rglob("*.*g"))]
    page = render("pets", files)
    assert page.count("<img ") == 4
    assert "cannot be decoded" in page
    assert "<h3>cat &amp; dog</h3>" in page
    decoded = survey(Pipeline(sources.images("pets")).map(image.decode()), 9)
    assert (decoded.seen, decoded.bad) == (5, 1)
    assert sorted(row.features["image"].shape for row in decoded.shown if not row.error) == [
        (20, 30, 3), (21, 30, 3), (22, 30, 3), (23, 30, 3),
    ]  # fmt: skip
    page = render("decoded", decoded)
    assert page.count("<img ") == 4
    assert page.count('class="card medium bad"') == 1


def test_sounds_have_spectrograms() -> None:
    for rate in (8000, 44100):
        wave = np.sin(np.arange(rate // 2) / 20).astype(np.float32)
        soundfile.write(f"{rate}.wav", np.stack([wave, wave], 1) if rate > 8000 else wave, rate)
        page = render("sound", survey(sources.audio(f"{rate}.wav"), 1))
        assert page.count("<img ") == page.count("<audio ") == 1
        assert f"0.50 s, {rate:,} Hz" in page
        assert _is_one_file(page)


def test_packed_windows_show_their_segments() -> None:
    tokenizer = byte_tokenizer()
    write_tokens(["<a>", "bcd", "efgh"], "x.tokens", tokenizer)
    found = survey(Pipeline(sources.tokens("x.tokens")).pack(8, padding_values={"tokens": 32}).batch(3), 2)
    assert (found.count, found.seen) == (2, 2)
    page = " ".join(render("packed", found, tokenizer).split())
    assert "8 places, 2 sequences, 87.5% filled" in page
    strips = [re.findall(r'"s(\d)" style="width: ([\d.]+)%"', one) for one in page.split('class="strip"')[1:]]
    assert [("1", "50.000"), ("2", "37.500"), ("0", "12.500")] in strips
    assert '<span class="s2">b</span> <span class="s2">c</span>' in page or "&lt;</span>" in page


def test_lengths_that_a_source_knows_are_those_of_all_examples() -> None:
    write_tokens(["a" * (1 + i % 7) for i in range(2500)], "x.tokens", byte_tokenizer())
    found = survey(sources.tokens("x.tokens"), 5)
    assert found.seen == 2000
    assert len(found.lengths["tokens"]) == found.count == 2500
    assert len(found.shown) == 5


def test_other_labels_and_small_pixels() -> None:
    pixels = np.zeros([3, 4, 4, 1], np.uint8)
    pixels[1:] = 16
    found = survey(sources.arrays({"image": pixels, "kind": np.array([b"a", b"b", b"a"])}), 3, "kind")
    assert found.labels == [(b"a", "", 2), (b"b", "", 1)]
    page = render("arrays", found)
    assert "0 to 16; shown from 0 (black) to 16 (white)" in page
    assert page.count('class="enlarged"') == 3


def test_rows_of_a_table_stand_in_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.csv").write_text("alcohol,a_long_name_of_a_column,kind\n14.23,0.1,<red>\n1,2\n11.03,1e-6,white\n")
    assert main(["data", "inspect", "a.csv"]) == 0
    printed = capsys.readouterr().out
    assert "  alcohol: float32(), 11.03 to 14.23" in printed
    assert "  a_long_name_of_a_column: 1e-06\n" in printed
    assert "defaults" not in printed
    page = Path("inspect.html").read_text()
    assert _is_one_file(page)
    assert 'class="card' not in page
    assert page.count('<th class="number">alcohol</th>') == 1
    assert '<td class="number">14.23</td><td class="number">0.1</td><td>&lt;red&gt;</td></tr>' in page
    assert 'line 3</td>\n<td class="bad" colspan="3">' in page


def test_a_page_of_ones_own_is_not_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.csv").write_text("label,x\n0,1\n1,2\n")
    Path("mine.html").write_text("<p>mine</p>")
    assert main(["data", "inspect", "a.csv", "--page=mine.html"]) == 1
    assert "is not replaced" in capsys.readouterr().err
    assert Path("mine.html").read_text() == "<p>mine</p>"
    assert main(["data", "inspect", "a.csv", "--page="]) == 0
    assert not Path("inspect.html").exists()
    assert main(["data", "inspect", "a.csv"]) == main(["data", "inspect", "a.csv"]) == 0


def test_a_pipeline_of_a_file_is_inspected(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.py").write_text(
        "import numpy as np\nfrom tftoolkit.pipelines import Pipeline, sources\n"
        "train = Pipeline(sources.arrays({'label': np.arange(10) % 3})).shuffle().batch(4)\n"
    )
    assert main(["data", "inspect", "mine.py:train"]) == 0
    printed = capsys.readouterr().out
    assert "10 examples" in printed
    assert "  0: 4 (40.0%)" in printed
    assert "batch 2, row 1" in printed


@pytest.mark.parametrize(("dtype", "low", "high", "shown"), [
    (tf.float32, 0.0, 1.0, (0.0, 1.0)), (tf.float32, 0.0, 64.0, (0.0, 64.0)), (tf.float32, 0.0, 65.0, (0.0, 255.0)),
    (tf.float32, 0.0, 256.0, (0.0, 256.0)), (tf.float32, -1.0, 2.0, (-1.0, 2.0)), (tf.uint8, 0, 16, (0.0, 16.0)),
    (tf.uint8, 0, 65, (0.0, 255.0)), (tf.float32, 0.0, np.inf, (0.0, 1.0)),
])  # fmt: skip
def test_what_is_shown_black_and_white(dtype: tf.DType, low: float, high: float, shown: tuple[float, float]) -> None:
    assert contact_sheet._scale(Feature(tf.TensorSpec([8, 8], dtype), low, high)) == shown


def test_small_pictures_are_kept_exactly_and_large_ones_compressed() -> None:
    for size, mode, kind in ((8, "RGB", "png"), (400, "RGB", "jpeg"), (400, "L", "jpeg"), (400, "RGBA", "png")):
        card = contact_sheet.Card("picture", "")
        contact_sheet._add_picture(card, "image", Image.new(mode, (size, size)))
        ((_, url, _),) = card.pictures
        assert url.startswith(f"data:image/{kind};base64,")


def test_a_record_says_what_is_in_it() -> None:
    numbers = tf.train.Feature(int64_list=tf.train.Int64List(value=[1, 2]))
    features = tf.train.Features(feature={"n": numbers, "empty": tf.train.Feature()})
    record = tf.train.Example(features=features).SerializeToString()
    assert inspection._example(record) == "tf.train.Example with empty: empty[0], n: int64[2]"
    assert inspection._example(tf.train.Example().SerializeToString()) == ""
    assert inspection._example(b"no example") == ""
