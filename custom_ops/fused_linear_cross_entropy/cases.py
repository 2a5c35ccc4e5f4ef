"""Shapes, options and dtypes that drive fused_linear_cross_entropy's tests and checks."""

import dataclasses
from collections.abc import Callable
from typing import Any

import ml_dtypes  # noqa: F401 (NumPy learns the name bfloat16)
import numpy as np

DTYPES = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class Case:
    """The labels' shape, sizes, what stands in the call beside them, and the dtype; a part of the labels is ignored."""

    rows: tuple[int, ...]
    depth: int
    classes: int
    options: tuple[tuple[str, Any], ...] = ()
    bias: bool = False
    class_weight: bool = False
    dtype: str = "float32"

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the inputs."""
        return (*self.rows, self.depth)

    @property
    def dims(self) -> dict[str, Any]:
        """By the names of the schemas."""
        return {"depth": self.depth, "classes": self.classes, "biases": self.classes}

    def __str__(self) -> str:
        options = [f"{name}={value}" for name, value in self.options]
        options += [name for name in ("bias", "class_weight") if getattr(self, name)]
        return ", ".join([f"{self.rows} tokens of {self.depth}, {self.classes} classes", *options, self.dtype])


def case(*rows: int, depth: int, classes: int, bias: bool = False, class_weight: bool = False, **options: Any) -> Case:
    """``case(2, 5, depth=7, classes=11, z_loss=0.1 …)``."""
    return Case(rows, depth, classes, tuple(options.items()), bias, class_weight)


# A chunk has 256 tokens, on a GPU up to 1024, a panel 8, 16 or 32; a product 256 steps of the depth; a tile 24 to 192
# classes, on a GPU 128, a group several tiles: sizes below, at and beside these.
CASES = (
    case(2, 3, depth=5, classes=11),
    case(1, depth=1, classes=1),
    case(70, depth=17, classes=200, bias=True),
    case(300, depth=8, classes=193, label_smoothing=0.1, z_loss=1e-2),
    case(520, depth=3, classes=25, class_weight=True, bias=True, ignore_index=3),
    case(30, depth=300, classes=500, logit_softcap=5.0, label_smoothing=0.3, class_weight=True),
    case(256, depth=16, classes=7000, bias=True, logit_softcap=2.0),
    case(1500, depth=1, classes=130, bias=True),
)
EMPTY_CASES = (case(0, depth=8, classes=5), case(4, depth=0, classes=5, bias=True))


def _arguments(seed: int, *more: str) -> tuple[list[Any], dict[str, Any]]:
    rng = np.random.default_rng(seed)
    inputs, weight, bias = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 3, 5), (7, 5), (7,)))
    labels = np.array([[0, 6, 3], [2, -100, 2]], np.int32)
    rows = [rng.standard_normal((2, 3)).astype(np.float32) for _ in more]
    given = [inputs, weight, bias, labels, rng.random(7).astype(np.float32), *rows]
    return given, {"label_smoothing": 0.1, "z_loss": 0.1}


def _forward() -> tuple[list[Any], dict[str, Any]]:
    return _arguments(0)


def _backward() -> tuple[list[Any], dict[str, Any]]:
    inputs, options = _arguments(1, "d_loss", "d_lse")
    inputs[-2] = np.abs(inputs[-2])  # or the total is what little is left of larger losses
    return inputs, {**options, "biased": True, "has_dbias": True}


def call_of(name: str, case: Case) -> tuple[list[Any], dict[str, Any]]:
    """What the table of cases calls an op with; some labels are ignored, and those beside float16 are int64."""
    rng, options = np.random.default_rng(0), dict(case.options)
    weight, bias = (
        rng.standard_normal(shape).astype(case.dtype) for shape in ((case.classes, case.depth), case.classes)
    )
    labels = rng.integers(0, max(1, case.classes), case.rows)
    labels = np.where(rng.random(case.rows) < 0.25, options.get("ignore_index", -100), labels)
    inputs = [rng.standard_normal(case.shape).astype(case.dtype), weight, bias if case.bias else None]
    inputs.append(labels.astype(np.int64 if case.dtype == "float16" else np.int32))
    inputs.append(rng.random(case.classes).astype(np.float32) if case.class_weight else None)
    if not name.endswith("Grad"):
        return inputs, options
    inputs[2] = bias if case.bias else bias[:0]
    inputs += [rng.standard_normal(case.rows).astype(np.float32) for _ in range(2)]
    return inputs, {**options, "biased": case.bias, "has_dbias": case.bias, "mean": "label_smoothing" in options}


# What ``ops check`` calls each op with.
ARGUMENTS: dict[str, Callable[[], tuple[list[Any], dict[str, Any]]]] = {
    "FusedLinearCrossEntropy": _forward,
    "FusedLinearCrossEntropyGrad": _backward,
}
