"""Custom ops in a .tflite file, run by their own kernels through the external delegate."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from tftoolkit import custom_ops, export
from tftoolkit.custom_ops.rms_norm import rms_norm
from tftoolkit.export.runtimes import delegate

GRAMMAR = Path(__file__).parents[3] / "custom_ops/engine/grammar.cc"


LISTS = """
#include "tftoolkit/op.h"
static ffi::Error Numbers(ffi::Buffer<ffi::F32> x, ffi::ResultBuffer<ffi::F32> y, ffi::Span<const double> doubles,
                          ffi::Span<const int32_t> ints, std::string_view names) {
  float* out = y->typed_data();
  out[0] = x.typed_data()[0];
  out[1] = static_cast<float>((doubles[0] - 0.1) * 0x1p50);
  out[2] = static_cast<float>(ints[0] + ints[1] + ints[2]);
  out[3] = 0;
  for (char c : names) out[3] = 3 * out[3] + (c ? c : 1);
  return ffi::Error::Success();
}
XLA_FFI_DEFINE_HANDLER(NumbersCpu, Numbers,
                       ffi::Ffi::Bind().Arg<ffi::Buffer<ffi::F32>>().Ret<ffi::Buffer<ffi::F32>>()
                           .Attr<ffi::Span<const double>>("doubles").Attr<ffi::Span<const int32_t>>("ints")
                           .Attr<std::string_view>("names"));
TK_OP(Numbers, "(x: f32[], *, doubles: f64[], ints: i32[], names: str[]) -> (y: f32[4])");
TK_KERNEL(Numbers, CPU, NumbersCpu);
"""


class Normalized(tf.Module):
    """Two custom ops in a row, whose middle tensor nobody else needs, between builtin ones."""

    def __init__(self):
        random = tf.random.Generator.from_seed(0)
        self.w = tf.Variable(random.normal([8, 4]))
        self.gamma = tf.Variable(random.normal([8]))

    @tf.function(input_signature=[tf.TensorSpec([3, 8], tf.float32, "x")])
    def __call__(self, x):
        normal = rms_norm(rms_norm(tf.tanh(x), self.gamma, epsilon=1e-3), self.gamma)
        return {"y": tf.nn.relu(normal @ self.w), "normal": normal}


@pytest.fixture(scope="module")
def grammar():
    return custom_ops.load("Grammar", [GRAMMAR])


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    path = tmp_path_factory.mktemp("native") / "model.tflite"
    model = Normalized()
    report = export.tflite(model, path, ops="native")
    return model, path, report


def assert_proven(report):
    checks = [check for check in report.rows[0].checks if check.bound is not None]
    assert len({check.inputs for check in checks}) > 1
    assert all(check.error <= check.bound for check in checks)


def test_it_computes_what_the_model_does_in_the_ops_own_kernels(exported):
    model, path, report = exported
    assert_proven(report)
    content = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    assert [code.customCode for code in content.operatorCodes if code.customCode] == [b"TfToolkit>RmsNorm"]
    x = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    runner = Interpreter(str(path), experimental_delegates=[export.load_delegate(path)]).get_signature_runner()
    found, expected = runner(x=x), model(x)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-5)
    with pytest.raises((RuntimeError, ValueError), match=r"RmsNorm"):
        Interpreter(str(path)).allocate_tensors()


def test_it_is_proven_again_only_where_native_code_is_trusted(exported, tmp_path):
    _, path, _ = exported
    for item in path.parent.iterdir():
        (shutil.copytree if item.is_dir() else shutil.copyfile)(item, tmp_path / item.name)
    copy = tmp_path / path.name
    with pytest.raises(ValueError, match=r"native code .*model\.tflite\.delegate; if .* trust it: native=True"):
        export.verify(copy)
    assert_proven(export.verify(copy, native=True))
    library = next(delegate.folder_of(copy).glob("rms_norm*"))
    content = library.read_bytes()
    library.unlink()  # this process has it open: written in place, it would lose what the linker wrote into its pages
    library.write_bytes(content + b"\0")
    with pytest.raises(export.ExportError, match=r"golden.*another delegate"):
        export.verify(copy, native=True)


@pytest.mark.slow
def test_everything_that_a_schema_can_say(grammar, tmp_path):
    """Lists, optional inputs, every type of attribute, an output in place of an input, several dtypes."""
    inline = custom_ops.load_inline("Inline", LISTS)

    def everything(x, ids):
        ys = grammar.scaled(tf.reduce_sum(x), [x, x[:1]], [tf.constant([1.0, 2, 3, 4]), tf.constant([4.0, 3, 2, 1])])
        total = grammar.accumulate(tf.abs(x), ys[0])
        return {
            "blend": grammar.blend(x, ys[0], t=0.25),
            "pad": grammar.pad(x, left=1, right=2),
            "affine": grammar.affine(x, None, tf.constant([1.0, 0, -1, 2])),
            "total": total,
            "second": ys[1],
            "lists": inline.numbers(x[0, 0], ints=[5, -7, 2**24], doubles=[0.1 + 2**-50], names=["a", "", "cde"]),
            "rows": grammar.lookup(x, ids),
        }

    specs = [tf.TensorSpec([2, 4], tf.float32, "x"), tf.TensorSpec([3], tf.int64, "ids")]
    model = tf.Module()
    report = export.tflite(
        model,
        tmp_path / "all.tflite",
        signatures={"serving_default": (everything, specs)},
        ops="native",
        representative=[{"x": np.float32([[1, 2, 3, 4], [-1, 0, 0.5, 9]]), "ids": np.int64([1, 0, 1])}],
    )
    assert len({check.tensor for check in report.rows[0].checks}) == 7
    path = tmp_path / "all.tflite"
    runner = Interpreter(str(path), experimental_delegates=[export.load_delegate(path)]).get_signature_runner()
    with pytest.raises(RuntimeError, match=r"id 9 is not in the table \[tftoolkit: docs/errors\.md#op-input\]"):
        runner(x=np.ones((2, 4), np.float32), ids=np.int64([1, 9, 0]))


def test_what_cannot_be_exported_leaves_nothing(exported, grammar, tmp_path):
    model, _, _ = exported
    flags = {"f": (lambda x: grammar.lists(x), [tf.TensorSpec([], tf.float32, "x")])}
    free = {"f": (lambda x: rms_norm(x, model.gamma), [tf.TensorSpec([None, 8], tf.float32, "x")])}
    cases = [
        ({"quantize": "int8", "representative": [{"x": np.zeros((3, 8), np.float32)}]}, ValueError, "quantize=None"),
        ({"ops": "both"}, ValueError, "'decompose' or 'native'"),
        ({"signatures": flags}, export.ExportError, r"converter loses the bool\[\] attribute flags of Lists"),
        ({"signatures": free}, export.ExportError, r"convert.*fixed shapes.*TensorSpec\(\[1"),
    ]
    for arguments, error, message in cases:
        with pytest.raises(error, match=message):
            export.tflite(model, tmp_path / "no.tflite", **({"ops": "native"} | arguments))
    assert not list(tmp_path.iterdir())


def test_a_decomposed_file_in_its_place_leaves_no_delegate(exported, tmp_path):
    model, _, _ = exported
    for ops in ("native", "decompose"):
        export.tflite(model, tmp_path / "m.tflite", ops=ops, overwrite=True)
        assert delegate.folder_of(tmp_path / "m.tflite").is_dir() == (ops == "native")
    export.verify(tmp_path / "m.tflite")


def _damaged(path, tmp_path, change):
    """The file with the options of its custom ops changed."""
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    for op in model.subgraphs[0].operators:
        if model.operatorCodes[op.opcodeIndex].customCode:
            op.customOptions = np.frombuffer(change(bytes(op.customOptions)), np.uint8)
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    damaged = tmp_path / path.name
    damaged.write_bytes(bytes(builder.Output()))
    shutil.copytree(delegate.folder_of(path), delegate.folder_of(damaged), dirs_exist_ok=True)
    return damaged


OPEN = """
import sys
from pathlib import Path
from ai_edge_litert.interpreter import Interpreter
from tftoolkit.export.runtimes import delegate
import numpy as np
path = Path(sys.argv[1])
try:
    interpreter = Interpreter(str(path), experimental_delegates=[delegate.load(path)])
    if len(sys.argv) > 2:
        interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], [5, 8])
    interpreter.allocate_tensors()
    interpreter.invoke()
    print("ran")
except Exception as error:
    print(f"{type(error).__name__}: {error}")
"""


def _opened(path, *arguments):
    done = subprocess.run([sys.executable, "-c", OPEN, path, *arguments], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def test_damaged_options_and_other_shapes_are_errors_not_crashes(exported, tmp_path):
    _, path, _ = exported
    random = np.random.default_rng(0)
    assert "ran" in _opened(path)
    assert "not of the shape that the file was exported for" in _opened(path, "resized")
    size = len(bytes(_options_of(path)))
    cut = [lambda data, end=end: data[:end] for end in (0, 7, size // 2, size - 1)]
    huge = [lambda data, i=i: data[:i] + b"\xff" * 8 + data[i + 8 :] for i in (0, 8, 16)]
    for i, change in enumerate([*cut, *huge, lambda data: random.bytes(len(data))]):
        folder = tmp_path / str(i)
        folder.mkdir()
        output = _opened(_damaged(path, folder, change))
        assert "not those of a file for this delegate" in output, (i, output)


def _options_of(path):
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    return next(
        op.customOptions for op in model.subgraphs[0].operators if model.operatorCodes[op.opcodeIndex].customCode
    )


def test_a_damaged_delegate_folder_is_told(exported, tmp_path):
    _, path, _ = exported
    copy = tmp_path / path.name
    shutil.copyfile(path, copy)
    folder = delegate.folder_of(copy)
    shutil.copytree(delegate.folder_of(path), folder)
    description = json.loads((folder / "delegate.json").read_text())
    for change in ({"libraries": {"TfToolkit": ["gone.so"]}}, {"delegate": "gone.so"}, {"libraries": 3}):
        (folder / "delegate.json").write_text(json.dumps(description | change))
        with pytest.raises(export.ExportError, match=r"cannot load the delegate in model\.tflite\.delegate"):
            delegate.load(copy)
