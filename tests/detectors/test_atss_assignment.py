import numpy as np
import pytest
import torch
from detectron2.structures import Boxes

from helpers.literal_points import atss_literal, square_anchors
from sampling_free.detectors.atss_assignment import atss_match


def _boxes(array):
    return Boxes(torch.as_tensor(np.asarray(array, dtype=np.float32).reshape(-1, 4)))


def _match(levels, boxes, topk=9):
    indices = atss_match([_boxes(x) for x in levels], _boxes(boxes), topk)
    assert indices.dtype == torch.long and indices.shape == (sum(map(len, levels)),)
    return indices.numpy()


def _objects(rng, size, num, sides=(0.05, 0.9)):
    """(num, 4) boxes around places in the image, with sides in shares of the image's."""
    height, width = size
    centers = rng.uniform(0, 1, (num, 2)) * (width, height)
    half = rng.uniform(*sides, (num, 2)) * (width, height) / 2
    # Through float32, so that both sides of the comparison see the same numbers.
    return np.hstack([centers - half, centers + half]).astype(np.float32).astype(np.float64)


SIZES = [(64, 96), (33, 257), (256, 320)]


@pytest.mark.parametrize("num, topk", [(0, 9), (1, 1), (4, 3), (15, 9), (15, 1000)])
@pytest.mark.parametrize("size", SIZES)
def test_it_is_the_papers_algorithm(size, num, topk):
    rng = np.random.default_rng([*size, num, topk])
    levels = square_anchors(size, side=rng.choice([2.0, 4.0, 8.0]))
    assert min(map(len, levels)) < 9  # fewer than k anchors on the last levels
    boxes = _objects(rng, size, num)
    assert _match(levels, boxes, topk).tolist() == atss_literal(levels, boxes, topk).tolist()


@pytest.mark.parametrize("seed", range(4))
def test_so_it_is_for_crowded_tiny_and_huge_objects(seed):
    rng = np.random.default_rng(seed)
    size = tuple(int(x) for x in rng.integers(40, 260, 2))
    levels = square_anchors(size, side=8.0)
    corner = rng.uniform(0, 20, 4)
    boxes = np.concatenate(
        [
            _objects(rng, size, 5, sides=(0.01, 0.03)),  # a pixel or a few
            _objects(rng, size, 3, sides=(1.5, 4.0)),  # beyond the image
            _objects(rng, size, 1) + rng.uniform(-3, 3, (8, 4)),  # almost the same
            [[corner[0], corner[1], 60 + corner[2], 40 + corner[3]]],
        ]
    )
    boxes = boxes.astype(np.float32).astype(np.float64)
    found = _match(levels, boxes)
    assert found.tolist() == atss_literal(levels, boxes).tolist()
    assert len(set(found.tolist()) - {-1}) >= 5


def test_the_shapes_of_anchors_and_their_order_within_a_level_do_not_matter():
    rng = np.random.default_rng(3)
    levels = [_objects(rng, (100, 140), n, sides=(0.1, 0.7)) for n in (80, 30, 4)]
    boxes = _objects(rng, (100, 140), 8)
    found = _match(levels, boxes)
    assert found.tolist() == atss_literal(levels, boxes).tolist()
    order = rng.permutation(80)
    shuffled = _match([levels[0][order], *levels[1:]], boxes)
    assert shuffled[:80].tolist() == found[:80][order].tolist()
    assert shuffled[80:].tolist() == found[80:].tolist()


def test_a_single_candidate_is_foreground_if_its_center_lies_in_the_object():
    levels = [np.array([[0.0, 0.0, 32.0, 32.0]])]
    assert _match(levels, [[15.2, 15.1, 17.3, 18.4]]).tolist() == [0]
    assert _match(levels, [[16.5, 3.0, 31.0, 31.0]]).tolist() == [-1]  # beside the center
    assert _match(levels, [[16.0, 3.0, 31.0, 31.0]]).tolist() == [-1]  # on the border


def test_of_two_candidates_that_differ_none_is_foreground():
    # By the sample's standard deviation: the mean of two lies d / 2 under the larger, and the
    # deviation is d / sqrt(2).
    levels = [np.array([[0.0, 0.0, 32.0, 32.0]]), np.array([[0.0, 0.0, 64.0, 64.0]])]
    assert _match(levels, [[3.0, 2.0, 60.0, 59.0]]).tolist() == [-1, -1]


def test_objects_without_area_have_no_anchor_and_change_nothing():
    levels = square_anchors((96, 128))
    box = [10.3, 12.1, 70.7, 81.9]
    with_points = _match(levels, [box, [40.3, 40.1, 40.3, 40.1], [44.0, 10.0, 44.0, 90.0]])
    assert with_points.tolist() == _match(levels, [box]).tolist()


def test_no_random_number_is_drawn_and_no_gradient_made():
    levels = [_boxes(x) for x in square_anchors((64, 96))]
    boxes = _boxes([[10.3, 12.1, 70.7, 51.9]])
    boxes.tensor.requires_grad_()
    state = torch.get_rng_state()
    results = [atss_match(levels, boxes) for _ in range(2)]
    assert torch.equal(*results) and not results[0].requires_grad
    assert torch.equal(torch.get_rng_state(), state)
