"""Writes golden_tfa.npz: what TensorFlow Addons 0.23 itself computes for the cases in tests/tfa_cases. Takes its wheel:

    pip download --no-deps tensorflow-addons==0.23.0
    python tests/tftoolkit/migration/golden_tfa.py tensorflow_addons-0.23.0-*.whl

Its compiled ops don't load into this TensorFlow, so the cases keep to what is Python there; its imports of Keras are
turned into tf_keras (Keras 2), and typeguard's checks are left out.
"""

import os
import re
import sys
import tempfile
import zipfile
from pathlib import Path

os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import numpy as np

HERE = Path(__file__).parent
_TYPEGUARD = (
    "def typechecked(function=None, **_):\n    return function if function is not None else (lambda one: one)\n"
)


def unpack(wheel: str, folder: Path) -> None:
    zipfile.ZipFile(wheel).extractall(folder)
    (folder / "typeguard.py").write_text(_TYPEGUARD)
    for file in (folder / "tensorflow_addons").rglob("*.py"):
        text = re.sub(r"^(\s*)from keras\b", r"\1from tf_keras", file.read_text(), flags=re.MULTILINE)
        text = re.sub(r"^(\s*)import keras\b", r"\1import tf_keras as keras", text, flags=re.MULTILINE)
        text = text.replace("tf.keras.", "tf_keras.")
        file.write_text(text.replace("import tensorflow as tf\n", "import tensorflow as tf\nimport tf_keras\n", 1))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        unpack(sys.argv[1], Path(name))
        sys.path[:0] = [name, str(HERE.parents[1])]
        import tensorflow_addons as tfa
        import tfa_cases

        tfa.options.disable_custom_kernel()
        found = {key: np.asarray(case.there(tfa)) for key, case in tfa_cases.load().items()}
    np.savez_compressed(HERE / "golden_tfa.npz", **found)
    print(f"{len(found)} cases")
