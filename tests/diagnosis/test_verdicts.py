"""Explosion and collapse: the limits, and that each sentence says what was measured."""

import math

import pytest

from helpers.made_up_imbalance import made_up_head
from sampling_free.diagnosis.verdicts import FORGOTTEN, LARGE, collapse, explosion, readable


def pushing(cls, loc, **kwargs):
    parts = {"loss_cls/foreground": cls / 4, "loss_cls/background": 3 * cls / 4}
    return made_up_head(outputs={"loss_cls": cls, **parts, "loss_box_reg": loc}, **kwargs)


@pytest.mark.parametrize(
    "cls, loc, wrong",
    [
        (4 * LARGE + 0.1, 4.0, True),
        (4 * LARGE - 0.1, 4.0, False),
        (LARGE - 0.1, 1e-6, False),  # less than 1 counts as 1
        (LARGE + 0.1, 1e-6, True),
        (1e9, 0.0, False),  # no foreground, nothing to compare with
        (0.0, 4.0, False),
    ],
)
def test_an_explosion_is_ten_times_the_localization_gradient(cls, loc, wrong):
    assert bool(explosion(pushing(cls, loc))) == wrong


def test_the_sentence_names_both_losses_and_the_ratio():
    text = explosion(pushing(12800.0, 4.0))
    assert "gradient of loss_cls is 3,200 times that of loss_box_reg" in text
    assert "divergence" in text and "\n" not in text
    several = made_up_head(
        outputs={"loss_fcos_cls": 100.0, "loss_fcos_loc": 0.5, "loss_fcos_ctr": 0.5},
        cls_name="loss_fcos_cls",
        loc_names=["loss_fcos_loc", "loss_fcos_ctr"],
    )
    assert "100 times that of loss_fcos_loc + loss_fcos_ctr" in explosion(several)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("place", ["outputs", "features"])
def test_a_gradient_that_is_not_finite_is_named(bad, place):
    head = made_up_head()
    getattr(head, place)["loss_box_reg"] = bad
    text = explosion(head)
    assert "gradient of loss_box_reg is not finite" in text and "learning rate" in text


@pytest.mark.parametrize("factor, wrong", [(0.99, True), (1.01, False)])
def test_a_collapse_is_a_foreground_that_scores_less_than_knowing_nothing(factor, wrong):
    prior = 5 / (1000 * 3)
    scores = {"foreground": factor * FORGOTTEN * prior, "background": 1e-9}
    head = made_up_head(num_foreground=5, num_valid=1000, num_classes=3, scores=scores)
    assert head.optimal_prior == pytest.approx(prior)
    assert bool(collapse(head)) == wrong
    if wrong:
        assert "to loss_cls everything is background" in collapse(head)
        assert "0.00017" in collapse(head) and "0.0017" in collapse(head)


@pytest.mark.parametrize(
    "changes",
    [
        {"scores": {"background": 1e-9}, "num_foreground": 0},
        {"scores": {"foreground": 1e-9}, "num_foreground": 1000, "num_classes": 1},
        {"scores": {"foreground": math.nan, "background": math.nan}},
    ],
)
def test_where_there_is_nothing_to_compare_there_is_no_collapse(changes):
    assert collapse(made_up_head(**changes)) == ""


@pytest.mark.parametrize(
    "x, text",
    [
        (0.05464, "0.0546"),
        (55.49, "55.5"),
        (999.4, "999"),
        (3200, "3,200"),
        (123456.7, "123,457"),
    ],
)
def test_numbers_are_short(x, text):
    assert readable(x) == text
