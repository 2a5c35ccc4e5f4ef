"""What the tests of exports share: one small convolutional model and its inputs, which none of them changes."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from tftoolkit.export.proof import memory


@pytest.fixture(autouse=True)
def peak_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Is not measured: a process for each file, of which only proof/test_memory.py looks at the figure."""
    monkeypatch.setattr(memory, "peak", lambda *_: None)


@pytest.fixture(scope="session")
def images() -> np.ndarray:
    return np.random.default_rng(0).standard_normal([128, 12, 12, 3]).astype(np.float32)


@pytest.fixture(scope="session")
def representative(images):
    return [{"image": batch} for batch in np.split(images, 4)]


@pytest.fixture(scope="session")
def convolutional() -> Callable:
    """Makes the model, always with the same weights; ``extra``: layers before the last one."""
    import keras

    layers = keras.layers

    def make(extra: Sequence[keras.Layer] = ()) -> keras.Sequential:
        keras.utils.set_random_seed(0)
        return keras.Sequential(
            [
                keras.Input([12, 12, 3], name="image"),
                layers.Conv2D(16, 3, activation="relu", name="first"),
                layers.DepthwiseConv2D(3, name="depthwise"),
                layers.Conv2D(24, 3, strides=2, activation="relu", name="second"),
                layers.GlobalAveragePooling2D(),
                layers.Dense(64, activation="relu", name="hidden"),
                *extra,
                layers.Dense(10, name="logits"),
            ]
        )

    return make
