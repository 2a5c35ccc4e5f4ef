"""``python -m tftoolkit`` is ``tftoolkit``."""

import sys

from tftoolkit.cli import main

sys.exit(main())
