"""The op host: attributes, errors, threads, kernel registration. Uses real libraries compiled here."""

import concurrent.futures
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import kernels

from tftoolkit import custom_ops
from tftoolkit.custom_ops.engine import builder, library, toolchain

SOURCE = Path(__file__).parent / "faulty.cc"
JIT = pytest.mark.parametrize("jit", [None, False, True], ids=["eager", "graph", "xla"])


@pytest.fixture(scope="module")
def faulty():
    return custom_ops.load("Faulty", [SOURCE])


def compiled(op, jit):
    return op if jit is None else tf.function(lambda *x, **attributes: op(*x, **attributes), jit_compile=jit)


@JIT
def test_every_kind_of_attribute_arrives(faulty, jit):
    x = tf.zeros([3, 2])
    op = faulty.op("Attributes")
    text = 'a"\\b'
    as_number = 0
    for byte in text.encode():
        as_number = as_number * 2 + byte
    y = compiled(lambda x: op(x, single=0.1), jit)(x)
    np.testing.assert_allclose(y, [0.1, (1.000000000000007 - 1) * 1e15, -7, 5, 1, as_number], rtol=1e-6)
    given = {"single": np.float32(-np.inf), "double_precision": 1.0, "count": 2**31 - 1, "big": 2**40, "flag": False}
    y = compiled(lambda x: op(x, text="é", **given), jit)(x)
    assert y.numpy().tolist() == [-np.inf, 0, np.float32(2**31 - 1), 0, 0, 0xC3 * 2 + 0xA9]


def test_attributes_are_checked(faulty):
    op, x = faulty.op("Attributes"), tf.zeros([3, 2])
    for wrong, message in [
        ({"count": 2**31}, "count must fit into 32 bits"),
        ({"count": 1.0}, "count must be i32, got 1.0"),
        ({"flag": 1}, "flag must be bool"),
        ({"text": 5}, "text must be str"),
        ({"nothing": 5}, "nothing"),
    ]:
        with pytest.raises((TypeError, ValueError), match=message):
            op(x, single=1.0, **wrong)
    with pytest.raises(TypeError, match="single"):
        op(x)


def test_attributes_survive_a_saved_model_and_differ_by_call_site(faulty, tmp_path):
    op = faulty.op("Attributes")
    function = tf.function(lambda x: (op(x, single=1.0), op(x, single=2.0, double_precision=1.000000000000003)))
    module = tf.Module()
    module.f = function.get_concrete_function(tf.zeros([3, 2])) and function
    options = tf.saved_model.SaveOptions(namespace_whitelist=["Faulty"])
    tf.saved_model.save(module, tmp_path, options=options)
    for before, after in zip(
        function(tf.zeros([3, 2])), tf.saved_model.load(tmp_path).f(tf.zeros([3, 2])), strict=True
    ):
        np.testing.assert_array_equal(before, after)


@JIT
def test_a_fixed_dimension_is_checked(faulty, jit):
    op = faulty.op("Attributes")
    function = op if jit is None else tf.function(op, jit_compile=jit)
    with pytest.raises((tf.errors.InvalidArgumentError, ValueError), match="x has shape"):
        function(tf.zeros([4, 2]), single=1.0)


@JIT
def test_an_error_from_the_kernel(faulty, jit):
    with pytest.raises(tf.errors.OutOfRangeError, match="there are 3 elements"):
        compiled(faulty.op("Refuse"), jit)(tf.ones(3))


@JIT
def test_an_exception_from_the_kernel(faulty, jit):
    with pytest.raises(tf.errors.OpError, match="thrown on purpose"):
        compiled(faulty.op("Throw"), jit)(tf.ones(3))


@JIT
def test_o1_an_exception_from_a_task_of_a_parallel_loop(faulty, jit):
    """It ended the process, since it was thrown on a thread of the pool."""
    for where in ("one", "first", "last", "all", "nested"):
        throw = compiled(lambda x, where=where: faulty.throw_in_task(x, where=where), jit)
        for _ in range(20):  # which thread meets it first is chance
            with pytest.raises(tf.errors.UnknownError, match="the kernel threw: thrown in a task"):
                throw(1.0)
    for where in ("one", "all"):  # outside of a loop, and inside
        for what, message in (("number", "the kernel threw an exception"), ("memory", "the kernel threw: .*bad_alloc")):
            with pytest.raises(tf.errors.UnknownError, match=message):
                compiled(lambda x, where=where, what=what: faulty.throw_in_task(x, where=where, what=what), jit)(1.0)
    nothing = compiled(lambda x: faulty.throw_in_task(x, where="nowhere"), jit)
    assert nothing(1.0).numpy() == 64  # the pool works afterwards, and all tasks run


@JIT
def test_a_handler_that_does_not_fit_its_schema(faulty, jit):
    with pytest.raises(tf.errors.OpError, match=r"alpha|attribute"):
        compiled(faulty.op("Mismatch"), jit)(tf.ones(3))


@JIT
def test_messages_end_with_their_code(faulty, jit):
    """TensorFlow puts words of its own behind them. In JAX: test_jax.py."""
    cases = [
        ("Refuse", {}, r"there are 3 elements \[tftoolkit: docs/errors\.md#op-input\]"),
        ("Throw", {}, r"thrown on purpose \[tftoolkit: docs/errors\.md#op-failed\]"),
        ("Attributes", {"single": 1.0}, r"must have 2 dimensions.* \[tftoolkit: docs/errors\.md#op-input\]"),
        ("Mismatch", {}, r"schema .*disagree: .*\[tftoolkit: docs/errors\.md#op-declaration\]"),
    ]
    for name, attributes, message in cases:
        # By the schema, where a graph is built, ValueError.
        with pytest.raises((tf.errors.OpError, ValueError), match=f"(?s){message}") as caught:
            compiled(faulty.op(name), jit)(tf.ones(3), **attributes)
        assert str(caught.value).count("docs/errors.md") == 1


@JIT
def test_nested_parallel_loops_do_not_deadlock(faulty, jit):
    assert compiled(faulty.op("Nested"), jit)(tf.ones(2)).numpy().tolist() == [256, 256]


def test_no_kernel_is_a_clear_error(faulty):
    with pytest.raises(custom_ops.LoadError, match="Nowhere has neither a kernel nor a reference"):
        faulty.op("Nowhere")(tf.ones(3))


@JIT
def test_the_reference_runs_where_there_is_no_kernel(jit, tmp_path, caplog):
    source = tmp_path / "bodiless.cc"
    source.write_text('#include "tftoolkit/op.h"\nTK_OP(Twice, "(x: f32[...]) -> (y: f32[...])");\n')
    op = custom_ops.load("Bodiless", [source]).twice
    op.reference(lambda x: x * 2)
    with caplog.at_level("WARNING", logger="absl"):
        assert compiled(op, jit)(tf.ones(2)).numpy().tolist() == [2, 2]
    if jit is None:
        assert "Twice has no kernel for this machine; its reference runs in its place" in caplog.text


def test_a_reference_in_place_of_a_kernel_may_branch_on_tensors(tmp_path):
    """AutoGraph leaves the engine alone, but not what users wrote."""
    source = tmp_path / "branching.cc"
    source.write_text('#include "tftoolkit/op.h"\nTK_OP(Shrink, "(x: f32[...]) -> (y: f32[...])");\n')
    shrink = custom_ops.load("Branching", [source]).shrink

    @shrink.reference
    def _(x):
        if tf.reduce_max(x) > 1:
            return x / 2
        return x

    traced = tf.function(lambda x: shrink(x))
    assert [traced(tf.fill([1], size)).numpy()[0] for size in (4.0, 1.0)] == [2.0, 1.0]


def test_calls_from_many_threads(faulty):
    x = tf.random.stateless_normal([64, 256], seed=(1, 2))
    gamma = tf.ones(256)
    expected = custom_ops.rms_norm(x, gamma).numpy()
    jitted = tf.function(custom_ops.rms_norm, jit_compile=True)

    def call(i):
        function = (custom_ops.rms_norm, jitted, tf.function(custom_ops.rms_norm))[i % 3]
        return all(np.array_equal(function(x, gamma), expected) for _ in range(20))

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert all(pool.map(call, range(24)))


def test_kernels_are_registered_for_each_device():
    assert custom_ops.rms_norm
    for op in ("TfToolkit>RmsNorm", "TfToolkit>RmsNormGrad"):
        devices = {kernel.device_type for kernel in kernels.get_registered_kernels_for_op(op).kernel}
        assert {"CPU", "XLA_CPU_JIT"} <= devices


@pytest.mark.slow
@pytest.mark.skipif(toolchain.nvcc() is None, reason="no CUDA toolkit")
def test_cuda_is_linked_statically_and_its_kernels_are_registered_where_they_were_asked_for(tmp_path):
    path = builder.build(library.builtin_recipe("rms_norm", cuda=True), cache_dir=tmp_path)
    needed = subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout
    assert "libcudart" not in needed
    with_cuda = library.OpLibrary("WithCuda", path)
    assert with_cuda.handlers["RmsNorm"].keys() == {"CPU", "CUDA"}
    with_cuda.register()
    devices = {kernel.device_type for kernel in kernels.get_registered_kernels_for_op("WithCuda>RmsNorm").kernel}
    assert devices == {"CPU", "XLA_CPU_JIT", "GPU", "XLA_GPU_JIT"}


def test_opening_a_library_twice_gives_the_same_op(faulty):
    assert custom_ops.load("Faulty", [SOURCE]).op("Refuse") is faulty.op("Refuse")


def test_a_changed_source_under_the_same_name_is_a_new_op_and_says_so(tmp_path, caplog):
    """TensorFlow cannot replace an op; old traces keep the old kernel."""
    source = tmp_path / "changing.cc"
    text = (
        '#include "tftoolkit/op.h"\n'
        "static ffi::Error Run(ffi::Buffer<ffi::F32> x, ffi::ResultBuffer<ffi::F32> y) {\n"
        "  for (size_t i = 0; i < x.element_count(); ++i) y->typed_data()[i] = x.typed_data()[i] * FACTOR;\n"
        "  return ffi::Error::Success();\n}\n"
        "XLA_FFI_DEFINE_HANDLER(Cpu, Run);\n"
        'TK_OP(Times, "(x: f32[...]) -> (y: f32[...])");\nTK_KERNEL(Times, CPU, Cpu);\n'
    )
    x = tf.ones(3)
    source.write_text(text.replace("FACTOR", "2"))
    before = custom_ops.load("Changing", [source]).times
    old = tf.function(lambda x: before(x), jit_compile=True)
    assert old(x).numpy().tolist() == [2, 2, 2]
    source.write_text(text.replace("FACTOR", "3"))
    with caplog.at_level("WARNING", logger="absl"):
        after = custom_ops.load("Changing", [source]).times
        new = tf.function(lambda x: after(x), jit_compile=True)
        assert new(x).numpy().tolist() == [3, 3, 3]
    assert "Changing>Times was registered before from another library; this one is now Changing>Times_2" in caplog.text
    assert old(x).numpy().tolist() == [2, 2, 2]
    assert before(x).numpy().tolist() == [2, 2, 2]
    assert after(x).numpy().tolist() == [3, 3, 3]
    source.write_text(text.replace("FACTOR", "2"))
    assert custom_ops.load("Changing", [source]).times is before


def test_a_library_without_declarations_is_refused(tmp_path):
    source = tmp_path / "empty.cc"
    source.write_text("int nothing;\n")
    with pytest.raises(custom_ops.LoadError, match="declares no op"):
        custom_ops.load("Empty", [source])


def test_a_schema_error_names_the_declaration(tmp_path):
    source = tmp_path / "bad.cc"
    source.write_text('#include "tftoolkit/op.h"\nTK_OP(Bad, "(x: f32[n]) -> (y: f32[m])");\n')
    with pytest.raises(custom_ops.SchemaError, match="appears in no input") as caught:
        custom_ops.load("Bad", [source])
    assert any("bad.cc:2" in note for note in caught.value.__notes__)


def test_a_kernel_for_an_undeclared_op_is_refused(tmp_path):
    source = tmp_path / "bad.cc"
    source.write_text(
        '#include "tftoolkit/op.h"\nTK_OP(Good, "(x: f32[n]) -> (y: f32[n])");\n'
        "static XLA_FFI_Error* Handler(XLA_FFI_CallFrame*) { return nullptr; }\nTK_KERNEL(Godo, CPU, Handler);\n"
    )
    with pytest.raises(custom_ops.LoadError, match="names op Godo, but the library declares Good"):
        custom_ops.load("Bad2", [source])


def test_a_gradient_that_does_not_exist_is_named(faulty):
    x = tf.zeros([3, 2])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = faulty.op("Attributes")(x, single=1.0)
    with pytest.raises(LookupError, match=r"Attributes has no gradient: write one under @attributes\.gradient"):
        tape.gradient(y, x)


@pytest.mark.parametrize("wrap", [lambda f: f, tf.function])
def test_a_gradient_for_each_input_or_a_message(faulty, monkeypatch, wrap):
    """TensorFlow calls too few an internal error."""
    op = faulty.op("Attributes")
    monkeypatch.setattr(op, "gradient_function", lambda node, dy: (dy, None))
    x = tf.zeros([3, 2])

    def differentiate():
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = op(x, single=1.0)
        return tape.gradient(y, x)

    with pytest.raises(ValueError, match="the gradient of Attributes returned 2 for 1 input"):
        wrap(differentiate)()


def test_importing_the_package_does_not_import_tensorflow():
    code = (
        "import sys, tftoolkit; from tftoolkit import custom_ops; custom_ops.load, custom_ops.OpLibrary; "
        "assert 'tensorflow' not in sys.modules, 'tensorflow was imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_op_is_the_function_however_it_is_imported():
    code = (
        "import tftoolkit.custom_ops.rms_norm; from tftoolkit import custom_ops; assert callable(custom_ops.rms_norm)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
