"""The public name of ``update/schedules.py``."""

import sys

from tftoolkit.trainers.update import schedules
from tftoolkit.trainers.update.schedules import *  # noqa: F403 (for type checkers)

sys.modules[__name__] = schedules
