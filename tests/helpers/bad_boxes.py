"""Kinds of boxes and masks in COCO files that are none."""

import json
from math import inf, nan

from helpers.bad_kind import SKIPPED, STOPPED, TRAINED, kinds_of
from helpers.sound_data import SIZE, CocoData

BOX_KINDS, kind = kinds_of("COCO", CocoData)
WHOLE = SIZE[0] * SIZE[1]
ADDED = "train.json: annotation 9 of image 2 has "
POLYGONS = """
dataloader.train.mapper.use_instance_mask = True
"""
MASKS = f"""{POLYGONS}
dataloader.train.mapper.instance_mask_format = "bitmask"
"""
MASK_RCNN = f"""{POLYGONS}
model = LazyConfig.load(str(tiny_run.REPO / "configs/demo/mask_rcnn.py")).model
model.roi_heads.num_classes = 2
"""


FAR = "_train': 1 of 9 boxes reach well beyond the image, such as ", "train2.png, and are cut at"


def skipped(fault):
    return f"train.json: skipped 1 boxes (1 {fault}) in train2.png"


def add(box, **keys):
    return lambda data: data.add(box, **keys)


# --- boxes ---------------------------------------------------------------------------------

kind("box with NaN", SKIPPED, skipped("not finite"))(add([5, nan, 20, 20]))
kind("box with infinity", SKIPPED, skipped("not finite"))(add([5, 5, inf, 20]))


@kind("box with 1e400", SKIPPED, skipped("not finite"))
def _(data):
    data.add([5, 5, 12345, 20])
    data.text["train"] = json.dumps(data.train).replace("12345", "1e400").encode()


kind("box of 1e30 pixels", TRAINED, *FAR)(add([5, 5, 1e30, 20]))
kind("box of negative size", SKIPPED, skipped("of no area"))(add([30, 30, -20, 10]))
kind("box of no area", SKIPPED, skipped("of no area"))(add([30, 30, 0, 10]))
kind("box of 1e-7 pixels", SKIPPED, skipped("of no area"))(add([30, 30, 1e-7, 10]))
kind("box outside the image", SKIPPED, skipped("outside the image"))(add([100, 100, 20, 10]))
kind("box that sees 1e-7 pixels of the image", SKIPPED, skipped("outside the image"))(
    add([SIZE[0] - 1e-7, 10, 20, 10])
)
kind("box partly outside the image", TRAINED, *FAR)(add([50, 30, 40, 40]))


@kind("boxes as fractions", STOPPED, "all 8 boxes lie in [0, 1]", "have to be pixels")
def _(data):
    for annotation in data.train["annotations"]:
        annotation["bbox"] = [x / 64 for x in annotation["bbox"]]


@kind("corners given as width and height", TRAINED, "4 of 8 boxes reach well", "lie inside as corn")
def _(data):
    for annotation in data.train["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["bbox"] = [x, y, x + w, y + h]


kind("box of three numbers", SKIPPED, skipped("not 4 numbers"))(add([5, 5, 20]))
kind("box of text", SKIPPED, skipped("not 4 numbers"))(add(["5", "5", "20", "20"]))
kind("box that is an empty list", STOPPED, ADDED + "bbox=[]")(add([]))
kind("box that is null", STOPPED, ADDED + "bbox=None")(add(None))


@kind("annotation without a box", SKIPPED, skipped("not 4 numbers"))
def _(data):
    data.add([])
    del data.train["annotations"][-1]["bbox"]


# --- masks ---------------------------------------------------------------------------------


def mask(segmentation):
    return add([5, 5, 20, 20], segmentation=segmentation)


def run_lengths(counts, size=SIZE[::-1]):
    return mask({"counts": counts, "size": list(size)})


SOUND = [WHOLE // 2, WHOLE // 4, WHOLE // 4]
BROKEN = skipped("of a broken mask")

kind("polygon of two points", SKIPPED, "Filtered out 1 instances")(mask([[5, 5, 25, 25]]))


@kind("every polygon without a point", STOPPED, "8 of 8 annotations have a 'segmentation' without")
def _(data):
    for annotation in data.train["annotations"]:
        annotation["segmentation"] = [[]]


kind("polygon with NaN", SKIPPED, BROKEN, lines=MASKS)(mask([[5, nan, 25, 5, 25, 25]]))
kind("polygon that is not in a list", STOPPED, ADDED + "a 'segmentation' of")(
    mask([5, 5, 25, 5, 25, 25])
)
kind("RLE", TRAINED, lines=MASKS)(run_lengths(SOUND))
kind("RLE that ends early", SKIPPED, BROKEN, lines=MASKS)(run_lengths([100, 100]))
kind("RLE that ends late", SKIPPED, BROKEN, lines=MASKS)(run_lengths([WHOLE, 100]))
kind("RLE of another size", SKIPPED, BROKEN, lines=MASKS)(run_lengths([100, 300], (20, 20)))
kind("RLE of negative numbers", STOPPED, ADDED + "a 'segmentation' of", lines=MASKS)(
    run_lengths([-100, WHOLE + 100])
)
kind("RLE of other letters", SKIPPED, BROKEN, lines=MASKS)(run_lengths("\x01no run lengths~~~"))
kind("RLE without a size", SKIPPED, BROKEN, lines=MASKS)(mask({"counts": "abc"}))
kind("RLE where polygons are wanted", STOPPED, "train2.png", "format=bitmask", lines=POLYGONS)(
    run_lengths(SOUND)
)


@kind("some objects without a mask", STOPPED, "train2.png: only some of its objects", lines=MASKS)
def _(data):
    data.add([5, 5, 20, 20])
    del data.train["annotations"][-1]["segmentation"]


@kind("RLE of a crowd, for Mask R-CNN", TRAINED, "1 of 9 annotations are cr", lines=MASK_RCNN)
def _(data):
    run_lengths(SOUND)(data)
    crowd = {**data.train["annotations"][-1], "iscrowd": 1}
    data.train["annotations"][-1] = crowd
    data.val["annotations"].append({**crowd, "image_id": 1})


@kind("no object has a mask, for Mask R-CNN", STOPPED, "train1.png has no seg", lines=MASK_RCNN)
def _(data):
    for annotation in data.train["annotations"]:
        del annotation["segmentation"]
