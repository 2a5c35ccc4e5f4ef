"""LiteRT.js: the npm package ``@litertjs/core``, fetched once into the cache."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from filelock import FileLock

from tftoolkit.custom_ops.engine.builder import cache_folder

# One version: pages are proven with it, and a later one may name or load its files in another way.
VERSION = "2.5.3"
CORE, UTILS = "@litertjs/core", "@litertjs/wasm-utils"
SECONDS = 600  # for some 20 MB
# In the page's folder -> in the package. Two builds for processors, of which the runtime picks one: with and without
# relaxed SIMD. Those for threads and for WebGPU are left out, 19 MB that a page of this kind never loads.
_FILES = {
    "core.js": f"{CORE}/dist/index.js",
    "core.package.json": f"{CORE}/package.json",  # version and licence (Apache-2.0)
    "wasm-utils.js": f"{UTILS}/dist/index.js",
    "wasm-utils.package.json": f"{UTILS}/package.json",
    **{
        name: f"{CORE}/wasm/{name}"
        for build in ("litert_wasm_internal", "litert_wasm_compat_internal")
        for name in (f"{build}.js", f"{build}.wasm")
    },
}


def copy(folder: Path) -> None:
    """Puts all that a page needs of LiteRT.js into a new folder.

    Raises FileNotFoundError where npm is missing, RuntimeError where it fails; both say what to do.
    """
    packages = _installed()
    folder.mkdir()
    for name, source in _FILES.items():
        shutil.copyfile(packages / source, folder / name)


def _installed() -> Path:
    """The cached ``node_modules`` folder; made on first use."""
    cache = cache_folder()
    folder = cache / f"litertjs-{VERSION}"
    if folder.is_dir():
        return folder
    with FileLock(cache_folder(writable=True) / f"{folder.name}.lock"):
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(prefix="litertjs-", dir=cache) as temporary:
                _install(Path(temporary))
                (Path(temporary) / "node_modules").rename(folder)
    return folder


def _install(folder: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError(
            f"npm is not on the path, and a web page needs the npm package {CORE} once: install Node.js (Debian: "
            f"apt-get install nodejs npm); it is kept in {cache_folder()}"
        )
    print(f"npm install {CORE}@{VERSION} (once)", file=sys.stderr, flush=True)
    wanted = [f"{CORE}@{VERSION}", f"{UTILS}@{VERSION}"]
    # Scripts of packages would run with this user's rights, and these packages need none.
    command = [npm, "install", "--prefix", str(folder), "--ignore-scripts", "--no-audit", "--no-fund", *wanted]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{' '.join(command)} took over {SECONDS} s: is the npm registry reachable?") from None
    missing = [source for source in _FILES.values() if not (folder / "node_modules" / source).is_file()]
    if done.returncode or missing:
        said = (done.stderr or done.stdout).strip()[-800:] or f"nothing, but {', '.join(missing)} is missing"
        raise RuntimeError(f"npm could not fetch {CORE}@{VERSION}: {said}\nThe command was: {' '.join(command)}")
