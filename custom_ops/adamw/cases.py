"""Shapes of the weights that drive adamw's tests."""

from tftoolkit.custom_ops.global_norm.cases import CASES, Case

__all__ = ["CASES", "Case"]
