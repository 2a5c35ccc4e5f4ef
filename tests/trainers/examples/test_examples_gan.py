"""Two optimizers, and a gradient inside a gradient, reach what the examples promise."""

import numpy as np
import pytest

from tftoolkit.trainers.examples import gan, wgan_gp


@pytest.mark.slow
def test_gan():
    mean, covariance = gan.main()
    np.testing.assert_allclose(mean, gan.MEAN, rtol=0, atol=0.1)
    np.testing.assert_allclose(covariance, gan.COVARIANCE, rtol=0, atol=0.15)


@pytest.mark.slow
def test_wgan_gp():
    shares, near = wgan_gp.main()
    assert shares.min() > 0.04
    assert near > 0.8
