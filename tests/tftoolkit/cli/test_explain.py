"""``tftoolkit explain``: the page on errors, where only the package is installed."""

import re
from pathlib import Path

import pytest

from tftoolkit import errors
from tftoolkit.cli import UsageError, main, run

PAGE = (Path(__file__).parents[3] / "docs/errors.md").read_text()
CODES = re.findall(r"^### ([a-z0-9-]+)$", PAGE, re.MULTILINE)


def test_all_codes_are_listed(capsys):
    assert run(["explain"]) == 0
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()] == CODES
    assert len(CODES) > 40


@pytest.mark.parametrize("code", CODES)
def test_each_has_its_paragraph_without_links(code, capsys):
    assert run(["explain", code]) == 0
    said = capsys.readouterr().out
    assert len(said.split()) >= 10
    assert "](" not in said
    assert "#" not in said
    assert said.split()[:3] == re.search(rf"### {code}\n\n(.*?)(?=\n#|\Z)", PAGE, re.DOTALL)[1].split()[:3]


def test_the_end_of_a_message_as_it_stands_there(capsys):
    assert run(["explain", "[tftoolkit: docs/errors.md#op-input]"]) == 0
    assert capsys.readouterr().out.startswith("An input or an attribute")


def test_an_unknown_code():
    with pytest.raises(UsageError, match=r"'source-damage': did you mean source-damaged"):
        run(["explain", "source-damage"])
    with pytest.raises(UsageError, match="without a code, all are listed"):
        run(["explain", "0x80004005"])


def test_an_error_says_how_to_ask(monkeypatch, capsys):
    def broken(options):
        raise errors.CodedError("the file ends too early", code="source-damaged")

    monkeypatch.setattr("tftoolkit.cli.explain.run", broken)
    assert main(["explain"]) == 1
    err = capsys.readouterr().err
    assert err.endswith("(tftoolkit explain source-damaged says more; --debug shows where)\n")


def test_too_little_memory_is_one_line(monkeypatch, capsys):
    """TensorFlow's error names the node and gives hints to its own developers."""
    import tensorflow as tf

    def large(options):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating [99, 99]\n\t [[{{node x}}]]\nHint: …")

    monkeypatch.setattr("tftoolkit.cli.explain.run", large)
    assert main(["explain"]) == 1
    said = "tftoolkit: ResourceExhaustedError: OOM when allocating [99, 99] (smaller batches need less memory)\n"
    assert capsys.readouterr().err == f"{said}(--debug shows where)\n"
    with pytest.raises(tf.errors.ResourceExhaustedError):
        main(["explain", "--debug"])
