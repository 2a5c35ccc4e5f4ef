"""``tftoolkit completion``: in real shells, on a terminal, with the tab key."""

import os
import pty
import select
import shutil
import signal
import time

import pytest

from tftoolkit import cli

_SHELLS = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], ""),
    "zsh": (["zsh", "-f", "-i"], "autoload -U compinit; compinit -u -D; "),
}


class Shell:
    """An interactive shell on a pseudo-terminal."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._process, self._terminal = pty.fork()
        if self._process == 0:
            os.execvpe(command[0], command, environment)

    def type(self, keys: str, wanted: str, seconds: float = 20.0) -> str:
        """What it writes from the moment the keys are pressed until ``wanted`` is among it, or for ``seconds``."""
        os.write(self._terminal, keys.encode())
        written, end = "", time.monotonic() + seconds
        while wanted not in written and time.monotonic() < end:
            if select.select([self._terminal], [], [], 0.1)[0]:
                written += os.read(self._terminal, 1 << 16).decode(errors="replace")
        return written

    def end(self) -> None:
        os.kill(self._process, signal.SIGKILL)
        os.waitpid(self._process, 0)
        os.close(self._terminal)


@pytest.fixture(scope="module", params=_SHELLS)
def shell(request, tmp_path_factory):
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    folder = tmp_path_factory.mktemp("completion")
    with pytest.MonkeyPatch.context() as patch, open(folder / "script", "w") as script:
        patch.setattr("sys.stdout", script)
        assert cli.main(["completion", request.param]) == 0
    (folder / "model.tflite").touch()
    command, before = _SHELLS[request.param]
    shell = Shell(command, {**os.environ, "PS1": "> ", "TERM": "dumb", "HOME": str(folder)})
    assert "READY\r" in shell.type(f"cd {folder}; {before}eval \"$(cat script)\"; echo REA''DY\n", "READY\r")
    yield shell
    shell.end()


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("tftoolkit tra", "train "),
        ("tftoolkit data prof", "profile "),
        ("tftoolkit train digits_c", "digits_cnn "),
        ("tftoolkit train digits --config.warm", "--config.warmup_steps"),
        ("tftoolkit ops build --comp", "--compile_commands"),
        ("tftoolkit export --quantize flo", "float16 "),
        ("tftoolkit export --quantize=flo", "float16 "),
        ("tftoolkit verify mod", "model.tflite "),
        ("tftoolkit verify --golden=mod", "model.tflite"),
        ("tftoolkit completion ba", "bash "),
    ],
)
def test_the_tab_key_completes(shell, typed, completed):
    written = shell.type(f"{typed}\t", completed)
    shell.type("\x15", "")  # Control-U: nothing is left on the line
    assert completed in written
