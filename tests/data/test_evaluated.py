"""What pycocotools would get wrong, shown with pycocotools itself; and whole runs: bad_coco.py."""

import contextlib
import io
import math

import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from helpers.tiny import log_lines
from sampling_free.data.evaluated import check_evaluated_boxes, check_evaluated_masks
from sampling_free.utils.errors import BadInput

BOX = [5.0, 5.0, 20.0, 10.0]


def content_of(**changes):
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": BOX, "area": 200, "iscrowd": 0}
    return {
        "images": [{"id": 1, "width": 50, "height": 50}],
        "categories": [{"id": 1, "name": "ant"}],
        "annotations": [{**annotation, **changes}],
    }


def recall(content, found):
    """Of COCO's evaluation at an IoU of 0.5, with one detection."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = content
        coco.createIndex()
        results = coco.loadRes([{"image_id": 1, "category_id": 1, "bbox": found, "score": 0.9}])
        evaluation = COCOeval(coco, results, "bbox")
        evaluation.params.iouThrs = [0.5]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["recall"][0, 0, 0, -1]


def test_a_sound_annotation_is_found_by_its_own_box_only():
    with log_lines() as lines:
        check_evaluated_boxes(content_of(), "a.json")
    assert lines == []
    assert recall(content_of(), BOX) == 1 and recall(content_of(), [30, 30, 5, 5]) == 0


def test_a_box_of_nan_would_be_found_by_one_far_from_it_and_is_refused():
    content = content_of(bbox=[5.0, 5.0, math.nan, 10.0])
    assert recall(content, [40, 6, 5, 5]) == 1 and recall(content_of(), [40, 6, 5, 5]) == 0
    with pytest.raises(BadInput, match="a.json: annotation 1 of image 1 has bbox=.5.0, 5.0, nan"):
        check_evaluated_boxes(content, "a.json")


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"bbox": [5, 5, 20, 0]}, "counts 1 boxes of no area as missed (such as annotation 1 of"),
        ({"id": 0}, "counts annotation 0 of image 1 as missed; count from 1 up"),
    ],
)
def test_what_would_be_missed_is_said(changes, words):
    content = content_of(**changes)
    assert recall(content, content["annotations"][0]["bbox"]) == 0
    with log_lines() as lines:
        check_evaluated_boxes(content, f"{words}.json")
    assert len(lines) == 1 and words in lines[0]


@pytest.mark.parametrize(
    "changes, error",
    [
        ({"id": "a1"}, ValueError),
        ({"area": None}, TypeError),
        ({"bbox": [1, 2, 3]}, Exception),
    ],
)
def test_what_would_end_the_evaluation_is_refused(changes, error):
    with pytest.raises(error):
        recall(content_of(**changes), BOX)
    with pytest.raises(BadInput, match="^a.json: annotation .*; correct or remove it$"):
        check_evaluated_boxes(content_of(**changes), "a.json")


@pytest.mark.parametrize("mask", [None, [], [[1, 1, 5, 5]], {"size": [9, 9], "counts": "abc"}])
def test_masks(mask):
    check_evaluated_masks(content_of(segmentation=[[5, 5, 25, 5, 25, 15, 5, 15]]), "a.json")
    with pytest.raises(BadInput, match="a.json: annotation 1 of image 1 has no sound 'segm"):
        check_evaluated_masks(content_of(segmentation=mask), "a.json")
