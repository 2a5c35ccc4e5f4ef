"""The public name of ``distribution/heartbeat.py``."""

import sys

from tftoolkit.trainers.distribution import heartbeat
from tftoolkit.trainers.distribution.heartbeat import *  # noqa: F403 (for type checkers)

sys.modules[__name__] = heartbeat
