"""The summary of a comparison: SciPy's own paired test and values found by hand are the oracles."""

import json
import re
import sys

import numpy as np
import pytest
from scipy import stats

from sampling_free.comparison.summary import (
    paired_difference,
    summarize,
    verdict,
)
from sampling_free.comparison.table import markdown, summary_table
from sampling_free.utils.errors import BadInput


def record(variant, seed, ap=None, rate=None, **more):
    """A record of a run; without ``ap`` it has diverged."""
    how = {"failed": "not finite"} if ap is None else {"bbox/AP": ap, "bbox/AP50": 2 * ap}
    keys = dict(config="configs/a.py", variant=variant, learning_rate=rate, seed=seed)
    timing = dict(seconds_per_iteration=0.5, device="cpu", jobs=1, peak_memory_mib=900.0)
    return {**keys, **timing, **how, **more}


def columns(runs):
    """The table as a dict: name of the row -> column -> text."""
    head, cells = summary_table(summarize(runs))
    return {row[0]: dict(zip(head, row)) for row in cells}


@pytest.mark.parametrize("n", [2, 3, 10])
@pytest.mark.parametrize("confidence", [0.95, 0.8])
def test_the_interval_is_that_of_the_paired_t_test(n, confidence):
    rng = np.random.default_rng(n)
    a, b = rng.normal(40, 2, n), rng.normal(38, 2, n)
    found = paired_difference(a.tolist(), b.tolist(), confidence)
    expected = stats.ttest_rel(a, b).confidence_interval(confidence)
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high))
    assert found["mean"] == pytest.approx((a - b).mean())
    assert found["values"] == pytest.approx((a - b).tolist())


def test_one_pair_has_no_interval_and_equal_differences_one_of_no_width():
    one = paired_difference([3.0], [1.0])
    assert one == {"mean": 2.0, "low": None, "high": None, "values": [2.0]}
    equal = paired_difference([3.0, 4.0], [1.0, 2.0])
    assert (equal["low"], equal["mean"], equal["high"]) == (2.0, 2.0, 2.0)


def test_without_scipy_several_seeds_say_how_to_get_it_and_one_does_without(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(BadInput, match="pip install scipy"):
        paired_difference([3.0, 4.0], [1.0, 2.0])
    assert paired_difference([3.0], [1.0])["mean"] == 2.0


def test_a_row_pairs_equal_seeds_whatever_their_order():
    runs = [record("ours", s, 40.0 + s) for s in (0, 1, 2)]
    runs += [record("focal", s, 38.0 + 3 * s) for s in (2, 0, 1)]
    reference, focal = summarize(runs)
    assert reference["is_reference"] and reference["differences"] is None
    difference = focal["differences"]["bbox/AP"]
    assert dict(zip(difference["seeds"], difference["values"])) == {0: -2.0, 1: 0.0, 2: 2.0}
    assert focal["differences"]["bbox/AP50"]["mean"] == pytest.approx(0.0)
    json.dumps([reference, focal], allow_nan=False)


def test_a_diverged_seed_is_said_and_left_out_of_the_pairs():
    runs = [record("ours", 0, 40.0), record("ours", 1, 42.0), record("ours", 2, 44.0)]
    runs += [record("focal", 0, 39.0), record("focal", 1), record("focal", 2, 40.0)]
    runs += [record("ghm", s) for s in (0, 1, 2)]
    _, focal, ghm = summarize(runs)
    assert focal["seeds"] == [0, 1, 2] and focal["diverged"] == [1]
    assert focal["differences"]["bbox/AP"]["values"] == [-1.0, -4.0]
    assert ghm["metrics"] == {} and ghm["differences"] == {}
    table = columns(runs)
    assert table["focal"]["seeds"] == "3, diverged (1 of 3)"
    assert table["ghm"]["seeds"] == "3, diverged (3 of 3)"
    assert table["ghm"]["AP"] == "diverged"


def test_a_reference_that_diverged_leaves_rows_without_a_difference():
    runs = [record("ours", 0), record("focal", 0, 39.0)]
    assert summarize(runs)[1]["differences"] == {}
    assert columns(runs)["focal"]["AP"] == "39.0"


def test_the_default_threshold_has_a_row_of_its_own_with_the_same_reference():
    usual = {"bbox/AP": 35.0, "test_score_thresh": 0.05}
    shared = {"test_score_thresh": 0.001}
    runs = [record("ours", 0, 40.0, **shared)]
    runs += [record("focal", 0, 37.0, at_default_threshold=usual, **shared)]
    _, focal, low = summarize(runs)
    assert (focal["at_default_threshold"], low["at_default_threshold"]) == (False, True)
    assert (focal["test_score_thresh"], low["test_score_thresh"]) == (0.001, 0.05)
    assert low["differences"]["bbox/AP"]["values"] == [-5.0]
    assert low["name"] == "focal, threshold 0.05"
    assert "bbox/AP50" not in low["metrics"], "of the other threshold"


def test_runs_that_only_chose_a_rate_are_left_out():
    runs = [record("ours", 0, 99.0, rate=0.1, choosing=True), record("ours", 0, 40.0, rate=0.1)]
    (row,) = summarize(runs)
    assert row["metrics"]["bbox/AP"]["values"] == [40.0]
    assert summarize([]) == []


def test_time_is_a_ratio_of_pairs_on_the_same_machine_alone():
    runs = [record("ours", 0, 40.0), record("ours", 1, 40.0, seconds_per_iteration=1.0)]
    runs += [record("focal", 0, 40.0, seconds_per_iteration=1.0)]
    runs += [record("focal", 1, 40.0, seconds_per_iteration=1.0)]
    runs += [record("ghm", 0, 40.0, seconds_per_iteration=3.0, device="gpu")]
    ours, focal, ghm = summarize(runs)
    assert ours["time_ratio"] == 1.0 and ghm["time_ratio"] is None
    assert focal["time_ratio"] == pytest.approx((1.0 / 0.5 + 1.0 / 1.0) / 2)
    table = columns(runs)
    assert table["focal"]["s/iteration"] == "x 1.50" and table["ghm"]["s/iteration"] == "-"


def test_the_table_has_a_column_for_each_class_and_none_for_what_no_row_has():
    first = record("ours", 0, 40.0, **{"bbox/AP-cat": 50.0, "bbox/AP-dog": None})
    del first["peak_memory_mib"]
    head, ((*cells,),) = summary_table(summarize([first]))
    assert head == ["variant", "seeds", "AP", "difference (95 %)", "AP50", "AP cat", "s/iteration"]
    assert cells == ["ours", "1", "40.0", "reference", "80.0", "50.0", "1 (0.5 s)"]


def test_a_bound_that_rounds_to_zero_says_on_which_side_it_lies():
    half = stats.t.ppf(0.975, 1) * 0.1  # of two differences that are 0.2 apart
    for low, text in ((-0.03, "-0.03"), (0.03, "+0.03"), (0.0, "+0.0"), (-1e-9, "+0.0")):
        runs = [record("ours", s, 40.0) for s in (0, 1)]
        runs += [record("focal", s, 40.0 + low + half + d) for s, d in ((0, -0.1), (1, 0.1))]
        assert f" ({text} to +2." in columns(runs)["focal"]["difference (95 %)"]


def test_the_images_have_an_interval_of_their_own_where_every_run_of_the_pairs_kept_them():
    rng = np.random.default_rng(0)
    drawn = rng.normal(0, 3, 200)
    runs = [record("a", s, 40.0 + s, bootstrap=(drawn + 40).tolist()) for s in (0, 1)]
    runs += [record("b", s, 42.0 + 2 * s, bootstrap=(drawn + 42 + s).tolist()) for s in (0, 1)]
    runs += [record("c", 0, 30.0, bootstrap=(drawn + 30).tolist()), record("c", 1, 31.0)]
    _, b, c = summarize(runs)
    found = b["differences"]["bbox/AP"]
    # The images shift both variants alike: of the seeds' differences, 2 and 3, the mean is left.
    assert (found["image_low"], found["image_high"]) == pytest.approx((2.5, 2.5))
    assert "image_low" not in c["differences"]["bbox/AP"]
    table = columns(runs)
    assert table["b"]["over images (95 %)"] == "+2.5 to +2.5"
    assert table["a"]["over images (95 %)"] == table["c"]["over images (95 %)"] == "-"


@pytest.mark.parametrize(
    "seeds, images, expected",
    [
        ((0.1, 2.0), (0.1, 3.0), "better"),
        ((-2.0, -0.1), (-3.0, -0.1), "worse"),
        ((-0.1, 2.0), (0.1, 3.0), "open"),
        ((0.1, 2.0), (-0.1, 3.0), "open"),
        ((0.1, 2.0), (-3.0, -0.1), "open"),
        ((None, None), (0.1, 3.0), "open"),
    ],
)
def test_better_is_what_is_so_by_the_seeds_and_by_the_images(seeds, images, expected):
    difference = dict(zip(("low", "high", "image_low", "image_high"), (*seeds, *images)))
    assert verdict(difference) == expected


def test_a_bar_in_a_name_ends_no_cell_in_markdown():
    text = markdown(["variant", "AP nut | M6"], [["a|b", "1.0"], ["c", "2.0"]])
    for line in text.splitlines():
        assert len(re.findall(r"(?<!\\)\|", line)) == 3
    assert r"AP nut \| M6" in text and r"a\|b" in text
