"""The progress bar of long work on data, on stderr."""

import sys
import warnings

import tqdm


def progress(what: str, total: int, unit: str) -> tqdm.tqdm:
    """A bar that refreshes itself on a terminal and in a notebook (there a widget, with ipywidgets), a line per half
    minute elsewhere; nothing for quick work."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that ipywidgets is not installed
        from tqdm import auto
    live = sys.stderr.isatty() or type(sys.stderr).__module__.startswith("ipykernel")
    return auto.tqdm(
        desc=what,
        total=total,
        unit=unit,
        unit_scale=True,
        delay=1,
        mininterval=0.2 if live else 30,
        leave=True,
    )
