"""TensorFlow's start in processes that are the toolkit's own: the command line, and the children of an export.

Most of a plain ``import tensorflow`` is not TensorFlow's (benchmarks/startup.py says how much). Python's garbage
collector goes again and again through objects that only become more, and through all of them when the process ends; and
Keras and TFLite import scikit-learn, matplotlib and JAX where they are installed, for the few who use them together.
"""

import atexit
import gc
import sys

OPTIONAL = ("jax", "matplotlib", "sklearn")  # what TensorFlow imports if it is there, and does without


def import_tensorflow(optional: bool = True) -> None:
    """Imports TensorFlow; what it made is no longer searched for garbage, now and when the process ends.

    Not for a process of the user's: that may have garbage of its own, which would stay, and be in want of finalizers.

    Args:
      optional: with the packages of ``OPTIONAL``, which Keras then knows. They can be imported later in either case.
    """
    hidden = [] if optional else [name for name in OPTIONAL if name not in sys.modules]
    was_enabled = gc.isenabled()
    gc.disable()
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: "not installed"
    try:
        import tensorflow  # noqa: F401
    finally:
        for name in hidden:
            del sys.modules[name]
        gc.freeze()
        atexit.register(gc.freeze)
        if was_enabled:
            gc.enable()
