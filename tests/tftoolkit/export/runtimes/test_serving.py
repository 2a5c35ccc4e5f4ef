"""The C++ examples that run an exported SavedModel without Python: built, and compared with TensorFlow in Python."""

import importlib.util
import subprocess
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from tftoolkit import custom_ops, export

FOLDER = Path(__file__).parents[4] / "docs/serving"
PACKAGE = importlib.util.find_spec("tensorflow").submodule_search_locations[0]
HEADERS = ["-std=c++17", "-O2", "-isystem", f"{PACKAGE}/include"]
LIBRARIES = [f"-L{PACKAGE}", "-l:libtensorflow_cc.so.2", "-l:libtensorflow_framework.so.2", f"-Wl,-rpath,{PACKAGE}"]


@pytest.fixture(scope="module")
def serve(tmp_path_factory):
    """Runs the program with an input; returns what it did."""
    program = tmp_path_factory.mktemp("serve") / "serve"
    strict = ["-Wall", "-Wextra", "-Werror"]
    subprocess.run(["g++", *HEADERS, *strict, FOLDER / "serve.cc", *LIBRARIES, "-o", program], check=True)

    def run(*arguments, values=b""):
        return subprocess.run([program, *map(str, arguments)], input=values, capture_output=True, check=False)

    return run


def export_model(folder, batch, **settings):
    """(folder, input tensor, output tensor) of a model with a custom op, which the export replaces."""
    gamma = tf.Variable(tf.linspace(0.5, 1.5, 8))
    weights = tf.Variable(tf.random.stateless_normal([8, 3], [1, 2]))
    module = tf.Module()
    module.weights = [gamma, weights]
    spec = tf.TensorSpec([batch, 8], tf.float32, "x")

    def call(x):
        return {"y": tf.nn.relu(custom_ops.rms_norm(x, gamma) @ weights)}

    export.saved_model(module, folder, signatures={"serving_default": (call, [spec])}, **settings)
    graph = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes()).meta_graphs[0]
    signature = graph.signature_def["serving_default"]
    return folder, signature.inputs["x"].name, signature.outputs["y"].name


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return export_model(tmp_path_factory.mktemp("model") / "exported", None)


@pytest.mark.slow
def test_computes_what_tensorflow_computes_in_python(serve, exported):
    folder, *names = exported
    x = np.random.default_rng(0).standard_normal([5, 8]).astype(np.float32)
    done = serve(folder, *names, 5, 8, values=x.tobytes())
    assert done.returncode == 0, done.stderr
    assert b"shape 5 3\n" in done.stderr
    expected = tf.saved_model.load(str(folder)).signatures["serving_default"](x=x)["y"]
    np.testing.assert_allclose(np.frombuffer(done.stdout, np.float32).reshape(5, 3), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_custom_ops_by_their_own_kernels(serve, tmp_path):
    """Registered by the library beside the model, in a program that knows nothing of Python."""
    folder, *names = export_model(tmp_path / "native", None, ops="native")
    x = np.random.default_rng(0).standard_normal([5, 8]).astype(np.float32)
    done = serve(folder, *names, 5, 8, values=x.tobytes())
    assert done.returncode == 1
    assert b"Op type not registered 'TfToolkit>RmsNorm'" in done.stderr
    done = serve("--library", tmp_path / "none.so", folder, *names, 5, 8, values=x.tobytes())
    assert done.returncode == 1
    assert b"none.so" in done.stderr
    done = serve("--library", folder / "assets.extra/register.so", folder, *names, 5, 8, values=x.tobytes())
    assert done.returncode == 0, done.stderr
    expected = tf.saved_model.load(str(folder)).signatures["serving_default"](x=x)["y"]  # registered here already
    np.testing.assert_allclose(np.frombuffer(done.stdout, np.float32).reshape(5, 3), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"folder": "nowhere"}, b"Could not find SavedModel"),
        ({"input": "serving_default_z:0"}, b"the model has no tensor serving_default_z:0"),
        ({"output": "StatefulPartitionedCall:7"}, b"the model has no tensor StatefulPartitionedCall:7"),
        ({"dims": (5, 9)}, b"standard input must hold 180 bytes"),
        ({"dims": (4, 10)}, b"serve: Incompatible shapes: [8] vs. [4,10]"),
    ],
)
def test_mistakes_are_told(serve, exported, change, said):
    folder, given, wanted = exported
    settings = {"folder": folder, "input": given, "output": wanted, "dims": (5, 8)} | change
    done = serve(settings["folder"], settings["input"], settings["output"], *settings["dims"], values=bytes(160))
    assert done.returncode == 1
    assert said in done.stderr, done.stderr


@pytest.mark.slow
def test_compiled_ahead_of_time_it_computes_the_same(tmp_path):
    folder, *_ = export_model(tmp_path / "exported", 5)
    compiler = Path(sysconfig.get_path("scripts")) / "saved_model_cli"
    options = ["--tag_set=serve", "--signature_def_key=serving_default", "--cpp_class=Model"]
    made = [compiler, "aot_compile_cpu", f"--dir={folder}", *options, f"--output_prefix={tmp_path / 'model'}"]
    subprocess.run(made, check=True, capture_output=True)
    runtime = Path(PACKAGE, "xla_aot_runtime_src/tensorflow/compiler/tf2xla").glob("*.cc")
    sources = [FOLDER / "ahead_of_time.cc", *tmp_path.glob("model*.o"), *runtime]
    program = tmp_path / "ahead_of_time"
    command = ["g++", "-w", *HEADERS, f"-I{tmp_path}", *sources, *LIBRARIES, "-o", program]  # -w: headers of TensorFlow
    subprocess.run(command, check=True)
    x = np.random.default_rng(0).standard_normal([5, 8]).astype(np.float32)
    done = subprocess.run([program], input=x.tobytes(), capture_output=True, check=True)
    expected = tf.saved_model.load(str(folder)).signatures["serving_default"](x=x)["y"]
    np.testing.assert_allclose(np.frombuffer(done.stdout, np.float32).reshape(5, 3), expected, rtol=1e-5, atol=1e-6)
    done = subprocess.run([program], input=bytes(4), capture_output=True, check=False)
    assert done.returncode == 1
    assert b"standard input must hold 40 float32 values" in done.stderr
