"""Builds wheel and sdist, checks them, and runs the README's tour with only the wheel on every Python that we name.

    .venv/bin/python tools/release/run.py [--python=3.12 ...] [--allow-missing]     (make release)
    .venv/bin/python tools/release/run.py --write-list     when files came or went; look at what changed

The files lie in dist/ when all of it has passed; nothing is uploaded.
"""

from __future__ import annotations

import argparse
import collections
import email.message
import email.parser
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
FILES = Path(__file__).with_name("wheel_files.txt")
# Sources alone are 1.30 MB by now (docs/decisions.md); data or something compiled that slips in is seen here.
MOST_BYTES = 1_350_000
PYTHONS = ("3.11", "3.12", "3.13")
REPOSITORY = "tftoolkit/tftoolkit"
# Links and pictures that lead into the repository, which a package index does not have.
RELATIVE = re.compile(r"(?P<before>!?\[[^]]*\]\(|<img src=\")(?!https?:|#)(?P<path>[^)\"]+)")
LEFT_OUT = (".*", "runs", "build", "dist", "*.egg-info", "__pycache__")


class ReleaseError(Exception):
    """What stands in the way of a release."""


def build(folder: Path) -> tuple[Path, Path]:
    """(wheel, sdist): the sdist from a copy of the checkout, which stays clean, and the wheel from the sdist."""
    source = folder / "source"
    shutil.copytree(ROOT, source, symlinks=True, ignore=shutil.ignore_patterns(*LEFT_OUT))
    readme = source / "README.md"
    readme.write_text(absolute(readme.read_text()))
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, source])
    return next(folder.glob("*.whl")), next(folder.glob("*.tar.gz"))


def absolute(readme: str) -> str:
    """With links to this version's files on the web."""

    def link(found: re.Match[str]) -> str:
        is_page = found["before"].startswith("[")
        host = f"https://github.com/{REPOSITORY}/blob" if is_page else f"https://raw.githubusercontent.com/{REPOSITORY}"
        return f"{found['before']}{host}/v{version()}/{found['path']}"

    return RELATIVE.sub(link, readme)


def names(wheel: Path) -> list[str]:
    """The package's files, and those of .dist-info without the version in its name."""
    with zipfile.ZipFile(wheel) as archive:
        return sorted(re.sub(r"^tftoolkit-[^/]+\.dist-info", "DIST-INFO", name) for name in archive.namelist())


def metadata(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        path = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.parser.Parser().parsestr(archive.read(path).decode())


def version() -> str:
    """The one place that says it; setuptools reads it there too."""
    found = re.search(r'^__version__ = "(.+)"$', (ROOT / "tftoolkit/__init__.py").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def faults(wheel: Path) -> list[str]:
    """What is wrong with the wheel, in words; nothing if all is well."""
    found = []
    expected, present = set(FILES.read_text().splitlines()), set(names(wheel))
    found += [f"missing: {name}" for name in sorted(expected - present)]
    found += [f"not in {FILES.relative_to(ROOT)}: {name}" for name in sorted(present - expected)]
    size = wheel.stat().st_size
    if size > MOST_BYTES:
        found.append(f"{size:,} bytes are more than {MOST_BYTES:,}")
    said = metadata(wheel)
    wanted = {
        "Name": "tftoolkit",
        "Version": version(),
        "Requires-Python": ">=3.11",
        "License-Expression": "Apache-2.0",
    }
    found += [f"{key} is {said[key]}, not {value}" for key, value in wanted.items() if said[key] != value]
    if "# tftoolkit" not in (said.get_payload() or ""):
        found.append("the description is not the README")
    found += [f"the description leads to {link['path']}" for link in RELATIVE.finditer(said.get_payload() or "")]
    if wheel.name != f"tftoolkit-{version()}-py3-none-any.whl":
        found.append(f"it is called {wheel.name}")
    return found


def weights(wheel: Path) -> str:
    """What the wheel's bytes are: compressed files by their endings, and what zip itself adds."""
    found = collections.Counter[str]()
    with zipfile.ZipFile(wheel) as archive:
        for one in archive.infolist():
            path = Path(one.filename)
            found["DIST-INFO" if ".dist-info" in path.parts[0] else path.suffix] += one.compress_size
    found["names"] = wheel.stat().st_size - found.total()
    return ", ".join(f"{kind} {size:,}" for kind, size in found.most_common() if size >= 1000)


def check(wheel: Path, sdist: Path) -> None:
    """Raises ReleaseError: contents, metadata, how the README is shown."""
    if found := faults(wheel):
        raise ReleaseError(f"{wheel.name}:\n  " + "\n  ".join(found))
    run([sys.executable, "-m", "twine", "check", "--strict", wheel, sdist])


def find(version: str) -> Path | None:
    """An interpreter of this version, on PATH or among pyenv's; a shim of pyenv's may lead nowhere."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    on_path = shutil.which(f"python{version}")
    candidates = [Path(on_path)] if on_path else []
    for candidate in [*candidates, *sorted(pyenv.glob(f"versions/{version}.*/bin/python"), reverse=True)]:
        command = [candidate, "-c", "import sys, ensurepip; print('%d.%d' % sys.version_info[:2])"]
        asked = subprocess.run(command, capture_output=True, text=True, check=False)
        if asked.returncode == 0 and asked.stdout.strip() == version:
            return candidate
    return None


def try_out(python: Path, wheel: Path, folder: Path) -> None:
    """The README's tour in an environment that holds the wheel and what it asks for, and in an empty folder.

    Then a project of one's own, and the commands that its README says.
    """
    empty = folder / "empty"
    empty.mkdir(parents=True)
    run([python, "-m", "venv", folder / "env"])
    inside = folder / "env/bin/python"
    install = _installer()
    environment = install.uv_environment(install.pip_settings())
    uv = Path(sys.executable).with_name("uv")  # put there by tools/install.py, unless pip is set up in its own way
    installer = [uv, "pip", "install", "--python", inside] if uv.exists() else [inside, "-m", "pip", "install"]
    run([*installer, "--quiet", f"{wheel}[export]"], env=environment)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "TFTOOLKIT"))}
    clean |= {"TFTOOLKIT_CACHE_DIR": str(folder / "cache"), "TF_CPP_MIN_LOG_LEVEL": "2"}
    run([inside, ROOT / "tools/release/tour.py", ROOT / "README.md"], env=clean, cwd=empty)
    run([inside, "-m", "tftoolkit", "new", "mine", "--from=tabular"], env=clean, cwd=folder)
    project = folder / "mine"
    wanted, commands = asked(project / "README.md")
    # What it calls tftoolkit is the wheel.
    run([*installer, "--quiet", *(one.replace("tftoolkit", str(wheel)) for one in wanted)], env=environment)
    for command in commands:
        run([inside, *command[1:]], env=clean, cwd=project)


def asked(readme: Path) -> tuple[list[str], list[list[str]]]:
    """(what to install, commands) of a project's README, in words."""
    text = readme.read_text()
    installed = re.search(r"`pip install (.+)`", text)
    block = re.search(r"^```\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    if installed is None or block is None:
        raise ReleaseError(f"{readme} says no pip install, or no commands")
    return shlex.split(installed[1]), [line.split() for line in block[1].splitlines()]


def _installer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("install", ROOT / "tools/install.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(command: list[str | Path], **options: object) -> None:
    """Shows what a program prints only if it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **options)
    if done.returncode:
        raise ReleaseError(f"{' '.join(map(str, command))} failed:\n{done.stdout[-5000:]}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", action="append", help=f"a version, instead of {', '.join(PYTHONS)}")
    parser.add_argument("--allow-missing", action="store_true", help="a Python that is not here is no failure")
    parser.add_argument("--write-list", action="store_true", help=f"write {FILES.name} anew, and do nothing else")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tftoolkit-release-") as folder:
        try:
            wheel, sdist = build(Path(folder))
            if options.write_list:
                FILES.write_text("\n".join(names(wheel)) + "\n")
                return 0
            check(wheel, sdist)
            print(f"{wheel.name}: {wheel.stat().st_size:,} bytes ({weights(wheel)})")
            print("files, metadata and description are right", flush=True)
            missing = [one for one in options.python or PYTHONS if not _tried(one, wheel, Path(folder) / one)]
            if missing and not options.allow_missing:
                raise ReleaseError(f"not tried, since it is not here: Python {', '.join(missing)} (--allow-missing)")
        except ReleaseError as error:
            print(f"No release: {error}", file=sys.stderr)
            return 1
        (ROOT / "dist").mkdir(exist_ok=True)
        for file in (wheel, sdist):
            print(shutil.copy(file, ROOT / "dist" / file.name))
    return 0


def _tried(version: str, wheel: Path, folder: Path) -> bool:
    python = find(version)
    if python is None:
        print(f"Python {version}: there is none on PATH or in pyenv", flush=True)
        return False
    start = time.monotonic()
    try_out(python, wheel, folder)
    shutil.rmtree(folder)  # 1 GB or more
    print(f"Python {version}: the README's tour and a new project run ({time.monotonic() - start:.0f} s)", flush=True)
    return True


if __name__ == "__main__":
    sys.exit(main())
