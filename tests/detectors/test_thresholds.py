"""Test thresholds from the prior: their numbers, and inference against stock's with numbers."""

import pytest
import torch

from helpers.prior_thresholds import THETAS, compared, line, numbers
from helpers.tiny import batch, stock_retinanet, tiny_retinanet
from helpers.tiny_detectors import stock_fcos, tiny_fcos, tiny_rcnn
from sampling_free import ATSS, PAA, SamplingFreeATSS, SamplingFreePAA
from sampling_free.checkpoint.stored_prior import StoredPrior

OURS = {
    "retinanet": tiny_retinanet,
    "fcos": tiny_fcos,
    "atss": lambda **kwargs: tiny_fcos(SamplingFreeATSS, **kwargs),
    "paa": lambda **kwargs: tiny_fcos(SamplingFreePAA, **kwargs),
}
STOCK = {
    "retinanet": stock_retinanet,
    "fcos": stock_fcos,
    "atss": lambda **kwargs: tiny_fcos(ATSS, **kwargs),
    "paa": lambda **kwargs: tiny_fcos(PAA, **kwargs),
}
KINDS = list(OURS)
FEW = dict(test_topk_candidates=60, max_detections_per_image=50)
MANY = dict(test_topk_candidates=10**6, max_detections_per_image=10**6)


def stored(prior, counts=None, num_valid=1000.0):
    """The prior of a checkpoint; ``counts`` of each class."""
    found = StoredPrior()
    per_class = counts and {f"class {k}": n for k, n in enumerate(counts)}
    estimate = counts and {"per_class": per_class, "num_valid": num_valid}
    found.load_state_dict({"prior": prior, "estimate": estimate})
    return found


@pytest.mark.parametrize("kind", ["retinanet", "paa"])
def test_a_number_is_compared_as_it_is(kind):
    for prior in ("auto", 0.01, THETAS):
        model = OURS[kind](prior=prior, test_score_thresh=0.37)
        assert model.test_score_thresh == 0.37
        model.test_score_thresh = 0.0
        assert model.test_score_thresh == 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_prior_is_the_share_of_foreground_among_all_anchors(kind):
    model = OURS[kind](prior=0.02, test_score_thresh="prior")
    assert model.test_score_thresh == pytest.approx(compared(kind, 0.06))
    model = OURS[kind](prior=THETAS, test_score_thresh="prior")
    assert model.test_score_thresh == pytest.approx(compared(kind, 0.32))
    model = OURS[kind](test_score_thresh="prior")
    stored(12 / 3000, [5.0, 4.0, 3.0]).give_all(model)  # N_f / (N C)
    assert model.test_score_thresh == pytest.approx(compared(kind, 0.012))


@pytest.mark.parametrize("kind", KINDS)
def test_per_class_is_the_share_of_each_classs_foreground(kind):
    expected = [compared(kind, x) for x in THETAS]
    model = OURS[kind](prior=THETAS, test_score_thresh="per_class")
    assert numbers(model.test_score_thresh) == pytest.approx(expected)
    counts = [1000 * x for x in THETAS]
    for prior in (sum(THETAS) / 3, THETAS):
        model = OURS[kind](test_score_thresh="per_class")
        stored(prior, counts).give_all(model)
        assert numbers(model.test_score_thresh) == pytest.approx(expected)
    # A class that was never seen counts as one, so that not all its scores pass.
    model = OURS[kind](test_score_thresh="per_class")
    stored(0.001, [4.0, 0.0, 2.0]).give_all(model)
    expected = [compared(kind, x) for x in (0.004, 0.001, 0.002)]
    assert numbers(model.test_score_thresh) == pytest.approx(expected)


def test_the_configs_prior_wins_over_that_of_the_checkpoint_for_prior():
    model = tiny_retinanet(prior=0.1, test_score_thresh="prior")
    stored(0.001, [1.0, 1.0, 1.0]).give_all(model)
    assert model.test_score_thresh == pytest.approx(0.3)


@pytest.mark.parametrize("kind", ["retinanet", "fcos"])
def test_per_class_does_not_depend_on_the_type_of_the_pixel_mean(kind):
    """pixel_mean=[104, 116, 124] in a config makes a buffer of whole numbers."""
    model = OURS[kind](prior=THETAS, test_score_thresh="per_class")
    model.pixel_mean = model.pixel_mean.long()
    expected = [compared(kind, x) for x in THETAS]
    assert numbers(model.test_score_thresh) == pytest.approx(expected)


def pair(kind, mode, prior=THETAS, **limits):
    """Ours with the mode and stock with the same weights; drawn, so that scores differ."""
    ours = OURS[kind](prior=prior, test_score_thresh=mode, **limits).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in ours.head.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator) * (p.dim() > 1))
    stock = STOCK[kind](**limits).eval()
    stock.load_state_dict(ours.state_dict())
    return ours, stock


def detections(model):
    """For each image rows of box, score and class, best first."""
    with torch.no_grad():
        outputs = model([{"image": x["image"]} for x in batch(1, 1, 1)])
    rows = []
    for instances in (x["instances"] for x in outputs):
        columns = (
            instances.pred_boxes.tensor,
            instances.scores[:, None],
            instances.pred_classes[:, None].float(),
        )
        rows.append(torch.cat(columns, dim=1))
    return rows


def sorted_rows(rows):
    return rows[(-rows[:, 4]).sort(stable=True).indices]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("limits, prior", [(FEW, THETAS), (MANY, 0.08)])
def test_inference_with_prior_is_stocks_with_the_number(kind, limits, prior):
    ours, stock = pair(kind, "prior", prior, **limits)
    found = detections(ours)
    stock.test_score_thresh = 0.0
    everything = detections(stock)
    total = sum(prior) if isinstance(prior, list) else 3 * prior
    stock.test_score_thresh = compared(kind, total)
    for got, expected, rest in zip(found, detections(stock), everything):
        assert torch.equal(got, expected)
        assert len(got) > 0 and (len(got) < len(rest) or limits is FEW)


@pytest.mark.parametrize("kind", KINDS)
def test_inference_with_per_class_is_for_each_class_stocks_with_its_number(kind):
    ours, stock = pair(kind, "per_class", **MANY)
    found = detections(ours)
    of_class = []
    for k, theta in enumerate(THETAS):  # NMS and voting know no other class
        stock.test_score_thresh = compared(kind, theta)
        of_class.append([x[x[:, 5] == k] for x in detections(stock)])
    assert all(0 < sum(map(len, x)) for x in of_class)
    for got, *expected in zip(found, *of_class):
        expected = torch.cat(expected)
        assert len(got) == len(expected)
        torch.testing.assert_close(sorted_rows(got), sorted_rows(expected), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", ["retinanet", "fcos"])
def test_per_class_thresholds_work_in_mixed_precision(kind):
    ours, _ = pair(kind, "per_class", **FEW)
    with torch.autocast("cpu", torch.bfloat16):
        found = detections(ours)
    assert all(len(x) > 0 for x in found)


@pytest.mark.parametrize("kind", ["retinanet", "fcos"])
class TestBadInput:
    def test_a_mode_without_a_prior(self, kind):
        for mode in ("prior", "per_class"):
            for prior in ("auto", "per_class"):
                model = OURS[kind](prior=prior, test_score_thresh=mode).eval()
                told = line(StoredPrior().give_all, model)  # when weights are loaded
                said = line(model, [{"image": batch(1)[0]["image"]}])  # or at the latest here
                assert told == said
                assert f"model.test_score_thresh={mode!r}" in said and "model.prior" in said

    def test_per_class_with_one_number_for_all(self, kind):
        model = OURS[kind](prior=0.01, test_score_thresh="per_class").eval()
        assert "per_class" in line(model, [{"image": batch(1)[0]["image"]}])
        model = OURS[kind](test_score_thresh="per_class").eval()
        assert "per_class" in line(stored(0.01).give_all, model)

    @pytest.mark.parametrize("mode", ["priors", "auto", None, [0.1, 0.2, 0.3]])
    def test_an_unknown_mode(self, kind, mode):
        said = line(OURS[kind], prior=0.01, test_score_thresh=mode)
        assert "model.test_score_thresh=" in said and "prior, per_class" in said
        if isinstance(mode, str):
            assert repr(mode) in said and "MODEL.SAMPLING_FREE.TEST_SCORE_THRESH" in said

    def test_a_list_of_the_wrong_length(self, kind):
        assert "2 for a head of 3" in line(OURS[kind], prior=[0.1, 0.2])

    def test_a_stored_prior_of_another_number_of_classes(self, kind):
        for found in (stored([0.1, 0.2]), stored(0.1, [5.0, 6.0, 7.0, 8.0])):
            said = line(found.give_all, OURS[kind](test_score_thresh="per_class"))
            assert "this model has 3" in said


@pytest.mark.parametrize("kind, mode", [("faster", "prior"), ("cascade", "per_class")])
def test_a_roi_head_takes_numbers_only(kind, mode):
    said = line(tiny_rcnn, kind, predictor={"test_score_thresh": mode})
    assert "test_score_thresh" in said and "number" in said
    tiny_rcnn(kind, predictor={"test_score_thresh": 0.3})
