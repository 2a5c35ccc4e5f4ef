"""What each number format does to the numbers of a model."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Format:
    """Inputs, activations and outputs are at most ``rounding`` times their magnitude off, weights ``weights`` times.

    ``steps`` and ``weight_steps`` say that the magnitude is that of the whole tensor (of the whole channel, for
    weights), as it is for integers with a scale, not that of the number itself. ``tiny`` is what even the smallest
    weight may be off. ``calibrated``: activations outside the range seen in calibration saturate, without a bound.
    """

    name: str
    rounding: float
    weights: float
    steps: bool = False
    weight_steps: bool = False
    tiny: float = 0.0
    calibrated: bool = False


def _floating(name: str, bits: int) -> Format:
    return Format(name, rounding=2.0**-bits, weights=2.0**-bits)


FLOAT64 = _floating("float64", 53)
FLOAT32 = _floating("float32", 24)
FLOAT16 = _floating("float16", 11)
BFLOAT16 = _floating("bfloat16", 8)
# Symmetric integers of n bits have 2^(n-1) - 1 steps on either side; rounding is half a step off.
_INT4, _INT8, _INT16 = 1 / 14, 1 / 254, 1 / 65534
# Only the weights are stored as float16 (subnormal below 2^-14: half a step of 2^-24); computed in float32.
FLOAT16_WEIGHTS = Format("float16", rounding=2.0**-24, weights=2.0**-11, tiny=2.0**-25)
# Weights are int8; activations become int8 with the range that they have in each call.
DYNAMIC = Format("dynamic", rounding=_INT8, weights=_INT8, steps=True, weight_steps=True)
# The same with weights of 4 bits, and of 8 where an op has no kernel for 4.
INT4_WEIGHTS = Format("int4 weights", rounding=_INT8, weights=_INT4, steps=True, weight_steps=True)
INT8 = Format("int8", rounding=_INT8, weights=_INT8, steps=True, weight_steps=True, calibrated=True)
INT16X8 = Format("int16x8", rounding=_INT16, weights=_INT8, steps=True, weight_steps=True, calibrated=True)
