"""What a COCO file may hold. Its mistakes, through a whole run: bad_coco.py."""

import json

import pytest

from sampling_free.data.coco_file import read_coco_file
from sampling_free.utils.errors import BadInput


@pytest.fixture
def read(tmp_path):
    """Writes a small COCO file with some keys of one image and annotation replaced; reads it."""
    content = {
        "images": [{"id": 7, "file_name": "a.png", "width": 50, "height": 40}],
        "categories": [{"id": 9, "name": "bee"}, {"id": 4, "name": "ant"}],
        "annotations": [{"id": 1, "image_id": 7, "category_id": 9, "bbox": [1, 2, 30, 20]}],
    }
    path = tmp_path / "a.json"

    def read(key=None, **changes):
        if key:
            content[key][0].update(changes)
        path.write_text(json.dumps(content))
        return read_coco_file(str(path)), content

    return read


POLYGON = [[1, 1, 5, 1, 5, 5]]


@pytest.mark.parametrize(
    "key, changes",
    [
        ("images", {"width": 50.0}),
        ("images", {"license": 3, "flickr_url": None}),
        ("annotations", {"id": 0, "iscrowd": True, "area": None, "ignore": 0}),
        ("annotations", {"id": "a1", "image_id": 7.0, "category_id": 9.0}),
        ("annotations", {"image_id": 99}),
        ("annotations", {"bbox": [1, 2, float("inf")]}),
        ("annotations", {"keypoints": [1, 2.5, 2]}),
        ("annotations", {"segmentation": None}),
        ("annotations", {"segmentation": POLYGON}),
        ("annotations", {"segmentation": [[1, 2]]}),
        ("annotations", {"segmentation": {"size": [40, 50], "counts": [2000]}}),
        ("annotations", {"segmentation": {"size": [40, 50], "counts": "PPYo1"}}),
    ],
)
def test_what_detectron2_reads_or_skips_is_let_through(read, key, changes):
    found, written = read(key, **changes)
    assert found == written


@pytest.mark.parametrize(
    "key, changes, words",
    [
        ("images", {"id": [7]}, "image [7] has id=[7]; give it a whole number or text"),
        ("images", {"id": 7.5}, "image 7.5 has id=7.5"),
        ("images", {"file_name": 7}, "image 7 has file_name=7; give it text"),
        ("images", {"height": -40}, "image 7 has height=-40; give it a whole number of pixels"),
        ("categories", {"id": "9"}, "'categories' have numbers and text as ids"),
        ("categories", {"name": None}, "category 9 has name=None"),
        ("annotations", {"category_id": [9]}, "annotation 1 of image 7 has category_id=[9]"),
        ("annotations", {"iscrowd": 2}, "annotation 1 of image 7 has iscrowd=2"),
        ("annotations", {"bbox": 5}, "annotation 1 of image 7 has bbox=5, which is no list"),
        ("annotations", {"keypoints": ["1"]}, "annotation 1 of image 7 has 'keypoints'"),
        ("annotations", {"segmentation": "polygon"}, "annotation 1 of image 7 has a 'segment"),
        ("annotations", {"segmentation": {"size": [40, 50]}}, "has a 'segmentation'"),
        ("annotations", {"segmentation": {"size": 4, "counts": [4]}}, "has a 'segmentation'"),
    ],
)
def test_anything_else_is_one_line_with_file_and_id(read, key, changes, words):
    with pytest.raises(BadInput) as error:
        read(key, **changes)
    line = str(error.value)
    assert "a.json: " in line and words in line and "\n" not in line
