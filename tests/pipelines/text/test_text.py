"""Normalisation, tokenisers, and a corpus as a token file; on CPython's own English and Python."""

import json
import pydoc_data.topics
import sys
import sysconfig
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from tftoolkit.pipelines import Pipeline, sources, text

ENGLISH = list(pydoc_data.topics.topics.values())
PYTHON = [path.read_text("utf-8") for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))]
UNICODE = st.text(st.characters(exclude_categories=["Cs"]))
SPECIAL = ["<pad>", "<end>"]
BYTES = text.byte_tokenizer(SPECIAL)


@pytest.fixture(scope="module")
def bpe() -> text.Tokenizer:
    return text.train_bpe_tokenizer(ENGLISH, 2000, SPECIAL)


@given(UNICODE)
def test_byte_tokens_are_the_bytes_of_utf8(string: str) -> None:
    tokens = BYTES.encode(string)
    assert tokens.dtype == np.int32
    assert bytes(tokens.tolist()) == string.encode()
    assert BYTES.decode(tokens) == string


@settings(deadline=None)
@given(string=UNICODE | st.sampled_from(["<end>", " <pad>x", "a\u0301", "\r\n\t ", "\0"]))
def test_bpe_gives_every_text_back(bpe: text.Tokenizer, string: str) -> None:
    tokens = bpe.encode(string)
    assert bpe.decode(tokens) == string
    assert not set(tokens.tolist()) & set(bpe.special_tokens.values())


def test_bpe_compresses_and_gives_real_files_back(bpe: text.Tokenizer) -> None:
    assert bpe.vocabulary_size == 2000
    assert bpe.special_tokens == {"<pad>": 0, "<end>": 1}
    for documents, bytes_per_token in ((ENGLISH[::3], 3), (PYTHON[::10], 1.8)):
        encoded = bpe.encode_batch(documents)
        assert [bpe.decode(tokens) for tokens in encoded] == documents
        assert sum(len(d.encode()) for d in documents) > bytes_per_token * sum(map(len, encoded))


def test_special_tokens() -> None:
    assert BYTES.vocabulary_size == 258
    assert BYTES.special_tokens == {"<pad>": 256, "<end>": 257}
    assert BYTES.decode([104, 105, 257]) == "hi<end>"
    assert text.byte_tokenizer().special_tokens == {}


def test_words() -> None:
    words = text.train_word_tokenizer(ENGLISH, 300, ["<end>"], text.normalizer(lowercase=True))
    assert words.special_tokens == {"<unk>": 0, "<end>": 1}
    assert words.vocabulary_size == 300
    tokens = words.encode("The  qwertz of\nthe class, THE <unk>")
    assert words.decode(tokens) == "the <unk> of the class , the < <unk> <unk>"
    assert 0 <= tokens.min() <= tokens.max() < 300


def test_training_is_repeatable_and_takes_sources(bpe: text.Tokenizer) -> None:
    again = text.train_bpe_tokenizer(sources.arrays({"text": ENGLISH}), 2000, SPECIAL)
    assert again.fingerprint == bpe.fingerprint
    others = [
        text.train_bpe_tokenizer(ENGLISH, 1999, SPECIAL),
        text.train_bpe_tokenizer(ENGLISH, 2000, SPECIAL, text.normalizer()),
        text.train_bpe_tokenizer(PYTHON[:5], 2000, SPECIAL),
        BYTES,
    ]
    assert len({bpe.fingerprint, *(other.fingerprint for other in others)}) == 5


def test_saved_and_loaded(tmp_path: Path, bpe: text.Tokenizer) -> None:
    words = text.train_word_tokenizer(ENGLISH, 300, normalizer=text.normalizer("NFKC", collapse_whitespace=True))
    for number, tokenizer in enumerate([bpe, words, BYTES]):
        path = tmp_path / f"{number}.json"
        tokenizer.save(path)
        loaded = text.Tokenizer.load(path)
        assert loaded.fingerprint == tokenizer.fingerprint
        assert loaded.special_tokens == tokenizer.special_tokens
        sample = "Statement <end> ﬁ x"
        np.testing.assert_array_equal(loaded.encode(sample), tokenizer.encode(sample))
        # It is the library's own format.
        assert json.loads(path.read_text())["model"]["vocab"]
        assert tokenizers.Tokenizer.from_file(str(path)).get_vocab_size() == tokenizer.vocabulary_size
    assert len(list(tmp_path.iterdir())) == 3
    for content in (b"", b"{}", b"\xff\xfe", b'{"model": 3}'):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"2.json is no tokeniser in the JSON format of tokenizers"):
            text.Tokenizer.load(path)


@given(UNICODE, st.sampled_from(["NFC", "NFKC", "NFD", "NFKD"]))
def test_normal_forms_are_those_of_unicodedata(string: str, form: str) -> None:
    # The two may know different versions of Unicode: only letters that Python's version has assigned are compared.
    string = "".join(letter for letter in string if unicodedata.category(letter) != "Cn")
    assert text.normalize(form)({"text": tf.constant(string)})["text"].numpy().decode() == unicodedata.normalize(
        form, string
    )


def test_normalize_in_a_pipeline() -> None:
    raw = ["  ﬁne\t\nÄ  ", "", "A\u0308 \u00a0b"]
    stage = text.normalize("NFKC", lowercase=True, collapse_whitespace=True)
    expected = ["fine ä", "", "ä b"]
    assert [stage({"text": tf.constant(one)})["text"].numpy().decode() for one in raw] == expected
    p = Pipeline(sources.arrays({"text": raw, "id": [7, 8, 9]})).map(stage)
    for size in (1, 2, 3):
        batches = list(p.batch(size).dataset(epochs=1))
        assert [one.decode() for batch in batches for one in batch["text"].numpy()] == expected
        assert [int(one) for batch in batches for one in batch["id"]] == [7, 8, 9]
    assert stage.__name__ == "normalize(NFKC, lowercase=True, collapse_whitespace=True)"


def test_tokenize_as_a_stage(bpe: text.Tokenizer) -> None:
    documents = [*ENGLISH[:20], "", "ä"]
    stage = text.tokenize(bpe)
    expected = [bpe.encode(document).tolist() for document in documents]
    assert [stage({"text": tf.constant(one)})["tokens"].numpy().tolist() for one in documents] == expected
    rows = tf.function(stage.over_rows)({"text": tf.constant(documents), "id": tf.range(22)})
    assert rows.keys() == {"tokens", "id"}
    assert rows["tokens"].to_list() == expected
    assert stage.over_rows({"text": tf.zeros([0], tf.string)})["tokens"].to_list() == []
    assert bpe.fingerprint in stage.__name__


@pytest.mark.parametrize("as_source", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_corpus_as_a_token_file(tmp_path: Path, bpe: text.Tokenizer, as_source: bool) -> None:
    files = PYTHON[:101]
    corpus = sources.arrays({"text": files}) if as_source else iter(files)
    file = text.write_tokens(corpus, tmp_path / "python.tokens", bpe, end_of_document="<end>")
    assert file.tokens.dtype == np.uint16
    assert (file.tokenizer, file.vocabulary_size) == (bpe.fingerprint, 2000)
    source = sources.tokens(tmp_path / "python.tokens")
    assert len(source) == len(files)
    rows = source.fetch(tf.constant([3, 100, 0], tf.int64))["tokens"]
    for row, index in zip(rows, [3, 100, 0], strict=True):
        assert bpe.decode(row) == files[index] + "<end>"
    windows = sources.token_windows(tmp_path / "python.tokens", 50)
    read = bpe.decode(windows.fetch(tf.range(100, dtype=tf.int64))["tokens"].numpy().reshape(-1))
    assert "<end>".join(files).startswith(read.rstrip("\ufffd"))


def test_a_corpus_packed_into_windows(tmp_path: Path, bpe: text.Tokenizer) -> None:
    text.write_tokens(ENGLISH, tmp_path / "english.tokens", bpe, end_of_document="<end>")
    p = Pipeline(sources.tokens(tmp_path / "english.tokens")).shuffle().pack(512).batch(16)
    real = total = 0
    documents = []
    for batch in p.dataset(epochs=1):
        real += int(tf.math.count_nonzero(batch["segment_ids"]))
        total += int(tf.size(batch["tokens"]))
        documents += bpe.decode(batch["tokens"][batch["segment_ids"] > 0].numpy()).split("<end>")
    assert real == len(sources.tokens(tmp_path / "english.tokens")._file.tokens)
    assert real >= 0.95 * total
    short = {document for document in ENGLISH if len(bpe.encode(document)) < 512}
    assert len(short) > 10
    assert all(any(found.endswith(document) for found in documents) for document in short)


def test_tokenize_in_a_pipeline(bpe: text.Tokenizer) -> None:
    texts = ENGLISH[:30]
    p = Pipeline(sources.arrays({"text": texts})).map(text.normalize("NFKC")).map(text.tokenize(bpe))
    (ragged,) = p.batch(len(texts)).dataset(epochs=1)
    assert [bpe.decode(row) for row in ragged["tokens"]] == [unicodedata.normalize("NFKC", one) for one in texts]
    assert p.batch(4, padded=True).element_spec["tokens"].shape == [None, None]


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r"pip install 'tftoolkit\[text\]'"):
        text.byte_tokenizer()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: BYTES.encode(b"x"), TypeError, "expected a string, got b'x'"),
        (lambda: BYTES.encode("\ud800"), ValueError, "lone surrogates"),
        (lambda: BYTES.decode([258]), ValueError, r"ids 258 to 258; they must be in \[0, 258\)"),
        (lambda: BYTES.decode([[1]]), ValueError, r"expected a sequence of integers, got int64\[1, 1\]"),
        (lambda: BYTES.decode([0.5]), ValueError, "expected a sequence of integers, got float64"),
        (lambda: text.byte_tokenizer("<end>"), TypeError, "expected a list of names, got '<end>'"),
        (lambda: text.byte_tokenizer(["a", "a"]), ValueError, "a name appears twice"),
        (lambda: text.train_bpe_tokenizer(ENGLISH, 256, ["x"]), ValueError, "must be at least 257"),
        (lambda: text.train_bpe_tokenizer("text", 300), TypeError, "expected texts or a source, got str"),
        (lambda: text.train_bpe_tokenizer(["a", 3], 300), TypeError, "text 1 is int"),
        (lambda: text.train_bpe_tokenizer(sources.arrays({"x": [1]}), 300), ValueError, "a string feature 'text'"),
        (lambda: text.normalize("NFX"), ValueError, "form='NFX': expected one of NFC, NFKC"),
        (lambda: text.tokenize("x"), TypeError, "tokenizer: expected a text.Tokenizer"),
        (lambda: text.write_tokens([], "/tmp/x", "bpe"), TypeError, "tokenizer: expected a text.Tokenizer, got 'bpe'"),
        (lambda: text.write_tokens([], "/tmp/x", BYTES, "<eos>"), ValueError, r"end_of_document='<eos>': no special"),
        (
            lambda: Pipeline(sources.arrays({"words": ["a"]})).map(text.tokenize(BYTES)),
            ValueError,
            r"tokenize: the example has no feature 'text', only \['words'\]",
        ),
        (
            lambda: Pipeline(sources.arrays({"text": [1]})).map(text.normalize()),
            ValueError,
            r"normalize: 'text' must be a string, got int32\(\)",
        ),
    ],
)
def test_bad_input_is_named(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
