"""Two optimizers in one step reach what the example promises."""

import numpy as np
import pytest

from tftoolkit.trainers.examples import gan


@pytest.mark.slow
def test_gan():
    mean, covariance = gan.main()
    np.testing.assert_allclose(mean, gan.MEAN, rtol=0, atol=0.1)
    np.testing.assert_allclose(covariance, gan.COVARIANCE, rtol=0, atol=0.15)
