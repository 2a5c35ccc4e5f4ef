"""A crash of the converter ends a child process: the caller gets an ExportError and goes on."""

import operator
import os
import pickle
import signal
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

from tftoolkit import export
from tftoolkit.export.runtimes import worker

SPEC = tf.TensorSpec([2, 4], tf.float32, "x")


def real(count, shape):
    rng = np.random.default_rng(0)
    return [{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(count)]


@pytest.fixture(scope="module", autouse=True)
def own_child():
    """In place of the one that converts for all tests: what is killed here would have to import TensorFlow again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "_child", None)
        yield
        worker._forget()


@pytest.mark.slow
def test_a_model_on_which_tensorflows_calibrator_crashes(tmp_path):
    layers = [keras.Input([6, 8], batch_size=2, name="x"), keras.layers.LSTM(4)]
    with pytest.raises(export.ExportError, match=r"convert failed: .* SIGSEGV in _feed_tensors \(calibrator.py\)"):
        export.tflite(
            keras.Sequential(layers), tmp_path / "m.tflite", quantize="int8", representative=real(50, [2, 6, 8])
        )
    assert os.listdir(tmp_path) == []
    # The process lives, and converts other models.
    export.tflite(tf.Module(), tmp_path / "m.tflite", signatures={"f": (tf.nn.relu, [SPEC])})


@pytest.mark.slow
def test_a_file_that_ends_the_process_that_opens_it(tmp_path):
    """int8 of a ReLU that is zero for all inputs: the calibrated range is empty, and LiteRT aborts."""
    real = [{"x": -np.full([2, 4], 10, np.float32), "y": -np.ones([2, 4], np.float32)}] * 50
    signatures = {"f": (lambda x, y: tf.nn.relu(x + y), [SPEC, tf.TensorSpec([2, 4], tf.float32, "y")])}
    with pytest.raises(export.ExportError, match=r"structure failed: .*SIGABRT in allocate_tensors \(interpreter.py\)"):
        export.tflite(tf.Module(), tmp_path / "m", signatures=signatures, quantize="int8", representative=real)
    assert os.listdir(tmp_path) == []


def test_values_and_errors_come_back():
    assert worker.call(operator.mul, 2, 3) == 6
    with pytest.raises(ZeroDivisionError):
        worker.call(operator.truediv, 1, 0)
    error = pickle.loads(pickle.dumps(export.ExportError("convert", "no", signature="s", tensor="t")))
    assert error.plain == "convert failed at signature 's', tensor 't': no"
    assert (error.stage, error.reason, error.signature, error.tensor) == ("convert", "no", "s", "t")


@pytest.mark.parametrize(
    ("name", "message"),
    [("SIGKILL", "memory ran out"), ("SIGABRT", "a bug in the converter"), ("SIGTERM", "it said nothing")],
)
def test_every_death_is_explained(name, message):
    pid = worker.call(os.getpid)
    with pytest.raises(export.ExportError, match=f"ended its process with {name}.*{message}"):
        worker.call(signal.raise_signal, getattr(signal, name))
    assert worker.call(os.getpid) != pid


def test_what_a_function_prints_is_no_answer():
    assert worker.call(print, "noise") is None
    assert worker.call(os.write, 1, b"noise") == 5


def test_an_answer_that_is_interrupted_is_not_given_to_the_next_request(monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    worker.call(operator.mul, 2, 1)
    with monkeypatch.context() as patched:
        patched.setattr(worker.pickle, "load", interrupted)
        with pytest.raises(KeyboardInterrupt):
            worker.call(operator.mul, 2, 2)
    assert worker.call(operator.mul, 2, 3) == 6


def test_a_child_without_work_ends_and_another_takes_its_place(monkeypatch):
    worker._forget()
    with monkeypatch.context() as patched:
        patched.setattr(worker, "IDLE", 0.1)
        worker.call(operator.mul, 2, 3)
    child = worker._child
    assert child.process.wait() == worker.GONE
    # The request finds out only after it was sent, as if the child had ended between the look at it and the request.
    monkeypatch.setattr(child.process, "poll", iter([None, worker.GONE]).__next__)
    assert worker.call(operator.mul, 2, 3) == 6
    assert worker._child is not child


def test_an_exit_is_told():
    with pytest.raises(export.ExportError, match="ended its process with exit status 7: it said nothing"):
        worker.call(os._exit, 7)


def test_requests_of_several_threads_wait_for_each_other():
    found = {}
    threads = [
        threading.Thread(target=lambda i=i: found.update({i: worker.call(operator.mul, 2, i)})) for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: 2 * i for i in range(8)}


def test_a_forked_process_has_a_child_of_its_own():
    pid = worker.call(os.getpid)
    read, write = os.pipe()
    forked = os.fork()
    if not forked:
        try:
            os.write(write, str(worker.call(os.getpid)).encode())
        finally:
            worker._forget()
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as answer:
        assert int(answer.read()) not in (pid, 0)
    os.waitpid(forked, 0)
    assert worker.call(os.getpid) == pid
