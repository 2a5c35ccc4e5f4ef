"""``programs.uses`` finds what programs use of TensorFlow Addons and nothing else; ``tftoolkit tfa`` says it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tftoolkit import cli
from tftoolkit.migration import programs
from tftoolkit.migration.answers import answers

PROGRAMS = Path(__file__).with_name("programs")


def _found(text, folder, name="program.py"):
    file = folder / name
    file.write_text(text)
    return [(int(use.place.rpartition(":")[2]), use.symbol) for use in programs.uses(file)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "triplet.py",
            [
                *((13, "layers.WeightNormalization"), (13, "activations.mish"), (18, "optimizers.Lookahead")),
                *((18, "optimizers.RectifiedAdam"), (19, "losses.TripletSemiHardLoss")),
                (21, "callbacks.TQDMProgressBar"),
            ],
        ),
        (
            "seq2seq.py",
            [
                *((5, "seq2seq.BahdanauAttention"), (6, "seq2seq.LuongAttention"), (14, "seq2seq.TrainingSampler")),
                *((16, "seq2seq.AttentionWrapper"), (17, "seq2seq.BasicDecoder"), (21, "seq2seq.BahdanauAttention")),
                *((22, "seq2seq.LuongAttention"), (26, "seq2seq.BeamSearchDecoder"), (27, "seq2seq.tile_batch")),
            ],
        ),
        (
            "tagger.py",
            [
                *((10, "optimizers.LAMB"), (14, "text.crf_log_likelihood"), (19, "text.crf_decode")),
                *((26, "optimizers.LAMB"), (26, "metrics.F1Score"), (26, "rnn.NASCell")),
            ],
        ),
    ],
)
def test_programs_like_the_tutorials(name, expected):
    found = programs.uses(PROGRAMS / name)
    places = [(f"{PROGRAMS / name}:{line}", symbol) for line, symbol in expected]
    assert sorted((use.place, use.symbol) for use in found) == sorted(places)
    assert all(use.answer == answers()[use.symbol] for use in found)


def test_notebooks_are_read_by_cell():
    file = PROGRAMS / "image_ops.ipynb"
    assert [(use.place, use.symbol) for use in programs.uses(file)] == [
        (f"{file}[3]:2", "image.mean_filter2d"),
        (f"{file}[3]:3", "image.rotate"),
        (f"{file}[5]:3", "image.transform"),
        (f"{file}[5]:5", "image.random_hsv_in_yiq"),
    ]


IMPORTS = {
    "import tensorflow_addons": "tensorflow_addons.layers.GELU",
    "import tensorflow_addons as tfa": "tfa.layers.GELU",
    "import tensorflow_addons.layers": "tensorflow_addons.layers.GELU",
    "import tensorflow_addons.layers as L": "L.GELU",
    "from tensorflow_addons import layers": "layers.GELU",
    "from tensorflow_addons import layers as L": "L.GELU",
    "from tensorflow_addons import *": "layers.GELU",
    "from tensorflow_addons.layers import *": "GELU",
    "import importlib; m = importlib.import_module('tensorflow_addons')": "m.layers.GELU",
    "import importlib; m = importlib.import_module('tensorflow_addons.layers')": "m.GELU",
    "m = __import__('tensorflow_addons')": "m.layers.GELU",
    "import tensorflow_addons as tfa; L = tfa.layers": "L.GELU",
    "import tensorflow_addons as tfa; L, x = tfa.layers, 3": "L.GELU",
    "import tensorflow_addons as tfa; L: object = tfa.layers": "L.GELU",
    "import tensorflow_addons as tfa; print(L := tfa.layers)": "L.GELU",
    "import tensorflow_addons as tfa; also = tfa": "also.layers.gelu.GELU",
    "import tensorflow_addons as tfa; y = 1": "getattr(tfa.layers, 'GELU')",
}
PLACES = {
    "USE": 0,
    "x = [USE(True)]": 0,
    "def f(x=USE):\n    return x": 0,
    "@USE\ndef f():\n    pass": 0,
    "async def f():\n    async with g():\n        return USE": 2,
    "class A(USE):\n    pass": 0,
    "class A:\n    def f(self):\n        def g():\n            return {USE: 1}\n        return g": 3,
    "f = lambda x, *y: USE(x)": 0,
    "x = [USE(i) for i in range(3) if i]": 0,
    "try:\n    USE\nexcept USE:\n    pass": 1,
    'print(\n    f"{USE}"\n)': 1,
    "with USE() as x, y as (z, w):\n    x.layers.GELU": 0,
}


@given(
    imports=st.sampled_from(sorted(IMPORTS)),
    place=st.sampled_from(sorted(PLACES)),
    late=st.booleans(),
    blank=st.integers(0, 3),
)
@settings(max_examples=60, deadline=None)
def test_every_import_and_every_place(tmp_path_factory, imports, place, late, blank):
    folder = tmp_path_factory.mktemp("program")
    late = late and place.startswith(("async def", "class A:"))  # a function may stand above what it uses
    lines = [place.replace("USE", IMPORTS[imports]), "\n" * blank + imports.replace("; ", "\n")]
    text = "\n".join(lines if late else lines[::-1])
    above = 0 if late else lines[1].count("\n") + 1
    found = _found(text, folder)
    assert (above + PLACES[place] + 1, "layers.GELU") in found
    assert {symbol for _, symbol in found} <= {"layers.GELU"}


@pytest.mark.parametrize(
    "text",
    [
        "import tensorflow_addons as tfa\ndef f(tfa):\n    return tfa.layers.GELU",
        "import tensorflow_addons as tfa\ndef f():\n    tfa = g()\n    return tfa.layers.GELU",
        "import tensorflow_addons as tfa\nf = lambda tfa: tfa.layers.GELU",
        "import tensorflow_addons_of_mine as tfa\ntfa.layers.GELU",
        "from .tensorflow_addons import layers\nlayers.GELU",
        "from . import tfa\ntfa.layers.GELU",
        "x.tensorflow_addons.layers.GELU",
        "from tensorflow_addons.layers import *\nTLUs, layers",
        "'''tfa.layers.GELU'''  # tfa.layers.GELU",
        "",
    ],
)
def test_what_only_looks_like_it(tmp_path, text):
    assert _found(text, tmp_path) == []


def test_what_addons_never_had_is_unknown(tmp_path):
    lines = ["tfa.layers.WeightNormalisation", "tfa.foo.Bar", "f(tfa.layers)", "g(tfa)", "tfa.optimizers.SWA.x"]
    (tmp_path / "a.py").write_text("\n".join(["import tensorflow_addons as tfa", *lines]))
    found = programs.uses(tmp_path / "a.py")
    assert [use.symbol for use in found] == ["layers.WeightNormalisation", "foo.Bar", "layers", "", "optimizers.SWA"]
    assert [use.answer is None for use in found] == [True, True, True, True, False]
    assert "did you mean tfa.layers.WeightNormalization?" in str(found[0])
    assert "no such symbol" in str(found[1])
    assert "tfa.layers -> unknown: handed on as a whole" in str(found[2])
    assert ": tfa -> unknown" in str(found[3])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.py", b"import x\nprint 'Python 2'\n", r"a\.py:2: not Python 3: "),
        ("a.py", b"def f(:\n", r"a\.py:1: not Python 3: "),
        ("a.py", b"\xff\xfe\x00\x01", r"a\.py.*: not Python 3: "),
        ("a.py", b"x = '\x00'", r"a\.py.*: not Python 3: "),
        ("a.py", b"# coding: martian\n", r"a\.py.*: not Python 3: "),
        ("a.py", b"-" * 100_000 + b"1", r"a\.py.*: not Python 3: "),
        ("a.ipynb", b"[]", r"a\.ipynb: not a notebook"),
        ("a.ipynb", b"{", r"a\.ipynb: not a notebook"),
        ("a.ipynb", b'{"cells": [{"cell_type": "code"}]}', r"a\.ipynb: not a notebook"),
        ("a.ipynb", b'{"cells": [{"cell_type": "code", "source": ["x =\\n", "1"]}]}', r"a\.ipynb\[1\]:1: not Python 3"),
    ],
)
def test_what_is_no_program_is_a_typed_error(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(programs.ProgramError, match=message):
        programs.uses(tmp_path / name)


WORDS = [*".,()[]{}=:*\n", "import", "from", "tensorflow_addons", "as", "tfa", "lambda", "def", "class", "'x'"]


@given(
    text=st.one_of(
        st.binary(max_size=60),
        st.text(max_size=60).map(str.encode),
        st.lists(st.sampled_from(WORDS), max_size=25).map(lambda words: " ".join(words).encode()),
    ),
    suffix=st.sampled_from([".py", ".ipynb"]),
)
@settings(max_examples=100, deadline=None)
def test_anything_else_is_read_or_refused(tmp_path_factory, text, suffix):
    file = tmp_path_factory.mktemp("any") / f"a{suffix}"
    file.write_bytes(text)
    try:
        programs.uses(file)
    except programs.ProgramError:
        return


def test_the_command_prints_answers_a_summary_and_the_exit_code(tmp_path, capsys):
    shutil.copytree(PROGRAMS, tmp_path / "programs")
    assert cli.main(["tfa", str(tmp_path / "programs/triplet.py")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{tmp_path}/programs/triplet.py:13: tfa.activations.mish -> keras.activations.mish(x)"
    assert "6 uses of TensorFlow Addons: 1 ours, 2 builtin, 3 recipe, 0 not offered, 0 unknown." in lines
    assert cli.main(["tfa", str(tmp_path / "programs"), "--recipes"]) == 1  # NASCell
    output = capsys.readouterr().out
    assert "25 uses of TensorFlow Addons" in output
    assert "\n# recipe losses.triplet_semihard_loss\nimport tensorflow as tf\n\n\ndef pairwise_distance(" in output
    assert output.count("lengths come before transitions") == 1  # what differs is said once


def test_the_command_as_json(tmp_path, capsys):
    (tmp_path / "a.py").write_text("import tensorflow_addons as tfa\ntfa.activations.mish(1)\ntfa.nothing.Such")
    assert cli.main(["tfa", "--json", str(tmp_path / "a.py")]) == 1
    assert json.loads(capsys.readouterr().out) == [
        {
            **{"place": f"{tmp_path}/a.py:2", "symbol": "tfa.activations.mish", "kind": "builtin"},
            **{"answer": "keras.activations.mish(x)", "differs": ""},
        },
        {
            **{"place": f"{tmp_path}/a.py:3", "symbol": "tfa.nothing.Such", "kind": "unknown"},
            **{"answer": None, "differs": ""},
        },
    ]


def test_broken_files_are_named_and_the_others_read(tmp_path, capsys):
    (tmp_path / "good.py").write_text("import tensorflow_addons as tfa\ntfa.activations.mish(1)")
    (tmp_path / "bad.py").write_text("import (")
    files = [str(tmp_path / name) for name in ("bad.py", "absent.py", "good.py")]
    assert cli.main(["tfa", *files]) == 1
    captured = capsys.readouterr()
    assert "ProgramError: " in captured.err
    assert "bad.py:1: not Python 3" in captured.err
    assert "FileNotFoundError" in captured.err
    assert "absent.py" in captured.err
    assert "good.py:2: tfa.activations.mish" in captured.out
    assert cli.main(["tfa"]) == 2


@pytest.mark.slow
def test_the_command_needs_no_tensorflow(tmp_path):
    program = (
        "import sys; sys.modules['tensorflow'] = None; from tftoolkit import cli; sys.exit(cli.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, "tfa", PROGRAMS / "triplet.py"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == 0
