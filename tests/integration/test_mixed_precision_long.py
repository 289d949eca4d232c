"""300 steps of each detector in float16, bfloat16 and float32: nothing overflows, AP stays.

On a CPU float16's products are those of half_products.py, of which one run is made; a GPU makes as
many as of the others.
"""

import statistics

import pytest

from helpers.precision_runs import DETECTORS, DEVICE, STEPS, train
from sampling_free.comparison.summary import paired_difference

SEEDS = (0, 1, 2)
MOST_OVERFLOWS = STEPS // 50
LEAST_AP50 = 20  # so that there is something to lose


def within_noise(mixed, full):
    """Whether two precisions differ by no more than chance makes of three seeds.

    Either the confidence interval of the mean difference has zero in it, of 95 % for all detectors
    together (Bonferroni), or that mean is no larger than the range of the seeds: three pairs that
    happen to differ alike have a narrow interval.

    Args:
        mixed, full (list[float]): AP of each seed.
    """
    difference = paired_difference(mixed, full, confidence=1 - 0.05 / len(DETECTORS))
    is_chance = difference["low"] <= 0 <= difference["high"]
    return is_chance or abs(difference["mean"]) <= max(full) - min(full)


@pytest.mark.parametrize(
    "mixed, expected",
    [([41.0, 40.0, 42.5], True), ([45.0, 46.1, 47.2], False), ([41.0, 42.0, 43.1], True)],
)
def test_what_is_within_noise(mixed, expected):
    assert within_noise(mixed, [40.0, 41.0, 42.0]) is expected


@pytest.mark.long
@pytest.mark.parametrize("detector", DETECTORS)
def test_300_steps(detector, figure, tmp_path):
    def outcomes(dtype, seeds=SEEDS):
        return [train(detector, tmp_path / f"{dtype or 'float32'}_{s}", dtype, s) for s in seeds]

    full, bfloat16 = outcomes(None), outcomes("bfloat16")
    float16 = outcomes("float16", SEEDS if DEVICE == "cuda" else SEEDS[:1])
    everything = full + bfloat16 + float16
    assert all(x.num_not_finite == 0 for x in everything)
    assert statistics.mean(x.ap50 for x in full) > LEAST_AP50, full
    # Wherever a gradient is above 65504 / scale, be it early or late: one of Mask R-CNN's is 4.3 at
    # step 158, also in float32. What must not be is a scale that falls and falls.
    assert all(x.num_overflows <= MOST_OVERFLOWS for x in float16), float16
    figure(
        "mixed_precision",
        detector,
        device=DEVICE,
        steps=STEPS,
        float32=[x.ap for x in full],
        bfloat16=[x.ap for x in bfloat16],
        float16=[x.ap for x in float16],
        float32_ap50=[x.ap50 for x in full],
        scales=[x.scale for x in float16],
        overflows=[x.num_overflows for x in float16],
        last_overflows=[x.last_overflow for x in float16],
        not_finite=sum(x.num_not_finite for x in everything),
    )
    for mixed in (bfloat16, float16):
        if len(mixed) == len(full):
            assert within_noise([x.ap for x in mixed], [x.ap for x in full]), (full, mixed)
