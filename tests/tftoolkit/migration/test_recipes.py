"""Recipes and builtins compute what TensorFlow Addons 0.23 did: its own values, written down by golden_tfa.py."""

from pathlib import Path

import numpy as np
import pytest
import tfa_cases

CASES = tfa_cases.load()
GOLDEN = np.load(Path(__file__).with_name("golden_tfa.npz"))


def test_every_case_has_a_value():
    assert set(GOLDEN) == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_the_answer_computes_what_addons_did(name):
    found, expected = np.asarray(CASES[name].here()), GOLDEN[name]
    assert found.shape == expected.shape
    tolerance = CASES[name].tolerance
    np.testing.assert_allclose(found.astype(np.float64), expected.astype(np.float64), rtol=tolerance, atol=tolerance)
