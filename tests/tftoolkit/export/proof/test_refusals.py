"""What must not be written, and wrong files that ``verify`` must recognise. Every test leaves the folder empty."""

import os
import resource
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tftoolkit import export

SPEC = tf.TensorSpec([None, 6], tf.float32, "x")


class Dense(tf.Module):
    def __init__(self, seed: int = 0):
        self.weight = tf.Variable(tf.random.Generator.from_seed(seed).normal([6, 4]))

    @tf.function(input_signature=[SPEC])
    def __call__(self, x):
        return {"y": tf.nn.relu(x @ self.weight)}


@pytest.fixture(scope="module")
def model():
    return Dense()


@pytest.fixture
def empty_folder(tmp_path):
    folder = tmp_path / "exports"
    folder.mkdir()
    yield folder
    assert os.listdir(folder) == []


def batches(count=200, size=6, name="x", dtype=np.float32):
    return [{name: np.random.default_rng(0).standard_normal([count, size]).astype(dtype)}]


# --- Arguments


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (export.saved_model, {"ops": "fuse"}, "ops must be 'decompose' or 'native', got 'fuse'"),
        (export.saved_model, {"aliases": ["f"]}, "aliases must be a dict"),
        (export.saved_model, {"aliases": {"a": "f"}, "signatures": {"g": (abs, [SPEC])}}, "'a' is to mean 'f'; .*'g'"),
        (
            export.saved_model,
            {"aliases": {"a": "g", "b": "g"}, "signatures": {"g": (abs, [SPEC])}},
            "one alias for each function",
        ),
        (export.tflite, {"quantize": "int4"}, "quantize must be None, one of 'float16', .* got 'int4'"),
        (export.tflite, {"quantize": "int8"}, "needs representative"),
        (export.tflite, {"max_drop": 0.1}, "max_drop needs a metric"),
        (export.tflite, {"signatures": {}}, "at least one entry"),
        (export.tflite, {"signatures": {"f": tf.function(lambda x: x)}}, r"signatures\['f'\].*no input_signature"),
        (export.tflite, {"signatures": {"f": lambda x: x}}, r"signatures\['f'\] is function; expected"),
        (export.tflite, {"signatures": {"": (lambda x: x, [SPEC])}}, "non-empty string"),
        (export.tflite, {"representative": 3}, "representative must be an iterable"),
        (export.tflite, {"representative": [np.zeros([1, 6])]}, "item 0: .* must be a dict .* x: float32"),
        (
            export.tflite,
            {"representative": batches(name="image")},
            r"item 0: .*\['image'\]; expected exactly x: float32",
        ),
        (export.tflite, {"representative": batches(size=5)}, r"shape \(200, 5\); expected x: float32\[None, 6\]"),
        (export.tflite, {"representative": batches(dtype=np.float64)}, "is float64; expected x: float32"),
        (export.tflite, {"representative": {"g": batches()}}, r"names signatures \['g'\]; the model has"),
        (export.tflite, {"quantize": "int8", "representative": batches(99)}, "99 examples .* at least 100"),
        (export.tflite, {"quantize": "int8", "representative": []}, "0 examples"),
    ],
)
def test_unusable_arguments(empty_folder, model, function, arguments, message):
    with pytest.raises(ValueError, match=message):
        function(model, empty_folder / "out", **arguments)


def test_models_that_are_none(empty_folder, tmp_path):
    with pytest.raises(ValueError, match="signatures is None and Module does not say what it accepts"):
        export.saved_model(tf.Module(), empty_folder / "out")
    with pytest.raises(FileNotFoundError, match=r"no saved_model\.pb"):
        export.tflite(tmp_path / "nothing", empty_folder / "out")
    with pytest.raises(ValueError, match="model is the class Dense; give an object"):
        export.tflite(Dense, empty_folder / "out")
    with pytest.raises(ValueError, match=r"model is None; expected a tf\.Module, a Keras model or"):
        export.tflite(None, empty_folder / "out")
    (tmp_path / "m.keras").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"is a Keras file: give the model, keras\.models\.load_model"):
        export.tflite(tmp_path / "m.keras", empty_folder / "out")
    (tmp_path / "m.tflite").write_bytes(b"1234TFL3")
    with pytest.raises(ValueError, match="is a file: give a model, or the folder"):
        export.onnx(tmp_path / "m.tflite", empty_folder / "out.onnx")
    with pytest.raises(ValueError, match="has its own"):
        export.tflite(tmp_path / "nothing", empty_folder / "out", signatures={"f": (abs, [SPEC])})
    tf.saved_model.save(tf.Module(), str(tmp_path / "bare"))
    with pytest.raises(export.ExportError, match="has no signature"):
        export.tflite(tmp_path / "bare", empty_folder / "out")
    (tmp_path / "bare" / "saved_model.pb").write_bytes(b"\xff" * 100)
    with pytest.raises(export.ExportError, match=r"saved_model\.pb is damaged"):
        export.tflite(tmp_path / "bare", empty_folder / "out")


# --- Stages that fail


def test_a_function_that_fails_while_traced(empty_folder):
    with pytest.raises(
        export.ExportError, match=r"(?s)trace failed at signature 'f': .*Dimensions must be equal"
    ) as error:
        export.tflite(tf.Module(), empty_folder / "out", signatures={"f": (lambda x: x @ tf.ones([5, 5]), [SPEC])})
    assert (error.value.stage, error.value.signature) == ("trace", "f")


@pytest.mark.parametrize(
    ("entry", "error", "message"),
    [
        ((Dense, [SPEC]), ValueError, "is the class Dense"),
        ((abs, [[None, 6]]), ValueError, r"spec 0 is \[None, 6\]; expected tf\.TensorSpec"),
        ((abs, 3), ValueError, "the specs are int"),
        ((abs, [tf.RaggedTensorSpec([None, None])]), ValueError, "spec 0 is RaggedTensorSpec"),
        ((tf.add, [SPEC, SPEC]), ValueError, "more than one input is named x"),
        ((lambda x: None, [SPEC]), export.ExportError, "returns NoneType as output 0"),
        ((lambda x: {"a": {"b": x}}, [SPEC]), export.ExportError, "returns dict as output 'a'"),
        ((lambda x: x * 2.0, [tf.TensorSpec(None, name="x")]), ValueError, "rank of input 'x' is unknown; give repres"),
        ((lambda x: tf.Variable(1.0) * x, [SPEC]), export.ExportError, "trace failed at signature 'f': .*Variable"),
    ],
)
def test_unusable_signatures(empty_folder, entry, error, message):
    with pytest.raises(error, match=message):
        export.tflite(tf.Module(), empty_folder / "out", signatures={"f": entry})


def test_an_optimizer_that_makes_its_slots_while_traced(tmp_path):
    """No mistake: slots start at zero wherever they are made."""
    import tf_keras

    model, optimizer = Dense(), tf_keras.optimizers.SGD(0.1, momentum=0.9)
    model.optimizer = optimizer

    def train(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(x @ model.weight))
        optimizer.apply_gradients(zip(tape.gradient(loss, [model.weight]), [model.weight], strict=True))
        return {"loss": loss}

    export.saved_model(model, tmp_path / "m", signatures={"train": (train, [SPEC])})


@pytest.mark.parametrize("exporter", [export.saved_model, export.tflite, export.onnx])
def test_a_full_disk(empty_folder, exporter):
    """The process's own limit on file sizes stands for it: a write fails in the middle, with a number of its own."""
    model = tf.Module()
    model.weight = tf.Variable(tf.random.Generator.from_seed(0).normal([512, 64]))
    signatures = {"f": (lambda x: x @ model.weight, [tf.TensorSpec([None, 512], tf.float32, "x")])}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (1_000, 100_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            with pytest.raises(export.ExportError, match=r"File too large") as error:
                exporter(model, empty_folder / "m.onnx", signatures=signatures)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert error.value.stage in ("trace", "decompose", "convert", "write")
        assert os.listdir(empty_folder) == []


@pytest.fixture
def small_disk(tmp_path):
    """A file system of so many kilobytes, by the kernel's own means."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = []

    def mount(kilobytes):
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", folder], capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for place in mounted:
        subprocess.run(["umount", place], check=True)


@pytest.mark.skipif(shutil.which("mount") is None, reason="there is no mount program")
@pytest.mark.parametrize("kilobytes", [8, 200])
@pytest.mark.parametrize("exporter", [export.saved_model, export.tflite, export.onnx])
def test_a_disk_that_is_really_full(small_disk, exporter, kilobytes):
    folder = small_disk(kilobytes)
    (folder / "m.onnx").write_text("precious")
    module = tf.Module()
    module.weight = tf.Variable(tf.random.Generator.from_seed(0).normal([512, 64]))  # 128 KiB, twice with the trace
    signatures = {"f": (lambda x: x @ module.weight, [tf.TensorSpec([None, 512], tf.float32, "x")])}
    with pytest.raises(export.ExportError, match=r"No space left on device") as error:
        exporter(module, folder / "m.onnx", signatures=signatures, overwrite=True)
    assert error.value.stage in ("trace", "decompose", "convert", "write")
    assert os.listdir(folder) == ["m.onnx"]
    assert (folder / "m.onnx").read_text() == "precious"


def test_ops_that_tflite_lacks_are_named(empty_folder):
    def function(x):
        return {
            "y": tf.linalg.svd(x, compute_uv=False) + tf.cast(tf.math.bincount(tf.cast(x, tf.int32))[0], tf.float32)
        }

    with pytest.raises(export.ExportError, match=r"convert failed: TFLite has no builtin op for .*Svd") as error:
        export.tflite(tf.Module(), empty_folder / "out", signatures={"f": (function, [SPEC])})
    assert error.value.__suppress_context__  # no dump of the whole program


def test_python_inside_a_saved_model(empty_folder):
    def function(x):
        return {"y": tf.numpy_function(np.sort, [x], tf.float32)}

    with pytest.raises(export.ExportError, match=r"structure failed: .*PyFunc.* this process only"):
        export.saved_model(tf.Module(), empty_folder / "out", signatures={"f": (function, [SPEC])})


def test_a_random_model(empty_folder):
    signatures = {"f": (lambda x: x + tf.random.normal([6]), [SPEC])}
    with pytest.raises(export.ExportError, match=r"parity failed at signature 'f', tensor 'output_0'.*random"):
        export.saved_model(tf.Module(), empty_folder / "out", signatures=signatures)


def test_metric_falls(empty_folder, model):
    values = iter([0.7, 0.9])  # the file first, then the golden model
    with pytest.raises(export.ExportError, match=r"metric failed: fell from 0\.9 to 0\.7; max_drop allows 0\.1"):
        export.tflite(model, empty_folder / "out", metric=lambda predict: next(values), max_drop=0.1)
    with pytest.raises(ValueError, match=r"\['z'\]; expected exactly x"):
        export.tflite(model, empty_folder / "out", metric=lambda predict: predict({"z": 1}))
    values = iter([float("nan"), 1.0])
    with pytest.raises(export.ExportError, match="fell from 1 to nan"):
        export.tflite(model, empty_folder / "out", metric=lambda predict: next(values), max_drop=0.1)


def test_int8_too_coarse(empty_folder):
    """Outputs spread over nine decades: one int8 scale keeps the largest only. max_drop sees what a bound cannot."""
    model = Dense()
    model.weight.assign(tf.eye(6, 4) * tf.constant([1e6, 1e-1, 1e-2, 1e-3]))
    data = batches()[0]["x"]

    def ranking(predict):
        return float(np.mean(predict({"x": data})["y"][:, 3] > 0))

    with pytest.raises(export.ExportError, match="metric failed"):
        export.tflite(
            model, empty_folder / "out", quantize="int8", representative=batches(), metric=ranking, max_drop=0.05
        )


def test_no_folder_can_be_made(tmp_path, model):
    (tmp_path / "full").write_text("a file, not a folder")
    with pytest.raises(OSError, match="full"):
        export.tflite(model, tmp_path / "full" / "out")


# --- Wrong files


@pytest.fixture(scope="module")
def good(tmp_path_factory, model):
    path = tmp_path_factory.mktemp("good") / "m.tflite"
    export.tflite(model, path)
    return path.read_bytes()


def refused(tmp_path: Path, content: bytes, golden, message: str, **arguments) -> None:
    path = tmp_path / "planted.tflite"
    path.write_bytes(content)
    with pytest.raises(export.ExportError, match=message):
        export.verify(path, golden=golden, **arguments)


def test_the_good_file_passes(tmp_path, model, good):
    (tmp_path / "m.tflite").write_bytes(good)
    assert export.verify(tmp_path / "m.tflite", golden=model).rows[0].worst.error < 1e-5
    with pytest.raises(ValueError, match="give golden"):
        export.verify(tmp_path / "m.tflite", metric=lambda predict: 1.0, max_drop=0.1)
    with pytest.raises(FileNotFoundError, match=r"none\.tflite"):
        export.verify(tmp_path / "none.tflite", golden=model)


def test_another_model_of_the_same_shape(tmp_path, good):
    refused(tmp_path, good, Dense(seed=1), "parity failed at signature 'serving_default', tensor 'y'")


@pytest.mark.parametrize("element", [0, 11, 23])
def test_one_weight_changed_by_a_thousandth(tmp_path, model, good, element):
    weight = model.weight.numpy().T.ravel()[element]  # TFLite stores dense kernels transposed
    stored = struct.pack("<f", weight)
    assert good.count(stored) == 1
    refused(tmp_path, good.replace(stored, struct.pack("<f", weight * 1.001)), model, "parity failed")


def test_damaged_files(tmp_path, model, good):
    refused(tmp_path, b"", model, "structure failed: .* is not a TFLite file")
    refused(tmp_path, good[:100], model, "structure failed")
    refused(tmp_path, good[: len(good) // 2], model, "structure failed")
    rng = np.random.default_rng(0)
    refused(tmp_path, good[:8] + rng.bytes(len(good) - 8), model, "structure failed")


def test_other_signatures_inputs_and_types(tmp_path, good):
    def golden(**signatures):
        export.saved_model(tf.Module(), tmp_path / "golden", signatures=signatures, overwrite=True)
        return tmp_path / "golden"

    def f(x):
        return {"y": x[:, :4]}

    refused(tmp_path, good, golden(other=(f, [SPEC])), r"file has signatures \['serving_default'\]")
    spec = tf.TensorSpec([None, 6], tf.float32, "image")
    refused(tmp_path, good, golden(serving_default=(lambda image: f(image), [spec])), r"inputs are \['x'\]")
    renamed = (lambda x: {"z": f(x)["y"]}, [SPEC])
    refused(tmp_path, good, golden(serving_default=renamed), r"outputs are \['y'\]; the model has \['z'\]")
    wider = (f, [tf.TensorSpec([None, 7], tf.float32, "x")])
    refused(tmp_path, good, golden(serving_default=wider), r"tensor 'x': is x: float32\[None, 6\]; the model has")
    integer = (f, [tf.TensorSpec([None, 6], tf.int32, "x")])
    refused(tmp_path, good, golden(serving_default=integer), "the model has x: int32")


def test_int8_files(tmp_path, model):
    export.tflite(model, tmp_path / "m.tflite", quantize="int8", representative=batches())
    content = (tmp_path / "m.tflite").read_bytes()
    with pytest.raises(ValueError, match="an int8 file is proven on real inputs"):
        export.verify(tmp_path / "m.tflite", golden=model)
    refused(tmp_path, content, Dense(seed=1), "parity failed.*int8 allows", representative=batches())
    scaled = {"x": batches()[0]["x"] * 20}
    refused(tmp_path, content, model, "parity failed", representative=[scaled])  # outside the calibrated range


def test_a_format_without_a_bound(tmp_path, model):
    """2-bit weights: ai-edge-quantizer writes them, and how far off they may be has not been derived."""
    from ai_edge_quantizer import recipe

    wide = tf.Module()
    wide.weight = tf.Variable(tf.random.Generator.from_seed(0).normal([64, 64]))
    specs = [tf.TensorSpec([None, 64], tf.float32, "x")]
    signatures = {"f": (lambda x: {"y": x @ wide.weight}, specs)}
    with pytest.raises(export.ExportError, match=r"structure failed.*int2.*no bound"):
        export.tflite(wide, tmp_path / "m.tflite", signatures=signatures, quantize=recipe.dynamic_wi2c_afp32())
    assert os.listdir(tmp_path) == []
