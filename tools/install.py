"""Installs this checkout with extras for the interpreter that runs it: by uv, or, where uv fails, by pip.

    .venv/bin/python tools/install.py EXTRA ...

uv unpacks in a fraction of the time that pip takes (docs/decisions.md). It reads none of pip's settings, so those that
say where packages come from are handed on to it; with settings that it has no word for, pip is used.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
UV_NAMES = {"index-url": "UV_DEFAULT_INDEX", "constraint": "UV_CONSTRAINT", "cert": "SSL_CERT_FILE"}
PIP_ONLY = {"client-cert", "no-index", "proxy", "require-hashes", "trusted-host"}


def pip_settings() -> dict[str, str]:
    """What pip reads from its files and from PIP_* variables: option → value."""
    shown = subprocess.run([*PIP, "config", "list"], capture_output=True, text=True, check=True).stdout
    settings = {}
    pairs = [line.split("=", 1) for line in shown.splitlines()]
    # Of the places that may name an option pip takes the last of these.
    for section in ("global", "install", ":env:"):
        for key, value in pairs:
            place, _, option = key.rpartition(".")
            if place == section:
                settings[option] = str(ast.literal_eval(value))
    return settings


def uv_environment(settings: Mapping[str, str]) -> dict[str, str]:
    """The environment in which uv does as pip is set to. What is set for uv itself stays."""
    handed_on = {UV_NAMES[option]: value for option, value in settings.items() if option in UV_NAMES}
    return {**handed_on, **os.environ}


def main() -> int:
    what = ["--editable", f".[{','.join(sys.argv[1:])}]"]
    settings = pip_settings()
    try:
        if unknown := sorted(PIP_ONLY & settings.keys()):
            raise OSError(f"pip is set up with {', '.join(unknown)}")
        subprocess.run([*PIP, "install", "--quiet", "uv"], check=True)
        uv = Path(sys.executable).with_name("uv")
        command = [uv, "pip", "install", "--quiet", "--python", sys.executable, *what]
        subprocess.run(command, check=True, env=uv_environment(settings))
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"Installing with pip, which takes minutes, instead of uv: {error}", file=sys.stderr, flush=True)
        return subprocess.run([*PIP, "install", "--quiet", *what], check=False).returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
