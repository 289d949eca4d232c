"""300 steps of each detector in float16, bfloat16 and float32: nothing overflows, AP stays.

On a CPU float16's products are those of half_products.py, of which one run is made; a GPU makes as
many as of the others.
"""

import math
import statistics

import pytest
from precision_runs import DETECTORS, DEVICE, STEPS, WARMUP, train

SEEDS = (0, 1, 2)
T_OF_THREE = 4.303  # Student's t: 2.5 % of it are above, with 2 degrees of freedom
LEAST_AP50 = 20  # so that there is something to lose


def within_noise(differences, reference):
    """Whether the mean of paired differences is what chance makes of three seeds.

    Either its 95 % confidence interval has zero in it, or it is no larger than the range of the
    reference: three pairs that happen to differ alike have a narrow interval.

    Args:
        differences (list[float]): of each seed.
        reference (list[float]): of each seed, in full precision.
    """
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    limit = max(T_OF_THREE * error, max(reference) - min(reference))
    return abs(statistics.mean(differences)) <= limit


@pytest.mark.parametrize(
    "differences, expected",
    [([1.0, -1.0, 0.5], True), ([5.0, 5.1, 5.2], False), ([1.0, 1.0, 1.1], True)],
)
def test_what_is_within_noise(differences, expected):
    assert within_noise(differences, [40.0, 41.0, 42.0]) is expected


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
    # The scaler starts too high on purpose and comes down; later it has no reason to.
    assert all(x.last_overflow <= WARMUP for x in float16), float16
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
        not_finite=sum(x.num_not_finite for x in everything),
    )
    for mixed in (bfloat16, float16):
        if len(mixed) == len(full):
            differences = [b.ap - a.ap for a, b in zip(full, mixed)]
            assert within_noise(differences, [x.ap for x in full]), (full, mixed)
