"""The stages of a pipeline, one file each, and what plans them."""
