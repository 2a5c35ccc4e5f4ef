"""Fuzzing of one op by its schema: calls of many kinds, what is right about each."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import tensorflow as tf
from fuzz_fitting import SEQUENCES, fit_arrays, fitting_call
from fuzz_names import ROUNDS_FACTORS, STRICTER, VISIT_EMPTY_ROWS
from fuzz_references import REFERENCES
from fuzz_values import as_list, as_shapes, changed, flat_outputs, largest, most_elements
from tensorflow.python.eager import context, execute

from tftoolkit.custom_ops.engine import op_def, sampling, shapes
from tftoolkit.custom_ops.engine.ops import Op
from tftoolkit.custom_ops.engine.schema import DTYPES, presence

CLEAR = (tf.errors.InvalidArgumentError, TypeError, ValueError)
NO_MEMORY = (*CLEAR, tf.errors.ResourceExhaustedError)
HUGE = (2**31 - 1, 2**31, 2**31 + 1, 2**33 + 7, 2**40, 2**62)
ODD_VALUES = (
    *(float("nan"), float("inf"), -1, 0, 1e-40, 1e300, 2**31, 2**70),
    *("text", None, [], [1.5, "a"], b"\xff", True),
)
NO_TENSORS = (None, object(), "text", [[1.0], [1.0, 2.0]], {"a": 1.0}, b"\xff", 10**400)
LEAST_ACCEPTED = 0.3  # of the calls that an op's schema allows
EPSILON = {"float16": 2**-10, "bfloat16": 2**-7, "float32": 2**-23, "float64": 2**-52}


class WrongError(AssertionError):
    """An op gave a wrong answer, or took what it should refuse."""


class OpSubject:
    """An op of a library: what is right follows from its schema, and the values from a reference."""

    def __init__(self, op: Op) -> None:
        self.op = op
        self.schema = op.schema
        self.may_fail = None if op.name in STRICTER else False
        self.was_too_large = False
        self.accepted = self.valid_calls = 0
        self.kinds: dict[Callable[[random.Random, sampling.Call], None], int] = {
            self.valid: 30, self.wrong_shape: 20, self.wrong_dtype: 15, self.wrong_count: 5, self.odd_attribute: 10,
            self.no_tensor: 4, self.without_python: 10, self.any_bits: 4, self.huge: 2, self.in_graph: 1,
        }  # fmt: skip

    def case(self, rng: random.Random) -> None:
        kind = rng.choices(list(self.kinds), list(self.kinds.values()))[0]
        kind(rng, self.sample(rng))

    def sample(self, rng: random.Random) -> sampling.Call:
        # References of sequence losses are loops.
        sizes = {"sizes": (0, 1, 2, 3, 5, 7)} if self.op.name in SEQUENCES else {}
        call = sampling.sample(self.schema, rng, max_elements=2000, **sizes)
        return fitting_call(call, self.op.name, rng)

    # Kinds of cases

    def valid(self, rng: random.Random, call: sampling.Call) -> None:
        arrays = self.arrays(rng, call)
        outputs = self.expect(lambda: self.op(*arrays, **call.attributes), self.may_fail, f"{call}")
        self.valid_calls += 1
        if outputs is not None:
            self.accepted += 1
            self.check_shapes(call, outputs)
            self.check_values(call, arrays, outputs)

    def finish(self) -> None:
        """After many cases: an op that refuses whatever it gets has been asked nothing."""
        if self.valid_calls >= 20 and self.accepted < LEAST_ACCEPTED * self.valid_calls:
            raise WrongError(f"{self.op.name} refused all but {self.accepted} of {self.valid_calls} valid calls")

    def wrong_shape(self, rng: random.Random, call: sampling.Call) -> None:
        inputs = list(call.inputs)
        place = rng.randrange(len(inputs))
        shape = inputs[place]
        if isinstance(shape, list):
            inputs[place] = [*shape[:-1], changed(rng, shape[-1])]
        elif shape is not None:
            inputs[place] = changed(rng, shape)
        self.check(rng, replace(call, inputs=tuple(inputs)))

    def wrong_dtype(self, rng: random.Random, call: sampling.Call) -> None:
        arrays = self.arrays(rng, call)
        place = rng.randrange(len(arrays))
        if arrays[place] is None or self.schema.inputs[place].variadic:
            return
        dtype = rng.choice([*DTYPES.values(), "string"])
        shape = np.shape(arrays[place])
        # Tensors, because TensorFlow casts NumPy arrays to what it needs.
        arrays = [None if array is None else tf.nest.map_structure(tf.convert_to_tensor, array) for array in arrays]
        arrays[place] = tf.fill(shape, "text") if dtype == "string" else tf.zeros(shape, dtype)
        declared = self.schema.inputs[place].dtype
        alone = sum(argument.dtype == declared for argument in self.schema.inputs) == 1
        allowed = self.schema.dtype_vars.get(declared, (declared,)) if alone else (call.dtypes.get(declared, declared),)
        must_fail = dtype not in [DTYPES[name] for name in allowed]
        self.expect(lambda: self.op(*arrays, **call.attributes), must_fail or None, f"{place} is {dtype}")

    def wrong_count(self, rng: random.Random, call: sampling.Call) -> None:
        arrays = self.arrays(rng, call)
        if rng.random() < 0.5:
            arrays.append(arrays[0])
        else:
            needed = [i for i, argument in enumerate(self.schema.inputs) if not argument.optional]
            del arrays[rng.randrange(max(needed) + 1) :]
        self.expect(lambda: self.op(*arrays, **call.attributes), True, f"{len(arrays)} inputs")

    def odd_attribute(self, rng: random.Random, call: sampling.Call) -> None:
        if not self.schema.attributes:
            return
        attribute = rng.choice(self.schema.attributes)
        value = rng.choice(ODD_VALUES)
        arrays = self.arrays(rng, call)
        must_fail = False
        try:
            converted = replace(call, attributes={**call.attributes, attribute.name: attribute.convert(value)})
            if most_elements(converted) > 1 << 26:
                return  # see huge
        except (TypeError, ValueError, OverflowError):
            must_fail = True
        result = self.expect(
            lambda: self.op(*arrays, **{**call.attributes, attribute.name: value}), must_fail or None, f"{value!r}"
        )
        if result is not None:
            self.check_shapes(converted, result)

    def no_tensor(self, rng: random.Random, call: sampling.Call) -> None:
        arrays = self.arrays(rng, call)
        place = rng.randrange(len(arrays))
        arrays[place] = rng.choice(NO_TENSORS)
        argument = self.schema.inputs[place]
        # A list of other things may be a list of tensors.
        must_fail = None if argument.variadic else not (arrays[place] is None and argument.optional)
        must_fail = self.may_fail if must_fail is False else must_fail
        self.expect(lambda: self.op(*arrays, **call.attributes), must_fail, f"{arrays[place]!r}")

    def without_python(self, rng: random.Random, call: sampling.Call) -> None:
        """Straight into TensorFlow's runtime, past every check in Python: what a SavedModel's graph may hold."""
        given = zip(self.schema.inputs, self.arrays(rng, call), strict=True)
        absent = {presence(argument): False for argument, shape in zip(self.schema.inputs, call.inputs, strict=True)
                  if shape is None}  # fmt: skip
        flat = [
            tf.zeros([0], DTYPES[call.dtype(argument)]) if item is None else tf.convert_to_tensor(item)
            for argument, array in given for item in as_list(array)
        ]  # fmt: skip
        change = rng.randrange(4)
        if change == 0:
            del flat[rng.randrange(len(flat) + 1) :]
        elif change == 1:
            flat[rng.randrange(len(flat))] = tf.zeros(changed(rng, (2, 3)), rng.choice(["float32", "float64", "int32"]))
        attributes: dict[str, Any] = {
            variable: tf.as_dtype(DTYPES[choice]).as_datatype_enum for variable, choice in call.dtypes.items()
        }
        for attribute in op_def.kernel_attributes(self.schema):
            value = (call.attributes | absent).get(attribute.name, True)
            attributes[attribute.name] = op_def.store_attribute(attribute, value)
        if self.schema.has_lists:
            attributes[op_def.LIST_LENGTH] = rng.choice([1, 2, 3, 0, -1, 2**40])
        if change == 2 and attributes:
            attributes[rng.choice(list(attributes))] = rng.choice([1, 2, 10**6, "text", 1.5, True])
        pairs = tuple(item for pair in attributes.items() for item in pair)
        count = rng.choice([len(self.schema.outputs), 0, 7]) if change == 3 else len(self.schema.outputs)
        run = functools.partial(execute.execute, self.op.tf_name, count, flat, pairs, context.context())
        self.expect(run, None, "raw", NO_MEMORY)  # an attribute may say how large an output is

    def any_bits(self, rng: random.Random, call: sampling.Call) -> None:
        """NaN, infinities, subnormals, the largest numbers."""
        arrays = self.arrays(rng, call)
        bits = np.random.default_rng(rng.getrandbits(64))
        arrays = [
            np.frombuffer(bits.bytes(array.nbytes), array.dtype).reshape(array.shape)
            if isinstance(array, np.ndarray) and array.dtype != bool
            else array
            for array in arrays
        ]
        outputs = self.expect(lambda: self.op(*arrays, **call.attributes), self.may_fail, f"{call}")
        if outputs is not None:
            self.check_shapes(call, outputs)

    def huge(self, rng: random.Random, call: sampling.Call) -> None:
        """Dimensions beyond 2^31 that another of 0 keeps from taking memory, at least in the inputs."""
        if self.op.name in VISIT_EMPTY_ROWS:
            return
        call = sampling.sample(self.schema, rng, sizes=(0, 0, rng.choice(HUGE)), max_elements=1 << 62)
        try:
            if any(np.prod(shape, dtype=object) for given in call.inputs if given for shape in as_shapes(given)):
                return
            arrays = self.arrays(rng, call)
        except (ValueError, MemoryError):  # NumPy cannot make these
            return
        most = most_elements(call)
        too_large = most >= 1 << 29
        if most > 1 << 26 and (not too_large or self.was_too_large):
            return  # fits into memory but takes a while; or TensorFlow waits for 10 s before it gives up
        self.was_too_large |= too_large
        self.expect(lambda: self.op(*arrays, **call.attributes), None, "huge", NO_MEMORY)

    def in_graph(self, rng: random.Random, call: sampling.Call) -> None:
        """In a graph whose static shapes are known in part, and rarely under XLA: the same as eagerly."""
        if self.schema.has_lists or self.schema.optional_inputs:
            return
        arrays = [tf.convert_to_tensor(array) for array in self.arrays(rng, call)]
        known = rng.random()
        specs = [
            tf.TensorSpec(
                None if rng.random() > known else [size if rng.random() < known else None for size in tensor.shape],
                tensor.dtype,
            )
            for tensor in arrays
        ]
        jit = rng.random() < 0.1
        traced = tf.function(
            lambda *inputs: flat_outputs(self.op(*inputs, **call.attributes)),
            jit_compile=jit,
            autograph=False,
            input_signature=specs,
        )
        outputs = self.expect(lambda: flat_outputs(self.op(*arrays, **call.attributes)), self.may_fail, f"{call}")
        if outputs is None:
            return
        for static, eager in zip(traced.get_concrete_function().outputs, outputs, strict=True):
            if not static.shape.is_compatible_with(eager.shape):
                raise WrongError(f"static shape {static.shape}, real {eager.shape}, for {call}")
        if jit and any(0 in tensor.shape for tensor in arrays):
            return
        got = traced(*arrays)
        self.check_shapes(call, got[0] if len(got) == 1 else got)
        self.check_values(call, [tensor.numpy() for tensor in arrays], got[0] if len(got) == 1 else got)

    # What is right

    def arrays(self, rng: random.Random, call: sampling.Call) -> list[Any]:
        values = np.random.default_rng(rng.getrandbits(64))

        def array(dtype: str, shape: shapes.Shape) -> np.ndarray:
            target = tf.as_dtype(DTYPES[dtype]).as_numpy_dtype
            if dtype == "bool" or dtype[0] in "iu":
                return values.integers(0, 2 if dtype == "bool" else 100, shape).astype(target)
            return values.standard_normal(shape).astype(target)

        arrays: list[Any] = []
        for argument, given in zip(call.schema.inputs, call.inputs, strict=True):
            made = [array(call.dtype(argument), shape) for shape in as_shapes(given)] if given is not None else [None]
            arrays.append(made if argument.variadic else made[0])
        fit_arrays(call, self.op.name, arrays, rng)
        return arrays

    def check(self, rng: random.Random, call: sampling.Call) -> None:
        """Right by the schema: then the answer must be right too. Else an error must come."""
        arrays = self.arrays(rng, call)
        try:
            call.outputs()
            must_fail = self.may_fail
        except ValueError:
            must_fail = True
        outputs = self.expect(lambda: self.op(*arrays, **call.attributes), must_fail, f"{call}")
        if outputs is not None:
            self.check_shapes(call, outputs)
            self.check_values(call, arrays, outputs)

    @staticmethod
    def expect(run: Callable[[], Any], must_fail: bool | None, what: str, refused: tuple[type, ...] = CLEAR) -> Any:
        """The result, or None after a clear error; where ``must_fail`` is None both will do."""
        try:
            result = run()
        except refused as error:
            if must_fail is False:
                raise WrongError(f"refused, but right: {what}: {error}") from error
            return None
        if must_fail:
            raise WrongError(f"taken without an error: {what}")
        return result

    def check_shapes(self, call: sampling.Call, outputs: Any) -> None:
        wanted = [not one.optional or call.attributes.get(presence(one)) for one in self.schema.outputs]
        expected = [
            shape
            for is_wanted, given in zip(wanted, call.outputs(), strict=True)
            if is_wanted
            for shape in as_shapes(given)
        ]
        found = [tuple(output.shape) for output in flat_outputs(outputs)]
        if found != expected:
            raise WrongError(f"shapes {found}, expected {expected}, for {call}")

    def check_values(self, call: sampling.Call, arrays: Sequence[Any], outputs: Any) -> None:
        if not any(0 not in output.shape for output in flat_outputs(outputs)):
            return  # no kernel was called, which might have refused what references take for granted
        reference = REFERENCES.get(self.op.name)
        with np.errstate(all="ignore"):
            if reference:
                expected = reference(
                    *(array if array is None else array.astype(np.float64) for array in arrays), **call.attributes
                )
            elif self.op.reference_function:
                values = [value.numpy() for value in flat_outputs(self.op.run_reference(*arrays, **call.attributes))]
                given = max(
                    (largest(item) for array in arrays for item in as_list(array) if item is not None), default=0
                )
                expected = [(value, 16 * max(largest(value), given)) for value in values]
            else:
                return
            in_bf16 = tf.bfloat16.as_numpy_dtype in [getattr(array, "dtype", None) for array in arrays]
            factors = EPSILON["bfloat16"] / 4 if in_bf16 and self.op.name.startswith(ROUNDS_FACTORS) else 0
            for output, (value, terms) in zip(flat_outputs(outputs), expected, strict=True):
                found = output.numpy().astype(value.dtype)
                step = np.finfo(np.float16).smallest_subnormal if output.dtype == tf.float16 else 1e-38
                allowed = (
                    EPSILON.get(output.dtype.name, 0) * np.abs(value)
                    + (32 * np.finfo(np.float32).eps + factors) * terms
                    + step
                )
                good = (np.abs(found - value) <= allowed) | (found == value) | (np.isnan(found) & np.isnan(value))
                if not np.all(good):
                    worst = tuple(np.argwhere(~good)[0])
                    raise WrongError(f"{found[worst]} at {worst}, expected {value[worst]}, for {call}")
