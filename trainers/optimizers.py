"""The public name of ``update/optimizers/``."""

import sys

from tftoolkit.trainers.update import optimizers
from tftoolkit.trainers.update.optimizers import *  # noqa: F403 (for type checkers)

sys.modules[__name__] = optimizers
