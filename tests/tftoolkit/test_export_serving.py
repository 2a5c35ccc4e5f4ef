"""The C++ example that runs an exported SavedModel without Python: built and compared with the stored outputs."""

import importlib.util
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from tftoolkit import custom_ops, export

SOURCE = Path(__file__).parents[2] / "docs/serving/serve.cc"


@pytest.fixture(scope="module")
def serve(tmp_path_factory):
    """Runs the program with an input; returns what it did."""
    program = tmp_path_factory.mktemp("serve") / "serve"
    package = importlib.util.find_spec("tensorflow").submodule_search_locations[0]
    flags = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-isystem", f"{package}/include"]
    libraries = [f"-L{package}", "-l:libtensorflow_cc.so.2", "-l:libtensorflow_framework.so.2", f"-Wl,-rpath,{package}"]
    subprocess.run(["g++", *flags, SOURCE, *libraries, "-o", program], check=True)

    def run(*arguments, values=b""):
        return subprocess.run([program, *map(str, arguments)], input=values, capture_output=True, check=False)

    return run


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(folder, input tensor, output tensor) of a model with a custom op, which the export replaces."""
    folder = tmp_path_factory.mktemp("model") / "exported"
    gamma = tf.Variable(tf.linspace(0.5, 1.5, 8))
    weights = tf.Variable(tf.random.stateless_normal([8, 3], [1, 2]))
    module = tf.Module()
    module.weights = [gamma, weights]
    spec = tf.TensorSpec([None, 8], tf.float32, "x")

    def call(x):
        return {"y": tf.nn.relu(custom_ops.rms_norm(x, gamma) @ weights)}

    export.saved_model(module, folder, signatures={"serving_default": (call, [spec])})
    graph = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes()).meta_graphs[0]
    signature = graph.signature_def["serving_default"]
    return folder, signature.inputs["x"].name, signature.outputs["y"].name


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
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"folder": "nowhere"}, b"Could not find SavedModel"),
        ({"input": "serving_default_z:0"}, b"the model has no tensor serving_default_z:0"),
        ({"output": "StatefulPartitionedCall:7"}, b"the model has no tensor StatefulPartitionedCall:7"),
        ({"dims": (5, 9)}, b"standard input must hold 180 bytes"),
        ({"dims": (4, 10)}, b"INVALID_ARGUMENT|Matrix|shape|must be"),
    ],
)
def test_mistakes_are_told(serve, exported, change, said):
    folder, given, wanted = exported
    settings = {"folder": folder, "input": given, "output": wanted, "dims": (5, 8)} | change
    done = serve(settings["folder"], settings["input"], settings["output"], *settings["dims"], values=bytes(160))
    assert done.returncode == 1
    assert any(part in done.stderr for part in said.split(b"|")), done.stderr
