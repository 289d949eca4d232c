import numpy as np
import pycocotools.mask as mask_util
import pytest

from sampling_free.data.synthetic.shapes import (
    MAX_CLASSES,
    SHAPES,
    look,
    outline,
    polygon_mask,
    shading,
)


def test_every_class_has_its_own_look_and_name():
    looks = [look(k) for k in range(MAX_CLASSES)]
    assert len(set(looks)) == len({x.name for x in looks}) == MAX_CLASSES == 240


def test_the_first_five_classes_share_no_shape_and_no_color():
    looks = [look(k) for k in range(5)]
    assert len({x.shape for x in looks}) == len({x.color for x in looks}) == 5


@pytest.mark.parametrize("shape", sorted(SHAPES))
@pytest.mark.parametrize("size", [8, 71])
def test_outline_fills_its_size_and_is_a_simple_polygon(shape, size):
    polygon = outline(shape, size, stretch=1.2, angle=13)
    assert polygon.min() == 0 and polygon.max() == size
    assert (polygon == np.round(polygon, 2)).all()
    # In a polygon that crosses itself, the shoelace area differs from the filled area.
    x, y = polygon.T
    shoelace = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
    large = outline(shape, 400, stretch=1.2, angle=13)
    filled = polygon_mask(large, 401, 401).sum() * (size / 400) ** 2
    assert filled == pytest.approx(shoelace, rel=0.03)


def test_polygon_mask_is_what_the_coco_api_reads_back():
    polygon = outline("star", 40) + (3, 5)
    rle = mask_util.frPyObjects([polygon.reshape(-1).tolist()], 60, 50)
    mask = polygon_mask(polygon, 60, 50)
    assert (mask == mask_util.decode(mask_util.merge(rle)).astype(bool)).all()
    # A point-in-polygon oracle at the pixel centers, away from the edges.
    ys, xs = np.mgrid[:60, :50] + 0.5
    inside = np.zeros((60, 50), dtype=bool)
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0)):
        if y0 != y1:
            crosses = (ys >= min(y0, y1)) & (ys < max(y0, y1))
            inside ^= crosses & (xs < x0 + (ys - y0) * (x1 - x0) / (y1 - y0))
    assert (mask != inside).mean() < 0.03


def test_textures_differ_even_at_the_smallest_size():
    plain, striped, checked = (shading(t, 8, 8, 8) for t in ("plain", "striped", "checked"))
    assert plain.std() == 0 and striped.std() > 30 and checked.std() > 30
    assert (striped != checked).mean() > 0.2
