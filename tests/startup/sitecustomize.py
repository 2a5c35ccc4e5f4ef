"""Python runs this first in the tests' processes, and in those that they start (tests/conftest.py says where it is).

Importing TensorFlow makes a million objects. Python looks for garbage among them ten times, and again when the process
ends: 1.8 of the 5 CPU seconds of a program that only imports it, in some three hundred programs of the slow tests.
"""

import atexit
import gc

gc.set_threshold(20_000, 20, 20)
atexit.register(gc.freeze)  # what is left is not looked through
