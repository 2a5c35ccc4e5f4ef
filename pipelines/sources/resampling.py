"""The polyphase filter that ``sources.audio`` and ``audio.resample`` share."""

import math

import numpy as np

ZERO_CROSSINGS = 10
KAISER_BETA = 5.0


def low_pass(up: int, down: int) -> np.ndarray:
    """float64[20 · max(up, down) + 1]; passes a constant unchanged after ``up``-fold zero stuffing.

    That of ``scipy.signal.resample_poly``: a sinc cut at the lower of the two Nyquist frequencies, under a Kaiser
    window.
    """
    rate = max(up, down)
    half = ZERO_CROSSINGS * rate
    ideal = np.sinc(np.arange(-half, half + 1) / rate) * np.kaiser(2 * half + 1, KAISER_BETA)
    return ideal / ideal.sum() * up


class Resampler:
    """From one sampling rate to another, in parts: each sample is computed alike, whatever part it lies in."""

    def __init__(self, from_hz: int, to_hz: int) -> None:
        common = math.gcd(from_hz, to_hz)
        self._up, self._down = to_hz // common, from_hz // common
        self._filter = low_pass(self._up, self._down)
        self._half = ZERO_CROSSINGS * max(self._up, self._down)

    def length(self, frames: int) -> int:
        """Frames that come of so many."""
        return -(-frames * self._up // self._down)

    def needed(self, start: int, count: int) -> tuple[int, int]:
        """The first frame, and the one behind the last, that ``count`` results from ``start`` on are made of. They may
        lie outside of the clip, where zeros are."""
        first = -(-(start * self._down - self._half) // self._up)
        return first, ((start + count - 1) * self._down + self._half) // self._up + 1

    def resampled(self, samples: np.ndarray, start: int, count: int) -> np.ndarray:
        """``count`` results from ``start`` on, float64[count, channels], of what is ``needed`` for them."""
        from scipy.signal import upfirdn

        first, _ = self.needed(start, count)
        # In steps of 1/up frame from ``first`` on, the filter of result ``start`` ends here; zeros in front of the
        # filter put this at one of the places, multiples of ``down``, that upfirdn computes.
        end = start * self._down + self._half - first * self._up
        padding = -end % self._down
        all_results = upfirdn(np.concatenate([np.zeros(padding), self._filter]), samples, self._up, self._down, axis=0)
        begin = (end + padding) // self._down
        result: np.ndarray = all_results[begin : begin + count]
        return result
