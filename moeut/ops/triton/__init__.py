"""Triton kernels of the expert operations, and what launches and tunes them."""
