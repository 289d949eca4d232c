"""Records of somebody's own function: Detectron2's mapper and its conversion to COCO read both."""

import copy

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_dict
from detectron2.structures import BoxMode
from PIL import Image
from pycocotools import mask as mask_util
from torch.utils.data import Dataset

from helpers.sound_data import CatalogData
from sampling_free.data.records import CheckedSource, check_at_source, readable_records

OUTLINE = [5, 5, 25, 5, 25, 20, 5, 20]
PAIRS = [(5, 5), (25, 5), (25, 20), (5, 20)]


@pytest.fixture
def register(request, tmp_path):
    """Registers a sound training set after a change; returns its name, free again afterwards."""
    name = f"set of {request.node.name}"

    def register(change=lambda data: None):
        data = CatalogData(tmp_path / "data")
        change(data)
        DatasetCatalog.register(name, lambda: data.function(copy.deepcopy(data.records["train"])))
        MetadataCatalog.get(name).thing_classes = data.classes
        check_at_source(name)
        return name

    yield register
    DatasetCatalog.pop(name, None)
    MetadataCatalog.pop(name, None)


def read_by_all(records, name):
    """What Detectron2's mapper, with masks, and its conversion make of records."""
    mapper = DatasetMapper(True, augmentations=[], image_format="BGR", use_instance_mask=True)
    mapped = [mapper(record)["instances"] for record in records]
    return mapped, convert_to_coco_dict(name)["annotations"]


def every(change):
    def spoil(data):
        for record in data.records["train"]:
            for annotation in record["annotations"]:
                change(annotation)

    return spoil


def set_mask(mask):
    return every(lambda annotation: annotation.update(segmentation=mask))


ALIKE = {
    "boxes of torch": (every(lambda a: a.update(bbox=torch.tensor(a["bbox"]))), None),
    "tuples": (every(lambda a: a.update(bbox=tuple(a["bbox"]))), None),
    "mode as a number": (every(lambda a: a.update(bbox_mode=int(a["bbox_mode"]))), None),
    "classes as 1.0": (every(lambda a: a.update(category_id=float(a["category_id"]))), None),
    "classes as text": (every(lambda a: a.update(category_id=str(a["category_id"]))), None),
    "no mask": (set_mask(None), None),
    "empty masks": (set_mask([[]]), None),
    "pairs": (set_mask([PAIRS]), [OUTLINE]),
    "pairs of numpy": (set_mask([np.array(PAIRS)]), [OUTLINE]),
    "an empty one beside it": (set_mask([[], OUTLINE]), [OUTLINE]),
}


@pytest.mark.parametrize("change, mask", ALIKE.values(), ids=ALIKE)
def test_other_ways_to_write_the_same_are_read_the_same_by_all_of_detectron2(
    register, tmp_path, change, mask
):
    sound = CatalogData(tmp_path / "sound").records["train"]
    name = register(change)
    mapped, converted = read_by_all(DatasetCatalog.get(name), name)
    boxes = [
        BoxMode.convert(a["bbox"], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
        for record in sound
        for a in record["annotations"]
    ]
    assert torch.cat([m.gt_boxes.tensor for m in mapped]).tolist() == boxes
    assert torch.cat([m.gt_classes for m in mapped]).tolist() == [0, 1] * 4
    assert [a["bbox"] for a in converted] == [a["bbox"] for r in sound for a in r["annotations"]]
    assert [a.get("segmentation") for a in converted] == [mask] * 8
    assert [a["area"] for a in converted] == ([20 * 15] * 8 if mask else [30 * 24, 33 * 30] * 4)


def test_run_lengths_as_numbers_are_read_too(register):
    lengths = {"size": [48, 64], "counts": [48 * 5, 48 * 10, 48 * 49]}
    name = register(set_mask(lengths))
    (first, *_) = DatasetCatalog.get(name)
    mask = mask_util.decode(first["annotations"][0]["segmentation"])
    assert mask[:, 5:15].all() and mask.sum() == 480
    assert convert_to_coco_dict(name)["annotations"][0]["area"] == 480


def test_the_input_is_left_alone_and_sound_annotations_are_not_copied(tmp_path):
    records = CatalogData(tmp_path).records["train"]
    before = copy.deepcopy(records)
    found = readable_records(records, "some")
    assert found == records == before
    assert found[0]["annotations"][0] is records[0]["annotations"][0]
    records[0]["annotations"][0]["bbox"] = np.ones(4)
    readable_records(records, "some")
    assert isinstance(records[0]["annotations"][0]["bbox"], np.ndarray)


@pytest.mark.parametrize("orientation, size", [(1, (30, 20)), (3, (30, 20)), (6, (20, 30))])
def test_a_size_is_read_from_the_file_as_the_mapper_sees_it(tmp_path, orientation, size):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.jpg"
    Image.new("RGB", (30, 20)).save(path, exif=exif)
    (found,) = readable_records([{"file_name": str(path)}], "some")
    assert (found["width"], found["height"]) == size
    mapped = DatasetMapper(False, augmentations=[], image_format="BGR")(found)
    assert mapped["image"].shape[1:] == size[::-1]
    (kept,) = readable_records([{"file_name": str(path), "width": 99}], "some")
    assert kept["width"] == 99  # and the mapper says that it is another


def test_an_unlabeled_set_stays_one():
    unknown = [{"file_name": None}, {"file_name": "no such file.jpg"}]
    assert readable_records(unknown, "some") == unknown
    assert readable_records([{"width": 3, "height": 3}], "some") == [{"width": 3, "height": 3}]
    found = readable_records([{"width": 3, "height": 3}, {"annotations": []}], "some")
    assert [record["annotations"] for record in found] == [[], []]


def test_a_checked_function_is_not_checked_twice(register):
    name = register()
    before = DatasetCatalog[name]
    check_at_source(name)
    assert DatasetCatalog[name] is before and isinstance(before, CheckedSource)


def test_a_dataset_of_pytorch_passes_as_it_is(register):
    class Mine(Dataset):
        pass

    mine = Mine()
    name = register(lambda data: setattr(data, "function", lambda records: mine))
    assert DatasetCatalog.get(name) is mine
