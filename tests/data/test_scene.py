import numpy as np
import pytest

from sampling_free.data.synthetic.scene import MAX_HIDDEN, Scene, background


def _scene(height=64, width=80, seed=0):
    return Scene(np.random.default_rng(seed), height, width)


def test_background_is_smooth_and_grey():
    field = background(np.random.default_rng(0), 96, 120)
    assert field.shape == (96, 120, 3)
    assert np.abs(np.diff(field, axis=0)).max() <= 4
    assert (field.max(axis=2) - field.min(axis=2)).max() <= 28


def test_clutter_changes_the_picture_and_is_no_object():
    scene = _scene()
    before = scene.pixels.copy()
    for _ in range(5):
        scene.add_clutter()
    assert (scene.pixels != before).any()
    mask = np.ones((10, 10), dtype=bool)
    assert scene.place(mask, np.zeros((10, 10, 3), dtype=int), 1.0) is not None


def test_no_object_is_hidden_beyond_the_limit():
    scene = _scene()
    mask = np.ones((20, 20), dtype=bool)
    corners = []
    for i in range(30):
        corner = scene.place(mask, np.full((20, 20, 3), i), 1.0)
        if corner is not None:
            corners.append((i, corner))
    assert 5 < len(corners) < 30, "some find a place and some do not"
    for i, (x, y) in corners:
        visible = (scene.pixels[y : y + 20, x : x + 20] == i).all(axis=2).sum()
        assert visible >= (1 - MAX_HIDDEN) * 400


def test_contrast_is_the_opacity():
    scene = _scene()
    before = scene.pixels.copy()
    x, y = scene.place(np.ones((8, 8), dtype=bool), np.full((8, 8, 3), 200), 0.5)
    window = slice(y, y + 8), slice(x, x + 8)
    assert np.abs(scene.pixels[window] - (before[window] + 200) / 2).max() <= 1


@pytest.mark.parametrize("noise", [0, 9])
def test_finish_adds_noise_of_the_given_size_around_the_same_picture(noise):
    scene = _scene()
    scene.pixels[:] = 100
    picture = scene.finish(noise)
    assert picture.dtype == np.uint8 and picture.shape == (64, 80, 3)
    assert set(np.unique(picture)) == {100 - noise, 100, 100 + noise}
