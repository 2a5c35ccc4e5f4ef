"""Fuzzes built-in ops: random calls, right and wrong, must give the right answer or a clear error. Run by test_fuzz.py.

    python fuzz.py SUBJECT --seed 0 --cases 3000        # SUBJECT: a built-in op such as RmsNorm, or ReadRecords
    python fuzz.py SUBJECT --seed 0 --case 1234         # that one again

Case i depends on the seed and i alone. Before each case its number goes to the file ``--progress``, so that whoever
started this process knows which case crashed or hung it.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import gc
import os
import random
import resource
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context, execute

from tftoolkit import custom_ops
from tftoolkit.custom_ops import library, sampling, shapes, tf_host
from tftoolkit.custom_ops.ops import Op
from tftoolkit.custom_ops.schema import DTYPES

CLEAR = (tf.errors.InvalidArgumentError, TypeError, ValueError)
HUGE = (2**31 - 1, 2**31, 2**31 + 1, 2**33 + 7, 2**40, 2**62)
ODD_VALUES = (
    float("nan"),
    float("inf"),
    -1,
    0,
    1e-40,
    1e300,
    2**31,
    2**70,
    "text",
    None,
    [],
    [1.5, "a"],
    b"\xff",
    True,
)
NO_TENSORS = (None, object(), "text", [[1.0], [1.0, 2.0]], {"a": 1.0}, b"\xff", 10**400)
EPSILON = {"float16": 2**-10, "bfloat16": 2**-7, "float32": 2**-23, "float64": 2**-52}
MEMORY = 3 << 30  # bytes that a case may take


class WrongError(AssertionError):
    """An op gave a wrong answer, or took what it should refuse."""


# References: float64 arrays and attributes -> for each output its value and the size of the terms it is the sum of


def rms_norm(x: np.ndarray, gamma: np.ndarray, *, epsilon: float) -> list[tuple[np.ndarray, Any]]:
    inv = 1 / np.sqrt(np.mean(x * x, axis=-1) + epsilon)
    y = x * inv[..., np.newaxis] * gamma
    return [(y, np.abs(y)), (inv, np.abs(inv))]


def rms_norm_grad(
    dy: np.ndarray, d_inv_rms: np.ndarray, x: np.ndarray, gamma: np.ndarray, inv_rms: np.ndarray
) -> list[tuple[np.ndarray, Any]]:
    inv = inv_rms[..., np.newaxis]

    def gradients(dy: Any, d_inv: Any, x: Any, gamma: Any, inv: Any, sign: int) -> tuple[np.ndarray, np.ndarray]:
        dot = np.sum(dy * gamma * x, axis=-1, keepdims=True) + d_inv[..., np.newaxis]
        dgamma = np.sum((dy * x * inv).reshape(-1, x.shape[-1]) if x.size else np.zeros((1, x.shape[-1])), axis=0)
        return inv * dy * gamma - sign * x * inv**3 * (dot / x.shape[-1]), dgamma

    values = gradients(dy, d_inv_rms, x, gamma, inv, 1)
    terms = gradients(*map(np.abs, (dy, d_inv_rms, x, gamma, inv)), -1)
    return list(zip(values, terms, strict=True))


REFERENCES: dict[str, Callable[..., list[tuple[np.ndarray, Any]]]] = {
    "RmsNorm": rms_norm,
    "RmsNormGrad": rms_norm_grad,
}


class OpSubject:
    """An op of a library: what is right follows from its schema, and the values from a reference."""

    def __init__(self, op: Op) -> None:
        self.op = op
        self.schema = op.schema
        self.kinds: dict[Callable[[random.Random, sampling.Call], None], int] = {
            self.valid: 30, self.wrong_shape: 20, self.wrong_dtype: 15, self.wrong_count: 5, self.odd_attribute: 10,
            self.no_tensor: 4, self.without_python: 10, self.any_bits: 4, self.huge: 2, self.in_graph: 1,
        }  # fmt: skip

    def case(self, rng: random.Random) -> None:
        kind = rng.choices(list(self.kinds), list(self.kinds.values()))[0]
        kind(rng, sampling.sample(self.schema, rng, max_elements=2000))

    # Kinds of cases

    def valid(self, rng: random.Random, call: sampling.Call) -> None:
        arrays = self.arrays(rng, call)
        outputs = self.op(*arrays, **call.attributes)
        self.check_shapes(call, outputs)
        self.check_values(call, arrays, outputs)

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
        if arrays[place] is None:
            return
        dtype = rng.choice([*DTYPES.values(), "string"])
        shape = np.shape(arrays[place])
        # Tensors, because TensorFlow casts NumPy arrays to what it needs.
        arrays = [tf.nest.map_structure(tf.convert_to_tensor, array) for array in arrays]
        arrays[place] = tf.fill(shape, "text") if dtype == "string" else tf.zeros(shape, dtype)
        declared = self.schema.inputs[place].dtype
        alone = sum(argument.dtype == declared for argument in self.schema.inputs) == 1
        allowed = self.schema.dtype_vars.get(declared, (declared,)) if alone else (call.dtypes.get(declared, declared),)
        must_fail = dtype not in [DTYPES[name] for name in allowed] and not self.schema.inputs[place].variadic
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
            converted.outputs()
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
        must_fail = not (arrays[place] is None and self.schema.inputs[place].optional)
        self.expect(lambda: self.op(*arrays, **call.attributes), must_fail, f"{arrays[place]!r}")

    def without_python(self, rng: random.Random, call: sampling.Call) -> None:
        """Straight into TensorFlow's runtime, past every check in Python: what a SavedModel's graph may hold."""
        flat = [tf.convert_to_tensor(item) for array in self.arrays(rng, call) for item in as_list(array)]
        change = rng.randrange(4)
        if change == 0:
            del flat[rng.randrange(len(flat) + 1) :]
        elif change == 1:
            flat[rng.randrange(len(flat))] = tf.zeros(changed(rng, (2, 3)), rng.choice(["float32", "float64", "int32"]))
        attributes: dict[str, Any] = {
            variable: tf.as_dtype(DTYPES[choice]).as_datatype_enum for variable, choice in call.dtypes.items()
        }
        for attribute in tf_host.kernel_attributes(self.schema):
            value = call.attributes.get(attribute.name, True)
            attributes[attribute.name] = tf_host.store_attribute(attribute, value)
        if self.schema.has_lists:
            attributes[tf_host.LIST_LENGTH] = rng.choice([1, 2, 3, 0, -1, 2**40])
        if change == 2 and attributes:
            attributes[rng.choice(list(attributes))] = rng.choice([1, 2, 10**6, "text", 1.5, True])
        pairs = tuple(item for pair in attributes.items() for item in pair)
        count = rng.choice([len(self.schema.outputs), 0, 7]) if change == 3 else len(self.schema.outputs)
        self.expect(lambda: execute.execute(self.op.tf_name, count, flat, pairs, context.context()), None, "raw")

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
        self.check_shapes(call, self.op(*arrays, **call.attributes))

    def huge(self, rng: random.Random, call: sampling.Call) -> None:
        """Dimensions beyond 2^31 that another of 0 keeps from taking memory, at least in the inputs."""
        call = sampling.sample(self.schema, rng, sizes=(0, 0, rng.choice(HUGE)), max_elements=1 << 62)
        try:
            if any(np.prod(shape, dtype=object) for given in call.inputs if given for shape in as_shapes(given)):
                return
            arrays = self.arrays(rng, call)
        except (ValueError, MemoryError):  # NumPy cannot make these
            return
        outputs = [np.prod(shape, dtype=object) for given in call.outputs() for shape in as_shapes(given)]
        if any(1 << 26 < elements < 1 << 29 for elements in outputs):
            return  # no error, but it takes a while
        refused = (*CLEAR, tf.errors.ResourceExhaustedError)
        self.expect(lambda: self.op(*arrays, **call.attributes), None, "huge", refused)

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
            lambda *inputs: as_list(self.op(*inputs, **call.attributes)),
            jit_compile=jit,
            autograph=False,
            input_signature=specs,
        )
        outputs = as_list(self.op(*arrays, **call.attributes))
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
        return arrays

    def check(self, rng: random.Random, call: sampling.Call) -> None:
        """Right by the schema: then the answer must be right too. Else an error must come."""
        arrays = self.arrays(rng, call)
        try:
            call.outputs()
            must_fail = False
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
        expected = [shape for given in call.outputs() for shape in as_shapes(given)]
        found = [tuple(output.shape) for output in flat_outputs(outputs)]
        if found != expected:
            raise WrongError(f"shapes {found}, expected {expected}, for {call}")

    def check_values(self, call: sampling.Call, arrays: Sequence[Any], outputs: Any) -> None:
        reference = REFERENCES.get(self.op.name)
        with np.errstate(all="ignore"):
            if reference:
                expected = reference(*(array.astype(np.float64) for array in arrays), **call.attributes)
            elif self.op.reference_function:
                values = flat_outputs(self.op.run_reference(*arrays, **call.attributes))
                expected = [(value.numpy(), 16 * np.max(np.abs(value.numpy()), initial=0)) for value in values]
            else:
                return
            for output, (value, terms) in zip(flat_outputs(outputs), expected, strict=True):
                found = output.numpy().astype(value.dtype)
                step = np.finfo(np.float16).smallest_subnormal if output.dtype == tf.float16 else 1e-38
                allowed = (
                    EPSILON.get(output.dtype.name, 0) * np.abs(value) + 32 * np.finfo(np.float32).eps * terms + step
                )
                good = (np.abs(found - value) <= allowed) | (found == value) | (np.isnan(found) & np.isnan(value))
                if not np.all(good):
                    worst = tuple(np.argwhere(~good)[0])
                    raise WrongError(f"{found[worst]} at {worst}, expected {value[worst]}, for {call}")


class RecordsSubject:
    """ReadRecords and IndexRecords: places in a file, right, near to right and wild; files whole and damaged."""

    ERRORS = (
        *CLEAR, tf.errors.NotFoundError, tf.errors.OutOfRangeError, tf.errors.DataLossError,
        tf.errors.FailedPreconditionError,
    )  # fmt: skip

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="tftoolkit-fuzz-")
        self.path = str(Path(self.folder.name) / "records")
        self.damaged = str(Path(self.folder.name) / "damaged")
        rng = random.Random(0)
        self.records = [rng.randbytes(rng.choice([0, 1, 3, 7, 22, 23, 24, 300])) for _ in range(40)]
        with tf.io.TFRecordWriter(self.path) as writer:
            for record in self.records:
                writer.write(record)
        self.content = Path(self.path).read_bytes()
        self.lengths = np.array([len(record) for record in self.records])
        self.offsets = np.cumsum(self.lengths + 16) - self.lengths - 16

    def case(self, rng: random.Random) -> None:
        rng.choices([self.valid, self.wild, self.ill_typed, self.damage], [3, 4, 2, 1])[0](rng)

    def valid(self, rng: random.Random) -> None:
        order = [rng.randrange(len(self.records)) for _ in range(rng.randrange(6))]
        path = self.path if rng.random() < 0.5 else tf.constant([self.path] * len(order), tf.string)
        found = custom_ops.read_records(path, self.offsets[order], self.lengths[order])
        if found.numpy().tolist() != [self.records[i] for i in order]:
            raise WrongError(f"records {order} are wrong")

    def wild(self, rng: random.Random) -> None:
        numbers = (0, 1, -1, 12, 16, len(self.content) - 16, len(self.content), 2**31, 2**63 - 1, -(2**63))

        def choose(right: np.ndarray) -> int:
            return rng.choice([int(rng.choice(right)), int(rng.choice(right)), rng.choice(numbers)])

        offsets = [choose(self.offsets) for _ in range(rng.randrange(1, 4))]
        lengths = [choose(self.lengths) for _ in offsets]
        path = rng.choice([self.path, self.path, self.path, "", self.folder.name, "\0", "nothing://x", "/dev/null"])
        try:
            found = custom_ops.read_records(path, offsets, lengths).numpy().tolist()
        except (*self.ERRORS, tf.errors.UnimplementedError):
            return
        places = {(int(o), int(n)): r for o, n, r in zip(self.offsets, self.lengths, self.records, strict=True)}
        if path != self.path or found != [places.get(place) for place in zip(offsets, lengths, strict=True)]:
            raise WrongError(f"{path!r}, {offsets}, {lengths} gave {found}")

    def ill_typed(self, rng: random.Random) -> None:
        def argument(right: Any) -> Any:
            wrong = (
                None,
                1.5,
                "text",
                [[0]],
                [],
                tf.zeros([1], tf.int32),
                tf.zeros([2, 0], tf.int64),
                object(),
                [2**70],
            )
            return right if rng.random() < 0.6 else rng.choice(wrong)

        arguments = [argument(value) for value in (self.path, [0], [len(self.records[0])], [0])]
        arguments = arguments[: rng.choice([4, 4, 4, 1, 2])]
        run = rng.choice([custom_ops.read_records, tf_host.plain_ops().tf_toolkit_read_records])
        try:
            found = run(*arguments).numpy().tolist()
        except (*self.ERRORS, OverflowError):
            return
        if found not in ([], [self.records[0]]):
            raise WrongError(f"{arguments} gave {found}")

    def damage(self, rng: random.Random) -> None:
        content = bytearray(self.content[: rng.randrange(len(self.content) + 1)])
        if content and rng.random() < 0.5:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        Path(self.damaged).write_bytes(content)
        try:
            lengths = custom_ops.index_records(self.damaged).numpy()
            found = custom_ops.read_records(self.damaged, np.cumsum(lengths + 16) - lengths - 16, lengths)
        except tf.errors.DataLossError:
            return
        if found.numpy().tolist() != self.records[: len(lengths)]:
            raise WrongError("a damaged file gave other records")


def changed(rng: random.Random, shape: shapes.Shape) -> shapes.Shape:
    """Another rank, or another size in one place."""
    place = rng.randrange(len(shape) + 1)
    size = rng.choice((0, 1, 2, 3, 7))
    way = rng.randrange(3)
    if way == 0:
        return (*shape[:place], size, *shape[place:])
    return (*shape[:place], *shape[place + 1 :]) if way == 1 else (*shape[:place], size, *shape[place + 1 :])


def as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def as_shapes(given: Any) -> list[shapes.Shape]:
    return given if isinstance(given, list) else [given]


def flat_outputs(outputs: Any) -> list[Any]:
    return [item for output in as_list(outputs) for item in as_list(output)]


def subjects() -> dict[str, Callable[[], Any]]:
    """Every op of every built-in folder, and the record reader."""
    found: dict[str, Callable[[], Any]] = {"ReadRecords": RecordsSubject}
    for folder in library.builtin_folders():
        module = library.load_builtin(folder)
        getattr(custom_ops, folder)  # gives the ops their references
        found |= {name: functools.partial(OpSubject, module.op(name)) for name in module.schemas}
    return found


def resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def limit_memory() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))


def run_case(subject: Any, name: str, seed: int, number: int) -> None:
    try:
        subject.case(random.Random(f"{name} {seed} {number}"))
    except Exception as error:
        error.add_note(f"again: python {__file__} {name} --seed {seed} --case {number}")
        raise


def leaked_bytes(subject: Any, name: str, seed: int) -> int:
    """How much memory the same cases take when they run again and again."""
    for passes in range(6):
        if passes == 2:  # caches are filled
            before = resident_bytes()
        for number in range(500):
            run_case(subject, name, seed, number)
    return resident_bytes() - before


def check_threads(seed: int) -> None:
    """Right calls from many threads and graphs at once give what they give alone."""
    rng = random.Random(seed)
    alone: list[tuple[list[Callable[..., Any]], list[Any], list[bytes]]] = []
    for name, make in subjects().items():
        subject = make()
        if name == "ReadRecords":
            order = [rng.randrange(40) for _ in range(30)]
            inputs = [
                tf.constant(subject.path),
                tf.constant(subject.offsets[order]),
                tf.constant(subject.lengths[order]),
            ]
            functions: list[Callable[..., Any]] = [custom_ops.read_records, tf.function(custom_ops.read_records)]
            alone.append((functions, inputs, [repr(custom_ops.read_records(*inputs).numpy().tolist()).encode()]))
            keep = subject  # its files
            continue
        if subject.schema.has_lists or subject.schema.optional_inputs:
            continue
        for _ in range(3):
            call = sampling.sample(subject.schema, rng, sizes=(7, 64, 257), max_elements=200_000)
            inputs = [tf.convert_to_tensor(array) for array in subject.arrays(rng, call)]

            def run(*inputs: Any, op: Op = subject.op, attributes: Any = call.attributes) -> Any:
                return as_list(op(*inputs, **attributes))

            functions = [run, tf.function(run, autograph=False), tf.function(run, autograph=False)]
            jitted = tf.function(run, autograph=False, jit_compile=True)
            for one in (functions, [jitted]):
                alone.append((one, inputs, [output.numpy().tobytes() for output in one[0](*inputs)]))

    def repeat(number: int) -> None:
        order = random.Random(number)
        for _ in range(60):
            functions, inputs, expected = order.choice(alone)
            outputs = as_list(order.choice(functions)(*inputs))
            strings = outputs[0].dtype == tf.string
            found = [repr(o.numpy().tolist()).encode() if strings else o.numpy().tobytes() for o in outputs]
            if found != expected:
                raise WrongError(f"thread {number} got something else than a call alone, from {functions}")

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for _ in pool.map(repeat, range(24)):
            pass
    del keep


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject", help="an op's name, or 'threads'")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=3000)
    parser.add_argument("--case", type=int, help="only this one")
    parser.add_argument("--progress", type=Path, help="file for the number of the case that runs")
    parser.add_argument("--leaks", action="store_true", help="print how many bytes repeated cases leak")
    options = parser.parse_args()
    if options.subject == "threads":
        check_threads(options.seed)
        return
    subject = subjects()[options.subject]()
    limit_memory()
    progress = os.open(options.progress or os.devnull, os.O_WRONLY | os.O_CREAT)
    for number in range(options.cases) if options.case is None else [options.case]:
        os.pwrite(progress, f"{number:10}".encode(), 0)
        run_case(subject, options.subject, options.seed, number)
    if options.leaks:
        print(leaked_bytes(subject, options.subject, options.seed))


if __name__ == "__main__":
    sys.exit(main())
