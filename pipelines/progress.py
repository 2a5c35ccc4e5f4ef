"""The progress bar of long work on data, on stderr."""

import sys

import tqdm


def progress(what: str, total: int, unit: str) -> tqdm.tqdm:
    """A bar that refreshes itself on a terminal, a line per half minute elsewhere; nothing for quick work."""
    return tqdm.tqdm(
        desc=what,
        total=total,
        unit=unit,
        unit_scale=True,
        delay=1,
        mininterval=0.2 if sys.stderr.isatty() else 30,
        leave=True,
    )
