"""Python runs this first in the tests' processes, and in those that they start (tests/conftest.py says where it is).

Python looks for garbage among all that importing TensorFlow makes, again and again, and once more when the process
ends. Hundreds of the tests' processes do little else (benchmarks/startup.py measures what is saved in ours).
"""

import atexit
import gc

gc.set_threshold(20_000, 20, 20)
atexit.register(gc.freeze)  # what is left is not looked through
