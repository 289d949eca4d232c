import math
import random

import detectron2.data.transforms as T
import numpy as np
import pytest
import torch
from PIL import Image

from sampling_free.counting.views import enumerate_views, is_exact, sampled_names
from sampling_free.utils.seeding import seeded


def _sizes(views):
    """Size -> its total weight."""
    table = {}
    for view in views:
        table[view.size] = table.get(view.size, 0) + view.weight
    return table


def _states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


@pytest.mark.parametrize("prob", [0.0, 0.25])
@pytest.mark.parametrize("horizontal", [True, False])
def test_a_flip_has_two_weighted_views(prob, horizontal):
    flip = T.RandomFlip(prob, horizontal=horizontal, vertical=not horizontal)
    views = enumerate_views([flip], (48, 64))
    corners = {}
    for view in views:
        x0, y0, x1, y1 = view.transforms.apply_box(np.array([[1.0, 2, 30, 40]]))[0]
        corners[x0, y0, x1, y1] = view.weight
    flipped = (34, 2, 63, 40) if horizontal else (1, 8, 30, 46)
    expected = {(1, 2, 30, 40): 1 - prob, flipped: prob}
    assert corners == {box: weight for box, weight in expected.items() if weight}


@pytest.mark.parametrize(
    ("lengths", "style", "expected"),
    [
        ((24, 48, 96), "choice", {24: 1 / 3, 48: 1 / 3, 96: 1 / 3}),
        ((24, 24, 96), "choice", {24: 2 / 3, 96: 1 / 3}),
        ((24, 27), "range", {24: 0.25, 25: 0.25, 26: 0.25, 27: 0.25}),
        (36, "choice", {36: 1}),
        (36, "range", {36: 1}),
    ],
)
def test_multi_scale_training_has_a_view_for_each_length(lengths, style, expected):
    views = enumerate_views([T.ResizeShortestEdge(lengths, 1000, style)], (48, 64))
    table = _sizes(views)
    assert {min(size): weight for size, weight in table.items()} == pytest.approx(expected)
    for height, width in table:
        assert width == pytest.approx(height * 64 / 48, abs=0.5)


def test_length_zero_means_no_resize():
    views = enumerate_views([T.ResizeShortestEdge((0, 24), 1000, "choice")], (48, 64))
    assert _sizes(views) == {(48, 64): 0.5, (24, 32): 0.5}


@pytest.mark.parametrize("size", [(48, 64), (33, 100)])
def test_views_are_what_running_the_recipe_on_pictures_gives(size):
    # Detectron2 itself, often enough to see every outcome, on pictures.
    recipe = [
        T.ResizeShortestEdge((20, 31, 45), 70, "choice"),
        T.RandomFlip(0.5),
        T.ResizeShortestEdge((16, 17), 40, "range"),
    ]
    box = np.array([[3.25, 5, 21, 30.5]])
    seen = {}
    with seeded(0):
        for _ in range(600):
            picture = T.AugInput(np.zeros((*size, 3), dtype=np.uint8))
            transforms = T.AugmentationList(recipe)(picture)
            key = picture.image.shape[:2], tuple(transforms.apply_box(box)[0])
            seen[key] = seen.get(key, 0) + 1 / 600
    views = {}
    for view in enumerate_views(recipe, size):
        key = view.size, tuple(view.transforms.apply_box(box)[0])
        views[key] = views.get(key, 0) + view.weight
    assert views.keys() == seen.keys()
    for key, weight in views.items():
        assert seen[key] == pytest.approx(weight, abs=5 * math.sqrt(weight / 600))


def test_only_resizing_and_flipping_are_exact():
    class MyFlip(T.RandomFlip):
        """A subclass may do anything."""

    exact = [T.ResizeShortestEdge(20), T.RandomFlip()]
    drawn = [T.RandomCrop("relative", (0.5, 0.5)), MyFlip(), T.RandomBrightness(0.9, 1.1)]
    assert [is_exact(a) for a in exact + drawn] == [True, True, False, False, False]
    assert sampled_names(exact) == []
    assert sampled_names([*exact, *drawn]) == ["RandomCrop", "MyFlip", "RandomBrightness"]


def test_drawn_views_are_those_of_the_global_generators():
    crop = T.RandomCrop("relative_range", (0.3, 0.3))
    with seeded(5):
        views = enumerate_views([crop, T.RandomFlip(0.5)], (60, 80))
    with seeded(5):
        picture = T.AugInput(np.zeros((60, 80, 3), dtype=np.uint8))
        transform = crop(picture)
    assert len(views) == 2 and {v.size for v in views} == {picture.image.shape[:2]}
    box = np.array([[20.0, 20, 60, 50]])
    expected = transform.apply_box(box)
    assert np.array_equal(views[0].transforms.apply_box(box), expected)


def test_a_seed_fixes_all_three_generators_and_puts_them_back():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    before = _states()
    with seeded(1, 2, 3):
        first = draw()
    with seeded(1, 2, 3):
        second = draw()
    with seeded(1, 2, 4):
        third = draw()
    assert first == second
    assert all(a != b for a, b in zip(first, third))
    assert _states() == before


def test_the_generators_come_back_after_an_error():
    before = _states()
    with pytest.raises(KeyError), seeded(1):
        np.random.rand()
        raise KeyError
    assert _states() == before


def test_no_picture_is_read(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("a file was opened")

    monkeypatch.setattr(Image, "open", fail)
    recipe = [T.RandomCrop("absolute", (20, 20)), T.ResizeShortestEdge(40), T.RandomFlip()]
    assert [v.size for v in enumerate_views(recipe, (60, 80))] == [(40, 40)] * 2
