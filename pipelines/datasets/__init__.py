"""TFDS data sets that are prepared without a network."""
