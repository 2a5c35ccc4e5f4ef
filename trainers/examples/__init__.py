"""Steps with more than one loss or optimizer; each runs by itself: ``python -m tftoolkit.trainers.examples.gan``.

They train in seconds on a laptop. What each must reach is part of it, and tests hold it to that.
"""
