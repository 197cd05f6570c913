"""Solvable ALFWorld games made from scratch, for machines without the published ones."""
