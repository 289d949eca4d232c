"""Pictures are judged by their pixels, with a detector whose answers are known."""

import numpy as np
import pytest
from detectron2.data import Metadata
from detectron2.structures import BoxMode
from PIL import Image

from helpers.drawn_detector import SIZE, Detector, found
from helpers.tiny import log_lines
from sampling_free.evaluation.pictures import (
    choose_images,
    draw_detections,
    draw_ground_truth,
    draw_side_by_side,
    save_prediction_pictures,
)

RED, BLUE = [255, 0, 0], [0, 0, 255]
METADATA = Metadata(thing_classes=["cat", "dog"], thing_colors=[RED, BLUE])
GRAY = np.full((SIZE, SIZE, 3), 128, np.uint8)


def truth(boxes, classes, **more):
    mode = BoxMode.XYXY_ABS
    return {
        "annotations": [
            {"bbox": b, "bbox_mode": mode, "category_id": c, **more} for b, c in zip(boxes, classes)
        ]
    }


def near(picture, x, y, color):
    """Whether a box line of this color passes within two pixels; lines are half transparent."""
    patch = picture[y - 2 : y + 3, x - 2 : x + 3].astype(int).reshape(-1, 3)
    others = [i for i in range(3) if i != color.index(255)]
    return bool((patch[:, color.index(255)] > patch[:, others].max(1) + 40).any())


def test_only_what_reaches_the_threshold_is_drawn():
    instances = found([[40, 40, 200, 200], [250, 250, 400, 400]], [0.3, 0.29], [0, 1])
    picture = draw_detections(GRAY, instances, METADATA, float(np.float32(0.3)))
    assert picture.shape == GRAY.shape and picture.dtype == np.uint8
    assert near(picture, 200, 120, RED) and not near(picture, 400, 325, BLUE)
    assert (draw_detections(GRAY, instances, METADATA, 0.31) == GRAY).all()


def test_ground_truth_and_detections_have_the_same_colors_and_places():
    box = [40, 40, 200, 200]
    left = draw_ground_truth(GRAY, truth([box], [1]), METADATA)
    right = draw_detections(GRAY, found([box], [0.9], [1]), METADATA, 0.5)
    for picture in (left, right):
        assert near(picture, 200, 120, BLUE) and near(picture, 120, 200, BLUE)
        assert (picture[250:] == 128).all()


def test_masks_of_the_ground_truth_are_drawn_if_asked_for():
    polygon = [[300.0, 300, 400, 300, 400, 400, 300, 400]]
    annotated = truth([[300, 300, 400, 400]], [0], segmentation=polygon)
    assert near(draw_ground_truth(GRAY, annotated, METADATA, with_masks=True), 370, 370, RED)
    assert not near(draw_ground_truth(GRAY, annotated, METADATA), 370, 370, RED)


@pytest.mark.parametrize(
    "pattern, n, chosen",
    [
        ("oooooooooo", 3, [0, 4, 9]),  # spread evenly, both ends included
        ("oo-o-ooooo", 4, [0, 2, 6, 9]),  # three with objects, the first without
        ("o-", 1, [0]),  # no room for an empty one
        ("--o-", 3, [0, 2, 3]),  # too few with objects: filled up with empty ones
        ("oo", 9, [0, 1]),
        ("", 3, []),
        ("oo-", 0, []),
    ],
)
def test_choice_of_images(pattern, n, chosen):
    dicts = [{"i": i, "annotations": [{}] * (c == "o")} for i, c in enumerate(pattern)]
    assert [d["i"] for d in choose_images(dicts, n)] == chosen


@pytest.fixture
def dicts(tmp_path):
    records = []
    for i in range(5):
        file = tmp_path / f"picture{i}.png"
        Image.fromarray(GRAY[: SIZE - i]).save(file)
        record = {"file_name": str(file), "height": SIZE - i, "width": SIZE, "annotations": []}
        records.append({**record, **(truth([[40, 40, 200, 200]], [0]) if i else {})})
    return records


def test_save_prediction_pictures(dicts, tmp_path):
    model, out = Detector().eval(), tmp_path / "out"
    paths = save_prediction_pictures(model, dicts, dict, METADATA, 0.5, str(out), max_images=3)
    assert not model.training
    names = ["picture0.jpg", "picture1.jpg", "picture4.jpg", "overview.png"]
    assert paths == [str(out / name) for name in names]
    assert sorted(p.name for p in out.iterdir()) == sorted(names)
    sheet = np.asarray(Image.open(paths[1]))
    caption = sheet.shape[0] - SIZE
    assert near(sheet, 200, caption + 120, RED)
    assert near(sheet, sheet.shape[1] - SIZE + 200, caption + 120, BLUE)


def test_an_image_that_cannot_be_read_has_no_picture(dicts, tmp_path):
    (tmp_path / "picture1.png").write_bytes(b"")

    def read(record):
        return {**record, "image": Image.open(record["file_name"])}

    out = tmp_path / "out"
    with log_lines() as lines:
        paths = save_prediction_pictures(Detector(), dicts, read, METADATA, 0.5, str(out), 3)
    assert paths == [str(out / x) for x in ("picture0.jpg", "picture4.jpg", "overview.png")]
    assert len(lines) == 1 and "No picture: " in lines[0] and "picture1.png" in lines[0]


def test_training_flag_returns_after_an_error(dicts, tmp_path):
    model = Detector()
    with pytest.raises(KeyError):
        save_prediction_pictures(model, dicts, lambda d: {}, METADATA, 0.5, str(tmp_path / "out"))
    assert model.training


def test_nothing_to_draw_writes_nothing(tmp_path):
    out = tmp_path / "out"
    assert save_prediction_pictures(Detector(), [], dict, METADATA, 0.5, str(out)) == []
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("width, height", [(25, 30_000), (66_000, 1), (1, 1)])
def test_an_image_of_extreme_shape_fits_into_a_jpeg(tmp_path, width, height):
    image = np.full((height, width, 3), 120, np.uint8)
    instances = found([[0, 0, width / 2, height]], [0.9], [1], (height, width))
    sheet = Image.fromarray(draw_side_by_side(image, {}, instances, METADATA, 0.5))
    assert max(sheet.size) <= 65_500
    sheet.save(tmp_path / "a.jpg")
    assert Image.open(tmp_path / "a.jpg").size == sheet.size
