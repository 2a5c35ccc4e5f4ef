"""Headless Chromium, driven through the DevTools protocol over a pair of pipes: no port, no driver, no library.

The protocol: https://chromedevtools.github.io/devtools-protocol/ (messages are JSON, each ended by a zero byte).
"""

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from tftoolkit.errors import CodedError

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# Every name but this machine's resolves to nothing: a page that needs the outside fails here, not on a train.
OFFLINE = "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"
FLAGS = (
    "--headless=new", "--no-first-run", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-extensions", "--mute-audio", OFFLINE,
)  # fmt: skip


class BrowserError(CodedError, RuntimeError):
    """The browser, or a page in it, failed."""

    error_code = "export-browser"


def find() -> str:
    """The program: ``$CHROME``, else Chromium or Chrome on the path. Raises FileNotFoundError that says what to do."""
    found = os.environ.get("CHROME") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None or shutil.which(found) is None:
        where = f"$CHROME is {found}, which is no program" if found else f"none of {', '.join(NAMES)} is on the path"
        raise FileNotFoundError(
            f"web pages are proven in headless Chromium: {where}. Install it (Debian: apt-get install chromium), or "
            f"set CHROME to its path"
        )
    return found


class Browser:
    """One headless browser with one page; a context manager.

    Attributes:
      requests: every address that the page asked for so far.
      errors: what the page reported as errors (exceptions and the console).
    """

    def __init__(self, width: int = 1000, height: int = 800) -> None:
        self.requests: list[str] = []
        self.errors: list[str] = []
        self._profile = tempfile.TemporaryDirectory(prefix="tftoolkit_chromium_")
        self._pending = b""
        self._number = 0
        self._answers: dict[int, dict[str, Any]] = {}
        self._process = self._start(width, height)
        try:
            target = self._send("Target.createTarget", {"url": "about:blank"})["targetId"]
            attached = self._send("Target.attachToTarget", {"targetId": target, "flatten": True})
            self._session: str | None = attached["sessionId"]
            for domain in ("Page", "Network", "Runtime", "Log"):
                self.send(f"{domain}.enable")
        except BaseException:
            self.close()
            raise

    def _start(self, width: int, height: int) -> subprocess.Popen[bytes]:
        self._session = None
        program = find()
        to_read, self._write = os.pipe()  # DevTools reads commands from file descriptor 3 and answers on 4
        self._read, to_write = os.pipe()
        flags = [*FLAGS, f"--user-data-dir={self._profile.name}", f"--window-size={width},{height}"]
        if os.geteuid() == 0:
            flags.append("--no-sandbox")  # Chromium refuses to run as root with it
        shell = f'exec "$0" --remote-debugging-pipe "$@" 3<&{to_read} 4>&{to_write}'
        process = subprocess.Popen(
            ["bash", "-c", shell, program, *flags, "about:blank"],
            pass_fds=(to_read, to_write),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a group of its own: closing ends all of its processes
        )
        os.close(to_read)
        os.close(to_write)
        return process

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the browser and removes its profile."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for descriptor in (self._read, self._write):
            os.close(descriptor)
        for _ in range(50):  # helpers outside the group may still write
            shutil.rmtree(self._profile.name, ignore_errors=True)
            if not Path(self._profile.name).exists():
                break
            time.sleep(0.1)
        self._profile.cleanup()

    def open(self, address: str) -> None:
        """Goes to the address. Raises BrowserError where nothing answers there."""
        failure = self.send("Page.navigate", {"url": address}).get("errorText")
        if failure:
            raise BrowserError(f"{address}: {failure}")

    def evaluate(self, expression: str, timeout: float = 60.0) -> Any:
        """The JSON value of a JavaScript expression, awaited. Raises BrowserError with the page's exception."""
        result = self.send(
            "Runtime.evaluate", {"expression": expression, "awaitPromise": True, "returnByValue": True}, timeout
        )
        if "exceptionDetails" in result:
            raise BrowserError(_exception(result["exceptionDetails"]))
        return result["result"].get("value")

    def wait_for(self, condition: str, timeout: float = 60.0) -> None:
        """Until the JavaScript condition holds. Raises BrowserError when late, or for the page's errors."""
        end = time.monotonic() + timeout
        while not self.evaluate(f"Boolean({condition})"):
            if self.errors:
                raise BrowserError(f"the page reports {'; '.join(self.errors)}")
            if time.monotonic() > end:
                raise BrowserError(f"{condition} does not become true within {timeout:g} s")
            time.sleep(0.05)

    def send(self, method: str, parameters: dict[str, Any] | None = None, timeout: float = 60.0) -> dict[str, Any]:
        """One command to the page. Raises BrowserError for a refusal, a crash, or no answer in time."""
        return self._send(method, parameters or {}, timeout)

    def _send(self, method: str, parameters: dict[str, Any], timeout: float = 60.0) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        try:
            os.write(self._write, json.dumps(message).encode() + b"\0")
        except BrokenPipeError:
            raise BrowserError("Chromium ended by itself") from None
        end = time.monotonic() + timeout
        while self._number not in self._answers:
            self._receive(max(0.0, end - time.monotonic()), method)
        answer = self._answers.pop(self._number)
        if "error" in answer:
            raise BrowserError(f"{method}: {answer['error'].get('message')}")
        return answer.get("result", {})

    def _receive(self, timeout: float, waiting_for: str) -> None:
        if not select.select([self._read], [], [], timeout)[0]:
            raise BrowserError(f"Chromium does not answer {waiting_for}; errors so far: {self.errors}")
        received = os.read(self._read, 1 << 20)
        if not received:
            raise BrowserError("Chromium ended by itself")
        *messages, self._pending = (self._pending + received).split(b"\0")
        for message in map(json.loads, messages):
            if "id" in message:
                self._answers[message["id"]] = message
            else:
                self._notice(message["method"], message.get("params", {}))

    def _notice(self, event: str, parameters: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif event == "Runtime.exceptionThrown":
            self.errors.append(_exception(parameters["exceptionDetails"]))
        elif event == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.errors.append(f"{parameters['entry']['text']} {parameters['entry'].get('url', '')}".strip())


def _exception(details: dict[str, Any]) -> str:
    return str(details.get("exception", {}).get("description") or details.get("text"))
