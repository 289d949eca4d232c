"""Kinds of data that spoil an evaluation, and may be sound to train on."""

from math import nan

from helpers.bad_boxes import MASK_RCNN
from helpers.bad_kind import STOPPED, TRAINED, drop, kinds_of, nothing, put
from helpers.sound_data import CocoData, VocData

EVALUATED_KINDS, kind = kinds_of("COCO, evaluated", CocoData)
FIRST = "val.json: annotation 1 of image 1 has "


kind("without annotations", TRAINED, "val", "none of its 2 images has an object")(
    drop("val.annotations")
)
kind("no annotation", TRAINED, "val", "none of its 2 images has an object")(
    put([], "val.annotations")
)
kind("box with NaN", STOPPED, FIRST + "bbox=[nan")(put(nan, "val.annotations.0.bbox.0"))
kind("box of no area", TRAINED, "val.json: the evaluation counts 1 boxes of no area")(
    put(0, "val.annotations.0.bbox.2")
)
kind("annotation without an area", STOPPED, FIRST + "area=None")(drop("val.annotations.0.area"))
kind("annotation without iscrowd", STOPPED, FIRST + "no 'iscrowd'")(
    drop("val.annotations.0.iscrowd")
)


@kind("classes in another order", STOPPED, "in another order (ant, bee; bee, ant)")
def _(data):
    for category, name in zip(data.val["categories"], ("bee", "ant")):
        category["name"] = name


@kind("a class more", STOPPED, "have 2 classes (ant, bee) and 3 (ant, bee, wasp): give both the")
def _(data):
    data.val["categories"].append({"id": 3, "name": "wasp"})


kind("classes of other names", TRAINED, "(ant, bee; ant, wasp)", "by position")(
    put("wasp", "val.categories.1.name")
)
kind("annotation of id 0", TRAINED, "val.json: the evaluation counts annotation 0")(
    put(0, "val.annotations.0.id")
)


@kind("annotation of an id in letters", STOPPED, "val.json: annotation a1 of image 1")
def _(data):
    data.val["annotations"] = [{**a, "id": f"a{a['id']}"} for a in data.val["annotations"]]


kind(
    "object without a mask, for Mask R-CNN",
    STOPPED,
    "val.json: annotation 2 of image 1 has no sound 'segmentation'",
    lines=MASK_RCNN,
)(drop("val.annotations.1.segmentation"))


VOC_EVALUATED_KINDS, voc_kind = kinds_of("VOC, evaluated as VOC", VocData)
AS_VOC = """
from detectron2.evaluation import PascalVOCDetectionEvaluator
dataloader.evaluator = L(PascalVOCDetectionEvaluator)(dataset_name="${..test.dataset.names}")
"""


def complete(data):
    """Gives the annotations the tags that training does without."""
    for name, text in data.xml.items():
        tags = "<pose>Left</pose><truncated>0</truncated><difficult>"
        data.xml[name] = text.replace("<difficult>", tags)


voc_kind("nothing", TRAINED, lines=AS_VOC)(complete)
voc_kind("XML without pose", STOPPED, "val1.xml: an object has no <pose>", lines=AS_VOC)(nothing)


@voc_kind("XML without truncated", STOPPED, "an object has no <truncated>", lines=AS_VOC)
def _(data):
    complete(data)
    data.replace("<truncated>0</truncated>", "", "val2")


@voc_kind("decimal coordinate", STOPPED, "val2.xml: <bndbox/xmin> is '5.25'", lines=AS_VOC)
def _(data):
    complete(data)
    data.replace("<xmin>5</xmin>", "<xmin>5.25</xmin>", "val2")


@voc_kind("decimal coordinate in the training set", TRAINED, lines=AS_VOC)
def _(data):
    complete(data)
    data.replace("<xmin>5</xmin>", "<xmin>5.25</xmin>")


@voc_kind("empty line in the split", STOPPED, "val.txt: ", "cannot have the line ''", lines=AS_VOC)
def _(data):
    complete(data)
    data.splits["val"].insert(1, "")
