"""``load``, ``opcheck`` and the command line take emulated kernels, and say what is wrong where they can't."""

import concurrent.futures
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tftoolkit import cli, custom_ops
from tftoolkit.custom_ops import emulation
from tftoolkit.custom_ops.emulation import building
from tftoolkit.custom_ops.engine import library
from tftoolkit.custom_ops.opcheck import child

HERE = Path(__file__).parent
SOURCES = sorted((HERE / "pieces").glob("*.c[cu]"))
X = np.linspace(-1, 2, 50, dtype=np.float32)


@pytest.fixture(scope="module")
def pieces():
    return custom_ops.load("Pieces", SOURCES, cuda="emulated")


@pytest.mark.slow
def test_an_update_in_place_and_device_code_in_a_header(pieces):
    np.testing.assert_allclose(pieces.centre(X), X - X.mean(), atol=1e-6)
    np.testing.assert_allclose(
        tf.function(pieces.centre, jit_compile=True)(X[1:]), (X[1:] - X[1:].mean()) / 2, atol=1e-6
    )


@pytest.mark.slow
def test_votes_and_dynamic_shared_memory(pieces):
    assert pieces.count(X).numpy().tolist() == [(X > 0).sum(), 0, (X[:32] > 0).sum()]
    assert pieces.count(np.ones(64, np.float32)).numpy().tolist() == [64, 1, 32]
    assert pieces.count(np.ones(14, np.float32)).numpy().tolist() == [14, 0, 14]  # 100 KiB of it


@pytest.mark.slow
def test_a_finding_is_reported_though_the_op_does_not_ask(pieces):
    with pytest.raises(tf.errors.InternalError, match=r"kernel Count, .*shared array \(dynamic\) .*behind its end"):
        pieces.count(X[:13])


@pytest.mark.slow
def test_several_threads_at_once(pieces):
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: pieces.count(X).numpy().tolist(), range(16)))
    assert results == [results[0]] * 16


@pytest.mark.slow
def test_loaded_twice_it_is_the_same(pieces):
    assert custom_ops.load("Pieces", SOURCES, cuda="emulated") is pieces
    assert emulation.is_emulated(pieces.count)
    assert emulation.twin(pieces.count) is pieces.count


@pytest.mark.slow
def test_the_twin_of_a_library():
    native = custom_ops.load("Natives", SOURCES, cuda=False)
    assert native.count(X).numpy().tolist() == [-1, -1, -1]
    twin = emulation.twin(native.count)
    assert not emulation.is_emulated(native.count)
    assert twin.tf_name == "NativesEmulated>Count"
    assert twin(X).numpy().tolist() == [(X > 0).sum(), 0, (X[:32] > 0).sum()]
    with emulation.emulated(native.count):
        np.testing.assert_array_equal(native.count(X), twin(X))
        np.testing.assert_allclose(native.centre(X), X - X.mean(), atol=1e-6)
    assert native.count(X).numpy().tolist() == [-1, -1, -1]


def test_what_cannot_be_emulated_is_refused():
    with pytest.raises(custom_ops.BuildError, match=r"library Plain has no \.cu file among pieces\.cc"):
        custom_ops.load("Plain", [HERE / "pieces" / "pieces.cc"], cuda="emulated")
    assert custom_ops.rand_augment
    rand_augment = library.load_builtin("rand_augment")
    with pytest.raises(custom_ops.LoadError, match=r"TfToolkit has no CUDA kernel to emulate; .* rand_augment\.cc"):
        emulation.twin(rand_augment.op(next(iter(rand_augment.schemas))))
    planted = custom_ops.load("Planted", [HERE / "planted.cu"], cuda="emulated")
    opened = custom_ops.open_library("FromFile", planted.path)
    with pytest.raises(custom_ops.LoadError, match=r"was opened as the file .*: load it with custom_ops\.load"):
        emulation.twin(opened.planted)
    with pytest.raises(ValueError, match="device must be None or 'emulated', got 'gpu'"):
        custom_ops.opcheck(planted.planted, X, bug=0, device="gpu")
    for name in ("seed", "max_blocks"):
        with pytest.raises(ValueError, match=f"{name} must not be negative, got -1"), emulation.settings(**{name: -1}):
            pass


@pytest.mark.slow
def test_a_compile_error_names_the_line_of_the_cu_file(tmp_path):
    source = tmp_path / "wrong.cu"
    source.write_text('#include "tftoolkit/op.h"\n__global__ void K() {\n  __shared__ int a;\n  surely_not();\n}\n')
    with pytest.raises(custom_ops.BuildError, match=rf"{source}:4:.*surely_not"):
        custom_ops.load("Wrong", [source], cuda="emulated")


def test_flags_for_nvcc_alone_are_left_out():
    flags = ["--use_fast_math", "-DNOTHING", "-I", str(HERE), "-Xptxas", "-v", f"-isystem={HERE}"]
    assert building._for_cxx(flags) == ["-DNOTHING", "-I", str(HERE), f"-isystem{HERE}"]


@pytest.mark.slow
def test_opcheck_shows_the_finding(place_of):
    planted = custom_ops.load("Planted", [HERE / "planted.cu"], cuda="emulated").planted
    x = np.arange(256, dtype=np.float32)
    with pytest.raises(custom_ops.OpCheckError, match=r"runs +FAILED") as caught:
        custom_ops.opcheck(planted, x, checks=["runs"], device="emulated", bug=6)
    seen = caught.value.report["runs"].seen
    assert "kernel Reverse<6>, block (0, 0, 0), thread (63, 0, 0): store to shared array tile + 252 bytes" in seen
    assert place_of("planted.cu", "store") in seen


@pytest.mark.slow
def test_settings_hold_in_the_process_of_opcheck_too():
    planted = custom_ops.load("Planted", [HERE / "planted.cu"], cuda="emulated")
    x = np.arange(128, dtype=np.float32)  # two pieces, which two blocks do not share
    place = planted.name, str(planted.path)
    job = "call", *place, "Planted", [x], {"bug": 2, "size": 128}
    child.ask([place], *job)
    with emulation.settings(max_blocks=1), pytest.raises(child.RaisedError, match="race: load from shared array tile"):
        child.ask([place], *job)
    child.ask([place], *job)


@pytest.mark.slow
def test_command_line(capsys):
    assert cli.main(["ops", "check", str(HERE / "pieces" / "pieces.cu"), "--cuda=emulated"]) == 0
    text = capsys.readouterr().out
    assert "Pieces>Count" in text
    assert cli.main(["ops", "check", "rand_augment", "--cuda=emulated"]) == 1
    assert "rand_augment has no CUDA kernel to emulate" in capsys.readouterr().err
