"""A library is compiled anew when anything that it was made of has changed, however that came in; and only then."""

import ctypes
import subprocess

import pytest

from tftoolkit.custom_ops.engine import builder, dependencies

VALUE = """#include "values.h"
extern "C" __attribute__((visibility("default"))) int Value() { return VALUE; }
"""


def value(path):
    return ctypes.CDLL(str(path)).Value()


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def scene(tmp_path, monkeypatch):
    """A source whose VALUE comes from a file that is not beside it; the folder ``apart`` holds that file."""
    apart = tmp_path / "apart"
    apart.mkdir()
    monkeypatch.chdir(apart)
    (tmp_path / "source").mkdir()
    return tmp_path / "source/value.cc", apart


INCLUDED = {
    "-include": (["-include", "config.h"], "", {}),
    "-imacros, joined to the path": (["-imacros{apart}/config.h"], "", {}),
    "a macro": (['-DCONFIG="config.h"', "-I", "{apart}"], "#include CONFIG\n", {}),
    "a macro and -isystem": (["-DCONFIG=<config.h>", "-isystem", "{apart}"], "#include CONFIG\n", {}),
    "CPATH": ([], "#include <config.h>\n", {"CPATH": "{apart}"}),
    "CPLUS_INCLUDE_PATH": ([], '#include "config.h"\n', {"CPLUS_INCLUDE_PATH": "/nowhere:{apart}"}),
    "a header of a header": (["-include", "relay.h"], "", {}),
    "a file of flags": (["@{apart}/config.flags"], "", {}),
    "__has_include": (["-I{apart}"], "#if __has_include(<config.h>)\n#include <config.h>\n#endif\n", {}),
}


@pytest.mark.parametrize("way", INCLUDED)
def test_o6_a_changed_file_is_noticed_however_it_is_included(scene, cache, monkeypatch, capfd, way):
    """The old library was loaded, without a word."""
    source, apart = scene
    flags, line, variables = INCLUDED[way]
    flags = [flag.format(apart=apart) for flag in flags]
    for name, setting in variables.items():
        monkeypatch.setenv(name, setting.format(apart=apart))
    source.write_text(line + VALUE.replace('#include "values.h"\n', ""))
    (apart / "relay.h").write_text('#include "config.h"\n')

    def build(number):
        (apart / "config.h").write_text(f"#undef VALUE\n#define VALUE {number}\n")
        (apart / "config.flags").write_text(f"-DVALUE={number}\n")
        return builder.build(builder.library_recipe("Value", [source], extra_cflags=flags), cache_dir=cache)

    paths = [build(number) for number in (1, 2)]
    assert [value(path) for path in paths] == [1, 2]
    capfd.readouterr()
    assert [build(1), build(2)] == paths
    assert capfd.readouterr().err == "", "what was compiled once is found again"


LINKED = {
    "-L -l": ["-L", "{apart}", "-lown"],
    "-L and -l with a file's name": ["-L{apart}", "-l:libown.a"],
    "-Wl": ["-Wl,-L{apart},-lown"],
    "a path": ["{apart}/libown.a"],
    "a path for the linker": ["-Wl,--whole-archive,{apart}/libown.a,--no-whole-archive"],
    "LIBRARY_PATH": ["-lown"],
}


@pytest.mark.parametrize("way", LINKED)
def test_o6_a_changed_static_library_is_noticed(scene, cache, monkeypatch, way):
    source, apart = scene
    if way == "LIBRARY_PATH":
        monkeypatch.setenv("LIBRARY_PATH", str(apart))
    source.write_text('int Own();\nextern "C" __attribute__((visibility("default"))) int Value() { return Own(); }\n')
    for number in (1, 2, 1):
        (apart / "own.cc").write_text(f"int Own() {{ return {number}; }}\n")
        (apart / "libown.a").unlink(missing_ok=True)
        subprocess.run("g++ -fPIC -c own.cc && ar rc libown.a own.o", shell=True, check=True)
        flags = [flag.format(apart=apart) for flag in LINKED[way]]
        recipe = builder.library_recipe("Value", [source], extra_ldflags=flags)
        assert value(builder.build(recipe, cache_dir=cache)) == number


def test_o6_a_header_that_comes_to_lie_before_another_is_noticed(scene, cache):
    source, apart = scene
    source.write_text(VALUE.replace('"values.h"', "<values.h>"))
    for folder, number in (("b", 2), ("a", 1)):
        (apart / folder).mkdir()
        (apart / folder / "values.h").write_text(f"#define VALUE {number}\n")
        recipe = builder.library_recipe("Value", [source], extra_cflags=["-Ia", "-Ib"])
        assert value(builder.build(recipe, cache_dir=cache)) == number


def test_o6_native_code_belongs_to_a_processor(scene, monkeypatch):
    source, _ = scene
    source.write_text("")

    def key(processor, *flags):
        monkeypatch.setattr(dependencies, "_text", lambda path: f"flags\t: {processor}\ncpu MHz\t: {processor}\n")
        return builder.library_recipe("Scale", [source], extra_cflags=flags).key()

    for flag in ("-march=native", "-mtune=native", "-mcpu=native"):
        assert key("avx2", flag) != key("avx512f", flag)
    assert key("avx2", "-mavx2") == key("avx512f", "-mavx2")
    for name in ("CPATH", "LIBRARY_PATH", "NVCC_APPEND_FLAGS"):
        before = key("avx2")
        monkeypatch.setenv(name, "/opt/other")
        assert key("avx2") != before
