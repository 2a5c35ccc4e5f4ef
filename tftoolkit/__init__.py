"""tftoolkit: write a kernel once, train at compiled speed, ship it verified to the edge.

The four parts load on first use, so that ``import tftoolkit`` costs milliseconds and the op builder works where
TensorFlow is not installed:

* ``tftoolkit.custom_ops``: compiled C++/CUDA ops, the op host and the builder
* ``tftoolkit.pipelines``: exact, resumable ``tf.data`` input pipelines
* ``tftoolkit.trainers``: GradientTape steps, the training loop and its checkpoints
* ``tftoolkit.export``: SavedModel and TFLite files that were proven equal before they are written
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

__version__ = "0.2.0"
__all__ = ["custom_ops", "export", "models", "pipelines", "trainers"]

if TYPE_CHECKING:
    from tftoolkit import custom_ops, export, models, pipelines, trainers


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return importlib.import_module(f"tftoolkit.{name}")
    raise AttributeError(f"module 'tftoolkit' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
