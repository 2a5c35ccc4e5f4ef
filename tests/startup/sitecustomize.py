"""Python runs this first in the tests' processes, and in those that they start (tests/conftest.py says where it is).

Half of what hundreds of them do is to import TensorFlow, and half of that is not TensorFlow's: Python looks for garbage
among all that the import makes, again and again, and once more when the process ends; Keras and TFLite import
scikit-learn, matplotlib and JAX, for the few who use them together. So it is done here as the command line does it
(tftoolkit/startup); benchmarks/startup.py measures what is saved. ``pytest --all`` runs without this file.
"""

import atexit
import gc
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

_OPTIONAL = ("jax", "matplotlib", "sklearn")

gc.set_threshold(20_000, 20, 20)
atexit.register(gc.freeze)  # what is left is not looked through


class _Light(importlib.abc.MetaPathFinder):
    """Imports TensorFlow without the packages that it can do without; they can be imported afterwards."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "tensorflow":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_without(module: ModuleType) -> None:
                hidden = [one for one in _OPTIONAL if one not in sys.modules]
                sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: "not installed"
                try:
                    run(module)
                finally:
                    for one in hidden:
                        del sys.modules[one]

            spec.loader.exec_module = run_without  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _Light())
