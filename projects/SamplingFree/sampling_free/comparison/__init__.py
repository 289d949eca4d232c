"""Comparisons of variants over seeds: what is run, what a run left, and what follows from it."""
