"""Comparisons: of cells, of changes of a recipe, and of results on a board."""
