"""Small sizes for the benchmarks."""

import math

NUMBERS = ("ms", "ms_10", "ms_90", "ratio")


def check(found, columns=NUMBERS):
    assert len(found) >= 2
    for row in found:
        assert all(math.isfinite(row[c]) and row[c] > 0 for c in columns), row
