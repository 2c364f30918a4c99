"""Relaxed recursion, which has the layers of Mixture-of-Recursions."""

from restated.mor import GIVEN, RELAXED, inputs, metadata, numbers

VARIANTS = RELAXED

__all__ = ["GIVEN", "VARIANTS", "inputs", "metadata", "numbers"]
