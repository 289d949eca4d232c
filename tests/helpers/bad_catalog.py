"""Kinds of functions of Detectron2's ``DatasetCatalog`` that do not give what they should."""

import numpy as np
from detectron2.structures import BoxMode

from helpers.bad_boxes import MASK_RCNN
from helpers.bad_kind import SKIPPED, STOPPED, TRAINED, drop, kinds_of, put
from helpers.sound_data import CatalogData

CATALOG_KINDS, kind = kinds_of("catalog", CatalogData)
SECOND = "/train2.png "


def each(data):
    """All annotations of both splits."""
    return [a for records in data.records.values() for r in records for a in r["annotations"]]


def second(data):
    """The first annotation of the second training image."""
    return data.records["train"][1]["annotations"][0]


def every(change):
    """Changes every annotation of both splits."""
    return lambda data: [change(annotation) for annotation in each(data)]


def as_text(annotation):
    annotation["bbox"] = [str(x) for x in annotation["bbox"]]


# --- what the function returns -------------------------------------------------------------


kind("function that is a generator", TRAINED)(
    put(lambda records: (record for record in records), "function")
)
kind("function that returns a tuple", TRAINED)(put(tuple, "function"))
kind("function that returns nothing", STOPPED, "its function returns None", "return a list")(
    put(lambda records: None, "function")
)
kind("function that returns a dict", STOPPED, "its function returns a dict; return a list")(
    put(lambda records: {r["image_id"]: r for r in records}, "function")
)
kind("function that returns file names", STOPPED, "entry 0 is a str; return a list with a dict")(
    put(lambda records: [r["file_name"] for r in records], "function")
)
kind("function that returns an empty list", STOPPED, "its function returns no image")(
    put(lambda records: [], "function")
)
kind("function that fails", STOPPED, "its function fails with KeyError: 'size' (", "line ")(
    put(lambda records: [r["size"] for r in records], "function")
)
kind("function that opens what is not there", STOPPED, "labels.csv is missing")(
    put(lambda records: open("labels.csv").read(), "function")
)
# --- classes -------------------------------------------------------------------------------


kind("without thing_classes", STOPPED, "_val': has no class names", ".thing_classes = [...]")(
    put(None, "classes")
)
kind("thing_classes as text", STOPPED, "thing_classes='ant, bee'; give a list of names")(
    put("ant, bee", "classes")
)


@kind("category_id from 1", STOPPED, "category_id=2 in ", "outside 0..1", "count them from 0")
def _(data):
    for annotation in each(data):
        annotation["category_id"] += 1


@kind("category_id that is a name", STOPPED, "category_id=ant in ", "in thing_classes, 0")
def _(data):
    for annotation in each(data):
        annotation["category_id"] = data.classes[annotation["category_id"]]


@kind("category_id of NumPy or as 1.0", TRAINED)
def _(data):
    for annotation, kind in zip(each(data), [np.int64, float] * 6):
        annotation["category_id"] = kind(annotation["category_id"])


kind("annotation without category_id", STOPPED, "category_id=None in ", SECOND)(
    drop("records.train.1.annotations.0.category_id")
)
# --- images --------------------------------------------------------------------------------


@kind("image without a size", TRAINED)
def _(data):
    for record in sum(data.records.values(), []):
        del record["width"], record["height"]


kind("image without a file name", STOPPED, "entry 1 has file_name=None")(
    drop("records.train.1.file_name")
)


@kind("image without image_id, evaluated", STOPPED, "_val': record 0 has image_id=None")
def _(data):
    for record in sum(data.records.values(), []):
        del record["image_id"]


@kind("image without image_id, in the training", TRAINED)
def _(data):
    for record in data.records["train"]:
        del record["image_id"]


@kind("one image_id for all, evaluated", STOPPED, "_val': 2 of its 2 images have image_id=0")
def _(data):
    for record in data.records["val"]:
        record["image_id"] = 0


kind("image_id of two kinds, evaluated", STOPPED, "some image_id are numbers and some text")(
    put("a", "records.val.0.image_id")
)


@kind("image_id of NumPy", TRAINED)
def _(data):
    for record in sum(data.records.values(), []):
        record["image_id"] = np.int64(record["image_id"])


kind("image without annotations", SKIPPED, "Removed 1 images")(drop("records.train.1.annotations"))


@kind("annotations in a dict", STOPPED, "annotations of ", SECOND + "are a dict; give a list")
def _(data):
    record = data.records["train"][1]
    record["annotations"] = dict(enumerate(record["annotations"]))


# --- boxes ---------------------------------------------------------------------------------


kind("boxes of NumPy", TRAINED)(
    every(lambda a: a.update(bbox=np.array(a["bbox"], dtype=np.float32)))
)
kind("boxes in tuples, bbox_mode as a number", TRAINED)(
    every(lambda a: a.update(bbox=tuple(a["bbox"]), bbox_mode=1))
)


@kind("box of text", SKIPPED, "skipped 1 boxes (1 not 4 numbers) in train2.png")
def _(data):
    as_text(second(data))


kind("all boxes of text", STOPPED, "has an annotated object: skipped were 8 boxes (8 not 4")(
    every(as_text)
)


@kind("box of text, evaluated", STOPPED, "/val1.png has bbox=['4', '6', '30', '24'], which")
def _(data):
    as_text(data.records["val"][0]["annotations"][0])


kind("without bbox_mode", STOPPED, "bbox_mode=None in ", "give one of XYXY_ABS, XYWH_ABS")(
    every(lambda a: a.pop("bbox_mode"))
)
kind("bbox_mode as text", STOPPED, "bbox_mode=XYWH_ABS in ", "give one of XYXY_ABS, XYWH_ABS")(
    every(lambda a: a.update(bbox_mode="XYWH_ABS"))
)


kind("boxes as fractions", STOPPED, "_train': all 8 boxes lie in [0, 1]", "have to be pixels")(
    every(lambda a: a.update(bbox=[x / 64 for x in a["bbox"]]))
)


def _rotate(annotation):
    x, y, w, h = annotation["bbox"]
    annotation.update(bbox=[x + w / 2, y + h / 2, w, h, 10.0], bbox_mode=BoxMode.XYWHA_ABS)


@kind("rotated boxes, in the training", TRAINED, "8 of 8 boxes are rotated (XYWHA_ABS); Detectron")
def _(data):
    for record in data.records["train"]:
        for annotation in record["annotations"]:
            _rotate(annotation)


@kind("rotated box, evaluated", STOPPED, "/val1.png has a rotated box (XYWHA_ABS), which an eval")
def _(data):
    _rotate(data.records["val"][0]["annotations"][0])


# --- crowds and masks ----------------------------------------------------------------------


kind("iscrowd that is None", STOPPED, "iscrowd=None in ", SECOND.strip() + "; give 0 or 1")(
    put(None, "records.train.1.annotations.0.iscrowd")
)


@kind("crowd of a class that is none", TRAINED, "1 of 9 annotations are crowds (iscrowd=1)")
def _(data):
    crowd = {**second(data), "iscrowd": 1, "category_id": -1}
    data.records["train"][1]["annotations"].append(crowd)


def _corners(annotation):
    x, y, w, h = annotation["bbox"]
    return [(x, y), (x + w, y), (x + w, y + h), (x, y + h)]


kind("polygons of pairs", TRAINED)(every(lambda a: a.update(segmentation=[_corners(a)])))
kind("polygons of NumPy, for Mask R-CNN", TRAINED, lines=MASK_RCNN)(
    every(lambda a: a.update(segmentation=[np.array(_corners(a), np.float32)]))
)


@kind("masks that are None or without a point", TRAINED)
def _(data):
    for annotation, mask in zip(each(data), [None, [], [[]]] * 4):
        annotation["segmentation"] = mask


kind("mask that is an array, evaluated", STOPPED, "/val1.png has a 'segmentation' of neither")(
    put(np.ones((48, 64), bool), "records.val.0.annotations.0.segmentation")
)


@kind(
    "mask that is an array, for Mask R-CNN",
    STOPPED,
    "train2.png: a mask is neither polygons nor run lengths",
    lines=MASK_RCNN,
)
def _(data):
    for annotation in each(data):
        annotation["segmentation"] = [_corners(annotation)]
    second(data)["segmentation"] = np.ones((48, 64), bool)
