"""The builder: caching by content, one build for many processes, and errors that say what to do."""

import ctypes
import json
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

from tftoolkit import cli
from tftoolkit.custom_ops.engine import builder, errors, library, toolchain

# Compiled in a tenth of the time that an op takes, which is nearly all of these tests.
GOOD = """#include "factor.h"
extern "C" __attribute__((visibility("default"))) float Scale(float x) {
  return x * kFactor;
}
"""
OP = """#include "tftoolkit/op.h"
static ffi::Error Scale(ffi::Buffer<ffi::F32> x, ffi::ResultBuffer<ffi::F32> y) {
  for (size_t i = 0; i < x.element_count(); ++i) y->typed_data()[i] = x.typed_data()[i] * 2;
  return ffi::Error::Success();
}
XLA_FFI_DEFINE_HANDLER(ScaleCpu, Scale, ffi::Ffi::Bind().Arg<ffi::Buffer<ffi::F32>>().Ret<ffi::Buffer<ffi::F32>>());
TK_OP(Scale, "(x: f32[...]) -> (y: f32[...])");
TK_KERNEL(Scale, CPU, ScaleCpu);
"""

BUILD = """
import sys
from tftoolkit.custom_ops.engine import builder
builder.build(builder.library_recipe("Scale", [sys.argv[1]]), cache_dir=sys.argv[2])
"""
NEEDS_CUDA = pytest.mark.skipif(toolchain.nvcc() is None, reason="no CUDA toolkit")


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "factor.h").write_text("constexpr float kFactor = 2;\n")
    (folder / "scale.cc").write_text(GOOD)
    return folder / "scale.cc"


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def fresh_toolchain():
    """Forgets what was found out about this machine before and after the test."""
    caches = (toolchain.cxx, toolchain.nvcc, toolchain.cuda_root, toolchain.has_gpu, toolchain.ask_driver)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


def test_the_key_follows_the_content(source, tmp_path):
    first = builder.library_recipe("Scale", [source]).key()
    assert builder.library_recipe("Scale", [source]).key() == first
    assert builder.library_recipe("Scale", [source], extra_cflags=["-DX"]).key() != first
    assert builder.library_recipe("Other", [source]).key() != first
    (source.parent / "factor.h").write_text("constexpr float kFactor = 3;\n")
    assert builder.library_recipe("Scale", [source]).key() != first
    (source.parent / "factor.h").write_text("constexpr float kFactor = 2;\n")
    moved = source.parent.rename(tmp_path / "moved") / "scale.cc"
    assert builder.library_recipe("Scale", [moved]).key() == first


# Compilers, and what a cache may be


@pytest.mark.parametrize("cxx", ["g++ -pthread", "env g++", "env X='a b' g++ -DUNUSED=1"])
def test_o6_a_compiler_of_several_words(monkeypatch, fresh_toolchain, source, cache, cxx):
    """As make and CMake take it: a launcher such as ccache, and flags."""
    monkeypatch.setenv("CXX", cxx)
    assert "g++" in toolchain.cxx().version.lower()
    assert builder.build(builder.library_recipe("Scale", [source]), cache_dir=cache).exists()


def test_o6_a_compiler_speaks_english_and_may_say_what_is_no_utf8(
    monkeypatch, fresh_toolchain, source, cache, tmp_path
):
    (source.parent / "factor.h").write_bytes(b"#error caf\xe9\n")
    with pytest.raises(errors.BuildError, match="error: #error caf"):
        builder.build(builder.library_recipe("Scale", [source]), cache_dir=cache)
    fake = tmp_path / "g++"
    fake.write_text('#!/bin/sh\nprintf \'x.cc:1: error: %s %s\' "$LC_ALL" "$LANGUAGE" >&2\n[ "$1" = --version ]\n')
    fake.chmod(0o755)
    monkeypatch.setenv("CXX", str(fake))
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    monkeypatch.setenv("LANGUAGE", "de")
    toolchain.cxx.cache_clear()
    with pytest.raises(errors.BuildError, match=r"error: C\.UTF-8 C"):
        builder.build(builder.library_recipe("Scale", [source]), cache_dir=cache)


@pytest.mark.skipif(os.getuid() != 0, reason="only root's folders are root's")
def test_o6_a_cache_of_root_is_read_by_all(monkeypatch, source, cache):
    """The ordinary container image: built by root, used by somebody else. It was refused."""
    recipe = builder.library_recipe("Scale", [source])
    path = builder.build(recipe, cache_dir=cache)
    cache.chmod(0o755)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert builder.build(recipe, cache_dir=cache) == path
    with pytest.raises(errors.BuildError, match=r"this user cannot write there \(owner 0, drwxr-xr-x\).*CACHE_DIR"):
        builder.build(builder.library_recipe("Other", [source]), cache_dir=cache)
    with pytest.raises(errors.BuildError, match="this user cannot write there"):
        library.load_inline("Scale", "", cache_dir=cache)


def test_o6_what_a_killed_compilation_left_is_removed(source, cache):
    old = time.time() - 3600
    for name in ("build-killed", "build-running", "build-beginning"):
        (cache / name / "x.so").mkdir(parents=True)
        if name != "build-beginning":
            os.utime(cache / name, (old, old))
    cache.chmod(0o700)
    with FileLock(cache / "build-running" / "alive.lock"):
        os.utime(cache / "build-running", (old, old))
        builder.build(builder.library_recipe("Scale", [source]), cache_dir=cache)
    assert sorted(folder.name for folder in cache.glob("build-*")) == ["build-beginning", "build-running"]


def test_builds_once_and_leaves_nothing_else(source, cache, capsys):
    recipe = builder.library_recipe("Scale", [source])
    path = builder.build(recipe, cache_dir=cache)
    before = path.stat().st_mtime_ns
    assert builder.build(recipe, cache_dir=cache) == path
    assert path.stat().st_mtime_ns == before
    base = f"Scale-{recipe.key()}"
    assert sorted(file.name for file in cache.iterdir()) == sorted([path.name, f"{base}.json", f"{base}.so.lock"])
    assert re.fullmatch(
        r"tftoolkit: compiling Scale \(1 step\) …\ntftoolkit: 1 of 1: scale\.cc, \d+\.\d s\n", capsys.readouterr().err
    )
    assert cache.stat().st_mode & 0o777 == 0o700


def test_processes_starting_together_build_once(source, cache):
    command = [sys.executable, "-c", BUILD, source, cache]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    messages = [process.communicate()[1] for process in running]
    assert [process.returncode for process in running] == [0] * 4
    assert sum("compiling" in message for message in messages) == 1


def test_a_compile_error_shows_the_first_error_and_its_line(source, cache):
    source.write_text(GOOD.replace("kFactor;", "kFaktor;"))
    with pytest.raises(errors.BuildError) as caught:
        library.load("Scale", [source], cache_dir=cache)
    text = str(caught.value)
    assert "scale.cc:3:" in text
    assert "kFaktor" in text
    assert len(text.splitlines()) < 12
    assert [file.suffix for file in cache.iterdir()] == [".lock"]


def test_a_link_error_is_shown(source, cache):
    with pytest.raises(errors.BuildError, match="no_such_library"):
        library.load("Scale", [source], cache_dir=cache, extra_ldflags=["-lno_such_library"])


def test_missing_compiler(monkeypatch, fresh_toolchain, source, cache):
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(errors.BuildError, match=r"no C\+\+ compiler found .* apt install g\+\+"):
        library.load("Scale", [source], cache_dir=cache)
    monkeypatch.setenv("CXX", "my-g++")
    toolchain.cxx.cache_clear()
    with pytest.raises(errors.BuildError, match=r"CXX=my-g\+\+"):
        library.load("Scale", [source], cache_dir=cache)


@pytest.mark.slow
def test_a_built_library_needs_no_compiler(monkeypatch, fresh_toolchain, source, cache, tmp_path):
    """The key names the compiler, so the compiler must be there to look a library up; a copy of the file needs none."""
    source.write_text(OP)
    path = library.load("Scale", [source], cache_dir=cache).path
    monkeypatch.setenv("PATH", "/nonexistent")
    assert library.OpLibrary("Copy", path).schemas.keys() == {"Scale"}


def test_libraries_are_built_together(source, cache, capsys):
    other = source.with_name("other.cc")
    other.write_text(GOOD.replace("Scale", "Other"))
    recipes = [builder.library_recipe("Scale", [source]), builder.library_recipe("Other", [other, source])]
    paths = builder.build_all(recipes, cache_dir=cache)
    has = [[hasattr(ctypes.CDLL(str(path)), name) for name in ("Scale", "Other")] for path in paths]
    assert has == [[True, False], [True, True]]
    first, *lines = capsys.readouterr().err.splitlines()
    assert first == "tftoolkit: compiling Scale, Other (3 steps) …"
    assert [line[:18] for line in lines] == [f"tftoolkit: {i} of 3:" for i in (1, 2, 3)]
    assert sorted(line.split()[4] for line in lines) == ["other.cc,", "scale.cc,", "scale.cc,"]
    assert builder.build_all(recipes, cache_dir=cache) == paths
    assert capsys.readouterr().err == ""


def test_a_library_that_does_not_compile_leaves_the_others_be(source, cache):
    wrong = source.with_name("wrong.cc")
    wrong.write_text("#error wrong\n" + "// the largest comes first\n" * 1000)
    recipes = [builder.library_recipe("Scale", [source]), builder.library_recipe("Wrong", [wrong])]
    with pytest.raises(errors.BuildError, match="Wrong does not compile"):
        builder.build_all(recipes, cache_dir=cache)
    assert builder.build_all(recipes[:1], cache_dir=cache)[0].exists()
    assert not list(cache.glob("build-*"))


def test_progress_on_a_terminal(source, cache):
    main, other = pty.openpty()
    subprocess.run([sys.executable, "-c", BUILD, source, cache], stderr=other, check=True)
    os.close(other)
    shown = os.read(main, 65536).decode()
    os.close(main)
    during, after = shown.split("\r\033[K")[1], shown.split("\r\033[K")[-1]
    assert re.match(r"tftoolkit: compiling, 0 of 1 step done, 0 s: (scale\.cc)?$", during)
    assert re.match(r"tftoolkit: compiled Scale \(1 step\), \d+\.\d s\r\n$", after)


def test_cuda_asked_for_but_absent(monkeypatch, fresh_toolchain, source, cache):
    kernel = source.with_suffix(".cu")
    kernel.write_text("// nothing\n")
    monkeypatch.setattr(toolchain, "nvcc", lambda: None)
    builder.build(builder.library_recipe("Scale", [source, kernel]), cache_dir=cache)  # left out
    with pytest.raises(errors.BuildError, match="no CUDA toolkit found"):
        library.load("Scale", [source, kernel], cache_dir=cache, cuda=True)


@NEEDS_CUDA
def test_cuda_is_compiled_for_a_gpu_or_when_asked_for(monkeypatch, source, cache):
    kernel = source.with_suffix(".cu")
    kernel.write_text("// nothing\n")

    def recipe(cuda):
        return builder.library_recipe("Scale", [source, kernel], cuda=cuda, cache_dir=cache)

    monkeypatch.setattr(toolchain, "has_gpu", lambda: True)
    assert recipe("auto") == recipe(True)
    monkeypatch.setattr(toolchain, "has_gpu", lambda: False)
    assert recipe("auto") == recipe(False) != recipe(True)
    builder.library_path(recipe(True), cache_dir=cache).touch()
    assert recipe("auto") == recipe(True), "what was compiled when asked for is found afterwards"


@NEEDS_CUDA
@pytest.mark.parametrize("options", [[], ["--cuda"]])
def test_ops_build_compiles_cuda_where_it_is_asked_for(monkeypatch, cache, options):
    asked = []
    monkeypatch.setenv("TFTOOLKIT_CACHE_DIR", str(cache))
    monkeypatch.setattr(toolchain, "has_gpu", lambda: False)
    monkeypatch.setattr(builder, "build_all", lambda recipes: asked.extend(recipes) or [])
    assert cli.main(["ops", "build", *options]) == 0
    names = {source.name for recipe in asked for unit in recipe.units for source in unit.sources}
    assert {"kernel.cc", "rms_norm.cc", "adamw.cc"} <= names
    assert ("rms_norm.cu" in names) == bool(options)


def test_gpus_are_found_without_a_framework(monkeypatch, fresh_toolchain):
    """A machine's GPU counts also where CUDA_VISIBLE_DEVICES hides it, as conftest.py does."""
    monkeypatch.setattr(Path, "glob", lambda folder, pattern: iter(()))
    monkeypatch.setattr(toolchain, "_COUNT_GPUS", "import os; print(0, int('CUDA_VISIBLE_DEVICES' not in os.environ))")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert toolchain.ask_driver() == (0, 0)
    assert toolchain.has_gpu()
    monkeypatch.setattr(toolchain, "_COUNT_GPUS", "raise OSError('libcuda.so.1')")
    toolchain.ask_driver.cache_clear()
    toolchain.has_gpu.cache_clear()
    assert toolchain.ask_driver() is None
    assert not toolchain.has_gpu()


def test_an_op_library_needs_no_tensorflow():
    path = builder.build(library.builtin_recipe("rms_norm"))
    symbols = subprocess.run(
        ["nm", "-D", "-C", "--undefined-only", path], capture_output=True, text=True, check=True
    ).stdout
    assert "tensorflow" not in symbols
    assert "absl" not in symbols


@pytest.mark.parametrize("version", ["2.17.1", "2.22.0", "3.0.0", None])
def test_wrong_tensorflow_version(monkeypatch, version):
    monkeypatch.setattr(toolchain, "tensorflow_version", lambda: version)
    with pytest.raises(errors.BuildError, match=r"pip install 'tensorflow>=2.21,<2.22'"):
        builder.host_recipe()


@pytest.mark.parametrize(
    ("name", "message"), [("gone.cc", "cannot read the source"), ("a.rs", "a source ends in one of")]
)
def test_bad_sources(source, cache, name, message):
    with pytest.raises(errors.BuildError, match=message):
        library.load("Scale", [source.parent / name], cache_dir=cache)


def test_bad_name(source):
    with pytest.raises(ValueError, match="name must be an identifier"):
        library.load("my ops", [source])


def test_a_cache_that_others_can_write_is_refused(tmp_path):
    tmp_path.chmod(0o777)
    with pytest.raises(errors.BuildError, match="can be written by others"):
        builder.cache_folder(tmp_path)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_cache_of_somebody_else_is_refused(tmp_path):
    os.chown(tmp_path, 12345, 12345)
    with pytest.raises(errors.BuildError, match="owner 12345"):
        builder.cache_folder(tmp_path)


def test_a_cache_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.BuildError, match="Set TFTOOLKIT_CACHE_DIR"):
        builder.cache_folder(tmp_path / "file" / "cache")


def test_compile_commands():
    entries = json.loads(builder.compile_commands([builder.host_recipe(), library.builtin_recipe("rms_norm")]))
    assert {"kernel.cc", "xla_kernel.cc", "rms_norm.cc"} <= {Path(entry["file"]).name for entry in entries}
    assert all(entry["arguments"][-2:] == ["-c", entry["file"]] for entry in entries)
