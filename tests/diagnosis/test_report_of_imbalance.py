"""Text, JSON and picture of what was found, from numbers made up for it."""

import json
import math
import re

import pytest
from matplotlib.image import imread

from helpers.made_up_imbalance import made_up_head
from helpers.tiny import batch, stock_retinanet
from helpers.tiny_detectors import rcnn_batch, stock_fcos, tiny_rcnn
from sampling_free.counting.estimate import PriorEstimate
from sampling_free.diagnosis.gradients import (
    Measurement,
    measure,
)
from sampling_free.diagnosis.plot import plot_imbalance
from sampling_free.diagnosis.report import FAR, Imbalance, verdicts


def made_up_estimate(**changes):
    numbers = dict(
        num_valid=100_000.0,
        num_foreground=500.0,
        num_classes=3,
        num_images=40,
        num_empty_images=2,
        per_level=[
            {"stride": 8, "valid": 80_000.0, "foreground": 500.0},
            {"stride": 16, "valid": 20_000.0, "foreground": 0.0},
        ],
        per_class={"ant": 300.0, "bee": 150.0, "cat": 50.0},
        num_objects=120.0,
        num_unreached=1.0,
    )
    return PriorEstimate(**{**numbers, **changes})


def made_up(head=None, estimate=None, **changes):
    head = head or made_up_head()
    losses = {head.cls_name: 6.0, **dict.fromkeys(head.loc_names, 1.0)}
    numbers = dict(
        config="a.py",
        estimate=estimate or made_up_estimate(),
        num_images_of_set=400,
        measurement=Measurement(losses, [head], {}),
        num_images=4,
        weights="random weights",
    )
    return Imbalance(**{**numbers, **changes})


def exploding(**changes):
    outputs = {"loss_cls": 12800.0, "loss_cls/foreground": 1.0, "loss_cls/background": 12799.0}
    return made_up_head(outputs={**outputs, "loss_box_reg": 4.0}, **changes)


def test_a_healthy_start_has_one_calm_line():
    (line,) = verdicts(made_up())
    assert "0.5 times that of loss_box_reg" in line and "no explosion" in line


PRIOR = 500 / (100_000 * 3)
CURES = [
    (dict(), False, "set model.prior to 'auto', which is 0.0017 here"),
    (dict(), True, "set MODEL.SAMPLING_FREE.PRIOR to 'auto', which is 0.0017 here"),
    (
        dict(takes_measured_prior=False, prior_key="model.head.prior_prob"),
        False,
        "set the prior to 0.0017 (model.head.prior_prob), or train with --sampling-free",
    ),
    (
        dict(takes_measured_prior=False, prior_key="model.head.prior_prob"),
        True,
        "set the prior to 0.0017 (MODEL.RETINANET.PRIOR_PROB), or train with --sampling-free",
    ),
    (
        dict(takes_measured_prior=False, prior_key=""),
        False,
        "set the prior to 0.0017, or train with --sampling-free",
    ),
]


@pytest.mark.parametrize("changes, is_yaml, cure", CURES)
def test_an_explosion_comes_with_the_key_that_cures_it(changes, is_yaml, cure):
    scores = {"foreground": 0.5, "background": 0.5}
    first, *_ = verdicts(made_up(exploding(scores=scores, **changes), is_yaml=is_yaml))
    assert "gradient of loss_cls is 3,200 times that of loss_box_reg" in first
    assert first.endswith(f"; {cure}")


def test_where_the_prior_is_right_already_the_weight_is_the_cause():
    (line,) = verdicts(made_up(exploding()))
    assert "3,200" in line and line.endswith("; the weight of that loss is the cause")


def test_numbers_that_are_not_finite_have_no_cure_and_are_null_in_json():
    head = exploding(scores={"foreground": math.nan, "background": math.nan})
    head.outputs["loss_cls"] = math.inf
    found = made_up(head)
    assert "prior" not in verdicts(found)[0]
    numbers = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert numbers["batch"]["heads"][0]["outputs"]["loss_cls"] is None


def test_a_small_localization_gradient_is_no_explosion_and_says_why():
    head = made_up_head()
    head.outputs.update({"loss_cls": 2.0, "loss_box_reg": 0.02})
    (line,) = verdicts(made_up(head))
    assert "100 times" in line and "divided by all samples" in line and "no explosion" in line


def test_an_rcnn_lists_the_objects_of_each_class_as_its_rpn_knows_but_one():
    estimate = made_up_estimate(per_class={"object": 500.0}, num_classes=1)
    found = made_up(estimate=estimate, objects={"ant": 7, "bee": 0})
    assert re.search(r"ant +7\n", found.text())
    assert "no object is of 1 class(es): bee" in found.text()
    dense = made_up(objects={"ant": 7, "bee": 1, "cat": 1})
    assert "objects in the training set" not in dense.text()


def test_a_head_of_proposals_has_no_prior_to_set():
    changes = dict(takes_all_anchors=False, is_softmax=True, prior_key="")
    (line,) = verdicts(made_up(exploding(**changes)))
    assert "3,200" in line and "prior" not in line


def test_a_start_far_above_the_least_loss_is_said_but_not_of_focal_loss():
    # -log(pi) - (N C / N_f - 1) log(1 - pi) at its minimum.
    least = -math.log(PRIOR) - (1 / PRIOR - 1) * math.log1p(-PRIOR)
    assert made_up().least_loss(made_up_head()) == pytest.approx(least)
    for factor, num in ((0.99, 0), (1.01, 1)):
        scores = {"foreground": 0.01, "background": 0.01}
        head = made_up_head(cross_entropy=factor * FAR * least, scores=scores)
        far = [x for x in verdicts(made_up(head)) if "least possible" in x]
        assert len(far) == num
        head.is_focal = True
        assert not [x for x in verdicts(made_up(head)) if "least possible" in x]
    assert f"starts at {1.01 * FAR * least:.3g} per foreground anchor, 2.02 times" in far[0]
    assert far[0].endswith("set model.prior to 'auto', which is 0.0017 here")


def test_the_cure_is_said_once():
    head = exploding(cross_entropy=1e4, scores={"foreground": 1e-9, "background": 0.5})
    lines = verdicts(made_up(head))
    assert len(lines) == 3 and sum("model.prior" in x for x in lines) == 1


def test_a_head_without_foreground_says_so():
    head = made_up_head(num_foreground=0, scores={"background": 0.1}, cross_entropy=None)
    head.outputs["loss_box_reg"] = 0.0
    (line,) = verdicts(made_up(head))
    assert line.startswith("loss_cls: no foreground in this batch")
    assert "no foreground in this batch" in made_up(head).text()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"num_unreached": 13.0}, "13 of 120 objects are reached by no anchor"),
        ({"num_empty_images": 21}, "21 of 40 images are empty"),
        ({"per_class": {"ant": 500.0, "bee": 0.0, "cat": 0.0}}, "of 2 class(es): bee, cat"),
    ],
)
def test_what_is_wrong_with_the_data_comes_first(changes, words):
    lines = verdicts(made_up(estimate=made_up_estimate(**changes)))
    assert len(lines) == 2 and words in lines[0]


@pytest.mark.parametrize("changes", [{"num_unreached": 1.1}, {"num_empty_images": 20}])
def test_a_little_of_it_is_not_worth_a_line(changes):
    assert len(verdicts(made_up(estimate=made_up_estimate(**changes)))) == 1


def test_an_estimate_of_before_objects_were_counted():
    estimate = made_up_estimate(num_objects=0.0, num_unreached=0.0)
    assert len(verdicts(made_up(estimate=estimate))) == 1


@pytest.mark.parametrize("num_foreground, num_classes", [(0, 3), (1000, 1), (1000, 3)])
def test_the_prior_of_sampled_rows_may_not_exist(num_foreground, num_classes):
    head = made_up_head(
        takes_all_anchors=False,
        num_foreground=num_foreground,
        num_classes=num_classes,
        prior_key="",
        takes_measured_prior=False,
    )
    found = made_up(head)
    exists = 0 < num_foreground < 1000 * num_classes
    assert (found.optimal_prior(head) is not None) == exists
    assert (found.least_loss(head) is not None) == exists
    assert found.text() and json.dumps(found.as_json())


def test_the_bias_of_a_softmax_is_not_that_of_a_sigmoid():
    lines = made_up(made_up_head(is_softmax=True)).text().splitlines()
    row = next(x for x in lines if "83.3%" in x)
    assert row.split()[-1] == "-"
    row = next(x for x in made_up().text().splitlines() if "83.3%" in x)
    assert row.split()[-1] == f"{math.log(PRIOR / (1 - PRIOR)):.2f}"


def test_the_text_has_every_number():
    text = made_up().text()
    assert "40 images counted, of 400" in text and "random weights" in text
    assert "120 objects, 1 of them reached by no anchor" in text
    row = next(x for x in text.splitlines() if "83.3%" in x).split()
    assert row[:7] == ["loss_cls", "6", "83.3%", "16.7%", "7.4", "7.396", "1.70e-03"]
    pushes = [x.split() for x in text.splitlines() if x.startswith(("loss_cls/", "loss_cls /"))]
    assert ["loss_cls/background", "1", "0.15"] in pushes
    assert ["loss_cls", "/", "localization", "0.5", "0.5"] in pushes
    assert text.splitlines()[-2] == "Verdict"


def test_the_text_has_the_most_frequent_and_the_rarest_of_many_classes():
    per_class = {f"c{i}": float(1 + i) for i in range(80)}
    estimate = made_up_estimate(num_classes=80, per_class=per_class)
    found = made_up(estimate=estimate)
    shown = [x for x in per_class if f"\n{x} " in found.text()]
    assert shown == [*(f"c{i}" for i in range(10)), *(f"c{i}" for i in range(70, 80))]
    assert found.as_json()["counts"]["per_class"] == per_class
    assert found.estimate is estimate and len(estimate.per_class) == 80


def real(kind):
    model, inputs = {
        "retinanet": (stock_retinanet, batch(3, 2)),
        "fcos": (stock_fcos, batch(3, 2)),
        "mask": (lambda: tiny_rcnn("mask", stock=True), rcnn_batch(3, 2, kind="mask")),
        "empty": (lambda: tiny_rcnn(stock=True), rcnn_batch(0, 0)),
    }[kind]
    return made_up(measurement=measure(model().train(), inputs, with_parts=True))


@pytest.mark.parametrize("kind", ["retinanet", "fcos", "mask", "empty"])
def test_of_a_real_measurement_all_is_written(kind, tmp_path):
    found = real(kind)
    text, written = found.text(), json.loads(json.dumps(found.as_json()))
    assert all(name in text for name in found.measurement.losses)
    assert written["verdicts"] == verdicts(found) != []
    heads = written["batch"]["heads"]
    assert [x["cls_name"] for x in heads] == [x.cls_name for x in found.measurement.heads]
    assert all("gradient_ratio" in x and "least_cross_entropy" in x for x in heads)
    assert written["prior"] == pytest.approx(PRIOR)
    plot_imbalance(found, str(tmp_path / "made" / "p.png"))
    picture = imread(tmp_path / "made" / "p.png")
    assert picture.shape[0] > 500 and picture.std() > 0.02


@pytest.mark.parametrize(
    "changes",
    [
        {"per_class": {"a $ _ b": 3.0, "n" * 90: 0.0, "": 2.0}},
        {"per_class": {f"c{i}": float(i) for i in range(1203)}, "num_classes": 1203},
        {"per_class": {"object": 500.0}, "num_classes": 1},
        {"num_unreached": 60.5},
    ],
)
def test_the_picture_takes_any_names_and_any_number_of_classes(changes, tmp_path):
    plot_imbalance(made_up(estimate=made_up_estimate(**changes)), str(tmp_path / "p.png"))
    assert imread(tmp_path / "p.png").shape[2] == 4
