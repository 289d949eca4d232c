"""Kinds of COCO files with mistakes."""

import json
from math import nan

from helpers.bad_kind import SKIPPED, STOPPED, TRAINED, drop, kinds_of, nothing, put
from helpers.sound_data import CocoData

COCO_KINDS, kind = kinds_of("COCO", CocoData)
NOT_COCO = "train.json: not a COCO instances file"
THIRD = "train.json: annotation 3 of image 2 has "

# --- the file ------------------------------------------------------------------------------


@kind("cut off", STOPPED, "train.json", "char 500", "write it again")
def _(data):
    data.text["train"] = json.dumps(data.train).encode()[:500]


kind("empty file", STOPPED, NOT_COCO, "write it again")(put(b"", "text.train"))
kind("not UTF-8", STOPPED, NOT_COCO, "UnicodeDecodeError")(put(b'{"images": "\xff"}', "text.train"))
kind("nested without end", STOPPED, NOT_COCO, "RecursionError")(put(b"[" * 100000, "text.train"))


@kind("no JSON object", STOPPED, NOT_COCO, "it holds a list")
def _(data):
    data.text["train"] = json.dumps(data.train["annotations"]).encode()


@kind("a folder in its place", STOPPED, "train.json: cannot be read (Is a directory)")
def _(data):
    data.text["train"] = None
    (data.folder / "train.json").mkdir()


kind("missing", STOPPED, "train.json: no such file")(put(None, "text.train"))
kind("without images", STOPPED, NOT_COCO, "it has no 'images'")(drop("train.images"))
kind("without annotations", STOPPED, "train.json", "No image has an object")(
    drop("train.annotations")
)
kind("without categories", STOPPED, NOT_COCO, "it has no 'categories'")(drop("train.categories"))
kind("no categories", STOPPED, "train.json: 'categories' is empty")(put([], "train.categories"))
kind("an empty split", STOPPED, "train.json: 'images' is empty")(
    put([], "train.images", "train.annotations")
)

# --- categories ----------------------------------------------------------------------------

kind("wrong num_classes", STOPPED, "set model.num_classes=2", overrides=["model.num_classes=3"])(
    nothing
)
kind("category without a name", STOPPED, NOT_COCO, "category 2 has no 'name'")(
    drop("train.categories.1.name")
)
kind("category id twice", STOPPED, NOT_COCO, "2 categories have the id 1")(
    put(1, "train.categories.1.id")
)
kind("category name twice", STOPPED, "train.json: categories [1, 2] are all called 'ant'")(
    put("ant", "train.categories.1.name")
)


@kind("category ids that are not contiguous", TRAINED, "We'll apply a mapping")
def _(data):
    for content in (data.train, data.val):
        content["categories"][1]["id"] = 90
        for a in content["annotations"]:
            a["category_id"] = {1: 1, 2: 90}[a["category_id"]]


kind(
    "thing_classes set by hand",
    STOPPED,
    "thing_classes is set to ['bee', 'fly'], but by train.json it is ['ant', 'bee']: leave it out",
    lines="""
from detectron2.data import MetadataCatalog
MetadataCatalog.get(dataloader.train.dataset.names.name).thing_classes = ["bee", "fly"]
""",
)(nothing)
kind("unknown category id", STOPPED, THIRD + "category_id=7")(
    put(7, "train.annotations.2.category_id")
)

# --- images --------------------------------------------------------------------------------

kind("image without a file name", STOPPED, NOT_COCO, "image 2 has no 'file_name'")(
    drop("train.images.1.file_name")
)
kind("image without a size", STOPPED, NOT_COCO, "image 2 has no 'width'")(
    drop("train.images.1.width")
)
kind("image of 0 x 0 pixels", STOPPED, NOT_COCO, "image 2 has width=0")(
    put(0, "train.images.1.width", "train.images.1.height")
)
kind("image of NaN pixels", STOPPED, NOT_COCO, "image 2 has width=nan")(
    put(nan, "train.images.1.width")
)
kind("image size as text", STOPPED, NOT_COCO, "image 2 has width='64'")(
    put("64", "train.images.1.width")
)


@kind("image size as 64.0", TRAINED)
def _(data):
    for image in data.train["images"] + data.val["images"]:
        image.update(width=float(image["width"]), height=float(image["height"]))


kind("image id twice", STOPPED, NOT_COCO, "2 images have the id 1")(put(1, "train.images.1.id"))


@kind("image ids as text", TRAINED)
def _(data):
    for content in (data.train, data.val):
        for image in content["images"]:
            image["id"] = f"a{image['id']}"
        for annotation in content["annotations"]:
            annotation["image_id"] = f"a{annotation['image_id']}"


@kind("image without an annotation", SKIPPED, "Removed 1 images", "3 images left")
def _(data):
    data.train["annotations"] = data.train["annotations"][2:]


# --- annotations ---------------------------------------------------------------------------


def crowds(of):
    def spoil(data):
        for annotation in data.train["annotations"][of]:
            annotation["iscrowd"] = 1

    return spoil


kind("annotation id twice", STOPPED, NOT_COCO, "2 annotations have the id 1")(
    put(1, "train.annotations.2.id")
)
kind("annotation without an id", STOPPED, NOT_COCO, "entry 2 of 'annotations'", "no 'id'")(
    drop("train.annotations.2.id")
)
kind("annotation without an image id", STOPPED, NOT_COCO, "annotation 3 has no 'image_id'")(
    drop("train.annotations.2.image_id")
)
kind("annotation without a category id", STOPPED, NOT_COCO, "annotation 3 of image 2 has no")(
    drop("train.annotations.2.category_id")
)


@kind(
    "annotation of an image that is missing",
    SKIPPED,
    "train.json contains 9 annotations, but only 8",
)
def _(data):
    data.add([5, 5, 20, 20], image=99)


kind(
    "image_id as text where the images have numbers",
    STOPPED,
    "train.json: annotation 3 of image 2 has image_id='2', which is the id of no image",
)(put("2", "train.annotations.2.image_id"))
kind("annotation that is no object", STOPPED, NOT_COCO, "entry 2 of 'annotations' is a list")(
    put([1, 2, 3], "train.annotations.2")
)
kind("crowd only, in one image", SKIPPED, "Removed 1 images")(crowds(slice(2, 4)))
kind("crowd in every image", TRAINED, "_train': 4 of 8 annotations are crowds (iscrowd=1), which")(
    crowds(slice(0, None, 2))
)
kind("crowd only, in every image", STOPPED, "No image has an object", "8 of 8 annotations are cr")(
    crowds(slice(None))
)
kind("iscrowd as text", STOPPED, THIRD + "iscrowd='0'")(put("0", "train.annotations.2.iscrowd"))
kind("annotation to be ignored", STOPPED, THIRD + "'ignore'")(put(1, "train.annotations.2.ignore"))


@kind("3,000 objects in one image", TRAINED)
def _(data):
    for i in range(3000):
        data.add([i % 40, i % 30, 12 + i % 7, 9 + i % 11])
