"""Phases: what long work says on a terminal and in a file, and that the streams are as before."""

import io
import re
import sys
import time

import pytest

from tftoolkit.trainers import console


def test_a_phase_tells_that_it_goes_on(monkeypatch, capsys, terminal):
    monkeypatch.setattr(console, "_PHASE_INTERVALS", (0.02, 0.02))
    with console.phase("converting"):
        time.sleep(0.1)
    *going_on, done = capsys.readouterr().err.splitlines()
    assert set(going_on) == {"converting … 0 s"}
    assert re.fullmatch(r"converting ok \(0\.\d s\)", done)

    shown = terminal()
    with console.phase("converting"):
        time.sleep(0.1)
        print("a notice")
        time.sleep(0.1)
    assert shown.screen() == ["a notice", f"converting ok ({0.2} s)", ""]
    assert shown.written.count("converting … 0 s".encode()) > 2


def test_phases_within_phases_leave_the_streams_as_they_were(terminal):
    shown = terminal()
    with console.phase("outer"):
        with console.phase("inner"):
            print("innermost")
        print("between")
        assert "write" in vars(sys.stderr)
    assert "write" not in vars(sys.stderr)
    assert [line.partition(" ok")[0] for line in shown.screen()] == ["innermost", "inner", "between", "outer", ""]


def test_a_phase_that_fails_is_not_ok(capsys):
    with pytest.raises(ValueError, match="no"), console.phase("converting"):
        raise ValueError("no")
    assert "ok" not in capsys.readouterr().err


class Cell(io.StringIO):
    """What the kernel of a notebook has for a stream."""

    def shown(self) -> list[str]:
        """As a browser shows it: what comes after a \\r stands over what was there."""
        lines = []
        for line in self.getvalue().split("\n"):
            over = ""
            for part in line.split("\r"):
                over = part + over[len(part) :]
            lines.append(over.rstrip())
        return lines


def test_in_a_notebook_the_line_rewrites_itself(monkeypatch):
    monkeypatch.setattr(Cell, "__module__", "ipykernel.iostream")
    monkeypatch.setattr(console, "_PHASE_INTERVALS", (0.02, 60))
    monkeypatch.setattr(sys, "stderr", cell := Cell())
    with console.phase("converting a long name"):
        time.sleep(0.1)
    line = console.console()
    assert line.show(lambda columns: "step 1/10, a line of some length")
    assert not line.show(lambda columns: "step 2/10")
    line.say("halfway")
    line.show(lambda columns: "step 10/10")
    line.close()
    assert cell.getvalue().count("converting a long name … 0 s") > 0
    first, *others = cell.shown()
    assert re.fullmatch(r"converting a long name ok \(0\.\d s\)", first)
    assert others == ["halfway", "step 10/10", ""]
