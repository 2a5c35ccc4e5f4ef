"""What a schema can say, run for real: lists, optional inputs, computed dimensions, updates in place."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tftoolkit import custom_ops
from tftoolkit.custom_ops.engine import shapes
from tftoolkit.custom_ops.opcheck import CHECKS

MODES = {"eager": lambda f: f, "graph": tf.function, "xla": lambda f: tf.function(f, jit_compile=True)}
MODE = pytest.mark.parametrize("mode", MODES.values(), ids=MODES)


@pytest.fixture(scope="module")
def library():
    return custom_ops.load("Grammar", [Path(__file__).parent / "grammar.cc"])


@MODE
def test_lists(library, mode):
    xs = [np.ones((2, 3), np.float32), np.full(4, 2, np.float32), np.zeros((0, 1), np.float32)]
    weights = [np.float32([1, 2, 3]), np.float32([1, 0, 1, 0]), np.float32([5])]
    ys = mode(lambda scale: library.scaled(scale, xs, weights))(tf.constant(10.0))
    assert isinstance(ys, list)
    for y, x, weight in zip(ys, xs, weights, strict=True):
        np.testing.assert_array_equal(y, 10 * x * weight)


SEVERAL_LISTS = """
// Both lists grow in place; between them stands how many elements there are.
static ffi::Error Grow(ffi::RemainingArgs, ffi::RemainingRets outputs) {
  const size_t n = (outputs.size() - 1) / 2;
  float* count = static_cast<float*>((*outputs.get<ffi::AnyBuffer>(0))->untyped_data());
  *count = 0;
  for (size_t i = 0; i < 2 * n; ++i) {
    auto output = *outputs.get<ffi::AnyBuffer>(1 + i);
    float* data = static_cast<float*>(output->untyped_data());
    for (size_t j = 0; j < output->element_count(); ++j) data[j] += i < n ? 1 : 2;
    *count += output->element_count();
  }
  return ffi::Error::Success();
}
XLA_FFI_DEFINE_HANDLER(Cpu, Grow, ffi::Ffi::Bind().RemainingArgs().RemainingRets());
TK_OP(Grow, "(*xs: f32[...], *ys: f32[...]) -> (count: f32[], *new_xs: f32[...] = xs, *new_ys: f32[...] = ys)");
TK_KERNEL(Grow, CPU, Cpu);
"""


@MODE
def test_several_outputs_of_which_some_are_lists(mode):
    several = custom_ops.load_inline("Several", SEVERAL_LISTS)
    xs, ys = ([tf.zeros([2, 3]), tf.zeros([])] for _ in range(2))
    found = mode(lambda: several.grow(xs, ys))()
    assert found.count == 14
    for new, old, added in ((found.new_xs, xs, 1), (found.new_ys, ys, 2)):
        for one, before in zip(new, old, strict=True):
            np.testing.assert_array_equal(one, before + added)
    assert several.grow([[0.0]], [[0.0]]).new_ys[0].numpy() == [2]  # neither tensors nor arrays


def test_lists_are_checked(library):
    one = tf.ones([2, 3])
    with pytest.raises(ValueError, match="all lists must have the same length, but xs has 2, weights has 1"):
        library.scaled(1.0, [one, one], [tf.ones(3)])
    with pytest.raises(TypeError, match="xs must be a list of one or more tensors"):
        library.scaled(1.0, [], [])
    with pytest.raises(
        tf.errors.InvalidArgumentError, match=r"weights has shape .* its dimension d must be 3 as in xs"
    ):
        library.scaled(1.0, [one, one], [tf.ones(3), tf.ones(4)])


def test_each_place_of_a_list_has_its_own_dimensions(library):
    schema = library.scaled.schema
    assert shapes.output_shapes(schema, [(), [(2, 3), (4,)], [(3,), (4,)]], {}) == [[(2, 3), (4,)]]
    with pytest.raises(ValueError, match=r"weights has shape \[3\], but its dimension d must be 4 as in xs"):
        shapes.output_shapes(schema, [(), [(2, 3), (4,)], [(3,), (3,)]], {})


def test_vectorized_map_where_one_input_is_shared(library):
    x, y = tf.reshape(tf.range(12.0), [3, 4]), tf.constant([1.0, 2.0, 3.0, 4.0])
    z = tf.vectorized_map(lambda row: library.blend(row, y, t=0.25), x)
    np.testing.assert_array_equal(z, x + 0.25 * (y - x))


@pytest.fixture(scope="module")
def roll(library):
    @library.roll.gradient
    def _(op, dy):
        return library.roll(dy, shift=-op.get_attr("shift") % 3, axis=op.get_attr("axis"))

    return library.roll


@pytest.mark.parametrize("axis", [0, 1])
def test_o3_an_op_of_any_rank_is_not_called_on_stacked_inputs_unless_it_says_so(roll, axis):
    """Jacobians and mapped calls were wrong, without a word, since ``...`` was taken for permission."""
    x = tf.reshape(tf.range(9.0), [3, 3]) ** 2
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = roll(x * x, shift=1, axis=axis)
    np.testing.assert_array_equal(y, np.roll(x * x, 1, axis))
    expected = np.zeros((3, 3, 3, 3), np.float32)
    for i, j in np.ndindex(3, 3):
        source = ((i - 1) % 3, j) if axis == 0 else (i, (j - 1) % 3)
        expected[(i, j, *source)] = 2 * x[source]
    np.testing.assert_array_equal(tape.jacobian(y, x), expected)
    mapped = tf.vectorized_map(lambda one: roll(one, shift=1, axis=axis), tf.stack([x, x + 1]))
    np.testing.assert_array_equal(mapped, np.roll(np.stack([x, x + 1]), 1, axis + 1))


def test_o3_a_batchable_op_is_called_once(library):
    """Counted by an op that sees how often it is called; with optional inputs, shared ones, and in place."""
    x, bias = tf.reshape(tf.range(6.0), [2, 3]), tf.constant([10.0, 20.0, 30.0])
    found = tf.vectorized_map(lambda row: library.affine(row, bias=bias), x)
    np.testing.assert_array_equal(found, x + bias)
    np.testing.assert_array_equal(tf.vectorized_map(library.affine, x), x)
    own = tf.vectorized_map(lambda pair: library.affine(pair[0], bias=pair[1]), (x, tf.stack([bias, -bias])))
    np.testing.assert_array_equal(own, x + tf.stack([bias, -bias]))  # a loop: the bias has no `...`
    total = tf.vectorized_map(lambda row: library.accumulate(bias, row), x)
    np.testing.assert_array_equal(total, x + bias)
    once = tf.vectorized_map(library.tick, tf.zeros([5, 2])).numpy()
    assert len(set(once.flatten())) == 1
    each = tf.vectorized_map(lambda row: library.tick(bias) + 0 * row[0], x).numpy()
    assert each[1, 0] == each[0, 0] + 1, "what depends on nothing stacked runs once for each element"


@MODE
def test_o5_a_stateful_op_is_neither_folded_nor_merged_nor_dropped(library, mode):
    """A counter gave 4, 4, 4 (folded), [5, 5] (merged), and nothing when its result was not used (dropped)."""
    tick = mode(lambda: library.tick(0.0))
    first, second, third = (tick().numpy() for _ in range(3))
    assert (second, third) == (first + 1, first + 2)
    one, two = mode(lambda: (library.tick(0.0), library.tick(0.0)))()
    assert abs(two.numpy() - one.numpy()) == 1

    def unused():
        library.tick(0.0)
        library.tick(tf.zeros([0]))  # nothing to write, yet it must run
        return tf.constant(1.0)

    before = library.tick(0.0).numpy()
    mode(unused)()
    assert library.tick(0.0).numpy() == before + 3


def test_o5_a_stateful_op_in_a_loop_and_behind_a_condition(library):
    @tf.function
    def run(n):
        for _ in tf.range(n):
            library.tick(0.0)
        if n > 100:
            library.tick(0.0)
        return library.tick(0.0)

    before = run(0).numpy()
    assert run(5).numpy() == before + 6


@MODE
def test_o10_a_gradient_written_the_natural_way_works_behind_a_gather(library, mode):
    """It was handed IndexedSlices, which cannot be multiplied."""
    seen = []

    def natural(op, dy):
        seen.append(type(dy))
        t = op.get_attr("t")
        return dy * (1 - t), dy * t

    x, y = tf.reshape(tf.range(12.0), [4, 3]), tf.ones([4, 3])

    def gradients(x, y):
        with tf.GradientTape() as tape:
            tape.watch([x, y])
            z = library.blend(x, y, t=0.25)
            picked = tf.gather(z, [[3, 0], [3, 3]])
            total = tf.reduce_sum(picked**2) + tf.reduce_sum(tf.gather(tf.gather(z, [1, 2]), [0])) + tf.reduce_sum(z)
        return tape.gradient(total, [x, y])

    library.blend.gradient(natural)
    z = 0.75 * x + 0.25 * y
    dz = 1 + tf.constant([1.0, 0, 0, 3])[:, None] * 2 * z + tf.constant([0.0, 1, 0, 0])[:, None]
    for found, expected in zip(mode(gradients)(x, y), (0.75 * dz, 0.25 * dz), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    unknown = tf.function(gradients, input_signature=[tf.TensorSpec(None)] * 2)  # not even the rank is known
    np.testing.assert_allclose(unknown(x, y)[0], 0.75 * dz, rtol=1e-6)
    assert tf.IndexedSlices not in seen
    library.blend.gradient(sparse=True)(lambda op, dy: (seen.append(type(dy)), (tf.convert_to_tensor(dy), None))[1])
    with tf.GradientTape() as tape:
        tape.watch(x)
        picked = tf.gather(library.blend(x, y), [0, 0])
    np.testing.assert_array_equal(tape.gradient(picked, x), [[2.0] * 3] + [[0.0] * 3] * 3)
    assert seen[-1] is tf.IndexedSlices, "who asks for them gets them"


def test_o4_a_newer_gradient_takes_the_place_of_an_older_one(library, caplog):
    """It was refused, and a wrong gradient stayed until Python ended."""
    op, x = library.pad, tf.ones([3])

    def slope():
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = op(x, left=1)
        return tape.gradient(y, x).numpy().tolist()

    @op.gradient
    def wrong(node, dy):
        return dy[1:] * 7

    assert slope() == [7, 7, 7]
    with caplog.at_level("WARNING", logger="absl"):
        op.gradient(wrong)  # the same again, as when a cell is run twice with nothing changed
        assert caplog.text == ""
        op.gradient(lambda node, dy: dy[1:])
        assert slope() == [1, 1, 1]
        op.reference(lambda x, *, left, right: tf.pad(x, [[left, right]]) * 2)
        op.differentiate_reference()
        assert op.differentiates_reference
        assert slope() == [2, 2, 2]
        op.gradient(lambda node, dy: dy[1:] * 3)  # its own again: JAX takes it
        assert not op.differentiates_reference
        assert slope() == [3, 3, 3]
    assert len(caplog.records) == 3
    assert "Grammar>Pad has a new gradient" in caplog.text


@MODE
def test_computed_dimensions(library, mode):
    x = tf.ones([2, 3])
    y = mode(lambda x: library.pad(x, left=1, right=2))(x)
    np.testing.assert_array_equal(y, np.pad(x, [(0, 0), (1, 2)]))
    assert mode(lambda x: library.windows(x, size=3, stride=2))(tf.ones(8)).shape == (3, 3)


def test_computed_dimensions_are_inferred_and_checked(library):
    traced = tf.function(lambda x: library.windows(x, size=3, stride=2))
    known = traced.get_concrete_function(tf.TensorSpec([8], tf.float32))
    assert known.outputs[0].shape.as_list() == [3, 3]
    unknown = traced.get_concrete_function(tf.TensorSpec([None], tf.float32))
    assert unknown.outputs[0].shape.as_list() == [None, 3]
    for attributes, message in [
        ({"size": 20}, "a dimension of output y would be -11"),
        ({"size": 3, "stride": 0}, "divides by zero"),
        ({"size": -(2**63), "stride": 1}, "overflows 64 bits"),
    ]:
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            library.windows(tf.ones(8), **attributes)
        with pytest.raises(ValueError, match=message):
            tf.function(lambda x, attributes=attributes: library.windows(x, **attributes))(tf.ones(8))


def test_more_elements_than_fit_are_refused(library):
    with pytest.raises(tf.errors.OpError):
        library.pad(tf.ones([2**20, 1]), left=2**60)


@MODE
@pytest.mark.parametrize("scale", [None, np.float32([1, 2, 3])])
@pytest.mark.parametrize("bias", [None, np.float32([10, 20, 30])])
def test_optional_inputs(library, mode, scale, bias):
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    expected = x * (1 if scale is None else scale) + (0 if bias is None else bias)
    np.testing.assert_array_equal(mode(lambda x: library.affine(x, scale, bias))(x), expected)


def test_optional_inputs_are_checked_when_they_are_there(library):
    x = tf.ones([2, 3])
    np.testing.assert_array_equal(library.affine(x), x)
    np.testing.assert_array_equal(library.affine(x, bias=tf.ones(3)), x + 1)
    with pytest.raises(tf.errors.InvalidArgumentError, match="bias has shape"):
        library.affine(x, bias=tf.ones(4))
    with pytest.raises(TypeError, match=r"x must be given|missing a required argument"):
        library.affine(None)


@MODE
def test_in_place(library, mode):
    start, x = tf.constant([1.0, 2.0]), tf.constant([10.0, 20.0])
    np.testing.assert_array_equal(mode(lambda s, x: library.accumulate(s, x))(start, x), [11, 22])
    np.testing.assert_array_equal(start, [1, 2])  # somebody else's tensor is never touched


@MODE
def test_in_place_keeps_an_input_that_is_needed_later(library, mode):
    def run(x):
        start = x * 2
        total = library.accumulate(start, x)
        return total, start

    total, start = mode(run)(tf.constant([1.0, 2.0]))
    np.testing.assert_array_equal(total, [3, 6])
    np.testing.assert_array_equal(start, [2, 4])


@MODE
def test_lists_of_attributes(library, mode):
    y = mode(lambda x: library.lists(x))(0.0).numpy()
    np.testing.assert_allclose(y, [-np.inf, (1.000000000000007 - 1) * 1e15, 1, 5, 2, 2, 3], rtol=1e-6)
    empty = {name: [] for name in ("floats", "doubles", "ints", "longs", "flags", "names")}
    np.testing.assert_array_equal(mode(lambda x: library.lists(x, **empty))(0.0), np.zeros(7))


def test_lists_of_attributes_are_checked(library):
    with pytest.raises(TypeError, match="ints must be a list of i32, got 3"):
        library.lists(0.0, ints=3)
    with pytest.raises(TypeError, match=r"ints must be i32\[\], got 1.5"):
        library.lists(0.0, ints=[1.5])
    with pytest.raises(TypeError, match="names must be a list of str, got 'abc'"):
        library.lists(0.0, names="abc")


@MODE
@pytest.mark.parametrize("index", [tf.int32, tf.int64])
@pytest.mark.parametrize("dtype", [tf.float32, tf.float64])
def test_several_dtype_variables(library, mode, dtype, index):
    table = tf.reshape(tf.range(6, dtype=dtype), [3, 2])
    ids = tf.constant([[2], [0]], index)
    np.testing.assert_array_equal(mode(lambda t, i: library.lookup(t, i))(table, ids), tf.gather(table, ids))
    with pytest.raises(tf.errors.InvalidArgumentError, match="id 3 is not in the table"):
        mode(lambda t, i: library.lookup(t, i))(table, ids + 1)


COPIES = """
#include <cstring>
static ffi::Error Run(ffi::RemainingArgs xs, ffi::RemainingRets ys) {
  auto x = *xs.get<ffi::AnyBuffer>(xs.size() - 1);
  std::memcpy((*ys.get<ffi::AnyBuffer>(0))->untyped_data(), x.untyped_data(), x.size_bytes());
  return ffi::Error::Success();
}
XLA_FFI_DEFINE_HANDLER(Cpu, Run, ffi::Ffi::Bind().RemainingArgs().RemainingRets());
TK_OP(Ints, "(x: i32[...]) -> (y: i32[...])");
TK_OP(Bytes, "(x: u8[...]) -> (y: u8[...])");
TK_OP(Bools, "(x: bool[...]) -> (y: bool[...])");
TK_OP(Floats, "(x: f32[...]) -> (y: f32[...])");
TK_OP(Listed, "(*x: i64[...]) -> (*y: i64[...])");
TK_OP(Second, "<T: i32 | f32>(x: T[...], z: T[...]) -> (y: T[...])");
TK_KERNEL(Ints, CPU, Cpu);
TK_KERNEL(Bytes, CPU, Cpu);
TK_KERNEL(Bools, CPU, Cpu);
TK_KERNEL(Floats, CPU, Cpu);
TK_KERNEL(Listed, CPU, Cpu);
TK_KERNEL(Second, CPU, Cpu);
"""


@MODE
def test_o9_numbers_that_an_integer_input_cannot_hold_are_refused(mode):
    """NumPy arrays were cut or wrapped around without a word: 1.7 became 1, 300 became 44, NaN the smallest integer."""
    ops = custom_ops.load_inline("Copies", COPIES)

    def call(op, value):
        return mode(lambda: op(value))()

    one = tf.constant([1])
    wrong = [
        (ops.ints, np.array([1.0, 1.7]), "x must be i32, got 1.7 of float64, which int32 cannot hold"),
        (ops.ints, np.float32(2.5), "got 2.5 of float32"),
        (ops.ints, np.array([2**40]), "got 1099511627776 of int64"),
        (ops.ints, np.array([np.nan]), "got nan"),
        (ops.ints, np.array([1 + 2j]), "complex128"),
        (ops.bytes, np.array([[-1]]), "x must be u8, got -1"),
        (ops.bytes, [0, 300], "got 300"),
        (ops.bools, np.array([0.5]), "x must be bool, got 0.5"),
        (ops.listed, [np.array([1, 2]), np.array(0.5)], "x must be i64, got 0.5"),
        (lambda z: ops.second(one, z), np.array([1.7]), "z must be T, got 1.7 of float64, which int32"),
        (lambda x: ops.second(x, one), np.array([1.7]), "x must be T, got 1.7 of float64, which int32"),
    ]
    for op, value, message in wrong:
        with pytest.raises(TypeError, match=message):
            call(op, value)
    for op, value in [
        (ops.ints, np.array([1.0, -7.0])), (ops.ints, np.int64(5)), (ops.ints, [True, False]), (ops.ints, 3),
        (ops.bytes, np.array([255.0])), (ops.bools, np.array([0.0, 1.0])), (ops.floats, np.array([0.1])),
        (ops.floats, np.array([16777217])), (lambda z: ops.second(one, z), np.array([4.0])),
        (lambda z: ops.second(tf.constant([1.0]), z), np.array([0.5])),
    ]:  # fmt: skip
        np.testing.assert_allclose(call(op, value).numpy().astype(float), value)


@MODE
@pytest.mark.parametrize("counted", [False, True])
def test_o9_one_more_and_outputs_that_come_when_asked_for(library, mode, counted):
    x, offsets = np.float32(np.arange(12).reshape(6, 2)), [0, 1, 1, 6]
    found = mode(lambda x, o: library.segments(x, o, has_counts=counted))(x, tf.constant(offsets))
    np.testing.assert_array_equal(found.sums, [x[0], [0, 0], x[1:].sum(0)])
    assert (found.counts is not None) == counted
    if counted:
        np.testing.assert_array_equal(found.counts, [1, 0, 5])
    assert mode(lambda: library.segments(x, [0]))().sums.shape == (0, 2)
    with pytest.raises((tf.errors.InvalidArgumentError, ValueError), match=r"dimension segments\+1 must be at least 1"):
        mode(lambda: library.segments(x, tf.zeros([0], tf.int32)))()
    assert mode(lambda: library.trapezoids([1.0, 2.0], [0.0, 2.0, 4.0]))().numpy() == 7
    for widths in ([], [1.0] * 3):
        with pytest.raises((tf.errors.InvalidArgumentError, ValueError), match=r"y has shape .*must be"):
            mode(lambda widths=widths: library.trapezoids(tf.constant(widths), [0.0] * 3))()


def test_o9_static_shapes_of_one_more_and_of_optional_outputs(library):
    def shapes_of(x, offsets, **options):
        traced = tf.function(lambda x, o: [y for y in library.segments(x, o, **options) if y is not None])
        return [y.shape.as_list() for y in traced.get_concrete_function(x, offsets).outputs]

    x = tf.TensorSpec([None, 2], tf.float32)
    assert shapes_of(x, tf.TensorSpec([5], tf.int32)) == [[4, 2]]
    assert shapes_of(x, tf.TensorSpec([None], tf.int32), has_counts=True) == [[None, 2], [None]]
    with pytest.raises(ValueError, match="offsets has shape"):
        shapes_of(x, tf.TensorSpec([0], tf.int32))


@MODE
def test_o9_the_caller_chooses_the_dtype_of_an_output(library, mode):
    x = tf.constant([1.5, -2.5])
    for options, dtype in [({}, tf.float32), ({"dtype": tf.float64}, tf.float64), ({"dtype": np.int32}, tf.int32),
                         ({"dtype": "f64"}, tf.float64), ({"dtype": np.dtype("int32")}, tf.int32)]:  # fmt: skip
        y = mode(lambda options=options: library.cast(x, **options))()
        assert y.dtype == dtype
        np.testing.assert_array_equal(y, tf.cast(x, dtype))
    with pytest.raises(TypeError, match="attribute dtype must be one of float32, float64, int32, got 'float16'"):
        mode(lambda: library.cast(x, dtype="float16"))()
    assert mode(lambda: library.cast([1.5], dtype="int32"))().numpy().tolist() == [1]  # no tensor


def test_o9_a_chosen_dtype_in_gradients_maps_and_saved_models(library, tmp_path):
    op, x = library.cast, tf.constant([[1.5, -2.5]])
    op.reference(lambda x, *, dtype: tf.cast(x, dtype))
    op.gradient(lambda node, dy: tf.cast(dy, tf.float32))
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = op(x, dtype="float64") ** 2
    np.testing.assert_array_equal(tape.gradient(y, x), 2 * x)
    assert tf.vectorized_map(lambda row: op(row, dtype="int32"), x).dtype == tf.int32
    module = tf.Module()
    module.f = tf.function(lambda x: op(x, dtype="float64"), input_signature=[tf.TensorSpec([None])])
    tf.saved_model.save(module, tmp_path, options=tf.saved_model.SaveOptions(namespace_whitelist=["Grammar"]))
    assert tf.saved_model.load(tmp_path).f(x[0]).dtype == tf.float64


@pytest.mark.slow
def test_o9_they_pass_opcheck(library):
    op = library.segments

    @op.reference
    def _(x, offsets, *, has_counts):
        row = tf.range(tf.shape(x)[0])[:, None]
        inside = tf.cast((row >= offsets[:-1]) & (row < offsets[1:]), x.dtype)
        sums = tf.einsum("rs,rd->sd", inside, x)
        return sums, offsets[1:] - offsets[:-1] if has_counts else None

    op.differentiate_reference()
    x = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
    for counted in (False, True):
        # Not nan: zero times NaN is NaN in this reference.
        checks = [check for check in CHECKS if check != "nan"]
        assert custom_ops.opcheck(op, x, [0, 0, 0, 6], has_counts=counted, checks=checks)
    library.cast.reference(lambda x, *, dtype: tf.cast(x, dtype))
    library.cast.gradient(lambda node, dy: tf.cast(dy, tf.float32))
    checks = [check for check in CHECKS if check not in ("nan", "second_order")]  # NaN as an integer is anything
    assert custom_ops.opcheck(library.cast, x, dtype="float64", checks=checks)


def test_signature_and_help(library):
    assert str(library.affine) == "affine(x: f32[... d], scale?: f32[d], bias?: f32[d]) -> (y: f32[... d]) batchable"
    assert "affine(x: f32[... d]" in library.affine.__doc__
    assert dir(library) == [
        "accumulate", "affine", "blend", "cast", "lists", "lookup", "pad", "roll", "scaled", "segments", "tick",
        "trapezoids", "windows"
    ]  # fmt: skip
    with pytest.raises(AttributeError, match=r"Grammar has no op 'afine'; it has .*affine"):
        _ = library.afine


dims = st.integers(0, 4)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_the_two_shape_functions_agree(library, data):
    """Python's (for JAX) and the op host's, right and wrong shapes alike."""
    op = data.draw(
        st.sampled_from(
            [library.affine, library.scaled, library.windows, library.lookup, library.segments, library.trapezoids]
        )
    )
    some_shape = st.lists(dims, max_size=3).map(tuple)
    length = data.draw(st.integers(1, 2))
    base = data.draw(some_shape)
    inputs = []
    for argument in op.schema.inputs:
        if argument.variadic:
            inputs.append([data.draw(st.just(base[-1:]) | st.just(base) | some_shape) for _ in range(length)])
        elif argument.optional and data.draw(st.booleans()):
            inputs.append(None)
        else:
            inputs.append(data.draw(st.just(base) | st.just(base[-1:]) | some_shape))
    attributes = (
        {"size": data.draw(st.integers(-1, 5)), "stride": data.draw(st.integers(0, 3))} if op is library.windows else {}
    )
    dtypes = {"T": tf.float32, "Index": tf.int32, "i32": tf.int32}

    def zeros(argument, shape):
        return tf.zeros(shape, dtypes.get(argument.dtype, tf.float32))

    tensors = [
        None if shape is None else [zeros(a, one) for one in shape] if a.variadic else zeros(a, shape)
        for a, shape in zip(op.schema.inputs, inputs, strict=True)
    ]
    try:
        expected = shapes.output_shapes(op.schema, inputs, attributes)
    except ValueError:
        with pytest.raises(tf.errors.InvalidArgumentError):
            op(*tensors, **attributes)
        return
    if op is library.lookup and inputs[0][0] == 0 and 0 not in inputs[1]:
        return  # ids into an empty table: right shapes, wrong values
    outputs = op(*tensors, **attributes)
    if op is library.segments:
        assert outputs.counts is None
        outputs = outputs.sums
    found = [[tuple(y.shape) for y in outputs]] if isinstance(outputs, list) else [tuple(outputs.shape)]
    assert found == expected[:1]
