"""``load`` and ``load_inline`` as a user meets them: flags, headers, mistakes, names, notebooks, several processes.

A long file: what users do with one function.
"""

import concurrent.futures
import copy
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import tensorflow as tf

from tftoolkit import custom_ops
from tftoolkit.custom_ops.engine import builder, declaration, library, toolchain

SCALE = """static ffi::Error Scale(ffi::Buffer<ffi::F32> x, ffi::ResultBuffer<ffi::F32> y) {
  for (size_t i = 0; i < x.element_count(); ++i) y->typed_data()[i] = x.typed_data()[i] * FACTOR;
  return ffi::Error::Success();
}
XLA_FFI_DEFINE_HANDLER(ScaleCpu, Scale, ffi::Ffi::Bind().Arg<ffi::Buffer<ffi::F32>>().Ret<ffi::Buffer<ffi::F32>>());
TK_OP(Scale, "(x: f32[...]) -> (y: f32[...])");
TK_KERNEL(Scale, CPU, ScaleCpu);
"""
NEEDS_CUDA = pytest.mark.skipif(toolchain.nvcc() is None, reason="no CUDA toolkit")


def inline(name, text, tmp_path, **options):
    return custom_ops.load_inline(name, text, cache_dir=tmp_path / "cache", **options)


# Flags and headers


@pytest.mark.slow
@NEEDS_CUDA
def test_cuda_flags_are_used(tmp_path):
    cuda = "#ifndef FACTOR\n#error FACTOR is not defined\n#endif\n"
    with pytest.raises(custom_ops.BuildError, match=r"CudaFlags\.cu.*FACTOR is not defined"):
        inline("CudaFlags", SCALE, tmp_path, cuda=cuda, extra_cflags=["-DFACTOR=3"])
    inline("CudaFlags", SCALE, tmp_path, cuda=cuda, extra_cflags=["-DFACTOR=3"], extra_cuda_cflags=["-DFACTOR=3"])


@pytest.mark.slow
def test_a_changed_header_is_noticed_wherever_it_lies(tmp_path):
    """Beside the source, above it, in a header of a header, in include_dirs, and where a flag points."""
    includes = {
        "src/detail/a.h": '#include "detail/a.h"',
        "b.h": '#include "../b.h"',
        "src/c.h": '#include "relay.h"',
        "own/D": "#include <D>",
        "other/my/e.h": '#include "my/e.h"',
    }
    source = tmp_path / "src" / "scale.cc"
    for header in includes:
        (tmp_path / header).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / header).write_text(f"constexpr float {Path(header).stem.upper()} = 1;\n")
    (tmp_path / "src/relay.h").write_text('  #  include "c.h"\n')
    lines = "\n".join(includes.values())
    source.write_text(f'#include "tftoolkit/op.h"\n{lines}\n{SCALE.replace("FACTOR", "(A + B + C + D + E)")}')
    options = {"include_dirs": [tmp_path / "own"], "extra_cflags": ["-I", str(tmp_path / "other")]}
    keys = [builder.library_recipe("Header", [source], **options).key()]
    for factor, header in zip((10, 100, 1000, 10000, 100000), includes, strict=True):
        (tmp_path / header).write_text(f"constexpr float {Path(header).stem.upper()} = {factor};\n")
        keys.append(builder.library_recipe("Header", [source], **options).key())
    assert len(set(keys)) == 6
    library = custom_ops.load("Header", [source], cache_dir=tmp_path / "cache", **options)
    assert library.scale(1.0) == 111110


def test_a_header_that_is_not_included_is_not_noticed(tmp_path):
    """Else whoever keeps sources in a big folder compiles anew all the time."""
    source = tmp_path / "scale.cc"
    source.write_text('#include "tftoolkit/op.h"\n')
    before = builder.library_recipe("Other", [source]).key()
    (tmp_path / "other.h").write_text("\n")
    assert builder.library_recipe("Other", [source]).key() == before


@pytest.mark.slow
def test_several_sources_make_one_library(tmp_path):
    declaration = "float Factor();\n"
    (tmp_path / "scale.cpp").write_text(
        '#include "tftoolkit/op.h"\n' + declaration + SCALE.replace("FACTOR", "Factor()")
    )
    (tmp_path / "factor.cxx").write_text("float Factor() { return 5; }\n")
    library = custom_ops.load("Several", [tmp_path / "scale.cpp", str(tmp_path / "factor.cxx")], cache_dir=tmp_path)
    assert library.scale(1.0) == 5


@pytest.mark.slow
def test_flags_are_used_and_libraries_with_the_same_symbols_do_not_meet(tmp_path):
    """Functions and variables of one name, inline and not, in two libraries of one process."""
    text = """
float Factor() { return FACTOR; }
inline float& Shared() { static float value = FACTOR; return value; }
template <int kAny> struct Holder { static inline float value = FACTOR; };
""" + SCALE.replace("FACTOR", "(Factor() + 10 * Shared() + 100 * Holder<0>::value)")
    one = inline("Same", text, tmp_path, extra_cflags=["-DFACTOR=1"])
    two = inline("Same", text, tmp_path, extra_cflags=["-DFACTOR=2"])
    assert (one.scale(1.0), two.scale(1.0), one.scale(1.0)) == (111, 222, 111)


# Notebooks and processes


@pytest.mark.slow
def test_works_after_tensorflow_has_run_and_again_and_with_a_changed_text(tmp_path):
    """What happens in a notebook: the cell comes late, is run twice, is changed and run again."""
    code = f"""
import tensorflow as tf
x = tf.ones(3)
tf.function(lambda x: x + 1, jit_compile=True)(x)
next(iter(tf.data.Dataset.from_tensors(x).map(lambda x: x * 2)))
from tftoolkit import custom_ops
def cell(factor):
    return custom_ops.load_inline("Cell", {SCALE!r}.replace("FACTOR", factor), cache_dir={str(tmp_path / "cache")!r})
def compiled(op):
    return tf.function(lambda x: op(x), jit_compile=True)
first = cell("2")
before = compiled(first.scale)
assert before(x).numpy().tolist() == [2, 2, 2]
assert cell("2") is first
changed = cell("3").scale
assert compiled(changed)(x).numpy().tolist() == [3, 3, 3]
assert changed(x).numpy().tolist() == [3, 3, 3]
assert changed.tf_name == "Cell>Scale_2"
assert before(x).numpy().tolist() == [2, 2, 2]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("compiling Cell") == 2
    assert "Cell>Scale was registered before from another library; this one is now Cell>Scale_2" in done.stderr


@pytest.mark.slow
def test_processes_starting_together_compile_an_inline_text_once(tmp_path):
    code = (
        "import sys; from tftoolkit import custom_ops\n"
        f"custom_ops.load_inline('Together', {SCALE!r}, cache_dir=sys.argv[1], extra_cflags=['-DFACTOR=2'])"
    )
    command = [sys.executable, "-c", code, tmp_path / "cache"]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    messages = [process.communicate()[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], messages
    assert sum("compiling" in message for message in messages) == 1


def test_cuda_text_without_a_cuda_toolkit(monkeypatch, tmp_path):
    monkeypatch.setattr(toolchain, "nvcc", lambda: None)
    toolchain.cuda_root.cache_clear()
    with pytest.raises(custom_ops.BuildError, match="no CUDA toolkit found"):
        inline("NoCuda", SCALE, tmp_path, cuda="\n", extra_cflags=["-DFACTOR=2"])


# One object for each op

NAMES = ("Path", "Name", "Register", "Op", "Made", "Schemas", "Handlers", "FfiVersion", "Lambda", "Not", "Plain")
SELF = """
static ffi::Error Run(ffi::Buffer<ffi::F32> self, ffi::ResultBuffer<ffi::F32> y) {
  std::copy_n(self.typed_data(), self.element_count(), y->typed_data());
  return ffi::Error::Success();
}
XLA_FFI_DEFINE_HANDLER(Cpu, Run, ffi::Ffi::Bind().Arg<ffi::Buffer<ffi::F32>>().Ret<ffi::Buffer<ffi::F32>>());
""" + "".join(f'TK_OP({name}, "(self: f32[...]) -> (y: f32[...])");\nTK_KERNEL({name}, CPU, Cpu);\n' for name in NAMES)


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """A library whose ops, inputs and own name are awkward."""
    return custom_ops.load_inline("awkward_names", SELF, cache_dir=tmp_path_factory.mktemp("names"))


@pytest.mark.slow
def test_o2_threads_that_use_an_op_first_get_the_same(names):
    """Two got two ops, and the gradient sat on one of them."""
    start = threading.Barrier(8)

    def first(_):
        start.wait()
        return [id(names.op(name)) for name in NAMES], [names.op(name).tf_name for name in NAMES]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(first, range(8)))
    assert all(one == found[0] for one in found)
    assert found[0][1] == [f"AwkwardNames>{name}" for name in NAMES]


def test_o2_a_copy_of_an_op_is_the_op(names):
    op = names.plain
    assert copy.copy(op) is op
    assert copy.deepcopy({"op": op, "library": names}) == {"op": op, "library": names}
    assert pickle.loads(pickle.dumps(op)) is op
    assert pickle.loads(pickle.dumps(names)) is names
    assert op.tf_name == "AwkwardNames>Plain"


@pytest.mark.slow
def test_o2_ops_go_to_another_process_with_their_gradients(tmp_path):
    """What multiprocessing with "spawn" does with a function that holds an op."""
    (tmp_path / "my_module.py").write_text(
        f"from tftoolkit import custom_ops\n"
        f"library = custom_ops.load_inline('Sent', {SCALE!r}, extra_cflags=['-DFACTOR=2'],"
        f" cache_dir={str(tmp_path)!r})\n"
        "@library.scale.gradient\ndef _(op, dy):\n    return dy * 2\n"
    )
    (tmp_path / "main.py").write_text("""
import multiprocessing
def slope(op):
    import tensorflow as tf
    with tf.GradientTape() as tape:
        tape.watch(x := tf.ones(2))
        y = op(x)
    return op.tf_name, tape.gradient(y, x).numpy().tolist()
if __name__ == "__main__":
    from my_module import library
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.map(slope, [library.scale]))
""")
    done = subprocess.run([sys.executable, "main.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "[('Sent>Scale', [2.0, 2.0])]\n", done.stderr


def test_o8_names_of_all_kinds(names):
    assert names.name == "AwkwardNames"
    reserved = "path_ name_ register_ op_ made_ schemas_ handlers_ ffi_version_ lambda_ not_"
    assert dir(names) == sorted([*reserved.split(), "plain"])
    for name in dir(names):
        op = getattr(names, name)
        assert op.__name__ == name
        assert op(self=[1.0, 2.0]).numpy().tolist() == [1, 2]
    assert names.path.exists()
    attributes = {name for name in {*vars(names), *dir(type(names))} if not name.startswith("_")}
    assert attributes == set(declaration.LIBRARY_ATTRIBUTES)
    for name in ("awkward_names", "AwkwardNames"):
        assert custom_ops.open_library(name, names.path) is names


@pytest.mark.parametrize(
    ("given", "name"),
    [("my_ops", "MyOps"), ("MyOps", "MyOps"), ("myOps2", "MyOps2"), ("My_ops", "My_ops"), ("_x", "X"), ("a__b", "AB")],
)
def test_o8_any_identifier_is_a_namespace(given, name):
    assert library._namespace(given) == name


@pytest.mark.parametrize("name", ["", "2d", "my ops", "größe", "_", "_2", "a>b"])
def test_o8_what_tensorflow_does_not_take_is_refused(name):
    with pytest.raises(ValueError, match="name must be an identifier of ASCII letters"):
        custom_ops.load_inline(name, "")


DECLARED = '#include "tftoolkit/op.h"\nstatic XLA_FFI_Error* Handler(XLA_FFI_CallFrame*) { return nullptr; }\n'


@pytest.mark.slow
def test_o7_two_kernels_for_one_op_and_platform_are_refused(tmp_path):
    """Which one it got depended on the order of the sources."""
    (tmp_path / "a.cc").write_text(
        DECLARED + 'TK_OP(Both, "(x: f32[]) -> (y: f32[])");\nTK_KERNEL(Both, CPU, Handler);\n'
    )
    (tmp_path / "b.cc").write_text(DECLARED + "TK_KERNEL(Both, CPU, Handler);\n")
    for sources in (["a.cc", "b.cc"], ["b.cc", "a.cc"]):
        with pytest.raises(custom_ops.LoadError, match=r"op Both has a CPU kernel already") as caught:
            custom_ops.load("Twins", [tmp_path / source for source in sources], cache_dir=tmp_path)
        assert f"{tmp_path}/a.cc:4" in str(caught.value)
        assert f"{tmp_path}/b.cc:3" in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("second", "message"),
    [
        ('namespace b { TK_OP(RmsNorm, "(x: f32[]) -> (y: f32[])"); }', r"rms_norm is declared already at .*a\.cc:4"),
        ('TK_OP(RMSNorm, "(x: f32[]) -> (y: f32[])");', r"rms_norm is declared already at .*a\.cc:4"),
        ('TK_OP(rms, "(x: f32[]) -> (y: f32[])");', "begin with a capital letter, got rms"),
    ],
)
def test_o7_o8_two_ops_of_one_name_are_refused(tmp_path, second, message):
    (tmp_path / "a.cc").write_text(DECLARED + f'TK_OP(RmsNorm, "(x: f32[]) -> (y: f32[])");\n{second}\n')
    with pytest.raises(custom_ops.LoadError, match=message):
        custom_ops.load("Twice", [tmp_path / "a.cc"], cache_dir=tmp_path)


# Mistakes


def test_a_compile_error_shows_the_line_that_the_user_wrote(tmp_path):
    with pytest.raises(custom_ops.BuildError) as caught:
        inline("Wrong", "\n\n" + SCALE, tmp_path)
    lines = str(caught.value).splitlines()
    assert "Wrong.cc:4:" in lines[1]
    assert "‘FACTOR’ was not declared" in lines[1]
    assert "y->typed_data()[i] = x.typed_data()[i] * FACTOR;" in lines[2]


@pytest.mark.slow
@NEEDS_CUDA
def test_a_cuda_compile_error_shows_the_line_that_the_user_wrote(tmp_path):
    cuda = "\n__global__ void Kernel(float* y) {\n  *y = FAKTOR;\n}\n"
    with pytest.raises(custom_ops.BuildError) as caught:
        inline("WrongCuda", SCALE, tmp_path, cuda=cuda, extra_cflags=["-DFACTOR=2"])
    assert 'WrongCuda.cu(3): error: identifier "FAKTOR" is undefined' in str(caught.value)
    assert "  *y = FAKTOR;" in str(caught.value)


@pytest.mark.parametrize(
    ("declared", "message"),
    [("", "‘Missing’ was not declared"), ("XLA_FFI_Error* Missing(XLA_FFI_CallFrame*);\n", "undefined reference to")],
    ids=["not declared", "not defined"],
)
def test_a_handler_that_does_not_exist(tmp_path, declared, message):
    text = declared + 'TK_OP(Lost, "(x: f32[...]) -> (y: f32[...])");\nTK_KERNEL(Lost, CPU, Missing);\n'
    with pytest.raises(custom_ops.BuildError, match=f"{message}.*Missing|{message}"):
        inline("Lost", text, tmp_path)


UNFIT = [
    ("(x: f32[...], *, beta: f32 = 1.0) -> (y: f32[...])", "beta vs alpha"),
    ("(x: f32[...], *, alpha: f64 = 1.0) -> (y: f32[...])", "expected F32 but got F64"),
    ("(x: f32[...], *, alpha: f32 = 1.0, beta: i32 = 2) -> (y: f32[...])", "expected 1 but got 2 with name"),
    ("(x: f32[...], z: f32[...], *, alpha: f32 = 1.0) -> (y: f32[...])", "arguments: expected 1 but got 2"),
    ("(x: f32[...], *, alpha: f32 = 1.0) -> (y: f32[...], z: f32[...])", "results: expected 1 but got 2"),
    ("(x: i32[...], *, alpha: f32 = 1.0) -> (y: f32[...])", "expected F32 but got S32"),
]


def test_a_kernel_that_does_not_fit_its_schema(tmp_path):
    """The message names the op, the schema, and what the kernel's Bind() expects."""
    text = """
static ffi::Error Run(ffi::Buffer<ffi::F32>, ffi::ResultBuffer<ffi::F32>, float) { return ffi::Error::Success(); }
XLA_FFI_DEFINE_HANDLER(Cpu, Run, ffi::Ffi::Bind().Arg<ffi::Buffer<ffi::F32>>().Ret<ffi::Buffer<ffi::F32>>()
                       .Attr<float>("alpha"));
"""
    for i, (schema, _) in enumerate(UNFIT):
        text += f'TK_OP(Unfit{i}, "{schema}");\nTK_KERNEL(Unfit{i}, CPU, Cpu);\n'
    library = inline("Mine", text, tmp_path)
    for i, (_, wanted) in enumerate(UNFIT):
        op = library.op(f"Unfit{i}")
        x = tf.ones(3, tf.int32 if "i32[" in str(op) else tf.float32)
        for call in (op, tf.function(lambda *x, op=op: op(*x))):
            with pytest.raises(tf.errors.InvalidArgumentError) as caught:
                call(*[x] * len(op.schema.inputs))
            message = str(caught.value)
            assert f"Mine>Unfit{i}: Bind() and the schema Unfit{i}{op.schema} disagree: " in message
            assert wanted in message


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"sources": "scale.cc"}, TypeError, "sources must be a list, got 'scale.cc'"),
        ({"sources": []}, ValueError, "library Scale has no sources"),
        ({"sources": ["scale.cc"], "extra_cflags": "-DX"}, TypeError, "extra_cflags must be a list"),
        ({"sources": ["scale.cc"], "cuda": "yes"}, ValueError, "cuda must be .* 'auto' or 'emulated', got 'yes'"),
        ({"sources": ["folder.cc"]}, custom_ops.BuildError, "cannot read the source .*folder.cc: Is a directory"),
    ],
)
def test_bad_arguments(tmp_path, monkeypatch, arguments, error, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.cc").mkdir()
    with pytest.raises(error, match=message):
        custom_ops.load("Scale", **arguments, cache_dir=tmp_path / "cache")


def test_an_inline_name_cannot_leave_the_cache(tmp_path):
    with pytest.raises(ValueError, match="name must be an identifier"):
        inline("../outside", SCALE, tmp_path)
    assert not list(tmp_path.rglob("*.cc"))
