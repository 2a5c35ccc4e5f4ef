"""What replaces a variable's value in a graph does so in the variable's own memory, unless somebody else uses that."""

import numpy as np
import pytest
import tensorflow as tf

from tftoolkit import custom_ops
from tftoolkit.custom_ops.engine import tf_host, variables
from tftoolkit.export.convert import decompose, library
from tftoolkit.export.saved_models import op_types

SIZE = 1 << 12


def _address(variable):
    return np.asarray(memoryview(variable.read_value())).ctypes.data


class _Step(tf.Module):
    """One weight with its moments, moved by the gradient 1."""

    def __init__(self, jit_compile=False):
        super().__init__()
        self.w, self.m, self.v = (tf.Variable(tf.fill([SIZE], value)) for value in (3.0, 0.0, 0.0))
        self.step = tf.function(self._step, autograph=False, jit_compile=jit_compile, input_signature=[])

    def _step(self):
        _moved(self.w, self.m, self.v)
        return tf.constant(0)


def _moved(*kept):
    w, m, v = ([variables.memory(variable, tf.constant(0))] for variable in kept)
    updated = custom_ops.adamw(True, 0.5, 1.0, w, m, v, [tf.ones([SIZE])])
    for variable, (value,) in zip(kept, updated, strict=True):
        variable.assign(value)
    return updated.new_w[0]


def test_a_graph_updates_variables_where_they_lie():
    it = _Step()
    places = [_address(variable) for variable in (it.w, it.m, it.v)]
    for _ in range(3):
        it.step()
        assert [_address(variable) for variable in (it.w, it.m, it.v)] == places
    assert np.all(it.w.numpy() < 2)  # it moved, too


def test_what_was_read_before_stays_as_it_was():
    it = _Step()
    for value in (3.0, 2.5):
        held = it.w.read_value()
        it.step()
        np.testing.assert_allclose(held, np.full(SIZE, value), rtol=1e-5)
        np.testing.assert_allclose(it.w, np.full(SIZE, value - 0.5), rtol=1e-1)
        it.m.assign(tf.zeros([SIZE])), it.v.assign(tf.zeros([SIZE]))


def test_what_the_step_itself_gives_stays_as_it_was():
    it = _Step()

    @tf.function(autograph=False)
    def step():
        before = it.w.read_value()
        return before, _moved(it.w, it.m, it.v)

    given = [step() for _ in range(3)]
    values = [float(one[0]) for pair in given for one in pair]
    assert values[0] == 3.0
    assert values[1] == pytest.approx(2.5, abs=1e-3)
    assert values[1:3] + values[3:5] == [values[1]] * 2 + [values[3]] * 2
    assert values[1] > values[3] > values[5]


def test_xla_and_sparse_reads_of_the_variable():
    plain, compiled, copying = _Step(), _Step(jit_compile=True), _Step()
    copying.w.scatter_nd_update([[0]], [3.0])  # from now on a read is a copy
    for _ in range(2):
        for it in (plain, compiled, copying):
            it.step()
    np.testing.assert_allclose(compiled.w, plain.w, rtol=1e-6)
    np.testing.assert_array_equal(copying.w, plain.w)


def test_a_variable_that_is_not_there():
    handle = tf.raw_ops.VarHandleOp(dtype=tf.float32, shape=[3], shared_name="nothing has this name")
    with pytest.raises(tf.errors.OpError, match="nothing has this name"):
        tf_host.plain_ops().tf_toolkit_variable_memory(handle, dtype=tf.float32)


def test_an_export_reads_the_variable(tmp_path):
    it = _Step()
    options = tf.saved_model.SaveOptions(namespace_whitelist=["TfToolkit"])
    tf.saved_model.save(it, tmp_path / "saved", signatures={"step": it.step}, options=options)
    assert decompose.VARIABLE_MEMORY in op_types(tmp_path / "saved")
    decompose.decompose(tmp_path / "saved", library.find)
    assert not [op_type for op_type in op_types(tmp_path / "saved") if ">" in op_type]
    again = tf.saved_model.load(tmp_path / "saved")
    again.step(), it.step()
    np.testing.assert_allclose(again.w, it.w, rtol=1e-6)
