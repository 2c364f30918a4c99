"""Measure how fast the building blocks are, against what, and how far from the limit."""
