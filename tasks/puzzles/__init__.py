"""Puzzles on a grid, of which all cells have to be right."""
