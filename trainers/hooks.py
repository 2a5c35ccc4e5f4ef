"""The public name of ``loop/hooks.py``."""

import sys

from tftoolkit.trainers.loop import hooks
from tftoolkit.trainers.loop.hooks import *  # noqa: F403 (for type checkers)

sys.modules[__name__] = hooks
