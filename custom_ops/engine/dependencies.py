"""Which files a library was made of, so that a change in any of them is noticed.

Compilers say what they have read (``-MD``); flags and environment variables say what else has a word in it. For each
key there is a record of its builds in the cache: each library with all that it was made of.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

# Where compilers and linkers look besides what the command says, and flags that they take from the environment.
_VARIABLES = (
    "CPATH", "C_INCLUDE_PATH", "CPLUS_INCLUDE_PATH", "LIBRARY_PATH", "COMPILER_PATH", "GCC_EXEC_PREFIX", "SDKROOT",
    "NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS", "NVCC_CCBIN", "CCC_OVERRIDE_OPTIONS",
)  # fmt: skip

_BUILDS = 16  # that a record remembers
Stamp = list[int | str]  # time of change and size, which are enough where they are the same, and a hash of the content


def surroundings(flags: Sequence[str]) -> list[str]:
    """What has a word in a command without standing in it: variables, and the processor for ``-march=native``."""
    found = [f"{name}={os.environ[name]}" for name in _VARIABLES if os.environ.get(name)]
    if any("=native" in flag for flag in flags):
        lines = re.findall(r"^(?:flags|Features|model name|CPU part)\s*:.*", _text("/proc/cpuinfo"), re.MULTILINE)
        found += sorted(set(lines))
    return found


def named_by(flags: Sequence[str]) -> list[Path]:
    """The files that flags name: by their path, also behind ``=``, ``,`` and ``@``, and as ``-lname``."""
    parts = [part for flag in flags for part in re.split(r"[=,]", flag)]
    folders: list[str] = []
    libraries: list[str] = []
    files: list[Path] = []
    for part, following in itertools.zip_longest(parts, parts[1:], fillvalue=""):
        if part.startswith("-L"):
            folders.append(part[2:] or following)
        elif part.startswith("-l"):
            libraries.append(part[2:] or following)
        elif os.path.isfile(part.removeprefix("@")):
            files.append(Path(part.removeprefix("@")))
    folders += filter(None, os.environ.get("LIBRARY_PATH", "").split(os.pathsep))
    for name in libraries:
        names = [name[1:]] if name.startswith(":") else [f"lib{name}.so", f"lib{name}.a"]
        files += [path for folder in folders for one in names if (path := Path(folder, one)).is_file()]
    return [Path(os.path.abspath(path)) for path in files]


def read_rule(rule: Path) -> list[Path]:
    """The files that a compiler has read, from the rule for ``make`` that it wrote."""
    text = rule.read_text(errors="surrogateescape").replace("\\\n", " ")
    _, _, listed = text.partition(": ")
    words = re.findall(r"(?:\\.|[^\s\\])+", listed)
    return [Path(os.path.abspath(re.sub(r"\\(.)", r"\1", word).replace("$$", "$"))) for word in words]


def stamps(files: Iterable[Path], began: float) -> dict[str, Stamp]:
    """The state of the files; the time of change counts where it lies before ``began``, when the compilers started."""
    found: dict[str, Stamp] = {}
    for path in files:
        info = path.stat()
        changed = info.st_mtime_ns if info.st_mtime < began else -1
        found[str(path)] = [changed, info.st_size, _hash(str(path))]
    return found


def digest(state: Mapping[str, Stamp]) -> str:
    """A name for the contents."""
    text = json.dumps(sorted((Path(path).name, stamp[2]) for path, stamp in state.items()))
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:12]


def recorded(record: Path) -> Path | None:
    """The library that the record says was made of what lies on the disk now, or None; the file may be gone."""
    for name, state in reversed(_read(record).items()):
        if all(_same(path, stamp) for path, stamp in state.items()):
            return record.with_name(name)
    return None


def add(record: Path, library: str, state: Mapping[str, Stamp]) -> None:
    """Puts a build into the record; others may read it meanwhile, but not write."""
    builds = _read(record)
    builds.pop(library, None)
    builds = dict(list(builds.items())[1 - _BUILDS :])
    temporary = record.with_suffix(".tmp")
    temporary.write_text(json.dumps({**builds, library: state}))
    os.replace(temporary, record)


def _read(record: Path) -> dict[str, dict[str, Stamp]]:
    try:
        builds: dict[str, dict[str, Stamp]] = json.loads(record.read_text())
    except (OSError, ValueError):
        return {}
    return builds


def _same(path: str, stamp: Stamp) -> bool:
    try:
        info = os.stat(path)
        return [info.st_mtime_ns, info.st_size] == stamp[:2] or (info.st_size == stamp[1] and _hash(path) == stamp[2])
    except OSError:
        return False


def _hash(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _text(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
