"""mean_average_precision on cases worked out by hand, and its properties."""

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest

from tftoolkit.jobs.average_precision import Boxes, intersection_over_union, mean_average_precision

A, B, C = [0, 0, 10, 10], [20, 20, 30, 30], [40, 0, 50, 10]


def truth(*things: tuple[list[int], int]) -> Boxes:
    return Boxes(
        np.array([box for box, _ in things], float).reshape(-1, 4), np.array([label for _, label in things], int)
    )


def found(*things: tuple[list[int], int, float]) -> Boxes:
    real = truth(*((box, label) for box, label, _ in things))
    return real._replace(scores=np.array([score for *_, score in things], float))


@pytest.mark.parametrize(
    ("real", "seen", "value"),
    [
        ([truth((A, 0), (B, 0))], [found((A, 0, 0.9), (B, 0, 0.8))], 1.0),
        ([truth((A, 0), (B, 0))], [found((A, 0, 0.9))], 0.5),
        # A wrong one first: precision 1/2 at recall 1/2, 2/3 at recall 1; the better one counts for both.
        ([truth((A, 0), (B, 0))], [found((C, 0, 0.9), (A, 0, 0.8), (B, 0, 0.7))], 2 / 3),
        # The same thing twice: the second is wrong, behind the last right one.
        ([truth((A, 0))], [found((A, 0, 0.9), (A, 0, 0.8))], 1.0),
        ([truth((A, 0), (B, 0))], [found((A, 0, 0.9), (A, 0, 0.8), (B, 0, 0.7))], 0.5 + 0.5 * 2 / 3),
        # Another class, another picture.
        ([truth((A, 0))], [found((A, 1, 0.9))], 0.0),
        ([truth((A, 0)), truth()], [found(), found((A, 0, 0.9))], 0.0),
        ([truth((A, 0), (B, 1))], [found((A, 0, 0.9))], 0.5),
        # Overlaps of 0.5 and just less: 10×10 against the upper 10×5, against 10×4.9.
        ([truth((A, 0))], [found(([0, 0, 10, 5], 0, 0.9))], 1.0),
        ([truth((A, 0))], [found(([0, 0, 10, 4], 0, 0.9))], 0.0),
    ],
)
def test_by_hand(real: list[Boxes], seen: list[Boxes], value: float) -> None:
    assert mean_average_precision(real, seen) == pytest.approx(value)


def test_without_things_it_is_not_a_number() -> None:
    assert np.isnan(mean_average_precision([truth()], [found((A, 0, 0.5))]))
    assert np.isnan(mean_average_precision([], []))


@hypothesis.given(hnp.arrays(np.float64, st.tuples(st.integers(0, 6), st.just(4)), elements=st.integers(-5, 5)))
@hypothesis.settings(max_examples=50)
def test_overlaps_are_symmetric_and_no_fewer_than_0_nor_more_than_1(corners: np.ndarray) -> None:
    boxes = np.concatenate([np.minimum(corners[:, :2], corners[:, 2:]), np.maximum(corners[:, :2], corners[:, 2:])], 1)
    overlaps = intersection_over_union(boxes, boxes)
    np.testing.assert_array_equal(overlaps, overlaps.T)
    assert ((overlaps >= 0) & (overlaps <= 1)).all()
    is_box = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) > 0
    np.testing.assert_array_equal(np.diag(overlaps), is_box.astype(float))
