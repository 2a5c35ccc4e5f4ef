"""What a rehearsal makes of calls that do not end or end their process; test_parity.py has files that do so."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tftoolkit import export
from tftoolkit.export.proof import rehearsal
from tftoolkit.export.runtimes import tf_runtime
from tftoolkit.export.runtimes.made_up import LIMITS, Case

FILE = Path("m.tflite")


@pytest.fixture
def child(monkeypatch):
    """A child in whose stead ``seen`` notes the calls, and ``fails`` says by kinds of inputs what becomes of them."""

    class Child:
        def __init__(self):
            self.seen, self.fails = [], {}

        def call_within(self, seconds, function, path, kinds, ranges):
            self.seen.append((seconds, path, tuple(kinds)))
            for kind, error in self.fails.items():
                if kind in kinds:
                    raise error

    made = Child()
    monkeypatch.setattr(rehearsal, "worker", made)
    return made


def test_a_file_that_runs(child):
    assert rehearsal.rehearse(FILE, {}) == frozenset()
    path = FILE.absolute()
    assert child.seen == [
        (rehearsal.SECONDS, path, ("random", "zeros")), (rehearsal.EXTREME_SECONDS, path, ("large", "nan")),
    ]  # fmt: skip


@pytest.mark.parametrize("endless", [{"large"}, {"nan"}, {"large", "nan"}])
def test_kinds_on_which_it_does_not_end_are_found_one_by_one(child, endless):
    child.fails = dict.fromkeys(endless, TimeoutError())
    assert rehearsal.rehearse(FILE, {}) == endless


def test_ordinary_inputs_must_end(child):
    child.fails = {"zeros": TimeoutError()}
    with pytest.raises(export.ExportError, match=r"structure failed: three calls on random .* do not end within 300"):
        rehearsal.rehearse(FILE, {})


@pytest.mark.parametrize("kind", ["random", "nan"])
def test_a_crash_is_a_matter_of_structure(child, kind):
    child.fails = {kind: export.ExportError("convert", "it died", signature="s", tensor="t")}
    with pytest.raises(export.ExportError, match="structure failed at signature 's', tensor 't': it died"):
        rehearsal.rehearse(FILE, {})


def test_a_crash_while_the_kind_is_looked_for(child):
    errors = iter([None, TimeoutError(), export.ExportError("convert", "it died")])

    def call_within(*_):
        error = next(errors)
        if error:
            raise error

    child.call_within = call_within
    with pytest.raises(export.ExportError, match="structure failed: it died"):
        rehearsal.rehearse(FILE, {})


def test_one_call_that_finds_no_memory_is_enough_for_the_inputs_of_a_kind(monkeypatch, tmp_path):
    asked = []

    class Refusing:
        def __init__(self, model):
            pass

        def run(self, signature, inputs, seconds):
            asked.append(int(inputs["n"]))
            if asked[-1] > 1:
                raise tf.errors.ResourceExhaustedError(None, None, "no memory")

    monkeypatch.setattr(tf_runtime, "SavedModelRuntime", Refusing)

    def case(n, only):
        return Case(signature="f", kind=LIMITS, inputs={"n": np.array(n)}, only=only)

    tried = [case(5, None), case(6, None), case(7, "n"), case(8, "n"), case(1, "m"), case(0, "m")]
    assert rehearsal._in_tensorflow(tmp_path, {}, tried) == [False, False, False, False, True, True]
    assert asked == [5, 7, 1, 0]
