import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from helpers.literal_points import paa_literal, split_literal, vote_literal
from sampling_free.detectors.paa_assignment import num_positives, paa_match
from sampling_free.detectors.score_voting import vote

# --- the split of an object's candidates ----------------------------------------------------------


def _losses(rng, kind, num):
    """Losses of the candidates of an object, ascending."""
    if kind == "uniform":
        values = rng.uniform(0.2, 3, num)
    elif kind == "two clusters":
        low = rng.normal(0.8, 0.15, num // 3 + 1)
        values = np.concatenate([low, rng.normal(2.5, 0.4, num - len(low))])
    elif kind == "one cluster":
        values = rng.normal(1.5, 0.01, num)
    else:
        values = rng.gamma(1.0, 0.7, num)
    return np.sort(np.abs(values))


@pytest.mark.parametrize("num", [2, 5, 45])
@pytest.mark.parametrize("kind", ["uniform", "two clusters", "one cluster", "long tail"])
def test_the_split_is_that_of_a_mixture_by_em(kind, num):
    for seed in range(6):
        losses = _losses(np.random.default_rng([num, seed]), kind, num)
        assert num_positives(losses) == split_literal(losses)


@pytest.mark.parametrize("loss", [0.0, 1e6])
def test_one_candidate_is_foreground(loss):
    assert num_positives(np.array([loss])) == 1


@pytest.mark.parametrize("num, loss", [(2, 0.0), (9, 1.3), (45, 1e6)])
def test_equal_losses_leave_at_least_one(loss, num):
    assert 1 <= num_positives(np.full(num, loss)) <= num


def test_the_split_is_the_same_each_time_and_draws_no_random_number():
    losses = _losses(np.random.default_rng(2), "uniform", 30)
    np.random.seed(0)
    before = np.random.get_state()
    assert len({num_positives(losses) for _ in range(5)}) == 1
    after = np.random.get_state()
    assert before[2] == after[2] and (before[1] == after[1]).all()


# --- the assignment of an image -------------------------------------------------------------------


def _match(losses, objects, sizes, topk=9):
    losses, objects = torch.as_tensor(losses), torch.as_tensor(objects)
    result = paa_match(losses, objects, sizes, topk)
    assert result.dtype == torch.long and result.shape == objects.shape
    return result.numpy()


@pytest.mark.parametrize("seed, topk", [*enumerate([1, 2, 9, 9, 1000])])
def test_it_is_the_papers_algorithm(seed, topk):
    rng = np.random.default_rng(seed)
    sizes = [int(n) for n in rng.integers(1, 70, 5)]
    objects = rng.integers(-2, 5, sum(sizes)).clip(min=-1)
    losses = rng.gamma(2.0, 0.8, sum(sizes)).astype(np.float32)
    found = _match(losses, objects, sizes, topk)
    assert found.tolist() == paa_literal(losses.astype(float), objects, sizes, topk).tolist()
    # An anchor is foreground of its own object or background.
    assert ((found == objects) | (found == -1)).all() and (found >= 0).any()


@pytest.mark.parametrize("num", [0, 5])
def test_without_objects_all_is_background(num):
    assert _match(np.ones(num), np.full(num, -1), [num, 0]).tolist() == [-1] * num


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_loss_that_is_not_finite_is_an_error_where_it_counts(value):
    losses = np.array([1.0, value, 0.5, 2.0])
    with pytest.raises(FloatingPointError, match="not finite"):
        _match(losses, [0, 0, 0, -1], [4])
    assert _match(losses, [0, -1, 0, -1], [4])[[1, 3]].tolist() == [-1, -1]


# --- score voting ---------------------------------------------------------------------------------


def _instances(boxes, scores, classes):
    return Instances(
        (300, 400),
        pred_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)),
        scores=torch.tensor(scores, dtype=torch.float32),
        pred_classes=torch.tensor(classes, dtype=torch.long),
    )


def _random_candidates(seed, num, size=(300, 400), spread=6.0):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 0.5, (4, 2)) * size[::-1]
    base = np.hstack([corner, corner + rng.uniform(0.1, 0.5, (4, 2)) * size[::-1]])
    boxes = base[rng.integers(4, size=num)] + rng.normal(0, spread, (num, 4))
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    return _instances(
        boxes.tolist(), rng.uniform(0.001, 1, num).tolist(), rng.integers(3, size=num)
    )


def _literal(detections, candidates):
    return np.array(
        vote_literal(
            detections.pred_boxes.tensor.double().tolist(),
            detections.pred_classes.tolist(),
            candidates.pred_boxes.tensor.double().tolist(),
            candidates.scores.double().tolist(),
            candidates.pred_classes.tolist(),
        )
    ).reshape(-1, 4)


@pytest.mark.parametrize("num, spread", [(1, 6.0), (7, 1.0), (60, 6.0), (60, 40.0)])
def test_a_voted_box_is_the_weighted_mean_of_the_paper(num, spread):
    for seed in range(3):
        candidates = _random_candidates(seed, num, spread=spread)
        detections = candidates[torch.randperm(num)[: num // 2 + 1]]
        voted = vote(detections, candidates)
        assert isinstance(voted, Boxes)
        np.testing.assert_allclose(
            voted.tensor.numpy(), _literal(detections, candidates), rtol=1e-5, atol=1e-3
        )


def test_a_detection_that_nobody_agrees_with_keeps_its_box():
    box = [50.5, 60.25, 120.75, 150.125]
    candidates = _instances([box, [200.0, 200, 280, 290], box], [0.9, 0.8, 0.7], [0, 0, 1])
    voted = vote(candidates[:1], candidates).tensor
    assert voted.tolist() == [pytest.approx(box, rel=1e-6)]


def test_a_box_without_area_keeps_itself_and_has_no_vote():
    line, box = [30.0, 20, 30, 80], [20.0, 20, 90, 80]
    candidates = _instances([box, line], [0.9, 0.8], [0, 0])
    voted = vote(candidates, candidates).tensor
    assert voted.isfinite().all() and voted[1].tolist() == line
    assert voted[0].tolist() == pytest.approx(box)


def test_no_detections_and_the_arguments_stay():
    candidates = _random_candidates(6, 10)
    before = candidates.pred_boxes.tensor.clone()
    assert vote(candidates[:0], candidates).tensor.shape == (0, 4)
    assert vote(candidates[:0], candidates[:0]).tensor.shape == (0, 4)
    vote(candidates, candidates)
    assert torch.equal(candidates.pred_boxes.tensor, before)


def test_boxes_are_exact_under_autocast():
    candidates = _random_candidates(7, 30, size=(800, 1300))
    full = vote(candidates, candidates).tensor
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = vote(candidates, candidates).tensor
    torch.testing.assert_close(half.float(), full)
